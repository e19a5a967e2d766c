//! The rules of `tunnel.v1` as a state machine: which stream may send what, and when. No I/O: `mux` moves its messages over
//! a WebSocket, the frames themselves are in `frame`, one stream's own state is in `stream`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;

use super::TUNING;
use super::frame::{self, Frame, Kind, ResetCode};
use super::stream::Stream;

/// Which end of the link this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The relay: opens streams.
    Opener,
    /// The bridge: is offered streams.
    Acceptor,
}

/// What the other side did that ends the link (close code 1002).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The message holds no whole frames.
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    /// An id that was never opened, was opened before, or is not that side's to open.
    #[error("a frame names a wrong stream")]
    WrongStream,
    /// More data than the window, or more window than 2^31 - 1.
    #[error("a window is overrun")]
    Window,
    /// Data or an end after the end.
    #[error("a frame follows the end of its stream")]
    AfterEnd,
    /// More streams than this side takes.
    #[error("too many streams")]
    TooManyStreams,
    /// More frames without an effect than any order of events explains.
    #[error("a flood of frames")]
    Flood,
}

/// How many frames without an effect (for streams that ended, of unknown types, WINDOWs) are taken beyond what streams and
/// data explain.
const SLACK: u32 = 1024;
const SLACK_PER_STREAM: u32 = 8;
const MOST_SLACK: u32 = 1 << 20;

/// All streams of one link.
#[derive(Debug)]
pub struct Streams {
    side: Side,
    max_streams: usize,
    streams: HashMap<u32, Stream>,
    /// Streams that count as open between the two sides; a stream may be kept a little longer for its reader.
    live: usize,
    last_id: u32,
    slack: u32,
    /// By how much all receive windows together have grown, for the cap of the link.
    grown: usize,
    round_trip: Option<Duration>,
    offered: VecDeque<u32>,
    resets: VecDeque<(u32, ResetCode)>,
    opens: VecDeque<u32>,
    credits: VecDeque<u32>,
    small: VecDeque<u32>,
    bulk: VecDeque<u32>,
    ended: bool,
}

impl Streams {
    /// No streams yet; at most `max_streams` at once.
    pub fn new(side: Side, max_streams: usize) -> Self {
        Self {
            side,
            max_streams,
            streams: HashMap::new(),
            live: 0,
            last_id: 0,
            slack: SLACK,
            grown: 0,
            round_trip: None,
            offered: VecDeque::new(),
            resets: VecDeque::new(),
            opens: VecDeque::new(),
            credits: VecDeque::new(),
            small: VecDeque::new(),
            bulk: VecDeque::new(),
            ended: false,
        }
    }

    /// Opens a stream; none if as many are open as may be, or the link ended or ran out of ids.
    pub fn open(&mut self) -> Option<u32> {
        let id = if self.last_id == 0 {
            1
        } else {
            self.last_id.checked_add(2)?
        };
        if self.ended || self.live >= self.max_streams {
            return None;
        }
        self.insert(id);
        self.opens.push_back(id);
        Some(id)
    }

    /// The next stream the other side opened.
    pub fn accept(&mut self) -> Option<u32> {
        self.offered.pop_front()
    }

    /// A measure of the link's round trip. Windows grow with the shortest one: the others tell how busy the link was.
    pub fn measure(&mut self, round_trip: Duration) {
        self.round_trip = Some(self.round_trip.map_or(round_trip, |shortest| shortest.min(round_trip)));
    }

    /// Ends every stream: reads and writes fail from now on.
    pub fn end(&mut self) {
        self.ended = true;
        for stream in self.streams.values_mut() {
            stream.wake();
        }
    }

    /// Gives back what a burst left, if there is no stream; tells whether that is so.
    pub fn rest(&mut self) -> bool {
        let rests = self.streams.is_empty() && !self.has_message();
        if rests && self.streams.capacity() > 0 {
            self.streams = HashMap::new();
            for queue in [
                &mut self.offered,
                &mut self.opens,
                &mut self.credits,
                &mut self.small,
                &mut self.bulk,
            ] {
                queue.shrink_to_fit();
            }
            self.resets.shrink_to_fit();
        }
        rests
    }

    /// Whether no stream is open.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether the link ended.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Takes a message of the other side.
    ///
    /// # Errors
    /// A [`Violation`] after which the link must be closed.
    pub fn receive(&mut self, message: Bytes) -> Result<(), Violation> {
        for frame in frame::Frames::new(message) {
            self.receive_frame(frame?)?;
        }
        if self.resets.len() > 2 * self.max_streams {
            return Err(Violation::Flood);
        }
        Ok(())
    }

    fn receive_frame(&mut self, frame: Frame) -> Result<(), Violation> {
        let id = frame.stream;
        match frame.kind {
            Kind::Open => return self.offer(id),
            Kind::Unknown => return self.without_effect(),
            _ => {}
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|s| s.reset.is_none()) else {
            if id == 0 || id > self.last_id || id.is_multiple_of(2) {
                return Err(Violation::WrongStream);
            }
            return match frame.kind {
                Kind::Data(_) => Ok(()),
                _ => self.without_effect(),
            };
        };
        match frame.kind {
            Kind::Data(payload) => stream.receive(&payload),
            Kind::Fin => {
                let closed = stream.receive_fin()?;
                self.closed_if(closed, id);
                Ok(())
            }
            Kind::Window(credit) => {
                stream.add_credit(credit)?;
                self.enqueue(id);
                self.without_effect()
            }
            Kind::Reset(code) => {
                let was_live = stream.receive_reset(code);
                self.live -= usize::from(was_live);
                // Over before anybody took it.
                if let Some(at) = self.offered.iter().position(|offered| *offered == id) {
                    self.offered.remove(at);
                    stream.orphan = true;
                }
                self.remove_if_orphan(id);
                Ok(())
            }
            Kind::Open | Kind::Unknown => Ok(()),
        }
    }

    fn offer(&mut self, id: u32) -> Result<(), Violation> {
        if self.side == Side::Opener || id.is_multiple_of(2) || id <= self.last_id {
            return Err(Violation::WrongStream);
        }
        if self.live >= self.max_streams {
            return Err(Violation::TooManyStreams);
        }
        if self.streams.len() >= 2 * self.max_streams {
            // Readers of streams that are already over have not let go yet.
            self.last_id = id;
            self.resets.push_back((id, ResetCode::Refused));
            return self.without_effect();
        }
        self.insert(id);
        self.offered.push_back(id);
        Ok(())
    }

    fn insert(&mut self, id: u32) {
        self.last_id = id;
        self.live += 1;
        self.slack = (self.slack + SLACK_PER_STREAM).min(MOST_SLACK);
        self.streams.insert(id, Stream::default());
    }

    fn without_effect(&mut self) -> Result<(), Violation> {
        self.slack = self.slack.checked_sub(1).ok_or(Violation::Flood)?;
        Ok(())
    }

    fn closed_if(&mut self, closed: bool, id: u32) {
        if closed {
            self.live -= 1;
            self.remove_if_orphan(id);
        }
    }

    fn remove_if_orphan(&mut self, id: u32) {
        if let Some(stream) = self.streams.get(&id)
            && stream.orphan
        {
            self.grown -= (stream.window - TUNING.initial_window) as usize;
            self.streams.remove(&id);
        }
    }

    /// Reads what has arrived on a stream: bytes, then either its end (nothing read) or the error that ended it.
    pub fn poll_read(&mut self, id: u32, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let result = stream.poll_read(cx, buf, self.ended);
        if stream.owes_credit() {
            let round_trip = self.round_trip.unwrap_or_default();
            let cap = (TUNING.growth as usize).saturating_sub(self.grown);
            self.grown += stream.give_credit(Instant::now(), round_trip, cap);
            if !stream.credit_queued {
                stream.credit_queued = true;
                self.credits.push_back(id);
            }
        }
        result
    }

    /// Takes bytes to send. After the other side's reset they are dropped without an error: what it sent before (an early
    /// answer to an upload) must still be read, and the reading side tells how the stream ended.
    pub fn poll_write(&mut self, id: u32, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let result = stream.poll_write(cx, bytes);
        self.enqueue(id);
        result
    }

    /// No more will be written to the stream.
    pub fn finish(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.fin_queued = true;
            self.enqueue(id);
        }
    }

    /// Ready once the other side reset the stream, or the link ended.
    pub fn poll_reset(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<()> {
        match self.streams.get_mut(&id) {
            Some(stream) if stream.reset.is_none() && !self.ended => {
                stream.watcher = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// The stream's holder let go. What it had finished is still sent; what it had not is reset.
    pub fn release(&mut self, id: u32, code: ResetCode) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.orphan = true;
        if stream.is_closed() || self.ended {
            self.remove_if_orphan(id);
        } else if let Some(at) = self.opens.iter().position(|open| *open == id) {
            // The other side never heard of it.
            self.opens.remove(at);
            self.live -= 1;
            self.remove_if_orphan(id);
        } else if !stream.fin_queued {
            self.reset(id, code);
        } else if stream.fin_sent {
            self.reset(id, ResetCode::Cancel);
        }
    }

    fn reset(&mut self, id: u32, code: ResetCode) {
        self.resets.push_back((id, code));
        self.live -= 1;
        self.remove_if_orphan(id);
    }

    fn enqueue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
            && stream.has_sendable()
        {
            stream.queued = true;
            if stream.pending.len() <= TUNING.small {
                self.small.push_back(id);
            } else {
                self.bulk.push_back(id);
            }
        }
    }

    /// Whether a message could be made now.
    pub fn has_message(&self) -> bool {
        !(self.resets.is_empty()
            && self.opens.is_empty()
            && self.credits.is_empty()
            && self.small.is_empty()
            && self.bulk.is_empty())
    }

    /// Writes the next message: control first, then small writes, then a share of each bulk stream in turn.
    pub fn next_message(&mut self, out: &mut BytesMut) {
        // Resets go before opens, or the other side would count a stream too many.
        while let Some((id, code)) = next(&mut self.resets, out) {
            frame::reset(out, id, code);
        }
        while let Some(id) = next(&mut self.opens, out) {
            frame::open(out, id);
        }
        while let Some(id) = next(&mut self.credits, out) {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.write_credit(id, out);
            }
        }
        while let Some(id) = next(&mut self.small, out) {
            self.send(id, TUNING.small, out);
        }
        // One bulk frame at least, so that small ones cannot starve it.
        while let Some(id) = self.bulk.pop_front() {
            self.send(id, TUNING.bulk_frame, out);
            if out.len() >= TUNING.message {
                break;
            }
        }
    }

    fn send(&mut self, id: u32, most: usize, out: &mut BytesMut) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.queued = false;
        let sent = stream.write_data(id, most, out);
        self.slack = (self.slack + u32::from(sent)).min(MOST_SLACK);
        if stream.has_sendable_data() {
            stream.queued = true;
            self.bulk.push_back(id);
        } else if stream.write_fin(id, out) {
            let closed = stream.is_closed();
            let orphan = stream.orphan;
            self.closed_if(closed, id);
            if orphan && !closed {
                self.reset(id, ResetCode::Cancel);
            }
        }
    }
}

fn next<T>(queue: &mut VecDeque<T>, out: &BytesMut) -> Option<T> {
    if out.len() < TUNING.message {
        queue.pop_front()
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
