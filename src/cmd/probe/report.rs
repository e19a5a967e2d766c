//! What the checks found: data, for whoever shows it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};

use super::progress::Progress;
use crate::bridge::choice::Transport;

/// The longest sentence on what was seen, characters.
const LONGEST: usize = 400;

/// What belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Group {
    /// Name, connection, TLS, clock
    Reach,
    /// The relay's paths, open to those with a token and closed to others
    Routes,
    /// The upgrade and what stands in its way
    Websocket,
    /// The requests of a bridge that polls
    Polling,
    /// Bodies, headers and paths as they were sent, on each transport
    Exchange,
    /// Answers and uploads piece by piece, on each transport
    Streaming,
    /// Silence before the first byte, and between
    Slowness,
    /// A caller that leaves stops the work
    Cancel,
    /// The desktop that is connected, and its Ollama
    Desktop,
    /// What a web page may do
    Browser,
}

impl Group {
    /// As it stands in options and tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Reach => "reach",
            Self::Routes => "routes",
            Self::Websocket => "websocket",
            Self::Polling => "polling",
            Self::Exchange => "exchange",
            Self::Streaming => "streaming",
            Self::Slowness => "slowness",
            Self::Cancel => "cancel",
            Self::Desktop => "desktop",
            Self::Browser => "browser",
        }
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// As it must be.
    Pass,
    /// It works, and will hurt.
    Warn,
    /// It does not work.
    Fail,
    /// It could not be checked.
    Skipped,
}

/// What one check saw.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    outcome: Outcome,
    seen: String,
    remedy: Option<String>,
    figures: Map<String, Value>,
}

impl Verdict {
    /// Some of the words are those of strangers: no control characters, and no novel.
    fn new(outcome: Outcome, seen: impl fmt::Display) -> Self {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        Self {
            outcome,
            seen: seen.to_string().chars().take(LONGEST).map(plain).collect(),
            remedy: None,
            figures: Map::new(),
        }
    }

    /// As it must be.
    pub(super) fn pass(seen: impl fmt::Display) -> Self {
        Self::new(Outcome::Pass, seen)
    }

    /// It works, and will hurt.
    pub(super) fn warn(seen: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self::new(Outcome::Warn, seen).remedied(remedy)
    }

    /// It does not work.
    pub(super) fn fail(seen: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self::new(Outcome::Fail, seen).remedied(remedy)
    }

    /// It could not be checked, and why.
    pub(super) fn skipped(why: impl fmt::Display) -> Self {
        Self::new(Outcome::Skipped, why)
    }

    fn remedied(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into()).filter(|remedy| !remedy.is_empty());
        self
    }

    /// With a figure for those who compute.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.figures.insert(name.to_owned(), value.into());
        self
    }

    /// The same, with other words before what was seen.
    pub(super) fn prefixed(mut self, words: &str) -> Self {
        self.seen.insert_str(0, words);
        self
    }

    /// Whether it could not be checked.
    pub(super) fn is_skipped(&self) -> bool {
        self.outcome == Outcome::Skipped
    }

    /// Whether it is as it must be, or nearly.
    pub(super) fn is_well(&self) -> bool {
        matches!(self.outcome, Outcome::Pass | Outcome::Warn)
    }
}

/// One check and what it saw.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) group: Group,
    pub(super) check: &'static str,
    /// The transport it was done over, where it was done over each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) transport: Option<&'static str>,
    pub(super) outcome: Outcome,
    pub(super) seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
    /// How long it took, milliseconds.
    pub(super) took_ms: f64,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(super) figures: Map<String, Value>,
    #[serde(skip)]
    order: usize,
}

/// Collects findings of checks that run side by side.
#[derive(Debug, Clone)]
pub(super) struct Board {
    entries: Arc<Mutex<Entries>>,
    progress: Progress,
    /// No check takes longer.
    limit: Duration,
    only: Arc<[Group]>,
}

#[derive(Debug, Default)]
struct Entries {
    begun: usize,
    findings: Vec<Finding>,
}

/// A check under way.
#[derive(Debug)]
pub(super) struct Check {
    board: Board,
    group: Group,
    name: &'static str,
    transport: Option<Transport>,
    began: Instant,
    order: usize,
}

impl Board {
    /// Nothing is found yet; of groups that are not wanted only trouble is kept. No group named is all of them.
    pub(super) fn new(limit: Duration, only: &[Group], progress: Progress) -> Self {
        Self {
            entries: Arc::default(),
            progress,
            limit,
            only: only.into(),
        }
    }

    /// Whether findings of this group are wanted.
    pub(super) fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }

    /// How long a check may take.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Begins a check; those that begin first stand first.
    pub(super) fn begin(&self, group: Group, name: &'static str, transport: Option<Transport>) -> Check {
        let order = {
            let mut entries = self.lock();
            entries.begun += 1;
            entries.begun
        };
        self.progress.begin(group.name(), name);
        Check {
            board: self.clone(),
            group,
            name,
            transport,
            began: Instant::now(),
            order,
        }
    }

    /// The findings, in the order of groups and checks.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = self.lock().findings.clone();
        findings.sort_by_key(|finding| (finding.group, finding.order));
        findings
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Check {
    /// Does it, within the time that checks have; whether it went well.
    pub(super) async fn run(self, verdict: impl Future<Output = Verdict>) -> bool {
        let limit = self.board.limit;
        self.run_for(limit, verdict).await
    }

    /// The same with a time of its own, for what takes long by its nature.
    pub(super) async fn run_for(self, limit: Duration, verdict: impl Future<Output = Verdict>) -> bool {
        let late = Verdict::fail(
            late(limit),
            "if the way to the relay is slow, give it more time with --timeout",
        );
        self.run_or(limit, late, verdict).await
    }

    /// The same for much to carry: that it takes longer than other checks is no fault.
    pub(super) async fn run_bulk(self, verdict: impl Future<Output = Verdict>) -> bool {
        let limit = self.board.limit;
        let late = Verdict::warn(
            late(limit),
            "the way is slow, or stands still; --timeout 2m gives it time to tell",
        );
        self.run_or(limit, late, verdict).await
    }

    async fn run_or(self, limit: Duration, late: Verdict, verdict: impl Future<Output = Verdict>) -> bool {
        let verdict = timeout(limit, verdict).await.unwrap_or(late);
        self.finish(verdict)
    }

    /// Notes what it saw; whether it went well.
    pub(super) fn finish(self, verdict: Verdict) -> bool {
        let well = verdict.is_well();
        self.board.progress.end(self.group.name(), self.name);
        if self.board.wants(self.group) || verdict.outcome == Outcome::Fail {
            self.board.lock().findings.push(Finding {
                group: self.group,
                check: self.name,
                transport: self.transport.map(Transport::name),
                outcome: verdict.outcome,
                seen: verdict.seen,
                remedy: verdict.remedy,
                took_ms: figure(self.began.elapsed()),
                figures: verdict.figures,
                order: self.order,
            });
        }
        well
    }
}

/// Everything a probe found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) relay: String,
    /// This program's version.
    pub(super) version: &'static str,
    pub(super) findings: Vec<Finding>,
    pub(super) summary: Summary,
    /// How long everything took, milliseconds.
    pub(super) took_ms: f64,
}

/// How many checks ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    pub(super) passed: usize,
    pub(super) warnings: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

impl Summary {
    /// Counts.
    pub(super) fn of(findings: &[Finding]) -> Self {
        let mut summary = Self::default();
        for finding in findings {
            match finding.outcome {
                Outcome::Pass => summary.passed += 1,
                Outcome::Warn => summary.warnings += 1,
                Outcome::Fail => summary.failed += 1,
                Outcome::Skipped => summary.skipped += 1,
            }
        }
        summary
    }
}

fn late(limit: Duration) -> String {
    format!("not done within {} s", limit.as_secs())
}

/// A time as people read it.
pub(super) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 10_000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1e3)
    }
}

/// A time as a figure: milliseconds.
pub(super) fn figure(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
