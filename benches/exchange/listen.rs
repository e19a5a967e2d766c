//! What it costs the relay that pages look: 200 bridges change every second, with as many listeners as two users may have and with
//! none, slice by slice in turn (h).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::process::{Relay, token};
use super::swarm::{Swarm, Transport, user};
use super::table::{Goal, Table};

const BRIDGES: usize = 200;
const LISTENERS: usize = 32;
/// What is told of a bridge has more octets than this.
const LEAST_LINE: usize = 200;
const OPTIONS: [&str; 2] = ["--max-bridges-per-user", "1000"];

/// CPU time of the relay in a second, with listeners and without.
pub(crate) async fn measure(quick: bool, table: &mut Table) {
    let (rounds, seconds) = if quick { (3, 5_u32) } else { (8, 10) };
    let relay = Relay::start(&OPTIONS);
    let swarm = Swarm::connect(relay.address, BRIDGES, 1, Transport::Ws).await;
    let mut spent: [Vec<f64>; 2] = Default::default();
    for round in 0..=rounds {
        let first = round % 2;
        for at in [first, 1 - first] {
            let heard = Arc::new(AtomicUsize::new(0));
            let mut listeners = JoinSet::new();
            for number in 0..at * LISTENERS {
                listeners.spawn(listen(relay.address, number, Arc::clone(&heard)));
            }
            let before = relay.process.cpu();
            let mut ticks = interval(Duration::from_secs(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for _ in 0..seconds {
                ticks.tick().await;
                swarm.burst().await;
            }
            ticks.tick().await;
            // The first round warms up.
            if round > 0 {
                spent[at].push((relay.process.cpu() - before).as_secs_f64() * 1e3 / f64::from(seconds));
            }
            let least = at * LISTENERS * BRIDGES / 2 * seconds as usize * LEAST_LINE;
            let heard = heard.load(Ordering::Relaxed);
            assert!(heard >= least, "{heard} octets were heard, not {least}");
            listeners.shutdown().await;
        }
    }
    let [none, all] = spent;
    let ratios = all.iter().zip(&none).map(|(all, none)| all / none).collect();
    let name = format!("h  CPU, {BRIDGES} bridges change each second: {LISTENERS} pages look ÷ none does");
    table.add(name, "×", ratios, Goal::AtMost(1.5));
    let each = all.iter().zip(&none).map(|(all, none)| (all - none) / LISTENERS as f64);
    table.add("   … of each page", "ms/s", each.collect(), Goal::None);
    table.add("   … pages look", "ms/s", all, Goal::None);
    table.add("   … none does", "ms/s", none, Goal::None);
}

/// Reads events for ever, of one user or of the other, and counts their octets.
async fn listen(relay: SocketAddr, number: usize, heard: Arc<AtomicUsize>) {
    let bearer = format!("Bearer {}", token(&user(number % 2 * (BRIDGES / 2))));
    loop {
        let stream = TcpStream::connect(relay).await.unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let _ends = AbortOnDropHandle::new(connection);
        let request = Request::get("/-/events")
            .header(HOST, relay.to_string())
            .header(AUTHORIZATION, &bearer)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let mut response = sender.send_request(request).await.expect("an answer");
        // Those of the slice before may not have left yet.
        if response.status() != StatusCode::OK {
            continue;
        }
        while let Some(frame) = response.frame().await {
            let octets = frame
                .expect("events that go on")
                .into_data()
                .map_or(0, |data| data.len());
            heard.fetch_add(octets, Ordering::Relaxed);
        }
    }
}
