//! What is noted while measuring: times in a histogram, errors by their reason, rounds one by one. No request counts twice, and
//! none that failed counts as an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;

/// Three digits that matter.
const DIGITS: u8 = 3;
/// Whatever took longer counts as this.
const LONGEST: Duration = Duration::from_secs(3600);
/// Different reasons that are told apart.
const MOST_REASONS: usize = 8;

/// Times, precise to a thousandth of themselves.
#[derive(Debug, Clone)]
pub(super) struct Times(Histogram<u32>);

impl Times {
    /// None yet.
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut histogram = Histogram::new(DIGITS).context("cannot make a histogram")?;
        histogram.auto(true);
        Ok(Self(histogram))
    }

    /// Notes one.
    pub(super) fn note(&mut self, time: Duration) {
        let nanos = time.min(LONGEST).as_nanos() as u64;
        // It grows as it must.
        let _ = self.0.record(nanos);
    }

    /// Notes all of the others.
    pub(super) fn add(&mut self, other: &Self) {
        // It grows as it must.
        let _ = self.0.add(&other.0);
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// So many percent of them took this or less; none if there are none. In microseconds.
    pub(super) fn percentile(&self, percent: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| us(self.0.value_at_percentile(percent)))
    }

    /// The longest, microseconds.
    pub(super) fn most(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| us(self.0.max()))
    }

    /// Their mean, microseconds.
    pub(super) fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.mean() / 1e3)
    }

    /// The whole distribution: percent and microseconds, ever closer to 100 percent.
    pub(super) fn distribution(&self) -> Vec<[f64; 2]> {
        let points = self.0.iter_quantiles(4);
        points
            .map(|point| [point.quantile_iterated_to() * 100.0, us(point.value_iterated_to())])
            .collect()
    }
}

fn us(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Why a request counts as an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Wrong(pub(super) String);

/// Errors, by their reason.
#[derive(Debug, Clone, Default)]
pub(super) struct Errors {
    reasons: BTreeMap<String, u64>,
}

impl Errors {
    /// Notes one.
    pub(super) fn note(&mut self, wrong: Wrong) {
        self.count_in(wrong.0, 1);
    }

    /// Notes all of the others.
    pub(super) fn add(&mut self, other: &Self) {
        for (reason, count) in &other.reasons {
            self.count_in(reason.clone(), *count);
        }
    }

    fn count_in(&mut self, reason: String, count: u64) {
        let known = self.reasons.contains_key(&reason);
        let reason = if known || self.reasons.len() < MOST_REASONS {
            reason
        } else {
            "for other reasons".to_owned()
        };
        *self.reasons.entry(reason).or_default() += count;
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.reasons.values().sum()
    }

    /// Why, and how often.
    pub(super) fn reasons(&self) -> impl Iterator<Item = (&str, u64)> {
        self.reasons.iter().map(|(reason, count)| (reason.as_str(), *count))
    }
}

/// CPU time of the parts; none where it cannot be told apart.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    pub(super) relay: Option<Duration>,
    pub(super) bridge: Option<Duration>,
    pub(super) upstream: Option<Duration>,
    pub(super) caller: Option<Duration>,
}

impl Spent {
    /// What was spent since an earlier look.
    pub(super) fn since(self, earlier: Self) -> Self {
        self.with(earlier, Duration::saturating_sub)
    }

    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        self.with(other, Duration::saturating_add)
    }

    fn with(self, other: Self, both: fn(Duration, Duration) -> Duration) -> Self {
        let with = |one: Option<Duration>, other: Option<Duration>| Some(both(one?, other?));
        Self {
            relay: with(self.relay, other.relay),
            bridge: with(self.bridge, other.bridge),
            upstream: with(self.upstream, other.upstream),
            caller: with(self.caller, other.caller),
        }
    }
}

/// What one way brought in one round of one scenario.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    /// Of requests, gaps between tokens, or reconnecting.
    pub(super) times: Times,
    /// Of tokens from the upstream to the caller.
    pub(super) transit: Times,
    /// How much gaps grew or shrank on the way.
    pub(super) deviation: Times,
    /// MB/s of each download and of each upload.
    pub(super) rates: [Vec<f64>; 2],
    /// Requests or tokens that were right.
    pub(super) done: u64,
    pub(super) errors: Errors,
    pub(super) elapsed: Duration,
    pub(super) spent: Spent,
    /// Octets between bridge and relay, and for how many tokens.
    pub(super) wire: Option<(u64, u64)>,
}

impl Slice {
    /// Nothing yet.
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            times: Times::new()?,
            transit: Times::new()?,
            deviation: Times::new()?,
            rates: Default::default(),
            done: 0,
            errors: Errors::default(),
            elapsed: Duration::ZERO,
            spent: Spent::default(),
            wire: None,
        })
    }

    /// Notes the outcome of one request.
    pub(super) fn note(&mut self, outcome: Result<Duration, Wrong>) {
        match outcome {
            Ok(time) => {
                self.done += 1;
                self.times.note(time);
            }
            Err(wrong) => self.errors.note(wrong),
        }
    }
}

/// One round in short.
#[derive(Debug, Clone, Copy, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Round {
    pub(super) done: u64,
    pub(super) errors: u64,
    pub(super) per_second: f64,
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) max_us: Option<f64>,
}

/// What one way brought in all rounds of one scenario.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) way: &'static str,
    pub(super) all: Slice,
    pub(super) rounds: Vec<Round>,
}

impl Series {
    /// Nothing yet.
    pub(super) fn new(way: &'static str) -> anyhow::Result<Self> {
        Ok(Self {
            way,
            all: Slice::new()?,
            rounds: Vec::new(),
        })
    }

    /// One round more.
    pub(super) fn add(&mut self, slice: &Slice) {
        self.rounds.push(Round {
            done: slice.done,
            errors: slice.errors.count(),
            per_second: slice.done as f64 / slice.elapsed.as_secs_f64().max(1e-9),
            p50_us: slice.times.percentile(50.0),
            p99_us: slice.times.percentile(99.0),
            max_us: slice.times.most(),
        });
        let all = &mut self.all;
        all.times.add(&slice.times);
        all.transit.add(&slice.transit);
        all.deviation.add(&slice.deviation);
        for (mine, others) in all.rates.iter_mut().zip(&slice.rates) {
            mine.extend(others);
        }
        all.done += slice.done;
        all.errors.add(&slice.errors);
        all.elapsed += slice.elapsed;
        all.spent = if self.rounds.len() == 1 {
            slice.spent
        } else {
            all.spent.and(slice.spent)
        };
        if let Some((octets, tokens)) = slice.wire {
            let (before, counted) = all.wire.unwrap_or_default();
            all.wire = Some((before + octets, counted + tokens));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn percentiles_are_right_to_a_thousandth() {
        let mut times = Times::new().unwrap();
        assert_eq!((times.percentile(50.0), times.most(), times.mean()), (None, None, None));
        (1..=10_000).for_each(|n| times.note(us(n)));
        for (percent, expected) in [(50.0, 5_000.0), (90.0, 9_000.0), (99.9, 9_990.0), (100.0, 10_000.0)] {
            let found = times.percentile(percent).unwrap();
            assert!((found / expected - 1.0).abs() < 0.002, "{percent}: {found}");
        }
        let distribution = times.distribution();
        assert!(
            distribution
                .windows(2)
                .all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1])
        );
        assert_eq!(times.count(), 10_000);
    }

    #[test]
    fn an_error_is_no_time_and_reasons_are_counted_and_bounded() {
        let mut slice = Slice::new().unwrap();
        slice.note(Ok(us(5)));
        for number in 0..20 {
            slice.note(Err(Wrong(format!("reason {number}"))));
            slice.note(Err(Wrong("the same".to_owned())));
        }
        assert_eq!((slice.done, slice.times.count(), slice.errors.count()), (1, 1, 40));
        assert!(slice.errors.reasons().count() <= MOST_REASONS + 1);
        assert!(
            slice
                .errors
                .reasons()
                .any(|(reason, count)| (reason, count) == ("the same", 20))
        );
    }

    #[test]
    fn rounds_add_up() {
        let mut series = Series::new("ws").unwrap();
        for round in 1..=3_u64 {
            let mut slice = Slice::new().unwrap();
            (0..10).for_each(|_| slice.note(Ok(us(100 * round))));
            slice.note(Err(Wrong("late".to_owned())));
            slice.elapsed = Duration::from_millis(500);
            slice.spent.relay = Some(us(7));
            slice.wire = Some((100, 1));
            series.add(&slice);
        }
        let all = &series.all;
        assert_eq!((all.done, all.errors.count(), all.wire), (30, 3, Some((300, 3))));
        assert_eq!((all.spent.relay, all.spent.bridge), (Some(us(21)), None));
        let p50: Vec<f64> = series.rounds.iter().filter_map(|round| round.p50_us).collect();
        assert!(p50.windows(2).all(|pair| pair[0] < pair[1]), "{p50:?}");
        assert!((series.rounds[0].per_second - 20.0).abs() < 0.1);
    }
}
