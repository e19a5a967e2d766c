//! What probe and bench measure with: an upstream that notes when what happened, an ephemeral bridge before it, and a caller;
//! besides, a pattern for bodies and the lines of streams. All live in this process, so that their clocks are one.

pub(super) mod bridge;
pub(super) mod caller;
pub(super) mod lines;
pub(super) mod pattern;
pub(super) mod upstream;

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// When this process began to measure.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since the process began to measure: what one part of the rig notes, another can compare.
pub(super) fn now() -> Duration {
    EPOCH.elapsed()
}

/// The same in microseconds, as it travels in bodies.
pub(super) fn now_us() -> u64 {
    u64::try_from(now().as_micros()).unwrap_or(u64::MAX)
}
