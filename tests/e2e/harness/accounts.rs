//! A relay that is a process of its own, with its database: SQLite in its folder, or a PostgreSQL.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::postgres::Postgres;
use super::process::{Ended, Process, command, run};
use super::programs::free_address;
use super::{Caller, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    Sqlite,
    Postgres,
}

pub(crate) const EACH: [Database; 2] = [Database::Sqlite, Database::Postgres];

pub(crate) struct Site {
    pub(crate) home: TempDir,
    pub(crate) postgres: Option<Postgres>,
    pub(crate) address: SocketAddr,
    options: Vec<String>,
}

impl Site {
    pub(crate) async fn new(database: Database) -> Self {
        let postgres = match database {
            Database::Sqlite => None,
            Database::Postgres => Some(Postgres::start().await),
        };
        Self::beside(postgres).await
    }

    async fn beside(postgres: Option<Postgres>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
        let mut options = vec!["--data-dir".to_owned(), path("data")];
        if let Some(postgres) = &postgres {
            std::fs::write(path("url"), postgres.database().await).unwrap();
            options.extend(["--database-url-file".to_owned(), path("url")]);
        }
        Self {
            home,
            postgres,
            address: free_address(),
            options,
        }
    }

    /// Starts the relay, always at the same address.
    pub(crate) async fn relay(&self) -> Process {
        let mut relay = self.start();
        relay.error_line("listens on http://").await;
        relay
    }

    /// The same without waiting for it.
    pub(crate) fn start(&self) -> Process {
        let address = self.address.to_string();
        Process::start(self.command(&["--listen", &address, "--lame-duck", "0s"]))
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let options = self.options.iter().map(String::as_str);
        let arguments: Vec<_> = ["relay"].iter().chain(arguments).copied().chain(options).collect();
        command(self.home.path(), &arguments)
    }

    /// Runs `tunnel relay` with these arguments to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        run(self.command(arguments)).await
    }

    /// The same, and what it prints; it must succeed.
    pub(crate) async fn output(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.errors);
        ended.output.trim().to_owned()
    }

    pub(crate) async fn token(&self, user: &str) -> String {
        self.output(&["token", "--user", user]).await
    }

    /// What a list command prints as JSON.
    pub(crate) async fn list(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.output(&[arguments, &["--json"]].concat()).await;
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn caller(&self, token: &str) -> Caller {
        Caller::connect(self.address, token).await
    }

    pub(crate) async fn status(&self, token: &str) -> u16 {
        self.caller(token).await.get("/api/tags").await.status().as_u16()
    }

    /// Waits until the caller is answered so.
    pub(crate) async fn answered(&self, credential: &str, status: u16) {
        super::within("the answer that is expected", async {
            while self.status(credential).await != status {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// What `/readyz` says.
    pub(crate) async fn readiness(&self) -> (u16, Value) {
        let response = self.caller("").await.get("/readyz").await;
        (response.status().as_u16(), json(response).await)
    }

    /// All that the user used, as the relay tells.
    pub(crate) async fn usage(&self, token: &str) -> Value {
        let mut caller = self.caller(token).await;
        json(caller.get("/api/bridge/usage?per=hour").await).await
    }

    /// Uses the secret and the database of another one.
    pub(crate) fn use_those_of(&mut self, other: &Self) {
        self.options = other.options.clone();
    }

    /// Waits until the relay tells of so many exchanges of the user, or of more.
    pub(crate) async fn used_at_least(&self, token: &str, exchanges: u64) {
        super::within("the usage", async {
            while self.usage(token).await["total"]["exchanges"].as_u64().unwrap() < exchanges {}
        })
        .await;
    }

    /// Waits until the relay tells of so many exchanges of the user.
    pub(crate) async fn used(&self, token: &str, exchanges: u64) {
        let mut told = 0;
        let seen = async {
            while told != exchanges {
                told = self.usage(token).await["total"]["exchanges"].as_u64().unwrap();
            }
        };
        let seen = tokio::time::timeout(super::PATIENCE, seen).await;
        assert!(seen.is_ok(), "{told} exchanges are told of instead of {exchanges}");
    }
}

/// What a relay that runs may take to notice: a second, which the long run asserts; the short one may share its machine with others.
pub(crate) fn notice() -> Duration {
    Duration::from_secs(if super::long() { 1 } else { 3 })
}

/// The id that a token carries.
pub(crate) fn id_of(token: &str) -> String {
    let token = tunnel::token::Secret::new(token);
    tunnel::token::Claims::peek(&token).unwrap().jti.unwrap()
}
