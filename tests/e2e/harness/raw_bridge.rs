//! A polling bridge that the test plays itself, request by request: written from the protocol alone, with none of our message
//! types.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tunnel::transport::{Body, full};

use super::{Caller, TestRelay, post, within};

/// What our own bridge can do.
pub(crate) const ALL: &[&str] = &["ack", "parts", "body-parts"];

/// Every request goes over a connection of its own.
pub(crate) struct RawBridge {
    address: SocketAddr,
    pub(crate) token: String,
    pub(crate) client_id: String,
    pub(crate) id: String,
    /// The last batch that came.
    batch: AtomicU64,
}

/// A whole answer of the relay.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The text of an error.
    pub(crate) fn reason(&self) -> String {
        let reason = self.json()["error"].as_str().map(str::to_owned);
        reason.unwrap_or_else(|| panic!("no reason in {self:?}"))
    }
}

/// Sends a request over a connection of its own; `token` may be empty.
pub(crate) async fn ask(address: SocketAddr, token: &str, request: Request<Body>) -> Reply {
    let mut caller = Caller::connect(address, token).await;
    let (head, body) = caller.send(request).await.into_parts();
    let body = within("all of an answer", body.collect()).await.unwrap();
    Reply {
        status: head.status,
        headers: head.headers,
        body: body.to_bytes(),
    }
}

/// A request with these header fields.
pub(crate) fn request(method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(full(body)).unwrap()
}

impl RawBridge {
    pub(crate) async fn register(relay: &TestRelay, user: &str, capabilities: &[&str]) -> Self {
        let client_id = tunnel::random::name().unwrap();
        let wish = json!({
            "clientId": client_id,
            "platform": "linux",
            "version": "1.0",
            "capabilities": capabilities,
            "name": "raw",
            "instance": "process-1",
        });
        let token = relay.token(user);
        let path = "/api/bridge/register";
        let reply = ask(relay.address, &token, post(path, wish.to_string())).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        Self {
            address: relay.address,
            token,
            client_id,
            id: reply.json()["bridgeId"].as_str().unwrap().to_owned(),
            batch: AtomicU64::new(0),
        }
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> Reply {
        ask(self.address, &self.token, request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.ask(request(Method::GET, path, &[], "")).await
    }

    /// One poll with this query, as it is answered.
    pub(crate) async fn poll(&self, query: &str) -> Value {
        let reply = self.get(&format!("/api/bridge/poll/{}?{query}", self.id)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// The next request that comes: its id and what it is. Acknowledges the batch before.
    pub(crate) async fn next(&self) -> (String, Value) {
        let ack = self.batch.load(Ordering::Relaxed);
        let batch = self.poll(&format!("timeout=15000&ack={ack}")).await;
        self.batch.store(batch["batch"].as_u64().unwrap(), Ordering::Relaxed);
        let requests = batch["requests"].as_array().unwrap();
        assert_eq!(requests.len(), 1, "{batch}");
        let id = requests[0]["id"].as_str().unwrap().to_owned();
        (id, requests[0]["data"].clone())
    }

    /// Where the answer to a request goes.
    pub(crate) fn respond_path(&self, id: &str) -> String {
        format!("/api/bridge/respond/{}/{id}", self.id)
    }

    /// Sends a head, or a whole answer.
    pub(crate) async fn head(&self, id: &str, answer: &Value) -> Reply {
        self.ask(post(&self.respond_path(id), answer.to_string())).await
    }

    /// Sends a part with these further header fields.
    pub(crate) async fn part(&self, id: &str, n: u32, headers: &[(&str, &str)], bytes: impl Into<Bytes>) -> Reply {
        let n = n.to_string();
        let mut all = vec![
            ("content-type", "application/octet-stream"),
            ("tunnel-part", n.as_str()),
        ];
        all.extend_from_slice(headers);
        self.ask(request(Method::POST, &self.respond_path(id), &all, bytes))
            .await
    }

    /// Sends a part, which must be taken.
    pub(crate) async fn give(&self, id: &str, n: u32, headers: &[(&str, &str)], bytes: impl Into<Bytes>) {
        let reply = self.part(id, n, headers, bytes).await;
        assert_eq!(
            (reply.status, &reply.json()),
            (StatusCode::OK, &json!({"success": true}))
        );
    }

    /// A caller's chat whose answer has begun with this head: its id, and what the caller has of it.
    pub(crate) async fn begun(&self, caller: &mut Caller, head: &Value) -> (String, Response<Incoming>) {
        tokio::join!(
            async {
                let (id, _) = self.next().await;
                let reply = self.head(&id, head).await;
                assert_eq!(reply.status, 200, "{reply:?}");
                id
            },
            caller.post("/api/chat", "{}"),
        )
    }
}

/// The head of an answer that comes in parts.
pub(crate) fn in_parts() -> Value {
    json!({"status": 200, "headers": {"content-type": "application/x-ndjson"}, "more": true})
}
