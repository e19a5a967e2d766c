//! Sign-in at a relay that keeps accounts: who signed in is listed once, and can be shut out; and which options make no relay.

use std::time::Duration;

use serde_json::{Value, json};
use tunnel::bridge::config::TokenSource;
use tunnel::token::Secret;

use crate::harness::accounts::{Database, Site};
use crate::harness::oidc::{AUDIENCE, Key, Provider};
use crate::harness::process::{Ended, command, run};
use crate::harness::{TestBridge, Upstream, json as read_json, on_each_transport, text, within};

/// A relay that trusts the provider.
async fn trusting(provider: &Provider) -> Site {
    let issuer = provider.issuer();
    let rule = ["--oidc-allow", "email=*@example.com"];
    let site = Site::new(Database::Sqlite).await;
    site.serving(&[options(&issuer).as_slice(), &rule].concat())
}

/// Waits until so many are in the list.
async fn listed(site: &Site, number: usize) -> Vec<Value> {
    within("the list", async {
        loop {
            let listed = site.list(&["token", "list"]).await;
            if listed.len() >= number {
                return listed;
            }
        }
    })
    .await
}

/// What the caller is told of its bridges.
async fn status(site: &Site, credential: &str) -> u16 {
    let response = site.caller(credential).await.get("/api/bridge").await;
    response.status().as_u16()
}

/// Waits until the caller is told so.
async fn told(site: &Site, credential: &str, expected: u16) {
    within("the answer that is expected", async {
        while status(site, credential).await != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn options(issuer: &str) -> [&str; 6] {
    [
        "--oidc-issuer",
        issuer,
        "--oidc-audience",
        AUDIENCE,
        "--oidc-client-id",
        "page",
    ]
}

/// One of the tokens that the provider gives ann, each hour another.
fn token(provider: &Provider, client: &str, number: u32) -> String {
    let more = json!({
        "email": "ann@example.com", "email_verified": true, "client_id": client, "jti": format!("{client} {number}"),
    });
    provider.token_with("ann", &more)
}

on_each_transport! {
    async fn who_signed_in_is_listed_once_and_cut_off_when_disabled(transport: Transport) {
        let provider = Provider::start(&[Key::rsa("one")]).await;
        let site = trusting(&provider).await;
        let _relay = site.relay().await;
        let upstream = Upstream::scripted().await;
        let desktop = TestBridge::between(site.address, upstream.address)
            .token(TokenSource::Given(Secret::new(&token(&provider, "desktop", 1))))
            .transport(transport)
            .start()
            .await;
        for number in 1..5 {
            told(&site, &token(&provider, "page", number), 200).await;
        }
        for one in listed(&site, 2).await {
            assert!(one["id"].as_str().unwrap().starts_with("oidc:"), "{one}");
            assert_eq!(one["user"], "ann");
        }
        site.output(&["user", "disable", "ann"]).await;
        desktop.disconnected().await;
        told(&site, &token(&provider, "page", 9), 403).await;
        site.output(&["user", "enable", "ann"]).await;
        told(&site, &token(&provider, "page", 9), 200).await;
        // By now all that was seen before is written.
        let all = listed(&site, 2).await;
        assert_eq!(all.len(), 2, "{all:?}");
    }
}

#[tokio::test]
async fn a_program_is_shut_out_for_good_when_its_sign_in_is_taken_back() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let site = trusting(&provider).await;
    let _relay = site.relay().await;
    told(&site, &token(&provider, "page", 1), 200).await;
    let id = listed(&site, 1).await[0]["id"].as_str().unwrap().to_owned();
    site.output(&["token", "revoke", &id]).await;
    told(&site, &token(&provider, "page", 1), 401).await;
    assert_eq!(status(&site, &token(&provider, "page", 2)).await, 401);
    assert_eq!(status(&site, &token(&provider, "desktop", 1)).await, 200);
}

#[tokio::test]
async fn who_was_deleted_may_sign_in_anew_but_not_with_what_was_issued_before() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let site = trusting(&provider).await;
    let _relay = site.relay().await;
    let before = token(&provider, "page", 1);
    told(&site, &before, 200).await;
    listed(&site, 1).await;
    site.output(&["user", "delete", "ann"]).await;
    told(&site, &before, 401).await;
    within("a token that is newer than that", async {
        let mut number = 2;
        while status(&site, &token(&provider, "page", number)).await != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            number += 1;
        }
    })
    .await;
    assert_eq!(status(&site, &before).await, 401);
}

#[tokio::test]
async fn who_signed_in_on_the_page_makes_keys_and_codes_unless_the_token_names_other_scopes() {
    let key = Key::rsa("one");
    let provider = Provider::start(std::slice::from_ref(&key)).await;
    let site = trusting(&provider).await;
    let _relay = site.relay().await;
    let ann = json!({"email": "ann@example.com", "email_verified": true});
    let naming = |scope: &str| {
        let mut more = ann.clone();
        more["scope"] = scope.into();
        provider.token_with("ann", &more)
    };
    let with = |name: &str, value: Value| {
        let mut more = ann.clone();
        more[name] = value;
        provider.token_with("ann", &more)
    };
    // Many providers give ID tokens and access tokens of the same type.
    let untyped = |more: &Value| {
        let mut claims = provider.claims("ann");
        for (name, value) in ann.as_object().unwrap().iter().chain(more.as_object().unwrap()) {
            claims[name] = value.clone();
        }
        key.sign(&json!({"alg": key.algorithm(), "kid": key.kid}), &claims)
    };
    let person = provider.token_with("ann", &ann);
    told(&site, &person, 200).await;
    for (token, status) in [
        (person.clone(), 201),
        (with("azp", json!("page")), 201),
        // Of another program than the page, or for others to know who signed in.
        (with("client_id", json!("desktop")), 403),
        (with("client_id", Value::Null), 403),
        (with("azp", json!("desktop")), 403),
        (with("at_hash", json!("x")), 403),
        (with("c_hash", json!("x")), 403),
        (untyped(&json!({})), 201),
        (untyped(&json!({"nonce": "x"})), 403),
        (with("nonce", json!("x")), 201),
        (with("aud", json!([AUDIENCE, "page"])), 201),
        (naming("openid email"), 201),
        (naming("openid manage"), 201),
        (naming("openid api"), 403),
        (naming("bridge api"), 403),
    ] {
        for path in ["/-/keys", "/-/pair"] {
            let response = site.caller(&token).await.post(path, "{}").await;
            assert_eq!(response.status(), status, "{path}");
        }
    }
    let mut caller = site.caller(&person).await;
    let made = read_json(caller.post("/-/keys", "{}").await).await;
    assert_eq!(made["expires"], Value::Null, "the token of the hour ends nothing");
    assert_eq!(caller.post("/-/token/renew", "").await.status(), 400);
    let key = made["key"].as_str().unwrap();
    told(&site, key, 200).await;
    let mut caller = site.caller(key).await;
    let refused = text(caller.post("/-/keys", "{}").await).await;
    assert!(
        refused.contains("signing in on a page gives and a key cannot"),
        "{refused}"
    );
    assert_eq!(caller.post("/-/token/renew", "").await.status(), 403);
    site.output(&["user", "disable", "ann"]).await;
    told(&site, key, 403).await;
    told(&site, &person, 403).await;
    site.output(&["user", "enable", "ann"]).await;
    told(&site, key, 200).await;
    site.output(&["key", "revoke", made["id"].as_str().unwrap()]).await;
    told(&site, key, 401).await;
    told(&site, &person, 200).await;
}

#[tokio::test]
async fn a_relay_that_does_not_say_who_may_come_in_does_not_start() {
    let home = tempfile::tempdir().unwrap();
    let start = async |more: &[&str]| -> Ended {
        let options = options("https://login.example.com");
        let listen = ["relay", "--listen", "127.0.0.1:0"];
        run(command(home.path(), &[listen.as_slice(), &options, more].concat())).await
    };
    for (more, words) in [
        (vec![], "--oidc-allow-all"),
        (vec!["--oidc-allow", "email=*example.com"], "email=*@example.com"),
        (vec!["--oidc-allow", "everybody"], "group=NAME"),
        (
            vec!["--oidc-allow-all", "--oidc-user-claim", "preferred_username"],
            "use sub",
        ),
        (vec!["--oidc-allow-all", "--oidc-user-claim", "phone_number"], "use sub"),
        (vec!["--oidc-allow-all", "--oidc-user-claim", ""], "leave it out"),
        (vec!["--oidc-allow-all", "--oidc-device-client-id", " "], "leave it out"),
        (vec!["--oidc-allow", "sub=1,everybody"], "group=NAME"),
        (vec!["--oidc-allow-all", "--oidc-ca", "/nothing/here"], "--oidc-ca"),
        (vec!["--oidc-allow-all", "--oidc-allow", "sub=1"], "cannot be used with"),
    ] {
        let ended = start(&more).await;
        assert_eq!(ended.code, Some(2), "{more:?}: {}", ended.errors);
        assert!(ended.errors.contains(words), "{more:?}: {}", ended.errors);
    }
    for (arguments, words) in [
        (["--oidc-issuer", "http://login.example.com"], "as the provider does"),
        (["--oidc-user-claim", "email"], "--oidc-issuer"),
    ] {
        let listen = ["relay", "--listen", "127.0.0.1:0"];
        let ended = run(command(home.path(), &[listen.as_slice(), &arguments].concat())).await;
        assert_eq!(ended.code, Some(2), "{}", ended.errors);
        assert!(ended.errors.contains(words), "{}", ended.errors);
    }
}
