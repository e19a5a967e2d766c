//! Sign-in: whose tokens of a provider open what, and which of them open nothing and why. What becomes of
//! keys that change is in `oidc_keys`.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Response;
use serde_json::{Value, json};
use tunnel::bridge::config::TokenSource;
use tunnel::relay::auth::oidc::Settings;
use tunnel::relay::auth::oidc::rules::Rules;
use tunnel::relay::config::Config;
use tunnel::token::Secret;
use tunnel::transport::full;

use crate::harness::oidc::{AUDIENCE, Key, Provider, now, unsigned};
use crate::harness::raw_bridge::ask;
use crate::harness::relay::{SECRET, token_for};
use crate::harness::watch::Watched;
use crate::harness::{
    Caller, TestBridge, TestRelay, Upstream, get, json, on_each_transport, post, ready, text, until, within,
};
use crate::hostile;

/// A relay that trusts the provider, changed a little.
pub(crate) async fn relay(provider: &Provider, change: impl FnOnce(&mut Settings)) -> TestRelay {
    let mut settings = provider.settings();
    change(&mut settings);
    TestRelay::with(|config: &mut Config| config.oidc = Some(settings)).await
}

fn allow(rules: &[&str]) -> Rules {
    Rules::Any(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

pub(crate) async fn status(relay: &TestRelay, token: &str) -> u16 {
    let mut caller = Caller::connect(relay.address, token).await;
    caller.get("/api/bridge").await.status().as_u16()
}

/// Waits until the relay has the provider's keys.
pub(crate) async fn signed_in(relay: &TestRelay, token: &str) {
    answered(relay, token, 200).await;
}

/// Waits until the token is answered so.
pub(crate) async fn answered(relay: &TestRelay, token: &str, expected: u16) {
    within("the answer that is expected", async {
        while status(relay, token).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

on_each_transport! {
    async fn a_token_of_the_provider_serves_desktop_and_caller(transport: Transport) {
        let provider = Provider::start(&[Key::rsa("one")]).await;
        let relay = relay(&provider, |_| {}).await;
        let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
        let source = TokenSource::Given(Secret::new(&provider.token("ann")));
        let _bridge = TestBridge::to(&relay, &upstream).token(source).transport(transport).start().await;
        ready(&relay, "ann").await;
        // One of the relay's own for the same name is the same person's.
        for token in [provider.token("ann"), relay.token("ann")] {
            let mut caller = Caller::connect(relay.address, &token).await;
            assert_eq!(text(caller.get("/api/tags").await).await, "served");
        }
        let mut caller = Caller::connect(relay.address, &provider.token("bob")).await;
        assert_eq!(caller.get("/api/tags").await.status(), 503);
    }

    async fn a_scope_of_the_provider_opens_its_own_door_only(transport: Transport) {
        let provider = Provider::start(&[Key::rsa("one")]).await;
        let relay = relay(&provider, |_| {}).await;
        let upstream = Upstream::scripted().await;
        let only_bridge = provider.token_with("ann", &json!({"scope": "openid bridge"}));
        let mut caller = Caller::connect(relay.address, &only_bridge).await;
        assert_eq!(caller.get("/api/tags").await.status(), 403);
        let only_api = TokenSource::Given(Secret::new(&provider.token_with("ann", &json!({"scope": "api"}))));
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).token(only_api).launch();
        let refused = bridge.stopped().await.unwrap_err().to_string();
        assert!(refused.contains("needs one with the scope bridge"), "{refused}");
    }
}

/// What is said of a key that may be there by now.
const NOT_YET: &str = "token with a key not known yet";

#[tokio::test]
async fn what_is_not_for_this_relay_is_refused_and_counted_by_its_reason() {
    let key = Key::rsa("one");
    let provider = Provider::start(std::slice::from_ref(&key)).await;
    let (relay, watched) = Watched::start(|config| config.oidc = Some(provider.settings())).await;
    let strange = Key::rsa("one");
    let claims = provider.claims("ann");
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": "one"});
    let with = |name: &str, value: Value| provider.token_with("ann", &json!({name: value}));
    let without = |name: &str| {
        let mut claims = claims.clone();
        claims.as_object_mut().unwrap().remove(name);
        key.token(&claims)
    };
    let headed = |name: &str, value: Value| {
        let mut header = header.clone();
        header[name] = value;
        key.sign(&header, &claims)
    };
    let by_secret = |secret: &[u8], header: &Value, claims: &Value| {
        let text = unsigned(header, claims);
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let hs256 = json!({"alg": "HS256", "typ": "JWT", "kid": "one"});
    let shared = json!({"alg": "HS256", "typ": "JWT", "kid": "shared"});
    let ours = json!({"sub": "ann", "exp": now() + 100});
    for (token, reason) in [
        (key.token(&claims), ""),
        (with("aud", json!(["other", AUDIENCE])), ""),
        (with("nbf", json!(now() + 55)), ""),
        (with("exp", json!(now() - 50)), ""),
        (headed("kid", Value::Null), ""),
        // The public key, used as if it were a secret; a secret among the keys; the relay's own; none at all.
        (by_secret(key.public(), &hs256, &claims), "token with a wrong algorithm"),
        (by_secret(&[7; 32], &shared, &claims), "token with a wrong algorithm"),
        (by_secret(SECRET, &hs256, &claims), "token with a wrong algorithm"),
        (
            format!("{}.", unsigned(&json!({"alg": "none"}), &claims)),
            "token with a wrong algorithm",
        ),
        (headed("alg", json!("RS512")), "token with a wrong algorithm"),
        (headed("alg", json!("PS256")), "token with a wrong algorithm"),
        (headed("alg", json!("ES256")), "token with an unknown key"),
        (headed("kid", json!("two")), NOT_YET),
        (headed("typ", json!("application/jwt")), ""),
        (headed("typ", json!("logout+jwt")), "token of a wrong type"),
        (headed("crit", json!(["exp"])), "token of a wrong type"),
        (with("events", json!({})), "token of a wrong type"),
        (strange.token(&claims), "token with a wrong signature"),
        // Two issuers: what one signs says nothing of the other.
        (
            with("iss", json!("https://login.example.com")),
            "token of another issuer",
        ),
        (with("iss", json!(provider.issuer() + "/")), "token of another issuer"),
        (with("iss", json!([provider.issuer()])), "token with a wrong algorithm"),
        (without("iss"), "token with a wrong algorithm"),
        (key.sign(&hs256, &ours), "token with a wrong signature"),
        (with("aud", json!("other")), "token for another audience"),
        (with("aud", json!([])), "token for another audience"),
        (with("aud", json!([[AUDIENCE]])), "token for another audience"),
        (without("aud"), "token for another audience"),
        (without("exp"), "token without an end"),
        (with("exp", json!("tomorrow")), "token without an end"),
        (with("exp", json!(now() - 70)), "token expired"),
        (with("nbf", json!(now() + 90)), "token not yet valid"),
        (with("sub", json!("")), "token without a proper user"),
        (with("sub", json!("a\nb")), "token without a proper user"),
        (without("sub"), "token malformed"),
    ] {
        let count = async || {
            let page = watched.page().await;
            let refused = |labels: &[(&str, &str)]| page.sum("tunnel_auth_refusals_total", labels);
            [refused(&[("reason", reason)]), refused(&[])]
        };
        let before = count().await;
        let (expected, more) = match reason {
            "" => (200, 0.0),
            NOT_YET => (503, 0.0),
            _ => (401, 1.0),
        };
        assert_eq!(status(&relay, &token).await, expected, "{reason}");
        assert_eq!(count().await, before.map(|refused| refused + more), "{reason}");
    }
    // One of the relay's own, beside them, is what it ever was.
    assert_eq!(status(&relay, &token_for("ann", "api")).await, 200);
}

#[tokio::test]
async fn each_algorithm_of_a_provider_is_taken_by_its_own_keys() {
    let keys = [Key::rsa("rsa"), Key::ec("ec"), Key::ed("ed")];
    let provider = Provider::start(&keys).await;
    let relay = relay(&provider, |_| {}).await;
    for key in &keys {
        assert_eq!(
            status(&relay, &key.token(&provider.claims("ann"))).await,
            200,
            "{}",
            key.kid
        );
        for other in keys.iter().filter(|other| other.kid != key.kid) {
            let header = json!({"alg": key.algorithm(), "kid": other.kid});
            let token = key.sign(&header, &provider.claims("ann"));
            assert_eq!(status(&relay, &token).await, 401, "{} as {}", key.kid, other.kid);
        }
    }
}

#[tokio::test]
async fn a_provider_with_another_name_or_that_sends_elsewhere_is_not_believed() {
    let (provider, other) = (
        Provider::start(&[Key::rsa("one")]).await,
        Provider::start(&[Key::rsa("one")]).await,
    );
    provider.send_elsewhere(&format!("{}/jwks", other.issuer()));
    let first = relay(&provider, |_| {}).await;
    assert_eq!(status(&first, &provider.token("ann")).await, 503);
    assert_eq!((provider.fetches() > 0, other.fetches()), (true, 0));
    other.set_name("https://login.example.com");
    let second = relay(&other, |_| {}).await;
    assert_eq!(status(&second, &other.token("ann")).await, 503);
    assert_eq!((other.introduced() > 0, other.fetches()), (true, 0));
}

#[tokio::test]
async fn where_users_are_asked_after_may_be_wrong_without_keeping_the_others_out() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    provider.tell_userinfo_at("http://login.example.com/userinfo");
    let relay = relay(&provider, |settings| {
        settings.rules = allow(&["group=desktops", "sub=ann"]);
    })
    .await;
    assert_eq!(status(&relay, &provider.token("ann")).await, 200);
    assert_eq!(status(&relay, &provider.token("bob")).await, 403);
}

#[tokio::test]
async fn only_who_is_allowed_comes_in_and_the_provider_is_asked_where_the_token_does_not_tell() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let relay = relay(&provider, |settings| {
        settings.rules = allow(&["email=*@example.com", "group=desktops", "sub=root"]);
    })
    .await;
    let verified = |email: &str| json!({"email": email, "email_verified": true});
    for (more, expected) in [
        (verified("ann@example.com"), 200),
        (verified("ANN@EXAMPLE.COM"), 200),
        (
            json!({"email": "x@example.net", "email_verified": true, "groups": ["desktops"]}),
            200,
        ),
        (json!({"sub": "root"}), 200),
        (
            json!({"email": "a@evil-example.com", "email_verified": true, "groups": []}),
            403,
        ),
        (
            json!({"email": "ann@example.com", "email_verified": false, "groups": []}),
            403,
        ),
    ] {
        assert_eq!(
            status(&relay, &provider.token_with("ann", &more)).await,
            expected,
            "{more}"
        );
    }
    assert_eq!(provider.asked(), 0);

    // It says nothing of this one: refused, and not asked again at once.
    let silent = provider.token_with("bob", &json!({"jti": "silent"}));
    for _ in 0..3 {
        assert_eq!(status(&relay, &silent).await, 403);
    }
    assert_eq!(provider.asked(), 1);
    provider.set_userinfo(json!({"sub": "bob", "email": "bob@example.com", "email_verified": true}));
    let told = provider.token_with("bob", &json!({"jti": "told"}));
    for _ in 0..3 {
        assert_eq!(status(&relay, &told).await, 200);
    }
    assert_eq!(provider.asked(), 2);
    // Once for each token, however many ask at a time.
    let together = provider.token_with("bob", &json!({"jti": "together"}));
    let statuses = futures_util::future::join_all((0..20).map(|_| status(&relay, &together))).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(provider.asked(), 3);
    // What it says of somebody else is not of this one, and a half of an address is none.
    assert_eq!(status(&relay, &provider.token("eve")).await, 403);
    let half = provider.token_with("bob", &json!({"email_verified": true, "jti": "half"}));
    assert_eq!(status(&relay, &half).await, 200);
    provider.set_userinfo(json!({"sub": "bob", "email": "bob@example.com"}));
    let half = provider.token_with("bob", &json!({"email_verified": true, "jti": "other half"}));
    assert_eq!(status(&relay, &half).await, 403);
}

#[tokio::test]
async fn users_may_be_named_by_their_verified_address() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let relay = relay(&provider, |settings| settings.user_claim = "email".to_owned()).await;
    let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
    let named =
        |email: &str, verified: bool| provider.token_with("00u1", &json!({"email": email, "email_verified": verified}));
    let source = TokenSource::Given(Secret::new(&token_for("ann@example.com", "bridge")));
    let _bridge = TestBridge::to(&relay, &upstream).token(source).start().await;
    ready(&relay, "ann@example.com").await;
    let mut caller = Caller::connect(relay.address, &named("Ann@Example.com", true)).await;
    assert_eq!(text(caller.get("/api/tags").await).await, "served");
    assert_eq!(status(&relay, &named("ann@example.com", false)).await, 401);
    assert_eq!(status(&relay, &provider.token("ann@example.com")).await, 401);
}

#[tokio::test]
async fn a_polling_session_ends_with_the_providers_token_unless_a_fresh_one_was_shown() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let relay = relay(&provider, |_| {}).await;
    let end = now() + 10;
    let mut ids = Vec::new();
    for client in ["goes on", "ends"] {
        let token = provider.token_with("ann", &json!({"exp": end - 60, "jti": client}));
        let wish = json!({"clientId": client, "platform": "linux", "version": "1", "capabilities": []});
        let reply = ask(relay.address, &token, post("/api/bridge/register", wish.to_string())).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        ids.push(reply.json()["bridgeId"].as_str().unwrap().to_owned());
    }
    let fresh = provider.token("ann");
    let poll = get(&format!("/api/bridge/poll/{}?timeout=0", ids[0]));
    assert_eq!(ask(relay.address, &fresh, poll).await.status, 200);
    assert!(now() < end, "too slow to tell");
    until("one session's end", || relay.relay.registry.list("ann").len() == 1).await;
    assert!(now() >= end, "ended before its time");
    for (id, expected) in ids.iter().zip([200, 404]) {
        let poll = get(&format!("/api/bridge/poll/{id}?timeout=0"));
        assert_eq!(ask(relay.address, &fresh, poll).await.status, expected);
    }
}

#[tokio::test]
async fn a_websocket_session_ends_with_the_providers_token_unless_a_fresh_one_was_shown() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let relay = relay(&provider, |_| {}).await;
    // So much later than it says, for clocks that differ.
    let end = now() + 5;
    let token = |jti: &str, end: u64| provider.token_with("bob", &json!({"exp": end - 60, "jti": jti}));
    let mut ends = hostile::rogue(relay.address, &token("ends", end)).await;
    hostile::opened(&relay, &mut ends).await;
    assert_eq!(hostile::close_code(&mut ends).await, Some(4001));
    assert!(now() >= end, "ended before its time");

    let end = now() + 5;
    let mut goes_on = hostile::rogue(relay.address, &token("goes on", end)).await;
    hostile::opened(&relay, &mut goes_on).await;
    let unknown = Key::rsa("unknown").token(&provider.claims("bob"));
    for shown in ["nonsense", &unknown, &provider.token("eve"), &provider.token("bob")] {
        hostile::say(&mut goes_on, &json!({"type": "token", "token": shown})).await;
    }
    until("the first token's end", || now() > end + 1).await;
    assert!(relay.relay.registry.pick("bob", None).is_some());
}

#[tokio::test]
async fn how_to_sign_in_is_told_to_anybody_and_a_providers_token_is_renewed_elsewhere() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let with = relay(&provider, |settings| {
        settings.device_client_id = Some("desktop".to_owned());
    })
    .await;
    let mut nobody = Caller::connect(with.address, "").await;
    signed_in(&with, &provider.token("ann")).await;
    let told = json(nobody.get("/-/auth/config").await).await;
    let endpoints = json!({
        "authorization": provider.issuer() + "/authorize", "token": provider.issuer() + "/token", "endSession": null,
    });
    let expected = json!({"oidc": {
        "issuer": provider.issuer(), "clientId": "page", "deviceClientId": "desktop", "audience": AUDIENCE,
        "endpoints": endpoints,
    }});
    assert_eq!(told, expected);
    let mut caller = Caller::connect(with.address, &provider.token("ann")).await;
    let response = caller.post("/-/token/renew", "").await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["tunnel-error"], "bad_request");
    assert!(text(response).await.contains("where you signed in"));

    let without = TestRelay::start().await;
    let mut nobody = Caller::connect(without.address, "").await;
    assert_eq!(text(nobody.get("/-/auth/config").await).await, r#"{"oidc":null}"#);
    assert_eq!(status(&without, &provider.token("ann")).await, 401);
}
