//! Sign-in at a relay that keeps accounts: who signed in is listed once, and can be shut out; and which options make no relay.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tunnel::bridge::config::TokenSource;
use tunnel::token::Secret;

use crate::harness::oidc::{AUDIENCE, Key, Provider};
use crate::harness::process::{Ended, Process, command, run};
use crate::harness::{Caller, TestBridge, Upstream, json as read_json, on_each_transport, text, within};

/// Between two looks at what cannot be waited for.
const PAUSE: Duration = Duration::from_millis(20);

struct Place {
    home: TempDir,
    _relay: Process,
    address: SocketAddr,
}

impl Place {
    async fn trusting(provider: &Provider) -> Self {
        let home = tempfile::tempdir().unwrap();
        let issuer = provider.issuer();
        let folder = home.path().join("data");
        let data = ["--data-dir", folder.to_str().unwrap()];
        let options = [
            data.as_slice(),
            &options(&issuer),
            &["--oidc-allow", "email=*@example.com"],
        ]
        .concat();
        let (relay, address) = Process::relay(home.path(), &options).await;
        Self {
            home,
            _relay: relay,
            address,
        }
    }

    async fn run(&self, arguments: &[&str]) -> String {
        let folder = self.home.path().join("data");
        let arguments = [&["relay"], arguments, &["--data-dir", folder.to_str().unwrap()]].concat();
        let ended = run(command(self.home.path(), &arguments)).await;
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        ended.output
    }

    async fn tokens(&self) -> Vec<Value> {
        serde_json::from_str(&self.run(&["token", "list", "--json"]).await).unwrap()
    }

    /// Waits until so many are in the list.
    async fn listed(&self, number: usize) {
        within("the list", async {
            while self.tokens().await.len() < number {
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await;
    }

    /// Waits until the caller is answered so.
    async fn answers(&self, token: &str, status: u16) {
        within("the answer that is expected", async {
            let mut caller = Caller::connect(self.address, token).await;
            while caller.get("/api/bridge").await.status() != status {
                tokio::time::sleep(PAUSE).await;
                caller = Caller::connect(self.address, token).await;
            }
        })
        .await;
    }
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
        let place = Place::trusting(&provider).await;
        let upstream = Upstream::scripted().await;
        let desktop = TestBridge::between(place.address, upstream.address)
            .token(TokenSource::Given(Secret::new(&token(&provider, "desktop", 1))))
            .transport(transport)
            .start()
            .await;
        for number in 1..5 {
            place.answers(&token(&provider, "page", number), 200).await;
        }
        place.listed(2).await;
        let listed = place.tokens().await;
        assert_eq!(listed.len(), 2, "{listed:?}");
        for one in &listed {
            assert!(one["id"].as_str().unwrap().starts_with("oidc:"), "{one}");
            assert_eq!(one["user"], "ann");
        }
        place.run(&["user", "disable", "ann"]).await;
        desktop.disconnected().await;
        place.answers(&token(&provider, "page", 9), 403).await;
        place.run(&["user", "enable", "ann"]).await;
        place.answers(&token(&provider, "page", 9), 200).await;
    }
}

#[tokio::test]
async fn a_program_is_shut_out_for_good_when_its_sign_in_is_taken_back() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let place = Place::trusting(&provider).await;
    place.answers(&token(&provider, "page", 1), 200).await;
    place.listed(1).await;
    let listed = place.tokens().await;
    let id = listed[0]["id"].as_str().unwrap().to_owned();
    place.run(&["token", "revoke", &id]).await;
    place.answers(&token(&provider, "page", 1), 401).await;
    place.answers(&token(&provider, "page", 2), 401).await;
    place.answers(&token(&provider, "desktop", 1), 200).await;
}

#[tokio::test]
async fn who_was_deleted_may_sign_in_anew_but_not_with_what_was_issued_before() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let place = Place::trusting(&provider).await;
    let before = token(&provider, "page", 1);
    place.answers(&before, 200).await;
    place.listed(1).await;
    place.run(&["user", "delete", "ann"]).await;
    place.answers(&before, 401).await;
    within("a token that is newer than that", async {
        let mut number = 2;
        let status = async |token: &str| {
            let mut caller = Caller::connect(place.address, token).await;
            caller.get("/api/bridge").await.status()
        };
        while status(&token(&provider, "page", number)).await != 200 {
            tokio::time::sleep(PAUSE).await;
            number += 1;
        }
    })
    .await;
    place.answers(&before, 401).await;
}

#[tokio::test]
async fn who_signed_in_on_the_page_makes_keys_and_codes_unless_the_token_names_other_scopes() {
    let key = Key::rsa("one");
    let provider = Provider::start(std::slice::from_ref(&key)).await;
    let place = Place::trusting(&provider).await;
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
    place.answers(&person, 200).await;
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
            let response = Caller::connect(place.address, &token).await.post(path, "{}").await;
            assert_eq!(response.status(), status, "{path}");
        }
    }
    let mut caller = Caller::connect(place.address, &person).await;
    let made = read_json(caller.post("/-/keys", "{}").await).await;
    assert_eq!(made["expires"], Value::Null, "the token of the hour ends nothing");
    assert_eq!(caller.post("/-/token/renew", "").await.status(), 400);
    let key = made["key"].as_str().unwrap();
    place.answers(key, 200).await;
    let mut caller = Caller::connect(place.address, key).await;
    let refused = text(caller.post("/-/keys", "{}").await).await;
    assert!(
        refused.contains("signing in on a page gives and a key cannot"),
        "{refused}"
    );
    assert_eq!(caller.post("/-/token/renew", "").await.status(), 403);
    place.run(&["user", "disable", "ann"]).await;
    place.answers(key, 403).await;
    place.answers(&person, 403).await;
    place.run(&["user", "enable", "ann"]).await;
    place.answers(key, 200).await;
    place.run(&["key", "revoke", made["id"].as_str().unwrap()]).await;
    place.answers(key, 401).await;
    place.answers(&person, 200).await;
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
