//! From the moment when the network between bridge and relay drops every connection to the first answer after it. Each time is
//! another bridge's first: one that is cut again and again waits longer and longer.

use std::time::{Duration, Instant};

use tokio_util::task::TaskTracker;

use super::small;
use crate::cmd::bench::clock::Ticker;
use crate::cmd::bench::measurement::{Slice, Wrong};
use crate::cmd::bench::stage::{Link, Way};
use crate::cmd::rig::bridge::said;

/// Longer is not waited.
const WITHIN: Duration = Duration::from_secs(20);
/// After a request that failed meanwhile.
const AGAIN: Duration = Duration::from_millis(2);

/// Once.
pub(super) async fn measure(link: &Link, way: &Way, ticker: &Ticker) -> anyhow::Result<Slice> {
    let mut slice = Slice::new()?;
    let Some(caller) = way.callers.first() else {
        return Ok(slice);
    };
    let goodbyes = TaskTracker::new();
    let (bridge, wire) = link.wired(ticker, caller, &goodbyes).await?;
    let caller = caller.to_bridge(bridge.name());
    // Whatever a link does after it was made is over.
    for _ in 0..3 {
        if let Err(wrong) = small::exchange(&caller).await {
            slice.errors.note(wrong);
        }
    }
    let began = Instant::now();
    wire.cut().await;
    let answered = tokio::time::timeout(WITHIN, async {
        loop {
            match small::exchange(&caller).await {
                Ok(at) => return at,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    });
    let outcome = answered.await.map(|at| at - began);
    slice.note(outcome.map_err(|_| Wrong(format!("no answer within {} s after a cut", WITHIN.as_secs()))));
    slice.elapsed = began.elapsed();
    drop(bridge);
    said(&goodbyes).await;
    Ok(slice)
}
