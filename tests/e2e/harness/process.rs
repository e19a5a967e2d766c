//! The program itself, as processes of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::within;

pub(crate) struct Process {
    child: Child,
    /// Its standard error, always read on: who is not read stands still once the pipe is full.
    errors: UnboundedReceiver<String>,
    output: Lines<BufReader<ChildStdout>>,
}

/// What a process that ended left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// The program with these arguments, in a home of its own.
pub(crate) fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunnel"));
    command
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .env("MIMALLOC_PURGE_DELAY", "1000")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs the program to its end.
pub(crate) async fn run(mut command: Command) -> Ended {
    let output = within("the program's end", command.output()).await.unwrap();
    Ended {
        code: output.status.code(),
        output: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

fn read_on(stream: ChildStderr) -> UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut stream = BufReader::new(stream).lines();
        while let Ok(Some(line)) = stream.next_line().await {
            // Read on, whether or not somebody looks at it.
            let _ = sender.send(line);
        }
    });
    lines
}

impl Process {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let errors = read_on(child.stderr.take().unwrap());
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, errors, output }
    }

    /// A relay on a port of its own, and where it listens.
    pub(crate) async fn relay(home: &Path, more: &[&str]) -> (Self, SocketAddr) {
        let arguments = [&["relay", "--listen", "127.0.0.1:0"], more].concat();
        let mut relay = Self::start(command(home, &arguments));
        let line = relay.error_line("listens on http://").await;
        let address = line.rsplit("http://").next().unwrap().trim().parse().unwrap();
        (relay, address)
    }

    /// A bridge that is connected.
    pub(crate) async fn bridge(home: &Path, relay: SocketAddr, token: &str, more: &[&str]) -> Self {
        let relay = format!("http://{relay}");
        let arguments = [&["bridge", "--relay", &relay], more].concat();
        let mut command = command(home, &arguments);
        command.env("TUNNEL_TOKEN", token);
        let mut bridge = Self::start(command);
        bridge.error_line("connected relay=").await;
        bridge
    }

    /// The first line on standard error that has these words.
    pub(crate) async fn error_line(&mut self, words: &str) -> String {
        within(words, async {
            while let Some(line) = self.errors.recv().await {
                if line.contains(words) {
                    return line;
                }
            }
            panic!("the program ended without saying '{words}'");
        })
        .await
    }

    /// The first line on standard output that has these words.
    pub(crate) async fn output_line(&mut self, words: &str) -> String {
        within(words, async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                if line.contains(words) {
                    return line;
                }
            }
            panic!("the program ended without printing '{words}'");
        })
        .await
    }

    /// The most memory it ever held, octets; not its code, which a test's build has much of.
    pub(crate) fn most_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let figure = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
        };
        figure("VmHWM:") - figure("RssFile:")
    }

    pub(crate) fn id(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.id(), signal).unwrap();
    }

    /// Waits for its end; the exit code.
    pub(crate) async fn ended(mut self) -> Option<i32> {
        within("the program's end", self.child.wait()).await.unwrap().code()
    }
}
