//! The log: on standard error, as text for people or as JSON for machines; above a status line where one is shown.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::MultiProgress;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Changes what is told while the log runs.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

static FOR_PEOPLE: AtomicBool = AtomicBool::new(true);

static TELLS_INFO: AtomicBool = AtomicBool::new(true);

/// Whether people read what this process says.
pub fn is_for_people() -> bool {
    FOR_PEOPLE.load(Ordering::Relaxed)
}

/// How the lines of this process look.
pub fn format() -> LogFormat {
    if is_for_people() {
        LogFormat::Pretty
    } else {
        LogFormat::Json
    }
}

/// Whether what is of level `info` is told now.
pub fn tells_info() -> bool {
    TELLS_INFO.load(Ordering::Relaxed)
}

/// Starts the log. `verbosity`: 0 as usual, above it more, -1 warnings only, below it errors only. Lines go above the status lines of `above`.
pub fn start(format: LogFormat, verbosity: i8, above: &MultiProgress) {
    FOR_PEOPLE.store(format == LogFormat::Pretty, Ordering::Relaxed);
    let level = match verbosity {
        i8::MIN..=-2 => LevelFilter::ERROR,
        -1 => LevelFilter::WARN,
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let (filter, handle) = reload::Layer::new(ours(level));
    let writer = AboveStatus(above.clone());
    let registry = tracing_subscriber::registry().with(filter);
    // A second start, as tests may do, changes nothing.
    let started = match format {
        LogFormat::Pretty => {
            let layer = tracing_subscriber::fmt::layer()
                .with_writer(writer)
                .with_target(false)
                .with_ansi(io::stderr().is_terminal());
            registry.with(layer).try_init()
        }
        LogFormat::Json => registry
            .with(tracing_subscriber::fmt::layer().json().with_writer(writer))
            .try_init(),
    };
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// There is no level of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the levels are error, warn, info, debug and trace")]
pub struct UnknownLevel;

/// Tells from now on what is of this level or above.
///
/// # Errors
/// [`UnknownLevel`].
pub fn set_level(name: &str) -> Result<(), UnknownLevel> {
    let level = match name {
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return Err(UnknownLevel),
    };
    if let Some(filter) = FILTER.get() {
        // A log that is gone has no level.
        let _ = filter.reload(ours(level));
    }
    Ok(())
}

/// Only what this program says; its dependencies are quiet.
fn ours(level: LevelFilter) -> Targets {
    TELLS_INFO.store(level >= LevelFilter::INFO, Ordering::Relaxed);
    Targets::new().with_target("tunnel", level)
}

#[derive(Clone)]
struct AboveStatus(MultiProgress);

impl<'a> MakeWriter<'a> for AboveStatus {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for AboveStatus {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
