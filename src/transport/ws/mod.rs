//! The `ws` transport: byte streams side by side over one WebSocket (subprotocol `tunnel.v1`, protocol.md section 2).
//!
//! Bottom up: `frame` (octets), `stream` and `streams` (the rules, pure), `socket` (one WebSocket), `mux` (drives the streams
//! over the socket), `duplex` (one of them, from outside), then the two ends: `relay` and `bridge`; `control` holds the text messages between them, `length` what
//! HTTP/1.1 cannot say. `json` is what
//! older apps speak instead.

pub mod bridge;
pub mod control;
pub mod duplex;
pub mod frame;
pub mod json;
mod length;
pub mod mux;
pub mod pulse;
pub mod relay;
pub mod socket;
mod stream;
pub mod streams;

use std::time::Duration;

use super::Ending;

/// The subprotocol of our bridges.
pub const SUBPROTOCOL: &str = "tunnel.v1";
/// Where a bridge asks for the upgrade.
pub const PATH: &str = "/ws/tunnel";
/// The path the relay asks over a fresh link, answered by the bridge itself.
pub const READY_PATH: &str = "/.tunnel/ready";

/// Close codes of the link (RFC 6455 §7.4).
pub mod close {
    /// All is well, this side just ends.
    pub const NORMAL: u16 = 1000;
    /// The relay goes away; connect anew.
    pub const GOING_AWAY: u16 = 1001;
    /// A rule of `tunnel.v1` was broken.
    pub const PROTOCOL: u16 = 1002;
    /// A binary message where only texts are spoken.
    pub const UNSUPPORTED: u16 = 1003;
    /// A text that is not JSON where only JSON is spoken.
    pub const NOT_CONSISTENT: u16 = 1007;
    /// Too many control messages.
    pub const POLICY: u16 = 1008;
    /// The token ended, or was revoked.
    pub const TOKEN: u16 = 4001;
    /// Another process with the same client id took over.
    pub const REPLACED: u16 = 4002;
}

/// The close code and the reason for an ending.
fn farewell(ending: Ending) -> (u16, &'static str) {
    match ending {
        Ending::Done => (close::NORMAL, "done"),
        Ending::GoingAway => (close::GOING_AWAY, "the relay goes away"),
        Ending::TokenEnded => (close::TOKEN, "the token ended"),
        Ending::Replaced => (close::REPLACED, "another process of the same bridge took over"),
    }
}

/// Sizes and times of a link, as plain data.
#[derive(Debug)]
pub struct Tuning {
    /// A stream's window in each direction at the start, octets.
    pub initial_window: u32,
    /// The most a stream's window grows to, octets.
    pub max_window: u32,
    /// The most by which all windows of a link together grow, octets.
    pub growth: u32,
    /// With a round trip shorter than this, windows are large enough as they begin.
    pub far: Duration,
    /// The most that one read of a stream gives, octets.
    pub read: usize,
    /// The least that is allocated for what a stream received, octets.
    pub part: usize,
    /// What one stream may have written and not sent, octets.
    pub pending: usize,
    /// Writes up to this size go before bulk, octets.
    pub small: usize,
    /// The size of a bulk frame, octets: what a small write may have to wait for.
    pub bulk_frame: usize,
    /// A message is not filled further once it has so many octets.
    pub message: usize,
    /// The largest message taken, octets.
    pub max_message: usize,
    /// tungstenite's read buffer, octets: zero-filled at each read, and held by every idle link.
    pub read_buffer: usize,
    /// The most that tungstenite holds unsent, octets.
    pub write_buffer: usize,
    /// Messages read before the link writes and lets others run.
    pub reads_per_turn: usize,
    /// Between two pings.
    pub ping_interval: Duration,
    /// The same at the bridge while streams are open.
    pub busy_ping_interval: Duration,
    /// Without a byte for so long after a ping, the link is dead.
    pub ping_timeout: Duration,
    /// A request on a link silent for so long brings a ping along.
    pub silence: Duration,
    /// And so long that ping may take.
    pub silence_timeout: Duration,
    /// How long the goodbye may take.
    pub close_timeout: Duration,
    /// A stream unused for so long is closed.
    pub idle_stream: Duration,
    /// Control messages taken between two pings.
    pub texts_per_interval: u32,
}

/// The values in force.
pub static TUNING: Tuning = Tuning {
    initial_window: 256 * 1024,
    max_window: 4 * 1024 * 1024,
    growth: 8 * 1024 * 1024,
    far: Duration::from_millis(2),
    read: 16 * 1024,
    part: 2 * 1024,
    pending: 64 * 1024,
    small: 4 * 1024,
    bulk_frame: 16 * 1024,
    message: 32 * 1024,
    max_message: 256 * 1024,
    read_buffer: 8 * 1024,
    write_buffer: 512 * 1024,
    reads_per_turn: 16,
    ping_interval: Duration::from_secs(15),
    busy_ping_interval: Duration::from_secs(2),
    ping_timeout: Duration::from_secs(15),
    silence: Duration::from_secs(5),
    silence_timeout: Duration::from_secs(5),
    close_timeout: Duration::from_secs(1),
    idle_stream: Duration::from_secs(10),
    texts_per_interval: 64,
};
