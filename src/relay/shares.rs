//! `/-/shares`: which of their bridges a user shares, and with whom; a token with the scope `manage` is needed.

use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use super::Relay;
use super::auth::shares::{BadWith, With};
use super::auth::tokens::now;
use super::error::{Code, Error};
use super::keys::manager;
use super::own::{carried_out, json_response, read_json, store, store_error};
use super::store::Store;
use super::store::keys::Maker;
use super::store::shares::Share;
use crate::random;
use crate::transport::{Body, empty};

const ID_LETTERS: usize = 10;

/// What is to be shared.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    bridge: String,
    with: String,
}

/// A share of a bridge, which nobody knows of yet.
///
/// # Errors
/// When the system gives no random numbers.
pub fn make(owner: &str, bridge: &str, name: &str, with: With) -> std::io::Result<Share> {
    Ok(Share {
        id: random::letters(ID_LETTERS)?,
        owner: owner.to_owned(),
        bridge: bridge.to_owned(),
        name: name.to_owned(),
        with,
        since: now(),
    })
}

/// `GET /-/shares`: the user's own.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`, `overloaded`.
pub async fn list(relay: &Relay, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let (user, _asking) = manager(relay, headers).await?;
    let shares = store(relay)?.shares(Some(&user.user)).await;
    let shares = shares.map_err(|error| store_error(&error))?;
    Ok(json_response(StatusCode::OK, &json!({"shares": shares})))
}

/// `POST /-/shares`: shares one of the user's own bridges.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`, `bad_request`, `not_found`, `overloaded`.
pub async fn add(relay: &Relay, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let (owner, _asking) = manager(relay, request.headers()).await?;
    let wish: Wish = read_json(request).await?;
    let with: With = wish.with.parse().map_err(|error: BadWith| {
        let detail = format!("with: {error}");
        Error::new(Code::BadRequest, detail)
    })?;
    let store = store(relay)?;
    let user = &*owner.user;
    let bridge = own_bridge(relay, store, user, &wish.bridge).await?;
    let share = make(user, &bridge, &wish.bridge, with)
        .map_err(|_| Error::new(Code::Overloaded, "no random numbers to be had"))?;
    let shared = store.share(&share, &Maker::from(&owner)).await;
    let shared = shared.map_err(|error| store_error(&error))?;
    carried_out(relay).await;
    tracing::info!(%user, id = shared.id, "a bridge was shared");
    Ok(json_response(StatusCode::CREATED, &json!(shared)))
}

/// The id of the user's bridge of this name: one that is here, or the one that was seen last.
async fn own_bridge(relay: &Relay, store: &Store, user: &str, name: &str) -> Result<String, Error> {
    let mut here = relay.registry.list(user).into_iter();
    if let Some(session) = here.find(|session| session.identity.name == name) {
        return Ok(session.identity.bridge_id.to_string());
    }
    let bridges = store.bridges_of(user).await.map_err(|error| store_error(&error))?;
    let called = bridges.into_iter().filter(|bridge| bridge.name == name);
    let last = called.max_by_key(|bridge| bridge.last_seen);
    last.map(|bridge| bridge.id).ok_or_else(|| {
        let detail = "you have no bridge of this name; connect it first, and see GET /api/bridge";
        Error::new(Code::NotFound, detail)
    })
}

/// `DELETE /-/shares/ID`: takes one of the user's own back.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`, `not_found`, `overloaded`.
pub async fn remove(relay: &Relay, headers: &HeaderMap, id: &str) -> Result<Response<Body>, Error> {
    let (owner, _asking) = manager(relay, headers).await?;
    let removed = store(relay)?.unshare(id, Some(&owner.user)).await;
    removed.map_err(|error| store_error(&error))?;
    carried_out(relay).await;
    tracing::info!(user = %owner.user, id, "a share was taken back");
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}
