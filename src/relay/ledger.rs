//! What is still to be written to the store: exchanges added up by whose they were, and bridges that came and left. In memory and
//! bounded; [`super::keeper`] empties it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::auth::denials::Denials;
use super::auth::tokens::now;
use super::registry::Session;
use super::store::usage::{Key, SeenBridge, Sums};

/// So many sums wait at most: 24 hours of a database away, with as many users, models and bridges as a relay has.
const MOST_SUMS: usize = 50_000;
/// So many bridges wait at most.
const MOST_BRIDGES: usize = 20_000;
/// So many models of a user are told apart in an hour: their names come from the desktop, which could make up new ones for ever.
const MOST_MODELS: usize = 64;
/// An exchange that is said to have had more tokens than this is not believed.
const MOST_TOKENS: u64 = 1_000_000_000;

/// Whose exchanges are added up.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Account {
    hour: u64,
    user: Arc<str>,
    token: Arc<str>,
    bridge: Arc<str>,
    model: Option<Box<str>>,
}

/// One exchange, for those who add up.
#[derive(Debug)]
pub struct Exchanged<'a> {
    /// The user.
    pub user: &'a Arc<str>,
    /// The id of the caller's token.
    pub token: &'a Arc<str>,
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
    sums: HashMap<Account, Sums>,
    bridges: HashMap<Arc<str>, SeenBridge>,
    since: Option<Instant>,
    models: Models,
}

/// The models of each user in an hour.
#[derive(Debug, Default)]
struct Models {
    hour: u64,
    of_users: HashMap<Arc<str>, HashSet<Box<str>>>,
}

impl Models {
    /// The name, if it is one of those that are told apart.
    fn told_apart(&mut self, hour: u64, user: &Arc<str>, model: &str) -> Option<Box<str>> {
        if self.hour != hour {
            *self = Self {
                hour,
                of_users: HashMap::new(),
            };
        }
        let models = self.of_users.entry(Arc::clone(user)).or_default();
        if models.contains(model) || (models.len() < MOST_MODELS && models.insert(model.into())) {
            return Some(model.into());
        }
        None
    }
}

impl Ledger {
    /// Adds an exchange, if there is room for one more sum.
    pub fn add(&self, exchanged: &Exchanged<'_>) {
        let hour = now() / 3600 * 3600;
        let mut waiting = self.lock();
        let model = exchanged.model;
        let account = Account {
            hour,
            user: Arc::clone(exchanged.user),
            token: Arc::clone(exchanged.token),
            bridge: Arc::clone(&exchanged.session.identity.bridge_id),
            model: model.and_then(|model| waiting.models.told_apart(hour, exchanged.user, model)),
        };
        if waiting.sums.len() >= MOST_SUMS && !waiting.sums.contains_key(&account) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.since.get_or_insert_with(Instant::now);
        add(waiting.sums.entry(account).or_default(), exchanged);
    }

    /// A bridge came, is here, or left.
    pub fn note(&self, session: &Session, gone: bool) {
        let bridge = &session.identity;
        if bridge.ephemeral {
            return;
        }
        let mut waiting = self.lock();
        if waiting.bridges.len() >= MOST_BRIDGES && !waiting.bridges.contains_key(&bridge.bridge_id) {
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
        waiting.since.get_or_insert_with(Instant::now);
        waiting.bridges.insert(Arc::clone(&bridge.bridge_id), seen);
    }

    /// Takes everything out.
    pub fn take(&self) -> (Vec<(Key, Sums)>, Vec<SeenBridge>) {
        let (sums, bridges) = {
            let mut waiting = self.lock();
            waiting.since = None;
            (std::mem::take(&mut waiting.sums), std::mem::take(&mut waiting.bridges))
        };
        let sums = sums.into_iter().map(|(account, sums)| {
            let key = Key {
                hour: account.hour,
                user: account.user.to_string(),
                token: account.token.to_string(),
                bridge: account.bridge.to_string(),
                model: account.model.map(String::from).unwrap_or_default(),
            };
            (key, sums)
        });
        (sums.collect(), bridges.into_values().collect())
    }

    /// Forgets what waits of users who were deleted meanwhile.
    pub fn forget(&self, denials: &Denials) {
        let mut waiting = self.lock();
        waiting
            .sums
            .retain(|account, _| !denials.is_deleted_since(&account.user, account.hour));
        waiting
            .bridges
            .retain(|_, bridge| !denials.is_deleted_since(&bridge.user, bridge.seen));
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
    let believed = |number: &u64| *number <= MOST_TOKENS;
    sums.exchanges += 1;
    sums.errors += u64::from(exchanged.is_error);
    sums.cancelled += u64::from(exchanged.is_cancelled);
    sums.received += exchanged.received;
    sums.sent += exchanged.sent;
    sums.prompts.add(exchanged.prompt.filter(believed));
    sums.completions.add(exchanged.completion.filter(believed));
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
    fn a_desktop_cannot_make_up_models_for_ever() {
        let mut models = Models::default();
        let user: Arc<str> = "ann".into();
        let told = (0..1000).filter(|n| models.told_apart(3600, &user, &n.to_string()).is_some());
        assert_eq!(told.count(), MOST_MODELS);
        assert!(models.told_apart(3600, &user, "0").is_some());
        assert!(models.told_apart(3600, &"bob".into(), "x").is_some());
        assert!(models.told_apart(7200, &user, "new").is_some());
    }
}
