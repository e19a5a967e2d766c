//! The binary `tunnel`: everything is in the library.

use std::process::ExitCode;

/// Gives memory back to the system after a burst, which the usual one does not (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tunnel::cmd::main()
}
