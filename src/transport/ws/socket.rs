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
    inner: State<S>,
    role: Role,
    /// What all messages so far took on the wire, if each was one frame: equal to what was read when nothing is left in
    /// tungstenite's buffer.
    consumed: u64,
}

/// tungstenite with its buffers while there is work; nothing but the connection while the link rests.
#[derive(Debug)]
enum State<S> {
    Working(Box<WebSocketStream<Meter<S>>>),
    Resting(Meter<S>),
    /// Only while one becomes the other.
    Changing,
}

/// What wakes a resting link is a pong or a ping, mostly.
const FIRST_READ: usize = 256;

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Wraps a connection whose handshake is done; `read` is what was read beyond it.
    pub async fn new(stream: S, read: Bytes, role: Role) -> Self {
        let meter = Meter {
            inner: stream,
            received: read.len() as u64,
        };
        let mut socket = Self {
            inner: State::Resting(meter),
            role,
            consumed: 0,
        };
        socket.wake(&read);
        socket
    }

    /// Makes a resting link work, beginning with what was read meanwhile.
    fn wake(&mut self, read: &[u8]) {
        self.inner = match std::mem::replace(&mut self.inner, State::Changing) {
            State::Resting(meter) => {
                let fresh = WebSocketStream::from_partially_read(meter, read.to_vec(), self.role, Some(config()));
                // Nothing in it waits.
                fresh
                    .now_or_never()
                    .map_or(State::Changing, |inner| State::Working(Box::new(inner)))
            }
            other => other,
        };
    }

    fn working(&mut self) -> io::Result<Pin<&mut WebSocketStream<Meter<S>>>> {
        if let State::Resting(_) = self.inner {
            self.wake(&[]);
        }
        match &mut self.inner {
            State::Working(inner) => Ok(Pin::new(inner)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// How many octets have been received.
    pub fn received(&self) -> u64 {
        match &self.inner {
            State::Working(inner) => inner.get_ref().received,
            State::Resting(meter) => meter.received,
            State::Changing => 0,
        }
    }

    /// The next message; none after the end.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<tungstenite::Result<Message>>> {
        if let State::Resting(meter) = &mut self.inner {
            let mut first = [0; FIRST_READ];
            let mut first = ReadBuf::new(&mut first);
            if let Err(error) = ready!(Pin::new(meter).poll_read(cx, &mut first)) {
                return Poll::Ready(Some(Err(error.into())));
            }
            if first.filled().is_empty() {
                return Poll::Ready(None);
            }
            self.wake(first.filled());
        }
        let message = ready!(self.working()?.poll_next(cx));
        if let Some(Ok(message)) = &message {
            self.consumed += self.wire_size(message);
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
        self.working()?.start_send(message)
    }

    /// Ready when everything handed over has left.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<tungstenite::Result<()>> {
        self.working()?.poll_flush(cx)
    }

    /// Gives all buffers back until there is work again; tells whether it did. Only where everything is flushed, and not
    /// while part of a message is in them.
    pub fn rest(&mut self) -> bool {
        if self.consumed != self.received() {
            return false;
        }
        match std::mem::replace(&mut self.inner, State::Changing) {
            State::Working(inner) => {
                self.inner = State::Resting(inner.into_inner());
                true
            }
            other => {
                self.inner = other;
                false
            }
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
