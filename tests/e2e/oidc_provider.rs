//! Sign-in at a real provider, by people who come by a page and by a desktop.

use http::Response;
use serde_json::{Value, json};
use tunnel::bridge::config::TokenSource;
use tunnel::relay::auth::oidc::rules::Rules;
use tunnel::token::Secret;
use tunnel::transport::full;

use crate::harness::oidc::AUDIENCE;
use crate::harness::provider::Provider;
use crate::harness::{Caller, TestBridge, TestRelay, Upstream, on_each_transport, ready, text};

async fn status(relay: &TestRelay, token: &str) -> u16 {
    let mut caller = Caller::connect(relay.address, token).await;
    caller.get("/api/bridge").await.status().as_u16()
}

on_each_transport! {
    async fn who_signed_in_at_a_real_provider_reaches_the_desktop_that_did(transport: Transport) {
        let mut provider = Provider::start().await;
        let relay = provider.relay().await;
        let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
        let desktop = provider.sign_in("device", "ann").await;
        let source = TokenSource::Given(Secret::new(&desktop.access));
        let _bridge = TestBridge::to(&relay, &upstream).token(source).transport(transport).start().await;
        ready(&relay, "ann").await;
        let page = provider.sign_in("page", "ann").await;
        let mut caller = Caller::connect(relay.address, &page.access).await;
        assert_eq!(text(caller.get("/api/tags").await).await, "served");
        let other = provider.sign_in("page", "bob").await;
        let mut caller = Caller::connect(relay.address, &other.access).await;
        assert_eq!(caller.get("/api/tags").await.status(), 503);
        // One for another audience.
        assert_eq!(status(&relay, &page.identity).await, 401);
    }
}

#[tokio::test]
async fn a_real_provider_tells_addresses_in_its_identity_tokens() {
    let mut provider = Provider::start().await;
    let ann = provider.sign_in("page", "ann").await;
    let only = |rule: &str| Rules::Any(vec![rule.parse().unwrap()]);
    let relay = provider.relay_for(&["page"], only("email=*@example.com")).await;
    assert_eq!(status(&relay, &ann.identity).await, 200);
    assert_eq!(status(&relay, &ann.access).await, 401);
    let relay = provider
        .relay_for(&["page", AUDIENCE], only("email=*@example.net"))
        .await;
    assert_eq!(status(&relay, &ann.identity).await, 403);
    // It does not say who it is with a token for somebody else.
    assert_eq!(status(&relay, &ann.access).await, 403);
    let mut nobody = Caller::connect(relay.address, "").await;
    let told: Value = serde_json::from_str(&text(nobody.get("/-/auth/config").await).await).unwrap();
    assert_eq!(told["oidc"]["issuer"], json!(provider.issuer));
}
