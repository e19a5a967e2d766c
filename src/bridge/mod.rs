//! The process on the desktop: dials out to the relay, stays connected, answers requests from the local server.
//!
//! [`run`] never gives up for what may pass; [`connect_once`] is one try. A request that arrives walks through [`local`]:
//! [`policy`] and [`cloud`], then [`upstream`].

pub mod backoff;
pub mod cloud;
pub mod config;
pub mod credential;
pub mod local;
pub mod network;
pub mod policy;
pub mod status;
pub mod upstream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use self::backoff::Backoff;
use self::config::Config;
use self::credential::{Credential, TokenError};
use self::local::Local;
use self::network::{Change, Network};
use self::status::{Phase, Status};
use self::upstream::Upstream;
use crate::random;
use crate::shutdown::Shutdown;
use crate::transport::Exchange;
use crate::transport::dial::{DialError, Dialer, RelayUrl, Stream};
use crate::transport::ws::bridge::{ConnectError, Hello, answer, connect};
use crate::transport::ws::close;
use crate::transport::ws::control::Control;
use crate::transport::ws::mux::{Driver, End, Event, Mux};

/// After an earlier success, a refused token is tried again for so long: the relay may just be set up anew.
const REFUSED_FOR: Duration = Duration::from_secs(600);
/// How long the answer to the upgrade may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Older links that finish what they have, at once.
const OLDER_LINKS: usize = 4;
/// How long a bridge that stops lets its exchanges finish.
const GRACE: Duration = Duration::from_secs(30);
/// A link that was left sooner than this was no success.
const SHORT: Duration = Duration::from_secs(1);
/// A link that lived so long was a success: the next wait is a short one again.
const STABLE: Duration = Duration::from_secs(10);

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
    let Config {
        relay,
        token,
        name,
        priority,
        ephemeral,
        client_id,
        upstream,
        upstream_headers,
        policy,
        dialer,
    } = config;
    let upstream = Upstream::new(upstream, upstream_headers, dialer.direct());
    let local = Arc::new(Local::new(policy, upstream, Arc::clone(&status)));
    let identity = Who {
        client_id,
        instance: random::name()?,
        name,
        priority,
        ephemeral,
    };
    let mut bridge = Bridge {
        network: Network::new(dialer.first_hop(relay.origin())),
        credential: Credential::new(token),
        links: JoinSet::new(),
        current: None,
        older: Vec::new(),
        backoff: Backoff::default(),
        refused_since: None,
        succeeded: false,
        last_why: None,
        relay,
        dialer,
        identity,
        local: Arc::clone(&local),
        status,
    };
    tokio::select! {
        stopped = bridge.stay_connected() => return Err(stopped),
        never = local.tend() => match never {},
        () = shutdown.draining() => {}
    }
    tokio::select! {
        () = bridge.drain() => {}
        () = tokio::time::sleep(GRACE) => {}
        () = shutdown.ended() => {}
    }
    Ok(())
}

struct Who {
    client_id: String,
    instance: String,
    name: String,
    priority: i32,
    ephemeral: bool,
}

struct Bridge {
    relay: RelayUrl,
    dialer: Dialer,
    identity: Who,
    credential: Credential,
    local: Arc<Local>,
    status: Arc<Status>,
    network: Network,
    backoff: Backoff,
    links: JoinSet<()>,
    current: Option<Mux>,
    older: Vec<AbortHandle>,
    refused_since: Option<Instant>,
    succeeded: bool,
    /// Why it was not connected when that was last told; the same reason is not told again and again.
    last_why: Option<String>,
}

/// A link that is driven by a task of its own.
struct Connected {
    mux: Mux,
    happenings: mpsc::Receiver<Happening>,
    task: AbortHandle,
    name: String,
}

enum Happening {
    Text(String),
    Ended(End),
}

/// What to do after a link.
enum Next {
    /// Connect at once, while the old link finishes what it has.
    Beside,
    /// The link is lost.
    Anew(String),
}

impl Bridge {
    async fn stay_connected(&mut self) -> Stopped {
        loop {
            self.status.enter(Phase::Connecting);
            let began = Instant::now();
            let (why, wait, resolving) = match self.connect_once().await {
                Ok(connected) => match self.live(connected).await {
                    Ok(Next::Beside) => {
                        if began.elapsed() < SHORT {
                            // A relay that sends every bridge away at once is not asked again and again.
                            let wait = self.backoff.next(None);
                            tokio::time::sleep(wait).await;
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
                Err(Failed::Token(error)) if !self.succeeded => return error.into(),
                Err(Failed::Token(error)) => (error.to_string(), self.backoff.next(None), false),
                Err(Failed::Connect(error)) => match self.judge(&error) {
                    Err(stopped) => return stopped,
                    Ok(asked) => {
                        let resolving = matches!(error, ConnectError::Dial(DialError::Resolve { .. }));
                        (error.to_string(), self.backoff.next(asked), resolving)
                    }
                },
            };
            self.wait(why, wait, resolving).await;
        }
    }

    async fn wait(&mut self, why: String, wait: Duration, resolving: bool) {
        self.status.set_round_trip(None);
        self.current = None;
        let before = self.last_why.replace(why.clone());
        if before.as_ref() == Some(&why) {
            tracing::debug!(
                "still not connected: {why}; trying again in {:.1} s",
                wait.as_secs_f64()
            );
        } else {
            tracing::warn!("not connected: {why}; trying again and again");
        }
        self.status.enter(Phase::Waiting { why });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            change = self.network.changed(resolving) => {
                tracing::info!("{change}: trying at once");
                self.backoff.reset();
            }
        }
    }

    /// Whether an error may pass, and when the relay asks to be asked again. Only the relay's own word refuses a token for good:
    /// anything else may be a captive portal or a proxy.
    fn judge(&mut self, error: &ConnectError) -> Result<Option<Duration>, Stopped> {
        match error {
            ConnectError::Refused {
                status, code, detail, ..
            } if matches!(
                (status.as_u16(), code.as_str()),
                (401, "unauthorized") | (403, "forbidden")
            ) =>
            {
                let since = *self.refused_since.get_or_insert_with(Instant::now);
                if self.succeeded && since.elapsed() < REFUSED_FOR {
                    Ok(None)
                } else {
                    Err(Stopped::Refused(detail.clone()))
                }
            }
            ConnectError::Refused { retry_after, .. } | ConnectError::NotUpgraded { retry_after, .. } => {
                Ok(*retry_after)
            }
            _ => Ok(None),
        }
    }

    /// One try to connect.
    async fn connect_once(&mut self) -> Result<Connected, Failed> {
        let hello = Hello {
            token: self.credential.read()?,
            client_id: self.identity.client_id.clone(),
            instance: self.identity.instance.clone(),
            name: self.identity.name.clone(),
            priority: self.identity.priority,
            ephemeral: self.identity.ephemeral,
        };
        let connecting = connect(&self.dialer, &self.relay, &hello);
        let (mux, driver, welcome) = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err(ConnectError::Broken("no answer".into())))?;
        let (sender, happenings) = mpsc::channel(16);
        let exchange: Arc<dyn Exchange> = Arc::clone(&self.local) as _;
        let task = self.links.spawn(drive(driver, exchange, sender));
        Ok(Connected {
            mux,
            happenings,
            task,
            name: welcome.name,
        })
    }

    /// Lives with a link until it is lost or another is wanted.
    async fn live(&mut self, mut connected: Connected) -> Result<Next, Stopped> {
        self.succeeded = true;
        self.refused_since = None;
        self.current = Some(connected.mux.clone());
        self.reap();
        self.last_why = None;
        tracing::info!(relay = %self.relay, name = connected.name, transport = "ws", "connected");
        if connected.name != self.identity.name {
            let (got, wished) = (&connected.name, &self.identity.name);
            tracing::warn!("another desktop of yours is called {wished}; this one is {got} until that is gone");
        }
        self.status.enter(Phase::Connected {
            name: connected.name.clone(),
            transport: "ws",
        });
        loop {
            let next = tokio::select! {
                happening = connected.happenings.recv() => self.take(&connected, happening),
                change = self.network.changed(false) => Some(Ok(self.leave_for(&connected, change))),
                () = self.credential.due() => tokio::select! {
                    fresh = self.credential.renew(&self.dialer, &self.relay) => {
                        if let Some(token) = fresh {
                            let token = token.expose().to_owned();
                            connected.mux.send_text(Control::Token { token }.to_text());
                        }
                        None
                    }
                    happening = connected.happenings.recv() => self.take(&connected, happening),
                },
                () = tokio::time::sleep(Duration::from_secs(1)) => None,
            };
            self.status.set_round_trip(connected.mux.pulse().round_trip());
            if let Some(next) = next {
                return next;
            }
        }
    }

    /// What a happening on the link means for it.
    fn take(&mut self, connected: &Connected, happening: Option<Happening>) -> Option<Result<Next, Stopped>> {
        match happening {
            Some(Happening::Text(text)) => match Control::parse(&text) {
                Control::Drain => Some(Ok(self.leave(connected, "the relay asks for it"))),
                _ => None,
            },
            Some(Happening::Ended(end)) => Some(ended(end)),
            None => Some(Ok(Next::Anew("the link is gone".into()))),
        }
    }

    fn leave_for(&mut self, connected: &Connected, change: Change) -> Next {
        self.backoff.reset();
        self.leave(connected, &change.to_string())
    }

    /// Leaves a link to finish what it has.
    fn leave(&mut self, connected: &Connected, why: &str) -> Next {
        tracing::info!("connecting anew: {why}");
        self.older.push(connected.task.clone());
        if self.older.len() > OLDER_LINKS {
            self.older.remove(0).abort();
        }
        Next::Beside
    }

    /// Asks the relay for no more work; it says goodbye once everything in flight, and on its way here, is finished.
    async fn drain(&mut self) {
        if let Some(mux) = self.current.take() {
            mux.send_text(Control::Drain.to_text());
        }
        while self.links.join_next().await.is_some() {}
    }

    fn reap(&mut self) {
        while self.links.try_join_next().is_some() {}
        self.older.retain(|task| !task.is_finished());
    }
}

fn ended(end: End) -> Result<Next, Stopped> {
    match end {
        End::Closed(close::REPLACED, _) => Err(Stopped::Replaced),
        end => Ok(Next::Anew(end.to_string())),
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

/// Drives a link to its end; every stream is answered by a task of its own.
async fn drive(mut driver: Driver<Stream>, exchange: Arc<dyn Exchange>, happenings: mpsc::Sender<Happening>) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            event = driver.next() => match event {
                Event::Stream(stream) => {
                    streams.spawn(answer(stream, Arc::clone(&exchange)));
                }
                // A link that was left has nobody to tell.
                Event::Text(text) => drop(happenings.try_send(Happening::Text(text))),
                Event::Ended(end) => {
                    drop(happenings.send(Happening::Ended(end)).await);
                    return;
                }
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
        }
    }
}
