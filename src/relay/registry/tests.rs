//! Who is there, who gets a request, and who is waited for.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};

use super::*;
use crate::relay::auth::Scopes;
use crate::relay::auth::caller_keys::CallerKeys;
use crate::relay::auth::denials::Denials;
use crate::relay::auth::shares::{Memberships, Shared, With};
use crate::relay::auth::tokens::Tokens;
use crate::transport::{Body, Exchange, ExchangeError};

/// A link that carries nothing.
struct Double(AtomicBool);

impl Exchange for Double {
    fn call(&self, _: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, ExchangeError>> {
        Box::pin(async { Err(ExchangeError::Overloaded) })
    }
}

impl Link for Double {
    fn is_alive(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn silence(&self) -> Duration {
        Duration::ZERO
    }

    fn round_trip(&self) -> Option<Duration> {
        None
    }

    fn doubt(&self) {}

    fn end(&self, _: Ending) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn identity(bridge: &str, instance: &str, name: &str) -> Identity {
    Identity {
        user: "ann".into(),
        bridge_id: bridge.into(),
        client: Client::default(),
        name: name.into(),
        instance: instance.into(),
        priority: 0,
        ephemeral: false,
    }
}

fn insert(registry: &Registry, identity: Identity) -> Arc<Session> {
    registry
        .insert(identity, "ws", None, Arc::new(Double(AtomicBool::new(true))))
        .unwrap()
}

fn picked(registry: &Registry) -> Option<u64> {
    registry.pick("ann", None).map(|session| session.connection_id)
}

#[tokio::test(start_paused = true)]
async fn a_late_goodbye_does_not_remove_its_successor() {
    let registry = Registry::new(4);
    let old = insert(&registry, identity("b", "1", "box"));
    let new = insert(&registry, identity("b", "2", "box"));
    assert!(!old.link().is_alive());
    registry.remove(&old);
    assert_eq!(picked(&registry), Some(new.connection_id));
}

#[tokio::test(start_paused = true)]
async fn a_newer_connection_of_the_same_process_takes_the_work_and_the_age() {
    let registry = Registry::new(4);
    let old = insert(&registry, identity("b", "1", "box"));
    let work = old.enter(1).unwrap();
    tokio::time::advance(Duration::from_secs(5)).await;
    let new = insert(&registry, identity("b", "1", "box"));
    assert!(old.is_retired() && old.link().is_alive());
    assert_eq!((new.identity.name.as_str(), new.since), ("box", old.since));
    assert_eq!(picked(&registry), Some(new.connection_id));
    let finished = old.finished();
    let mut finished = std::pin::pin!(finished);
    assert!(futures_util::poll!(&mut finished).is_pending());
    drop(work);
    finished.await;
}

#[tokio::test(start_paused = true)]
async fn names_stay_short_and_are_given_once() {
    let registry = Registry::new(3);
    let long = "x".repeat(64);
    let names: Vec<String> = ["a", "b", "c"]
        .into_iter()
        .map(|bridge| insert(&registry, identity(bridge, "1", &long)).identity.name.clone())
        .collect();
    assert_eq!(
        names,
        [
            long.clone(),
            format!("{}-2", "x".repeat(62)),
            format!("{}-3", "x".repeat(62))
        ]
    );
    assert_eq!(registry.reserve_name(&identity("d", "1", "other")), Err(Full));
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_is_leaving_or_just_left_is_expected_and_a_stranger_is_not() {
    let registry = Registry::new(4);
    let is_expected = |name| matches!(registry.own("ann", name), Choice::Expected);
    let is_absent = |name| matches!(registry.own("ann", name), Choice::Absent);
    assert!(is_absent("box"));
    let leaving = insert(&registry, identity("b", "1", "box"));
    leaving.retire();
    assert!(is_expected("box") && is_absent("other"));
    registry.remove(&leaving);
    assert!(is_expected("box") && is_absent("other"));
    let change = registry.changed();
    let back = insert(&registry, identity("b", "2", "box"));
    change.await;
    assert!(matches!(registry.own("ann", "box"), Choice::Here(found) if found.connection_id == back.connection_id));
    registry.remove(&back);
    tokio::time::advance(EXPECTED_BACK * 2).await;
    assert!(is_absent("box"));
    registry.sweep();
    assert!(registry.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_bridge_did_outlasts_a_sweep_for_an_hour_and_no_longer() {
    let registry = Registry::new(4);
    let session = insert(&registry, identity("b", "1", "box"));
    let exchanges = 1;
    session.last_hour.add(last_hour::Done {
        exchanges,
        ..Default::default()
    });
    registry.remove(&session);
    tokio::time::advance(Duration::from_secs(50 * 60)).await;
    registry.sweep();
    let back = insert(&registry, identity("b", "2", "box"));
    assert_eq!(back.last_hour.sum().exchanges, exchanges);
    registry.remove(&back);
    tokio::time::advance(Duration::from_secs(50 * 60)).await;
    registry.sweep();
    assert!(registry.lock().is_empty());
}

/// The bridges in the order in which a caller with this user's name gets them, by their ids, and the one that gets work.
fn shared(registry: &Registry, shares: &[(&str, &str, With)], user: &str) -> (Vec<String>, Option<String>) {
    let tokens = Tokens::new(&[0; 32]);
    let all = shares.iter().map(|(owner, bridge, with)| {
        let (owner, bridge) = ((*owner).into(), (*bridge).into());
        (Shared { owner, bridge }, with.clone())
    });
    tokens.follow(
        CallerKeys::default(),
        all.collect(),
        Memberships::default(),
        Denials::default(),
    );
    let token = tokens.issue(user, Scopes::parse(None), None).unwrap();
    let identity = tokens.identify(token.expose()).now_or_never().unwrap().unwrap();
    let view = tokens.shared_with(&identity);
    let id = |session: Arc<Session>| session.identity.bridge_id.to_string();
    let first = match registry.any(user, &view) {
        Choice::Here(session) => Some(id(session)),
        Choice::Expected | Choice::Absent => None,
    };
    (registry.shared(&view).into_iter().map(id).collect(), first)
}

#[tokio::test(start_paused = true)]
async fn what_is_shared_by_name_goes_first_and_no_owner_fills_the_list() {
    let registry = Registry::new(400);
    let of = |owner: &str, id: &str, priority| Identity {
        user: owner.into(),
        priority,
        ..identity(id, "1", id)
    };
    let to_bob = || With::User("bob".into());
    let mut shares = vec![("ann", "mine", to_bob()), ("ann", "other", to_bob())];
    let many: Vec<String> = (0..300).map(|number| format!("open-{number}")).collect();
    for id in &many {
        insert(&registry, of("carl", id, 99));
        shares.push(("carl", id, With::All));
    }
    insert(&registry, of("ann", "mine", 0));
    insert(&registry, of("ann", "other", 1));
    insert(&registry, of("dora", "hers", 0));
    shares.push(("dora", "hers", With::All));
    let (listed, first) = shared(&registry, &shares, "bob");
    assert_eq!(listed[..2], ["other", "mine"]);
    assert_eq!((first.as_deref(), listed.len()), (Some("other"), 35));
    assert_eq!(listed.last().map(String::as_str), Some("hers"));
    // One of his own goes before them all, also while it is expected back.
    let own = insert(&registry, of("bob", "own", 0));
    assert_eq!(shared(&registry, &shares, "bob").1.as_deref(), Some("own"));
    registry.remove(&own);
    assert_eq!(shared(&registry, &shares, "bob").1, None);
    assert_eq!(shared(&registry, &[], "eve"), (vec![], None));
}
