//! How a command gets to a relay: its address, the token, and what lies between. The same options for bridge, probe and bench.

use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use super::login::{kept, provider};
use super::proxy::ProxyArgs;
use crate::bridge::config::TokenSource;
use crate::bridge::login;
use crate::shutdown::Shutdown;
use crate::token::Secret;
use crate::transport::dial::{Dialer, RelayUrl};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct RelayArgs {
    /// The relay's address, as in https://relay.example.com [default for bridge and probe: the only one with a
    /// login, where no token is given]
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

    /// The relay's address; that of the only login, where neither one nor a token is given: a token is shown to no relay that it was
    /// not meant for. `command` is what would be typed to do this with another.
    pub(super) fn relay(&self, network: &NetworkArgs, command: &str) -> Result<RelayUrl, Failure> {
        match &self.relay {
            Some(text) => network.relay(text),
            None => {
                let of_login = if self.has_token() { None } else { kept::only()? };
                network.check(of_login.ok_or_else(|| Failure::usage(missing("the relay's address", command)))?)
            }
        }
    }

    /// Where the token for a relay comes from.
    pub(super) fn token(&self, relay: &RelayUrl, command: &str) -> Result<TokenSource, Failure> {
        self.source(relay).ok_or_else(|| no_token(command))
    }

    /// The same, if it comes from anywhere.
    pub(super) fn source(&self, relay: &RelayUrl) -> Option<TokenSource> {
        self.given_token().or_else(|| kept::source(relay))
    }

    /// The same, if it was said for this once.
    fn given_token(&self) -> Option<TokenSource> {
        if let Some(path) = &self.token_file {
            return Some(TokenSource::File(path.clone()));
        }
        let token = std::env::var("TUNNEL_TOKEN").ok()?;
        (!token.trim().is_empty()).then(|| TokenSource::Given(Secret::new(&token)))
    }

    /// Whether it was said where the token comes from, other than by a login.
    pub(super) fn has_token(&self) -> bool {
        self.given_token().is_some()
    }

    /// From now on it is this relay, and its token is in this file.
    pub(super) fn settle(&mut self, relay: &RelayUrl, token_file: PathBuf) {
        self.relay = Some(relay.to_string());
        self.token_file = Some(token_file);
    }

    /// The token as it is now; that of a sign-in is refreshed where it is time for it. Not to be left halfway: it ends by itself soon
    /// after the shutdown.
    pub(super) async fn read_token(
        &self,
        relay: &RelayUrl,
        dialer: &Dialer,
        command: &str,
        shutdown: &Shutdown,
    ) -> Result<Secret, Failure> {
        match self.token(relay, command)? {
            TokenSource::Given(token) => Ok(token),
            TokenSource::File(path) if self.token_file.is_some() => read_secret("--token-file", &path),
            TokenSource::File(path) => read_secret("the token of the login", &path),
            TokenSource::Login(path) => {
                let login = login::usable(path, dialer.clone(), shutdown.draining()).await;
                Ok(login.map_err(provider::failure)?.token())
            }
        }
    }
}

impl NetworkArgs {
    /// The relay's address, if it may be used as it is.
    pub(super) fn relay(&self, text: &str) -> Result<RelayUrl, Failure> {
        let relay = text.parse();
        self.check(relay.map_err(|error| Failure::usage(format!("--relay: {error}")))?)
    }

    fn check(&self, relay: RelayUrl) -> Result<RelayUrl, Failure> {
        if !relay.origin().is_tls() && !relay.origin().is_loopback() && !self.insecure_http {
            return Err(Failure::usage(format!(
                "{relay} is not encrypted: your token and conversations could be read on the way.\n\
                 Use https://, or --insecure-http if the network between is yours."
            )));
        }
        Ok(relay)
    }

    /// Makes connections as the options say.
    pub(super) fn dialer(&self) -> Result<Dialer, Failure> {
        let dialer = Dialer::new(self.ca_file.as_deref(), CONNECT_TIMEOUT)
            .map_err(|error| Failure::usage(format!("{error}")))?;
        Ok(dialer.with_proxies(self.proxy.proxies()?))
    }
}

/// A secret in a file; `what` is the option that names it, or what it is.
pub(super) fn read_secret(what: &str, path: &std::path::Path) -> Result<Secret, Failure> {
    let text =
        std::fs::read_to_string(path).map_err(|error| Failure::usage(format!("{what} {}: {error}", path.display())))?;
    let secret = Secret::new(&text);
    if secret.expose().is_empty() {
        return Err(Failure::usage(format!("{what} {}: it is empty", path.display())));
    }
    Ok(secret)
}

/// There is no token; `command` is what would be typed with one.
pub(super) fn no_token(command: &str) -> Failure {
    Failure::usage(missing("a token", command))
}

fn missing(what: &str, command: &str) -> String {
    format!(
        "{what} is needed. This would work:\n  TUNNEL_TOKEN=… tunnel {command} --relay https://relay.example.com\n\
         The relay's operator makes a token with: tunnel relay token --user NAME\n\
         Or sign in, or use a code from tunnel relay pair --user NAME:\n  tunnel bridge login --relay https://relay.example.com"
    )
}
