//! One try to connect: over the transport that [`Choice`] names first, and over the other where that one does not get through.
//! And what to think of a try that failed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::choice::{Choice, Transport};
use super::network::{Change, Network};
use super::status::Phase;
use super::uplink::{Fresh, Uplink};
use super::{Attempt, Bridge, Failed, REFUSED_FOR, Stopped};
use crate::token::Secret;
use crate::transport::attach::ConnectError;
use crate::transport::backoff::jitter;

/// A longer reason is cut before it is told to the relay, characters.
const LONGEST_REASON: usize = 200;

impl Bridge {
    /// One try to connect.
    pub(super) async fn connect_once(&mut self) -> Result<Uplink, Failed> {
        let token = self.credential.ready(&self.connector.dialer).await?;
        self.show(&token);
        let connected = match self.choice.first() {
            Transport::Ws => self.ws_first(token).await,
            Transport::Poll => self.poll_first(token).await,
        };
        if connected.is_err() {
            self.pace.not_reached();
        }
        Ok(connected?)
    }

    /// Shows another token to the links there are; those that were left finish what they have for as long as there is one.
    pub(super) fn show(&mut self, token: &Secret) {
        if self.shown.as_ref() != Some(token) {
            let links = self.current.iter().chain(&self.older);
            links.for_each(|link| link.show_token(token.clone()));
            self.shown = Some(token.clone());
        }
    }

    async fn ws_first(&mut self, token: Secret) -> Result<Uplink, ConnectError> {
        let dialed = Arc::new(Notify::new());
        let mut ws = self
            .connector
            .ws(token.clone(), self.pace.current(), Arc::clone(&dialed));
        let race_after = self.choice.race_after();
        // Only what a standing connection does not answer is blocked; one that cannot be made is of no use to polling either.
        let silent = async {
            dialed.notified().await;
            sleep(race_after).await;
        };
        let may_poll = self.choice.may_try(Transport::Poll);
        let error = tokio::select! {
            outcome = &mut ws => match outcome {
                Ok(fresh) => return Ok(fresh.begin(&mut self.links)),
                Err(error) if may_poll && error.is_of_transport() => error,
                Err(error) => return Err(error),
            },
            () = silent, if may_poll => return self.race(ws, token).await,
        };
        self.poll_instead(token, error).await
    }

    /// Polling beside a WebSocket that is slow, or blocked: whichever stands first.
    async fn race(&mut self, mut ws: Attempt, token: Secret) -> Result<Uplink, ConnectError> {
        let before = self.choice.clone();
        self.choice
            .ws_failed("WebSocket blocked: no answer to its upgrade".to_owned(), jitter);
        let raced = tokio::select! {
            outcome = &mut ws => outcome,
            polled = self.poll(token.clone()) => match polled {
                Ok(uplink) => return Ok(uplink),
                // WebSocket may be slow and still come.
                Err(error) => {
                    let fresh = ws.await.map_err(|_| error);
                    self.choice = before;
                    return fresh.map(|fresh| fresh.begin(&mut self.links));
                }
            },
        };
        match raced {
            Ok(fresh) => {
                self.choice = before;
                Ok(fresh.begin(&mut self.links))
            }
            Err(error) => {
                self.choice.set_blocked(error.why_not_websocket());
                let polled = self.poll(token).await;
                polled.inspect_err(|_| self.choice = before)
            }
        }
    }

    async fn poll_first(&mut self, token: Secret) -> Result<Uplink, ConnectError> {
        let error = match self.poll(token.clone()).await {
            Ok(uplink) => return Ok(uplink),
            Err(error) => error,
        };
        if error.is_of_transport() {
            // What the relay offered once is not what it offers now.
            self.choice.forget_offer();
        }
        let elsewhere = !error.is_final() && !matches!(error, ConnectError::Dial(_));
        if !(elsewhere && self.choice.may_try(Transport::Ws)) {
            return Err(error);
        }
        match self.connector.ws(token, self.pace.current(), Arc::default()).await {
            Ok(fresh) => Ok(fresh.begin(&mut self.links)),
            Err(_) => Err(error),
        }
    }

    async fn poll_instead(&mut self, token: Secret, ws: ConnectError) -> Result<Uplink, ConnectError> {
        let before: Choice = self.choice.clone();
        self.choice.ws_failed(ws.why_not_websocket(), jitter);
        let polled = self.poll(token).await;
        polled.map_err(|error| {
            // Neither works: nothing was learned about WebSocket.
            self.choice = before;
            // That a relay offers no polling is not what is wrong.
            if error.is_of_transport() { ws } else { error }
        })
    }

    /// Registers for polling: over the link that was left and still finishes what it has, if there is one, for two of them
    /// would take each other's requests.
    async fn poll(&mut self, token: Secret) -> Result<Uplink, ConnectError> {
        let reason = self.choice.why_polling();
        let reason = reason.map(|why| why.chars().take(LONGEST_REASON).collect());
        let left = self.older.iter().position(|older| older.to_rejoin().is_some());
        let Some(poller) = left.and_then(|at| self.older[at].to_rejoin()) else {
            let fresh = self.connector.poll(token, reason).await?;
            return Ok(fresh.begin(&mut self.links));
        };
        let welcome = poller.rejoin(token, reason).await?;
        let at = self.older.iter().position(|older| older.to_rejoin().is_some());
        match at {
            Some(at) => {
                let mut uplink = self.older.remove(at);
                uplink.welcome = welcome;
                Ok(uplink)
            }
            None => Err(ConnectError::Broken("the older link ended meanwhile".to_owned())),
        }
    }

    /// Begins to try WebSocket beside polling.
    pub(super) fn try_ws(&mut self) -> Option<Attempt> {
        let token = self.credential.read().ok()?;
        self.show(&token);
        tracing::debug!("trying WebSocket again");
        Some(self.connector.ws(token, self.pace.current(), Arc::default()))
    }

    /// What to think of it; the link, if there is one.
    pub(super) fn judge_attempt(&mut self, outcome: Result<Fresh, ConnectError>) -> Option<Fresh> {
        match outcome {
            Ok(fresh) => {
                tracing::info!("WebSocket works now");
                Some(fresh)
            }
            Err(error) => {
                tracing::debug!("WebSocket does not work yet: {error}");
                if error.is_of_transport() {
                    self.choice.ws_failed(error.why_not_websocket(), jitter);
                }
                None
            }
        }
    }

    /// Waits until it makes sense to try again.
    pub(super) async fn wait(&mut self, why: String, wait: Duration, resolving: bool, network: &mut Network) {
        self.status.set_round_trip(None);
        self.tell_away(why);
        tokio::select! {
            () = sleep(wait) => {}
            change = network.changed(resolving) => self.begin_anew(change, network).await,
        }
    }

    /// Tells the owner why the desktop is not connected.
    pub(super) fn tell_away(&mut self, why: String) {
        let before = self.last_why.replace(why.clone());
        if before.as_ref() == Some(&why) {
            tracing::debug!("still not connected: {why}; trying again");
        } else {
            tracing::warn!("not connected: {why}; trying again and again");
        }
        self.status.enter(Phase::Waiting { why });
    }

    /// Whether an error may pass, and when the relay asks to be asked again. Only the relay's own word refuses a token for good:
    /// anything else may be a captive portal or a proxy.
    pub(super) fn judge(&mut self, error: &ConnectError) -> Result<Option<Duration>, Stopped> {
        match error {
            ConnectError::Refused { detail, .. } if error.is_final() => {
                let since = *self.refused_since.get_or_insert_with(Instant::now);
                if self.credential.note_refused() || self.succeeded && since.elapsed() < REFUSED_FOR {
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

    /// The network changed while there was no link: the next try is made at once.
    pub(super) async fn begin_anew(&mut self, change: Change, network: &mut Network) {
        tracing::info!("{change}: trying at once");
        self.note_change(change, network).await;
    }

    /// What was learned of another network is of no use.
    pub(super) async fn note_change(&mut self, change: Change, network: &mut Network) {
        self.backoff.reset();
        if change.is_another_network() {
            self.pace.forget();
            self.recall(network).await;
        }
    }

    /// What is known of the network the desktop is in.
    pub(super) async fn recall(&mut self, network: &mut Network) {
        let local = network.local().await;
        let blocked = self.memory.blocked(local, &self.connector.relay.to_string());
        self.choice.network_changed(blocked);
    }

    /// Notes what was found on this network.
    pub(super) async fn note_network(&mut self, network: &mut Network) {
        let local = network.local().await;
        let relay = self.connector.relay.to_string();
        self.memory.note(local, &relay, self.choice.blocked());
    }
}
