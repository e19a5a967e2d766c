//! The figures as data: everything that `--json` writes, and all that the table and the picture are made of.

use serde::Serialize;

use super::machine::Machine;
use super::measurement::{Round, Series, Spent, Times};
use super::settings::{Scenario, Settings, Subject};

/// All of a run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// The version that measured.
    pub(super) tunnel: &'static str,
    pub(super) settings: Told,
    pub(super) machine: Machine,
    /// Transports that could not be measured, and why.
    pub(super) left_out: Vec<String>,
    pub(super) seconds: f64,
    pub(super) errors: u64,
    pub(super) scenarios: Vec<Measured>,
}

/// The settings, as far as the figures depend on them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told {
    /// `alone`, `deployment` or `desktop`.
    pub(super) subject: &'static str,
    pub(super) relay: Option<String>,
    pub(super) bridge: Option<String>,
    /// How that desktop talks to the relay.
    pub(super) transport: Option<String>,
    pub(super) model: Option<String>,
    pub(super) rtt_ms: f64,
    pub(super) rounds: u32,
    pub(super) slice_ms: f64,
    pub(super) concurrency: usize,
    pub(super) rate_per_second: Option<f64>,
    pub(super) token_interval_ms: f64,
    pub(super) bulk_octets: u64,
}

/// One scenario.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Measured {
    pub(super) name: &'static str,
    #[serde(skip)]
    pub(super) scenario: Scenario,
    pub(super) ways: Vec<Figures>,
}

/// One way in one scenario.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Figures {
    pub(super) way: &'static str,
    /// Requests, transfers or tokens that were right.
    pub(super) done: u64,
    pub(super) per_second: Option<Spread>,
    pub(super) errors: u64,
    pub(super) reasons: Vec<Reason>,
    /// Of requests, of gaps between tokens, or of reconnecting.
    pub(super) time: Option<Distribution>,
    pub(super) added: Option<Added>,
    pub(super) tokens: Option<Tokens>,
    pub(super) bulk: Option<Bulk>,
    pub(super) cpu: Cpu,
    pub(super) rounds: Vec<Round>,
}

/// Why, and how often.
#[derive(Debug, Serialize)]
pub(super) struct Reason {
    pub(super) reason: String,
    pub(super) count: u64,
}

/// Of several rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// Times in microseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Distribution {
    /// How many times there are.
    pub(super) count: u64,
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
    pub(super) mean_us: f64,
    /// The p50 of each round, and the p99.
    pub(super) p50_of_rounds_us: Option<Spread>,
    pub(super) p99_of_rounds_us: Option<Spread>,
    /// Percent and microseconds.
    pub(super) points: Vec<[f64; 2]>,
}

/// What is more than asking the upstream directly, microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Added {
    /// The median of what each round added.
    pub(super) p50_us: f64,
    pub(super) p50_of_rounds_us: Spread,
    pub(super) p99_us: f64,
    pub(super) jitter_us: Option<f64>,
}

/// What only tokens have.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tokens {
    /// From the upstream to the caller.
    pub(super) transit: Option<Distribution>,
    /// By how much a gap changes on the way, on average.
    pub(super) jitter_us: Option<f64>,
    /// Between bridge and relay, both directions.
    pub(super) wire_octets_per_token: Option<f64>,
}

/// MB/s of bodies.
#[derive(Debug, Serialize)]
pub(super) struct Bulk {
    pub(super) down: Option<Spread>,
    pub(super) up: Option<Spread>,
}

/// CPU time for each request, transfer or token, microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cpu {
    pub(super) relay_us: Option<f64>,
    pub(super) bridge_us: Option<f64>,
    pub(super) upstream_us: Option<f64>,
    pub(super) caller_us: Option<f64>,
}

impl Told {
    /// Without what a report must not tell.
    pub(super) fn new(settings: &Settings, relay: Option<String>, transport: Option<String>) -> Self {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let (subject, rtt_ms, bridge, model) = match &settings.subject {
            Subject::Alone { rtt } => ("alone", ms(*rtt), None, None),
            Subject::Deployment => ("deployment", 0.0, None, None),
            Subject::Desktop { name, model } => ("desktop", 0.0, Some(name.clone()), model.clone()),
        };
        Self {
            subject,
            relay,
            bridge,
            transport,
            model,
            rtt_ms,
            rounds: settings.rounds,
            slice_ms: ms(settings.slice),
            concurrency: settings.concurrency,
            rate_per_second: settings.rate,
            token_interval_ms: ms(settings.token_interval),
            bulk_octets: settings.bulk_size,
        }
    }
}

impl Measured {
    /// Of what each way brought; the way called direct comes first, and the others are compared with it.
    pub(super) fn new(scenario: Scenario, series: &[Series]) -> Self {
        let mut ways: Vec<Figures> = series.iter().map(|series| Figures::new(scenario, series)).collect();
        let direct = ways.iter().position(|way| way.way == "direct");
        let added: Vec<Option<Added>> = match direct.and_then(|at| ways.get(at)) {
            Some(direct) => ways.iter().map(|way| way.compare(direct)).collect(),
            None => Vec::new(),
        };
        for (way, added) in ways.iter_mut().zip(added) {
            way.added = added.filter(|_| way.way != "direct");
        }
        Self {
            name: scenario.name(),
            scenario,
            ways,
        }
    }

    /// Of all ways.
    pub(super) fn errors(&self) -> u64 {
        self.ways.iter().map(|way| way.errors).sum()
    }
}

impl Scenario {
    /// As in `--only` and in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Crowd => "crowd",
            Self::First => "first",
            Self::Tokens => "tokens",
            Self::Bulk => "bulk",
            Self::Reconnect => "reconnect",
        }
    }
}

impl Figures {
    fn new(scenario: Scenario, series: &Series) -> Self {
        let all = &series.all;
        let rates: Vec<f64> = series.rounds.iter().map(|round| round.per_second).collect();
        let paced = matches!(scenario, Scenario::Small | Scenario::Crowd | Scenario::First);
        let wire = all.wire.filter(|(_, tokens)| *tokens > 0);
        Self {
            way: series.way,
            done: all.done,
            per_second: paced.then(|| Spread::of(&rates)).flatten(),
            errors: all.errors.count(),
            reasons: all
                .errors
                .reasons()
                .map(|(reason, count)| Reason {
                    reason: reason.to_owned(),
                    count,
                })
                .collect(),
            time: Distribution::of(&all.times, &series.rounds),
            added: None,
            tokens: (scenario == Scenario::Tokens).then(|| Tokens {
                transit: Distribution::of(&all.transit, &[]),
                jitter_us: all.deviation.mean(),
                wire_octets_per_token: wire.map(|(octets, tokens)| octets as f64 / tokens as f64),
            }),
            bulk: (scenario == Scenario::Bulk).then(|| Bulk {
                down: Spread::of(&all.rates[0]),
                up: Spread::of(&all.rates[1]),
            }),
            cpu: Cpu::new(all.spent, all.done),
            rounds: series.rounds.clone(),
        }
    }

    /// How much more than `direct`.
    fn compare(&self, direct: &Self) -> Option<Added> {
        let (mine, theirs) = (self.time.as_ref()?, direct.time.as_ref()?);
        let rounds = self.rounds.iter().zip(&direct.rounds);
        let p50: Vec<f64> = rounds
            .filter_map(|(mine, theirs)| Some(mine.p50_us? - theirs.p50_us?))
            .collect();
        let p50 = Spread::of(&p50)?;
        let jitter = |way: &Self| way.tokens.as_ref()?.jitter_us;
        Some(Added {
            p50_us: p50.median,
            p50_of_rounds_us: p50,
            p99_us: mine.p99_us - theirs.p99_us,
            jitter_us: jitter(self).zip(jitter(direct)).map(|(mine, theirs)| mine - theirs),
        })
    }
}

impl Spread {
    /// Of some values; none of none.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let (lower, upper) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self {
            median: f64::midpoint(lower, upper),
            least,
            most,
        })
    }
}

impl Distribution {
    fn of(times: &Times, rounds: &[Round]) -> Option<Self> {
        let spread =
            |value: fn(&Round) -> Option<f64>| Spread::of(&rounds.iter().filter_map(value).collect::<Vec<_>>());
        Some(Self {
            count: times.count(),
            p50_us: times.percentile(50.0)?,
            p90_us: times.percentile(90.0)?,
            p99_us: times.percentile(99.0)?,
            p999_us: times.percentile(99.9)?,
            max_us: times.most()?,
            mean_us: times.mean()?,
            p50_of_rounds_us: spread(|round| round.p50_us),
            p99_of_rounds_us: spread(|round| round.p99_us),
            points: times.distribution(),
        })
    }
}

impl Cpu {
    fn new(spent: Spent, done: u64) -> Self {
        let each = |time: Option<std::time::Duration>| {
            let time = time.filter(|_| done > 0)?;
            Some(time.as_secs_f64() * 1e6 / done as f64)
        };
        Self {
            relay_us: each(spent.relay),
            bridge_us: each(spent.bridge),
            upstream_us: each(spent.upstream),
            caller_us: each(spent.caller),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cmd::bench::measurement::{Slice, Wrong};

    /// A report with large and with awkward figures in it.
    pub(in crate::cmd::bench) fn example(errors: bool) -> Report {
        let settings = Settings {
            subject: Subject::Alone {
                rtt: Duration::from_millis(50),
            },
            scenarios: Vec::new(),
            rounds: 5,
            slice: Duration::from_millis(500),
            concurrency: 1024,
            rate: Some(99_999.5),
            token_interval: Duration::from_micros(12_345),
            bulk_size: 1 << 30,
            json: None,
            plot: None,
        };
        use Scenario::{Bulk, Crowd, First, Reconnect, Small, Tokens};
        let scenarios: Vec<Measured> = [Small, Crowd, First, Tokens, Bulk, Reconnect]
            .into_iter()
            .map(|scenario| {
                let ways: [&'static str; 3] = ["direct", "ws", "poll"];
                let series: Vec<Series> = ways
                    .into_iter()
                    .zip(1..)
                    .map(|(way, n)| series(way, n, errors))
                    .collect();
                Measured::new(scenario, &series)
            })
            .collect();
        Report {
            tunnel: "0.1.0",
            settings: Told::new(&settings, None, None),
            machine: Machine::look(),
            left_out: vec!["ws: <nothing> & \"more\"".to_owned()],
            seconds: 59.5,
            errors: scenarios.iter().map(Measured::errors).sum(),
            scenarios,
        }
    }

    fn series(way: &'static str, slowness: u64, errors: bool) -> Series {
        let mut series = Series::new(way).unwrap();
        for round in 1..=5 {
            let mut slice = Slice::new().unwrap();
            (1..=400).for_each(|n| slice.note(Ok(Duration::from_micros(n * n * round * slowness * slowness))));
            slice.transit = slice.times.clone();
            slice.deviation = slice.times.clone();
            slice.rates = [vec![1234.5], vec![0.012]];
            slice.elapsed = Duration::from_millis(500);
            slice.spent.relay = Some(Duration::from_millis(300));
            slice.wire = Some((123_456, 39));
            if errors {
                (0..5000).for_each(|_| slice.errors.note(Wrong("answered 502 (bridge_gone) ".repeat(9))));
            }
            series.add(&slice);
        }
        series
    }

    #[test]
    fn the_middle_lies_between_the_least_and_the_most() {
        let spread = |values: &[f64]| Spread::of(values).map(|s| (s.least, s.median, s.most));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0]), Some((1.0, 2.5, 4.0)));
    }

    #[test]
    fn the_json_has_every_figure_and_what_cannot_be_told_is_absent_and_not_nothing() {
        let json = serde_json::to_value(example(true)).unwrap();
        let ws = &json["scenarios"][0]["ways"][1];
        assert_eq!(ws["way"], "ws");
        for figure in ["p50Us", "p90Us", "p99Us", "p999Us", "maxUs"] {
            assert!(ws["time"][figure].as_f64().unwrap() > 0.0, "{figure}");
        }
        assert!(ws["added"]["p50Us"].as_f64().unwrap() > 0.0);
        assert!(ws["cpu"]["relayUs"].is_f64() && ws["cpu"]["bridgeUs"].is_null());
        assert_eq!(ws["rounds"].as_array().map(Vec::len), Some(5));
        assert!(json["scenarios"][0]["ways"][0]["added"].is_null());
        assert_eq!(json["errors"], 6 * 3 * 5 * 5000);
    }
}
