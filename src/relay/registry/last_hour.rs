//! What a bridge did in the last hour: twelve buckets of five minutes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const BUCKETS: u64 = 12;
const BUCKET: Duration = Duration::from_secs(300);

/// Exchanges added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// How many.
    pub exchanges: u64,
    /// Tokens of their prompts, as far as they are known; none, if they are of no exchange.
    pub prompt: Option<u64>,
    /// Tokens of their answers, likewise.
    pub completion: Option<u64>,
}

impl Done {
    fn add(&mut self, other: Self) {
        let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.saturating_add(other)),
            (one, other) => one.or(other),
        };
        self.exchanges += other.exchanges;
        self.prompt = sum(self.prompt, other.prompt);
        self.completion = sum(self.completion, other.completion);
    }
}

/// The last hour of one bridge, over whatever connections. All its room is there from the beginning: made amid a burst, it would
/// keep the memory around it from being given back.
#[derive(Debug)]
pub struct LastHour(Mutex<Ring>);

impl Default for LastHour {
    fn default() -> Self {
        Self(Mutex::new(Ring::begin()))
    }
}

#[derive(Debug)]
struct Ring {
    began: Instant,
    /// The number of the bucket in use, counted from the beginning.
    newest: u64,
    buckets: [Done; BUCKETS as usize],
}

impl LastHour {
    /// Adds what was done now.
    pub fn add(&self, done: Done) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.turn();
        let newest = (ring.newest % BUCKETS) as usize;
        ring.buckets[newest].add(done);
    }

    /// All of it.
    pub fn sum(&self) -> Done {
        let mut sum = Done::default();
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.turn();
        ring.buckets.iter().for_each(|done| sum.add(*done));
        sum
    }

    /// Whether there was nothing.
    pub fn is_empty(&self) -> bool {
        self.sum().exchanges == 0
    }
}

impl Ring {
    fn begin() -> Self {
        Self {
            began: Instant::now(),
            newest: 0,
            buckets: [Done::default(); BUCKETS as usize],
        }
    }

    /// Empties the buckets whose time has come round again.
    fn turn(&mut self) {
        let now = self.began.elapsed().as_secs() / BUCKET.as_secs();
        for number in (self.newest + 1..=now).take(BUCKETS as usize) {
            self.buckets[(number % BUCKETS) as usize] = Done::default();
        }
        self.newest = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_hour_later_it_is_forgotten_and_what_is_not_known_is_not_nothing() {
        let hour = LastHour::default();
        assert!(hour.is_empty());
        let done = |prompt, completion| Done {
            exchanges: 1,
            prompt,
            completion,
        };
        hour.add(done(None, None));
        assert_eq!(hour.sum(), done(None, None));
        tokio::time::advance(Duration::from_secs(50 * 60)).await;
        hour.add(done(Some(3), None));
        hour.add(done(Some(4), Some(0)));
        let all = Done {
            exchanges: 3,
            prompt: Some(7),
            completion: Some(0),
        };
        assert_eq!(hour.sum(), all);
        tokio::time::advance(Duration::from_secs(10 * 60)).await;
        assert_eq!(hour.sum(), Done { exchanges: 2, ..all });
        tokio::time::advance(Duration::from_secs(24 * 3600)).await;
        assert!(hour.is_empty());
    }
}
