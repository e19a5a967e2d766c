//! Keys for callers and codes for bridges, as the story of the store has them.

use tunnel::relay::auth::tokens::now;
use tunnel::relay::store::keys::{Code, Key};
use tunnel::relay::store::{Store, StoreError};

use crate::store::{FAR_AWAY, batch, token};

/// What the store promises of them; ann and bob are known already.
pub(crate) async fn tell(store: &Store) {
    keys_come_and_go(store).await;
    a_code_is_claimed_once(store).await;
}

fn key(id: &str, user: &str) -> Key {
    Key {
        id: id.into(),
        user: user.into(),
        label: Some("tablet".into()),
        bridge: Some("box".into()),
        rate: Some("20/s".into()),
        issued: 100,
        expires: Some(FAR_AWAY),
        last_used: None,
        revoked: None,
    }
}

async fn keys_come_and_go(store: &Store) {
    for (id, user) in [("k1", "ann"), ("k2", "bob"), ("k3", "ann")] {
        store.add_key(&key(id, user), &format!("hash of {id}")).await.unwrap();
    }
    assert!(store.add_key(&key("k4", "ann"), "hash of k1").await.is_err());
    assert_eq!(
        store.keys(None).await.unwrap(),
        [key("k1", "ann"), key("k3", "ann"), key("k2", "bob")]
    );
    let before = store.revision().await.unwrap();
    assert!(matches!(
        store.revoke_key("k2", Some("ann")).await,
        Err(StoreError::Absent)
    ));
    store.revoke_key("k2", Some("bob")).await.unwrap();
    store.revoke_key("k3", None).await.unwrap();
    assert!(matches!(store.revoke_key("k3", None).await, Err(StoreError::Absent)));
    assert_eq!(store.revision().await.unwrap(), before + 2);
    assert_eq!(format!("{:?}", store.orders().await.unwrap().keys), "CallerKeys(1)");
    let mut seen = batch(100, vec![]);
    (seen.writer, seen.keys) = ("a third relay".into(), vec![("k1".into(), 7200)]);
    store.record(&seen).await.unwrap();
    assert_eq!(store.keys(Some("ann")).await.unwrap()[0].last_used, Some(7200));
    let users = store.users().await.unwrap();
    assert_eq!(users.iter().map(|user| user.keys).collect::<Vec<_>>(), [1, 0, 0]);
}

async fn a_code_is_claimed_once(store: &Store) {
    let code = |user: &str| Code {
        user: user.into(),
        life: 60,
    };
    store.add_code(&code("bob"), "old", now()).await.unwrap();
    assert_eq!(store.code("old").await.unwrap(), None);
    store.add_code(&code("bob"), "fresh", FAR_AWAY).await.unwrap();
    assert_eq!(store.code("fresh").await.unwrap(), Some(code("bob")));
    let tries = futures_util::future::join_all((0..4).map(async |n| {
        let paired = token(&format!("paired{n}"), "bob");
        store.claim("fresh", &paired).await
    }));
    assert_eq!(tries.await.iter().filter(|claimed| claimed.is_ok()).count(), 1);
    let tokens = store.tokens().await.unwrap();
    assert_eq!(tokens.iter().filter(|token| token.id.starts_with("paired")).count(), 1);
    assert!(matches!(
        store.claim("old", &token("x", "bob")).await,
        Err(StoreError::Absent)
    ));
    for n in 0..10 {
        store.add_code(&code("carl"), &format!("c{n}"), FAR_AWAY).await.unwrap();
    }
    assert!(matches!(
        store.add_code(&code("carl"), "c10", FAR_AWAY).await,
        Err(StoreError::Full)
    ));
}
