//! The public server: accepts callers and bridges, routes, drains.
//!
//! A caller's request walks down this list: [`connection`] (one TCP connection), [`router`] (whose path it is), [`dispatch`]
//! (an exchange; [`auth`]: who asks, [`rate`]: how often, [`reach`]: which bridge is meant, [`registry`]: which there are,
//! [`address`]: how one of somebody is written). A bridge's walks into [`session`] or [`polling`]; what the relay answers
//! itself is in [`own`]; [`error`] and [`cors`] finish every answer.
//! [`access`] notes how an exchange went, [`metrics`] counts it, [`ledger`] adds it up for [`store`], which [`keeper`] keeps in step.
//! [`usage`] is what a caller learns of that, [`events`] what becomes of the bridges meanwhile; [`keys`] and [`pairing`] let more
//! callers and bridges in, [`shares`] lets others use a bridge, [`opening`] opens a demonstration; [`web`] is the page for it all.
//! At the network's edge are [`tls`], [`redirect`] (the port for plain HTTP beside it), [`proxies`] (those in front) and
//! [`host`] (how the outside calls the relay).

pub mod access;
pub mod address;
pub mod auth;
pub mod config;
pub mod connection;
pub mod cors;
pub mod dispatch;
pub mod error;
pub mod events;
pub mod host;
pub mod keeper;
pub mod keys;
pub mod ledger;
pub mod metrics;
pub mod opening;
pub mod own;
pub mod pairing;
pub mod polling;
pub mod proxies;
pub mod rate;
pub mod reach;
pub mod redirect;
pub mod registry;
pub mod router;
pub mod session;
pub mod shares;
pub mod store;
pub mod tls;
pub mod usage;
pub mod web;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{CONNECTION, ORIGIN, STRICT_TRANSPORT_SECURITY};
use http::uri::Uri;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::auth::tokens::Tokens;
use self::config::Config;
use self::connection::{Active, Caller, Door};
use self::cors::Cors;
use self::error::{Code, Error, Shape};
use self::events::Feeds;
use self::ledger::Ledger;
use self::metrics::Metrics;
use self::pairing::WrongCodes;
use self::polling::Pollers;
use self::proxies::Told;
use self::rate::Buckets;
use self::registry::{Counter, InFlight, Registry, Session};
use self::router::Route;
use crate::shutdown::Shutdown;
use crate::transport::Body;
use crate::transport::headers::X_REQUEST_ID;

/// Between two sweeps of the registry and the heap.
const SWEEP: Duration = Duration::from_secs(5);
/// Streams of all links that are kept for their next exchange: each holds 27 KiB.
const KEPT_STREAMS: usize = 1024;
/// More than there is, octets.
const TOO_MUCH: usize = isize::MAX as usize / 2;
/// Connections at once to the port that sends callers on to `https://`.
const REDIRECTS: usize = 256;
/// The longest name of a request that is taken from a proxy, octets.
const LONGEST_ID: usize = 64;
/// For a year, browsers that were here come by TLS only.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");
/// After the system could not accept a connection (descriptors are used up, for one).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Everything a request may need; one for the process.
#[derive(Debug)]
pub struct Relay {
    /// The settings.
    pub config: Config,
    /// Issues and verifies tokens.
    pub tokens: Tokens,
    /// The bridges that are connected.
    pub registry: Registry,
    /// Those of them that poll.
    pub pollers: Pollers,
    /// What each token may still ask for.
    pub buckets: Buckets,
    /// Who listens to what becomes of bridges.
    pub feeds: Feeds,
    /// Codes that were not good.
    pub wrong_codes: WrongCodes,
    /// Who may call from a web page.
    pub cors: Cors,
    /// What it counts.
    pub metrics: Metrics,
    /// What it has still to write down.
    pub ledger: Ledger,
    /// How it stops.
    pub shutdown: Shutdown,
    /// Connections over which callers still ask for something, or may.
    callers: Arc<Counter>,
    connections: Arc<Semaphore>,
    /// For the streams of all links that are kept for their next exchange.
    kept_streams: Arc<Semaphore>,
    redirects: Arc<Semaphore>,
    port: OnceLock<u16>,
    request_ids: RequestIds,
}

/// The sockets of a relay; whoever calls [`serve`] binds them.
#[derive(Debug)]
pub struct Sockets {
    /// For callers and bridges.
    pub main: TcpListener,
    /// For plain HTTP beside TLS: see [`redirect`].
    pub http: Option<TcpListener>,
    /// Somebody else keeps them open for the next relay (socket activation).
    pub kept: bool,
}

impl From<TcpListener> for Sockets {
    fn from(main: TcpListener) -> Self {
        Self {
            main,
            http: None,
            kept: false,
        }
    }
}

impl Relay {
    /// A relay with nobody connected.
    pub fn new(config: Config, tokens: Tokens, shutdown: Shutdown) -> Arc<Self> {
        Arc::new(Self {
            registry: Registry::new(config.limits.bridges_per_user),
            pollers: Pollers::default(),
            buckets: Buckets::new(config.limits.rate),
            feeds: Feeds::default(),
            wrong_codes: WrongCodes::default(),
            cors: Cors::new(config.cors_origins.clone()),
            metrics: Metrics::default(),
            ledger: Ledger::default(),
            callers: Arc::default(),
            connections: Arc::new(Semaphore::new(config.limits.connections)),
            kept_streams: Arc::new(Semaphore::new(KEPT_STREAMS)),
            redirects: Arc::new(Semaphore::new(REDIRECTS)),
            port: OnceLock::new(),
            request_ids: RequestIds::new(),
            tokens: tokens.trusting(config.oidc.clone()),
            config,
            shutdown,
        })
    }

    /// A bridge is here over another connection than before.
    fn arrived(&self, session: &Session) {
        self.metrics.connected(session);
        if self.config.keeper.is_some() {
            self.ledger.note(session, false);
        }
    }

    /// One of a bridge's connections is over.
    fn left(&self, session: &Session) {
        self.registry.remove(session);
        let bridge = &session.identity;
        if self.config.keeper.is_some() && !self.registry.has(&bridge.user, &bridge.bridge_id) {
            self.ledger.note(session, true);
        }
    }

    /// Counts a request of the user in, until what this returns is dropped.
    ///
    /// # Errors
    /// `rate_limited`, and `overloaded` when as many are under way as one user may have.
    fn admit(&self, identity: &auth::Identity) -> Result<InFlight, Error> {
        self.buckets.take(identity)?;
        self.registry
            .enter(&identity.user, self.config.limits.in_flight_per_user)
            .ok_or_else(|| Error::new(Code::Overloaded, "you have as many requests in flight as one user may"))
    }

    /// Connections that could still be accepted.
    pub fn free_connections(&self) -> usize {
        self.connections.available_permits()
    }

    /// During a drain: resolves once nobody has a use for the session any more. Who connected before may still ask.
    async fn done_with(&self, session: &Session) {
        self.callers.none().await;
        session.idle().await;
    }

    /// The port for callers and bridges.
    fn port(&self) -> u16 {
        self.port.get().copied().unwrap_or(443)
    }
}

/// Serves, with the store in step and the provider's keys at hand, and writes what is left at the end: see [`serve_callers`].
pub async fn serve(sockets: impl Into<Sockets>, relay: Arc<Relay>) {
    tokio::select! {
        () = serve_callers(sockets.into(), Arc::clone(&relay)) => {}
        () = keep_store(&relay) => {}
        never = relay.tokens.keep() => match never {},
    }
    if let Some(keeper) = &relay.config.keeper {
        keeper.finish(&relay).await;
    }
}

async fn keep_store(relay: &Relay) {
    match &relay.config.keeper {
        Some(keeper) => keeper.keep(relay).await,
        None => std::future::pending().await,
    }
}

/// Serves until the shutdown and the spell that it begins with, then finishes what is in flight within the grace period. Bridges that
/// poll need fresh connections to finish: the port is kept open for them, and for nobody else; but not a port that belongs to the
/// next relay too, for which callers wait there.
async fn serve_callers(sockets: Sockets, relay: Arc<Relay>) {
    let Sockets {
        main: listener,
        http,
        kept,
    } = sockets;
    if let Ok(address) = listener.local_addr() {
        // Served once.
        let _ = relay.port.set(address.port());
    }
    tokio::select! {
        () = accept(&listener, Door::Main, &relay) => {}
        () = redirect(http.as_ref(), &relay) => {}
        () = keep_certificate(http.is_some(), &relay) => {}
        () = sweep(&relay) => {}
        () = relay.shutdown.drain_after(spell(&relay, kept)) => {}
    }
    drop(http);
    let mut finish = std::pin::pin!(relay.shutdown.finish(relay.config.grace));
    tokio::select! {
        () = accept(&listener, Door::Main, &relay), if !kept => {}
        () = relay.pollers.finished(), if !kept => {}
        () = std::future::ready(()), if kept => {}
        () = &mut finish => return,
    }
    drop(listener);
    finish.await;
}

/// The time in which everything is served as ever, though the end is known.
async fn spell(relay: &Relay, kept: bool) {
    tokio::time::sleep(relay.config.lame_duck).await;
    if kept {
        relay.pollers.settle().await;
    }
}

async fn redirect(listener: Option<&TcpListener>, relay: &Arc<Relay>) {
    match listener {
        Some(listener) => accept(listener, Door::Redirect, relay).await,
        None => std::future::pending().await,
    }
}

async fn keep_certificate(http: bool, relay: &Relay) {
    match &relay.config.tls {
        Some(tls) => match tls.keep_fresh(http).await {},
        None => std::future::pending().await,
    }
}

async fn accept(listener: &TcpListener, door: Door, relay: &Arc<Relay>) {
    let room = match door {
        Door::Main => &relay.connections,
        Door::Redirect => &relay.redirects,
    };
    loop {
        // Past the limit, callers wait in the system's queue until somebody leaves.
        let Ok(permit) = Arc::clone(room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, address)) => {
                let caller = Caller::new(relay, address, door);
                let connection = connection::serve(Arc::clone(relay), stream, caller, permit);
                relay.shutdown.tracker().spawn(connection);
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn sweep(relay: &Relay) {
    loop {
        tokio::time::sleep(SWEEP).await;
        relay.registry.sweep();
        relay.buckets.sweep();
        purge_heap();
    }
}

/// Makes the allocator give back what a burst left. mimalloc looks after freed memory only when memory is asked for, which an idle
/// relay hardly does; asked for what it cannot have, it first collects everything that is free on this thread.
fn purge_heap() {
    let mut nothing = Vec::<u8>::new();
    // That this fails is the point.
    let _ = nothing.try_reserve_exact(TOO_MUCH);
    std::hint::black_box(&nothing);
}

/// Answers one request; every answer gets its CORS permission and its id here.
async fn handle(
    relay: Arc<Relay>,
    caller: Caller,
    active: Active,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if caller.door() == Door::Redirect {
        return Ok(redirect::answer(&relay, &request));
    }
    let id = request_id(&relay, &caller, request.headers());
    let origin = request.headers().get(ORIGIN).cloned();
    let mut response = match relay.cors.preflight(request.method(), request.headers()) {
        Some(preflight) => preflight,
        None => answer(&relay, &caller, active, request, id.clone()).await,
    };
    relay.cors.apply(origin.as_ref(), response.headers_mut());
    if caller.closes() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if caller.is_tls() {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, HSTS);
    }
    response.headers_mut().insert(X_REQUEST_ID, id);
    Ok(response)
}

/// The name of a request. A trusted proxy may have given it one; from everybody else it could be anything.
fn request_id(relay: &Relay, caller: &Caller, headers: &HeaderMap) -> HeaderValue {
    let is_id = |value: &&HeaderValue| {
        let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        (1..=LONGEST_ID).contains(&value.len()) && value.as_bytes().iter().all(known)
    };
    let given = headers.get(X_REQUEST_ID).filter(|_| caller.is_trusted());
    given.filter(is_id).cloned().unwrap_or_else(|| relay.request_ids.next())
}

async fn answer(
    relay: &Arc<Relay>,
    caller: &Caller,
    active: Active,
    mut request: Request<Incoming>,
    id: HeaderValue,
) -> Response<Body> {
    let method = request.method().clone();
    let uri = request.uri().clone();
    request.headers_mut().insert(X_REQUEST_ID, id.clone());
    let mut peer = None;
    if caller.is_trusted() {
        let told = relay.config.proxies.read(caller.address().ip(), request.headers());
        peer = Some(told.address);
        request.extensions_mut().insert(told);
    }
    let answered = respond(relay, caller, active, request).await;
    let path = uri.path();
    match answered {
        Ok(response) => {
            tracing::debug!(?id, %method, path, status = response.status().as_u16(), "answered");
            response
        }
        Err(error) => {
            let peer = peer.map_or_else(|| caller.address().to_string(), |peer| peer.to_string());
            relay.metrics.note_denial(&error);
            error.tell(&id, &peer, &method, path);
            error.into_response(Shape::of(path))
        }
    }
}

async fn respond(
    relay: &Arc<Relay>,
    caller: &Caller,
    active: Active,
    request: Request<Incoming>,
) -> Result<Response<Body>, Error> {
    check_target(&request)?;
    let headers = request.headers();
    let route = router::route(request.method(), request.uri(), headers)?;
    if caller.came_late() && matches!(route, Route::Bridge | Route::RenewToken) {
        return Err(Error::new(
            Code::Draining,
            "the relay is stopping; try again in a moment",
        ));
    }
    match route {
        Route::Health => Ok(own::health()),
        Route::Ready => Ok(own::ready(relay)),
        Route::Version => Ok(own::version()),
        Route::Page => web::page(relay, headers),
        Route::Asset(name) => web::asset(relay, &name, headers),
        Route::AuthConfig => Ok(own::auth_config(relay)),
        Route::Me => own::me(relay, headers).await,
        Route::Events => events::listen(relay, active, headers).await,
        Route::RenewToken => own::renew_token(relay, headers).await,
        Route::Bridges => own::bridges(relay, headers).await,
        Route::Usage => usage::answer(relay, headers, request.uri().query()).await,
        Route::Keys => keys::list(relay, headers).await,
        Route::AddKey => keys::add(relay, request).await,
        Route::RevokeKey(id) => keys::revoke(relay, headers, &id).await,
        Route::Shares => shares::list(relay, headers).await,
        Route::AddShare => shares::add(relay, request).await,
        Route::RemoveShare(id) => shares::remove(relay, headers, &id).await,
        Route::Pair => pairing::pair(relay, headers).await,
        Route::ClaimCode => pairing::claim(relay, peer(caller, &request), request).await,
        Route::ClaimOpening => opening::claim(relay, peer(caller, &request), request).await,
        Route::Bridge => session::upgrade(relay, request).await,
        Route::Polling(asked) => {
            // Only who may be one: a drain treats a bridge's connection otherwise.
            let owner = auth::bridge(&relay.tokens, headers, None).await?;
            caller.set_bridge();
            polling::answer(relay, owner, asked, request).await
        }
        Route::Forward(target) => {
            // In a box, or a poll that waits would hold room for it.
            Ok(Box::pin(dispatch::forward(relay, caller, active, target, request)).await)
        }
    }
}

/// Where a request comes from, as far as it is known.
fn peer(caller: &Caller, request: &Request<Incoming>) -> IpAddr {
    let told = request.extensions().get::<Told>();
    told.map_or_else(|| caller.address().ip(), |told| told.address)
}

/// A target in absolute form must name the host that the request itself names: the relay is no forward proxy.
fn check_target(request: &Request<Incoming>) -> Result<(), Error> {
    let uri: &Uri = request.uri();
    let Some(authority) = uri.authority() else {
        return Ok(());
    };
    let host = request.headers().get(http::header::HOST);
    let same = host.is_none_or(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()));
    if same && !authority.as_str().contains('@') && uri.path().starts_with('/') {
        Ok(())
    } else {
        Err(Error::new(
            Code::BadRequest,
            "the request line names another host; this relay is no forward proxy",
        ))
    }
}

/// Names for requests: random at each start, then counted.
#[derive(Debug)]
struct RequestIds {
    prefix: u32,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        let mut random = [0; 4];
        // Without random numbers the names are still unique within this process.
        let _ = aws_lc_rs::rand::fill(&mut random);
        Self {
            prefix: u32::from_be_bytes(random),
            next: AtomicU64::new(1),
        }
    }

    fn next(&self) -> HeaderValue {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let text = format!("{:08x}-{number:x}", self.prefix);
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("0"))
    }
}
