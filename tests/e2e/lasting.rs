//! What goes wrong over months: relays that change their mind, token files that vanish, readers who do not read, second processes.

use std::net::SocketAddr;
use std::time::Duration;

use http::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tunnel::bridge::Stopped;
use tunnel::bridge::choice::Timing;
use tunnel::bridge::config::TokenSource;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::proxy::Mode;
use crate::harness::{
    Caller, ChaosProxy, Path, TestBridge, TestRelay, Upstream, post, ready, until, until_within, within,
};
use crate::switching::steered_to_polling;

const MIB: usize = 1 << 20;
const HASTY: Timing = Timing {
    race_after: Duration::from_millis(300),
    retry_first: Duration::from_millis(50),
    retry_most: Duration::from_millis(200),
};

/// The transports of the user's bridges, as the relay has them.
fn sessions(relay: &TestRelay) -> Vec<&'static str> {
    let list = relay.relay.registry.list("ann");
    list.iter().map(|session| session.transport).collect()
}

#[tokio::test]
async fn a_relay_that_offers_no_polling_any_more_gets_its_bridges_over_websocket() {
    let (relay, _upstream, _bridge) = steered_to_polling().await;
    let address = relay.kill().await;
    let relay = TestRelay::at(address, |config| config.transports.poll = false).await;
    until("the bridge over WebSocket", || sessions(&relay) == ["ws"]).await;
}

#[tokio::test]
async fn a_rollout_that_goes_on_reaches_the_bridges_that_poll() {
    let (relay, _upstream, bridge) = steered_to_polling().await;
    let address = relay.kill().await;
    let relay = TestRelay::at(address, |_| {}).await;
    bridge.connected_over("ws").await;
    until("the bridge over WebSocket", || sessions(&relay) == ["ws"]).await;
}

/// Lets the upgrade through and nothing after it.
async fn swallowing(target: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut first = [0; 14];
                near.peek(&mut first).await.ok();
                let mut far = TcpStream::connect(target).await.unwrap();
                if !first.starts_with(b"GET /ws/tunnel") {
                    copy_bidirectional(&mut near, &mut far).await.ok();
                    return;
                }
                let mut head = vec![0; 8192];
                let length = near.read(&mut head).await.unwrap();
                far.write_all(&head[..length]).await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\n") {
                    answer.push(far.read_u8().await.unwrap());
                }
                near.write_all(&answer).await.unwrap();
                // Both sides stay connected, to nobody.
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_websocket_that_carries_nothing_is_no_link() {
    let relay = TestRelay::start().await;
    let upstream = Upstream::scripted().await;
    let front = swallowing(relay.address).await;
    let bridge = TestBridge::between(front, upstream.address)
        .transport(Transport::Auto)
        .timing(Timing {
            retry_first: Duration::from_secs(60),
            ..HASTY
        })
        .start()
        .await;
    assert_eq!(bridge.transport().0, "poll");
    until("the bridge at the relay", || sessions(&relay) == ["poll"]).await;
}

#[tokio::test]
async fn readers_who_do_not_read_slow_only_themselves_whatever_the_size_of_their_answers() {
    for size in [2 * MIB, 5 * MIB, 8 * MIB] {
        let relay = TestRelay::start().await;
        let body = bytes::Bytes::from(vec![b'x'; size]);
        let upstream = Upstream::serving(move |_| {
            let body = body.clone();
            async move { Response::new(full(body)) }
        })
        .await;
        let (path, proxy) = Path::disturbed(relay, upstream, Transport::Poll, Duration::ZERO).await;
        let mut slow = Vec::new();
        for _ in 0..24 {
            let mut caller = path.caller().await;
            let response = caller.post("/api/chat", "{}").await;
            slow.push((caller, response));
        }
        let before = proxy.requests();
        let mut quick = path.caller().await;
        let response = quick.post("/api/chat", "{}").await;
        let whole = within("all of an answer", response.into_body().collect())
            .await
            .unwrap();
        assert_eq!(whole.to_bytes().len(), size);
        // Nothing is sent again and again without a pause.
        assert!(
            proxy.requests() - before < 2000,
            "{} requests",
            proxy.requests() - before
        );
    }
}

#[tokio::test]
async fn a_token_file_that_vanished_keeps_nobody_busy() {
    let relay = TestRelay::start().await;
    let upstream = Upstream::scripted().await;
    let proxy = ChaosProxy::to(relay.address, Duration::ZERO).await;
    proxy.set(Mode::NoUpgrade);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, relay.token("ann")).unwrap();
    let bridge = TestBridge::between(proxy.address, upstream.address)
        .transport(Transport::Auto)
        .token(TokenSource::File(path.clone()))
        .timing(HASTY)
        .start()
        .await;
    bridge.connected_over("poll").await;
    std::fs::remove_file(&path).unwrap();
    // A busy loop would let nothing else of this one-thread runtime run.
    let began = std::time::Instant::now();
    let mut turns = 0;
    while began.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        turns += 1;
    }
    assert!(turns > 100, "{turns} turns in a second");
    drop(bridge);
}

#[tokio::test]
async fn the_newer_process_wins_whichever_transport_it_uses() {
    let relay = TestRelay::start().await;
    let upstream = Upstream::scripted().await;
    let proxy = ChaosProxy::to(relay.address, Duration::ZERO).await;
    let older = TestBridge::between(proxy.address, upstream.address)
        .transport(Transport::Poll)
        .client_id("same")
        .start()
        .await;
    ready(&relay, "ann").await;
    proxy.set(Mode::BlackHole);
    let newer = TestBridge::to(&relay, &upstream)
        .transport(Transport::Ws)
        .client_id("same")
        .start()
        .await;
    until("the newer one alone", || sessions(&relay) == ["ws"]).await;
    proxy.set(Mode::Pass);
    proxy.cut();
    assert!(matches!(older.stopped().await, Err(Stopped::Replaced)));
    assert_eq!(sessions(&relay), ["ws"]);
    drop(newer);
}

/// Takes the twenty seconds after which silence counts.
#[tokio::test]
async fn a_bridge_that_was_silent_once_leaves_nothing_behind() {
    let relay = TestRelay::with(|config| config.wait_for_bridge = Duration::from_secs(30)).await;
    let upstream = Upstream::scripted().await;
    let (path, proxy) = Path::disturbed(relay, upstream, Transport::Poll, Duration::ZERO).await;
    let mut caller = path.caller().await;
    let waiting = tokio::spawn(async move { caller.try_send(post("/api/chat", "{}")).await.unwrap() });
    let call = path.upstream.next().await;
    proxy.set(Mode::BlackHole);
    let lost = tokio::time::timeout(Duration::from_secs(40), waiting).await.unwrap();
    assert_eq!(lost.unwrap().status(), 502);
    proxy.set(Mode::Pass);
    let back = || path.relay.relay.registry.pick("ann", None).is_some();
    until_within(Duration::from_secs(60), "the bridge to be back", back).await;
    path.bridge.stop().await;
    drop((proxy, call));
    path.relay.shutdown.drain();
    until("every task to end", || path.relay.shutdown.tracker().is_empty()).await;
}

/// Carries so many octets a second towards the target, over all connections together.
async fn narrow(target: SocketAddr, rate: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let turn = std::sync::Arc::new(tokio::sync::Mutex::new(()));
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let turn = std::sync::Arc::clone(&turn);
            tokio::spawn(async move {
                let far = TcpStream::connect(target).await.unwrap();
                let (mut near_read, mut near_write) = near.into_split();
                let (mut far_read, mut far_write) = far.into_split();
                let up = async {
                    let mut piece = vec![0; 4096];
                    while let Ok(length @ 1..) = near_read.read(&mut piece).await {
                        {
                            let _turn = turn.lock().await;
                            tokio::time::sleep(Duration::from_secs_f64(length as f64 / rate as f64)).await;
                        }
                        if far_write.write_all(&piece[..length]).await.is_err() {
                            break;
                        }
                    }
                    far_write.shutdown().await.ok();
                };
                let down = tokio::io::copy(&mut far_read, &mut near_write);
                let _ = tokio::join!(up, down);
            });
        }
    });
    address
}

/// Takes the time that so narrow a way takes.
#[tokio::test]
async fn an_answer_gets_through_a_narrow_uplink() {
    let relay = TestRelay::start().await;
    let size = 3 * MIB / 2;
    let upstream = Upstream::serving(move |_| async move { Response::new(full(vec![b'x'; size])) }).await;
    let front = narrow(relay.address, 100_000).await;
    let bridge = TestBridge::between(front, upstream.address)
        .transport(Transport::Poll)
        .start()
        .await;
    ready(&relay, "ann").await;
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let response = caller.post("/api/chat", "{}").await;
    let whole = tokio::time::timeout(Duration::from_secs(40), response.into_body().collect()).await;
    assert_eq!(whole.unwrap().unwrap().to_bytes().len(), size);
    drop(bridge);
}
