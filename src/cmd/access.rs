//! How a command gets to a relay: its address, the token, and what lies between. The same options for bridge, probe and bench.

use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use super::proxy::ProxyArgs;
use crate::bridge::config::TokenSource;
use crate::token::Secret;
use crate::transport::dial::{Dialer, RelayUrl};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct RelayArgs {
    /// The relay's address, as in https://relay.example.com
    #[arg(long, value_name = "URL")]
    relay: Option<String>,
    /// A file with the token; a bridge reads it again at each connect, and writes the token there when it is renewed
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkArgs {
    /// Send token and conversations unencrypted to a relay on another machine
    #[arg(long)]
    insecure_http: bool,
    /// Trust the certificates in this PEM file too
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

impl RelayArgs {
    /// Whether an address was given.
    pub(super) fn is_given(&self) -> bool {
        self.relay.is_some()
    }

    /// The relay's address. `command` is what would be typed to do this with another.
    pub(super) fn relay(&self, network: &NetworkArgs, command: &str) -> Result<RelayUrl, Failure> {
        let relay: RelayUrl = self
            .relay
            .as_deref()
            .ok_or_else(|| Failure::usage(missing("the relay's address", command)))?
            .parse()
            .map_err(|error| Failure::usage(format!("--relay: {error}")))?;
        if !relay.origin().is_tls() && !relay.origin().is_loopback() && !network.insecure_http {
            return Err(Failure::usage(format!(
                "{relay} is not encrypted: your token and conversations could be read on the way.\n\
                 Use https://, or --insecure-http if the network between is yours."
            )));
        }
        Ok(relay)
    }

    /// Where the token comes from.
    pub(super) fn token(&self, command: &str) -> Result<TokenSource, Failure> {
        if let Some(path) = &self.token_file {
            return Ok(TokenSource::File(path.clone()));
        }
        match std::env::var("TUNNEL_TOKEN") {
            Ok(token) if !token.trim().is_empty() => Ok(TokenSource::Given(Secret::new(&token))),
            _ => Err(Failure::usage(missing("a token", command))),
        }
    }

    /// Whether it was said where the token comes from.
    pub(super) fn has_token(&self) -> bool {
        self.token("").is_ok()
    }

    /// From now on the token is in this file.
    pub(super) fn keep_token_in(&mut self, path: PathBuf) {
        self.token_file = Some(path);
    }

    /// The token as it is now.
    pub(super) fn read_token(&self, command: &str) -> Result<Secret, Failure> {
        match self.token(command)? {
            TokenSource::Given(token) => Ok(token),
            TokenSource::File(path) => read_secret("--token-file", &path),
        }
    }
}

impl NetworkArgs {
    /// Makes connections as the options say.
    pub(super) fn dialer(&self) -> Result<Dialer, Failure> {
        let dialer = Dialer::new(self.ca_file.as_deref(), CONNECT_TIMEOUT)
            .map_err(|error| Failure::usage(format!("{error}")))?;
        Ok(dialer.with_proxies(self.proxy.proxies()?))
    }
}

/// A secret in a file that an option names.
pub(super) fn read_secret(option: &str, path: &std::path::Path) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{option} {}: {error}", path.display())))?;
    let secret = Secret::new(&text);
    if secret.expose().is_empty() {
        return Err(Failure::usage(format!("{option} {}: it is empty", path.display())));
    }
    Ok(secret)
}

fn missing(what: &str, command: &str) -> String {
    format!(
        "{what} is needed. This would work:\n  TUNNEL_TOKEN=… tunnel {command} --relay https://relay.example.com\n\
         The relay's operator makes a token with: tunnel relay token --user NAME"
    )
}
