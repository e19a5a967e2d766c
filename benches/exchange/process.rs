//! Relay and bridge as processes of their own, and what the system says of them.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tunnel::relay::auth::Scopes;
use tunnel::relay::auth::tokens::Tokens;

const SECRET: &str = "a secret for benchmarks only, of no use elsewhere";
/// Clock ticks a second, as /proc counts them (proc(5): the same on every Linux that runs this).
const TICKS: f64 = 100.0;

/// A process that ends with its handle.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Process {
    pub(crate) fn of(child: Child) -> Self {
        Self(child)
    }

    /// CPU time spent so far, in user and kernel mode.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        // The name in parentheses may hold anything; what follows it is numbers, utime and stime the 12th and 13th.
        let (_, numbers) = stat.rsplit_once(')').expect("a line of /proc/PID/stat");
        let ticks: f64 = numbers
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|n| n.parse::<f64>().unwrap())
            .sum();
        Duration::from_secs_f64(ticks / TICKS)
    }

    /// Memory in RAM now, KiB.
    pub(crate) fn resident(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most memory in RAM so far, KiB.
    pub(crate) fn most_resident(&self) -> f64 {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> f64 {
        let status = self.proc("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .expect("a field of /proc/PID/status");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).expect("a living process")
    }
}

/// A relay.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    _folder: TempDir,
}

impl Relay {
    /// Starts it with these options beside its own, and waits until it listens.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::run(command("relay").arg("--quiet"), options)
    }

    /// The same, watched as in production: an access log that somebody reads, metrics, and usage in the store.
    pub(crate) fn start_watched() -> Self {
        Self::run(&mut command("relay"), &["--metrics-listen", "127.0.0.1:0"])
    }

    /// With none of these.
    pub(crate) fn start_unwatched() -> Self {
        Self::start(&["--usage-keep", "0s"])
    }

    fn run(command: &mut Command, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--jwt-secret-file"])
            .arg(secret)
            .arg("--data-dir")
            .arg(folder.path())
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let said = lines.find_map(|line| {
            line.split_once("listens on http://")
                .map(|(_, address)| address.to_owned())
        });
        let address = said.expect("the relay to listen").trim().parse().unwrap();
        // Whatever else it says must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            process: Process(child),
            address,
            _folder: folder,
        }
    }
}

/// A token of the user, good for everything.
pub(crate) fn token(user: &str) -> String {
    let tokens = Tokens::new(SECRET.as_bytes());
    let token = tokens.issue(user, Scopes::parse(None), Some(Duration::from_secs(24 * 3600)));
    token.unwrap().expose().to_owned()
}

/// A bridge.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) process: Process,
    _folder: TempDir,
}

impl Bridge {
    /// Starts it; a request to the relay waits until it is connected.
    pub(crate) fn start(relay: SocketAddr, upstream: SocketAddr, token: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = command("bridge")
            .args([
                "--quiet",
                "--relay",
                &format!("http://{relay}"),
                "--upstream",
                &format!("http://{upstream}"),
            ])
            .args(["--name", "bench", "--state-dir"])
            .arg(folder.path())
            .env("TUNNEL_TOKEN", token)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process: Process(child),
            _folder: folder,
        }
    }
}

fn command(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunnel"));
    command.arg(name).stdin(Stdio::null()).stdout(Stdio::null());
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("TUNNEL_") {
            command.env_remove(variable);
        }
    }
    command
}
