//! A histogram of times that costs two atomic additions an observation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, MetricEncoder, NoLabelSet};

/// Upper bounds of all buckets but the last.
pub(super) const BUCKETS: usize = 16;

/// For exchanges: from an embedding on the desktop beside the relay to the longest answer of a slow model, seconds.
pub(super) static OF_EXCHANGES: [f64; BUCKETS] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0,
];

/// For what takes no time over WebSocket, and up to the next poll over polling, seconds.
pub(super) static OF_CANCELS: [f64; BUCKETS] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Counts how long something took.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64; BUCKETS],
    counts: [AtomicU64; BUCKETS + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// With nothing in it.
    pub(super) fn new(bounds: &'static [f64; BUCKETS]) -> Self {
        Self {
            bounds,
            counts: Default::default(),
            sum_us: AtomicU64::new(0),
        }
    }

    /// It took so long.
    pub(super) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = self
            .bounds
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BUCKETS);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// Writes it, unless nothing was ever observed.
    pub(super) fn encode(
        &self,
        metric: &mut MetricEncoder<'_>,
        labels: &impl EncodeLabelSet,
    ) -> Result<(), std::fmt::Error> {
        let mut buckets = [(f64::INFINITY, 0); BUCKETS + 1];
        for (at, (bucket, count)) in buckets.iter_mut().zip(&self.counts).enumerate() {
            bucket.0 = self.bounds.get(at).copied().unwrap_or(f64::INFINITY);
            bucket.1 = count.load(Ordering::Relaxed);
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        if count == 0 {
            return Ok(());
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let mut metric = metric.encode_family(labels)?;
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(&OF_EXCHANGES);
        for (ms, bucket) in [(0, 0), (5, 0), (6, 1), (899_000, 15), (900_001, 16)] {
            let before = histogram.counts[bucket].load(Ordering::Relaxed);
            histogram.observe(Duration::from_millis(ms));
            assert_eq!(histogram.counts[bucket].load(Ordering::Relaxed), before + 1, "{ms}");
        }
        assert_eq!(histogram.sum_us.load(Ordering::Relaxed), 1_799_012_000);
    }

    #[test]
    fn bounds_rise() {
        for bounds in [OF_EXCHANGES, OF_CANCELS] {
            assert!(bounds.is_sorted());
        }
    }
}
