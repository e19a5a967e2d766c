//! When requests are sent. In turn: each caller sends its next one when it has the answer. At a rate: at fixed moments, and the
//! time counts from the moment when a request was due, whether or not somebody was free to send it: a server that stalls makes
//! all those wait that would have come meanwhile ("coordinated omission" would leave them out).

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::clock::Clock;
use super::measurement::{Slice, Wrong};

/// A request that was not answered by then is an error.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// What was due and could not be sent for so long after the end counts as an error.
const CATCH_UP: Duration = Duration::from_secs(2);
/// After an error, so that what fails at once does not fail a million times.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// How long, and at which rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) time: Duration,
    /// Requests a second of all callers together; none: in turn.
    pub(super) rate: Option<f64>,
}

impl Pace {
    /// Lets each caller send what `exchange` does; it tells when its time is over, which may be before it returns.
    pub(super) async fn drive<C>(
        self,
        callers: &[C],
        clock: &Clock,
        exchange: impl AsyncFn(&C) -> Result<Instant, Wrong>,
    ) -> anyhow::Result<Slice> {
        let slice = RefCell::new(Slice::new()?);
        let began = Instant::now();
        let drive = Drive {
            began,
            end: began + self.time,
            every: self.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            sent: Cell::new(0),
            clock,
            slice: &slice,
        };
        join_all(callers.iter().map(|caller| drive.caller(caller, &exchange))).await;
        drive.note_unsent();
        let mut slice = slice.into_inner();
        slice.elapsed = began.elapsed();
        Ok(slice)
    }
}

struct Drive<'a> {
    began: Instant,
    end: Instant,
    every: Option<Duration>,
    sent: Cell<u32>,
    clock: &'a Clock,
    slice: &'a RefCell<Slice>,
}

impl Drive<'_> {
    async fn caller<C>(&self, caller: &C, exchange: &impl AsyncFn(&C) -> Result<Instant, Wrong>) {
        while let Some(due) = self.next().await {
            let answered = tokio::time::timeout(ANSWER_WITHIN, exchange(caller)).await;
            let outcome = answered.unwrap_or_else(|_| {
                let limit = ANSWER_WITHIN.as_secs();
                Err(Wrong(format!("no answer within {limit} s")))
            });
            let failed = outcome.is_err();
            let time = outcome.map(|at| at.saturating_duration_since(due));
            self.slice.borrow_mut().note(time);
            if failed {
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }

    /// When the next request is, or was, due; none when the time is over.
    async fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let Some(every) = self.every else {
            return (now < self.end).then_some(now);
        };
        let due = self.began + every * self.sent.get();
        if due >= self.end || now >= self.end + CATCH_UP {
            return None;
        }
        self.sent.set(self.sent.get() + 1);
        self.clock.sleep_until(due).await;
        Some(due)
    }

    fn note_unsent(&self) {
        let Some(every) = self.every else { return };
        let mut slice = self.slice.borrow_mut();
        while self.began + every * self.sent.get() < self.end {
            self.sent.set(self.sent.get() + 1);
            slice
                .errors
                .note(Wrong("due, and nobody was free to send it".to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::bench::clock::Ticker;

    async fn stall_once(rate: Option<f64>) -> Slice {
        let ticker = Ticker::start().unwrap();
        let time = Duration::from_millis(400);
        let calls = Cell::new(0);
        let exchange = async |_: &()| {
            calls.set(calls.get() + 1);
            if calls.get() == 2 {
                tokio::time::sleep(Duration::from_millis(200)).await;
            } else {
                tokio::task::yield_now().await;
            }
            Ok(Instant::now())
        };
        Pace { time, rate }
            .drive(&[()], ticker.clock(), exchange)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn at_a_rate_a_stall_counts_for_all_who_waited() {
        let slice = stall_once(Some(100.0)).await;
        assert_eq!((slice.done, slice.errors.count()), (40, 0));
        // Twenty came due during the stall; they waited from 190 ms down to nothing.
        let p75 = slice.times.percentile(75.0).unwrap();
        assert!(p75 > 50_000.0, "{p75}");
    }

    #[tokio::test]
    async fn in_turn_a_stall_is_one_long_time_among_many_short_ones() {
        let slice = stall_once(None).await;
        assert!(slice.done > 100, "{}", slice.done);
        assert!(slice.times.percentile(75.0).unwrap() < 50_000.0);
        assert!(slice.times.most().unwrap() >= 199_000.0);
    }

    #[tokio::test]
    async fn what_fails_is_an_error_and_no_time() {
        let ticker = Ticker::start().unwrap();
        let pace = Pace {
            time: Duration::from_millis(50),
            rate: Some(200.0),
        };
        let exchange = async |_: &()| Err(Wrong("status 502".to_owned()));
        let slice = pace.drive(&[()], ticker.clock(), exchange).await.unwrap();
        assert_eq!((slice.done, slice.times.count(), slice.errors.count()), (0, 0, 10));
    }
}
