//! Links and relays that are lost come back by themselves, and callers who came meanwhile are held.

use std::time::Duration;

use http::Response;
use tokio::time::Instant;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::proxy::Mode;
use crate::harness::{Caller, ChaosProxy, TestBridge, TestRelay, Upstream, on_each_transport, ready, text, within};

const HELD: Duration = Duration::from_secs(10);

on_each_transport! {
    async fn a_relay_killed_and_started_again_has_its_bridges_back_and_holds_callers(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).start().await;
        ready(&relay, "ann").await;
        let address = relay.kill().await;
        bridge.disconnected().await;

        let relay = TestRelay::at(address, |config| config.wait_for_bridge = HELD).await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(address, &token).await;
        // Sent when no bridge is there yet.
        let ((), response) = tokio::join!(
            async { upstream.next().await.finish(Response::new(full("back"))) },
            caller.post("/api/chat", "{}"),
        );
        assert_eq!(text(response).await, "back");
        bridge.connected().await;
    }

    async fn a_bridge_that_connects_late_gets_the_requests_that_wait(transport: Transport) {
        let relay = TestRelay::with(|config| config.wait_for_bridge = HELD).await;
        let upstream = Upstream::scripted().await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        let sending = tokio::spawn(async move { caller.post("/b/box/api/chat", "{}").await });
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).start().await;
        upstream.next().await.finish(Response::new(full("late")));
        assert_eq!(text(sending.await.unwrap()).await, "late");
        drop(bridge);
    }
}

#[tokio::test]
async fn a_get_without_a_body_moves_to_the_new_link_by_itself() {
    let transport = Transport::Ws;
    let relay = TestRelay::with(|config| config.wait_for_bridge = HELD).await;
    let upstream = Upstream::scripted().await;
    let proxy = ChaosProxy::to(relay.address, Duration::ZERO).await;
    let bridge = TestBridge::between(proxy.address, upstream.address)
        .transport(transport)
        .start()
        .await;
    ready(&relay, "ann").await;
    let token = relay.token("ann");
    let mut caller = Caller::connect(relay.address, &token).await;
    let sending = tokio::spawn(async move { caller.get("/api/tags").await });
    let lost = upstream.next().await;
    proxy.cut();
    within("the request to come again", upstream.next())
        .await
        .finish(Response::new(full("twice")));
    assert_eq!(text(sending.await.unwrap()).await, "twice");
    drop((lost, bridge));
}

#[tokio::test]
async fn a_link_that_became_a_black_hole_is_noticed_by_an_exchange_within_five_seconds() {
    let transport = Transport::Ws;
    let relay = TestRelay::with(|config| config.wait_for_bridge = HELD).await;
    let upstream = Upstream::scripted().await;
    let proxy = ChaosProxy::to(relay.address, Duration::ZERO).await;
    let bridge = TestBridge::between(proxy.address, upstream.address)
        .transport(transport)
        .start()
        .await;
    ready(&relay, "ann").await;
    let token = relay.token("ann");
    proxy.set(Mode::BlackHole);
    // The link has been silent for long enough that an exchange asks for a sign of life.
    tokio::time::sleep(Duration::from_secs(5)).await;

    let mut first = Caller::connect(relay.address, &token).await;
    let began = Instant::now();
    let response = first.post("/api/chat", "{}").await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["tunnel-error"], "bridge_gone");
    assert!(
        began.elapsed() < Duration::from_millis(5500),
        "noticed after {:?}",
        began.elapsed()
    );

    // What arrives afterwards waits for the new link.
    let mut second = Caller::connect(relay.address, &token).await;
    let sending = tokio::spawn(async move { second.post("/api/chat", "{}").await });
    proxy.set(Mode::Pass);
    proxy.cut();
    within("the exchange on the new link", upstream.next())
        .await
        .finish(Response::new(full("again")));
    assert_eq!(text(sending.await.unwrap()).await, "again");
    drop(bridge);
}
