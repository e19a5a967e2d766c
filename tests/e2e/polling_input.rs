//! Bad input to what polling bridges ask for: each gets a reason, and no exchange that is under way is harmed.

use http::{Method, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::harness::caller::Raw;
use crate::harness::raw_bridge::{ALL, RawBridge, ask, in_parts, request};
use crate::harness::relay::token_for;
use crate::harness::{Caller, TestRelay, chunk, text};
use crate::shipped_ws::many_fields;

/// A streamed exchange that is open all the time.
struct Witness {
    bridge: RawBridge,
    id: String,
    parts: u32,
    response: Response<Incoming>,
    _caller: Caller,
}

impl Witness {
    async fn of(bridge: RawBridge, relay: &TestRelay, user: &str) -> Self {
        let mut caller = Caller::connect(relay.address, &relay.token(user)).await;
        let (id, response) = bridge.begun(&mut caller, &in_parts()).await;
        Self {
            bridge,
            id,
            parts: 0,
            response,
            _caller: caller,
        }
    }

    /// Another piece gets through, whatever happened before.
    async fn goes_on_after(&mut self, what: &str) {
        self.parts += 1;
        self.bridge.give(&self.id, self.parts, &[], what.to_owned()).await;
        let piece = chunk(&mut self.response).await.unwrap().unwrap();
        assert_eq!(piece, what);
    }

    async fn finishes(mut self) {
        self.parts += 1;
        self.bridge
            .give(&self.id, self.parts, &[("tunnel-end", "1")], "the end")
            .await;
        assert_eq!(text(self.response).await, "the end");
    }
}

/// A relay with a bridge of ann that has an exchange under way.
async fn scene() -> (TestRelay, Witness) {
    let relay = TestRelay::start().await;
    let bridge = RawBridge::register(&relay, "ann", ALL).await;
    let witness = Witness::of(bridge, &relay, "ann").await;
    (relay, witness)
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let (_relay, mut witness) = scene().await;
    let id = witness.bridge.id.clone();
    let (bridge, number) = (id.as_str(), witness.id.split('-').next().unwrap().to_owned());
    for (method, path) in [
        (Method::GET, "/api/bridge/poll/nobody".to_owned()),
        (Method::GET, "/api/bridge/nobody/poll".to_owned()),
        (Method::GET, "/api/bridge/nobody/status".to_owned()),
        (Method::POST, "/api/bridge/nobody/response".to_owned()),
        (Method::POST, "/api/bridge/nobody/provider-status".to_owned()),
        (Method::POST, "/api/bridge/heartbeat/nobody".to_owned()),
        (Method::POST, format!("/api/bridge/respond/nobody/{}", witness.id)),
        (Method::POST, format!("/api/bridge/respond/{bridge}/{number}-999999")),
        (Method::POST, format!("/api/bridge/respond/{bridge}/{number}--1")),
        (Method::POST, format!("/api/bridge/respond/{bridge}/1")),
        (Method::POST, format!("/api/bridge/respond/{bridge}/ffff-1")),
        (Method::GET, format!("/api/bridge/poll/{bridge}/{number}-999999/body/0")),
        (Method::GET, format!("/api/bridge/poll/nobody/{}/body/0", witness.id)),
        (Method::GET, format!("/api/bridge/poll/{bridge}/{}/body/x", witness.id)),
        (Method::GET, format!("/api/bridge/poll/{bridge}/{}/body/-1", witness.id)),
        (
            Method::GET,
            format!("/api/bridge/poll/{bridge}/{}/body/4294967296", witness.id),
        ),
        (Method::DELETE, format!("/api/bridge/poll/{bridge}")),
        (Method::GET, "/api/bridge/register".to_owned()),
        (Method::POST, format!("/api/bridge/{bridge}/dance")),
    ] {
        let answer = r#"{"status":200,"headers":{}}"#;
        let reply = witness.bridge.ask(request(method, &path, &[], answer)).await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(!reply.reason().is_empty(), "{path}");
        witness.goes_on_after(&path).await;
    }
    let answer = json!({"requestId": format!("{number}-999999"), "status": 200, "headers": {}}).to_string();
    let path = format!("/api/bridge/{bridge}/response");
    let reply = witness.bridge.ask(request(Method::POST, &path, &[], answer)).await;
    assert_eq!(reply.status, 404);
    witness.finishes().await;
}

#[tokio::test]
async fn another_users_ids_are_not_found_on_any_route() {
    let (relay, mut witness) = scene().await;
    let theirs = Witness::of(RawBridge::register(&relay, "bob", ALL).await, &relay, "bob").await;
    let (bridge, id) = (witness.bridge.id.clone(), witness.id.clone());
    let answer = r#"{"status":200,"headers":{}}"#;
    for (method, path) in [
        (Method::GET, format!("/api/bridge/poll/{bridge}?timeout=0")),
        (Method::GET, format!("/api/bridge/{bridge}/poll?timeout=0")),
        (Method::GET, format!("/api/bridge/poll/{bridge}/{id}/body/0")),
        (Method::GET, format!("/api/bridge/{bridge}/status")),
        (Method::POST, format!("/api/bridge/respond/{bridge}/{id}")),
        (Method::POST, format!("/api/bridge/{bridge}/response")),
        (Method::POST, format!("/api/bridge/heartbeat/{bridge}")),
        (Method::POST, format!("/api/bridge/{bridge}/heartbeat")),
        (Method::POST, format!("/api/bridge/{bridge}/provider-status")),
        // The right bridge with the wrong exchange, and an exchange of somebody else's at one's own bridge.
        (Method::POST, format!("/api/bridge/respond/{}/{id}", theirs.bridge.id)),
        (
            Method::GET,
            format!("/api/bridge/poll/{}/{id}/body/0", theirs.bridge.id),
        ),
    ] {
        for headers in [
            &[][..],
            &[("tunnel-part", "1")],
            &[("tunnel-part", "1"), ("tunnel-abort", "1")],
        ] {
            let asked = request(method.clone(), &path, headers, answer);
            let reply = ask(relay.address, &theirs.bridge.token, asked).await;
            assert_eq!(reply.status, 404, "{path} {headers:?}");
            assert!(!reply.reason().is_empty(), "{path}");
        }
        witness.goes_on_after(&path).await;
    }
    witness.finishes().await;
    theirs.finishes().await;
}

#[tokio::test]
async fn only_a_token_with_the_scope_of_bridges_is_let_in() {
    let (relay, mut witness) = scene().await;
    let (bridge, id) = (witness.bridge.id.clone(), witness.id.clone());
    for (method, path) in [
        (Method::POST, "/api/bridge/register".to_owned()),
        (Method::GET, format!("/api/bridge/poll/{bridge}?timeout=0")),
        (Method::GET, format!("/api/bridge/poll/{bridge}/{id}/body/0")),
        (Method::GET, format!("/api/bridge/{bridge}/status")),
        (Method::POST, format!("/api/bridge/respond/{bridge}/{id}")),
        (Method::POST, format!("/api/bridge/{bridge}/response")),
        (Method::POST, format!("/api/bridge/heartbeat/{bridge}")),
        (Method::POST, format!("/api/bridge/{bridge}/provider-status")),
    ] {
        let only_api = token_for("ann", "api");
        // The token in the query is for WebSockets, which cannot set headers.
        let in_query = format!("{path}?token={}", witness.bridge.token);
        for (path, token, status) in [
            (&path, "", 401),
            (&path, "no", 401),
            (&path, &only_api, 403),
            (&in_query, "", 401),
        ] {
            let reply = ask(relay.address, token, request(method.clone(), path, &[], "{}")).await;
            assert_eq!(reply.status, status, "{path}");
            assert!(!reply.reason().is_empty());
        }
        witness.goes_on_after(&path).await;
    }
    witness.finishes().await;
}

#[tokio::test]
async fn a_registration_that_lacks_something_is_told_what() {
    let (_relay, mut witness) = scene().await;
    let long = "x".repeat(257);
    for (wish, reason) in [
        ("{}".to_owned(), "missing: clientId, platform, version"),
        (r#"{"clientId":"a","version":"1"}"#.to_owned(), "missing: platform"),
        (
            r#"{"clientId":"a","platform":"x","version":""}"#.to_owned(),
            "missing: version",
        ),
        (
            r#"{"clientId":null,"platform":"x","version":"1"}"#.to_owned(),
            "missing: clientId",
        ),
        (
            r#"{"clientId":7,"platform":"x","version":"1"}"#.to_owned(),
            "expected a string",
        ),
        (
            r#"{"clientId":"a","platform":"x","version":"1","capabilities":"all"}"#.to_owned(),
            "JSON",
        ),
        (
            r#"{"clientId":"a","platform":"x","version":"1","name":"no/name"}"#.to_owned(),
            "name",
        ),
        (
            r#"{"clientId":"a","platform":"x","version":"1","name":""}"#.to_owned(),
            "name",
        ),
        (
            format!(r#"{{"clientId":"{long}","platform":"x","version":"1"}}"#),
            "longer",
        ),
        ("clientId=a".to_owned(), "JSON"),
        (String::new(), "JSON"),
        ("[]".to_owned(), "missing"),
        ("[".repeat(10_000), "JSON"),
    ] {
        let asked = request(Method::POST, "/api/bridge/register", &[], wish.clone());
        let reply = witness.bridge.ask(asked).await;
        assert_eq!(reply.status, 400, "{wish}");
        assert!(reply.reason().contains(reason), "{wish}: {}", reply.reason());
    }
    witness.goes_on_after("all that").await;
    witness.finishes().await;
}

#[tokio::test]
async fn an_answer_that_is_none_is_refused_and_its_exchange_can_still_be_answered() {
    let (relay, mut witness) = scene().await;
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let ((), response) = tokio::join!(
        async {
            let (id, _) = witness.bridge.next().await;
            for (answer, reason) in [
                (String::new(), "JSON"),
                ("no".to_owned(), "JSON"),
                ("\u{feff}{}".to_owned(), "JSON"),
                ("[1]".to_owned(), "JSON"),
                (r#"{"status":200"#.to_owned(), "JSON"),
                (r#"{"headers":{}}"#.to_owned(), "missing: status"),
                (r#"{"status":42}"#.to_owned(), "42"),
                (r#"{"status":101}"#.to_owned(), "101"),
                (r#"{"status":199}"#.to_owned(), "199"),
                (r#"{"status":600}"#.to_owned(), "600"),
                (r#"{"status":-1}"#.to_owned(), "JSON"),
                (r#"{"status":70000}"#.to_owned(), "JSON"),
                (r#"{"status":"200"}"#.to_owned(), "JSON"),
                (
                    r#"{"status":200,"headers":{"x":"a\r\nset-cookie: b"}}"#.to_owned(),
                    "'x'",
                ),
                (r#"{"status":200,"headers":{"x":["a","b\nc"]}}"#.to_owned(), "'x'"),
                (r#"{"status":200,"headers":{"x":"\u0000"}}"#.to_owned(), "'x'"),
                (r#"{"status":200,"headers":{"a b":"c"}}"#.to_owned(), "'a b'"),
                (r#"{"status":200,"headers":{"":"c"}}"#.to_owned(), "''"),
                (r#"{"status":200,"headers":{"x:\n":"c"}}"#.to_owned(), "x:\\n"),
                (r#"{"status":200,"headers":{"x":7}}"#.to_owned(), "JSON"),
                (r#"{"status":200,"headers":["x"]}"#.to_owned(), "JSON"),
                (json!({"status": 200, "headers": many_fields()}).to_string(), "header"),
                (r#"{"status":200,"body":7}"#.to_owned(), "JSON"),
                (
                    r#"{"status":200,"body":"é","bodyEncoding":"base64"}"#.to_owned(),
                    "base64",
                ),
                (r#"{"status":200,"body":"x","bodyEncoding":"gzip"}"#.to_owned(), "JSON"),
                (
                    r#"{"status":200,"headers":{"content-length":"9"},"body":"x"}"#.to_owned(),
                    "content-length",
                ),
                (
                    r#"{"status":200,"headers":{"content-length":"0"},"body":"x"}"#.to_owned(),
                    "content-length",
                ),
                (
                    r#"{"status":200,"headers":{"content-length":"+1"},"body":"x"}"#.to_owned(),
                    "content-length",
                ),
                (
                    r#"{"status":200,"headers":{"content-length":["1","2"]},"more":true}"#.to_owned(),
                    "content-length",
                ),
            ] {
                let asked = request(Method::POST, &witness.bridge.respond_path(&id), &[], answer.clone());
                let reply = witness.bridge.ask(asked).await;
                let shown: String = answer.chars().take(80).collect();
                assert_eq!(reply.status, 400, "{shown}");
                assert!(reply.reason().contains(reason), "{shown}: {}", reply.reason());
                witness.goes_on_after(&format!("the answer {shown}")).await;
            }
            let path = format!("/api/bridge/{}/response", witness.bridge.id);
            let asked = request(Method::POST, &path, &[], r#"{"status":200}"#);
            let reply = witness.bridge.ask(asked).await;
            assert_eq!(
                (reply.status.as_u16(), reply.reason()),
                (400, "missing: requestId".to_owned())
            );
            let whole = json!({"status": 200, "headers": {"content-length": "6"}, "body": "at all"});
            assert_eq!(witness.bridge.head(&id, &whole).await.status, 200);
        },
        caller.get("/api/tags"),
    );
    assert_eq!(text(response).await, "at all");
    witness.finishes().await;
}

#[tokio::test]
async fn parts_with_a_wrong_number_or_wrong_trailers_are_refused_and_lose_nothing() {
    let (_relay, mut witness) = scene().await;
    let end = ("tunnel-end", "1");
    for (headers, reason) in [
        (vec![("tunnel-part", "0")], "Tunnel-Part"),
        (vec![("tunnel-part", "one")], "Tunnel-Part"),
        (vec![("tunnel-part", "-1")], "Tunnel-Part"),
        (vec![("tunnel-part", "")], "Tunnel-Part"),
        (vec![("tunnel-part", "4294967296")], "Tunnel-Part"),
        (vec![("tunnel-part", "99")], "to come next"),
        (vec![("tunnel-part", "99"), end], "to come next"),
        (vec![("tunnel-part", "4294967295")], "to come next"),
        (
            vec![("tunnel-part", "NEXT"), end, ("tunnel-trailers", "no")],
            "Tunnel-Trailers",
        ),
        (
            vec![("tunnel-part", "NEXT"), end, ("tunnel-trailers", "[]")],
            "Tunnel-Trailers",
        ),
        (
            vec![("tunnel-part", "NEXT"), end, ("tunnel-trailers", r#"{"a b":"c"}"#)],
            "'a b'",
        ),
        (
            vec![("tunnel-part", "NEXT"), end, ("tunnel-trailers", r#"{"x":"a\r\nb"}"#)],
            "'x'",
        ),
    ] {
        let next = (witness.parts + 1).to_string();
        let fill = |value: &'static str| {
            if value == "NEXT" {
                next.clone()
            } else {
                value.to_owned()
            }
        };
        let owned: Vec<_> = headers.iter().map(|(name, value)| (*name, fill(value))).collect();
        let headers: Vec<_> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let asked = request(
            Method::POST,
            &witness.bridge.respond_path(&witness.id),
            &headers,
            "lost",
        );
        let reply = witness.bridge.ask(asked).await;
        assert_eq!(reply.status, 400, "{headers:?}");
        assert!(reply.reason().contains(reason), "{headers:?}: {}", reply.reason());
        witness.goes_on_after(&format!("{headers:?}")).await;
    }
    let path = format!("/api/bridge/{}/response", witness.bridge.id);
    let asked = request(Method::POST, &path, &[("tunnel-part", "1")], "lost");
    assert_eq!(witness.bridge.ask(asked).await.status, 400);
    witness.finishes().await;
}

#[tokio::test]
async fn polls_with_a_query_that_says_nothing_are_refused() {
    let (_relay, mut witness) = scene().await;
    let bridge = witness.bridge.id.clone();
    for query in [
        "timeout=abc",
        "timeout=",
        "timeout=-1",
        "timeout=1.5",
        "timeout=99999999999999999999",
        "timeout=0&ack=x",
        "timeout=0&ack=",
    ] {
        for path in [
            format!("/api/bridge/poll/{bridge}?{query}"),
            format!("/api/bridge/{bridge}/poll?{query}"),
        ] {
            let reply = witness.bridge.get(&path).await;
            assert_eq!(reply.status, 400, "{path}");
            assert!(reply.reason().contains("whole number"), "{}", reply.reason());
        }
        witness.goes_on_after(query).await;
    }
    let path = format!("/api/bridge/poll/{bridge}/{}/body/0?timeout=soon", witness.id);
    assert_eq!(witness.bridge.get(&path).await.status, 400);
    witness.finishes().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_before_it_is_sent() {
    let (relay, mut witness) = scene().await;
    let (bridge, id) = (witness.bridge.id.clone(), witness.id.clone());
    for (path, part) in [
        (format!("/api/bridge/respond/{bridge}/{id}"), true),
        (format!("/api/bridge/respond/{bridge}/{id}"), false),
        (format!("/api/bridge/{bridge}/response"), false),
        ("/api/bridge/register".to_owned(), false),
        (format!("/api/bridge/heartbeat/{bridge}"), false),
        (format!("/api/bridge/{bridge}/provider-status"), false),
    ] {
        let part = if part {
            format!("tunnel-part: {}\r\n", witness.parts + 1)
        } else {
            String::new()
        };
        let mut raw = Raw::connect(relay.address).await;
        raw.send(format!(
            "POST {path} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {}\r\n{part}content-length: 100000000\r\n\r\n",
            witness.bridge.token
        ))
        .await;
        let answer = raw.until("}").await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{path}: {answer}");
        assert!(answer.contains(r#"{"error":"at most "#), "{path}: {answer}");
        witness.goes_on_after(&path).await;
    }
    // A little more than may be, without a length.
    let bytes = vec![b'x'; 1024 * 1024];
    let mut raw = Raw::connect(relay.address).await;
    let n = witness.parts + 1;
    raw.send(format!(
        "POST /api/bridge/respond/{bridge}/{id} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {}\r\n\
         tunnel-part: {n}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        witness.bridge.token,
        bytes.len() + 1
    ))
    .await;
    raw.send(&bytes).await;
    raw.send("x\r\n").await;
    let answer = raw.until("}").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    witness.goes_on_after("one octet too many").await;
    witness.finishes().await;
}

#[tokio::test]
async fn another_process_of_the_same_bridge_is_told_that_it_was_replaced() {
    let (_relay, mut witness) = scene().await;
    let (bridge, id) = (witness.bridge.id.clone(), witness.id.clone());
    for (method, path) in [
        (Method::GET, format!("/api/bridge/poll/{bridge}?timeout=0")),
        (Method::GET, format!("/api/bridge/poll/{bridge}/{id}/body/0")),
        (Method::POST, format!("/api/bridge/respond/{bridge}/{id}")),
        (Method::POST, format!("/api/bridge/heartbeat/{bridge}")),
    ] {
        let headers = [("tunnel-instance", "process-0")];
        let reply = witness.bridge.ask(request(method, &path, &headers, "{}")).await;
        assert_eq!(reply.status, 409, "{path}");
        assert!(!reply.reason().is_empty());
        witness.goes_on_after(&path).await;
    }
    let headers = [("tunnel-instance", "process-1")];
    let path = format!("/api/bridge/heartbeat/{bridge}");
    let reply = witness.bridge.ask(request(Method::POST, &path, &headers, "")).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["success"]),
        (200, &Value::Bool(true))
    );
    witness.finishes().await;
}
