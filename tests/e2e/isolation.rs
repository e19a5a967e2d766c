//! Two users never see each other.

use http::{Request, Response};
use tunnel::transport::{empty, full};

use crate::harness::{Caller, TestBridge, TestRelay, Upstream, json, on_each_transport, ready, text};

on_each_transport! {
    async fn every_route_with_another_users_token_shows_nothing(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).start().await;
        ready(&relay, "ann").await;
        let (ann, bob) = (relay.token("ann"), relay.token("bob"));

        let mut stranger = Caller::connect(relay.address, &bob).await;
        for path in ["/api/chat", "/b/box/api/tags", "/ollama/api/tags", "/api/ollama/api/tags", "/v1/models", "/"] {
            let response = stranger.get(path).await;
            assert_eq!(response.status(), 503, "{path}");
            assert_eq!(response.headers()["tunnel-error"], "no_bridge", "{path}");
        }
        let mut named = Request::get("/api/tags").body(empty()).unwrap();
        named.headers_mut().insert("tunnel-bridge", "box".parse().unwrap());
        assert_eq!(stranger.send(named).await.status(), 503);
        assert_eq!(json(stranger.get("/api/bridge").await).await["bridges"], serde_json::json!([]));

        // A bridge of the other user, of the same name and client id, takes nothing away and keeps its name.
        let other_upstream = Upstream::scripted().await;
        let other = TestBridge::to(&relay, &other_upstream).transport(transport).user("bob").start().await;
        ready(&relay, "bob").await;
        assert_eq!(other.name(), "box");
        for (token, upstream, word) in [(&ann, &upstream, "ann's"), (&bob, &other_upstream, "bob's")] {
            let mut caller = Caller::connect(relay.address, token).await;
            let ((), response) = tokio::join!(
                async { upstream.next().await.finish(Response::new(full(word))) },
                caller.get("/b/box/api/tags"),
            );
            assert_eq!(text(response).await, word);
        }
        drop((bridge, other));
    }

    async fn the_same_client_id_is_another_bridge_for_another_user(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let plan = |user: &str| TestBridge::to(&relay, &upstream).transport(transport).user(user).client_id("same");
        let first = plan("ann").start().await;
        let second = plan("bob").start().await;
        ready(&relay, "ann").await;
        ready(&relay, "bob").await;
        let id = |user| relay.relay.registry.pick(user, None).unwrap().identity.bridge_id.clone();
        assert_ne!(id("ann"), id("bob"));
        drop((first, second));
    }
}
