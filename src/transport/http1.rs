//! HTTP/1.1 client connections, polled by whoever uses them: no task of their own, so dropping a response drops its
//! connection, and that is how an exchange is cancelled. Both the relay's streams and the bridge's upstream stand on it.

use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{Body, BoxError, ExchangeError};

/// The most that hyper buffers in each direction of a connection, octets; also the longest response head taken.
pub const BUFFER: usize = 64 * 1024;

/// What a connection may run over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// One HTTP/1.1 connection on the client's side.
pub struct Connection {
    sender: SendRequest<Body>,
    driver: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
}

impl Connection {
    /// Begins HTTP/1.1 on a fresh byte stream; nothing is sent yet.
    ///
    /// # Errors
    /// Only those of hyper's own set-up.
    pub async fn begin<T: Io>(stream: T) -> hyper::Result<Self> {
        let io = TokioIo::new(ReadOn {
            inner: stream,
            deaf: false,
        });
        let (sender, driver) = Builder::new().writev(false).max_buf_size(BUFFER).handshake(io).await?;
        Ok(Self {
            sender,
            driver: Box::pin(driver.with_upgrades()),
        })
    }

    /// Whether another request may go out: both messages of the last exchange are complete and the other side still listens.
    fn is_reusable(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.driver.as_mut().poll(&mut cx).is_pending() && self.sender.is_ready()
    }
}

/// Connections that wait for their next exchange, the last used first.
pub struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    /// For as many as may wait, in this pool and whichever share it: each holds buffers.
    room: Arc<Semaphore>,
    max_idle: Duration,
    /// Told when a connection comes to wait where none did.
    waiting: tokio::sync::Notify,
}

struct Idle {
    connection: Connection,
    since: Instant,
    place: OwnedSemaphorePermit,
}

impl Pool {
    /// Keeps as many connections as there is room for, each for at most `max_idle`.
    pub fn new(room: Arc<Semaphore>, max_idle: Duration) -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::new(VecDeque::new()),
            room,
            max_idle,
            waiting: tokio::sync::Notify::new(),
        })
    }

    /// A connection that can take a request now.
    pub fn take(&self) -> Option<Connection> {
        loop {
            // Not in one expression: the lock must not be held while a dead connection is polled and dropped.
            let last = self.lock().pop_back();
            let mut last = last?;
            if last.since.elapsed() < self.max_idle && last.connection.is_reusable() {
                return Some(last.connection);
            }
        }
    }

    /// Sends the request over a waiting connection, or over one that `open` makes. A waiting one may turn out closed: then the
    /// request goes over the next, and a fresh one is the last try.
    ///
    /// # Errors
    /// Those of [`exchange`] and of `open`.
    pub async fn exchange<F>(
        self: &Arc<Self>,
        mut request: Request<Body>,
        open: impl Fn() -> F + Send,
    ) -> Result<Response<Body>, ExchangeError>
    where
        F: Future<Output = Result<Connection, ExchangeError>> + Send,
    {
        loop {
            let (connection, fresh) = match self.take() {
                Some(connection) => (connection, false),
                None => match open().await {
                    Ok(connection) => (connection, true),
                    // Nothing of the request was sent: it may go elsewhere.
                    Err(ExchangeError::Gone(_)) => return Err(ExchangeError::NotSent(Box::new(request))),
                    Err(error) => return Err(error),
                },
            };
            match exchange(connection, Arc::downgrade(self), request).await {
                Err(ExchangeError::NotSent(unsent)) if !fresh => request = *unsent,
                answered => return answered,
            }
        }
    }

    fn put(&self, mut connection: Connection) {
        if !connection.is_reusable() {
            return;
        }
        let mut idle = self.lock();
        let (place, over) = match Arc::clone(&self.room).try_acquire_owned() {
            Ok(place) => (place, None),
            // The oldest makes room, if one of them is here.
            Err(_) => match idle.pop_front() {
                Some(oldest) => (oldest.place, Some(oldest.connection)),
                None => return,
            },
        };
        idle.push_back(Idle {
            connection,
            since: Instant::now(),
            place,
        });
        if idle.len() == 1 {
            self.waiting.notify_one();
        }
        drop(idle);
        drop(over);
    }

    /// Closes connections as their time comes; never ends.
    pub async fn expire(&self) -> std::convert::Infallible {
        loop {
            let oldest = self.lock().front().map(|oldest| oldest.since);
            match oldest {
                None => self.waiting.notified().await,
                Some(since) => {
                    tokio::time::sleep_until(since + self.max_idle).await;
                    self.close_expired();
                }
            }
        }
    }

    fn close_expired(&self) {
        let mut over = Vec::new();
        let mut idle = self.lock();
        while idle
            .front()
            .is_some_and(|oldest| oldest.since.elapsed() >= self.max_idle)
        {
            over.extend(idle.pop_front());
        }
        if idle.is_empty() {
            idle.shrink_to_fit();
        }
        drop(idle);
        drop(over);
    }

    /// Closes every waiting connection.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the request over the connection and resolves with the response; the connection goes back to `home` when both
/// messages are complete.
///
/// # Errors
/// [`ExchangeError::NotSent`] gives the request back when the connection was found dead before anything was sent.
pub async fn exchange(
    mut connection: Connection,
    home: Weak<Pool>,
    mut request: Request<Body>,
) -> Result<Response<Body>, ExchangeError> {
    *request.version_mut() = Version::HTTP_11;
    let sent = Arc::new(AtomicBool::new(http_body::Body::is_end_stream(request.body())));
    let request = if sent.load(Ordering::Relaxed) {
        request
    } else {
        let sent = Arc::clone(&sent);
        request.map(|body| Upload { body, sent }.boxed_unsync())
    };
    // A connection that ended must not be polled again.
    let mut over = false;
    let outcome = {
        let mut response = pin!(connection.sender.try_send_request(request));
        let driver = &mut connection.driver;
        std::future::poll_fn(|cx| {
            if !over {
                over = driver.as_mut().poll(cx).is_ready();
            }
            response.as_mut().poll(cx)
        })
        .await
    };
    let response = match outcome {
        Ok(response) => response,
        Err(mut failed) => {
            return Err(match failed.take_message() {
                Some(request) => ExchangeError::NotSent(Box::new(request)),
                None => lost(&failed.into_error()),
            });
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if !over {
            // Ends as soon as it has handed the bytes to the upgrade.
            tokio::spawn(connection.driver);
        }
        return Ok(response.map(|_| super::empty()));
    }
    let mut upload = None;
    let mut connection = (!over).then_some(connection);
    if !sent.load(Ordering::Acquire)
        && let Some(Connection { sender, driver }) = connection.take()
    {
        // The answer came before the request was complete: it must go on even while nobody reads the answer.
        upload = Some(Aborted(tokio::spawn(async move {
            let _ = driver.await;
            drop(sender);
        })));
    }
    Ok(response.map(|incoming| {
        DrivenBody {
            ended: false,
            incoming: Some(incoming),
            connection,
            _upload: upload,
            home,
        }
        .boxed_unsync()
    }))
}

fn lost(error: &hyper::Error) -> ExchangeError {
    if error.is_parse() || error.is_parse_too_large() {
        ExchangeError::Protocol(error.to_string())
    } else {
        let source = std::error::Error::source(error);
        let detail = source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        ExchangeError::Gone(detail)
    }
}

/// A request body that tells when it is no longer needed.
struct Upload {
    body: Body,
    sent: Arc<AtomicBool>,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.sent.store(true, Ordering::Release);
    }
}

struct Aborted(tokio::task::JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response body that moves its own connection along as it is read.
struct DrivenBody {
    ended: bool,
    incoming: Option<Incoming>,
    connection: Option<Connection>,
    _upload: Option<Aborted>,
    home: Weak<Pool>,
}

impl http_body::Body for DrivenBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        // First what is at hand, then the connection for more.
        let mut frame = Pin::new(&mut *incoming).poll_frame(cx);
        if frame.is_pending()
            && let Some(connection) = &mut this.connection
        {
            if connection.driver.as_mut().poll(cx).is_ready() {
                this.connection = None;
            }
            frame = Pin::new(incoming).poll_frame(cx);
        }
        let frame = ready!(frame);
        this.ended = frame.is_none();
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

impl Drop for DrivenBody {
    fn drop(&mut self) {
        let ended = self.ended || http_body::Body::is_end_stream(self);
        // Before the connection is looked at: it would take an unread body for one nobody wants.
        self.incoming = None;
        if ended && let (Some(connection), Some(home)) = (self.connection.take(), self.home.upgrade()) {
            home.put(connection);
        }
    }
}

/// Lets an early answer be heard: when writing fails, what is left to write is dropped and reading goes on, so that a
/// response sent before the request was complete still arrives. How the connection ended is told by reading.
struct ReadOn<T> {
    inner: T,
    deaf: bool,
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadOn<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadOn<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        match ready!(Pin::new(&mut self.inner).poll_write(cx, buf)) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(_) => {
                self.deaf = true;
                Poll::Ready(Ok(buf.len()))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        let flushed = ready!(Pin::new(&mut self.inner).poll_flush(cx));
        self.deaf = flushed.is_err();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pools_that_share_room_keep_no_more_connections_than_it_has() {
        let room = Arc::new(Semaphore::new(1));
        let [one, other] = [(); 2].map(|()| Pool::new(Arc::clone(&room), Duration::from_secs(10)));
        let mut far_ends = Vec::new();
        for (pool, kept) in [(&one, 1), (&one, 1), (&other, 0)] {
            let (near, far) = tokio::io::duplex(64);
            far_ends.push(far);
            pool.put(Connection::begin(near).await.unwrap());
            assert_eq!(pool.lock().len(), kept);
        }
        let taken = one.take().expect("the younger of two");
        other.put(taken);
        assert_eq!((one.lock().len(), other.lock().len()), (0, 1));
        assert!(one.take().is_none());
    }
}
