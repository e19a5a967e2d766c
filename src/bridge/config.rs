//! The bridge's settings, validated.

use std::path::PathBuf;

use http::HeaderMap;

use super::choice::{Mode, Timing};
use super::policy::Policy;
use crate::token::Secret;
use crate::transport::dial::{BaseUrl, Dialer, RelayUrl};

/// What a bridge is run with; `cmd::bridge` makes it of arguments.
pub struct Config {
    /// Where the relay is.
    pub relay: RelayUrl,
    /// Where the token comes from.
    pub token: TokenSource,
    /// The name wished for.
    pub name: String,
    /// The higher, the sooner it gets work that names no bridge.
    pub priority: i32,
    /// Reachable by name only, and in no list.
    pub ephemeral: bool,
    /// The random name of this installation.
    pub client_id: String,
    /// The local server.
    pub upstream: BaseUrl,
    /// Header fields for the local server's eyes only.
    pub upstream_headers: HeaderMap,
    /// What of it is open.
    pub policy: Policy,
    /// How connections are made.
    pub dialer: Dialer,
    /// How to talk to the relay.
    pub transport: Mode,
    /// When the other transport is tried.
    pub timing: Timing,
    /// Where it is kept what was learned of networks; nowhere, if none.
    pub memory: Option<PathBuf>,
}

/// Where a token comes from.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// Given once, by the environment.
    Given(Secret),
    /// In a file that is read again at each connect, and written when the token is renewed.
    File(PathBuf),
    /// Of the sign-in in a file (`bridge::login`), refreshed at its provider.
    Login(PathBuf),
}
