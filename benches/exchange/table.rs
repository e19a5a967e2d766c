//! The figures, as a plain table: every round's value in, median and spread out, held against its goal.

use std::fmt::{self, Display, Formatter};

/// What a figure should reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Stands here to be compared with earlier runs.
    None,
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    figure: String,
    unit: &'static str,
    values: Vec<f64>,
    goal: Goal,
}

impl Table {
    /// Adds a figure with its value of each round; also told at once, as a sign of life.
    pub(crate) fn add(&mut self, figure: impl Into<String>, unit: &'static str, values: Vec<f64>, goal: Goal) {
        let row = Row {
            figure: figure.into(),
            unit,
            values,
            goal,
        };
        println!("  {}: {}", row.figure, row.cells()[0]);
        self.rows.push(row);
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let head = ["figure", "median", "min – max", "rounds", "goal", ""].map(str::to_owned);
        let lines: Vec<[String; 6]> = std::iter::once(head).chain(self.rows.iter().map(Row::line)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let widths: [usize; 6] = std::array::from_fn(|column| width(column).unwrap_or(0));
        writeln!(f)?;
        for line in &lines {
            let [figure, median, spread, rounds, goal, met] = line;
            let text = format!(
                "{figure:<0$}  {median:>1$}  {spread:>2$}  {rounds:>3$}  {goal:>4$}  {met}",
                widths[0], widths[1], widths[2], widths[3], widths[4]
            );
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

impl Row {
    fn line(&self) -> [String; 6] {
        let [median, spread] = self.cells();
        let middle = median_of(&self.values);
        let (goal, met) = match self.goal {
            Goal::AtLeast(goal) => (format!("≥ {}", number(goal)), middle >= goal),
            Goal::AtMost(goal) => (format!("≤ {}", number(goal)), middle <= goal),
            Goal::None => {
                return [
                    self.figure.clone(),
                    median,
                    spread,
                    self.rounds(),
                    String::new(),
                    String::new(),
                ];
            }
        };
        let met = if met { "met" } else { "NOT MET" };
        [self.figure.clone(), median, spread, self.rounds(), goal, met.to_owned()]
    }

    fn rounds(&self) -> String {
        self.values.len().to_string()
    }

    fn cells(&self) -> [String; 2] {
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let median = format!("{} {}", number(median_of(&self.values)), self.unit);
        [median, format!("{} – {}", number(least), number(most))]
    }
}

/// The middle one of some values.
pub(crate) fn median_of(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Three digits that matter.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// The machine in a line, with a word on how quiet it is.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    let noisy = load.parse().is_ok_and(|load: f64| load > 0.5);
    let remark = if noisy {
        ": not quiet, the figures are noisy"
    } else {
        ""
    };
    format!("{cores} cores, load {load}{remark}")
}
