//! The seam of the product: an exchange carries one HTTP request somewhere and brings its response back.
//!
//! Everything below knows HTTP and bytes, never users or storage. Neighbours: `relay` and `bridge` stand on this module and
//! never on each other.

pub mod attach;
pub mod backoff;
pub mod dial;
pub mod expect;
pub mod headers;
pub mod http1;
pub mod idle;
pub mod issuer;
pub mod json;
pub mod pace;
pub mod path;
pub(crate) mod plain_or_tls;
pub mod poll;
pub mod socket;
pub mod told;
pub mod upgrade;
pub mod usage;
pub mod ws;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Empty};

use self::told::Told;

/// Any error that can travel inside a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed body: bytes and trailers as they come, never collected on the way.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// Carries a request to where it is answered, and the answer back.
///
/// What every implementor promises:
/// - bodies stream both ways and are never collected; a slow reader slows the sender down (back-pressure);
/// - dropping the future, or the response with its body, cancels the exchange all the way to the upstream;
/// - an error after the response head ends the body with an error, so the caller sees a broken body and never a silently
///   short one;
/// - a `101` response carries its upgraded connection in the extensions (see [`upgrade`]).
pub trait Exchange: Send + Sync {
    /// Sends the request and resolves with the response head; both bodies may still be under way.
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, ExchangeError>>;
}

/// The relay's handle to one connected bridge, whatever the transport.
pub trait Link: Exchange {
    /// Whether exchanges can still be carried.
    fn is_alive(&self) -> bool;
    /// How long nothing has been heard from the bridge.
    fn silence(&self) -> Duration;
    /// The newest measure of the round trip; none before the first.
    fn round_trip(&self) -> Option<Duration>;
    /// Asks for a sign of life; without one in time, a link that can tell ends. Called when a newer link of the same bridge is
    /// there: the older may be dead without knowing.
    fn doubt(&self);
    /// Calls it once the bridge was told of whatever it is to be told now; drops it if there is nothing, or no way to tell.
    fn when_told(&self, told: Told) {
        drop(told);
    }
    /// Ends the link: what is in flight fails at once.
    fn end(&self, ending: Ending);
}

/// The longest name of a bridge, characters.
pub const LONGEST_BRIDGE_NAME: usize = 64;

/// Whether a bridge's name may have this character (protocol.md section 2).
pub fn is_bridge_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Whether a bridge may have this name.
pub fn is_bridge_name(name: &str) -> bool {
    (1..=LONGEST_BRIDGE_NAME).contains(&name.len()) && name.chars().all(is_bridge_name_character)
}

/// Why the relay ends a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is left to do on it.
    Done,
    /// The relay goes away; the bridge connects anew.
    GoingAway,
    /// The token ended or was revoked.
    TokenEnded,
    /// Another process with the same client id took over.
    Replaced,
}

/// Why an exchange brought no response.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The other end was lost before it answered.
    #[error("the connection was lost: {0}")]
    Gone(String),
    /// The other end was lost before anything of the request reached it: the request may be sent elsewhere.
    #[error("the connection was lost before the request was sent")]
    NotSent(Box<Request<Body>>),
    /// Nothing can be connected to, where the request should go.
    #[error("nothing answers: {0}")]
    Unreachable(String),
    /// More exchanges are under way than the other end takes.
    #[error("too many exchanges at once")]
    Overloaded,
    /// The other end refused, with a code of the protocol (`Tunnel-Error`) and a detail for the person.
    #[error("refused ({code}): {detail}")]
    Refused {
        /// The code as it stood in the `Tunnel-Error` header.
        code: String,
        /// One sentence that may be shown to the caller.
        detail: String,
    },
    /// The other end broke the rules of HTTP.
    #[error("protocol error: {0}")]
    Protocol(String),
}

/// A body with nothing in it.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is all at hand.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Sliced::new(bytes).boxed_unsync()
}

/// A body that is all at hand and handed over in slices: hyper copies what it gets at once into a buffer that its connection
/// keeps.
#[derive(Debug, Clone, Default)]
pub struct Sliced(Bytes);

/// What is handed over at once, octets.
const SLICE: usize = 16 * 1024;

impl Sliced {
    /// A body of these octets.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The next slice; none at the end.
    pub fn next_slice(&mut self) -> Option<Bytes> {
        let length = self.0.len().min(SLICE);
        (length > 0).then(|| self.0.split_to(length))
    }
}

impl http_body::Body for Sliced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.next_slice().map(|slice| Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

/// All of a small body; none if it breaks or has more than `most` octets.
pub async fn collect<B>(mut body: B, most: usize) -> Option<Bytes>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            if collected.len() + data.len() > most {
                return None;
            }
            collected.extend_from_slice(&data);
        }
    }
    Some(collected.freeze())
}

/// The head by which a bridge tells the relay that an exchange failed (protocol.md section 1: bridges report errors by
/// header, only the relay writes bodies).
pub fn refusal(error: &ExchangeError) -> Response<Body> {
    let (code, detail) = match error {
        ExchangeError::Refused { code, detail } => (code.as_str(), detail.clone()),
        ExchangeError::Unreachable(_) => (
            "upstream_unreachable",
            "Ollama is not running on the desktop; start it there and try again".to_owned(),
        ),
        ExchangeError::Gone(_) | ExchangeError::NotSent(_) => (
            "upstream_unreachable",
            "the local server closed the connection before it answered".to_owned(),
        ),
        ExchangeError::Overloaded => ("overloaded", error.to_string()),
        ExchangeError::Protocol(_) => (
            "upstream_unreachable",
            "the local server's answer is no HTTP".to_owned(),
        ),
    };
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    for (name, value) in [
        (headers::TUNNEL_ERROR, code),
        (headers::TUNNEL_ERROR_DETAIL, detail.as_str()),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Turns such a head back into the error it tells of; any other response passes.
///
/// # Errors
/// [`ExchangeError::Refused`] for a response with a `Tunnel-Error`.
pub fn accept(response: Response<Body>) -> Result<Response<Body>, ExchangeError> {
    let text = |name| {
        let value: Option<&HeaderValue> = response.headers().get(name);
        value.and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    match text(headers::TUNNEL_ERROR) {
        None => Ok(response),
        Some(code) => Err(ExchangeError::Refused {
            code,
            detail: text(headers::TUNNEL_ERROR_DETAIL).unwrap_or_default(),
        }),
    }
}
