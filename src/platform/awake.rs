//! A lock that keeps the machine from falling asleep by itself: held by a child of the platform's own making, and gone with this process
//! however it ends, for the child lives until its input is closed.

use std::io;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// What holds the lock while the command after it runs. `sleep` is what a desktop asks for; logind before systemd 257 heeds that lock
/// against other users only, and so does not stop the power daemon of the same user, but such daemons leave a machine awake that is not
/// `idle`. A person may still close the lid (logind heeds no lock then), or say that locks are not to count (`systemctl suspend -i`).
#[cfg(not(target_os = "macos"))]
const HOLDER: &[&str] = &[
    "systemd-inhibit",
    "--what=sleep:idle",
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
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        // Ctrl-C at the terminal begins a drain, and reaches the whole group: the lock has to outlast it.
        #[cfg(unix)]
        command.process_group(0);
        Ok(Self {
            child: command.spawn()?,
        })
    }

    /// Resolves when it was refused, or is lost.
    pub async fn lost(&mut self) {
        // Not by `wait`, which would close the input first.
        let input = self.child.stdin.take();
        let _ = self.child.wait().await;
        drop(input);
    }
}
