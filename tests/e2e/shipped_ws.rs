//! A double of the shipped desktop app on the WebSocket: JSON texts, no subprotocol, the token in the query (see `shipped`).

use futures_util::{SinkExt, StreamExt};
use http::Request;
use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tunnel::transport::empty;

use crate::harness::{Caller, TestRelay, get, json, ready, text, within};
use crate::shipped::{
    answer_chat, answers_without_a_body_end_where_they_should, chat, chats_are_answered, fields_are_joined,
    only_text_of_bounded_size_is_taken, with_fields,
};

struct App(WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>);

impl App {
    async fn connect(relay: &TestRelay) -> Self {
        let mut caller = Caller::connect(relay.address, "").await;
        let request = Request::get(format!("/ws/tunnel?token={}", relay.token("ann")))
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==");
        let response = caller.send(request.body(empty()).unwrap()).await;
        assert_eq!(response.status(), 101);
        assert!(!response.headers().contains_key(SEC_WEBSOCKET_PROTOCOL));
        let upgraded = hyper::upgrade::on(response).await.unwrap();
        ready(relay, "ann").await;
        Self(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await)
    }

    async fn say(&mut self, message: &Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    /// The next message; none at the end of the session.
    async fn hear(&mut self) -> Option<Value> {
        while let Some(Ok(message)) = within("a message", self.0.next()).await {
            if let Message::Text(text) = message {
                return Some(serde_json::from_str(&text).unwrap());
            }
        }
        None
    }

    /// The next request; answers pings meanwhile.
    async fn request(&mut self) -> Option<Value> {
        loop {
            let message = self.hear().await?;
            match message["type"].as_str().unwrap() {
                "http_request" => return Some(message),
                "ping" => self.pong(&message).await,
                other => panic!("a message of the type {other}"),
            }
        }
    }

    async fn pong(&mut self, ping: &Value) {
        assert!(ping["timestamp"].is_string());
        let timestamp = "2026-11-23T08:00:00.000Z";
        self.say(&json!({"type": "pong", "id": ping["id"], "timestamp": timestamp}))
            .await;
    }

    async fn answer(&mut self, request: &Value, mut answer: Value) {
        answer["type"] = json!("http_response");
        answer["id"] = request["id"].clone();
        self.say(&answer).await;
    }

    /// Answers chats until the session ends.
    async fn work(mut self) {
        while let Some(request) = self.request().await {
            let answer = answer_chat(&request);
            self.answer(&request, answer).await;
        }
    }

    /// The code with which the relay ends the session.
    async fn close_code(&mut self) -> Option<u16> {
        within("the end of the session", async {
            while let Some(Ok(message)) = self.0.next().await {
                if let Message::Close(close) = message {
                    return close.map(|close| close.code.into());
                }
            }
            None
        })
        .await
    }
}

fn ok(body: &str) -> Value {
    json!({"status": 200, "headers": {}, "body": body})
}

async fn connected() -> (TestRelay, App, Caller) {
    let relay = TestRelay::start().await;
    let app = App::connect(&relay).await;
    let caller = Caller::connect(relay.address, &relay.token("ann")).await;
    (relay, app, caller)
}

#[tokio::test]
async fn a_chat_is_answered_through_the_websocket_app() {
    let (_relay, app, mut caller) = connected().await;
    let app = tokio::spawn(app.work());
    chats_are_answered(&mut caller).await;
    answers_without_a_body_end_where_they_should(&mut caller).await;
    app.abort();
}

#[tokio::test]
async fn the_websocket_app_gets_what_it_can_read() {
    let (relay, mut app, mut caller) = connected().await;
    let ((), response) = tokio::join!(
        async {
            let request = app.request().await.unwrap();
            fields_are_joined(&request);
            assert!(request["id"].is_string());
            app.answer(&request, ok("fine")).await;
        },
        caller.send(with_fields()),
    );
    assert_eq!(text(response).await, "fine");
    let app = tokio::spawn(app.work());
    only_text_of_bounded_size_is_taken(&relay, &mut caller).await;
    app.abort();
}

#[tokio::test]
async fn answers_come_in_any_order_and_strange_messages_are_ignored() {
    let (relay, mut app, mut first) = connected().await;
    let mut second = Caller::connect(relay.address, &relay.token("ann")).await;
    let ((), one, two) = tokio::join!(
        async {
            let requests = [app.request().await.unwrap(), app.request().await.unwrap()];
            for strange in [
                json!({"type": "http_response", "id": "nobody", "status": 200, "headers": {}, "body": "x"}),
                json!({"type": "error", "id": "nobody", "error": "x"}),
                json!({"type": "dance", "id": requests[0]["id"]}),
                json!({"type": "pong", "id": "never asked"}),
                json!({"kind": "untyped"}),
                json!([1, 2]),
                json!("text"),
            ] {
                app.say(&strange).await;
            }
            for request in requests.iter().rev() {
                app.answer(request, ok(request["path"].as_str().unwrap())).await;
                // Too late, and once too often.
                app.answer(request, ok("again")).await;
            }
        },
        first.get("/one"),
        second.get("/two"),
    );
    assert_eq!(text(one).await, "/one");
    assert_eq!(text(two).await, "/two");
}

#[tokio::test]
async fn an_error_of_the_app_reaches_the_caller_in_its_words() {
    let (_relay, mut app, mut caller) = connected().await;
    for code in [json!(503), Value::Null] {
        let ((), response) = tokio::join!(
            async {
                let id = app.request().await.unwrap()["id"].clone();
                app.say(&json!({"type": "error", "id": id, "error": "Ollama is asleep", "code": code}))
                    .await;
            },
            caller.get("/api/tags"),
        );
        assert_eq!(response.status(), 502);
        assert!(
            json(response).await["error"]
                .as_str()
                .unwrap()
                .contains("Ollama is asleep")
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_none_fails_its_exchange_at_once_and_no_other() {
    let (relay, mut app, mut witness) = connected().await;
    let ((), waited) = tokio::join!(
        async {
            let waiting = app.request().await.unwrap();
            for wrong in [
                json!({"status": 42, "headers": {}, "body": ""}),
                json!({"status": 101, "headers": {}, "body": ""}),
                json!({"status": 600, "headers": {}, "body": ""}),
                json!({"status": "fine", "headers": {}, "body": ""}),
                json!({"headers": {}, "body": ""}),
                json!({"status": 200, "headers": {"x": "a\r\nb: c"}, "body": ""}),
                json!({"status": 200, "headers": {"a b": "c"}, "body": ""}),
                json!({"status": 200, "headers": {"x": 7}, "body": ""}),
                json!({"status": 200, "headers": {}, "body": {"not": "text"}}),
                json!({"status": 200, "headers": many_fields(), "body": ""}),
            ] {
                let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
                let ((), response) = tokio::join!(
                    async {
                        let request = app.request().await.unwrap();
                        app.answer(&request, wrong.clone()).await;
                    },
                    caller.get("/wrong"),
                );
                let shown: String = wrong.to_string().chars().take(80).collect();
                assert_eq!(response.status(), 502, "{shown}");
                assert!(json(response).await["error"].is_string());
            }
            app.answer(&waiting, ok("unharmed")).await;
        },
        witness.get("/waits"),
    );
    assert_eq!(text(waited).await, "unharmed");
}

/// More header fields than any message may have.
pub(crate) fn many_fields() -> Value {
    let fields = (0..40_000).map(|n| (format!("x-{n}"), json!("")));
    Value::Object(fields.collect())
}

#[tokio::test]
async fn pings_are_answered_with_their_id_in_both_directions() {
    let (relay, mut app, _) = connected().await;
    app.say(&json!({"type": "ping", "id": "p-1", "timestamp": "2026-11-23T08:00:00.000Z"}))
        .await;
    let pong = app.hear().await.unwrap();
    assert_eq!((&pong["type"], &pong["id"]), (&json!("pong"), &json!("p-1")));
    assert!(pong["timestamp"].is_string());
    // The relay's own comes after a while, and measures the round trip.
    let ping = app.hear().await.unwrap();
    assert_eq!(ping["type"], "ping");
    app.pong(&ping).await;
    // Messages keep their order: once this one is answered, that one was read.
    app.say(&json!({"type": "ping", "id": "p-2", "timestamp": ""})).await;
    assert_eq!(app.hear().await.unwrap()["id"], "p-2");
    let app = tokio::spawn(app.work());
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let shown = json(caller.get("/api/bridge").await).await["bridges"][0].clone();
    assert!(shown["roundTripMs"].as_f64().unwrap() > 0.0, "{shown}");
    app.abort();
}

#[tokio::test]
async fn what_is_no_json_or_no_text_ends_the_session_with_its_code() {
    let (relay, app, _caller) = connected().await;
    drop(app);
    for (message, code) in [
        (Message::text("hello"), 1007),
        (Message::text("{\"type\":"), 1007),
        (Message::text(""), 1007),
        (not_utf8(), 1007),
        (Message::binary(vec![1, 2, 3]), 1003),
        (Message::binary(br#"{"type":"ping","id":"1"}"#.to_vec()), 1003),
    ] {
        for trailing in [0, 100] {
            let mut app = App::connect(&relay).await;
            app.0.feed(message.clone()).await.unwrap();
            for _ in 0..trailing {
                app.0.feed(Message::text("{}")).await.unwrap();
            }
            app.0.flush().await.unwrap();
            assert_eq!(app.close_code().await, Some(code), "{message:?}, then {trailing}");
        }
    }
}

/// A text with an octet that no text has.
fn not_utf8() -> Message {
    let kind = OpCode::Data(Data::Text);
    Message::Frame(Frame::message(vec![b'"', 0xff, b'"'], kind, true))
}

#[tokio::test]
async fn a_second_app_of_the_same_user_replaces_the_first() {
    let (relay, mut first, mut caller) = connected().await;
    let calling = tokio::spawn(async move { caller.post("/api/chat", chat()).await });
    first.request().await.unwrap();
    let second = App::connect(&relay).await;
    assert_eq!(first.close_code().await, Some(4002));
    let lost = within("the lost exchange to be told", calling).await.unwrap();
    assert_eq!(lost.status(), 502);
    assert_eq!(lost.headers()["tunnel-error"], "bridge_gone");
    assert_eq!(relay.relay.registry.list("ann").len(), 1);
    let second = tokio::spawn(second.work());
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    chats_are_answered(&mut caller).await;
    second.abort();
}

#[tokio::test]
async fn a_request_waits_for_no_answer_of_an_app_that_left() {
    let (_relay, mut app, mut caller) = connected().await;
    let ((), response) = tokio::join!(
        async {
            app.request().await.unwrap();
            app.0.close(None).await.unwrap();
        },
        caller.send(get("/api/tags")),
    );
    // A GET is asked again, of whoever is there: nobody.
    assert_eq!(response.status(), 503);
}
