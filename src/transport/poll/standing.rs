//! The connections to the relay that stand: counted, and shared out by turns once no more may be made.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::sync::watch;
use tokio::time::timeout;
use tower_service::Service;

use crate::transport::BoxError;
use crate::transport::dial::{HttpDialer, HttpStream};

/// What an HTTP/2 connection carries at once; proxies allow this many as they come.
const HTTP2_STREAMS: usize = 100;

/// How long a request that has its turn waits for its connection.
const TURN: Duration = Duration::from_secs(1);

/// The most that is read of a connection at first, octets.
const FIRST_READ: usize = 1024;

/// Counts the connections of both pools.
pub(super) struct Standing(watch::Sender<State>);

#[derive(Default)]
struct State {
    /// No connection is made while one stands.
    settled: bool,
    pools: [Counts; 2],
}

#[derive(Clone, Copy, Default)]
struct Counts {
    /// Requests that the connections carry at once. Those from which nothing ever came count for none: perhaps nobody accepted them.
    room: usize,
    /// Requests under way.
    used: usize,
}

impl State {
    /// Whether requests share the connections that stand, and no more are made.
    fn shares(&self) -> bool {
        self.settled && self.pools.iter().any(|pool| pool.room > 0)
    }

    /// The pool for the next request, if it can go out now.
    fn pick(&self, preferred: usize) -> Option<usize> {
        if !self.shares() {
            return Some(preferred);
        }
        let has_room = |at: &usize| self.pools[*at].used < self.pools[*at].room;
        [preferred, 1 - preferred].into_iter().find(has_room)
    }
}

impl Standing {
    /// None stands yet.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::default()))
    }

    /// From now on, or no longer, requests go over the connections that stand, each in its turn.
    pub(super) fn settle(&self, settled: bool) {
        self.0.send_modify(|state| state.settled = settled);
    }

    pub(super) fn is_settled(&self) -> bool {
        self.0.borrow().settled
    }

    /// A request's turn, in this pool if there is a choice.
    pub(super) async fn turn(self: &Arc<Self>, preferred: usize) -> Turn {
        let mut changes = self.0.subscribe();
        loop {
            let mut picked = None;
            self.0.send_if_modified(|state| {
                picked = state.pick(preferred);
                if let Some(pool) = picked {
                    state.pools[pool].used += 1;
                }
                false
            });
            if let Some(pool) = picked {
                return Turn {
                    standing: Arc::clone(self),
                    pool,
                };
            }
            // The sender is held here: it cannot be gone.
            let _ = changes.changed().await;
        }
    }

    /// Resolves when a connection may be made; an error if it should not.
    async fn may_dial(&self) -> io::Result<()> {
        let mut changes = self.0.subscribe();
        let may = changes.wait_for(|state| !state.shares());
        // The request has its turn: one that stands is free for it in a moment.
        let waited = timeout(TURN, may).await;
        match waited {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("no connection to the relay was free")),
        }
    }

    /// Resolves when a connection from which nothing has come is of no use: requests go over those that stand.
    fn passed_over(&self) -> Option<BoxFuture<'static, ()>> {
        let mut changes = self.0.subscribe();
        let settled = changes.borrow_and_update().settled;
        (!settled).then(|| {
            async move {
                if changes.wait_for(State::shares).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            .boxed()
        })
    }
}

/// A request being under way.
pub(super) struct Turn {
    standing: Arc<Standing>,
    pool: usize,
}

impl Turn {
    /// The pool over which it goes.
    pub(super) fn pool(&self) -> usize {
        self.pool
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.standing.0.send_modify(|state| state.pools[self.pool].used -= 1);
    }
}

/// Makes the connections of one pool.
#[derive(Clone)]
pub(super) struct StandingDialer {
    pub(super) dialer: HttpDialer,
    pub(super) standing: Arc<Standing>,
    pub(super) pool: usize,
}

impl Service<Uri> for StandingDialer {
    type Response = StandingStream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<StandingStream, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.dialer.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self {
            mut dialer,
            standing,
            pool,
        } = self.clone();
        async move {
            standing.may_dial().await?;
            let passed_over = standing.passed_over();
            let stream = dialer.call(uri).await?;
            Ok(StandingStream {
                stream,
                standing,
                pool,
                room: 0,
                passed_over,
            })
        }
        .boxed()
    }
}

/// A connection that counts from the first octets that come from it. Until then nobody may have accepted it: it breaks when there
/// are others to settle on.
pub(super) struct StandingStream {
    stream: HttpStream,
    standing: Arc<Standing>,
    pool: usize,
    /// What it counts for.
    room: usize,
    passed_over: Option<BoxFuture<'static, ()>>,
}

impl StandingStream {
    fn count(&mut self) {
        if self.room == 0 {
            let is_http2 = self.stream.connected().is_negotiated_h2();
            self.room = if is_http2 { HTTP2_STREAMS } else { 1 };
            self.passed_over = None;
            let (pool, room) = (self.pool, self.room);
            self.standing.0.send_modify(|state| state.pools[pool].room += room);
        }
    }
}

impl Drop for StandingStream {
    fn drop(&mut self) {
        let (pool, room) = (self.pool, self.room);
        self.standing.0.send_modify(|state| state.pools[pool].room -= room);
    }
}

impl Connection for StandingStream {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

impl Read for StandingStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.room > 0 {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        // A cursor does not tell what was put in: the first octets go through a buffer that does.
        let mut octets = [0; FIRST_READ];
        let room = buf.remaining().min(FIRST_READ);
        let mut first = ReadBuf::new(&mut octets[..room]);
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, first.unfilled()) {
            if !first.filled().is_empty() {
                buf.put_slice(first.filled());
                this.count();
            }
            return Poll::Ready(read);
        }
        match &mut this.passed_over {
            Some(passed_over) => {
                ready!(passed_over.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::other("the relay takes no more connections")))
            }
            None => Poll::Pending,
        }
    }
}

impl Write for StandingStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
