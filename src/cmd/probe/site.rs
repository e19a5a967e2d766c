//! The deployment that is looked at: where it is, what may be asked of it, and how an answer is read.

use http::header::RETRY_AFTER;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
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

/// What the checks share.
#[derive(Clone)]
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

    /// Asks, and learns what stands before the relay.
    pub(super) async fn ask(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        body: Body,
        headers: HeaderMap,
    ) -> Result<Answer, CallError> {
        let mut request = caller.request(method, path, body)?;
        request.headers_mut().extend(headers);
        let answer = caller.fetch(request, SMALL).await?;
        self.fronts.learn(&answer.headers);
        Ok(answer)
    }

    /// A GET with nothing besides.
    pub(super) async fn get(&self, caller: &Caller, path: &str) -> Result<Answer, CallError> {
        self.ask(caller, Method::GET, path, empty(), HeaderMap::new()).await
    }

    /// What there is to be done about a cause.
    pub(super) fn remedy(&self, cause: Cause) -> String {
        self.fronts.remedy(cause)
    }

    /// The verdict on an answer that is not the one wanted: the relay's own words, or what the status of somebody else means.
    pub(super) fn unexpected(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Verdict {
        self.fronts.learn(headers);
        if let Some(code) = code(headers) {
            let seen = format!("the relay answered {} ({code}): {}", status.as_u16(), detail(body));
            return Verdict::fail(seen, own_remedy(&code, headers));
        }
        let seen = format!("{} from something before the relay", told(status));
        let cause = match status.as_u16() {
            401 | 403 => Cause::NoAuthorization,
            404 | 405 => Cause::NotRouted,
            413 => Cause::BodyLimit,
            408 | 504 | 524 => Cause::ReadTimeout,
            429 => Cause::TooMany,
            502 | 503 | 520..=523 => Cause::BadGateway,
            _ => Cause::NotRouted,
        };
        Verdict::fail(seen, self.remedy(cause))
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

fn own_remedy(code: &str, headers: &HeaderMap) -> String {
    match code {
        "too_large" => "raise --max-body at the relay".to_owned(),
        "overloaded" => "raise --max-in-flight-per-user or --max-in-flight-per-bridge at the relay".to_owned(),
        "no_bridge" => "both tokens must be of the same user; if they are, try again".to_owned(),
        "draining" => match headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok()) {
            Some(after) => format!("the relay is stopping: try again in {after} s"),
            None => "the relay is stopping: try again in a moment".to_owned(),
        },
        "timeout" => "look into the relay's log for the request".to_owned(),
        _ => String::new(),
    }
}
