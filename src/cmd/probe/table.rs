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
    for finding in &report.findings {
        text.push_str(&row(finding, colours));
    }
    let _ = write!(text, "\n{} in {:.1} s", sentence(report.summary), report.took_ms / 1e3);
    text
}

/// One finding with its remedy.
pub(super) fn row(finding: &Finding, colours: bool) -> String {
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
    if let Some(remedy) = &finding.remedy {
        text.push_str(&" ".repeat(MARK + 1));
        put(&mut text, &format!("→ {remedy}"), MARK + 1);
    }
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
