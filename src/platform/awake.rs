//! A lock that keeps the machine from falling asleep by itself: held by a child of the platform's own making, and gone with this process
//! however it ends, for the child lives until its input is closed.

use std::io;
use std::process::{Child, Command, Stdio};

/// What holds the lock while the command after it runs. A person may still close the lid (logind heeds no lock then), or say that
/// locks are not to count (`systemctl suspend -i`). Only `sleep` is blocked: the screen may go dark.
#[cfg(not(target_os = "macos"))]
const HOLDER: &[&str] = &[
    "systemd-inhibit",
    "--what=sleep",
    "--mode=block",
    "--who=tunnel",
    "--why=A request is being answered",
    "cat",
];
/// The same: no idle sleep, while the screen may go dark.
#[cfg(target_os = "macos")]
const HOLDER: &[&str] = &["caffeinate", "-i", "cat"];

/// The lock. It is free when this is dropped.
#[derive(Debug)]
pub struct Lock {
    child: Child,
}

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// The system's; `NotFound` where there is nothing that could hold it.
    pub fn take() -> io::Result<Self> {
        let [program, arguments @ ..] = HOLDER else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child })
    }

    /// Whether it was refused, or has come to its end by itself.
    pub fn is_lost(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Where it is gone already there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
