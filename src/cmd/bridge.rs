//! `tunnel bridge`; `login` and `logout` are in `login`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::{HeaderMap, HeaderName, HeaderValue};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::access::{NetworkArgs, RelayArgs, no_token, read_secret};
use super::autostart::{self, AutostartArgs, Installed, Wish};
use super::login::{self, LoginCommand};
use super::{Exit, Failure, Switch};
use crate::bridge::awake::keep_awake;
use crate::bridge::choice::{self, Mode, Timing};
use crate::bridge::config::{Config, TokenSource};
use crate::bridge::credential::TokenError;
use crate::bridge::policy::{Policy, Rule};
use crate::bridge::status::{Phase, Status};
use crate::bridge::{self, Stopped};
use crate::shutdown::Shutdown;
use crate::token::{Claims, Secret};
use crate::transport::dial::BaseUrl;
use crate::transport::{LONGEST_BRIDGE_NAME, is_bridge_name, is_bridge_name_character};
use crate::{files, random};

const EXAMPLE: &str = "\
Examples:
  TUNNEL_TOKEN=… tunnel bridge --relay https://relay.example.com
  tunnel bridge login --relay https://relay.example.com && tunnel bridge

The token comes from --token-file, from the variable TUNNEL_TOKEN or from a login, never from an
argument: other users of this computer can read those.";

/// The status line is drawn anew so often.
const REDRAW: Duration = Duration::from_millis(500);

/// Connect this desktop's Ollama to a relay.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, args_conflicts_with_subcommands = true)]
pub struct Args {
    // Before all others, for it looks at all of them, and each takes its own away.
    #[command(flatten)]
    autostart: AutostartArgs,
    #[command(subcommand)]
    command: Option<LoginCommand>,
    #[command(flatten)]
    relay: RelayArgs,
    /// This desktop's name at the relay [default: the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Among several desktops, the highest priority gets the requests that name none
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// How to talk to the relay
    #[arg(long, value_enum, default_value = "auto")]
    transport: Transport,
    /// Where this desktop keeps its identity [default: the platform's folder for state]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Keep this desktop from falling asleep by itself while a request is answered
    #[arg(long, value_name = "WHETHER", value_enum, default_value = "on")]
    keep_awake: Switch,
    #[command(flatten)]
    upstream: UpstreamArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Local server")]
struct UpstreamArgs {
    /// The local Ollama, or another HTTP server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:11434")]
    upstream: String,
    /// A file of header lines (Name: value) that only the local server gets, such as its own key
    #[arg(long, value_name = "FILE")]
    upstream_header_file: Option<PathBuf>,
    /// Let callers pull, push, create, copy and delete models
    #[arg(long)]
    allow_manage: bool,
    /// Let callers use models that run on your account in the cloud
    #[arg(long)]
    allow_cloud: bool,
    /// Let callers do this too, as in 'POST /rerank'; * for any method or at the end; may be repeated
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Transport {
    /// WebSocket where it gets through, else HTTP polling
    Auto,
    /// WebSocket: low latency
    Ws,
    /// HTTP polling: works where only plain HTTP gets through
    Poll,
}

impl From<Transport> for Mode {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Auto => Self::Auto,
            Transport::Ws => Self::Only(choice::Transport::Ws),
            Transport::Poll => Self::Only(choice::Transport::Poll),
        }
    }
}

impl Args {
    fn name(&self) -> Result<String, Failure> {
        match &self.name {
            Some(name) if is_bridge_name(name) => Ok(name.clone()),
            Some(name) => Err(Failure::usage(format!(
                "--name '{}' cannot be used: 1 to {LONGEST_BRIDGE_NAME} of the characters A-Z a-z 0-9 . _ -",
                name.escape_debug()
            ))),
            None => {
                let host = gethostname::gethostname().to_string_lossy().into_owned();
                let fit = |c| if is_bridge_name_character(c) { c } else { '-' };
                let name: String = host.chars().map(fit).take(LONGEST_BRIDGE_NAME).collect();
                Ok(if name.is_empty() { "desktop".to_owned() } else { name })
            }
        }
    }

    fn state_folder(&self) -> Result<PathBuf, Failure> {
        match &self.state_dir {
            Some(folder) => Ok(folder.clone()),
            None => dirs::state_dir()
                .or_else(dirs::data_local_dir)
                .map(|state| state.join("tunnel"))
                .ok_or_else(|| Failure::usage("there is no home folder here: name one with --state-dir DIR")),
        }
    }

    fn client_id(&self) -> Result<String, Failure> {
        let path = self.state_folder()?.join("client-id");
        let read = files::read_or_create(&path, || random::name().map(String::into_bytes)).with_context(|| {
            format!(
                "cannot read or make {}; choose another folder with --state-dir",
                path.display()
            )
        })?;
        let id = String::from_utf8_lossy(&read).trim().to_owned();
        let fits = (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        if fits {
            Ok(id)
        } else {
            Err(Failure::usage(format!(
                "{} is damaged; delete it to get a new identity",
                path.display()
            )))
        }
    }

    fn policy(&self) -> Result<Policy, Failure> {
        let rules: Result<Vec<Rule>, _> = self.upstream.allow.iter().map(|rule| rule.parse()).collect();
        let rules = rules.map_err(|error| Failure::usage(format!("--allow: {error}")))?;
        let policy = Policy::new(self.upstream.allow_manage, rules).with_cloud(self.upstream.allow_cloud);
        if policy.is_everything() {
            tracing::warn!("every path of the local server is open to callers (--allow '* /*')");
        }
        Ok(policy)
    }
}

impl TryFrom<Args> for Config {
    type Error = Failure;

    fn try_from(args: Args) -> Result<Self, Failure> {
        let relay = args.relay.relay(&args.network, "bridge")?;
        let token = args.relay.token(&relay, "bridge")?;
        let upstream: BaseUrl = args
            .upstream
            .upstream
            .parse()
            .map_err(|error| Failure::usage(format!("--upstream: {error}")))?;
        let headers = match &args.upstream.upstream_header_file {
            Some(path) => read_headers(path)?,
            None => HeaderMap::new(),
        };
        Ok(Self {
            relay,
            token,
            name: args.name()?,
            priority: args.priority,
            ephemeral: false,
            client_id: args.client_id()?,
            upstream,
            upstream_headers: headers,
            policy: args.policy()?,
            dialer: args.network.dialer()?,
            transport: args.transport.into(),
            timing: Timing::default(),
            memory: Some(args.state_folder()?.join("networks")),
        })
    }
}

fn read_headers(path: &Path) -> Result<HeaderMap, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("--upstream-header-file {}: {error}", path.display())))?;
    let mut headers = HeaderMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        // The value may be a secret: only the line's number is told.
        let bad = || Failure::usage(format!("{}: line {} is not 'Name: value'", path.display(), number + 1));
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| bad())?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

/// Runs the command.
///
/// # Errors
/// [`Failure`] with its exit code.
pub fn main(args: Args, bars: &MultiProgress) -> Result<(), Failure> {
    if let Some(command) = &args.command {
        return login::main(command);
    }
    match args.autostart.wish() {
        None => run(args, bars),
        Some(Wish::Install) => install(args),
        Some(Wish::Uninstall) => autostart::uninstall(),
    }
}

/// Has the system run it, with settings that were looked at first.
fn install(mut args: Args) -> Result<(), Failure> {
    let place = autostart::token_file()?;
    let relay = args.relay.relay(&args.network, "bridge")?;
    let mut autostart = std::mem::take(&mut args.autostart);
    if !args.relay.is_given() {
        autostart.name_relay(&relay);
    }
    let put = |token: Secret| Installed::Token(place.clone(), (!is_renewed(&place, &token)).then_some(token));
    let from = match args.relay.source(&relay) {
        // It stays where it is: whoever uses it refreshes it there.
        Some(TokenSource::Login(_)) => Installed::Login,
        Some(TokenSource::Given(token)) => put(token),
        Some(TokenSource::File(path)) => put(read_secret("--token-file", &path)?),
        // One that was put there before, and renewed since, is as good. It is shown to no other relay.
        None if place.exists() && autostart::goes_to(&relay)? => Installed::Token(place, None),
        None => return Err(no_token("bridge")),
    };
    if let Installed::Token(place, _) = &from {
        args.relay.settle(&relay, place.clone());
    }
    Config::try_from(args)?;
    autostart.install(&from)
}

/// Whether what stands in the file came of renewing this very token.
fn is_renewed(place: &Path, token: &Secret) -> bool {
    let kept = std::fs::read_to_string(place).ok();
    let kept = kept.and_then(|text| Claims::peek(&Secret::new(&text)));
    kept.zip(Claims::peek(token))
        .is_some_and(|(kept, token)| kept.jti.is_some() && kept.jti == token.jti && kept.exp > token.exp)
}

fn run(args: Args, bars: &MultiProgress) -> Result<(), Failure> {
    let awake = args.keep_awake == Switch::On;
    let config = Config::try_from(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let status = Arc::new(Status::default());
        let shutdown = Shutdown::new();
        tokio::spawn(shutdown.clone().on_signals("stopping"));
        let relay = config.relay.to_string();
        let is_login = matches!(config.token, TokenSource::Login(_));
        let explained = |stopped| match stopped {
            Stopped::Refused(_) if is_login => {
                let words = anyhow::anyhow!("{stopped}\nSign in again with: tunnel bridge login --relay {relay}");
                Failure::new(Exit::Refused, words)
            }
            stopped => explain(stopped),
        };
        tokio::select! {
            ended = bridge::run(config, Arc::clone(&status), shutdown.clone()) => ended.map_err(explained),
            never = show(&status, &relay, bars) => match never {},
            never = keep_awake(&status), if awake => match never {},
        }
    })
}

/// What a bridge that ended by itself means for the person who started it.
pub(super) fn explain(stopped: Stopped) -> Failure {
    match stopped {
        Stopped::Refused(_) => Failure::new(
            Exit::Refused,
            anyhow::anyhow!("{stopped}\nThe operator makes one with: tunnel relay token --user NAME"),
        ),
        Stopped::NoToken(TokenError::Login(error)) => login::provider::failure(error),
        Stopped::NoToken(_) => Failure::new(Exit::Usage, stopped),
        Stopped::Replaced | Stopped::NoRandom(_) => Failure::new(Exit::Failed, stopped),
    }
}

/// Draws the status line while there is a terminal; never ends.
async fn show(status: &Status, relay: &str, bars: &MultiProgress) -> std::convert::Infallible {
    let bar = bars.add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
        bar.set_style(style);
    }
    let mut before = status.figures().bytes;
    loop {
        let figures = status.figures();
        let rate = (figures.bytes - before) as f64 / REDRAW.as_secs_f64();
        before = figures.bytes;
        let (head, tail) = match &*status.phase().borrow() {
            Phase::Connecting => (format!("connecting to {relay}"), String::new()),
            Phase::Waiting { why } => (format!("not connected: {why}"), String::new()),
            Phase::Connected { name, transport, why } => {
                let round_trip = figures
                    .round_trip
                    .map_or_else(String::new, |time| match time.as_millis() {
                        0 => " · <1 ms".to_owned(),
                        ms => format!(" · {ms} ms"),
                    });
                let away = if status.is_upstream_away() {
                    " · Ollama is not running"
                } else {
                    ""
                };
                let why = why.as_ref().map_or_else(String::new, |why| format!(" · {why}"));
                (format!("{name} at {relay} ({transport}{round_trip}){away}"), why)
            }
        };
        let rate = bytesize::ByteSize::b(rate as u64);
        bar.set_message(format!(
            "{head} · {} in flight · {} done · {rate}/s{tail}",
            figures.in_flight, figures.done
        ));
        bar.tick();
        tokio::time::sleep(REDRAW).await;
    }
}
