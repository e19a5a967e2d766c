//! Gets the lines of the access log out without anybody waiting for it: they gather in memory, and a thread of its own writes what
//! has gathered at once. A line costs no system call of its own; where standard error takes no more, lines are left out and
//! counted.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{fmt, io, mem, thread};

use super::line::Line;
use crate::telemetry::LogFormat;

/// What may wait to be written, octets.
const MOST: usize = 256 * 1024;
/// What is kept of that when nothing waits, octets.
const KEPT: usize = 16 * 1024;
/// For so long lines gather.
const GATHER: Duration = Duration::from_millis(50);

/// The access log; cheap to clone.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    format: LogFormat,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// Some are with the writer.
    writing: bool,
    /// The writer waits for some.
    resting: bool,
    /// Nothing is gathered any more.
    hurry: bool,
    dropped: u64,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}

impl Log {
    /// Begins to write there.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(format: LogFormat, writer: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            format,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let log = Self(Arc::clone(&shared));
        thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || shared.write(writer))?;
        Ok(log)
    }

    /// One line more.
    pub(super) fn write(&self, line: &Line<'_>) {
        let at = SystemTime::now();
        let mut state = self.0.lock();
        if state.lines.len() >= MOST {
            state.dropped += 1;
            return;
        }
        match self.0.format {
            LogFormat::Pretty => line.pretty(at, &mut state.lines),
            LogFormat::Json => line.json(at, &mut state.lines),
        }
        if state.resting {
            state.resting = false;
            drop(state);
            self.0.changed.notify_all();
        }
    }

    /// Lines that were left out.
    pub fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }

    /// Waits until all is written, at most for so long; from now on lines are written as they come.
    pub fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut state = self.0.lock();
        state.hurry = true;
        self.0.changed.notify_all();
        while !state.lines.is_empty() || state.writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's thread; ends with the process.
    fn write(&self, mut writer: impl Write) {
        let mut lines = Vec::new();
        loop {
            self.take(&mut lines);
            // There is nowhere to tell of an error.
            let _ = writer.write_all(&lines);
            let _ = writer.flush();
            lines.clear();
            lines.shrink_to(KEPT);
            self.lock().writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for lines, lets some gather, and takes them.
    fn take(&self, lines: &mut Vec<u8>) {
        let mut state = self.lock();
        while state.lines.is_empty() {
            state.resting = true;
            state = self.wait(state);
        }
        state.resting = false;
        let until = Instant::now() + GATHER;
        while !state.hurry && state.lines.len() < MOST / 2 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        mem::swap(lines, &mut state.lines);
        state.writing = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Blocked(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            self.1.send(bytes.to_vec()).ok();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line() -> Line<'static> {
        Line {
            id: "0a-1",
            peer: "::1",
            user: None,
            bridge: None,
            transport: None,
            method: "GET",
            path: "/",
            status: Some(200),
            code: None,
            reason: None,
            usage: None,
            received: 0,
            sent: 0,
            first_byte: None,
            total: Duration::ZERO,
            outcome: "done",
        }
    }

    #[test]
    fn a_writer_that_stands_still_holds_nobody_up_and_costs_only_lines() {
        let (go, wait) = mpsc::channel();
        let (written, lines) = mpsc::channel();
        let log = Log::start(LogFormat::Json, Blocked(wait, written)).unwrap();
        let number = 20_000;
        for _ in 0..number {
            log.write(&line());
        }
        assert!(log.dropped() > 0);
        assert!(log.0.lock().lines.len() < MOST + 1024);
        log.flush(Duration::from_millis(1));
        drop(go);
        log.flush(Duration::from_secs(20));
        let whole: Vec<u8> = lines.try_iter().flatten().collect();
        let whole = String::from_utf8(whole).unwrap();
        assert_eq!(whole.lines().count() as u64 + log.dropped(), number);
        assert!(whole.ends_with('\n'));
    }
}
