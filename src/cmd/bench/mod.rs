//! `tunnel bench`: what the transports cost, side by side, with the upstream asked directly between them.
//!
//! [`settings`] says what to measure, [`stage`] sets it up (on [`part`], [`wire`], [`clock`]), [`scenario`] measures one way once
//! (in [`pacing`]), [`measurement`] keeps the figures, [`report`] makes data of them, [`table`] and [`plot`] show it.

mod clock;
mod machine;
mod measurement;
mod pacing;
mod part;
mod plot;
mod report;
mod scenario;
mod settings;
mod site;
mod stage;
mod table;
mod wire;

use std::time::Instant;

use anyhow::Context;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

pub use self::settings::Args;

use self::machine::Machine;
use self::measurement::Series;
use self::report::{Measured, Report, Told};
use self::settings::{Settings, Subject};
use self::site::Site;
use self::stage::Stage;
use super::{Exit, Failure, print};
use crate::platform::raise_open_files;
use crate::shutdown::Shutdown;

/// Runs the command.
///
/// # Errors
/// [`Failure`] with its exit code; there is one also when requests failed.
pub fn main(args: &Args, bars: &MultiProgress) -> Result<(), Failure> {
    let settings = args.settings()?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let report = runtime.block_on(run(args, &settings, bars));
    // What is being looked up is not waited for.
    runtime.shutdown_background();
    let report = report?;
    print(table::render(&report).trim_end());
    write(&report, &settings)?;
    match report.errors {
        0 => Ok(()),
        errors => Err(Failure::new(Exit::Failed, anyhow::anyhow!("{errors} requests failed"))),
    }
}

fn write(report: &Report, settings: &Settings) -> Result<(), Failure> {
    if let Some(file) = &settings.json {
        let json = serde_json::to_string_pretty(report).context("cannot write the figures as JSON")?;
        std::fs::write(file, json + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &settings.plot {
        std::fs::write(file, plot::render(report)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Sets the stage, measures, and leaves; at the first signal it leaves at once.
async fn run(args: &Args, settings: &Settings, bars: &MultiProgress) -> Result<Report, Failure> {
    let shutdown = Shutdown::new();
    tokio::spawn(shutdown.clone().on_signals("stopping"));
    let site = site(args, settings, &shutdown).await?;
    let mut stage = Stage::empty()?;
    let outcome = tokio::select! {
        outcome = measure(site, settings, &mut stage, bars) => outcome,
        () = shutdown.draining() => Err(Failure::new(Exit::Failed, anyhow::anyhow!("interrupted"))),
    };
    tokio::select! {
        () = stage.leave() => {}
        () = shutdown.ended() => {}
    }
    outcome
}

/// The relay to measure, if it is one elsewhere.
async fn site(args: &Args, settings: &Settings, shutdown: &Shutdown) -> Result<Option<Site>, Failure> {
    if matches!(settings.subject, Subject::Alone { .. }) {
        return Ok(None);
    }
    let url = args.relay.relay(&args.network, "bench")?;
    let dialer = args.network.dialer()?;
    let token = args.relay.read_token(&url, &dialer, "bench", shutdown).await?;
    Ok(Some(Site { url, dialer, token }))
}

async fn measure(
    site: Option<Site>,
    settings: &Settings,
    stage: &mut Stage,
    bars: &MultiProgress,
) -> Result<Report, Failure> {
    let mut machine = Machine::look();
    let began = Instant::now();
    let told = set(site, settings, stage).await?;
    let scenarios = rounds(settings, stage, bars).await?;
    machine.look_again();
    Ok(Report {
        tunnel: env!("CARGO_PKG_VERSION"),
        settings: told,
        machine,
        left_out: stage.left_out.clone(),
        seconds: began.elapsed().as_secs_f64(),
        errors: scenarios.iter().map(Measured::errors).sum(),
        scenarios,
    })
}

/// Sets the stage: at this site, or else alone.
async fn set(site: Option<Site>, settings: &Settings, stage: &mut Stage) -> Result<Told, Failure> {
    let transport = match (&settings.subject, &site) {
        (Subject::Alone { rtt }, _) => {
            stage.set_alone(*rtt, settings).await?;
            None
        }
        (Subject::Desktop { name, .. }, Some(site)) => {
            let transport = site.transport_of(name).await?;
            stage.set_desktop(site, name, settings);
            transport
        }
        (_, Some(site)) => {
            site.check().await?;
            stage.set_deployment(site.clone(), settings).await?;
            None
        }
        (_, None) => None,
    };
    let relay = site.map(|site| site.url.to_string());
    Ok(Told::new(settings, relay, transport))
}

/// Measures everything in turn, each round in another order; the first round is a warm-up and does not count.
async fn rounds(settings: &Settings, stage: &Stage, bars: &MultiProgress) -> anyhow::Result<Vec<Measured>> {
    let mut all = Vec::new();
    for _ in &settings.scenarios {
        let series: anyhow::Result<Vec<Series>> = stage.ways.iter().map(|way| Series::new(way.name)).collect();
        all.push(series?);
    }
    let bar = bar(bars, settings, stage);
    for round in 0..=settings.rounds {
        for (scenario, series) in settings.scenarios.iter().zip(&mut all) {
            for turn in 0..stage.ways.len() {
                let at = (turn + round as usize) % stage.ways.len();
                let (Some(way), Some(series)) = (stage.ways.get(at), series.get_mut(at)) else {
                    continue;
                };
                bar.set_message(format!("{}, {}", scenario.name(), way.name));
                let slice = scenario::measure(*scenario, stage, way, settings).await?;
                bar.inc(1);
                if let Some(slice) = slice.filter(|_| round > 0) {
                    series.add(&slice);
                }
            }
        }
    }
    bar.finish_and_clear();
    for series in &mut all {
        series.retain(|series| !series.rounds.is_empty());
    }
    let measured = settings.scenarios.iter().zip(&all);
    Ok(measured
        .map(|(scenario, series)| Measured::new(*scenario, series))
        .collect())
}

fn bar(bars: &MultiProgress, settings: &Settings, stage: &Stage) -> ProgressBar {
    let slices = (u64::from(settings.rounds) + 1) * (settings.scenarios.len() * stage.ways.len()) as u64;
    let bar = bars.add(ProgressBar::new(slices));
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} · {eta} left") {
        bar.set_style(style);
    }
    bar
}
