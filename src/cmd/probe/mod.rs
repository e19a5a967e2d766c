//! `tunnel probe`: checks a deployment end to end through an ephemeral bridge of its own.
//!
//! Reading order: `report` (what a check yields), `site` (what is looked at), then the groups in their order: `reach`, `routes`,
//! `websocket`, `polling`; `through` (a bridge on each transport) with `exchange`, `streaming`, `slowness`, `cancel`; `desktop`,
//! `browser`. `remedy` knows what to change, `table` and `progress` show it.

mod browser;
mod cancel;
mod desktop;
mod exchange;
mod polling;
mod progress;
mod reach;
mod remedy;
mod report;
mod routes;
mod site;
mod slowness;
mod streaming;
mod table;
mod through;
mod watch;
mod websocket;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use futures_util::future::{join, join_all};
use http::{HeaderMap, HeaderValue, Method};
use indicatif::MultiProgress;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use self::progress::Progress;
use self::report::{Board, Group, Outcome, Report, Summary, Verdict, figure};
use self::site::Site;
use self::through::Through;
use self::watch::Watched;
use super::access::{NetworkArgs, RelayArgs, read_secret};
use super::rig::bridge::said;
use super::rig::caller::Caller;
use super::rig::upstream::Upstream;
use super::{Exit, Failure, duration, print};
use crate::bridge::choice::Transport;
use crate::relay::auth::tokens::now;
use crate::shutdown::Shutdown;
use crate::token::{Claims, Secret};
use crate::transport::dial::BaseUrl;
use crate::transport::empty;

const EXAMPLE: &str = "\
Examples:
  TUNNEL_TOKEN=… tunnel probe --relay https://relay.example.com
  TUNNEL_TOKEN=… tunnel probe --relay https://relay.example.com --long --json > report.json
  tunnel probe --health http://127.0.0.1:8080

The probe brings its own bridge with a small model behind it: it needs no Ollama, takes
nobody's requests and leaves nothing behind. The token comes from --token-file, from the variable
TUNNEL_TOKEN or from a login.";

/// How long a word of the model behind the probe's bridge takes.
const PACE: Duration = Duration::from_millis(5);
/// The shortest time a check can have.
const SHORTEST_LIMIT: Duration = Duration::from_secs(10);
/// Where a relay listens unless told otherwise.
const NEAR: &str = "http://127.0.0.1:8080";

/// Check a deployment end to end.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    #[command(flatten)]
    relay: RelayArgs,
    /// A token for requests, where the other one is for bridges only
    #[arg(long, value_name = "FILE")]
    api_token_file: Option<PathBuf>,
    /// A token that has expired, to see that it is refused
    #[arg(long, value_name = "FILE")]
    expired_token_file: Option<PathBuf>,
    /// Only these checks, and what they need; may be repeated
    #[arg(long, value_name = "GROUP", value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Look for the longest silence that gets through; takes more than two minutes
    #[arg(long)]
    long: bool,
    /// The desktop to look at [default: the one that gets the requests]
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// Have that desktop's model say a sentence
    #[arg(long, value_name = "MODEL")]
    generate: Option<String>,
    /// A web page's origin that is to be allowed to call
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    origin: Option<HeaderValue>,
    /// How long a check may take
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = limit)]
    timeout: Duration,
    /// Check again after this time, for ever, and print only what changed
    #[arg(long, value_name = "TIME", value_parser = duration)]
    watch: Option<Duration>,
    /// Print every figure as JSON
    #[arg(long)]
    json: bool,
    /// Only ask whether this relay is alive; nothing is printed when it is
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = NEAR)]
    health: Option<String>,
    #[command(flatten)]
    network: NetworkArgs,
}

/// Some checks wait for what takes seconds by its nature.
fn limit(text: &str) -> Result<Duration, String> {
    let limit = duration(text)?;
    if limit < SHORTEST_LIMIT {
        return Err(format!("no check can do with less than {} s", SHORTEST_LIMIT.as_secs()));
    }
    Ok(limit)
}

fn origin(text: &str) -> Result<HeaderValue, String> {
    let bare = text.trim_end_matches('/');
    let plain = bare
        .split_once("://")
        .is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
    HeaderValue::from_str(bare)
        .ok()
        .filter(|_| plain)
        .ok_or_else(|| "write it as browsers do, as in https://app.example.com".to_owned())
}

/// Runs the command.
///
/// # Errors
/// [`Failure`] with its exit code.
pub fn main(args: &Args, bars: &MultiProgress) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        tokio::spawn(shutdown.clone().on_signals("stopping"));
        match &args.health {
            Some(url) => tokio::select! {
                checked = health(args, url) => checked,
                () = shutdown.draining() => Err(anyhow::anyhow!("stopped before there was an answer").into()),
            },
            None => probe(args, bars, &shutdown).await,
        }
    })
}

/// The one quick check for containers.
async fn health(args: &Args, url: &str) -> Result<(), Failure> {
    let relay: BaseUrl = url
        .parse()
        .map_err(|error| Failure::usage(format!("--health: {error}")))?;
    let dialer = args.network.dialer()?;
    // The proxies of a network do not lead to this machine.
    let dialer = if relay.origin().is_loopback() {
        dialer.direct()
    } else {
        dialer
    };
    let caller = Caller::new(&dialer, &relay);
    let asked = caller.fetch(Method::GET, "/healthz", HeaderMap::new(), empty(), site::SMALL);
    let failed = match tokio::time::timeout(args.timeout, asked).await {
        Ok(Ok(answer)) if answer.status.is_success() => return Ok(()),
        Ok(Ok(answer)) => format!("{relay} answered {}", site::told(answer.status)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("{relay} gave no answer within {} s", args.timeout.as_secs()),
    };
    Err(anyhow::anyhow!("{failed}").into())
}

async fn probe(args: &Args, bars: &MultiProgress, shutdown: &Shutdown) -> Result<(), Failure> {
    let mut watched = Watched::default();
    loop {
        let (report, refused) = once(args, bars, shutdown).await?;
        let Some(pause) = args.watch else {
            print(&shown(args, &report)?);
            return ended(&report, refused);
        };
        if let Some(news) = watched.news(&report) {
            print(&news.shown(args)?);
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.draining() => return ended(&report, refused),
        }
    }
}

/// Does everything once; whether the relay refused a token.
async fn once(args: &Args, bars: &MultiProgress, shutdown: &Shutdown) -> Result<(Report, bool), Failure> {
    let progress = Progress::new(bars);
    let site = site(args, &progress, shutdown).await?;
    let began = Instant::now();
    let looked = tokio::select! {
        looked = look(args, &site) => Some(looked),
        never = site.note_stalls() => match never {},
        () = shutdown.draining() => None,
    };
    progress.clear();
    said(&site.goodbyes).await;
    let Some(looked) = looked else {
        return Err(anyhow::anyhow!("stopped before it was done").into());
    };
    let refused = looked?;
    let findings = site.board.findings();
    let report = Report {
        relay: site.relay.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        summary: Summary::of(&findings),
        findings,
        took_ms: figure(began.elapsed()),
    };
    Ok((report, refused))
}

async fn site(args: &Args, progress: &Progress, shutdown: &Shutdown) -> Result<Site, Failure> {
    let relay = args.relay.relay(&args.network, "probe")?;
    let dialer = args.network.dialer()?;
    let token = args.relay.read_token(&relay, &dialer, "probe", shutdown).await?;
    let secret = |option, path: &Option<PathBuf>| path.as_ref().map(|path| read_secret(option, path)).transpose();
    let api_token = secret("--api-token-file", &args.api_token_file)?;
    if let Some(api) = &api_token {
        same_user(&token, api)?;
    }
    let expired_token = secret("--expired-token-file", &args.expired_token_file)?;
    if expired_token.as_ref().is_some_and(|token| !has_ended(token)) {
        return Err(Failure::usage("--expired-token-file: this token has not expired yet"));
    }
    Ok(Site {
        stranger: Caller::new(&dialer, &relay),
        relay,
        dialer,
        token,
        api_token,
        expired_token,
        board: Board::new(args.timeout, &args.only, progress.clone()),
        fronts: remedy::Fronts::default(),
        goodbyes: TaskTracker::new(),
        trip: OnceLock::new(),
        stall_us: AtomicU64::new(0),
    })
}

/// Whether a token has ended; one that does not say so is given the benefit of the doubt.
fn has_ended(token: &Secret) -> bool {
    let end = Claims::peek(token).and_then(|claims| claims.exp);
    end.is_none_or(|end| end <= now())
}

/// A caller reaches the bridges of the same user only.
fn same_user(token: &Secret, api: &Secret) -> Result<(), Failure> {
    match (Claims::peek(token), Claims::peek(api)) {
        (Some(one), Some(other)) if one.sub != other.sub => Err(Failure::usage(format!(
            "the two tokens are of two users, {} and {}: a caller reaches the bridges of the same user only",
            one.sub, other.sub
        ))),
        _ => Ok(()),
    }
}

/// Does all checks; whether the relay refused a token.
async fn look(args: &Args, site: &Site) -> Result<bool, Failure> {
    if !reach::run(site).await {
        for group in Group::value_variants().iter().filter(|group| **group != Group::Reach) {
            let check = site.board.begin(*group, "all", None);
            check.finish(Verdict::skipped("the relay cannot be reached"));
        }
        return Ok(false);
    }
    let upstream = Upstream::start(PACE).await.context("cannot listen on loopback")?;
    let access = routes::run(site).await;
    let wants = |group| site.board.wants(group);
    let bridges = [Group::Exchange, Group::Streaming, Group::Slowness, Group::Cancel];
    let bridges = bridges.into_iter().any(wants);
    let desktop = desktop::run(site, &access.api, args.bridge.as_deref(), args.generate.as_deref());
    let (ws, poll, _, _) = tokio::join!(
        wanted(bridges || wants(Group::Websocket), websocket::run(site, &access.bridge)),
        wanted(bridges || wants(Group::Polling), polling::run(site, &access)),
        wanted(wants(Group::Browser), browser::run(site, args.origin.as_ref())),
        wanted(wants(Group::Desktop), desktop),
    );
    if let (true, Some(ws), Some(poll)) = (bridges, ws, poll) {
        let ways = [(Transport::Ws, ws), (Transport::Poll, poll)]
            .map(|(transport, gets_through)| open(site, &upstream, transport, gets_through.and(access.api.clone())));
        let ways: Vec<Through> = join_all(ways).await.into_iter().flatten().collect();
        through(args, site, &upstream, &ways).await;
    }
    Ok(access.refused)
}

/// Does only what is wanted.
async fn wanted<T>(wanted: bool, check: impl Future<Output = T>) -> Option<T> {
    if wanted { Some(check.await) } else { None }
}

/// Opens the way over one transport; none where it is known that it does not get through, and then the reason is noted.
async fn open(site: &Site, upstream: &Upstream, transport: Transport, possible: Result<(), String>) -> Option<Through> {
    let opened = match possible {
        Ok(()) => Through::open(site, upstream, transport).await.map_err(|why| {
            Verdict::fail(
                why,
                "look into the relay's log for this bridge, and into that of what stands before it",
            )
        }),
        Err(why) => Err(Verdict::skipped(why)),
    };
    match opened {
        Ok(way) => Some(way),
        Err(verdict) => {
            site.board
                .begin(Group::Exchange, "bridge", Some(transport))
                .finish(verdict);
            for group in [Group::Streaming, Group::Slowness, Group::Cancel] {
                let check = site.board.begin(group, "all", Some(transport));
                check.finish(Verdict::skipped("there is no bridge to ask through"));
            }
            None
        }
    }
}

/// What waits runs side by side; what needs the whole way for itself comes after it, one transport at a time.
async fn through(args: &Args, site: &Site, upstream: &Upstream, ways: &[Through]) {
    let waits = ways.iter().map(|way| async move {
        let streams = async {
            if site.board.wants(Group::Streaming) {
                streaming::run(site, way).await;
            }
        };
        let cancels = async {
            if site.board.wants(Group::Cancel) {
                cancel::run(site, way, upstream).await;
            }
        };
        let silences = async {
            if site.board.wants(Group::Slowness) {
                slowness::run(site, way, upstream, args.long).await;
            }
        };
        join(join(streams, cancels), silences).await;
    });
    join_all(waits).await;
    for way in ways {
        if site.board.wants(Group::Exchange) {
            exchange::run(site, way).await;
        }
    }
}

fn shown(args: &Args, report: &Report) -> Result<String, Failure> {
    if args.json {
        return Ok(serde_json::to_string_pretty(report).context("cannot write the report")?);
    }
    Ok(table::whole(report, console::colors_enabled()))
}

/// The exit code.
fn ended(report: &Report, refused: bool) -> Result<(), Failure> {
    if refused {
        return Err(Failure::new(
            Exit::Refused,
            anyhow::anyhow!("the relay refused the token"),
        ));
    }
    let failed: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.outcome == Outcome::Fail)
        .collect();
    match failed.len() {
        0 => Ok(()),
        1 => Err(anyhow::anyhow!("one check failed").into()),
        many => Err(anyhow::anyhow!("{many} checks failed").into()),
    }
}
