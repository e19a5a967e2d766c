//! The benchmark: what the tunnel costs, measured in one run beside the upstream asked directly, slice by slice in turn, so
//! that a machine that drifts hurts both alike. Relay and bridge are the real binary, in their own processes.
//!
//! `cargo bench --bench exchange` for all of it, `cargo bench --bench exchange -- --quick --only a,b` for less. The figures and
//! their goals are explained in `docs/benchmarks.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark prints its table, and ends where it cannot measure"
)]

mod cpu;
mod crowd;
mod delay;
mod distance;
mod forward;
mod listen;
mod memory;
mod process;
mod speed;
mod swarm;
mod table;
mod upstream;
mod watch;

use std::net::SocketAddr;

use clap::Parser;
use clap::builder::PossibleValuesParser;

use table::Table;

/// Measures the tunnel: requests per second and latency beside the upstream asked directly, memory, distance, CPU.
#[derive(Debug, Parser)]
#[command(name = "exchange")]
struct Arguments {
    /// Fewer and shorter rounds, and 200 bridges instead of 2,000
    #[arg(long)]
    quick: bool,
    /// Only these: a (64 callers), b (one caller), c (memory), d (40 ms away), e (CPU), f (memory, polling), g (CPU of store, metrics and access log), h (CPU of pages that look)
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = PossibleValuesParser::new(["a", "b", "c", "d", "e", "f", "g", "h"]))]
    only: Vec<String>,
    /// Be a plain TCP forwarder to this address, for the benchmark that started this one
    #[arg(long, hide = true)]
    forward: Option<SocketAddr>,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
    /// The filter that cargo passes on to every benchmark; this one is chosen with --only
    #[arg(hide = true)]
    filter: Vec<String>,
}

impl Arguments {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(target) = arguments.forward {
        forward::run(target);
        return;
    }
    if !arguments.bench && !arguments.quick && arguments.only.is_empty() {
        // Run with all other targets as a test: that must not take minutes.
        println!("Nothing is measured without --bench, --quick or --only; see --help.");
        return;
    }
    tunnel::platform::raise_open_files();
    println!("{}", table::machine());
    // The callers' own thread: the upstream has another, so that asking it directly may use two cores.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let table = runtime.block_on(measure(&arguments));
    println!("{table}");
}

async fn measure(arguments: &Arguments) -> Table {
    let quick = arguments.quick;
    let mut table = Table::default();
    if ["a", "b", "e"].iter().any(|part| arguments.wants(part)) {
        let path = speed::Path::start().await;
        if arguments.wants("a") {
            speed::many_callers(&path, quick, &mut table).await;
        }
        if arguments.wants("b") {
            speed::one_caller(&path, quick, &mut table).await;
        }
        if arguments.wants("e") {
            cpu::per_request(&path, quick, &mut table).await;
            cpu::per_chunk(&path, quick, &mut table).await;
        }
    }
    if arguments.wants("g") {
        watch::measure(quick, &mut table).await;
    }
    if arguments.wants("h") {
        listen::measure(quick, &mut table).await;
    }
    if arguments.wants("d") {
        distance::measure(quick, &mut table).await;
    }
    if arguments.wants("c") {
        memory::measure(quick, &mut table).await;
    }
    if arguments.wants("f") {
        memory::polling(quick, &mut table).await;
    }
    table
}
