//! What the relay counts. Everything an exchange adds to is an atomic in a table of fixed size: no lock, no look-up by name, and
//! no label that a caller could choose. [`export`] writes it out, [`server`] answers who asks.

mod export;
mod histogram;
mod labels;
mod server;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use self::histogram::{Histogram, OF_CANCELS, OF_EXCHANGES};
pub use self::labels::{Fallback, Outcome, RouteClass, Transport};
pub use self::server::serve;
use super::error::{Code, Error};
use super::registry::Session;

/// One counter for each transport of a route.
type PerPath<T> = [[T; Transport::COUNT]; RouteClass::COUNT];

/// The counters of a relay; what can be looked up elsewhere is looked up when it is asked for.
#[derive(Debug)]
pub struct Metrics {
    exchanges: PerPath<[AtomicU64; Outcome::COUNT]>,
    first_byte: PerPath<Histogram>,
    total: PerPath<Histogram>,
    /// Octets of request bodies.
    received: AtomicU64,
    /// Octets of response bodies.
    sent: AtomicU64,
    in_flight: AtomicU64,
    waiting: AtomicU64,
    told: [Histogram; Transport::COUNT],
    store: Histogram,
    connects: [[AtomicU64; 2]; Transport::COUNT],
    fallbacks: [AtomicU64; Fallback::COUNT],
    /// Exchanges that ended with an error of the relay's own, by code.
    refused: Tally,
    /// Credentials that were not accepted, by reason.
    denied: Tally,
    started: SystemTime,
}

impl Default for Metrics {
    fn default() -> Self {
        let histograms = || std::array::from_fn(|_| std::array::from_fn(|_| Histogram::new(&OF_EXCHANGES)));
        Self {
            exchanges: Default::default(),
            first_byte: histograms(),
            total: histograms(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            told: std::array::from_fn(|_| Histogram::new(&OF_CANCELS)),
            store: Histogram::new(&OF_CANCELS),
            connects: Default::default(),
            fallbacks: Default::default(),
            refused: Tally::default(),
            denied: Tally::default(),
            started: SystemTime::now(),
        }
    }
}

/// How an exchange went.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// What was asked for.
    pub route: RouteClass,
    /// How it was carried.
    pub transport: Transport,
    /// What came of it.
    pub outcome: Outcome,
    /// Until the answer began, if it did.
    pub first_byte: Option<Duration>,
    /// Until the end.
    pub total: Duration,
}

impl Metrics {
    /// An exchange begins.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// An exchange is over.
    pub fn end(&self, ended: &Ended) {
        let (route, transport) = (ended.route as usize, ended.transport as usize);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.exchanges[route][transport][ended.outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.total[route][transport].observe(ended.total);
        if let Some(first_byte) = ended.first_byte {
            self.first_byte[route][transport].observe(first_byte);
        }
    }

    /// Octets of a request's body came.
    pub fn received(&self, octets: usize) {
        self.received.fetch_add(octets as u64, Ordering::Relaxed);
    }

    /// Octets of a response's body went out.
    pub fn sent(&self, octets: usize) {
        self.sent.fetch_add(octets as u64, Ordering::Relaxed);
    }

    /// The relay answered an exchange with this code itself.
    pub fn refuse(&self, code: &'static str) {
        self.refused.add(code);
    }

    /// A credential was not accepted, for this reason.
    pub fn deny(&self, reason: &'static str) {
        self.denied.add(reason);
    }

    /// The same, if that is what an error says.
    pub fn note_denial(&self, error: &Error) {
        let of_credentials = matches!(error.code, Code::Unauthorized | Code::Forbidden | Code::BadRequest);
        if let Some(reason) = error.reason.filter(|_| of_credentials) {
            self.deny(reason);
        }
    }

    /// An exchange waits for its bridge until what this returns is dropped.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// A caller left, and so long after it the bridge was told.
    pub fn told(&self, transport: Transport, after: Duration) {
        self.told[transport as usize].observe(after);
    }

    /// The store took so long to answer.
    pub fn asked_store(&self, time: Duration) {
        self.store.observe(time);
    }

    /// A bridge connected.
    pub fn connected(&self, session: &Session) {
        let transport = Transport::of(Some(session));
        self.connects[transport as usize][usize::from(session.is_return)].fetch_add(1, Ordering::Relaxed);
        if let Some(fallback) = session.reason.as_deref().map(Fallback::of) {
            self.fallbacks[fallback as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An exchange that waits for its bridge.
#[derive(Debug)]
pub struct Waiting<'a>(&'a AtomicU64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts by words that stand in the program, so there are only so many; for what is no everyday event.
#[derive(Debug, Default)]
struct Tally(Mutex<Vec<(&'static str, u64)>>);

impl Tally {
    fn add(&self, word: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.iter_mut().find(|(other, _)| *other == word) {
            Some((_, count)) => *count += 1,
            None => counts.push((word, 1)),
        }
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
