//! What a page is told while it looks: whose a credential is, and what becomes of the caller's bridges, line by line.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::Instant;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::oidc::{Key, Provider, now};
use crate::harness::relay::token_for;
use crate::harness::{
    Caller, Path, TestBridge, TestRelay, Upstream, chunk, json as read_json, on_each_transport, text, until_within,
    within,
};

/// One who listens, and what it knows by now.
pub(crate) struct Ear {
    caller: Option<Caller>,
    response: Response<Incoming>,
    read: String,
    pub(crate) bridges: BTreeMap<String, Value>,
    /// Lines that told of bridges.
    pub(crate) lines: usize,
}

impl Ear {
    pub(crate) async fn of(mut caller: Caller) -> Self {
        let response = caller.get("/-/events").await;
        assert_eq!(response.status(), 200);
        for (name, value) in [
            ("content-type", "application/x-ndjson"),
            ("cache-control", "no-cache, no-transform"),
            ("x-accel-buffering", "no"),
        ] {
            assert_eq!(response.headers()[name], value);
        }
        let mut ear = Self {
            caller: Some(caller),
            response,
            read: String::new(),
            bridges: BTreeMap::new(),
            lines: 0,
        };
        assert!(ear.hear().await, "the first line comes at once");
        ear
    }

    /// Takes the next line in; none comes after the end.
    pub(crate) async fn hear(&mut self) -> bool {
        while !self.read.contains('\n') {
            match chunk(&mut self.response).await {
                Some(piece) => self.read.push_str(std::str::from_utf8(&piece.unwrap()).unwrap()),
                None => return false,
            }
        }
        let at = self.read.find('\n').unwrap();
        let rest = self.read.split_off(at + 1);
        let line: Value = serde_json::from_str(&std::mem::replace(&mut self.read, rest)).unwrap();
        if line["type"] == "bridges" {
            self.lines += 1;
            for gone in line["gone"].as_array().unwrap() {
                assert!(self.bridges.remove(gone.as_str().unwrap()).is_some(), "{line}");
            }
            for bridge in line["bridges"].as_array().unwrap() {
                let address = bridge["address"].as_str().unwrap().to_owned();
                self.bridges.insert(address, bridge.clone());
            }
        } else {
            assert_eq!(line, json!({"type": "beat"}));
        }
        true
    }

    /// Listens until it knows this.
    pub(crate) async fn knows(&mut self, what: &str, condition: impl Fn(&BTreeMap<String, Value>) -> bool) {
        within(what, async {
            while !condition(&self.bridges) {
                assert!(self.hear().await, "the end came before {what}");
            }
        })
        .await;
    }

    /// Listens to the end.
    pub(crate) async fn end(mut self) {
        within("the end of the events", async { while self.hear().await {} }).await;
        drop(self.caller.take());
    }
}

async fn ear(relay: &TestRelay, user: &str) -> Ear {
    Ear::of(Caller::connect(relay.address, &relay.token(user)).await).await
}

on_each_transport! {
    async fn what_becomes_of_a_bridge_is_told_as_it_happens(transport: Transport) {
        let relay = TestRelay::start().await;
        let mut ear = ear(&relay, "ann").await;
        assert_eq!(ear.bridges.len(), 0);
        let path = Path::with(relay, Upstream::scripted().await, transport).await;
        ear.knows("the bridge", |bridges| bridges.contains_key("box")).await;
        let session = path.relay.relay.registry.pick("ann", None).unwrap();
        let bridge = &ear.bridges["box"];
        for (name, value) in [
            ("address", json!("box")),
            ("id", json!(&*session.identity.bridge_id)),
            ("name", json!("box")),
            ("owner", Value::Null),
            ("transport", json!(if transport == Transport::Ws { "ws" } else { "poll" })),
            ("priority", json!(0)),
            ("inFlight", json!(0)),
            ("lastHour", json!({"exchanges": 0, "promptTokens": null, "completionTokens": null})),
        ] {
            assert_eq!(bridge[name], value, "{name}");
        }
        assert!(bridge.get("reason").is_some() && bridge.get("roundTripMs").is_some());
        let since = Duration::from_millis(bridge["connectedSince"].as_u64().unwrap()).as_secs();
        assert!((now() - 60..=now()).contains(&since), "{bridge}");

        let mut caller = path.caller().await;
        let (answer, response) = path.begun(&mut caller).await;
        ear.knows("what is in flight", |bridges| bridges["box"]["inFlight"] == 1).await;
        drop(answer);
        text(response).await;
        ear.knows("the exchange", |bridges| bridges["box"]["lastHour"]["exchanges"] == 1).await;
        assert_eq!(ear.bridges["box"]["inFlight"], 0);
        assert_eq!(ear.bridges["box"]["lastHour"]["promptTokens"], Value::Null);
        let asking = tokio::spawn(async move { text(caller.post("/api/chat", "{}").await).await });
        let call = path.upstream.next().await;
        let counted = r#"{"model":"m","done":true,"prompt_eval_count":3,"eval_count":5}"#;
        call.finish(Response::builder().header("content-type", "application/x-ndjson").body(full(counted)).unwrap());
        asking.await.unwrap();
        let done = json!({"exchanges": 2, "promptTokens": 3, "completionTokens": 5});
        ear.knows("the tokens", |bridges| bridges["box"]["lastHour"] == done).await;

        path.bridge.stop().await;
        ear.knows("the bridge's end", BTreeMap::is_empty).await;
        // Another process of the same desktop goes on counting where the first one was.
        let again = TestBridge::to(&path.relay, &path.upstream).transport(transport).client_id(session.identity.client.id.as_deref().unwrap());
        let _again = again.start().await;
        ear.knows("the bridge again", |bridges| bridges.contains_key("box")).await;
        assert_eq!(ear.bridges["box"]["lastHour"], done);
    }

    async fn nobody_hears_of_another_users_bridges(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
        let mut stranger = ear(&relay, "bob").await;
        let mut own = ear(&relay, "ann").await;
        let _ann = TestBridge::to(&relay, &upstream).transport(transport).name("ann-box").start().await;
        own.knows("ann's", |bridges| bridges.contains_key("ann-box")).await;
        let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
        assert_eq!(text(caller.get("/api/tags").await).await, "served");
        own.knows("the exchange", |bridges| bridges["ann-box"]["lastHour"]["exchanges"] == 1).await;
        // What bob hears next is of his own, and of nothing else before it.
        let _bob = TestBridge::to(&relay, &upstream).transport(transport).user("bob").start().await;
        stranger.knows("bob's", |bridges| bridges.contains_key("box")).await;
        assert_eq!((stranger.bridges.len(), stranger.lines), (1, 2), "{:?}", stranger.bridges);
    }
}

#[tokio::test]
async fn as_many_listen_as_may_and_nothing_is_done_for_nobody() {
    let relay = TestRelay::start().await;
    let mut ears = Vec::new();
    for _ in 0..16 {
        ears.push(ear(&relay, "ann").await);
    }
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let refused = caller.get("/-/events").await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["tunnel-error"], "overloaded");
    assert_eq!(caller.get("/api/bridge").await.status(), 200, "everything else goes on");
    let other = ear(&relay, "bob").await;
    assert_eq!(relay.relay.feeds.users(), 2);
    ears.pop();
    within("room for one more", async {
        while caller.get("/-/events").await.status() != 200 {
            caller = Caller::connect(relay.address, &relay.token("ann")).await;
        }
    })
    .await;
    drop((ears, other, caller));
    until_within(Duration::from_secs(10), "the end of all looking", || {
        relay.relay.feeds.users() == 0
    })
    .await;
}

#[tokio::test]
async fn events_end_with_the_token_and_with_the_relay() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let settings = provider.settings();
    let relay = TestRelay::with(|config| config.oidc = Some(settings)).await;
    let over = now() + 3;
    // A provider's clock may be a minute off.
    let ends = provider.token_with("ann", &json!({"exp": over - 60}));
    let lasting = ear(&relay, "ann").await;
    let ended = Ear::of(Caller::connect(relay.address, &ends).await).await;
    ended.end().await;
    assert!((over..over + 2).contains(&now()), "{} s late", now() - over);

    let began = Instant::now();
    relay.shutdown.drain();
    lasting.end().await;
    relay.stopped().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_reads_nothing_is_told_all_of_it_later_in_one_line() {
    let relay = TestRelay::start().await;
    let upstream = Upstream::scripted().await;
    let narrow = Caller::connect_http2_narrow(relay.address, &relay.token("ann"), 256).await;
    let mut slow = Ear::of(narrow).await;
    let mut quick = ear(&relay, "ann").await;
    for number in 0..3 {
        let name = format!("box-{number}");
        let bridge = TestBridge::to(&relay, &upstream).name(&name).start().await;
        quick.knows(&name, |bridges| bridges.contains_key(&name)).await;
        bridge.stop().await;
        quick.knows(&name, BTreeMap::is_empty).await;
    }
    let _last = TestBridge::to(&relay, &upstream).name("last").start().await;
    quick
        .knows("the last one", |bridges| bridges.contains_key("last"))
        .await;
    slow.knows("the last one", |bridges| bridges.contains_key("last")).await;
    assert_eq!(slow.bridges.len(), 1);
    // The first two, what was made before that, and one for all the rest.
    assert!(slow.lines <= 5 && quick.lines >= 8, "{} of {}", slow.lines, quick.lines);
}

#[tokio::test]
async fn a_credential_is_told_whose_it_is_and_what_it_is_good_for() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let settings = provider.settings();
    let relay = TestRelay::with(|config| config.oidc = Some(settings)).await;
    let me = async |token: &str| read_json(Caller::connect(relay.address, token).await.get("/-/me").await).await;
    let end = now() + 600;
    let told = me(&provider.token_with("bob", &json!({"exp": end}))).await;
    let expected = json!({
        "user": "bob", "kind": "sign-in", "scopes": ["bridge", "api", "manage"], "expires": end + 60, "bridge": null,
        "accounts": false,
    });
    assert_eq!(told, expected);
    let told = me(&token_for("ann", "bridge")).await;
    assert_eq!(
        (&told["user"], &told["kind"], &told["scopes"]),
        (&json!("ann"), &json!("token"), &json!(["bridge"]))
    );
    let mut nobody = Caller::connect(relay.address, "").await;
    for path in ["/-/me", "/-/events"] {
        assert_eq!(nobody.get(path).await.status(), 401, "{path}");
    }
    let mut bridge = Caller::connect(relay.address, &token_for("ann", "bridge")).await;
    assert_eq!(bridge.get("/-/events").await.status(), 403);
    // No demonstration: there is no door that a code opens.
    assert_eq!(nobody.post("/-/auth/claim", r#"{"code":"0"}"#).await.status(), 404);
}
