//! How many requests a token may make in a time: a bucket for each, kept as the moment at which it is full again.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::auth::Identity;
use super::error::{Code, Error};

/// Buckets that are kept at once.
const MOST: usize = 65_536;

/// A limit of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// One request may be made in each such time.
    pub every: Duration,
    /// So many may be made at once after a pause, one at least.
    pub burst: u32,
}

impl Rate {
    /// One request in each such time; after a pause, those of two seconds at once.
    pub fn every(every: Duration) -> Self {
        let in_two_seconds = Duration::from_secs(2).as_nanos() / every.as_nanos().max(1);
        Self {
            every,
            burst: u32::try_from(in_two_seconds).unwrap_or(u32::MAX).max(1),
        }
    }

    /// What both allow: no more in a time than the slower one, no more at once than the one with the smaller burst.
    fn or_slower(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| Self {
            every: self.every.max(other.every),
            burst: self.burst.min(other.burst),
        })
    }
}

/// Why a text is no rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a number and a time, as in 20/s, 600/m or 1000/h")]
pub struct BadRate;

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let (count, unit) = text.split_once('/').ok_or(BadRate)?;
        let count: u32 = count.parse().map_err(|_| BadRate)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(BadRate),
        };
        if (1..=1_000_000).contains(&count) {
            Ok(Self::every(Duration::from_secs(seconds) / count))
        } else {
            Err(BadRate)
        }
    }
}

/// What each token has left.
#[derive(Debug)]
pub struct Buckets {
    rate: Option<Rate>,
    /// By credential. A bucket that is full is like one that is not here.
    full_at: Mutex<HashMap<u64, Instant>>,
}

impl Buckets {
    /// All full; without a rate, everybody may make as many requests as they like.
    pub fn new(rate: Option<Rate>) -> Self {
        Self {
            rate,
            full_at: Mutex::default(),
        }
    }

    /// Takes one request out of the token's bucket.
    ///
    /// # Errors
    /// `rate_limited`, with the time after which there is one.
    pub fn take(&self, identity: &Identity) -> Result<(), Error> {
        let rate = match (self.rate, identity.rate) {
            (Some(rate), own) => Some(rate.or_slower(own)),
            (None, own) => own,
        };
        let taken = rate.map_or(Ok(()), |rate| self.take_of(rate, identity.credential));
        taken.map_err(|wait| {
            let is_own = identity
                .rate
                .is_some_and(|own| rate.is_some_and(|rate| rate.every == own.every));
            let detail = if is_own {
                "too many requests with this key (it was made with a limit of its own); try again in a moment"
            } else {
                "too many requests with this token (the relay's option --rate); try again in a moment"
            };
            Error::new(Code::RateLimited, detail).retry_after(wait)
        })
    }

    fn take_of(&self, rate: Rate, credential: u64) -> Result<(), Duration> {
        let now = Instant::now();
        let mut buckets = self.lock();
        let full_at = buckets.get(&credential).map_or(now, |full_at| (*full_at).max(now));
        let most = rate.every.saturating_mul(rate.burst.saturating_sub(1));
        let wait = (full_at - now).saturating_sub(most);
        if !wait.is_zero() {
            return Err(wait);
        }
        if buckets.len() >= MOST && !buckets.contains_key(&credential) {
            make_room(&mut buckets, now);
        }
        buckets.insert(credential, full_at + rate.every);
        Ok(())
    }

    /// Forgets those that are full again; to be called now and then.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_, full_at| *full_at > now);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the full ones, or else the one that is full next.
fn make_room(buckets: &mut HashMap<u64, Instant>, now: Instant) {
    buckets.retain(|_, full_at| *full_at > now);
    if buckets.len() >= MOST {
        let next = buckets
            .iter()
            .min_by_key(|(_, full_at)| **full_at)
            .map(|(credential, _)| *credential);
        if let Some(next) = next {
            buckets.remove(&next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn buckets(burst: u32) -> Buckets {
        Buckets::new(Some(Rate {
            every: SECOND / 20,
            burst,
        }))
    }

    fn take(buckets: &Buckets, credential: u64) -> Result<(), Duration> {
        buckets.take_of(buckets.rate.unwrap(), credential)
    }

    fn taken(buckets: &Buckets, credential: u64) -> usize {
        (0..1000).take_while(|_| take(buckets, credential).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate_for_each_token_apart() {
        let buckets = buckets(40);
        assert_eq!(taken(&buckets, 1), 40);
        assert_eq!(take(&buckets, 1), Err(SECOND / 20));
        assert_eq!(taken(&buckets, 2), 40);
        tokio::time::advance(SECOND).await;
        assert_eq!(taken(&buckets, 1), 20);
        tokio::time::advance(10 * SECOND).await;
        assert_eq!(taken(&buckets, 1), 40);
        // What was refused costs nothing.
        tokio::time::advance(SECOND / 20).await;
        assert_eq!(take(&buckets, 1), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_once_is_the_least() {
        let buckets = buckets(1);
        assert_eq!(taken(&buckets, 1), 1);
        tokio::time::advance(SECOND / 20).await;
        assert_eq!(taken(&buckets, 1), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded_and_swept() {
        let buckets = buckets(2);
        for credential in 0..MOST as u64 {
            take(&buckets, credential).unwrap();
        }
        tokio::time::advance(SECOND / 40).await;
        assert_eq!(take(&buckets, u64::MAX), Ok(()));
        assert_eq!(buckets.lock().len(), MOST);
        tokio::time::advance(SECOND).await;
        buckets.sweep();
        assert!(buckets.lock().is_empty());
    }

    #[test]
    fn the_slower_of_two_rates_counts_and_one_is_read_as_options_have_it() {
        let rate = |text: &str| text.parse::<Rate>();
        assert_eq!(rate("20/s"), Ok(Rate::every(SECOND / 20)));
        assert_eq!(rate("20/s").unwrap().burst, 40);
        assert_eq!(rate("1/h").unwrap().burst, 1);
        for text in ["", "20", "0/s", "-1/s", "1/d", "2000000/s"] {
            assert_eq!(rate(text), Err(BadRate), "{text}");
        }
        let slow = rate("600/m").unwrap();
        assert_eq!(slow.or_slower(rate("20/s").ok()), slow);
        assert_eq!(rate("20/s").unwrap().or_slower(Some(slow)), slow);
        assert_eq!(slow.or_slower(None), slow);
        let few = Rate {
            every: SECOND / 20,
            burst: 1,
        };
        let both = Rate {
            every: SECOND / 10,
            burst: 1,
        };
        assert_eq!((few.or_slower(Some(slow)), slow.or_slower(Some(few))), (both, both));
    }
}
