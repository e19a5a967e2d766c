//! Bridges by whose they are and whether somebody else may reach them: what a choice among more than one's own needs.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Away, EXPECTED_BACK, Registry, Session, User};
use crate::relay::auth::shares::View;

/// Bridges of others that one caller sees at once.
const MOST_SHARED: usize = 256;

impl Registry {
    /// Expects a bridge back that was here before this relay started.
    pub fn expect(&self, user: &str, bridge_id: &str, name: String) {
        let mut users = self.lock();
        let user = users.entry(user.into()).or_default();
        let is_here = user.sessions.iter().any(|s| &*s.identity.bridge_id == bridge_id);
        if !is_here && user.away.len() < self.bridges_per_user {
            user.away.push(Away {
                bridge_id: bridge_id.into(),
                name,
                since: Instant::now(),
            });
        }
    }

    /// Whether the user has a bridge of this name, here or expected back.
    pub fn has_named(&self, user: &str, name: &str) -> bool {
        let users = self.lock();
        users.get(user).is_some_and(|user| {
            user.sessions.iter().any(|s| s.identity.name == name) || user.awaits(|_, other| other == name)
        })
    }

    /// Whether one of the user's bridges is expected back.
    pub fn awaits(&self, user: &str) -> bool {
        self.lock().get(user).is_some_and(|user| user.awaits(|_, _| true))
    }

    /// Whether the owner shares a bridge of this name with the caller, here or expected back.
    pub fn shares_named(&self, view: &View, owner: &str, name: &str) -> bool {
        let is_meant = |id: &str, other: &str| other == name && view.covers(owner, id);
        self.lock().get(owner).is_some_and(|owner| {
            let mut here = owner.sessions.iter().filter(|s| !s.identity.ephemeral);
            here.any(|s| is_meant(&s.identity.bridge_id, &s.identity.name)) || owner.awaits(is_meant)
        })
    }

    /// Whether a bridge that is shared with the caller is expected back.
    pub fn awaits_shared(&self, view: &View) -> bool {
        let users = self.lock();
        let mut shared = view.bridges();
        shared.any(|shared| {
            let owner = users.get(&shared.owner);
            owner.is_some_and(|owner| owner.awaits(|id, _| id == &*shared.bridge))
        })
    }

    /// The bridge of this name that the owner shares with the caller.
    pub fn pick_shared(&self, view: &View, owner: &str, name: &str) -> Option<Arc<Session>> {
        let users = self.lock();
        let mut sessions = users.get(owner)?.sessions.iter().filter(|s| s.is_for_others());
        let found = sessions.rfind(|s| s.identity.name == name && view.covers(owner, &s.identity.bridge_id));
        found.map(Arc::clone)
    }

    /// What is shared with the caller, the first to get work first.
    pub fn shared(&self, view: &View) -> Vec<Arc<Session>> {
        let users = self.lock();
        let mut seen = HashSet::new();
        let mut list = Vec::new();
        for shared in view.bridges() {
            let sessions = users.get(&shared.owner).map(|owner| owner.sessions.as_slice());
            let ours = sessions
                .unwrap_or_default()
                .iter()
                .filter(|s| s.is_for_others() && s.identity.bridge_id == shared.bridge && seen.insert(s.connection_id));
            list.extend(ours.cloned());
        }
        list.sort_by_key(|s| (Reverse(s.identity.priority), s.since, s.connection_id));
        list.truncate(MOST_SHARED);
        list
    }
}

impl Session {
    fn is_for_others(&self) -> bool {
        self.takes_work() && !self.identity.ephemeral
    }
}

impl User {
    /// Whether a bridge is expected back for whose id and name this holds.
    pub(super) fn awaits(&self, is_meant: impl Fn(&str, &str) -> bool) -> bool {
        let away = |away: &Away| away.since.elapsed() < EXPECTED_BACK && is_meant(&away.bridge_id, &away.name);
        // Those that are about to leave: stopping, or with a link that ended and is not cleared away yet.
        let leaving = |s: &Arc<Session>| {
            let bridge = &s.identity;
            !bridge.ephemeral && !s.takes_work() && is_meant(&bridge.bridge_id, &bridge.name)
        };
        self.away.iter().any(away) || self.sessions.iter().any(leaving)
    }
}
