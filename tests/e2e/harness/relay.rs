//! A relay in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tunnel::relay::auth::Scopes;
use tunnel::relay::auth::tokens::Tokens;
use tunnel::relay::config::Config;
use tunnel::relay::{self, Relay, Sockets};
use tunnel::shutdown::Shutdown;

/// The secret of every relay here, so that a relay started again accepts the same tokens.
pub(crate) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

pub(crate) struct TestRelay {
    pub(crate) address: SocketAddr,
    pub(crate) relay: Arc<Relay>,
    pub(crate) shutdown: Shutdown,
    task: JoinHandle<()>,
}

/// As by default, but a request for a bridge that never was is refused at once.
pub(crate) fn config() -> Config {
    Config {
        wait_for_bridge: Duration::ZERO,
        ..Config::default()
    }
}

impl TestRelay {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), change).await
    }

    pub(crate) async fn at(address: SocketAddr, change: impl FnOnce(&mut Config)) -> Self {
        Self::on(TcpListener::bind(address).await.unwrap(), change)
    }

    /// On these sockets.
    pub(crate) fn on(sockets: impl Into<Sockets>, change: impl FnOnce(&mut Config)) -> Self {
        let sockets = sockets.into();
        let address = sockets.main.local_addr().unwrap();
        let mut config = config();
        change(&mut config);
        let shutdown = Shutdown::new();
        let relay = Relay::new(config, Tokens::new(SECRET), shutdown.clone());
        let task = tokio::spawn(relay::serve(sockets, Arc::clone(&relay)));
        Self {
            address,
            relay,
            shutdown,
            task,
        }
    }

    pub(crate) fn token(&self, user: &str) -> String {
        token_for(user, "bridge api")
    }

    /// Ends it at once, as a crash would, and waits until its port is free.
    pub(crate) async fn kill(self) -> SocketAddr {
        self.shutdown.end();
        super::within("the relay's end", self.task).await.unwrap();
        self.address
    }

    /// Waits until it has stopped by itself.
    pub(crate) async fn stopped(self) {
        super::within("the relay's end", self.task).await.unwrap();
    }
}

/// A token of the relays here.
pub(crate) fn token_for(user: &str, scope: &str) -> String {
    let tokens = Tokens::new(SECRET);
    let token = tokens.issue(user, Scopes::parse(Some(scope)), Some(Duration::from_secs(3600)));
    token.unwrap().expose().to_owned()
}

/// A token that ended long ago.
pub(crate) fn expired_token(user: &str) -> String {
    let claims = serde_json::json!({"sub": user, "exp": 1_000_000_000});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}
