//! What polling bridges ask for, under our paths and those of shipped desktop apps (protocol.md section 3).

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::{Entry, register, took_over};
use crate::relay::Relay;
use crate::relay::auth;
use crate::relay::error::{Code, Error};
use crate::relay::own::json_response;
use crate::relay::router::Polling;
use crate::transport::json::{Fields, decode_body, timestamp};
use crate::transport::poll::answer::Head;
use crate::transport::poll::relay::Refusal;
use crate::transport::poll::wire::{Answer, Register};
use crate::transport::poll::{TUNING, TUNNEL_ABORT, TUNNEL_END, TUNNEL_PART, TUNNEL_TRAILERS};
use crate::transport::{Body, Ending, ExchangeError, Link, collect, full};

/// The largest registration, heartbeat or report of model servers, octets.
const SMALL: usize = 64 * 1024;
/// How long a bridge may take to send a message.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Milliseconds that a shipped app waits between two polls.
const POLLING_INTERVAL: u64 = 100;
/// Milliseconds between two heartbeats of a shipped app, whose polls may wait longer than the time after which exchanges fail.
const HEARTBEAT_INTERVAL: u64 = 10_000;
/// Model servers noted of one app.
const PROVIDERS: usize = 64;

/// Answers what a polling bridge of this owner asks for.
///
/// # Errors
/// What is wrong with the request; no exchange but its own is touched.
pub async fn answer(
    relay: &Arc<Relay>,
    owner: auth::Identity,
    asked: Polling,
    request: Request<Incoming>,
) -> Result<Response<Body>, Error> {
    if !relay.config.transports.poll {
        return Err(Error::new(
            Code::NotFound,
            "this relay offers no polling (its option --transports)",
        ));
    }
    let find = |id: &str| {
        let entry = relay.pollers.find(&owner, id, request.headers())?;
        entry.heard(&relay.tokens, &owner);
        Ok::<_, Error>(entry)
    };
    match asked {
        Polling::Register => {
            if relay.shutdown.is_draining() {
                return Err(Error::new(
                    Code::Draining,
                    "the relay is stopping; register again in a moment",
                ));
            }
            let client: Register = read_json(request).await?;
            let entry = register(relay, owner, client)?;
            Ok(registered(relay, &entry))
        }
        Polling::Poll(bridge) => {
            let entry = find(&bridge)?;
            poll(&entry, request.uri().query()).await
        }
        Polling::Body(bridge, id, n) => {
            let entry = find(&bridge)?;
            body_part(&entry, &id, n, request.uri().query()).await
        }
        Polling::Respond(bridge, id) => {
            let entry = find(&bridge)?;
            respond(&entry, id, request).await
        }
        Polling::Heartbeat(bridge) => {
            let entry = find(&bridge)?;
            heartbeat(&entry, request).await
        }
        Polling::Providers(bridge) => {
            let entry = find(&bridge)?;
            providers(&entry, request).await
        }
        Polling::Status(bridge) => {
            let entry = relay.pollers.find(&owner, &bridge, request.headers())?;
            Ok(status(&entry))
        }
    }
}

fn registered(relay: &Relay, entry: &Entry) -> Response<Body> {
    let id = &entry.bridge_id;
    let path = |name: &str| format!("/api/bridge/{id}/{name}");
    let client = entry.client();
    let client_id = client.client_id.as_deref().unwrap_or_default();
    ok(&json!({
        "success": true,
        "bridgeId": id,
        "name": entry.session().map(|session| session.identity.name.clone()),
        "endpoints": {
            "polling": path("poll"),
            "response": path("response"),
            "status": path("status"),
            "heartbeat": path("heartbeat"),
            "providerStatus": path("provider-status"),
        },
        "link": entry.link.name(),
        "config": {
            "pollingInterval": POLLING_INTERVAL,
            "heartbeatInterval": HEARTBEAT_INTERVAL,
            "requestTimeout": TUNING.request_timeout.as_millis() as u64,
        },
        "transports": relay.config.transports.for_bridge(client_id),
    }))
}

async fn poll(entry: &Entry, query: Option<&str>) -> Result<Response<Body>, Error> {
    let wait = wait(query, TUNING.wait)?;
    let acknowledged = number(query, "ack")?;
    if parameter(query, "link").is_some_and(|link| link != entry.link.name()) {
        // A bridge that finishes what it had at the relay before must not take what is for its new link.
        return Err(Error::new(
            Code::NotFound,
            "this bridge registered anew; its older link is over",
        ));
    }
    let batch = entry.link.poll(acknowledged, wait).await.map_err(refused)?;
    let batch =
        serde_json::to_vec(&batch).map_err(|_| Error::new(Code::BridgeGone, "a request cannot stand in JSON"))?;
    Ok(json_bytes(batch))
}

async fn body_part(entry: &Entry, id: &str, n: u32, query: Option<&str>) -> Result<Response<Body>, Error> {
    let wait = wait(query, TUNING.wait)?;
    let part = entry.link.body_part(id, n, wait).await.map_err(refused)?;
    let mut response = Response::new(full(part.bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if part.end {
        headers.insert(TUNNEL_END, HeaderValue::from_static("1"));
    }
    let trailers = part.trailers.map(|trailers| Fields::of(&trailers, true));
    let trailers = trailers.and_then(|trailers| serde_json::to_string(&trailers).ok());
    if let Some(trailers) = trailers.and_then(|json| HeaderValue::from_str(&json).ok()) {
        headers.insert(TUNNEL_TRAILERS, trailers);
    }
    Ok(response)
}

/// A query's parameter, if it is there.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// A parameter that is a whole number.
fn number(query: Option<&str>, name: &str) -> Result<Option<u64>, Error> {
    parameter(query, name)
        .map(|value| {
            value
                .parse()
                .map_err(|_| Error::new(Code::BadRequest, format!("{name} is no whole number")))
        })
        .transpose()
}

fn wait(query: Option<&str>, default: Duration) -> Result<Duration, Error> {
    let asked = number(query, "timeout")?.map(Duration::from_millis);
    Ok(asked.unwrap_or(default).min(TUNING.longest_wait))
}

/// Takes an answer, or a part of one.
async fn respond(entry: &Entry, id: Option<String>, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let headers = request.headers();
    let flag = |name: HeaderName| headers.get(name).is_some_and(|value| value == "1");
    let (end, abort) = (flag(TUNNEL_END), flag(TUNNEL_ABORT));
    match (headers.get(TUNNEL_PART), id) {
        (Some(part), Some(id)) => {
            let part = part.to_str().ok().and_then(|part| part.parse().ok());
            let part: u32 = part
                .filter(|part| *part > 0)
                .ok_or_else(|| bad("Tunnel-Part is no number from 1"))?;
            if abort {
                entry.link.abort(&id).map_err(refused)?;
                return Ok(taken());
            }
            let end = end.then(|| trailers(headers)).transpose()?;
            take_part(entry, &id, part, end, request).await
        }
        (Some(_), None) => Err(bad("parts are sent to /api/bridge/respond/BRIDGE/REQUEST")),
        (None, id) => take_head(entry, id, request).await,
    }
}

fn trailers(headers: &HeaderMap) -> Result<Option<HeaderMap>, Error> {
    let Some(value) = headers.get(TUNNEL_TRAILERS) else {
        return Ok(None);
    };
    let fields: Fields =
        serde_json::from_slice(value.as_bytes()).map_err(|_| bad("Tunnel-Trailers is no JSON object of fields"))?;
    let trailers = fields.to_headers().map_err(|error| bad(&error.to_string()))?;
    Ok(Some(trailers))
}

async fn take_part(
    entry: &Entry,
    id: &str,
    n: u32,
    end: Option<Option<HeaderMap>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Error> {
    let room = entry.link.room(id, n).await.map_err(refused)?;
    let (bytes, permit) = read(entry, request, TUNING.part).await?;
    if let Some(room) = room {
        room.fill(held(bytes, permit), end).map_err(refused)?;
    }
    Ok(taken())
}

async fn take_head(entry: &Entry, id: Option<String>, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let (message, permit) = read(entry, request, TUNING.json).await?;
    let answer: Answer =
        serde_json::from_slice(&message).map_err(|error| bad(&format!("no JSON of an answer: {error}")))?;
    let id = id
        .or_else(|| answer.request_id.clone())
        .ok_or_else(|| bad("missing: requestId"))?;
    if let Some(error) = answer.error.filter(|error| !error.is_empty() && answer.body.is_none()) {
        let error = ExchangeError::Refused {
            code: "upstream_unreachable".to_owned(),
            detail: format!("the desktop app could not get an answer: {error}"),
        };
        entry.link.take_error(&id, error).map_err(refused)?;
        return Ok(taken());
    }
    let status = answer.status.ok_or_else(|| bad("missing: status"))?;
    let status = StatusCode::from_u16(status)
        .ok()
        .filter(|status| (200..=599).contains(&status.as_u16()))
        .ok_or_else(|| bad(&format!("{status} is no status of an answer (200 to 599)")))?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = answer.headers.to_headers().map_err(|error| bad(&error.to_string()))?;
    let bytes = decode_body(answer.body, answer.body_encoding).map_err(|error| bad(&error.to_string()))?;
    let head = Head {
        response,
        bytes: held(bytes, permit),
        more: answer.more,
    };
    entry.link.take_head(&id, &message, head).map_err(refused)?;
    Ok(taken())
}

async fn heartbeat(entry: &Entry, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    /// What our bridge says with a heartbeat; others send nothing, or what is of no concern here.
    #[derive(Deserialize)]
    struct Heartbeat {
        #[serde(default)]
        drain: bool,
    }
    let body = read_small(request).await?;
    let drain = serde_json::from_slice(&body).is_ok_and(|heartbeat: Heartbeat| heartbeat.drain);
    if let Some(session) = entry.session().filter(|_| drain) {
        session.retire();
    }
    Ok(ok(&json!({"success": true, "timestamp": timestamp(SystemTime::now())})))
}

async fn providers(entry: &Entry, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let mut report: Value = read_json(request).await?;
    let providers = report
        .get_mut("providers")
        .map(Value::take)
        .filter(|providers| providers.as_array().is_some_and(|list| list.len() <= PROVIDERS))
        .ok_or_else(|| bad(&format!("missing: providers, a list of at most {PROVIDERS}")))?;
    *entry.providers.lock().unwrap_or_else(PoisonError::into_inner) = Some((providers.to_string(), SystemTime::now()));
    Ok(ok(
        &json!({"success": true, "message": "Provider status updated", "timestamp": timestamp(SystemTime::now())}),
    ))
}

fn status(entry: &Entry) -> Response<Body> {
    let silence = entry.link.silence();
    let last_seen = SystemTime::now().checked_sub(silence).unwrap_or(SystemTime::UNIX_EPOCH);
    let client = entry.client();
    let session = entry.session();
    let reported = entry.providers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (providers, reported) = reported.map_or((json!([]), None), |(list, at)| {
        let list: Value = serde_json::from_str(&list).unwrap_or_default();
        (list, Some(timestamp(at)))
    });
    ok(&json!({
        "bridgeId": entry.bridge_id,
        "status": if silence < TUNING.gone { "connected" } else { "disconnected" },
        "lastSeen": timestamp(last_seen),
        "client": {
            "clientId": client.client_id,
            "platform": client.platform,
            "version": client.version,
            "capabilities": client.capabilities.unwrap_or_default(),
        },
        "providers": providers,
        "lastProviderUpdate": reported,
        "stats": {"inFlight": session.map_or(0, |session| session.in_flight())},
    }))
}

/// A body of at most `most` octets, with what bounds how much of such is held.
async fn read(
    entry: &Entry,
    request: Request<Incoming>,
    most: usize,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Error> {
    let length = http_body::Body::size_hint(request.body()).exact();
    let length = length.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if length.is_some_and(|length| length > most) {
        return Err(too_large(most));
    }
    let _post = entry.posts.try_acquire().map_err(|_| {
        Error::new(
            Code::NoRoom,
            "too many messages of this bridge are on their way; send it again",
        )
    })?;
    let room = tokio::time::timeout(TIMEOUT, entry.link.budget(length.unwrap_or(most))).await;
    let permit = room
        .ok()
        .flatten()
        .ok_or_else(|| Error::new(Code::NoRoom, "too much of this bridge is on its way; send it again"))?;
    let body = request.into_body();
    match tokio::time::timeout(TIMEOUT, collect(body, most)).await {
        Ok(Some(bytes)) => Ok((bytes, permit)),
        // A body that broke off has nobody to read the answer.
        Ok(None) => Err(too_large(most)),
        Err(_) => Err(Error::new(Code::Timeout, "the message did not arrive in time")),
    }
}

async fn read_small(request: Request<Incoming>) -> Result<Bytes, Error> {
    if http_body::Body::size_hint(request.body()).lower() > SMALL as u64 {
        return Err(too_large(SMALL));
    }
    match tokio::time::timeout(TIMEOUT, collect(request.into_body(), SMALL)).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(too_large(SMALL)),
        Err(_) => Err(Error::new(Code::Timeout, "the message did not arrive in time")),
    }
}

async fn read_json<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, Error> {
    let body = read_small(request).await?;
    serde_json::from_slice(&body).map_err(|error| bad(&format!("no JSON as expected here: {error}")))
}

/// Octets that count against the budget for as long as anybody has them.
fn held(bytes: Bytes, permit: Option<OwnedSemaphorePermit>) -> Bytes {
    struct Held {
        bytes: Bytes,
        _permit: OwnedSemaphorePermit,
    }
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    match permit {
        None => bytes,
        Some(permit) => Bytes::from_owner(Held { bytes, _permit: permit }),
    }
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Unknown => Error::new(Code::NotFound, "no exchange of this id is under way"),
        Refusal::Gone => Error::new(Code::Gone, "the caller is gone"),
        Refusal::NoRoom => Error::new(Code::NoRoom, "not now; send the same again"),
        Refusal::OutOfOrder { next } => bad(&format!("part {next} is to come next")),
        Refusal::SecondHead => bad("this exchange has another head already"),
        Refusal::WrongLength => bad("content-length is not the length of the body"),
        Refusal::Ended(Ending::Replaced) => took_over(),
        Refusal::Ended(_) => Error::new(Code::NotFound, "this bridge is not registered any more; register it"),
    }
}

fn bad(detail: &str) -> Error {
    Error::new(Code::BadRequest, detail)
}

fn too_large(most: usize) -> Error {
    Error::new(Code::TooLarge, format!("at most {most} octets are taken here"))
}

fn taken() -> Response<Body> {
    ok(&json!({"success": true}))
}

fn ok(value: &Value) -> Response<Body> {
    json_response(StatusCode::OK, value)
}

fn json_bytes(bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
