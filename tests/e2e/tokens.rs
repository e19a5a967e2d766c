//! Tokens: who is let in, who is not and why, and how a session outlives its token's renewal but not its end.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{Request, Response};
use tracing_subscriber::fmt::MakeWriter;
use tunnel::bridge::Stopped;
use tunnel::bridge::config::TokenSource;
use tunnel::relay::auth::Scopes;
use tunnel::relay::auth::tokens::Tokens;
use tunnel::token::{Claims, Secret};
use tunnel::transport::{empty, full};

use crate::harness::bridge::Transport;
use crate::harness::relay::{SECRET, token_for};
use crate::harness::{
    Caller, Path, TestBridge, TestRelay, Upstream, json, on_each_transport, ready, text, until, within,
};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn sign(header: &str, claims: &str, secret: &[u8]) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    let signature = URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// Gathers the log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

#[tokio::test]
async fn a_bad_token_is_refused_with_its_reason_in_the_log_and_nothing_secret() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let relay = TestRelay::start().await;
    let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
    let none = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        URL_SAFE_NO_PAD.encode(r#"{"sub":"ann"}"#)
    );
    let (past, future) = (now() - 10, now() + 1000);
    for (token, reason) in [
        (
            sign(hs256, &format!(r#"{{"sub":"ann","exp":{past}}}"#), SECRET),
            "expired",
        ),
        (
            sign(hs256, &format!(r#"{{"sub":"ann","nbf":{future}}}"#), SECRET),
            "not yet valid",
        ),
        (sign(hs256, r#"{"sub":"ann"}"#, &[1; 32]), "wrong signature"),
        (none, "wrong algorithm"),
        (
            sign(r#"{"alg":"RS256","typ":"JWT"}"#, r#"{"sub":"ann"}"#, SECRET),
            "wrong algorithm",
        ),
        (sign(hs256, r#"{"scope":"api"}"#, SECRET), "without a proper user"),
        ("t".repeat(20_000), "too long"),
        ("garbage".to_owned(), "malformed"),
    ] {
        log.0.lock().unwrap().clear();
        let mut caller = Caller::connect(relay.address, &token).await;
        let response = caller.get("/api/tags").await;
        assert_eq!(response.status(), 401, "{reason}");
        assert_eq!(response.headers()["tunnel-error"], "unauthorized");
        assert!(response.headers().contains_key("www-authenticate"));
        let told = text(response).await;
        let logged = log.text();
        assert!(logged.contains(reason), "{reason}: {logged}");
        assert!(
            !logged.contains(&token) && !told.contains(&token),
            "{reason}: the token is in the log"
        );
    }
    let mut nobody = Caller::connect(relay.address, "").await;
    assert_eq!(nobody.get("/api/tags").await.status(), 401);
    // Longer than any head may be.
    log.0.lock().unwrap().clear();
    let mut caller = Caller::connect(relay.address, &"t".repeat(100 * 1024)).await;
    if let Ok(response) = within("an answer", caller.try_send(crate::harness::get("/api/tags"))).await {
        assert_eq!(response.status(), 431);
    }
    until("the reason in the log", || log.text().contains("request head")).await;
    assert!(!log.text().contains("tttt"), "the token is in the log");
}

#[tokio::test]
async fn two_different_tokens_in_two_headers_are_refused_and_the_same_one_is_not() {
    let path = Path::scripted(Transport::Ws).await;
    let mut caller = path.caller().await;
    let with_key = |key: &str| {
        let mut request = Request::get("/api/bridge").body(empty()).unwrap();
        request.headers_mut().insert("x-api-key", key.parse().unwrap());
        request
    };
    let response = caller.send(with_key(&token_for("bob", "api"))).await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["tunnel-error"], "bad_request");
    drop(response);
    assert_eq!(caller.send(with_key(&path.token)).await.status(), 200);
}

#[tokio::test]
async fn a_token_is_taken_from_wherever_a_client_can_put_it() {
    let path = Path::scripted(Transport::Ws).await;
    let basic = format!("Basic {}", STANDARD.encode(format!("any:{}", path.token)));
    for (name, value) in [("authorization", basic.as_str()), ("x-api-key", path.token.as_str())] {
        let mut caller = Caller::connect(path.relay.address, "").await;
        let mut request = Request::get("/api/tags").body(empty()).unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
        let ((), response) = tokio::join!(
            async { path.upstream.next().await.finish(Response::new(full("in"))) },
            caller.send(request),
        );
        assert_eq!(text(response).await, "in");
    }
}

on_each_transport! {
    async fn a_scope_opens_its_own_door_only(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = Caller::connect(path.relay.address, &token_for("ann", "bridge")).await;
        let response = caller.post("/v1/messages", "{}").await;
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["tunnel-error"], "forbidden");
        assert_eq!(json(response).await["error"]["type"], "permission_error");

        let only_api = TokenSource::Given(Secret::new(&token_for("ann", "api")));
        let bridge = TestBridge::to(&path.relay, &path.upstream).transport(transport).token(only_api).launch();
        assert!(matches!(bridge.stopped().await, Err(Stopped::Refused(_))));
    }

    async fn a_refused_token_ends_a_bridge_and_a_strange_401_does_not(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let bad = TokenSource::Given(Secret::new("bad"));
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).token(bad).launch();
        assert!(matches!(bridge.stopped().await, Err(Stopped::Refused(_))));

        // A captive portal knows nothing of our errors.
        let portal = Upstream::serving(|_| async {
            Response::builder().status(401).body(full("log in to the hotel's network")).unwrap()
        })
        .await;
        let bridge = TestBridge::between(portal.address, upstream.address).transport(transport).launch();
        let mut phase = bridge.status.phase();
        for _ in 0..3 {
            let waiting = phase.wait_for(|phase| matches!(phase, tunnel::bridge::status::Phase::Waiting { .. }));
            within("the bridge to be refused", waiting).await.unwrap();
            let trying = phase.wait_for(|phase| matches!(phase, tunnel::bridge::status::Phase::Connecting));
            within("the bridge to try again", trying).await.unwrap();
        }
        bridge.stop().await;
    }

    async fn a_session_ends_with_its_token(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        // No `iat`: nothing tells the bridge when to renew.
        let end = now() + 2;
        let token = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"ann","exp":{end}}}"#), SECRET);
        std::fs::write(&file, token).unwrap();
        let bridge = TestBridge::to(&relay, &upstream)
            .transport(transport)
            .token(TokenSource::File(file.clone()))
            .start()
            .await;
        ready(&relay, "ann").await;
        std::fs::write(&file, token_for("ann", "bridge")).unwrap();
        bridge.disconnected().await;
        assert!(now() >= end, "ended before its time");
        // The file is read again: the fresh token in it works.
        bridge.connected().await;
    }

    async fn a_token_is_renewed_in_time_and_the_session_goes_on(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let life = Duration::from_secs(6);
        let first = Tokens::new(SECRET).issue("ann", Scopes::parse(Some("bridge")), Some(life)).unwrap();
        std::fs::write(&file, first.expose()).unwrap();
        let bridge = TestBridge::to(&relay, &upstream)
            .transport(transport)
            .token(TokenSource::File(file.clone()))
            .start()
            .await;
        ready(&relay, "ann").await;
        let session = relay.relay.registry.pick("ann", None).unwrap().connection_id;
        let read = || Secret::new(&std::fs::read_to_string(&file).unwrap());
        until("the file to be rewritten", || read() != first).await;
        let (old, fresh) = (Claims::peek(&first).unwrap(), Claims::peek(&read()).unwrap());
        assert_eq!((fresh.sub.as_str(), fresh.scope.as_deref()), ("ann", Some("bridge")));
        assert_eq!(fresh.exp.unwrap() - fresh.iat.unwrap(), life.as_secs());
        // Past the end of the first token, on the same connection.
        until("the first token's end", || now() > old.exp.unwrap()).await;
        assert_eq!(relay.relay.registry.pick("ann", None).unwrap().connection_id, session);
        drop(bridge);
    }
}
