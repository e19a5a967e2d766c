//! A bridge over WebSocket: answers its upgrade request, then lives as long as the link does.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{
    CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Relay;
use super::auth::refusal::{self, Denied};
use super::auth::tokens::Tokens;
use super::auth::{self, tokens};
use super::connection::CallerIo;
use super::error::{Code, Error};
use super::registry::{Client, Identity, Session};
use crate::random;
use crate::transport::headers as names;
use crate::transport::ws::SUBPROTOCOL;
use crate::transport::ws::control::Control;
use crate::transport::ws::json;
use crate::transport::ws::mux::{Driver, End, Event};
use crate::transport::ws::relay::WsLink;
use crate::transport::ws::socket::Socket;
use crate::transport::{Body, Ending, Link, empty, is_bridge_name};

/// How long a fresh link may take to prove that a request crosses it.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a session outlives its token at the most while a fresh one that its bridge showed is looked at.
const LOOKED_AT: Duration = Duration::from_secs(10);

/// Answers the request of a bridge to connect; on success the session goes on in a task of its own.
///
/// # Errors
/// What is wrong with the token, the `Origin`, or the upgrade request.
pub async fn upgrade(relay: &Arc<Relay>, mut request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let headers = request.headers();
    if let Some(origin) = headers.get(ORIGIN)
        && !relay.cors.names(origin)
    {
        return Err(Error::new(
            Code::Forbidden,
            "web pages of this origin may not connect as a bridge (the relay's option --cors-origin)",
        ));
    }
    let owner = auth::bridge(&relay.tokens, headers, request.uri().query()).await?;
    if !relay.config.transports.ws {
        return Err(Error::new(
            Code::NotFound,
            "this relay offers no WebSocket (its option --transports)",
        ));
    }
    if relay.shutdown.is_draining() {
        return Err(Error::new(
            Code::Draining,
            "the relay is stopping; connect again in a moment",
        ));
    }
    let (key, speech) = handshake(headers)?;
    let mut identity = match speech {
        Speech::Streams => read_identity(relay, &owner, headers)?,
        Speech::Json => app_identity(relay, &owner)?,
    };
    identity.name = relay.registry.reserve_name(&identity).map_err(|_| too_many_bridges())?;

    let response = switching(relay, &key, speech, &identity)?;
    let transports = match headers.get(names::TUNNEL_CLIENT_ID).and_then(|id| id.to_str().ok()) {
        Some(client_id) => relay.config.transports.for_bridge(client_id),
        None => Vec::new(),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let task = {
        let relay = Arc::clone(relay);
        async move {
            let Ok(upgraded) = upgraded.await else {
                return;
            };
            let Ok(parts) = auto::upgrade::downcast::<TokioIo<CallerIo>>(upgraded) else {
                tracing::error!("a bridge's connection is not the one that was accepted");
                return;
            };
            let io = parts.io.into_inner();
            io.tune_link();
            match speech {
                Speech::Streams => run(relay, io, parts.read_buf, identity, owner, transports).await,
                Speech::Json => run_json(relay, io, parts.read_buf, identity, owner).await,
            }
        }
    };
    relay.shutdown.tracker().spawn(task);
    Ok(response)
}

/// The answer to a bridge that may connect.
fn switching(relay: &Relay, key: &[u8], speech: Speech, identity: &Identity) -> Result<Response<Body>, Error> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let streams = relay.config.limits.in_flight_per_bridge;
    for (name, value) in [
        (CONNECTION, "Upgrade"),
        (UPGRADE, "websocket"),
        (SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key)),
        (names::TUNNEL_BRIDGE_ID, &*identity.bridge_id),
        (names::TUNNEL_BRIDGE_NAME, &identity.name),
        (names::TUNNEL_MAX_IN_FLIGHT, &streams.to_string()),
    ] {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Error::new(Code::BadRequest, "the bridge's name cannot stand in a header"))?;
        response.headers_mut().insert(name, value);
    }
    if speech == Speech::Streams {
        let spoken = HeaderValue::from_static(SUBPROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, spoken);
    }
    Ok(response)
}

/// What is spoken over the WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    /// `tunnel.v1`: streams.
    Streams,
    /// JSON messages of older desktop apps, which name no subprotocol.
    Json,
}

/// The key to answer, and what will be spoken.
fn handshake(headers: &HeaderMap) -> Result<(Vec<u8>, Speech), Error> {
    let bad = |detail| Error::new(Code::BadRequest, detail);
    let websocket = names::is_upgrade(headers) && names::has_token(headers, &UPGRADE, "websocket");
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| websocket).ok_or_else(|| {
        Error::new(
            Code::UpgradeRequired,
            "this is where bridges connect, by WebSocket; if this was one, a proxy removed its Upgrade header",
        )
    })?;
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad("only version 13 of WebSocket is spoken here"));
    }
    let speech = if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        if headers.contains_key(names::TUNNEL_CLIENT_ID) {
            return Err(bad("a proxy removed the header Sec-WebSocket-Protocol"));
        }
        Speech::Json
    } else if names::has_token(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        Speech::Streams
    } else {
        return Err(bad("of all subprotocols only tunnel.v1 is spoken here"));
    };
    Ok((key.as_bytes().to_vec(), speech))
}

/// Older apps say nothing of themselves: a user has one of them, and the newest is it.
fn app_identity(relay: &Relay, owner: &auth::Identity) -> Result<Identity, Error> {
    let instance = random::name().map_err(|_| Error::new(Code::Overloaded, "no random numbers to be had"))?;
    Ok(Identity {
        user: Arc::clone(&owner.user),
        bridge_id: relay.tokens.bridge_id(&owner.user, "desktop app over WebSocket").into(),
        client: Client::default(),
        name: "desktop".to_owned(),
        instance,
        priority: 0,
        ephemeral: false,
    })
}

fn read_identity(relay: &Relay, owner: &auth::Identity, headers: &HeaderMap) -> Result<Identity, Error> {
    let client_id = text(headers, &names::TUNNEL_CLIENT_ID)?;
    let priority = match headers.get(names::TUNNEL_PRIORITY) {
        None => 0,
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|value| value.trim().parse().ok())
            .ok_or_else(|| Error::new(Code::BadRequest, "tunnel-priority is no whole number"))?,
    };
    let name = text(headers, &names::TUNNEL_BRIDGE_NAME)?;
    if !is_bridge_name(&name) {
        return Err(Error::new(
            Code::BadRequest,
            "a bridge's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -",
        ));
    }
    Ok(Identity {
        user: Arc::clone(&owner.user),
        bridge_id: relay.tokens.bridge_id(&owner.user, &client_id).into(),
        client: client(headers, client_id),
        name,
        instance: text(headers, &names::TUNNEL_INSTANCE)?,
        priority,
        ephemeral: headers.get(names::TUNNEL_EPHEMERAL).is_some_and(|value| value == "1"),
    })
}

/// What the bridge says of its program (`User-Agent: tunnel/0.1.0 (linux)`), beside its own id.
fn client(headers: &HeaderMap, id: String) -> Client {
    let agent = text(headers, &USER_AGENT).unwrap_or_default();
    let (product, comment) = agent.split_once(" (").unwrap_or((&agent, ""));
    let version = product.strip_prefix("tunnel/");
    let platform = comment.strip_suffix(')').filter(|platform| !platform.is_empty());
    Client {
        id: Some(id),
        platform: platform.map(str::to_owned),
        version: version.map(str::to_owned),
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Result<String, Error> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .filter(|value| (1..=128).contains(&value.len()))
        .map(str::to_owned)
        .ok_or_else(|| Error::new(Code::BadRequest, format!("the header {name} is missing or too long")))
}

pub(super) fn too_many_bridges() -> Error {
    Error::new(Code::Overloaded, "you have as many bridges connected as one user may")
}

/// One session, from the upgrade to the end of its link.
async fn run(
    relay: Arc<Relay>,
    io: CallerIo,
    read: Bytes,
    identity: Identity,
    owner: auth::Identity,
    transports: Vec<String>,
) {
    let socket = Socket::new(io, read, Role::Server).await;
    let (link, mut driver) = WsLink::new(
        socket,
        relay.config.limits.in_flight_per_bridge,
        Arc::clone(&relay.kept_streams),
    );
    let link = Arc::new(link);
    let said = match prove(&link, &mut driver).await {
        Ok(said) => said,
        Err(unproven) => {
            unproven.tell(&identity);
            link.end(Ending::Done);
            drive_to_end(&mut driver).await;
            return;
        }
    };
    let shared: Arc<dyn Link> = Arc::clone(&link) as _;
    let Ok(session) = relay.registry.insert(identity, "ws", None, shared) else {
        link.end(Ending::Done);
        drive_to_end(&mut driver).await;
        return;
    };
    relay.arrived(&session);
    let bridge = &session.identity;
    tracing::info!(user = %bridge.user, bridge = %bridge.name, transport = "ws", "bridge connected");
    if !transports.is_empty() {
        link.send(&Control::Steer { transports });
    }
    let end = live(&relay, &session, &link, &mut driver, owner, said).await;
    relay.left(&session);
    tracing::info!(user = %bridge.user, bridge = %bridge.name, why = %end, "bridge gone");
}

/// One session of an older app, from the upgrade to the end of its link.
async fn run_json(relay: Arc<Relay>, io: CallerIo, read: Bytes, identity: Identity, owner: auth::Identity) {
    let (link, driver) = json::start(io, read, relay.config.limits.in_flight_per_bridge).await;
    let shared: Arc<dyn Link> = Arc::new(link.clone());
    let Ok(session) = relay.registry.insert(identity, "ws", None, shared) else {
        return;
    };
    relay.arrived(&session);
    let bridge = &session.identity;
    tracing::info!(user = %bridge.user, bridge = %bridge.name, transport = "ws", "desktop app connected");
    let mut driving = std::pin::pin!(driver.run());
    let mut draining = false;
    let why = loop {
        tokio::select! {
            why = &mut driving => break why,
            () = token_end(&relay.tokens, &owner, Duration::ZERO), if link.is_alive() => link.end(Ending::TokenEnded),
            () = session.finished(), if link.is_alive() => link.end(Ending::Done),
            () = relay.shutdown.draining(), if !draining => draining = true,
            () = relay.done_with(&session), if draining && link.is_alive() => link.end(Ending::GoingAway),
            () = relay.shutdown.ended() => break "the relay stopped".to_owned(),
        }
    };
    relay.left(&session);
    tracing::info!(user = %bridge.user, bridge = %bridge.name, why, "desktop app gone");
}

/// Why a link gets no work.
enum Unproven {
    /// The bridge said goodbye by itself, as a probe does that has seen enough.
    Left,
    /// The relay's own request was not answered.
    Dead,
}

impl Unproven {
    fn tell(&self, bridge: &Identity) {
        let (user, bridge) = (&bridge.user, &bridge.name);
        match self {
            Self::Left => tracing::debug!(%user, %bridge, "a bridge left before it got work"),
            Self::Dead => tracing::info!(%user, %bridge, "a bridge connected, but nothing crosses its link"),
        }
    }
}

/// What the bridge said while the relay's own request crossed the link.
async fn prove(link: &WsLink, driver: &mut Driver<CallerIo>) -> Result<Vec<String>, Unproven> {
    let mut said = Vec::new();
    let mut ready = std::pin::pin!(tokio::time::timeout(READY_TIMEOUT, link.is_ready()));
    loop {
        tokio::select! {
            biased;
            // First: a link that ended answers no request either.
            event = driver.next() => match event {
                Event::Ended(End::Closed(..)) => return Err(Unproven::Left),
                Event::Ended(_) => return Err(Unproven::Dead),
                // As many as a link takes in that time at the most.
                Event::Text(text) => said.push(text),
                Event::Stream(_) => {}
            },
            ready = &mut ready => return if ready.unwrap_or(false) { Ok(said) } else { Err(Unproven::Dead) },
        }
    }
}

async fn drive_to_end(driver: &mut Driver<CallerIo>) -> End {
    loop {
        if let Event::Ended(end) = driver.next().await {
            return end;
        }
    }
}

async fn live(
    relay: &Relay,
    session: &Session,
    link: &WsLink,
    driver: &mut Driver<CallerIo>,
    mut owner: auth::Identity,
    said: Vec<String>,
) -> End {
    let mut draining = false;
    let mut shown = None;
    for text in said {
        take_control(relay, session, &mut owner, &mut shown, &text);
    }
    loop {
        let grace = if shown.is_some() { LOOKED_AT } else { Duration::ZERO };
        tokio::select! {
            biased;
            event = driver.next() => match event {
                Event::Ended(end) => return end,
                Event::Text(text) => take_control(relay, session, &mut owner, &mut shown, &text),
                // A relay is offered no streams: the rules of the link see to that.
                Event::Stream(_) => {}
            },
            identified = identified(&mut shown) => {
                shown = None;
                take_token(relay, &mut owner, identified);
            }
            () = token_end(&relay.tokens, &owner, grace), if link.is_alive() => link.end(Ending::TokenEnded),
            never = link.expire_idle() => match never {},
            () = session.finished(), if link.is_alive() => link.end(Ending::Done),
            () = relay.shutdown.draining(), if !draining => {
                draining = true;
                link.send(&Control::Drain);
            }
            () = relay.done_with(session), if draining && link.is_alive() => link.end(Ending::GoingAway),
            () = relay.shutdown.ended() => return End::Closing(1001, "the relay stopped".into()),
        }
    }
}

/// A token that a bridge showed, until it is decided on: its provider may have to be asked, and the link goes on meanwhile.
type Shown<'a> = Option<BoxFuture<'a, Result<auth::Identity, Denied>>>;

async fn identified(shown: &mut Shown<'_>) -> Result<auth::Identity, Denied> {
    match shown {
        Some(shown) => shown.await,
        None => std::future::pending().await,
    }
}

fn take_control<'a>(
    relay: &'a Relay,
    session: &Session,
    owner: &mut auth::Identity,
    shown: &mut Shown<'a>,
    text: &str,
) {
    match Control::parse(text) {
        Control::Token { token } => {
            let mut identified = Box::pin(decide(&relay.tokens, token));
            match (&mut identified).now_or_never() {
                Some(identified) => {
                    if take_token(relay, owner, identified) {
                        // What was shown before is older.
                        *shown = None;
                    }
                }
                None => *shown = Some(identified),
            }
        }
        // The bridge stops: it gets no more work, and what is in flight finishes.
        Control::Drain => session.retire(),
        Control::Steer { .. } | Control::Unknown => {}
    }
}

/// Whose a token is; asks again for as long as that cannot be known yet.
async fn decide(tokens: &Tokens, token: String) -> Result<auth::Identity, Denied> {
    loop {
        match tokens.identify(&token).await {
            Err(denied) if denied.is_temporary() => tokio::time::sleep(refusal::AGAIN).await,
            decided => return decided,
        }
    }
}

/// Whether the session is the token's from now on.
fn take_token(relay: &Relay, owner: &mut auth::Identity, identified: Result<auth::Identity, Denied>) -> bool {
    match identified {
        Ok(fresh) if fresh.user == owner.user && fresh.scopes.bridge => {
            *owner = fresh;
            return true;
        }
        Ok(_) => tracing::info!(user = %owner.user, "a bridge showed a token that is not for it"),
        Err(denied) => {
            let reason = denied.as_str();
            relay.metrics.deny(reason);
            tracing::info!(user = %owner.user, reason, "a bridge showed a token that is not accepted");
        }
    }
    false
}

/// Resolves when the session's token ends: its time is over, and so long ago, or its secret is not accepted any more.
pub(super) async fn token_end(tokens: &Tokens, owner: &auth::Identity, grace: Duration) {
    tokio::select! {
        () = expired(owner, grace) => {}
        () = tokens.refused(owner) => {}
    }
}

async fn expired(owner: &auth::Identity, grace: Duration) {
    match owner.expires {
        None => std::future::pending().await,
        Some(end) => loop {
            let left = end.saturating_add(grace.as_secs()).saturating_sub(tokens::now());
            if left == 0 {
                return;
            }
            // The wall clock decides, and it may be set meanwhile: look again at least every minute.
            let until_next_second = UNIX_EPOCH.elapsed().map_or(Duration::ZERO, |now| {
                Duration::from_millis(u64::from(now.subsec_millis()))
            });
            let nap = Duration::from_secs(left.min(60)).saturating_sub(until_next_second);
            tokio::time::sleep(nap.max(Duration::from_millis(1))).await;
        },
    }
}
