//! Who listens, user by user. One task looks at a user's bridges, once a second, as long as anybody does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::snapshot::{self, Snapshot};
use crate::relay::Relay;
use crate::relay::registry::{Counter, InFlight};

/// Between two looks: so often a listener is told something at the most.
const LOOK: Duration = Duration::from_secs(1);
/// Who listens to one user's bridges at once.
const MOST_LISTENERS: usize = 16;

/// The users to whose bridges somebody listens.
#[derive(Debug, Default)]
pub struct Feeds(Mutex<HashMap<Arc<str>, Feed>>);

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
    /// Lets one more listen to the user's bridges, if not too many do.
    pub(super) fn join(&self, relay: &Arc<Relay>, user: &Arc<str>) -> Option<Listener> {
        let mut feeds = self.lock();
        let feed = feeds.entry(Arc::clone(user)).or_insert_with(|| {
            let keeping = keep(Arc::clone(relay), Arc::clone(user));
            relay.shutdown.tracker().spawn(keeping);
            Feed::begin(Snapshot::first(&relay.registry.list(user)))
        });
        feed.join()
    }

    /// Whose bridges are looked at.
    pub fn users(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Feed>> {
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

/// Looks at the user's bridges until nobody listens any more.
async fn keep(relay: Arc<Relay>, user: Arc<str>) {
    let mut looks = interval_at(Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ends = tokio::select! {
            _ = looks.tick() => false,
            () = relay.shutdown.draining() => true,
        };
        let newest = {
            let mut feeds = relay.feeds.lock();
            match feeds.get(&user) {
                // Under the lock: who comes now finds this feed, or begins another.
                Some(feed) if !ends && feed.newest.receiver_count() > 0 => feed.newest.clone(),
                _ => {
                    feeds.remove(&user);
                    return;
                }
            }
        };
        let sessions = relay.registry.list(&user);
        newest.send_if_modified(|newest| match newest.next(&sessions) {
            Some(next) => {
                *newest = Arc::new(next);
                true
            }
            None => false,
        });
    }
}

impl Listener {
    /// Waits for something new, and puts it in a line; `Some(None)` if there is nothing in it for one who may hear of one bridge
    /// only, none once nothing comes any more.
    pub(super) async fn change(&mut self, only: Option<&str>) -> Option<Option<Bytes>> {
        self.newest.changed().await.ok()?;
        let newest = Arc::clone(&self.newest.borrow_and_update());
        let line = snapshot::line(self.told.as_deref(), &newest, only);
        self.told = Some(newest);
        Some(line)
    }
}

#[cfg(test)]
impl Feeds {
    /// Where nothing happens, and one who listens there.
    pub(super) fn quiet() -> (Self, Listener) {
        let feed = Feed::begin(Snapshot::first(&[]));
        let listener = feed.join().unwrap();
        let feeds = Self::default();
        feeds.lock().insert("ann".into(), feed);
        (feeds, listener)
    }
}
