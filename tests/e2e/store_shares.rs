//! Shares, and groups of users, as the story of the store has them.

use serde_json::json;
use tunnel::relay::auth::shares::groups;
use tunnel::relay::auth::tokens::now;
use tunnel::relay::store::archive::Entry;
use tunnel::relay::store::keys::Maker;
use tunnel::relay::store::shares::{Membership, Share};
use tunnel::relay::store::usage::Whose;
use tunnel::relay::store::{Store, StoreError};

use crate::store::{FAR_AWAY, batch};

/// What the store promises of them; of ann and bob, bridges are known already.
pub(crate) async fn tell(store: &Store) {
    shares_come_and_go(store).await;
    who_is_shut_out_shares_nothing(store).await;
    shares_are_bounded_and_end_with_their_bridge(store).await;
    a_newer_word_on_groups_counts(store).await;
    usage_of_bridges_is_that_of_everybody(store).await;
}

fn share(id: &str, owner: &str, bridge: &str, with: &str) -> Share {
    Share {
        id: id.into(),
        owner: owner.into(),
        bridge: bridge.into(),
        name: "box".into(),
        with: with.parse().unwrap(),
        since: now(),
    }
}

async fn shares_come_and_go(store: &Store) {
    let maker = Maker::operator();
    let before = store.revision().await.unwrap();
    let first = share("s1", "ann", "b1", "user:bob");
    assert_eq!(store.share(&first, &maker).await.unwrap(), first);
    let again = store.share(&share("s2", "ann", "b1", "user:bob"), &maker).await;
    assert_eq!(again.unwrap(), first, "the share that is there");
    assert_eq!(store.revision().await.unwrap(), before + 1);
    for (id, owner, bridge, with) in [
        ("s3", "ann", "b1", "group:staff"),
        ("s4", "bob", "b2", "all"),
        ("s5", "bob", "b2", "user:all"),
        ("s6", "bob", "b2", "user:ann"),
    ] {
        store.share(&share(id, owner, bridge, with), &maker).await.unwrap();
    }
    let ids = async |owner| {
        let shares = store.shares(owner).await.unwrap();
        shares.into_iter().map(|share| share.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(Some("ann")).await, ["s3", "s1"]);
    assert_eq!(ids(None).await.len(), 5);
    assert_eq!(ids(Some("nobody")).await.len(), 0);
    let of_another = store.unshare("s4", Some("ann")).await;
    assert!(matches!(of_another, Err(StoreError::Absent)));
    store.unshare("s4", Some("bob")).await.unwrap();
    store.unshare("s5", None).await.unwrap();
    assert!(matches!(store.unshare("s5", None).await, Err(StoreError::Absent)));
}

async fn who_is_shut_out_shares_nothing(store: &Store) {
    let shut_out = store.share(&share("s9", "carl", "b9", "all"), &Maker::operator()).await;
    assert!(matches!(shut_out, Err(StoreError::ShutOut)), "{shut_out:?}");
}

async fn shares_are_bounded_and_end_with_their_bridge(store: &Store) {
    let row = |n: usize| {
        let row = json!({
            "id": format!("many {n}"), "owner": "fred", "bridge_id": "forgotten", "bridge_name": "box",
            "kind": "user", "name": n.to_string(), "since": 1,
        });
        Entry {
            table: "shares".into(),
            row: row.as_object().unwrap().clone(),
        }
    };
    store.load(&(0..1000).map(row).collect::<Vec<_>>()).await.unwrap();
    let one_more = store.share(&share("s8", "fred", "b8", "all"), &Maker::operator()).await;
    assert!(matches!(one_more, Err(StoreError::Full)), "{one_more:?}");
    let before = store.revision().await.unwrap();
    store.prune(0, 2).await.unwrap();
    assert_eq!(store.shares(Some("fred")).await.unwrap(), []);
    assert_eq!(store.revision().await.unwrap(), before + 1, "relays are told");
    assert_eq!(store.shares(Some("ann")).await.unwrap().len(), 2);
}

async fn a_newer_word_on_groups_counts(store: &Store) {
    let mut number = 100;
    let mut say = async |user: &str, names: &[&str], said: u64| {
        number += 1;
        let mut said_now = batch(number, vec![]);
        said_now.memberships = vec![Membership {
            user: user.into(),
            groups: groups(names.iter().copied()),
            said,
        }];
        let before = store.revision().await.unwrap();
        store.record(&said_now).await.unwrap();
        store.revision().await.unwrap() - before
    };
    let now = now();
    assert_eq!(say("bob", &["staff", "all"], now - 100).await, 1);
    assert_eq!(say("bob", &["all", "staff"], now - 90).await, 0, "the same");
    assert_eq!(say("bob", &[], now - 95).await, 0, "an older word");
    assert_eq!(say("bob", &["staff"], now - 80).await, 1);
    assert_eq!(
        say("bob", &["staff"], now + 2 * 24 * 3600).await,
        1,
        "so that it is remembered"
    );
    assert_eq!(say("ann", &["staff"], now).await, 1);
}

async fn usage_of_bridges_is_that_of_everybody(store: &Store) {
    let total = async |whose, user| store.total(whose, user, 0, FAR_AWAY).await.unwrap().exchanges;
    let (ann, bob) = (total(Whose::User, "ann").await, total(Whose::User, "bob").await);
    assert!(ann > 0 && bob > 0);
    assert_eq!(total(Whose::Bridges, "ann").await, ann + bob);
    assert_eq!(total(Whose::Bridges, "bob").await, 0);
    let lines = store.usage(Whose::Bridges, "ann", 0, FAR_AWAY, FAR_AWAY).await.unwrap();
    let mut users: Vec<_> = lines.iter().map(|line| line.user.as_str()).collect();
    users.dedup();
    assert_eq!(users, ["ann", "bob"]);
    assert!(lines.iter().all(|line| line.token.is_none() && line.label.is_none()));
}
