//! The relay's own routes: health, version, how to sign in, who one is, the caller's bridges, token renewal; and what `keys`,
//! `pairing`, `shares` and `usage` share with them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::Relay;
use super::address::Address;
use super::auth::keys::KeyId;
use super::auth::{self, tokens::IssueError};
use super::error::{Code, Error};
use super::registry::Session;
use super::store::{Store, StoreError};
use crate::transport::{Body, collect, empty, full};

/// How long bridges may take to tell their models for a list, all together.
const MODELS_TIMEOUT: Duration = Duration::from_secs(2);
const MODELS_SIZE: usize = 256 * 1024;
/// Bridges asked at once for one list.
const AT_ONCE: usize = 8;
/// A body that the relay reads itself.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_SIZE: usize = 16 * 1024;

/// `GET /healthz`: the process answers.
pub fn health() -> Response<Body> {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

/// `GET /readyz`: work is taken. A store that is away is told and stops nobody, but at the start: then it is not known yet who must
/// not be let in.
pub fn ready(relay: &Relay) -> Response<Body> {
    let (code, status) = if relay.shutdown.is_leaving() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if !relay.tokens.is_ready() {
        (StatusCode::SERVICE_UNAVAILABLE, "starting")
    } else {
        (StatusCode::OK, "ready")
    };
    let mut body = json!({"status": status});
    if let Some(keeper) = &relay.config.keeper {
        body["store"] = if keeper.is_well() { "ok" } else { "away" }.into();
    }
    json_response(code, &body)
}

/// `GET /-/version`.
pub fn version() -> Response<Body> {
    json_response(
        StatusCode::OK,
        &json!({"name": "tunnel", "version": env!("CARGO_PKG_VERSION")}),
    )
}

/// `GET /-/auth/config`: how people sign in here, for anybody.
pub fn auth_config(relay: &Relay) -> Response<Body> {
    let oidc = relay.config.oidc.as_ref().map(|oidc| {
        let endpoints = relay.tokens.endpoints();
        json!({
            "issuer": oidc.issuer.as_str(),
            "clientId": oidc.client_id,
            "deviceClientId": oidc.device_client_id,
            "audience": oidc.audiences.first(),
            "endpoints": endpoints.map(|places| json!({
                "authorization": places.authorization,
                "token": places.token,
                "endSession": places.end_session,
            })),
        })
    });
    json_response(StatusCode::OK, &json!({"oidc": oidc}))
}

/// `GET /-/me`: whose the credential is, and what it is good for.
///
/// # Errors
/// `unauthorized`, `rate_limited`.
pub async fn me(relay: &Relay, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let identity = auth::anyone(&relay.tokens, headers).await?;
    relay.buckets.take(&identity)?;
    let kind = match identity.key {
        KeyId::Provider(_) => "sign-in",
        KeyId::Secret(_) => "token",
        KeyId::Caller => "key",
    };
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "user": &*identity.user,
            "kind": kind,
            "scopes": identity.scopes.names().collect::<Vec<_>>(),
            "expires": identity.expires,
            "bridge": identity.bridge.as_deref(),
            "accounts": relay.config.keeper.is_some(),
        }),
    ))
}

/// `POST /-/token/renew`: a fresh token of the same user, scope and length. One that may make others ends when it was to.
///
/// # Errors
/// As for [`auth::caller`], `rate_limited`; `forbidden` for a key or the scope `manage`, `bad_request` for a token that is not the
/// relay's own.
pub async fn renew_token(relay: &Relay, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let identity = auth::anyone(&relay.tokens, headers).await?;
    relay.buckets.take(&identity)?;
    let (token, expires) = relay.tokens.renew(&identity).map_err(|error| match error {
        IssueError::Key | IssueError::Manage => Error::new(Code::Forbidden, error.to_string()),
        error => Error::new(Code::BadRequest, error.to_string()),
    })?;
    Ok(json_response(
        StatusCode::OK,
        &json!({"token": token.expose(), "expires": expires}),
    ))
}

/// `GET /api/bridge`: the caller's own bridges, and those that others share with the caller.
///
/// # Errors
/// As for [`auth::caller`], `rate_limited`; `overloaded` where the user has too many requests under way.
pub async fn bridges(relay: &Relay, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let identity = auth::anyone(&relay.tokens, headers).await?;
    let _listing = relay.admit(&identity)?;
    let limit = relay.config.limits.in_flight_per_bridge;
    let mut visible = relay.visible(&identity);
    // Who may not call learns of no others.
    visible.retain(|(owner, _)| owner.is_none() || identity.scopes.api);
    let (own, shared): (Vec<_>, Vec<_>) = visible.into_iter().partition(|(owner, _)| owner.is_none());
    let deadline = Instant::now() + MODELS_TIMEOUT;
    let mut described = Vec::with_capacity(own.len());
    for few in own.chunks(AT_ONCE) {
        let few = few.iter().map(|(_, session)| async move {
            let models = timeout_at(deadline, models(session, limit)).await;
            describe(session, models.ok().flatten().as_deref())
        });
        described.extend(join_all(few).await);
    }
    // Those of others are not asked: it would be work for their owners, and counted as theirs.
    let shared = shared.iter().map(|(owner, session)| {
        let mut described = describe(session, None);
        if let Some(fields) = described.as_object_mut() {
            fields.remove("id");
            fields.insert("owner".to_owned(), owner.as_deref().into());
            fields.insert("address".to_owned(), address(session).to_string().into());
        }
        described
    });
    let body = json!({"bridges": described, "shared": shared.collect::<Vec<_>>()});
    Ok(json_response(StatusCode::OK, &body))
}

/// How others call the bridge.
pub(super) fn address(session: &Session) -> Address {
    Address {
        owner: session.identity.user.to_string(),
        name: session.identity.name.clone(),
    }
}

fn describe(session: &Session, models: Option<&[String]>) -> Value {
    let bridge = &session.identity;
    let link = session.link();
    let last_seen = SystemTime::now().checked_sub(link.silence());
    json!({
        "id": &*bridge.bridge_id,
        "name": bridge.name,
        "transport": session.transport,
        "reason": session.reason,
        "priority": bridge.priority,
        "connectedSince": unix_ms(Some(session.since.1)),
        "lastSeen": unix_ms(last_seen),
        "roundTripMs": link.round_trip().map(|time| time.as_secs_f64() * 1e3),
        "inFlight": session.in_flight(),
        "models": models,
    })
}

/// Milliseconds since 1970.
pub(super) fn unix_ms(time: Option<SystemTime>) -> Option<u64> {
    let since = time?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// The names of the models that the bridge's Ollama has; null where it cannot tell.
async fn models(session: &Arc<Session>, limit: usize) -> Option<Vec<String>> {
    let _in_flight = session.enter(limit)?;
    match names(session, "/api/tags", "models", "name").await {
        None => names(session, "/v1/models", "data", "id").await,
        names => names,
    }
}

/// Asks one path for its list of models.
async fn names(session: &Arc<Session>, path: &str, list: &str, name: &str) -> Option<Vec<String>> {
    let request = Request::get(path).header(HOST, "bridge").body(empty()).ok()?;
    let response = session.link().call(request).await.ok()?;
    let response = response.status().is_success().then_some(response)?;
    let body = collect(response.into_body(), MODELS_SIZE).await?;
    let answer: Value = serde_json::from_slice(&body).ok()?;
    let models = answer.get(list)?.as_array()?;
    let names = models
        .iter()
        .filter_map(|model| Some(model.get(name)?.as_str()?.to_owned()));
    Some(names.collect())
}

/// The database, for what cannot be done without it.
pub(super) fn store(relay: &Relay) -> Result<&Store, Error> {
    let keeper = relay.config.keeper.as_ref();
    let keeper = keeper.ok_or_else(|| Error::new(Code::NotFound, "this relay keeps no accounts"))?;
    keeper.store().ok_or_else(store_away)
}

/// Resolves once this relay does as the store was told; other relays do within a second.
pub(super) async fn carried_out(relay: &Relay) {
    if let Some(keeper) = &relay.config.keeper {
        keeper.carried_out().await;
    }
}

pub(super) fn store_away() -> Error {
    Error::new(
        Code::Overloaded,
        "the relay cannot reach its database; try again in a moment",
    )
}

/// What came of asking the database, in words for the one who asked.
pub(super) fn store_error(error: &StoreError) -> Error {
    match error {
        StoreError::Absent => Error::new(Code::NotFound, "there is none of this id"),
        StoreError::Full => Error::new(Code::Forbidden, error.to_string()),
        StoreError::ShutOut => {
            let detail = "this user or this token is not let in any more; ask the operator of the relay";
            Error::new(Code::Forbidden, detail).because("shut out meanwhile")
        }
        error => {
            tracing::warn!(%error, "the database did not do what was asked for");
            store_away()
        }
    }
}

/// A short body as JSON.
pub(super) async fn read_json<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Error> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, collect(request.into_body(), BODY_SIZE)).await;
    let bad = |detail: &str| Error::new(Code::BadRequest, detail);
    let body = collected
        .ok()
        .flatten()
        .ok_or_else(|| bad("the body did not come whole, or is too large"))?;
    serde_json::from_slice(&body).map_err(|error| bad(&format!("no JSON as expected here: {error}")))
}

pub(super) fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
