//! A polling bridge with bad luck: it repeats what it need not, hangs up before it is answered, and starts again somewhere before.
//! The caller's bytes are exact all the same, in both directions.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::harness::raw_bridge::{ALL, RawBridge, Reply, request};
use crate::harness::{Caller, TestRelay, post, within};

/// Callers at the same time, and the requests of each.
const CALLERS: u64 = 6;
const REQUESTS: u64 = 8;

/// The same seed gives the same luck (xorshift; what the scheduler does with it differs).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    /// Bytes of a length that is often small and sometimes large.
    fn bytes(&mut self) -> Vec<u8> {
        let magnitude = self.below(20);
        let length = self.below(1 << magnitude);
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// The answer to a request whose body was this: a caller can tell what it must be.
fn answer_to(body: &[u8], seed: u64) -> Vec<u8> {
    let mut answer = Dice::new(seed).bytes();
    answer.extend_from_slice(body);
    answer
}

struct Unlucky {
    bridge: RawBridge,
    dice: Mutex<Dice>,
}

impl Unlucky {
    fn dice<T>(&self, roll: impl FnOnce(&mut Dice) -> T) -> T {
        roll(&mut self.dice.lock().unwrap())
    }

    /// Sends until an answer arrives that tells more than "send it again". Some answers get lost, and what was sent may have been
    /// taken or not; some are asked for again without need.
    async fn insist(&self, method: &Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        loop {
            let asked = request(method.clone(), path, headers, body.to_vec());
            let (hangs_up, patience) = self.dice(|dice| (dice.one_in(4), dice.below(3000)));
            let asking = self.bridge.ask(asked);
            let reply = if hangs_up {
                match tokio::time::timeout(Duration::from_micros(patience), asking).await {
                    Ok(reply) => reply,
                    Err(_) => continue,
                }
            } else {
                asking.await
            };
            if reply.status != StatusCode::SERVICE_UNAVAILABLE && !self.dice(|dice| dice.one_in(5)) {
                return reply;
            }
        }
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let reply = self.insist(&Method::POST, path, headers, body).await;
        assert_eq!(reply.status, 200, "{path} {headers:?}: {reply:?}");
    }

    /// The body of a request, as it comes along or part by part.
    async fn fetch(&self, id: &str, data: &Value) -> Vec<u8> {
        if data.get("bodyParts").is_none() {
            let text = data["body"].as_str().unwrap_or_default();
            return match data["bodyEncoding"].as_str() {
                Some("base64") => base64::Engine::decode(&base64::prelude::BASE64_STANDARD, text).unwrap(),
                _ => text.as_bytes().to_vec(),
            };
        }
        let mut body = Vec::new();
        for n in 0.. {
            let path = format!("/api/bridge/poll/{}/{id}/body/{n}?timeout=1000", self.bridge.id);
            let reply = self.insist(&Method::GET, &path, &[], b"").await;
            assert_eq!(reply.status, 200, "{path}: {reply:?}");
            body.extend_from_slice(&reply.body);
            if reply.headers.contains_key("tunnel-end") {
                break;
            }
        }
        body
    }

    /// Answers in parts of any size; sometimes some of the last ones come again.
    async fn respond(&self, id: &str, answer: &[u8]) {
        let path = self.bridge.respond_path(id);
        let (in_head, most) = self.dice(|dice| (dice.below(200) as usize, 1 + dice.bytes().len()));
        let (first, mut rest) = answer.split_at(in_head.min(answer.len()));
        let first = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, first);
        let head = json!({"status": 200, "headers": {}, "body": first, "bodyEncoding": "base64", "more": true});
        let head = head.to_string();
        self.post(&path, &[], head.as_bytes()).await;
        let mut sent: Vec<(String, &[u8])> = Vec::new();
        loop {
            // Not more parts than the test has time for.
            let size = self
                .dice(|dice| dice.below(most as u64 + 1) as usize)
                .max(answer.len() / 16);
            let (part, left) = rest.split_at(size.min(rest.len()));
            rest = left;
            sent.push(((sent.len() + 1).to_string(), part));
            let again = self.dice(|dice| if dice.one_in(4) { 1 + dice.below(3) as usize } else { 0 });
            for (n, part) in &sent[sent.len().saturating_sub(1 + again)..] {
                let last = rest.is_empty() && *n == sent.len().to_string();
                let end = if last { &[("tunnel-end", "1")][..] } else { &[] };
                let headers = [&[("tunnel-part", n.as_str())], end].concat();
                self.post(&path, &headers, part).await;
            }
            if self.dice(|dice| dice.one_in(8)) {
                self.post(&path, &[], head.as_bytes()).await;
            }
            if rest.is_empty() {
                return;
            }
        }
    }

    async fn carry(&self, id: String, data: Value) {
        let body = self.fetch(&id, &data).await;
        let seed = data["headers"]["x-seed"].as_str().unwrap().parse().unwrap();
        self.respond(&id, &answer_to(&body, seed)).await;
    }

    /// Polls for ever; a batch whose answer got lost is not acknowledged, and what is known is not done twice.
    async fn work(&self) {
        let mut known = Vec::new();
        let mut carrying = futures_util::stream::FuturesUnordered::new();
        let mut ack = 0;
        loop {
            let path = format!("/api/bridge/poll/{}?timeout=100&ack={ack}", self.bridge.id);
            let batch = {
                let mut polling = std::pin::pin!(self.insist(&Method::GET, &path, &[], b""));
                loop {
                    tokio::select! {
                        reply = &mut polling => break reply.json(),
                        Some(()) = futures_util::StreamExt::next(&mut carrying) => {}
                    }
                }
            };
            if !self.dice(|dice| dice.one_in(4)) {
                ack = batch["batch"].as_u64().unwrap();
            }
            assert_eq!(batch["cancelled"], json!([]), "nobody left");
            for polled in batch["requests"].as_array().unwrap() {
                let id = polled["id"].as_str().unwrap().to_owned();
                if !known.contains(&id) {
                    known.push(id.clone());
                    carrying.push(self.carry(id, polled["data"].clone()));
                }
            }
        }
    }
}

/// Makes requests one after the other; every answer must be the one it knows.
async fn call(relay: &TestRelay, mut dice: Dice) {
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    for _ in 0..REQUESTS {
        let (seed, body) = (dice.next(), dice.bytes());
        let mut request = post("/api/generate", body.clone());
        request.headers_mut().insert("x-seed", seed.into());
        let response = caller.send(request).await;
        assert_eq!(response.status(), 200);
        let received = within("an answer", response.into_body().collect())
            .await
            .unwrap()
            .to_bytes();
        let expected = answer_to(&body, seed);
        let (came, should) = (received.len(), expected.len());
        assert!(
            received == expected,
            "{came} octets came back, of {should}, or not the same"
        );
    }
}

async fn bad_luck(seed: u64) {
    let relay = TestRelay::start().await;
    let unlucky = Unlucky {
        bridge: RawBridge::register(&relay, "ann", ALL).await,
        dice: Mutex::new(Dice::new(seed)),
    };
    let calls = join_all((0..CALLERS).map(|n| call(&relay, Dice::new(seed ^ (n + 1) << 32))));
    tokio::select! {
        _ = calls => {}
        () = unlucky.work() => {}
    }
}

#[tokio::test]
async fn repeated_parts_and_lost_answers_change_no_byte() {
    // The seed that a failure prints, in this variable, is the same luck again.
    let seed = match std::env::var("TUNNEL_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into(),
    };
    println!("the seed is {seed}");
    bad_luck(seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_where_threads_overtake_each_other() {
    bad_luck(7).await;
}
