//! Sign-in at a real provider: `oidc-provider` of npm, in a process of its own, with people who come by a page and by a desktop.
//! `tests/run` installs it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use http::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tunnel::bridge::config::TokenSource;
use tunnel::relay::auth::oidc::rules::Rules;
use tunnel::relay::auth::oidc::{Settings, Timing};
use tunnel::token::Secret;
use tunnel::transport::dial::Dialer;
use tunnel::transport::full;

use crate::harness::oidc::AUDIENCE;
use crate::harness::{Caller, PATIENCE, TestBridge, TestRelay, Upstream, on_each_transport, ready, text, within};

const SCRIPT: &str = include_str!("../oidc/provider.js");

/// The provider. Dropping it ends it at once.
struct Provider {
    issuer: String,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

/// What somebody got by signing in.
struct Tokens {
    access: String,
    identity: String,
}

impl Provider {
    async fn start() -> Self {
        let mut child = Command::new("node")
            .args(["--input-type=module", "--eval", SCRIPT])
            .current_dir(installed())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("node is needed (Debian: apt-get install nodejs npm): {error}"));
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = next(&mut output).await;
        Self {
            issuer: first["issuer"].as_str().unwrap().to_owned(),
            input: child.stdin.take().unwrap(),
            output,
            _child: child,
        }
    }

    /// Somebody signs in: `page` with a browser, `device` with a browser elsewhere.
    async fn sign_in(&mut self, way: &str, user: &str) -> Tokens {
        let line = format!("{way} {user}\n");
        self.input.write_all(line.as_bytes()).await.unwrap();
        let got = next(&mut self.output).await;
        let of = |name: &str| got[name].as_str().unwrap().to_owned();
        Tokens {
            access: of("access_token"),
            identity: of("id_token"),
        }
    }

    async fn relay(&self, audiences: &[&str], rules: Rules) -> TestRelay {
        let settings = Settings {
            issuer: self.issuer.parse().unwrap(),
            audiences: audiences.iter().map(|name| (*name).to_owned()).collect(),
            client_id: "page".to_owned(),
            device_client_id: Some("desktop".to_owned()),
            rules,
            user_claim: "sub".to_owned(),
            dialer: Dialer::new(None, PATIENCE).unwrap(),
            timing: Timing::default(),
        };
        TestRelay::with(|config| config.oidc = Some(settings)).await
    }
}

/// Where the provider's packages are.
fn installed() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oidc");
    let provider = folder.join("node_modules/oidc-provider");
    assert!(
        provider.is_dir(),
        "the npm package oidc-provider is not in {}: run tests/run once, which installs it (it needs node and npm)",
        folder.display()
    );
    folder
}

/// The next line that is JSON; the provider prints advice between them.
async fn next(output: &mut Lines<BufReader<ChildStdout>>) -> Value {
    within("a line of the provider", async {
        loop {
            let line = output.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("the provider ended; its reason is above"));
            if let Ok(value) = serde_json::from_str(&line) {
                return value;
            }
        }
    })
    .await
}

async fn status(relay: &TestRelay, token: &str) -> u16 {
    let mut caller = Caller::connect(relay.address, token).await;
    caller.get("/api/bridge").await.status().as_u16()
}

on_each_transport! {
    async fn who_signed_in_at_a_real_provider_reaches_the_desktop_that_did(transport: Transport) {
        let mut provider = Provider::start().await;
        let relay = provider.relay(&[AUDIENCE], Rules::All).await;
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
    let relay = provider.relay(&["page"], only("email=*@example.com")).await;
    assert_eq!(status(&relay, &ann.identity).await, 200);
    assert_eq!(status(&relay, &ann.access).await, 401);
    let relay = provider.relay(&["page", AUDIENCE], only("email=*@example.net")).await;
    assert_eq!(status(&relay, &ann.identity).await, 403);
    // It does not say who it is with a token for somebody else.
    assert_eq!(status(&relay, &ann.access).await, 403);
    let mut nobody = Caller::connect(relay.address, "").await;
    let told: Value = serde_json::from_str(&text(nobody.get("/-/auth/config").await).await).unwrap();
    assert_eq!(told["oidc"]["issuer"], json!(provider.issuer));
}
