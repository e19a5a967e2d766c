//! The `poll` transport: the same exchanges with nothing but short, plain HTTP requests from the bridge (protocol.md section 3).
//!
//! `wire` holds the JSON messages; the relay's end is `relay`, with `queue` (what the bridge is to
//! be told) and `pending`, `upload` and `answer` (one exchange and its two bodies); the bridge's end is `bridge` (the waiting poll) with `carry` (one exchange) and `client`
//! (its HTTP, over connections that `standing` counts).

pub mod answer;
pub mod bridge;
mod carry;
pub mod client;
mod event;
mod pending;
mod queue;
pub mod relay;
mod standing;
pub mod upload;
pub mod wire;

use std::time::Duration;

use http::HeaderName;

use super::json;

/// Number of a part; 0 is the JSON head.
pub const TUNNEL_PART: HeaderName = HeaderName::from_static("tunnel-part");
/// `1` on the last part of a body.
pub const TUNNEL_END: HeaderName = HeaderName::from_static("tunnel-end");
/// `1`: the upstream broke off.
pub const TUNNEL_ABORT: HeaderName = HeaderName::from_static("tunnel-abort");
/// Trailers of the body, as JSON, on its last part.
pub const TUNNEL_TRAILERS: HeaderName = HeaderName::from_static("tunnel-trailers");

/// Where bridges register.
pub const REGISTER: &str = "/api/bridge/register";
/// Below it: the bridge's id.
pub const POLL: &str = "/api/bridge/poll";
/// Below it: the bridge's id and the request's.
pub const RESPOND: &str = "/api/bridge/respond";

/// Below it: the bridge's id.
pub const HEARTBEAT: &str = "/api/bridge/heartbeat";

/// What is tuned, in one place: octets and times.
#[derive(Debug)]
pub struct Tuning {
    /// A request body up to this size goes along with the poll.
    pub inline: usize,
    /// A part of a request body.
    pub upload_part: usize,
    /// The most of a response body that goes along with its head.
    pub first_part: usize,
    /// A part of a response body that is always taken.
    pub small_part: usize,
    /// The largest part of a response body.
    pub part: usize,
    /// What the relay holds in larger parts and whole bodies, for one link and direction.
    pub relay_budget: usize,
    /// What the bridge holds in larger parts.
    pub bridge_budget: usize,
    /// The largest JSON message.
    pub json: usize,
    /// Requests in one answer to a poll.
    pub batch: usize,
    /// Octets of request bodies in one answer to a poll, after which no further request goes into it.
    pub batch_size: usize,
    /// A poll that does not say how long it waits.
    pub wait: Duration,
    /// The longest wait of a poll.
    pub longest_wait: Duration,
    /// The wait of our bridge's polls while exchanges are in flight: they are its signs of life.
    pub busy_wait: Duration,
    /// How long a part waits for room before it is to be sent again.
    pub room: Duration,
    /// Without contact for so long, what is in flight fails.
    pub silent: Duration,
    /// A bridge unseen for so long is gone.
    pub gone: Duration,
    /// How long an app that answers in one piece may take.
    pub request_timeout: Duration,
    /// Exchanges that are over, told to a bridge again and again until it acknowledges that.
    pub told: usize,
    /// Finished exchanges remembered, so that what is sent again is recognised.
    pub remembered: usize,
}

/// The values in force.
pub static TUNING: Tuning = Tuning {
    inline: 64 * 1024,
    upload_part: 256 * 1024,
    first_part: 32 * 1024,
    small_part: json::SMALL,
    part: 1024 * 1024,
    relay_budget: 16 * 1024 * 1024,
    bridge_budget: 8 * 1024 * 1024,
    json: 16 * 1024 * 1024,
    batch: 64,
    batch_size: 1024 * 1024,
    wait: Duration::from_secs(25),
    longest_wait: Duration::from_secs(55),
    busy_wait: Duration::from_secs(8),
    room: Duration::from_millis(1800),
    silent: Duration::from_secs(20),
    gone: Duration::from_secs(90),
    request_timeout: Duration::from_secs(300),
    told: 4096,
    remembered: 256,
};
