//! A bridge 40 ms away: one large download, and small requests beside it (d).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::crowd::{Caller, Crowd};
use super::delay;
use super::process::{Bridge, Relay, token};
use super::table::{Goal, Table};
use super::upstream::{BULK_SIZE, Upstream};

const ONE_WAY: Duration = Duration::from_millis(20);
/// Round trip and 10 ms.
const GOAL: f64 = 50.0;
/// Callers beside the download.
const BESIDE: usize = 4;

#[derive(Debug, Default)]
struct Figures {
    alone: Vec<f64>,
    first: Vec<f64>,
    again: Vec<f64>,
    median: Vec<f64>,
    worst: Vec<f64>,
}

/// Measures; each round on a fresh link, whose windows have not grown yet.
pub(crate) async fn measure(quick: bool, table: &mut Table) {
    let upstream = Upstream::start();
    let mut figures = Figures::default();
    for _ in 0..if quick { 3 } else { 9 } {
        round(&upstream, &mut figures).await;
    }
    let limit = Goal::AtMost(GOAL);
    table.add("d  24 MiB, 40 ms away", "MB/s", figures.first, Goal::AtLeast(30.0));
    table.add("   … once more on the same link", "MB/s", figures.again, Goal::None);
    table.add("d  small request beside it, p50", "ms", figures.median, limit);
    table.add(
        "d  small request beside it, worst of a round",
        "ms",
        figures.worst,
        limit,
    );
    table.add("   … p50 with nothing beside it", "ms", figures.alone, Goal::None);
}

async fn round(upstream: &Upstream, figures: &mut Figures) {
    let relay = Relay::start(&[]);
    let token = token("ann");
    let proxy = delay::start(relay.address, ONE_WAY);
    let _bridge = Bridge::start(proxy, upstream.address, &token);
    let mut beside = Crowd::connect(BESIDE, relay.address, Some(&token)).await;
    beside.ask_for(Duration::from_millis(300)).await;
    figures
        .alone
        .push(beside.ask_for(Duration::from_millis(300)).await.median() / 1e3);

    let mut caller = Caller::connect(relay.address, Some(&token)).await;
    let under_way = Arc::new(AtomicBool::new(true));
    let condition = {
        let under_way = Arc::clone(&under_way);
        move || under_way.load(Ordering::Relaxed)
    };
    let download = async {
        figures.first.push(download(&mut caller).await);
        figures.again.push(download(&mut caller).await);
        under_way.store(false, Ordering::Relaxed);
    };
    let (slice, ()) = tokio::join!(beside.ask_while(condition), download);
    figures.median.push(slice.median() / 1e3);
    figures.worst.push(slice.worst() / 1e3);
}

/// One download, in MB/s from the request to the last byte.
async fn download(caller: &mut Caller) -> f64 {
    let start = Instant::now();
    caller.bulk().await;
    BULK_SIZE as f64 / 1e6 / start.elapsed().as_secs_f64()
}
