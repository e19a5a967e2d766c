//! What the store forgets with time, and what it keeps for ever, on each database.

use std::collections::BTreeSet;

use rusqlite::Connection;
use serde_json::{Value, json};
use tunnel::relay::auth::tokens::now;
use tunnel::relay::store::archive::Entry;
use tunnel::relay::store::keys::{Code, Maker};
use tunnel::relay::store::{Store, StoreConfig};

use crate::harness::postgres::Postgres;
use crate::store::{FAR_AWAY, batch, postgres, seen_bridge, sqlite};

/// Of tokens and keys: id, when it ends, when it was revoked. What ended before 1000 is too old.
const TRACES: [(&str, Option<u64>, Option<u64>); 7] = [
    ("ended", Some(999), None),
    ("ended late", Some(1000), None),
    ("endless", None, None),
    ("revoked", None, Some(999)),
    ("revoked late", None, Some(1000)),
    ("revoked before it ended", Some(FAR_AWAY), Some(999)),
    ("revoked and ended", Some(999), Some(998)),
];

fn entry(table: &str, row: &Value) -> Entry {
    Entry {
        table: table.into(),
        row: row.as_object().unwrap().clone(),
    }
}

/// Tokens, keys and bridges, as old as may be and older.
async fn fill(store: &Store) {
    let token = |(id, expires, revoked)| json!({"id": id, "user_name": "ann", "scopes": "api", "issued": 1, "expires": expires, "revoked": revoked});
    let key = |(id, expires, revoked)| json!({"id": id, "user_name": "ann", "hash": id, "issued": 1, "expires": expires, "revoked": revoked});
    let tokens = TRACES.map(|trace| entry("tokens", &token(trace)));
    let keys = TRACES.map(|trace| entry("keys", &key(trace)));
    store.load(&[tokens, keys].concat()).await.unwrap();
    let mut seen = batch(1, vec![]);
    seen.bridges = vec![seen_bridge("old", "ann"), seen_bridge("seen late", "ann")];
    (seen.bridges[0].seen, seen.bridges[1].seen) = (999, 1000);
    store.record(&seen).await.unwrap();
}

async fn add_code(store: &Store, hash: &str, expires: u64) {
    let code = Code {
        user: "ann".into(),
        maker: Maker::operator(),
    };
    store.add_code(&code, hash, expires).await.unwrap();
}

#[tokio::test]
async fn what_is_too_old_is_forgotten_and_a_revoked_token_never() {
    let server = Postgres::start().await;
    let url = server.database().await;
    let folder = tempfile::tempdir().unwrap();
    for config in [postgres(&url), sqlite(folder.path())] {
        let store = Store::open(&config).await.unwrap();
        fill(&store).await;
        add_code(&store, "waits", FAR_AWAY).await;
        add_code(&store, "ended", now() - 1).await;
        store.prune(0, 1000).await.unwrap();

        let tokens: BTreeSet<_> = store
            .tokens()
            .await
            .unwrap()
            .into_iter()
            .map(|token| token.id)
            .collect();
        let all = TRACES.map(|(id, ..)| id.to_owned());
        assert_eq!(tokens, all.into_iter().filter(|id| id != "ended").collect());
        let denials = store.orders().await.unwrap().denials;
        for (id, _, revoked) in TRACES {
            assert_eq!(denials.has_token(id), revoked.is_some(), "{id}");
        }
        let keys: BTreeSet<_> = store.keys(None).await.unwrap().into_iter().map(|key| key.id).collect();
        assert_eq!(
            keys,
            ["ended late", "endless", "revoked late"].map(str::to_owned).into()
        );
        let bridges = store.bridges().await.unwrap();
        assert_eq!(
            bridges.iter().map(|bridge| bridge.id.as_str()).collect::<Vec<_>>(),
            ["seen late"]
        );

        assert!(store.code("waits").await.unwrap().is_some());
        // It fails where such a code stands still.
        let again = "INSERT INTO codes (hash, user_name, expires, maker_issued) VALUES ('ended', 'ann', 1, 1)";
        match &config {
            StoreConfig::Sqlite(path) => Connection::open(path).unwrap().execute_batch(again).unwrap(),
            StoreConfig::Postgres(_) => server.execute(&url, again).await,
        }
    }
}
