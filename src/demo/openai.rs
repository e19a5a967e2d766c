//! OpenAI's API as Ollama offers it, `/v1/…`: chat, completions, embeddings and the list of models.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, embedding};
use super::prompt::{self, Message, Prompt, Text};
use super::reply::{self, Failure};
use super::{MODEL, clock};
use crate::transport::Body;

/// 2026-01-01, the model's date.
const CREATED: u64 = 1_767_225_600;

#[derive(Deserialize)]
struct Chat {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    #[serde(flatten)]
    manner: Manner,
}

#[derive(Deserialize)]
struct Completion {
    model: Option<String>,
    prompt: Option<Text>,
    #[serde(flatten)]
    manner: Manner,
}

/// How a caller wants its answer.
#[derive(Deserialize)]
struct Manner {
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Embeddings {
    model: Option<String>,
    input: Option<Text>,
    encoding_format: Option<String>,
}

pub(super) fn models() -> Response<Body> {
    reply::json(&json!({ "object": "list", "data": [entry(MODEL)] }))
}

pub(super) fn model(name: &str) -> Result<Response<Body>, Failure> {
    let name = name.replace("%3A", ":").replace("%3a", ":");
    Ok(reply::json(&entry(&reply::known(Some(name))?)))
}

fn entry(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": CREATED, "owned_by": "library" })
}

pub(super) async fn chat(body: &Bytes, pace: Duration) -> Result<Response<Body>, Failure> {
    let request: Chat = reply::parse(body)?;
    let messages = request.messages.unwrap_or_default();
    if messages.is_empty() {
        return Err(Failure::bad_request("[] is too short - 'messages'"));
    }
    let sheet = Sheet::new(reply::known(request.model)?, Shape::Chat);
    Ok(request
        .manner
        .answer(sheet, &Prompt::of_conversation(&messages), pace)
        .await)
}

pub(super) async fn completions(body: &Bytes, pace: Duration) -> Result<Response<Body>, Failure> {
    let request: Completion = reply::parse(body)?;
    let prompt = request.prompt.as_ref().map(Prompt::of_text).unwrap_or_default();
    let sheet = Sheet::new(reply::known(request.model)?, Shape::Completion);
    Ok(request.manner.answer(sheet, &prompt, pace).await)
}

impl Manner {
    async fn answer(self, sheet: Sheet, prompt: &Prompt, pace: Duration) -> Response<Body> {
        let answer = Answer::new(prompt, self.max_completion_tokens.or(self.max_tokens), pace);
        if self.stream != Some(true) {
            let text = answer.text().await;
            return reply::json(&sheet.whole(&text, &answer));
        }
        let counted = self.stream_options.and_then(|options| options.include_usage) == Some(true);
        reply::events(answer.stream(None, move |answer, word| match word {
            Some(word) => event(&sheet.chunk(word, None)),
            None => sheet.end(answer, counted),
        }))
    }
}

#[derive(Clone, Copy)]
enum Shape {
    Chat,
    Completion,
}

/// What all chunks of one answer share.
struct Sheet {
    id: String,
    model: String,
    created: u64,
    shape: Shape,
}

impl Sheet {
    fn new(model: String, shape: Shape) -> Self {
        let prefix = match shape {
            Shape::Chat => "chatcmpl-",
            Shape::Completion => "cmpl-",
        };
        Self {
            id: clock::unique(prefix),
            model,
            created: clock::unix_seconds(),
            shape,
        }
    }

    fn page(&self, object: &str, choices: &Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": "fp_ollama",
            "choices": choices,
        })
    }

    fn whole(&self, text: &str, answer: &Answer) -> Value {
        let reason = answer.reason();
        let mut page = match self.shape {
            Shape::Chat => {
                let message = json!({ "role": "assistant", "content": text });
                let choice = json!({ "index": 0, "message": message, "finish_reason": reason });
                self.page("chat.completion", &json!([choice]))
            }
            Shape::Completion => {
                let choice = json!({ "index": 0, "text": text, "finish_reason": reason });
                self.page("text_completion", &json!([choice]))
            }
        };
        page["usage"] = usage(answer);
        page
    }

    fn chunk(&self, text: &str, reason: Option<&str>) -> Value {
        let mut choice = json!({ "index": 0, "finish_reason": reason });
        match self.shape {
            Shape::Chat => choice["delta"] = json!({ "role": "assistant", "content": text }),
            Shape::Completion => choice["text"] = json!(text),
        }
        self.page(self.object(), &json!([choice]))
    }

    fn end(&self, answer: &Answer, counted: bool) -> String {
        let mut end = event(&self.chunk("", Some(answer.reason())));
        if counted {
            let mut page = self.page(self.object(), &json!([]));
            page["usage"] = usage(answer);
            end += &event(&page);
        }
        end + "data: [DONE]\n\n"
    }

    /// What a chunk calls itself.
    fn object(&self) -> &'static str {
        match self.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Completion => "text_completion",
        }
    }
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn usage(answer: &Answer) -> Value {
    json!({
        "prompt_tokens": answer.prompt_words(),
        "completion_tokens": answer.words(),
        "total_tokens": answer.prompt_words() + answer.words(),
    })
}

pub(super) fn embeddings(body: &Bytes) -> Result<Response<Body>, Failure> {
    let request: Embeddings = reply::parse(body)?;
    let texts = request.input.as_ref().map(Text::pieces).unwrap_or_default();
    if texts.is_empty() {
        return Err(Failure::bad_request("invalid input"));
    }
    let model = reply::known(request.model)?;
    let packed = match request.encoding_format.as_deref() {
        None | Some("" | "float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Failure::bad_request(format!("invalid encoding_format '{other}'")));
        }
    };
    let vector = |text: &str| {
        if packed {
            json!(pack(&embedding(text)))
        } else {
            json!(embedding(text))
        }
    };
    let data: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| json!({ "object": "embedding", "index": index, "embedding": vector(text) }))
        .collect();
    let words: usize = texts.iter().map(|text| prompt::count(text)).sum();
    Ok(reply::json(&json!({
        "object": "list",
        "data": data,
        "model": model,
        "usage": { "prompt_tokens": words, "total_tokens": words },
    })))
}

/// Little-endian 32-bit floats in base64: what OpenAI's own clients ask for unless told otherwise.
fn pack(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|component| component.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

pub(super) fn failed(failure: &Failure) -> Response<Body> {
    let error = json!({ "message": failure.message, "type": failure.kind(), "param": null, "code": null });
    reply::json_with_status(failure.status, &json!({ "error": error }))
}
