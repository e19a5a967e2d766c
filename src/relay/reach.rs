//! Which bridge gets a request: one of the caller's own, or one that somebody else shares with the caller (protocol.md section 1).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Relay;
use super::address::Address;
use super::auth;
use super::dispatch::stopping;
use super::error::{Code, Error};
use super::registry::{Choice, Session};
use super::router::{Named, Target};

/// Between two looks of one who waits: bridges may come and go by the thousand while others wait for theirs.
const PACE: Duration = Duration::from_millis(50);

/// The bridge that is meant.
#[derive(Debug)]
enum Wanted {
    /// The caller's own of this name.
    Own(String),
    /// Somebody else's.
    Other(Address),
    /// None is named.
    Any,
}

impl Wanted {
    fn of(named: Named, user: &str) -> Self {
        match named {
            Named::Own(name) => Self::Own(name),
            Named::Of(address) if address.owner == user => Self::Own(address.name),
            Named::Of(address) => Self::Other(address),
        }
    }
}

/// What a request may mean: a bridge, and the path there if it may be forwarded.
#[derive(Debug)]
struct Reading {
    wanted: Wanted,
    path: Result<String, Error>,
}

/// All that it may mean: what comes first where there is such a bridge, or none at all.
#[derive(Debug)]
pub(super) struct Meant {
    first: Reading,
    second: Option<Reading>,
}

impl Meant {
    /// What the caller may mean by this: `/b/X/Y/…` the caller's own bridge X, or else the bridge Y of the user X.
    ///
    /// # Errors
    /// `forbidden` for a key that is limited to another bridge.
    pub(super) fn of(identity: &auth::Identity, target: Target) -> Result<Self, Error> {
        let user = &*identity.user;
        let only = identity.bridge.as_deref();
        let wanted = match (target.bridge, only) {
            (Some(named), _) => Wanted::of(named, user),
            (None, Some(only)) => Wanted::Own(only.to_owned()),
            (None, None) => Wanted::Any,
        };
        let first = Reading {
            wanted,
            path: Ok(target.path_and_query),
        };
        let second = target.longer.map(|longer| Reading {
            wanted: Wanted::of(Named::Of(longer.bridge), user),
            path: longer.path_and_query,
        });
        let reaches = |reading: &Reading| match (&reading.wanted, only) {
            (_, None) => true,
            (Wanted::Own(name), Some(only)) => name == only,
            _ => false,
        };
        let mut readings = [Some(first), second].into_iter().flatten().filter(reaches);
        match readings.next() {
            Some(first) => Ok(Self {
                first,
                second: readings.next(),
            }),
            None => {
                let detail = format!("this key reaches the bridge {} only", only.unwrap_or_default());
                Err(Error::new(Code::Forbidden, detail).because("key for another bridge"))
            }
        }
    }

    /// What is meant at this moment, and what came of it.
    fn now(&self, relay: &Relay, identity: &auth::Identity) -> (Choice, &Reading) {
        let view = relay.tokens.shared_with(identity);
        let registry = &relay.registry;
        let choose = |reading: &Reading| match &reading.wanted {
            Wanted::Own(name) => registry.own(&identity.user, name),
            Wanted::Other(Address { owner, name }) => registry.of_other(&view, owner, name),
            Wanted::Any => registry.any(&identity.user, &view),
        };
        let readings = [Some(&self.first), self.second.as_ref()].into_iter().flatten();
        let mut chosen = readings.map(|reading| (choose(reading), reading));
        let is_there = |(choice, _): &(Choice, _)| !matches!(choice, Choice::Absent);
        chosen.find(is_there).unwrap_or((Choice::Absent, &self.first))
    }
}

/// A bridge, with its owner if that is somebody else.
pub type Visible = (Option<Arc<str>>, Arc<Session>);

impl Relay {
    /// The bridges that the caller may see: its own first, then those that others share with it.
    pub fn visible(&self, identity: &auth::Identity) -> Vec<Visible> {
        let mut own = self.registry.list(&identity.user);
        if let Some(only) = &identity.bridge {
            own.retain(|session| *session.identity.name == **only);
        }
        let shared = self.registry.shared(&self.tokens.shared_with(identity));
        let shared = shared.into_iter().map(|session| {
            let owner = Arc::clone(&session.identity.user);
            (Some(owner), session)
        });
        own.into_iter().map(|session| (None, session)).chain(shared).collect()
    }
}

/// Finds the bridge, and the path for it; waits for one that was here a moment ago.
///
/// # Errors
/// `no_bridge`, `not_found` for a path of ours; `draining` when the relay stops.
pub(super) async fn find<'a>(
    relay: &Relay,
    identity: &auth::Identity,
    meant: &'a Meant,
) -> Result<(Arc<Session>, &'a str), Error> {
    let mut waiting = None;
    let deadline = Instant::now() + relay.config.wait_for_bridge;
    loop {
        let (looked, change, shared) = (Instant::now(), relay.registry.changed(), relay.tokens.changed());
        let (choice, reading) = meant.now(relay, identity);
        let path = reading.path.as_deref().map_err(Clone::clone)?;
        match choice {
            Choice::Here(session) => return Ok((session, path)),
            // Right after a start it is not known yet who was here before.
            Choice::Absent if !relay.registry.is_fresh() => return Err(no_bridge(relay, meant)),
            Choice::Expected | Choice::Absent => {}
        }
        waiting.get_or_insert_with(|| relay.metrics.wait());
        tokio::select! {
            () = change => {}
            () = shared => {}
            () = sleep_until(deadline) => return Err(no_bridge(relay, meant)),
        }
        sleep_until(looked + PACE).await;
    }
}

/// That the bridge is not there, or not for the caller: nobody learns which.
pub(super) fn no_bridge(relay: &Relay, meant: &Meant) -> Error {
    if relay.shutdown.is_draining() {
        return stopping();
    }
    let detail = match meant.first.wanted {
        Wanted::Any => "no bridge is connected; run 'tunnel bridge' on the desktop",
        _ => "no bridge of that name is connected; run 'tunnel bridge' on the desktop",
    };
    Error::new(Code::NoBridge, detail)
}
