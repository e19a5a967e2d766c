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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// All shares, by the owner and then by the id of the bridge.
#[derive(Debug, Default)]
pub struct Shares(HashMap<Arc<str>, HashMap<Arc<str>, Whom>>);

/// All with whom one bridge is shared.
#[derive(Debug, Default)]
struct Whom {
    users: HashSet<Box<str>>,
    groups: HashSet<Box<str>>,
    all: bool,
}

/// By what a bridge is shared with a caller; what is meant for the caller more than for others comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// By the caller's name.
    User,
    /// By a group of the caller.
    Group,
    /// It is shared with all.
    All,
}

/// A bridge that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// Whose it is.
    pub owner: Arc<str>,
    /// Its id.
    pub bridge: Arc<str>,
}

impl FromIterator<(Shared, With)> for Shares {
    fn from_iter<T: IntoIterator<Item = (Shared, With)>>(shares: T) -> Self {
        let mut all = Self::default();
        for (Shared { owner, bridge }, with) in shares {
            let whom = all.0.entry(owner).or_default().entry(bridge).or_default();
            match with {
                With::User(name) => drop(whom.users.insert(name)),
                With::Group(name) => drop(whom.groups.insert(name)),
                With::All => whom.all = true,
            }
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
    groups: Option<Groups>,
    /// A key for one bridge reaches none of others.
    is_limited: bool,
}

impl View {
    pub(super) fn new(rules: &Rules, identity: &Identity) -> Self {
        let groups = identity.groups.as_ref();
        Self {
            shares: Arc::clone(&rules.shares),
            denials: rules.denials.clone(),
            user: Arc::clone(&identity.user),
            groups: groups.or_else(|| rules.memberships.of(&identity.user)).cloned(),
            is_limited: identity.bridge.is_some(),
        }
    }

    /// Whether this bridge of that owner is shared with the caller.
    pub fn covers(&self, owner: &str, bridge: &str) -> bool {
        self.nearness(owner, bridge).is_some()
    }

    /// By what this bridge of that owner is shared with the caller, if it is.
    pub fn nearness(&self, owner: &str, bridge: &str) -> Option<Nearness> {
        let whom = self.shares.0.get(owner)?.get(bridge)?;
        if self.is_limited || !self.counts(owner) {
            return None;
        }
        let mut groups = self.groups.iter().flat_map(|groups| groups.iter());
        if whom.users.contains(&*self.user) {
            Some(Nearness::User)
        } else if groups.any(|group| whom.groups.contains(group)) {
            Some(Nearness::Group)
        } else {
            whom.all.then_some(Nearness::All)
        }
    }

    /// All who share anything with anybody.
    pub fn owners(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.shares.0.keys()
    }

    /// Whether this is one of them.
    pub fn is_owner(&self, user: &str) -> bool {
        self.shares.0.contains_key(user)
    }

    /// An owner who is not let in shares nothing, and nobody anything with themselves.
    fn counts(&self, owner: &str) -> bool {
        let is_disabled = self.denials.as_ref().is_some_and(|denials| denials.is_disabled(owner));
        *self.user != *owner && !is_disabled
    }
}

impl Tokens {
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
    use futures_util::FutureExt;

    use super::*;
    use crate::relay::auth::Scopes;
    use crate::relay::auth::caller_keys::CallerKeys;
    use crate::relay::auth::denials::Removal;

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

    #[test]
    fn what_is_shared_by_name_is_nearer_and_a_disabled_owner_shares_nothing() {
        let tokens = Tokens::new(&[0; 32]);
        let shared = |bridge: &str, with: With| {
            let (owner, bridge) = ("ann".into(), bridge.into());
            (Shared { owner, bridge }, with)
        };
        let both = [With::All, With::User("bob".into())].map(|with| shared("named", with));
        let staff = shared("staff", With::Group("staff".into()));
        let shares = [staff, shared("open", With::All)].into_iter().chain(both).collect();
        let said = [("bob".into(), (groups(["staff"].into_iter()), now()))]
            .into_iter()
            .collect();
        tokens.follow(CallerKeys::default(), shares, said, Denials::default());
        let view = |user: &str, only: Option<&str>| {
            let token = tokens.issue(user, Scopes::parse(None), None).unwrap();
            let identity = tokens.identify(token.expose()).now_or_never().unwrap().unwrap();
            let bridge = only.map(Into::into);
            tokens.shared_with(&Identity { bridge, ..identity })
        };
        let near = |view: &View| ["named", "staff", "open", "other"].map(|bridge| view.nearness("ann", bridge));
        let (user, group, all) = (Some(Nearness::User), Some(Nearness::Group), Some(Nearness::All));
        assert_eq!(near(&view("bob", None)), [user, group, all, None]);
        assert_eq!(near(&view("carl", None)), [all, None, all, None]);
        for view in [view("ann", None), view("bob", Some("den"))] {
            assert_eq!(near(&view), [None; 4]);
        }
        let is_disabled = |disabled| {
            let removal = Removal {
                disabled,
                deleted: None,
            };
            Denials::new(HashSet::new(), [("ann".into(), removal)].into_iter().collect())
        };
        for disabled in [true, false] {
            tokens.deny(Some(is_disabled(disabled)));
            assert_eq!(view("bob", None).covers("ann", "named"), !disabled);
        }
    }
}
