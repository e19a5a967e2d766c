//! A bridge in this process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::task::JoinHandle;
use tunnel::bridge::choice::{self, Mode, Timing};
use tunnel::bridge::config::{Config, TokenSource};
use tunnel::bridge::policy::Policy;
use tunnel::bridge::status::{Phase, Status};
use tunnel::bridge::{self, Stopped};
use tunnel::random;
use tunnel::shutdown::Shutdown;
use tunnel::token::Secret;
use tunnel::transport::dial::{Dialer, Proxies};

use super::{TestRelay, Upstream, within};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Ws,
    Poll,
    Auto,
}

impl Transport {
    /// As `--transport` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Poll => "poll",
            Self::Auto => "auto",
        }
    }
}

impl From<Transport> for Mode {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Ws => Self::Only(choice::Transport::Ws),
            Transport::Poll => Self::Only(choice::Transport::Poll),
            Transport::Auto => Self::Auto,
        }
    }
}

pub(crate) struct TestBridge {
    pub(crate) status: Arc<Status>,
    pub(crate) shutdown: Shutdown,
    task: JoinHandle<Result<(), Stopped>>,
}

/// A bridge that is not started yet.
pub(crate) struct Plan {
    relay: String,
    upstream: String,
    ca_file: Option<PathBuf>,
    proxies: Proxies,
    user: String,
    token: Option<TokenSource>,
    name: String,
    client_id: String,
    priority: i32,
    ephemeral: bool,
    manage: bool,
    rules: Vec<String>,
    transport: Transport,
    timing: Timing,
    memory: Option<PathBuf>,
}

impl TestBridge {
    pub(crate) fn to(relay: &TestRelay, upstream: &Upstream) -> Plan {
        Self::between(relay.address, upstream.address)
    }

    pub(crate) fn between(relay: SocketAddr, upstream: SocketAddr) -> Plan {
        Plan {
            relay: format!("http://{relay}"),
            upstream: format!("http://{upstream}"),
            ca_file: None,
            proxies: Proxies::default(),
            user: "ann".to_owned(),
            token: None,
            name: "box".to_owned(),
            client_id: random::name().unwrap(),
            priority: 0,
            ephemeral: false,
            manage: false,
            rules: Vec::new(),
            transport: Transport::Ws,
            timing: Timing::default(),
            memory: None,
        }
    }

    /// Waits until it is connected.
    pub(crate) async fn connected(&self) {
        let mut phase = self.status.phase();
        let connected = phase.wait_for(|phase| matches!(phase, Phase::Connected { .. }));
        within("the bridge to be connected", connected).await.unwrap();
    }

    /// The transport it is connected over, and why.
    pub(crate) fn transport(&self) -> (&'static str, Option<String>) {
        match &*self.status.phase().borrow() {
            Phase::Connected { transport, why, .. } => (transport, why.clone()),
            phase => panic!("not connected: {phase:?}"),
        }
    }

    /// Waits until it is connected over this transport.
    pub(crate) async fn connected_over(&self, wanted: &str) {
        let mut phase = self.status.phase();
        let there = phase.wait_for(|phase| matches!(phase, Phase::Connected { transport, .. } if *transport == wanted));
        within(wanted, there).await.unwrap();
    }

    /// Waits until it is not.
    pub(crate) async fn disconnected(&self) {
        let mut phase = self.status.phase();
        let lost = phase.wait_for(|phase| !matches!(phase, Phase::Connected { .. }));
        within("the bridge to be disconnected", lost).await.unwrap();
    }

    /// The name the relay gave it.
    pub(crate) fn name(&self) -> String {
        match &*self.status.phase().borrow() {
            Phase::Connected { name, .. } => name.clone(),
            phase => panic!("not connected: {phase:?}"),
        }
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn stopped(self) -> Result<(), Stopped> {
        within("the bridge's end", self.task).await.unwrap()
    }

    /// Ends it at once.
    pub(crate) async fn stop(self) {
        self.shutdown.end();
        self.stopped().await.unwrap();
    }
}

impl Plan {
    pub(crate) fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Where it remembers networks.
    pub(crate) fn memory(mut self, path: PathBuf) -> Self {
        self.memory = Some(path);
        self
    }

    /// When the other transport is tried.
    pub(crate) fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    pub(crate) fn relay_url(mut self, url: String) -> Self {
        self.relay = url;
        self
    }

    pub(crate) fn upstream_url(mut self, url: String) -> Self {
        self.upstream = url;
        self
    }

    pub(crate) fn ca_file(mut self, path: PathBuf) -> Self {
        self.ca_file = Some(path);
        self
    }

    /// As if the variable `HTTPS_PROXY` said so.
    pub(crate) fn proxy(mut self, url: &str) -> Self {
        self.proxies = Proxies::all(url, "HTTPS_PROXY").unwrap();
        self
    }

    pub(crate) fn user(mut self, user: &str) -> Self {
        self.user = user.to_owned();
        self
    }

    pub(crate) fn token(mut self, source: TokenSource) -> Self {
        self.token = Some(source);
        self
    }

    pub(crate) fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub(crate) fn client_id(mut self, id: &str) -> Self {
        self.client_id = id.to_owned();
        self
    }

    pub(crate) fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    pub(crate) fn ephemeral(mut self) -> Self {
        self.ephemeral = true;
        self
    }

    pub(crate) fn manage(mut self) -> Self {
        self.manage = true;
        self
    }

    pub(crate) fn allow(mut self, rule: &str) -> Self {
        self.rules.push(rule.to_owned());
        self
    }

    /// Starts it and waits until it is connected; the relay proves the link before it gives it work (`harness::ready`).
    pub(crate) async fn start(self) -> TestBridge {
        let bridge = self.launch();
        bridge.connected().await;
        bridge
    }

    /// Starts it and waits for nothing.
    pub(crate) fn launch(self) -> TestBridge {
        let token = self
            .token
            .unwrap_or_else(|| TokenSource::Given(Secret::new(&super::relay::token_for(&self.user, "bridge api"))));
        let rules = self.rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let config = Config {
            relay: self.relay.parse().unwrap(),
            token,
            name: self.name,
            priority: self.priority,
            ephemeral: self.ephemeral,
            client_id: self.client_id,
            upstream: self.upstream.parse().unwrap(),
            upstream_headers: HeaderMap::new(),
            policy: Policy::new(self.manage, rules),
            dialer: Dialer::new(self.ca_file.as_deref(), Duration::from_secs(5))
                .unwrap()
                .with_proxies(self.proxies),
            transport: self.transport.into(),
            timing: self.timing,
            memory: self.memory,
        };
        let status = Arc::new(Status::default());
        let shutdown = Shutdown::new();
        let task = tokio::spawn(bridge::run(config, Arc::clone(&status), shutdown.clone()));
        TestBridge { status, shutdown, task }
    }
}
