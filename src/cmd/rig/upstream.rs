//! The upstream of a measurement: the demonstration model, and below `/rig/` what tells when what arrived here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, SET_COOKIE};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::pattern::{self, Check};
use super::{now, now_us};
use crate::demo::{self, Demo};
use crate::transport::{Body, empty, full};

/// Answers anything: the method in [`METHOD`], and the body that came.
pub(in crate::cmd) const ECHO: &str = "/rig/echo";
/// Answers what it was asked, as JSON; also below it.
pub(in crate::cmd) const MIRROR: &str = "/rig/mirror";
/// `?octets=N`: so much of the pattern.
pub(in crate::cmd) const SOURCE: &str = "/rig/source";
/// Compares the body with the pattern and tells when its pieces came.
pub(in crate::cmd) const SINK: &str = "/rig/sink";
/// `?chunks=N&every_us=T&format=ndjson|sse`: numbered chunks, each with the time when it was sent.
pub(in crate::cmd) const STREAM: &str = "/rig/stream";
/// `?ms=T`: an answer after so long.
pub(in crate::cmd) const SLOW: &str = "/rig/slow";
/// `?id=NAME&head=0|1`: nothing at all, or words without end, until the caller leaves.
pub(in crate::cmd) const HANG: &str = "/rig/hang";
/// The method as it arrived.
pub(in crate::cmd) const METHOD: HeaderName = HeaderName::from_static("rig-method");
/// A field that stands in an answer of [`MIRROR`] twice.
pub(in crate::cmd) const TWICE: HeaderName = HeaderName::from_static("rig-twice");

/// Who hangs longer was forgotten.
const LONGEST_HANG: Duration = Duration::from_secs(600);
/// Between two words of an answer without end.
const WORD: Duration = Duration::from_millis(100);
/// Pieces of an upload whose arrival is told.
const MOST_ARRIVALS: usize = 256;

type Leavers = Arc<Mutex<HashMap<String, Told>>>;

/// Listens on loopback until it is dropped.
pub(in crate::cmd) struct Upstream {
    address: SocketAddr,
    leavers: Leavers,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.task.abort();
    }
}

impl Upstream {
    /// Starts it; the model writes a word each `pace`.
    ///
    /// # Errors
    /// When nothing can be listened on.
    pub(in crate::cmd) async fn start(pace: Duration) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let leavers = Leavers::default();
        let shutdown = CancellationToken::new();
        let server = Server {
            demo: Demo::new(pace),
            leavers: Arc::clone(&leavers),
        };
        let answers = move |request| {
            let server = server.clone();
            async move { server.answer(request).await }
        };
        let task = tokio::spawn(demo::serve(listener, shutdown.clone(), answers));
        Ok(Self {
            address,
            leavers,
            shutdown,
            task,
        })
    }

    /// Where it listens.
    pub(in crate::cmd) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells when the exchange that hangs under this name came, and when it was dropped here.
    pub(in crate::cmd) fn watch(&self, id: &str) -> Hanging {
        let ((came_sender, came), (left_sender, left)) = (oneshot::channel(), oneshot::channel());
        let told = Told {
            came: Some(came_sender),
            left: Some(left_sender),
        };
        lock(&self.leavers).insert(id.to_owned(), told);
        Hanging { came, left }
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What becomes of an exchange that hangs; the times are [`now`]'s.
pub(in crate::cmd) struct Hanging {
    pub(in crate::cmd) came: oneshot::Receiver<Duration>,
    pub(in crate::cmd) left: oneshot::Receiver<Duration>,
}

#[derive(Clone)]
struct Server {
    demo: Demo,
    leavers: Leavers,
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let query = Query::of(&request);
        match request.uri().path() {
            ECHO => echo(request),
            SOURCE => source(query.number("octets")),
            SINK => sink(request.into_body()).await,
            STREAM => numbered(&query),
            SLOW => {
                sleep(Duration::from_millis(query.number("ms"))).await;
                json_response(&json!({}))
            }
            HANG => self.hang(&query).await,
            path if path.starts_with(MIRROR) => mirror(&request),
            path if path.starts_with("/rig/") => {
                let mut response = Response::new(empty());
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            }
            _ => self.demo.answer(request).await,
        }
    }

    async fn hang(&self, query: &Query) -> Response<Body> {
        let mut told = query.text("id").and_then(|id| lock(&self.leavers).remove(&id));
        if let Some(came) = told.as_mut().and_then(|told| told.came.take()) {
            // Nobody may be waiting any more.
            let _ = came.send(now());
        }
        if query.number("head") == 0 {
            sleep(LONGEST_HANG).await;
            drop(told);
            return Response::new(empty());
        }
        // As a model writes: that the caller is gone shows at the next word at the latest.
        let words = stream::unfold((told, 0_u32), |(told, number)| async move {
            sleep(if number == 0 { Duration::ZERO } else { WORD }).await;
            let word = Frame::data(Bytes::from_static(b"word\n"));
            (WORD * number < LONGEST_HANG).then_some((Ok(word), (told, number + 1)))
        });
        Response::new(StreamBody::new(words).boxed_unsync())
    }
}

/// Tells, when it is dropped, at what time that was.
struct Told {
    came: Option<oneshot::Sender<Duration>>,
    left: Option<oneshot::Sender<Duration>>,
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(left) = self.left.take() {
            // Nobody may be waiting any more.
            let _ = left.send(now());
        }
    }
}

/// The query of a request to the rig: plain names and values, nothing escaped.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(request: &Request<Incoming>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn text(&self, name: &str) -> Option<String> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

fn json_response(value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn echo(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let length = body.size_hint().exact();
    let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
    if let Ok(method) = HeaderValue::from_str(head.method.as_str()) {
        response.headers_mut().insert(METHOD, method);
    }
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response
}

/// What arrived, and on the way back fields that pass and one that must not.
fn mirror(request: &Request<Incoming>) -> Response<Body> {
    let fields = request.headers().iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes());
        json!([name.as_str(), value])
    });
    let mut response = json_response(&json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "headers": fields.collect::<Vec<_>>(),
    }));
    for (name, value) in [
        (TWICE, "one"),
        (TWICE, "two"),
        (SET_COOKIE, "a=1"),
        (SET_COOKIE, "b=2"),
        (crate::transport::headers::TUNNEL_ERROR, "forged"),
    ] {
        response.headers_mut().append(name, HeaderValue::from_static(value));
    }
    response
}

fn source(octets: u64) -> Response<Body> {
    let mut response = Response::new(pattern::body(octets));
    response.headers_mut().insert(CONTENT_LENGTH, octets.into());
    response
}

async fn sink(mut body: Incoming) -> Response<Body> {
    let mut check = Check::default();
    let mut arrivals = Vec::new();
    let broken = loop {
        match body.frame().await {
            None => break false,
            Some(Err(_)) => break true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    check.take(data);
                    if arrivals.len() < MOST_ARRIVALS {
                        arrivals.push(json!([check.octets(), now_us()]));
                    }
                }
            }
        }
    };
    json_response(&json!({
        "octets": check.octets(),
        "wrongAt": check.wrong_at(),
        "broken": broken,
        "arrivals": arrivals,
    }))
}

fn numbered(query: &Query) -> Response<Body> {
    let (chunks, every) = (query.number("chunks"), Duration::from_micros(query.number("every_us")));
    let events = query.text("format").as_deref() == Some("sse");
    let began = Instant::now();
    let body = stream::unfold(0_u32, move |number| async move {
        if u64::from(number) == chunks {
            return None;
        }
        // A wait that is over already still takes up to a millisecond.
        if number > 0 {
            sleep_until(began + every * number).await;
        }
        let sent = json!({"number": number, "sentUs": now_us()});
        let chunk = if events {
            format!("data: {sent}\n\n")
        } else {
            format!("{sent}\n")
        };
        Some((Ok(Frame::data(Bytes::from(chunk))), number + 1))
    });
    let mut response = Response::new(StreamBody::new(body).boxed_unsync());
    let kind = if events {
        "text/event-stream"
    } else {
        "application/x-ndjson"
    };
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
