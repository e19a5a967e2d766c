//! The options of `tunnel bench`, and what they mean.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::super::access::{NetworkArgs, RelayArgs};
use super::super::{Failure, duration, size};
use crate::transport::is_bridge_name;

const EXAMPLE: &str = "\
Examples:
  tunnel bench
  tunnel bench --rtt 50ms --plot bench.svg
  TUNNEL_TOKEN=… tunnel bench --relay https://relay.example.com
  TUNNEL_TOKEN=… tunnel bench --relay https://relay.example.com --bridge box --model llama3.2";

/// One body, octets.
const LARGEST_BULK: u64 = 1 << 30;
const LONGEST_SLICE: Duration = Duration::from_secs(60);
const LONGEST_RTT: Duration = Duration::from_secs(2);
const FASTEST_RATE: f64 = 100_000.0;

/// Compare the transports: latency, tokens, throughput, beside the upstream asked directly.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    #[command(flatten)]
    pub(super) relay: RelayArgs,
    /// Measure the desktop of this name and its own Ollama, instead of a bridge that is started for it
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// The desktop's model that writes the tokens
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Measure only these, separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long one transport is measured at a time; tokens take twice that
    #[arg(long, value_name = "TIME", default_value = "400ms", value_parser = duration)]
    slice: Duration,
    /// Callers side by side
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Send so many requests, as in 200/s, whether or not answers come, and count the time from when each was due
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<f64>,
    /// Time between two tokens
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = duration)]
    token_interval: Duration,
    /// Size of a large body
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = size)]
    bulk_size: u64,
    /// Put the relay so far away from the bridge: the round trip, half of it each way
    #[arg(long, value_name = "TIME", value_parser = duration)]
    rtt: Option<Duration>,
    /// Write every figure to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the distributions into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    pub(super) network: NetworkArgs,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Scenario {
    /// A small exchange, one caller
    Small,
    /// Small exchanges, many callers
    Crowd,
    /// Until the first token
    First,
    /// Tokens as they come
    Tokens,
    /// Large bodies, both ways
    Bulk,
    /// From a cut link to the first answer
    Reconnect,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    /// All parts in this process.
    Alone { rtt: Duration },
    /// A relay elsewhere, through bridges of this process.
    Deployment,
    /// A desktop elsewhere.
    Desktop { name: String, model: Option<String> },
}

/// Validated.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) subject: Subject,
    pub(super) scenarios: Vec<Scenario>,
    pub(super) rounds: u32,
    pub(super) slice: Duration,
    pub(super) concurrency: usize,
    pub(super) rate: Option<f64>,
    pub(super) token_interval: Duration,
    pub(super) bulk_size: u64,
    pub(super) json: Option<PathBuf>,
    pub(super) plot: Option<PathBuf>,
}

impl Args {
    /// What the options mean together.
    pub(super) fn settings(&self) -> Result<Settings, Failure> {
        let subject = self.subject()?;
        between("--slice", self.slice, Duration::from_millis(10), LONGEST_SLICE)?;
        between(
            "--token-interval",
            self.token_interval,
            Duration::from_millis(1),
            LONGEST_SLICE,
        )?;
        if !(1..=LARGEST_BULK).contains(&self.bulk_size) {
            return Err(Failure::usage("--bulk-size is between 1 and 1GiB"));
        }
        let mut scenarios: Vec<Scenario> = Scenario::value_variants().to_vec();
        scenarios.retain(|scenario| self.only.is_empty() || self.only.contains(scenario));
        scenarios.retain(|scenario| subject.can(*scenario));
        if scenarios.is_empty() {
            return Err(Failure::usage("--only names nothing that can be measured here"));
        }
        for file in [&self.json, &self.plot].into_iter().flatten() {
            // Better now than after a minute; what is there stays as it is until then.
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
            opened.map_err(|error| Failure::usage(format!("cannot write {}: {error}", file.display())))?;
        }
        Ok(Settings {
            subject,
            scenarios,
            rounds: self.rounds,
            slice: self.slice,
            concurrency: self.concurrency.into(),
            rate: self.rate,
            token_interval: self.token_interval,
            bulk_size: self.bulk_size,
            json: self.json.clone(),
            plot: self.plot.clone(),
        })
    }

    fn subject(&self) -> Result<Subject, Failure> {
        if self.relay.is_given() && self.rtt.is_some() {
            return Err(Failure::usage(
                "--rtt is for measuring alone: a relay that --relay names is as far away as it is",
            ));
        }
        let rtt = self.rtt.unwrap_or_default();
        between("--rtt", rtt, Duration::ZERO, LONGEST_RTT)?;
        match (&self.bridge, &self.model) {
            (None, Some(_)) => Err(Failure::usage("--model needs --bridge NAME: the desktop that has it")),
            (Some(_), _) if !self.relay.is_given() => {
                Err(Failure::usage("--bridge needs --relay URL: where it is connected"))
            }
            (Some(name), _) if !is_bridge_name(name) => Err(Failure::usage(format!(
                "--bridge '{}' is no bridge's name",
                name.escape_debug()
            ))),
            (Some(name), model) => Ok(Subject::Desktop {
                name: name.clone(),
                model: model.clone(),
            }),
            (None, None) if self.relay.is_given() => Ok(Subject::Deployment),
            (None, None) => Ok(Subject::Alone { rtt }),
        }
    }
}

impl Subject {
    fn can(&self, scenario: Scenario) -> bool {
        match self {
            Self::Alone { .. } => true,
            // Its link is not ours to cut.
            Self::Deployment => scenario != Scenario::Reconnect,
            Self::Desktop { model, .. } => match scenario {
                Scenario::Small | Scenario::Crowd => true,
                Scenario::First | Scenario::Tokens => model.is_some(),
                Scenario::Bulk | Scenario::Reconnect => false,
            },
        }
    }
}

fn between(option: &str, time: Duration, least: Duration, most: Duration) -> Result<(), Failure> {
    if (least..=most).contains(&time) {
        return Ok(());
    }
    Err(Failure::usage(format!("{option} is between {least:?} and {most:?}")))
}

/// A rate as options take it: `200/s`.
fn rate(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix("/s").and_then(|number| number.parse().ok());
    number
        .filter(|rate| (0.1..=FASTEST_RATE).contains(rate))
        .ok_or_else(|| "write requests a second, as in 200/s; 0.1 to 100000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_its_unit_and_is_one_that_can_be() {
        assert!(rate("200/s").is_ok_and(|rate| (rate - 200.0).abs() < f64::EPSILON));
        for text in ["200", "200/m", "-1/s", "0/s", "NaN/s", "inf/s", "/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_makes_sense_is_measured_on_a_real_desktop() {
        let desktop = |model: Option<&str>| Subject::Desktop {
            name: "box".to_owned(),
            model: model.map(str::to_owned),
        };
        let can = |subject: &Subject| {
            let all = Scenario::value_variants().iter();
            all.filter(|scenario| subject.can(**scenario)).count()
        };
        assert_eq!(can(&desktop(None)), 2);
        assert_eq!(can(&desktop(Some("m"))), 4);
        assert_eq!(can(&Subject::Deployment), 5);
        assert_eq!(can(&Subject::Alone { rtt: Duration::ZERO }), 6);
    }
}
