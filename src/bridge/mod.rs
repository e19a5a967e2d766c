//! The process on the desktop: dials out to the relay, stays connected, answers requests from the local server.
//!
//! [`run`] never gives up for what may pass; [`Bridge::connect_once`] is one try, over the transport that [`choice`] names, and
//! `uplink` is the link it makes. A request that arrives walks through [`local`]: [`policy`] and [`cloud`], then [`upstream`].

pub mod awake;
pub mod choice;
pub mod cloud;
pub mod config;
mod connect;
pub mod credential;
pub mod local;
pub mod login;
pub mod memory;
pub mod network;
pub mod policy;
mod scan;
pub mod status;
mod uplink;
pub mod upstream;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::choice::{Choice, Transport};
use self::config::Config;
use self::credential::{Credential, TokenError};
use self::local::Local;
use self::memory::Memory;
use self::network::{Change, Network};
use self::status::{Phase, Status};
use self::uplink::{Connector, Ended, Fresh, Happening, Uplink};
use self::upstream::Upstream;
use crate::random;
use crate::shutdown::Shutdown;
use crate::token::Secret;
use crate::transport::attach::ConnectError;
use crate::transport::backoff::{Backoff, jitter};
use crate::transport::dial::DialError;
use crate::transport::pace::Pace;
use crate::transport::ws::TUNING;

/// After an earlier success, a refused token is tried again for so long: the relay may just be set up anew.
const REFUSED_FOR: Duration = Duration::from_secs(600);
/// Older links that finish what they have, at once.
const OLDER_LINKS: usize = 4;
/// How long a bridge that stops lets its exchanges finish.
const GRACE: Duration = Duration::from_secs(30);
/// How long the goodbye is waited for even by a bridge that is to end at once.
const GOODBYE: Duration = Duration::from_millis(500);
/// A link that was left sooner than this was no success.
const SHORT: Duration = Duration::from_secs(1);
/// A link that lived so long was a success: the next wait is a short one again.
const STABLE: Duration = Duration::from_secs(10);
/// Between two looks at the figures of a link.
const TICK: Duration = Duration::from_secs(1);

/// Why a bridge ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The relay does not accept the token.
    #[error("the relay refused the token: {0}")]
    Refused(String),
    /// There is no token to be had.
    #[error(transparent)]
    NoToken(#[from] TokenError),
    /// The system gives no random numbers.
    #[error("no random numbers to be had: {0}")]
    NoRandom(#[from] std::io::Error),
    /// Another process has the same identity.
    #[error("another 'tunnel bridge' with the same state folder took over; give each its own with --state-dir")]
    Replaced,
}

/// Runs until the shutdown, or until there is no sense in going on.
///
/// # Errors
/// [`Stopped`].
pub async fn run(config: Config, status: Arc<Status>, shutdown: Shutdown) -> Result<(), Stopped> {
    let upstream = Upstream::new(config.upstream, config.upstream_headers, config.dialer.direct());
    let local = Arc::new(Local::new(config.policy, upstream, Arc::clone(&status)));
    let mut network = Network::new(config.dialer.first_hop(config.relay.origin()));
    let connector = Arc::new(Connector {
        relay: config.relay,
        dialer: config.dialer,
        client_id: config.client_id,
        instance: random::name()?,
        name: config.name,
        priority: config.priority,
        ephemeral: config.ephemeral,
        exchange: Arc::clone(&local) as _,
    });
    let mut bridge = Bridge {
        connector,
        choice: Choice::new(config.transport, config.timing),
        memory: Memory::open(config.memory),
        credential: Credential::new(config.token),
        shown: None,
        pace: Pace::new(TUNING.ping_interval),
        links: JoinSet::new(),
        current: None,
        older: Vec::new(),
        backoff: Backoff::default(),
        refused_since: None,
        succeeded: false,
        last_why: None,
        status,
    };
    let stopped = tokio::select! {
        stopped = bridge.stay_connected(&mut network) => Some(stopped),
        never = local.tend() => match never {},
        () = shutdown.draining() => None,
    };
    if let Some(stopped) = stopped {
        tokio::select! {
            () = bridge.credential.settle() => {}
            () = shutdown.ended() => {}
        }
        return Err(stopped);
    }
    let current = bridge.current.take();
    let mut goodbye = std::pin::pin!(say_goodbye(current.as_ref()));
    let said = timeout(GOODBYE, &mut goodbye).await.is_ok();
    let finish = async {
        if !said {
            goodbye.await;
        }
        bridge.finish().await;
    };
    tokio::select! {
        () = finish => {}
        () = sleep(GRACE) => {}
        () = shutdown.ended() => {}
    }
    Ok(())
}

struct Bridge {
    connector: Arc<Connector>,
    choice: Choice,
    memory: Memory,
    credential: Credential,
    /// The token that the links have.
    shown: Option<Secret>,
    /// What WebSocket links survive here.
    pace: Pace,
    links: JoinSet<()>,
    current: Option<Uplink>,
    /// They finish what they have.
    older: Vec<Uplink>,
    status: Arc<Status>,
    backoff: Backoff,
    refused_since: Option<Instant>,
    succeeded: bool,
    /// Why it was not connected when that was last told; the same reason is not told again and again.
    last_why: Option<String>,
}

/// What to do after a link.
enum Next {
    /// Connect at once, while the old link finishes what it has.
    Beside,
    /// Use this one, while the old link finishes what it has.
    Take(Fresh),
    /// The link is lost.
    Anew(String),
}

/// What the bridge sees while it is connected.
enum Occurrence {
    Happening(Happening),
    Network(Change),
    TokenDue,
    /// WebSocket is to be tried beside polling.
    Retry,
    Tried(Result<Fresh, ConnectError>),
    Tick,
}

type Attempt = BoxFuture<'static, Result<Fresh, ConnectError>>;

impl Bridge {
    async fn stay_connected(&mut self, network: &mut Network) -> Stopped {
        let mut fresh: Option<Fresh> = None;
        self.recall(network).await;
        loop {
            let began = Instant::now();
            let connected = match fresh.take() {
                Some(fresh) => Ok(fresh.begin(&mut self.links)),
                None => {
                    self.status.enter(Phase::Connecting);
                    let known = self.choice.clone();
                    tokio::select! {
                        connected = self.connect_once() => connected,
                        change = network.changed(false) => {
                            // What a try found that was given up counts for nothing.
                            self.choice = known;
                            self.begin_anew(change, network).await;
                            continue;
                        }
                    }
                }
            };
            let (why, wait, resolving) = match connected {
                Ok(uplink) => match self.live(uplink, network).await {
                    Ok(Next::Take(other)) => {
                        fresh = Some(other);
                        continue;
                    }
                    Ok(Next::Beside) => {
                        if began.elapsed() < SHORT {
                            // A relay that sends every bridge away at once is not asked again and again.
                            let wait = self.backoff.next(None);
                            sleep(wait).await;
                        }
                        continue;
                    }
                    Ok(Next::Anew(why)) => {
                        if began.elapsed() >= STABLE {
                            self.backoff.reset();
                        }
                        (why, self.backoff.next(None), false)
                    }
                    Err(stopped) => return stopped,
                },
                Err(Failed::Token(error)) if !self.succeeded && !error.may_pass() => return error.into(),
                Err(Failed::Token(error)) => (error.to_string(), self.backoff.next(None), false),
                Err(Failed::Connect(error)) => match self.judge(&error) {
                    Err(stopped) => return stopped,
                    Ok(asked) => {
                        let resolving = matches!(error, ConnectError::Dial(DialError::Resolve { .. }));
                        (error.to_string(), self.backoff.next(asked), resolving)
                    }
                },
            };
            self.wait(why, wait, resolving, network).await;
        }
    }

    /// Lives with a link until it is lost or another is wanted.
    async fn live(&mut self, uplink: Uplink, network: &mut Network) -> Result<Next, Stopped> {
        self.begin_live(&uplink, network).await;
        self.current = Some(uplink);
        let mut attempt: Option<Attempt> = None;
        let mut next_survival = Instant::now() + self.pace.current();
        let next = loop {
            let Some(occurrence) = self.next_occurrence(&mut attempt, network).await else {
                return Ok(Next::Anew("the link is gone".to_owned()));
            };
            match occurrence {
                Occurrence::Happening(happening) => {
                    if let Some(next) = self.take(happening)? {
                        break next;
                    }
                }
                Occurrence::Network(change) => {
                    self.note_change(change, network).await;
                    if let Some(next) = self.move_over(change) {
                        break next;
                    }
                }
                Occurrence::TokenDue => {
                    if let Some(happening) = self.renew_token().await
                        && let Some(next) = self.take(happening)?
                    {
                        break next;
                    }
                }
                Occurrence::Retry => {
                    attempt = self.try_ws();
                    // Not again at once, whatever becomes of it.
                    self.choice.postpone(jitter);
                }
                Occurrence::Tried(outcome) => {
                    attempt = None;
                    if let Some(fresh) = self.judge_attempt(outcome) {
                        break Next::Take(fresh);
                    }
                }
                Occurrence::Tick => {
                    let over_ws = self
                        .current
                        .as_ref()
                        .is_some_and(|uplink| uplink.transport == Transport::Ws);
                    if over_ws && next_survival <= Instant::now() {
                        self.pace.survived();
                        next_survival = Instant::now() + self.pace.current();
                    }
                }
            }
            if let Some(uplink) = &self.current {
                self.status.set_round_trip(uplink.round_trip());
                uplink.set_ping_interval(self.pace.current());
            }
        };
        self.leave(matches!(next, Next::Anew(_)));
        Ok(next)
    }

    async fn begin_live(&mut self, uplink: &Uplink, network: &mut Network) {
        self.succeeded = true;
        self.refused_since = None;
        self.credential.note_accepted();
        self.last_why = None;
        while self.links.try_join_next().is_some() {}
        self.older.retain(|older| !older.is_finished());
        let transport = uplink.transport;
        let name = &uplink.welcome.name;
        let why = self.why(transport);
        let (relay, transport_name) = (&self.connector.relay, transport.name());
        match &why {
            Some(why) => tracing::info!(%relay, name, transport = transport_name, why, "connected"),
            None => tracing::info!(%relay, name, transport = transport_name, "connected"),
        }
        if *name != self.connector.name {
            let wished = &self.connector.name;
            tracing::warn!("another desktop of yours is called {wished}; this one is {name} until that is gone");
        }
        match transport {
            Transport::Ws => {
                self.pace.reached();
                self.choice.ws_worked();
            }
            Transport::Poll => self.choice.polling(jitter),
        }
        self.choice.steer(&uplink.welcome.transports, transport);
        self.note_network(network).await;
        self.status.enter(connected(uplink, why));
    }

    fn why(&self, transport: Transport) -> Option<String> {
        match transport {
            Transport::Ws => None,
            Transport::Poll => self.choice.why_polling(),
        }
    }

    /// What happens next; none without a link.
    async fn next_occurrence(&mut self, attempt: &mut Option<Attempt>, network: &mut Network) -> Option<Occurrence> {
        let uplink = self.current.as_mut()?;
        let retry = self.choice.retry_at();
        let retry = retry.filter(|_| attempt.is_none() && uplink.transport == Transport::Poll);
        Some(tokio::select! {
            happening = uplink.next() => Occurrence::Happening(happening),
            change = network.changed(false) => Occurrence::Network(change),
            () = self.credential.due() => Occurrence::TokenDue,
            () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => Occurrence::Retry,
            Some(outcome) = tried(attempt) => Occurrence::Tried(outcome),
            () = sleep(TICK) => Occurrence::Tick,
        })
    }

    /// What a happening on the link means for it.
    fn take(&mut self, happening: Happening) -> Result<Option<Next>, Stopped> {
        let Some(uplink) = &self.current else {
            return Ok(None);
        };
        let transport = uplink.transport;
        match happening {
            Happening::Drain => {
                tracing::info!("connecting anew: the relay asks for it");
                Ok(Some(Next::Beside))
            }
            Happening::Steer(names) if self.choice.steer(&names, transport) => {
                tracing::info!("connecting anew: the relay prefers another transport");
                Ok(Some(Next::Beside))
            }
            Happening::Steer(_) => Ok(None),
            Happening::Away(why) => {
                self.choice.poll_away(true);
                self.tell_away(why);
                Ok(None)
            }
            Happening::Back => {
                self.choice.poll_away(false);
                tracing::info!("connected again");
                self.last_why = None;
                self.status.enter(connected(uplink, self.why(transport)));
                Ok(None)
            }
            Happening::Ended(Ended::Replaced) => Err(Stopped::Replaced),
            Happening::Ended(Ended::Refused(error)) => {
                self.judge(&error)?;
                Ok(Some(Next::Anew(error.to_string())))
            }
            Happening::Ended(Ended::Lost { why, silence }) => {
                if transport == Transport::Ws {
                    self.choice.ws_lost(uplink.since.elapsed());
                    silence.into_iter().for_each(|silence| self.pace.lost_after(silence));
                }
                Ok(Some(Next::Anew(why)))
            }
        }
    }

    /// After a change of the network a WebSocket link gives way to a new one, a polling link goes on by itself. A network that was
    /// gone for a moment may have left the links whole: they are looked after, and no more.
    fn move_over(&mut self, change: Change) -> Option<Next> {
        let uplink = self.current.as_ref()?;
        if uplink.transport == Transport::Ws && change != Change::Returned {
            tracing::info!("connecting anew: {change}");
            return Some(Next::Beside);
        }
        tracing::info!("going on: {change}");
        uplink.network_changed(change.is_another_network());
        None
    }

    /// Renews the token, unless something happens on the link meanwhile.
    async fn renew_token(&mut self) -> Option<Happening> {
        let uplink = self.current.as_mut()?;
        let Connector { dialer, relay, .. } = &*self.connector;
        let fresh = tokio::select! {
            fresh = self.credential.renew(dialer, relay) => fresh,
            happening = uplink.next() => return Some(happening),
        };
        fresh.iter().for_each(|token| self.show(token));
        None
    }

    /// The current link finishes what it has, unless it is lost.
    fn leave(&mut self, lost: bool) {
        let Some(uplink) = self.current.take().filter(|_| !lost) else {
            return;
        };
        uplink.leave();
        self.older.push(uplink);
        if self.older.len() > OLDER_LINKS {
            self.older.remove(0).abort();
        }
    }

    async fn finish(&mut self) {
        self.credential.settle().await;
        while self.links.join_next().await.is_some() {}
    }
}

/// Asks the relay for no more work; it ends the link once everything in flight, and on its way here, is finished.
async fn say_goodbye(uplink: Option<&Uplink>) {
    if let Some(uplink) = uplink {
        uplink.drain().await;
    }
}

/// The outcome of the attempt; none if there is none.
async fn tried(attempt: &mut Option<Attempt>) -> Option<Result<Fresh, ConnectError>> {
    match attempt {
        Some(attempt) => Some(attempt.await),
        None => None,
    }
}

fn connected(uplink: &Uplink, why: Option<String>) -> Phase {
    Phase::Connected {
        name: uplink.welcome.name.clone(),
        transport: uplink.transport.name(),
        why,
    }
}

enum Failed {
    Token(TokenError),
    Connect(ConnectError),
}

impl From<TokenError> for Failed {
    fn from(error: TokenError) -> Self {
        Self::Token(error)
    }
}

impl From<ConnectError> for Failed {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}
