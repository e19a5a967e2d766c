//! The bridge's HTTP to the relay: pooled connections, so that an answer finds one open.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body::{Frame, SizeHint};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::watch;
use tokio::time::Instant;

use super::standing::{Standing, StandingDialer};
use crate::token::Secret;
use crate::transport::attach::{self, ConnectError};
use crate::transport::dial::{DialError, Dialer, HttpDialer, RelayUrl};
use crate::transport::headers::TUNNEL_INSTANCE;
use crate::transport::{BoxError, Sliced, collect};

/// How long a connection that nobody uses is kept.
const KEPT_FOR: Duration = Duration::from_secs(15);
/// Connections kept of each pool.
const KEPT: usize = 64;
/// How long an answer may take beyond what the relay was asked to wait.
const SLACK: Duration = Duration::from_secs(4);
/// The same while the relay has not been reached: a try that hangs must not keep from the next.
const SHORT_SLACK: Duration = Duration::from_millis(2500);
/// A slower way than this is not waited for, octets per second.
const SLOWEST: usize = 20 * 1024;

type Pool = legacy::Client<StandingDialer, Sent>;

/// Sends requests to the relay; shared by the poll and all exchanges.
pub struct Client {
    relay: RelayUrl,
    instance: HeaderValue,
    dialer: Dialer,
    token: watch::Sender<Secret>,
    state: Mutex<State>,
    standing: Arc<Standing>,
    life: Arc<Life>,
    /// Counts up when the network changed: what is under way on the old connections is tried again at once.
    network: watch::Sender<u64>,
}

struct State {
    pools: [Pool; 2],
    /// The one in which the poll waits.
    polling: usize,
}

/// One request to the relay.
pub struct Call<'a> {
    /// Who sends it.
    pub lane: Lane,
    /// Its method.
    pub method: Method,
    /// Its path as the relay sees it, with the query.
    pub path: &'a str,
    /// Fields besides those of every request.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// How long the relay may let it wait.
    pub wait: Duration,
    /// How long the way there and back may take.
    slack: Duration,
}

impl<'a> Call<'a> {
    /// A GET that may be kept waiting.
    pub fn get(lane: Lane, path: &'a str, wait: Duration) -> Self {
        Self {
            lane,
            method: Method::GET,
            path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            wait,
            slack: SLACK,
        }
    }

    /// The same, to find out whether the relay can be reached again.
    pub fn probe(path: &'a str) -> Self {
        Self {
            slack: SHORT_SLACK,
            ..Self::get(Lane::Poll, path, Duration::ZERO)
        }
    }

    /// A POST of a part, for which the relay may have no room at once.
    pub fn post_part(path: &'a str, headers: HeaderMap, body: Bytes, wait: Duration) -> Self {
        Self {
            headers,
            wait,
            ..Self::post_json(Lane::Other, path, body)
        }
    }

    /// A POST of JSON.
    pub fn post_json(lane: Lane, path: &'a str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self {
            lane,
            method: Method::POST,
            path,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]),
            slack: SLACK + Duration::from_secs((body.len() / SLOWEST) as u64),
            body,
            wait: Duration::ZERO,
        }
    }
}

/// Who sends. The poll waits in one pool, and everything else goes over the other: see [`Client::change_lanes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The waiting poll.
    Poll,
    /// Everything else.
    Other,
}

/// Why a request to the relay came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The relay, or something before it, answered; not what was asked for.
    #[error(transparent)]
    Answer(#[from] ConnectError),
    /// A proxy's answer, or no relay's.
    #[error("the answer was {status}")]
    Status {
        /// Its status.
        status: StatusCode,
    },
    /// The connection was lost, or none could be made.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// No answer in time.
    #[error("no answer")]
    Silent,
    /// The network changed meanwhile.
    #[error("the network changed")]
    NetworkChanged,
}

impl Trouble {
    /// Whether the relay said that there is no room, and the same may be sent again.
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Answer(ConnectError::Refused { status, retry_after, .. })
            if *status == StatusCode::SERVICE_UNAVAILABLE && *retry_after == Some(Duration::ZERO))
    }
}

impl Client {
    /// Nothing is connected yet.
    pub fn new(dialer: Dialer, relay: RelayUrl, token: Secret, instance: &str) -> Arc<Self> {
        let text = |text: &str| HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-"));
        let standing = Standing::new();
        Arc::new(Self {
            instance: text(instance),
            state: Mutex::new(State::new(&dialer, &standing)),
            standing,
            relay,
            dialer,
            token: watch::Sender::new(token),
            life: Arc::new(Life::new()),
            network: watch::Sender::new(0),
        })
    }

    /// The token for all further requests.
    pub fn show_token(&self, token: Secret) {
        self.token.send_replace(token);
    }

    /// How long nothing went out and nothing came in.
    pub fn silence(&self) -> Duration {
        self.life.since(&self.life.moved_ms)
    }

    /// How long nothing was answered.
    pub fn unreached(&self) -> Duration {
        self.life.since(&self.life.answered_ms)
    }

    /// Leaves all connections: they may lead nowhere now.
    pub fn renew(&self) {
        *self.lock() = State::new(&self.dialer, &self.standing);
        self.network.send_modify(|count| *count += 1);
    }

    /// A poll brought requests: the connection it came over is for their answers, which so need not wait for one, and the next
    /// poll waits on another. An idle bridge has no more than the connection of its poll.
    pub fn change_lanes(&self) {
        let mut state = self.lock();
        state.polling = 1 - state.polling;
    }

    /// From now on, or no longer, requests go over the connections that stand, as long as one does: others may lead to another
    /// relay, or to none.
    pub fn settle(&self, settled: bool) {
        self.standing.settle(settled);
    }

    /// Whether they do.
    pub fn is_settled(&self) -> bool {
        self.standing.is_settled()
    }

    /// Sends a request and gives the successful answer: its head, and its body of at most `most` octets.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn fetch(&self, call: Call<'_>, most: usize) -> Result<(HeaderMap, Bytes), Trouble> {
        let mut network = self.network.subscribe();
        let preferred = self.lock().pool(call.lane);
        let turn = tokio::select! {
            turn = self.standing.turn(preferred) => turn,
            _ = network.changed() => return Err(Trouble::NetworkChanged),
        };
        let pool = self.lock().pools[turn.pool()].clone();
        let limit = call.wait + call.slack;
        let exchange = async {
            let response = pool
                .request(self.request(call)?)
                .await
                .map_err(|error| trouble(&error))?;
            self.life.answered();
            let status = response.status();
            if !status.is_success() {
                return Err(match attach::refusal(response).await {
                    Ok(refused) => refused.into(),
                    Err(_) => Trouble::Status { status },
                });
            }
            let (head, body) = response.into_parts();
            match collect(body, most).await {
                Some(body) => Ok((head.headers, body)),
                None => Err(Trouble::Broken("in the middle of an answer".into())),
            }
        };
        tokio::select! {
            answered = tokio::time::timeout(limit, exchange) => answered.unwrap_or(Err(Trouble::Silent)),
            _ = network.changed() => Err(Trouble::NetworkChanged),
        }
    }

    fn request(&self, call: Call<'_>) -> Result<Request<Sent>, Trouble> {
        let malformed = |_| Trouble::Broken("the token or the path cannot stand in a request".into());
        let base = &self.relay;
        let scheme = if base.origin().is_tls() { "https" } else { "http" };
        let uri = format!("{scheme}://{}{}", base.origin().authority(), base.path(call.path));
        let mut request = Request::builder()
            .method(call.method)
            .uri(uri)
            .header(AUTHORIZATION, self.token.borrow().bearer())
            .header(TUNNEL_INSTANCE, self.instance.clone())
            .body(Sent {
                body: Sliced::new(call.body),
                life: Arc::clone(&self.life),
            })
            .map_err(malformed)?;
        request.headers_mut().extend(call.headers);
        Ok(request)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(dialer: &Dialer, standing: &Arc<Standing>) -> Self {
        let pool = |pool| {
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(KEPT_FOR)
                .pool_max_idle_per_host(KEPT)
                .build(StandingDialer {
                    dialer: HttpDialer(dialer.clone()),
                    standing: Arc::clone(standing),
                    pool,
                })
        };
        Self {
            pools: [pool(0), pool(1)],
            polling: 0,
        }
    }

    fn pool(&self, lane: Lane) -> usize {
        if lane == Lane::Poll {
            self.polling
        } else {
            1 - self.polling
        }
    }
}

/// When something last moved on the way to the relay.
struct Life {
    start: Instant,
    moved_ms: AtomicU64,
    answered_ms: AtomicU64,
}

impl Life {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            moved_ms: AtomicU64::new(0),
            answered_ms: AtomicU64::new(0),
        }
    }

    fn moved(&self) {
        self.moved_ms.store(self.now(), Ordering::Relaxed);
    }

    fn answered(&self) {
        self.answered_ms.store(self.now(), Ordering::Relaxed);
        self.moved();
    }

    fn since(&self, at: &AtomicU64) -> Duration {
        Duration::from_millis(self.now().saturating_sub(at.load(Ordering::Relaxed)))
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

/// The body of a request; that it is asked for shows that the way there is open.
struct Sent {
    body: Sliced,
    life: Arc<Life>,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.body.size_hint().lower() > 0 {
            self.life.moved();
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn trouble(error: &legacy::Error) -> Trouble {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(dial) = cause.downcast_ref::<DialError>() {
            return ConnectError::Dial(dial.clone()).into();
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return Trouble::Broken(cause.to_string()),
        }
    }
}
