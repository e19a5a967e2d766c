//! A double of an OpenID Connect provider that does what a test wants: it changes its keys, goes away, and signs whatever it is given.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, LOCATION};
use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tunnel::relay::auth::oidc::rules::Rules;
use tunnel::relay::auth::oidc::{Settings, Timing};
use tunnel::transport::dial::Dialer;
use tunnel::transport::{Body, full};

use super::Upstream;

/// For whom the tokens of the double are.
pub(crate) const AUDIENCE: &str = "https://relay.example.com";

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A key that the provider signs with.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) kid: String,
    pair: Arc<Pair>,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Key {
    fn new(kid: &str, pair: Pair) -> Self {
        Self {
            kid: kid.to_owned(),
            pair: Arc::new(pair),
        }
    }

    pub(crate) fn rsa(kid: &str) -> Self {
        Self::new(kid, Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    pub(crate) fn ec(kid: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
        Self::new(kid, Pair::Ec(pair.unwrap()))
    }

    pub(crate) fn ed(kid: &str) -> Self {
        Self::new(kid, Pair::Ed(Ed25519KeyPair::generate().unwrap()))
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match &*self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::Ec(_) => "ES256",
            Pair::Ed(_) => "EdDSA",
        }
    }

    /// The public half, as everybody may have it.
    pub(crate) fn public(&self) -> &[u8] {
        match &*self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref(),
            Pair::Ec(pair) => pair.public_key().as_ref(),
            Pair::Ed(pair) => pair.public_key().as_ref(),
        }
    }

    fn jwk(&self) -> Value {
        let text = |octets: &[u8]| URL_SAFE_NO_PAD.encode(octets);
        let public = self.public();
        match &*self.pair {
            // Two numbers in DER, of 2048 bits and of three octets.
            Pair::Rsa(_) => json!({
                "kty": "RSA", "kid": self.kid, "use": "sig",
                "n": text(&public[9..265]), "e": text(&public[267..270]),
            }),
            Pair::Ec(_) => json!({
                "kty": "EC", "crv": "P-256", "kid": self.kid, "alg": "ES256",
                "x": text(&public[1..33]), "y": text(&public[33..65]),
            }),
            Pair::Ed(_) => json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": text(public)}),
        }
    }

    /// A token with this header and these claims, whatever they are.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let text = unsigned(header, claims);
        let random = SystemRandom::new();
        let signature = match &*self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let padding = &signature::RSA_PKCS1_SHA256;
                pair.sign(padding, &random, text.as_bytes(), &mut signature).unwrap();
                signature
            }
            Pair::Ec(pair) => pair.sign(&random, text.as_bytes()).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(text.as_bytes()).as_ref().to_vec(),
        };
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A token with these claims, and the header that belongs to this key.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(
            &json!({"alg": self.algorithm(), "typ": "at+jwt", "kid": self.kid}),
            claims,
        )
    }
}

/// The part of a token that is signed.
pub(crate) fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// What the provider does.
#[derive(Default)]
struct Doing {
    keys: Vec<Key>,
    away: bool,
    /// Another name than its own that it gives itself.
    name: Option<String>,
    /// Where it sends those who ask for its keys.
    elsewhere: Option<String>,
    userinfo: Value,
    /// Where it says that it tells of users, if elsewhere than it does.
    userinfo_at: Option<String>,
    introduced: usize,
    fetches: usize,
    asked: usize,
}

pub(crate) struct Provider {
    upstream: Upstream,
    doing: Arc<Mutex<Doing>>,
}

impl Provider {
    pub(crate) async fn start(keys: &[Key]) -> Self {
        let doing = Arc::new(Mutex::new(Doing {
            keys: keys.to_vec(),
            ..Doing::default()
        }));
        let shared = Arc::clone(&doing);
        let upstream = Upstream::serving(move |request| {
            let answer = shared.lock().unwrap().answer(&request);
            async move { answer }
        })
        .await;
        Self { upstream, doing }
    }

    pub(crate) fn issuer(&self) -> String {
        format!("http://{}/realm", self.upstream.address)
    }

    /// How a relay trusts it: everybody may come in, and keys hold long.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            issuer: self.issuer().parse().unwrap(),
            audiences: vec![AUDIENCE.to_owned()],
            client_id: "page".to_owned(),
            device_client_id: None,
            rules: Rules::All,
            user_claim: "sub".to_owned(),
            dialer: Dialer::new(None, Duration::from_secs(5)).unwrap(),
            timing: Timing::default(),
        }
    }

    /// What its tokens say of somebody.
    pub(crate) fn claims(&self, sub: &str) -> Value {
        json!({
            "iss": self.issuer(), "sub": sub, "aud": AUDIENCE, "client_id": "page",
            "iat": now(), "exp": now() + 3600, "scope": "openid email",
        })
    }

    /// A token of its first key.
    pub(crate) fn token(&self, sub: &str) -> String {
        self.token_with(sub, &json!({}))
    }

    /// The same with these claims besides, or instead.
    pub(crate) fn token_with(&self, sub: &str, more: &Value) -> String {
        let mut claims = self.claims(sub);
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let key = self.doing.lock().unwrap().keys[0].clone();
        key.token(&claims)
    }

    pub(crate) fn set_keys(&self, keys: &[Key]) {
        self.doing.lock().unwrap().keys = keys.to_vec();
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.doing.lock().unwrap().away = away;
    }

    pub(crate) fn set_name(&self, name: &str) {
        self.doing.lock().unwrap().name = Some(name.to_owned());
    }

    pub(crate) fn send_elsewhere(&self, url: &str) {
        self.doing.lock().unwrap().elsewhere = Some(url.to_owned());
    }

    pub(crate) fn set_userinfo(&self, told: Value) {
        self.doing.lock().unwrap().userinfo = told;
    }

    pub(crate) fn tell_userinfo_at(&self, url: &str) {
        self.doing.lock().unwrap().userinfo_at = Some(url.to_owned());
    }

    /// How often it was asked what it is.
    pub(crate) fn introduced(&self) -> usize {
        self.doing.lock().unwrap().introduced
    }

    /// How often its keys were fetched.
    pub(crate) fn fetches(&self) -> usize {
        self.doing.lock().unwrap().fetches
    }

    /// How often it was asked who somebody is.
    pub(crate) fn asked(&self) -> usize {
        self.doing.lock().unwrap().asked
    }
}

impl Doing {
    fn answer(&mut self, request: &Request<Incoming>) -> Response<Body> {
        let host = request.headers()["host"].to_str().unwrap();
        let base = format!("http://{host}/realm");
        let status = |status: u16| Response::builder().status(status);
        let empty = || full("");
        match request.uri().path() {
            "/realm/.well-known/openid-configuration" => self.introduced += 1,
            "/realm/userinfo" => self.asked += 1,
            _ => {}
        }
        if self.away {
            return status(503).body(empty()).unwrap();
        }
        let answer = match request.uri().path() {
            "/realm/.well-known/openid-configuration" => json!({
                "issuer": self.name.as_deref().unwrap_or(&base),
                "jwks_uri": format!("{base}/jwks"),
                "userinfo_endpoint": self.userinfo_at.clone().unwrap_or_else(|| format!("{base}/userinfo")),
                "authorization_endpoint": format!("{base}/authorize"),
                "token_endpoint": format!("{base}/token"),
                // Not where people are to be sent from here.
                "end_session_endpoint": "http://login.example.com/logout",
            }),
            "/realm/jwks" => {
                self.fetches += 1;
                if let Some(url) = &self.elsewhere {
                    return status(302).header(LOCATION, url).body(empty()).unwrap();
                }
                let shared = json!({"kty": "oct", "kid": "shared", "k": URL_SAFE_NO_PAD.encode([7; 32])});
                let keys: Vec<_> = self.keys.iter().map(Key::jwk).chain([shared]).collect();
                json!({"keys": keys})
            }
            "/realm/userinfo" if request.headers().contains_key(AUTHORIZATION) => {
                if self.userinfo.is_null() {
                    return status(403).body(empty()).unwrap();
                }
                self.userinfo.clone()
            }
            _ => return status(404).body(empty()).unwrap(),
        };
        Response::new(full(answer.to_string()))
    }
}
