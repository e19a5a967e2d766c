//! What it costs the relay that pages look: 200 bridges change every second, with as many listeners as two users may have and with
//! none, slice by slice in turn (h).

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{AUTHORIZATION, HOST};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::process::{Relay, token};
use super::swarm::{Swarm, Transport, user};
use super::table::{Goal, Table};

const BRIDGES: usize = 200;
const LISTENERS: usize = 32;
const OPTIONS: [&str; 2] = ["--max-bridges-per-user", "1000"];

/// CPU time of the relay in a second, with listeners and without.
pub(crate) async fn measure(quick: bool, table: &mut Table) {
    let (rounds, seconds) = if quick { (3, 5) } else { (8, 10) };
    let relay = Relay::start(&OPTIONS);
    let swarm = Swarm::connect(relay.address, BRIDGES, 1, Transport::Ws).await;
    let mut spent: [Vec<f64>; 2] = Default::default();
    for round in 0..=rounds {
        let first = round % 2;
        for at in [first, 1 - first] {
            let mut listeners = JoinSet::new();
            for number in 0..at * LISTENERS {
                listeners.spawn(listen(relay.address, number));
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
            listeners.shutdown().await;
        }
    }
    let [none, all] = spent;
    let ratios = all.iter().zip(&none).map(|(all, none)| all / none).collect();
    let name = format!("h  CPU, {BRIDGES} bridges change each second: {LISTENERS} pages look ÷ none does");
    table.add(name, "×", ratios, Goal::AtMost(2.0));
    let each = all.iter().zip(&none).map(|(all, none)| (all - none) / LISTENERS as f64);
    table.add("   … of each page", "ms/s", each.collect(), Goal::None);
    table.add("   … pages look", "ms/s", all, Goal::None);
    table.add("   … none does", "ms/s", none, Goal::None);
}

/// Reads events for ever: of one user, then of the other.
async fn listen(relay: SocketAddr, number: usize) {
    let stream = TcpStream::connect(relay).await.unwrap();
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    let request = Request::get("/-/events")
        .header(HOST, relay.to_string())
        .header(
            AUTHORIZATION,
            format!("Bearer {}", token(&user(number % 2 * BRIDGES / 2))),
        )
        .body(Empty::<Bytes>::new())
        .unwrap();
    let listening = async {
        let mut response = sender.send_request(request).await.expect("events");
        assert_eq!(response.status(), 200);
        while let Some(frame) = response.frame().await {
            frame.expect("events that go on");
        }
    };
    tokio::select! {
        () = listening => panic!("the events ended"),
        ended = connection => panic!("the connection ended: {ended:?}"),
    }
}
