//! Which bridge gets a request: one of the caller's own, or one that somebody else shares with the caller (protocol.md section 1).

use std::sync::Arc;

use tokio::time::Instant;

use super::Relay;
use super::address::Address;
use super::auth;
use super::dispatch::stopping;
use super::error::{Code, Error};
use super::registry::Session;
use super::router::{Named, Target};

/// The bridge that is meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
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

/// The bridge that is meant, and the path for it. A path with two readings means the caller's own bridge, if there is one, then one
/// that is shared.
///
/// # Errors
/// `forbidden` for a key that is limited to another bridge, `not_found` for a path of ours.
pub(super) fn choose(relay: &Relay, identity: &auth::Identity, target: Target) -> Result<(Wanted, String), Error> {
    let Target {
        bridge,
        path_and_query,
        longer,
    } = target;
    let user = &*identity.user;
    let (wanted, path) = match (bridge, longer) {
        (Some(Named::Own(first)), Some(longer)) if means_longer(relay, identity, &first, &longer.bridge) => {
            (Wanted::of(Named::Of(longer.bridge), user), longer.path_and_query?)
        }
        (Some(named), _) => (Wanted::of(named, user), path_and_query),
        (None, _) => (Wanted::Any, path_and_query),
    };
    let Some(only) = identity.bridge.as_deref() else {
        return Ok((wanted, path));
    };
    match wanted {
        Wanted::Any => Ok((Wanted::Own(only.to_owned()), path)),
        Wanted::Own(name) if name == only => Ok((Wanted::Own(name), path)),
        _ => {
            let detail = format!("this key reaches the bridge {only} only");
            Err(Error::new(Code::Forbidden, detail).because("key for another bridge"))
        }
    }
}

fn means_longer(relay: &Relay, identity: &auth::Identity, first: &str, longer: &Address) -> bool {
    let Address { owner, name } = longer;
    let user = &*identity.user;
    if relay.registry.has_named(user, first) {
        return false;
    }
    if owner == user {
        return relay.registry.has_named(user, name);
    }
    relay
        .registry
        .shares_named(&relay.tokens.shared_with(identity), owner, name)
}

/// Finds the bridge, and waits for it where it was here a moment ago.
///
/// # Errors
/// `no_bridge`; `draining` when the relay stops.
pub(super) async fn find(relay: &Relay, identity: &auth::Identity, wanted: &Wanted) -> Result<Arc<Session>, Error> {
    if let Some(session) = pick(relay, identity, wanted) {
        return Ok(session);
    }
    let _waiting = relay.metrics.wait();
    let deadline = Instant::now() + relay.config.wait_for_bridge;
    let found = match wanted {
        Wanted::Own(name) => relay.registry.await_bridge(&identity.user, Some(name), deadline).await,
        Wanted::Other(_) | Wanted::Any => await_any(relay, identity, wanted, deadline).await,
    };
    found.ok_or_else(|| no_bridge(relay, wanted))
}

/// That the bridge is not there, or not for the caller: nobody learns which.
pub(super) fn no_bridge(relay: &Relay, wanted: &Wanted) -> Error {
    if relay.shutdown.is_draining() {
        return stopping();
    }
    let detail = match wanted {
        Wanted::Any => "no bridge is connected; run 'tunnel bridge' on the desktop",
        _ => "no bridge of that name is connected; run 'tunnel bridge' on the desktop",
    };
    Error::new(Code::NoBridge, detail)
}

fn pick(relay: &Relay, identity: &auth::Identity, wanted: &Wanted) -> Option<Arc<Session>> {
    let registry = &relay.registry;
    let view = || relay.tokens.shared_with(identity);
    match wanted {
        Wanted::Own(name) => registry.pick(&identity.user, Some(name)),
        Wanted::Other(Address { owner, name }) => registry.pick_shared(&view(), owner, name),
        Wanted::Any => {
            let own = registry.pick(&identity.user, None);
            if own.is_some() || registry.awaits(&identity.user) {
                return own;
            }
            registry.shared(&view()).into_iter().next()
        }
    }
}

async fn await_any(
    relay: &Relay,
    identity: &auth::Identity,
    wanted: &Wanted,
    deadline: Instant,
) -> Option<Arc<Session>> {
    loop {
        let change = relay.registry.changed();
        let shared = relay.tokens.changed();
        if let Some(session) = pick(relay, identity, wanted) {
            return Some(session);
        }
        if !expects(relay, identity, wanted) {
            return None;
        }
        tokio::select! {
            () = change => {}
            () = shared => {}
            () = tokio::time::sleep_until(deadline) => return None,
        }
    }
}

fn expects(relay: &Relay, identity: &auth::Identity, wanted: &Wanted) -> bool {
    let registry = &relay.registry;
    if registry.is_fresh() {
        return true;
    }
    let view = relay.tokens.shared_with(identity);
    match wanted {
        Wanted::Other(Address { owner, name }) => registry.shares_named(&view, owner, name),
        Wanted::Own(_) | Wanted::Any => registry.awaits(&identity.user) || registry.awaits_shared(&view),
    }
}
