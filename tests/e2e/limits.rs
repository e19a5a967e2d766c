//! Past a limit: the documented error, and nobody else notices.

use std::time::Duration;

use http::Response;
use tokio::time::Instant;
use tunnel::bridge::config::TokenSource;
use tunnel::relay::rate::Rate;
use tunnel::token::Secret;
use tunnel::transport::full;

use crate::harness::caller::Raw;
use crate::harness::{
    Caller, Path, TestBridge, TestRelay, Upstream, chunk, get, json, on_each_transport, ready, text, until,
};

on_each_transport! {
    async fn more_than_may_be_in_flight_is_overloaded(transport: Transport) {
        for (per_user, per_bridge) in [(2, 128), (512, 2)] {
            let relay = TestRelay::with(|config| {
                config.limits.in_flight_per_user = per_user;
                config.limits.in_flight_per_bridge = per_bridge;
            })
            .await;
            let path = Path::with(relay, Upstream::scripted().await, transport).await;
            let mut waiting = Vec::new();
            for _ in 0..2 {
                let mut caller = path.caller().await;
                waiting.push(tokio::spawn(async move { text(caller.post("/api/chat", "{}").await).await }));
            }
            let calls = [path.upstream.next().await, path.upstream.next().await];
            let mut third = path.caller().await;
            let response = third.post("/v1/chat/completions", "{}").await;
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()["tunnel-error"], "overloaded");
            assert!(response.headers().contains_key("retry-after"));
            assert_eq!(json(response).await["error"]["code"], "overloaded");
            for call in calls {
                call.finish(Response::new(full("done")));
            }
            for answered in waiting {
                assert_eq!(answered.await.unwrap(), "done");
            }
            let ((), response) = tokio::join!(
                async { path.upstream.next().await.finish(Response::new(full("room again"))) },
                third.post("/api/chat", "{}"),
            );
            assert_eq!(text(response).await, "room again");
        }
    }

    async fn an_exchange_in_which_nothing_moves_ends(transport: Transport) {
        let relay = TestRelay::with(|config| config.limits.idle = Duration::from_millis(300)).await;
        let path = Path::with(relay, Upstream::scripted().await, transport).await;
        let mut caller = path.caller().await;
        let (mut call, response) = tokio::join!(path.upstream.next(), caller.post("/api/chat", "{}"));
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["tunnel-error"], "timeout");
        call.abandoned().await;
        drop(response);

        let mut caller = path.caller().await;
        let (answer, response) = path.begun(&mut caller).await;
        let mut response = response;
        // Longer than the limit in all, but never without a byte for so long.
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            answer.send("x").await;
            assert!(chunk(&mut response).await.unwrap().is_ok());
        }
        assert!(chunk(&mut response).await.unwrap().is_err());
        answer.abandoned().await;
    }

    async fn more_bridges_than_one_user_may_have_are_refused_and_wait(transport: Transport) {
        let relay = TestRelay::with(|config| config.limits.bridges_per_user = 1).await;
        let upstream = Upstream::scripted().await;
        let first = TestBridge::to(&relay, &upstream).transport(transport).start().await;
        ready(&relay, "ann").await;
        let second = TestBridge::to(&relay, &upstream).transport(transport).launch();
        let mut phase = second.status.phase();
        let refused = phase
            .wait_for(|phase| matches!(phase, tunnel::bridge::status::Phase::Waiting { why, .. } if why.contains("overloaded")));
        crate::harness::within("the refusal", refused).await.unwrap();
        first.stop().await;
        second.connected().await;
    }
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_and_a_kept_one_may_rest_longer() {
    let relay = TestRelay::with(|config| {
        config.limits.first_head = Duration::from_millis(200);
        config.limits.keep_alive = Duration::from_millis(1500);
    })
    .await;
    let mut silent = Raw::connect(relay.address).await;
    let mut slow = Raw::connect(relay.address).await;
    slow.send("GET /healthz HTTP/1.1\r\nHost: re").await;
    let mut kept = Raw::connect(relay.address).await;
    kept.send("GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n").await;
    assert!(kept.until("}").await.starts_with("HTTP/1.1 200"));
    let rested = Instant::now();
    assert_eq!(silent.rest().await.unwrap_or_default(), "");
    assert_eq!(slow.rest().await.unwrap_or_default(), "");
    assert!(
        rested.elapsed() < Duration::from_millis(1000),
        "closed after {:?}",
        rested.elapsed()
    );
    kept.send("GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n").await;
    assert!(kept.until("}").await.starts_with("HTTP/1.1 200"));
    let rested = Instant::now();
    kept.rest().await.unwrap();
    assert!(
        rested.elapsed() > Duration::from_millis(1000),
        "closed after {:?}",
        rested.elapsed()
    );
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let relay = TestRelay::start().await;
    let mut raw = Raw::connect(relay.address).await;
    raw.send(format!(
        "GET /healthz HTTP/1.1\r\nHost: relay\r\nX-Long: {}\r\n\r\n",
        "x".repeat(200_000)
    ))
    .await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn past_the_limit_of_connections_callers_wait_for_one_to_leave() {
    let relay = TestRelay::with(|config| config.limits.connections = 2).await;
    let first = Caller::connect(relay.address, "").await;
    let mut second = Caller::connect(relay.address, "").await;
    assert_eq!(second.get("/healthz").await.status(), 200);
    let address = relay.address;
    let third = tokio::spawn(async move { Caller::connect(address, "").await.get("/healthz").await.status() });
    // Answered only when the first has left.
    until("the others to be served", || relay.relay.free_connections() == 0).await;
    assert!(!third.is_finished());
    drop(first);
    assert_eq!(third.await.unwrap(), 200);
}

on_each_transport! {
    async fn a_token_makes_as_many_requests_as_the_rate_allows(transport: Transport) {
        let relay = TestRelay::with(|config| {
            config.limits.rate = Some(Rate { every: Duration::from_secs(3600), burst: 3 });
        })
        .await;
        let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
        // The bridge has the very token that runs dry: what bridges ask for is not counted.
        let token = relay.token("ann");
        let source = TokenSource::Given(Secret::new(&token));
        let bridge = TestBridge::to(&relay, &upstream).token(source).transport(transport).start().await;
        ready(&relay, "ann").await;
        let mut caller = Caller::connect(relay.address, &token).await;
        for _ in 0..3 {
            assert_eq!(text(caller.get("/api/tags").await).await, "served");
        }
        for (path, pointer) in [
            ("/api/chat", "/error"),
            ("/v1/chat/completions", "/error/message"),
            ("/v1/messages", "/error/message"),
            ("/api/bridge", "/error"),
        ] {
            let mut request = get(path);
            request.headers_mut().insert("origin", "https://app.example.com".parse().unwrap());
            let response = caller.send(request).await;
            assert_eq!(response.status(), 429);
            assert_eq!(response.headers()["tunnel-error"], "rate_limited");
            let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((3590..=3600).contains(&wait), "{wait}");
            assert_eq!(response.headers()["access-control-allow-origin"], "https://app.example.com");
            assert!(json(response).await.pointer(pointer).unwrap().is_string(), "{path}");
        }
        assert_eq!(caller.get("/healthz").await.status(), 200);
        let mut other = Caller::connect(relay.address, &relay.token("ann")).await;
        assert_eq!(text(other.get("/api/tags").await).await, "served");
        drop(bridge);
    }
}
