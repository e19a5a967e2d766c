//! Counts tokens where the model runs: reads along in answers and tells the relay behind them, so that the relay need look into no
//! body. Nothing is collected and nothing waits. [`counts`] finds the numbers; the report itself is in [`crate::transport::usage`].

mod counts;

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use self::counts::{Counter, Framing};
use crate::transport::headers::{TUNNEL_USAGE, is_plain};
use crate::transport::usage::{Usage, announce};
use crate::transport::{Body, BoxError};

/// Whether a request with this normalised path takes tokens.
pub(super) fn applies(method: &Method, path: &str) -> bool {
    let counted = matches!(
        path,
        "/api/chat"
            | "/api/generate"
            | "/api/embed"
            | "/api/embeddings"
            | "/v1/chat/completions"
            | "/v1/completions"
            | "/v1/embeddings"
            | "/v1/responses"
            | "/v1/messages"
    );
    method == Method::POST && counted
}

/// The count of one exchange.
#[derive(Debug)]
pub(super) struct Tally {
    /// The model that the request names.
    asked: Arc<OnceLock<Box<str>>>,
}

impl Tally {
    /// Reads the name of the model along in the request.
    pub(super) fn of_request(request: Request<Body>) -> (Request<Body>, Self) {
        let asked = Arc::default();
        let tally = Self {
            asked: Arc::clone(&asked),
        };
        if http_body::Body::is_end_stream(request.body()) || !is_plain(request.headers()) {
            return (request, tally);
        }
        let named = request.map(|body| {
            NamingBody {
                body,
                counter: Counter::new(Framing::Documents),
                asked,
            }
            .boxed_unsync()
        });
        (named, tally)
    }

    /// Reads the numbers along in the answer, if it is one that has them, and tells them behind it.
    pub(super) fn of_answer(self, mut response: Response<Body>) -> Response<Body> {
        let framing = framing(response.headers());
        let (StatusCode::OK, Some(framing)) = (response.status(), framing) else {
            return response;
        };
        if http_body::Body::is_end_stream(response.body()) || !is_plain(response.headers()) {
            return response;
        }
        announce(response.headers_mut());
        response.map(|body| {
            TalliedBody {
                body,
                counter: Counter::new(framing),
                tally: Some(self),
            }
            .boxed_unsync()
        })
    }

    fn report(self, found: &Usage) -> Option<Usage> {
        let mut usage = found.clone();
        usage.model = usage.model.or_else(|| self.asked.get().cloned());
        (usage != Usage::default()).then_some(usage)
    }
}

/// How an answer of this type is written, if tokens may stand in it.
fn framing(headers: &HeaderMap) -> Option<Framing> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let essence = value.split(';').next().unwrap_or_default().trim();
    let is = |name: &str| essence.eq_ignore_ascii_case(name);
    if is("text/event-stream") {
        Some(Framing::Events)
    } else {
        let json = is("application/json") || is("application/x-ndjson") || is("application/ndjson");
        json.then_some(Framing::Documents)
    }
}

/// A request body that is read along until it has named its model.
struct NamingBody {
    body: Body,
    counter: Counter,
    asked: Arc<OnceLock<Box<str>>>,
}

impl http_body::Body for NamingBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && this.asked.get().is_none()
        {
            this.counter.feed(data);
            if let Some(model) = &this.counter.usage().model {
                this.asked.get_or_init(|| model.clone());
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response body that is read along, with the report behind it if it comes to its end.
struct TalliedBody {
    body: Body,
    counter: Counter,
    /// None once the body is over.
    tally: Option<Tally>,
}

impl TalliedBody {
    fn report(&mut self) -> Option<http::HeaderValue> {
        let usage = self.tally.take()?.report(self.counter.usage())?;
        Some(usage.to_header())
    }
}

impl http_body::Body for TalliedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.counter.feed(data);
                } else if let Some(trailers) = frame.trailers_mut()
                    && let Some(report) = this.report()
                {
                    trailers.insert(TUNNEL_USAGE, report);
                }
            }
            Some(Err(_)) => this.tally = None,
            None => {
                let report = this.report();
                let trailers = report.map(|report| HeaderMap::from_iter([(TUNNEL_USAGE, report)]));
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.tally.is_none() && self.body.is_end_stream()
    }

    // Its length is not told, so that trailers may follow.
    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
