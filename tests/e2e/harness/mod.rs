//! What the scenarios stand on. Everything listens on port 0, and every wait is for an event.

#[cfg(target_os = "linux")]
pub(crate) mod accounts;
pub(crate) mod bridge;
pub(crate) mod browser;
pub(crate) mod caller;
pub(crate) mod corporate;
#[cfg(target_os = "linux")]
pub(crate) mod deployed;
#[cfg(target_os = "linux")]
pub(crate) mod desktop;
#[cfg(target_os = "linux")]
pub(crate) mod misbehaving;
pub(crate) mod oidc;
#[cfg(target_os = "linux")]
pub(crate) mod pebble;
#[cfg(target_os = "linux")]
pub(crate) mod postgres;
#[cfg(target_os = "linux")]
pub(crate) mod probe;
#[cfg(target_os = "linux")]
pub(crate) mod process;
#[cfg(target_os = "linux")]
pub(crate) mod programs;
#[cfg(unix)]
pub(crate) mod provider;
pub(crate) mod proxy;
pub(crate) mod raw_bridge;
pub(crate) mod relay;
pub(crate) mod tls;
pub(crate) mod tls_front;
pub(crate) mod upstream;
pub(crate) mod watch;

use std::time::Duration;

pub(crate) use bridge::TestBridge;
pub(crate) use caller::{Caller, chunk, get, json, post, text};
pub(crate) use proxy::ChaosProxy;
pub(crate) use relay::TestRelay;
pub(crate) use upstream::Upstream;

/// What a test waits at most for an event that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the long run is wanted (`TUNNEL_LONG_TESTS=1`).
pub(crate) fn long() -> bool {
    std::env::var_os("TUNNEL_LONG_TESTS").is_some()
}

/// Waits for an event, and fails with its name if it does not come.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited too long for {what}"),
    }
}

/// Waits until the relay gives the user's requests to a bridge.
pub(crate) async fn ready(relay: &TestRelay, user: &str) {
    until("a bridge of the user", || {
        relay.relay.registry.pick(user, None).is_some()
    })
    .await;
}

/// Looks again and again until the condition holds: for states that nobody announces.
pub(crate) async fn until(what: &str, condition: impl FnMut() -> bool) {
    within(what, holds(condition)).await;
}

/// The same for what takes longer by its nature.
pub(crate) async fn until_within(limit: Duration, what: &str, condition: impl FnMut() -> bool) {
    let held = tokio::time::timeout(limit, holds(condition)).await;
    assert!(held.is_ok(), "waited too long for {what}");
}

async fn holds(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A chat whose every piece is sent only after the one before it was seen, and the first after the head.
pub(crate) async fn chat_in_lock_step(upstream: &Upstream, caller: &mut Caller) {
    let (answer, mut response) = tokio::join!(
        async { upstream.next().await.begin(http::Response::builder()) },
        caller.post("/api/chat", "{}"),
    );
    answer.send("head").await;
    pieces_in_lock_step(answer, &mut response).await;
}

/// The same where something on the way holds the head back until the first piece.
pub(crate) async fn chat_in_lock_step_after_the_head(upstream: &Upstream, caller: &mut Caller) {
    let (answer, mut response) = tokio::join!(
        async {
            let answer = upstream.next().await.begin(http::Response::builder());
            answer.send("head").await;
            answer
        },
        caller.post("/api/chat", "{}"),
    );
    pieces_in_lock_step(answer, &mut response).await;
}

async fn pieces_in_lock_step(answer: upstream::Answer, response: &mut http::Response<hyper::body::Incoming>) {
    assert_eq!(response.status(), 200);
    assert_eq!(chunk(response).await.unwrap().unwrap(), "head");
    for number in 0..50 {
        let line = format!("{{\"chunk\":{number}}}\n");
        answer.send(line.clone()).await;
        assert_eq!(chunk(response).await.unwrap().unwrap(), line);
    }
    drop(answer);
    assert!(chunk(response).await.is_none());
}

/// Makes one test of a scenario for each transport.
macro_rules! on_each_transport {
    ($($(#[$attribute:meta])* async fn $name:ident($transport:ident: Transport) $body:block)*) => {
        $(
            mod $name {
                #[allow(unused_imports, reason = "a scenario uses what it needs of its module")]
                use super::*;

                async fn scenario($transport: $crate::harness::bridge::Transport) $body

                $(#[$attribute])*
                #[tokio::test]
                async fn over_ws() {
                    scenario($crate::harness::bridge::Transport::Ws).await;
                }

                $(#[$attribute])*
                #[tokio::test]
                async fn over_polling() {
                    scenario($crate::harness::bridge::Transport::Poll).await;
                }
            }
        )*
    };
}
pub(crate) use on_each_transport;

/// Relay, upstream, and a bridge between them.
pub(crate) struct Path {
    pub(crate) relay: TestRelay,
    pub(crate) bridge: TestBridge,
    pub(crate) upstream: Upstream,
    pub(crate) token: String,
}

impl Path {
    /// With an upstream whose every answer the test writes itself.
    pub(crate) async fn scripted(transport: bridge::Transport) -> Self {
        Self::to(Upstream::scripted().await, transport).await
    }

    /// To this upstream.
    pub(crate) async fn to(upstream: Upstream, transport: bridge::Transport) -> Self {
        Self::with(TestRelay::start().await, upstream, transport).await
    }

    /// Through this relay.
    pub(crate) async fn with(relay: TestRelay, upstream: Upstream, transport: bridge::Transport) -> Self {
        let bridge = TestBridge::to(&relay, &upstream)
            .transport(transport)
            .allow("* /*")
            .start()
            .await;
        Self::over(relay, upstream, bridge).await
    }

    /// The same with a proxy between relay and bridge, that delays each direction so long.
    pub(crate) async fn disturbed(
        relay: TestRelay,
        upstream: Upstream,
        transport: bridge::Transport,
        one_way: Duration,
    ) -> (Self, ChaosProxy) {
        let proxy = ChaosProxy::to(relay.address, one_way).await;
        let bridge = TestBridge::between(proxy.address, upstream.address)
            .transport(transport)
            .start()
            .await;
        (Self::over(relay, upstream, bridge).await, proxy)
    }

    /// Over this bridge of ann's, once requests reach it.
    pub(crate) async fn over(relay: TestRelay, upstream: Upstream, bridge: TestBridge) -> Self {
        ready(&relay, "ann").await;
        let token = relay.token("ann");
        Self {
            relay,
            bridge,
            upstream,
            token,
        }
    }

    /// A caller with its own connection to the relay.
    pub(crate) async fn caller(&self) -> Caller {
        Caller::connect(self.relay.address, &self.token).await
    }

    /// A chat whose answer has begun: what writes its body, and what the caller has of it.
    pub(crate) async fn begun(&self, caller: &mut Caller) -> (upstream::Answer, http::Response<hyper::body::Incoming>) {
        tokio::join!(
            async { self.upstream.next().await.begin(http::Response::builder()) },
            caller.post("/api/chat", "{}"),
        )
    }
}
