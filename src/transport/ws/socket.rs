//! One WebSocket: tungstenite over a metered connection, with its buffers bounded, and given back when the link rests.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{FutureExt, Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::TUNING;

/// A WebSocket after its handshake.
#[derive(Debug)]
pub struct Socket<S> {
    inner: Option<WebSocketStream<Meter<S>>>,
    role: Role,
    /// What all messages so far took on the wire, if each was one frame: equal to what was read when nothing is left in
    /// tungstenite's buffer.
    consumed: u64,
    /// Whether the buffers may have grown since they were last given back.
    used: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Wraps a connection whose handshake is done; `read` is what was read beyond it.
    pub async fn new(stream: S, read: Bytes, role: Role) -> Self {
        let meter = Meter {
            inner: stream,
            received: read.len() as u64,
        };
        let inner = WebSocketStream::from_partially_read(meter, read.to_vec(), role, Some(config())).await;
        Self {
            inner: Some(inner),
            role,
            consumed: 0,
            used: false,
        }
    }

    fn inner(&mut self) -> io::Result<Pin<&mut WebSocketStream<Meter<S>>>> {
        self.inner
            .as_mut()
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// How many octets have been received.
    pub fn received(&self) -> u64 {
        self.inner.as_ref().map_or(0, |ws| ws.get_ref().received)
    }

    /// The next message; none after the end.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<tungstenite::Result<Message>>> {
        let message = ready!(self.inner()?.poll_next(cx));
        if let Some(Ok(message)) = &message {
            self.consumed += self.wire_size(message);
            self.used = true;
        }
        Poll::Ready(message)
    }

    fn wire_size(&self, message: &Message) -> u64 {
        let mask = if self.role == Role::Server { 4 } else { 0 };
        let length = message.len() as u64;
        let head = match length {
            0..=125 => 2,
            126..=0xffff => 4,
            _ => 10,
        };
        head + mask + length
    }

    /// Hands a message over; it is on its way once [`Socket::poll_flush`] says so.
    pub fn start_send(&mut self, message: Message) -> tungstenite::Result<()> {
        self.used = true;
        self.inner()?.start_send(message)
    }

    /// Ready when everything handed over has left.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<tungstenite::Result<()>> {
        self.inner()?.poll_flush(cx)
    }

    /// Gives the buffers' memory back: they stay as large as the largest message otherwise. Only where nothing is in them,
    /// so call it when the link rests and everything is flushed.
    pub fn trim(&mut self) {
        if !self.used || self.consumed != self.received() {
            return;
        }
        if let Some(ws) = self.inner.take() {
            let fresh = WebSocketStream::from_raw_socket(ws.into_inner(), self.role, Some(config()));
            self.inner = fresh.now_or_never();
            self.used = false;
        }
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(TUNING.read_buffer)
        // One message is handed over at a time and flushed before the next, so it is written in one piece.
        .write_buffer_size(TUNING.max_message)
        .max_write_buffer_size(TUNING.write_buffer)
        .max_message_size(Some(TUNING.max_message))
        .max_frame_size(Some(TUNING.max_message))
}

/// A close message; a reason over 123 octets is cut (RFC 6455 §5.5).
pub fn close_message(code: u16, reason: &str) -> Message {
    let end = (0..=reason.len().min(123))
        .rev()
        .find(|at| reason.is_char_boundary(*at))
        .unwrap_or(0);
    Message::Close(Some(CloseFrame {
        code: CloseCode::from(code),
        reason: reason[..end].into(),
    }))
}

/// Counts what is received: every byte is a sign of life.
#[derive(Debug)]
struct Meter<S> {
    inner: S,
    received: u64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Meter<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.received += (buf.filled().len() - before) as u64;
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Meter<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
