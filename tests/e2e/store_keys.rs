//! Keys for callers and codes for bridges, as the story of the store has them.

use serde_json::json;
use tunnel::relay::auth::tokens::now;
use tunnel::relay::store::archive::Entry;
use tunnel::relay::store::keys::{Code, Key, Maker};
use tunnel::relay::store::{Store, StoreError};

use crate::store::{FAR_AWAY, batch, token};

/// What the store promises of them; ann and bob are known already.
pub(crate) async fn tell(store: &Store) {
    keys_come_and_go(store).await;
    a_code_is_claimed_once(store).await;
    who_is_shut_out_leaves_nothing_behind(store).await;
    what_one_user_leaves_is_bounded(store).await;
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
        maker: Some("maker".into()),
    }
}

async fn keys_come_and_go(store: &Store) {
    for (id, user) in [("k1", "ann"), ("k2", "bob"), ("k3", "ann")] {
        let hash = format!("hash of {id}");
        store.add_key(&key(id, user), &hash, &Maker::operator()).await.unwrap();
    }
    let again = store.add_key(&key("k4", "ann"), "hash of k1", &Maker::operator()).await;
    assert!(again.is_err());
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
        maker: Maker::operator(),
    };
    store.add_code(&code("bob"), "old", now()).await.unwrap();
    assert_eq!(store.code("old").await.unwrap(), None);
    store.add_code(&code("bob"), "fresh", FAR_AWAY).await.unwrap();
    let fresh = store.code("fresh").await.unwrap().unwrap();
    assert_eq!((fresh.user.as_str(), &fresh.maker.id), ("bob", &None));
    let tries = futures_util::future::join_all((0..4).map(async |n| {
        let paired = token(&format!("paired{n}"), "bob");
        store.claim("fresh", &fresh, &paired).await
    }));
    assert_eq!(tries.await.iter().filter(|claimed| claimed.is_ok()).count(), 1);
    let tokens = store.tokens().await.unwrap();
    assert_eq!(tokens.iter().filter(|token| token.id.starts_with("paired")).count(), 1);
    assert!(matches!(
        store.claim("old", &fresh, &token("x", "bob")).await,
        Err(StoreError::Absent)
    ));
    for n in 0..10 {
        store.add_code(&code("gina"), &format!("c{n}"), FAR_AWAY).await.unwrap();
    }
    assert!(matches!(
        store.add_code(&code("gina"), "c10", FAR_AWAY).await,
        Err(StoreError::Full)
    ));
}

async fn who_is_shut_out_leaves_nothing_behind(store: &Store) {
    let maker = |id: &str| Maker {
        id: Some(id.into()),
        issued: now(),
        expires: Some(FAR_AWAY),
    };
    let code = |user: &str, maker: Maker| Code {
        user: user.into(),
        maker,
    };
    let refused = async |user: &str, maker: &Maker| {
        let key = store.add_key(&key("k9", user), "hash of k9", maker).await;
        let code = store.add_code(&code(user, maker.clone()), "c9", FAR_AWAY).await;
        assert!(matches!(key, Err(StoreError::ShutOut)), "{user}: {key:?}");
        assert!(matches!(code, Err(StoreError::ShutOut)), "{user}: {code:?}");
    };
    // A code that was made before its maker was revoked; that one need not be known here.
    let dave = code("dave", maker("revoked later"));
    store.add_code(&dave, "of dave", FAR_AWAY).await.unwrap();
    assert_eq!(store.code("of dave").await.unwrap(), Some(dave.clone()));
    store.revoke("revoked later").await.unwrap();
    let claimed = store.claim("of dave", &dave, &token("never", "dave")).await;
    assert!(matches!(claimed, Err(StoreError::ShutOut)), "{claimed:?}");
    refused("dave", &maker("revoked later")).await;

    let waiting = code("dave", Maker::operator());
    store.add_code(&waiting, "waiting", FAR_AWAY).await.unwrap();
    store.disable("dave").await.unwrap();
    let claimed = store.claim("waiting", &waiting, &token("never", "dave")).await;
    assert!(matches!(claimed, Err(StoreError::ShutOut)), "{claimed:?}");
    refused("dave", &maker("another")).await;
    refused("dave", &Maker::operator()).await;
    store.enable("dave").await.unwrap();
    assert_eq!(store.code("waiting").await.unwrap(), None);

    let before = maker("issued before");
    store.delete("dave").await.unwrap();
    refused("dave", &before).await;
    assert!(store.tokens().await.unwrap().iter().all(|token| token.user != "dave"));
    assert_eq!(store.keys(Some("dave")).await.unwrap(), []);
}

async fn what_one_user_leaves_is_bounded(store: &Store) {
    let rows = |table: &str, more: serde_json::Value| {
        let row = |n: u64| {
            let mut row = more.clone();
            (row["id"], row["user_name"], row["issued"]) = (format!("{table} {n}").into(), "erin".into(), n.into());
            if table == "keys" {
                row["hash"] = row["id"].clone();
            }
            Entry {
                table: table.into(),
                row: row.as_object().unwrap().clone(),
            }
        };
        (0..5000).map(row).collect::<Vec<_>>()
    };
    store.load(&rows("keys", json!({"revoked": 1}))).await.unwrap();
    let added = store
        .add_key(&key("k8", "erin"), "hash of k8", &Maker::operator())
        .await;
    assert!(matches!(added, Err(StoreError::Full)), "{added:?}");
    let listed = store.keys(Some("erin")).await.unwrap();
    assert_eq!((listed.len(), listed[0].issued), (1000, 4999));
    let code = Code {
        user: "erin".into(),
        maker: Maker::operator(),
    };
    store.add_code(&code, "of erin", FAR_AWAY).await.unwrap();
    store
        .load(&rows("tokens", json!({"scopes": "bridge", "expires": 1})))
        .await
        .unwrap();
    let more = store.add_code(&code, "more", FAR_AWAY).await;
    assert!(matches!(more, Err(StoreError::Full)), "{more:?}");
    let claimed = store.claim("of erin", &code, &token("never", "erin")).await;
    assert!(matches!(claimed, Err(StoreError::Full)), "{claimed:?}");
    store.prune(0, 2).await.unwrap();
    store.delete("erin").await.unwrap();
}
