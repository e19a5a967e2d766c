//! Attacks on who is let in, as far as no other file has them: tokens that name their own key, secrets in addresses, what is another
//! user's. `alg: none`, algorithms, issuers, audiences, times and scopes of a provider's tokens are in [`crate::oidc`], of the relay's
//! own in [`crate::tokens`]; a key that would make keys, codes or bridges, and another user's keys, in `keys`; codes guessed, used twice
//! or late in `pairing` and `demo`; another user's bridges in [`crate::isolation`], [`crate::polling_input`] and [`crate::events`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Response;
use serde_json::{Value, json};
use tunnel::transport::full;

use crate::harness::oidc::{Key, Provider, now, unsigned};
use crate::harness::watch::{Lines, Watched};
use crate::harness::{Caller, Path, TestRelay, Upstream, get, on_each_transport, text, until, within};
use crate::hostile;

async fn trusting(provider: &Provider) -> TestRelay {
    let mut settings = provider.settings();
    settings.timing.pause = Duration::from_millis(10);
    TestRelay::with(|config| config.oidc = Some(settings)).await
}

/// What is said to a token in the end: as long as the provider may have a key of that name by now, that is not known.
async fn final_status(relay: &TestRelay, token: &str) -> u16 {
    let known = async {
        loop {
            match status(relay, token).await {
                503 => tokio::time::sleep(Duration::from_millis(10)).await,
                status => return status,
            }
        }
    };
    within("the provider to be asked", known).await
}

async fn status(relay: &TestRelay, token: &str) -> u16 {
    let mut caller = Caller::connect(relay.address, token).await;
    // With a head that is too large the connection may end before the answer was read.
    match within("an answer", caller.try_send(get("/api/bridge"))).await {
        Ok(response) => response.status().as_u16(),
        Err(_) => 431,
    }
}

/// Counts who comes for something.
async fn bait() -> (Upstream, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let upstream = Upstream::serving(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Response::new(full(r#"{"keys":[]}"#)) }
    })
    .await;
    (upstream, asked)
}

#[tokio::test]
async fn a_token_cannot_say_where_its_key_is() {
    let (key, strange) = (Key::rsa("one"), Key::rsa("strange"));
    let provider = Provider::start(std::slice::from_ref(&key)).await;
    let relay = trusting(&provider).await;
    let claims = provider.claims("ann");
    assert_eq!(status(&relay, &key.token(&claims)).await, 200);
    let (bait, asked) = bait().await;
    let url = format!("http://{}/jwks", bait.address);
    for (kid, refused) in [
        ("../../../../../../dev/null".to_owned(), 401),
        ("/proc/self/environ".to_owned(), 401),
        ("one\0".to_owned(), 401),
        ("one' OR '1'='1".to_owned(), 401),
        (url.clone(), 401),
        ("file:///dev/null".to_owned(), 401),
        (String::new(), 401),
        ("k".repeat(4 * 1024), 401),
        ("k".repeat(64 * 1024), 431),
    ] {
        let header = json!({"alg": "RS256", "kid": kid});
        for signer in [&key, &strange] {
            let token = signer.sign(&header, &claims);
            assert_eq!(final_status(&relay, &token).await, refused, "{kid:.40}");
        }
    }
    let own = json!({"kty": "RSA", "kid": "one", "n": URL_SAFE_NO_PAD.encode([7; 256]), "e": "AQAB"});
    for (name, value) in [
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("jwk", own),
        ("x5c", json!([STANDARD.encode(strange.public())])),
    ] {
        // Whoever signed it for real may say it, and nobody listens.
        for (signer, answer) in [(&key, 200), (&strange, 401)] {
            let header = json!({"alg": "RS256", "kid": "one", name: value});
            let given = status(&relay, &signer.sign(&header, &claims)).await;
            assert_eq!(given, answer, "{name}");
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "somebody came for a key");
}

#[tokio::test]
async fn a_public_key_is_no_secret_in_whatever_form_and_time_is_up_after_the_leeway() {
    let key = Key::rsa("one");
    let provider = Provider::start(std::slice::from_ref(&key)).await;
    let relay = trusting(&provider).await;
    let claims = provider.claims("ann");
    assert_eq!(status(&relay, &key.token(&claims)).await, 200);
    let pem = STANDARD.encode(key.public());
    let lines: Vec<_> = pem.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    let pem = format!(
        "-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n",
        lines.join("\n")
    );
    let bare = json!({"sub": "ann", "exp": now() + 100});
    for secret in [pem.as_bytes(), pem.trim().as_bytes(), key.public(), b""] {
        for claims in [&claims, &bare] {
            for kid in [json!("one"), Value::Null] {
                let signed = unsigned(&json!({"alg": "HS256", "kid": kid}), claims);
                let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
                let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
                assert_eq!(status(&relay, &token).await, 401, "{kid} {claims}");
            }
        }
    }
    for (claim, value) in [("exp", now() - 61), ("nbf", now() + 90), ("exp", 0)] {
        let token = provider.token_with("ann", &json!({claim: value}));
        assert_eq!(status(&relay, &token).await, 401, "{claim}");
    }
}

#[tokio::test]
async fn a_link_goes_on_whatever_token_is_shown_on_it() {
    let provider = Provider::start(&[Key::rsa("one")]).await;
    let relay = trusting(&provider).await;
    let mut link = hostile::rogue(relay.address, &relay.token("bob")).await;
    hostile::opened(&relay, &mut link).await;
    let strange = Key::rsa("strange");
    let huge = json!({"alg": "RS256", "kid": "k".repeat(40 * 1024)});
    for token in [
        strange.sign(&huge, &provider.claims("bob")),
        "t".repeat(40 * 1024),
        provider.token("eve"),
        relay.token("eve"),
        String::new(),
    ] {
        hostile::say(&mut link, &json!({"type": "token", "token": token})).await;
    }
    hostile::heard(&mut link).await;
    let upstream = Upstream::scripted().await;
    let eve = crate::harness::TestBridge::to(&relay, &upstream)
        .user("eve")
        .start()
        .await;
    until("eve's own bridge", || relay.relay.registry.list("eve").len() == 1).await;
    assert!(relay.relay.registry.pick("bob", None).is_some());
    drop(eve);
}

on_each_transport! {
    async fn a_token_or_key_in_an_address_is_in_no_log(transport: Transport) {
        let log = Lines::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let (relay, watched) = Watched::start(|_| {}).await;
        let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
        let path = Path::with(relay, upstream, transport).await;
        let key = "tun_0123456789abcdefghjkmnpqrs";
        let address = path.relay.address;
        for secret in [path.token.as_str(), key] {
            for at in ["/api/tags", "/v1/models", "/b/box/api/tags", "/b/none/api/tags", "/", "/api/bridge", "/-/me", "/-/events"] {
                for query in [format!("?token={secret}"), format!("?a=b&access_token={secret}&key={secret}")] {
                    for token in [path.token.as_str(), ""] {
                        let response = Caller::connect(address, token).await.get(&format!("{at}{query}")).await;
                        // In the query of these it lets nobody in.
                        assert_eq!(response.status() == 401, token.is_empty(), "{at}");
                        if at != "/-/events" {
                            text(response).await;
                        }
                    }
                }
            }
            // Here one may stand in the address: as one that lets nobody in, too.
            for at in [format!("/ws/tunnel?token={secret}"), format!("/ws/tunnel?token={secret}x")] {
                text(Caller::connect(address, "").await.get(&at).await).await;
            }
        }
        // Lines are written in their order.
        assert_eq!(Caller::connect(address, "").await.get("/b/last/api/tags").await.status(), 401);
        until("the access log", || watched.log.text().contains("/b/last/")).await;
        until("the log", || log.text().contains("refused")).await;
        for text in [log.text(), watched.log.text()] {
            assert!(!text.contains(&path.token) && !text.contains(key), "{text}");
        }
    }
}
