//! What callers can reach of a desktop.

use http::{Method, Request, Response};
use tunnel::transport::{empty, full};

use crate::harness::{Caller, TestBridge, TestRelay, Upstream, json, on_each_transport, ready, text};

async fn open_desktop(
    relay: &TestRelay,
    plan: impl FnOnce(crate::harness::bridge::Plan) -> crate::harness::bridge::Plan,
) -> (TestBridge, Upstream) {
    let upstream = Upstream::serving(|request: Request<hyper::body::Incoming>| async move {
        Response::new(full(request.uri().to_string()))
    })
    .await;
    let bridge = plan(TestBridge::to(relay, &upstream)).start().await;
    ready(relay, "ann").await;
    (bridge, upstream)
}

on_each_transport! {
    async fn only_inference_and_reading_are_open(transport: Transport) {
        let relay = TestRelay::start().await;
        let _desktop = open_desktop(&relay, |plan| plan.transport(transport)).await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        for (method, path, sent) in [
            (Method::GET, "/", "/"),
            (Method::GET, "/api/tags?x=1", "/api/tags?x=1"),
            (Method::POST, "/api/chat", "/api/chat"),
            (Method::POST, "/x/..//v1/./chat/completions", "/v1/chat/completions"),
            (Method::POST, "/api/%63hat", "/api/chat"),
            (Method::GET, "/v1/models/a%20b", "/v1/models/a%20b"),
        ] {
            let request = Request::builder().method(method).uri(path).body(empty()).unwrap();
            assert_eq!(text(caller.send(request).await).await, sent, "{path}");
        }
        for (method, path, option) in [
            (Method::DELETE, "/api/delete", "--allow-manage"),
            (Method::DELETE, "/api/../api/delete", "--allow-manage"),
            (Method::DELETE, "//api/delete", "--allow-manage"),
            (Method::DELETE, "/api/%64elete", "--allow-manage"),
            (Method::DELETE, "/api/chat/../delete", "--allow-manage"),
            (Method::DELETE, "/ollama/api/delete", "--allow-manage"),
            (Method::DELETE, "/b/box/../../api/delete", "--allow-manage"),
            (Method::POST, "/api/pull", "--allow-manage"),
            (Method::POST, "/api/blobs/sha256:0", "--allow-manage"),
            (Method::POST, "/api/me", "--allow 'POST /api/me'"),
            (Method::GET, "/debug/pprof/heap", "--allow 'GET /debug/pprof/heap'"),
        ] {
            let request = Request::builder().method(method).uri(path).body(empty()).unwrap();
            let response = caller.send(request).await;
            assert_eq!(response.status(), 403, "{path}");
            assert_eq!(response.headers()["tunnel-error"], "policy", "{path}");
            let told = json(response).await["error"].as_str().unwrap().to_owned();
            assert!(told.contains(option), "{path}: {told}");
        }
        assert_eq!(caller.get("/v1/models/a%2Fb").await.status(), 400);
    }

    async fn the_owner_opens_more(transport: Transport) {
        let relay = TestRelay::start().await;
        let _desktop = open_desktop(&relay, |plan| plan.transport(transport).manage().allow("POST /rerank*")).await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        for path in ["/api/pull", "/rerank", "/rerank/x"] {
            assert_eq!(text(caller.post(path, "{}").await).await, path);
        }
    }

    async fn everything_open_passes_paths_as_they_are(transport: Transport) {
        let relay = TestRelay::start().await;
        let _desktop = open_desktop(&relay, |plan| plan.transport(transport).allow("* /*")).await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        assert_eq!(text(caller.get("/v1/models/org%2Fname").await).await, "/v1/models/org%2Fname");
    }

    async fn models_that_run_on_the_owners_account_are_closed(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).start().await;
        ready(&relay, "ann").await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        let body = r#"{"messages":[{"model":"decoy"}],"model":"gpt-oss:120b-cloud"}"#;
        let response = caller.post("/api/chat", body).await;
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["tunnel-error"], "policy");
        assert!(text(response).await.contains("--allow-cloud"));
        drop(bridge);
    }
}
