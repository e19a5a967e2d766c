//! End to end, over real sockets: callers, a relay, bridges and upstreams. Every scenario that makes sense on a transport runs on
//! each of them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails, whichever function it is in"
)]

mod harness;

mod breaking;
mod corporate;
mod cors;
mod desktops;
mod draining;
mod early;
mod encryption;
mod hostile;
mod integrity;
mod isolation;
mod leaving;
mod limits;
mod policy;
mod polling;
mod processes;
mod proxies;
mod recovery;
mod semantics;
mod streaming;
mod switching;
mod tokens;
mod upgrades;
