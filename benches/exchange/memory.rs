//! What idle bridges cost the relay (c over WebSocket, f over polling), and what a burst leaves behind (c).

use std::time::Duration;

use tokio::time::sleep;

use super::process::Relay;
use super::swarm::{Swarm, Transport};
use super::table::{Goal, Table};

/// Requests at once on each bridge.
const STREAMS: usize = 64;
/// Kept streams are closed after 10 s, and a link that rests gives its buffers back with a ping, every 15 s.
const SETTLED: Duration = Duration::from_secs(45);
const SETTLED_FIRST: Duration = Duration::from_secs(5);
const AFTER_BURST: Duration = Duration::from_secs(60);
/// Bounds that this many bridges of few users and their burst fit into.
const OPTIONS: [&str; 6] = [
    "--max-bridges-per-user",
    "1000",
    "--max-in-flight-per-user",
    "1000000",
    "--max-connections",
    "20000",
];

#[derive(Debug, Default)]
struct Figures {
    each: Vec<f64>,
    left: Vec<f64>,
    level: Vec<f64>,
    most: Vec<f64>,
}

/// Measures; each round with a fresh relay.
pub(crate) async fn measure(quick: bool, table: &mut Table) {
    let (rounds, bridges) = if quick { (1, 200) } else { (2, 2000) };
    let mut figures = Figures::default();
    for _ in 0..rounds {
        round(bridges, &mut figures).await;
    }
    let level = format!("   … the relay with {bridges} idle bridges");
    table.add(
        format!("c  each of {bridges} idle bridges"),
        "KiB",
        figures.each,
        Goal::AtMost(14.0),
    );
    let burst = format!("c  a minute after {STREAMS} requests at once on each");
    table.add(burst, "KiB more", figures.left, Goal::AtMost(400.0));
    table.add(level, "KiB", figures.level, Goal::None);
    table.add("   … at most during the burst", "KiB", figures.most, Goal::None);
}

/// Measures polling bridges; each has two connections to the relay, and one poll that waits.
pub(crate) async fn polling(quick: bool, table: &mut Table) {
    let (rounds, bridges) = if quick { (1, 200) } else { (2, 2000) };
    let mut each = Vec::new();
    for _ in 0..rounds {
        let (relay, before) = settled(Transport::Poll).await;
        let swarm = Swarm::connect(relay.address, bridges, STREAMS, Transport::Poll).await;
        sleep(SETTLED).await;
        each.push((relay.process.resident() - before) / bridges as f64);
        drop(swarm);
    }
    let name = format!("f  each of {bridges} idle bridges that poll");
    table.add(name, "KiB", each, Goal::AtMost(36.0));
}

/// A relay after one bridge and one request: code that runs for the first time is mapped, and would be counted.
async fn settled(transport: Transport) -> (Relay, f64) {
    let relay = Relay::start(&OPTIONS);
    let swarm = Swarm::connect(relay.address, 1, 1, transport).await;
    swarm.burst().await;
    drop(swarm);
    sleep(SETTLED_FIRST).await;
    let before = relay.process.resident();
    (relay, before)
}

async fn round(bridges: usize, figures: &mut Figures) {
    let (relay, before) = settled(Transport::Ws).await;
    let swarm = Swarm::connect(relay.address, bridges, STREAMS, Transport::Ws).await;
    sleep(SETTLED).await;
    let idle = relay.process.resident();
    figures.each.push((idle - before) / bridges as f64);
    figures.level.push(idle);

    swarm.burst().await;
    figures.most.push(relay.process.most_resident());
    sleep(AFTER_BURST).await;
    figures.left.push(relay.process.resident() - idle);
    drop(swarm);
}
