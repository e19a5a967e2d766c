//! Bridges and relays that break the rules harm nobody but themselves.

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::header::{
    AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Request, Response};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tunnel::transport::{empty, full};

use crate::harness::bridge::Transport;
use crate::harness::{Caller, Path, TestBridge, TestRelay, Upstream, text, until, within};

pub(crate) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Connects as a bridge of bob and lets the test write what it likes.
pub(crate) async fn rogue(relay: SocketAddr, token: &str) -> Socket {
    let mut caller = Caller::connect(relay, token).await;
    let response = caller.send(upgrade_request(token)).await;
    assert_eq!(response.status(), 101);
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

fn upgrade_request(token: &str) -> Request<tunnel::transport::Body> {
    Request::get("/ws/tunnel")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .header(SEC_WEBSOCKET_PROTOCOL, "tunnel.v1")
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .header("tunnel-client-id", "rogue")
        .header("tunnel-instance", "1")
        .header("tunnel-bridge-name", "rogue")
        .body(empty())
        .unwrap()
}

fn frame(kind: u8, stream: u32, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u8(kind);
    out.put_u32(stream);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out
}

/// The code of the close frame, or none if the connection just ended.
pub(crate) async fn close_code(socket: &mut Socket) -> Option<u16> {
    within("the end of the rogue's session", async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Close(Some(close)) = message {
                return Some(close.code.into());
            }
        }
        None
    })
    .await
}

/// Answers the relay's own request, which comes on stream 1: the session takes work now.
pub(crate) async fn opened(relay: &TestRelay, socket: &mut Socket) {
    within("the relay's own request", async {
        while let Some(message) = socket.next().await {
            if message.unwrap().is_binary() {
                return;
            }
        }
        panic!("the session ended early");
    })
    .await;
    let answer = frame(1, 1, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    socket.send(Message::Binary(answer.freeze())).await.unwrap();
    until("the session to be there", || {
        relay.relay.registry.pick("bob", None).is_some()
    })
    .await;
}

/// Sends a control message.
pub(crate) async fn say(socket: &mut Socket, message: &serde_json::Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

/// Waits until the relay has read all that was sent; the session must go on.
pub(crate) async fn heard(socket: &mut Socket) {
    let mark = b"mark".as_slice();
    socket.send(Message::Ping(mark.into())).await.unwrap();
    within("the relay's pong", async {
        while let Some(message) = socket.next().await {
            if matches!(message.unwrap(), Message::Pong(payload) if payload == mark) {
                return;
            }
        }
        panic!("the session ended early");
    })
    .await;
}

#[tokio::test]
async fn broken_frames_overruns_and_floods_end_that_session_and_touch_no_other() {
    let path = Path::scripted(Transport::Ws).await;
    let mut witness = path.caller().await;
    let (answer, response) = path.begun(&mut witness).await;
    let mut response = response;
    let data = vec![0; 65_536];
    let attacks: Vec<(&str, Vec<BytesMut>)> = vec![
        ("a cut frame", vec![BytesMut::from(&[1, 0, 0, 0, 1, 0, 0, 0, 9, 1][..])]),
        ("an empty DATA", vec![frame(1, 1, b"")]),
        ("a DATA too long", vec![frame(1, 1, &vec![0; 65_537])]),
        ("an OPEN", vec![frame(0, 2, b"")]),
        ("an OPEN of the relay's own", vec![frame(0, 3, b"")]),
        ("a stream that never was", vec![frame(1, 99, b"x")]),
        ("a window overrun", (0..5).map(|_| frame(1, 1, &data)).collect()),
        (
            "a credit overrun",
            (0..2).map(|_| frame(4, 1, &u32::MAX.to_be_bytes())).collect(),
        ),
        ("a flood of WINDOW", (0..5000).map(|_| frame(4, 1, &[0; 4])).collect()),
        ("a flood of RESET", (0..5000).map(|_| frame(3, 1, &[0; 4])).collect()),
        (
            "a flood of unknown frames",
            (0..5000).map(|_| frame(200, 1, b"x")).collect(),
        ),
    ];
    for (name, messages) in attacks {
        let mut socket = rogue(path.relay.address, &path.relay.token("bob")).await;
        opened(&path.relay, &mut socket).await;
        for message in messages {
            if socket.send(Message::Binary(message.freeze())).await.is_err() {
                break;
            }
        }
        assert_eq!(close_code(&mut socket).await, Some(1002), "{name}");
        answer.send(name).await;
        assert_eq!(crate::harness::chunk(&mut response).await.unwrap().unwrap(), name);
    }
    let mut socket = rogue(path.relay.address, &path.relay.token("bob")).await;
    for _ in 0..100 {
        if socket.send(Message::text(r#"{"type":"later"}"#)).await.is_err() {
            break;
        }
    }
    assert_eq!(close_code(&mut socket).await, Some(1008), "a flood of control messages");
    let mut socket = rogue(path.relay.address, &path.relay.token("bob")).await;
    // Too large: the connection just ends, perhaps before all of it is sent.
    socket.send(Message::Binary(vec![200; 1 << 20].into())).await.ok();
    close_code(&mut socket).await;
    answer.send("still here").await;
    assert_eq!(
        crate::harness::chunk(&mut response).await.unwrap().unwrap(),
        "still here"
    );
}

#[tokio::test]
async fn what_is_unknown_is_ignored_by_the_relay() {
    let path = Path::scripted(Transport::Ws).await;
    let mut socket = rogue(path.relay.address, &path.relay.token("bob")).await;
    opened(&path.relay, &mut socket).await;
    socket
        .send(Message::text(r#"{"type":"dance","to":"this"}"#))
        .await
        .unwrap();
    socket.send(Message::text("no JSON at all")).await.unwrap();
    socket
        .send(Message::Binary(frame(77, 4_000_000, b"later").freeze()))
        .await
        .unwrap();
    // It still carries a request.
    let token = path.relay.token("bob");
    let mut caller = Caller::connect(path.relay.address, &token).await;
    let answering = async {
        while !within("the request", socket.next()).await.unwrap().unwrap().is_binary() {}
        let answer = frame(1, 1, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfine!");
        socket.send(Message::Binary(answer.freeze())).await.unwrap();
    };
    let ((), response) = tokio::join!(answering, caller.get("/any"));
    assert_eq!(text(response).await, "fine!");
}

#[tokio::test]
async fn an_upgrade_that_is_none_is_told_what_it_lacks() {
    let path = Path::scripted(Transport::Ws).await;
    let token = path.relay.token("bob");
    let change = |change: fn(&mut Request<tunnel::transport::Body>)| {
        let mut request = upgrade_request(&token);
        change(&mut request);
        request
    };
    for (request, word) in [
        (change(|r| drop(r.headers_mut().remove(UPGRADE))), "Upgrade"),
        (
            change(|r| drop(r.headers_mut().insert(SEC_WEBSOCKET_VERSION, 8.into()))),
            "version",
        ),
        (
            change(|r| {
                r.headers_mut()
                    .insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("tunnel.v9"));
            }),
            "subprotocol",
        ),
        (
            change(|r| drop(r.headers_mut().remove("tunnel-client-id"))),
            "tunnel-client-id",
        ),
        (
            change(|r| drop(r.headers_mut().insert("tunnel-bridge-name", "a b".parse().unwrap()))),
            "name",
        ),
        (
            change(|r| drop(r.headers_mut().insert("tunnel-priority", "high".parse().unwrap()))),
            "priority",
        ),
    ] {
        let mut caller = Caller::connect(path.relay.address, &token).await;
        let response = caller.send(request).await;
        let status = if word == "Upgrade" { 426 } else { 400 };
        assert_eq!(response.status(), status, "{word}");
        let told = text(response).await;
        assert!(told.contains(word), "{told}");
    }
}

#[tokio::test]
async fn a_relay_that_breaks_the_rules_loses_its_bridge_and_unknown_messages_do_not() {
    let upstream = Upstream::serving(|_| async { Response::new(full("answer")) }).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bridge = TestBridge::between(address, upstream.address).launch();
    for attack in [
        BytesMut::from(&[9, 9][..]),
        frame(1, 7, b"x"),
        frame(0, 2, b""),
        (1..600).step_by(2).fold(BytesMut::new(), |mut all, id| {
            all.extend_from_slice(&frame(0, id, b""));
            all
        }),
    ] {
        let mut socket = accept_bridge(&listener).await;
        socket.send(Message::text(r#"{"type":"later"}"#)).await.unwrap();
        socket
            .send(Message::Binary(frame(99, 1, b"later").freeze()))
            .await
            .unwrap();
        // It still answers after what it does not know.
        let request = b"GET /api/version HTTP/1.1\r\nhost: x\r\n\r\n";
        let mut message = frame(0, 1, b"");
        message.extend_from_slice(&frame(1, 1, request));
        socket.send(Message::Binary(message.freeze())).await.unwrap();
        let answered = within("the bridge's answer", async {
            loop {
                if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
                    let told = String::from_utf8_lossy(&bytes).into_owned();
                    if told.contains("answer") {
                        return told;
                    }
                }
            }
        })
        .await;
        assert!(answered.contains("200 OK"), "{answered}");
        socket.send(Message::Binary(attack.freeze())).await.unwrap();
        let code = within("the bridge's goodbye", async {
            loop {
                match socket.next().await {
                    Some(Ok(Message::Close(Some(close)))) => return u16::from(close.code),
                    Some(Ok(_)) => {}
                    ended => panic!("no goodbye: {ended:?}"),
                }
            }
        })
        .await;
        assert_eq!(code, 1002);
    }
    bridge.stop().await;
}

/// Answers the bridge's upgrade as a relay would.
async fn accept_bridge(listener: &tokio::net::TcpListener) -> WebSocketStream<tokio::net::TcpStream> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut stream, _) = within("the bridge", listener.accept()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("sec-websocket-key: "))
        .unwrap();
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\nsec-websocket-protocol: tunnel.v1\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
    WebSocketStream::from_raw_socket(stream, Role::Server, None).await
}
