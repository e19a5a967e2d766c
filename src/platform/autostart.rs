//! A bridge that the system starts by itself: a unit of the user's own systemd. Where there is none, docs/desktop.md says what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::files;

/// The unit.
const UNIT: &str = "tunnel-bridge.service";
/// How often it is looked at after its start: a relay that refuses the token has done so by then.
const LOOKS: u32 = 8;
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// Why there is no such bridge.
#[derive(Debug, thiserror::Error)]
pub enum AutostartError {
    /// Another platform.
    #[error("only Linux with systemd can be set up by this; how macOS and Windows are is told in docs/desktop.md")]
    NotHere,
    /// There is no `systemctl`.
    #[error(
        "there is no systemd here (no 'systemctl'); have whatever starts programs on this machine run the same command without \
         --install, as docs/desktop.md has it"
    )]
    NoSystemd,
    /// The user's own systemd does not answer.
    #[error(
        "systemd does not answer this user: {0}\nLog in as this user, at the machine or by ssh (not by sudo or su), and try again; \
         in a container there is none"
    )]
    NoManager(String),
    /// It did not do what it was told.
    #[error("'{command}' failed: {detail}")]
    Failed {
        /// What it was told.
        command: String,
        /// Its words.
        detail: String,
    },
    /// A file cannot be written or removed.
    #[error("cannot write or remove {path}: {detail}")]
    File {
        /// The file.
        path: String,
        /// The system's words.
        detail: String,
    },
}

impl AutostartError {
    /// About a file.
    pub fn file(path: &Path, error: &io::Error) -> Self {
        Self::File {
            path: path.display().to_string(),
            detail: error.to_string(),
        }
    }
}

/// Where the unit is, in the user's folder for configuration.
pub fn unit_path(config: &Path) -> PathBuf {
    config.join("systemd/user").join(UNIT)
}

/// The words of the command in the unit; none if there is no unit. Those that it has in quotes may not be told as they were given.
pub fn command_words(config: &Path) -> Vec<String> {
    let unit = std::fs::read_to_string(unit_path(config)).unwrap_or_default();
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
    let words = line.unwrap_or_default().split_whitespace();
    words.map(|word| word.trim_matches('"').to_owned()).collect()
}

/// Whether it can be done here.
///
/// # Errors
/// [`AutostartError`]: why not.
pub fn check() -> Result<(), AutostartError> {
    if !cfg!(target_os = "linux") {
        return Err(AutostartError::NotHere);
    }
    match systemctl(&["show", "--property=Version"]) {
        Err(AutostartError::Failed { detail, .. }) => Err(AutostartError::NoManager(detail)),
        checked => checked,
    }
}

/// Writes the unit, starts it, now and at each start of the machine; starts it anew if it runs. Whether it runs without a login, too.
///
/// # Errors
/// [`AutostartError`].
pub fn install(config: &Path, program: &str, arguments: &[String]) -> Result<bool, AutostartError> {
    let path = unit_path(config);
    let folder = path.parent().unwrap_or(config);
    files::make_private_folder(folder)
        .and_then(|()| files::replace_private(&path, unit(program, arguments).as_bytes()))
        .map_err(|error| AutostartError::file(&path, &error))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--quiet", UNIT])?;
    systemctl(&["restart", UNIT])?;
    Ok(run("loginctl", &["--no-ask-password", "enable-linger"]).is_ok())
}

/// What became of it in its first seconds: nothing is returned if it runs, else how it ended, in systemd's words.
///
/// # Errors
/// [`AutostartError`].
pub fn first_end() -> Result<Option<String>, AutostartError> {
    for _ in 0..LOOKS {
        std::thread::sleep(BETWEEN_LOOKS);
        let properties = "--property=ActiveState,SubState,Result,ExecMainStatus";
        let state = run("systemctl", &["--user", "show", properties, UNIT])?;
        let of = |name: &str| {
            state
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default()
        };
        if matches!(of("ActiveState="), "failed" | "inactive") || of("SubState=") == "auto-restart" {
            return Ok(Some(format!("{} {}", of("Result="), of("ExecMainStatus="))));
        }
    }
    Ok(None)
}

/// Stops it and removes its unit; false if there is none.
///
/// # Errors
/// [`AutostartError`].
pub fn uninstall(config: &Path) -> Result<bool, AutostartError> {
    let path = unit_path(config);
    if !path.exists() {
        return Ok(false);
    }
    check()?;
    systemctl(&["disable", "--quiet", "--now", UNIT])?;
    std::fs::remove_file(&path).map_err(|error| AutostartError::file(&path, &error))?;
    systemctl(&["daemon-reload"])?;
    Ok(true)
}

fn systemctl(arguments: &[&str]) -> Result<(), AutostartError> {
    run("systemctl", &[&["--user"], arguments].concat()).map(drop)
}

/// What it prints.
fn run(program: &str, arguments: &[&str]) -> Result<String, AutostartError> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let detail = match output {
        Ok(output) if output.status.success() => return Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => words(&output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(AutostartError::NoSystemd),
        Err(error) => error.to_string(),
    };
    let command = [&[program], arguments].concat().join(" ");
    Err(AutostartError::Failed { command, detail })
}

fn words(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.is_empty() {
        output.status.to_string()
    } else {
        said
    }
}

fn unit(program: &str, arguments: &[String]) -> String {
    let arguments: String = arguments
        .iter()
        // In the program's path it would be none of a variable.
        .map(|argument| format!(" {}", quoted(argument).replace('$', "$$")))
        .collect();
    let program = quoted(program);
    format!(
        "\
# Made by 'tunnel bridge --install', and made anew by it; 'tunnel bridge --uninstall' removes it.

[Unit]
Description=tunnel bridge

[Service]
Type=exec
ExecStart={program}{arguments}
# What keeps the machine awake must outlast the drain.
KillMode=mixed
Restart=on-failure
RestartSec=10
# Wrong settings, or a token that the relay refuses: another try would change nothing.
RestartPreventExitStatus=2 3
# Longer than a bridge that stops lets requests finish.
TimeoutStopSec=40

# What needs mounts of its own (ProtectSystem= and the like) is left out: not every system lets users have them.
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=default.target
"
    )
}

/// A word as systemd reads it in a command line (systemd.service(5), "Command lines"; systemd.unit(5), "Specifiers").
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.:_-=,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('"');
    for c in word.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '%' => quoted.push_str("%%"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_systemd_reads_them() {
        let line = |program: &str, argument: &str| {
            let unit = unit(program, &[argument.to_owned()]);
            let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
            line.unwrap().to_owned()
        };
        assert_eq!(line("/bin/tunnel", "--priority=-1"), "/bin/tunnel --priority=-1");
        assert_eq!(line("/my $ bin/t", "--allow=* /*"), r#""/my $ bin/t" "--allow=* /*""#);
        assert_eq!(line("/t", r#"--a=$HOME "%h" \n;"#), r#"/t "--a=$$HOME \"%%h\" \\n;""#);
        assert_eq!(line("/t", "--a=1\n[Service]"), r#"/t "--a=1\x0a[Service]""#);
    }
}
