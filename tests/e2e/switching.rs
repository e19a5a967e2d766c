//! `--transport auto`: the best transport that works, and no exchange lost on the way from one to the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::task::JoinSet;
use tunnel::bridge::choice::Timing;
use tunnel::bridge::status::Phase;
use tunnel::transport::Body;

use crate::harness::bridge::Transport;
use crate::harness::proxy::Mode;
use crate::harness::upstream::channel_body;
use crate::harness::{
    Caller, ChaosProxy, Path, TestBridge, TestRelay, Upstream, chunk, json, on_each_transport, post, ready,
};
use crate::harness::{until, within};

/// WebSocket is tried again at once, so that tests need not wait for minutes.
const HASTY: Timing = Timing {
    race_after: Duration::from_millis(300),
    retry_first: Duration::from_millis(50),
    retry_most: Duration::from_millis(200),
};

/// A bridge that chooses its transport, behind a proxy of this mode.
struct Choosing {
    path: Path,
    proxy: ChaosProxy,
}

async fn choosing(mode: Mode, timing: Timing, upstream: Upstream) -> Choosing {
    let relay = TestRelay::with(|config| config.wait_for_bridge = Duration::from_secs(10)).await;
    let proxy = ChaosProxy::to(relay.address, Duration::ZERO).await;
    proxy.set(mode);
    let bridge = TestBridge::between(proxy.address, upstream.address)
        .transport(Transport::Auto)
        .timing(timing)
        .start()
        .await;
    let path = Path::over(relay, upstream, bridge).await;
    Choosing { path, proxy }
}

#[tokio::test]
async fn websocket_is_taken_where_it_works() {
    let chosen = choosing(Mode::Pass, Timing::default(), Upstream::scripted().await).await;
    assert_eq!(chosen.path.bridge.transport(), ("ws", None));
}

#[tokio::test]
async fn polling_is_taken_where_websocket_is_refused_and_everybody_is_told_why() {
    let chosen = choosing(Mode::NoUpgrade, Timing::default(), Upstream::scripted().await).await;
    let why = "WebSocket blocked: the proxy answered 403 instead of 101 — using HTTP polling";
    assert_eq!(chosen.path.bridge.transport(), ("poll", Some(why.to_owned())));
    let mut caller = Caller::connect(chosen.path.relay.address, &chosen.path.token).await;
    let listing = tokio::join!(caller.get("/api/bridge"), async {
        // The list asks for the models, here without success.
        chosen
            .path
            .upstream
            .next()
            .await
            .finish(Response::new(tunnel::transport::full("{}")));
        chosen
            .path
            .upstream
            .next()
            .await
            .finish(Response::new(tunnel::transport::full("{}")));
    });
    let listing = json(listing.0).await;
    assert_eq!(listing["bridges"][0]["transport"], "poll");
    assert_eq!(listing["bridges"][0]["reason"], why);
}

#[tokio::test]
async fn polling_is_taken_where_websocket_gets_no_answer() {
    let chosen = choosing(Mode::DeafToUpgrade, HASTY, Upstream::scripted().await).await;
    let (transport, why) = chosen.path.bridge.transport();
    assert_eq!(transport, "poll");
    assert!(why.as_ref().is_some_and(|why| why.contains("no answer")), "{why:?}");
}

#[tokio::test]
async fn websocket_is_taken_again_when_it_works_and_what_was_in_flight_finishes_on_the_old_link() {
    let chosen = choosing(Mode::NoUpgrade, HASTY, Upstream::scripted().await).await;
    let mut caller = Caller::connect(chosen.path.relay.address, &chosen.path.token).await;
    let (answer, mut response) = tokio::join!(
        async { chosen.path.upstream.next().await.begin(Response::builder()) },
        caller.post("/api/chat", "{}"),
    );
    answer.send("one").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "one");
    chosen.proxy.set(Mode::Pass);
    chosen.path.bridge.connected_over("ws").await;
    answer.send("two").await;
    drop(answer);
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "two");
    assert!(chunk(&mut response).await.is_none());
    // Once it has nothing left, the old link goes, and one is left.
    let registry = &chosen.path.relay.relay.registry;
    until("the new link alone", || {
        registry.list("ann").iter().map(|session| session.transport).eq(["ws"])
    })
    .await;
}

#[tokio::test]
async fn a_network_that_blocks_websocket_is_remembered() {
    let (relay, upstream) = (TestRelay::start().await, Upstream::scripted().await);
    let proxy = ChaosProxy::to(relay.address, Duration::ZERO).await;
    proxy.set(Mode::NoUpgrade);
    let folder = tempfile::tempdir().unwrap();
    let plan = || {
        TestBridge::between(proxy.address, upstream.address)
            .transport(Transport::Auto)
            .memory(folder.path().join("networks"))
    };
    plan().start().await.stop().await;
    proxy.set(Mode::Pass);
    // WebSocket would work by now, and is tried later.
    let again = plan().start().await;
    let (transport, why) = again.transport();
    assert_eq!(transport, "poll");
    assert!(why.is_some_and(|why| why.contains("403")));
}

/// A bridge that polls because its relay wants it so.
pub(crate) async fn steered_to_polling() -> (TestRelay, Upstream, TestBridge) {
    let relay = TestRelay::with(|config| config.transports.prefer_ws = 0).await;
    let upstream = Upstream::scripted().await;
    let bridge = TestBridge::to(&relay, &upstream)
        .transport(Transport::Auto)
        .start()
        .await;
    bridge.connected_over("poll").await;
    (relay, upstream, bridge)
}

#[tokio::test]
async fn the_relay_steers_those_who_let_it() {
    let (relay, upstream, bridge) = steered_to_polling().await;
    assert_eq!(bridge.transport().1.as_deref(), Some("the relay prefers HTTP polling"));
    let stubborn = TestBridge::to(&relay, &upstream)
        .transport(Transport::Ws)
        .name("other")
        .start()
        .await;
    assert_eq!(stubborn.transport(), ("ws", None));
}

#[tokio::test]
async fn what_the_relay_does_not_offer_is_not_used() {
    let upstream = Upstream::scripted().await;
    let polling_only = TestRelay::with(|config| config.transports.ws = false).await;
    let bridge = TestBridge::to(&polling_only, &upstream)
        .transport(Transport::Auto)
        .start()
        .await;
    let why = "the relay offers no WebSocket — using HTTP polling";
    assert_eq!(bridge.transport(), ("poll", Some(why.to_owned())));
    let websocket_only = TestRelay::with(|config| config.transports.poll = false).await;
    let bridge = TestBridge::to(&websocket_only, &upstream)
        .transport(Transport::Poll)
        .launch();
    let mut phase = bridge.status.phase();
    let told = phase.wait_for(|phase| matches!(phase, Phase::Waiting { why } if why.contains("--transports")));
    within("the reason", told).await.unwrap();
}

/// Exchanges in all, and callers at once.
const EXCHANGES: usize = 2000;
const CALLERS: usize = 40;
/// Times that the way of WebSocket is blocked and opened.
const SWITCHES: usize = 10;

async fn numbered(request: Request<Incoming>, served: Arc<AtomicUsize>) -> Response<Body> {
    served.fetch_add(1, Ordering::Relaxed);
    let name = request.into_body().collect().await.unwrap().to_bytes();
    let (answer, body) = channel_body();
    tokio::spawn(async move {
        for _ in 0..8 {
            if !answer.try_send(name.clone()).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
    Response::new(body)
}

#[tokio::test]
async fn two_thousand_exchanges_while_websocket_is_blocked_and_opened_ten_times_are_neither_lost_nor_doubled() {
    let served = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&served);
    let upstream = Upstream::serving(move |request| numbered(request, Arc::clone(&counted))).await;
    let chosen = choosing(Mode::Pass, HASTY, upstream).await;
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let mut caller = Caller::connect(chosen.path.relay.address, &chosen.path.token).await;
        let next = Arc::clone(&next);
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= EXCHANGES {
                    return;
                }
                let name = format!("exchange {number};");
                let response = caller.try_send(post("/api/chat", name.clone())).await.unwrap();
                assert_eq!(response.status(), 200, "{name} {:?}", response.headers());
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, Bytes::from(name.repeat(8)));
            }
        });
    }
    for switch in 1..=SWITCHES {
        let due = switch * EXCHANGES / (SWITCHES + 2);
        until("exchanges on the way", || next.load(Ordering::Relaxed) >= due).await;
        chosen.proxy.set(Mode::NoUpgrade);
        // The relay lets go of the link: it gets no more work, and ends when it has finished what it has.
        let session = || chosen.path.relay.relay.registry.pick("ann", None);
        until("the relay to use it", || {
            session().is_some_and(|session| session.transport == "ws")
        })
        .await;
        session().expect("a session").retire();
        chosen.path.bridge.connected_over("poll").await;
        chosen.proxy.set(Mode::Pass);
        chosen.path.bridge.connected_over("ws").await;
    }
    assert!(
        next.load(Ordering::Relaxed) < EXCHANGES,
        "the exchanges were over before the switches"
    );
    while let Some(done) = within("every exchange", callers.join_next()).await {
        done.unwrap();
    }
    assert_eq!(served.load(Ordering::Relaxed), EXCHANGES);
}

on_each_transport! {
    async fn a_computer_that_wakes_up_is_back_within_three_seconds(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let proxy = ChaosProxy::to(relay.address, Duration::ZERO).await;
        let bridge = TestBridge::between(proxy.address, upstream.address).transport(transport).start().await;
        ready(&relay, "ann").await;
        let token = relay.token("ann");
        let session = || relay.relay.registry.pick("ann", None).map(|session| session.connection_id);
        let asleep = session();
        // What was connected before the sleep leads nowhere after it, and the steady clock stood still.
        proxy.strand();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(8)).await;
        tokio::time::resume();
        let began = std::time::Instant::now();
        let connections = proxy.connections();
        until("a new connection", || proxy.connections() > connections).await;
        if transport == Transport::Ws {
            // A polling bridge keeps its session over whatever connections.
            until("the new link", || session() > asleep).await;
        }
        let mut caller = Caller::connect(relay.address, &token).await;
        let ((), response) = tokio::join!(
            async { upstream.next().await.finish(Response::new(tunnel::transport::full("awake"))) },
            caller.post("/api/chat", "{}"),
        );
        assert_eq!(crate::harness::text(response).await, "awake");
        assert!(began.elapsed() < Duration::from_secs(3), "back after {:?}", began.elapsed());
        drop(bridge);
    }

    async fn an_address_that_does_not_answer_does_not_keep_a_bridge_from_the_one_that_does(transport: Transport) {
        // The name has an IPv6 address too, at which nobody listens.
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let bridge = TestBridge::to(&relay, &upstream)
            .transport(transport)
            .relay_url(format!("http://localhost:{}", relay.address.port()))
            .start()
            .await;
        drop(bridge);
    }
}
