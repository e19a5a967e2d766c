//! Which bridge is meant, of one's own and of those that others share; each choice at one moment, under one lock.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Away, EXPECTED_BACK, Registry, Session, User};
use crate::relay::auth::shares::{Nearness, View};

/// Bridges of others that one caller sees at once, and those of one owner.
const MOST_SHARED: usize = 256;
const MOST_OF_OWNER: usize = 32;

/// What came of a choice.
#[derive(Debug)]
pub enum Choice {
    /// This one.
    Here(Arc<Session>),
    /// None now, but one is expected back.
    Expected,
    /// None.
    Absent,
}

impl Choice {
    fn of(here: Option<&Arc<Session>>, is_expected: impl FnOnce() -> bool) -> Self {
        match here {
            Some(session) => Self::Here(Arc::clone(session)),
            None if is_expected() => Self::Expected,
            None => Self::Absent,
        }
    }
}

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

    /// The user's own bridge of this name.
    pub fn own(&self, user: &str, name: &str) -> Choice {
        let users = self.lock();
        let user = users.get(user);
        Choice::of(user.and_then(|user| user.named(name)), || {
            user.is_some_and(|user| user.awaits(|_, other| other == name))
        })
    }

    /// The bridge of this name that the owner shares with the caller.
    pub fn of_other(&self, view: &View, owner: &str, name: &str) -> Choice {
        let is_meant = |id: &str, other: &str| other == name && view.covers(owner, id);
        let users = self.lock();
        let user = users.get(owner);
        let here = user.and_then(|user| {
            let mut here = user.sessions.iter().filter(|s| s.is_for_any());
            here.rfind(|s| is_meant(&s.identity.bridge_id, &s.identity.name))
        });
        Choice::of(here, || user.is_some_and(|user| user.awaits(is_meant)))
    }

    /// Where none is named: the best of the user's own, here or expected back; where there is none, of those that are shared with the
    /// caller. Of these, one that is shared by the caller's name goes before one of a group, and that before one for all.
    pub fn any(&self, user: &str, view: &View) -> Choice {
        let users = self.lock();
        let own = users.get(user);
        if let choice @ (Choice::Here(_) | Choice::Expected) = Choice::of(own.and_then(User::best), || {
            own.is_some_and(|own| own.awaits(|_, _| true))
        }) {
            return choice;
        }
        let here = owners(&users, view).flat_map(|(owner, user)| shared_by(owner, user, view));
        let best = here.min_by_key(|(nearness, session)| (*nearness, session.rank()));
        Choice::of(best.map(|(_, session)| session), || {
            owners(&users, view).any(|(owner, user)| user.awaits(|id, _| view.covers(owner, id)))
        })
    }

    /// What is shared with the caller, the first to get work first.
    pub fn shared(&self, view: &View) -> Vec<Arc<Session>> {
        let users = self.lock();
        let mut list = Vec::new();
        for (owner, user) in owners(&users, view) {
            let mut theirs: Vec<_> = shared_by(owner, user, view).collect();
            theirs.sort_by_key(|(nearness, session)| (*nearness, session.rank()));
            list.extend(theirs.into_iter().take(MOST_OF_OWNER));
        }
        list.sort_by_key(|(nearness, session)| (*nearness, session.rank()));
        let first = list.into_iter().take(MOST_SHARED);
        first.map(|(_, session)| Arc::clone(session)).collect()
    }
}

/// Those who share anything and are here or expected back; looks through whichever are fewer, those who share or those who are here.
fn owners<'a>(
    users: &'a HashMap<Arc<str>, User>,
    view: &'a View,
) -> impl Iterator<Item = (&'a str, &'a User)> + use<'a> {
    let by_owner = view.owners().len() < users.len();
    let owners = by_owner.then(|| view.owners().filter_map(|owner| Some((&**owner, users.get(owner)?))));
    let here = (!by_owner).then(|| {
        let here = users.iter().map(|(owner, user)| (&**owner, user));
        here.filter(|(owner, _)| view.is_owner(owner))
    });
    owners.into_iter().flatten().chain(here.into_iter().flatten())
}

fn shared_by<'a>(
    owner: &'a str,
    user: &'a User,
    view: &'a View,
) -> impl Iterator<Item = (Nearness, &'a Arc<Session>)> + use<'a> {
    let here = user.sessions.iter().filter(|s| s.is_for_any());
    here.filter_map(move |s| Some((view.nearness(owner, &s.identity.bridge_id)?, s)))
}

impl User {
    /// Whether a bridge is expected back for whose id and name this holds.
    fn awaits(&self, is_meant: impl Fn(&str, &str) -> bool) -> bool {
        let away = |away: &Away| away.since.elapsed() < EXPECTED_BACK && is_meant(&away.bridge_id, &away.name);
        // Those that are about to leave: stopping, or with a link that ended and is not cleared away yet.
        let leaving = |s: &Arc<Session>| {
            let bridge = &s.identity;
            !bridge.ephemeral && !s.takes_work() && is_meant(&bridge.bridge_id, &bridge.name)
        };
        self.away.iter().any(away) || self.sessions.iter().any(leaving)
    }
}
