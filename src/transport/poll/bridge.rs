//! The bridge's end of a `poll` link: registers, keeps one poll waiting, and lives through whatever happens to connections.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::StatusCode;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::carry::Carrier;
use super::client::{Call, Client, Lane, Trouble};
pub use super::event::{End, Event, Tell};
use super::wire::{Batch, Capabilities, Register, Registered};
use super::{HEARTBEAT, POLL, REGISTER, TUNING};
use crate::token::Secret;
use crate::transport::Exchange;
use crate::transport::attach::{ConnectError, Hello, Welcome};
use crate::transport::backoff::Backoff;
use crate::transport::dial::{Dialer, RelayUrl};
use crate::transport::pace::Pace;

/// Nothing went out and nothing came in for so long: connections are dead, not slow.
const DEAD: Duration = Duration::from_secs(4);
/// Exchanges at once; more than this no relay may ask of a desktop.
const MOST_EXCHANGES: usize = 4096;
/// Ids remembered, so that a request delivered twice is answered once.
const REMEMBERED: usize = 1024;
/// An empty answer sooner than this is no answer to a long poll.
const QUICK: Duration = Duration::from_millis(200);
/// Between two polls that do not wait, for they share their connection.
const SETTLED: Duration = Duration::from_millis(250);
/// The largest answer to a poll: what fits into a batch, as JSON.
const BATCH: usize = 16 * 1024 * 1024;

/// The handle to the link; cheap to clone. Dropping it does not end the link.
#[derive(Clone)]
pub struct Poller(Arc<Shared>);

struct Shared {
    client: Arc<Client>,
    bridge_id: String,
    round_trip: watch::Sender<Option<Duration>>,
    /// The network changed: try at once; and whether it is another, of which nothing is known.
    changed: Notify,
    another: AtomicBool,
    /// A heartbeat is wanted.
    heartbeat: Notify,
    /// Newer links take the work; this one finishes what it has.
    left: AtomicBool,
    /// The relay asked to be left.
    drained: AtomicBool,
    register: Mutex<Register>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send_heartbeat(&self, body: &'static str) {
        let path = format!("{HEARTBEAT}/{}", self.bridge_id);
        let call = Call::post_json(Lane::Other, &path, body);
        if let Err(error) = self.client.fetch(call, TUNING.small_part).await {
            tracing::debug!("no heartbeat: {error}");
        }
    }

    /// Nobody wants anything of the link but what is in flight.
    fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }
}

impl Poller {
    /// Shows the relay a fresh token.
    pub fn show_token(&self, token: Secret) {
        self.0.client.show_token(token);
        self.0.heartbeat.notify_one();
    }

    /// The newest measure of the round trip.
    pub fn round_trip(&self) -> Option<Duration> {
        *self.0.round_trip.borrow()
    }

    /// Something happened to the network: leaves all connections and tries at once. What was learned of another network is
    /// forgotten.
    pub fn network_changed(&self, another: bool) {
        self.0.client.renew();
        self.0.another.store(another, Ordering::Release);
        self.0.changed.notify_one();
    }

    /// From now on, or no longer, the link only finishes what it has: once the relay forgets it, it is over.
    pub fn set_left(&self, left: bool) {
        self.0.left.store(left, Ordering::Release);
    }

    /// Whether it can take work again: see [`Poller::rejoin`].
    pub fn can_rejoin(&self) -> bool {
        !self.0.drained.load(Ordering::Acquire)
    }

    /// Registers again, after newer links took the work: from now on it is for this one again.
    ///
    /// # Errors
    /// As for [`register`].
    pub async fn rejoin(&self, token: Secret, reason: Option<String>) -> Result<Welcome, ConnectError> {
        self.show_token(token);
        let register = {
            let mut register = self.0.lock();
            register.reason = reason;
            register.clone()
        };
        let registered = send_register(&self.0.client, &register).await.map_err(connect_error)?;
        self.set_left(false);
        Ok(welcome(registered, &register))
    }

    /// Asks the relay for no more work; it ends the link once everything in flight is finished.
    pub async fn drain(&self) {
        self.set_left(true);
        self.0.send_heartbeat(r#"{"drain":true}"#).await;
    }
}

/// Does the work of a link.
pub struct Driver {
    shared: Arc<Shared>,
    pace: Pace,
    backoff: Backoff,
    carrier: Arc<Carrier>,
    running: JoinSet<String>,
    handles: HashMap<String, AbortHandle>,
    known: VecDeque<String>,
    acknowledged: Option<u64>,
    /// The relay's name for the link.
    link: Option<String>,
    /// Polls in a row that came to nothing.
    failures: u32,
    away: bool,
}

/// Registers with the relay.
///
/// # Errors
/// [`ConnectError`], which tells a refusal for good from trouble on the way.
pub async fn register(
    dialer: &Dialer,
    relay: &RelayUrl,
    hello: &Hello,
    reason: Option<String>,
    exchange: Arc<dyn Exchange>,
) -> Result<(Poller, Driver, Welcome), ConnectError> {
    let client = Client::new(dialer.clone(), relay.clone(), hello.token.clone(), &hello.instance);
    let register = Register {
        client_id: Some(hello.client_id.clone()),
        platform: Some(std::env::consts::OS.to_owned()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        capabilities: Some(Capabilities::OURS.map(str::to_owned).to_vec()),
        name: Some(hello.name.clone()),
        instance: Some(hello.instance.clone()),
        priority: Some(hello.priority),
        ephemeral: Some(hello.ephemeral),
        reason,
    };
    let began = Instant::now();
    let registered = send_register(&client, &register).await.map_err(connect_error)?;
    let round_trip = watch::Sender::new(Some(began.elapsed()));
    let (bridge_id, link) = (registered.bridge_id.clone(), registered.link.clone());
    let welcome = welcome(registered, &register);
    let shared = Arc::new(Shared {
        client: Arc::clone(&client),
        bridge_id: bridge_id.clone(),
        round_trip: round_trip.clone(),
        changed: Notify::new(),
        another: AtomicBool::new(false),
        heartbeat: Notify::new(),
        left: AtomicBool::new(false),
        drained: AtomicBool::new(false),
        register: Mutex::new(register),
    });
    let driver = Driver {
        shared: Arc::clone(&shared),
        pace: Pace::new(TUNING.wait),
        backoff: Backoff::default(),
        carrier: Arc::new(Carrier {
            client,
            bridge_id,
            exchange,
            budget: Arc::new(Semaphore::new(TUNING.bridge_budget)),
            round_trip,
        }),
        running: JoinSet::new(),
        handles: HashMap::new(),
        known: VecDeque::new(),
        acknowledged: None,
        link,
        failures: 0,
        away: false,
    };
    Ok((Poller(shared), driver, welcome))
}

fn welcome(registered: Registered, register: &Register) -> Welcome {
    Welcome {
        name: registered.name.or_else(|| register.name.clone()).unwrap_or_default(),
        transports: registered.transports,
    }
}

async fn send_register(client: &Client, register: &Register) -> Result<Registered, Trouble> {
    let body = serde_json::to_vec(register).unwrap_or_default();
    let (_, body) = client
        .fetch(Call::post_json(Lane::Poll, REGISTER, body), TUNING.small_part)
        .await?;
    serde_json::from_slice(&body)
        .map_err(|_| ConnectError::NoRelay("its answer to a registration is none".into()).into())
}

fn connect_error(trouble: Trouble) -> ConnectError {
    match trouble {
        Trouble::Answer(error) => error,
        Trouble::Status { .. } => ConnectError::NoRelay(trouble.to_string()),
        other => ConnectError::Lost(other.to_string()),
    }
}

impl Driver {
    /// Drives the link to its end, telling what happens.
    pub async fn run(mut self, tell: Box<Tell>) {
        let mut poll: Option<(Instant, BoxFuture<'static, Result<Batch, Trouble>>)> = None;
        loop {
            let (began, polling) = poll.get_or_insert_with(|| (Instant::now(), self.next_poll()));
            let began = *began;
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                outcome = polling => {
                    poll = None;
                    if let Some(end) = self.take(outcome, began.elapsed(), tell.as_ref()).await {
                        tell(Event::Ended(end));
                        return;
                    }
                }
                Some(done) = self.running.join_next(), if !self.running.is_empty() => {
                    if let Ok(id) = done {
                        self.handles.remove(&id);
                    }
                }
                () = shared.heartbeat.notified() => {
                    let shared = Arc::clone(&self.shared);
                    self.running.spawn(async move {
                        shared.send_heartbeat("{}").await;
                        String::new()
                    });
                }
                () = shared.changed.notified() => {
                    self.note_change();
                    poll = None;
                }
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.shared.drained.load(Ordering::Acquire)
    }

    fn wait(&self) -> Duration {
        let wait = self.pace.current();
        if self.running.is_empty() {
            wait
        } else {
            wait.min(TUNING.busy_wait)
        }
    }

    fn next_poll(&self) -> BoxFuture<'static, Result<Batch, Trouble>> {
        let lost = self.failures > 0;
        let at_once = lost || self.shared.client.is_settled();
        let wait = if at_once { Duration::ZERO } else { self.wait() };
        let mut path = format!("{POLL}/{}?timeout={}", self.shared.bridge_id, wait.as_millis());
        if let Some(batch) = self.acknowledged {
            path.push_str(&format!("&ack={batch}"));
        }
        if let Some(link) = &self.link {
            path.push_str(&format!("&link={link}"));
        }
        let client = Arc::clone(&self.shared.client);
        async move {
            let call = if lost {
                Call::probe(&path)
            } else {
                Call::get(Lane::Poll, &path, wait)
            };
            let (_, body) = client.fetch(call, BATCH).await?;
            serde_json::from_slice(&body)
                .map_err(|_| ConnectError::NoRelay("its answer to a poll is none".into()).into())
        }
        .boxed()
    }

    async fn take(&mut self, outcome: Result<Batch, Trouble>, waited: Duration, tell: &Tell) -> Option<End> {
        match outcome {
            Ok(batch) => {
                self.note_reached(tell);
                if batch.requests.is_empty() && waited >= self.wait().mul_f64(0.9) {
                    self.pace.survived();
                }
                let pause = self.pause_after(&batch, waited);
                self.take_batch(batch, tell);
                tokio::time::sleep(pause).await;
                None
            }
            Err(Trouble::NetworkChanged) => None,
            Err(Trouble::Answer(error)) => self.take_refusal(error, tell).await,
            // A relay that stops needs not be looked for once everything is answered.
            Err(_) if self.is_drained() && self.running.is_empty() => Some(End::Finished),
            Err(trouble) => {
                let client = &self.shared.client;
                if matches!(trouble, Trouble::Silent) && client.silence() > DEAD && !client.is_settled() {
                    // The other connections are as dead as this one.
                    client.renew();
                }
                self.pace.lost_after(waited);
                self.pause(trouble.to_string(), None, tell).await;
                None
            }
        }
    }

    /// Between this answer, that came after so long, and the next poll.
    fn pause_after(&self, batch: &Batch, waited: Duration) -> Duration {
        let stops = batch.drain || batch.settle;
        match batch.is_empty() {
            _ if self.shared.client.is_settled() => SETTLED,
            // Another poll of this bridge may take turns with this one, after a relay gave way to the next.
            true if !stops && waited < QUICK => QUICK,
            _ => Duration::ZERO,
        }
    }

    fn note_reached(&mut self, tell: &Tell) {
        self.pace.reached();
        self.failures = 0;
        self.backoff.reset();
        if std::mem::take(&mut self.away) {
            tell(Event::Back);
        }
    }

    fn take_batch(&mut self, batch: Batch, tell: &Tell) {
        self.acknowledged = Some(batch.batch);
        if batch.drain || batch.settle {
            self.shared.client.settle(true);
        }
        for id in &batch.cancelled {
            if let Some(handle) = self.handles.remove(id) {
                handle.abort();
            }
        }
        if !batch.requests.is_empty() {
            self.shared.client.change_lanes();
        }
        for polled in batch.requests {
            if self.known.contains(&polled.id) || self.handles.len() >= MOST_EXCHANGES {
                continue;
            }
            let id = polled.id.clone();
            self.known.push_back(id.clone());
            if self.known.len() > REMEMBERED {
                self.known.pop_front();
            }
            let carrier = Arc::clone(&self.carrier);
            let carried = id.clone();
            let handle = self.running.spawn(async move {
                carrier.carry(polled).await;
                carried
            });
            self.handles.insert(id, handle);
        }
        if batch.drain && !self.shared.drained.swap(true, Ordering::AcqRel) {
            tell(Event::Drain);
        }
    }

    async fn take_refusal(&mut self, error: ConnectError, tell: &Tell) -> Option<End> {
        let ConnectError::Refused {
            status,
            ref code,
            retry_after,
            ..
        } = error
        else {
            self.pace.not_reached();
            self.pause(error.to_string(), None, tell).await;
            return None;
        };
        match (status, code.as_str()) {
            (StatusCode::NOT_FOUND, "not_found") if self.shared.is_left() || self.is_drained() => Some(End::Finished),
            (StatusCode::NOT_FOUND, "not_found") => self.register_again(tell).await,
            (StatusCode::CONFLICT, _) => Some(End::Replaced),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, "unauthorized" | "forbidden") => {
                Some(End::Refused(error))
            }
            _ => {
                self.pause(error.to_string(), retry_after, tell).await;
                None
            }
        }
    }

    /// The relay does not know the bridge any more: it was started anew. What it had under way is lost with it.
    async fn register_again(&mut self, tell: &Tell) -> Option<End> {
        self.abort_all();
        self.acknowledged = None;
        self.shared.client.settle(false);
        let register = self.shared.lock().clone();
        match send_register(&self.shared.client, &register).await {
            Ok(registered) => {
                tracing::info!("registered again");
                self.link = registered.link;
                tell(Event::Steer(registered.transports));
                self.note_reached(tell);
                None
            }
            // One that does not offer polling any more, among others.
            Err(Trouble::Answer(error @ ConnectError::Refused { .. }))
                if error.is_final() || error.is_of_transport() =>
            {
                Some(End::Refused(error))
            }
            Err(trouble) => {
                self.pause(trouble.to_string(), None, tell).await;
                None
            }
        }
    }

    fn note_change(&mut self) {
        self.backoff.reset();
        self.pace.not_reached();
        if self.shared.another.swap(false, Ordering::AcqRel) {
            self.pace.forget();
        }
    }

    fn abort_all(&mut self) {
        self.running.abort_all();
        self.handles.clear();
    }

    /// Before the next poll: nothing after the first failure, which may be a cut, then longer and longer.
    async fn pause(&mut self, why: String, asked: Option<Duration>, tell: &Tell) {
        self.failures += 1;
        if self.failures == 1 && asked.is_none() {
            return;
        }
        self.pace.not_reached();
        if self.shared.client.unreached() > TUNING.silent + TUNING.busy_wait {
            // The relay has given them up by now.
            self.abort_all();
        }
        if !std::mem::replace(&mut self.away, true) {
            tell(Event::Away(why));
        }
        let wait = self.backoff.next(asked);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.shared.changed.notified() => self.note_change(),
        }
    }
}
