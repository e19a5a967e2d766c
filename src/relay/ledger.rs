//! What is still to be written to the store: exchanges added up by whose they were, and bridges that came and left. In memory and
//! bounded; [`super::keeper`] empties it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::auth;
use super::auth::denials::Denials;
use super::auth::tokens::now;
use super::registry::Session;
use super::store::usage::{Addition, Key, SeenBridge, Sums};

/// So many sums wait at most: hours of a database away, with as many users, models and bridges as a relay has.
const MOST_SUMS: usize = 50_000;
/// So many sums of a user are told apart in an hour: what a desktop calls itself and its models, it could make up for ever.
const MOST_SUMS_PER_USER: usize = 1_000;
/// So many bridges of a user wait at most.
const MOST_BRIDGES_PER_USER: usize = 200;
/// So much is taken out at once.
const BATCH: usize = 2_000;

/// One exchange, for those who add up.
#[derive(Debug)]
pub struct Exchanged<'a> {
    /// Whose it is.
    pub identity: &'a auth::Identity,
    /// The bridge that it went to.
    pub session: &'a Session,
    /// The model, if it is known.
    pub model: Option<&'a str>,
    /// Tokens of the prompt, if they are known.
    pub prompt: Option<u64>,
    /// Tokens of the completion, if they are known.
    pub completion: Option<u64>,
    /// Whether it went wrong.
    pub is_error: bool,
    /// Whether the caller left.
    pub is_cancelled: bool,
    /// Octets of the request's body.
    pub received: u64,
    /// Octets of the response's body.
    pub sent: u64,
    /// Until the answer began, if it did.
    pub first_byte: Option<Duration>,
    /// Until the end.
    pub total: Duration,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub struct Ledger {
    waiting: Mutex<Waiting>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    sums: HashMap<Key, Addition>,
    bridges: HashMap<Arc<str>, HashMap<Arc<str>, SeenBridge>>,
    since: Option<Instant>,
    apart: Apart,
}

/// What is told apart in an hour, of each user.
#[derive(Debug, Default)]
struct Apart {
    hour: u64,
    of_users: HashMap<Arc<str>, HashSet<Key>>,
}

impl Apart {
    /// The key; past the bound one of the bridge alone, so that its owner is told of it, and past twice the bound one of nothing but
    /// the user.
    fn key(&mut self, key: Key) -> Key {
        if self.hour != key.hour {
            self.hour = key.hour;
            self.of_users.clear();
        }
        let known = self.of_users.entry(Arc::clone(&key.user)).or_default();
        let mut is_told = |key: &Key, most: usize| {
            let is_known = known.contains(key);
            is_known || (known.len() < most && known.insert(key.clone()))
        };
        if is_told(&key, MOST_SUMS_PER_USER) {
            return key;
        }
        let of_bridge = Key {
            token: "".into(),
            model: "".into(),
            ..key
        };
        if is_told(&of_bridge, 2 * MOST_SUMS_PER_USER) {
            return of_bridge;
        }
        Key {
            bridge: "".into(),
            ..of_bridge
        }
    }
}

impl Ledger {
    /// Adds an exchange, if there is room for one more sum.
    pub fn add(&self, exchanged: &Exchanged<'_>) {
        let identity = exchanged.identity;
        let key = Key {
            hour: now() / 3600 * 3600,
            user: Arc::clone(&identity.user),
            token: Arc::clone(&identity.id),
            bridge: Arc::clone(&exchanged.session.identity.bridge_id),
            model: exchanged.model.unwrap_or_default().into(),
        };
        let mut waiting = self.lock();
        let key = waiting.apart.key(key);
        if waiting.sums.len() >= MOST_SUMS && !waiting.sums.contains_key(&key) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.since.get_or_insert_with(Instant::now);
        let addition = waiting.sums.entry(key).or_default();
        addition.issued = addition.issued.max(identity.issued);
        add(&mut addition.sums, exchanged);
    }

    /// A bridge came, is here, or left.
    pub fn note(&self, session: &Session, gone: bool) {
        let bridge = &session.identity;
        if bridge.ephemeral {
            return;
        }
        let mut waiting = self.lock();
        let of_user = waiting.bridges.entry(Arc::clone(&bridge.user)).or_default();
        if of_user.len() >= MOST_BRIDGES_PER_USER && !of_user.contains_key(&bridge.bridge_id) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let seen = SeenBridge {
            id: bridge.bridge_id.to_string(),
            user: bridge.user.to_string(),
            client_id: bridge.client.id.clone(),
            name: bridge.name.clone(),
            platform: bridge.client.platform.clone(),
            version: bridge.client.version.clone(),
            transport: session.transport,
            seen: now(),
            gone,
        };
        of_user.insert(Arc::clone(&bridge.bridge_id), seen);
        waiting.since.get_or_insert_with(Instant::now);
    }

    /// Whether it holds more than is taken out at once.
    pub fn is_full(&self) -> bool {
        self.lock().sums.len() > BATCH
    }

    /// Takes a part of it out, and tells since when the oldest has waited.
    pub fn take(&self) -> (Vec<(Key, Addition)>, Vec<SeenBridge>, Option<Instant>) {
        let mut waiting = self.lock();
        let keys: Vec<_> = waiting.sums.keys().take(BATCH).cloned().collect();
        let sums = keys.iter().filter_map(|key| waiting.sums.remove_entry(key)).collect();
        let mut bridges = Vec::new();
        while bridges.len() < BATCH
            && let Some(user) = waiting.bridges.keys().next().cloned()
        {
            let of_user = waiting.bridges.remove(&user).unwrap_or_default();
            bridges.extend(of_user.into_values());
        }
        let since = waiting.since;
        if waiting.sums.is_empty() && waiting.bridges.is_empty() {
            waiting.since = None;
        }
        (sums, bridges, since)
    }

    /// Forgets what waits of users who were deleted meanwhile.
    pub fn forget(&self, denials: &Denials) {
        let mut waiting = self.lock();
        waiting
            .sums
            .retain(|key, addition| !denials.is_deleted_since(&key.user, addition.issued.unwrap_or(0)));
        for of_user in waiting.bridges.values_mut() {
            of_user.retain(|_, bridge| !denials.is_deleted_since(&bridge.user, bridge.seen));
        }
    }

    /// What was refused by the store for good.
    pub fn note_dropped(&self, entries: usize) {
        self.dropped.fetch_add(entries as u64, Ordering::Relaxed);
    }

    /// How long the oldest of what waits has waited.
    pub fn lag(&self) -> Duration {
        self.lock().since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// How often there was no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(sums: &mut Sums, exchanged: &Exchanged<'_>) {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    sums.exchanges += 1;
    sums.errors += u64::from(exchanged.is_error);
    sums.cancelled += u64::from(exchanged.is_cancelled);
    sums.received += exchanged.received;
    sums.sent += exchanged.sent;
    sums.prompts.add(exchanged.prompt);
    sums.completions.add(exchanged.completion);
    if let Some(first_byte) = exchanged.first_byte {
        sums.answered += 1;
        sums.first_byte_us += micros(first_byte);
    }
    sums.total_us += micros(exchanged.total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_desktop_cannot_make_up_names_for_ever() {
        let of = |hour, user: &str, bridge: usize, model: usize| Key {
            hour,
            user: user.into(),
            token: "t".into(),
            bridge: bridge.to_string().into(),
            model: model.to_string().into(),
        };
        let key = |hour, user: &str, model: usize| of(hour, user, 0, model);
        let mut apart = Apart::default();
        let told = (0..3000).filter(|n| !apart.key(key(3600, "ann", *n)).model.is_empty());
        assert_eq!(told.count(), MOST_SUMS_PER_USER);
        assert_eq!(apart.key(key(3600, "ann", 0)), key(3600, "ann", 0));
        let rest = apart.key(key(3600, "ann", 2999));
        assert_eq!((&*rest.bridge, &*rest.token, &*rest.model), ("0", "", ""));
        let told = (0..3000).filter(|n| !apart.key(of(3600, "ann", *n, 2999)).bridge.is_empty());
        assert_eq!(told.count(), MOST_SUMS_PER_USER);
        assert_eq!(apart.key(key(3600, "bob", 7)), key(3600, "bob", 7));
        assert_eq!(apart.key(key(7200, "ann", 2999)), key(7200, "ann", 2999));
    }
}
