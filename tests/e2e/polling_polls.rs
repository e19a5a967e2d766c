//! What a polling bridge is told and how: polls, acknowledgements, and the bodies of requests part by part.

use std::sync::Arc;

use http::Response;
use http::header::EXPECT;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::harness::raw_bridge::{ALL, RawBridge, Reply};
use crate::harness::upstream::{Answer, channel_body};
use crate::harness::{Caller, TestRelay, get, post, text, until, within};

async fn scene(capabilities: &[&str]) -> (TestRelay, RawBridge) {
    let relay = TestRelay::start().await;
    let bridge = RawBridge::register(&relay, "ann", capabilities).await;
    (relay, bridge)
}

/// Makes a request in the background, and waits until the relay has it. The status and the text that come of it.
async fn asked(relay: &TestRelay, path: &'static str) -> JoinHandle<(u16, String)> {
    let session = relay.relay.registry.pick("ann", None).unwrap();
    let before = session.in_flight();
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let asking = tokio::spawn(async move {
        let response = caller.send(get(path)).await;
        (response.status().as_u16(), text(response).await)
    });
    until("the request to be in flight", || session.in_flight() > before).await;
    asking
}

/// Waits until the relay has taken a request of the bridge.
async fn heard_of_since(relay: &TestRelay, since: Instant) {
    let session = relay.relay.registry.pick("ann", None).unwrap();
    until("the bridge to be heard of", || {
        session.link().silence() < since.elapsed()
    })
    .await;
}

fn ids(batch: &Value) -> Vec<&str> {
    let requests = batch["requests"].as_array().unwrap();
    requests.iter().map(|request| request["id"].as_str().unwrap()).collect()
}

fn ack(batch: &Value) -> String {
    format!("timeout=0&ack={}", batch["batch"])
}

#[tokio::test]
async fn a_batch_comes_again_until_it_is_acknowledged() {
    let (relay, bridge) = scene(ALL).await;
    let one = asked(&relay, "/one").await;
    let first = bridge.poll("timeout=20000").await;
    assert_eq!(
        (ids(&first).len(), &first["success"], &first["drain"]),
        (1, &json!(true), &json!(false))
    );
    let again = bridge.poll("timeout=20000").await;
    assert_eq!(ids(&again), ids(&first));
    assert_ne!(again["batch"], first["batch"]);
    let two = asked(&relay, "/two").await;
    // The number of an older batch acknowledges nothing.
    let both = bridge.poll(&ack(&first)).await;
    assert_eq!(ids(&both).len(), 2);
    assert_eq!(ids(&both)[0], ids(&first)[0]);
    let nothing = bridge.poll(&ack(&both)).await;
    assert_eq!((ids(&nothing).len(), &nothing["hasMore"]), (0, &json!(false)));
    // Nor does it come again when the answer to that was lost as well.
    assert!(ids(&bridge.poll(&ack(&both)).await).is_empty());
    for (id, asking) in ids(&both).into_iter().zip([one, two]) {
        bridge
            .head(id, &json!({"status": 200, "headers": {}, "body": id}))
            .await;
        assert_eq!(within("the answer", asking).await.unwrap(), (200, id.to_owned()));
    }
}

#[tokio::test]
async fn what_was_answered_does_not_come_again() {
    let (relay, bridge) = scene(ALL).await;
    let asking = asked(&relay, "/one").await;
    let first = bridge.poll("timeout=20000").await;
    bridge.head(ids(&first)[0], &json!({"status": 200})).await;
    within("the answer", asking).await.unwrap();
    let next = bridge.poll("timeout=0").await;
    assert_eq!((ids(&next).len(), &next["cancelled"]), (0, &json!([])));
}

#[tokio::test]
async fn without_the_capability_delivery_is_the_acknowledgement() {
    let (relay, bridge) = scene(&["chat"]).await;
    let asking = asked(&relay, "/one").await;
    let first = bridge.poll("timeout=20000").await;
    assert_eq!(ids(&first).len(), 1);
    for query in ["timeout=0", "timeout=0&ack=0", &ack(&first)] {
        assert!(ids(&bridge.poll(query).await).is_empty(), "{query}");
    }
    bridge.head(ids(&first)[0], &json!({"status": 200, "body": "ok"})).await;
    assert_eq!(within("the answer", asking).await.unwrap(), (200, "ok".to_owned()));
}

#[tokio::test]
async fn an_old_poll_gives_way_when_a_newer_comes() {
    let (relay, bridge) = scene(ALL).await;
    let bridge = Arc::new(bridge);
    let polling = || {
        let bridge = Arc::clone(&bridge);
        tokio::spawn(async move { bridge.poll("timeout=50000").await })
    };
    let began = Instant::now();
    let older = polling();
    heard_of_since(&relay, began).await;
    let newer = polling();
    let older = within("the older poll's answer", older).await.unwrap();
    assert_eq!((ids(&older).len(), &older["cancelled"]), (0, &json!([])));
    let asking = asked(&relay, "/for-the-newer").await;
    let newer = within("the newer poll's answer", newer).await.unwrap();
    assert_eq!(ids(&newer).len(), 1);
    // What came with the newer is not acknowledged by what the older was told.
    let again = bridge.poll(&ack(&older)).await;
    assert_eq!(ids(&again), ids(&newer));
    bridge.head(ids(&newer)[0], &json!({"status": 204})).await;
    assert_eq!(within("the answer", asking).await.unwrap().0, 204);
}

#[tokio::test]
async fn a_poll_waits_as_long_as_it_asks_and_not_longer() {
    let (_relay, bridge) = scene(ALL).await;
    for (timeout, least) in [(0, 0), (300, 300)] {
        let began = Instant::now();
        let batch = bridge.poll(&format!("timeout={timeout}")).await;
        let took = began.elapsed().as_millis();
        assert!((least..5000).contains(&took), "{timeout} ms took {took}");
        assert_eq!((ids(&batch).len(), &batch["cancelled"]), (0, &json!([])));
    }
}

#[tokio::test]
async fn a_caller_that_leaves_before_delivery_is_never_heard_of() {
    let (relay, bridge) = scene(ALL).await;
    let asking = asked(&relay, "/one").await;
    let session = relay.relay.registry.pick("ann", None).unwrap();
    asking.abort();
    until("the caller to be gone", || session.in_flight() == 0).await;
    let batch = bridge.poll("timeout=0").await;
    assert_eq!((ids(&batch).len(), &batch["cancelled"]), (0, &json!([])));
}

#[tokio::test]
async fn a_small_body_comes_along_and_headers_that_are_repeated_are_arrays() {
    let (relay, bridge) = scene(ALL).await;
    for (body, text, encoding) in [
        (&b"{}"[..], json!("{}"), json!("utf8")),
        (&[0xff, 0x00][..], json!("/wA="), json!("base64")),
        (b"", Value::Null, Value::Null),
    ] {
        let mut caller = Caller::connect(relay.address, &bridge.token).await;
        let mut request = post("/api/chat", body);
        request.headers_mut().append("x-tag", "a".parse().unwrap());
        request.headers_mut().append("x-tag", "b".parse().unwrap());
        let ((), response) = tokio::join!(
            async {
                let (id, data) = bridge.next().await;
                assert_eq!((&data["body"], &data["bodyEncoding"]), (&text, &encoding));
                assert!(data.get("bodyParts").is_none());
                assert_eq!(data["headers"]["x-tag"], json!(["a", "b"]));
                bridge.head(&id, &json!({"status": 204})).await;
            },
            caller.send(request),
        );
        assert_eq!(response.status(), 204);
    }
}

/// An upload that the test writes: what writes it, the request's id, and the response to come.
async fn uploading(relay: &TestRelay, bridge: &RawBridge) -> (Answer, String, JoinHandle<Response<Incoming>>) {
    let (writer, body) = channel_body();
    let mut caller = Caller::connect(relay.address, &bridge.token).await;
    let request = http::Request::post("/api/blobs/x").body(body).unwrap();
    let asking = tokio::spawn(async move { caller.send(request).await });
    let (id, data) = bridge.next().await;
    assert_eq!((&data["bodyParts"], &data["body"]), (&json!(true), &Value::Null));
    (writer, id, asking)
}

async fn fetch(bridge: &RawBridge, id: &str, n: u32) -> Reply {
    let path = format!("/api/bridge/poll/{}/{id}/body/{n}?timeout=10000", bridge.id);
    bridge.get(&path).await
}

fn part(reply: &Reply) -> (u16, &[u8], bool) {
    (
        reply.status.as_u16(),
        &reply.body,
        reply.headers.contains_key("tunnel-end"),
    )
}

#[tokio::test]
async fn a_part_of_a_body_can_be_fetched_again_until_the_next_one_is() {
    let (relay, bridge) = scene(ALL).await;
    let (writer, id, asking) = uploading(&relay, &bridge).await;
    let reply = fetch(&bridge, &id, 1).await;
    assert_eq!(reply.status, 400);
    assert!(reply.reason().contains("part 0"), "{}", reply.reason());
    writer.send("first").await;
    for _ in 0..3 {
        assert_eq!(part(&fetch(&bridge, &id, 0).await), (200, &b"first"[..], false));
    }
    writer.send("second").await;
    for _ in 0..2 {
        assert_eq!(part(&fetch(&bridge, &id, 1).await), (200, &b"second"[..], false));
    }
    for n in [0, 3] {
        assert_eq!(fetch(&bridge, &id, n).await.status, 400, "part {n}");
    }
    // Nothing comes in time: an empty part, which is not the end.
    let path = format!("/api/bridge/poll/{}/{id}/body/2?timeout=0", bridge.id);
    assert_eq!(part(&bridge.get(&path).await), (200, &b""[..], false));
    drop(writer);
    for _ in 0..2 {
        assert_eq!(part(&fetch(&bridge, &id, 3).await), (200, &b""[..], true));
    }
    assert_eq!(fetch(&bridge, &id, 4).await.status, 400);
    bridge.head(&id, &json!({"status": 201})).await;
    assert_eq!(within("the answer", asking).await.unwrap().status(), 201);
}

#[tokio::test]
async fn two_fetches_of_one_part_get_the_same() {
    let (relay, bridge) = scene(ALL).await;
    let (writer, id, asking) = uploading(&relay, &bridge).await;
    let (one, two, ()) = tokio::join!(fetch(&bridge, &id, 0), fetch(&bridge, &id, 0), writer.send("first"));
    assert_eq!(part(&one), (200, &b"first"[..], false));
    assert_eq!(part(&two), (200, &b"first"[..], false));
    // And where nothing comes, one that waits longer holds up no other.
    let path = format!("/api/bridge/poll/{}/{id}/body/1?timeout", bridge.id);
    let began = Instant::now();
    let longer = format!("{path}=3000");
    let (one, two) = tokio::join!(bridge.get(&longer), async {
        let two = bridge.get(&format!("{path}=200")).await;
        (
            two.status.as_u16(),
            two.headers["retry-after"].clone(),
            began.elapsed().as_millis(),
        )
    });
    assert!(matches!(two, (503, _, ..2000)), "{two:?}");
    assert_eq!(two.1, "0");
    assert_eq!(part(&one), (200, &b""[..], false));
    drop(writer);
    assert_eq!(part(&fetch(&bridge, &id, 2).await), (200, &b""[..], true));
    bridge.head(&id, &json!({"status": 201})).await;
    assert_eq!(within("the answer", asking).await.unwrap().status(), 201);
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_never_taken_for_a_whole_one() {
    let (relay, bridge) = scene(ALL).await;
    let (writer, id, asking) = uploading(&relay, &bridge).await;
    writer.send("first").await;
    assert_eq!(part(&fetch(&bridge, &id, 0).await), (200, &b"first"[..], false));
    writer.break_off().await;
    let reply = fetch(&bridge, &id, 1).await;
    assert_eq!(reply.status, 410);
    assert_eq!(bridge.poll("timeout=0").await["cancelled"], json!([id]));
    drop(asking);
}

#[tokio::test]
async fn a_body_of_any_size_arrives_in_parts_of_a_bounded_size() {
    let (relay, bridge) = scene(ALL).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    let mut caller = Caller::connect(relay.address, &bridge.token).await;
    let request = post("/api/blobs/x", sent.clone());
    let asking = tokio::spawn(async move { caller.send(request).await });
    let (id, _) = bridge.next().await;
    let mut received = Vec::new();
    for n in 0.. {
        let reply = fetch(&bridge, &id, n).await;
        let (status, bytes, end) = part(&reply);
        assert_eq!(status, 200);
        assert!(bytes.len() <= 256 * 1024, "a part of {} octets", bytes.len());
        received.extend_from_slice(bytes);
        if end {
            break;
        }
    }
    assert!(received == sent);
    bridge.head(&id, &json!({"status": 201})).await;
    assert_eq!(within("the answer", asking).await.unwrap().status(), 201);
}

#[tokio::test]
async fn a_caller_that_waits_to_be_asked_for_its_body_is_asked_when_the_bridge_fetches_it() {
    let (relay, bridge) = scene(ALL).await;
    let mut caller = Caller::connect(relay.address, &bridge.token).await;
    let mut request = post("/api/chat", "{}");
    request.headers_mut().insert(EXPECT, "100-continue".parse().unwrap());
    let ((), response) = tokio::join!(
        async {
            let (id, data) = bridge.next().await;
            assert_eq!(data["bodyParts"], true);
            let first = fetch(&bridge, &id, 0).await;
            assert_eq!((first.status.as_u16(), &first.body[..]), (200, &b"{}"[..]));
            bridge.head(&id, &json!({"status": 417})).await;
        },
        caller.send(request),
    );
    assert_eq!(response.status(), 417);
}
