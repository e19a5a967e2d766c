//! Answers of a polling bridge: each part is delivered once and in order, whatever is sent again, and at the pace of the caller.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::Instant;
use tunnel::transport::empty;

use crate::harness::caller::Raw;
use crate::harness::raw_bridge::{ALL, RawBridge, in_parts, request};
use crate::harness::{Caller, TestRelay, chunk, get, text, within};

/// How long the relay may let a bridge wait for room: proxies that cut at 3 s must not come between.
const ANSWERED: Duration = Duration::from_millis(2500);
const END: (&str, &str) = ("tunnel-end", "1");

async fn scene() -> (TestRelay, RawBridge, Caller) {
    let relay = TestRelay::start().await;
    let bridge = RawBridge::register(&relay, "ann", ALL).await;
    let caller = Caller::connect(relay.address, &relay.token("ann")).await;
    (relay, bridge, caller)
}

#[tokio::test]
async fn the_same_head_again_is_taken_and_another_is_not() {
    let (_relay, bridge, mut caller) = scene().await;
    let (id, mut response) = bridge.begun(&mut caller, &in_parts()).await;
    assert_eq!(bridge.head(&id, &in_parts()).await.status, 200);
    let other = json!({"status": 201, "headers": {}, "more": true});
    let reply = bridge.head(&id, &other).await;
    assert_eq!(reply.status, 400);
    assert!(reply.reason().contains("another head"), "{}", reply.reason());
    bridge.give(&id, 1, &[], "one").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "one");
    assert_eq!(bridge.head(&id, &other).await.status, 400);
    assert_eq!(bridge.head(&id, &in_parts()).await.status, 200);
    bridge.give(&id, 2, &[END], "two").await;
    assert_eq!(bridge.head(&id, &in_parts()).await.status, 200);
    assert_eq!(response.status(), 200);
    assert_eq!(text(response).await, "two");
}

#[tokio::test]
async fn a_repeated_part_is_taken_and_not_delivered_twice() {
    let (_relay, bridge, mut caller) = scene().await;
    let (id, mut response) = bridge.begun(&mut caller, &in_parts()).await;
    assert_eq!(bridge.part(&id, 2, &[], "early").await.status, 400);
    let mut received = Vec::new();
    for n in 1..=20 {
        let bytes = format!("{n};");
        for _ in 0..3 {
            bridge.give(&id, n, &[], bytes.clone()).await;
        }
        // Anything that was taken before may come again, much later too.
        bridge.give(&id, 1, &[], "1;").await;
        received.extend_from_slice(&chunk(&mut response).await.unwrap().unwrap());
    }
    for _ in 0..3 {
        bridge.give(&id, 21, &[END], "end").await;
    }
    received.extend_from_slice(text(response).await.as_bytes());
    let expected: String = (1..=20).map(|n| format!("{n};")).collect();
    assert_eq!(String::from_utf8(received).unwrap(), expected + "end");
    // Long after its end, too.
    bridge.give(&id, 21, &[END], "end").await;
    bridge.give(&id, 1, &[], "1;").await;
}

#[tokio::test]
async fn a_whole_answer_may_be_sent_again() {
    let (_relay, bridge, mut caller) = scene().await;
    let whole = json!({"status": 200, "headers": {}, "body": "d2hvbGU=", "bodyEncoding": "base64"});
    let (id, response) = bridge.begun(&mut caller, &whole).await;
    assert_eq!(text(response).await, "whole");
    for _ in 0..3 {
        assert_eq!(bridge.head(&id, &whole).await.status, 200);
    }
    assert_eq!(bridge.poll("timeout=0").await["cancelled"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_answered_exchange_is_never_taken_for_one_whose_caller_left() {
    let (relay, bridge, _) = scene().await;
    let lane = async |_| {
        let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
        for _ in 0..50 {
            let response = caller.get("/api/tags").await;
            assert_eq!(response.status(), 200);
            assert_eq!(text(response).await, "whole");
        }
    };
    let lanes = futures_util::future::join_all((0..8).map(lane));
    let answering = async {
        let mut ack = 0;
        loop {
            let batch = bridge.poll(&format!("timeout=15000&ack={ack}")).await;
            ack = batch["batch"].as_u64().unwrap();
            assert_eq!(batch["cancelled"], json!([]));
            for polled in batch["requests"].as_array().unwrap() {
                let id = polled["id"].as_str().unwrap();
                let whole = json!({"status": 200, "headers": {"content-length": "5"}, "body": "whole"});
                for _ in 0..2 {
                    assert_eq!(bridge.head(id, &whole).await.status, 200);
                }
            }
        }
    };
    tokio::select! {
        _ = within("all exchanges", lanes) => {}
        () = answering => {}
    }
}

#[tokio::test]
async fn an_abort_breaks_the_callers_body() {
    let (_relay, bridge, mut caller) = scene().await;
    let (id, mut response) = bridge.begun(&mut caller, &in_parts()).await;
    bridge.give(&id, 1, &[], "so far").await;
    bridge.give(&id, 2, &[("tunnel-abort", "1")], "").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "so far");
    assert!(
        chunk(&mut response).await.unwrap().is_err(),
        "a broken body looked whole"
    );
    // A lost answer is asked for again.
    bridge.give(&id, 2, &[("tunnel-abort", "1")], "").await;
    assert_eq!(bridge.poll("timeout=0").await["cancelled"], json!([]));
}

#[tokio::test]
async fn parts_for_a_caller_that_left_have_no_taker_and_the_bridge_is_told_at_once() {
    let (_relay, bridge, mut caller) = scene().await;
    let (id, mut response) = bridge.begun(&mut caller, &in_parts()).await;
    bridge.give(&id, 1, &[], "one").await;
    chunk(&mut response).await.unwrap().unwrap();
    let (batch, ()) = tokio::join!(bridge.poll("timeout=20000&ack=1"), async {
        drop((response, caller));
    });
    assert_eq!(batch["cancelled"], json!([id]));
    assert_eq!(batch["requests"], json!([]));
    for n in [1, 2, 3] {
        let reply = bridge.part(&id, n, &[], "more").await;
        assert_eq!(reply.status, 410, "part {n}");
        assert!(!reply.reason().is_empty());
    }
    assert_eq!(bridge.head(&id, &in_parts()).await.status, 410);
    let path = format!("/api/bridge/poll/{}/{id}/body/0", bridge.id);
    assert_eq!(bridge.get(&path).await.status, 410);
    // It is told until it is acknowledged.
    assert_eq!(bridge.poll("timeout=0").await["cancelled"], json!([id]));
    let last = bridge.poll("timeout=0").await;
    assert_eq!(last["cancelled"], json!([id]));
    let ack = format!("timeout=0&ack={}", last["batch"]);
    assert_eq!(bridge.poll(&ack).await["cancelled"], json!([]));
}

#[tokio::test]
async fn an_answer_in_parts_is_whole_also_from_an_app_that_did_not_say_it_knows_parts() {
    let relay = TestRelay::start().await;
    let bridge = RawBridge::register(&relay, "ann", &[]).await;
    let mut caller = Caller::connect(relay.address, &bridge.token).await;
    let head = json!({"status": 200, "headers": {"content-length": "11"}, "body": "first", "more": true});
    let (id, response) = bridge.begun(&mut caller, &head).await;
    bridge.give(&id, 1, &[END], "second").await;
    assert_eq!(text(response).await, "firstsecond");
}

#[tokio::test]
async fn trailers_reach_the_caller() {
    let (_relay, bridge, mut caller) = scene().await;
    let mut asked = get("/trailers");
    asked.headers_mut().insert("te", "trailers".parse().unwrap());
    let head = json!({"status": 200, "headers": {"trailer": "x-sum"}, "more": true});
    let ((), response) = tokio::join!(
        async {
            let (id, data) = bridge.next().await;
            assert_eq!(data["headers"]["te"], "trailers");
            bridge.head(&id, &head).await;
            bridge
                .give(&id, 1, &[END, ("tunnel-trailers", r#"{"x-sum":["42"]}"#)], "body")
                .await;
        },
        caller.send(asked),
    );
    let collected = within("the body", response.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "42");
    assert_eq!(collected.to_bytes(), "body");
}

#[tokio::test]
async fn statuses_without_a_body_have_none_whatever_the_bridge_says() {
    let (_relay, bridge, mut caller) = scene().await;
    for (method, status) in [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304)] {
        for more in [false, true] {
            let head = json!({"status": status, "headers": {}, "body": "stray", "more": more});
            let asked = Request::builder()
                .method(method.clone())
                .uri("/x")
                .body(empty())
                .unwrap();
            let (reply, response) = tokio::join!(
                async {
                    let (id, _) = bridge.next().await;
                    bridge.head(&id, &head).await
                },
                caller.send(asked),
            );
            assert_eq!(reply.status, 200);
            assert_eq!(response.status(), status);
            assert_eq!(text(response).await, "");
        }
    }
}

/// A caller that takes no byte of its answer, as far as the system lets it.
async fn stalled(relay: &TestRelay, bridge: &RawBridge) -> (Raw, String) {
    let mut raw = Raw::connect(relay.address).await;
    raw.send(format!(
        "GET /api/tags HTTP/1.1\r\nhost: relay\r\nconnection: close\r\nauthorization: Bearer {}\r\n\r\n",
        relay.token("ann")
    ))
    .await;
    let (id, _) = bridge.next().await;
    let head = json!({"status": 200, "headers": {"content-length": "64000000"}, "more": true});
    assert_eq!(bridge.head(&id, &head).await.status, 200);
    (raw, id)
}

/// A million octets that belong to this part alone.
fn numbered(n: u32) -> Bytes {
    format!("{n:08}").repeat(125_000).into()
}

/// Sends parts until there is no room for one; its number.
async fn fill(bridge: &RawBridge, id: &str) -> u32 {
    for n in 1..64 {
        let began = Instant::now();
        let reply = bridge.part(id, n, &[], numbered(n)).await;
        let took = began.elapsed();
        assert!(took < ANSWERED, "answered after {took:?}");
        if reply.status != StatusCode::OK {
            assert_eq!(reply.status, 503);
            assert_eq!(reply.headers["retry-after"], "0");
            assert_eq!(reply.headers["tunnel-error"], "no_room");
            return n;
        }
    }
    panic!("a caller that reads nothing had room for everything");
}

#[tokio::test]
async fn a_part_without_room_is_to_be_sent_again_and_is_not_lost() {
    let (relay, bridge, _) = scene().await;
    let (mut raw, id) = stalled(&relay, &bridge).await;
    let full = fill(&bridge, &id).await;
    // Two copies at once are answered no later.
    let began = Instant::now();
    let (one, two) = tokio::join!(bridge.part(&id, full, &[], numbered(full)), async {
        tokio::time::sleep(Duration::from_millis(1000)).await;
        bridge.part(&id, full, &[], numbered(full)).await
    });
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (503, 503));
    let took = began.elapsed() - Duration::from_millis(1000);
    assert!(took < ANSWERED, "answered after {took:?}");

    let sending = async {
        for n in full..=64 {
            let end = if n == 64 { &[END][..] } else { &[] };
            while bridge.part(&id, n, end, numbered(n)).await.status != StatusCode::OK {}
        }
    };
    let reading = async {
        let mut read = raw.rest().await.unwrap();
        read.drain(..read.find("\r\n\r\n").unwrap() + 4);
        read
    };
    let ((), read) = within("all parts", async { tokio::join!(sending, reading) }).await;
    let whole: Vec<u8> = (1..=64).flat_map(numbered).collect();
    assert!(read.as_bytes() == whole, "{} octets came", read.len());
}

#[tokio::test]
async fn a_caller_that_leaves_while_a_part_waits_for_room_ends_the_waiting() {
    let (relay, bridge, _) = scene().await;
    let (raw, id) = stalled(&relay, &bridge).await;
    let full = fill(&bridge, &id).await;
    let (reply, ()) = tokio::join!(bridge.part(&id, full, &[], numbered(full)), async { drop(raw) });
    assert_eq!(reply.status, 410);
}

/// As after a change of networks: four octets of eight are sent, and the relay does not learn that no more will come.
async fn half_a_part(relay: &TestRelay, bridge: &RawBridge, id: &str) -> Raw {
    let mut raw = Raw::connect(relay.address).await;
    let (path, token) = (bridge.respond_path(id), &bridge.token);
    raw.send(format!(
        "POST {path} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {token}\r\n"
    ))
    .await;
    raw.send("tunnel-part: 1\r\ncontent-length: 8\r\n\r\nhalf").await;
    raw
}

#[tokio::test]
async fn a_part_whose_connection_hangs_is_taken_over_another() {
    let (relay, bridge, mut caller) = scene().await;
    let (id, mut response) = bridge.begun(&mut caller, &in_parts()).await;
    let mut hanging = half_a_part(&relay, &bridge, &id).await;
    // What is asked after it is answered: it has the relay's attention.
    bridge.poll("timeout=0").await;
    let began = Instant::now();
    bridge.give(&id, 1, &[], "all of it").await;
    assert!(began.elapsed() < ANSWERED);
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "all of it");
    // The rest comes after all: it was taken before.
    hanging.send("done").await;
    assert!(hanging.until("}").await.starts_with("HTTP/1.1 200"));
    bridge.give(&id, 2, &[END], "end").await;
    assert_eq!(text(response).await, "end");
}

#[tokio::test]
async fn an_abort_is_not_held_up_by_half_a_part() {
    let (relay, bridge, mut caller) = scene().await;
    let (id, mut response) = bridge.begun(&mut caller, &in_parts()).await;
    let hanging = half_a_part(&relay, &bridge, &id).await;
    bridge.poll("timeout=0").await;
    bridge.give(&id, 1, &[("tunnel-abort", "1")], "").await;
    assert!(chunk(&mut response).await.unwrap().is_err());
    drop(hanging);
}

#[tokio::test]
async fn an_exchange_of_which_half_a_part_came_fails_with_its_bridge() {
    let (relay, bridge, mut caller) = scene().await;
    let (id, mut response) = bridge.begun(&mut caller, &in_parts()).await;
    let hanging = half_a_part(&relay, &bridge, &id).await;
    bridge.poll("timeout=0").await;
    // Another process takes over: what the first had in flight fails at once.
    let wish = json!({"clientId": bridge.client_id, "platform": "linux", "version": "1", "instance": "process-2"});
    let asked = request(Method::POST, "/api/bridge/register", &[], wish.to_string());
    assert_eq!(bridge.ask(asked).await.json()["bridgeId"], bridge.id.as_str());
    assert!(chunk(&mut response).await.unwrap().is_err());
    drop(hanging);
}
