//! What only some platforms can do, with a plain fallback for the others.

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
