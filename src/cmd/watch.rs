//! Options for those who watch a relay: its metrics, its access log.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;

use super::relay::{address, listen};
use super::{Failure, Switch, tell};
use crate::relay::access::Log;
use crate::relay::{Relay, metrics};
use crate::telemetry;

/// How long the last lines of the access log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Watching")]
pub(super) struct WatchArgs {
    /// Show metrics here, for Prometheus, at /metrics; anybody who reaches this port may read them [default: nowhere]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    metrics_listen: Option<SocketAddr>,
    /// Tell of each request in one line of the log, when it is over
    #[arg(long, value_name = "WHETHER", value_enum, default_value = "on")]
    access_log: Switch,
}

impl WatchArgs {
    /// Whether metrics are to be shown.
    pub(super) fn shows_metrics(&self) -> bool {
        self.metrics_listen.is_some()
    }

    /// The access log, if there is to be one.
    pub(super) fn access_log(&self) -> Result<Option<Log>, Failure> {
        if self.access_log == Switch::Off {
            return Ok(None);
        }
        let log =
            Log::start(telemetry::format(), io::stderr()).context("cannot start the access log (--access-log off)")?;
        Ok(Some(log))
    }

    /// The port for metrics, if there is to be one.
    pub(super) async fn listen(&self) -> Result<Option<TcpListener>, Failure> {
        let Some(address) = self.metrics_listen else {
            return Ok(None);
        };
        let bound = listen(address, "--metrics-listen").await?;
        let address = bound.local_addr().context("cannot tell the address")?;
        tell(&format!("Its metrics are at http://{address}/metrics"));
        Ok(Some(bound))
    }
}

/// Shows the metrics for as long as the program runs.
pub(super) fn show(listener: Option<TcpListener>, relay: &Arc<Relay>) {
    if let Some(listener) = listener {
        tokio::spawn(metrics::serve(listener, Arc::clone(relay)));
    }
}

/// Writes what is left of the access log.
pub(super) fn finish(relay: &Relay) {
    if let Some(log) = &relay.config.access_log {
        log.flush(LAST_LINES);
    }
}
