//! Which bridges are shared with whom, and which groups the provider of sign-in last said that a user is in. In memory; the store
//! keeps them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Identity;
use super::denials::Denials;
use super::tokens::{Rules, Tokens, is_user, now};

/// Shares at once.
pub const MOST: usize = 100_000;
/// For so long after the provider said it, a user's groups count for keys and for tokens that say nothing of them; seconds.
pub const REMEMBERED: u64 = 30 * 24 * 3600;
/// Groups of a user that are looked at.
const MOST_GROUPS: usize = 256;

/// The groups of a user.
pub type Groups = Arc<[Box<str>]>;

/// Those groups of a user that can be one, as many as are looked at.
pub fn groups<'a>(names: impl Iterator<Item = &'a str>) -> Groups {
    let mut groups: Vec<Box<str>> = names
        .filter(|name| is_user(name))
        .take(MOST_GROUPS)
        .map(Into::into)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups.into()
}

/// With whom a bridge is shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum With {
    /// This user.
    User(Box<str>),
    /// The members of this group of the provider.
    Group(Box<str>),
    /// Everybody who may come in.
    All,
}

/// Nobody can be named so.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("write user:NAME, group:NAME or all; a name has 1 to 256 characters and no control characters")]
pub struct BadWith;

impl With {
    /// What kind it is, and the name; empty for all.
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::User(name) => ("user", name),
            Self::Group(name) => ("group", name),
            Self::All => ("all", ""),
        }
    }

    /// The same out of its parts.
    pub fn of(kind: &str, name: &str) -> Option<Self> {
        match kind {
            "user" => is_user(name).then(|| Self::User(name.into())),
            "group" => is_user(name).then(|| Self::Group(name.into())),
            "all" => name.is_empty().then_some(Self::All),
            _ => None,
        }
    }
}

impl FromStr for With {
    type Err = BadWith;

    fn from_str(text: &str) -> Result<Self, BadWith> {
        let with = match text.split_once(':') {
            Some((kind @ ("user" | "group"), name)) => Self::of(kind, name),
            _ => (text == "all").then_some(Self::All),
        };
        with.ok_or(BadWith)
    }
}

impl fmt::Display for With {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            ("all", _) => f.write_str("all"),
            (kind, name) => write!(f, "{kind}:{name}"),
        }
    }
}

/// All shares.
#[derive(Debug, Default)]
pub struct Shares {
    with: HashMap<With, Vec<Shared>>,
    bridges: HashMap<Arc<str>, HashSet<With>>,
}

/// A bridge that is shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shared {
    /// Whose it is.
    pub owner: Arc<str>,
    /// Its id.
    pub bridge: Arc<str>,
}

impl FromIterator<(Shared, With)> for Shares {
    fn from_iter<T: IntoIterator<Item = (Shared, With)>>(shares: T) -> Self {
        let mut all = Self::default();
        for (shared, with) in shares {
            let bridge = Arc::clone(&shared.bridge);
            all.bridges.entry(bridge).or_default().insert(with.clone());
            all.with.entry(with).or_default().push(shared);
        }
        all
    }
}

/// What the provider last said of each user's groups.
#[derive(Debug, Default)]
pub struct Memberships(HashMap<Box<str>, (Groups, u64)>);

impl Memberships {
    /// The user's groups, if it is not too long ago that they were said.
    fn of(&self, user: &str) -> Option<&Groups> {
        let (groups, said) = self.0.get(user)?;
        (said.saturating_add(REMEMBERED) > now()).then_some(groups)
    }
}

impl FromIterator<(Box<str>, (Groups, u64))> for Memberships {
    fn from_iter<T: IntoIterator<Item = (Box<str>, (Groups, u64))>>(said: T) -> Self {
        Self(said.into_iter().collect())
    }
}

/// What others share with one caller, at one moment.
#[derive(Debug)]
pub struct View {
    shares: Arc<Shares>,
    denials: Option<Arc<Denials>>,
    user: Arc<str>,
    /// All that the caller is.
    names: Vec<With>,
}

impl View {
    pub(super) fn new(rules: &Rules, identity: &Identity) -> Self {
        let groups = identity
            .groups
            .as_ref()
            .or_else(|| rules.memberships.of(&identity.user));
        let groups = groups.into_iter().flat_map(|groups| groups.iter());
        let is_limited = identity.bridge.is_some();
        let names = [With::All, With::User((&*identity.user).into())]
            .into_iter()
            .chain(groups.map(|group| With::Group(group.clone())));
        Self {
            shares: Arc::clone(&rules.shares),
            denials: rules.denials.clone(),
            user: Arc::clone(&identity.user),
            // A key for one bridge reaches none of others.
            names: names.filter(|_| !is_limited).collect(),
        }
    }

    /// Whether this bridge of that owner is shared with the caller.
    pub fn covers(&self, owner: &str, bridge: &str) -> bool {
        let with = self.shares.bridges.get(bridge);
        self.counts(owner) && with.is_some_and(|with| self.names.iter().any(|name| with.contains(name)))
    }

    /// All bridges that are; one may come twice.
    pub fn bridges(&self) -> impl Iterator<Item = &Shared> {
        let shared = self.names.iter().filter_map(|name| self.shares.with.get(name));
        shared.flatten().filter(|shared| self.counts(&shared.owner))
    }

    /// An owner who is not let in shares nothing, and nobody anything with themselves.
    fn counts(&self, owner: &str) -> bool {
        let is_disabled = self.denials.as_ref().is_some_and(|denials| denials.is_disabled(owner));
        *self.user != *owner && !is_disabled
    }
}

impl Tokens {
    /// Lets callers reach what is shared with them from now on, and nothing else of others.
    pub fn share(&self, shares: Shares, memberships: Memberships) {
        self.rules.send_modify(|rules| {
            rules.shares = Arc::new(shares);
            rules.memberships = Arc::new(memberships);
        });
    }

    /// What others share with the caller.
    pub fn shared_with(&self, identity: &Identity) -> View {
        View::new(&self.rules.borrow(), identity)
    }

    /// Resolves when it may be that something else is shared than when this was called.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut rules = self.rules.subscribe();
        async move {
            // The sender is ours.
            let _ = rules.changed().await;
        }
    }

    /// Resolves when this bridge of somebody else is not shared with the caller any more.
    pub async fn unshared(&self, identity: &Identity, owner: &str, bridge: &str) {
        let mut rules = self.rules.subscribe();
        let is_over = |rules: &Rules| !View::new(rules, identity).covers(owner, bridge);
        // The sender is ours.
        let _ = rules.wait_for(is_over).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_whom_is_read_as_it_is_written() {
        for text in ["user:ann", "user:all", "group:a:b", "all"] {
            assert_eq!(text.parse::<With>().unwrap().to_string(), text);
        }
        for text in ["", "ann", "user:", "group:a\nb", "All", "all:x"] {
            assert_eq!(text.parse::<With>(), Err(BadWith), "{text}");
        }
        for with in [With::User("all".into()), With::All] {
            let (kind, name) = with.parts();
            assert_eq!(With::of(kind, name), Some(with));
        }
    }

    #[test]
    fn groups_are_bounded() {
        let many: Vec<_> = (0..1000).map(|n| n.to_string()).collect();
        assert_eq!(groups(many.iter().map(String::as_str)).len(), MOST_GROUPS);
        let long = "x".repeat(300);
        assert_eq!(
            *groups([long.as_str(), "b", "", "a", "b"].into_iter()),
            ["a".into(), "b".into()]
        );
    }
}
