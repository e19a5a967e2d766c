//! The relay's own tokens: JWTs signed with HS256 (RFC 7519, following RFC 8725: one algorithm, fixed here, never the token's
//! choice). Tokens of a provider, which [`super::oidc`] verifies, and keys for callers come here too: whatever a credential is, it is
//! decided on, remembered and cut in one place.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::mem::swap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use tokio::sync::watch;

use super::caller_keys::{self, CallerKeys};
use super::denials::Denials;
use super::keys::{BridgeKey, Key, KeyId, Keys};
use super::oidc::{self, Provider};
use super::refusal::Denied;
use super::shares::{Memberships, Shares};
use super::{Identity, Scopes};
use crate::token::{Claims, Secret};

/// A token longer than this is not looked at, octets.
const LONGEST: usize = 8 * 1024;
/// Verified tokens that are remembered.
const REMEMBERED: usize = 4096;
/// The longest id of a token, octets.
const LONGEST_ID: usize = 128;
/// The longest name of a user, octets.
const LONGEST_USER: usize = 256;

/// Why no token could be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The user's name cannot stand in a token.
    #[error("a user's name has 1 to 256 characters and no control characters")]
    BadUser,
    /// The system gives no random numbers, or signing failed.
    #[error("the token could not be signed")]
    Signing,
    /// The token is not the relay's own.
    #[error("this token is not the relay's own: renew it where you signed in")]
    Foreign,
    /// It is a key for callers.
    #[error("a key is not renewed: it is valid until it ends or is revoked")]
    Key,
    /// It may make others.
    #[error("a token with the scope manage is not renewed; ask the operator of the relay for a new one")]
    Manage,
}

/// What decides on a token besides what stands in it.
#[derive(Clone)]
pub(super) struct Rules {
    keys: Arc<Keys>,
    /// Those of the provider.
    provider_keys: Arc<[KeyId]>,
    callers: Arc<CallerKeys>,
    /// None as long as it is not known.
    pub(super) denials: Option<Arc<Denials>>,
    pub(super) shares: Arc<Shares>,
    pub(super) memberships: Arc<Memberships>,
}

impl Rules {
    fn allow(&self, identity: &Identity) -> Result<(), Denied> {
        let (accepted, otherwise) = match identity.key {
            KeyId::Secret(_) => (self.keys.accept(identity.key), Denied::Signature),
            // None of its keys is accepted any more only when it was away for too long.
            KeyId::Provider(_) if self.provider_keys.is_empty() => (false, Denied::ProviderAway),
            KeyId::Provider(_) => (self.provider_keys.contains(&identity.key), Denied::Signature),
            KeyId::Caller => (self.callers.has(&identity.id), Denied::UnknownKey),
        };
        if !accepted {
            return Err(otherwise);
        }
        let denials = self.denials.as_ref().ok_or(Denied::NotKnownYet)?;
        denials.of(identity).map_or(Ok(()), |denial| Err(Denied::Held(denial)))
    }
}

/// A token that was looked at before.
struct Verified {
    identity: Identity,
    /// When it was used last, and which use was told; seconds since 1970.
    used: u64,
    told: u64,
}

/// Issues and verifies tokens.
pub struct Tokens {
    pub(super) rules: watch::Sender<Rules>,
    provider: Option<Provider>,
    validation: Validation,
    bridge_ids: hmac::Key,
    verified: Mutex<HashMap<String, Verified>>,
    /// Keyed by the process: nobody can make two credentials look the same.
    credentials: RandomState,
}

impl Tokens {
    /// Uses this secret for everything.
    pub fn new(secret: &[u8]) -> Self {
        Self::with(Keys::new(secret, None), &BridgeKey::of(secret))
    }

    /// Uses these secrets, and this key for the ids of bridges.
    pub fn with(keys: Keys, bridge_ids: &BridgeKey) -> Self {
        let rules = Rules {
            keys: Arc::new(keys),
            provider_keys: Arc::default(),
            callers: Arc::default(),
            denials: Some(Arc::default()),
            shares: Arc::default(),
            memberships: Arc::default(),
        };
        let mut validation = Validation::new(Algorithm::HS256);
        validation.required_spec_claims.clear();
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.leeway = 0;
        Self {
            rules: watch::Sender::new(rules),
            provider: None,
            validation,
            bridge_ids: bridge_ids.hmac(),
            verified: Mutex::default(),
            credentials: RandomState::new(),
        }
    }

    /// Trusts this provider's tokens too, if there is one.
    #[must_use]
    pub fn trusting(self, settings: Option<oidc::Settings>) -> Self {
        Self {
            provider: settings.map(Provider::new),
            ..self
        }
    }

    /// Keeps the provider's keys fresh for as long as it is polled; never ends.
    pub async fn keep(&self) -> Infallible {
        let accepted = |ids: Vec<KeyId>| {
            self.rules.send_if_modified(|rules| {
                let changed = *rules.provider_keys != *ids;
                rules.provider_keys = ids.into();
                changed
            });
        };
        match &self.provider {
            Some(provider) => provider.keep(accepted).await,
            None => std::future::pending().await,
        }
    }

    /// Where people sign in, if there is a provider and it told.
    pub fn endpoints(&self) -> Option<oidc::Endpoints> {
        self.provider.as_ref()?.endpoints()
    }

    /// Uses these secrets from now on.
    pub fn replace(&self, keys: Keys) {
        self.rules.send_modify(|rules| rules.keys = Arc::new(keys));
    }

    /// Denies these from now on; with none, everybody is put off until it is known whom to deny.
    pub fn deny(&self, denials: Option<Denials>) {
        self.rules.send_modify(|rules| rules.denials = denials.map(Arc::new));
    }

    /// Accepts these keys for callers from now on, and no others.
    pub fn accept_keys(&self, keys: CallerKeys) {
        self.rules.send_modify(|rules| rules.callers = Arc::new(keys));
    }

    /// From this moment on all at once: accepts these keys and no others, lets callers reach what is shared with them and nothing
    /// else of others, and denies these.
    pub fn follow(&self, keys: CallerKeys, shares: Shares, memberships: Memberships, denials: Denials) {
        let (mut callers, mut shares) = (Arc::new(keys), Arc::new(shares));
        let (mut memberships, mut denials) = (Arc::new(memberships), Some(Arc::new(denials)));
        // What was there before may be large: it ends after this, while nobody waits for the rules.
        self.rules.send_modify(|rules| {
            swap(&mut rules.callers, &mut callers);
            swap(&mut rules.shares, &mut shares);
            swap(&mut rules.memberships, &mut memberships);
            swap(&mut rules.denials, &mut denials);
        });
    }

    /// Whether a credential that was verified is still accepted.
    ///
    /// # Errors
    /// [`Denied`] with the reason.
    pub fn stands(&self, identity: &Identity) -> Result<(), Denied> {
        self.rules.borrow().allow(identity)
    }

    /// Whether it is known whom to deny.
    pub fn is_ready(&self) -> bool {
        self.rules.borrow().denials.is_some()
    }

    /// Resolves when this credential is not accepted any more: its secret is not, it was revoked, or its user is not let in.
    pub async fn refused(&self, identity: &Identity) {
        let mut rules = self.rules.subscribe();
        let refused = |rules: &Rules| !matches!(rules.allow(identity), Ok(()) | Err(Denied::NotKnownYet));
        // The sender is ours.
        let _ = rules.wait_for(refused).await;
    }

    /// The credentials that were used since the last time this was asked, and when.
    pub fn take_used(&self) -> Vec<(Identity, u64)> {
        let mut verified = self.lock();
        let fresh = verified.values_mut().filter(|one| one.used > one.told);
        fresh
            .map(|one| {
                one.told = one.used;
                (one.identity.clone(), one.used)
            })
            .collect()
    }

    /// Whether the credential was signed with the secret that signs now, or by the provider.
    pub fn is_current(&self, identity: &Identity) -> bool {
        matches!(identity.key, KeyId::Provider(_)) || self.rules.borrow().keys.sign_with(identity.key)
    }

    /// Signs a token for the user that lives as long as given, or for ever.
    ///
    /// # Errors
    /// [`IssueError`] for a name that cannot be one.
    pub fn issue(&self, user: &str, scopes: Scopes, life: Option<Duration>) -> Result<Secret, IssueError> {
        let mut id = [0; 12];
        rand::fill(&mut id).map_err(|_| IssueError::Signing)?;
        self.sign(user, scopes, life, URL_SAFE_NO_PAD.encode(id))
    }

    fn sign(&self, user: &str, scopes: Scopes, life: Option<Duration>, id: String) -> Result<Secret, IssueError> {
        if !is_user(user) {
            return Err(IssueError::BadUser);
        }
        let now = now();
        let claims = Claims {
            sub: user.to_owned(),
            iat: Some(now),
            nbf: None,
            exp: life.map(|life| now.saturating_add(life.as_secs())),
            jti: Some(id),
            scope: Some(scopes.to_string()),
            iss: None,
        };
        jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &self.rules.borrow().keys.signing,
        )
        .map(|token| Secret::new(&token))
        .map_err(|_| IssueError::Signing)
    }

    /// A fresh token of the same user, scope, length and id: whatever holds for the one holds for the other.
    ///
    /// # Errors
    /// As for [`Tokens::issue`]; `Foreign` for one of the provider, `Key` for a key, `Manage` for one that may make others.
    pub fn renew(&self, identity: &Identity) -> Result<(Secret, Option<u64>), IssueError> {
        match identity.key {
            KeyId::Secret(_) if identity.scopes.manage => return Err(IssueError::Manage),
            KeyId::Secret(_) => {}
            KeyId::Provider(_) => return Err(IssueError::Foreign),
            KeyId::Caller => return Err(IssueError::Key),
        }
        let life = identity
            .expires
            .map(|end| Duration::from_secs(end.saturating_sub(identity.issued.unwrap_or_else(now)).max(1)));
        let token = self.sign(&identity.user, identity.scopes, life, identity.id.to_string())?;
        Ok((token, life.map(|life| now().saturating_add(life.as_secs()))))
    }

    /// Checks a key, or a token of the relay or of the provider, and tells whose it is. Waits for nothing where it was verified before,
    /// or is a key.
    ///
    /// # Errors
    /// [`Denied`] with the reason.
    pub async fn identify(&self, token: &str) -> Result<Identity, Denied> {
        let issuer = match self.recall(token)? {
            Some(known) => return Ok(known),
            // Never a JWT, whatever stands in it.
            None if caller_keys::is_one(token) => None,
            None => self.provider.as_ref().and_then(|_| oidc::issuer_of(token)),
        };
        let identity = match (&self.provider, issuer) {
            (Some(provider), Some(issuer)) if provider.is_named(&issuer) => {
                let signed_in = Box::pin(provider.verify(token)).await?;
                Identity {
                    credential: self.credentials.hash_one((&*signed_in.user, &*signed_in.id)),
                    user: signed_in.user,
                    scopes: signed_in.scopes,
                    issued: signed_in.issued,
                    expires: Some(signed_in.expires),
                    key: signed_in.key,
                    id: signed_in.id,
                    bridge: None,
                    rate: None,
                    groups: signed_in.groups,
                }
            }
            (_, issuer) => self.decide(token).map_err(|denied| match denied {
                Denied::Algorithm | Denied::Signature if issuer.is_some() => Denied::Issuer,
                denied => denied,
            })?,
        };
        self.admit(token, identity)
    }

    /// Whose the token is, if it was verified before and still stands.
    fn recall(&self, token: &str) -> Result<Option<Identity>, Denied> {
        if token.len() > LONGEST {
            return Err(Denied::TooLong);
        }
        let now = now();
        let mut verified = self.lock();
        let Some(known) = verified.get_mut(token) else {
            return Ok(None);
        };
        if known.identity.is_over(now) {
            return Err(Denied::Expired);
        }
        self.stands(&known.identity)?;
        known.used = now;
        Ok(Some(known.identity.clone()))
    }

    /// Remembers a token that was verified, if nothing stands against it.
    fn admit(&self, token: &str, identity: Identity) -> Result<Identity, Denied> {
        self.stands(&identity)?;
        let mut verified = self.lock();
        if verified.len() >= REMEMBERED {
            verified.retain(|_, one| one.used > one.told);
        }
        if verified.len() >= REMEMBERED {
            verified.clear();
        }
        let known = Verified {
            identity: identity.clone(),
            used: now(),
            told: 0,
        };
        verified.insert(token.to_owned(), known);
        Ok(identity)
    }

    /// Whose a key or a token of the relay itself is.
    fn decide(&self, token: &str) -> Result<Identity, Denied> {
        if caller_keys::is_one(token) {
            self.look_up(token)
        } else {
            self.verify_signature(token)
        }
    }

    fn look_up(&self, key: &str) -> Result<Identity, Denied> {
        let rules = self.rules.borrow().clone();
        if rules.denials.is_none() {
            return Err(Denied::NotKnownYet);
        }
        let key = rules.callers.find(key).ok_or(Denied::UnknownKey)?;
        let identity = key.identity(self.credentials.hash_one((&key.user, &key.id)));
        if identity.is_over(now()) {
            Err(Denied::Expired)
        } else {
            Ok(identity)
        }
    }

    fn verify_signature(&self, token: &str) -> Result<Identity, Denied> {
        let keys = Arc::clone(&self.rules.borrow().keys);
        let mut outcome = Err(Denied::Signature);
        for key in &keys.accepted {
            let decoded = jsonwebtoken::decode::<Claims>(token, &key.verifying, &self.validation);
            outcome = decoded
                .map(|decoded| (decoded.claims, key.id))
                .map_err(|error| denied(error.kind()));
            if outcome != Err(Denied::Signature) {
                break;
            }
        }
        let (claims, key) = outcome?;
        if !is_user(&claims.sub) {
            return Err(Denied::NoUser);
        }
        let id = match claims.jti.filter(|id| is_id(id)) {
            Some(id) => id.into(),
            None => made_id(token),
        };
        Ok(Identity {
            scopes: Scopes::parse(claims.scope.as_deref()),
            issued: claims.iat,
            expires: claims.exp,
            key,
            bridge: None,
            rate: None,
            groups: None,
            credential: self.credentials.hash_one((&claims.sub, &id)),
            id,
            user: claims.sub.into(),
        })
    }

    /// The id of a user's bridge: the same for ever, and for nobody else.
    pub fn bridge_id(&self, user: &str, client_id: &str) -> String {
        let mut context = hmac::Context::with_key(&self.bridge_ids);
        // The length keeps two pairs from reading the same.
        context.update(&(user.len() as u64).to_be_bytes());
        context.update(user.as_bytes());
        context.update(client_id.as_bytes());
        URL_SAFE_NO_PAD.encode(&context.sign().as_ref()[..15])
    }

    /// What is kept of a code: with the secret that signs, then with the one before it. A code is short: without the secret
    /// nobody finds it by trying, though they have the database.
    pub fn code_hashes(&self, code: &str) -> Vec<String> {
        let keys = Arc::clone(&self.rules.borrow().keys);
        let hash = |key: &Key| URL_SAFE_NO_PAD.encode(hmac::sign(&key.codes, code.as_bytes()));
        keys.accepted.iter().map(hash).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Verified>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

fn denied(kind: &ErrorKind) -> Denied {
    match kind {
        ErrorKind::ExpiredSignature => Denied::Expired,
        ErrorKind::ImmatureSignature => Denied::NotYetValid,
        ErrorKind::InvalidSignature => Denied::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => Denied::Algorithm,
        ErrorKind::Json(error) if error.to_string().contains("`sub`") => Denied::NoUser,
        ErrorKind::Json(error) if error.to_string().contains("unknown variant") => Denied::Algorithm,
        _ => Denied::Malformed,
    }
}

/// Whether somebody may be called so.
pub fn is_user(name: &str) -> bool {
    !name.is_empty() && name.len() <= LONGEST_USER && !name.chars().any(char::is_control)
}

/// Whether a token's own id is one that can be kept and shown.
fn is_id(id: &str) -> bool {
    (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The id of a token that says none; nothing of the token can be learnt from it.
fn made_id(token: &str) -> Arc<str> {
    let hash = digest::digest(&digest::SHA256, token.as_bytes());
    URL_SAFE_NO_PAD.encode(&hash.as_ref()[..12]).into()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}
