//! Keys for callers, on each database: good wherever a token is, for requests and nothing else, and gone when they are revoked.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{AUTHORIZATION, HeaderName};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;
use tunnel::bridge::config::TokenSource;
use tunnel::token::{Claims, Secret};
use tunnel::transport::{empty, full};

use crate::harness::accounts::{Database, EACH, Site, id_of, notice};
use crate::harness::bridge::Transport;
use crate::harness::browser::script;
use crate::harness::upstream::Answer;
use crate::harness::{Caller, TestBridge, Upstream, chunk, get, json as read_json, on_each_transport, text, within};

async fn bridge(site: &Site, name: &'static str, token: &str, transport: Transport) -> (TestBridge, Upstream) {
    let upstream = Upstream::serving(move |_| async move { Response::new(full(name)) }).await;
    let bridge = TestBridge::between(site.address, upstream.address)
        .token(TokenSource::Given(Secret::new(token)))
        .client_id(name)
        .name(name)
        .transport(transport)
        .start()
        .await;
    (bridge, upstream)
}

/// A key of ann's; what it is besides.
async fn key(site: &Site, more: &[&str]) -> String {
    let key = site.output(&[&["key", "add", "--user", "ann"], more].concat()).await;
    assert!(key.starts_with("tun_") && key.len() == 30, "{key}");
    key
}

/// A chat with a desktop of ann's, whose answer has begun and goes on.
struct Chat {
    /// What its caller has.
    key: String,
    answer: Answer,
    response: Response<Incoming>,
    _caller: Caller,
    _bridge: TestBridge,
    _upstream: Upstream,
}

impl Chat {
    /// By the holder of a key that is this besides.
    async fn begin(site: &Site, more: &[&str], transport: Transport) -> Self {
        let upstream = Upstream::scripted().await;
        let bridge = TestBridge::between(site.address, upstream.address)
            .token(TokenSource::Given(Secret::new(&site.token("ann").await)))
            .transport(transport)
            .start()
            .await;
        let key = key(site, more).await;
        knows(site, &key, 200).await;
        let mut caller = site.caller(&key).await;
        let (answer, response) = tokio::join!(
            async { upstream.next().await.begin(Response::builder()) },
            caller.post("/api/chat", "{}"),
        );
        let mut chat = Self {
            key,
            answer,
            response,
            _caller: caller,
            _bridge: bridge,
            _upstream: upstream,
        };
        chat.goes_on("one").await;
        chat
    }

    async fn goes_on(&mut self, piece: &'static str) {
        self.answer.send(piece).await;
        assert_eq!(chunk(&mut self.response).await.unwrap().unwrap(), piece);
    }

    async fn is_cut(&mut self) {
        let broken = within("the stream's end", chunk(&mut self.response)).await;
        assert!(broken.unwrap().is_err(), "broken visibly");
    }
}

/// Waits until the relay answers the key so, and asks no bridge.
async fn knows(site: &Site, key: &str, status: u16) {
    within("the relay to know the key", async {
        while site.caller(key).await.get("/api/bridge/usage").await.status() != status {}
    })
    .await;
}

async fn send(site: &Site, credential: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
    let mut caller = site.caller(credential).await;
    let mut request = Request::new(full(body.to_string()));
    (*request.method_mut(), *request.uri_mut()) = (method, path.parse().unwrap());
    let response = caller.send(request).await;
    let status = response.status().as_u16();
    let text = text(response).await;
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

on_each_transport! {
    async fn a_key_is_good_wherever_a_token_is_and_reaches_no_bridge_but_its_own(transport: Transport) {
        for database in EACH {
            let site = Site::new(database).await;
            let _relay = site.relay().await;
            let token = site.token("ann").await;
            let _bridges = (
                bridge(&site, "box", &token, transport).await,
                bridge(&site, "laptop", &token, transport).await,
            );
            let phone = key(&site, &["--label", "phone"]).await;
            let added = Instant::now();
            site.answered(&phone, 200).await;
            assert!(added.elapsed() < notice(), "{database:?}: {:?}", added.elapsed());
            let basic = format!("Basic {}", BASE64.encode(format!("anybody:{phone}")));
            for (name, value) in [
                (AUTHORIZATION, format!("Bearer {phone}")),
                (HeaderName::from_static("x-api-key"), phone.clone()),
                (AUTHORIZATION, basic),
            ] {
                let mut request = get("/b/laptop/api/tags");
                request.headers_mut().insert(name, value.parse().unwrap());
                let response = Caller::connect(site.address, "").await.send(request).await;
                assert_eq!(text(response).await, "laptop");
            }
            let limited = key(&site, &["--bridge", "laptop"]).await;
            site.answered(&limited, 200).await;
            let mut caller = site.caller(&limited).await;
            for path in ["/api/tags", "/b/laptop/api/tags"] {
                assert_eq!(text(caller.get(path).await).await, "laptop", "{path}");
            }
            let refused = caller.get("/b/box/api/tags").await;
            assert_eq!((refused.status().as_u16(), &refused.headers()["tunnel-error"]), (403, &"forbidden".parse().unwrap()));
            let refused = text(refused).await;
            assert!(refused.contains("laptop only"), "{refused}");
            let listed = read_json(caller.get("/api/bridge").await).await;
            assert_eq!(listed["bridges"].as_array().unwrap().len(), 1);
            // A key that nobody made, and one that is over.
            assert_eq!(site.status("tun_00000000000000000000000000").await, 401);
            let short = key(&site, &["--expires", "2s"]).await;
            site.answered(&short, 200).await;
            site.answered(&short, 401).await;
        }
    }

    async fn a_live_stream_is_cut_when_its_key_is_revoked(transport: Transport) {
        for database in EACH {
            let site = Site::new(database).await;
            let _relay = site.relay().await;
            let mut chat = Chat::begin(&site, &[], transport).await;
            let id = site.list(&["key", "list"]).await[0]["id"].as_str().unwrap().to_owned();
            site.output(&["key", "revoke", &id]).await;
            let revoked = Instant::now();
            chat.is_cut().await;
            assert!(revoked.elapsed() < notice(), "{database:?}: {:?}", revoked.elapsed());
            chat.answer.abandoned().await;
            assert_eq!(site.status(&chat.key).await, 401);
            let again = site.run(&["key", "revoke", &id]).await;
            assert!(again.errors.contains("tunnel relay key list"), "{}", again.errors);
        }
    }

    async fn keys_survive_a_kill_and_are_told_of_by_their_labels(transport: Transport) {
        for database in EACH {
            let site = Site::new(database).await;
            let relay = site.relay().await;
            let (desktop, _upstream) = bridge(&site, "box", &site.token("ann").await, transport).await;
            let (phone, revoked) = (key(&site, &["--label", "phone"]).await, key(&site, &[]).await);
            site.answered(&phone, 200).await;
            site.used(&phone, 1).await;
            let usage = site.usage(&phone).await;
            assert_eq!(usage["usage"][0]["token"]["label"], "phone");
            let listed = site.list(&["key", "list"]).await;
            let of = |label: Value| listed.iter().find(|key| key["label"] == label).unwrap();
            assert!(of("phone".into())["lastUsed"].is_u64());
            site.output(&["key", "revoke", of(Value::Null)["id"].as_str().unwrap()]).await;
            relay.signal(Signal::KILL);
            relay.ended().await;
            let _relay = site.relay().await;
            desktop.connected().await;
            site.answered(&phone, 200).await;
            assert_eq!(site.status(&revoked).await, 401);
            let file = site.home.path().join("backup");
            site.output(&["backup", file.to_str().unwrap()]).await;
            let kept = std::fs::read_to_string(&file).unwrap();
            assert!(kept.contains(r#""phone""#) && !kept.contains(&phone), "{kept}");
        }
    }
}

#[tokio::test]
async fn a_key_never_makes_keys_codes_or_bridges_and_a_token_only_where_it_may() {
    let site = Site::new(Database::Sqlite).await;
    let _relay = site.relay().await;
    let (phone, plain) = (key(&site, &[]).await, site.token("ann").await);
    site.answered(&phone, 503).await;
    let register = json!({"clientId": "c", "platform": "linux", "version": "1"});
    for (method, path, of_token) in [
        (Method::POST, "/-/keys", 403),
        (Method::GET, "/-/keys", 403),
        (Method::DELETE, "/-/keys/x", 403),
        (Method::POST, "/-/pair", 403),
        (Method::POST, "/-/token/renew", 200),
        (Method::POST, "/api/bridge/register", 200),
    ] {
        let (status, _) = send(&site, &phone, method.clone(), path, register.clone()).await;
        assert_eq!(status, 403, "{method} {path}");
        let (status, _) = send(&site, &plain, method.clone(), path, register.clone()).await;
        assert_eq!(status, of_token, "{method} {path}");
    }
    let mut upgrade = get(&format!("/ws/tunnel?token={phone}"));
    upgrade.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    let refused = Caller::connect(site.address, "").await.send(upgrade).await;
    assert_eq!(refused.status(), 403);
    for (order, status) in [("disable", 403), ("enable", 503), ("delete", 401)] {
        site.output(&["user", order, "ann"]).await;
        site.answered(&phone, status).await;
    }
    assert_eq!(site.list(&["key", "list"]).await.len(), 0);
}

#[tokio::test]
async fn who_may_manage_makes_keys_that_do_not_outlive_the_maker() {
    for database in EACH {
        let site = Site::new(database).await;
        let _relay = site.relay().await;
        let manager = site
            .output(&["token", "--user", "ann", "--scope", "manage", "--expires", "1h"])
            .await;
        let other = site.output(&["token", "--user", "bob", "--scope", "manage"]).await;
        assert_eq!(site.status(&manager).await, 403, "it is for no requests");
        let end = Claims::peek(&Secret::new(&manager)).unwrap().exp.unwrap();
        let wish = json!({"label": "phone", "bridge": "box", "rate": "20/s"});
        let (status, made) = send(&site, &manager, Method::POST, "/-/keys", wish).await;
        assert_eq!(
            (status, made["expires"].as_u64(), &made["user"]),
            (201, Some(end), &"ann".into())
        );
        let (phone, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
        site.answered(phone, 503).await;
        for (wish, status) in [
            (json!({"expires": end + 1}), 403),
            (json!({"expires": 1}), 400),
            (json!({"bridge": "a b"}), 400),
            (json!({"rate": "fast"}), 400),
            (json!({"scope": "manage"}), 400),
        ] {
            let answer = send(&site, &manager, Method::POST, "/-/keys", wish.clone()).await;
            assert_eq!(answer.0, status, "{wish}");
        }
        let (_, listed) = send(&site, &manager, Method::GET, "/-/keys", Value::Null).await;
        assert_eq!(
            (listed["keys"].as_array().unwrap().len(), &listed["keys"][0]["rate"]),
            (1, &"20/s".into())
        );
        assert!(!listed.to_string().contains(phone));
        let (_, listed) = send(&site, &other, Method::GET, "/-/keys", Value::Null).await;
        assert_eq!(listed["keys"], json!([]));
        let path = format!("/-/keys/{id}");
        assert_eq!(send(&site, &other, Method::DELETE, &path, Value::Null).await.0, 404);
        assert_eq!(send(&site, &manager, Method::DELETE, &path, Value::Null).await.0, 204);
        site.answered(phone, 401).await;
        assert_eq!(send(&site, &manager, Method::DELETE, &path, Value::Null).await.0, 404);
    }
}

#[tokio::test]
async fn a_key_has_a_limit_of_its_own() {
    let site = Site::new(Database::Sqlite).await;
    let _relay = site.relay().await;
    let (slow, other) = (key(&site, &["--rate", "2/h"]).await, key(&site, &[]).await);
    site.answered(&slow, 503).await;
    let mut request = Request::new(empty());
    *request.uri_mut() = "/api/tags".parse().unwrap();
    let refused = site.caller(&slow).await.send(request).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["tunnel-error"]),
        (429, &"rate_limited".parse().unwrap())
    );
    site.answered(&other, 503).await;
}

#[tokio::test]
async fn a_key_is_drawn_for_a_phone_with_the_relays_address() {
    let site = Site::new(Database::Sqlite).await;
    let drawn = site
        .output(&[
            "key",
            "add",
            "--user",
            "ann",
            "--qr",
            "--public-url",
            "https://relay.example.com",
        ])
        .await;
    let (key, picture) = drawn.split_once('\n').unwrap();
    assert!(key.starts_with("tun_"));
    let read = script("scan.js", &json!({"drawn": picture})).output();
    let read = within("the phone", read).await.unwrap();
    let told = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.success(), "{told}");
    assert_eq!(
        String::from_utf8(read.stdout).unwrap(),
        format!("https://relay.example.com\n{key}\n")
    );
    let without = site.run(&["key", "add", "--user", "ann", "--qr"]).await;
    assert_eq!(without.code, Some(2));
    assert!(without.errors.contains("--public-url"), "{}", without.errors);
    assert_eq!(site.list(&["key", "list"]).await.len(), 1);
}

#[tokio::test]
async fn a_token_that_may_manage_is_not_renewed_and_who_is_shut_out_makes_nothing() {
    for database in EACH {
        let site = Site::new(database).await;
        let _relay = site.relay().await;
        let manager = site.output(&["token", "--user", "ann", "--scope", "manage"]).await;
        let (status, refused) = send(&site, &manager, Method::POST, "/-/token/renew", Value::Null).await;
        assert_eq!(status, 403);
        assert!(refused.to_string().contains("scope manage is not renewed"), "{refused}");
        let (_, made) = send(&site, &manager, Method::POST, "/-/keys", json!({})).await;
        assert_eq!(made["maker"], id_of(&manager));
        let listed = site.list(&["key", "list"]).await;
        assert_eq!(listed[0]["maker"], id_of(&manager));
        let (_, pair) = send(&site, &manager, Method::POST, "/-/pair", Value::Null).await;
        site.output(&["token", "revoke", &id_of(&manager)]).await;
        // At once: the relay need not have noticed.
        for path in ["/-/keys", "/-/pair"] {
            let (status, _) = send(&site, &manager, Method::POST, path, json!({})).await;
            assert!([401, 403].contains(&status), "{path}: {status}");
        }
        let claim = json!({"code": pair["code"]});
        assert_eq!(send(&site, "", Method::POST, "/-/pair/claim", claim).await.0, 401);
        assert_eq!(site.list(&["key", "list"]).await.len(), 1);

        let code = site.output(&["pair", "--user", "ann"]).await;
        site.output(&["user", "disable", "ann"]).await;
        for order in [["key", "add"], ["pair", ""]] {
            let arguments: Vec<_> = order.into_iter().filter(|word| !word.is_empty()).collect();
            let refused = site.run(&[&arguments[..], &["--user", "ann"]].concat()).await;
            assert!(refused.errors.contains("this user is disabled"), "{}", refused.errors);
        }
        let claim = json!({"code": code});
        assert_eq!(send(&site, "", Method::POST, "/-/pair/claim", claim).await.0, 401);
        assert_eq!(site.list(&["token", "list"]).await.len(), 1);
    }
}

#[tokio::test]
async fn a_key_that_ended_meanwhile_still_cuts_its_stream_when_it_is_revoked() {
    let site = Site::new(Database::Sqlite).await;
    let _relay = site.relay().await;
    let mut chat = Chat::begin(&site, &["--expires", "6s"], Transport::Ws).await;
    knows(&site, &chat.key, 401).await;
    // Whatever else is ordered, what began in time goes on.
    key(&site, &[]).await;
    chat.goes_on("two").await;
    let listed = site.list(&["key", "list"]).await;
    let ended = listed.iter().find(|key| key["expires"].is_u64()).unwrap();
    site.output(&["key", "revoke", ended["id"].as_str().unwrap()]).await;
    chat.is_cut().await;
}
