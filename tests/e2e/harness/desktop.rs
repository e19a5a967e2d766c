//! A desktop with a home of its own, on which the program runs as its owner starts it.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::process::{Ended, Process, command, run};

pub(crate) struct Desktop {
    pub(crate) home: tempfile::TempDir,
    pub(crate) relay: String,
}

impl Desktop {
    /// One that belongs to this relay.
    pub(crate) fn of(relay: SocketAddr) -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            relay: format!("http://{relay}"),
        }
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        run(command(self.home.path(), arguments)).await
    }

    /// The program, which runs on.
    pub(crate) fn start(&self, arguments: &[&str]) -> Process {
        Process::start(command(self.home.path(), arguments))
    }

    /// Is let in with a code.
    pub(crate) async fn pair(&self, code: &str) -> Ended {
        self.run(&["bridge", "login", "--relay", &self.relay, "--code", code])
            .await
    }

    /// What login kept.
    pub(crate) fn kept(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.home.path().join(".config/tunnel/relays"));
        let paths = entries.into_iter().flatten().map(|entry| entry.unwrap().path());
        // The lock on one of them is none.
        paths
            .filter(|path| path.extension().is_none_or(|ending| ending != "lock"))
            .collect()
    }
}
