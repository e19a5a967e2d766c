//! What changed since the last time: all that `--watch` prints after the first round.

use std::collections::HashMap;
use std::time::SystemTime;

use anyhow::Context;
use serde_json::json;

use super::report::{Finding, Group, Outcome, Report};
use super::{Args, table};
use crate::cmd::Failure;

/// The last outcome of each check. One that could not be done in between is still what it was.
#[derive(Debug, Default)]
pub(super) struct Watched(HashMap<(Group, &'static str, Option<&'static str>), Outcome>);

/// A report of which not everything is news.
pub(super) struct News<'a> {
    report: &'a Report,
    /// All of it, the first time.
    changed: Vec<&'a Finding>,
    first: bool,
}

impl Watched {
    /// Takes a report in; none if nothing is news.
    pub(super) fn news<'a>(&mut self, report: &'a Report) -> Option<News<'a>> {
        let first = self.0.is_empty();
        let mut changed = Vec::new();
        for finding in &report.findings {
            let key = (finding.group, finding.check, finding.transport);
            if !first && finding.outcome == Outcome::Skipped {
                continue;
            }
            if self.0.insert(key, finding.outcome) != Some(finding.outcome) {
                changed.push(finding);
            }
        }
        (!changed.is_empty()).then_some(News { report, changed, first })
    }
}

impl News<'_> {
    /// In words, or as one line of JSON.
    pub(super) fn shown(&self, args: &Args) -> Result<String, Failure> {
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        let summary = self.report.summary;
        if args.json {
            let news = json!({
                "time": time.to_string(),
                "relay": self.report.relay,
                "summary": summary,
                "findings": self.changed,
            });
            return Ok(serde_json::to_string(&news).context("cannot write the report")?);
        }
        let colours = console::colors_enabled();
        if self.first {
            return Ok(table::whole(self.report, colours));
        }
        let rows = table::rows(self.changed.iter().copied(), colours);
        Ok(format!("{time}: {}\n{}", table::sentence(summary), rows.trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::Progress;
    use super::super::report::{Board, Summary, Verdict};
    use super::*;

    fn report(tcp: Option<Verdict>, chat: Option<Verdict>) -> Report {
        let progress = Progress::new(&indicatif::MultiProgress::new());
        let board = Board::new(std::time::Duration::from_secs(1), &[], progress);
        for (group, name, verdict) in [(Group::Reach, "tcp", tcp), (Group::Streaming, "sse", chat)] {
            if let Some(verdict) = verdict {
                board.begin(group, name, None).finish(verdict);
            }
        }
        let findings = board.findings();
        Report {
            relay: "http://relay".to_owned(),
            version: "0",
            summary: Summary::of(&findings),
            findings,
            took_ms: 1.0,
        }
    }

    #[test]
    fn only_what_changed_is_news_and_an_outage_makes_nothing_new_of_what_it_hid() {
        let (well, ill) = (|| Some(Verdict::pass("well")), || Some(Verdict::fail("ill", "mend")));
        let mut watched = Watched::default();
        let mut told = |tcp, chat| {
            let report = report(tcp, chat);
            let news = watched.news(&report);
            news.map(|news| news.changed.iter().map(|finding| finding.check).collect::<Vec<_>>())
        };
        assert_eq!(told(well(), well()), Some(vec!["tcp", "sse"]));
        assert_eq!(told(well(), well()), None);
        assert_eq!(told(ill(), Some(Verdict::skipped("away"))), Some(vec!["tcp"]));
        assert_eq!(told(ill(), None), None);
        assert_eq!(told(well(), well()), Some(vec!["tcp"]));
        assert_eq!(told(well(), ill()), Some(vec!["sse"]));
    }
}
