//! The deployment that is looked at: where it is, what may be asked of it, and how an answer is read.

use std::convert::Infallible;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::LOCATION;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::remedy::{Cause, Fronts};
use super::report::{Board, Verdict};
use crate::cmd::rig::caller::{Answer, CallError, Caller};
use crate::token::Secret;
use crate::transport::dial::{Dialer, RelayUrl};
use crate::transport::headers::TUNNEL_ERROR;
use crate::transport::{Body, empty};

/// The most that is read of a small answer.
pub(super) const SMALL: usize = 1024 * 1024;

/// Between two looks whether this program is kept from running.
const TICK: Duration = Duration::from_millis(10);

/// What the checks share.
pub(super) struct Site {
    pub(super) relay: RelayUrl,
    pub(super) dialer: Dialer,
    /// Nobody yet: add a token.
    pub(super) stranger: Caller,
    pub(super) token: Secret,
    /// The token for callers' requests, where it is another.
    pub(super) api_token: Option<Secret>,
    pub(super) expired_token: Option<Secret>,
    pub(super) board: Board,
    pub(super) fronts: Fronts,
    /// How long a small request takes.
    pub(super) trip: OnceLock<Duration>,
    /// The longest time that this program was kept waiting for the processor, microseconds.
    pub(super) stall_us: AtomicU64,
    /// Those who have to tell the relay that they end.
    pub(super) goodbyes: TaskTracker,
}

impl Site {
    /// A caller with the token for requests.
    pub(super) fn caller(&self) -> Caller {
        self.stranger.with_token(self.api_token.as_ref().unwrap_or(&self.token))
    }

    /// A caller with the bridge's token.
    pub(super) fn owner(&self) -> Caller {
        self.stranger.with_token(&self.token)
    }

    /// Asks, and waits as long as a check may take.
    pub(super) async fn ask(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Answer, CallError> {
        let limit = self.board.limit();
        let answered = timeout(limit, caller.fetch(method, path, headers, body, SMALL)).await;
        answered.unwrap_or(Err(CallError::Silent(limit)))
    }

    /// How long a small request to the relay took; nothing before the first.
    pub(super) fn trip(&self) -> Duration {
        self.trip.get().copied().unwrap_or_default()
    }

    /// A GET with nothing besides.
    pub(super) async fn get(&self, caller: &Caller, path: &str) -> Result<Answer, CallError> {
        self.ask(caller, Method::GET, path, HeaderMap::new(), empty()).await
    }

    /// Notes how long this program is kept from running, which would look like something on the way; never ends.
    pub(super) async fn note_stalls(&self) -> Infallible {
        loop {
            let began = Instant::now();
            sleep(TICK).await;
            let stall = began.elapsed().saturating_sub(TICK);
            self.stall_us.fetch_max(stall.as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// The longest time so far that this program was kept from running.
    pub(super) fn stall(&self) -> Duration {
        Duration::from_micros(self.stall_us.load(Ordering::Relaxed))
    }

    /// What there is to be done about a cause.
    pub(super) fn remedy(&self, cause: Cause) -> String {
        let below_a_prefix = self.relay.path("/") != "/";
        if below_a_prefix && matches!(cause, Cause::NotRouted | Cause::PathChanged) {
            return "give the relay a host name of its own: below a path, proxies rewrite what they pass on".to_owned();
        }
        self.fronts.remedy(cause)
    }

    /// The verdict on an answer that is not the one wanted: the relay's own words, or what the status of somebody else means.
    pub(super) fn unexpected(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Verdict {
        if let Some(code) = code(headers) {
            let seen = format!("the relay answered {} ({code}): {}", status.as_u16(), detail(body));
            return Verdict::fail(seen, own_remedy(&code));
        }
        let seen = format!("{} from something before the relay", told(status));
        if let (true, Some(location)) = (status.is_redirection(), headers.get(LOCATION)) {
            let location = String::from_utf8_lossy(location.as_bytes());
            return Verdict::fail(
                format!("{seen}, to {location}"),
                "use the address it leads to as --relay",
            );
        }
        let cause = match status.as_u16() {
            401 | 407 => Cause::NoAuthorization,
            400 | 403 | 431 => Cause::Refused,
            404 | 405 => Cause::NotRouted,
            413 => Cause::BodyLimit,
            408 | 504 | 524 => Cause::ReadTimeout,
            429 => Cause::TooMany,
            502 | 503 | 520..=523 => Cause::BadGateway,
            _ => Cause::NotRouted,
        };
        Verdict::fail(seen, self.remedy(cause))
    }

    /// The verdict on a request that has no answer.
    pub(super) fn broken(&self, error: &CallError) -> Verdict {
        match error {
            CallError::Silent(_) => Verdict::fail(error, self.remedy(Cause::ReadTimeout)),
            _ => Verdict::fail(
                error,
                "look into the log of what stands before the relay, and into the relay's: one of them cuts connections",
            ),
        }
    }

    /// The same for an answer that was read.
    pub(super) fn unexpected_answer(&self, answer: &Answer) -> Verdict {
        self.unexpected(answer.status, &answer.headers, &answer.body)
    }
}

/// The relay's own code on an answer: none on the answer of a proxy.
pub(super) fn code(headers: &HeaderMap) -> Option<String> {
    headers.get(TUNNEL_ERROR)?.to_str().ok().map(str::to_owned)
}

/// The sentence in an error of the relay.
pub(super) fn detail(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let error = parsed.as_ref().and_then(|value| value.get("error"));
    let text = error.and_then(|error| error.as_str().or_else(|| error.get("message")?.as_str()));
    text.unwrap_or_default().to_owned()
}

/// A status with its name.
pub(super) fn told(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// What there is to be done about the relay's own refusal.
pub(super) fn own_remedy(code: &str) -> &'static str {
    match code {
        "too_large" => "raise --max-body at the relay, or leave it out",
        "overloaded" => {
            "raise --max-in-flight-per-user, --max-in-flight-per-bridge or --max-bridges-per-user at the relay"
        }
        "no_bridge" => "both tokens must be of the same user; if they are, try again",
        "draining" => "the relay is stopping: try again in a moment",
        "unauthorized" => "get a new token from the relay's operator: tunnel relay token --user NAME",
        _ => "look into the relay's log for the request",
    }
}
