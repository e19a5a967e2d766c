//! Carries a caller's request to a bridge and the response back: keeps the bounds, scrubs both heads. Which bridge it
//! is, [`super::reach`] decides.

mod bodies;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use self::bodies::{HeldBody, MeteredBody, RefusalBody};
use super::Relay;
use super::access::{Record, Upload};
use super::auth;
use super::connection::{Active, Caller};
use super::error::{Code, Error, Shape};
use super::proxies::Told;
use super::reach::{self, Meant};
use super::registry::{InFlight, Session};
use super::router::Target;
use crate::transport::headers::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use crate::transport::idle::{Activity, IdleLimit};
use crate::transport::{Body, ExchangeError, Link, empty, headers, upgrade, usage};

pub(super) const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What an exchange holds as long as it lasts.
struct Held {
    _active: Active,
    _user: InFlight,
    _bridge: InFlight,
}

/// A response from the bridge, and what goes with it.
struct Answered {
    response: Response<Body>,
    activity: Activity,
    idle: IdleLimit,
    cut: Cut,
    held: Held,
}

/// Resolves when the caller is not let in any more, or the bridge is somebody else's and not shared with the caller any more.
type Cut = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Forwards the request. What breaks after the response head breaks the body; an error before it is an answer, too.
pub async fn forward(
    relay: &Arc<Relay>,
    caller: &Caller,
    active: Active,
    target: Target,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let mut record = Record::begin(relay, caller, &target, &request);
    let shape = Shape::of(request.uri().path());
    let near = upgrade::of_request(&mut request);
    let is_http10 = request.version() == Version::HTTP_10;
    let answered = match ask(relay, caller, active, target, request, &mut record).await {
        Ok(answered) => answered,
        Err(error) => return refusal(record, error, shape),
    };
    let mut response = answered.response;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((near, far)) = upgrade::switch(near, &mut response) else {
            let error = Error::new(Code::BridgeGone, "the bridge switched protocols unasked");
            return refusal(record, error, shape);
        };
        caller.set_upgraded();
        record.head(&response);
        let held = (answered.held, record);
        let joined = join(Arc::clone(relay), near, far, answered.cut, held);
        relay.shutdown.tracker().spawn(joined);
        return response;
    }
    record.head(&response);
    let report_follows = usage::is_announced(response.headers());
    incoming(response, |body| HeldBody {
        body,
        report_follows,
        last: None,
        activity: answered.activity,
        idle: answered.idle,
        cut: answered.cut,
        broken: is_http10.then(|| caller.broken()),
        _held: answered.held,
        record,
    })
}

/// The relay's own answer to an exchange.
fn refusal(mut record: Record, error: Error, shape: Shape) -> Response<Body> {
    record.refuse(&error);
    let response = error.into_response(shape);
    record.head(&response);
    response.map(|body| RefusalBody { body, record }.boxed_unsync())
}

/// Asks a bridge.
async fn ask(
    relay: &Arc<Relay>,
    caller: &Caller,
    active: Active,
    target: Target,
    request: Request<Incoming>,
    record: &mut Record,
) -> Result<Answered, Error> {
    // A proxy may mix a bridge's requests and callers' on one connection.
    if caller.came_late() || (caller.is_bridge() && relay.shutdown.is_draining()) {
        return Err(stopping());
    }
    let identity = auth::caller(&relay.tokens, request.headers()).await?;
    record.set_identity(&identity);
    let user = relay.admit(&identity)?;
    let meant = Meant::of(&identity, target)?;
    let activity = Activity::begin();
    let upload = Arc::clone(record.upload());
    let request = outgoing(relay, caller, request, &activity, &upload)?;
    let mut idle = IdleLimit::new(activity.clone(), relay.config.limits.idle);
    let mut cut = cut(relay, &identity);
    let (response, bridge, session) = tokio::select! {
        biased;
        answered = call(relay, &identity, &meant, request, record) => answered,
        () = &mut idle => Err(Error::new(Code::Timeout, "nothing moved for too long; the request was given up")),
        () = &mut cut => Err(auth::refusal_of(&relay.tokens, &identity)),
    }
    .map_err(|error| {
        if upload.too_large.load(Ordering::Relaxed) {
            body_too_large()
        } else {
            error
        }
    })?;
    if session.identity.user != identity.user {
        cut = cut_with_share(relay, identity, session);
    }
    let held = Held {
        _active: active,
        _user: user,
        _bridge: bridge,
    };
    Ok(Answered {
        response,
        activity,
        idle,
        cut,
        held,
    })
}

fn cut(relay: &Arc<Relay>, identity: &auth::Identity) -> Cut {
    let (relay, identity) = (Arc::clone(relay), identity.clone());
    Box::pin(async move { relay.tokens.refused(&identity).await })
}

/// The same for a bridge of somebody else, also when it is not shared any more.
fn cut_with_share(relay: &Arc<Relay>, identity: auth::Identity, session: Arc<Session>) -> Cut {
    let relay = Arc::clone(relay);
    Box::pin(async move {
        tokio::select! {
            () = relay.tokens.refused(&identity) => {}
            () = unshared(&relay, &identity, &session) => {}
        }
    })
}

/// Resolves when the bridge is neither the caller's own nor shared with the caller any more.
async fn unshared(relay: &Relay, identity: &auth::Identity, session: &Session) {
    let bridge = &session.identity;
    if bridge.user == identity.user {
        std::future::pending::<()>().await;
    } else {
        relay.tokens.unshared(identity, &bridge.user, &bridge.bridge_id).await;
    }
}

/// Makes the request that goes to the bridge; [`find`] gives it its path.
fn outgoing(
    relay: &Arc<Relay>,
    caller: &Caller,
    request: Request<Incoming>,
    activity: &Activity,
    upload: &Arc<Upload>,
) -> Result<Request<Body>, Error> {
    let most = relay.config.limits.body;
    if let (Some(most), Some(length)) = (most, http_body::Body::size_hint(request.body()).exact())
        && length > most
    {
        return Err(body_too_large());
    }
    let (mut parts, body) = request.into_parts();
    let host = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    parts.version = Version::HTTP_11;
    let told = parts.extensions.remove::<Told>();
    // The connection that hyper would upgrade is ours, not the bridge's.
    parts.extensions = http::Extensions::new();
    let upgrades = headers::is_upgrade(&parts.headers);
    headers::remove_hop_by_hop(&mut parts.headers, upgrades);
    headers::remove_caller_identity(&mut parts.headers);
    headers::remove_origin(&mut parts.headers);
    if let Some(host) = host.and_then(|host| HeaderValue::from_str(&host).ok()) {
        parts.headers.insert(HOST, host);
    }
    set_forwarded(&mut parts.headers, caller, told);
    let body = if http_body::Body::is_end_stream(&body) {
        empty()
    } else {
        MeteredBody {
            body,
            activity: activity.clone(),
            left: most,
            upload: Arc::clone(upload),
            relay: Arc::clone(relay),
        }
        .boxed_unsync()
    };
    Ok(Request::from_parts(parts, body))
}

/// Tells the upstream who calls, and how.
fn set_forwarded(headers: &mut HeaderMap, caller: &Caller, told: Option<Told>) {
    let mut address = caller.forwarded_for();
    let mut is_tls = caller.is_tls();
    let mut host = headers.get(HOST).cloned();
    if let Some(told) = told {
        address = HeaderValue::from_str(&told.address.to_string()).unwrap_or(address);
        is_tls = told.is_tls.unwrap_or(is_tls);
        host = told.host.or(host);
    }
    headers.insert(X_FORWARDED_FOR, address);
    let proto = HeaderValue::from_static(if is_tls { "https" } else { "http" });
    headers.insert(X_FORWARDED_PROTO, proto);
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

pub(super) fn stopping() -> Error {
    Error::new(Code::Draining, "the relay is stopping; try again in a moment")
}

fn body_too_large() -> Error {
    Error::new(
        Code::TooLarge,
        "the request body is larger than this relay takes (its option --max-body)",
    )
}

/// Calls a bridge. A request that did not reach its bridge at all, or that may be repeated (RFC 9110 §9.2.2: GET and HEAD), is
/// sent once more if the link broke under it.
async fn call(
    relay: &Relay,
    identity: &auth::Identity,
    meant: &Meant,
    mut request: Request<Body>,
    record: &mut Record,
) -> Result<(Response<Body>, InFlight, Arc<Session>), Error> {
    let session = find(relay, identity, meant, &mut request, record).await?;
    let spare = repeatable(&request);
    let mut unsent = tokio::select! {
        biased;
        answered = call_session(relay, &session, request) => match answered {
            Ok((response, in_flight)) => return Ok((response, in_flight, session)),
            Err(ExchangeError::NotSent(request)) => *request,
            Err(ExchangeError::Gone(detail)) => match spare {
                Some(request) => request,
                None => return Err(ExchangeError::Gone(detail).into()),
            },
            Err(error) => return Err(error.into()),
        },
        () = unshared(relay, identity, &session) => return Err(reach::no_bridge(relay, meant)),
    };
    let session = find(relay, identity, meant, &mut unsent, record).await?;
    let (response, in_flight) = tokio::select! {
        biased;
        answered = call_session(relay, &session, unsent) => answered?,
        () = unshared(relay, identity, &session) => return Err(reach::no_bridge(relay, meant)),
    };
    Ok((response, in_flight, session))
}

/// Finds the bridge, and gives the request the path for it.
async fn find(
    relay: &Relay,
    identity: &auth::Identity,
    meant: &Meant,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<Arc<Session>, Error> {
    let (session, path) = reach::find(relay, identity, meant).await?;
    record.set_path(path);
    record.set_session(&session);
    let path: PathAndQuery = path
        .parse()
        .map_err(|_| Error::new(Code::BadRequest, "the path cannot be forwarded"))?;
    *request.uri_mut() = Uri::from(path);
    Ok(session)
}

async fn call_session(
    relay: &Relay,
    session: &Session,
    request: Request<Body>,
) -> Result<(Response<Body>, InFlight), ExchangeError> {
    let limit = relay.config.limits.in_flight_per_bridge;
    let in_flight = session.enter(limit).ok_or(ExchangeError::Overloaded)?;
    let link: &Arc<dyn Link> = session.link();
    let response = link.call(request).await?;
    Ok((response, in_flight))
}

/// A copy of a request without a body that may be sent twice.
fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
    let may = matches!(*request.method(), Method::GET | Method::HEAD)
        && http_body::Body::is_end_stream(request.body())
        && !headers::is_upgrade(request.headers());
    may.then(|| {
        let mut copy = Request::new(empty());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        copy
    })
}

/// Makes the response that goes to the caller.
fn incoming(response: Response<Body>, guard: impl FnOnce(Body) -> HeldBody) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    parts.version = Version::HTTP_11;
    headers::remove_hop_by_hop(&mut parts.headers, false);
    headers::remove_tunnel(&mut parts.headers);
    let streams = !parts.headers.contains_key(CONTENT_LENGTH) && !http_body::Body::is_end_stream(&body);
    if streams {
        for (name, value) in [(X_ACCEL_BUFFERING, "no"), (CACHE_CONTROL, "no-cache, no-transform")] {
            parts
                .headers
                .entry(name)
                .or_insert_with(|| HeaderValue::from_static(value));
        }
    }
    Response::from_parts(parts, guard(body).boxed_unsync())
}

/// Joins the caller's connection with the bridge's after a 101.
async fn join(
    relay: Arc<Relay>,
    near: hyper::upgrade::OnUpgrade,
    far: hyper::upgrade::OnUpgrade,
    cut: Cut,
    held: (Held, Record),
) {
    let idle = Some(relay.config.limits.idle);
    tokio::select! {
        // How an upgraded connection ends is between caller and upstream.
        _ = upgrade::join(near, far, idle) => {}
        () = cut => {}
        () = relay.shutdown.ended() => {}
    }
    drop(held);
}
