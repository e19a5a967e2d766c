//! What can go wrong at the relay, and the one place that gives it a status and a body (protocol.md section 1).

use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::json;

use crate::transport::headers::TUNNEL_ERROR;
use crate::transport::{Body, ExchangeError, full};

/// The codes of the header `Tunnel-Error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request cannot be understood, or contradicts itself.
    BadRequest,
    /// No token, or one that is not accepted.
    Unauthorized,
    /// A token without the scope needed.
    Forbidden,
    /// A path of ours that does not exist.
    NotFound,
    /// No bridge is connected.
    NoBridge,
    /// The bridge was lost during the exchange.
    BridgeGone,
    /// Ollama is not running on the desktop.
    UpstreamUnreachable,
    /// The bridge does not expose this.
    Policy,
    /// More requests in a time than a token may make.
    RateLimited,
    /// Nothing moved for too long.
    Timeout,
    /// Too much at once.
    Overloaded,
    /// The relay is stopping.
    Draining,
    /// The body is larger than allowed.
    TooLarge,
    /// What a bridge brings has no taker any more.
    Gone,
    /// Another process of the same bridge took over.
    Replaced,
    /// A part of an answer for which the caller has no room yet: the same again, at once.
    NoRoom,
    /// A WebSocket was expected here.
    UpgradeRequired,
    /// The transport of this bridge cannot carry it.
    NotImplemented,
}

impl Code {
    /// As it stands in the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::NoBridge => "no_bridge",
            Self::BridgeGone => "bridge_gone",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::Policy => "policy",
            Self::RateLimited => "rate_limited",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::TooLarge => "too_large",
            Self::Gone => "gone",
            Self::Replaced => "replaced",
            Self::NoRoom => "no_room",
            Self::UpgradeRequired => "upgrade_required",
            Self::NotImplemented => "not_implemented",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::Policy => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::NoBridge | Self::Overloaded | Self::Draining | Self::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
            Self::BridgeGone | Self::UpstreamUnreachable => StatusCode::BAD_GATEWAY,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Gone => StatusCode::GONE,
            Self::Replaced => StatusCode::CONFLICT,
            Self::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        }
    }

    fn retry_after(self) -> Option<Duration> {
        match self {
            Self::NoBridge | Self::Draining => Some(Duration::from_secs(5)),
            Self::Timeout | Self::Overloaded | Self::RateLimited => Some(Duration::from_secs(1)),
            Self::NoRoom => Some(Duration::ZERO),
            _ => None,
        }
    }

    /// The `type` that Anthropic's clients know.
    fn anthropic_type(self) -> &'static str {
        match self {
            Self::BadRequest => "invalid_request_error",
            Self::Unauthorized => "authentication_error",
            Self::Forbidden | Self::Policy => "permission_error",
            Self::NotFound => "not_found_error",
            Self::TooLarge => "request_too_large",
            Self::RateLimited => "rate_limit_error",
            Self::Overloaded | Self::Draining => "overloaded_error",
            _ => "api_error",
        }
    }

    /// The `type` that OpenAI's clients know.
    fn openai_type(self) -> &'static str {
        match self {
            Self::Unauthorized => "authentication_error",
            Self::Forbidden | Self::Policy => "permission_error",
            Self::BadRequest | Self::NotFound | Self::TooLarge => "invalid_request_error",
            Self::RateLimited => "rate_limit_error",
            _ => "server_error",
        }
    }
}

/// An error; its code and detail may be seen by the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", .code.as_str())]
pub struct Error {
    /// What kind it is.
    pub code: Code,
    /// What happened and what to do, in one or two lines.
    pub detail: String,
    /// Why, for the log only.
    pub reason: Option<&'static str>,
    /// When it makes sense to try again, if that is known better than from the code.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// An error with its words for the person.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            reason: None,
            retry_after: None,
        }
    }

    /// Says when it makes sense to try again.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Adds what only the log may tell.
    pub fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Tells the log of it.
    pub fn tell(&self, id: &HeaderValue, peer: &str, method: &Method, path: &str) {
        match self.reason {
            Some(reason) => tracing::info!(?id, %peer, %method, path, reason, "refused"),
            None => tracing::debug!(?id, %peer, %method, path, error = %self, "refused"),
        }
    }

    /// A path of ours that is not there.
    pub fn not_found() -> Self {
        Self::new(
            Code::NotFound,
            "the relay keeps this path for itself, and there is nothing at it",
        )
    }

    /// The answer, in the shape that the client of that path parses.
    pub fn into_response(self, shape: Shape) -> Response<Body> {
        let body = match shape {
            Shape::Plain => json!({"error": self.detail}),
            Shape::OpenAi => json!({"error": {
                "message": self.detail,
                "type": self.code.openai_type(),
                "param": null,
                "code": self.code.as_str(),
            }}),
            Shape::Anthropic => json!({"type": "error", "error": {
                "type": self.code.anthropic_type(),
                "message": self.detail,
            }}),
        };
        let mut response = Response::new(full(body.to_string()));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(TUNNEL_ERROR, HeaderValue::from_static(self.code.as_str()));
        if let Some(after) = self.retry_after.or(self.code.retry_after()) {
            // Whole seconds, and none too few.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if self.code == Code::UpgradeRequired {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        if self.code == Code::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tunnel\""));
        }
        response
    }
}

/// How the clients of a path read an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Ollama's: `{"error": text}`.
    Plain,
    /// OpenAI's.
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

impl Shape {
    /// The shape for a path, wherever below a prefix it stands.
    pub fn of(path: &str) -> Self {
        match path.find("/v1/") {
            Some(at) if path[at..].starts_with("/v1/messages") => Self::Anthropic,
            Some(_) => Self::OpenAi,
            None => Self::Plain,
        }
    }
}

impl From<ExchangeError> for Error {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Refused { code, detail } => refused(&code, &detail),
            ExchangeError::Overloaded => Self::new(
                Code::Overloaded,
                "this desktop has as many requests in flight as it takes; try again in a moment",
            ),
            ExchangeError::Protocol(_) => Self::new(Code::BridgeGone, "the bridge's answer could not be read"),
            ExchangeError::Gone(_) | ExchangeError::NotSent(_) | ExchangeError::Unreachable(_) => Self::new(
                Code::BridgeGone,
                "the desktop's bridge was lost before it answered; it will connect again by itself",
            ),
        }
    }
}

fn refused(code: &str, detail: &str) -> Error {
    let code = match code {
        "policy" => Code::Policy,
        "bad_request" => Code::BadRequest,
        "overloaded" => Code::Overloaded,
        "upstream_unreachable" => Code::UpstreamUnreachable,
        "too_large" => Code::TooLarge,
        "timeout" => Code::Timeout,
        "not_implemented" => Code::NotImplemented,
        _ => Code::BridgeGone,
    };
    let detail = if detail.is_empty() {
        "the desktop's bridge could not carry out the request".to_owned()
    } else {
        detail.chars().take(300).collect()
    };
    Error::new(code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn every_client_finds_the_error_where_it_looks() {
        for (path, pointer) in [
            ("/api/chat", "/error"),
            ("/v1/chat/completions", "/error/message"),
            ("/b/box/v1/models", "/error/message"),
            ("/v1/messages", "/error/message"),
        ] {
            let response = Error::new(Code::NoBridge, "no").into_response(Shape::of(path));
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()[TUNNEL_ERROR], "no_bridge");
            assert!(response.headers().contains_key(RETRY_AFTER));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body.pointer(pointer).unwrap(), "no", "{path}");
        }
    }
}
