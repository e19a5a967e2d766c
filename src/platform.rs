//! What only some platforms can do, with a plain fallback for the others; what a service manager and a process tell each other is in
//! [`service`], how the manager is given a bridge to run in [`autostart`], what
//! keeps a desktop from sleeping in [`awake`], how its browser is asked for a page in [`browser`].

pub mod autostart;
pub mod awake;
pub mod browser;
pub mod service;

/// Raises the soft limit of open files to the hard one, and returns what it is then; none where there is no such limit.
#[cfg(unix)]
pub fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// Raises the soft limit of open files to the hard one, and returns what it is then; none where there is no such limit.
#[cfg(not(unix))]
pub fn raise_open_files() -> Option<u64> {
    None
}

/// CPU time that the calling thread has spent so far; none where the platform does not tell.
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_vendor = "apple",
    target_os = "freebsd"
))]
pub fn thread_cpu() -> Option<std::time::Duration> {
    use rustix::time::{ClockId, clock_gettime};
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanos) = (u64::try_from(spent.tv_sec).ok()?, u32::try_from(spent.tv_nsec).ok()?);
    Some(std::time::Duration::new(seconds, nanos))
}

/// CPU time that the calling thread has spent so far; none where the platform does not tell.
#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_vendor = "apple",
    target_os = "freebsd"
)))]
pub fn thread_cpu() -> Option<std::time::Duration> {
    None
}

/// Makes the calling thread wake up as near to its time as the system can, instead of with others (Linux: 50 µs later).
#[cfg(target_os = "linux")]
pub fn wake_precisely() {
    // Without it, waits are a little longer.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

/// Makes the calling thread wake up as near to its time as the system can.
#[cfg(not(target_os = "linux"))]
pub fn wake_precisely() {}

/// Memory of this process in RAM, octets; none where the system does not tell cheaply.
pub fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Open files of this process; none where the system does not tell cheaply.
pub fn open_files() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    // Since Linux 6.2 its size is their number; before, they must be counted.
    match std::fs::metadata(FOLDER).ok()?.len() {
        0 => Some(std::fs::read_dir(FOLDER).ok()?.count() as u64),
        number => Some(number),
    }
}
