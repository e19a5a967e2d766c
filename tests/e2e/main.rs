//! End to end, over real sockets: callers, a relay, bridges and upstreams. Every scenario that makes sense on a transport runs on
//! each of them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails, whichever function it is in"
)]

mod harness;

#[cfg(target_os = "linux")]
mod accounts;
#[cfg(target_os = "linux")]
mod acme;
mod attacks;
#[cfg(target_os = "linux")]
mod autostart;
#[cfg(target_os = "linux")]
mod awake;
mod bench;
mod breaking;
#[cfg(target_os = "linux")]
mod compose;
mod corporate;
mod cors;
#[cfg(target_os = "linux")]
mod demo;
#[cfg(target_os = "linux")]
mod deploy;
mod desktops;
mod draining;
mod early;
mod edge;
mod encryption;
mod events;
#[cfg(target_os = "linux")]
mod events_accounts;
mod hostile;
mod integrity;
mod isolation;
#[cfg(target_os = "linux")]
mod keys;
mod lasting;
mod leaving;
mod limits;
#[cfg(target_os = "linux")]
mod login;
mod oidc;
#[cfg(target_os = "linux")]
mod oidc_accounts;
mod oidc_keys;
#[cfg(unix)]
mod oidc_provider;
mod page;
mod page_files;
#[cfg(target_os = "linux")]
mod pairing;
mod policy;
mod polling;
mod polling_answers;
mod polling_chance;
mod polling_input;
mod polling_polls;
mod probe;
mod probe_access;
mod probe_faults;
mod processes;
mod proxies;
mod recovery;
#[cfg(target_os = "linux")]
mod restarts;
#[cfg(target_os = "linux")]
mod rotation;
mod semantics;
#[cfg(target_os = "linux")]
mod sharing;
#[cfg(target_os = "linux")]
mod sharing_groups;
mod sharing_waits;
mod shipped;
mod shipped_ws;
#[cfg(target_os = "linux")]
mod store;
#[cfg(target_os = "linux")]
mod store_keys;
#[cfg(target_os = "linux")]
mod store_pruning;
#[cfg(target_os = "linux")]
mod store_shares;
mod streaming;
mod switching;
mod tls;
mod tokens;
mod upgrades;
mod usage;
mod watching;
