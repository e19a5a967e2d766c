//! Sign-in by OpenID Connect: the tokens of one provider, another issuer beside the relay itself. Its algorithms are fixed here, and
//! each of its keys has one (RFC 8725): a token chooses nothing. [`keyring`] gets the provider's keys ([`keyset`]); what a token says
//! is read in [`claims`], what it does not say is found out by [`asking`] ([`userinfo`]), and [`rules`] tell who may come in.

mod asking;
mod claims;
mod keyring;
mod keyset;
pub mod rules;
mod userinfo;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Header;
use jsonwebtoken::errors::ErrorKind;
use serde::Deserialize;

use self::asking::Asking;
use self::claims::Claims;
use self::keyring::Keyring;
pub use self::keyset::Endpoints;
use self::keyset::KeySet;
use self::rules::Rules;
use super::Scopes;
use super::keys::KeyId;
use super::refusal::Denied;
use super::shares::{self, Groups};
use super::tokens::now;
use crate::transport::dial::Dialer;
use crate::transport::issuer::Issuer;

/// How far the provider's clock may be from ours, seconds.
pub(super) const LEEWAY: u64 = 60;
/// The types of tokens that are taken: none said, any JWT, an access token (RFC 9068). Others are for something else.
const TYPES: [&str; 4] = ["jwt", "application/jwt", "at+jwt", "application/at+jwt"];
/// How long somebody waits for a fetch of keys.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it is not asked again after somebody who may not come in.
const TURNED_AWAY: Duration = Duration::from_secs(60);

/// How a provider is trusted; `cmd::oidc` makes it of arguments.
#[derive(Clone)]
pub struct Settings {
    /// The provider.
    pub issuer: Issuer,
    /// Whom its tokens must be for: one of these.
    pub audiences: Vec<String>,
    /// What a web page is called there.
    pub client_id: String,
    /// What a program without a browser is called there, if it may sign in.
    pub device_client_id: Option<String>,
    /// Who may come in.
    pub rules: Rules,
    /// The claim that names the user.
    pub user_claim: String,
    /// How it is reached.
    pub dialer: Dialer,
    /// How often it is asked.
    pub timing: Timing,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("oidc::Settings").field(&self.issuer).finish()
    }
}

/// How often a provider is asked for its keys, and how long they are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Keys are used for so long before they are fetched again, or for less if the provider says so.
    pub fresh: Duration,
    /// One that the provider names no more is accepted for so long after it was last named.
    pub kept: Duration,
    /// While the provider is away, they are used for so long.
    pub stale: Duration,
    /// Between two fetches, whatever tokens come.
    pub pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(15 * 60),
            kept: Duration::from_secs(3600),
            stale: Duration::from_secs(24 * 3600),
            pause: Duration::from_secs(30),
        }
    }
}

/// Verifies the tokens of one provider.
pub(super) struct Provider {
    settings: Settings,
    keyring: Keyring,
    asking: Asking,
}

/// Somebody with a token of the provider who may come in.
pub(super) struct SignedIn {
    pub(super) user: Arc<str>,
    pub(super) scopes: Scopes,
    pub(super) issued: Option<u64>,
    pub(super) expires: u64,
    pub(super) key: KeyId,
    /// The same for all tokens of a person and a program: providers give another one each hour.
    pub(super) id: Arc<str>,
    /// If the provider said which.
    pub(super) groups: Option<Groups>,
}

impl Provider {
    /// Knows no keys yet.
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            keyring: Keyring::new(settings.timing),
            settings,
            asking: Asking::new(),
        }
    }

    /// Whether a token says to be of this provider.
    pub(super) fn is_named(&self, issuer: &str) -> bool {
        self.settings.issuer.as_str() == issuer
    }

    /// Where people sign in, once it told.
    pub(super) fn endpoints(&self) -> Option<Endpoints> {
        self.keyring.endpoints()
    }

    /// Keeps the keys fresh for as long as it is polled; tells which are accepted before any is used.
    pub(super) async fn keep(&self, accepted: impl Fn(Vec<KeyId>) + Sync) -> Infallible {
        self.keyring.keep(&self.settings, accepted).await
    }

    /// Checks a token, and whether its user may come in.
    ///
    /// # Errors
    /// [`Denied`] with the reason.
    pub(super) async fn verify(&self, token: &str) -> Result<SignedIn, Denied> {
        let header = read_header(token)?;
        let set = self.keyring.find(&header).await?;
        let (claims, key) = set.decode(token, &header, &self.settings)?;
        if claims.is_event() {
            return Err(Denied::Type);
        }
        let claims = self.admit(token, claims, &set).await?;
        let user = claims.user(&self.settings.user_claim).ok_or(Denied::NoUser)?;
        let expires = claims.seconds("exp").ok_or(Denied::Endless)?.saturating_add(LEEWAY);
        if expires <= now() {
            return Err(Denied::Expired);
        }
        Ok(SignedIn {
            scopes: claims.scopes(&self.settings.client_id, is_access(&header)),
            issued: claims.seconds("iat"),
            expires,
            key,
            id: self.id(&claims)?,
            groups: claims.has("groups").then(|| shares::groups(claims.groups())),
            user: user.into(),
        })
    }

    /// The claims, completed by what the provider tells of the user where a rule needs it, if they let the user in.
    async fn admit(&self, token: &str, mut claims: Claims, set: &KeySet) -> Result<Claims, Denied> {
        let Settings { rules, user_claim, .. } = &self.settings;
        let is_known = |claims: &Claims| claims.user(user_claim).is_some();
        if rules.admit(&claims) && is_known(&claims) {
            return Ok(claims);
        }
        let wanted = !claims.has(user_claim) || rules.claims().any(|name| !claims.has(name));
        let Some(place) = set.userinfo.as_ref().filter(|_| wanted) else {
            return Err(refused(rules.admit(&claims)));
        };
        let token = asking::Token::new(token);
        let told = self.asking.ask(&self.settings.dialer, place, &token).await?;
        claims.complete((*told).clone(), user_claim);
        let admitted = rules.admit(&claims);
        if admitted && is_known(&claims) {
            return Ok(claims);
        }
        let denied = refused(admitted);
        self.asking.remember(&token, denied, TURNED_AWAY);
        Err(denied)
    }

    /// One for each person and program of this provider.
    fn id(&self, claims: &Claims) -> Result<Arc<str>, Denied> {
        let whose = [self.settings.issuer.as_str(), claims.subject()?, claims.client()];
        let text = serde_json::to_vec(&whose).map_err(|_| Denied::Malformed)?;
        let hash = digest::digest(&digest::SHA256, &text);
        Ok(format!("oidc:{}", URL_SAFE_NO_PAD.encode(&hash.as_ref()[..15])).into())
    }
}

fn refused(admitted: bool) -> Denied {
    if admitted { Denied::NoUser } else { Denied::NotAllowed }
}

/// Who a token says that it is of; nothing of it is checked.
pub(super) fn issuer_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issued {
        iss: String,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&payload).ok().map(|issued: Issued| issued.iss)
}

fn read_header(token: &str) -> Result<Header, Denied> {
    let header = jsonwebtoken::decode_header(token).map_err(|error| denied(error.kind()))?;
    let of_type = |kind: &String| TYPES.iter().any(|known| kind.eq_ignore_ascii_case(known));
    // What is critical in a token must be understood, and here nothing is.
    if !header.typ.as_ref().is_none_or(of_type) || header.crit.is_some() {
        return Err(Denied::Type);
    }
    if keyset::ALGORITHMS.contains(&header.alg) {
        Ok(header)
    } else {
        Err(Denied::Algorithm)
    }
}

/// Whether a token is of the type that only access tokens have (RFC 9068 §2.1).
fn is_access(header: &Header) -> bool {
    let is = |kind: &String| kind.to_ascii_lowercase().ends_with("at+jwt");
    header.typ.as_ref().is_some_and(is)
}

fn denied(kind: &ErrorKind) -> Denied {
    match kind {
        ErrorKind::ExpiredSignature => Denied::Expired,
        ErrorKind::ImmatureSignature => Denied::NotYetValid,
        ErrorKind::InvalidSignature => Denied::Signature,
        ErrorKind::InvalidIssuer => Denied::Issuer,
        ErrorKind::InvalidAudience => Denied::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Denied::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => Denied::Endless,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => Denied::Algorithm,
        ErrorKind::Json(error) if error.to_string().contains("unknown variant") => Denied::Algorithm,
        _ => Denied::Malformed,
    }
}
