//! One connection of a caller or a bridge: TLS where the relay does it, HTTP/1.1 or HTTP/2 on it, how long it may be idle.
//! Its bytes, and how it is closed, are in [`stream`].

mod stream;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, Request, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

pub use self::stream::CallerIo;
use self::stream::Tcp;
use super::registry::InFlight;
use super::tls::Tls;
use super::{Relay, config::Limits, handle};
use crate::shutdown::Shutdown;
use crate::transport::socket;

/// What one HTTP/2 stream may have unsent, octets.
const HTTP2_SEND_BUFFER: usize = 32 * 1024;
/// How long a drain waits for the first request of a connection that was made just before it.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// Which port a connection came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The one for callers and bridges.
    Main,
    /// The one that answers a CA, and sends everybody else to the other.
    Redirect,
}

/// What the requests of one connection share.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    door: Door,
    /// The relay itself does TLS on it.
    is_tls: bool,
    /// A proxy whose word on who calls is taken.
    is_trusted: bool,
    forwarded_for: HeaderValue,
    broken: Arc<AtomicBool>,
    upgraded: Arc<AtomicBool>,
    /// A polling bridge uses the connection.
    bridge: AtomicBool,
    /// Counts it among those of callers: not if a bridge uses it, or if it came too late to ask.
    counted: Mutex<Option<InFlight>>,
    /// Its requests come over HTTP/2.
    http2: AtomicBool,
    /// It was made during a drain, when only polling bridges are served.
    late: bool,
    shutdown: Shutdown,
    opened: Instant,
    requests: AtomicU64,
    active: AtomicUsize,
    idle_since_ms: AtomicU64,
}

impl Caller {
    /// Of a connection that was accepted right now: whether that was during a drain counts.
    pub fn new(relay: &Relay, address: SocketAddr, door: Door) -> Self {
        let late = relay.shutdown.is_draining();
        let counted = (!late && door == Door::Main).then(|| relay.callers.enter(usize::MAX));
        Self(Arc::new(Shared {
            address,
            door,
            is_tls: door == Door::Main && relay.config.tls.is_some(),
            is_trusted: relay.config.proxies.trust(address.ip()),
            http2: AtomicBool::new(false),
            late,
            shutdown: relay.shutdown.clone(),
            forwarded_for: HeaderValue::from_str(&address.ip().to_canonical().to_string())
                .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            broken: Arc::default(),
            upgraded: Arc::default(),
            bridge: AtomicBool::new(false),
            counted: Mutex::new(counted.flatten()),
            opened: Instant::now(),
            requests: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            idle_since_ms: AtomicU64::new(0),
        }))
    }

    /// Where it comes from.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Which port it came in by.
    pub fn door(&self) -> Door {
        self.0.door
    }

    /// Whether the relay itself does TLS on it.
    pub fn is_tls(&self) -> bool {
        self.0.is_tls
    }

    /// Whether it comes from a proxy whose word on who calls is taken.
    pub fn is_trusted(&self) -> bool {
        self.0.is_trusted
    }

    /// Where it comes from, for the header `X-Forwarded-For`.
    pub fn forwarded_for(&self) -> HeaderValue {
        self.0.forwarded_for.clone()
    }

    /// Setting this makes the connection end with a reset.
    pub fn broken(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.broken)
    }

    /// From now on the connection carries another protocol: what comes after our end of it is still wanted.
    pub fn set_upgraded(&self) {
        self.0.upgraded.store(true, Ordering::Release);
    }

    /// A polling bridge uses the connection: it stays open during a drain for as long as answers may come over it.
    pub fn set_bridge(&self) {
        if !self.0.bridge.swap(true, Ordering::AcqRel) {
            self.0.counted.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Whether a polling bridge uses the connection.
    pub fn is_bridge(&self) -> bool {
        self.0.bridge.load(Ordering::Acquire)
    }

    /// Whether the connection was made during a drain.
    pub fn came_late(&self) -> bool {
        self.0.late
    }

    /// Whether an answer should say that no further request is taken here: the relay stops, and the next connection leads to another,
    /// or shows that this one is gone.
    pub fn closes(&self) -> bool {
        self.0.shutdown.is_leaving() && !self.is_bridge() && !self.is_http2()
    }

    fn is_http2(&self) -> bool {
        self.0.http2.load(Ordering::Relaxed)
    }

    fn enter(&self, version: Version) -> Active {
        if version == Version::HTTP_2 {
            self.0.http2.store(true, Ordering::Relaxed);
        }
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.active.fetch_add(1, Ordering::AcqRel);
        Active(self.clone())
    }

    fn was_asked(&self) -> bool {
        self.0.requests.load(Ordering::Relaxed) > 0
    }

    fn is_active(&self) -> bool {
        self.0.active.load(Ordering::Acquire) > 0
    }

    /// When the connection has been idle for too long, as things stand.
    fn idle_deadline(&self, limits: &Limits) -> Instant {
        if !self.was_asked() {
            self.0.opened + limits.first_head
        } else if self.is_active() {
            Instant::now() + limits.keep_alive
        } else {
            let since = Duration::from_millis(self.0.idle_since_ms.load(Ordering::Acquire));
            self.0.opened + since + limits.keep_alive
        }
    }

    async fn idle(&self, limits: &Limits) {
        loop {
            let deadline = self.idle_deadline(limits);
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// A request and its response being under way.
pub struct Active(Caller);

impl Drop for Active {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let ms = shared.opened.elapsed().as_millis() as u64;
        shared.idle_since_ms.store(ms, Ordering::Release);
        shared.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves a connection until it ends, is idle for too long, or the relay stops.
pub async fn serve(relay: Arc<Relay>, stream: TcpStream, caller: Caller, permit: OwnedSemaphorePermit) {
    socket::tune_server(&stream, relay.config.limits.idle);
    let address = caller.address();
    let stream = Arc::new(stream);
    let upgraded = Arc::clone(&caller.0.upgraded);
    let tcp = Tcp::new(Arc::clone(&stream), caller.broken(), upgraded, permit);
    let tls = relay.config.tls.as_ref().filter(|_| caller.is_tls());
    let Some(io) = (match tls {
        // In a box, or every connection would hold room for it.
        Some(tls) => Box::pin(handshake(&relay, tls, &caller, tcp)).await,
        None => Some(CallerIo::Plain(tcp)),
    }) else {
        return;
    };
    let service = {
        let relay = Arc::clone(&relay);
        let caller = caller.clone();
        service_fn(move |request: Request<Incoming>| {
            let active = caller.enter(request.version());
            // In a box, or every connection would hold room for it while no request is under way.
            Box::pin(handle(Arc::clone(&relay), caller.clone(), active, request))
        })
    };
    let builder = builder(&relay.config.limits);
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
    let mut draining = false;
    let mut peer_closed = false;
    loop {
        tokio::select! {
            // In this order, without a draw: it is polled at every step of every request.
            biased;
            ended = connection.as_mut() => {
                // An error is the caller's: it left, or it does not speak HTTP as it should.
                if let Some(reason) = ended.err().and_then(|error| head_error(error.as_ref())) {
                    tracing::info!(peer = %address, reason, "refused");
                }
                return;
            }
            () = caller.idle(&relay.config.limits) => return,
            // hyper only sees a caller leave where it reads, which it does not while an upload waits for room.
            () = socket::closed_by_peer(&stream), if !peer_closed => {
                if caller.is_active() {
                    return;
                }
                peer_closed = true;
            }
            () = drained(&relay, &caller), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = relay.shutdown.ended() => {
                // HTTP/1.0 would take a cut answer for a whole one.
                if caller.0.active.load(Ordering::Acquire) > 0 {
                    caller.0.broken.store(true, Ordering::Release);
                }
                return;
            }
        }
    }
}

/// TLS, within the time that the first request has anyway; none if there is nothing to serve after it.
async fn handshake(relay: &Relay, tls: &Tls, caller: &Caller, tcp: Tcp) -> Option<CallerIo> {
    let deadline = caller.0.opened + relay.config.limits.first_head;
    let peer = caller.address();
    tokio::select! {
        accepted = tls.accept(tcp) => match accepted {
            Ok(stream) => stream.map(|stream| CallerIo::Tls(Box::new(stream))),
            Err(error) => {
                tracing::debug!(%peer, %error, "no TLS came about");
                None
            }
        },
        () = sleep_until(deadline) => {
            tracing::debug!(%peer, "no TLS came about in time");
            None
        }
        () = relay.shutdown.ended() => None,
    }
}

/// Resolves when the connection should take no further request.
async fn drained(relay: &Relay, caller: &Caller) {
    relay.shutdown.leaving().await;
    // HTTP/1.1 is told by a header in each answer; here the word for it is GOAWAY, and what is on its way already is still served.
    // The connection's own task enters requests, so this is looked at after each.
    let told = poll_fn(|_| {
        if caller.is_http2() && !caller.is_bridge() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    let last = async {
        relay.shutdown.draining().await;
        if caller.came_late() || caller.is_bridge() {
            relay.pollers.finished().await;
        } else if !caller.was_asked() {
            tokio::time::sleep(FIRST_REQUEST).await;
        }
    };
    tokio::select! {
        () = told => {}
        () = last => {}
    }
}

/// What was wrong with the head of a request, if that was what ended the connection.
fn head_error(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let error = error.downcast_ref::<hyper::Error>()?;
    if error.is_parse_too_large() {
        Some("request head too large")
    } else if error.is_parse() {
        Some("request head malformed")
    } else {
        None
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The idle limits above see to it: hyper's own would also cut a connection that is kept alive.
        .header_read_timeout(None)
        .writev(false)
        .max_buf_size(limits.head_size);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.head_size).unwrap_or(u32::MAX))
        .max_concurrent_streams(256)
        .max_send_buf_size(HTTP2_SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}
