//! Which transport to use under `--transport auto`: WebSocket where it works, polling where it does not. Pure: what was seen goes
//! in, what to try comes out.

use std::time::Duration;

use tokio::time::Instant;

use crate::transport::backoff::jitter;

/// A link that lived shorter was cut.
const SHORT: Duration = Duration::from_secs(20);
/// Polling that has not reached the relay for so long is no better than WebSocket.
const AWAY: Duration = Duration::from_secs(20);
/// After so many short ones in a row, WebSocket is taken for blocked.
const CUTS: u32 = 4;

/// A way to talk to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket.
    Ws,
    /// HTTP polling.
    Poll,
}

impl Transport {
    /// As it stands in options and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Poll => "poll",
        }
    }
}

/// What the owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// This one and no other.
    Only(Transport),
    /// The best one that works.
    Auto,
}

/// When the other transport is tried.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Polling is raced when WebSocket has not answered within this.
    pub race_after: Duration,
    /// While polling, until WebSocket is tried again for the first time.
    pub retry_first: Duration,
    /// And at the most, as that time doubles.
    pub retry_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            race_after: Duration::from_secs(3),
            retry_first: Duration::from_secs(60),
            retry_most: Duration::from_secs(600),
        }
    }
}

/// What is known of the transports.
#[derive(Debug, Clone)]
pub struct Choice {
    mode: Mode,
    timing: Timing,
    /// What the relay offers, the one it prefers first.
    offered: Vec<Transport>,
    /// Why WebSocket does not work here, if it does not.
    blocked: Option<String>,
    cuts: u32,
    retry: Duration,
    retry_at: Option<Instant>,
    poll_away: bool,
}

impl Choice {
    /// Nothing is known but what the owner wants.
    pub fn new(mode: Mode, timing: Timing) -> Self {
        Self {
            mode,
            timing,
            offered: vec![Transport::Ws, Transport::Poll],
            blocked: None,
            cuts: 0,
            retry: timing.retry_first,
            retry_at: None,
            poll_away: false,
        }
    }

    /// What to try first.
    pub fn first(&self) -> Transport {
        match self.mode {
            Mode::Only(transport) => transport,
            Mode::Auto if self.blocked.is_some() && self.offers(Transport::Poll) => Transport::Poll,
            Mode::Auto => self.preferred(),
        }
    }

    /// Whether the other may be tried when the first does not work.
    pub fn may_try(&self, transport: Transport) -> bool {
        match self.mode {
            Mode::Only(only) => only == transport,
            Mode::Auto => self.offers(transport),
        }
    }

    /// Why polling is used, in a sentence for the owner; none where it was asked for.
    pub fn why_polling(&self) -> Option<String> {
        match self.mode {
            Mode::Only(_) => None,
            Mode::Auto if self.preferred() == Transport::Poll => Some("the relay prefers HTTP polling".to_owned()),
            Mode::Auto => self.blocked.as_ref().map(|why| format!("{why} — using HTTP polling")),
        }
    }

    /// Why WebSocket does not work on this network, as far as is known.
    pub fn blocked(&self) -> Option<&str> {
        self.blocked.as_deref()
    }

    /// How long WebSocket has before polling is raced.
    pub fn race_after(&self) -> Duration {
        self.timing.race_after
    }

    /// WebSocket did not work, for this reason; `wait` draws the time until the next try.
    pub fn ws_failed(&mut self, why: String, wait: impl Fn(Duration) -> Duration) {
        self.blocked = Some(why);
        self.retry_at = Some(Instant::now() + wait(self.retry));
        self.retry = (self.retry * 2).min(self.timing.retry_most);
    }

    /// The reason is another, as turned out meanwhile.
    pub fn set_blocked(&mut self, why: String) {
        self.blocked = Some(why);
    }

    /// WebSocket could not be tried: not before the next time.
    pub fn postpone(&mut self, wait: impl Fn(Duration) -> Duration) {
        self.retry_at = Some(Instant::now() + wait(self.retry));
    }

    /// Polling does not reach the relay, or does again: then WebSocket is tried even where the relay prefers polling.
    pub fn poll_away(&mut self, away: bool) {
        self.poll_away = away;
        if away {
            self.retry_at = Some(Instant::now() + AWAY);
        }
    }

    /// The relay does not offer what it offered: nothing is known of it.
    pub fn forget_offer(&mut self) {
        self.offered = vec![Transport::Ws, Transport::Poll];
    }

    /// Polling is used: WebSocket is tried again when its time has come.
    pub fn polling(&mut self, wait: impl Fn(Duration) -> Duration) {
        if self.retry_at.is_none() {
            self.retry_at = Some(Instant::now() + wait(self.retry));
        }
    }

    /// WebSocket works.
    pub fn ws_worked(&mut self) {
        self.blocked = None;
        self.retry_at = None;
        self.poll_away = false;
    }

    /// A WebSocket link was lost after it had lived for so long.
    pub fn ws_lost(&mut self, lived: Duration) {
        if lived >= SHORT {
            self.cuts = 0;
            self.retry = self.timing.retry_first;
            return;
        }
        self.cuts += 1;
        if self.cuts >= CUTS && self.mode == Mode::Auto && self.offers(Transport::Poll) {
            // One more that is cut is enough, until one has lived.
            self.cuts = CUTS - 1;
            self.ws_failed(
                "WebSocket blocked: its connections are cut again and again".to_owned(),
                jitter,
            );
        }
    }

    /// When WebSocket is to be tried beside polling; never, if none.
    pub fn retry_at(&self) -> Option<Instant> {
        (self.mode == Mode::Auto && (self.poll_away || self.preferred() == Transport::Ws))
            .then_some(self.retry_at)
            .flatten()
    }

    /// Another network: nothing is known of it but what was remembered.
    pub fn network_changed(&mut self, blocked: Option<String>) {
        self.blocked = blocked;
        self.cuts = 0;
        self.retry = self.timing.retry_first;
        self.retry_at = self.retry_at.map(|_| Instant::now());
    }

    /// The relay says what it offers. True if the transport in use is not the one to use now.
    pub fn steer(&mut self, names: &[String], current: Transport) -> bool {
        let known = |name: &String| match name.as_str() {
            "ws" => Some(Transport::Ws),
            "poll" => Some(Transport::Poll),
            _ => None,
        };
        let offered: Vec<Transport> = names.iter().filter_map(known).collect();
        if offered.is_empty() {
            return false;
        }
        let before = std::mem::replace(&mut self.offered, offered);
        if self.mode != Mode::Auto || before == self.offered {
            return false;
        }
        if self.preferred() == Transport::Ws && current == Transport::Poll {
            // Tried beside polling, at once.
            self.retry_at = Some(Instant::now());
            return false;
        }
        self.first() != current
    }

    fn offers(&self, transport: Transport) -> bool {
        self.offered.contains(&transport)
    }

    fn preferred(&self) -> Transport {
        self.offered.first().copied().unwrap_or(Transport::Ws)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto() -> Choice {
        Choice::new(Mode::Auto, Timing::default())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn websocket_first_then_polling_then_websocket_again_after_longer_and_longer_times() {
        let mut choice = auto();
        assert_eq!(choice.first(), Transport::Ws);
        let start = Instant::now();
        for wait in [60, 120, 240, 480, 600, 600] {
            choice.ws_failed("WebSocket blocked: x".into(), |wait| wait);
            assert_eq!(choice.first(), Transport::Poll);
            assert_eq!(choice.retry_at(), Some(start + Duration::from_secs(wait)));
        }
        assert_eq!(
            choice.why_polling().unwrap(),
            "WebSocket blocked: x — using HTTP polling"
        );
        choice.ws_worked();
        assert_eq!((choice.first(), choice.retry_at()), (Transport::Ws, None));
    }

    #[tokio::test(start_paused = true)]
    async fn links_that_are_cut_again_and_again_lead_to_polling() {
        let mut choice = auto();
        for _ in 0..CUTS - 1 {
            choice.ws_lost(Duration::from_secs(2));
        }
        choice.ws_lost(SHORT);
        assert_eq!(choice.first(), Transport::Ws);
        for _ in 0..CUTS {
            choice.ws_lost(Duration::from_secs(2));
        }
        assert_eq!(choice.first(), Transport::Poll);
    }

    #[tokio::test(start_paused = true)]
    async fn the_relay_steers_who_lets_it() {
        let mut choice = auto();
        assert!(choice.steer(&names(&["poll", "ws"]), Transport::Ws));
        assert_eq!((choice.first(), choice.retry_at()), (Transport::Poll, None));
        assert!(!choice.steer(&names(&["poll", "ws"]), Transport::Poll));
        assert!(!choice.steer(&names(&["ws", "poll"]), Transport::Poll));
        assert_eq!(choice.retry_at(), Some(Instant::now()));
        assert!(!choice.steer(&names(&["quic"]), Transport::Poll));
        let mut fixed = Choice::new(Mode::Only(Transport::Ws), Timing::default());
        assert!(!fixed.steer(&names(&["poll"]), Transport::Ws));
        assert_eq!(fixed.first(), Transport::Ws);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_offered_is_not_tried() {
        let mut choice = auto();
        choice.steer(&names(&["ws"]), Transport::Ws);
        assert!(!choice.may_try(Transport::Poll));
        for _ in 0..CUTS * 2 {
            choice.ws_lost(Duration::ZERO);
        }
        assert_eq!(choice.first(), Transport::Ws);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_remembered_of_a_network_is_tried_first_there() {
        let mut choice = auto();
        choice.network_changed(Some("WebSocket blocked: x".into()));
        assert_eq!(choice.first(), Transport::Poll);
        choice.polling(|wait| wait);
        choice.network_changed(None);
        assert_eq!(
            (choice.first(), choice.retry_at()),
            (Transport::Ws, Some(Instant::now()))
        );
    }
}
