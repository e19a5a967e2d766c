//! How long to wait before the next try: full jitter (each wait drawn evenly between nothing and a growing bound), so that many
//! bridges do not come back in the same moment.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
/// Longer than this nobody is obeyed: what answers may be a captive portal.
const MOST_ASKED: Duration = Duration::from_secs(600);
const MOST: Duration = Duration::from_secs(4);

/// Waits that grow with each failure.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// As after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure; never shorter than what the relay asked for.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(16)).min(MOST);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random_fraction()) + asked.unwrap_or_default().min(MOST_ASKED)
    }
}

/// A time around this one, half of it longer or shorter at the most.
pub fn jitter(time: Duration) -> Duration {
    time.mul_f64(0.5 + random_fraction())
}

/// Evenly between 0 and 1; 1 if the system gives no random numbers.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_wait_is_bounded_and_not_shorter_than_asked(failures in 0u32..100, asked in 0u64..100) {
            let asked = Duration::from_secs(asked);
            let mut backoff = Backoff { failures };
            let wait = backoff.next(Some(asked));
            prop_assert!(wait >= asked && wait <= asked + MOST);
        }
    }

    #[test]
    fn nobody_makes_a_bridge_wait_for_years() {
        let mut backoff = Backoff { failures: 16 };
        for _ in 0..50 {
            assert!(backoff.next(Some(Duration::MAX)) <= MOST_ASKED + MOST);
        }
    }

    #[test]
    fn waits_differ_and_grow_and_begin_anew() {
        let mut backoff = Backoff::default();
        assert!(backoff.next(None) <= FIRST);
        let later: Vec<Duration> = (0..50).map(|_| backoff.next(None)).collect();
        assert!(later.iter().any(|wait| *wait > FIRST));
        assert!(later.windows(2).any(|pair| pair[0] != pair[1]));
        backoff.reset();
        assert!(backoff.next(None) <= FIRST);
    }
}
