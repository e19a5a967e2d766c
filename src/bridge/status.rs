//! What a bridge is doing, for whoever shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// Where the bridge stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// On its way to the relay.
    Connecting,
    /// Connected: requests arrive.
    Connected {
        /// The name the relay gave it.
        name: String,
        /// The transport's name.
        transport: &'static str,
        /// Why it is this one, where that is worth telling.
        why: Option<String>,
    },
    /// Not connected, and waiting to try again.
    Waiting {
        /// Why, in a sentence.
        why: String,
    },
}

/// Shared by all parts of a bridge; cheap to update.
#[derive(Debug)]
pub struct Status {
    phase: watch::Sender<Phase>,
    upstream_away: watch::Sender<bool>,
    in_flight: watch::Sender<u64>,
    done: AtomicU64,
    bytes: AtomicU64,
    round_trip_us: AtomicU64,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Connecting),
            upstream_away: watch::Sender::new(false),
            in_flight: watch::Sender::new(0),
            done: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            round_trip_us: AtomicU64::new(0),
        }
    }
}

/// The figures of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Exchanges under way.
    pub in_flight: u64,
    /// Exchanges that are over.
    pub done: u64,
    /// Octets of all response bodies.
    pub bytes: u64,
    /// To the relay and back; none before the first measure.
    pub round_trip: Option<Duration>,
}

impl Status {
    /// Tells of a new phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// The phase, and a way to wait for the next.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Tells whether the local server answers; true if that is news.
    pub fn set_upstream_away(&self, away: bool) -> bool {
        self.upstream_away
            .send_if_modified(|before| std::mem::replace(before, away) != away)
    }

    /// Whether the local server did not answer last time.
    pub fn is_upstream_away(&self) -> bool {
        *self.upstream_away.borrow()
    }

    /// An exchange begins; the returned value ends it when dropped.
    pub fn begin(self: &Arc<Self>) -> Running {
        self.in_flight.send_modify(|count| *count += 1);
        Running(Arc::clone(self))
    }

    /// How many exchanges are under way, and a way to wait for a change.
    pub fn in_flight(&self) -> watch::Receiver<u64> {
        self.in_flight.subscribe()
    }

    /// Notes the round trip to the relay.
    pub fn set_round_trip(&self, round_trip: Option<Duration>) {
        let us = round_trip.map_or(0, |time| time.as_micros() as u64);
        self.round_trip_us.store(us, Ordering::Relaxed);
    }

    /// The figures now.
    pub fn figures(&self) -> Figures {
        Figures {
            in_flight: *self.in_flight.borrow(),
            done: self.done.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            round_trip: match self.round_trip_us.load(Ordering::Relaxed) {
                0 => None,
                us => Some(Duration::from_micros(us)),
            },
        }
    }
}

/// An exchange under way.
#[derive(Debug)]
pub struct Running(Arc<Status>);

impl Running {
    /// Counts octets of its response body.
    pub fn add_bytes(&self, count: usize) {
        self.0.bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.in_flight.send_modify(|count| *count -= 1);
        self.0.done.fetch_add(1, Ordering::Relaxed);
    }
}
