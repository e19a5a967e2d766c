//! The relay's settings, validated.

use std::time::Duration;

use super::access::Log;
use super::auth::oidc;
use super::host::PublicUrl;
use super::keeper::Keeper;
use super::opening::Opening;
use super::proxies::Proxies;
use super::rate::Rate;
use super::tls::Tls;

/// What a relay is run with; `cmd::relay` makes it of arguments.
#[derive(Debug, Clone)]
pub struct Config {
    /// Origins that browsers may call from; any, if empty.
    pub cors_origins: Vec<String>,
    /// How long a request waits for a bridge that was here a moment ago.
    pub wait_for_bridge: Duration,
    /// How long requests are still taken after it is known that the relay stops.
    pub lame_duck: Duration,
    /// How long callers may take at a drain.
    pub grace: Duration,
    /// The transports bridges are offered.
    pub transports: Transports,
    /// TLS on the port for callers and bridges; in clear, if none.
    pub tls: Option<Tls>,
    /// The proxies in front whose word on who calls is taken.
    pub proxies: Proxies,
    /// Where the relay is reached from outside, if that was said.
    pub public_url: Option<PublicUrl>,
    /// Where a line for each exchange goes, if it goes anywhere.
    pub access_log: Option<Log>,
    /// What keeps tokens, users, bridges and usage, if they are kept.
    pub keeper: Option<Keeper>,
    /// The provider by which people sign in, if there is one.
    pub oidc: Option<oidc::Settings>,
    /// The code that opens a demonstration, if this is one.
    pub opening: Option<Opening>,
    /// The bounds.
    pub limits: Limits,
}

/// Which transports bridges are offered, and how they are steered to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transports {
    /// WebSocket.
    pub ws: bool,
    /// HTTP polling.
    pub poll: bool,
    /// The share of bridges that should prefer WebSocket where both are offered, percent.
    pub prefer_ws: u8,
}

impl Transports {
    /// Those offered to a bridge, the one it should prefer first. The same bridge always hears the same.
    pub fn for_bridge(self, client_id: &str) -> Vec<String> {
        let prefers_ws = share(client_id) < u64::from(self.prefer_ws);
        let order = if prefers_ws { ["ws", "poll"] } else { ["poll", "ws"] };
        let offered = order
            .into_iter()
            .filter(|name| if *name == "ws" { self.ws } else { self.poll });
        offered.map(str::to_owned).collect()
    }
}

/// Where a name stands among all names, 0 to 99 (FNV-1a: the same in every release).
fn share(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of so simple a hash follow the last octets too closely.
    (hash ^ (hash >> 32)) % 100
}

/// The bounds of a relay.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Caller and bridge connections at once.
    pub connections: usize,
    /// The head of a request, octets.
    pub head_size: usize,
    /// From the beginning of a connection to its first whole request head.
    pub first_head: Duration,
    /// A connection without a request.
    pub keep_alive: Duration,
    /// Exchanges of one user at once.
    pub in_flight_per_user: usize,
    /// Exchanges of one bridge at once.
    pub in_flight_per_bridge: usize,
    /// Bridges of one user at once.
    pub bridges_per_user: usize,
    /// A request body, octets; no limit, if none.
    pub body: Option<u64>,
    /// Requests of one token in a time; no limit, if none.
    pub rate: Option<Rate>,
    /// An exchange in which no byte moves.
    pub idle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cors_origins: Vec::new(),
            wait_for_bridge: Duration::from_secs(10),
            lame_duck: Duration::from_secs(5),
            grace: Duration::from_secs(30),
            transports: Transports {
                ws: true,
                poll: true,
                prefer_ws: 100,
            },
            tls: None,
            proxies: Proxies::default(),
            public_url: None,
            access_log: None,
            keeper: None,
            oidc: None,
            opening: None,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head_size: 32 * 1024,
            first_head: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            in_flight_per_user: 512,
            in_flight_per_bridge: 128,
            bridges_per_user: 64,
            body: None,
            rate: None,
            idle: Duration::from_secs(15 * 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_bridges_prefers_websocket_and_always_the_same_ones() {
        let steered = |prefer_ws| {
            let transports = Transports {
                ws: true,
                poll: true,
                prefer_ws,
            };
            (0..1000).filter(move |n| transports.for_bridge(&format!("client-{n}"))[0] == "ws")
        };
        assert_eq!(steered(0).count(), 0);
        assert_eq!(steered(100).count(), 1000);
        let some: Vec<_> = steered(30).collect();
        assert!((250..350).contains(&some.len()), "{}", some.len());
        let more: Vec<_> = steered(60).collect();
        assert!(some.iter().all(|bridge| more.contains(bridge)));
    }

    #[test]
    fn what_is_not_offered_is_not_named() {
        let transports = Transports {
            ws: false,
            poll: true,
            prefer_ws: 100,
        };
        assert_eq!(transports.for_bridge("any"), ["poll"]);
    }
}
