//! Responses in the few shapes the APIs have, and the failure that each API words in its own way.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::MODEL;
use crate::transport::Body;

/// Why a request gets no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, message }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The kind of failure, in the words OpenAI and Anthropic share.
    pub(super) fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::NOT_FOUND => "not_found_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        }
    }
}

/// Reads a request's JSON.
pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    if body.is_empty() {
        return Err(Failure::bad_request("missing request body"));
    }
    serde_json::from_slice(body).map_err(|error| Failure::bad_request(error.to_string()))
}

/// The name the caller used for the model, if it is the one there is.
pub(super) fn known(name: Option<String>) -> Result<String, Failure> {
    let name = name.unwrap_or_default();
    if name.is_empty() {
        return Err(Failure::bad_request("model is required"));
    }
    if name == MODEL || MODEL.strip_suffix(":latest") == Some(name.as_str()) {
        return Ok(name);
    }
    Err(Failure::new(StatusCode::NOT_FOUND, format!("model '{name}' not found")))
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    with_status(status, whole(Bytes::new()))
}

pub(super) fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    typed(
        status,
        "text/plain; charset=utf-8",
        whole(Bytes::from_static(text.as_bytes())),
    )
}

pub(super) fn json(value: &Value) -> Response<Body> {
    json_with_status(StatusCode::OK, value)
}

pub(super) fn json_with_status(status: StatusCode, value: &Value) -> Response<Body> {
    typed(
        status,
        "application/json; charset=utf-8",
        whole(Bytes::from(value.to_string())),
    )
}

/// One JSON value a line, as Ollama streams.
pub(super) fn lines(body: Body) -> Response<Body> {
    typed(StatusCode::OK, "application/x-ndjson", body)
}

/// Server-sent events, as OpenAI and Anthropic stream.
pub(super) fn events(body: Body) -> Response<Body> {
    let mut response = typed(StatusCode::OK, "text/event-stream", body);
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn typed(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = with_status(status, body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn with_status(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
