//! Anthropic's API as Ollama offers it: `/v1/messages`.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Answer;
use super::clock;
use super::prompt::{Message, Prompt};
use super::reply::{self, Failure};
use crate::transport::Body;

#[derive(Deserialize)]
struct Messages {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    max_tokens: Option<i64>,
    stream: Option<bool>,
}

pub(super) async fn messages(body: &Bytes, pace: Duration) -> Result<Response<Body>, Failure> {
    let request: Messages = reply::parse(body)?;
    let model = reply::known(request.model)?;
    if request.max_tokens.is_none_or(|limit| limit <= 0) {
        return Err(Failure::bad_request("max_tokens is required and must be positive"));
    }
    let messages = request.messages.unwrap_or_default();
    if messages.is_empty() {
        return Err(Failure::bad_request("messages is required"));
    }
    let answer = Answer::new(&Prompt::of_conversation(&messages), request.max_tokens, pace);
    if request.stream == Some(true) {
        let opening = opening(&model, &answer);
        return Ok(reply::events(answer.stream(Some(opening), |answer, word| match word {
            Some(word) => delta(word),
            None => ending(answer),
        })));
    }
    let text = answer.text().await;
    let mut message = message(&model, &json!([{ "type": "text", "text": text }]));
    message["stop_reason"] = json!(stop_reason(&answer));
    message["usage"] = usage(&answer, answer.words());
    Ok(reply::json(&message))
}

fn message(model: &str, content: &Value) -> Value {
    json!({
        "id": clock::unique("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": null,
        "stop_sequence": null,
    })
}

fn opening(model: &str, answer: &Answer) -> String {
    let mut message = message(model, &json!([]));
    message["usage"] = usage(answer, 0);
    let block = json!({ "type": "text", "text": "" });
    event("message_start", json!({ "message": message }))
        + &event("content_block_start", json!({ "index": 0, "content_block": block }))
        + &event("ping", json!({}))
}

fn delta(word: &str) -> String {
    let delta = json!({ "type": "text_delta", "text": word });
    event("content_block_delta", json!({ "index": 0, "delta": delta }))
}

fn ending(answer: &Answer) -> String {
    let delta = json!({ "stop_reason": stop_reason(answer), "stop_sequence": null });
    let usage = usage(answer, answer.words());
    event("content_block_stop", json!({ "index": 0 }))
        + &event("message_delta", json!({ "delta": delta, "usage": usage }))
        + &event("message_stop", json!({}))
}

/// An event's name stands twice: in its own line, and as the data's `type`.
fn event(name: &str, mut data: Value) -> String {
    data["type"] = json!(name);
    format!("event: {name}\ndata: {data}\n\n")
}

fn stop_reason(answer: &Answer) -> &'static str {
    if answer.complete() { "end_turn" } else { "max_tokens" }
}

fn usage(answer: &Answer, words: usize) -> Value {
    json!({ "input_tokens": answer.prompt_words(), "output_tokens": words })
}

pub(super) fn failed(failure: &Failure) -> Response<Body> {
    let error = json!({ "type": failure.kind(), "message": failure.message });
    reply::json_with_status(failure.status, &json!({ "type": "error", "error": error }))
}
