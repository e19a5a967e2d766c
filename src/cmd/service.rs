//! A relay under a service manager: sockets that the manager holds, what it is told, and what SIGHUP reads again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;

use super::Failure;
use super::relay::listen;
use super::secret::SecretArgs;
use crate::platform::service::{Hangups, Passed, Word, tell, watchdog};
use crate::relay::{Relay, Sockets};
use crate::telemetry;

/// The name under which the port for plain HTTP is passed.
const HTTP: &str = "http";

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Log")]
pub(super) struct LevelArgs {
    /// The level that stands in this file counts (error, warn, info, debug or trace); read again at SIGHUP
    #[arg(long, value_name = "FILE")]
    log_level_file: Option<PathBuf>,
}

impl LevelArgs {
    /// Sets the level as the file says, if there is one.
    pub(super) fn apply(&self) -> Result<(), Failure> {
        let Some(path) = &self.log_level_file else {
            return Ok(());
        };
        let wrong =
            |what: &dyn std::fmt::Display| Failure::usage(format!("--log-level-file {}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        telemetry::set_level(text.trim()).map_err(|error| wrong(&error))
    }
}

/// The sockets: those that the manager holds, else our own.
pub(super) async fn sockets(
    passed: Vec<Passed>,
    main: SocketAddr,
    http: Option<SocketAddr>,
    is_tls: bool,
) -> Result<Sockets, Failure> {
    if passed.is_empty() {
        return Ok(Sockets {
            main: listen(main, "--listen").await?,
            http: listen_http(http).await?,
            kept: false,
        });
    }
    let (of_http, of_main): (Vec<_>, Vec<_>) = passed
        .into_iter()
        .partition(|socket| socket.name.as_deref() == Some(HTTP));
    let (Ok([main]), true) = (<[Passed; 1]>::try_from(of_main), of_http.len() <= 1) else {
        return Err(Failure::usage(
            "the service manager should pass one socket, and maybe another named http for plain HTTP beside TLS",
        ));
    };
    let http = match of_http.into_iter().next() {
        Some(_) if !is_tls => {
            return Err(Failure::usage(
                "the socket named http sends callers on to https: it needs --acme-domain, or --tls-cert and --tls-key",
            ));
        }
        Some(socket) => Some(adopt(socket)?),
        None => listen_http(http).await?,
    };
    Ok(Sockets {
        main: adopt(main)?,
        http,
        kept: true,
    })
}

fn adopt(socket: Passed) -> Result<TcpListener, Failure> {
    let adopted = TcpListener::from_std(socket.listener);
    Ok(adopted.context("cannot use the socket that the service manager passed")?)
}

async fn listen_http(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Failure> {
    match address {
        Some(address) => listen(address, "--http-listen").await.map(Some),
        None => Ok(None),
    }
}

/// Tells the manager how the relay is, and reads again what SIGHUP asks for; for as long as the process lives.
pub(super) async fn attend(relay: Arc<Relay>, mut hangups: Hangups, secret: SecretArgs, level: LevelArgs) {
    // Twice in the time after which it would be taken for dead.
    let pulse = watchdog().map(|time| time / 2);
    let mut stopping = false;
    say(Word::Ready);
    loop {
        tokio::select! {
            () = hangups.next() => {
                if !stopping {
                    say(Word::Reloading);
                }
                reload(&relay, &secret, &level).await;
                if !stopping {
                    say(Word::Ready);
                }
            }
            () = tokio::time::sleep(pulse.unwrap_or(Duration::MAX)), if pulse.is_some() => say(Word::Alive),
            () = relay.shutdown.leaving(), if !stopping => {
                stopping = true;
                say(Word::Stopping);
            }
        }
    }
}

fn say(word: Word) {
    if let Err(error) = tell(word) {
        tracing::warn!(?word, %error, "cannot tell the service manager");
    }
}

/// What cannot be read stays as it is.
async fn reload(relay: &Relay, secret: &SecretArgs, level: &LevelArgs) {
    let (secret, level) = (secret.clone(), level.clone());
    let read = tokio::task::spawn_blocking(move || (secret.reload(), level.apply())).await;
    let Ok((keys, level)) = read else {
        tracing::warn!("the settings could not be read again");
        return;
    };
    for (what, read) in [
        ("secrets", keys.map(|keys| relay.tokens.replace(keys))),
        ("log level", level),
    ] {
        match read {
            Ok(()) => tracing::info!(what, "read again"),
            Err(failure) => tracing::warn!(what, "{:#}; what was read before goes on", failure.error),
        }
    }
}
