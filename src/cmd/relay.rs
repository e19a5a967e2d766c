//! `tunnel relay`: the server; what else it can be asked for is in `accounts`, `keys` and `backup`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use tokio::net::TcpListener;
use tokio::runtime;

use super::accounts::{self, ListArgs, TokenArgs, UserCommand};
use super::backup;
use super::database::DatabaseArgs;
use super::edge::EdgeArgs;
use super::keys::{self, KeyCommand, PairArgs};
use super::oidc::OidcArgs;
use super::secret::SecretArgs;
use super::service::{self, LevelArgs};
use super::watch::{self, WatchArgs};
use super::{Failure, demo, duration, size, tell};
use crate::platform::raise_open_files;
use crate::platform::service::{Hangups, passed_sockets};
use crate::relay::config::{Config, Limits, Transports};
use crate::relay::keeper::Keeper;
use crate::relay::rate::Rate;
use crate::relay::{self, Relay, Sockets};
use crate::shutdown::Shutdown;

const EXAMPLE: &str = "\
Examples:
  tunnel relay --listen 127.0.0.1:8080
  tunnel relay --listen 0.0.0.0:443 --acme-domain relay.example.com
  tunnel relay token --user ann";

/// How long callers are kept waiting for the database at the start, before they are put off.
const DATABASE_PATIENCE: Duration = Duration::from_secs(3);
/// What the first signal does.
pub(super) const STOPPING: &str = "stopping; finishing what is in flight (once more to end at once)";

/// Run the public server that callers and bridges meet at.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<RelayCommand>,
    /// Where to listen for callers and bridges
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,
    /// Web pages of this origin may call and connect, others may not; may be repeated [default: any may call]
    #[arg(long = "cors-origin", value_name = "ORIGIN", value_delimiter = ',')]
    cors_origins: Vec<String>,
    /// How long a request waits for a bridge that was connected a moment ago
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    wait_for_bridge: Duration,
    /// How long new requests are still taken after SIGTERM, while /readyz already says no
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    lame_duck: Duration,
    /// How long requests in flight may take to finish when the relay stops
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    grace: Duration,
    /// Threads that carry requests; one is best until it is busy all the time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    worker_threads: u16,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    /// How long it is kept what was used, and by whom; 0s keeps nothing of it
    #[arg(long, value_name = "TIME", default_value = "400d", value_parser = duration, help_heading = "Data")]
    usage_keep: Duration,
    #[command(flatten)]
    edge: EdgeArgs,
    #[command(flatten)]
    oidc: OidcArgs,
    #[command(flatten)]
    transports: TransportArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    level: LevelArgs,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    demo: demo::DemoArgs,
}

#[derive(Debug, Subcommand)]
enum RelayCommand {
    /// Print a signed token for a user, and nothing else; list tokens, take one back
    Token(TokenArgs),
    /// Make keys for callers, list them, take them back
    #[command(subcommand)]
    Key(KeyCommand),
    /// Print a code that lets a desktop's bridge in: good once, for ten minutes
    Pair(PairArgs),
    /// List users, shut them out, let them in again, forget them
    #[command(subcommand)]
    User(UserCommand),
    /// List the bridges that are, or were, connected
    Bridges(ListArgs),
    /// Disconnect a bridge once; it may come back
    Kick {
        /// Its name, USER/NAME, or its id
        #[arg(allow_hyphen_values = true)]
        bridge: String,
    },
    /// Write all that makes this relay what it is to a file: secrets, certificates, the database; while it runs
    Backup {
        /// The file, which must not exist
        file: PathBuf,
    },
    /// Bring a backup back, into a data folder and a database with nothing in them
    Restore {
        /// The file
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Transports")]
struct TransportArgs {
    /// What bridges are offered: ws (WebSocket), poll (HTTP polling)
    #[arg(long, value_name = "LIST", default_value = "ws,poll", value_delimiter = ',')]
    transports: Vec<Offered>,
    /// The share of bridges that should prefer WebSocket; always the same ones
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    prefer_ws: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Offered {
    Ws,
    Poll,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Connections of callers and bridges at once
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = positive)]
    max_connections: usize,
    /// The head of a request
    #[arg(long, value_name = "SIZE", default_value = "32KiB", value_parser = size)]
    max_header_size: u64,
    /// From the beginning of a connection to the end of its first request head
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    header_timeout: Duration,
    /// A connection on which no request is under way
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = duration)]
    keep_alive_timeout: Duration,
    /// Requests of one user at once
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    max_in_flight_per_user: usize,
    /// Requests of one bridge at once
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    max_in_flight_per_bridge: usize,
    /// Bridges of one user at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    max_bridges_per_user: usize,
    /// The body of a request; it is streamed, never held [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_body: Option<u64>,
    /// Requests of one token in a time, as in 20/s, 600/m or 1000/h; more are answered with 429 [default: no limit]
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// Requests that a token may make at once after a pause [default: those of two seconds, one at least]
    #[arg(long, value_name = "N", requires = "rate", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    burst: Option<u32>,
    /// A request or answer in which nothing moves
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
    idle_timeout: Duration,
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an address and a port, as in 127.0.0.1:8080 or 0.0.0.0:8080".to_owned())
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| (1..=1_000_000).contains(number))
        .ok_or_else(|| "write a whole number from 1 to 1000000".to_owned())
}

impl LimitArgs {
    fn rate(&self) -> Option<Rate> {
        let rate = self.rate?;
        Some(Rate {
            burst: self.burst.unwrap_or(rate.burst),
            ..rate
        })
    }
}

impl Args {
    fn config(&self) -> Result<Config, Failure> {
        for origin in &self.cors_origins {
            if !is_origin(origin) {
                return Err(Failure::usage(format!(
                    "--cors-origin {origin} is no origin: write it as https://app.example.com, without a path"
                )));
            }
        }
        let limits = &self.limits;
        let head_size = usize::try_from(limits.max_header_size).unwrap_or(usize::MAX);
        if !(8 * 1024..=1024 * 1024).contains(&head_size) {
            return Err(Failure::usage("--max-header-size must be between 8KiB and 1MiB"));
        }
        let mut config = Config {
            cors_origins: self.cors_origins.clone(),
            wait_for_bridge: self.wait_for_bridge,
            lame_duck: self.lame_duck,
            grace: self.grace,
            transports: Transports {
                ws: self.transports.transports.contains(&Offered::Ws),
                poll: self.transports.transports.contains(&Offered::Poll),
                prefer_ws: self.transports.prefer_ws,
            },
            limits: Limits {
                connections: limits.max_connections,
                head_size,
                first_head: limits.header_timeout,
                keep_alive: limits.keep_alive_timeout,
                in_flight_per_user: limits.max_in_flight_per_user,
                in_flight_per_bridge: limits.max_in_flight_per_bridge,
                bridges_per_user: limits.max_bridges_per_user,
                body: limits.max_body,
                rate: limits.rate(),
                idle: limits.idle_timeout,
            },
            oidc: self.oidc.settings()?,
            ..Config::default()
        };
        self.edge.apply(&mut config, || self.secret.folder())?;
        Ok(config)
    }
}

fn is_origin(text: &str) -> bool {
    match text.parse::<http::Uri>() {
        Ok(uri) => uri.scheme().is_some() && uri.authority().is_some() && !text.ends_with('/') && uri.path() == "/",
        Err(_) => false,
    }
}

/// Runs the command.
///
/// # Errors
/// [`Failure`] with its exit code.
pub fn main(args: Args) -> Result<(), Failure> {
    match &args.command {
        Some(RelayCommand::Token(token)) => accounts::token(token, &args.secret, &args.database),
        Some(RelayCommand::Key(command)) => keys::key(command, &args.secret, &args.database),
        Some(RelayCommand::Pair(pair)) => keys::pair(pair, &args.secret, &args.database),
        Some(RelayCommand::User(command)) => accounts::user(command, &args.secret, &args.database),
        Some(RelayCommand::Bridges(list)) => accounts::bridges(list, &args.secret, &args.database),
        Some(RelayCommand::Kick { bridge }) => accounts::kick(bridge, &args.secret, &args.database),
        Some(RelayCommand::Backup { file }) => backup::backup(file, &args.secret, &args.database),
        Some(RelayCommand::Restore { file }) => backup::restore(file, &args.secret, &args.database),
        None => serve(args),
    }
}

fn serve(args: Args) -> Result<(), Failure> {
    let mut config = args.config()?;
    args.level.apply()?;
    raise_open_files();
    let passed =
        passed_sockets().map_err(|error| Failure::usage(format!("what the service manager passed: {error}")))?;
    let runtime = if args.worker_threads == 1 {
        runtime::Builder::new_current_thread().enable_all().build()
    } else {
        runtime::Builder::new_multi_thread()
            .worker_threads(args.worker_threads.into())
            .enable_all()
            .build()
    }
    .context("cannot start the runtime")?;
    runtime.block_on(async {
        if args.demo.is_wanted() {
            if args.edge.is_tls() {
                return Err(Failure::usage(
                    "--demo is without TLS: leave out --tls-cert and --acme-domain",
                ));
            }
            if args.watch.shows_metrics() {
                return Err(Failure::usage("--demo shows no metrics: leave out --metrics-listen"));
            }
            return demo::run(args.demo, args.listen, config).await;
        }
        let shutdown = Shutdown::new();
        tokio::spawn(shutdown.clone().on_signals_leave(STOPPING));
        // It listens for signals before anybody is told that the relay is there.
        tokio::task::yield_now().await;
        let hangups = Hangups::listen();
        let (tokens, made) = args.secret.tokens()?;
        let edge = &args.edge;
        let sockets = service::sockets(passed, args.listen, edge.http_listen(), edge.is_tls()).await?;
        config.access_log = args.watch.access_log()?;
        let database = args.database.config(&args.secret)?;
        config.keeper = Some(Keeper::begin(database, args.usage_keep, &tokens, DATABASE_PATIENCE).await?);
        welcome(&args, &sockets, made.as_deref())?;
        let metrics = args.watch.listen().await?;
        let relay = Relay::new(config, tokens, shutdown);
        watch::show(metrics, &relay);
        tokio::spawn(service::attend(Arc::clone(&relay), hangups, args.secret, args.level));
        relay::serve(sockets, Arc::clone(&relay)).await;
        watch::finish(&relay);
        Ok(())
    })
}

/// Binds the address that the option says.
pub(super) async fn listen(address: SocketAddr, option: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; is another program there? Choose with {option} ADDR"))
        .map_err(Failure::from)
}

/// Says once what listening without encryption means.
pub(super) fn warn_if_public(address: SocketAddr) {
    if !address.ip().is_loopback() {
        tell(
            "This address can be reached from other machines, and the relay itself does not encrypt:\n\
             give it a certificate (--acme-domain, or --tls-cert), or put a proxy that does TLS in front of it;\n\
             or else tokens and conversations can be read on the way.",
        );
    }
}

fn welcome(args: &Args, sockets: &Sockets, made: Option<&Path>) -> Result<(), Failure> {
    let address = sockets.main.local_addr().context("cannot tell the address")?;
    let edge = &args.edge;
    if let Some(path) = made {
        tell(&format!("Made a new secret for tokens: {}", path.display()));
    }
    let scheme = if edge.is_tls() { "https" } else { "http" };
    tell(&format!("The relay listens on {scheme}://{address}"));
    if let Some(http) = &sockets.http {
        let http = http.local_addr().context("cannot tell the address")?;
        tell(&format!("It sends callers of http://{http} on to https"));
    }
    let token = format!("tunnel relay token --user NAME{}", args.secret.repeated());
    let token = args.database.repeated(&token);
    tell(&format!("Next, a token:        {token}"));
    let url = edge.url(address);
    let url = url.as_deref().unwrap_or("URL-OF-THIS-RELAY");
    tell(&format!(
        "Then, on the desktop: TUNNEL_TOKEN=… tunnel bridge --relay {url}"
    ));
    if !edge.is_tls() && !edge.is_behind_proxy() {
        warn_if_public(address);
    }
    tracing::info!(%address, scheme, version = env!("CARGO_PKG_VERSION"), "relay started");
    Ok(())
}
