//! One stream of a link: what it received and did not read yet, what it wants to send, and both windows.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::ReadBuf;

use super::TUNING;
use super::frame::{self, ResetCode};
use super::streams::Violation;

/// The state of one stream, kept until both sides are done and its holder let go.
#[derive(Debug)]
pub(super) struct Stream {
    received: VecDeque<BytesMut>,
    /// The size of the receive window now.
    pub(super) window: u32,
    /// How much the other side may still send.
    allowance: u32,
    /// Read, and not given back as credit yet.
    consumed: u32,
    credit_due: u32,
    /// Whether the stream waits in the queue of credits.
    pub(super) credit_queued: bool,
    last_credit: Option<Instant>,
    fin_received: bool,
    reader: Option<Waker>,

    /// Written, and not sent yet; at most [`TUNING`]`.pending` octets.
    pub(super) pending: BytesMut,
    credit: u32,
    /// Whether the stream waits in a queue of senders.
    pub(super) queued: bool,
    /// Whether nothing follows what is pending.
    pub(super) fin_queued: bool,
    /// Whether the FIN went out.
    pub(super) fin_sent: bool,
    writer: Option<Waker>,

    /// How the other side reset the stream.
    pub(super) reset: Option<ResetCode>,
    /// Who waits for a reset.
    pub(super) watcher: Option<Waker>,
    /// Whether nobody holds the stream any more.
    pub(super) orphan: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            received: VecDeque::new(),
            window: TUNING.initial_window,
            allowance: TUNING.initial_window,
            consumed: 0,
            credit_due: 0,
            credit_queued: false,
            last_credit: None,
            fin_received: false,
            reader: None,
            pending: BytesMut::new(),
            credit: TUNING.initial_window,
            queued: false,
            fin_queued: false,
            fin_sent: false,
            writer: None,
            reset: None,
            watcher: None,
            orphan: false,
        }
    }
}

impl Stream {
    /// Whether both sides are done with it.
    pub(super) fn is_closed(&self) -> bool {
        self.reset.is_some() || (self.fin_sent && self.fin_received)
    }

    /// Wakes everybody who waits on the stream.
    pub(super) fn wake(&mut self) {
        for waker in [&mut self.reader, &mut self.writer, &mut self.watcher] {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }

    /// Takes a payload. It is copied: a slice would keep the whole message, and the buffer it was read into, in memory.
    pub(super) fn receive(&mut self, payload: &[u8]) -> Result<(), Violation> {
        if self.fin_received {
            return Err(Violation::AfterEnd);
        }
        let length = payload.len() as u32;
        self.allowance = self.allowance.checked_sub(length).ok_or(Violation::Window)?;
        if self.orphan {
            return Ok(());
        }
        match self.received.back_mut() {
            // Small parts are gathered, so that each costs no more than its bytes.
            Some(last) if last.capacity() - last.len() >= payload.len() => last.extend_from_slice(payload),
            _ => {
                let mut part = BytesMut::with_capacity(payload.len().max(TUNING.part));
                part.extend_from_slice(payload);
                self.received.push_back(part);
            }
        }
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// Takes the other side's FIN; tells whether that closed the stream.
    pub(super) fn receive_fin(&mut self) -> Result<bool, Violation> {
        if self.fin_received {
            return Err(Violation::AfterEnd);
        }
        self.fin_received = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Ok(self.is_closed())
    }

    /// Takes the other side's RESET; tells whether the stream was open until now.
    pub(super) fn receive_reset(&mut self, code: ResetCode) -> bool {
        let was_live = !self.is_closed();
        self.reset = Some(code);
        self.pending = BytesMut::new();
        self.wake();
        was_live
    }

    /// Takes the other side's WINDOW.
    pub(super) fn add_credit(&mut self, credit: u32) -> Result<(), Violation> {
        self.credit = self
            .credit
            .checked_add(credit)
            .filter(|sum| *sum <= i32::MAX as u32)
            .ok_or(Violation::Window)?;
        Ok(())
    }

    /// Reads what has arrived; see `Streams::poll_read`.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        link_ended: bool,
    ) -> Poll<io::Result<()>> {
        // HTTP's own buffer grows with what one read gives it, and stays large for a reader that is slow.
        let most = buf.remaining().min(TUNING.read);
        let mut read = 0;
        while let Some(front) = self.received.front_mut() {
            let length = front.len().min(most - read);
            buf.put_slice(&front[..length]);
            front.advance(length);
            read += length;
            if !front.is_empty() {
                break;
            }
            self.received.pop_front();
        }
        if read > 0 {
            self.consumed += read as u32;
            return Poll::Ready(Ok(()));
        }
        if self.fin_received {
            return Poll::Ready(Ok(()));
        }
        if self.reset.is_some() || link_ended {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether enough was read that the other side should hear of it.
    pub(super) fn owes_credit(&self) -> bool {
        self.consumed >= self.window / 4 && !self.fin_received && self.reset.is_none()
    }

    /// Turns what was read into credit, and grows the window by at most `cap` when the stream uses it up faster than the
    /// round trip gives it back. Returns by how much it grew.
    pub(super) fn give_credit(&mut self, now: Instant, round_trip: Duration, cap: usize) -> usize {
        let held_back = round_trip >= TUNING.far
            && self
                .last_credit
                .is_some_and(|last| now.duration_since(last) <= round_trip / 2);
        self.last_credit = Some(now);
        let room = (TUNING.max_window - self.window).min(u32::try_from(cap).unwrap_or(u32::MAX));
        let growth = if held_back { self.window.min(room) } else { 0 };
        self.window += growth;
        self.credit_due += self.consumed + growth;
        self.consumed = 0;
        growth as usize
    }

    /// Writes the WINDOW that is due.
    pub(super) fn write_credit(&mut self, id: u32, out: &mut BytesMut) {
        self.credit_queued = false;
        let credit = std::mem::take(&mut self.credit_due);
        if self.reset.is_none() && !self.fin_received {
            self.allowance += credit;
            frame::window(out, id, credit);
        }
    }

    /// Takes bytes to send; see `Streams::poll_write`.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.reset.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        if self.fin_queued {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes.len().min(TUNING.pending - self.pending.len());
        if length == 0 && !bytes.is_empty() {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.pending.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    /// Whether data may go out now.
    pub(super) fn has_sendable_data(&self) -> bool {
        self.credit > 0 && !self.pending.is_empty()
    }

    /// Whether data or the FIN may go out now.
    pub(super) fn has_sendable(&self) -> bool {
        self.has_sendable_data() || self.has_sendable_fin()
    }

    fn has_sendable_fin(&self) -> bool {
        self.fin_queued && !self.fin_sent && self.pending.is_empty() && self.reset.is_none()
    }

    /// Writes a DATA of at most `most` octets; tells whether one was written.
    pub(super) fn write_data(&mut self, id: u32, most: usize, out: &mut BytesMut) -> bool {
        let length = self.pending.len().min(most).min(self.credit as usize);
        if length == 0 {
            return false;
        }
        frame::data(out, id, &mut self.pending, length);
        self.credit -= length as u32;
        if self.pending.is_empty() {
            self.pending = BytesMut::new();
        }
        if self.pending.len() <= TUNING.pending / 2
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
        true
    }

    /// Writes the FIN if it is due; tells whether it was written.
    pub(super) fn write_fin(&mut self, id: u32, out: &mut BytesMut) -> bool {
        let due = self.has_sendable_fin();
        if due {
            frame::fin(out, id);
            self.fin_sent = true;
        }
        due
    }
}
