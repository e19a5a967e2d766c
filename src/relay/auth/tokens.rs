//! The relay's own tokens: JWTs signed with HS256 (RFC 7519, following RFC 8725: one algorithm, fixed here, never the token's
//! choice).

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use tokio::sync::watch;

use super::denials::{Denial, Denials};
use super::keys::{BridgeKey, Keys};
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

/// Why a token is not accepted; for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// There is none.
    Missing,
    /// It is longer than any token of ours.
    TooLong,
    /// It is no JWT with our claims.
    Malformed,
    /// Its algorithm is not HS256.
    Algorithm,
    /// Somebody else signed it.
    Signature,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// It names no user, or none that could be one.
    NoUser,
    /// Something is held against it or its user.
    Held(Denial),
    /// What is held against whom is not known yet.
    NotKnownYet,
}

impl Denied {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "no token",
            Self::TooLong => "token too long",
            Self::Malformed => "token malformed",
            Self::Algorithm => "token with a wrong algorithm",
            Self::Signature => "token with a wrong signature",
            Self::Expired => "token expired",
            Self::NotYetValid => "token not yet valid",
            Self::NoUser => "token without a proper user",
            Self::Held(Denial::Revoked) => "token revoked",
            Self::Held(Denial::Disabled) => "user disabled",
            Self::Held(Denial::Deleted) => "user deleted",
            Self::NotKnownYet => "the store is not there yet",
        }
    }
}

/// Why no token could be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The user's name cannot stand in a token.
    #[error("a user's name has 1 to 256 characters and no control characters")]
    BadUser,
    /// The system gives no random numbers, or signing failed.
    #[error("the token could not be signed")]
    Signing,
}

/// What decides on a token besides what stands in it.
#[derive(Clone)]
struct Rules {
    keys: Arc<Keys>,
    /// None as long as it is not known.
    denials: Option<Arc<Denials>>,
}

impl Rules {
    fn allow(&self, identity: &Identity) -> Result<(), Denied> {
        if !self.keys.accept(identity.key) {
            return Err(Denied::Signature);
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
    rules: watch::Sender<Rules>,
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
            denials: Some(Arc::default()),
        };
        let mut validation = Validation::new(Algorithm::HS256);
        validation.required_spec_claims.clear();
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.leeway = 0;
        Self {
            rules: watch::Sender::new(rules),
            validation,
            bridge_ids: bridge_ids.hmac(),
            verified: Mutex::default(),
            credentials: RandomState::new(),
        }
    }

    /// Uses these secrets from now on.
    pub fn replace(&self, keys: Keys) {
        self.rules.send_modify(|rules| rules.keys = Arc::new(keys));
    }

    /// Denies these from now on; with none, everybody is put off until it is known whom to deny.
    pub fn deny(&self, denials: Option<Denials>) {
        self.rules.send_modify(|rules| rules.denials = denials.map(Arc::new));
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

    /// Whether the credential was signed with the secret that signs now.
    pub fn is_current(&self, identity: &Identity) -> bool {
        self.rules.borrow().keys.sign_with(identity.key)
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
    /// As for [`Tokens::issue`].
    pub fn renew(&self, identity: &Identity) -> Result<(Secret, Option<u64>), IssueError> {
        let life = identity
            .expires
            .map(|end| Duration::from_secs(end.saturating_sub(identity.issued.unwrap_or_else(now)).max(1)));
        let token = self.sign(&identity.user, identity.scopes, life, identity.id.to_string())?;
        Ok((token, life.map(|life| now().saturating_add(life.as_secs()))))
    }

    /// Checks a token and tells whose it is.
    ///
    /// # Errors
    /// [`Denied`] with the reason.
    pub fn verify(&self, token: &str) -> Result<Identity, Denied> {
        if token.len() > LONGEST {
            return Err(Denied::TooLong);
        }
        let now = now();
        if let Some(known) = self.lock().get_mut(token) {
            if known.identity.expires.is_some_and(|end| end <= now) {
                return Err(Denied::Expired);
            }
            self.stands(&known.identity)?;
            known.used = now;
            return Ok(known.identity.clone());
        }
        let identity = self.verify_signature(token)?;
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
            used: now,
            told: 0,
        };
        verified.insert(token.to_owned(), known);
        Ok(identity)
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

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Scopes = Scopes::BOTH;

    fn tokens() -> Tokens {
        Tokens::new(&[7; 32])
    }

    fn sign(header: &str, claims: &str) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, text.as_bytes()));
        format!("{text}.{signature}")
    }

    #[test]
    fn a_renewed_token_is_the_same_credential_and_another_one_is_not() {
        let tokens = tokens();
        let issue = || tokens.issue("ann", BOTH, Some(Duration::from_secs(60))).unwrap();
        let identity = tokens.verify(issue().expose()).unwrap();
        let (renewed, _) = tokens.renew(&identity).unwrap();
        let renewed = tokens.verify(renewed.expose()).unwrap();
        assert_eq!((&renewed.id, renewed.credential), (&identity.id, identity.credential));
        assert_ne!(tokens.verify(issue().expose()).unwrap().credential, identity.credential);
    }

    #[test]
    fn a_token_says_what_it_was_issued_for() {
        let tokens = tokens();
        let scopes = Scopes {
            bridge: true,
            api: false,
        };
        let token = tokens.issue("ann", scopes, Some(Duration::from_secs(60))).unwrap();
        for _ in 0..2 {
            let identity = tokens.verify(token.expose()).unwrap();
            assert_eq!((&*identity.user, identity.scopes), ("ann", scopes));
            assert_eq!(identity.expires.unwrap() - identity.issued.unwrap(), 60);
        }
        assert_eq!(
            tokens.issue("", BOTH, None).err().map(|e| e.to_string().len() > 10),
            Some(true)
        );
    }

    #[test]
    fn what_is_not_ours_is_denied_with_its_reason() {
        let tokens = tokens();
        let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
        let none = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
            URL_SAFE_NO_PAD.encode("{}")
        );
        let other = Tokens::new(&[8; 32]).issue("ann", BOTH, None).unwrap();
        for (token, reason) in [
            (sign(hs256, r#"{"sub":"ann","exp":1}"#), Denied::Expired),
            (sign(hs256, r#"{"sub":"ann","nbf":99999999999}"#), Denied::NotYetValid),
            (sign(hs256, r#"{"sub":""}"#), Denied::NoUser),
            (sign(hs256, r#"{"sub":"a\nb"}"#), Denied::NoUser),
            (sign(hs256, "{}"), Denied::NoUser),
            (sign(r#"{"alg":"RS256"}"#, r#"{"sub":"ann"}"#), Denied::Algorithm),
            (sign(r#"{"alg":"HS512"}"#, r#"{"sub":"ann"}"#), Denied::Algorithm),
            (none, Denied::Algorithm),
            (other.expose().to_owned(), Denied::Signature),
            ("nonsense".to_owned(), Denied::Malformed),
            ("x".repeat(100 * 1024), Denied::TooLong),
        ] {
            assert_eq!(
                tokens.verify(&token).unwrap_err(),
                reason,
                "{}",
                &token[..20.min(token.len())]
            );
        }
    }

    #[test]
    fn a_remembered_token_ends_all_the_same() {
        let tokens = tokens();
        let token = tokens.issue("ann", BOTH, None).unwrap();
        tokens.verify(token.expose()).unwrap();
        for known in tokens.lock().values_mut() {
            known.identity.expires = Some(1);
        }
        assert_eq!(tokens.verify(token.expose()), Err(Denied::Expired));
    }

    #[tokio::test]
    async fn during_a_rotation_two_secrets_are_accepted_and_one_signs() {
        let (old, new) = ([7; 32], [9; 32]);
        let tokens = tokens();
        let before = tokens.issue("ann", BOTH, None).unwrap();
        let identity = tokens.verify(before.expose()).unwrap();
        let id = tokens.bridge_id("ann", "x");
        tokens.replace(Keys::new(&new, Some(&old)));
        let (fresh, _) = tokens.renew(&tokens.verify(before.expose()).unwrap()).unwrap();
        let renewed = Tokens::new(&new).verify(fresh.expose()).unwrap();
        assert_eq!(&*renewed.user, "ann");
        assert!(!tokens.is_current(&identity) && tokens.is_current(&renewed));
        tokens.verify(fresh.expose()).unwrap();
        let over = tokens.refused(&identity);
        tokio::pin!(over);
        assert!(futures_util::poll!(&mut over).is_pending());
        tokens.replace(Keys::new(&new, None));
        over.await;
        assert_eq!(tokens.verify(before.expose()), Err(Denied::Signature));
        tokens.verify(fresh.expose()).unwrap();
        assert_eq!(tokens.bridge_id("ann", "x"), id);
    }

    #[test]
    fn a_bridge_id_is_of_one_user_and_one_client() {
        let tokens = tokens();
        assert_eq!(tokens.bridge_id("ann", "x"), tokens.bridge_id("ann", "x"));
        assert_ne!(tokens.bridge_id("ann", "x"), tokens.bridge_id("bob", "x"));
        assert_ne!(tokens.bridge_id("ann", "xy"), tokens.bridge_id("annx", "y"));
    }
}
