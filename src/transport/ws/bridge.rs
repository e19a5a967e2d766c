//! The bridge's end of a `ws` link: asks the relay for the upgrade, then answers every stream as an HTTP/1.1 server.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::duplex::MuxStream;
use super::length;
use super::mux::{self, Driver, Mux};
use super::socket::Socket;
use super::streams::Side;
use super::{PATH, READY_PATH, SUBPROTOCOL};
use crate::transport::attach::{ConnectError, Hello, Welcome, refusal, retry_after, text};
use crate::transport::dial::{Dialer, RelayUrl, Stream};
use crate::transport::headers as names;
use crate::transport::http1::BUFFER;
use crate::transport::{Body, Exchange, empty, refusal as refusal_head};

/// Streams at once when the relay does not say how many it may open.
const DEFAULT_STREAMS: usize = 128;
/// More than this no relay may ask of a desktop.
const MOST_STREAMS: usize = 4096;

/// Connects to the relay; `dialed` is called once the connection stands and the upgrade is asked for.
///
/// # Errors
/// [`ConnectError`], which tells a refusal for good from trouble on the way.
pub async fn connect(
    dialer: &Dialer,
    relay: &RelayUrl,
    hello: &Hello,
    dialed: impl FnOnce(),
) -> Result<(Mux, Driver<Stream>, Welcome), ConnectError> {
    let stream = dialer.dial(relay.origin()).await?;
    dialed();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    // Ends with the upgrade or with the sender.
    tokio::spawn(connection.with_upgrades());
    let key = websocket_key()?;
    let request = upgrade_request(relay, hello, &key)?;
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    let mut response = check(response, &key).await?;
    let welcome = Welcome {
        name: text(response.headers(), &names::TUNNEL_BRIDGE_NAME).unwrap_or(hello.name.clone()),
        // A relay that prefers another says so in a message.
        transports: Vec::new(),
    };
    let streams = text(response.headers(), &names::TUNNEL_MAX_IN_FLIGHT)
        .and_then(|value| value.parse().ok())
        .unwrap_or(DEFAULT_STREAMS)
        .clamp(1, MOST_STREAMS);
    let upgraded = hyper::upgrade::on(&mut response)
        .await
        .map_err(|error| broken(&error))?;
    let parts = upgraded
        .downcast::<TokioIo<Stream>>()
        .map_err(|_| ConnectError::Handshake("not the connection that was dialed".into()))?;
    let socket = Socket::new(parts.io.into_inner(), parts.read_buf, Role::Client).await;
    let (mux, driver) = mux::start(socket, Side::Acceptor, streams);
    Ok((mux, driver, welcome))
}

fn broken(error: &hyper::Error) -> ConnectError {
    ConnectError::Broken(error.to_string())
}

fn websocket_key() -> Result<String, ConnectError> {
    let mut nonce = [0; 16];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| ConnectError::Handshake("no random numbers to be had".into()))?;
    Ok(BASE64.encode(nonce))
}

/// The request for the upgrade, with this `Sec-WebSocket-Key`.
///
/// # Errors
/// [`ConnectError::Handshake`] for what cannot stand in a header.
pub fn upgrade_request(
    relay: &RelayUrl,
    hello: &Hello,
    key: &str,
) -> Result<Request<http_body_util::Empty<Bytes>>, ConnectError> {
    let mut request = Request::get(relay.path(PATH))
        .header(HOST, relay.origin().authority())
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, key)
        .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .header(AUTHORIZATION, hello.token.bearer())
        .header(USER_AGENT, format!("{} ({})", names::PROGRAM, std::env::consts::OS))
        .header(names::TUNNEL_CLIENT_ID, &hello.client_id)
        .header(names::TUNNEL_INSTANCE, &hello.instance)
        .header(names::TUNNEL_BRIDGE_NAME, &hello.name)
        .header(names::TUNNEL_PRIORITY, hello.priority);
    if hello.ephemeral {
        request = request.header(names::TUNNEL_EPHEMERAL, "1");
    }
    request
        .body(http_body_util::Empty::new())
        .map_err(|_| ConnectError::Handshake("the token or the name cannot stand in a header".into()))
}

async fn check(response: Response<Incoming>, key: &str) -> Result<Response<Incoming>, ConnectError> {
    let headers = response.headers();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let expected = derive_accept_key(key.as_bytes());
        if text(headers, &SEC_WEBSOCKET_ACCEPT).as_deref() != Some(&expected) {
            return Err(ConnectError::Handshake(
                "Sec-WebSocket-Accept is missing or wrong".into(),
            ));
        }
        if text(headers, &SEC_WEBSOCKET_PROTOCOL).as_deref() != Some(SUBPROTOCOL) {
            return Err(ConnectError::Handshake(format!(
                "it does not speak {SUBPROTOCOL}: is this the relay?"
            )));
        }
        return Ok(response);
    }
    let status = response.status();
    let retry_after = retry_after(headers);
    match refusal(response).await {
        Ok(refused) => Err(refused),
        Err(_) => Err(ConnectError::NotUpgraded { status, retry_after }),
    }
}

/// Answers one stream: an HTTP/1.1 connection whose requests go to `exchange`. Ends at once when the relay resets it. `ready` is
/// told of the relay's own request, by which the relay proves the link before it gives it work.
pub async fn answer(stream: MuxStream, exchange: Arc<dyn Exchange>, ready: Arc<Notify>) {
    let reset = stream.watch();
    let service = service_fn(move |request: Request<Incoming>| {
        let (exchange, ready) = (Arc::clone(&exchange), Arc::clone(&ready));
        async move { Ok::<_, std::convert::Infallible>(respond(request, exchange, &ready).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .writev(false)
        .max_buf_size(BUFFER)
        .header_read_timeout(None)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        biased;
        // An error is the upstream's or the relay's: the one is already told by the broken body, the other gone.
        _ = connection => {}
        () = reset => {}
    }
}

async fn respond(request: Request<Incoming>, exchange: Arc<dyn Exchange>, ready: &Notify) -> Response<Body> {
    if request.uri().path() == READY_PATH {
        ready.notify_one();
        return Response::new(empty());
    }
    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    match exchange.call(request).await {
        Ok(response) => length::make_room(response),
        Err(error) => refusal_head(&error),
    }
}
