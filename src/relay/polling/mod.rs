//! Bridges that poll: who is registered, and one task for each that sees to its session as long as it is heard of. What they ask
//! for is answered in [`routes`].

mod routes;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::Relay;
use super::auth::{self, tokens::Tokens};
use super::error::{Code, Error};
use super::registry::{Client, Identity, Session};
use super::session::{token_end, too_many_bridges};
use crate::random;
use crate::transport::headers::TUNNEL_INSTANCE;
use crate::transport::poll::TUNING;
use crate::transport::poll::relay::{Loss, PollLink};
use crate::transport::poll::wire::{Capabilities, Register};
use crate::transport::{Ending, Link, is_bridge_name, is_bridge_name_character};

pub use routes::answer;

/// Messages of one bridge that are read at once.
const POSTS: usize = 512;
/// How long bridges have to settle on their connections.
const SETTLE: Duration = Duration::from_secs(2);
/// The longest text that a bridge says of itself, characters.
const LONGEST_TEXT: usize = 256;

/// All bridges that are registered.
#[derive(Default)]
pub struct Pollers {
    entries: Mutex<HashMap<String, Arc<Entry>>>,
    /// Processes that gave way to another of the same bridge, the newest last: they must not come back and throw that one out.
    replaced: Mutex<VecDeque<Replaced>>,
    /// Told when one is gone.
    left: Notify,
}

impl std::fmt::Debug for Pollers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pollers").field("entries", &self.lock().len()).finish()
    }
}

/// One registered bridge.
struct Entry {
    bridge_id: String,
    user: Arc<str>,
    instance: String,
    link: PollLink,
    /// What it said of itself.
    client: Mutex<Register>,
    /// The session that takes work now.
    session: Mutex<Option<Arc<Session>>>,
    /// Tells the entry's task of another session.
    renewed: Notify,
    owner: watch::Sender<auth::Identity>,
    /// JSON as it was reported, and when.
    providers: Mutex<Option<(String, SystemTime)>>,
    /// Bounds the messages that are read at once.
    posts: Semaphore,
}

struct Replaced {
    bridge_id: String,
    instance: String,
    at: Instant,
}

/// Processes that gave way are remembered for as long as a bridge may be silent, and so many of them.
const REMEMBERED: usize = 4096;

impl Pollers {
    fn is_replaced(&self, bridge_id: &str, instance: &[u8]) -> bool {
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        while replaced.front().is_some_and(|oldest| oldest.at.elapsed() > TUNING.gone) {
            replaced.pop_front();
        }
        let same = |other: &Replaced| other.bridge_id == bridge_id && other.instance.as_bytes() == instance;
        replaced.iter().any(same)
    }

    fn note_replaced(&self, entry: &Entry) {
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        replaced.push_back(Replaced {
            bridge_id: entry.bridge_id.clone(),
            instance: entry.instance.clone(),
            at: Instant::now(),
        });
        if replaced.len() > REMEMBERED {
            replaced.pop_front();
        }
    }

    /// Resolves once no bridge is registered.
    pub async fn finished(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if self.lock().is_empty() {
                return;
            }
            left.await;
        }
    }

    /// Tells all bridges to go on over the connections that they have, and waits a little until they know.
    pub async fn settle(&self) {
        let links: Vec<PollLink> = self.lock().values().map(|entry| entry.link.clone()).collect();
        let all = join_all(links.iter().map(PollLink::settle));
        // One that sleeps is not waited for.
        let _ = tokio::time::timeout(SETTLE, all).await;
    }

    /// Requests that no bridge was told of yet.
    pub fn queued(&self) -> usize {
        self.lock().values().map(|entry| entry.link.queued()).sum()
    }

    /// The bridge of this id, if it is this user's and the request comes from the process that registered.
    fn find(&self, owner: &auth::Identity, bridge_id: &str, headers: &HeaderMap) -> Result<Arc<Entry>, Error> {
        let entry = self
            .lock()
            .get(bridge_id)
            .filter(|entry| entry.user == owner.user)
            .cloned();
        let instance = headers.get(TUNNEL_INSTANCE).map(HeaderValue::as_bytes);
        let other = |entry: &Arc<Entry>| instance.is_some_and(|instance| instance != entry.instance.as_bytes());
        match entry {
            Some(entry) if other(&entry) => Err(took_over()),
            Some(entry) => Ok(entry),
            None if instance.is_some_and(|instance| self.is_replaced(bridge_id, instance)) => Err(took_over()),
            None => Err(Error::new(
                Code::NotFound,
                "no bridge of this id is registered; register it",
            )),
        }
    }

    fn remove(&self, entry: &Arc<Entry>) {
        let mut entries = self.lock();
        if entries
            .get(&entry.bridge_id)
            .is_some_and(|other| Arc::ptr_eq(other, entry))
        {
            entries.remove(&entry.bridge_id);
        }
        drop(entries);
        self.left.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn took_over() -> Error {
    Error::new(Code::Replaced, "another process of this bridge took over")
}

impl Entry {
    fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_session(&self, session: Arc<Session>) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        self.renewed.notify_one();
    }

    fn client(&self) -> Register {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The bridge's identity with the name it wishes.
    fn identity(&self) -> Identity {
        let client = self.client();
        Identity {
            user: Arc::clone(&self.user),
            bridge_id: self.bridge_id.as_str().into(),
            name: wished_name(&client),
            instance: self.instance.clone(),
            priority: client.priority.unwrap_or(0),
            ephemeral: client.ephemeral.unwrap_or(false),
            client: Client {
                id: client.client_id,
                platform: client.platform,
                version: client.version,
            },
        }
    }

    /// The bridge was heard of, with this token; the session lasts as long as the one that lasts longest, whatever is still on its
    /// way with an older one. One of the secret that signs now outlasts those of the secret before.
    fn heard(&self, tokens: &Tokens, owner: &auth::Identity) {
        self.owner.send_if_modified(|before| {
            let end = |identity: &auth::Identity| (tokens.is_current(identity), identity.expires.unwrap_or(u64::MAX));
            let longer = end(owner) > end(before);
            if longer {
                *before = owner.clone();
            }
            longer
        });
        self.link.note_contact();
    }
}

/// The name that a bridge wishes: shipped apps say none.
fn wished_name(client: &Register) -> String {
    match &client.name {
        Some(name) => name.clone(),
        None => {
            let platform = client.platform.as_deref().unwrap_or_default();
            let name: String = platform
                .chars()
                .filter(|c| is_bridge_name_character(*c))
                .take(32)
                .collect();
            if name.is_empty() { "desktop".to_owned() } else { name }
        }
    }
}

/// Registers a bridge, or the same one again: the same process keeps what is queued and in flight.
fn register(relay: &Arc<Relay>, owner: auth::Identity, client: Register) -> Result<Arc<Entry>, Error> {
    check(&client)?;
    let client_id = client.client_id.as_deref().unwrap_or_default();
    let bridge_id = relay.tokens.bridge_id(&owner.user, client_id);
    let capabilities = Capabilities::of(client.capabilities.as_deref().unwrap_or_default());
    let instance = client.instance.clone().unwrap_or_default();
    if relay.pollers.is_replaced(&bridge_id, instance.as_bytes()) {
        return Err(took_over());
    }
    let mut entries = relay.pollers.lock();
    let same = entries
        .get(&bridge_id)
        .filter(|entry| entry.instance == instance && entry.link.is_alive())
        .cloned();
    let (entry, fresh) = match same {
        Some(entry) => {
            *entry.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
            entry.heard(&relay.tokens, &owner);
            entry.link.renew(capabilities);
            (entry, false)
        }
        None => {
            let prefix = random::name().map_err(|_| Error::new(Code::Overloaded, "no random numbers to be had"))?;
            let limit = relay.config.limits.in_flight_per_bridge;
            let entry = Arc::new(Entry {
                bridge_id: bridge_id.clone(),
                user: Arc::clone(&owner.user),
                instance,
                link: PollLink::new(prefix[..16].to_owned(), capabilities, limit),
                client: Mutex::new(client),
                session: Mutex::new(None),
                renewed: Notify::new(),
                owner: watch::Sender::new(owner),
                providers: Mutex::new(None),
                posts: Semaphore::new(POSTS),
            });
            (entry, true)
        }
    };
    admit(relay, &entry)?;
    if fresh {
        entries.insert(bridge_id, Arc::clone(&entry));
        relay
            .shutdown
            .tracker()
            .spawn(attend(Arc::clone(relay), Arc::clone(&entry)));
    }
    Ok(entry)
}

fn check(client: &Register) -> Result<(), Error> {
    let bad = |detail: String| Err(Error::new(Code::BadRequest, detail));
    let missing = client.missing();
    if !missing.is_empty() {
        return bad(format!("missing: {}", missing.join(", ")));
    }
    let texts = [
        &client.client_id,
        &client.platform,
        &client.version,
        &client.instance,
        &client.reason,
    ];
    let too_long = |text: &String| text.chars().count() > LONGEST_TEXT;
    let capabilities = client.capabilities.as_deref().unwrap_or_default();
    if texts.into_iter().flatten().chain(capabilities).any(too_long) || capabilities.len() > LONGEST_TEXT {
        return bad(format!("a field is longer than {LONGEST_TEXT} characters"));
    }
    if client.name.as_deref().is_some_and(|name| !is_bridge_name(name)) {
        return bad("a bridge's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -".to_owned());
    }
    Ok(())
}

/// Gives the bridge work: a session of its link stands in the registry.
fn admit(relay: &Arc<Relay>, entry: &Arc<Entry>) -> Result<(), Error> {
    let link: Arc<dyn Link> = Arc::new(entry.link.clone());
    let session = relay
        .registry
        .insert(entry.identity(), "poll", entry.client().reason, link)
        .map_err(|_| too_many_bridges())?;
    relay.arrived(&session);
    let bridge = &session.identity;
    tracing::info!(user = %bridge.user, bridge = %bridge.name, transport = "poll", "bridge connected");
    if let Some(older) = entry.session() {
        // One that was silent is not in the registry any more, which would have said so.
        older.retire();
        // It finishes what it has, over the same link.
        let relay = Arc::clone(relay);
        relay.clone().shutdown.tracker().spawn(async move {
            tokio::select! {
                () = older.finished() => {}
                () = relay.shutdown.ended() => {}
            }
            relay.left(&older);
        });
    }
    entry.set_session(session);
    Ok(())
}

/// Why a poller's task gives its session up.
enum Turn {
    /// There is another session.
    Renewed,
    /// Nothing was heard for a while; what was in flight has failed.
    Silent,
    /// It is over, for this reason.
    Over(&'static str),
}

/// Sees to a registered bridge until it is gone.
async fn attend(relay: Arc<Relay>, entry: Arc<Entry>) {
    let mut draining = false;
    let why = loop {
        let Some(session) = entry.session() else {
            break "never admitted";
        };
        match live(&relay, &entry, &session, &mut draining).await {
            Turn::Renewed => {}
            Turn::Over(why) => break why,
            Turn::Silent => {
                relay.left(&session);
                tracing::info!(bridge = %session.identity.name, "bridge not heard of; what was in flight failed");
                let back = tokio::select! {
                    back = entry.link.contact() => back,
                    () = relay.shutdown.draining() => false,
                };
                if !back || admit(&relay, &entry).is_err() {
                    break "not heard of any more";
                }
            }
        }
    };
    if entry.link.end_with(Ending::Done) == Ending::Replaced && !entry.instance.is_empty() {
        relay.pollers.note_replaced(&entry);
    }
    relay.pollers.remove(&entry);
    if let Some(session) = entry.session() {
        relay.left(&session);
        let bridge = &session.identity;
        tracing::info!(user = %bridge.user, bridge = %bridge.name, why, "bridge gone");
    }
}

async fn live(relay: &Arc<Relay>, entry: &Arc<Entry>, session: &Arc<Session>, draining: &mut bool) -> Turn {
    let mut owner = entry.owner.subscribe();
    loop {
        let token = owner.borrow_and_update().clone();
        tokio::select! {
            loss = entry.link.lost() => return match loss {
                Loss::Ended => Turn::Over("ended"),
                Loss::Gone => Turn::Over("not heard of any more"),
                Loss::Silent => {
                    entry.link.fail_all();
                    Turn::Silent
                }
            },
            () = entry.renewed.notified() => return Turn::Renewed,
            _ = owner.changed() => {}
            () = token_end(&relay.tokens, &token, Duration::ZERO) => {
                entry.link.end(Ending::TokenEnded);
                return Turn::Over("its token ended");
            }
            () = session.finished() => {
                // Under the lock under which it would be registered again.
                let _entries = relay.pollers.lock();
                let current = entry.session().is_some_and(|current| Arc::ptr_eq(&current, session));
                if current && session.is_retired() && session.in_flight() == 0 {
                    entry.link.end(Ending::Done);
                    return Turn::Over("it has another link, or stops");
                }
            }
            () = relay.shutdown.draining(), if !*draining => {
                *draining = true;
                entry.link.drain();
            }
            () = relay.done_with(session), if *draining => return Turn::Over("the relay stops"),
            () = relay.shutdown.ended() => return Turn::Over("the relay stopped"),
        }
    }
}
