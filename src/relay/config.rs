//! The relay's settings, validated.

use std::time::Duration;

/// What a relay is run with; `cmd::relay` makes it of arguments.
#[derive(Debug, Clone)]
pub struct Config {
    /// Origins that browsers may call from; any, if empty.
    pub cors_origins: Vec<String>,
    /// How long a request waits for a bridge that was here a moment ago.
    pub wait_for_bridge: Duration,
    /// How long callers may take at a drain.
    pub grace: Duration,
    /// The bounds.
    pub limits: Limits,
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
    /// An exchange in which no byte moves.
    pub idle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cors_origins: Vec::new(),
            wait_for_bridge: Duration::from_secs(10),
            grace: Duration::from_secs(30),
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
            idle: Duration::from_secs(15 * 60),
        }
    }
}
