//! Keeps the relay's memory and its store in step: what was revoked or disabled comes in within a second, what was used goes out
//! within a second. No exchange waits for it; while the database is away, both go on as they are and catch up afterwards.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::Relay;
use super::auth;
use super::auth::tokens::{Tokens, now};
use super::store::accounts::Orders;
use super::store::usage::{Batch, SeenToken};
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
/// How long tokens that ended and bridges that are gone are remembered where no usage is kept.
const TRACES: Duration = Duration::from_secs(30 * 24 * 3600);
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
    /// The batch that is to be written again just as it is: it may be written already.
    unsure: tokio::sync::Mutex<Unsure>,
}

/// Which of its work the database did not do the last time.
#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    reading: bool,
    writing: bool,
}

#[derive(Debug, Default)]
struct Unsure {
    number: u64,
    batch: Option<(Batch, Instant)>,
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
            unsure: tokio::sync::Mutex::default(),
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
        let trouble = self.trouble();
        !trouble.reading && !trouble.writing
    }

    /// How long the oldest that is not written has waited.
    pub fn lag(&self, relay: &Relay) -> Duration {
        let unsure = self.0.unsure.try_lock().ok();
        let since = unsure.and_then(|unsure| unsure.batch.as_ref().map(|(_, since)| since.elapsed()));
        since.unwrap_or_default().max(relay.ledger.lag())
    }

    /// Works for as long as the relay runs.
    pub async fn keep(&self, relay: &Relay) {
        while self.store().is_none() {
            let opened = self.open(&relay.tokens).await;
            self.note_reading(&opened);
            if opened.is_err() {
                sleep(AWAY).await;
            }
        }
        let Some(store) = self.store() else {
            return;
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
        // First what may be written already, then what came since.
        let left = async {
            self.write_once(store, relay).await?;
            self.write_once(store, relay).await
        };
        match timeout(LAST, left).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last of the usage is lost"),
            Err(_) => tracing::warn!("the last of the usage is lost: the database does not answer"),
        }
    }

    /// Carries out what others ordered.
    async fn follow(&self, store: &Store, relay: &Relay) {
        let mut known: Option<u64> = None;
        loop {
            let began = Instant::now();
            let followed = match store.revision().await {
                Ok(revision) if known == Some(revision) => Ok(()),
                Ok(_) => store.orders().await.map(|orders| carry_out(relay, orders, &mut known)),
                Err(error) => Err(error),
            };
            relay.metrics.asked_store(began.elapsed());
            let pause = if followed.is_ok() { LOOK } else { AWAY };
            self.note_reading(&followed);
            sleep(pause).await;
        }
    }

    async fn write(&self, store: &Store, relay: &Relay) {
        loop {
            sleep(WRITE).await;
            let written = self.write_once(store, relay).await;
            self.note_writing(&written);
            if written.is_err() {
                sleep(AWAY).await;
            }
        }
    }

    /// Writes the batch of before, if that is not sure to be written; else what came since.
    async fn write_once(&self, store: &Store, relay: &Relay) -> Result<(), StoreError> {
        let mut unsure = self.0.unsure.lock().await;
        let (batch, since) = match unsure.batch.take() {
            Some(again) => again,
            None => {
                unsure.number += 1;
                match self.batch(relay, unsure.number) {
                    Some(fresh) => fresh,
                    None => return Ok(()),
                }
            }
        };
        unsure.batch = Some((batch.clone(), since));
        let began = Instant::now();
        let written = store.record(batch).await;
        relay.metrics.asked_store(began.elapsed());
        if written.is_ok() {
            unsure.batch = None;
        }
        written
    }

    /// What came since the last batch, if anything did.
    fn batch(&self, relay: &Relay, number: u64) -> Option<(Batch, Instant)> {
        let lag = relay.ledger.lag();
        let (usage, bridges) = relay.ledger.take();
        let used = relay.tokens.take_used();
        if usage.is_empty() && bridges.is_empty() && used.is_empty() {
            return None;
        }
        let batch = Batch {
            writer: self.0.writer.clone(),
            number,
            usage,
            tokens: tokens(used),
            bridges,
        };
        let since = Instant::now().checked_sub(lag).unwrap_or_else(Instant::now);
        Some((batch, since))
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
            let keep = if self.keeps_usage() { self.0.keep } else { TRACES };
            let pruned = store.prune(now().saturating_sub(keep.as_secs())).await;
            if let Err(error) = pruned {
                tracing::debug!(%error, "what is too old is still there");
            }
            sleep(PRUNE).await;
        }
    }

    async fn open(&self, tokens: &Tokens) -> Result<(), StoreError> {
        let store = Store::open(&self.0.config).await?;
        tokens.deny(Some(store.orders().await?.denials));
        // Opened once.
        let _ = self.0.store.set(store);
        Ok(())
    }

    fn note_reading(&self, outcome: &Result<(), StoreError>) {
        let mut trouble = self.lock_trouble();
        let before = std::mem::replace(&mut trouble.reading, outcome.is_err());
        match outcome {
            Ok(()) if before => tracing::info!("the database is back"),
            Err(error) if !before => tracing::warn!(%error, "the database is away; what was known before goes on"),
            _ => {}
        }
    }

    fn note_writing(&self, outcome: &Result<(), StoreError>) {
        let mut trouble = self.lock_trouble();
        let before = std::mem::replace(&mut trouble.writing, outcome.is_err());
        match outcome {
            Ok(()) if before => tracing::info!("the database takes usage again"),
            Err(error) if !before => tracing::warn!(%error, "the database takes no usage; it waits"),
            _ => {}
        }
    }

    fn trouble(&self) -> Trouble {
        *self.lock_trouble()
    }

    fn lock_trouble(&self) -> MutexGuard<'_, Trouble> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// Shuts out whom the orders name, and disconnects those who were to be disconnected since the revision that was known.
fn carry_out(relay: &Relay, orders: Orders, known: &mut Option<u64>) {
    relay.ledger.forget(&orders.denials);
    relay.tokens.deny(Some(orders.denials));
    if let Some(known) = *known {
        let fresh = orders.kicks.iter().filter(|(_, revision)| **revision > known);
        for (bridge, _) in fresh {
            relay.registry.disconnect(bridge);
        }
    }
    *known = Some(orders.revision);
}
