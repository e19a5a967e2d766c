//! Events at a relay that keeps accounts: they end with what opened them, and a key that is limited hears of its own bridge only.

use std::time::Duration;

use http::Response;
use tokio::time::Instant;
use tunnel::bridge::config::TokenSource;
use tunnel::token::Secret;
use tunnel::transport::full;

use crate::events::Ear;
use crate::harness::accounts::{Database, Site, id_of};
use crate::harness::bridge::Transport;
use crate::harness::{TestBridge, Upstream, json, on_each_transport, within};

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
        let me = json(site.caller(&key).await.get("/-/me").await).await;
        assert_eq!((&me["kind"], &me["bridge"], &me["accounts"]), (&"key".into(), &"laptop".into(), &true.into()));
        assert_eq!(me["scopes"], serde_json::json!(["api"]));

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
}
