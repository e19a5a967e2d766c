//! Sign-in while the provider changes its keys, or is away: who goes on, who is put off, and who is refused.

use std::time::Duration;

use futures_util::StreamExt;
use http::Response;
use serde_json::json;
use tokio::task::JoinSet;
use tunnel::bridge::config::TokenSource;
use tunnel::relay::auth::oidc::Timing;
use tunnel::token::Secret;

use crate::harness::oidc::{AUDIENCE, Key, Provider, now};
use crate::harness::{Caller, TestBridge, Upstream, chunk, json as read_json, on_each_transport, ready, until, within};
use crate::hostile;
use crate::oidc::{answered, relay, signed_in, status};

on_each_transport! {
    async fn keys_that_change_sign_nobody_out_and_the_old_one_is_refused_after_its_time(transport: Transport) {
        let (old, new) = (Key::rsa("old"), Key::ec("new"));
        let provider = Provider::start(std::slice::from_ref(&old)).await;
        let relay = relay(&provider, |settings| {
            let (fresh, pause, kept) = (Duration::from_millis(200), Duration::from_millis(100), Duration::from_secs(10));
            settings.timing = Timing { fresh, pause, kept, ..settings.timing };
        })
        .await;
        let upstream = Upstream::scripted().await;
        let token = |key: &Key| key.token(&provider.claims("ann"));
        let (before, seen) = (token(&old), token(&old));
        signed_in(&relay, &seen).await;
        let source = TokenSource::Given(Secret::new(&before));
        let bridge = TestBridge::to(&relay, &upstream).token(source).transport(transport).start().await;
        ready(&relay, "ann").await;
        let mut caller = Caller::connect(relay.address, &seen).await;
        let (answer, mut response) = tokio::join!(
            async { upstream.next().await.begin(Response::builder()) },
            caller.post("/api/chat", "{}"),
        );
        provider.set_keys(std::slice::from_ref(&new));
        signed_in(&relay, &token(&new)).await;
        for old in [&before, &old.token(&provider.claims("another"))] {
            assert_eq!(status(&relay, old).await, 200);
        }
        answer.send("still here").await;
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "still here");
        assert_eq!(relay.relay.registry.list("ann").len(), 1);
        drop(answer);
        assert!(chunk(&mut response).await.is_none());
        bridge.disconnected().await;
        for old in [seen, old.token(&provider.claims("third"))] {
            answered(&relay, &old, 401).await;
        }
        assert_eq!(status(&relay, &token(&new)).await, 200);
    }
}

#[tokio::test]
async fn a_new_key_is_found_and_a_storm_of_unknown_ones_is_not_passed_on() {
    let provider = Provider::start(&[Key::ec("old")]).await;
    let pause = Duration::from_secs(1);
    let relay = relay(&provider, |settings| settings.timing.pause = pause).await;
    signed_in(&relay, &provider.token("ann")).await;
    assert_eq!(provider.fetches(), 1);
    let new = Key::ec("new");
    provider.set_keys(std::slice::from_ref(&new));
    // Never refused for good: it is fetched as soon as that may be.
    let token = new.token(&provider.claims("ann"));
    within("the new key", async {
        loop {
            let response = Caller::connect(relay.address, &token).await.get("/api/bridge").await;
            if response.status() == 200 {
                break;
            }
            assert_eq!(response.status(), 503);
            assert!(response.headers().contains_key("retry-after"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(provider.fetches(), 2);

    let began = tokio::time::Instant::now();
    let mut storm = JoinSet::new();
    for number in 0..200 {
        let header = json!({"alg": "ES256", "kid": format!("none-{number}")});
        let token = new.sign(&header, &provider.claims("ann"));
        let address = relay.address;
        storm.spawn(async move {
            Caller::connect(address, &token)
                .await
                .get("/api/bridge")
                .await
                .status()
                .as_u16()
        });
    }
    let statuses = within("the storm's end", storm.join_all()).await;
    assert!(
        statuses.iter().all(|status| matches!(status, 401 | 503)),
        "{statuses:?}"
    );
    // In the end it is certain that there is no such key.
    let header = json!({"alg": "ES256", "kid": "none-0"});
    answered(&relay, &new.sign(&header, &provider.claims("ann")), 401).await;
    let most = 2 + began.elapsed().as_secs() as usize + 1;
    assert!(provider.fetches() <= most, "{} fetches", provider.fetches());
}

#[tokio::test]
async fn while_the_provider_is_away_its_keys_of_before_serve() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let relay = relay(&provider, |settings| {
        settings.timing.fresh = Duration::from_millis(50);
        settings.timing.pause = Duration::from_millis(50);
        settings.timing.stale = Duration::from_secs(3);
    })
    .await;
    signed_in(&relay, &provider.token("ann")).await;
    provider.set_away(true);
    let seen = provider.token("seen before");
    assert_eq!(status(&relay, &seen).await, 200);
    assert_eq!(status(&relay, &provider.token("bob")).await, 200);
    // Whether there is such a key by now cannot be known.
    let unknown = Key::ec("new").token(&provider.claims("ann"));
    answered(&relay, &unknown, 503).await;
    // In the end they are too old, for those who were let in before, too.
    answered(&relay, &seen, 503).await;
    let response = Caller::connect(relay.address, &provider.token("somebody new"))
        .await
        .get("/api/bridge")
        .await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["tunnel-error"], "overloaded");
    assert_eq!(status(&relay, &relay.token("ann")).await, 200);
    provider.set_away(false);
    signed_in(&relay, &provider.token("bob again")).await;
    assert_eq!(status(&relay, &seen).await, 200);
}

#[tokio::test]
async fn a_provider_that_has_no_key_left_lets_nobody_new_in() {
    let key = Key::ec("one");
    let provider = Provider::start(std::slice::from_ref(&key)).await;
    let relay = relay(&provider, |settings| {
        settings.timing.fresh = Duration::from_millis(50);
        settings.timing.pause = Duration::from_millis(50);
    })
    .await;
    let seen = key.token(&provider.claims("ann"));
    signed_in(&relay, &seen).await;
    provider.set_keys(&[]);
    let fetches = provider.fetches();
    until("the keys to be fetched", || provider.fetches() > fetches + 1).await;
    let new = key.token(&provider.claims("bob"));
    answered(&relay, &new, 401).await;
    assert_eq!(status(&relay, &seen).await, 200);
    provider.set_keys(std::slice::from_ref(&key));
    signed_in(&relay, &new).await;
}

#[tokio::test]
async fn until_the_provider_answers_the_relays_own_tokens_work_and_others_are_put_off() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    provider.set_away(true);
    let relay = relay(&provider, |settings| settings.timing.pause = Duration::from_millis(50)).await;
    assert_eq!(status(&relay, &relay.token("ann")).await, 200);
    let mut nobody = Caller::connect(relay.address, "").await;
    let told = read_json(nobody.get("/-/auth/config").await).await;
    assert_eq!(told["oidc"]["endpoints"], json!(null));
    let token = provider.token("ann");
    let response = Caller::connect(relay.address, &token).await.get("/api/tags").await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["tunnel-error"], "overloaded");
    assert!(response.headers().contains_key("retry-after"));
    provider.set_away(false);
    signed_in(&relay, &token).await;
}

#[tokio::test]
async fn a_token_that_was_shown_while_the_provider_was_away_is_taken_when_it_is_back() {
    let (old, new) = (Key::ec("old"), Key::ec("new"));
    let provider = Provider::start(std::slice::from_ref(&old)).await;
    let relay = relay(&provider, |settings| {
        settings.timing.fresh = Duration::from_millis(50);
        settings.timing.pause = Duration::from_millis(50);
    })
    .await;
    let end = now() + 5;
    let first = |user: &str| {
        old.token(&json!({
            "iss": provider.issuer(), "sub": user, "aud": AUDIENCE, "exp": end - 60,
        }))
    };
    let mut waits = hostile::rogue(relay.address, &first("bob")).await;
    hostile::opened(&relay, &mut waits).await;
    let mut ends = hostile::rogue(relay.address, &first("eve")).await;
    hostile::opened(&relay, &mut ends).await;
    ready(&relay, "eve").await;
    provider.set_keys(&[old.clone(), new.clone()]);
    provider.set_away(true);
    let show = |user: &str, key: &Key| json!({"type": "token", "token": key.token(&provider.claims(user))});
    answered(&relay, &Key::ec("none").token(&provider.claims("ann")), 503).await;
    hostile::say(&mut waits, &show("bob", &new)).await;
    let waits = tokio::spawn(async move { while waits.next().await.is_some() {} });
    hostile::say(&mut ends, &show("eve", &Key::ec("none"))).await;
    // Its own token is over, and the session waits for the other one, but not for ever.
    until("the first token's end", || now() > end).await;
    assert!(relay.relay.registry.pick("bob", None).is_some());
    provider.set_away(false);
    assert_eq!(hostile::close_code(&mut ends).await, Some(4001));
    assert!(now() >= end, "ended before its time");
    until("the end of all patience", || now() > end + 11).await;
    assert!(relay.relay.registry.pick("bob", None).is_some() && !waits.is_finished());
}
