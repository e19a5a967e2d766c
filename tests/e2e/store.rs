//! The store: one story, told to every database, and what each must withstand.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use tunnel::relay::auth::denials::{Denials, Removal};
use tunnel::relay::auth::tokens::now;
use tunnel::relay::store::accounts::Token;
use tunnel::relay::store::usage::{Addition, Batch, Counted, Key, SeenBridge, SeenToken, Sums};
use tunnel::relay::store::{PostgresConfig, Store, StoreConfig, StoreError};

use crate::harness::postgres::Postgres;
use crate::harness::tls::Authority;
use crate::store_keys;

/// The schema before the newest one.
const PREVIOUS: [&str; 2] = [
    include_str!("../../src/relay/store/migrations/0001_accounts.sql"),
    include_str!("../../src/relay/store/migrations/0002_usage.sql"),
];
const PREVIOUS_VERSION: &str = "CREATE TABLE schema_versions (version bigint PRIMARY KEY, oldest bigint NOT NULL, \
    applied bigint NOT NULL); INSERT INTO schema_versions VALUES (1, 1, 0), (2, 1, 0);";
pub(crate) const FAR_AWAY: u64 = 4_000_000_000;

pub(crate) fn sqlite(folder: &Path) -> StoreConfig {
    StoreConfig::Sqlite(folder.join("relay.db"))
}

pub(crate) fn postgres(url: &str) -> StoreConfig {
    StoreConfig::Postgres(Box::new(PostgresConfig {
        server: url.parse().unwrap(),
        ca_file: None,
        pool: 2,
        timeout: Duration::from_secs(5),
    }))
}

pub(crate) fn token(id: &str, user: &str) -> Token {
    Token {
        id: id.into(),
        user: user.into(),
        label: Some("phone".into()),
        scopes: "bridge api".into(),
        issued: Some(100),
        expires: Some(FAR_AWAY),
        last_used: None,
        revoked: None,
    }
}

fn seen_token(id: &str, user: &str) -> SeenToken {
    SeenToken {
        id: id.into(),
        user: user.into(),
        scopes: "api".into(),
        issued: Some(50),
        expires: None,
        used: 7200,
    }
}

pub(crate) fn seen_bridge(id: &str, user: &str) -> SeenBridge {
    SeenBridge {
        id: id.into(),
        user: user.into(),
        client_id: Some("client\0id".into()),
        name: "box".into(),
        platform: Some("linux".into()),
        version: None,
        transport: "ws",
        seen: now(),
        gone: false,
    }
}

fn used(hour: u64, user: &str, model: &str) -> (Key, Addition) {
    let key = Key {
        hour: hour * 3600,
        user: user.into(),
        token: "t1".into(),
        bridge: "b1".into(),
        model: model.into(),
    };
    let counted = |sum| Counted { exchanges: 1, sum };
    let sums = Sums {
        exchanges: 2,
        errors: 1,
        received: 10,
        sent: 20,
        prompts: counted(30),
        completions: counted(40),
        answered: 2,
        first_byte_us: 50,
        total_us: 60,
        ..Sums::default()
    };
    (
        key,
        Addition {
            issued: Some(100),
            sums,
        },
    )
}

pub(crate) fn batch(number: u64, usage: Vec<(Key, Addition)>) -> Batch {
    Batch {
        writer: "this relay".into(),
        number,
        usage,
        ..Batch::default()
    }
}

async fn exchanges(store: &Store, user: &str) -> u64 {
    let lines = store.usage(user, 0, FAR_AWAY, 3600).await.unwrap();
    lines.iter().map(|line| line.sums.exchanges).sum()
}

/// Everything that the store promises.
async fn tell(config: StoreConfig) {
    let store = Store::open(&config).await.unwrap();
    assert!(store.is_empty().await.unwrap());
    let revision = store.revision().await.unwrap();
    tokens_come_and_go(&store).await;
    users_come_and_go(&store).await;
    store_keys::tell(&store).await;
    usage_adds_up(&store).await;
    bridges_are_known(&store).await;
    assert!(store.revision().await.unwrap() > revision);
    everything_is_kept_and_brought_back(&config, &store).await;
    a_deleted_user_leaves_nothing(&store).await;
    store.prune(FAR_AWAY + 1, FAR_AWAY + 1).await.unwrap();
    assert_eq!(exchanges(&store, "bob").await, 0);
    // Whatever is forgotten, what was revoked stays so.
    let denials = store.orders().await.unwrap().denials;
    for id in ["t1", "t2", "older", "leaked"] {
        assert!(denials.has_token(id), "{id}");
    }
}

async fn tokens_come_and_go(store: &Store) {
    store.issue(&token("t1", "ann")).await.unwrap();
    assert!(store.issue(&token("t1", "bob")).await.is_err(), "an id is used once");
    store.issue(&token("t2", "bob")).await.unwrap();
    assert_eq!(store.tokens().await.unwrap(), [token("t1", "ann"), token("t2", "bob")]);
    let before = store.revision().await.unwrap();
    assert!(store.revoke("t2").await.unwrap());
    assert_eq!(store.revision().await.unwrap(), before + 1);
    assert!(matches!(store.revoke("t2").await, Err(StoreError::Absent)));
    assert_eq!(store.revision().await.unwrap(), before + 1);
    // One that was never seen here.
    assert!(!store.revoke("leaked").await.unwrap());
    let denials = Denials::new(["t2".into(), "leaked".into()].into(), [].into());
    assert_eq!(store.orders().await.unwrap().denials, denials);
    // One that was used and never issued here is known from then on; one that is known is not changed but for its times.
    let mut seen = batch(1, vec![]);
    seen.tokens = vec![seen_token("t1", "ann"), seen_token("older", "ann")];
    store.record(&seen).await.unwrap();
    let tokens = store.tokens().await.unwrap();
    let older = tokens.iter().find(|token| token.id == "older").unwrap();
    assert_eq!(
        (older.last_used, older.expires, &*older.scopes),
        (Some(7200), None, "api")
    );
    let known = tokens.iter().find(|token| token.id == "t1").unwrap();
    assert_eq!(
        (known.last_used, known.expires, &*known.scopes),
        (Some(7200), None, "bridge api")
    );
}

async fn users_come_and_go(store: &Store) {
    let names = |users: Vec<_>| {
        users
            .into_iter()
            .map(|user: tunnel::relay::store::accounts::User| (user.name, user.tokens))
            .collect::<Vec<_>>()
    };
    let known = [("ann".to_owned(), 2), ("bob".to_owned(), 0)];
    assert_eq!(names(store.users().await.unwrap()), known);
    store.disable("ann").await.unwrap();
    assert!(matches!(store.disable("ann").await, Err(StoreError::Absent)));
    let removal = Removal {
        disabled: true,
        deleted: None,
    };
    assert_eq!(store.removal("ann").await.unwrap(), Some(removal));
    let denials = Denials::new(["t2".into(), "leaked".into()].into(), [("ann".into(), removal)].into());
    assert_eq!(store.orders().await.unwrap().denials, denials);
    store.enable("ann").await.unwrap();
    assert!(matches!(store.enable("ann").await, Err(StoreError::Absent)));
    assert!(matches!(store.enable("nobody").await, Err(StoreError::Absent)));
    // Whose token was never seen can be shut out all the same.
    store.disable("carl").await.unwrap();
    assert!(store.removal("carl").await.unwrap().unwrap().disabled);
}

async fn usage_adds_up(store: &Store) {
    let usage = vec![
        used(1, "ann", "llama"),
        used(1, "bob", "llama"),
        used(2, "ann", "llama"),
        used(30, "ann", ""),
    ];
    for number in [2, 2, 2, 3] {
        store.record(&batch(number, usage.clone())).await.unwrap();
    }
    let hours = store.usage("ann", 3600, 3600 * 31, 3600).await.unwrap();
    let told: Vec<_> = hours
        .iter()
        .map(|line| (line.from / 3600, &*line.model, line.sums.exchanges))
        .collect();
    assert_eq!(told, [(30, "", 4), (2, "llama", 4), (1, "llama", 4)]);
    let days = store.usage("ann", 0, FAR_AWAY, 24 * 3600).await.unwrap();
    assert_eq!(days.len(), 2);
    let all = store.total("ann", 0, FAR_AWAY).await.unwrap();
    assert_eq!((all.exchanges, all.prompts.known()), (12, Some(180)));
    assert_eq!(store.total("nobody", 0, FAR_AWAY).await.unwrap(), Sums::default());
    let sums = days[1].sums;
    assert_eq!(
        (sums.exchanges, sums.errors, sums.cancelled, sums.received, sums.sent),
        (8, 4, 0, 40, 80)
    );
    assert_eq!((sums.prompts.known(), sums.completions.known()), (Some(120), Some(160)));
    assert_eq!((sums.answered, sums.first_byte_us, sums.total_us), (8, 200, 240));
    assert_eq!(days[1].label.as_deref(), Some("phone"));
    assert_eq!(store.usage("ann", 3600 * 2, 3600 * 3, 3600).await.unwrap().len(), 1);
    assert_eq!(exchanges(store, "nobody").await, 0);
}

async fn bridges_are_known(store: &Store) {
    let mut seen = batch(4, vec![]);
    seen.bridges = vec![seen_bridge("b1", "ann"), seen_bridge("b2", "bob")];
    store.record(&seen).await.unwrap();
    let bridges = store.bridges().await.unwrap();
    assert_eq!(bridges.len(), 2);
    assert!(bridges.iter().all(tunnel::relay::store::accounts::Bridge::is_connected));
    assert_eq!(
        (bridges[0].client_id.as_deref(), &*bridges[0].transport),
        (Some("clientid"), "ws")
    );
    (seen.number, seen.bridges[0].gone, seen.bridges[0].transport) = (5, true, "poll");
    store.record(&seen).await.unwrap();
    let bridge = store.bridges().await.unwrap().remove(0);
    assert_eq!((bridge.is_connected(), &*bridge.transport), (false, "poll"));
    // Another relay's word that it left says nothing of where it is now.
    seen_elsewhere(store).await;
    store.kick("b2").await.unwrap();
    assert!(matches!(store.kick("b3").await, Err(StoreError::Absent)));
    let orders = store.orders().await.unwrap();
    assert_eq!(orders.kicks.get("b2"), Some(&orders.revision));
}

async fn seen_elsewhere(store: &Store) {
    let mut seen = batch(6, vec![]);
    seen.writer = "another relay".into();
    seen.bridges = vec![seen_bridge("b2", "bob")];
    store.record(&seen).await.unwrap();
    (seen.writer, seen.bridges[0].gone) = ("this relay".into(), true);
    store.record(&seen).await.unwrap();
    let bridges = store.bridges().await.unwrap();
    assert!(bridges.iter().find(|bridge| bridge.id == "b2").unwrap().is_connected());
}

async fn everything_is_kept_and_brought_back(config: &StoreConfig, store: &Store) {
    let (sink, mut entries) = tokio::sync::mpsc::channel(4);
    let collected = async {
        let mut all = Vec::new();
        while let Some(entry) = entries.recv().await {
            all.push(entry);
        }
        all
    };
    let (dumped, all) = tokio::join!(store.dump(sink), collected);
    dumped.unwrap();
    // Into SQLite, wherever it came from.
    let folder = tempfile::tempdir().unwrap();
    let other = Store::open(&sqlite(folder.path())).await.unwrap();
    other.load(&all).await.unwrap();
    assert!(!other.is_empty().await.unwrap(), "{config:?}");
    assert_eq!(other.tokens().await.unwrap(), store.tokens().await.unwrap());
    assert_eq!(other.keys(None).await.unwrap(), store.keys(None).await.unwrap());
    assert_eq!(other.users().await.unwrap(), store.users().await.unwrap());
    assert_eq!(other.bridges().await.unwrap(), store.bridges().await.unwrap());
    assert_eq!(
        other.orders().await.unwrap().denials,
        store.orders().await.unwrap().denials
    );
    let usage = async |store: &Store| store.usage("ann", 0, FAR_AWAY, 3600).await.unwrap();
    assert_eq!(usage(&other).await, usage(store).await);
    let mut unknown = all[0].clone();
    unknown.row.insert("of_a_later_release".into(), 1.into());
    assert!(matches!(other.load(&[unknown]).await, Err(StoreError::Settings(_))));
}

async fn a_deleted_user_leaves_nothing(store: &Store) {
    store.delete("ann").await.unwrap();
    assert!(store.tokens().await.unwrap().iter().all(|token| token.user != "ann"));
    assert!(store.bridges().await.unwrap().iter().all(|bridge| bridge.user != "ann"));
    assert_eq!(store.keys(Some("ann")).await.unwrap(), []);
    assert!(store.users().await.unwrap().iter().all(|user| user.name != "ann"));
    let deleted = store.removal("ann").await.unwrap().unwrap().deleted.unwrap();
    assert!(deleted.abs_diff(now()) < 60);
    // Its tokens are refused by their ids, too: one may have been renewed in that second.
    let denials = store.orders().await.unwrap().denials;
    assert!(denials.has_token("t1") && denials.has_token("older"));
    // What was still under way brings nothing back.
    let mut late = batch(7, vec![used(1, "ann", "llama")]);
    late.tokens = vec![seen_token("t1", "ann")];
    late.bridges = vec![seen_bridge("b1", "ann")];
    store.record(&late).await.unwrap();
    assert_eq!(exchanges(store, "ann").await, 0);
    assert!(store.tokens().await.unwrap().iter().all(|token| token.user != "ann"));
    assert!(store.bridges().await.unwrap().iter().all(|bridge| bridge.user != "ann"));
}

#[tokio::test]
async fn the_story_is_the_same_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    tell(sqlite(folder.path())).await;
}

#[tokio::test]
async fn the_story_is_the_same_on_postgresql() {
    let server = Postgres::start().await;
    tell(postgres(&server.database().await)).await;
}

#[tokio::test]
async fn what_the_database_can_never_take_is_told_apart_from_one_that_is_away() {
    let server = Postgres::start().await;
    server
        .execute(
            "postgres",
            "CREATE DATABASE old ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
        )
        .await;
    let url = server.database().await;
    let old = format!("{}/old", url.rsplit_once('/').unwrap().0);
    let error = Store::open(&postgres(&old)).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Settings(words) if words.contains("UTF8")),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    for config in [postgres(&url), sqlite(folder.path())] {
        let store = Store::open(&config).await.unwrap();
        store.issue(&token("t1", "ann")).await.unwrap();
        let twice = store.issue(&token("t1", "ann")).await;
        assert!(matches!(twice, Err(StoreError::Rejected(_))), "{twice:?}");
    }
    std::fs::write(
        folder.path().join("other"),
        "this is no database at all, but some text of more than a hundred octets: ".repeat(20),
    )
    .unwrap();
    let error = Store::open(&StoreConfig::Sqlite(folder.path().join("other")))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, StoreError::Settings(words) if words.contains("damaged")),
        "{error}"
    );
}

#[tokio::test]
async fn two_that_start_at_once_make_one_schema() {
    let server = Postgres::start().await;
    let folder = tempfile::tempdir().unwrap();
    for config in [postgres(&server.database().await), sqlite(folder.path())] {
        let opened = futures_util::future::join_all((0..4).map(|_| Store::open(&config))).await;
        for store in opened {
            store
                .unwrap()
                .issue(&token(&tunnel::random::name().unwrap(), "ann"))
                .await
                .unwrap();
        }
        assert_eq!(Store::open(&config).await.unwrap().tokens().await.unwrap().len(), 4);
    }
}

#[tokio::test]
async fn the_schema_before_is_brought_up_to_date_with_what_is_in_it() {
    let data = "INSERT INTO users (name, first_seen) VALUES ('ann', 1); \
        INSERT INTO tokens (id, user_name, scopes, revoked) VALUES ('t1', 'ann', 'api', 5);";
    let old = format!("{PREVIOUS_VERSION}{}{data}", PREVIOUS.concat());
    let server = Postgres::start().await;
    let url = server.database().await;
    server.execute(&url, &old).await;
    let folder = tempfile::tempdir().unwrap();
    Connection::open(folder.path().join("relay.db"))
        .unwrap()
        .execute_batch(&old)
        .unwrap();
    for config in [postgres(&url), sqlite(folder.path())] {
        let store = Store::open(&config).await.unwrap();
        assert_eq!(store.tokens().await.unwrap()[0].revoked, Some(5));
        store.record(&batch(1, vec![used(1, "ann", "llama")])).await.unwrap();
        assert_eq!(exchanges(&store, "ann").await, 2);
    }
}

#[tokio::test]
async fn a_schema_that_is_too_new_is_refused_in_clear_words() {
    let folder = tempfile::tempdir().unwrap();
    let config = sqlite(folder.path());
    Store::open(&config).await.unwrap();
    let database = Connection::open(folder.path().join("relay.db")).unwrap();
    let newer = |oldest: i64| {
        let sql = format!("INSERT INTO schema_versions VALUES ({}, {oldest}, 0)", 100 + oldest);
        database.execute_batch(&sql).unwrap();
    };
    newer(2);
    Store::open(&config).await.unwrap();
    newer(100);
    let error = Store::open(&config).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { .. }));
    assert!(error.to_string().contains("newer release"), "{error}");
}

#[tokio::test]
async fn a_server_is_spoken_to_by_tls_that_is_checked() {
    let authority = Authority::named("The Database CA");
    let server = Postgres::with_tls(&authority).await;
    let url = server.database().await.replace("127.0.0.1", "localhost") + "?sslmode=require";
    let StoreConfig::Postgres(mut config) = postgres(&url) else {
        unreachable!()
    };
    let error = Store::open(&StoreConfig::Postgres(config.clone()))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("The Database CA"), "{error}");
    config.ca_file = Some(authority.ca_file());
    Store::open(&StoreConfig::Postgres(config)).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_without_its_password() {
    let mut server = Postgres::start().await;
    let url = server.database().await;
    server.kill().await;
    let error = Store::open(&postgres(&url)).await.unwrap_err();
    let words = error.to_string();
    assert!(matches!(error, StoreError::Away(_)), "{words}");
    assert!(words.contains("127.0.0.1") && words.contains("refused"), "{words}");
    assert!(!format!("{words}{:?}", postgres(&url)).contains("sesame"), "{words}");
}
