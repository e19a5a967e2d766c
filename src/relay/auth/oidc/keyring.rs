//! The provider's keys: one task fetches them, now and then and when a token names one that is not known, but never more often than
//! it may. While the provider is away, those of before go on for a while.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::super::keys::KeyId;
use super::super::refusal::Denied;
use super::claims::Claims;
use super::{Issuer, LEEWAY, PATIENCE, Settings, Timing, denied};
use crate::transport::issuer::{FetchError, Place, discover, json};

/// With which a provider may sign. Each key has one of them, whatever a token says.
pub(super) const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
/// So many keys of a provider are looked at.
const MOST_KEYS: usize = 64;
/// The modulus of an RSA key, octets (RFC 7518 §3.3 asks for 2048 bits at least).
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;
/// The wait after a first failure; each one doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The keys, and who keeps them fresh.
pub(super) struct Keyring {
    state: watch::Sender<State>,
    wanted: Notify,
    timing: Timing,
}

/// What is known of the provider.
#[derive(Default)]
struct State {
    set: Option<(Arc<KeySet>, Instant)>,
    /// Since when the last fetch is over, and how many there were.
    tried: Option<Instant>,
    tries: u64,
    failed: bool,
}

/// What the provider told of itself.
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// Where it tells of its users, if it does.
    pub(super) userinfo: Option<Place>,
    endpoints: Option<Endpoints>,
}

/// Where a web page signs people in: URLs as the provider told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// Where people go.
    pub authorization: String,
    /// Where the page turns what they bring back into tokens.
    pub token: String,
    /// Where they sign out, if they can.
    pub end_session: Option<String>,
}

struct Key {
    id: KeyId,
    kid: Option<String>,
    algorithm: Algorithm,
    verifying: DecodingKey,
}

struct Fetched {
    set: KeySet,
    holds: Option<Duration>,
}

impl Keyring {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            state: watch::Sender::new(State::default()),
            wanted: Notify::new(),
            timing,
        }
    }

    /// The keys, with one in them for a token with this header; waits for them only where they may come.
    ///
    /// # Errors
    /// `UnknownSigner`, `ProviderAway`.
    pub(super) async fn find(&self, header: &Header) -> Result<Arc<KeySet>, Denied> {
        let mut state = self.state.subscribe();
        let tries = {
            let state = state.borrow_and_update();
            match state.usable(&self.timing) {
                Some(set) if set.has(header) => return Ok(set),
                _ if state.failed => return Err(Denied::ProviderAway),
                Some(_) if state.tried.is_some_and(|at| at.elapsed() < self.timing.pause) => {
                    return Err(Denied::UnknownSigner);
                }
                _ => state.tries,
            }
        };
        self.wanted.notify_one();
        // One that waits in vain finds what the others do.
        let _ = timeout(PATIENCE, state.wait_for(|state| state.tries > tries)).await;
        let state = self.state.borrow();
        match state.usable(&self.timing) {
            Some(set) if set.has(header) => Ok(set),
            Some(_) if !state.failed => Err(Denied::UnknownSigner),
            _ => Err(Denied::ProviderAway),
        }
    }

    /// Where people sign in, as the provider told the last time.
    pub(super) fn endpoints(&self) -> Option<Endpoints> {
        let state = self.state.borrow();
        let (set, _) = state.set.as_ref()?;
        set.endpoints.clone()
    }

    /// Fetches for as long as it is polled; tells which keys are accepted before any is used.
    pub(super) async fn keep(&self, settings: &Settings, accepted: impl Fn(Vec<KeyId>)) -> Infallible {
        let mut failures = 0;
        loop {
            let fetched = fetch_keys(settings).await;
            self.tell(settings, &fetched);
            let pause = match &fetched {
                Ok(fetched) => {
                    failures = 0;
                    let holds = fetched.holds.unwrap_or(self.timing.fresh).min(self.timing.fresh);
                    holds.max(self.timing.pause)
                }
                Err(_) => {
                    failures += 1;
                    FIRST_RETRY
                        .saturating_mul(1 << (failures - 1).min(16))
                        .min(self.timing.pause)
                }
            };
            if let Ok(fetched) = &fetched {
                accepted(fetched.set.keys.iter().map(|key| key.id).collect());
            }
            let now = Instant::now();
            self.note(fetched.ok().map(|fetched| Arc::new(fetched.set)), now);
            // Who asked until now has what was fetched.
            let _ = self.wanted.notified().now_or_never();
            let due = now + pause;
            let asked = async {
                self.wanted.notified().await;
                sleep_until(now + self.timing.pause).await;
            };
            tokio::select! {
                () = sleep_until(due) => {}
                () = asked => {}
            }
        }
    }

    fn note(&self, set: Option<Arc<KeySet>>, now: Instant) {
        self.state.send_modify(|state| {
            state.failed = set.is_none();
            state.tries += 1;
            state.tried = Some(now);
            if let Some(set) = set {
                state.set = Some((set, now));
            }
        });
    }

    /// Tells the log what changed.
    fn tell(&self, settings: &Settings, fetched: &Result<Fetched, FetchError>) {
        let issuer = settings.issuer.as_str();
        let state = self.state.borrow();
        match fetched {
            Ok(fetched) if state.failed || state.tries == 0 => {
                tracing::info!(issuer, keys = fetched.set.keys.len(), "sign-in is ready");
            }
            Err(error) if !state.failed && state.set.is_some() => {
                tracing::warn!(issuer, %error, "the sign-in provider is away; its keys of before go on");
            }
            Err(error) if !state.failed => {
                tracing::warn!(issuer, %error, "nobody can sign in yet; the relay's own tokens work, and it goes on trying");
            }
            _ => {}
        }
    }
}

impl State {
    fn usable(&self, timing: &Timing) -> Option<Arc<KeySet>> {
        let (set, since) = self.set.as_ref()?;
        (since.elapsed() < timing.stale).then(|| Arc::clone(set))
    }
}

impl KeySet {
    fn has(&self, header: &Header) -> bool {
        self.candidates(header).next().is_some()
    }

    /// The keys that may have signed a token with this header.
    fn candidates(&self, header: &Header) -> impl Iterator<Item = &Key> {
        let named = |key: &&Key| header.kid.is_none() || header.kid == key.kid;
        self.keys
            .iter()
            .filter(move |key| key.algorithm == header.alg)
            .filter(named)
    }

    /// The claims of a token, if one of the keys signed it, for us and for now; and that key.
    pub(super) fn decode(&self, token: &str, header: &Header, settings: &Settings) -> Result<(Claims, KeyId), Denied> {
        let mut outcome = Err(Denied::UnknownSigner);
        for key in self.candidates(header) {
            let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &key.verifying, &validation(key, settings));
            outcome = decoded
                .map(|decoded| (Claims::new(decoded.claims), key.id))
                .map_err(|error| denied(error.kind()));
            if !matches!(outcome, Err(Denied::Signature)) {
                break;
            }
        }
        outcome
    }

    /// The keys of a JWK set that can be used here; others are passed over.
    fn read(set: JwkSet, userinfo: Option<Place>) -> Self {
        let mut seen = HashSet::new();
        let keys = set.keys.into_iter().take(MOST_KEYS).filter_map(|value| {
            let jwk: Jwk = serde_json::from_value(value).ok()?;
            Key::read(jwk)
        });
        Self {
            keys: keys.filter(|key| seen.insert((key.id, key.kid.clone()))).collect(),
            userinfo,
            endpoints: None,
        }
    }
}

fn validation(key: &Key, settings: &Settings) -> Validation {
    let mut validation = Validation::new(key.algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_audience(&settings.audiences);
    validation.set_issuer(&[settings.issuer.as_str()]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation
}

/// A JWK set (RFC 7517 §5).
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Value>,
}

/// A public key (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Key {
    /// None of one that is not for verifying, or not with one of our algorithms.
    fn read(jwk: Jwk) -> Option<Self> {
        let verifies = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig");
        let may = |ops: &Vec<String>| ops.iter().any(|op| op == "verify");
        if !verifies || !jwk.key_ops.as_ref().is_none_or(may) {
            return None;
        }
        let (algorithm, name, parts) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => (Algorithm::RS256, "RS256", [jwk.n?, jwk.e?]),
            ("EC", Some("P-256")) => (Algorithm::ES256, "ES256", [jwk.x?, jwk.y?]),
            ("OKP", Some("Ed25519")) => (Algorithm::EdDSA, "EdDSA", [jwk.x?, String::new()]),
            _ => return None,
        };
        if jwk.alg.is_some_and(|alg| alg != name) {
            return None;
        }
        let [one, other] = &parts;
        let verifying = match algorithm {
            Algorithm::RS256 => {
                let modulus = URL_SAFE_NO_PAD.decode(one).ok()?;
                MODULUS.contains(&modulus.len()).then_some(())?;
                DecodingKey::from_rsa_components(one, other)
            }
            Algorithm::ES256 => DecodingKey::from_ec_components(one, other),
            _ => DecodingKey::from_ed_components(one),
        };
        let hash = digest::digest(&digest::SHA256, format!("{name} {one} {other}").as_bytes());
        Some(Self {
            id: KeyId::of_provider(hash.as_ref()),
            kid: jwk.kid,
            algorithm,
            verifying: verifying.ok()?,
        })
    }
}

/// What is wanted of what the provider tells of itself (OpenID Connect Discovery §3).
#[derive(Deserialize)]
struct Discovery {
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    end_session_endpoint: Option<String>,
}

impl Discovery {
    /// None where a page cannot sign in, or is to go where it should not.
    fn endpoints(&self, issuer: &Issuer) -> Option<Endpoints> {
        let checked = |url: &Option<String>| url.clone().filter(|url| issuer.place(url).is_ok());
        Some(Endpoints {
            authorization: checked(&self.authorization_endpoint)?,
            token: checked(&self.token_endpoint)?,
            end_session: checked(&self.end_session_endpoint),
        })
    }
}

async fn fetch_keys(settings: &Settings) -> Result<Fetched, FetchError> {
    let (issuer, dialer) = (&settings.issuer, &settings.dialer);
    let told = discover::<Discovery>(dialer, issuer).await?;
    let endpoints = told.endpoints(issuer);
    let place = issuer.place(&told.jwks_uri)?;
    let userinfo = told.userinfo_endpoint.map(|url| issuer.place(&url)).transpose()?;
    let keys = json::<JwkSet>(dialer, &place).await?;
    let set = KeySet {
        endpoints,
        ..KeySet::read(keys.content, userinfo)
    };
    if set.keys.is_empty() {
        let place = place.to_string();
        let what = "key that could verify tokens (RS256, ES256, EdDSA)";
        return Err(FetchError::Lacks { place, what });
    }
    Ok(Fetched { set, holds: keys.holds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_that_are_of_no_use_are_passed_over() {
        let x = URL_SAFE_NO_PAD.encode([7; 32]);
        let n = |octets: usize| URL_SAFE_NO_PAD.encode(vec![0xff; octets]);
        let rsa = json!({"kty": "RSA", "kid": "rsa", "n": n(256), "e": "AQAB"});
        let with = |name: &str, value: Value| {
            let mut key = rsa.clone();
            key[name] = value;
            key
        };
        let set = |keys: Vec<Value>| KeySet::read(JwkSet { keys }, None).keys;
        for (key, algorithm) in [
            (rsa.clone(), Algorithm::RS256),
            (with("use", json!("sig")), Algorithm::RS256),
            (with("key_ops", json!(["verify"])), Algorithm::RS256),
            (json!({"kty": "EC", "crv": "P-256", "x": x, "y": x}), Algorithm::ES256),
            (
                json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": x}),
                Algorithm::EdDSA,
            ),
        ] {
            let keys = set(vec![json!(5), key.clone(), key]);
            assert_eq!(keys.iter().map(|key| key.algorithm).collect::<Vec<_>>(), [algorithm]);
        }
        for key in [
            json!({"kty": "oct", "kid": "shared", "k": x}),
            json!({"kty": "EC", "crv": "P-384", "x": x, "y": x}),
            json!({"kty": "OKP", "crv": "X25519", "x": x}),
            json!({"kty": "RSA", "kid": "no modulus", "e": "AQAB"}),
            with("n", json!(n(128))),
            with("n", json!("not base64!")),
            with("use", json!("enc")),
            with("key_ops", json!(["encrypt"])),
            with("alg", json!("RS512")),
            with("alg", json!("HS256")),
            json!("RSA"),
        ] {
            assert!(set(vec![key.clone()]).is_empty(), "{key}");
        }
    }
}
