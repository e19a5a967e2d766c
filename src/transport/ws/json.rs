//! Older desktop apps on `/ws/tunnel`, without a subprotocol: one JSON text message for a request, one for its answer
//! (protocol.md section 2, "No subprotocol"). The relay's end only; bodies are whole, and text.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::pulse::Pulse;
use super::socket::close_message;
use super::{TUNING, close};
use crate::transport::json::{Fields, timestamp, whole_text};
use crate::transport::{Body, Ending, Exchange, ExchangeError, Link, empty, full, headers};

/// The largest message taken, octets.
const MESSAGE: usize = 16 * 1024 * 1024;
/// What all larger request bodies of one link may hold, octets.
const BUDGET: usize = 32 * 1024 * 1024;
/// How long an app may take to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// Between two pings.
const PING: Duration = Duration::from_secs(15);
/// Nothing was heard for so long: the app is gone.
const SILENCE: Duration = Duration::from_secs(45);
/// How long the app may take to take a message.
const SEND: Duration = Duration::from_secs(15);
/// A slower way than this is not waited for, octets per second.
const SLOWEST: usize = 16 * 1024;

/// The relay's handle to one older app.
#[derive(Clone)]
pub struct JsonLink(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    outgoing: mpsc::Sender<Outgoing>,
    budget: Arc<Semaphore>,
    pulse: Pulse,
    max_in_flight: usize,
    /// Told when there is a farewell to say.
    closing: Notify,
}

#[derive(Default)]
struct State {
    next_id: u64,
    waiting: HashMap<String, Waiting>,
    ended: bool,
    farewell: Option<(u16, &'static str)>,
}

struct Waiting {
    method: Method,
    answer: oneshot::Sender<Answered>,
}

type Answered = Result<Response<Body>, ExchangeError>;

struct Outgoing(String, Option<OwnedSemaphorePermit>);

/// Does the work of a link.
pub struct JsonDriver<S> {
    shared: Arc<Shared>,
    socket: WebSocketStream<S>,
    outgoing: mpsc::Receiver<Outgoing>,
    pings: u64,
    pinged: Instant,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ToApp {
    HttpRequest {
        id: String,
        method: String,
        path: String,
        headers: Fields,
        #[serde(skip_serializing_if = "String::is_empty")]
        body: String,
    },
    Ping {
        id: String,
        timestamp: String,
    },
    Pong {
        id: String,
        timestamp: String,
    },
}

/// What every message of an app says first; it is read again for the rest, so that nothing of it is held twice.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Envelope {
    r#type: String,
    id: String,
}

#[derive(Deserialize)]
struct AppResponse {
    status: u16,
    #[serde(default)]
    headers: Fields,
    #[serde(default)]
    body: Option<String>,
}

#[derive(Deserialize)]
struct AppError {
    error: String,
}

/// Makes a link of a WebSocket whose handshake is done; `read` is what was read beyond it.
pub async fn start<S>(stream: S, read: Bytes, max_in_flight: usize) -> (JsonLink, JsonDriver<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(TUNING.read_buffer)
        .max_write_buffer_size(MESSAGE + TUNING.write_buffer)
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE));
    let socket = WebSocketStream::from_partially_read(stream, read.to_vec(), Role::Server, Some(config)).await;
    let (sender, outgoing) = mpsc::channel(16);
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        outgoing: sender,
        budget: Arc::new(Semaphore::new(BUDGET)),
        pulse: Pulse::new(),
        max_in_flight,
        closing: Notify::new(),
    });
    let driver = JsonDriver {
        shared: Arc::clone(&shared),
        socket,
        outgoing,
        pings: 0,
        pinged: Instant::now(),
    };
    (JsonLink(shared), driver)
}

impl<S: AsyncRead + AsyncWrite + Unpin> JsonDriver<S> {
    /// Drives the link to its end; tells how it ended.
    pub async fn run(mut self) -> String {
        let ended = self.drive().await;
        self.shared.end();
        ended
    }

    async fn drive(&mut self) -> String {
        let mut next_ping = Instant::now() + PING;
        loop {
            let silent = Instant::now() + SILENCE.saturating_sub(self.shared.pulse.silence());
            let sent = tokio::select! {
                message = self.socket.next() => {
                    match self.take(message) {
                        Ok(None) => Ok(()),
                        Ok(Some(answer)) => self.send(answer).await,
                        Err((code, why)) => {
                            let _ = self.send(close_message(code, &why)).await;
                            return why;
                        }
                    }
                }
                Some(Outgoing(text, _permit)) = self.outgoing.recv() => self.send(Message::text(text)).await,
                () = self.shared.closing.notified() => {
                    let (code, reason) = self.shared.lock().farewell.unwrap_or((close::NORMAL, "done"));
                    let _ = self.send(close_message(code, reason)).await;
                    return reason.to_owned();
                }
                () = sleep_until(next_ping) => {
                    self.pinged = Instant::now();
                    next_ping = self.pinged + PING;
                    self.pings += 1;
                    let id = ping_id(self.pings);
                    self.send(to_message(&ToApp::Ping { id, timestamp: timestamp(SystemTime::now()) })).await
                }
                () = sleep_until(silent) => return "nothing was heard of it".to_owned(),
            };
            if let Err(why) = sent {
                return why;
            }
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), String> {
        let limit = SEND + Duration::from_secs((message.len() / SLOWEST) as u64);
        match timeout(limit, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_) => Err("it takes no messages".to_owned()),
        }
    }

    /// What a message means: nothing more, an answer to it, or the end with its close code.
    fn take(&mut self, message: Option<Result<Message, Error>>) -> Result<Option<Message>, (u16, String)> {
        let message = match message {
            None => return Err((close::NORMAL, "end of file".to_owned())),
            Some(Err(error @ Error::Utf8(_))) => return Err((close::NOT_CONSISTENT, error.to_string())),
            Some(Err(error)) => return Err((close::PROTOCOL, error.to_string())),
            Some(Ok(message)) => message,
        };
        self.shared.pulse.received(Instant::now());
        match message {
            Message::Text(text) => self.take_text(text.as_str()),
            Message::Binary(_) => Err((close::UNSUPPORTED, "a binary message".to_owned())),
            Message::Close(_) => Err((close::NORMAL, "closed by the app".to_owned())),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
        }
    }

    fn take_text(&mut self, text: &str) -> Result<Option<Message>, (u16, String)> {
        let Envelope { r#type, id } = match serde_json::from_str(text) {
            Ok(envelope) => envelope,
            Err(error) if error.is_data() => {
                tracing::debug!("an app sent a message that cannot be read");
                return Ok(None);
            }
            Err(_) => return Err((close::NOT_CONSISTENT, "a text that is not JSON".to_owned())),
        };
        // If it cannot be read as the answer it is, its exchange has failed: nothing else will come.
        let unreadable = |_| ExchangeError::Protocol("an answer that cannot be read".to_owned());
        match r#type.as_str() {
            "ping" => {
                let timestamp = timestamp(SystemTime::now());
                return Ok(Some(to_message(&ToApp::Pong { id, timestamp })));
            }
            "pong" if id == ping_id(self.pings) => self.shared.pulse.measured(self.pinged.elapsed()),
            "pong" => {}
            "http_response" => self.shared.answer(&id, |method| {
                let answer: AppResponse = serde_json::from_str(text).map_err(unreadable)?;
                response(method, answer.status, &answer.headers, answer.body)
            }),
            "error" => self.shared.answer(&id, |_| {
                let AppError { error } = serde_json::from_str(text).map_err(unreadable)?;
                Err(ExchangeError::Refused {
                    code: "upstream_unreachable".to_owned(),
                    detail: format!("the desktop app could not get an answer: {error}"),
                })
            }),
            _ => tracing::debug!("an app sent a message of an unknown type"),
        }
        Ok(None)
    }
}

fn response(
    method: &Method,
    status: u16,
    headers: &Fields,
    body: Option<String>,
) -> Result<Response<Body>, ExchangeError> {
    let protocol = |what: String| ExchangeError::Protocol(what);
    let status = StatusCode::from_u16(status)
        .ok()
        .filter(|status| (200..=599).contains(&status.as_u16()))
        .ok_or_else(|| protocol(format!("{status} is no status of an answer")))?;
    let mut headers = headers.to_headers().map_err(|error| protocol(error.to_string()))?;
    let body = body.unwrap_or_default();
    let bodiless = method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if !bodiless {
        headers.insert(CONTENT_LENGTH, body.len().into());
        // Text is not compressed: the app's own library has undone it.
        headers.remove(CONTENT_ENCODING);
    }
    let mut response = Response::new(if bodiless { empty() } else { full(body) });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn ping_id(number: u64) -> String {
    format!("ping-{number}")
}

fn to_message(message: &ToApp) -> Message {
    // Serialising strings into memory has no way to fail.
    Message::text(serde_json::to_string(message).unwrap_or_default())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, id: &str, answer: impl FnOnce(&Method) -> Result<Response<Body>, ExchangeError>) {
        let waiting = self.lock().waiting.remove(id);
        match waiting {
            Some(waiting) => drop(waiting.answer.send(answer(&waiting.method))),
            None => tracing::debug!("an app answered what was not asked, or not any more"),
        }
    }

    fn end(&self) {
        let waiting = {
            let mut state = self.lock();
            state.ended = true;
            std::mem::take(&mut state.waiting)
        };
        for (_, waiting) in waiting {
            let _ = waiting.answer.send(Err(ExchangeError::Gone("the app is gone".into())));
        }
    }

    fn begin(&self, method: Method) -> Result<(String, oneshot::Receiver<Answered>), ExchangeError> {
        let mut state = self.lock();
        if state.ended {
            return Err(ExchangeError::Gone("the app is gone".into()));
        }
        if state.waiting.len() >= self.max_in_flight {
            return Err(ExchangeError::Overloaded);
        }
        state.next_id += 1;
        let id = state.next_id.to_string();
        let (answer, answered) = oneshot::channel();
        state.waiting.insert(id.clone(), Waiting { method, answer });
        Ok((id, answered))
    }
}

impl JsonLink {
    async fn exchange(&self, request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        if headers::is_upgrade(request.headers()) {
            return Err(ExchangeError::Refused {
                code: "not_implemented".to_owned(),
                detail: "this desktop app carries no WebSockets".to_owned(),
            });
        }
        let (head, body) = request.into_parts();
        let (body, permit) = whole_text(body, &self.0.budget).await?;
        let (id, answered) = self.0.begin(head.method.clone())?;
        let guard = Guard {
            shared: &self.0,
            id: &id,
        };
        let message = ToApp::HttpRequest {
            id: id.clone(),
            method: head.method.to_string(),
            path: head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            headers: Fields::of(&head.headers, false),
            body,
        };
        let text = serde_json::to_string(&message).unwrap_or_default();
        let gone = || ExchangeError::Gone("the app is gone".into());
        self.0.outgoing.send(Outgoing(text, permit)).await.map_err(|_| gone())?;
        let answered = timeout(REQUEST_TIMEOUT, answered).await;
        drop(guard);
        answered
            .map_err(|_| ExchangeError::Refused {
                code: "timeout".to_owned(),
                detail: "the desktop app did not answer in time".to_owned(),
            })?
            .unwrap_or_else(|_| Err(gone()))
    }
}

/// Forgets an exchange whose caller left; this protocol has no word for it.
struct Guard<'a> {
    shared: &'a Shared,
    id: &'a str,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(self.id);
    }
}

impl Exchange for JsonLink {
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, ExchangeError>> {
        self.exchange(request).boxed()
    }
}

impl Link for JsonLink {
    fn is_alive(&self) -> bool {
        !self.0.lock().ended
    }

    fn silence(&self) -> Duration {
        self.0.pulse.silence()
    }

    fn round_trip(&self) -> Option<Duration> {
        self.0.pulse.round_trip()
    }

    fn doubt(&self) {
        // Whatever is in flight tells, or its time limit.
    }

    fn end(&self, ending: Ending) {
        let (code, reason) = super::farewell(ending);
        self.0.lock().farewell.get_or_insert((code, reason));
        self.0.end();
        self.0.closing.notify_one();
    }
}
