//! `tunnel probe` and who may do what: certificates, tokens, the company's proxy, and the desktop at the other end.
#![cfg(target_os = "linux")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Response;
use rcgen::{CertificateParams, date_time_ymd};
use tokio::join;
use tokio::net::TcpListener;
use tunnel::demo::Demo;
use tunnel::transport::full;

use crate::harness::probe::{Report, probe, probe_url};
use crate::harness::programs::{Gateway, PASSWORD, Program};
use crate::harness::relay::{expired_token, token_for};
use crate::harness::tls_front::TlsFront;
use crate::harness::{TestBridge, TestRelay, Upstream, ready};

/// Behind TLS with a certificate for localhost that is changed first.
async fn certified(change: impl FnOnce(&mut CertificateParams)) -> Report {
    let relay = TestRelay::start().await;
    let front = TlsFront::with(relay.address, |authority| {
        authority.acceptor_with("localhost", &[], change)
    })
    .await;
    let probe = probe_url(front.url()).only("reach");
    probe.with("--ca-file", front.ca_file().display()).run().await
}

#[tokio::test]
async fn each_fault_of_a_certificate_is_named_with_its_own_remedy() {
    certified(|_| {}).await.is_well().saw("pass", "reach/tls", "TLS 1.3");
    certified(|params| params.not_after = date_time_ymd(2020, 1, 2))
        .await
        .only_failed(["reach/tls"], "renew the certificate");
    certified(|params| params.not_before = date_time_ymd(2999, 1, 2))
        .await
        .only_failed(["reach/tls"], "set this computer's clock");
    certified(|params| *params = CertificateParams::new(vec!["other.example".to_owned()]).unwrap())
        .await
        .only_failed(["reach/tls"], "get a certificate for this name")
        .saw("fail", "reach/tls", "other.example");
    let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(5 * 24 * 3600 + 600);
    certified(|params| params.not_after = date_time_ymd(1970, 1, 1) + soon)
        .await
        .only_warned(["reach/tls"], "renew the certificate")
        .saw("warn", "reach/tls", "ends in 5 days");
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_and_a_port_without_tls_are_named() {
    let relay = TestRelay::start().await;
    let front = TlsFront::before(relay.address).await;
    let report = probe_url(front.url()).run().await;
    report
        .only_failed(["reach/tls"], "--ca-file")
        .saw("fail", "reach/tls", "Test CA");
    let report = probe_url(format!("https://{}", relay.address)).run().await;
    report.only_failed(["reach/tls"], "use http://");
}

#[tokio::test]
async fn a_relay_that_is_not_there_is_named() {
    let relay = TestRelay::start().await;
    let address = relay.kill().await;
    probe(address).run().await.only_failed(["reach/tcp"], "listens there");
    let nobody = probe_url("https://nobody.invalid").run().await;
    nobody.only_failed(["reach/name"], "A and AAAA records");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = probe(listener.local_addr().unwrap());
    let closing = async {
        loop {
            drop(listener.accept().await.unwrap());
        }
    };
    let report = tokio::select! {
        report = silent.run() => report,
        () = closing => unreachable!(),
    };
    report.only_failed(["reach/http"], "a web server answers");
}

#[tokio::test]
async fn the_proxy_of_a_company_is_named_and_so_is_a_wrong_password() {
    let relay = TestRelay::start().await;
    let sealed = TlsFront::before(relay.address).await;
    let gateway = Program::gateway(Gateway::Squid).await;
    let check = async |url: String| {
        let through = |password| {
            let probe = probe_url(&url).only("reach,websocket,polling,cancel");
            let probe = probe.with("--ca-file", sealed.ca_file().display());
            probe.with_file("--proxy-file", &gateway.url(password))
        };
        let (let_in, refused) = (through(PASSWORD), through("abracadabra"));
        let (let_in, refused) = join!(let_in.run(), refused.run());
        let_in
            .is_well()
            .saw("pass", "reach/proxy", &gateway.address.to_string())
            .saw("pass", "websocket/upgrade", "101");
        refused
            .only_failed(["reach/proxy"], "--proxy-file")
            .saw("fail", "reach/proxy", "refused the password");
    };
    join!(check(format!("http://{}", relay.address)), check(sealed.url()));
}

#[tokio::test]
async fn what_a_token_is_not_for_is_skipped_and_the_other_token_can_be_given() {
    let relay = TestRelay::start().await;
    let (bridge, api) = (token_for("ann", "bridge"), token_for("ann", "api"));
    let groups = "routes,websocket,polling,exchange";
    let probe = || probe(relay.address).only(groups);
    let (only_bridge, only_api) = (probe().token(&bridge), probe().token(&api));
    let both = probe().token(&bridge).with_file("--api-token-file", &api);
    let (only_bridge, only_api, both) = join!(only_bridge.run(), only_api.run(), both.run());
    only_bridge
        .is_well()
        .saw("pass", "websocket/upgrade", "101")
        .saw("skipped", "exchange/bridge", "--api-token-file");
    only_api
        .is_well()
        .saw("skipped", "websocket/upgrade", "not for bridges")
        .saw("skipped", "polling/requests", "not for bridges")
        .saw("skipped", "exchange/bridge", "not for bridges");
    both.is_well()
        .over_each_transport("exchange")
        .saw("pass", "routes/api token", "for api")
        .saw("pass", "exchange/32 MiB", "as sent");
}

#[tokio::test]
async fn tokens_that_are_wrong_are_named() {
    let relay = TestRelay::start().await;
    let probe = || probe(relay.address).only("routes,websocket,exchange");
    let two_users = probe()
        .with_file("--api-token-file", &token_for("bob", "api"))
        .ended()
        .await;
    assert_eq!((two_users.code, two_users.output.as_str()), (Some(2), ""));
    assert!(
        two_users.errors.contains("two users, ann and bob"),
        "{}",
        two_users.errors
    );
    let garbage = probe().token("garbage").run().await;
    garbage.only_refused(["routes/token"], "tunnel relay token");
    let expired = probe().token(&expired_token("ann")).run().await;
    expired.only_refused(["routes/token"], "tunnel relay token");
    let garbage = probe().with_file("--api-token-file", "garbage").run().await;
    garbage.only_refused(["routes/api token"], "tunnel relay token");
}

#[tokio::test]
async fn an_expired_token_must_be_refused() {
    let relay = TestRelay::start().await;
    let probe = |token: &str| {
        probe(relay.address)
            .only("routes")
            .with_file("--expired-token-file", token)
    };
    let report = probe(&expired_token("ann")).run().await;
    report
        .is_well()
        .saw("pass", "routes/forwarded", "with an expired token");
    let ended = probe(&token_for("ann", "bridge api")).ended().await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.errors.contains("has not expired yet"), "{ended:?}");
}

/// An Ollama of this version, with the model of the demonstration.
async fn ollama(version: &'static str) -> Upstream {
    Upstream::serving(move |request| async move {
        if request.uri().path() == "/api/version" {
            return Response::new(full(format!("{{\"version\":\"{version}\"}}")));
        }
        Demo::new(Duration::ZERO).answer(request).await
    })
    .await
}

#[tokio::test]
async fn the_desktop_that_is_connected_is_looked_at() {
    let relay = TestRelay::start().await;
    let (new, old) = (ollama("0.17.1").await, ollama("0.17.0").await);
    let (_new, _old) = (
        TestBridge::to(&relay, &new).name("new").start().await,
        TestBridge::to(&relay, &old).name("old").start().await,
    );
    ready(&relay, "ann").await;
    let probe = |name| probe(relay.address).only("desktop").with("--bridge", name);
    let speaks = probe("new").with("--generate", "demo").run().await;
    speaks
        .is_well()
        .saw("pass", "desktop/ollama", "Ollama 0.17.1")
        .saw("pass", "desktop/models", "demo")
        .saw("pass", "desktop/generate", "first token after");
    let old = probe("old").run().await;
    old.only_warned(["desktop/ollama"], "update Ollama to 0.17.1");
    let unknown = probe("new").with("--generate", "nobody").run().await;
    unknown.only_failed(["desktop/generate"], "--generate MODEL").saw(
        "fail",
        "desktop/generate",
        "model 'nobody' not found",
    );
    let missing = probe("nobody").run().await;
    missing
        .only_failed(["desktop/bridge"], "tunnel bridge")
        .saw("fail", "desktop/bridge", "new")
        .saw("fail", "desktop/bridge", "old");
}

#[tokio::test]
async fn an_ollama_that_does_not_run_is_named() {
    let relay = TestRelay::start().await;
    let upstream = ollama("0.17.1").await;
    let _bridge = TestBridge::to(&relay, &upstream).start().await;
    ready(&relay, "ann").await;
    upstream.stop().await;
    let report = probe(relay.address)
        .only("desktop")
        .with("--generate", "demo")
        .run()
        .await;
    report.only_failed(["desktop/ollama"], "start Ollama");
}

#[tokio::test]
async fn a_desktop_without_a_model_is_warned_of() {
    let relay = TestRelay::start().await;
    let upstream = Upstream::serving(|request| async move {
        let words = match request.uri().path() {
            "/api/version" => "{\"version\":\"0.17.1\"}",
            _ => "{\"models\":[]}",
        };
        Response::new(full(words))
    });
    let upstream = upstream.await;
    let _bridge = TestBridge::to(&relay, &upstream).start().await;
    ready(&relay, "ann").await;
    let report = probe(relay.address).only("desktop").run().await;
    report.only_warned(["desktop/models"], "ollama pull");
}
