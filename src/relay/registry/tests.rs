//! Who is there, who gets a request, and who is waited for.

use futures_util::future::BoxFuture;
use http::{Request, Response};

use super::*;
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
async fn a_bridge_that_is_leaving_or_just_left_is_waited_for_and_a_stranger_is_not() {
    let registry = Arc::new(Registry::new(4));
    let user: Arc<str> = "ann".into();
    // Past the time in which everybody may come back after a start.
    tokio::time::advance(EXPECTED_BACK * 2).await;
    let deadline = || Instant::now() + Duration::from_secs(10);
    assert!(registry.await_bridge(&user, None, deadline()).await.is_none());
    let leaving = insert(&registry, identity("b", "1", "box"));
    leaving.retire();
    for left in [false, true] {
        if left {
            registry.remove(&leaving);
        }
        let later = Arc::clone(&registry);
        let back = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            insert(&later, identity("b", "2", "box"))
        });
        let found = registry.await_bridge(&user, Some("box"), deadline()).await.unwrap();
        assert_eq!(found.connection_id, back.await.unwrap().connection_id);
        assert!(registry.await_bridge(&user, Some("other"), deadline()).await.is_none());
        found.link().end(Ending::Done);
        registry.remove(&found);
    }
    tokio::time::advance(EXPECTED_BACK * 2).await;
    registry.remove(&leaving);
    tokio::time::advance(EXPECTED_BACK * 2).await;
    registry.sweep();
    assert!(registry.lock().is_empty());
}
