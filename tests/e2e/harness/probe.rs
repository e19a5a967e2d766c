//! Runs `tunnel probe` as a process of its own, and reads what it found.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use super::process::{Ended, command};
use super::relay::token_for;

/// What a whole probe may take.
pub(crate) const WHOLE: Duration = Duration::from_secs(30);
/// What one may take on a machine that does much besides.
const PATIENCE: Duration = Duration::from_secs(90);

/// A probe that is not started yet.
pub(crate) struct Probe {
    home: TempDir,
    token: String,
    options: Vec<String>,
}

/// The probe of what listens there, with a token of ann's for everything.
pub(crate) fn probe(address: SocketAddr) -> Probe {
    probe_url(format!("http://{address}"))
}

/// The same for a URL.
pub(crate) fn probe_url(url: impl Display) -> Probe {
    Probe {
        home: tempfile::tempdir().unwrap(),
        token: token_for("ann", "bridge api"),
        options: vec!["probe".to_owned(), "--relay".to_owned(), url.to_string()],
    }
}

impl Probe {
    /// Only these groups.
    pub(crate) fn only(self, groups: &str) -> Self {
        self.with("--only", groups)
    }

    pub(crate) fn with(mut self, option: &str, value: impl Display) -> Self {
        self.options.extend([option.to_owned(), value.to_string()]);
        self
    }

    /// An option that names a file with this text.
    pub(crate) fn with_file(self, option: &str, text: &str) -> Self {
        let path = self.home.path().join(option.trim_start_matches('-'));
        std::fs::write(&path, text).unwrap();
        self.with(option, path.display())
    }

    /// Another token.
    pub(crate) fn token(mut self, token: &str) -> Self {
        token.clone_into(&mut self.token);
        self
    }

    /// The command as it would be typed.
    pub(crate) fn command(&self) -> Command {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        let mut command = command(self.home.path(), &options);
        command.env("TUNNEL_TOKEN", &self.token);
        command
    }

    /// Runs it to its end.
    pub(crate) async fn ended(&self) -> Ended {
        ended(self.command()).await
    }

    /// Runs it to its end and reads its report.
    pub(crate) async fn run(&self) -> Report {
        let mut command = self.command();
        command.arg("--json");
        let ended = ended(command).await;
        let read: serde_json::Result<Read> = serde_json::from_str(&ended.output);
        let read = read.unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        Report {
            code: ended.code,
            errors: ended.errors,
            findings: read.findings,
            took: Duration::from_secs_f64(read.took_ms / 1e3),
        }
    }
}

async fn ended(mut command: Command) -> Ended {
    let output = timeout(PATIENCE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("the probe does not end")).unwrap();
    Ended {
        code: output.status.code(),
        output: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    findings: Vec<Finding>,
    took_ms: f64,
}

/// What a probe found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) code: Option<i32>,
    pub(crate) errors: String,
    pub(crate) findings: Vec<Finding>,
    pub(crate) took: Duration,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Finding {
    group: String,
    check: String,
    transport: Option<String>,
    outcome: String,
    seen: String,
    #[serde(default)]
    remedy: String,
}

impl Finding {
    /// As tests write it: `streaming/sse`.
    fn name(&self) -> String {
        format!("{}/{}", self.group, self.check)
    }

    fn is_trouble(&self) -> bool {
        self.outcome == "fail" || self.outcome == "warn"
    }
}

/// Probes again, a few times at most, while there is another trouble than these checks: where many tests share a machine, pieces of a
/// stream may really come late.
pub(crate) async fn while_busy(checks: &[&'static str], probe: impl AsyncFn() -> Report) -> Report {
    let expected: BTreeSet<String> = checks.iter().map(|check| (*check).to_owned()).collect();
    let mut report = probe().await;
    for _ in 0..3 {
        if report.trouble() == expected {
            break;
        }
        report = probe().await;
    }
    report
}

impl Report {
    /// The checks that failed or were warned of.
    fn trouble(&self) -> BTreeSet<String> {
        let trouble = self.findings.iter().filter(|finding| finding.is_trouble());
        trouble.map(Finding::name).collect()
    }

    /// Nothing failed, and nothing was warned of.
    pub(crate) fn is_well(&self) -> &Self {
        let trouble: Vec<_> = self.findings.iter().filter(|finding| finding.is_trouble()).collect();
        assert!(trouble.is_empty(), "{trouble:#?}");
        assert_eq!((self.code, self.errors.as_str()), (Some(0), ""));
        self
    }

    /// These checks failed, on each transport they were done over, each with a remedy that has the words; all others did not.
    pub(crate) fn only_failed(&self, checks: impl AsRef<[&'static str]>, words: &str) -> &Self {
        self.only("fail", checks.as_ref(), words);
        assert_eq!(self.code, Some(1), "{}", self.errors);
        self
    }

    /// The same where the relay itself refused.
    pub(crate) fn only_refused(&self, checks: impl AsRef<[&'static str]>, words: &str) -> &Self {
        self.only("fail", checks.as_ref(), words);
        assert_eq!(self.code, Some(3), "{}", self.errors);
        self
    }

    /// The same for warnings.
    pub(crate) fn only_warned(&self, checks: impl AsRef<[&'static str]>, words: &str) -> &Self {
        self.only("warn", checks.as_ref(), words);
        assert_eq!((self.code, self.errors.as_str()), (Some(0), ""));
        self
    }

    fn only(&self, outcome: &str, checks: &[&str], words: &str) {
        let named: BTreeSet<String> = checks.iter().map(|check| (*check).to_owned()).collect();
        let concerned = |finding: &&Finding| named.contains(&finding.name());
        let troubled: BTreeSet<String> = self
            .findings
            .iter()
            .filter(|finding| finding.is_trouble())
            .map(Finding::name)
            .collect();
        assert_eq!(troubled, named, "{:#?}", self.findings);
        for finding in self.findings.iter().filter(concerned) {
            assert_eq!(finding.outcome, outcome, "{finding:#?}");
            assert!(finding.remedy.contains(words), "{finding:#?}");
        }
    }

    /// The check ended so, and what was seen has the words.
    pub(crate) fn saw(&self, outcome: &str, check: &str, words: &str) -> &Self {
        let found: Vec<_> = self.findings.iter().filter(|finding| finding.name() == check).collect();
        assert!(!found.is_empty(), "no {check} in {:#?}", self.findings);
        for finding in found {
            assert_eq!(finding.outcome, outcome, "{finding:#?}");
            assert!(finding.seen.contains(words), "{finding:#?}");
        }
        self
    }

    /// Every check of the group was done over each transport, but for those skipped.
    pub(crate) fn over_each_transport(&self, group: &str) -> &Self {
        let done = self.findings.iter().filter(|finding| finding.group == group);
        let over: BTreeSet<_> = done.filter_map(|finding| finding.transport.as_deref()).collect();
        assert_eq!(over, BTreeSet::from(["poll", "ws"]), "{group}: {:#?}", self.findings);
        self
    }

    /// The groups there is a finding of.
    pub(crate) fn groups(&self) -> BTreeSet<&str> {
        self.findings.iter().map(|finding| finding.group.as_str()).collect()
    }
}
