//! Which bridges are connected, whose they are, and which one gets a request (protocol.md sections 1 and 2). In memory only:
//! nothing here waits for anything but a bridge. Which one is meant is decided in [`choice`]; [`last_hour`] is what a bridge did
//! lately.

mod choice;
pub mod last_hour;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

pub use self::choice::Choice;
use self::last_hour::LastHour;
use crate::transport::{Ending, LONGEST_BRIDGE_NAME, Link};

/// For so long after it was lost, a bridge is expected back.
const EXPECTED_BACK: Duration = Duration::from_secs(60);

/// What a bridge says it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Whose it is.
    pub user: Arc<str>,
    /// The keyed hash of user and client id.
    pub bridge_id: Arc<str>,
    /// Its program, as far as it says.
    pub client: Client,
    /// The name it wishes.
    pub name: String,
    /// Its process.
    pub instance: String,
    /// The higher, the sooner it gets work.
    pub priority: i32,
    /// By name only, and in no list.
    pub ephemeral: bool,
}

/// What a bridge says of its program.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// Its own name of itself.
    pub id: Option<String>,
    /// Its operating system.
    pub platform: Option<String>,
    /// Its version.
    pub version: Option<String>,
}

/// One connected bridge.
pub struct Session {
    /// Who it is; the name is the one it got.
    pub identity: Identity,
    /// Of this connection and no other.
    pub connection_id: u64,
    /// The transport's name, `ws` or `poll`.
    pub transport: &'static str,
    /// Why it is this one, if the bridge said.
    pub reason: Option<String>,
    /// Since when this process of the bridge has been here, over whatever connections.
    pub since: (Instant, SystemTime),
    /// The bridge was here a moment ago, or still is over another connection.
    pub is_return: bool,
    /// What the bridge did lately, over this connection and those before.
    pub last_hour: Arc<LastHour>,
    link: Arc<dyn Link>,
    retired: AtomicBool,
    in_flight: Arc<Counter>,
}

/// Counts what is in flight, and tells when nothing is.
#[derive(Debug, Default)]
pub struct Counter {
    count: AtomicUsize,
    zero: Notify,
}

impl Counter {
    /// One more, if that is not over the limit.
    pub fn enter(self: &Arc<Self>, limit: usize) -> Option<InFlight> {
        self.count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < limit).then_some(count + 1)
            })
            .ok()
            .map(|_| InFlight(Arc::clone(self)))
    }

    /// How many there are now.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Resolves once there are none; look again after it, more may have come.
    pub async fn none(&self) {
        loop {
            let zero = self.zero.notified();
            if self.count() == 0 {
                return;
            }
            zero.await;
        }
    }
}

/// One of what is counted; dropping it counts it off.
#[derive(Debug)]
pub struct InFlight(Arc<Counter>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.zero.notify_waiters();
        }
    }
}

impl Session {
    /// Carries exchanges to the bridge.
    pub fn link(&self) -> &Arc<dyn Link> {
        &self.link
    }

    /// Counts an exchange in, if the bridge takes one more.
    pub fn enter(&self, limit: usize) -> Option<InFlight> {
        self.in_flight.enter(limit)
    }

    /// Exchanges in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.count()
    }

    /// Whether it gets no more work: a newer connection of the same process took over, or the bridge stops.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Resolves once nothing is in flight; look again after it, more may have come.
    pub async fn idle(&self) {
        self.in_flight.none().await;
    }

    /// Resolves once it gets no more work and nothing is in flight on it.
    pub async fn finished(&self) {
        loop {
            let change = self.in_flight.zero.notified();
            if self.is_retired() && self.in_flight() == 0 {
                return;
            }
            change.await;
        }
    }

    /// Which of more than one gets work: the one of the highest priority, then the one here longest.
    fn rank(&self) -> impl Ord + use<> {
        (Reverse(self.identity.priority), self.since, self.connection_id)
    }

    fn takes_work(&self) -> bool {
        !self.is_retired() && self.link.is_alive()
    }

    /// Whether it takes work that does not name it.
    fn is_for_any(&self) -> bool {
        self.takes_work() && !self.identity.ephemeral
    }

    /// Gives it no more work; it ends once nothing is in flight.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.in_flight.zero.notify_waiters();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("identity", &self.identity)
            .field("connection_id", &self.connection_id)
            .finish_non_exhaustive()
    }
}

/// Too many bridges of one user.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// All sessions.
#[derive(Debug)]
pub struct Registry {
    users: Mutex<HashMap<Arc<str>, User>>,
    next_connection: AtomicU64,
    bridges_per_user: usize,
    started: Instant,
    changed: Notify,
}

#[derive(Debug, Default)]
struct User {
    sessions: Vec<Arc<Session>>,
    away: Vec<Away>,
    /// Of bridges that are not here, and did something lately.
    last_hours: Vec<(Arc<str>, Arc<LastHour>)>,
    in_flight: Arc<Counter>,
}

#[derive(Debug)]
struct Away {
    bridge_id: Arc<str>,
    name: String,
    since: Instant,
}

impl Registry {
    /// Nobody is here yet.
    pub fn new(bridges_per_user: usize) -> Self {
        Self {
            users: Mutex::default(),
            next_connection: AtomicU64::new(1),
            bridges_per_user,
            started: Instant::now(),
            changed: Notify::new(),
        }
    }

    /// The name a bridge would get: the one it wishes, or, if another bridge of the user has it, with `-2`, `-3`…
    ///
    /// # Errors
    /// [`Full`] when the user has as many bridges as may be.
    pub fn reserve_name(&self, identity: &Identity) -> Result<String, Full> {
        let users = self.lock();
        let Some(user) = users.get(&identity.user) else {
            return Ok(identity.name.clone());
        };
        user.free_name(identity, self.bridges_per_user)
    }

    /// Adds a session, whose link is ready. Another connection of the same client id gives way: one of the same process
    /// finishes what it has, one of another process is ended.
    ///
    /// # Errors
    /// [`Full`] when the user has as many bridges as may be.
    pub fn insert(
        &self,
        mut identity: Identity,
        transport: &'static str,
        reason: Option<String>,
        link: Arc<dyn Link>,
    ) -> Result<Arc<Session>, Full> {
        let mut users = self.lock();
        let user = users.entry(Arc::clone(&identity.user)).or_default();
        identity.name = user.free_name(&identity, self.bridges_per_user)?;
        let mut since = (Instant::now(), SystemTime::now());
        for older in &user.sessions {
            if older.identity.bridge_id != identity.bridge_id {
                continue;
            }
            if older.identity.instance == identity.instance {
                since = since.min(older.since);
                older.retire();
                older.link.doubt();
            } else {
                older.link.end(Ending::Replaced);
            }
        }
        let is_same = |id: &str| id == &*identity.bridge_id;
        let is_return = user.sessions.iter().any(|older| is_same(&older.identity.bridge_id))
            || user.away.iter().any(|away| is_same(&away.bridge_id));
        let last_hour = user.take_last_hour(&identity.bridge_id);
        let session = Arc::new(Session {
            identity,
            connection_id: self.next_connection.fetch_add(1, Ordering::Relaxed),
            transport,
            reason,
            since,
            is_return,
            last_hour,
            link,
            retired: AtomicBool::new(false),
            in_flight: Arc::default(),
        });
        user.away.retain(|away| away.bridge_id != session.identity.bridge_id);
        user.sessions.push(Arc::clone(&session));
        self.changed.notify_waiters();
        Ok(session)
    }

    /// Removes this very connection, and no successor of it.
    pub fn remove(&self, session: &Session) {
        let mut users = self.lock();
        let Some(user) = users.get_mut(&session.identity.user) else {
            return;
        };
        user.sessions
            .retain(|other| other.connection_id != session.connection_id);
        let here = |id: &str| user.sessions.iter().any(|s| &*s.identity.bridge_id == id);
        user.away.retain(|away| away.since.elapsed() < EXPECTED_BACK);
        if !here(&session.identity.bridge_id) && !session.identity.ephemeral {
            user.away.push(Away {
                bridge_id: Arc::clone(&session.identity.bridge_id),
                name: session.identity.name.clone(),
                since: Instant::now(),
            });
            let over = user.away.len().saturating_sub(self.bridges_per_user);
            user.away.drain(..over);
        }
        if !here(&session.identity.bridge_id) && !session.last_hour.is_empty() {
            let kept = (Arc::clone(&session.identity.bridge_id), Arc::clone(&session.last_hour));
            user.last_hours.push(kept);
            let over = user.last_hours.len().saturating_sub(self.bridges_per_user);
            user.last_hours.drain(..over);
        }
        self.changed.notify_waiters();
    }

    /// Forgets users of whom nothing is left; to be called now and then.
    pub fn sweep(&self) {
        self.lock().retain(|_, user| {
            user.away.retain(|away| away.since.elapsed() < EXPECTED_BACK);
            user.last_hours.retain(|(_, hour)| !hour.is_empty());
            let is_kept = !(user.sessions.is_empty() && user.away.is_empty() && user.last_hours.is_empty());
            is_kept || Arc::strong_count(&user.in_flight) > 1
        });
    }

    /// Counts an exchange of the user in, if one more may be.
    pub fn enter(&self, user: &Arc<str>, limit: usize) -> Option<InFlight> {
        let mut users = self.lock();
        match users.get(user) {
            Some(entry) => entry.in_flight.enter(limit),
            None => users.entry(Arc::clone(user)).or_default().in_flight.enter(limit),
        }
    }

    /// The bridge of the user's own that gets a request: the one named; else the best of those that are not ephemeral.
    pub fn pick(&self, user: &str, wanted: Option<&str>) -> Option<Arc<Session>> {
        let users = self.lock();
        let user = users.get(user)?;
        wanted
            .map_or_else(|| user.best(), |name| user.named(name))
            .map(Arc::clone)
    }

    /// Whether the relay has just started.
    pub fn is_fresh(&self) -> bool {
        self.started.elapsed() < EXPECTED_BACK
    }

    /// Resolves when any bridge came or left since this was called.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// A user's bridges for the eye: no ephemeral ones, no retired ones, the first to get work first.
    pub fn list(&self, user: &str) -> Vec<Arc<Session>> {
        let users = self.lock();
        let sessions = users.get(user).map(|user| user.sessions.as_slice()).unwrap_or_default();
        let mut list: Vec<_> = sessions.iter().filter(|s| s.is_for_any()).cloned().collect();
        list.sort_by_key(|s| s.rank());
        list
    }

    /// Every session.
    pub fn all(&self) -> Vec<Arc<Session>> {
        let users = self.lock();
        users.values().flat_map(|user| &user.sessions).cloned().collect()
    }

    /// Whether a bridge is here over any connection.
    pub fn has(&self, user: &str, bridge_id: &str) -> bool {
        let users = self.lock();
        let sessions = users.get(user).map(|user| user.sessions.as_slice()).unwrap_or_default();
        sessions.iter().any(|s| &*s.identity.bridge_id == bridge_id)
    }

    /// Ends all connections of a bridge; it connects anew.
    pub fn disconnect(&self, bridge_id: &str) {
        for session in self.all() {
            if &*session.identity.bridge_id == bridge_id {
                session.link.end(Ending::GoingAway);
            }
        }
    }

    /// How many bridges take work, over WebSocket and over polling.
    pub fn connected(&self) -> (usize, usize) {
        let users = self.lock();
        let sessions = users
            .values()
            .flat_map(|user| &user.sessions)
            .filter(|s| s.takes_work());
        let (ws, poll): (Vec<_>, Vec<_>) = sessions.map(|s| s.transport).partition(|name| *name == "ws");
        (ws.len(), poll.len())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, User>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl User {
    /// The one of this name.
    fn named(&self, name: &str) -> Option<&Arc<Session>> {
        let mut here = self.sessions.iter().filter(|s| s.takes_work());
        here.rfind(|s| s.identity.name == name)
    }

    /// The first to get work where none is named.
    fn best(&self) -> Option<&Arc<Session>> {
        let here = self.sessions.iter().filter(|s| s.is_for_any());
        here.min_by_key(|s| s.rank())
    }

    /// That of the bridge's other connections, or of those before; else a fresh one.
    fn take_last_hour(&mut self, bridge_id: &str) -> Arc<LastHour> {
        if let Some(other) = self.sessions.iter().find(|s| &*s.identity.bridge_id == bridge_id) {
            return Arc::clone(&other.last_hour);
        }
        let kept = self.last_hours.iter().position(|(id, _)| &**id == bridge_id);
        kept.map_or_else(Arc::default, |at| self.last_hours.remove(at).1)
    }

    fn free_name(&self, identity: &Identity, most: usize) -> Result<String, Full> {
        let others: Vec<&str> = self
            .sessions
            .iter()
            .filter(|s| s.identity.bridge_id != identity.bridge_id)
            .map(|s| s.identity.name.as_str())
            .collect();
        if others.len() >= most {
            return Err(Full);
        }
        let mut name = identity.name.clone();
        let mut number = 2;
        while others.contains(&name.as_str()) {
            let suffix = format!("-{number}");
            let kept = identity.name.len().min(LONGEST_BRIDGE_NAME - suffix.len());
            name = format!("{}{suffix}", &identity.name[..kept]);
            number += 1;
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests;
