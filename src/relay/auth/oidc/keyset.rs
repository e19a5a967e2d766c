//! The keys of a provider, as it tells them: which of them can be used here, and which may have signed a token.

use std::collections::HashSet;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::claims::Claims;
use super::{LEEWAY, Settings, denied};
use crate::relay::auth::keys::KeyId;
use crate::relay::auth::refusal::Denied;
use crate::transport::issuer::Place;

/// With which a provider may sign. Each key has one of them, whatever a token says.
pub(super) const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
/// So many keys of a provider are looked at, and so many that it names no more are kept.
const MOST_KEYS: usize = 64;
/// A token is tried with so many keys at the most, where it does not say which.
const MOST_TRIED: usize = 4;
/// The modulus of an RSA key, octets (RFC 7518 §3.3 asks for 2048 bits at least; beyond 4096, verifying costs too much).
const MODULUS: std::ops::RangeInclusive<usize> = 256..=512;

/// What the provider told of itself.
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// Where it tells of its users, if it does.
    pub(super) userinfo: Option<Place>,
    pub(super) endpoints: Option<Endpoints>,
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

#[derive(Clone)]
struct Key {
    id: KeyId,
    kid: Option<String>,
    algorithm: Algorithm,
    verifying: DecodingKey,
    /// Until when it is accepted, where the provider names it no more.
    until: Option<Instant>,
}

impl KeySet {
    pub(super) fn has(&self, header: &Header) -> bool {
        self.candidates(header).next().is_some()
    }

    /// Whether the provider has the key that a token with this header names, be it for another algorithm.
    pub(super) fn names(&self, header: &Header) -> bool {
        let named = |key: &Key| header.kid.is_some() && header.kid == key.kid;
        self.keys.iter().any(|key| key.until.is_none() && named(key))
    }

    /// The keys that may have signed a token with this header. Where the provider has none left, those of before let nobody in.
    fn candidates(&self, header: &Header) -> impl Iterator<Item = &Key> {
        let is_open = self.keys.iter().any(|key| key.until.is_none());
        let named = |key: &&Key| header.kid.is_none() || header.kid == key.kid;
        self.keys
            .iter()
            .filter(move |key| is_open && key.algorithm == header.alg)
            .filter(named)
            .take(MOST_TRIED)
    }

    /// When those are over that the provider names no more.
    pub(super) fn ends(&self) -> impl Iterator<Item = Instant> {
        self.keys.iter().filter_map(|key| key.until)
    }

    pub(super) fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(|key| key.id).collect()
    }

    /// Keeps those of before that are missing here, until their time: where one takes the place of another, nobody is signed out.
    pub(super) fn keep(&mut self, older: &Self, end: Instant, now: Instant) {
        let is_here = |old: &Key| self.keys.iter().any(|key| (key.id, &key.kid) == (old.id, &old.kid));
        let missing = older.keys.iter().filter(|old| !is_here(old)).map(|old| Key {
            until: old.until.or(Some(end)),
            ..old.clone()
        });
        let missing: Vec<_> = missing.filter(|key| key.until > Some(now)).take(MOST_KEYS).collect();
        self.keys.extend(missing);
    }

    /// Those whose time is not over.
    pub(super) fn at(&self, now: Instant) -> Self {
        let goes_on = |key: &&Key| key.until.is_none_or(|end| now < end);
        Self {
            keys: self.keys.iter().filter(goes_on).cloned().collect(),
            userinfo: self.userinfo.clone(),
            endpoints: self.endpoints.clone(),
        }
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
    pub(super) fn read(set: JwkSet, userinfo: Option<Place>, endpoints: Option<Endpoints>) -> Self {
        let mut seen = HashSet::new();
        let keys = set.keys.into_iter().take(MOST_KEYS).filter_map(|value| {
            let jwk: Jwk = serde_json::from_value(value).ok()?;
            Key::read(jwk)
        });
        Self {
            keys: keys.filter(|key| seen.insert((key.id, key.kid.clone()))).collect(),
            userinfo,
            endpoints,
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
pub(super) struct JwkSet {
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
            until: None,
        })
    }
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
        let set = |keys: Vec<Value>| KeySet::read(JwkSet { keys }, None, None).keys;
        for (key, algorithm) in [
            (rsa.clone(), Algorithm::RS256),
            (with("n", json!(n(512))), Algorithm::RS256),
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
            with("n", json!(n(513))),
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
