//! What polling promises beyond what every transport does: nothing is lost when connections are, and nothing is asked in vain.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tunnel::transport::Body;

use crate::harness::bridge::Transport;
use crate::harness::proxy::Mode;
use crate::harness::upstream::channel_body;
use crate::harness::{Caller, ChaosProxy, Path, TestBridge, TestRelay, Upstream, chunk, json, post, until};
use crate::harness::{until_within, within};

const CUTS: usize = 200;
const CHATS: usize = 50;
/// Pieces of one chat.
const PIECES: u32 = 40;

/// Piece `number` of the chat of this name: of another size each, and like no other.
fn piece(chat: &str, number: u32) -> Bytes {
    let line = format!("{chat}/{number};");
    line.repeat(1 + (number as usize * 7919) % 97).into()
}

/// An upstream that streams the chat whose name is the request's body, piece after piece.
async fn chatty(request: Request<Incoming>) -> Response<Body> {
    let name = request.into_body().collect().await.unwrap().to_bytes();
    let name = String::from_utf8(name.to_vec()).unwrap();
    let (answer, body) = channel_body();
    tokio::spawn(async move {
        for number in 0..PIECES {
            if !answer.try_send(piece(&name, number)).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(u64::from(number % 7))).await;
        }
    });
    Response::new(body)
}

/// Asks for one chat, and tells whether every octet of it came.
pub(crate) async fn chat_is_whole(caller: &mut Caller, name: &str) -> bool {
    let response = caller.try_send(post("/api/chat", name.to_owned())).await.unwrap();
    if response.status() != 200 {
        return false;
    }
    let whole: Bytes = (0..PIECES).flat_map(|number| piece(name, number)).collect();
    response
        .into_body()
        .collect()
        .await
        .is_ok_and(|body| body.to_bytes() == whole)
}

#[tokio::test]
async fn two_hundred_cuts_of_its_connections_lose_nothing_of_fifty_chats() {
    let relay = TestRelay::start().await;
    let served = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&served);
    let upstream = Upstream::serving(move |request| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        chatty(request)
    })
    .await;
    let (path, proxy) = Path::disturbed(relay, upstream, Transport::Poll, Duration::ZERO).await;
    let done = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let mut chats = JoinSet::new();
    for number in 0..CHATS {
        let mut caller = path.caller().await;
        let done = std::sync::Arc::clone(&done);
        chats.spawn(async move {
            let mut count = 0;
            while done.available_permits() == 0 {
                let name = format!("chat {number}.{count}");
                assert!(chat_is_whole(&mut caller, &name).await, "{name}");
                count += 1;
            }
            count
        });
    }
    let mut seed: u64 = 42;
    for _ in 0..CUTS {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(5 + (seed >> 33) % 40)).await;
        proxy.cut();
    }
    done.add_permits(1);
    let counts = until_done(chats).await;
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    // None was carried out twice.
    let served = served.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(served, counts.iter().sum::<usize>());
}

async fn until_done(mut chats: JoinSet<usize>) -> Vec<usize> {
    let mut counts = Vec::new();
    while let Some(count) = within("every chat", chats.join_next()).await {
        counts.push(count.unwrap());
    }
    counts
}

/// Takes the twenty seconds after which silence counts.
#[tokio::test]
async fn a_bridge_that_is_not_heard_of_loses_what_it_had_and_gets_what_comes_after_its_return() {
    let relay = TestRelay::with(|config| config.wait_for_bridge = Duration::from_secs(30)).await;
    let upstream = Upstream::scripted().await;
    let (path, proxy) = Path::disturbed(relay, upstream, Transport::Poll, Duration::ZERO).await;
    let mut streaming = path.caller().await;
    let (answer, mut response) = path.begun(&mut streaming).await;
    answer.send("begun").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "begun");
    let mut headless = path.caller().await;
    let waiting = tokio::spawn(async move { headless.try_send(post("/api/chat", "{}")).await.unwrap() });
    let call = path.upstream.next().await;
    proxy.set(Mode::BlackHole);
    let began = Instant::now();
    let lost = tokio::time::timeout(Duration::from_secs(29), waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(
        began.elapsed() > Duration::from_secs(15),
        "given up after {:?}",
        began.elapsed()
    );
    assert_eq!(lost.status(), 502);
    assert_eq!(
        json(lost).await["error"].as_str().unwrap().split(' ').next(),
        Some("the")
    );
    assert!(chunk(&mut response).await.unwrap().is_err());

    let mut later = path.caller().await;
    let sending = tokio::spawn(async move { later.try_send(post("/api/chat", "later")).await.unwrap() });
    proxy.set(Mode::Pass);
    until_within(Duration::from_secs(40), "the upstream to see both leave", || {
        answer.is_abandoned() && call.is_abandoned()
    })
    .await;
    let again = tokio::time::timeout(Duration::from_secs(40), path.upstream.next())
        .await
        .unwrap();
    again.finish(Response::new(tunnel::transport::full("back")));
    assert_eq!(crate::harness::text(sending.await.unwrap()).await, "back");
}

#[tokio::test]
async fn an_upgrade_is_refused_with_its_reason() {
    let path = Path::scripted(Transport::Poll).await;
    let mut request = crate::harness::get("/live");
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let response = path.caller().await.send(request).await;
    assert_eq!(response.status(), 501);
    assert_eq!(response.headers()["tunnel-error"], "not_implemented");
    assert!(json(response).await["error"].as_str().unwrap().contains("polling"));
}

/// From the request to the first piece, and from a piece at the upstream to the same at the caller: the shortest of some.
async fn shortest(transport: Transport, one_way: Duration) -> (Duration, Duration) {
    let relay = TestRelay::start().await;
    let upstream = Upstream::scripted().await;
    let (path, proxy) = Path::disturbed(relay, upstream, transport, one_way).await;
    let mut caller = path.caller().await;
    let (mut first, mut later) = (Duration::MAX, Duration::MAX);
    let mut connections = 0;
    for round in 0..6 {
        let requests = proxy.requests();
        let began = Instant::now();
        let (answer, mut response) = tokio::join!(
            async {
                let answer = path.upstream.next().await.begin(Response::builder());
                answer.send("first").await;
                answer
            },
            caller.post("/api/chat", "{}"),
        );
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "first");
        first = first.min(began.elapsed());
        for _ in 0..5 {
            let began = Instant::now();
            answer.send("later").await;
            assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "later");
            later = later.min(began.elapsed());
        }
        drop(answer);
        assert!(chunk(&mut response).await.is_none());
        if transport == Transport::Poll {
            // The next poll waits before the next request comes.
            until("a poll that waits", || proxy.requests() > requests).await;
            tokio::time::sleep(4 * one_way).await;
            if round == 0 {
                connections = proxy.connections();
            }
        }
    }
    if transport == Transport::Poll {
        assert_eq!(
            proxy.connections(),
            connections,
            "an answer had to wait for a connection"
        );
    }
    (first, later)
}

#[tokio::test]
async fn the_first_token_takes_no_more_round_trips_than_over_websocket_and_later_ones_at_most_one_more() {
    let one_way = Duration::from_millis(25);
    let (ws_first, ws_later) = shortest(Transport::Ws, one_way).await;
    let (poll_first, poll_later) = shortest(Transport::Poll, one_way).await;
    // Half a round trip is what tells one from none.
    assert!(poll_first < ws_first + one_way, "{poll_first:?} against {ws_first:?}");
    assert!(
        poll_later < ws_later + 3 * one_way,
        "{poll_later:?} against {ws_later:?}"
    );
}

/// Takes as long as a poll waits.
#[tokio::test]
async fn an_idle_bridge_asks_once_in_a_wait() {
    let relay = TestRelay::start().await;
    let upstream = Upstream::scripted().await;
    let proxy = ChaosProxy::to(relay.address, Duration::ZERO).await;
    let bridge = TestBridge::between(proxy.address, upstream.address)
        .transport(Transport::Poll)
        .start()
        .await;
    until("the first poll", || proxy.requests() == 2).await;
    let began = Instant::now();
    until_within(Duration::from_secs(40), "the second poll", || proxy.requests() == 3).await;
    assert!(began.elapsed() > Duration::from_secs(20), "after {:?}", began.elapsed());
    assert_eq!(proxy.connections(), 1);
    drop(bridge);
}
