//! Who listens, by what they may see. One task looks at the same bridges, once a second, as long as anybody does.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::snapshot::{self, Snapshot};
use crate::relay::Relay;
use crate::relay::auth::Identity;
use crate::relay::auth::shares::Groups;
use crate::relay::registry::{Counter, InFlight};

/// Between two looks: so often a listener is told something at the most.
const LOOK: Duration = Duration::from_secs(1);
/// Who listens as one user at once.
const MOST_LISTENERS: usize = 16;

/// All to which somebody listens.
#[derive(Debug, Default)]
pub struct Feeds(Mutex<HashMap<Audience, Feed>>);

/// What decides which bridges somebody sees.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Audience {
    user: Arc<str>,
    bridge: Option<Arc<str>>,
    groups: Option<Groups>,
}

impl Audience {
    fn of(identity: &Identity) -> Self {
        Self {
            user: Arc::clone(&identity.user),
            bridge: identity.bridge.clone(),
            groups: identity.groups.clone(),
        }
    }
}

#[derive(Debug)]
struct Feed {
    newest: watch::Sender<Arc<Snapshot>>,
    listeners: Arc<Counter>,
}

/// One who listens; dropping it is the end of that.
pub(super) struct Listener {
    newest: watch::Receiver<Arc<Snapshot>>,
    /// What it was told.
    told: Option<Arc<Snapshot>>,
    _counted: InFlight,
}

impl Feeds {
    /// Lets one more listen to what this caller sees, if not too many of the user do.
    pub(super) fn join(&self, relay: &Arc<Relay>, identity: &Identity) -> Option<Listener> {
        let mut feeds = self.lock();
        let of_user = feeds.iter().filter(|(audience, _)| audience.user == identity.user);
        if of_user.map(|(_, feed)| feed.listeners.count()).sum::<usize>() >= MOST_LISTENERS {
            return None;
        }
        let feed = feeds.entry(Audience::of(identity)).or_insert_with(|| {
            let keeping = keep(Arc::clone(relay), identity.clone());
            relay.shutdown.tracker().spawn(keeping);
            Feed::begin(Snapshot::first(&relay.visible(identity)))
        });
        feed.join()
    }

    /// How many users listen.
    pub fn users(&self) -> usize {
        let feeds = self.lock();
        feeds
            .keys()
            .map(|audience| &audience.user)
            .collect::<HashSet<_>>()
            .len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Audience, Feed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    fn begin(first: Snapshot) -> Self {
        Self {
            newest: watch::Sender::new(Arc::new(first)),
            listeners: Arc::default(),
        }
    }

    fn join(&self) -> Option<Listener> {
        let counted = self.listeners.enter(MOST_LISTENERS)?;
        let mut newest = self.newest.subscribe();
        // Nothing of it was told yet.
        newest.mark_changed();
        Some(Listener {
            newest,
            told: None,
            _counted: counted,
        })
    }
}

/// Looks at what such a caller sees until nobody listens any more.
async fn keep(relay: Arc<Relay>, identity: Identity) {
    let audience = Audience::of(&identity);
    let mut looks = interval_at(Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ends = tokio::select! {
            _ = looks.tick() => false,
            () = relay.shutdown.draining() => true,
        };
        let newest = {
            let mut feeds = relay.feeds.lock();
            match feeds.get(&audience) {
                // Under the lock: who comes now finds this feed, or begins another.
                Some(feed) if !ends && feed.newest.receiver_count() > 0 => feed.newest.clone(),
                _ => {
                    feeds.remove(&audience);
                    return;
                }
            }
        };
        let bridges = relay.visible(&identity);
        newest.send_if_modified(|newest| match newest.next(&bridges) {
            Some(next) => {
                *newest = Arc::new(next);
                true
            }
            None => false,
        });
    }
}

impl Listener {
    /// Waits for something new, and puts it in a line; none once nothing comes any more.
    pub(super) async fn change(&mut self) -> Option<Bytes> {
        loop {
            self.newest.changed().await.ok()?;
            let newest = Arc::clone(&self.newest.borrow_and_update());
            // Of what came and went since the last line there is nothing to tell.
            let line = snapshot::line(self.told.as_deref(), &newest);
            self.told = Some(newest);
            if line.is_some() {
                return line;
            }
        }
    }
}

#[cfg(test)]
impl Feeds {
    /// Where nothing happens, and one who listens there.
    pub(super) fn quiet() -> (Self, Listener) {
        let feed = Feed::begin(Snapshot::first(&[]));
        let listener = feed.join().unwrap();
        let feeds = Self::default();
        let audience = Audience {
            user: "ann".into(),
            bridge: None,
            groups: None,
        };
        feeds.lock().insert(audience, feed);
        (feeds, listener)
    }
}
