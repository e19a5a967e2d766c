//! The report as text for people, at most [`WIDTH`] columns wide.

use super::report::{Cpu, Figures, Measured, Report, Spread};
use super::settings::Scenario;

/// What fits into a terminal beside something else.
const WIDTH: usize = 100;

/// All of it.
pub(super) fn render(report: &Report) -> String {
    let mut text = head(report);
    for measured in &report.scenarios {
        text.push('\n');
        text += &scenario(measured, report);
    }
    text.push('\n');
    text += &foot(report);
    text
}

fn head(report: &Report) -> String {
    let settings = &report.settings;
    let subject = match (&settings.relay, &settings.bridge) {
        (Some(relay), Some(bridge)) => {
            let transport = settings.transport.as_deref().unwrap_or("?");
            format!("the desktop {bridge} at {relay}, over {transport}")
        }
        (Some(relay), None) => format!("bridges of this process at {relay}"),
        _ if settings.rtt_ms > 0.0 => format!("alone, bridge and relay {} ms apart (there and back)", settings.rtt_ms),
        _ => "alone, everything over loopback".to_owned(),
    };
    let pace = match settings.rate_per_second {
        Some(rate) => format!("at {rate} requests/s, time counted from when each was due"),
        None => "each caller asks again when it has the answer".to_owned(),
    };
    let machine = &report.machine;
    let load = |load: Option<f64>| load.map_or_else(|| "?".to_owned(), |load| format!("{load:.2}"));
    let lines = [
        format!("tunnel bench {} · {subject}", report.tunnel),
        format!(
            "{} cores · {} · {} {} · load {} before, {} after",
            machine.cores,
            machine.cpu.as_deref().unwrap_or("CPU not told"),
            machine.os,
            machine.arch,
            load(machine.load_before),
            load(machine.load_after)
        ),
        format!(
            "{} rounds of {} ms, after one that does not count · {pace}",
            settings.rounds, settings.slice_ms
        ),
    ];
    lines.iter().map(|line| cut(line) + "\n").collect()
}

fn scenario(measured: &Measured, report: &Report) -> String {
    let settings = &report.settings;
    match measured.scenario {
        Scenario::Small => times("Small exchange, one caller", measured, "request"),
        Scenario::Crowd => times(
            &format!("Small exchange, {} callers", settings.concurrency),
            measured,
            "request",
        ),
        Scenario::First => times("First token, one caller", measured, "answer"),
        Scenario::Tokens => tokens(measured, settings.token_interval_ms, settings.model.as_deref()),
        Scenario::Bulk => bulk(measured, settings.bulk_octets),
        Scenario::Reconnect => reconnect(measured),
    }
}

fn times(title: &str, measured: &Measured, of: &str) -> String {
    let mut grid = Grid::new(
        title,
        [
            "", "p50", "rounds", "p90", "p99", "p99.9", "max", "added", "/s", "errors",
        ],
    );
    for way in &measured.ways {
        let time = way.time.as_ref();
        grid.row([
            name(way),
            us(time.map(|time| time.p50_us)),
            spread_us(time.and_then(|time| time.p50_of_rounds_us)),
            us(time.map(|time| time.p90_us)),
            us(time.map(|time| time.p99_us)),
            us(time.map(|time| time.p999_us)),
            us(time.map(|time| time.max_us)),
            added(way.added.map(|added| added.p50_us)),
            count(way.per_second.map(|spread| spread.median)),
            way.errors.to_string(),
        ]);
    }
    grid.render() + &cpu(measured, of)
}

fn tokens(measured: &Measured, interval_ms: f64, model: Option<&str>) -> String {
    let title = match model {
        Some(model) => format!("Gaps between tokens of {model}"),
        None => format!("Gaps between tokens, one every {interval_ms} ms"),
    };
    let head = [
        "", "p50", "p99", "rounds", "worst", "added", "jitter", "added", "tokens", "errors",
    ];
    let mut grid = Grid::new(&title, head);
    for way in &measured.ways {
        let (time, tokens) = (way.time.as_ref(), way.tokens.as_ref());
        grid.row([
            name(way),
            us(time.map(|time| time.p50_us)),
            us(time.map(|time| time.p99_us)),
            spread_us(time.and_then(|time| time.p99_of_rounds_us)),
            us(time.map(|time| time.max_us)),
            added(way.added.map(|added| added.p99_us)),
            us(tokens.and_then(|tokens| tokens.jitter_us)),
            added(way.added.and_then(|added| added.jitter_us)),
            way.done.to_string(),
            way.errors.to_string(),
        ]);
    }
    let transit = |way: &Figures| Some(us(Some(way.tokens.as_ref()?.transit.as_ref()?.p50_us)));
    let octets = |way: &Figures| Some(digits(way.tokens.as_ref()?.wire_octets_per_token?));
    grid.render()
        + &each("From the upstream to the caller (p50)", measured, transit)
        + &each("Octets per token between bridge and relay, above TCP", measured, octets)
        + &cpu(measured, "token")
}

/// A line with a figure of each way that has it.
fn each(title: &str, measured: &Measured, figure: impl Fn(&Figures) -> Option<String>) -> String {
    let told = measured
        .ways
        .iter()
        .filter_map(|way| Some(format!("{} {}", way.way, figure(way)?)));
    let told: Vec<String> = told.collect();
    if told.is_empty() {
        return String::new();
    }
    cut(&format!("  {title}: {}", told.join(" · "))) + "\n"
}

fn bulk(measured: &Measured, octets: u64) -> String {
    let title = format!("Bodies of {}", bytesize::ByteSize::b(octets));
    let mut grid = Grid::new(
        &title,
        [
            "",
            "down MB/s",
            "rounds",
            "÷ direct",
            "up MB/s",
            "rounds",
            "÷ direct",
            "errors",
        ],
    );
    let direct = measured.ways.iter().find(|way| way.way == "direct");
    for way in &measured.ways {
        let mut cells = vec![name(way)];
        for side in [down, up] {
            let rate = side(way);
            let ratio = rate.zip(direct.and_then(side)).filter(|_| way.way != "direct");
            cells.push(count(rate.map(|rate| rate.median)));
            cells.push(spread(rate, |value| count(Some(value))));
            cells.push(ratio.map_or_else(String::new, |(mine, theirs)| {
                format!("{:.2}", mine.median / theirs.median)
            }));
        }
        cells.push(way.errors.to_string());
        grid.row(cells);
    }
    grid.render()
}

fn down(way: &Figures) -> Option<Spread> {
    way.bulk.as_ref()?.down
}

fn up(way: &Figures) -> Option<Spread> {
    way.bulk.as_ref()?.up
}

fn reconnect(measured: &Measured) -> String {
    let mut grid = Grid::new(
        "From a cut link to the first answer",
        ["", "p50", "rounds", "worst", "cuts", "errors"],
    );
    for way in &measured.ways {
        let time = way.time.as_ref();
        grid.row([
            name(way),
            us(time.map(|time| time.p50_us)),
            spread_us(time.and_then(|time| time.p50_of_rounds_us)),
            us(time.map(|time| time.max_us)),
            way.done.to_string(),
            way.errors.to_string(),
        ]);
    }
    grid.render()
}

fn cpu(measured: &Measured, of: &str) -> String {
    each(&format!("CPU per {of}"), measured, |way| {
        way.cpu.bridge_us.map(|_| parts(way.cpu))
    })
}

fn parts(cpu: Cpu) -> String {
    let part = |name: &str, time: Option<f64>| time.map(|time| format!("{name} {}", us(Some(time))));
    let parts = [part("relay", cpu.relay_us), part("bridge", cpu.bridge_us)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn foot(report: &Report) -> String {
    let mut lines: Vec<String> = report.left_out.iter().map(|why| format!("left out: {why}")).collect();
    lines.extend(reasons(report));
    lines.extend(legend(report).into_iter().map(str::to_owned));
    lines.push(match report.errors {
        0 => format!("No errors. {:.0} s.", report.seconds),
        1 => format!("1 error. {:.0} s.", report.seconds),
        errors => format!("{errors} errors. {:.0} s.", report.seconds),
    });
    lines.iter().map(|line| cut(line) + "\n").collect()
}

/// Why what failed failed.
fn reasons(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for measured in &report.scenarios {
        for way in &measured.ways {
            lines.extend(way.reasons.iter().map(|reason| {
                let (count, why) = (reason.count, &reason.reason);
                format!("{count} × {}, {}: {why}", measured.name, way.way)
            }));
        }
    }
    lines
}

/// What the columns mean.
fn legend(report: &Report) -> Vec<&'static str> {
    let mut lines = vec!["Percentiles are of all rounds together; rounds: the least and the greatest of a round."];
    let mut ways = report.scenarios.iter().flat_map(|measured| &measured.ways);
    if ways.any(|way| way.added.is_some()) {
        lines.push("added: more than asking the upstream directly, p50; the median of what each round added.");
    }
    if report
        .scenarios
        .iter()
        .any(|measured| measured.scenario == Scenario::Tokens)
    {
        lines.push("Of gaps, rounds and added are those of the p99; jitter: by how much a gap changes on its way, on");
        lines.push("average.");
    }
    lines
}

fn name(way: &Figures) -> String {
    format!("  {}", way.way)
}

fn spread_us(of: Option<Spread>) -> String {
    spread(of, |value| us(Some(value)))
}

fn spread(of: Option<Spread>, show: impl Fn(f64) -> String) -> String {
    let Some(spread) = of else { return String::new() };
    let (least, most) = (show(spread.least), show(spread.most));
    // The unit once, if it is the same.
    match (least.split_once(' '), most.split_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => format!("{number}–{most}"),
        _ => format!("{least}–{most}"),
    }
}

fn added(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value < 0.0 => format!("−{}", us(Some(-value))),
        Some(value) => format!("+{}", us(Some(value))),
    }
}

/// A time with its unit, three digits that matter.
pub(super) fn us(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value < 999.5 => format!("{} µs", digits(value)),
        Some(value) if value < 999_500.0 => format!("{} ms", digits(value / 1e3)),
        Some(value) => format!("{} s", digits(value / 1e6)),
    }
}

fn count(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), digits)
}

fn digits(value: f64) -> String {
    match value {
        large if large >= 99.95 => format!("{large:.0}"),
        middle if middle >= 9.995 => format!("{middle:.1}"),
        small => format!("{small:.2}"),
    }
}

fn cut(line: &str) -> String {
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

/// Rows of cells; the first column to the left, the others to the right.
struct Grid {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Grid {
    fn new<'a>(title: &str, head: impl IntoIterator<Item = &'a str>) -> Self {
        let head = head.into_iter().map(str::to_owned).collect();
        Self {
            title: title.to_owned(),
            rows: vec![head],
        }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        // The first has no name, and a column with nothing below its name says nothing.
        let filled = |column: usize| {
            let mut cells = self.rows.iter().skip(1).filter_map(|row| row.get(column));
            column == 0 || cells.any(|cell| !cell.is_empty())
        };
        let line = |row: &Vec<String>| {
            let columns = row
                .iter()
                .zip(&widths)
                .enumerate()
                .filter(|(column, _)| filled(*column));
            let cells = columns.map(|(at, (cell, width))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            cut(cells.collect::<Vec<_>>().join("  ").trim_end()) + "\n"
        };
        cut(&self.title) + "\n" + &self.rows.iter().map(line).collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::bench::report::tests::example;

    #[test]
    fn no_line_is_wider_than_a_terminal_and_none_of_the_grids_is_cut() {
        for errors in [false, true] {
            let report = example(errors);
            let text = render(&report);
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "{line}");
            }
            for measured in &report.scenarios {
                let text = scenario(measured, &report);
                assert!(!text.contains('…'), "{text}");
                assert!(
                    text.contains("direct") && text.contains("ws") && text.contains("poll"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn times_have_three_digits_and_their_unit() {
        for (value, text) in [
            (0.5, "0.50 µs"),
            (65.43, "65.4 µs"),
            (999.4, "999 µs"),
            (999.6, "1.00 ms"),
            (50_234.0, "50.2 ms"),
            (2_500_000.0, "2.50 s"),
        ] {
            assert_eq!(us(Some(value)), text);
        }
        assert_eq!(us(None), "–");
        assert_eq!(added(Some(-5.0)), "−5.00 µs");
        let spread = Spread {
            median: 65.0,
            least: 60.0,
            most: 70.0,
        };
        assert_eq!(spread_us(Some(spread)), "60.0–70.0 µs");
    }
}
