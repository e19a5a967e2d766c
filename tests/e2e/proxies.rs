//! Through real proxies: those that stand in front of relays, and those between a desktop and the world.
#![cfg(target_os = "linux")]

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{Request, Response};
use http_body_util::BodyExt;
use tunnel::bridge::status::Phase;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::caller::Raw;
use crate::harness::programs::{Front, Gateway, PASSWORD, Program, USER};
use crate::harness::{
    Caller, Path, TestBridge, TestRelay, Upstream, chat_in_lock_step, chunk, ready, text, until, until_within, within,
};

/// Longer than any of the proxies here lets a connection be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// A bridge whose way to its relay leads through a proxy.
struct Behind {
    path: Path,
    front: Program,
}

impl Behind {
    async fn new(front: Front, transport: Transport) -> Self {
        let relay = TestRelay::start().await;
        let front = Program::before(relay.address, front).await;
        let upstream = Upstream::scripted().await;
        let bridge = TestBridge::between(front.address, upstream.address)
            .transport(transport)
            .start()
            .await;
        let path = Path::over(relay, upstream, bridge).await;
        Self { path, front }
    }

    /// A caller who goes through the proxy too.
    async fn distant_caller(&self) -> Caller {
        Caller::connect(self.front.address, &self.path.token).await
    }
}

/// Waits until the bridge says why it is not connected.
async fn told(bridge: &TestBridge) -> String {
    let mut phase = bridge.status.phase();
    let waiting = phase.wait_for(|phase| matches!(phase, Phase::Waiting { .. }));
    let phase = within("the bridge to say why", waiting).await.unwrap().clone();
    let Phase::Waiting { why } = phase else { unreachable!() };
    why
}

#[tokio::test]
async fn a_chat_passes_proxies_that_upgrade_in_lock_step() {
    for front in [Front::HastyNginx, Front::HastyHaproxy] {
        let behind = Behind::new(front, Transport::Ws).await;
        chat_in_lock_step(&behind.path.upstream, &mut behind.path.caller().await).await;
        chat_in_lock_step(&behind.path.upstream, &mut behind.distant_caller().await).await;
    }
}

/// Both directions are buffered by default; the relay's `X-Accel-Buffering: no` opens the one that must be.
#[tokio::test]
async fn a_chat_reaches_a_caller_behind_a_proxy_that_buffers_in_lock_step() {
    let path = Path::scripted(Transport::Ws).await;
    let front = Program::before(path.relay.address, Front::NaiveNginx).await;
    let mut caller = Caller::connect(front.address, &path.token).await;
    chat_in_lock_step(&path.upstream, &mut caller).await;
}

/// The proxy speaks HTTP/1.0 to the relay, where the end of a body is the end of the connection.
#[tokio::test]
async fn an_answer_that_breaks_off_is_broken_behind_a_proxy_too() {
    let path = Path::scripted(Transport::Ws).await;
    let front = Program::before(path.relay.address, Front::NaiveNginx).await;
    let mut caller = Caller::connect(front.address, &path.token).await;
    let (answer, mut response) = path.begun(&mut caller).await;
    answer.send("first").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "first");
    answer.break_off().await;
    assert!(chunk(&mut response).await.unwrap().is_err());
}

/// Takes the three seconds that the proxy has.
#[tokio::test]
async fn an_answer_that_a_proxy_cuts_for_its_silence_is_broken_and_cancelled() {
    let path = Path::scripted(Transport::Ws).await;
    let front = Program::before(path.relay.address, Front::HastyNaiveNginx).await;
    let mut caller = Caller::connect(front.address, &path.token).await;
    let (answer, mut response) = path.begun(&mut caller).await;
    answer.send("first").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "first");
    assert!(chunk(&mut response).await.unwrap().is_err());
    answer.abandoned().await;
}

#[tokio::test]
async fn a_caller_who_leaves_a_proxy_is_seen_leaving_at_the_upstream() {
    let path = Path::scripted(Transport::Ws).await;
    let front = Program::before(path.relay.address, Front::NaiveNginx).await;
    let mut caller = Caller::connect(front.address, &path.token).await;
    let (answer, mut response) = path.begun(&mut caller).await;
    answer.send("first").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "first");
    drop((caller, response));
    answer.abandoned().await;
}

#[tokio::test]
async fn an_upload_through_a_proxy_that_buffers_arrives_whole() {
    let path = Path::scripted(Transport::Ws).await;
    let front = Program::before(path.relay.address, Front::NaiveNginx).await;
    let mut caller = Caller::connect(front.address, &path.token).await;
    // More than the proxy holds in memory, and as much as it lets pass by default.
    let upload = vec![b'x'; 1024 * 1024];
    let (received, response) = tokio::join!(
        async {
            let (request, reply) = path.upstream.next().await.split();
            let received = within("the upload", request.into_body().collect())
                .await
                .unwrap()
                .to_bytes();
            reply.send(Response::new(full("done"))).unwrap();
            received
        },
        caller.send(Request::post("/api/blobs/x").body(full(upload.clone())).unwrap()),
    );
    assert!(received == upload);
    assert_eq!(text(response).await, "done");
}

#[tokio::test]
async fn a_proxy_that_lets_no_websocket_pass_is_told_by_its_answer() {
    // One passes the request on without its upgrade, and the relay says so; the other answers by itself.
    for (front, word) in [
        (Front::NaiveNginx, "a proxy removed its Upgrade"),
        (Front::StrictHaproxy, "403"),
    ] {
        let relay = TestRelay::start().await;
        let front = Program::before(relay.address, front).await;
        let upstream = Upstream::scripted().await;
        let bridge = TestBridge::between(front.address, upstream.address)
            .transport(Transport::Ws)
            .launch();
        let why = told(&bridge).await;
        assert!(why.contains("WebSocket") && why.contains(word), "{why}");
        bridge.stop().await;
    }
}

/// Takes the ten seconds for which streams are kept, the time that the proxy has, and the same again.
#[tokio::test]
async fn a_link_that_a_proxy_cuts_for_its_silence_comes_back_by_itself_and_is_not_cut_again() {
    let cut_and_back = async |front| {
        let behind = Behind::new(front, Transport::Ws).await;
        let session = || {
            behind
                .path
                .relay
                .relay
                .registry
                .pick("ann", None)
                .map(|session| session.connection_id)
        };
        let first = session();
        let another = || session().is_some_and(|now| Some(now) != first);
        until_within(Duration::from_secs(40), "another link", another).await;
        chat_in_lock_step(&behind.path.upstream, &mut behind.path.caller().await).await;
        let second = session();
        // Nothing but time tells that a link is not cut.
        tokio::time::sleep(Duration::from_secs(17)).await;
        assert_eq!(session(), second);
    };
    tokio::join!(cut_and_back(Front::HastyNginx), cut_and_back(Front::HastyHaproxy));
}

/// What the bridge must understand: a wrong password is 407 at one and 401 at the other, and not every answer is HTTP/1.1.
#[tokio::test]
async fn gateways_let_through_who_knows_the_password() {
    let relay = TestRelay::start().await;
    let address = relay.address;
    for (gateway, accepted, refused) in [
        (Gateway::Squid, "HTTP/1.1 200", "HTTP/1.1 407"),
        (Gateway::Tinyproxy, "HTTP/1.0 200", "HTTP/1.0 401"),
    ] {
        let gateway = Program::gateway(gateway).await;
        for (password, answer) in [("another", refused), (PASSWORD, accepted)] {
            let credentials = BASE64_STANDARD.encode(format!("{USER}:{password}"));
            let mut raw = Raw::connect(gateway.address).await;
            raw.send(format!(
                "CONNECT {address} HTTP/1.1\r\nHost: {address}\r\nProxy-Authorization: Basic {credentials}\r\n\r\n"
            ))
            .await;
            let head = raw.until("\r\n\r\n").await;
            assert!(head.starts_with(answer), "{head}");
            if answer == accepted {
                raw.send(format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n"))
                    .await;
                let head = raw.until("\r\n\r\n").await;
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            }
        }
    }
}

#[tokio::test]
async fn auto_ends_on_polling_where_a_proxy_lets_no_websocket_pass_and_says_why() {
    for (front, word) in [
        (Front::NaiveNginx, "removed the Upgrade"),
        (Front::StrictHaproxy, "403"),
    ] {
        let behind = Behind::new(front, Transport::Auto).await;
        match &*behind.path.bridge.status.phase().borrow() {
            Phase::Connected { transport, why, .. } => {
                assert_eq!(*transport, "poll");
                assert!(why.as_ref().is_some_and(|why| why.contains(word)), "{why:?}");
            }
            phase => panic!("not connected: {phase:?}"),
        }
        chat_in_lock_step(&behind.path.upstream, &mut behind.path.caller().await).await;
        chat_in_lock_step(&behind.path.upstream, &mut behind.distant_caller().await).await;
    }
}

/// A chat that begins as soon as there is a bridge, whichever transport that has found by then.
async fn survives_silence_behind(front: Front) {
    let behind = Behind::new(front, Transport::Auto).await;
    let mut caller = behind.path.caller().await;
    let (answer, mut response) = tokio::join!(
        async { behind.path.upstream.next().await.begin(Response::builder()) },
        caller.post("/api/chat", "{}"),
    );
    answer.send("first").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "first");
    tokio::time::sleep(SILENCE).await;
    answer.send(" last").await;
    drop(answer);
    assert_eq!(text(response).await, " last");
}

#[tokio::test]
async fn a_stream_silent_for_ten_seconds_survives_a_proxy_that_cuts_after_three() {
    survives_silence_behind(Front::HastyNginx).await;
}

#[tokio::test]
async fn a_stream_silent_for_ten_seconds_survives_a_proxy_that_cuts_tunnels_after_five() {
    survives_silence_behind(Front::HastyHaproxy).await;
}

#[tokio::test]
async fn a_stream_silent_for_ten_seconds_survives_a_proxy_that_refuses_upgrades() {
    survives_silence_behind(Front::StrictHaproxy).await;
}

#[tokio::test]
async fn a_stream_silent_for_ten_seconds_survives_a_proxy_without_upgrades_that_cuts_after_three() {
    survives_silence_behind(Front::HastyNaiveNginx).await;
}

#[tokio::test]
async fn a_chat_passes_a_gateway_that_asks_for_a_password() {
    for gateway in [Gateway::Squid, Gateway::Tinyproxy] {
        for transport in [Transport::Ws, Transport::Poll] {
            let relay = TestRelay::start().await;
            let upstream = Upstream::scripted().await;
            let gateway = Program::gateway(gateway).await;
            let plan = TestBridge::to(&relay, &upstream).transport(transport);
            let bridge = plan.proxy(&gateway.url(PASSWORD)).start().await;
            ready(&relay, "ann").await;
            let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
            chat_in_lock_step(&upstream, &mut caller).await;
            bridge.stop().await;
            // Written when the connection ends. The local server is never sought out there.
            let passed = relay.address.to_string();
            until("the gateway's note of the relay", || gateway.said().contains(&passed)).await;
            assert!(!gateway.said().contains(&upstream.address.to_string()));
        }
    }
}

#[tokio::test]
async fn a_wrong_password_for_a_gateway_is_told_in_plain_words() {
    for gateway in [Gateway::Squid, Gateway::Tinyproxy] {
        let gateway = Program::gateway(gateway).await;
        for transport in [Transport::Ws, Transport::Poll, Transport::Auto] {
            let relay = TestRelay::start().await;
            let upstream = Upstream::scripted().await;
            let plan = TestBridge::to(&relay, &upstream).transport(transport);
            let bridge = plan.proxy(&gateway.url("abracadabra")).launch();
            let why = told(&bridge).await;
            let words = [&gateway.address.to_string(), "proxy", "password"];
            assert!(words.iter().all(|word| why.contains(*word)), "{why}");
            assert!(!why.contains("abracadabra"), "{why}");
            bridge.stop().await;
        }
    }
}
