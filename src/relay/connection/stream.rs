//! The bytes of a connection that was accepted: its socket, and TLS on it where the relay does that itself.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;

use crate::transport::plain_or_tls::plain_or_tls;
use crate::transport::socket;

/// How long a connection is drained before it is closed: what a caller still sends while it does not yet read our answer.
const LINGER: Duration = Duration::from_secs(5);
/// A caller that sends nothing more for so long is not waited for.
const LINGER_SILENCE: Duration = Duration::from_secs(1);

/// A connection of a caller or a bridge.
#[derive(Debug)]
pub enum CallerIo {
    /// In clear.
    Plain(Tcp),
    /// In a box: a connection in clear holds no room for it.
    Tls(Box<TlsStream<Tcp>>),
}

impl CallerIo {
    /// Sets the options of a link, for a connection that became one.
    pub fn tune_link(&self) {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        };
        socket::tune_link(&tcp.stream);
    }
}

plain_or_tls!(CallerIo);

/// The socket of a connection: closes so that an early answer is still read, and resets when it must not look whole.
#[derive(Debug)]
pub struct Tcp {
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

impl Tcp {
    pub(super) fn new(
        stream: Arc<TcpStream>,
        broken: Arc<AtomicBool>,
        upgraded: Arc<AtomicBool>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            stream,
            broken,
            upgraded,
            linger: None,
            _permit: permit,
        }
    }

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

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_read_some(cx, buf)
    }
}

impl AsyncWrite for Tcp {
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

impl Drop for Tcp {
    fn drop(&mut self) {
        if self.broken.load(Ordering::Acquire) {
            socket::reset_on_close(&self.stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_in_clear_pays_nothing_for_tls() {
        assert_eq!(size_of::<CallerIo>(), size_of::<Tcp>());
    }
}
