//! Keys for callers: texts that say nothing and are short enough for a phone. The relay holds the hashes of all that are valid; the
//! store keeps them. A key has the scope `api`, whatever its maker has.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::keys::KeyId;
use super::{Identity, Scopes};
use crate::random;
use crate::relay::rate::Rate;
use crate::token::Secret;

/// Keys that are valid at once.
pub const MOST: usize = 100_000;
/// Every key begins so.
const PREFIX: &str = "tun_";
/// 130 random bits.
const LETTERS: usize = 26;
const ID_LETTERS: usize = 10;

/// A fresh key and the id by which it is listed.
///
/// # Errors
/// When the system gives no random numbers.
pub fn make() -> io::Result<(Secret, String)> {
    let key = format!("{PREFIX}{}", random::letters(LETTERS)?);
    Ok((Secret::new(&key), random::letters(ID_LETTERS)?))
}

/// Whether this is a key, or wants to be one.
pub fn is_one(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// What is kept of a key.
pub fn hash(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

/// A key that is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerKey {
    /// Its id.
    pub id: Arc<str>,
    /// Whose it is.
    pub user: Arc<str>,
    /// The name of the only bridge that it reaches.
    pub bridge: Option<Arc<str>>,
    /// Its own limit.
    pub rate: Option<Rate>,
    /// Seconds since 1970.
    pub issued: u64,
    /// Seconds since 1970; never, if none.
    pub expires: Option<u64>,
}

impl CallerKey {
    /// Whoever has it.
    pub(super) fn identity(&self, credential: u64) -> Identity {
        Identity {
            user: Arc::clone(&self.user),
            scopes: Scopes::API,
            issued: Some(self.issued),
            expires: self.expires,
            key: KeyId::Caller,
            id: Arc::clone(&self.id),
            credential,
            bridge: self.bridge.clone(),
            rate: self.rate,
            groups: None,
        }
    }
}

/// All keys that are valid, and those that ended of late.
#[derive(Clone, Default)]
pub struct CallerKeys {
    by_hash: HashMap<Box<str>, CallerKey>,
    ids: HashSet<Arc<str>>,
}

impl CallerKeys {
    /// The key that reads so.
    pub(super) fn find(&self, text: &str) -> Option<&CallerKey> {
        self.by_hash.get(hash(text).as_str())
    }

    /// Whether the key of this id is among them.
    pub(super) fn has(&self, id: &str) -> bool {
        self.ids.contains(id)
    }
}

impl FromIterator<(Box<str>, CallerKey)> for CallerKeys {
    fn from_iter<T: IntoIterator<Item = (Box<str>, CallerKey)>>(keys: T) -> Self {
        let by_hash: HashMap<_, _> = keys.into_iter().collect();
        let ids = by_hash.values().map(|key| Arc::clone(&key.id)).collect();
        Self { by_hash, ids }
    }
}

impl std::fmt::Debug for CallerKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CallerKeys({})", self.ids.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_has_no_look_alikes_and_is_found_by_its_text_only() {
        let (key, id) = make().unwrap();
        let letters = key.expose().strip_prefix(PREFIX).unwrap();
        assert_eq!(letters.len(), 26);
        assert!(
            letters
                .bytes()
                .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit())
        );
        assert!(!letters.contains(['i', 'l', 'o', 'u']));
        let kept = CallerKey {
            id: id.as_str().into(),
            user: "ann".into(),
            bridge: None,
            rate: None,
            issued: 1,
            expires: None,
        };
        let keys: CallerKeys = [(hash(key.expose()).into(), kept.clone())].into_iter().collect();
        assert_eq!(keys.find(key.expose()), Some(&kept));
        assert_eq!(keys.find(&hash(key.expose())), None);
        assert!(keys.has(&id) && !keys.has("another"));
    }
}
