//! Doubles of the desktop apps that are already shipped, written from the protocol alone: here the one that polls, in
//! `shipped_ws` the one on the WebSocket. Neither knows parts, acknowledgements or anything but text.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinSet};
use tunnel::transport::{Body, empty, full};

use crate::harness::oidc::{Key, Provider};
use crate::harness::{Caller, TestRelay, get, json, post, text, until, within};

/// What the app allows a poll at the most.
const POLL_LIMIT: Duration = Duration::from_secs(35);

/// The app that polls. It is configured with a URL that ends in `/api`, and puts its paths below that.
struct PollingApp {
    address: SocketAddr,
    token: String,
    caller: Caller,
    id: String,
    config: Value,
}

/// What the app does with a request: `data` in, the answer's fields out.
type Work = fn(&Value) -> Value;

/// An app that works until it is dropped.
struct Working {
    id: String,
    seen: Arc<Mutex<Vec<Value>>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Working {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl PollingApp {
    async fn register(relay: &TestRelay) -> Self {
        Self::register_with(relay, relay.token("ann")).await
    }

    async fn register_with(relay: &TestRelay, token: String) -> Self {
        let address = relay.address;
        let mut caller = Caller::connect(address, &token).await;
        let wish = json!({
            "clientId": "desktop-7f3a",
            "platform": "windows",
            "version": "4.1.0",
            "capabilities": ["ollama", "chat", "streaming"],
        });
        let answer = caller.send(api(post("/bridge/register", wish.to_string()))).await;
        assert_eq!(answer.status(), 200);
        let answer = json(answer).await;
        assert_eq!(answer["success"], true);
        let id = answer["bridgeId"].as_str().unwrap().to_owned();
        // The app builds its paths itself; what it is told leads to the same place.
        assert_eq!(
            answer["endpoints"],
            json!({
                "polling": format!("/api/bridge/{id}/poll"),
                "response": format!("/api/bridge/{id}/response"),
                "status": format!("/api/bridge/{id}/status"),
                "heartbeat": format!("/api/bridge/{id}/heartbeat"),
                "providerStatus": format!("/api/bridge/{id}/provider-status"),
            })
        );
        let config = answer["config"].clone();
        assert_eq!(config["requestTimeout"], 300_000);
        Self {
            address,
            token,
            caller,
            id,
            config,
        }
    }

    /// The same app over another connection.
    async fn beside(&self) -> Self {
        Self {
            address: self.address,
            token: self.token.clone(),
            caller: Caller::connect(self.address, &self.token).await,
            id: self.id.clone(),
            config: self.config.clone(),
        }
    }

    fn interval(&self, name: &str) -> Duration {
        Duration::from_millis(self.config[name].as_u64().unwrap())
    }

    async fn send(&mut self, request: Request<Body>) -> Value {
        let response = self.caller.try_send(api(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        json(response).await
    }

    async fn poll(&mut self) -> Vec<Value> {
        let poll = get(&format!("/bridge/{}/poll?timeout=30000", self.id));
        let answer = tokio::time::timeout(POLL_LIMIT, self.send(poll)).await.unwrap();
        assert_eq!(answer["success"], true);
        answer["requests"].as_array().unwrap().clone()
    }

    /// Works as the app does: polls, answers, beats.
    async fn work(relay: &TestRelay, work: Work) -> Working {
        Self::register(relay).await.go(work).await
    }

    /// The same, once it is registered.
    async fn go(self, work: Work) -> Working {
        let mut polls = self;
        let mut beats = polls.beside().await;
        let id = polls.id.clone();
        let seen = Arc::<Mutex<Vec<Value>>>::default();
        let log = Arc::clone(&seen);
        let polling = tokio::spawn(async move {
            let mut answering = JoinSet::new();
            loop {
                for request in polls.poll().await {
                    log.lock().unwrap().push(request.clone());
                    let mut answers = polls.beside().await;
                    answering.spawn(async move {
                        let mut answer = work(&request["data"]);
                        answer["requestId"] = request["id"].clone();
                        answer["provider"] = json!("ollama");
                        let path = format!("/bridge/{}/response", answers.id);
                        assert_eq!(answers.send(post(&path, answer.to_string())).await["success"], true);
                    });
                }
                tokio::time::sleep(polls.interval("pollingInterval")).await;
            }
        });
        let beating = tokio::spawn(async move {
            let mut interval = tokio::time::interval(beats.interval("heartbeatInterval"));
            loop {
                interval.tick().await;
                let path = format!("/bridge/{}/heartbeat", beats.id);
                let answer = beats.send(post(&path, "{}")).await;
                assert_eq!(answer["success"], true);
                assert!(answer["timestamp"].is_string());
            }
        });
        Working {
            id,
            seen,
            tasks: vec![polling.abort_handle(), beating.abort_handle()],
        }
    }
}

/// Puts the app's base before the path.
fn api(mut request: Request<Body>) -> Request<Body> {
    *request.uri_mut() = format!("/api{}", request.uri()).parse().unwrap();
    request
}

/// Answers a chat as Ollama and as an OpenAI server; everything else with what was asked.
pub(crate) fn answer_chat(data: &Value) -> Value {
    let body = data["body"].as_str().unwrap_or_default();
    let asked: Value = serde_json::from_str(body).unwrap_or_default();
    let word = asked["messages"][0]["content"].as_str().unwrap_or_default();
    let message = json!({"role": "assistant", "content": format!("You said «{word}»")});
    let (status, body) = match data["path"].as_str().unwrap() {
        "/api/chat" => (200, json!({"model": asked["model"], "message": message, "done": true})),
        "/v1/chat/completions" => (200, json!({"choices": [{"index": 0, "message": message}]})),
        "/api/delete" => (204, Value::Null),
        _ => (
            404,
            json!({"method": data["method"], "path": data["path"], "body": body}),
        ),
    };
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    json!({"status": status, "headers": {"content-type": "application/json", "X-App": "1"}, "body": body})
}

pub(crate) fn chat() -> String {
    json!({"model": "llama3.2:1b", "stream": false, "messages": [{"role": "user", "content": "Grüße"}]}).to_string()
}

/// Calls both chats by every path that reaches them.
pub(crate) async fn chats_are_answered(caller: &mut Caller) {
    for path in ["/api/ollama/api/chat", "/ollama/api/chat", "/api/chat"] {
        let response = caller.post(path, chat()).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["x-app"], "1");
        let answer = json(response).await;
        assert_eq!(answer["message"]["content"], "You said «Grüße»", "{path}");
        assert_eq!(answer["model"], "llama3.2:1b");
    }
    let answer = json(caller.post("/v1/chat/completions", chat()).await).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "You said «Grüße»");
}

/// Sends what such an app cannot take: the caller learns why, and the app hears nothing of it.
pub(crate) async fn only_text_of_bounded_size_is_taken(relay: &TestRelay, caller: &mut Caller) {
    let response = caller.post("/api/chat", vec![0xff, 0xfe]).await;
    assert_eq!(response.status(), 502);
    let reason = json(response).await["error"].as_str().unwrap().to_owned();
    assert!(reason.contains("text"), "{reason}");

    let token = relay.token("ann");
    let large = vec![b'x'; 8 * 1024 * 1024 + 1];
    let response = Caller::connect(relay.address, &token)
        .await
        .post("/api/chat", large.clone())
        .await;
    assert_eq!(response.status(), 413);
    assert_eq!(response.headers()["tunnel-error"], "too_large");
    assert!(text(response).await.contains("8 MiB"));

    // The same without a length.
    let pieces = large
        .chunks(64 * 1024)
        .map(|piece| Ok(http_body::Frame::data(piece.to_vec().into())));
    let pieces: Vec<Result<_, tunnel::transport::BoxError>> = pieces.collect();
    let body = StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync();
    let request = Request::post("/api/chat").body(body).unwrap();
    let response = Caller::connect(relay.address, &token).await.send(request).await;
    assert_eq!(response.status(), 413);

    let response = caller.post("/echo", vec![b'x'; 8 * 1024 * 1024]).await;
    assert_eq!(json(response).await["body"].as_str().unwrap().len(), 8 * 1024 * 1024);
}

/// A request without a body after a head: the connection must be of use for the next one.
pub(crate) async fn answers_without_a_body_end_where_they_should(caller: &mut Caller) {
    for _ in 0..2 {
        let response = caller.send(Request::head("/echo").body(empty()).unwrap()).await;
        assert_eq!(response.status(), 404);
        assert_eq!(text(response).await, "");
        let response = caller
            .send(Request::delete("/api/delete").body(full("{}")).unwrap())
            .await;
        assert_eq!(response.status(), 204);
        assert!(!response.headers().contains_key("content-length"));
        assert_eq!(text(response).await, "");
    }
}

/// A request with two fields of the same name, and credentials.
pub(crate) fn with_fields() -> Request<Body> {
    let mut request = get("/api/ollama/fields?x=1&y=%20");
    request.headers_mut().append("x-tag", HeaderValue::from_static("a"));
    request.headers_mut().append("x-tag", HeaderValue::from_static("b"));
    request
}

/// How that stands in the app's message.
pub(crate) fn fields_are_joined(data: &Value) {
    assert_eq!(data["method"], "GET");
    assert_eq!(data["path"], "/fields?x=1&y=%20");
    let headers = data["headers"].as_object().unwrap();
    assert_eq!(headers["x-tag"], "a, b");
    assert!(headers.values().all(Value::is_string), "{headers:?}");
    assert!(!headers.contains_key(AUTHORIZATION.as_str()));
    assert!(data.get("body").is_none_or(|body| body == ""), "{data}");
}

async fn path() -> (TestRelay, Working, Caller) {
    let relay = TestRelay::start().await;
    let app = PollingApp::work(&relay, answer_chat).await;
    let caller = Caller::connect(relay.address, &relay.token("ann")).await;
    (relay, app, caller)
}

#[tokio::test]
async fn a_chat_is_answered_through_the_polling_app() {
    let (_relay, _app, mut caller) = path().await;
    chats_are_answered(&mut caller).await;
    answers_without_a_body_end_where_they_should(&mut caller).await;
}

#[tokio::test]
async fn the_polling_app_and_its_caller_work_with_tokens_of_a_provider() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let settings = provider.settings();
    let relay = TestRelay::with(|config| config.oidc = Some(settings)).await;
    let app = PollingApp::register_with(&relay, provider.token("ann")).await;
    let _working = app.go(answer_chat).await;
    let mut caller = Caller::connect(relay.address, &provider.token("ann")).await;
    chats_are_answered(&mut caller).await;
    answers_without_a_body_end_where_they_should(&mut caller).await;
}

#[tokio::test]
async fn the_polling_app_gets_what_it_can_read() {
    let (relay, app, mut caller) = path().await;
    only_text_of_bounded_size_is_taken(&relay, &mut caller).await;
    app.seen.lock().unwrap().clear();
    assert_eq!(caller.send(with_fields()).await.status(), 404);
    let request = app.seen.lock().unwrap()[0].clone();
    fields_are_joined(&request["data"]);
    assert!(request["id"].is_string() && request["timestamp"].is_string());
    assert_eq!(request["timeout"], 300_000);
    assert!(request["data"].get("bodyParts").is_none());
}

#[tokio::test]
async fn the_polling_app_finds_its_status_in_the_shape_it_knows() {
    let (relay, working, _caller) = path().await;
    let mut app = PollingApp::register(&relay).await;
    assert_eq!(app.id, working.id);
    let path = format!("/bridge/{}/status", app.id);
    let status = app.send(get(&path)).await;
    assert_eq!(status["bridgeId"], app.id.as_str());
    assert_eq!(status["status"], "connected");
    assert!(status["lastSeen"].is_string() && status["stats"].is_object());
    assert_eq!(
        status["client"],
        json!({
            "clientId": "desktop-7f3a",
            "platform": "windows",
            "version": "4.1.0",
            "capabilities": ["ollama", "chat", "streaming"],
        })
    );
    assert_eq!(
        (&status["providers"], &status["lastProviderUpdate"]),
        (&json!([]), &Value::Null)
    );

    // As it does every two minutes.
    let providers = json!([{
        "id": "ollama_local",
        "name": "Ollama",
        "type": "ollama",
        "status": "available",
        "availableModels": ["llama3.2:1b"],
    }]);
    let report = json!({"providers": providers, "timestamp": "2026-11-23T08:00:00.000Z"});
    let answer = app
        .send(post(&format!("/bridge/{}/provider-status", app.id), report.to_string()))
        .await;
    assert_eq!(answer["success"], true);
    assert_eq!(answer["message"], "Provider status updated");
    assert!(answer["timestamp"].is_string());
    let status = app.send(get(&path)).await;
    assert_eq!(status["providers"], providers);
    assert!(status["lastProviderUpdate"].is_string());
}

#[tokio::test]
async fn what_the_polling_app_cannot_do_is_told_to_the_caller() {
    let relay = TestRelay::start().await;
    let fails: Work = |data| match data["path"].as_str().unwrap() {
        "/api/none" => json!({"error": "connect ECONNREFUSED 127.0.0.1:11434"}),
        // What its HTTP library says of a failed call, beside a body: the body is the answer.
        _ => json!({"status": 500, "error": "Request failed with status code 500", "body": r#"{"error":"no model"}"#}),
    };
    let _app = PollingApp::work(&relay, fails).await;
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let response = caller.get("/api/none").await;
    assert_eq!(response.status(), 502);
    assert!(text(response).await.contains("ECONNREFUSED"));
    let response = caller.get("/api/other").await;
    assert_eq!(response.status(), 500);
    assert_eq!(json(response).await["error"], "no model");
}

#[tokio::test]
async fn an_app_that_stopped_polling_finds_what_came_meanwhile() {
    let relay = TestRelay::start().await;
    let first = PollingApp::register(&relay).await;
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let calling = tokio::spawn(async move { caller.post("/api/chat", chat()).await });
    until("the request to be queued", || {
        let session = relay.relay.registry.pick("ann", None);
        session.is_some_and(|session| session.in_flight() == 1)
    })
    .await;
    // Started again: the same client id, and it polls for the first time.
    let app = PollingApp::work(&relay, answer_chat).await;
    assert_eq!(app.id, first.id);
    let response: Response<Incoming> = within("the answer", calling).await.unwrap();
    assert_eq!(json(response).await["message"]["content"], "You said «Grüße»");
}
