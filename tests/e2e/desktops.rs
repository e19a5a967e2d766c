//! Several desktops of one user: who gets which request.

use http::{Request, Response};
use tunnel::bridge::Stopped;
use tunnel::transport::{empty, full};

use crate::harness::{Caller, TestBridge, TestRelay, Upstream, json, on_each_transport, text, until, within};

async fn named(word: &'static str) -> Upstream {
    Upstream::serving(move |_| async move { Response::new(full(word)) }).await
}

async fn ask(relay: &TestRelay, request: Request<tunnel::transport::Body>) -> String {
    let token = relay.token("ann");
    text(Caller::connect(relay.address, &token).await.send(request).await).await
}

fn to(path: &str) -> Request<tunnel::transport::Body> {
    Request::get(path).body(empty()).unwrap()
}

async fn listed(relay: &TestRelay, count: usize) {
    until("all bridges to be there", || {
        relay.relay.registry.list("ann").len() == count
    })
    .await;
}

on_each_transport! {
    async fn priority_then_age_then_name_decide(transport: Transport) {
        let relay = TestRelay::start().await;
        let (gpu, laptop, spare) = (named("gpu").await, named("laptop").await, named("spare").await);
        let plan = |upstream, name| TestBridge::to(&relay, upstream).transport(transport).name(name).allow("* /*");
        let first = plan(&gpu, "gpu").start().await;
        listed(&relay, 1).await;
        let second = plan(&laptop, "laptop").start().await;
        listed(&relay, 2).await;
        // Of equals, the one that has been here longest.
        assert_eq!(ask(&relay, to("/api/tags")).await, "gpu");
        assert_eq!(ask(&relay, to("/b/laptop/api/tags")).await, "laptop");
        let mut by_header = to("/api/tags");
        by_header.headers_mut().insert("tunnel-bridge", "laptop".parse().unwrap());
        assert_eq!(ask(&relay, by_header).await, "laptop");
        let third = plan(&spare, "spare").priority(1).start().await;
        listed(&relay, 3).await;
        assert_eq!(ask(&relay, to("/api/tags")).await, "spare");
        third.stop().await;
        listed(&relay, 2).await;
        assert_eq!(ask(&relay, to("/api/tags")).await, "gpu");
        drop((first, second));
    }

    async fn a_name_that_another_desktop_has_gets_a_number(transport: Transport) {
        let relay = TestRelay::start().await;
        let (one, two) = (named("one").await, named("two").await);
        let plan = |upstream| TestBridge::to(&relay, upstream).transport(transport).allow("* /*");
        let first = plan(&one).start().await;
        listed(&relay, 1).await;
        let second = plan(&two).start().await;
        listed(&relay, 2).await;
        assert_eq!((first.name(), second.name()), ("box".to_owned(), "box-2".to_owned()));
        assert_eq!(ask(&relay, to("/b/box/x")).await, "one");
        assert_eq!(ask(&relay, to("/b/box-2/x")).await, "two");
    }

    async fn the_same_desktop_from_a_second_process_replaces_the_first(transport: Transport) {
        let relay = TestRelay::start().await;
        let old_upstream = Upstream::scripted().await;
        let new_upstream = named("new").await;
        let plan = |upstream| TestBridge::to(&relay, upstream).transport(transport).client_id("same").allow("* /*");
        let first = plan(&old_upstream).start().await;
        listed(&relay, 1).await;
        let id = relay.relay.registry.list("ann")[0].identity.bridge_id.clone();
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        let sending = tokio::spawn(async move { caller.post("/api/chat", "{}").await });
        let lost = old_upstream.next().await;
        let second = plan(&new_upstream).start().await;
        assert!(matches!(first.stopped().await, Err(Stopped::Replaced)));
        let response = within("the lost exchange to be told", sending).await.unwrap();
        assert_eq!(response.headers()["tunnel-error"], "bridge_gone");
        listed(&relay, 1).await;
        assert_eq!(relay.relay.registry.list("ann")[0].identity.bridge_id, id);
        assert_eq!(second.name(), "box");
        assert_eq!(ask(&relay, to("/x")).await, "new");
        drop(lost);
    }

    async fn an_ephemeral_bridge_is_reached_by_name_only(transport: Transport) {
        let relay = TestRelay::start().await;
        let (probe, real) = (named("probe").await, named("real").await);
        let bridge = TestBridge::to(&relay, &probe)
            .transport(transport)
            .name("probe")
            .priority(100)
            .ephemeral()
            .allow("* /*")
            .start()
            .await;
        until("it to be there", || relay.relay.registry.pick("ann", Some("probe")).is_some()).await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        assert_eq!(caller.get("/api/tags").await.status(), 503);
        let other = TestBridge::to(&relay, &real).transport(transport).allow("* /*").start().await;
        listed(&relay, 1).await;
        assert_eq!(ask(&relay, to("/api/tags")).await, "real");
        assert_eq!(ask(&relay, to("/b/probe/api/tags")).await, "probe");
        drop((bridge, other));
    }

    async fn the_list_shows_what_is_connected(transport: Transport) {
        let relay = TestRelay::start().await;
        let tags = Upstream::serving(|_| async { Response::new(full(r#"{"models":[{"name":"llama3.2:1b"}]}"#)) }).await;
        let bridge = TestBridge::to(&relay, &tags).transport(transport).priority(3).start().await;
        listed(&relay, 1).await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        let list = json(caller.get("/api/bridge").await).await;
        let shown = &list["bridges"][0];
        assert_eq!(shown["name"], "box");
        assert_eq!(shown["priority"], 3);
        assert_eq!(shown["models"], serde_json::json!(["llama3.2:1b"]));
        assert!(shown["connectedSince"].as_u64() > Some(1_600_000_000_000));
        // What proved the link came just before it counted as connected.
        let (seen, since) = (shown["lastSeen"].as_u64().unwrap(), shown["connectedSince"].as_u64().unwrap());
        assert!(seen + 1000 > since, "{seen} {since}");
        assert_eq!(shown["id"].as_str().unwrap().len(), 20);
        drop(bridge);
    }
}
