//! One exchange of a polling bridge: makes the request of what the poll brought, and sends the answer in parts as it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::client::{Call, Client, Lane, Trouble};
use super::wire::{Answer, PolledRequest, RequestData};
use super::{POLL, RESPOND, TUNING, TUNNEL_ABORT, TUNNEL_END, TUNNEL_PART, TUNNEL_TRAILERS};
use crate::transport::attach::ConnectError;
use crate::transport::backoff::Backoff;
use crate::transport::json::{Fields, decode_body, encode_body_short};
use crate::transport::{Body, BoxError, Exchange, ExchangeError, empty, full, refusal, usage};

/// What all exchanges of a bridge share.
pub(super) struct Carrier {
    pub(super) client: Arc<Client>,
    pub(super) bridge_id: String,
    pub(super) exchange: Arc<dyn Exchange>,
    /// Bounds what is held in larger parts.
    pub(super) budget: Arc<Semaphore>,
    /// Told the round trip of each head.
    pub(super) round_trip: tokio::sync::watch::Sender<Option<Duration>>,
}

/// The exchange is over before its answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The relay has no use for it any more.
    Gone,
    /// The relay, or something on the way, does not take it.
    Rejected,
    /// There was no room for it, and it was certainly not taken: it may go in smaller pieces.
    NoRoom,
}

impl Carrier {
    /// Carries the exchange to its end. Dropping the future cancels it.
    pub(super) async fn carry(self: Arc<Self>, polled: PolledRequest) {
        let id = polled.id;
        let answered = match self.request(&id, polled.data) {
            Ok(request) => self.exchange.call(request).await,
            Err(error) => Err(error),
        };
        let response = answered.unwrap_or_else(|error| refusal(&error));
        match self.respond(&id, response).await {
            Ok(()) => {}
            Err(Over::Gone) => tracing::debug!(id, "the relay has no use for the rest of the answer"),
            Err(Over::Rejected | Over::NoRoom) => {
                tracing::warn!(
                    id,
                    "an answer was broken off: the relay, or a proxy before it, does not take it"
                );
                let nothing = Part {
                    bytes: Bytes::new(),
                    end: Some(End::Broken),
                    _permit: None,
                };
                let path = format!("{RESPOND}/{}/{id}", self.bridge_id);
                // Whoever does not take this either leaves nothing to be done.
                let _ = self.deliver_part(&path, 1, &nothing).await;
            }
        }
    }

    fn request(self: &Arc<Self>, id: &str, data: RequestData) -> Result<Request<Body>, ExchangeError> {
        let wrong = |what: String| ExchangeError::Refused {
            code: "bad_request".to_owned(),
            detail: what,
        };
        let headers = data.headers.to_headers().map_err(|error| wrong(error.to_string()))?;
        let body = if data.body_parts {
            FetchedBody::new(Arc::clone(self), id.to_owned()).boxed_unsync()
        } else {
            match decode_body(data.body, data.body_encoding).map_err(|error| wrong(error.to_string()))? {
                bytes if bytes.is_empty() => empty(),
                bytes => full(bytes),
            }
        };
        let mut request = Request::builder()
            .method(data.method.as_str())
            .uri(data.path)
            .body(body)
            .map_err(|error| wrong(error.to_string()))?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Sends head and body. The next part is collected while one is on its way.
    async fn respond(&self, id: &str, response: Response<Body>) -> Result<(), Over> {
        let path = format!("{RESPOND}/{}/{id}", self.bridge_id);
        let (mut head, mut body) = response.into_parts();
        let mut next = Gathering::new(Arc::clone(&self.budget));
        // Not more than what, as JSON, is always taken.
        while next.is_short() {
            match body.frame().now_or_never() {
                Some(frame) => next.take(frame),
                None => break,
            }
        }
        let mut first = next.split_at(TUNING.first_part);
        if let Some(End::Whole(trailers)) = &mut first.end {
            usage::to_head(trailers, &mut head.headers);
        }
        let more = !matches!(first.end, Some(End::Whole(None)));
        let message = head_message(head.status, &head.headers, &first.bytes, more);
        let began = Instant::now();
        self.deliver(false, || Call::post_json(Lane::Other, &path, message.clone()))
            .await?;
        self.round_trip.send_replace(Some(began.elapsed()));
        if !more {
            return Ok(());
        }
        if first.end.is_some() {
            let rest = Part {
                bytes: Bytes::new(),
                ..first
            };
            return self.deliver_part(&path, 1, &rest).await;
        }
        for number in 1.. {
            while next.is_empty() {
                next.take(body.frame().await);
            }
            let mut part = next.split();
            let sent = {
                let mut sending = std::pin::pin!(self.deliver_part(&path, number, &part));
                loop {
                    let room = next.has_room();
                    tokio::select! {
                        biased;
                        sent = &mut sending => break sent,
                        frame = body.frame(), if room => next.take(frame),
                    }
                }
            };
            if sent == Err(Over::NoRoom) {
                // A caller who reads slowly has no use for larger parts, and others have.
                next.put_back(&mut part);
                self.deliver_part(&path, number, &part).await?;
            } else {
                sent?;
            }
            if part.end.is_some() {
                break;
            }
        }
        Ok(())
    }

    async fn deliver_part(&self, path: &str, number: u32, part: &Part) -> Result<(), Over> {
        let mut headers = HeaderMap::new();
        let one = HeaderValue::from_static("1");
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(TUNNEL_PART, number.into());
        match &part.end {
            None => {}
            Some(End::Broken) => {
                headers.insert(TUNNEL_ABORT, one);
            }
            Some(End::Whole(trailers)) => {
                headers.insert(TUNNEL_END, one);
                let trailers = trailers.as_ref().map(|trailers| Fields::of(trailers, true));
                let trailers = trailers.and_then(|fields| serde_json::to_string(&fields).ok());
                if let Some(trailers) = trailers.and_then(|json| HeaderValue::from_str(&json).ok()) {
                    headers.insert(TUNNEL_TRAILERS, trailers);
                }
            }
        }
        let divisible = part.bytes.len() > TUNING.small_part;
        self.deliver(divisible, || {
            Call::post_part(path, headers.clone(), part.bytes.clone(), TUNING.room)
        })
        .await
    }

    /// Sends until the relay has it, or has no use for it; or has no room for what is `divisible`.
    async fn deliver<'a>(&self, divisible: bool, call: impl Fn() -> Call<'a>) -> Result<(), Over> {
        let mut backoff = Backoff::default();
        // What became of a try that broke is not known: it may still arrive, so the same must be sent again.
        let mut certain = true;
        loop {
            let trouble = match self.client.fetch(call(), TUNING.small_part).await {
                Ok(_) => return Ok(()),
                Err(trouble) => trouble,
            };
            let refused = matches!(trouble, Trouble::Answer(ConnectError::Refused { .. }));
            certain &= refused;
            if divisible && certain && trouble.is_no_room() {
                return Err(Over::NoRoom);
            }
            retry(trouble, &mut backoff).await?;
        }
    }

    /// Part `n` of the request's body.
    async fn fetch(self: Arc<Self>, id: String, n: u32) -> Result<(HeaderMap, Bytes), Over> {
        let wait = TUNING.room;
        let path = format!("{POLL}/{}/{id}/body/{n}?timeout={}", self.bridge_id, wait.as_millis());
        let mut backoff = Backoff::default();
        loop {
            let call = Call::get(Lane::Other, &path, wait);
            match self.client.fetch(call, TUNING.upload_part).await {
                Ok(part) => return Ok(part),
                Err(trouble) => retry(trouble, &mut backoff).await?,
            }
        }
    }
}

/// Waits until it makes sense to send again.
async fn retry(trouble: Trouble, backoff: &mut Backoff) -> Result<(), Over> {
    use StatusCode as Status;
    let mut asked = None;
    match trouble {
        Trouble::NetworkChanged => return Ok(()),
        Trouble::Answer(ConnectError::Refused {
            status, retry_after, ..
        }) => match status {
            Status::NOT_FOUND | Status::GONE | Status::CONFLICT => return Err(Over::Gone),
            Status::SERVICE_UNAVAILABLE if retry_after == Some(Duration::ZERO) => return Ok(()),
            Status::UNAUTHORIZED | Status::TOO_MANY_REQUESTS => asked = retry_after,
            status if status.is_client_error() => return Err(Over::Rejected),
            _ => asked = retry_after,
        },
        // A proxy's answers, but for these, may be of the moment.
        Trouble::Status {
            status: Status::PAYLOAD_TOO_LARGE | Status::BAD_REQUEST | Status::REQUEST_HEADER_FIELDS_TOO_LARGE,
        } => return Err(Over::Rejected),
        Trouble::Status { .. } | Trouble::Answer(_) | Trouble::Broken(_) | Trouble::Silent => {}
    }
    tokio::time::sleep(backoff.next(asked)).await;
    Ok(())
}

fn head_message(status: StatusCode, headers: &HeaderMap, first: &[u8], more: bool) -> Bytes {
    let (body, body_encoding) = encode_body_short(first);
    let answer = Answer {
        status: Some(status.as_u16()),
        headers: Fields::of(headers, true),
        body,
        body_encoding,
        more,
        ..Answer::default()
    };
    // Serialising strings into memory has no way to fail.
    serde_json::to_vec(&answer).unwrap_or_default().into()
}

/// How a body ended.
#[derive(Debug)]
enum End {
    Whole(Option<HeaderMap>),
    Broken,
}

/// What goes out at once.
struct Part {
    bytes: Bytes,
    end: Option<End>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What has come of a body since the last part.
struct Gathering {
    bytes: BytesMut,
    end: Option<End>,
    permit: Option<OwnedSemaphorePermit>,
    budget: Arc<Semaphore>,
    /// Larger parts were of no use.
    small_only: bool,
}

impl Gathering {
    fn new(budget: Arc<Semaphore>) -> Self {
        Self {
            bytes: BytesMut::new(),
            end: None,
            permit: None,
            budget,
            small_only: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.end.is_none()
    }

    fn is_short(&self) -> bool {
        self.end.is_none() && self.bytes.len() < TUNING.first_part
    }

    /// A small part always has room; a larger one where the budget has.
    fn has_room(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        if self.bytes.len() >= TUNING.small_part && self.permit.is_none() && !self.small_only {
            let larger = u32::try_from(TUNING.part).unwrap_or(u32::MAX);
            self.permit = Arc::clone(&self.budget).try_acquire_many_owned(larger).ok();
        }
        let limit = if self.permit.is_some() {
            TUNING.part
        } else {
            TUNING.small_part
        };
        self.bytes.len() < limit
    }

    fn take(&mut self, frame: Option<Result<Frame<Bytes>, BoxError>>) {
        match frame {
            None => {
                self.end.get_or_insert(End::Whole(None));
            }
            Some(Err(_)) => self.end = Some(End::Broken),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.bytes.extend_from_slice(&data),
                Err(frame) => self.end = Some(End::Whole(frame.into_trailers().ok())),
            },
        }
    }

    /// Takes back what of a part is beyond a small one, before what has come since.
    fn put_back(&mut self, part: &mut Part) {
        self.small_only = true;
        let mut bytes = BytesMut::from(part.bytes.split_off(TUNING.small_part).as_ref());
        bytes.extend_from_slice(&self.bytes);
        self.bytes = bytes;
        if part.end.is_some() {
            self.end = part.end.take();
        }
        self.permit = part._permit.take();
    }

    fn split(&mut self) -> Part {
        self.split_at(if self.small_only {
            TUNING.small_part
        } else {
            TUNING.part
        })
    }

    fn split_at(&mut self, most: usize) -> Part {
        let bytes = self.bytes.split_to(self.bytes.len().min(most)).freeze();
        let end = if self.bytes.is_empty() { self.end.take() } else { None };
        Part {
            bytes,
            end,
            _permit: self.permit.take(),
        }
    }
}

/// The body of a request, fetched from the relay part by part, as it is asked for.
struct FetchedBody {
    carrier: Arc<Carrier>,
    id: String,
    next: u32,
    fetching: Option<BoxFuture<'static, Result<(HeaderMap, Bytes), Over>>>,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl FetchedBody {
    fn new(carrier: Arc<Carrier>, id: String) -> Self {
        Self {
            carrier,
            id,
            next: 0,
            fetching: None,
            trailers: None,
            ended: false,
        }
    }
}

impl http_body::Body for FetchedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        while !this.ended {
            let fetching = this.fetching.get_or_insert_with(|| {
                let carrier = Arc::clone(&this.carrier);
                carrier.fetch(this.id.clone(), this.next).boxed()
            });
            let fetched = ready!(fetching.as_mut().poll(cx));
            this.fetching = None;
            let Ok((headers, bytes)) = fetched else {
                this.ended = true;
                return Poll::Ready(Some(Err("the caller broke off".into())));
            };
            this.next += 1;
            this.ended = headers.contains_key(TUNNEL_END);
            this.trailers = headers.get(TUNNEL_TRAILERS).and_then(read_trailers);
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        }
        Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

/// Reads the header `Tunnel-Trailers`.
pub(super) fn read_trailers(value: &HeaderValue) -> Option<HeaderMap> {
    let fields: Fields = serde_json::from_slice(value.as_bytes()).ok()?;
    fields.to_headers().ok()
}
