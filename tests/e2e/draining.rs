//! A relay or a bridge that stops lets what is in flight finish.

use std::time::Duration;

use http::Response;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::caller::Raw;
use crate::harness::{
    Caller, ChaosProxy, Path, TestBridge, TestRelay, Upstream, chunk, get, json, on_each_transport, ready, text, until,
    within,
};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);

on_each_transport! {
    async fn a_relay_that_stops_lets_streams_finish_and_takes_no_more(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let (answer, response) = path.begun(&mut caller).await;
        let mut response = response;
        path.relay.shutdown.drain();
        if transport == Transport::Ws {
            until("the port to be closed", || std::net::TcpStream::connect(path.relay.address).is_err()).await;
        } else {
            // It stays open for the bridge, and for nobody else.
            let refused = path.caller().await.post("/api/chat", "{}").await;
            assert_eq!((refused.status().as_u16(), refused.headers()["connection"].as_bytes()), (503, &b"close"[..]));
            assert_eq!(refused.headers()["tunnel-error"], "draining");
        }
        answer.send("one").await;
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "one");
        answer.send("two").await;
        drop(answer);
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "two");
        assert!(chunk(&mut response).await.is_none());
        path.relay.stopped().await;
        drop(path.bridge);
    }

    async fn a_relay_that_stops_ends_what_does_not_finish_within_the_grace(transport: Transport) {
        let relay = TestRelay::with(|config| config.grace = Duration::from_millis(200)).await;
        let path = Path::with(relay, Upstream::scripted().await, transport).await;
        let mut caller = path.caller().await;
        let (answer, response) = path.begun(&mut caller).await;
        let mut response = response;
        path.relay.shutdown.drain();
        assert!(chunk(&mut response).await.unwrap().is_err());
        if transport == Transport::Ws {
            // A polling bridge gives up once the relay must have: see `polling`.
            answer.abandoned().await;
        }
        path.relay.stopped().await;
    }

    async fn an_http10_answer_cut_at_the_end_of_the_grace_does_not_look_whole(transport: Transport) {
        let relay = TestRelay::with(|config| config.grace = Duration::from_millis(200)).await;
        let path = Path::with(relay, Upstream::scripted().await, transport).await;
        let mut raw = Raw::connect(path.relay.address).await;
        raw.send(format!("GET /x HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", path.token)).await;
        let answer = path.upstream.next().await.begin(Response::builder());
        answer.send("one").await;
        raw.until("one").await;
        path.relay.shutdown.drain();
        assert!(raw.rest().await.is_err());
    }

    async fn a_bridge_that_stops_answers_what_was_on_its_way(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let proxy = ChaosProxy::to(relay.address, Duration::from_millis(60)).await;
        let bridge = TestBridge::between(proxy.address, upstream.address).transport(transport).start().await;
        ready(&relay, "ann").await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        let sending = tokio::spawn(async move { caller.post("/api/chat", "{}").await });
        let session = relay.relay.registry.pick("ann", None).unwrap();
        until("the request to be on its way", || session.in_flight() == 1).await;
        bridge.shutdown.drain();
        upstream.next().await.finish(Response::new(full("in time")));
        assert_eq!(text(sending.await.unwrap()).await, "in time");
        bridge.stopped().await.unwrap();
    }

    async fn a_bridge_that_stops_lets_its_streams_finish_and_gets_no_more(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let (answer, response) = path.begun(&mut caller).await;
        let mut response = response;
        path.bridge.shutdown.drain();
        until("the relay to give it no more", || path.relay.relay.registry.pick("ann", None).is_none()).await;
        let mut late = path.caller().await;
        assert_eq!(late.post("/api/chat", "{}").await.headers()["tunnel-error"], "no_bridge");
        answer.send("last").await;
        drop(answer);
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "last");
        assert!(chunk(&mut response).await.is_none());
        path.bridge.stopped().await.unwrap();
    }
}

on_each_transport! {
    async fn a_relay_that_is_about_to_stop_serves_new_requests_and_says_that_it_goes(transport: Transport) {
        let relay = TestRelay::with(|config| config.lame_duck = LONG).await;
        let path = Path::with(relay, Upstream::serving(|_| async { Response::new(full("served")) }).await, transport).await;
        let mut kept = path.caller().await;
        assert!(!kept.get("/api/tags").await.headers().contains_key("connection"));
        path.relay.shutdown.leave();
        let ready = path.caller().await.get("/readyz").await;
        assert_eq!((ready.status().as_u16(), ready.headers()["connection"].as_bytes()), (503, &b"close"[..]));
        assert_eq!(json(ready).await["status"], "draining");
        for mut caller in [kept, path.caller().await] {
            let response = caller.get("/api/tags").await;
            assert_eq!((response.status().as_u16(), response.headers()["connection"].as_bytes()), (200, &b"close"[..]));
            assert_eq!(text(response).await, "served");
        }
        // What becomes another protocol is no answer after which a connection could close.
        let more = TestBridge::to(&path.relay, &path.upstream).name("more").transport(transport).start().await;
        until("the other bridge", || path.relay.relay.registry.pick("ann", Some("more")).is_some()).await;
        drop(more);
        path.relay.shutdown.drain();
        path.relay.stopped().await;
    }

    async fn the_drain_begins_after_the_spell(transport: Transport) {
        let relay = TestRelay::with(|config| config.lame_duck = Duration::from_millis(50)).await;
        let path = Path::with(relay, Upstream::scripted().await, transport).await;
        let mut caller = path.caller().await;
        let (answer, mut response) = path.begun(&mut caller).await;
        path.relay.shutdown.leave();
        within("the drain", path.relay.shutdown.draining()).await;
        drop(answer);
        assert!(chunk(&mut response).await.is_none());
        path.relay.stopped().await;
    }
}

#[tokio::test]
async fn callers_over_http2_are_told_to_leave_and_lose_nothing() {
    let relay = TestRelay::with(|config| config.lame_duck = LONG).await;
    let path = Path::with(relay, Upstream::scripted().await, Transport::Ws).await;
    let mut caller = Caller::connect_http2(path.relay.address, &path.token).await;
    let (answer, mut response) = path.begun(&mut caller).await;
    path.relay.shutdown.leave();
    // GOAWAY: the connection takes no more, and finishes what it has.
    within("the end of the connection", async {
        while caller.try_send(get("/healthz")).await.is_ok() {}
    })
    .await;
    answer.send("last").await;
    drop(answer);
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "last");
    assert!(chunk(&mut response).await.is_none());
    let mut next = Caller::connect_http2(path.relay.address, &path.token).await;
    let ((), response) = tokio::join!(
        async { path.upstream.next().await.finish(Response::new(full("served"))) },
        next.post("/api/chat", "{}"),
    );
    assert!(!response.headers().contains_key("connection"));
    assert_eq!(text(response).await, "served");
}

on_each_transport! {
    async fn who_connected_before_the_drain_still_gets_a_bridge(transport: Transport) {
        let path = Path::scripted(transport).await;
        let free = path.relay.relay.free_connections();
        let mut raw = Raw::connect(path.relay.address).await;
        until("the connection to be accepted", || path.relay.relay.free_connections() < free).await;
        path.relay.shutdown.drain();
        path.bridge.disconnected().await;
        raw.send(format!("GET /api/tags HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {}\r\n\r\n", path.token)).await;
        path.upstream.next().await.finish(Response::new(full("served")));
        assert!(raw.until("served").await.starts_with("HTTP/1.1 200"));
        path.relay.stopped().await;
    }
}

#[tokio::test]
async fn a_connection_made_just_before_the_drain_gets_an_answer() {
    let path = Path::scripted(Transport::Ws).await;
    let free = path.relay.relay.free_connections();
    let mut raw = Raw::connect(path.relay.address).await;
    until("the connection to be accepted", || {
        path.relay.relay.free_connections() < free
    })
    .await;
    path.relay.shutdown.drain();
    raw.send("GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n").await;
    let answer = raw.rest().await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    path.relay.stopped().await;
}

#[tokio::test]
async fn a_draining_relay_is_alive_and_not_ready_and_closes_connections() {
    let path = Path::scripted(crate::harness::bridge::Transport::Ws).await;
    let mut caller = path.caller().await;
    assert_eq!(caller.get("/readyz").await.status(), 200);
    let mut raw = Raw::connect(path.relay.address).await;
    let token = &path.token;
    let head =
        format!("POST /api/chat HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token}\r\nContent-Length: 2\r\n\r\n");
    raw.send(head).await;
    let call = path.upstream.next().await;
    path.relay.shutdown.drain();
    assert_eq!(tunnel::relay::own::ready(&path.relay.relay).status(), 503);
    assert_eq!(tunnel::relay::own::health().status(), 200);
    raw.send("{}").await;
    call.finish(Response::new(full("late")));
    let answer = raw.until("late").await;
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    path.relay.stopped().await;
}

#[tokio::test]
async fn a_bridge_told_to_drain_connects_to_the_next_relay_while_the_old_one_finishes() {
    let transport = Transport::Ws;
    let relay = TestRelay::start().await;
    let upstream = Upstream::scripted().await;
    let bridge = TestBridge::to(&relay, &upstream).transport(transport).start().await;
    ready(&relay, "ann").await;
    let token = relay.token("ann");
    let mut caller = Caller::connect(relay.address, &token).await;
    let (answer, response) = tokio::join!(
        async { upstream.next().await.begin(Response::builder()) },
        caller.post("/api/chat", "{}"),
    );
    let mut response = response;
    relay.shutdown.drain();
    let address = relay.address;
    until("the port to be closed", || {
        std::net::TcpStream::connect(address).is_err()
    })
    .await;
    // As under a supervisor: the next one takes the port while the old one still has callers.
    let next = TestRelay::at(address, |_| {}).await;
    ready(&next, "ann").await;
    let mut other = Caller::connect(address, &token).await;
    let ((), fresh) = tokio::join!(
        async { upstream.next().await.finish(Response::new(full("new relay"))) },
        other.post("/api/chat", "{}"),
    );
    assert_eq!(text(fresh).await, "new relay");
    answer.send("old relay").await;
    drop(answer);
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "old relay");
    assert!(chunk(&mut response).await.is_none());
    relay.stopped().await;
    drop(bridge);
}

#[tokio::test]
async fn a_stopping_relay_keeps_its_port_until_bridges_that_poll_have_finished() {
    let (relay, upstream) = (TestRelay::start().await, Upstream::scripted().await);
    let (path, proxy) = Path::disturbed(relay, upstream, Transport::Poll, Duration::ZERO).await;
    let mut caller = path.caller().await;
    let (answer, mut response) = path.begun(&mut caller).await;
    path.relay.shutdown.drain();
    // As behind a proxy that makes a connection for each request.
    proxy.cut();
    answer.send("old relay").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "old relay");
    proxy.cut();
    drop(answer);
    assert!(chunk(&mut response).await.is_none());
    let address = path.relay.address;
    path.relay.stopped().await;
    let next = TestRelay::at(address, |_| {}).await;
    ready(&next, "ann").await;
    let mut other = Caller::connect(address, &path.token).await;
    let ((), fresh) = tokio::join!(
        async { path.upstream.next().await.finish(Response::new(full("new relay"))) },
        other.post("/api/chat", "{}"),
    );
    assert_eq!(text(fresh).await, "new relay");
}
