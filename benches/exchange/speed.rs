//! Requests per second and latency through the tunnel, as ratios to the upstream asked directly (a and b).

use std::time::Duration;

use super::crowd::{Crowd, Slice};
use super::forward::Forwarder;
use super::process::{Bridge, Relay, token};
use super::table::{Goal, Table};
use super::upstream::Upstream;

/// Callers side by side.
pub(crate) const CROWD: usize = 64;
const WARM_UP: Duration = Duration::from_millis(500);

/// Relay, bridge and upstream on this machine.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) relay: Relay,
    pub(crate) bridge: Bridge,
    pub(crate) upstream: Upstream,
    pub(crate) token: String,
}

impl Path {
    /// Starts all three and waits until a request gets through.
    pub(crate) async fn start() -> Self {
        Self::of(Relay::start(&[])).await
    }

    /// The same with this relay.
    pub(crate) async fn of(relay: Relay) -> Self {
        let upstream = Upstream::start();
        let token = token("ann");
        let bridge = Bridge::start(relay.address, upstream.address, &token);
        let path = Self {
            relay,
            bridge,
            upstream,
            token,
        };
        path.through(1).await.ask_for(Duration::from_millis(1)).await;
        path
    }

    /// Callers of the relay.
    pub(crate) async fn through(&self, size: usize) -> Crowd {
        Crowd::connect(size, self.relay.address, Some(&self.token)).await
    }

    /// Callers of the upstream itself.
    async fn direct(&self, size: usize) -> Crowd {
        Crowd::connect(size, self.upstream.address, None).await
    }
}

/// a. Many callers: requests per second.
pub(crate) async fn many_callers(path: &Path, quick: bool, table: &mut Table) {
    let rounds = rounds(path.direct(CROWD).await, path.through(CROWD).await, quick).await;
    let [direct, through] = per_round(&rounds, Slice::per_second);
    let ratios = quotients(&through, &direct);
    table.add(
        "a  64 callers: requests/s through ÷ direct",
        "×",
        ratios,
        Goal::AtLeast(0.38),
    );
    table.add("   … direct", "/s", direct, Goal::None);
    table.add("   … through the tunnel", "/s", through, Goal::None);
}

/// b. One caller: latency.
pub(crate) async fn one_caller(path: &Path, quick: bool, table: &mut Table) {
    let through = rounds(path.direct(1).await, path.through(1).await, quick).await;
    let [direct, through] = per_round(&through, Slice::median);
    let ratios = quotients(&through, &direct);
    table.add(
        "b  1 caller: p50 latency through ÷ direct",
        "×",
        ratios,
        Goal::AtMost(1.8),
    );
    table.add("   … direct", "µs", direct, Goal::None);
    table.add("   … through the tunnel", "µs", through, Goal::None);
    let inner = Forwarder::start(path.upstream.address);
    let outer = Forwarder::start(inner.address);
    let forwarded = Crowd::connect(1, outer.address, None).await;
    let forwarded = rounds(path.direct(1).await, forwarded, quick).await;
    let [direct, forwarded] = per_round(&forwarded, Slice::median);
    let ratios = quotients(&forwarded, &direct);
    table.add(
        "   … through two plain TCP forwarders ÷ direct",
        "×",
        ratios,
        Goal::None,
    );
}

/// Slices in turn, direct and through; every second round the other way round.
async fn rounds(mut direct: Crowd, mut through: Crowd, quick: bool) -> Vec<[Slice; 2]> {
    let (count, time) = if quick { (5, 400) } else { (15, 1000) };
    let time = Duration::from_millis(time);
    direct.ask_for(WARM_UP).await;
    through.ask_for(WARM_UP).await;
    let mut rounds = Vec::new();
    for number in 0..count {
        rounds.push(if number % 2 == 0 {
            let first = direct.ask_for(time).await;
            [first, through.ask_for(time).await]
        } else {
            let first = through.ask_for(time).await;
            [direct.ask_for(time).await, first]
        });
    }
    rounds
}

fn per_round(rounds: &[[Slice; 2]], value: impl Fn(&Slice) -> f64) -> [Vec<f64>; 2] {
    std::array::from_fn(|side| rounds.iter().map(|round| value(&round[side])).collect())
}

fn quotients(above: &[f64], below: &[f64]) -> Vec<f64> {
    above.iter().zip(below).map(|(above, below)| above / below).collect()
}
