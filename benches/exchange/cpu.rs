//! CPU time of relay and bridge together, per small request and per streamed chunk (e).

use std::time::Duration;

use super::crowd::Caller;
use super::speed::{CROWD, Path};
use super::table::{Goal, Table};

/// What relay and bridge spent between two looks.
#[derive(Debug, Default)]
struct Spent {
    relay: Vec<f64>,
    bridge: Vec<f64>,
}

/// How much both had spent at one moment.
#[derive(Debug)]
struct Look(Duration, Duration);

impl Look {
    fn at(path: &Path) -> Self {
        Self(path.relay.process.cpu(), path.bridge.process.cpu())
    }
}

impl Spent {
    /// Notes what was spent since `before`, in microseconds per each of `count`.
    fn note(&mut self, path: &Path, before: &Look, count: usize) {
        let now = Look::at(path);
        let each = |spent: Duration| spent.as_secs_f64() * 1e6 / count as f64;
        self.relay.push(each(now.0 - before.0));
        self.bridge.push(each(now.1 - before.1));
    }

    fn tell(self, figure: &str, table: &mut Table) {
        let both = self
            .relay
            .iter()
            .zip(&self.bridge)
            .map(|(relay, bridge)| relay + bridge);
        table.add(format!("e  CPU per {figure}"), "µs", both.collect(), Goal::None);
        table.add("   … of it the relay", "µs", self.relay, Goal::None);
        table.add("   … of it the bridge", "µs", self.bridge, Goal::None);
    }
}

/// Per small request, of many callers and of one.
pub(crate) async fn per_request(path: &Path, quick: bool, table: &mut Table) {
    let (rounds, time) = if quick { (3, 500) } else { (7, 2000) };
    for (size, figure) in [(CROWD, "small request, 64 callers"), (1, "small request, 1 caller")] {
        let mut crowd = path.through(size).await;
        let mut spent = Spent::default();
        for _ in 0..rounds {
            let before = Look::at(path);
            let slice = crowd.ask_for(Duration::from_millis(time)).await;
            spent.note(path, &before, slice.latencies.len());
        }
        spent.tell(figure, table);
    }
}

/// Per chunk of a long stream.
pub(crate) async fn per_chunk(path: &Path, quick: bool, table: &mut Table) {
    let (rounds, count) = if quick { (3, 4_000) } else { (7, 20_000) };
    let mut spent = Spent::default();
    for _ in 0..rounds {
        // Leaving is what ends the stream, so each round is another caller.
        let mut caller = Caller::connect(path.relay.address, Some(&path.token)).await;
        let before = Look::at(path);
        caller.chunks(&path.upstream, count).await;
        spent.note(path, &before, count);
    }
    spent.tell("streamed chunk", table);
}
