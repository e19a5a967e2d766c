//! The report as a picture: for each scenario a plot of percentiles, one line for each way. The text in it is text, the colours
//! follow the page that shows it, and it has a ground of its own.

use std::fmt::Write as _;

use super::report::{Figures, Measured, Report};
use super::settings::Scenario;
use super::table::us;

const WIDTH: f64 = 960.0;
const PANEL: (f64, f64) = (480.0, 290.0);
const HEAD: f64 = 74.0;
const FOOT: f64 = 34.0;
/// Around the field of a panel: left, right, top, bottom.
const AROUND: [f64; 4] = [70.0, 24.0, 38.0, 44.0];
/// Where the horizontal axis ends: 99.9 percent, at a logarithmic scale of what is above.
const LAST: f64 = 3.0;
const STYLE: &str = "\
    text { font: 12px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #4a5361 }
    .title { font-size: 17px; font-weight: 600; fill: #1b222c }
    .panel { font-size: 13px; font-weight: 600; fill: #1b222c }
    .ground { fill: #fcfcfd } .field { fill: none; stroke: #9aa3b0 } .grid { stroke: #dfe3e8 }
    .line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
    .direct { stroke: #66707d } .ws, .desktop { stroke: #1667c8 } .poll { stroke: #b9500a }
    .direct { stroke-dasharray: 2 4; stroke-linecap: round } .poll { stroke-dasharray: 9 4 }
    @media (prefers-color-scheme: dark) {
      text { fill: #b4bdca } .title, .panel { fill: #eef1f5 }
      .ground { fill: #14181e } .field { stroke: #65707e } .grid { stroke: #2a313b }
      .direct { stroke: #a3adba } .ws, .desktop { stroke: #62a8f7 } .poll { stroke: #f49a55 }
    }";

/// All of it.
pub(super) fn render(report: &Report) -> String {
    let panels: Vec<(String, &Measured)> = report
        .scenarios
        .iter()
        .filter_map(|measured| Some((title(measured, report)?, measured)))
        .collect();
    let height = HEAD + PANEL.1 * panels.len().div_ceil(2) as f64 + FOOT;
    let mut svg = Svg::default();
    svg.line(&format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-labelledby="title what">"#
    ));
    let name = format!("tunnel bench {}: {}", report.tunnel, subject(report));
    svg.element("title", r#"id="title""#, &name);
    let what = "Latency by percentile, for each way to the upstream; lower is better.";
    svg.element("desc", r#"id="what""#, what);
    svg.line(&format!("<style>\n{STYLE}\n</style>"));
    svg.line(&format!(
        r#"<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>"#
    ));
    svg.text((24.0, 30.0), "title", "start", &name);
    legend(&mut svg, &panels);
    for (number, (title, measured)) in panels.iter().enumerate() {
        let corner = (PANEL.0 * (number % 2) as f64, HEAD + PANEL.1 * (number / 2) as f64);
        panel(&mut svg, corner, title, measured);
    }
    let foot = format!("{what} {}", machine(report));
    svg.text((24.0, height - 14.0), "", "start", &foot);
    svg.line("</svg>");
    svg.0
}

/// What a panel shows; none if there is nothing to be drawn of it.
fn title(measured: &Measured, report: &Report) -> Option<String> {
    measured.ways.iter().find(|way| is_drawn(way))?;
    match measured.scenario {
        Scenario::Small => Some("Small exchange, one caller".to_owned()),
        Scenario::Crowd => Some(format!("Small exchange, {} callers", report.settings.concurrency)),
        Scenario::First => Some("First token".to_owned()),
        Scenario::Tokens if report.settings.model.is_some() => Some("Gaps between tokens".to_owned()),
        Scenario::Tokens => Some(format!(
            "Gaps between tokens, one every {} ms",
            report.settings.token_interval_ms
        )),
        Scenario::Bulk | Scenario::Reconnect => None,
    }
}

fn is_drawn(way: &Figures) -> bool {
    way.time.as_ref().is_some_and(|time| time.points.len() > 1)
}

fn subject(report: &Report) -> String {
    let settings = &report.settings;
    match (&settings.relay, &settings.bridge) {
        (Some(_), Some(bridge)) => format!("the desktop {bridge}"),
        (Some(_), None) => "a deployment".to_owned(),
        _ if settings.rtt_ms > 0.0 => format!("bridge and relay {} ms apart", settings.rtt_ms),
        _ => "everything over loopback".to_owned(),
    }
}

fn machine(report: &Report) -> String {
    let machine = &report.machine;
    let cpu = machine.cpu.as_deref().unwrap_or(machine.arch);
    format!("{} cores, {cpu}, {}.", machine.cores, machine.os)
}

fn legend(svg: &mut Svg, panels: &[(String, &Measured)]) {
    let mut ways: Vec<&str> = Vec::new();
    for way in panels.iter().flat_map(|(_, measured)| &measured.ways) {
        if !ways.contains(&way.way) {
            ways.push(way.way);
        }
    }
    for (way, number) in ways.iter().zip(0_u8..) {
        let at = 24.0 + 110.0 * f64::from(number);
        svg.line(&format!(r#"<path class="line {way}" d="M{at} 52h34"/>"#));
        svg.text((at + 42.0, 56.0), "", "start", way);
    }
}

/// One plot, its upper left corner here.
fn panel(svg: &mut Svg, corner: (f64, f64), title: &str, measured: &Measured) {
    let [left, right, top, bottom] = AROUND;
    let field = Field {
        left: corner.0 + left,
        top: corner.1 + top,
        width: PANEL.0 - left - right,
        height: PANEL.1 - top - bottom,
        decades: decades(measured),
    };
    svg.text((field.left, field.top - 12.0), "panel", "start", title);
    field.grid(svg);
    for way in measured.ways.iter().filter(|way| is_drawn(way)) {
        let points = way.time.as_ref().map(|time| time.points.as_slice()).unwrap_or_default();
        svg.line(&format!(
            r#"<path class="line {}" d="{}"/>"#,
            way.way,
            field.path(points)
        ));
    }
}

/// From which power of ten to which: what holds every point that is drawn, a whole one at the least.
fn decades(measured: &Measured) -> (f64, f64) {
    let times = measured.ways.iter().filter_map(|way| way.time.as_ref());
    let drawn = times.flat_map(|time| time.points.iter().filter(|point| across(point[0]) < LAST));
    // Tokens that came together are no gap that anybody sees.
    let floor = if measured.scenario == Scenario::Tokens {
        1e3
    } else {
        0.1
    };
    let exponents = drawn.map(|point| point[1].max(floor).log10());
    let (least, most) = exponents.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), exponent| {
        (least.min(exponent), most.max(exponent))
    });
    if least > most {
        return (0.0, 1.0);
    }
    let around = ((1.0 - (most - least)) / 2.0).max(0.06);
    (least - around, most + around)
}

/// Where a percentile stands: the number of nines.
fn across(percent: f64) -> f64 {
    -(1.0 - percent / 100.0).max(1e-9).log10()
}

/// The inner part of a plot.
struct Field {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    decades: (f64, f64),
}

impl Field {
    fn x(&self, percent: f64) -> f64 {
        self.left + self.width * (across(percent) / LAST).clamp(0.0, 1.0)
    }

    fn y(&self, time_us: f64) -> f64 {
        let (least, most) = self.decades;
        let up = (time_us.max(1e-3).log10() - least) / (most - least);
        self.top + self.height * (1.0 - up.clamp(0.0, 1.0))
    }

    fn grid(&self, svg: &mut Svg) {
        let (right, bottom) = (self.left + self.width, self.top + self.height);
        for percent in [0.0, 50.0, 90.0, 99.0, 99.9] {
            let x = self.x(percent);
            svg.line(&format!(
                r#"<path class="grid" d="M{x:.1} {:.1}V{bottom:.1}"/>"#,
                self.top
            ));
            let anchor = if percent > 99.0 { "end" } else { "middle" };
            svg.text((x, bottom + 17.0), "", anchor, &format!("{percent} %"));
        }
        let (least, most) = self.decades;
        // With few decades, steps between them help the eye.
        let steps: &[f64] = if most - least > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        for decade in least.floor() as i32..=most.floor() as i32 {
            let times = steps.iter().map(|step| step * 10_f64.powi(decade));
            for time in times.filter(|time| (least..=most).contains(&time.log10())) {
                let y = self.y(time);
                svg.line(&format!(
                    r#"<path class="grid" d="M{:.1} {y:.1}H{right:.1}"/>"#,
                    self.left
                ));
                svg.text((self.left - 8.0, y + 4.0), "", "end", &label(time));
            }
        }
        let (x, y) = (self.left, self.top);
        let (width, height) = (self.width, self.height);
        svg.line(&format!(
            r#"<rect class="field" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
        ));
    }

    fn path(&self, points: &[[f64; 2]]) -> String {
        let mut path = String::new();
        for point in points {
            let command = if path.is_empty() { 'M' } else { 'L' };
            // Writing to a string cannot fail.
            let _ = write!(path, "{command}{:.1} {:.1}", self.x(point[0]), self.y(point[1]));
            if across(point[0]) >= LAST {
                break;
            }
        }
        path
    }
}

/// A round time without digits that say nothing.
fn label(time_us: f64) -> String {
    us(Some(time_us)).replace(".00", "").replace(".0 ", " ")
}

/// A picture that grows line by line.
#[derive(Default)]
struct Svg(String);

impl Svg {
    fn line(&mut self, line: &str) {
        self.0 += line;
        self.0.push('\n');
    }

    fn element(&mut self, name: &str, attributes: &str, text: &str) {
        self.line(&format!("<{name} {attributes}>{}</{name}>", escape(text)));
    }

    fn text(&mut self, at: (f64, f64), class: &str, anchor: &str, text: &str) {
        let attributes = format!(
            r#"class="{class}" x="{:.1}" y="{:.1}" text-anchor="{anchor}""#,
            at.0, at.1
        );
        self.element("text", &attributes, text);
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '&' => escaped += "&amp;",
            '"' => escaped += "&quot;",
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::bench::report::tests::example;

    #[test]
    fn the_picture_is_well_formed_has_a_line_for_each_way_and_nothing_that_runs() {
        let mut report = example(false);
        report.machine.cpu = Some("<CPU> & \"more\"".to_owned());
        let svg = render(&report);
        let document = roxmltree::Document::parse(&svg).unwrap();
        let count = |name: &str, class: &str| {
            let named = document
                .descendants()
                .filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", name)));
            named.filter(|node| node.attribute("class") == Some(class)).count()
        };
        // Four panels and the legend.
        for way in ["line direct", "line ws", "line poll"] {
            assert_eq!(count("path", way), 5, "{way}");
        }
        assert_eq!(count("text", "panel"), 4);
        assert!(svg.contains("prefers-color-scheme: dark") && !svg.contains("<script"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn without_figures_there_is_still_a_picture() {
        let mut report = example(false);
        report.scenarios.clear();
        assert!(roxmltree::Document::parse(&render(&report)).is_ok());
    }
}
