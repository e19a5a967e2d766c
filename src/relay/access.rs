//! What is noted of one exchange, from its head to the last octet of its answer, and told once it is over: to the metrics, and in
//! one line of the access log. [`line`] says how that line looks, [`log`] how it gets out.

mod line;
mod log;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body;

use self::line::Line;
pub use self::log::Log;
use super::Relay;
use super::auth::Identity;
use super::connection::Caller;
use super::error::Error;
use super::keeper::Keeper;
use super::ledger::Exchanged;
use super::metrics::{Ended, Outcome, RouteClass, Transport};
use super::proxies::Told;
use super::registry::Session;
use super::router::Target;
use crate::telemetry;
use crate::transport::headers::{TUNNEL_USAGE, X_REQUEST_ID, length};
use crate::transport::usage::Usage;

/// One exchange; dropping it is its end.
#[derive(Debug)]
pub struct Record {
    relay: Arc<Relay>,
    id: HeaderValue,
    method: Method,
    uri: Uri,
    peer: HeaderValue,
    told_peer: Option<IpAddr>,
    route: RouteClass,
    began: Instant,
    first_byte: Option<Duration>,
    identity: Option<Identity>,
    session: Option<Arc<Session>>,
    status: Option<StatusCode>,
    refused: Option<Refused>,
    upload: Arc<Upload>,
    sent: u64,
    /// Octets of the answer's body, if that is known.
    length: Option<u64>,
    /// Tokens, as the bridge counted them.
    usage: Option<Usage>,
    end: End,
}

/// What the body of the request tells.
#[derive(Debug, Default)]
pub struct Upload {
    /// Octets so far.
    pub received: AtomicU64,
    /// It is larger than allowed.
    pub too_large: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Refused {
    code: &'static str,
    reason: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing ended it yet: if it is dropped now, the caller left.
    Open,
    Whole,
    Broken,
}

impl Record {
    /// The exchange begins.
    pub fn begin<B>(relay: &Arc<Relay>, caller: &Caller, target: &Target, request: &Request<B>) -> Self {
        relay.metrics.begin();
        let id = request.headers().get(X_REQUEST_ID).cloned();
        Self {
            relay: Arc::clone(relay),
            id: id.unwrap_or_else(|| HeaderValue::from_static("-")),
            method: request.method().clone(),
            uri: request.uri().clone(),
            peer: caller.forwarded_for(),
            told_peer: request.extensions().get::<Told>().map(|told| told.address),
            route: RouteClass::of(&target.path_and_query),
            began: Instant::now(),
            first_byte: None,
            identity: None,
            session: None,
            status: None,
            refused: None,
            upload: Arc::default(),
            sent: 0,
            length: None,
            usage: None,
            end: End::Open,
        }
    }

    /// Whose it is.
    pub fn set_identity(&mut self, identity: &Identity) {
        self.identity = Some(identity.clone());
    }

    /// Which bridge it goes to.
    pub fn set_session(&mut self, session: &Arc<Session>) {
        self.session = Some(Arc::clone(session));
    }

    /// What the body of the request tells.
    pub fn upload(&self) -> &Arc<Upload> {
        &self.upload
    }

    /// The relay answers with an error of its own.
    pub fn refuse(&mut self, error: &Error) {
        let code = error.code.as_str();
        self.relay.metrics.refuse(code);
        self.relay.metrics.note_denial(error);
        if self.relay.config.access_log.is_none() {
            let told = self.told_peer.map(|address| address.to_string());
            let peer = told.as_deref().unwrap_or_else(|| text(&self.peer));
            error.tell(&self.id, peer, &self.method, self.uri.path());
        }
        self.refused = Some(Refused {
            code,
            reason: error.reason,
        });
    }

    /// The head of the answer is there.
    pub fn head<B: Body>(&mut self, response: &Response<B>) {
        let status = response.status();
        self.status = Some(status);
        self.set_usage(response.headers());
        let bodiless = response.body().is_end_stream()
            || self.method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.length = if bodiless {
            Some(0)
        } else {
            length(response.headers(), &CONTENT_LENGTH)
        };
        if self.length == Some(0) {
            self.first_byte = Some(self.began.elapsed());
            self.end = End::Whole;
        }
    }

    /// The head or the trailers of the answer tell its tokens, perhaps.
    pub fn set_usage(&mut self, headers: &HeaderMap) {
        if let Some(report) = headers.get(TUNNEL_USAGE) {
            self.usage = Usage::parse(report);
        }
    }

    /// Its tokens, if they are known. They never are of an answer that did not come to its end.
    fn usage(&self) -> Option<&Usage> {
        self.usage.as_ref().filter(|_| self.end == End::Whole)
    }

    /// Octets of the answer's body go out.
    pub fn send(&mut self, octets: usize) {
        self.first_byte.get_or_insert_with(|| self.began.elapsed());
        self.sent += octets as u64;
        self.relay.metrics.sent(octets);
        if self.is_complete() {
            self.end = End::Whole;
        }
    }

    /// Whether all octets of an answer of known length went out.
    pub fn is_complete(&self) -> bool {
        self.length == Some(self.sent)
    }

    /// The answer is whole.
    pub fn finish(&mut self) {
        self.first_byte.get_or_insert_with(|| self.began.elapsed());
        self.end = End::Whole;
    }

    /// The answer breaks off.
    pub fn break_off(&mut self) {
        self.end = End::Broken;
    }

    fn outcome(&self) -> Outcome {
        let end = match self.end {
            // Who ends the relay at once breaks what is under way.
            End::Open if self.relay.shutdown.end_token().is_cancelled() => End::Broken,
            end => end,
        };
        match (end, self.status) {
            _ if self.refused.is_some() => Outcome::Refused,
            (End::Open, _) => Outcome::Cancelled,
            (End::Broken, _) => Outcome::Broken,
            (End::Whole, Some(status)) if status.is_server_error() => Outcome::UpstreamError,
            (End::Whole, Some(status)) if status.is_client_error() => Outcome::ClientError,
            (End::Whole, _) => Outcome::Ok,
        }
    }

    fn log(&self, log: &Log, outcome: Outcome, total: Duration) {
        let bridge = self.session.as_deref();
        let told = self.told_peer.map(|address| address.to_string());
        let line = Line {
            id: text(&self.id),
            peer: told.as_deref().unwrap_or_else(|| text(&self.peer)),
            user: self.identity.as_ref().map(|identity| &*identity.user),
            bridge: bridge.map(|session| session.identity.name.as_str()),
            transport: bridge.map(|session| session.transport),
            method: self.method.as_str(),
            path: self.uri.path(),
            status: self.status.map(|status| status.as_u16()),
            code: self.refused.map(|refused| refused.code),
            reason: self.refused.and_then(|refused| refused.reason),
            usage: self.usage(),
            received: self.upload.received.load(Ordering::Relaxed),
            sent: self.sent,
            first_byte: self.first_byte,
            total,
            outcome: match outcome {
                Outcome::Cancelled => "cancelled",
                Outcome::Broken => "broken",
                Outcome::Refused => "refused",
                _ => "done",
            },
        };
        log.write(&line);
    }

    /// Adds it to what the user used, if it reached a bridge that counts.
    fn note_usage(&self, outcome: Outcome, total: Duration) {
        let (Some(session), Some(identity)) = (&self.session, &self.identity) else {
            return;
        };
        let keeper = self.relay.config.keeper.as_ref();
        if session.identity.ephemeral || !keeper.is_some_and(Keeper::keeps_usage) {
            return;
        }
        let usage = self.usage();
        self.relay.ledger.add(&Exchanged {
            identity,
            session,
            model: usage.and_then(|usage| usage.model.as_deref()),
            prompt: usage.and_then(|usage| usage.prompt),
            completion: usage.and_then(|usage| usage.completion),
            is_error: !matches!(outcome, Outcome::Ok | Outcome::Cancelled),
            is_cancelled: outcome == Outcome::Cancelled,
            received: self.upload.received.load(Ordering::Relaxed),
            sent: self.sent,
            first_byte: self.first_byte,
            total,
        });
    }

    /// Notes how long it takes until the bridge knows.
    fn time_cancel(&self, transport: Transport) {
        let Some(session) = &self.session else {
            return;
        };
        let left = Instant::now();
        let relay = Arc::clone(&self.relay);
        session
            .link()
            .when_told(Box::new(move || relay.metrics.told(transport, left.elapsed())));
    }
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or("-")
}

impl Drop for Record {
    fn drop(&mut self) {
        let (outcome, total) = (self.outcome(), self.began.elapsed());
        let transport = Transport::of(self.session.as_deref());
        self.relay.metrics.end(&Ended {
            route: self.route,
            transport,
            outcome,
            first_byte: self.first_byte,
            total,
        });
        // It is of level `info`, as most of the log.
        if let Some(log) = self
            .relay
            .config
            .access_log
            .as_ref()
            .filter(|_| telemetry::tells_info())
        {
            self.log(log, outcome, total);
        }
        self.note_usage(outcome, total);
        if outcome == Outcome::Cancelled {
            self.time_cancel(transport);
        }
    }
}
