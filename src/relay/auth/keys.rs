//! The secrets that the relay's own tokens are signed with: one signs, and during a rotation the one before it is accepted too. And
//! what each kind of credential is vouched for by.

use aws_lc_rs::hmac;
use jsonwebtoken::{DecodingKey, EncodingKey};

/// What vouches for a credential; says nothing of a secret itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyId {
    /// A secret of the relay, which signed it.
    Secret([u8; 8]),
    /// A key of the provider of sign-in, which signed it.
    Provider([u8; 8]),
    /// That the store has it: it is a key for callers, which nothing signs.
    Caller,
}

/// The secrets in use.
pub struct Keys {
    pub(super) signing: EncodingKey,
    /// The one that signs, then the one before it.
    pub(super) accepted: Vec<Key>,
}

pub(super) struct Key {
    pub(super) id: KeyId,
    pub(super) verifying: DecodingKey,
    /// What codes are kept with.
    pub(super) codes: hmac::Key,
}

impl Keys {
    /// The secret that signs, and the one before it while that is still accepted; 32 octets each at least (RFC 7518 §3.2), which
    /// `cmd::secret` checks.
    pub fn new(secret: &[u8], previous: Option<&[u8]>) -> Self {
        let key = |secret: &[u8]| Key {
            id: KeyId::of(secret),
            verifying: DecodingKey::from_secret(secret),
            codes: hmac::Key::new(hmac::HMAC_SHA256, derive(secret, b"tunnel pairing code").as_ref()),
        };
        Self {
            signing: EncodingKey::from_secret(secret),
            accepted: std::iter::once(secret).chain(previous).map(key).collect(),
        }
    }

    /// Whether tokens of this secret are accepted.
    pub(super) fn accept(&self, id: KeyId) -> bool {
        self.accepted.iter().any(|key| key.id == id)
    }

    /// Whether this secret is the one that signs.
    pub(super) fn sign_with(&self, id: KeyId) -> bool {
        self.accepted.first().is_some_and(|key| key.id == id)
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl KeyId {
    fn of(secret: &[u8]) -> Self {
        Self::Secret(first(derive(secret, b"tunnel key id").as_ref()))
    }

    /// The key of a provider with this hash.
    pub(super) fn of_provider(hash: &[u8]) -> Self {
        Self::Provider(first(hash))
    }
}

fn first(hash: &[u8]) -> [u8; 8] {
    let mut id = [0; 8];
    id.copy_from_slice(&hash[..8]);
    id
}

/// The key that the ids of bridges are made with. It outlives the secret that it was first derived from.
pub struct BridgeKey(Vec<u8>);

impl BridgeKey {
    /// The key that belongs to a secret.
    pub fn of(secret: &[u8]) -> Self {
        Self(derive(secret, b"tunnel bridge id").as_ref().to_vec())
    }

    /// One that was kept; none if these are not the octets of such a key.
    pub fn from_octets(octets: Vec<u8>) -> Option<Self> {
        (octets.len() == hmac::HMAC_SHA256.digest_algorithm().output_len()).then_some(Self(octets))
    }

    /// To be kept, for the owner of the relay alone.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl std::fmt::Debug for BridgeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BridgeKey")
    }
}

/// Another purpose, another key: what is made with it must say nothing of the secret that signs.
fn derive(secret: &[u8], purpose: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), purpose)
}
