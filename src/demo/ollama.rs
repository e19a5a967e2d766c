//! Ollama's own API, `/api/…`: JSON in, one JSON value or a stream of JSON lines out.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, embedding};
use super::prompt::{self, Message, Prompt, Text};
use super::reply::{self, Failure};
use super::{MODEL, clock};
use crate::transport::Body;

/// The Ollama whose behaviour this is.
const VERSION: &str = "0.17.1";

const DIGEST: &str = "64656d6f64656d6f64656d6f64656d6f64656d6f64656d6f64656d6f64656d6f";
const MODIFIED: &str = "2026-01-01T00:00:00.000000Z";
const SIZE: u64 = 4096;
const CONTEXT: u64 = 8192;

/// How long Ollama keeps a model loaded unless told otherwise.
const KEEP_ALIVE: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
struct Chat {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    #[serde(flatten)]
    manner: Manner,
}

#[derive(Deserialize)]
struct Generate {
    model: Option<String>,
    prompt: Option<String>,
    #[serde(flatten)]
    manner: Manner,
}

/// How a caller wants its answer.
#[derive(Deserialize)]
struct Manner {
    stream: Option<bool>,
    options: Option<Options>,
    keep_alive: Option<Value>,
}

#[derive(Deserialize)]
struct Options {
    num_predict: Option<i64>,
}

#[derive(Deserialize)]
struct Embed {
    model: Option<String>,
    input: Option<Text>,
}

#[derive(Deserialize)]
struct Embeddings {
    model: Option<String>,
    prompt: Option<String>,
}

#[derive(Deserialize)]
struct Show {
    model: Option<String>,
    name: Option<String>,
}

pub(super) fn version() -> Response<Body> {
    reply::json(&json!({ "version": VERSION }))
}

pub(super) fn tags() -> Response<Body> {
    reply::json(&json!({ "models": [{
        "name": MODEL,
        "model": MODEL,
        "modified_at": MODIFIED,
        "size": SIZE,
        "digest": DIGEST,
        "details": details(),
    }] }))
}

pub(super) fn running() -> Response<Body> {
    reply::json(&json!({ "models": [{
        "name": MODEL,
        "model": MODEL,
        "size": SIZE,
        "digest": DIGEST,
        "details": details(),
        "expires_at": clock::from_now(KEEP_ALIVE),
        "size_vram": 0,
        "context_length": CONTEXT,
    }] }))
}

pub(super) fn show(body: &Bytes) -> Result<Response<Body>, Failure> {
    let request: Show = reply::parse(body)?;
    reply::known(request.model.or(request.name))?;
    Ok(reply::json(&json!({
        "license": "MIT OR Apache-2.0",
        "modelfile": format!("FROM {MODEL}\nTEMPLATE {{{{ .Prompt }}}}\n"),
        "parameters": format!("num_ctx {CONTEXT}"),
        "template": "{{ .Prompt }}",
        "details": details(),
        "model_info": {
            "general.architecture": "demo",
            "general.basename": "demo",
            "general.parameter_count": 0,
            "demo.context_length": CONTEXT,
            "demo.embedding_length": embedding("").len(),
        },
        "capabilities": ["completion", "embedding"],
        "modified_at": MODIFIED,
    })))
}

fn details() -> Value {
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": "demo",
        "families": ["demo"],
        "parameter_size": "0",
        "quantization_level": "F32",
    })
}

pub(super) async fn generate(body: &Bytes, pace: Duration) -> Result<Response<Body>, Failure> {
    let request: Generate = reply::parse(body)?;
    let model = reply::known(request.model)?;
    let prompt = request.prompt.unwrap_or_default();
    if prompt.is_empty() {
        return Ok(request.manner.load(&model, Shape::Generate));
    }
    let prompt = Prompt::of_text(&Text::One(prompt));
    Ok(request.manner.answer(model, &prompt, Shape::Generate, pace).await)
}

pub(super) async fn chat(body: &Bytes, pace: Duration) -> Result<Response<Body>, Failure> {
    let request: Chat = reply::parse(body)?;
    let model = reply::known(request.model)?;
    let messages = request.messages.unwrap_or_default();
    if messages.is_empty() {
        return Ok(request.manner.load(&model, Shape::Chat));
    }
    let prompt = Prompt::of_conversation(&messages);
    Ok(request.manner.answer(model, &prompt, Shape::Chat, pace).await)
}

impl Manner {
    /// A question without words only loads the model, or unloads it.
    fn load(&self, model: &str, shape: Shape) -> Response<Body> {
        let unload = self.keep_alive.as_ref().is_some_and(|keep| *keep == 0 || *keep == "0");
        let mut line = shape.line(model, "");
        line["done"] = json!(true);
        line["done_reason"] = json!(if unload { "unload" } else { "load" });
        reply::json(&line)
    }

    async fn answer(self, model: String, prompt: &Prompt, shape: Shape, pace: Duration) -> Response<Body> {
        let limit = self.options.and_then(|options| options.num_predict);
        let answer = Answer::new(prompt, limit, pace);
        if self.stream == Some(false) {
            let text = answer.text().await;
            return reply::json(&shape.last(&model, &text, &answer));
        }
        reply::lines(answer.stream(None, move |answer, word| {
            let line = match word {
                Some(word) => shape.line(&model, word),
                None => shape.last(&model, "", answer),
            };
            format!("{line}\n")
        }))
    }
}

/// Where a line carries its text.
#[derive(Clone, Copy)]
enum Shape {
    Chat,
    Generate,
}

impl Shape {
    fn line(self, model: &str, text: &str) -> Value {
        let mut line = json!({ "model": model, "created_at": clock::now(), "done": false });
        match self {
            Self::Chat => line["message"] = json!({ "role": "assistant", "content": text }),
            Self::Generate => line["response"] = json!(text),
        }
        line
    }

    fn last(self, model: &str, text: &str, answer: &Answer) -> Value {
        let mut line = self.line(model, text);
        let (total, lead) = (answer.elapsed(), answer.lead());
        line["done"] = json!(true);
        line["done_reason"] = json!(answer.reason());
        line["total_duration"] = nanos(total);
        line["load_duration"] = nanos(Duration::ZERO);
        line["prompt_eval_count"] = json!(answer.prompt_words());
        line["prompt_eval_duration"] = nanos(lead);
        line["eval_count"] = json!(answer.words());
        line["eval_duration"] = nanos(total.saturating_sub(lead));
        line
    }
}

/// A duration as Ollama writes it, never zero: callers divide by it.
fn nanos(duration: Duration) -> Value {
    json!(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1))
}

pub(super) fn embed(body: &Bytes) -> Result<Response<Body>, Failure> {
    let request: Embed = reply::parse(body)?;
    let model = reply::known(request.model)?;
    let texts = request.input.as_ref().map(Text::pieces).unwrap_or_default();
    let vectors: Vec<_> = texts.iter().map(|text| embedding(text)).collect();
    Ok(reply::json(&json!({
        "model": model,
        "embeddings": vectors,
        "total_duration": nanos(Duration::ZERO),
        "load_duration": nanos(Duration::ZERO),
        "prompt_eval_count": texts.iter().map(|text| prompt::count(text)).sum::<usize>(),
    })))
}

pub(super) fn embeddings(body: &Bytes) -> Result<Response<Body>, Failure> {
    let request: Embeddings = reply::parse(body)?;
    reply::known(request.model)?;
    let vector = match request.prompt.unwrap_or_default() {
        prompt if prompt.is_empty() => Vec::new(),
        prompt => embedding(&prompt),
    };
    Ok(reply::json(&json!({ "embedding": vector })))
}

pub(super) fn failed(failure: &Failure) -> Response<Body> {
    reply::json_with_status(failure.status, &json!({ "error": failure.message }))
}
