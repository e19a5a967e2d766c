//! Events at a relay that keeps accounts: they end with what opened them, and a key that is limited hears of its own bridge only.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Response;
use serde_json::{Value, json};
use tokio::time::Instant;
use tunnel::bridge::config::TokenSource;
use tunnel::token::Secret;
use tunnel::transport::full;

use crate::events::Ear;
use crate::harness::accounts::{Database, Site, id_of};
use crate::harness::bridge::Transport;
use crate::harness::{TestBridge, Upstream, json as read_json, on_each_transport, within};
use crate::sharing;

/// What others call the desktop `box` of the user `auth0|1`.
const ADDRESS: &str = "auth0%7C1/box";
/// What a relay that runs may take to notice.
const NOTICED: Duration = Duration::from_secs(1);

async fn bridge(site: &Site, name: &str, token: &str, upstream: &Upstream, transport: Transport) -> TestBridge {
    TestBridge::between(site.address, upstream.address)
        .token(TokenSource::Given(Secret::new(token)))
        .name(name)
        .transport(transport)
        .start()
        .await
}

on_each_transport! {
    async fn a_limited_key_hears_of_its_own_bridge_until_it_is_revoked(transport: Transport) {
        let site = Site::new(Database::Sqlite).await;
        let _relay = site.relay().await;
        let token = site.token("ann").await;
        let key = site.output(&["key", "add", "--user", "ann", "--bridge", "laptop"]).await;
        within("the key", async { while site.status(&key).await == 401 {} }).await;
        let me = read_json(site.caller(&key).await.get("/-/me").await).await;
        assert_eq!((&me["kind"], &me["bridge"], &me["accounts"]), (&"key".into(), &"laptop".into(), &true.into()));
        assert_eq!(me["scopes"], json!(["api"]));

        let mut limited = Ear::of(site.caller(&key).await).await;
        let mut all = Ear::of(site.caller(&token).await).await;
        let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
        let _box = bridge(&site, "box", &token, &upstream, transport).await;
        while !all.bridges.contains_key("box") {
            assert!(all.hear().await);
        }
        let _laptop = bridge(&site, "laptop", &token, &upstream, transport).await;
        for ear in [&mut limited, &mut all] {
            while !ear.bridges.contains_key("laptop") {
                assert!(ear.hear().await);
            }
        }
        assert_eq!((limited.bridges.len(), all.bridges.len()), (1, 2));

        let listed = site.list(&["key", "list"]).await;
        site.output(&["key", "revoke", listed[0]["id"].as_str().unwrap()]).await;
        let revoked = Instant::now();
        limited.end().await;
        assert!(revoked.elapsed() < NOTICED, "{:?}", revoked.elapsed());
        assert_eq!(site.caller(&key).await.get("/-/events").await.status(), 401);
        site.output(&["token", "revoke", &id_of(&token)]).await;
        let revoked = Instant::now();
        all.end().await;
        assert!(revoked.elapsed() < NOTICED, "{:?}", revoked.elapsed());
    }

    async fn what_is_shared_is_told_until_it_is_taken_back_and_to_nobody_else(transport: Transport) {
        let site = sharing::site(Database::Sqlite).await;
        let _relay = site.relay().await;
        let (ann, bob, carl) = (site.token("auth0|1").await, site.token("bob").await, site.token("carl").await);
        let key = site.output(&["key", "add", "--user", "bob", "--bridge", "laptop"]).await;
        site.answered(&key, 503).await;
        let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
        let _box = bridge(&site, "box", &ann, &upstream, transport).await;
        let mut friend = Ear::of(site.caller(&bob).await).await;
        let mut limited = Ear::of(site.caller(&key).await).await;
        let mut stranger = Ear::of(site.caller(&carl).await).await;
        sharing::reaches(&site, &ann, "/api/tags", "served").await;
        let manager = sharing::manager(&site, "auth0|1").await;
        let id = sharing::share(&site, &manager, "box", "user:bob").await;
        friend.knows("what is shared", |bridges| bridges.contains_key(ADDRESS)).await;
        let told = &friend.bridges[ADDRESS];
        for (field, value) in [("address", json!(ADDRESS)), ("name", json!("box")), ("owner", json!("auth0|1")), ("id", Value::Null)] {
            assert_eq!(told[field], value, "{field}");
        }
        assert_eq!(sharing::unshare(&site, &manager, &id).await, 204);
        let taken_back = Instant::now();
        friend.knows("the end of it", BTreeMap::is_empty).await;
        // One look a second, and the way of the line.
        assert!(taken_back.elapsed() < 2 * NOTICED, "{:?}", taken_back.elapsed());
        // What these hear next is of their own, and of nothing else before it.
        let _den = bridge(&site, "den", &carl, &upstream, transport).await;
        let _laptop = bridge(&site, "laptop", &bob, &upstream, transport).await;
        for (ear, own) in [(&mut limited, "laptop"), (&mut stranger, "den")] {
            ear.knows(own, |bridges| bridges.contains_key(own)).await;
            assert_eq!((ear.bridges.len(), ear.lines), (1, 2), "{:?}", ear.bridges);
        }
    }
}
