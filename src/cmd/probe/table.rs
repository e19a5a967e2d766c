//! The findings as a table of at most 100 columns.

use std::fmt::Write;

use console::{Style, measure_text_width};

use super::report::{Finding, Outcome, Report, Summary};

/// The widest line.
const WIDTH: usize = 100;
/// Mark, group and check, transport, time.
const MARK: usize = 5;
const CHECK: usize = 24;
const TRANSPORT: usize = 5;
const TOOK: usize = 9;
const INDENT: usize = MARK + CHECK + TRANSPORT + TOOK + 4;

/// All findings, and how many there are of each kind.
pub(super) fn whole(report: &Report, colours: bool) -> String {
    let mut text = format!("{} · tunnel {}\n\n", report.relay, report.version);
    text.push_str(&rows(&report.findings, colours));
    let _ = write!(text, "\n{} in {:.1} s", sentence(report.summary), report.took_ms / 1e3);
    text
}

/// Findings, each with its remedy; one that was told already is not told again.
pub(super) fn rows<'a>(findings: impl IntoIterator<Item = &'a Finding>, colours: bool) -> String {
    let mut text = String::new();
    let mut told: Vec<&str> = Vec::new();
    for finding in findings {
        text.push_str(&row(finding, colours));
        let Some(remedy) = &finding.remedy else {
            continue;
        };
        text.push_str(&" ".repeat(MARK + 1));
        if told.contains(&remedy.as_str()) {
            text.push_str("→ as above\n");
        } else {
            put(&mut text, &format!("→ {remedy}"), MARK + 1);
            told.push(remedy);
        }
    }
    text
}

fn row(finding: &Finding, colours: bool) -> String {
    let (mark, style) = match finding.outcome {
        Outcome::Pass => ("pass", Style::new().green()),
        Outcome::Warn => ("warn", Style::new().yellow()),
        Outcome::Fail => ("FAIL", Style::new().red().bold()),
        Outcome::Skipped => ("skip", Style::new().dim()),
    };
    let style = style.force_styling(colours);
    let check = format!("{} {}", finding.group.name(), finding.check);
    let transport = finding.transport.unwrap_or_default();
    let took = match finding.outcome {
        Outcome::Skipped => String::new(),
        _ => took(finding.took_ms),
    };
    let mut text = format!(
        "{} {check:CHECK$} {transport:TRANSPORT$} {took:>TOOK$} ",
        style.apply_to(format!("{mark:MARK$}"))
    );
    put(&mut text, &finding.seen, INDENT);
    text
}

/// Words in lines that end before the width, those after the first indented.
fn put(text: &mut String, words: &str, indent: usize) {
    let mut column = indent;
    for (number, word) in words.split_whitespace().enumerate() {
        let width = measure_text_width(word);
        if number > 0 && column + 1 + width > WIDTH {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else if number > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

fn took(ms: f64) -> String {
    if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1e3)
    }
}

/// How many ended how.
pub(super) fn sentence(summary: Summary) -> String {
    let Summary {
        passed,
        warnings,
        failed,
        skipped,
    } = summary;
    let mut parts = vec![format!("{passed} passed")];
    for (count, words) in [(warnings, "with a warning"), (failed, "failed"), (skipped, "skipped")] {
        if count > 0 {
            parts.push(format!("{count} {words}"));
        }
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::probe::progress::Progress;
    use crate::cmd::probe::report::{Board, Group, Verdict};

    #[test]
    fn no_line_is_wider_than_a_terminal_and_no_remedy_is_told_twice() {
        let progress = Progress::new(&indicatif::MultiProgress::new());
        let board = Board::new(std::time::Duration::from_secs(1), &[], progress);
        let words = "a rather long sentence about what was seen, ".repeat(6);
        let remedy = "and what can be done about it in all of the usual proxies; ".repeat(5);
        for transport in [
            crate::bridge::choice::Transport::Ws,
            crate::bridge::choice::Transport::Poll,
        ] {
            let check = board.begin(Group::Websocket, "100 at once", Some(transport));
            check.finish(Verdict::fail(&words, remedy.clone()));
        }
        let text = rows(&board.findings(), false);
        assert!(text.lines().all(|line| measure_text_width(line) <= WIDTH), "{text}");
        assert_eq!(text.matches("can be done about it").count(), 5, "{text}");
        assert!(text.contains("→ as above"), "{text}");
    }
}
