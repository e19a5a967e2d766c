//! Who is asking: finds the credential of a request and turns it into an identity. `tokens` issues and verifies with the secrets
//! in `keys`, and knows `caller_keys`; `oidc` verifies tokens of a provider of sign-in. `denials` has who is not let in all the same,
//! `refusal` what is said then; `shares` has which bridges of others somebody reaches.

pub mod caller_keys;
pub mod denials;
pub mod keys;
pub mod oidc;
pub mod refusal;
pub mod shares;
pub mod tokens;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::error::{Code, Error};
use super::rate::Rate;
use crate::transport::headers::X_API_KEY;
use keys::KeyId;
use refusal::Denied;
use shares::Groups;
use tokens::Tokens;

/// Somebody whose credential was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user: `sub`, or of a provider's token the claim that the settings of sign-in name.
    pub user: Arc<str>,
    /// What the credential is good for.
    pub scopes: Scopes,
    /// When it was issued, seconds since 1970.
    pub issued: Option<u64>,
    /// When it is not accepted any more, seconds since 1970; never, if none.
    pub expires: Option<u64>,
    /// What vouches for the credential.
    pub key: KeyId,
    /// The credential's own id (`jti`), which renewal keeps; made of the credential itself, where it says none. Those of a provider
    /// have one id for each person and program.
    pub id: Arc<str>,
    /// The credential, and those it was renewed to, among others of this process; says nothing of the credential itself.
    pub credential: u64,
    /// The name of the only bridge that the credential reaches; all of the user's, if none.
    pub bridge: Option<Arc<str>>,
    /// A limit of its own.
    pub rate: Option<Rate>,
    /// The user's groups, if the credential says which.
    pub groups: Option<Groups>,
}

impl Identity {
    /// Whether the credential is a key for callers.
    pub fn is_key(&self) -> bool {
        self.key == KeyId::Caller
    }

    /// Whether it says that a person signed in at the provider.
    pub fn is_sign_in(&self) -> bool {
        matches!(self.key, KeyId::Provider(_))
    }

    /// Whether its time is over, at that second since 1970.
    pub fn is_over(&self, now: u64) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

/// What a credential is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scopes {
    /// May attach a bridge.
    pub bridge: bool,
    /// May make requests.
    pub api: bool,
    /// May make keys for callers and codes for bridges, and share bridges.
    pub manage: bool,
}

impl Scopes {
    /// Good for all there is.
    pub const ALL: Self = Self {
        manage: true,
        ..Self::BOTH
    };
    /// Good for bridges and requests.
    pub const BOTH: Self = Self {
        bridge: true,
        api: true,
        manage: false,
    };
    /// Good for requests.
    pub const API: Self = Self {
        bridge: false,
        ..Self::BOTH
    };
    /// Good for a bridge.
    pub const BRIDGE: Self = Self {
        api: false,
        ..Self::BOTH
    };

    /// Reads a `scope` claim; one that names none of ours has `bridge` and `api`.
    pub fn parse(text: Option<&str>) -> Self {
        text.and_then(Self::named).unwrap_or(Self::BOTH)
    }

    /// Those of ours that a text names, if it names any.
    pub fn named(text: &str) -> Option<Self> {
        let has = |name| text.split(' ').any(|scope| scope == name);
        let (bridge, api, manage) = (has("bridge"), has("api"), has("manage"));
        (bridge || api || manage).then_some(Self { bridge, api, manage })
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [("bridge", self.bridge), ("api", self.api), ("manage", self.manage)];
        all.into_iter().filter_map(|(name, has)| has.then_some(name))
    }
}

impl std::fmt::Display for Scopes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(" "))
    }
}

/// Finds out who makes requests.
///
/// # Errors
/// `unauthorized`, `forbidden` or `overloaded`; the reason goes to the log, not to the caller.
pub async fn caller(tokens: &Tokens, headers: &HeaderMap) -> Result<Identity, Error> {
    let identity = identify(tokens, credential(headers)?.as_deref()).await?;
    if !identity.scopes.api {
        let detail = "this token is for bridges only (scope bridge); use one with the scope api";
        return Err(Error::new(Code::Forbidden, detail).because("token without the scope api"));
    }
    Ok(identity)
}

/// Finds out whose bridge connects; `?token=` serves those who cannot set headers.
///
/// # Errors
/// As for [`caller`].
pub async fn bridge(tokens: &Tokens, headers: &HeaderMap, query: Option<&str>) -> Result<Identity, Error> {
    let from_header = credential(headers)?;
    let token = from_header.as_deref().or_else(|| query_token(query));
    let identity = identify(tokens, token).await?;
    if !identity.scopes.bridge {
        let detail = "this token or key is for callers only (scope api); a bridge needs one with the scope bridge";
        return Err(Error::new(Code::Forbidden, detail).because("token without the scope bridge"));
    }
    Ok(identity)
}

/// Finds out who makes keys, codes and shares.
///
/// # Errors
/// As for [`caller`].
pub async fn manager(tokens: &Tokens, headers: &HeaderMap) -> Result<Identity, Error> {
    let identity = anyone(tokens, headers).await?;
    if !identity.scopes.manage {
        let detail = "this needs the scope manage, which signing in on a page gives and a key cannot; without sign-in, the operator \
                      makes a token with it: tunnel relay token --scope manage";
        return Err(Error::new(Code::Forbidden, detail).because("token without the scope manage"));
    }
    Ok(identity)
}

/// Finds out who asks, whatever the credential is good for.
///
/// # Errors
/// As for [`caller`].
pub async fn anyone(tokens: &Tokens, headers: &HeaderMap) -> Result<Identity, Error> {
    identify(tokens, credential(headers)?.as_deref()).await
}

async fn identify(tokens: &Tokens, token: Option<&str>) -> Result<Identity, Error> {
    match token {
        Some(token) => Ok(tokens.identify(token).await?),
        None => Err(Denied::Missing.into()),
    }
}

/// What is said to somebody who was let in and is not any more.
pub fn refusal_of(tokens: &Tokens, identity: &Identity) -> Error {
    tokens.stands(identity).err().unwrap_or(Denied::Signature).into()
}

/// The one credential of a request: `Authorization: Bearer`, `x-api-key`, or the password of `Authorization: Basic`.
fn credential(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut found: Option<String> = None;
    let bearers = headers
        .get_all(AUTHORIZATION)
        .into_iter()
        .filter_map(|value| authorization(value.to_str().ok()?));
    let keys = headers
        .get_all(X_API_KEY)
        .into_iter()
        .filter_map(|value| Some(value.to_str().ok()?.trim().to_owned()));
    for token in bearers.chain(keys) {
        match &found {
            Some(other) if *other != token => {
                let detail = "the request carries two different credentials; send one";
                return Err(Error::new(Code::BadRequest, detail).because("two different credentials"));
            }
            _ => found = Some(token),
        }
    }
    Ok(found)
}

fn authorization(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
        return pair.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

fn query_token(query: Option<&str>) -> Option<&str> {
    // Our tokens need no escapes in a query (RFC 7515: base64url and dots).
    query?.split('&').find_map(|pair| pair.strip_prefix("token="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn of(fields: &[(HeaderName, &str)]) -> Result<Option<String>, Error> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        credential(&headers)
    }

    #[test]
    fn a_token_is_found_wherever_a_client_can_put_it() {
        let basic = format!("Basic {}", BASE64.encode("anybody:tok:en"));
        for (name, value, token) in [
            (AUTHORIZATION, "Bearer token", "token"),
            (AUTHORIZATION, "bearer  token", "token"),
            (AUTHORIZATION, basic.as_str(), "tok:en"),
            (X_API_KEY, "token", "token"),
        ] {
            assert_eq!(of(&[(name, value)]).unwrap().as_deref(), Some(token), "{value}");
        }
        assert_eq!(of(&[(AUTHORIZATION, "Digest x")]).unwrap(), None);
        assert_eq!(of(&[(AUTHORIZATION, "token")]).unwrap(), None);
        assert_eq!(query_token(Some("a=b&token=t")), Some("t"));
    }

    #[test]
    fn two_credentials_must_agree() {
        let same = [(AUTHORIZATION, "Bearer a"), (X_API_KEY, "a")];
        assert_eq!(of(&same).unwrap().as_deref(), Some("a"));
        let different = [(AUTHORIZATION, "Bearer a"), (X_API_KEY, "b")];
        assert_eq!(of(&different).unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn a_token_that_names_none_of_our_scopes_has_both() {
        assert_eq!(Scopes::parse(None), Scopes::BOTH);
        assert_eq!(Scopes::parse(Some("openid email")), Scopes::BOTH);
        assert_eq!(Scopes::parse(Some("api bridge")), Scopes::BOTH);
        assert_eq!(Scopes::parse(Some("openid api")), Scopes::API);
        assert_eq!(Scopes::named("openid email"), None);
        assert_eq!(Scopes::named("openid api"), Some(Scopes::API));
        assert_eq!(Scopes::parse(Some("manage")).to_string(), "manage");
        assert_eq!(
            Scopes::parse(Some("manage api bridge")).to_string(),
            "bridge api manage"
        );
    }
}
