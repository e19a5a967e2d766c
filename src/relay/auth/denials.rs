//! Who is not let in although a token is signed and in time: revoked tokens, disabled and deleted users. In memory; the store keeps
//! them.

use std::collections::{HashMap, HashSet};

use super::Identity;

/// Everything that is held against anybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Denials {
    tokens: HashSet<Box<str>>,
    users: HashMap<Box<str>, Removal>,
}

/// What is held against a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// No token counts until the user is enabled again.
    pub disabled: bool,
    /// Tokens issued until then do not count, seconds since 1970.
    pub deleted: Option<u64>,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The token was taken back.
    Revoked,
    /// The user is not let in for now.
    Disabled,
    /// The user was deleted after the token was issued.
    Deleted,
}

impl Denials {
    /// These tokens and these users.
    pub fn new(tokens: HashSet<Box<str>>, users: HashMap<Box<str>, Removal>) -> Self {
        Self { tokens, users }
    }

    /// Whether a token of this id is refused.
    pub fn has_token(&self, id: &str) -> bool {
        self.tokens.contains(id)
    }

    /// What stands against a credential.
    pub fn of(&self, identity: &Identity) -> Option<Denial> {
        if self.has_token(&identity.id) {
            return Some(Denial::Revoked);
        }
        let removal = self.users.get(&*identity.user)?;
        let deleted = |end| identity.issued.is_none_or(|issued| issued <= end);
        if removal.deleted.is_some_and(deleted) {
            Some(Denial::Deleted)
        } else {
            removal.disabled.then_some(Denial::Disabled)
        }
    }

    /// Whether the user is not let in for now.
    pub fn is_disabled(&self, user: &str) -> bool {
        self.users.get(user).is_some_and(|removal| removal.disabled)
    }

    /// Whether the user was deleted at that second or later.
    pub fn is_deleted_since(&self, user: &str, second: u64) -> bool {
        let removal = self.users.get(user);
        removal
            .and_then(|removal| removal.deleted)
            .is_some_and(|end| end >= second)
    }
}
