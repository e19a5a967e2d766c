//! A WebSocket of the upstream passes through, where the policy lets the path through.

use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tunnel::transport::{Body, empty};

use crate::harness::bridge::Transport;
use crate::harness::{Caller, Path, TestBridge, TestRelay, Upstream, on_each_transport, ready, until, within};
use crate::tls::Sealed;

/// Sends back every message, and ends when told to.
async fn echo(mut request: Request<Incoming>) -> Response<Body> {
    let key = request.headers()[SEC_WEBSOCKET_KEY].clone();
    assert_eq!(request.headers()[UPGRADE], "websocket");
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let stream = TokioIo::new(upgraded.await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                break;
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()))
        .body(empty())
        .unwrap()
}

fn upgrade(path: &str) -> Request<Body> {
    Request::get(path)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .body(empty())
        .unwrap()
}

on_each_transport! {

    async fn an_upgrade_to_anything_but_a_websocket_does_not_pass(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut raw = crate::harness::caller::Raw::connect(path.relay.address).await;
        raw.send(format!(
            "GET /x HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            path.token
        ))
        .await;
        let call = path.upstream.next().await;
        for name in ["upgrade", "connection", "http2-settings"] {
            assert!(!call.request.headers().contains_key(name), "{name} passed");
        }
    }

}

#[tokio::test]
async fn a_websocket_of_the_upstream_works() {
    let transport = Transport::Ws;
    let path = Path::to(Upstream::serving(echo).await, transport).await;
    echoes(path.caller().await, &path.bridge).await;
}

#[tokio::test]
async fn a_websocket_of_the_upstream_works_by_tls() {
    let sealed = Sealed::start().await;
    let upstream = Upstream::serving(echo).await;
    let bridge = sealed.bridge(&upstream, Transport::Ws).await;
    let caller = sealed.caller(&sealed.authority.connector(&["http/1.1"])).await;
    echoes(caller, &bridge).await;
}

async fn echoes(mut caller: Caller, bridge: &TestBridge) {
    let response = caller.send(upgrade("/live")).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    for size in [1, 1000, 300_000] {
        let message = Message::Binary(vec![7; size].into());
        socket.send(message.clone()).await.unwrap();
        let echoed = within("the echo", socket.next()).await.unwrap().unwrap();
        assert_eq!(echoed, message);
    }
    assert_eq!(bridge.status.figures().in_flight, 1);
    drop(socket);
    drop(caller);
    until("the exchange to end", || bridge.status.figures().in_flight == 0).await;
}

#[tokio::test]
async fn a_side_that_is_done_still_hears_the_other() {
    let transport = Transport::Ws;
    // The upstream sends nothing, says so, and reads what the caller sends.
    let (sender, mut received) = tokio::sync::mpsc::channel(1);
    let upstream = Upstream::serving(move |mut request: Request<Incoming>| {
        let sender = sender.clone();
        async move {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgraded.await.unwrap());
                stream.shutdown().await.unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.ok();
                sender.send(all).await.ok();
            });
            let head = Response::builder()
                .status(101)
                .header(CONNECTION, "upgrade")
                .header(UPGRADE, "websocket");
            head.body(empty()).unwrap()
        }
    })
    .await;
    let path = Path::to(upstream, transport).await;
    let mut caller = path.caller().await;
    let response = caller.send(upgrade("/live")).await;
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    assert_eq!(
        within("the end of the upstream's side", stream.read(&mut [0; 8]))
            .await
            .unwrap(),
        0
    );
    let sent: Vec<u8> = (0..1024 * 1024u32).flat_map(u32::to_be_bytes).collect();
    within("room for all of it", stream.write_all(&sent)).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(within("all of it", received.recv()).await.unwrap() == sent);
}

#[tokio::test]
async fn an_upgrade_on_a_closed_path_is_refused() {
    let transport = Transport::Ws;
    let relay = TestRelay::start().await;
    let upstream = Upstream::serving(echo).await;
    let bridge = TestBridge::to(&relay, &upstream).transport(transport).start().await;
    ready(&relay, "ann").await;
    let token = relay.token("ann");
    let mut caller = crate::harness::Caller::connect(relay.address, &token).await;
    let response = caller.send(upgrade("/live")).await;
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["tunnel-error"], "policy");
    drop(bridge);
}
