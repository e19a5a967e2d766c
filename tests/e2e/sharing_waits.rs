//! A path with two readings, asked for before either desktop is there: the one that comes back decides.

use std::time::Duration;

use http::Response;
use tunnel::relay::auth::caller_keys::CallerKeys;
use tunnel::relay::auth::denials::Denials;
use tunnel::relay::auth::shares::{Memberships, Shared, With};
use tunnel::transport::full;

use crate::harness::watch::Watched;
use crate::harness::{Caller, TestBridge, Upstream, on_each_transport, text, within};

on_each_transport! {
    async fn after_a_restart_the_desktop_that_comes_back_decides_what_a_path_means(transport: Transport) {
        for (owner, name, path) in [("ann", "box", "/api/tags"), ("bob", "ann", "/box/api/tags")] {
            let (relay, watched) = Watched::start(|config| config.wait_for_bridge = Duration::from_secs(15)).await;
            let tokens = &relay.relay.tokens;
            let shared = Shared { owner: "ann".into(), bridge: tokens.bridge_id("ann", "box").into() };
            let shares = [(shared, With::User("bob".into()))].into_iter().collect();
            tokens.follow(CallerKeys::default(), shares, Memberships::default(), Denials::default());
            let mut caller = Caller::connect(relay.address, &relay.token("bob")).await;
            let asking = tokio::spawn(async move { text(caller.get("/b/ann/box/api/tags").await).await });
            within("the request to wait", async {
                while watched.page().await.sum("tunnel_exchanges_waiting", &[]) < 1.0 {}
            })
            .await;
            let upstream = Upstream::serving(|request| async move { Response::new(full(request.uri().path().to_owned())) }).await;
            let plan = TestBridge::to(&relay, &upstream).transport(transport).user(owner).client_id(name).name(name);
            let _bridge = plan.allow("* /*").start().await;
            assert_eq!(within("the answer", asking).await.unwrap(), path);
        }
    }
}
