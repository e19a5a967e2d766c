//! `tunnel bridge login` by a sign-in at a real provider: the device flow, what is kept of it, how it is refreshed and given up.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Response;
use serde_json::{Value, json};
use tokio::time::sleep;
use tunnel::bridge::config::TokenSource;
use tunnel::bridge::credential::Credential;
use tunnel::bridge::login::{Login, LoginError, Refreshing};
use tunnel::relay::auth::oidc::rules::Rules;
use tunnel::token::Secret;
use tunnel::transport::dial::Dialer;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::desktop::Desktop;
use crate::harness::oidc::{self, AUDIENCE};
use crate::harness::process::{Ended, Process};
use crate::harness::provider::Provider;
use crate::harness::{
    Caller, PATIENCE, TestBridge, TestRelay, Upstream, chunk, on_each_transport, ready, text, within,
};

/// How long access tokens live where they are refreshed, seconds: so long that a busy machine is in time.
const LIFE: u64 = 9;

/// Begins to log in; the address that is shown.
async fn begin(desktop: &Desktop) -> (Process, String) {
    let mut login = desktop.start(&["bridge", "login", "--relay", &desktop.relay, "--audience", AUDIENCE]);
    let line = login.error_line("http://127.0.0.1").await;
    let line = if line.contains("user_code") {
        line
    } else {
        login.error_line("user_code").await
    };
    (login, line.trim().to_owned())
}

/// Somebody logs in, in one of the provider's ways.
async fn log_in(provider: &mut Provider, desktop: &Desktop, way: &str) -> Option<i32> {
    let (login, address) = begin(desktop).await;
    provider.say(&format!("{way} ann {address}")).await;
    login.ended().await
}

/// A desktop whose user signed in at a provider that gives tokens for so many seconds, and the relay that they are for.
async fn signed_in(life: u64, way: &str) -> (Provider, TestRelay, Desktop) {
    let mut provider = Provider::with(&json!({"accessLife": life})).await;
    let relay = provider.relay().await;
    let desktop = Desktop::of(relay.address);
    assert_eq!(log_in(&mut provider, &desktop, way).await, Some(0));
    (provider, relay, desktop)
}

fn kept(desktop: &Desktop) -> Value {
    let path = desktop.kept().pop().unwrap();
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn dialer() -> Dialer {
    Dialer::new(None, PATIENCE).unwrap()
}

async fn refresh(path: PathBuf, refused: Secret) -> Result<Login, LoginError> {
    Refreshing::begin(path, dialer(), Some(refused)).outcome().await
}

/// A chat through ann's bridge lasts for so many refreshes and loses no piece; the bridge's session is one and the same.
async fn chat_across_refreshes(relay: &TestRelay, desktop: &Desktop, transport: Transport) {
    let upstream = Upstream::scripted().await;
    let url = format!("http://{}", upstream.address);
    let mut bridge = desktop.start(&["bridge", "--transport", transport.name(), "--upstream", &url]);
    ready(relay, "ann").await;
    let session = relay.relay.registry.pick("ann", None).unwrap();
    // Who asks must be let in all the while, too.
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let (answer, mut response) = tokio::join!(
        async { upstream.next().await.begin(Response::builder()) },
        caller.post("/api/chat", "{}"),
    );
    let mut number = 0;
    for _ in 0..3 {
        let refreshed = bridge.error_line("the sign-in was refreshed");
        let mut refreshed = std::pin::pin!(refreshed);
        loop {
            answer.send(format!("{number};")).await;
            assert_eq!(chunk(&mut response).await.unwrap().unwrap(), format!("{number};"));
            number += 1;
            tokio::select! {
                _ = &mut refreshed => break,
                () = sleep(Duration::from_millis(50)) => {}
            }
        }
    }
    drop(answer);
    assert!(chunk(&mut response).await.is_none());
    let now = relay.relay.registry.pick("ann", None).unwrap();
    assert_eq!(now.connection_id, session.connection_id);
}

on_each_transport! {
    async fn a_desktop_whose_user_signed_in_chats_on_while_its_token_is_refreshed(transport: Transport) {
        let (_provider, relay, desktop) = signed_in(LIFE, "confirm").await;
        let path = desktop.kept().pop().unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let before = kept(&desktop);
        chat_across_refreshes(&relay, &desktop, transport).await;
        let after = kept(&desktop);
        for token in ["accessToken", "refreshToken"] {
            assert_ne!(before[token], after[token]);
        }
    }

    async fn a_sign_in_that_is_over_says_so_and_another_one_is_taken_up(transport: Transport) {
        let (mut provider, _relay, desktop) = signed_in(LIFE, "confirm").await;
        let stolen = kept(&desktop)["refreshToken"].as_str().unwrap().to_owned();
        let mut bridge = desktop.start(&["bridge", "--transport", transport.name()]);
        bridge.error_line("connected relay=").await;
        bridge.error_line("the sign-in was refreshed").await;
        // The provider sees it used twice, and trusts neither.
        assert_eq!(provider.say(&format!("reuse {stolen}")).await["error"], "invalid_grant");
        let said = bridge.error_line("is over").await;
        assert!(said.contains("sign in again with: tunnel bridge login"), "{said}");
        bridge.error_line("not connected").await;
        assert_eq!(log_in(&mut provider, &desktop, "confirm").await, Some(0));
        bridge.error_line("connected relay=").await;
    }

    async fn a_sign_in_after_one_that_is_over_is_shown_on_the_same_link(transport: Transport) {
        let (mut provider, relay, desktop) = signed_in(60, "confirm").await;
        let mut old = kept(&desktop);
        // Its time has come, and the provider has nothing more to give.
        let end = oidc::now() + 15;
        (old["issued"], old["expires"], old["refreshToken"]) = ((end - 60).into(), end.into(), "none".into());
        std::fs::write(desktop.kept().pop().unwrap(), old.to_string()).unwrap();
        let mut bridge = desktop.start(&["bridge", "--transport", transport.name()]);
        bridge.error_line("is over").await;
        ready(&relay, "ann").await;
        let session = relay.relay.registry.pick("ann", None).unwrap();
        assert_eq!(log_in(&mut provider, &desktop, "confirm").await, Some(0));
        bridge.error_line("another sign-in is used from now on").await;
        let now = relay.relay.registry.pick("ann", None).unwrap();
        assert_eq!(now.connection_id, session.connection_id);
    }
}

#[tokio::test]
async fn somebody_with_chromium_lets_a_desktop_in() {
    let (_provider, relay, desktop) = signed_in(LIFE, "chromium").await;
    chat_across_refreshes(&relay, &desktop, Transport::Ws).await;
}

#[tokio::test]
async fn a_desktop_that_slept_refreshes_before_it_connects_and_one_that_logged_out_does_not() {
    let (mut provider, relay, desktop) = signed_in(LIFE, "confirm").await;
    let path = desktop.kept().pop().unwrap();
    let mut old = kept(&desktop);
    // As it is after a night.
    let ended = oidc::now() - 3600;
    (old["issued"], old["expires"]) = ((ended - LIFE).into(), ended.into());
    std::fs::write(&path, old.to_string()).unwrap();
    let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
    let bridge = TestBridge::to(&relay, &upstream)
        .token(TokenSource::Login(path))
        .start()
        .await;
    ready(&relay, "ann").await;
    let fresh = kept(&desktop);
    assert_ne!(fresh["refreshToken"], old["refreshToken"]);
    // The probe has what it needs, both for bridges and for requests.
    let probe = desktop.run(&["probe", "--only", "reach", "--json"]).await;
    let report: Value = serde_json::from_str(&probe.output).unwrap();
    let summary = &report["summary"];
    assert!(summary["failed"] == 0 && summary["passed"] != 0, "{}", probe.output);
    bridge.stop().await;

    let token = kept(&desktop)["refreshToken"].as_str().unwrap().to_owned();
    let logout = desktop.run(&["bridge", "logout"]).await;
    assert_eq!(logout.code, Some(0), "{}", logout.errors);
    assert!(
        logout.errors.contains(&format!("taken back at {}", provider.issuer)),
        "{}",
        logout.errors
    );
    assert!(desktop.kept().is_empty());
    assert_eq!(provider.say(&format!("reuse {token}")).await["error"], "invalid_grant");
    let bridge = desktop.run(&["bridge"]).await;
    assert!(
        bridge.code == Some(2) && bridge.errors.contains("bridge login"),
        "{}",
        bridge.errors
    );
}

#[tokio::test]
async fn programs_with_the_same_sign_in_refresh_it_once() {
    let (_provider, _relay, desktop) = signed_in(LIFE, "confirm").await;
    let path = desktop.kept().pop().unwrap();
    let refused = kept(&desktop)["accessToken"].as_str().unwrap().to_owned();
    let refused = Secret::new(&refused);
    let all = (0..8).map(|_| tokio::spawn(refresh(path.clone(), refused.clone())));
    let all = futures_util::future::join_all(all).await;
    let tokens = all.into_iter().map(|login| login.unwrap().unwrap().token());
    let mut tokens: Vec<_> = tokens.map(|token| token.expose().to_owned()).collect();
    tokens.dedup();
    assert_eq!(tokens.len(), 1);
    assert_ne!(tokens[0], refused.expose());
}

#[tokio::test]
async fn two_processes_that_refresh_at_the_same_moment_take_turns() {
    let mut provider = Provider::start().await;
    let relay = provider.relay().await;
    let desktop = Desktop::of(relay.address);
    assert_eq!(log_in(&mut provider, &desktop, "confirm").await, Some(0));
    let path = desktop.kept().pop().unwrap();
    let mut old = kept(&desktop);
    (old["issued"], old["expires"]) = ((oidc::now() - 7200).into(), (oidc::now() - 3600).into());
    std::fs::write(&path, old.to_string()).unwrap();
    let arguments = ["probe", "--only", "reach", "--json"];
    let (one, other) = tokio::join!(desktop.run(&arguments), desktop.run(&arguments));
    assert_eq!(
        (one.code, other.code),
        (Some(0), Some(0)),
        "{}{}",
        one.errors,
        other.errors
    );
    assert_ne!(kept(&desktop)["refreshToken"], old["refreshToken"]);
    // The provider saw none of them twice: it trusts what is kept.
    let token = Secret::new(kept(&desktop)["accessToken"].as_str().unwrap());
    refresh(path, token).await.unwrap();
}

#[tokio::test]
async fn a_token_for_another_host_is_asked_for_only_if_its_owner_says_so() {
    let provider = Provider::start().await;
    let relay = provider.relay().await;
    let desktop = Desktop::of(relay.address);
    let login = ["bridge", "login", "--relay", &desktop.relay];
    let refused = desktop.run(&login).await;
    assert_eq!(refused.code, Some(2), "{}", refused.errors);
    for words in [
        &provider.issuer,
        "is another host than",
        "--audience https://relay.example.com",
    ] {
        assert!(refused.errors.contains(words), "{}", refused.errors);
    }
    let another = [&login[..], &["--audience", "https://elsewhere.example.com"]].concat();
    let refused = desktop.run(&another).await;
    assert_eq!(refused.code, Some(2), "{}", refused.errors);
    assert!(refused.errors.contains("has another one, https://relay.example.com"));
    assert!(!refused.errors.contains("user_code"), "{}", refused.errors);
}

/// A login that comes to nothing ends with this code and these words.
async fn ends(mut login: Process, code: i32, words: &str) {
    let said = login.error_line("error:").await;
    assert_eq!(login.ended().await, Some(code), "{said}");
    assert!(said.contains(words), "{said}");
}

#[tokio::test]
async fn a_sign_in_that_is_refused_keeps_nothing() {
    let mut provider = Provider::start().await;
    let relay = provider.relay().await;
    let desktop = Desktop::of(relay.address);
    let (login, address) = begin(&desktop).await;
    provider.say(&format!("deny ann {address}")).await;
    ends(login, 3, "was refused where it was to be confirmed").await;
    // Whom the relay does not let in.
    let rules = Rules::Any(vec!["sub=bob".parse().unwrap()]);
    let relay = provider.relay_for(&[AUDIENCE], rules).await;
    let elsewhere = Desktop::of(relay.address);
    let (login, address) = begin(&elsewhere).await;
    provider.say(&format!("confirm ann {address}")).await;
    ends(login, 3, "not one of those whom this relay lets in").await;
    assert!(desktop.kept().is_empty() && elsewhere.kept().is_empty());
}

#[tokio::test]
async fn a_code_that_nobody_confirms_runs_out() {
    let provider = Provider::with(&json!({"codeLife": 6})).await;
    let relay = provider.relay().await;
    let desktop = Desktop::of(relay.address);
    let (login, _) = begin(&desktop).await;
    ends(login, 1, "nobody signed in while the code was good").await;
    assert!(desktop.kept().is_empty());
}

#[tokio::test]
async fn a_sign_in_can_be_stopped() {
    let provider = Provider::start().await;
    let relay = provider.relay().await;
    let desktop = Desktop::of(relay.address);
    let (login, _) = begin(&desktop).await;
    login.signal(rustix::process::Signal::INT);
    assert_eq!(login.ended().await, Some(1));
    assert!(desktop.kept().is_empty());
}

#[tokio::test]
async fn nobody_signs_in_at_a_provider_that_is_another_one() {
    let double = oidc::Provider::start(&[oidc::Key::ec("one")]).await;
    let mut settings = double.settings();
    settings.device_client_id = Some("desktop".to_owned());
    let relay = TestRelay::with(|config| config.oidc = Some(settings)).await;
    let desktop = Desktop::of(relay.address);
    let arguments = ["bridge", "login", "--relay", &desktop.relay, "--audience", AUDIENCE];
    let login = async || desktop.run(&arguments).await;
    let failed = |ended: &Ended, words: &str| {
        assert_eq!(ended.code, Some(1), "{}", ended.errors);
        assert!(ended.errors.contains(words), "{}", ended.errors);
    };
    failed(&login().await, "has no sign-in for devices");
    double.set_name("https://login.example.net");
    failed(&login().await, "calls itself https://login.example.net");
    double.set_away(true);
    failed(&login().await, "503");
}

#[tokio::test]
async fn a_relay_without_a_provider_asks_for_a_code() {
    let relay = TestRelay::start().await;
    let desktop = Desktop::of(relay.address);
    let asked = desktop.run(&["bridge", "login", "--relay", &desktop.relay]).await;
    assert_eq!(asked.code, Some(2), "{}", asked.errors);
    assert!(asked.errors.contains("tunnel relay pair") && asked.errors.contains("--code CODE"));
}

#[tokio::test]
async fn a_sign_in_that_cannot_be_kept_is_not_refreshed() {
    let (_provider, relay, desktop) = signed_in(LIFE, "confirm").await;
    let path = desktop.kept().pop().unwrap();
    let token = Secret::new(kept(&desktop)["accessToken"].as_str().unwrap());
    // What is written beside it first finds a folder in its place.
    let beside = format!("{}.{}.new", path.display(), std::process::id());
    std::fs::create_dir(&beside).unwrap();
    let failed = refresh(path.clone(), token.clone()).await;
    assert!(matches!(failed, Err(LoginError::File { .. })), "{failed:?}");
    std::fs::remove_dir(&beside).unwrap();
    let again = within("another refresh", refresh(path, token)).await;
    again.unwrap();
    let caller = kept(&desktop)["accessToken"].as_str().unwrap().to_owned();
    let mut caller = Caller::connect(relay.address, &caller).await;
    let listed = text(caller.get("/api/bridge").await).await;
    assert_eq!(listed, r#"{"bridges":[],"shared":[]}"#);
}

#[tokio::test]
async fn a_refreshed_sign_in_that_cannot_be_written_is_used_and_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.login");
    let beside = format!("{}.{}.new", path.display(), std::process::id());
    let blocked = beside.clone();
    let provider = Upstream::serving(move |_| {
        // From here on nothing can be written.
        std::fs::create_dir(&blocked).unwrap();
        let granted = json!({"access_token": "two", "refresh_token": "r2", "expires_in": 600});
        async move { Response::new(full(granted.to_string())) }
    })
    .await;
    let issuer = format!("http://{}", provider.address);
    let login = json!({
        "issuer": issuer, "clientId": "desktop", "tokenEndpoint": format!("{issuer}/token"),
        "accessToken": "one", "refreshToken": "r1", "issued": oidc::now() - 500, "expires": oidc::now() + 100,
    });
    std::fs::write(&path, login.to_string()).unwrap();
    let mut credential = Credential::new(TokenSource::Login(path.clone()));
    assert_eq!(credential.read().unwrap().expose(), "one");
    let relay = "http://127.0.0.1:1".parse().unwrap();
    let fresh = within("the refresh", credential.renew(&dialer(), &relay)).await;
    assert_eq!(fresh.unwrap().expose(), "two");
    let in_file = || serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(credential.read().unwrap().expose(), "two");
    assert_eq!(in_file()["refreshToken"], "r1");
    // Nobody else may use the refresh token of the file.
    let mut other = Refreshing::begin(path.clone(), dialer(), Some(Secret::new("one")));
    let waits = tokio::time::timeout(Duration::from_millis(200), other.outcome()).await;
    assert!(waits.is_err(), "{waits:?}");
    std::fs::remove_dir(&beside).unwrap();
    within("the file", credential.due()).await;
    credential.renew(&dialer(), &relay).await;
    assert_eq!(in_file()["refreshToken"], "r2");
    let login = within("the lock", other.outcome()).await.unwrap();
    assert_eq!(login.token().expose(), "two");
}

/// A relay and its provider in one: who has signed in there is answered with these in turn, who takes a sign-in back with that. How
/// often that was.
async fn both(answers: &[u16], to_take_back: u16) -> (Desktop, Upstream, Arc<AtomicUsize>) {
    let answers = Mutex::new(answers.to_vec());
    let taken_back = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken_back);
    let upstream = Upstream::serving(move |request| {
        let base = format!("http://{}", request.headers()["host"].to_str().unwrap());
        let (status, answer) = match request.uri().path() {
            "/-/auth/config" => (200, json!({"oidc": {"issuer": base, "deviceClientId": "desktop"}})),
            "/.well-known/openid-configuration" => {
                let told = json!({
                    "issuer": base, "device_authorization_endpoint": format!("{base}/device"),
                    "token_endpoint": format!("{base}/token"), "revocation_endpoint": format!("{base}/revoke"),
                });
                (200, told)
            }
            "/device" => {
                let uri = format!("{base}/confirm");
                let code = json!({"device_code": "d", "user_code": "ABCD", "verification_uri": uri, "expires_in": 60, "interval": 1});
                (200, code)
            }
            "/token" => (200, json!({"access_token": "t", "refresh_token": "r", "expires_in": 600})),
            "/revoke" => {
                counted.fetch_add(1, Ordering::Relaxed);
                (to_take_back, json!({}))
            }
            _ => (answers.lock().unwrap().remove(0), json!({"user": "ann", "error": "not you"})),
        };
        let response = Response::builder().status(status).header("retry-after", "0");
        let response = response.body(full(answer.to_string())).unwrap();
        async move { response }
    })
    .await;
    (Desktop::of(upstream.address), upstream, taken_back)
}

#[tokio::test]
async fn a_relay_that_cannot_tell_yet_is_asked_again_and_what_is_not_taken_back_is_told() {
    let (desktop, _both, taken_back) = both(&[503, 502, 200], 503).await;
    let login = desktop.run(&["bridge", "login", "--relay", &desktop.relay]).await;
    assert_eq!(login.code, Some(0), "{}", login.errors);
    assert!(login.errors.contains("signed in as ann"), "{}", login.errors);
    assert_eq!((desktop.kept().len(), taken_back.load(Ordering::Relaxed)), (1, 0));
    let logout = desktop.run(&["bridge", "logout"]).await;
    assert_eq!(logout.code, Some(1), "{}", logout.errors);
    assert!(logout.errors.contains("not taken back"), "{}", logout.errors);
    assert_eq!((desktop.kept().len(), taken_back.load(Ordering::Relaxed)), (0, 1));
}

#[tokio::test]
async fn what_a_relay_does_not_let_in_is_taken_back_and_the_code_is_shown_to_programs_too() {
    let (desktop, _both, taken_back) = both(&[403], 200).await;
    let login = ["bridge", "login", "--relay", &desktop.relay, "--log-format", "json"];
    let refused = desktop.run(&login).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    let shown: Value = serde_json::from_str(&refused.output).unwrap();
    assert_eq!(shown["code"], "ABCD", "{shown}");
    assert_eq!((desktop.kept().len(), taken_back.load(Ordering::Relaxed)), (0, 1));
}
