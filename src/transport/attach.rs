//! How a bridge introduces itself to a relay, whatever the transport, and why it may not be connected.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use hyper::body::Incoming;

use super::collect;
use super::dial::DialError;
use super::headers::TUNNEL_ERROR;
use crate::token::Secret;

/// What a bridge says of itself when it connects (protocol.md section 2, "Who it is").
#[derive(Debug, Clone)]
pub struct Hello {
    /// The credential.
    pub token: Secret,
    /// Random, made once for this installation.
    pub client_id: String,
    /// Random, made for this process.
    pub instance: String,
    /// The name wished for.
    pub name: String,
    /// The higher, the sooner it gets work that names no bridge.
    pub priority: i32,
    /// Whether it is reachable by name only.
    pub ephemeral: bool,
}

/// What the relay answered.
#[derive(Debug, Clone)]
pub struct Welcome {
    /// The name it got.
    pub name: String,
    /// The transports the relay offers, the one it prefers first; empty if it did not say.
    pub transports: Vec<String>,
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The relay could not be reached at all.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The relay itself said no, in a `Tunnel-Error`.
    #[error("the relay refused ({code}): {detail}")]
    Refused {
        /// The status of its answer.
        status: StatusCode,
        /// The code in `Tunnel-Error`.
        code: String,
        /// What it said.
        detail: String,
        /// When it asks to be asked again.
        retry_after: Option<Duration>,
    },
    /// Something answered, and it was no WebSocket.
    #[error("WebSocket blocked: the proxy answered {} instead of 101", .status.as_u16())]
    NotUpgraded {
        /// What it answered.
        status: StatusCode,
        /// When it asks to be asked again.
        retry_after: Option<Duration>,
    },
    /// The answer was no proper upgrade.
    #[error("WebSocket blocked: the answer to its upgrade is wrong: {0}")]
    Handshake(String),
    /// The connection broke during the handshake.
    #[error("WebSocket blocked: {0} during its upgrade")]
    Broken(String),
    /// The relay, or the way to it, gave out.
    #[error("the relay cannot be reached: {0}")]
    Lost(String),
    /// Polling was answered by something else than a relay.
    #[error("what answers at this address is no relay: {0}")]
    NoRelay(String),
}

impl ConnectError {
    /// The same for somebody who is connected by polling instead.
    pub fn why_not_websocket(&self) -> String {
        match self {
            Self::Refused { code, .. } if code == "upgrade_required" => {
                "WebSocket blocked: a proxy removed the Upgrade header".to_owned()
            }
            Self::Refused { code, .. } if code == "not_found" => "the relay offers no WebSocket".to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether the relay itself refuses the token: anything else may pass.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused { status, code, .. }
            if matches!((status.as_u16(), code.as_str()), (401, "unauthorized") | (403, "forbidden")))
    }

    /// Whether another transport may get through where this one did not.
    pub fn is_of_transport(&self) -> bool {
        match self {
            Self::NotUpgraded { .. } | Self::Handshake(_) | Self::Broken(_) => true,
            Self::Refused { code, .. } => matches!(code.as_str(), "not_found" | "upgrade_required"),
            Self::Dial(_) | Self::NoRelay(_) | Self::Lost(_) => false,
        }
    }
}

/// The relay's own refusal, if the response is one.
pub(super) async fn refusal(response: Response<Incoming>) -> Result<ConnectError, Response<Incoming>> {
    let Some(code) = text(response.headers(), &TUNNEL_ERROR) else {
        return Err(response);
    };
    Ok(ConnectError::Refused {
        status: response.status(),
        code,
        retry_after: retry_after(response.headers()),
        detail: detail(response).await,
    })
}

/// How long the other side asks to be left alone.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, &RETRY_AFTER)?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// A header's value as text.
pub(super) fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The sentence in the relay's error body, at most 4 KiB of it, waited for at most a second.
async fn detail(response: Response<Incoming>) -> String {
    let body = collect(response.into_body(), 4096);
    let Ok(Some(body)) = tokio::time::timeout(Duration::from_secs(1), body).await else {
        return String::new();
    };
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    parsed
        .and_then(|value| value.get("error")?.as_str().map(str::to_owned))
        .unwrap_or_default()
}
