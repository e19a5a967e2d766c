//! What is measured, set up: the upstream, the relay where it is ours, a bridge for each transport, callers for each way; each
//! part on a thread of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::clock::Ticker;
use super::measurement::Spent;
use super::part::Part;
use super::settings::Settings;
use super::site::Site;
use super::wire::Wire;
use crate::bridge::choice::Transport;
use crate::cmd::rig::bridge::{EphemeralBridge, Plan, said};
use crate::cmd::rig::caller::Caller;
use crate::cmd::rig::upstream::Upstream;
use crate::platform::thread_cpu;
use crate::random;
use crate::relay::auth::Scopes;
use crate::relay::auth::tokens::Tokens;
use crate::relay::config::{Config, Limits};
use crate::relay::{self, Relay};
use crate::shutdown::Shutdown;
use crate::transport::dial::{BaseUrl, Dialer, RelayUrl};

/// Streams of tokens side by side.
pub(super) const STREAMS: usize = 4;
/// The model's own words are not measured.
const MODEL_PACE: Duration = Duration::from_millis(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything that runs; [`Stage::leave`] says goodbye, dropping it cuts.
pub(super) struct Stage {
    pub(super) ways: Vec<Way>,
    /// What could not be measured, and why.
    pub(super) left_out: Vec<String>,
    pub(super) ticker: Ticker,
    relay: Option<Part>,
    upstream: Option<(Part, Upstream)>,
    goodbyes: TaskTracker,
}

/// A way to the upstream.
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) callers: Vec<Caller>,
    pub(super) link: Option<Link>,
}

/// What is between relay and upstream, if it is ours.
pub(super) struct Link {
    part: Part,
    wires: Part,
    bridges: Vec<EphemeralBridge>,
    /// Where octets are counted: a caller through a wire, apart from those whose time is taken.
    pub(super) counted: Option<(Caller, Wire)>,
    /// What a further bridge is made of.
    template: Template,
}

#[derive(Clone)]
struct Template {
    site: Site,
    transport: Transport,
    upstream: SocketAddr,
    /// The relay's address and the way to it, if wires can be laid there.
    wires: Option<(SocketAddr, Duration)>,
}

impl Stage {
    /// With nothing on it.
    pub(super) fn empty() -> anyhow::Result<Self> {
        Ok(Self {
            ways: Vec::new(),
            left_out: Vec::new(),
            ticker: Ticker::start()?,
            relay: None,
            upstream: None,
            goodbyes: TaskTracker::new(),
        })
    }

    /// Relay, bridges and upstream, all of them here.
    pub(super) async fn set_alone(&mut self, rtt: Duration, settings: &Settings) -> anyhow::Result<()> {
        let dialer = Dialer::new(None, CONNECT_TIMEOUT).context("cannot make connections")?;
        let upstream = self.start_upstream().await?;
        self.add_direct(upstream, &dialer, settings)?;
        let tokens = Tokens::new(random::name().context("cannot make a secret")?.as_bytes());
        let token = tokens
            .issue("bench", Scopes::BOTH, None)
            .context("cannot make a token")?;
        let relay = Part::start("relay")?;
        let address = relay.run(start_relay(tokens, settings.concurrency)).await??;
        self.relay = Some(relay);
        let site = Site {
            url: format!("http://{address}").parse().context("the relay's address")?,
            dialer,
            token,
        };
        for transport in [Transport::Ws, Transport::Poll] {
            let template = Template {
                site: site.clone(),
                transport,
                upstream,
                wires: Some((address, rtt / 2)),
            };
            let way = template.way(&self.ticker, &self.goodbyes, settings).await;
            self.ways
                .push(way.with_context(|| format!("over {}", transport.name()))?);
        }
        Ok(())
    }

    /// Bridges and upstream here, the relay elsewhere.
    pub(super) async fn set_deployment(&mut self, site: Site, settings: &Settings) -> anyhow::Result<()> {
        let upstream = self.start_upstream().await?;
        self.add_direct(upstream, &site.dialer.direct(), settings)?;
        for transport in [Transport::Ws, Transport::Poll] {
            let template = Template {
                site: site.clone(),
                transport,
                upstream,
                wires: None,
            };
            match template.way(&self.ticker, &self.goodbyes, settings).await {
                Ok(way) => self.ways.push(way),
                Err(error) => self.left_out.push(format!("{}: {error:#}", transport.name())),
            }
        }
        match self.left_out.as_slice() {
            [ws, poll] => Err(anyhow::anyhow!("no transport gets through: {ws}; {poll}")),
            _ => Ok(()),
        }
    }

    /// Only callers are ours.
    pub(super) fn set_desktop(&mut self, site: &Site, name: &str, settings: &Settings) {
        let callers = callers(&site.dialer, &site.url, settings);
        let to_it = |caller: Caller| caller.with_token(&site.token).to_bridge(name);
        self.ways.push(Way {
            name: "desktop",
            callers: callers.into_iter().map(to_it).collect(),
            link: None,
        });
    }

    async fn start_upstream(&mut self) -> anyhow::Result<SocketAddr> {
        let part = Part::start("upstream")?;
        let upstream = part.run(Upstream::start(MODEL_PACE)).await?;
        let upstream = upstream.context("cannot start the upstream")?;
        let address = upstream.address();
        self.upstream = Some((part, upstream));
        Ok(address)
    }

    fn add_direct(&mut self, upstream: SocketAddr, dialer: &Dialer, settings: &Settings) -> anyhow::Result<()> {
        let base: BaseUrl = format!("http://{upstream}").parse().context("the upstream's address")?;
        self.ways.push(Way {
            name: "direct",
            callers: callers(dialer, &base, settings),
            link: None,
        });
        Ok(())
    }

    /// What all parts of this way have spent so far.
    pub(super) async fn spent(&self, way: &Way) -> Spent {
        let link = way.link.as_ref();
        let relay = self.relay.as_ref().filter(|_| link.is_some());
        Spent {
            relay: cpu(relay).await,
            bridge: cpu(link.map(|link| &link.part)).await,
            upstream: cpu(self.upstream.as_ref().map(|(part, _)| part)).await,
            caller: thread_cpu(),
        }
    }

    /// Waits until all bridges have said goodbye, those too that were still on their way.
    pub(super) async fn leave(mut self) {
        for link in self.ways.iter_mut().filter_map(|way| way.link.as_mut()) {
            link.bridges.clear();
        }
        said(&self.goodbyes).await;
    }
}

async fn cpu(part: Option<&Part>) -> Option<Duration> {
    match part {
        Some(part) => part.cpu().await,
        None => None,
    }
}

/// As many as any scenario needs, each with connections of its own.
fn callers(dialer: &Dialer, base: &BaseUrl, settings: &Settings) -> Vec<Caller> {
    let count = settings.concurrency.max(STREAMS);
    (0..count).map(|_| Caller::new(dialer, base)).collect()
}

async fn start_relay(tokens: Tokens, concurrency: usize) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.context("cannot start the relay")?;
    let address = listener.local_addr().context("cannot tell the relay's address")?;
    let defaults = Limits::default();
    let config = Config {
        limits: Limits {
            in_flight_per_user: defaults.in_flight_per_user.max(2 * concurrency),
            in_flight_per_bridge: defaults.in_flight_per_bridge.max(2 * concurrency),
            ..defaults
        },
        ..Config::default()
    };
    tokio::spawn(relay::serve(listener, Relay::new(config, tokens, Shutdown::new())));
    Ok(address)
}

impl Template {
    /// A bridge that is connected, and callers that reach it.
    async fn way(self, ticker: &Ticker, goodbyes: &TaskTracker, settings: &Settings) -> anyhow::Result<Way> {
        let site = self.site.clone();
        let wires = self.wires;
        let mut link = Link {
            part: Part::start("bridge")?,
            wires: Part::start("wire")?,
            bridges: Vec::new(),
            counted: None,
            template: self,
        };
        let setup = Caller::new(&site.dialer, &site.url).with_token(&site.token);
        if wires.is_some() {
            let (bridge, wire) = link.wired(ticker, &setup, goodbyes).await?;
            link.counted = Some((setup.to_bridge(bridge.name()), wire));
            link.bridges.push(bridge);
        }
        // A wire that only counts would cost time on the way of those whose time is taken.
        if wires.is_none_or(|(_, delay)| delay.is_zero()) {
            let bridge = link.bridge(site.url.clone(), &setup, goodbyes).await?;
            link.bridges.push(bridge);
        }
        let name = link.bridges.last().map(EphemeralBridge::name).unwrap_or_default();
        let callers = callers(&site.dialer, &site.url, settings).into_iter();
        Ok(Way {
            name: link.template.transport.name(),
            callers: callers
                .map(|caller| caller.with_token(&site.token).to_bridge(name))
                .collect(),
            link: Some(link),
        })
    }
}

impl Link {
    /// One more bridge, to a relay at this address; `caller` reaches it.
    async fn bridge(
        &self,
        relay: RelayUrl,
        caller: &Caller,
        goodbyes: &TaskTracker,
    ) -> anyhow::Result<EphemeralBridge> {
        let plan = Plan {
            relay,
            dialer: self.template.site.dialer.clone(),
            token: self.template.site.token.clone(),
            transport: self.template.transport,
            upstream: self.template.upstream,
            goodbyes: goodbyes.clone(),
        };
        let bridge = self.part.run(EphemeralBridge::start(plan)).await??;
        bridge.reached_by(caller).await?;
        Ok(bridge)
    }

    /// One more bridge, through a wire of its own.
    pub(super) async fn wired(
        &self,
        ticker: &Ticker,
        caller: &Caller,
        goodbyes: &TaskTracker,
    ) -> anyhow::Result<(EphemeralBridge, Wire)> {
        let (relay, delay) = self.template.wires.context("no wire can be laid to this relay")?;
        let laid = self.wires.run(Wire::lay(relay, delay, ticker.clock().clone())).await?;
        let wire = laid.context("cannot lay a wire")?;
        let url = format!("http://{}", wire.address());
        let url = url.parse().context("the wire's address")?;
        let bridge = self.bridge(url, caller, goodbyes).await?;
        Ok((bridge, wire))
    }
}
