//! What store, metrics and access log cost: CPU time of a relay that is watched beside one that is not, slice by slice in turn (g).

use std::time::Duration;

use super::process::Relay;
use super::speed::{CROWD, Path};
use super::table::{Goal, Table};

/// Per small request, on against off.
pub(crate) async fn measure(quick: bool, table: &mut Table) {
    let (rounds, time) = if quick { (5, 500) } else { (15, 1500) };
    let time = Duration::from_millis(time);
    let paths = [
        Path::of(Relay::start_unwatched()).await,
        Path::of(Relay::start_watched()).await,
    ];
    let mut crowds = [paths[0].through(CROWD).await, paths[1].through(CROWD).await];
    let mut spent: [Vec<f64>; 2] = Default::default();
    let mut relays: [Vec<f64>; 2] = Default::default();
    for round in 0..=rounds {
        let first = round % 2;
        for at in [first, 1 - first] {
            let (path, crowd) = (&paths[at], &mut crowds[at]);
            let look = || (path.relay.process.cpu(), path.bridge.process.cpu());
            let before = look();
            let count = crowd.ask_for(time).await.latencies.len() as f64;
            let (relay, bridge) = (look().0 - before.0, look().1 - before.1);
            // The first round warms up.
            if round > 0 {
                spent[at].push((relay + bridge).as_secs_f64() * 1e6 / count);
                relays[at].push(relay.as_secs_f64() * 1e6 / count);
            }
        }
    }
    let [off, on] = spent;
    let ratios = on.iter().zip(&off).map(|(on, off)| on / off).collect();
    table.add(
        "g  CPU per small request: watched ÷ not",
        "×",
        ratios,
        Goal::AtMost(1.08),
    );
    table.add("   … watched", "µs", on, Goal::None);
    table.add("   … not", "µs", off, Goal::None);
    let [off, on] = relays;
    table.add("   … of it the relay, watched", "µs", on, Goal::None);
    table.add("   … of it the relay, not", "µs", off, Goal::None);
}
