//! `/-/keys`: keys for callers, made, listed and revoked by their user; a token with the scope `manage` is needed.

use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use super::Relay;
use super::auth::{self, caller_keys, tokens::now};
use super::error::{Code, Error};
use super::own::{carried_out, json_response, read_json, store, store_error};
use super::rate::Rate;
use super::registry::InFlight;
use super::store::keys::{Key, Maker};
use crate::token::Secret;
use crate::transport::{Body, empty, is_bridge_name};

/// The longest label, characters.
pub const LONGEST_LABEL: usize = 100;

/// What a key is to be.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wish {
    /// What to call it.
    pub label: Option<String>,
    /// The name of the only bridge that it reaches.
    pub bridge: Option<String>,
    /// How many requests it may make, as in `20/s`.
    pub rate: Option<String>,
    /// When it ends, seconds since 1970.
    pub expires: Option<u64>,
}

/// Whether something may be called so in lists.
pub fn is_label(text: &str) -> bool {
    text.chars().count() <= LONGEST_LABEL && !text.chars().any(char::is_control)
}

/// A fresh key of the user, and what is to be remembered of it.
///
/// # Errors
/// `bad_request` for what no key can be.
pub fn make(user: &str, maker: &Maker, wish: Wish) -> Result<(Secret, Key), Error> {
    let bad = |detail: String| Error::new(Code::BadRequest, detail);
    if !wish.label.as_deref().is_none_or(is_label) {
        return Err(bad(format!(
            "a label has up to {LONGEST_LABEL} characters and no control characters"
        )));
    }
    if !wish.bridge.as_deref().is_none_or(is_bridge_name) {
        return Err(bad(
            "a bridge's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -".to_owned()
        ));
    }
    if let Some(rate) = &wish.rate {
        rate.parse::<Rate>().map_err(|error| bad(format!("rate: {error}")))?;
    }
    if wish.expires.is_some_and(|end| end <= now()) {
        return Err(bad("the key would have ended already".to_owned()));
    }
    let (key, id) = caller_keys::make().map_err(|_| Error::new(Code::Overloaded, "no random numbers to be had"))?;
    let kept = Key {
        id,
        user: user.to_owned(),
        label: wish.label,
        bridge: wish.bridge,
        rate: wish.rate,
        issued: now(),
        expires: wish.expires,
        last_used: None,
        revoked: None,
        maker: maker.id.clone(),
    };
    Ok((key, kept))
}

/// `POST /-/keys`: a fresh key, told this once.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`, `bad_request`, `overloaded`.
pub async fn add(relay: &Relay, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let (identity, _asking) = manager(relay, request.headers()).await?;
    let maker = Maker::from(&identity);
    let mut wish: Wish = read_json(request).await?;
    // No other limit needs to be passed on: a token that may make keys has none.
    if let Some(most) = maker.expires {
        if wish.expires.is_some_and(|end| end > most) {
            let detail =
                "a key ends no later than the token that makes it; ask for less, or use a token that lives longer";
            return Err(Error::new(Code::Forbidden, detail).because("key that outlives its maker"));
        }
        wish.expires.get_or_insert(most);
    }
    let user = &identity.user;
    let (key, kept) = make(user, &maker, wish)?;
    let hash = caller_keys::hash(key.expose());
    let added = store(relay)?.add_key(&kept, &hash, &maker).await;
    added.map_err(|error| store_error(&error))?;
    carried_out(relay).await;
    tracing::info!(%user, id = kept.id, "a key was made");
    let mut answer = json!(kept);
    answer["key"] = key.expose().into();
    Ok(json_response(StatusCode::CREATED, &answer))
}

/// `GET /-/keys`: the user's own.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`, `overloaded`.
pub async fn list(relay: &Relay, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let (user, _asking) = manager(relay, headers).await?;
    let keys = store(relay)?.keys(Some(&user.user)).await;
    let keys = keys.map_err(|error| store_error(&error))?;
    Ok(json_response(StatusCode::OK, &json!({"keys": keys})))
}

/// `DELETE /-/keys/ID`: takes one of the user's own back.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`, `not_found`, `overloaded`.
pub async fn revoke(relay: &Relay, headers: &HeaderMap, id: &str) -> Result<Response<Body>, Error> {
    let (user, _asking) = manager(relay, headers).await?;
    let revoked = store(relay)?.revoke_key(id, Some(&user.user)).await;
    revoked.map_err(|error| store_error(&error))?;
    carried_out(relay).await;
    tracing::info!(user = %user.user, id, "a key was revoked");
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Who may make keys, codes and shares; counted among the user's requests.
pub(super) async fn manager(relay: &Relay, headers: &HeaderMap) -> Result<(auth::Identity, InFlight), Error> {
    let identity = auth::manager(&relay.tokens, headers).await?;
    let asking = relay.admit(&identity)?;
    Ok((identity, asking))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_was_wished_and_nothing_that_cannot_be() {
        let wish = |json: &str| {
            serde_json::from_str::<Wish>(json)
                .ok()
                .and_then(|wish| make("ann", &Maker::operator(), wish).ok())
        };
        let (key, kept) = wish(r#"{"label":"phone","bridge":"box","rate":"20/s"}"#).unwrap();
        assert!(caller_keys::is_one(key.expose()) && !format!("{kept:?}").contains(key.expose()));
        assert_eq!(
            (&*kept.user, kept.bridge.as_deref(), kept.expires),
            ("ann", Some("box"), None)
        );
        for wrong in [
            r#"{"label":"a\nb"}"#,
            r#"{"bridge":"a b"}"#,
            r#"{"rate":"fast"}"#,
            r#"{"expires":1}"#,
            r#"{"scope":"bridge"}"#,
        ] {
            assert!(wish(wrong).is_none(), "{wrong}");
        }
    }
}
