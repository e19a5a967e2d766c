//! The machine that measures, as a reader of the figures must know it.

use serde::Serialize;

/// What it is, and how busy it was.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Machine {
    pub(super) cores: usize,
    /// None where the system does not tell.
    pub(super) cpu: Option<String>,
    pub(super) os: String,
    pub(super) arch: &'static str,
    /// Of the last minute, before and after; none where the system does not tell.
    pub(super) load_before: Option<f64>,
    pub(super) load_after: Option<f64>,
}

impl Machine {
    /// As it is before the measurement.
    pub(super) fn look() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            cpu: cpu(),
            os: os(),
            arch: std::env::consts::ARCH,
            load_before: load(),
            load_after: None,
        }
    }

    /// As it is after it.
    pub(super) fn look_again(&mut self) {
        self.load_after = load();
    }
}

#[cfg(target_os = "linux")]
fn cpu() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
}

#[cfg(not(target_os = "linux"))]
fn cpu() -> Option<String> {
    None
}

#[cfg(target_os = "linux")]
fn os() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // Further words name builds and machines.
    let version = release.trim().split('-').next().unwrap_or_default();
    format!("Linux {version}").trim().to_owned()
}

#[cfg(not(target_os = "linux"))]
fn os() -> String {
    std::env::consts::OS.to_owned()
}

#[cfg(target_os = "linux")]
fn load() -> Option<f64> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    load.split(' ').next()?.parse().ok()
}

#[cfg(not(target_os = "linux"))]
fn load() -> Option<f64> {
    None
}
