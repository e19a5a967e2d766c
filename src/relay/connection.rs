//! One connection of a caller or a bridge: HTTP/1.1 or HTTP/2 on it, how long it may be idle, and how it is closed.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderValue;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::{Relay, config::Limits, handle};
use crate::transport::socket;

/// What one HTTP/2 stream may have unsent, octets.
const HTTP2_SEND_BUFFER: usize = 32 * 1024;
/// How long a connection is drained before it is closed: what a caller still sends while it does not yet read our answer.
const LINGER: Duration = Duration::from_secs(5);
/// A caller that sends nothing more for so long is not waited for.
const LINGER_SILENCE: Duration = Duration::from_secs(1);

/// What the requests of one connection share.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    forwarded_for: HeaderValue,
    broken: Arc<AtomicBool>,
    upgraded: Arc<AtomicBool>,
    /// A polling bridge uses the connection.
    bridge: AtomicBool,
    /// It was made during a drain, when only polling bridges are served.
    late: bool,
    opened: Instant,
    requests: AtomicU64,
    active: AtomicUsize,
    idle_since_ms: AtomicU64,
}

impl Caller {
    fn new(address: SocketAddr, late: bool) -> Self {
        Self(Arc::new(Shared {
            address,
            late,
            forwarded_for: HeaderValue::from_str(&address.ip().to_canonical().to_string())
                .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            broken: Arc::default(),
            upgraded: Arc::default(),
            bridge: AtomicBool::new(false),
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

    /// The same, for the header `X-Forwarded-For`.
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
        self.0.bridge.store(true, Ordering::Release);
    }

    /// Whether a polling bridge uses the connection.
    pub fn is_bridge(&self) -> bool {
        self.0.bridge.load(Ordering::Acquire)
    }

    /// Whether the connection was made during a drain.
    pub fn came_late(&self) -> bool {
        self.0.late
    }

    fn enter(&self) -> Active {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.active.fetch_add(1, Ordering::AcqRel);
        Active(self.clone())
    }

    fn is_active(&self) -> bool {
        self.0.active.load(Ordering::Acquire) > 0
    }

    /// When the connection has been idle for too long, as things stand.
    fn idle_deadline(&self, limits: &Limits) -> Instant {
        if self.0.requests.load(Ordering::Relaxed) == 0 {
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
pub async fn serve(relay: Arc<Relay>, stream: TcpStream, address: SocketAddr, permit: OwnedSemaphorePermit) {
    socket::tune_server(&stream, relay.config.limits.idle);
    let caller = Caller::new(address, relay.shutdown.is_draining());
    let stream = Arc::new(stream);
    let io = CallerIo::new(Arc::clone(&stream), &caller, permit);
    let service = {
        let relay = Arc::clone(&relay);
        let caller = caller.clone();
        service_fn(move |request| {
            let active = caller.enter();
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

/// Resolves when the connection should take no further request.
async fn drained(relay: &Relay, caller: &Caller) {
    relay.shutdown.draining().await;
    if caller.came_late() || caller.is_bridge() {
        relay.pollers.finished().await;
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

/// The socket of a connection: closes so that an early answer is still read, and resets when it must not look whole.
#[derive(Debug)]
pub struct CallerIo {
    stream: Arc<TcpStream>,
    broken: Arc<AtomicBool>,
    upgraded: Arc<AtomicBool>,
    linger: Option<Linger>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Linger {
    until: Instant,
    timer: Pin<Box<Sleep>>,
}

impl CallerIo {
    fn new(stream: Arc<TcpStream>, caller: &Caller, permit: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            broken: caller.broken(),
            upgraded: Arc::clone(&caller.0.upgraded),
            linger: None,
            _permit: permit,
        }
    }

    /// Sets the options of a link, for a connection that became one.
    pub fn tune_link(&self) {
        socket::tune_link(&self.stream);
    }
}

impl CallerIo {
    fn poll_read_some(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let room = buf.remaining();
            let mut read = None;
            let outcome = self.stream.try_io(Interest::READABLE, || {
                let length = self.stream.try_read_buf(buf)?;
                read = Some(length);
                // Less than there was room for: the socket is empty. Saying so here, of the readiness from before the read,
                // spares the call that would find out, and cannot lose what another thread just told of.
                if (1..room).contains(&length) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match outcome {
                _ if read.is_some() => return Poll::Ready(Ok(())),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                _ => {}
            }
        }
    }
}

impl AsyncRead for CallerIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_read_some(cx, buf)
    }
}

impl AsyncWrite for CallerIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Closes our side, then reads on for a little: closing with bytes unread makes the system reset the connection, and
    /// the answer would be lost on its way.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            socket::close_writing(&self.stream)?;
            if self.upgraded.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            self.linger = Some(Linger {
                until: Instant::now() + LINGER,
                timer: Box::pin(sleep(LINGER_SILENCE)),
            });
        }
        let Some(mut linger) = self.linger.take() else {
            return Poll::Ready(Ok(()));
        };
        let mut scrap = [0; 16 * 1024];
        loop {
            if linger.timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut scrap);
            match self.poll_read_some(cx, &mut buf) {
                Poll::Pending => {
                    self.linger = Some(linger);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                // The end of file, or an error that changes nothing any more.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
            }
            let next = (Instant::now() + LINGER_SILENCE).min(linger.until);
            linger.timer.as_mut().reset(next);
        }
    }
}

impl Drop for CallerIo {
    fn drop(&mut self) {
        if self.broken.load(Ordering::Acquire) {
            socket::reset_on_close(&self.stream);
        }
    }
}
