//! How long a connection may be silent before something on the way cuts it: learned from cuts, and tried anew slowly.

use std::time::Duration;

use tokio::time::Instant;

/// Shorter than this is not learned.
const LEAST: Duration = Duration::from_secs(1);
/// A silence that was cut is undercut by this factor.
const MARGIN: f64 = 0.6;
/// After so many that survived, a longer silence is tried.
const SURVIVALS: u32 = 20;
const GROWTH: f64 = 1.25;
/// For so long, the length that was cut is not tried again.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The longest silence that survives, as far as is known.
#[derive(Debug, Clone)]
pub struct Pace {
    most: Duration,
    current: Duration,
    survived: u32,
    /// The shortest silence that was cut, and when.
    cut: Option<(Duration, Instant)>,
    suspected: Option<Duration>,
}

impl Pace {
    /// Nothing is known: silences of `most` are tried.
    pub fn new(most: Duration) -> Self {
        Self {
            most,
            current: most,
            survived: 0,
            cut: None,
            suspected: None,
        }
    }

    /// How long a silence should be at the most.
    pub fn current(&self) -> Duration {
        self.current
    }

    /// A connection was lost after it had been silent for so long. Whether something cut it or the relay went away is known
    /// when the next one is made: see [`Pace::reached`].
    pub fn lost_after(&mut self, silence: Duration) {
        if silence >= LEAST {
            self.suspected = Some(silence);
        }
    }

    /// The relay is there, at once: it was a cut.
    pub fn reached(&mut self) {
        if let Some(silence) = self.suspected.take() {
            self.current = self.current.min(silence).mul_f64(MARGIN).max(LEAST);
            self.survived = 0;
            self.cut = Some((silence, Instant::now()));
        }
    }

    /// The relay is not there: it was no cut.
    pub fn not_reached(&mut self) {
        self.suspected = None;
    }

    /// A silence of the current length was survived.
    pub fn survived(&mut self) {
        self.survived += 1;
        if self.survived < SURVIVALS {
            return;
        }
        self.survived = 0;
        let longer = self.current.mul_f64(GROWTH).min(self.most);
        let known = self.cut.filter(|(_, at)| at.elapsed() < REMEMBERED);
        if known.is_none_or(|(cut, _)| longer < cut.mul_f64(0.9)) {
            self.current = longer;
        }
    }

    /// Another network: nothing is known of it.
    pub fn forget(&mut self) {
        *self = Self::new(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(25);

    fn cut(pace: &mut Pace, after: Duration) {
        pace.lost_after(after);
        pace.reached();
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_is_undercut_and_never_below_a_second() {
        let mut pace = Pace::new(MOST);
        cut(&mut pace, Duration::from_secs(5));
        assert_eq!(pace.current(), Duration::from_secs(3));
        for _ in 0..9 {
            let shorter = pace.current();
            cut(&mut pace, shorter);
        }
        assert_eq!(pace.current(), LEAST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_survives_grows_slowly_and_not_to_what_was_cut_within_the_hour() {
        let mut pace = Pace::new(MOST);
        cut(&mut pace, Duration::from_secs(5));
        for _ in 0..1000 {
            pace.survived();
        }
        assert!(pace.current() < Duration::from_secs(5));
        tokio::time::advance(REMEMBERED).await;
        for _ in 0..1000 {
            pace.survived();
        }
        assert_eq!(pace.current(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_went_away_teaches_nothing() {
        let mut pace = Pace::new(MOST);
        pace.lost_after(Duration::from_secs(7));
        pace.not_reached();
        pace.reached();
        assert_eq!(pace.current(), MOST);
    }
}
