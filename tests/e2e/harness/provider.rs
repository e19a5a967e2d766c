//! A real provider of sign-in: `oidc-provider` of npm, in a process of its own, with people who come by a page and by a desktop.
//! `tests/run` installs it.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tunnel::relay::auth::oidc::rules::Rules;
use tunnel::relay::auth::oidc::{Settings, Timing};
use tunnel::transport::dial::Dialer;

use super::browser::script;
use super::oidc::AUDIENCE;
use super::{PATIENCE, TestRelay};

/// What a person with Chromium may take on a busy machine.
const SLOW: std::time::Duration = std::time::Duration::from_secs(90);

/// The provider. Dropping it ends it at once.
pub(crate) struct Provider {
    pub(crate) issuer: String,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

/// What somebody got by signing in.
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) identity: String,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        Self::with(&json!({})).await
    }

    /// With these lives, as the script takes them.
    pub(crate) async fn with(lives: &Value) -> Self {
        let mut child = script("provider.js", lives)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
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

    /// What comes of a line.
    pub(crate) async fn say(&mut self, line: &str) -> Value {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        next(&mut self.output).await
    }

    /// Somebody signs in: `page` with a browser, `device` with a browser elsewhere.
    pub(crate) async fn sign_in(&mut self, way: &str, user: &str) -> Tokens {
        let got = self.say(&format!("{way} {user}")).await;
        let of = |name: &str| got[name].as_str().unwrap().to_owned();
        Tokens {
            access: of("access_token"),
            identity: of("id_token"),
        }
    }

    /// A relay that trusts it for these audiences.
    pub(crate) async fn relay_for(&self, audiences: &[&str], rules: Rules) -> TestRelay {
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

    /// A relay that lets in everybody with a token for it.
    pub(crate) async fn relay(&self) -> TestRelay {
        self.relay_for(&[AUDIENCE], Rules::All).await
    }
}

/// The next line that is JSON; the provider prints advice between them.
async fn next(output: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let answered = async {
        loop {
            let line = output.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("the provider ended; its reason is above"));
            if let Ok(value) = serde_json::from_str(&line) {
                return value;
            }
        }
    };
    let answered = tokio::time::timeout(SLOW, answered).await;
    answered.unwrap_or_else(|_| panic!("waited too long for a line of the provider"))
}
