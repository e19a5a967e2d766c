//! A link to the relay as the bridge lives with it: the same handle and the same happenings, whatever the transport.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::choice::Transport;
use crate::token::Secret;
use crate::transport::Exchange;
use crate::transport::attach::{ConnectError, Hello, Welcome};
use crate::transport::dial::{Dialer, RelayUrl, Stream};
use crate::transport::poll::bridge::{self as poll, Poller, register};
use crate::transport::ws::bridge::{answer, connect};
use crate::transport::ws::close;
use crate::transport::ws::control::Control;
use crate::transport::ws::mux::{self, Driver, Mux};

/// How long the answer to the upgrade, or to the registration, may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// What happens on a link that the bridge must see to.
#[derive(Debug)]
pub(super) enum Happening {
    /// The relay asks to be connected anew.
    Drain,
    /// The relay says which transports it offers, the one it prefers first.
    Steer(Vec<String>),
    /// The relay cannot be reached at the moment, for this reason; the link lives on.
    Away(String),
    /// It can again.
    Back,
    /// The link is over.
    Ended(Ended),
}

/// How a link ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Another process of the same bridge took over.
    Replaced,
    /// The relay refuses.
    Refused(ConnectError),
    /// It was lost.
    Lost {
        /// Why.
        why: String,
        /// How long it had been silent, if silence may be the reason.
        silence: Option<Duration>,
    },
}

/// Makes links to the relay.
pub(super) struct Connector {
    pub(super) relay: RelayUrl,
    pub(super) dialer: Dialer,
    pub(super) client_id: String,
    pub(super) instance: String,
    pub(super) name: String,
    pub(super) priority: i32,
    pub(super) ephemeral: bool,
    pub(super) exchange: Arc<dyn Exchange>,
}

/// A link that nobody drives yet.
pub(super) struct Fresh {
    transport: Transport,
    handle: Handle,
    welcome: Welcome,
    happenings: mpsc::Receiver<Happening>,
    driver: BoxFuture<'static, ()>,
}

/// A link in use.
pub(super) struct Uplink {
    pub(super) transport: Transport,
    pub(super) welcome: Welcome,
    pub(super) since: Instant,
    handle: Handle,
    happenings: mpsc::Receiver<Happening>,
    task: AbortHandle,
}

enum Handle {
    Ws(Mux),
    Poll(Poller),
}

impl Connector {
    fn hello(&self, token: Secret) -> Hello {
        Hello {
            token,
            client_id: self.client_id.clone(),
            instance: self.instance.clone(),
            name: self.name.clone(),
            priority: self.priority,
            ephemeral: self.ephemeral,
        }
    }

    /// Connects over WebSocket; the link is silent for `ping_interval` at the most. `dialed` is told when the connection stands
    /// on which the upgrade is asked for.
    pub(super) fn ws(
        self: &Arc<Self>,
        token: Secret,
        ping_interval: Duration,
        dialed: Arc<Notify>,
    ) -> BoxFuture<'static, Result<Fresh, ConnectError>> {
        let connector = Arc::clone(self);
        async move {
            let hello = connector.hello(token);
            let connecting = connect(&connector.dialer, &connector.relay, &hello, || dialed.notify_one());
            let (mux, driver, welcome) = timeout(HANDSHAKE_TIMEOUT, connecting)
                .await
                .unwrap_or_else(|_| Err(ConnectError::Broken("no answer".into())))?;
            mux.set_ping_interval(ping_interval);
            let (sender, happenings) = mpsc::channel(16);
            let exchange = Arc::clone(&connector.exchange);
            let ready = Arc::new(Notify::new());
            let mut driver = drive(mux.clone(), driver, exchange, sender, Arc::clone(&ready)).boxed();
            // The relay's own request must have crossed the link: an answer of 101 proves nothing.
            tokio::select! {
                () = ready.notified() => {}
                () = &mut driver => return Err(ConnectError::Broken("the link ended".into())),
                () = sleep(HANDSHAKE_TIMEOUT) => return Err(ConnectError::Broken("nothing crosses it".into())),
            }
            Ok(Fresh {
                transport: Transport::Ws,
                handle: Handle::Ws(mux),
                welcome,
                happenings,
                driver,
            })
        }
        .boxed()
    }

    /// Registers for polling, for this reason.
    pub(super) async fn poll(&self, token: Secret, reason: Option<String>) -> Result<Fresh, ConnectError> {
        let hello = self.hello(token);
        let exchange = Arc::clone(&self.exchange);
        let registering = register(&self.dialer, &self.relay, &hello, reason, exchange);
        let (poller, driver, welcome) = timeout(HANDSHAKE_TIMEOUT, registering)
            .await
            .unwrap_or_else(|_| Err(ConnectError::Lost("no answer".into())))?;
        let (sender, happenings) = mpsc::channel(16);
        // A link that was left has nobody to tell.
        let tell = move |event: poll::Event| drop(sender.try_send(event.into()));
        Ok(Fresh {
            transport: Transport::Poll,
            handle: Handle::Poll(poller),
            welcome,
            happenings,
            driver: driver.run(Box::new(tell)).boxed(),
        })
    }
}

impl Fresh {
    /// Drives the link as one of these tasks.
    pub(super) fn begin(self, links: &mut JoinSet<()>) -> Uplink {
        Uplink {
            transport: self.transport,
            welcome: self.welcome,
            since: Instant::now(),
            handle: self.handle,
            happenings: self.happenings,
            task: links.spawn(self.driver),
        }
    }
}

impl Uplink {
    /// What happens next; a link that is gone has ended.
    pub(super) async fn next(&mut self) -> Happening {
        self.happenings.recv().await.unwrap_or_else(|| {
            Happening::Ended(Ended::Lost {
                why: "the link is gone".to_owned(),
                silence: None,
            })
        })
    }

    /// The newest measure of the round trip.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        match &self.handle {
            Handle::Ws(mux) => mux.pulse().round_trip(),
            Handle::Poll(poller) => poller.round_trip(),
        }
    }

    /// Shows the relay a fresh token.
    pub(super) fn show_token(&self, token: Secret) {
        match &self.handle {
            Handle::Ws(mux) => mux.send_text(
                Control::Token {
                    token: token.expose().to_owned(),
                }
                .to_text(),
            ),
            Handle::Poll(poller) => poller.show_token(token),
        }
    }

    /// Sets how long a WebSocket link may be silent; polling learns by itself.
    pub(super) fn set_ping_interval(&self, interval: Duration) {
        if let Handle::Ws(mux) = &self.handle {
            mux.set_ping_interval(interval);
        }
    }

    /// Something happened to the network: a polling link goes on over new connections, a WebSocket link must show that it lives.
    pub(super) fn network_changed(&self, another: bool) {
        match &self.handle {
            Handle::Ws(mux) => mux.doubt(),
            Handle::Poll(poller) => poller.network_changed(another),
        }
    }

    /// From now on it only finishes what it has.
    pub(super) fn leave(&self) {
        if let Handle::Poll(poller) = &self.handle {
            poller.set_left(true);
        }
    }

    /// A polling link that was left and can take work again.
    pub(super) fn to_rejoin(&self) -> Option<Poller> {
        match &self.handle {
            Handle::Poll(poller) if poller.can_rejoin() && !self.is_finished() => Some(poller.clone()),
            _ => None,
        }
    }

    /// Asks the relay for no more work.
    pub(super) async fn drain(&self) {
        match &self.handle {
            Handle::Ws(mux) => mux.send_text(Control::Drain.to_text()),
            Handle::Poll(poller) => poller.drain().await,
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Ends it at once.
    pub(super) fn abort(&self) {
        self.task.abort();
    }
}

impl From<poll::Event> for Happening {
    fn from(event: poll::Event) -> Self {
        match event {
            poll::Event::Away(why) => Self::Away(why),
            poll::Event::Back => Self::Back,
            poll::Event::Drain => Self::Drain,
            poll::Event::Steer(transports) => Self::Steer(transports),
            poll::Event::Ended(end) => Self::Ended(match end {
                poll::End::Replaced => Ended::Replaced,
                poll::End::Refused(error) => Ended::Refused(error),
                poll::End::Finished => Ended::Lost {
                    why: "the relay ended the link".to_owned(),
                    silence: None,
                },
            }),
        }
    }
}

fn ended(end: &mux::End, mux: &Mux) -> Ended {
    match end {
        mux::End::Closed(close::REPLACED, _) => Ended::Replaced,
        end => Ended::Lost {
            why: end.to_string(),
            silence: matches!(end, mux::End::Lost(_)).then(|| mux.pulse().silence()),
        },
    }
}

/// Drives a WebSocket link to its end; every stream is answered by a task of its own.
async fn drive(
    mux: Mux,
    mut driver: Driver<Stream>,
    exchange: Arc<dyn Exchange>,
    happenings: mpsc::Sender<Happening>,
    ready: Arc<Notify>,
) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            event = driver.next() => {
                let happening = match event {
                    mux::Event::Stream(stream) => {
                        streams.spawn(answer(stream, Arc::clone(&exchange), Arc::clone(&ready)));
                        continue;
                    }
                    mux::Event::Text(text) => match Control::parse(&text) {
                        Control::Drain => Happening::Drain,
                        Control::Steer { transports } => Happening::Steer(transports),
                        Control::Token { .. } | Control::Unknown => continue,
                    },
                    mux::Event::Ended(end) => {
                        // A link that was left has nobody to tell.
                        drop(happenings.try_send(Happening::Ended(ended(&end, &mux))));
                        return;
                    }
                };
                drop(happenings.try_send(happening));
            }
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
        }
    }
}
