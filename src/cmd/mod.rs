//! The command line: arguments to settings, settings to a running relay or bridge, results to the terminal and the exit code.

mod access;
mod accounts;
mod autostart;
mod backup;
pub mod bench;
pub mod bridge;
mod database;
pub mod demo;
mod edge;
mod keys;
mod login;
mod oidc;
pub mod probe;
mod proxy;
mod qr;
pub mod relay;
mod rig;
mod secret;
mod secret_url;
mod service;
mod shares;
mod watch;

use std::process::ExitCode;

use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use indicatif::MultiProgress;

use crate::telemetry::{self, LogFormat};

const AFTER_HELP: &str = "\
Try it, with nothing set up:
  tunnel relay --demo

Options can also be given by environment: TUNNEL_ and the long name in capitals (--data-dir is TUNNEL_DATA_DIR); all but
--verbose, --install, --uninstall, and the --rate of a key.
Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 refused by the relay.";

/// Reach the Ollama on your own desktop from anywhere, through a relay you host yourself.
#[derive(Debug, Parser)]
#[command(name = "tunnel", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run the public server that callers and bridges meet at, or keep its accounts, tokens and keys
    Relay(Box<relay::Args>),
    /// Connect this desktop's Ollama to a relay
    Bridge(Box<bridge::Args>),
    /// Check a deployment end to end
    Probe(Box<probe::Args>),
    /// Compare the transports: latency, tokens, throughput, beside the upstream asked directly
    Bench(Box<bench::Args>),
}

impl Subcommands {
    /// What is said beside its result.
    fn usual_verbosity(&self) -> i8 {
        match self {
            Self::Relay(_) | Self::Bridge(_) => 0,
            // What becomes of their bridges is told by their results.
            Self::Probe(_) | Self::Bench(_) => -2,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Log")]
struct LogArgs {
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value = "pretty")]
    log_format: LogFormat,
    /// Tell more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Tell warnings only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

/// How a command ended; the same table for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 1: it was tried and did not work.
    Failed = 1,
    /// 2: it cannot be tried like this.
    Usage = 2,
    /// 3: the relay said no.
    Refused = 3,
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
        }
    }

    /// Wrong usage or settings, in these words.
    pub fn usage(words: impl std::fmt::Display) -> Self {
        Self::new(Exit::Usage, anyhow::anyhow!("{words}"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A broken pipe is nothing to tell.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(Exit::Usage as u8),
            };
        }
    };
    let status = MultiProgress::new();
    let verbosity = if cli.log.quiet {
        cli.command.usual_verbosity() - 1
    } else {
        cli.command.usual_verbosity() + cli.log.verbose.min(4).cast_signed()
    };
    telemetry::start(cli.log.log_format, verbosity, &status);
    let outcome = match cli.command {
        Subcommands::Relay(args) => relay::main(*args),
        Subcommands::Bridge(args) => bridge::main(*args, &status),
        Subcommands::Probe(args) => probe::main(&args, &status),
        Subcommands::Bench(args) => bench::main(&args, &status),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if telemetry::is_for_people() {
                tell(&format!("error: {:#}", failure.error));
            } else {
                tracing::error!("{:#}", failure.error);
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn parse() -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches()?;
    Cli::from_arg_matches(&matches)
}

/// The command line: all commands, their options, and each option's variable.
pub fn command() -> Command {
    with_environment(Cli::command())
}

/// What is done once has no variable: one that stays set would do it again. Nor has the rate of a key: `TUNNEL_RATE` is that of a
/// relay.
const WITHOUT_VARIABLE: &[&str] = &["install", "uninstall", "key_rate"];

/// Gives every option its variable: `TUNNEL_` and its long name.
fn with_environment(command: Command) -> Command {
    command.mut_args(with_variable).mut_subcommands(with_environment)
}

fn with_variable(arg: Arg) -> Arg {
    match arg.get_long() {
        Some(long) if has_variable(&arg) => {
            let variable = format!("TUNNEL_{}", long.replace('-', "_").to_uppercase());
            let arg = if matches!(arg.get_action(), ArgAction::SetTrue) {
                // As people write it: 1, true, yes, on.
                arg.value_parser(FalseyValueParser::new())
            } else {
                arg
            };
            arg.env(variable).hide_env(true)
        }
        _ => arg,
    }
}

fn has_variable(arg: &Arg) -> bool {
    let is_plain = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::Version | ArgAction::Count
    );
    !is_plain && !WITHOUT_VARIABLE.contains(&arg.get_id().as_str())
}

/// Says something to the person at the terminal, apart from the log and from what a command prints for others to read; not
/// where machines read the log.
#[allow(clippy::print_stderr, reason = "standard error is where people are spoken to")]
fn tell(words: &str) {
    if telemetry::is_for_people() {
        eprintln!("{words}");
    }
}

/// Whether something is wanted that is wanted by most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Prints a result.
#[allow(clippy::print_stdout, reason = "standard output is where results go")]
fn print(result: &str) {
    println!("{result}");
}

/// A span of time as options take it: `10s`, `15m`, `90d`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a number and a unit, as in 10s, 15m or 90d".to_owned())
}

/// A size as options take it: `64KiB`, `10MB`, or octets.
fn size(text: &str) -> Result<u64, String> {
    text.parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| "write a number and a unit, as in 64KiB or 10MB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_option_has_its_variable_and_what_is_done_once_has_none() {
        fn look(command: &Command) {
            for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
                let is_plain = ["verbose", "help", "version"].contains(&arg.get_id().as_str());
                let has_none = is_plain || WITHOUT_VARIABLE.contains(&arg.get_id().as_str());
                assert_eq!(arg.get_env().is_none(), has_none, "{}", arg.get_id());
            }
            command.get_subcommands().for_each(look);
        }
        look(&command());
    }

    #[test]
    fn the_rate_of_a_relay_is_not_that_of_a_key() {
        let root = command();
        let variable = |path: &[&str]| {
            let found = path
                .iter()
                .try_fold(&root, |command, name| command.find_subcommand(name));
            let mut options = found.unwrap().get_arguments();
            let rate = options.find(|arg| arg.get_long() == Some("rate"));
            rate.unwrap().get_env().map(ToOwned::to_owned)
        };
        assert_eq!(variable(&["relay"]), Some("TUNNEL_RATE".into()));
        assert_eq!(variable(&["relay", "key", "add"]), None);
    }

    #[test]
    fn spans_and_sizes_are_read() {
        assert_eq!(duration("15m").unwrap().as_secs(), 900);
        assert!(duration("15").is_err());
        assert_eq!(size("64KiB").unwrap(), 65_536);
        assert!(size("much").is_err());
    }
}
