//! One byte stream of a link, as reader and writer: what HTTP/1.1 runs over. `mux` moves its bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::ResetCode;
use super::mux::Shared;
use super::streams::Side;

/// One byte stream of a link. Reading after the other side's reset yields what came before it, then an error: a reset is
/// never read as an end of file. Dropping it before it is finished resets it.
#[derive(Debug)]
pub struct MuxStream {
    shared: Arc<Shared>,
    id: u32,
}

impl MuxStream {
    pub(super) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id }
    }

    /// A watch over this stream that says when the other side resets it or the link ends.
    pub fn watch(&self) -> ResetWatch {
        ResetWatch {
            shared: Arc::clone(&self.shared),
            id: self.id,
        }
    }
}

/// Resolves when the stream it watches is reset by the other side, or gone.
#[derive(Debug)]
pub struct ResetWatch {
    shared: Arc<Shared>,
    id: u32,
}

impl Future for ResetWatch {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.lock().streams.poll_reset(self.id, cx)
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let result = state.streams.poll_read(self.id, cx, buf);
        if state.streams.has_message() {
            state.wake();
        }
        result
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        let result = state.streams.poll_write(self.id, cx, buf);
        state.wake();
        result
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        state.streams.finish(self.id);
        state.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        let code = match self.shared.side {
            Side::Opener => ResetCode::Cancel,
            Side::Acceptor => ResetCode::Failed,
        };
        let mut state = self.shared.lock();
        state.streams.release(self.id, code);
        state.wake();
    }
}
