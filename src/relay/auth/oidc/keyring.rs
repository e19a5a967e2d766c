//! The provider's keys: one task fetches them, now and then and when a token names one that is not known, but never more often than
//! it may. One that the provider names no more, and all of them while the provider is away, go on for a while.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use jsonwebtoken::Header;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::keyset::{Endpoints, JwkSet, KeySet};
use super::{Issuer, PATIENCE, Settings, Timing};
use crate::relay::auth::keys::KeyId;
use crate::relay::auth::refusal::Denied;
use crate::transport::issuer::{FetchError, discover, json};

/// So many names of unknown keys are remembered.
const MOST_MISSED: usize = 1024;
/// The wait after a first failure; each one doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The keys, and who keeps them fresh.
pub(super) struct Keyring {
    state: watch::Sender<State>,
    wanted: Notify,
    timing: Timing,
    /// Keys that a token named and that were not there, by a hash of the name: with how many fetches it is certain that there is none.
    missed: Mutex<HashMap<u64, u64>>,
    names: RandomState,
}

/// What is known of the provider.
#[derive(Default)]
struct State {
    /// Its keys, and when it last told them.
    set: Option<(Arc<KeySet>, Instant)>,
    /// When the last fetch was over.
    tried: Option<Instant>,
    /// Fetches that began, and those that are over.
    begun: u64,
    tries: u64,
    failed: bool,
    /// What was passed over in what it told.
    flaws: Vec<String>,
}

struct Fetched {
    set: KeySet,
    holds: Option<Duration>,
    flaws: Vec<FetchError>,
}

impl Keyring {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            state: watch::Sender::new(State::default()),
            wanted: Notify::new(),
            timing,
            missed: Mutex::default(),
            names: RandomState::new(),
        }
    }

    /// The keys, if one of them is for a token with this header. Waits for a fetch only where none was made lately.
    ///
    /// # Errors
    /// `UnknownSigner`; `SignerNotYetKnown` while a fetch that may bring the key is still to come; `ProviderAway`.
    pub(super) async fn find(&self, header: &Header) -> Result<Arc<KeySet>, Denied> {
        let mut state = self.state.subscribe();
        let tries = {
            let state = state.borrow_and_update();
            let rests = state.tried.is_some_and(|at| at.elapsed() < self.timing.pause);
            match state.set() {
                Some(set) if set.has(header) => return Ok(set),
                Some(set) if set.names(header) => return Err(Denied::UnknownSigner),
                _ if state.failed => return Err(Denied::ProviderAway),
                set => {
                    let missing = self.missing(header, &state);
                    self.wanted.notify_one();
                    if set.is_some() && rests {
                        return Err(missing);
                    }
                    state.tries
                }
            }
        };
        // One that waits in vain finds what the others do.
        let _ = timeout(PATIENCE, state.wait_for(|state| state.tries > tries)).await;
        let state = self.state.borrow();
        match state.set() {
            Some(set) if set.has(header) => return Ok(set),
            Some(_) if !state.failed => {}
            _ => return Err(Denied::ProviderAway),
        }
        let missing = self.missing(header, &state);
        if missing != Denied::UnknownSigner {
            self.wanted.notify_one();
        }
        Err(missing)
    }

    /// What a key that is not there means: nothing yet, until a fetch that began after it was first missed is over.
    fn missing(&self, header: &Header, state: &State) -> Denied {
        let name = self.names.hash_one(&header.kid);
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        if missed.len() >= MOST_MISSED && !missed.contains_key(&name) {
            missed.clear();
        }
        let certain = *missed.entry(name).or_insert(state.begun + 1);
        if state.tries >= certain {
            Denied::UnknownSigner
        } else {
            Denied::SignerNotYetKnown
        }
    }

    /// Where people sign in, as the provider told the last time.
    pub(super) fn endpoints(&self) -> Option<Endpoints> {
        let state = self.state.borrow();
        let (set, _) = state.set.as_ref()?;
        set.endpoints.clone()
    }

    /// Keeps the keys fresh for as long as it is polled; tells which are accepted before any is used.
    pub(super) async fn keep(&self, settings: &Settings, accepted: impl Fn(Vec<KeyId>) + Sync) -> Infallible {
        tokio::select! {
            never = self.fetch(settings, &accepted) => never,
            never = self.expire(settings, &accepted) => never,
        }
    }

    async fn fetch(&self, settings: &Settings, accepted: &(impl Fn(Vec<KeyId>) + Sync)) -> Infallible {
        let mut failures = 0;
        loop {
            self.state.send_modify(|state| state.begun += 1);
            let fetched = fetch_keys(settings).await;
            self.tell(settings, &fetched);
            let pause = match &fetched {
                Ok(fetched) => {
                    failures = 0;
                    let holds = fetched.holds.unwrap_or(self.timing.fresh).min(self.timing.fresh);
                    holds.max(self.timing.pause)
                }
                Err(_) => {
                    failures += 1;
                    FIRST_RETRY
                        .saturating_mul(1 << (failures - 1).min(16))
                        .min(self.timing.pause)
                }
            };
            // Who asked until now has what was fetched.
            let _ = self.wanted.notified().now_or_never();
            let now = Instant::now();
            self.note(fetched.ok(), now, accepted);
            let asked = async {
                self.wanted.notified().await;
                sleep_until(now + self.timing.pause).await;
            };
            tokio::select! {
                () = sleep_until(now + pause) => {}
                () = asked => {}
            }
        }
    }

    fn note(&self, fetched: Option<Fetched>, now: Instant, accepted: &impl Fn(Vec<KeyId>)) {
        let fresh = fetched.map(|Fetched { mut set, flaws, .. }| {
            if let Some((older, told)) = &self.state.borrow().set {
                set.keep(older, *told + self.timing.kept, now);
            }
            accepted(set.ids());
            (Arc::new(set), flaws.iter().map(ToString::to_string).collect())
        });
        self.state.send_modify(|state| {
            state.failed = fresh.is_none();
            state.tries += 1;
            state.tried = Some(now);
            if let Some((set, flaws)) = fresh {
                state.set = Some((set, now));
                state.flaws = flaws;
            }
        });
    }

    /// Ends keys when their time is over.
    async fn expire(&self, settings: &Settings, accepted: &(impl Fn(Vec<KeyId>) + Sync)) -> Infallible {
        let mut state = self.state.subscribe();
        loop {
            let end = state.borrow_and_update().end(&self.timing);
            let over = async {
                match end {
                    Some(end) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => self.end_old(settings, accepted),
                // The sender is ours.
                _ = state.changed() => {}
            }
        }
    }

    fn end_old(&self, settings: &Settings, accepted: &impl Fn(Vec<KeyId>)) {
        let now = Instant::now();
        let set = self.state.borrow().set.as_ref().and_then(|(set, told)| {
            let set = (now < *told + self.timing.stale).then(|| set.at(now))?;
            Some((Arc::new(set), *told))
        });
        if set.is_none() {
            let issuer = settings.issuer.as_str();
            tracing::warn!(
                issuer,
                "the sign-in provider was away for too long: nobody who signed in is let in until it is back"
            );
        }
        accepted(set.as_ref().map(|(set, _)| set.ids()).unwrap_or_default());
        self.state.send_modify(|state| state.set = set);
    }

    /// Tells the log what changed.
    fn tell(&self, settings: &Settings, fetched: &Result<Fetched, FetchError>) {
        let issuer = settings.issuer.as_str();
        let state = self.state.borrow();
        match fetched {
            Ok(fetched) => {
                if state.failed || state.tries == 0 {
                    tracing::info!(issuer, keys = fetched.set.ids().len(), "sign-in is ready");
                }
                let new = |flaw: &&FetchError| !state.flaws.contains(&flaw.to_string());
                for flaw in fetched.flaws.iter().filter(new) {
                    tracing::warn!(issuer, %flaw, "something that the sign-in provider told is of no use");
                }
            }
            Err(error) if !state.failed && state.set.is_some() => {
                tracing::warn!(issuer, %error, "the sign-in provider is away; its keys of before go on");
            }
            Err(error) if !state.failed => {
                tracing::warn!(issuer, %error, "nobody can sign in yet; the relay's own tokens work, and it goes on trying");
            }
            Err(_) => {}
        }
    }
}

impl State {
    fn set(&self) -> Option<Arc<KeySet>> {
        self.set.as_ref().map(|(set, _)| Arc::clone(set))
    }

    /// When the next key is over, or all of them are.
    fn end(&self, timing: &Timing) -> Option<Instant> {
        let (set, told) = self.set.as_ref()?;
        set.ends().chain([*told + timing.stale]).min()
    }
}

/// What is wanted of what the provider tells of itself (OpenID Connect Discovery §3).
#[derive(Deserialize)]
struct Discovery {
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    end_session_endpoint: Option<String>,
}

impl Discovery {
    /// None where a page cannot sign in, or is to go where it should not.
    fn endpoints(&self, issuer: &Issuer) -> Option<Endpoints> {
        let checked = |url: &Option<String>| url.clone().filter(|url| issuer.place(url).is_ok());
        Some(Endpoints {
            authorization: checked(&self.authorization_endpoint)?,
            token: checked(&self.token_endpoint)?,
            end_session: checked(&self.end_session_endpoint),
        })
    }
}

async fn fetch_keys(settings: &Settings) -> Result<Fetched, FetchError> {
    let (issuer, dialer) = (&settings.issuer, &settings.dialer);
    let told = discover::<Discovery>(dialer, issuer).await?;
    let endpoints = told.endpoints(issuer);
    let place = issuer.place(&told.jwks_uri)?;
    let mut flaws = Vec::new();
    let userinfo = told.userinfo_endpoint.and_then(|url| {
        let place = issuer.place(&url);
        place.map_err(|flaw| flaws.push(flaw)).ok()
    });
    let keys = json::<JwkSet>(dialer, &place).await?;
    let set = KeySet::read(keys.content, userinfo, endpoints);
    if set.ids().is_empty() {
        let place = place.to_string();
        let what = "key that could verify tokens (RS256, ES256, EdDSA)";
        flaws.push(FetchError::Lacks { place, what });
    }
    Ok(Fetched {
        set,
        holds: keys.holds,
        flaws,
    })
}
