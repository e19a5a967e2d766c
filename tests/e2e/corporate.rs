//! The networks of companies: proxies with and without passwords, and TLS that is opened on the way.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, Response, Version};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tunnel::bridge::status::Phase;
use tunnel::transport::dial::{BaseUrl, DialError, Dialer, HttpDialer, Proxies};
use tunnel::transport::{empty, full};

use crate::harness::corporate::{CorporateProxy, Rules};
use crate::harness::tls::Authority;
use crate::harness::{Caller, TestBridge, TestRelay, Upstream, on_each_transport, ready, text, within};

/// No resolver finds it: only the proxy leads there.
const RELAY: &str = "http://relay.invalid";
const SEALED_RELAY: &str = "https://relay.invalid";

/// Waits until the bridge tells why it is not connected, in these words among others.
async fn told(bridge: &TestBridge, words: &str) -> String {
    let mut phase = bridge.status.phase();
    let told = phase.wait_for(|phase| matches!(phase, Phase::Waiting { why } if why.contains(words)));
    match &*within(words, told).await.unwrap() {
        Phase::Waiting { why } => why.clone(),
        phase => panic!("{phase:?}"),
    }
}

/// Passes one chat through relay and bridge.
async fn chat(relay: &TestRelay, upstream: &Upstream) {
    ready(relay, "ann").await;
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let ((), response) = tokio::join!(
        async { upstream.next().await.finish(Response::new(full("passed"))) },
        caller.post("/api/chat", "{}"),
    );
    assert_eq!(text(response).await, "passed");
}

fn dialer(ca_file: Option<&std::path::Path>) -> Dialer {
    Dialer::new(ca_file, Duration::from_secs(5)).unwrap()
}

async fn dialed(dialer: &Dialer, url: &str) -> Result<(), DialError> {
    let url: BaseUrl = url.parse().unwrap();
    dialer.dial(url.origin()).await.map(drop)
}

on_each_transport! {
    async fn a_relay_is_reached_through_a_proxy_and_the_local_server_without_it(transport: Transport) {
        let (relay, upstream) = (TestRelay::start().await, Upstream::scripted().await);
        for (socks, url) in [(false, "http://ann:s%20cret@"), (true, "socks5h://ann:s cret@"), (true, "socks5://ann:s cret@")] {
            let rules = Rules { password: Some("ann:s cret"), socks, ..Rules::default() };
            let proxy = CorporateProxy::to(relay.address, rules).await;
            let bridge = TestBridge::to(&relay, &upstream)
                .transport(transport)
                .relay_url(RELAY.to_owned())
                .proxy(&format!("{url}{}", proxy.address))
                .start()
                .await;
            chat(&relay, &upstream).await;
            let asked = proxy.asked();
            assert!(!asked.is_empty() && asked.iter().all(|target| target == "relay.invalid:80"), "{asked:?}");
            bridge.stop().await;
        }
    }

    async fn a_missing_proxy_password_is_asked_for(transport: Transport) {
        let (relay, upstream) = (TestRelay::start().await, Upstream::scripted().await);
        for (socks, scheme) in [(false, "http"), (true, "socks5h")] {
            let rules = Rules { password: Some("ann:secret"), socks, ..Rules::default() };
            let proxy = CorporateProxy::to(relay.address, rules).await;
            let url = format!("{scheme}://{}", proxy.address);
            let plan = TestBridge::to(&relay, &upstream).transport(transport).relay_url(RELAY.to_owned());
            let bridge = plan.proxy(&url).launch();
            let why = told(&bridge, "wants a password").await;
            let hint = format!("set it in HTTPS_PROXY or --proxy-file as {scheme}://USER:PASSWORD@{}", proxy.address);
            assert!(why.contains(&url) && why.contains(&hint), "{why}");
            bridge.stop().await;
        }
    }

    async fn a_wrong_proxy_password_is_named_as_such(transport: Transport) {
        let (relay, upstream) = (TestRelay::start().await, Upstream::scripted().await);
        for (socks, scheme) in [(false, "http"), (true, "socks5h")] {
            let rules = Rules { password: Some("ann:secret"), socks, ..Rules::default() };
            let proxy = CorporateProxy::to(relay.address, rules).await;
            let plan = TestBridge::to(&relay, &upstream).transport(transport).relay_url(RELAY.to_owned());
            let bridge = plan.proxy(&format!("{scheme}://ann:hunter2@{}", proxy.address)).launch();
            let why = told(&bridge, "refused the password").await;
            assert!(why.contains("USER:PASSWORD@") && !why.contains("hunter2"), "{why}");
            assert!(proxy.asked().is_empty());
            bridge.stop().await;
        }
    }

    async fn a_proxy_that_does_not_let_through_is_told_with_its_answer(transport: Transport) {
        let (relay, upstream) = (TestRelay::start().await, Upstream::scripted().await);
        for (answer, socks, words) in [
            ("HTTP/1.1 403 Forbidden", false, "does not let through to relay.invalid:80: it answered 403 Forbidden"),
            ("HTTP/1.1 503 Down", false, "could not reach relay.invalid:80: it answered 503"),
            ("no", true, "does not let through to relay.invalid:80: it answered connection not allowed"),
            ("SSH-2.0-OpenSSH_9.9", false, "is that the proxy's address?"),
        ] {
            let proxy = CorporateProxy::to(relay.address, Rules { answer: Some(answer), socks, ..Rules::default() }).await;
            let scheme = if socks { "socks5h" } else { "http" };
            let plan = TestBridge::to(&relay, &upstream).transport(transport).relay_url(RELAY.to_owned());
            let bridge = plan.proxy(&format!("{scheme}://{}", proxy.address)).launch();
            let why = told(&bridge, words).await;
            assert!(why.contains(&format!("the proxy {scheme}://{}", proxy.address)), "{why}");
            bridge.stop().await;
        }
    }

    async fn a_proxy_that_opens_tls_is_passed_with_its_ca_and_named_without(transport: Transport) {
        let (relay, upstream) = (TestRelay::start().await, Upstream::scripted().await);
        let corporation = Authority::named("Example Corp Proxy CA");
        let rules = Rules { opens: Some(corporation.acceptor("relay.invalid")), ..Rules::default() };
        let proxy = CorporateProxy::to(relay.address, rules).await;
        let url = format!("http://{}", proxy.address);
        let plan = || TestBridge::to(&relay, &upstream).transport(transport).relay_url(SEALED_RELAY.to_owned()).proxy(&url);
        let bridge = plan().launch();
        let why = told(&bridge, "cannot trust").await;
        assert!(why.contains(
            "cannot trust relay.invalid: its certificate was issued by 'Example Corp Proxy CA', which this computer does \
             not know; if your company's network opens TLS, give its CA with --ca-file FILE"
        ), "{why}");
        bridge.stop().await;
        let bridge = plan().ca_file(corporation.ca_file()).start().await;
        chat(&relay, &upstream).await;
        bridge.stop().await;
    }

    async fn tls_passes_through_a_proxy_that_speaks_tls_itself(transport: Transport) {
        let (relay, upstream) = (TestRelay::start().await, Upstream::scripted().await);
        let authority = Authority::named("Test CA");
        let rules = Rules {
            sealed: Some(authority.acceptor("localhost")),
            opens: Some(authority.acceptor("relay.invalid")),
            ..Rules::default()
        };
        let proxy = CorporateProxy::to(relay.address, rules).await;
        let bridge = TestBridge::to(&relay, &upstream)
            .transport(transport)
            .relay_url(SEALED_RELAY.to_owned())
            .proxy(&format!("https://localhost:{}", proxy.address.port()))
            .ca_file(authority.ca_file())
            .start()
            .await;
        chat(&relay, &upstream).await;
        assert_eq!(proxy.asked()[0], "relay.invalid:443");
        bridge.stop().await;
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told_with_its_setting() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (url, words) in [
        (
            format!("http://{gone}"),
            format!("cannot connect to the proxy http://{gone} (set by HTTPS_PROXY)"),
        ),
        (
            "http://proxy.invalid".into(),
            "cannot find the proxy http://proxy.invalid:80 (set by HTTPS_PROXY)".into(),
        ),
    ] {
        let dialer = dialer(None).with_proxies(Proxies::all(&url, "HTTPS_PROXY").unwrap());
        let error = dialed(&dialer, RELAY).await.unwrap_err();
        assert!(error.to_string().starts_with(&words), "{error}");
        assert_eq!(matches!(error, DialError::Resolve { .. }), url.contains("invalid"));
    }
}

#[tokio::test]
async fn a_silent_proxy_is_told_to_be_silent_and_left() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", silent.local_addr().unwrap());
    let dialer = Dialer::new(None, Duration::from_millis(200)).unwrap();
    let dialer = dialer.with_proxies(Proxies::all(&proxy, "--proxy").unwrap());
    let error = dialed(&dialer, RELAY).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("no answer from relay.invalid through the proxy {proxy}")),
        "{error}"
    );
    let (mut left, _) = silent.accept().await.unwrap();
    let mut asked = String::new();
    within("the connection to be closed", left.read_to_string(&mut asked))
        .await
        .unwrap();
    assert!(asked.starts_with("CONNECT relay.invalid:80 HTTP/1.1\r\n"), "{asked}");
}

#[tokio::test]
async fn a_proxy_that_takes_no_passwords_of_ours_is_told() {
    let rules = Rules {
        password: Some("ann:secret"),
        login: Some("NTLM"),
        ..Rules::default()
    };
    let proxy = CorporateProxy::to(([127, 0, 0, 1], 9).into(), rules).await;
    let proxies = Proxies::all(&proxy.address.to_string(), "HTTP_PROXY").unwrap();
    let error = dialed(&dialer(None).with_proxies(proxies), RELAY)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("log in by NTLM"), "{error}");
}

#[test]
fn the_way_that_is_watched_is_the_way_to_the_proxy() {
    let direct = dialer(None);
    let led = direct
        .clone()
        .with_proxies(Proxies::all("http://proxy:3128", "--proxy").unwrap());
    let relay: BaseUrl = "https://relay.example.com".parse().unwrap();
    assert_eq!(direct.first_hop(relay.origin()), "relay.example.com:443");
    assert_eq!(led.first_hop(relay.origin()), "proxy:3128");
    assert_eq!(led.direct().first_hop(relay.origin()), "relay.example.com:443");
}

/// Answers each request with its version, in TLS or without.
async fn version_server(acceptor: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let answer = |request: Request<hyper::body::Incoming>| async move {
                    let version = format!("{:?}", request.version());
                    Ok::<_, std::convert::Infallible>(Response::new(full(version)))
                };
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                match acceptor {
                    Some(acceptor) => {
                        let stream = TokioIo::new(acceptor.accept(stream).await.ok()?);
                        server.serve_connection(stream, service_fn(answer)).await.ok()
                    }
                    None => server
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await
                        .ok(),
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn http2_is_spoken_where_both_sides_know_it() {
    let authority = Authority::named("Test CA");
    let offering = |protocols: &[&str]| Some(authority.acceptor_with("relay.invalid", protocols, |_| {}));
    for (acceptor, url, version) in [
        (offering(&["h2", "http/1.1"]), SEALED_RELAY, Version::HTTP_2),
        (offering(&["http/1.1"]), SEALED_RELAY, Version::HTTP_11),
        (offering(&[]), SEALED_RELAY, Version::HTTP_11),
        (None, RELAY, Version::HTTP_11),
    ] {
        let proxy = CorporateProxy::to(version_server(acceptor).await, Rules::default()).await;
        let proxies = Proxies::all(&format!("http://{}", proxy.address), "--proxy").unwrap();
        let dialer = dialer(Some(&authority.ca_file())).with_proxies(proxies);
        let client = Client::builder(TokioExecutor::new()).build(HttpDialer(dialer));
        for _ in 0..2 {
            let response = client.request(Request::get(url).body(empty()).unwrap()).await.unwrap();
            assert_eq!(response.version(), version);
            assert_eq!(text(response).await, format!("{version:?}"));
        }
        assert_eq!(proxy.asked().len(), 1);
    }
}

#[tokio::test]
async fn certificates_that_do_not_fit_are_told_in_plain_words() {
    let authority = Authority::named("Test CA");
    let dialer = dialer(Some(&authority.ca_file()));
    for (host, change, words) in [
        (
            "localhost",
            Box::new(|params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 2))
                as Box<dyn FnOnce(&mut rcgen::CertificateParams)>,
            "expired on 2020-01-02; if it is valid, this computer's clock is wrong",
        ),
        (
            "localhost",
            Box::new(|params| params.not_before = rcgen::date_time_ymd(2999, 1, 2)),
            "valid only from 2999-01-02 on; if it is valid, this computer's clock is wrong",
        ),
        (
            "other.example",
            Box::new(|_| {}),
            "is for other.example, not for localhost",
        ),
    ] {
        let server = version_server(Some(authority.acceptor_with(host, &[], change))).await;
        let error = dialed(&dialer, &format!("https://localhost:{}", server.port()))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[cfg(target_os = "linux")]
mod program {
    //! The options and variables of the program itself.

    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;
    use crate::harness::process::{command, run};

    /// Runs a bridge that tells all, until it says these words; everything that it said.
    async fn said(variables: &[(&str, &str)], arguments: &[&str], words: &str) -> String {
        let home = tempfile::tempdir().unwrap();
        let arguments = [&["bridge", "--relay", RELAY, "--insecure-http", "-vv"], arguments].concat();
        let mut command = command(home.path(), &arguments);
        let token = crate::harness::relay::token_for("ann", "bridge");
        let mut child = command
            .env("TUNNEL_TOKEN", token)
            .envs(variables.iter().copied())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut all = String::new();
        while !all.contains(words) {
            match within(words, lines.next_line()).await.unwrap() {
                Some(line) => all = format!("{all}{line}\n"),
                None => panic!("it ended without saying '{words}': {all}"),
            }
        }
        all
    }

    #[tokio::test]
    async fn a_password_comes_by_variable_or_file_and_stands_in_no_log() {
        let relay = TestRelay::start().await;
        let rules = Rules {
            password: Some("ann:hunter2"),
            ..Rules::default()
        };
        let proxy = CorporateProxy::to(relay.address, rules).await;
        let url = |password: &str| format!("http://ann:{password}@{}", proxy.address);
        let (right, wrong) = (url("hunter2"), url("swordfish"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy");
        std::fs::write(&file, format!("{right}\n")).unwrap();
        let file = file.to_str().unwrap();
        let refused = "refused the password";
        for (variables, arguments, words) in [
            (vec![("TUNNEL_PROXY", right.as_str())], vec![], "connected relay="),
            // An option wins over the variables, and NO_PROXY is none of its business.
            (
                vec![("http_proxy", &wrong), ("NO_PROXY", "*")],
                vec!["--proxy-file", file],
                "connected relay=",
            ),
            (vec![("http_proxy", &right)], vec![], "connected relay="),
            (vec![("ALL_PROXY", &wrong)], vec![], refused),
            (
                vec![("HTTP_PROXY", &right), ("NO_PROXY", "invalid")],
                vec![],
                "cannot find relay.invalid",
            ),
        ] {
            let said = said(&variables, &arguments, words).await;
            // As they are, and as they stand in a header.
            let hidden = ["hunter2", "swordfish", "YW5uOmh1bnRlcjI", "YW5uOnN3b3JkZmlzaA"];
            assert!(!hidden.iter().any(|secret| said.contains(secret)), "{said}");
        }
    }

    #[tokio::test]
    async fn a_password_among_the_arguments_is_refused_and_not_repeated() {
        let home = tempfile::tempdir().unwrap();
        for (arguments, words) in [
            (
                vec!["--proxy", "http://ann:hunter2@proxy:3128"],
                "--proxy takes no password",
            ),
            (vec!["--proxy", "ftp://proxy"], "--proxy is no proxy of the form"),
            (vec!["--proxy", "http://proxy", "--proxy-file", "x"], "name two proxies"),
            (vec!["--proxy-file", "/nowhere"], "--proxy-file /nowhere: "),
        ] {
            let arguments = [vec!["bridge", "--relay", SEALED_RELAY], arguments].concat();
            let mut command = command(home.path(), &arguments);
            command.env("TUNNEL_TOKEN", "x");
            let ended = run(command).await;
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert!(
                ended.errors.contains(words) && !ended.errors.contains("hunter2"),
                "{ended:?}"
            );
        }
    }
}
