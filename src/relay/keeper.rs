//! Keeps the relay's memory and its store in step: what was revoked or disabled comes in within a second, what was used goes out
//! within a second. No exchange waits for it; while the database is away, both go on as they are and catch up afterwards.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::Relay;
use super::auth;
use super::auth::tokens::{Tokens, now};
use super::store::accounts::{CONNECTED, Orders};
use super::store::shares::Membership;
use super::store::usage::{Batch, SeenToken, Sums, Used, Whose};
use super::store::{Store, StoreConfig, StoreError};
use crate::random;

/// Between two looks at the store for orders.
const LOOK: Duration = Duration::from_millis(250);
/// Between two batches.
const WRITE: Duration = Duration::from_millis(500);
/// Between two tries while the database is away.
const AWAY: Duration = Duration::from_secs(1);
/// Between two notes of who is connected; `store::accounts::CONNECTED` is longer.
const NOTE: Duration = Duration::from_secs(30);
/// Between two looks for what is too old.
const PRUNE: Duration = Duration::from_secs(3600);
/// How long tokens that ended and bridges that are gone are remembered at least.
const TRACES: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long who ordered something waits until this relay carries it out.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the last batch may take when the relay stops.
const LAST: Duration = Duration::from_secs(3);

/// The relay's side of the store.
#[derive(Debug, Clone)]
pub struct Keeper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: StoreConfig,
    /// How long usage is kept.
    keep: Duration,
    writer: String,
    store: OnceLock<Store>,
    trouble: Mutex<Trouble>,
    /// Who asks for usage waits for the others who do, and nobody else does.
    asking: Semaphore,
    /// Since when the oldest of the batch that is not sure to be written has waited.
    unsure_since: Mutex<Option<Instant>>,
    /// The batch that is to be written again just as it is: it may be written already.
    unsure: tokio::sync::Mutex<Unsure>,
    /// Calls for a look at the orders before its time.
    hurry: Notify,
    looks: watch::Sender<Looks>,
}

/// Looks at the orders: how many began, and how many of these are over.
#[derive(Debug, Default)]
struct Looks {
    begun: u64,
    over: u64,
}

/// Why the database did not do its work the last time.
#[derive(Debug, Default)]
struct Trouble {
    reading: Option<String>,
    writing: Option<String>,
}

#[derive(Debug, Default)]
struct Unsure {
    number: u64,
    batch: Option<Batch>,
}

impl Keeper {
    /// Of a store that is opened, if that is done within `patience`; else it is opened while the relay runs, and until then `tokens`
    /// puts everybody off. Usage is kept for `keep`, or not at all.
    ///
    /// # Errors
    /// What waiting does not mend; or no random numbers.
    pub async fn begin(
        config: StoreConfig,
        keep: Duration,
        tokens: &Tokens,
        patience: Duration,
    ) -> Result<Self, StoreError> {
        tokens.deny(None);
        let writer = random::name().map_err(|error| StoreError::Settings(error.to_string()))?;
        let keeper = Self(Arc::new(Inner {
            config,
            keep,
            writer,
            store: OnceLock::new(),
            trouble: Mutex::default(),
            asking: Semaphore::new(1),
            unsure_since: Mutex::default(),
            unsure: tokio::sync::Mutex::default(),
            hurry: Notify::new(),
            looks: watch::Sender::default(),
        }));
        let opened = timeout(patience, keeper.open(tokens)).await;
        match opened.unwrap_or_else(|_| Err(StoreError::Away("the database does not answer yet".to_owned()))) {
            Err(StoreError::Away(why)) => keeper.note_reading(&Err(StoreError::Away(why))),
            opened => opened?,
        }
        Ok(keeper)
    }

    /// The store, once it was opened.
    pub fn store(&self) -> Option<&Store> {
        self.0.store.get()
    }

    /// Whether it is kept what was used.
    pub fn keeps_usage(&self) -> bool {
        !self.0.keep.is_zero()
    }

    /// Whether the database answered the last time.
    pub fn is_well(&self) -> bool {
        let trouble = lock(&self.0.trouble);
        trouble.reading.is_none() && trouble.writing.is_none()
    }

    /// How long the oldest that is not written has waited.
    pub fn lag(&self, relay: &Relay) -> Duration {
        let unsure = lock(&self.0.unsure_since).map(|since| since.elapsed());
        unsure.unwrap_or_default().max(relay.ledger.lag())
    }

    /// What was used, line by line and all together; see [`Store::usage`]. One question at a time, and the store has done with it
    /// before the next one, whether or not somebody still waits for the answer.
    ///
    /// # Errors
    /// `Away`.
    pub async fn usage(
        &self,
        whose: Whose,
        user: Arc<str>,
        from: u64,
        to: u64,
        span: u64,
    ) -> Result<(Vec<Used>, Sums), StoreError> {
        let keeper = self.clone();
        let asked = tokio::spawn(async move {
            let _alone = keeper.0.asking.acquire().await;
            let Some(store) = keeper.store() else {
                return Err(StoreError::Away("the database was not reached yet".to_owned()));
            };
            let lines = store.usage(whose, &user, from, to, span).await?;
            Ok((lines, store.total(whose, &user, from, to).await?))
        });
        asked.await.unwrap_or_else(|_| Err(StoreError::ended()))
    }

    /// Resolves once this relay carries out what the store was told before; or after a moment in which it could not.
    pub async fn carried_out(&self) {
        let mut looks = self.0.looks.subscribe();
        // The one under way may have looked too early.
        let enough = looks.borrow().begun + 1;
        self.0.hurry.notify_one();
        // The sender is ours.
        let _ = timeout(PATIENCE, looks.wait_for(|looks| looks.over >= enough)).await;
    }

    /// Works for as long as the relay runs.
    pub async fn keep(&self, relay: &Relay) {
        let store = loop {
            if let Some(store) = self.store() {
                break store;
            }
            let opened = self.open(&relay.tokens).await;
            self.note_reading(&opened);
            if opened.is_err() {
                sleep(AWAY).await;
            }
        };
        tokio::join!(
            self.follow(store, relay),
            self.write(store, relay),
            self.stay(relay),
            self.prune(store)
        );
    }

    /// Writes what is left, when everything else is over.
    pub async fn finish(&self, relay: &Relay) {
        let Some(store) = self.store() else {
            return;
        };
        let left = async {
            while self.write_once(store, relay).await? {}
            Ok::<_, StoreError>(())
        };
        match timeout(LAST, left).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last of the usage is lost"),
            Err(_) => tracing::warn!("the last of the usage is lost: the database does not answer in time"),
        }
    }

    /// Carries out what others ordered.
    async fn follow(&self, store: &Store, relay: &Relay) {
        let mut known: Option<u64> = None;
        let mut kicked: Option<u64> = None;
        loop {
            let began = Instant::now();
            self.0.looks.send_modify(|looks| looks.begun += 1);
            let followed = follow_once(store, relay, &mut known, &mut kicked).await;
            self.0.looks.send_modify(|looks| looks.over = looks.begun);
            relay.metrics.asked_store(began.elapsed());
            self.note_reading(&followed);
            if followed.is_err() {
                sleep(AWAY).await;
                continue;
            }
            // Called while it slept or before, it looks at once.
            let _ = timeout(LOOK, self.0.hurry.notified()).await;
        }
    }

    async fn write(&self, store: &Store, relay: &Relay) {
        loop {
            let written = self.write_once(store, relay).await;
            let pause = match &written {
                Ok(_) if relay.ledger.is_full() => Duration::ZERO,
                Ok(_) => WRITE,
                Err(_) => AWAY,
            };
            self.note_writing(&written.map(drop));
            sleep(pause).await;
        }
    }

    /// Writes the batch of before, if that is not sure to be written, else some of what came since; whether there was anything.
    async fn write_once(&self, store: &Store, relay: &Relay) -> Result<bool, StoreError> {
        let mut unsure = self.0.unsure.lock().await;
        if unsure.batch.is_none() {
            unsure.number += 1;
            unsure.batch = self.batch(relay, unsure.number);
        }
        let Some(batch) = &unsure.batch else {
            return Ok(false);
        };
        let began = Instant::now();
        let mut written = store.record(batch).await;
        relay.metrics.asked_store(began.elapsed());
        if let Err(StoreError::Rejected(why)) = &written {
            let entries = batch.usage.len() + batch.tokens.len() + batch.bridges.len();
            tracing::error!(why, entries, "the database refuses usage; it is left out");
            relay.ledger.note_dropped(entries);
            written = Ok(());
        }
        written?;
        unsure.batch = None;
        *lock(&self.0.unsure_since) = None;
        Ok(true)
    }

    /// Some of what came since the last batch, if anything did.
    fn batch(&self, relay: &Relay, number: u64) -> Option<Batch> {
        let (usage, bridges, since) = relay.ledger.take();
        let (keys, used): (Vec<_>, Vec<_>) = relay.tokens.take_used().into_iter().partition(|(one, _)| one.is_key());
        if usage.is_empty() && bridges.is_empty() && used.is_empty() && keys.is_empty() {
            return None;
        }
        *lock(&self.0.unsure_since) = Some(since.unwrap_or_else(Instant::now));
        Some(Batch {
            writer: self.0.writer.clone(),
            number,
            usage,
            memberships: memberships(&used),
            tokens: tokens(used),
            keys: keys.into_iter().map(|(key, used)| (key.id.to_string(), used)).collect(),
            bridges,
        })
    }

    /// Notes now and then that those who are connected still are.
    async fn stay(&self, relay: &Relay) {
        loop {
            sleep(NOTE).await;
            for session in relay.registry.all() {
                relay.ledger.note(&session, false);
            }
        }
    }

    async fn prune(&self, store: &Store) {
        loop {
            let before = |time: Duration| now().saturating_sub(time.as_secs());
            // With nothing to be kept, nothing of before is.
            let usage = if self.keeps_usage() { before(self.0.keep) } else { now() };
            if let Err(error) = store.prune(usage, before(self.0.keep.max(TRACES))).await {
                tracing::warn!(%error, "what is too old is still in the database; it is tried again in an hour");
            }
            sleep(PRUNE).await;
        }
    }

    async fn open(&self, tokens: &Tokens) -> Result<(), StoreError> {
        let store = Store::open(&self.0.config).await?;
        let orders = store.orders().await?;
        tokens.accept_keys(orders.keys);
        tokens.deny(Some(orders.denials));
        // Opened once.
        let _ = self.0.store.set(store);
        Ok(())
    }

    fn note_reading(&self, outcome: &Result<(), StoreError>) {
        match changed(&mut lock(&self.0.trouble).reading, outcome) {
            Some(Ok(())) => tracing::info!("the database is back"),
            Some(Err(error)) if self.store().is_none() => {
                tracing::warn!(%error, "the database is away; nobody is let in until it is there");
            }
            Some(Err(error)) => tracing::warn!(%error, "the database is away; what was known before goes on"),
            None => {}
        }
    }

    fn note_writing(&self, outcome: &Result<(), StoreError>) {
        match changed(&mut lock(&self.0.trouble).writing, outcome) {
            Some(Ok(())) => tracing::info!("the database takes usage again"),
            Some(Err(error)) => tracing::warn!(%error, "the database takes no usage; it waits"),
            None => {}
        }
    }
}

/// What is to be told of an outcome after the one before; the same trouble is told once.
fn changed<'a>(before: &mut Option<String>, outcome: &'a Result<(), StoreError>) -> Option<Result<(), &'a StoreError>> {
    let words = outcome.as_ref().err().map(ToString::to_string);
    let is_news = *before != words;
    *before = words;
    is_news.then_some(outcome.as_ref().copied())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One line for each token: it may have been renewed, and used both ways.
fn tokens(mut used: Vec<(auth::Identity, u64)>) -> Vec<SeenToken> {
    used.sort_by(|(one, used), (other, later)| (&one.id, later).cmp(&(&other.id, used)));
    used.dedup_by(|(other, _), (first, _)| other.id == first.id);
    let seen = used.into_iter().map(|(identity, used)| SeenToken {
        id: identity.id.to_string(),
        user: identity.user.to_string(),
        scopes: identity.scopes.to_string(),
        issued: identity.issued,
        expires: identity.expires,
        used,
    });
    seen.collect()
}

/// The newest word of the provider on each user's groups.
fn memberships(used: &[(auth::Identity, u64)]) -> Vec<Membership> {
    let mut newest: HashMap<&str, Membership> = HashMap::new();
    for (identity, used) in used {
        let Some(groups) = &identity.groups else {
            continue;
        };
        let said = identity.issued.unwrap_or(*used).min(*used);
        let known = newest.get(&*identity.user);
        if known.is_none_or(|known| known.said < said) {
            let membership = Membership {
                user: identity.user.to_string(),
                groups: Arc::clone(groups),
                said,
            };
            newest.insert(&identity.user, membership);
        }
    }
    newest.into_values().collect()
}

/// Carries out what was ordered since the last time, if anything was.
async fn follow_once(
    store: &Store,
    relay: &Relay,
    known: &mut Option<u64>,
    kicked: &mut Option<u64>,
) -> Result<(), StoreError> {
    let revision = store.revision().await?;
    if *known == Some(revision) {
        return Ok(());
    }
    if known.is_none() {
        // Before it is known what is shared: who waits for a desktop of their own is not sent to another one.
        for bridge in store.seen_since(now().saturating_sub(CONNECTED)).await? {
            relay.registry.expect(&bridge.user, &bridge.id, bridge.name);
        }
    }
    let orders = store.orders().await?;
    *known = Some(orders.revision);
    carry_out(relay, orders, kicked);
    Ok(())
}

/// Lets in whose keys are valid, lets callers reach what is shared with them, shuts out whom the orders name, and disconnects those
/// who were to be disconnected since the last time.
fn carry_out(relay: &Relay, orders: Orders, kicked: &mut Option<u64>) {
    let Orders {
        keys,
        shares,
        memberships,
        denials,
        kicks,
        ..
    } = orders;
    relay.ledger.forget(&denials);
    relay.tokens.follow(keys, shares, memberships, denials);
    if let Some(kicked) = *kicked {
        let fresh = kicks.iter().filter(|(_, revision)| **revision > kicked);
        for (bridge, _) in fresh {
            relay.registry.disconnect(bridge);
        }
    }
    let newest = kicks.values().copied().max().unwrap_or(0);
    *kicked = Some(newest.max(kicked.unwrap_or(0)));
}
