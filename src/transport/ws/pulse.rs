//! The life of a link: when something was last heard, and how long an answer takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// When something was last heard, and how long an answer takes.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    received_ms: AtomicU64,
    round_trip_us: AtomicU64,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            received_ms: AtomicU64::new(0),
            round_trip_us: AtomicU64::new(0),
        }
    }

    /// How long nothing has been heard.
    pub fn silence(&self) -> Duration {
        let received = Duration::from_millis(self.received_ms.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(received)
    }

    /// The newest measure; none before the first.
    pub fn round_trip(&self) -> Option<Duration> {
        match self.round_trip_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    pub(super) fn received(&self, now: Instant) {
        let ms = now.duration_since(self.start).as_millis() as u64;
        self.received_ms.store(ms, Ordering::Relaxed);
    }

    pub(super) fn measured(&self, round_trip: Duration) {
        let us = (round_trip.as_micros() as u64).max(1);
        self.round_trip_us.store(us, Ordering::Relaxed);
    }
}
