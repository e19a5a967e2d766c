//! The log: on standard error, as text for people or as JSON for machines; above a status line where one is shown.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::MultiProgress;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

static FOR_PEOPLE: AtomicBool = AtomicBool::new(true);

/// Whether people read what this process says.
pub fn is_for_people() -> bool {
    FOR_PEOPLE.load(Ordering::Relaxed)
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
    let ours = Targets::new().with_target("tunnel", level);
    let writer = AboveStatus(above.clone());
    let registry = tracing_subscriber::registry().with(ours);
    // A second start, as tests may do, changes nothing.
    let _ = match format {
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
