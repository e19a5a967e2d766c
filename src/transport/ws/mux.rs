//! Drives the streams of a link over its WebSocket: a [`Driver`] does all reading, writing and keeping alive, a [`Mux`] is
//! the handle to it. The rules are in `streams`, what one byte stream looks like from outside in `duplex`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{self, Message};

use super::duplex::MuxStream;
use super::pulse::Pulse;
use super::socket::{Socket, close_message};
use super::streams::{Side, Streams};
use super::{TUNING, close};
use crate::transport::told::{Calls, Told};

/// How a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The other side said goodbye, with this code and reason.
    Closed(u16, String),
    /// This side said goodbye.
    Closing(u16, String),
    /// The other side broke the rules.
    Violation(String),
    /// A ping was not answered, and nothing else came either.
    Silent,
    /// The connection broke.
    Lost(String),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed(code, reason) => write!(f, "closed by the other side ({code} {reason})"),
            Self::Closing(code, reason) => write!(f, "closed ({code} {reason})"),
            Self::Violation(what) => write!(f, "broken protocol: {what}"),
            Self::Silent => f.write_str("no answer to a ping"),
            Self::Lost(what) => write!(f, "connection lost: {what}"),
        }
    }
}

/// What happens on a link that its owner must see to.
#[derive(Debug)]
pub enum Event {
    /// The other side opened a stream.
    Stream(MuxStream),
    /// A control message came.
    Text(String),
    /// It is over.
    Ended(End),
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) side: Side,
    state: Mutex<State>,
    pulse: Pulse,
    told: Calls,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) streams: Streams,
    texts: VecDeque<String>,
    close: Option<(u16, String)>,
    urgent_ping: bool,
    ping_interval: Duration,
    driver: Option<Waker>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn wake(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }
}

/// The handle to a link; cheap to clone. Dropping it does not end the link.
#[derive(Debug, Clone)]
pub struct Mux(Arc<Shared>);

impl Mux {
    /// Opens a stream; none when as many are open as may be or the link ended.
    pub fn open(&self) -> Option<MuxStream> {
        let mut state = self.0.lock();
        let id = state.streams.open()?;
        state.wake();
        drop(state);
        Some(MuxStream::new(Arc::clone(&self.0), id))
    }

    /// Whether the link ended.
    pub fn is_ended(&self) -> bool {
        self.0.lock().streams.is_ended()
    }

    /// Sends a control message. At most 16 wait; the oldest of more is dropped.
    pub fn send_text(&self, text: String) {
        let mut state = self.0.lock();
        if state.texts.len() == 16 {
            state.texts.pop_front();
        }
        state.texts.push_back(text);
        state.wake();
    }

    /// Says goodbye: every stream fails at once.
    pub fn close(&self, code: u16, reason: &str) {
        let mut state = self.0.lock();
        if state.close.is_none() {
            state.close = Some((code, reason.to_owned()));
        }
        state.streams.end();
        state.wake();
    }

    /// Sets how long the link may be silent: something on the way may cut it sooner than others would.
    pub fn set_ping_interval(&self, interval: Duration) {
        let mut state = self.0.lock();
        state.ping_interval = interval.min(TUNING.ping_interval);
        state.wake();
    }

    /// To be called when a request goes out: on a link that has been silent, a ping goes along, and without an answer in
    /// time the link is dead.
    pub fn check_life(&self) {
        if self.0.pulse.silence() >= TUNING.silence {
            self.doubt();
        }
    }

    /// Asks for a sign of life at once: without one in time, the link is dead.
    pub fn doubt(&self) {
        let mut state = self.0.lock();
        state.urgent_ping = true;
        state.wake();
    }

    /// Calls it when all that waits now is sent.
    pub fn when_told(&self, told: Told) {
        self.0.told.push(told);
        self.0.lock().wake();
    }

    /// Life and round trip.
    pub fn pulse(&self) -> &Pulse {
        &self.0.pulse
    }
}

/// Does the work of a link: call [`Driver::next`] until it says [`Event::Ended`].
#[derive(Debug)]
pub struct Driver<S> {
    shared: Arc<Shared>,
    socket: Socket<S>,
    timer: Pin<Box<Sleep>>,
    ping: Option<Ping>,
    next_ping: Instant,
    pings: u64,
    received: u64,
    flushing: bool,
    closing: Option<(End, Instant)>,
    texts_left: u32,
}

#[derive(Debug)]
struct Ping {
    number: u64,
    sent: Instant,
    deadline: Instant,
    received: u64,
}

/// Makes a link of a WebSocket.
pub fn start<S: AsyncRead + AsyncWrite + Unpin>(socket: Socket<S>, side: Side, max_streams: usize) -> (Mux, Driver<S>) {
    let now = Instant::now();
    let shared = Arc::new(Shared {
        side,
        state: Mutex::new(State {
            streams: Streams::new(side, max_streams),
            texts: VecDeque::new(),
            close: None,
            urgent_ping: false,
            ping_interval: TUNING.ping_interval,
            driver: None,
        }),
        pulse: Pulse::new(),
        told: Calls::default(),
    });
    let driver = Driver {
        shared: Arc::clone(&shared),
        received: socket.received(),
        socket,
        timer: Box::pin(sleep_until(now)),
        ping: None,
        next_ping: now,
        pings: 0,
        flushing: false,
        closing: None,
        texts_left: TUNING.texts_per_interval,
    };
    (Mux(shared), driver)
}

impl<S> Drop for Driver<S> {
    /// Whoever still holds a stream must not wait for what nobody moves any more.
    fn drop(&mut self) {
        self.shared.lock().streams.end();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Drives the link until something happens. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Event {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let read = match self.poll_receive(cx) {
            Poll::Ready(Ok(Some(event))) => return Poll::Ready(event),
            Poll::Ready(Ok(None)) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(end)) => return Poll::Ready(self.end(end)),
        };
        if let Err(end) = self.poll_time(cx) {
            return Poll::Ready(self.end(end));
        }
        if let Err(end) = self.poll_send(cx) {
            return Poll::Ready(self.end(end));
        }
        // The turn may be over while more is waiting; and a socket that went to rest wants to be polled anew.
        if read.is_ready() || self.rest() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Gives memory back when the link has nothing to do.
    fn rest(&mut self) -> bool {
        !self.flushing && self.closing.is_none() && self.shared.lock().streams.rest() && self.socket.rest()
    }

    fn end(&mut self, end: End) -> Event {
        self.shared.lock().streams.end();
        let end = self.closing.take().map_or(end, |(closing, _)| closing);
        Event::Ended(end)
    }

    /// Ready with nothing when the turn is used up.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, End>> {
        for _ in 0..TUNING.reads_per_turn {
            if let Some(id) = self.shared.lock().streams.accept() {
                let shared = Arc::clone(&self.shared);
                return Poll::Ready(Ok(Some(Event::Stream(MuxStream::new(shared, id)))));
            }
            let message = self.socket.poll_message(cx);
            self.note_life();
            let message = match message {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Err(End::Lost("closed by the other side".into()))),
                Poll::Ready(Some(Err(tungstenite::Error::Io(error)))) => {
                    return Poll::Ready(Err(End::Lost(error.to_string())));
                }
                Poll::Ready(Some(Err(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)))) => {
                    return Poll::Ready(Err(End::Lost("cut on the way".into())));
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(End::Violation(error.to_string())));
                }
                Poll::Ready(Some(Ok(message))) => message,
            };
            if let Some(event) = self.take(message)? {
                return Poll::Ready(Ok(Some(event)));
            }
        }
        Poll::Ready(Ok(None))
    }

    fn note_life(&mut self) {
        let received = self.socket.received();
        if received != self.received {
            self.received = received;
            self.shared.pulse.received(Instant::now());
        }
    }

    fn take(&mut self, message: Message) -> Result<Option<Event>, End> {
        match message {
            Message::Binary(bytes) => {
                let received = self.shared.lock().streams.receive(bytes);
                if let Err(violation) = received {
                    let reason = violation.to_string();
                    self.start_close(close::PROTOCOL, &reason, End::Violation(reason.clone()));
                }
                Ok(None)
            }
            Message::Text(text) => {
                let Some(left) = self.texts_left.checked_sub(1) else {
                    let reason = "too many control messages";
                    self.start_close(close::POLICY, reason, End::Violation(reason.into()));
                    return Ok(None);
                };
                self.texts_left = left;
                Ok(Some(Event::Text(text.as_str().to_owned())))
            }
            Message::Pong(payload) => {
                self.take_pong(&payload);
                Ok(None)
            }
            Message::Close(frame) => {
                let (code, reason) = frame.map_or((1005, String::new()), |f| (f.code.into(), f.reason.to_string()));
                // tungstenite's answer goes out with the next flush.
                self.flushing = true;
                if self.closing.is_none() {
                    self.shared.lock().streams.end();
                    self.closing = Some((End::Closed(code, reason), Instant::now() + TUNING.close_timeout));
                }
                Ok(None)
            }
            Message::Ping(_) => {
                // tungstenite's pong goes out with the next flush.
                self.flushing = true;
                Ok(None)
            }
            Message::Frame(_) => Ok(None),
        }
    }

    fn take_pong(&mut self, payload: &[u8]) {
        if let Some(ping) = self.ping.take_if(|ping| ping.number.to_be_bytes() == payload) {
            let round_trip = ping.sent.elapsed();
            self.shared.pulse.measured(round_trip);
            self.shared.lock().streams.measure(round_trip);
        }
    }

    fn poll_time(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            let (urgent, interval) = {
                let mut state = self.shared.lock();
                (std::mem::take(&mut state.urgent_ping), self.ping_interval(&state))
            };
            if urgent {
                self.ping_now(TUNING.silence_timeout);
            }
            let latest = Instant::now() + interval;
            if self.next_ping > latest {
                self.next_ping = latest;
                self.set_timer();
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            let now = Instant::now();
            if let Some((_, deadline)) = &self.closing
                && now >= *deadline
            {
                return Err(End::Lost("no answer to the goodbye".into()));
            }
            if let Some(ping) = self.ping.take_if(|ping| now >= ping.deadline)
                && ping.received == self.received
            {
                return Err(End::Silent);
            }
            if now >= self.next_ping {
                self.next_ping = now + interval;
                self.texts_left = TUNING.texts_per_interval;
                self.ping_now(TUNING.ping_timeout);
            }
            self.set_timer();
        }
    }

    /// The bridge sees to it that nothing on the way takes the link for idle while streams are open: a model may think for long.
    fn ping_interval(&self, state: &State) -> Duration {
        if self.shared.side == Side::Acceptor && !state.streams.is_empty() {
            state.ping_interval.min(TUNING.busy_ping_interval)
        } else {
            state.ping_interval
        }
    }

    /// Sends a ping, or hastens the one under way.
    fn ping_now(&mut self, timeout: Duration) {
        let now = Instant::now();
        let deadline = now + timeout;
        if let Some(ping) = &mut self.ping {
            if deadline < ping.deadline {
                ping.deadline = deadline;
                ping.received = self.received;
            }
        } else if self.closing.is_none() {
            self.pings += 1;
            self.ping = Some(Ping {
                number: self.pings,
                sent: now,
                deadline,
                received: self.received,
            });
            // A socket that takes no more refuses it; the deadline stands all the same.
            let payload = self.pings.to_be_bytes().to_vec().into();
            if self.socket.start_send(Message::Ping(payload)).is_ok() {
                self.flushing = true;
            }
        }
        self.set_timer();
    }

    fn set_timer(&mut self) {
        let at = [
            Some(self.next_ping),
            self.ping.as_ref().map(|ping| ping.deadline),
            self.closing.as_ref().map(|(_, deadline)| *deadline),
        ];
        if let Some(at) = at.into_iter().flatten().min() {
            self.timer.as_mut().reset(at);
        }
    }

    fn start_close(&mut self, code: u16, reason: &str, end: End) {
        if self.closing.is_some() {
            return;
        }
        self.closing = Some((end, Instant::now() + TUNING.close_timeout));
        self.shared.lock().streams.end();
        if self.socket.start_send(close_message(code, reason)).is_ok() {
            self.flushing = true;
        }
        self.set_timer();
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        // Before the flush, which a side that does not read can hold up for ever.
        let close = self.shared.lock().close.take();
        if let Some((code, reason)) = close {
            self.start_close(code, &reason, End::Closing(code, reason.clone()));
            // The timer was set anew and must be polled.
            cx.waker().wake_by_ref();
        }
        loop {
            if self.flushing {
                match self.socket.poll_flush(cx) {
                    Poll::Pending => {
                        self.shared.lock().driver = Some(cx.waker().clone());
                        return Ok(());
                    }
                    Poll::Ready(Ok(())) => self.flushing = false,
                    Poll::Ready(Err(error)) => return Err(End::Lost(error.to_string())),
                }
            }
            let Some(message) = self.next_message(cx) else {
                self.shared.told.call();
                return Ok(());
            };
            if let Err(error) = self.socket.start_send(message) {
                return Err(End::Lost(error.to_string()));
            }
            self.flushing = true;
        }
    }

    fn next_message(&mut self, cx: &mut Context<'_>) -> Option<Message> {
        let mut state = self.shared.lock();
        if self.closing.is_none() {
            if let Some(text) = state.texts.pop_front() {
                return Some(Message::Text(text.into()));
            }
            if state.streams.has_message() {
                let mut out = BytesMut::new();
                state.streams.next_message(&mut out);
                if !out.is_empty() {
                    return Some(Message::Binary(out.freeze()));
                }
            }
        }
        state.driver = Some(cx.waker().clone());
        None
    }
}

#[cfg(test)]
mod tests;
