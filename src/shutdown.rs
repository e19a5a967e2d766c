//! How a process ends: tell that it is leaving, stop accepting, finish what is in flight within a grace period, then end. A second
//! signal ends at once.

use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// Shared by everything that must know when to stop.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    leaving: CancellationToken,
    draining: CancellationToken,
    ended: CancellationToken,
    tracker: TaskTracker,
}

impl Shutdown {
    /// Nothing is stopping yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tasks that a drain waits for.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Whether it is known that the end comes; work may still be taken.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Resolves when it is known that the end comes.
    pub fn leaving(&self) -> WaitForCancellationFuture<'_> {
        self.leaving.cancelled()
    }

    /// Whether the drain began.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when the drain begins.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.draining.cancelled()
    }

    /// Resolves when what is still running must end at once.
    pub fn ended(&self) -> WaitForCancellationFuture<'_> {
        self.ended.cancelled()
    }

    /// A token for those who only know how to be cancelled.
    pub fn end_token(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Makes known that the end comes. Somebody has to begin the drain: see [`Shutdown::drain_after`].
    pub fn leave(&self) {
        self.leaving.cancel();
    }

    /// Once it is known that the end comes: begins the drain after this spell.
    pub async fn drain_after(&self, spell: impl Future<Output = ()>) {
        self.leaving().await;
        tokio::select! {
            () = spell => self.drain(),
            () = self.draining() => {}
        }
    }

    /// Begins the drain.
    pub fn drain(&self) {
        self.leaving.cancel();
        self.draining.cancel();
    }

    /// Ends everything at once.
    pub fn end(&self) {
        self.drain();
        self.ended.cancel();
    }

    /// Once the drain began: waits for all tasks, at most `grace`, then ends the rest.
    pub async fn finish(&self, grace: Duration) {
        self.draining().await;
        self.tracker.close();
        tokio::select! {
            () = self.tracker.wait() => {}
            () = tokio::time::sleep(grace) => {}
            () = self.ended() => {}
        }
        self.end();
        // What was told to end does so promptly; nothing is gained by waiting for what does not.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.tracker.wait()).await;
    }

    /// Drains at the first signal, with these words in the log, and ends at the second. Call it once, as a task.
    pub async fn on_signals(self, words: &'static str) {
        stop_asked().await;
        tracing::info!("{words}");
        self.drain();
        stop_asked().await;
        self.end();
    }

    /// The same, but what a service manager sends (SIGTERM) only makes it leave: who drains is up to others. A person at the
    /// terminal (Ctrl-C) waits for no spell.
    pub async fn on_signals_leave(self, words: &'static str) {
        let from = stop_asked().await;
        tracing::info!("{words}");
        match from {
            Asked::ByManager => self.leave(),
            Asked::ByPerson => self.drain(),
        }
        stop_asked().await;
        self.end();
    }
}

/// Who asks the process to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Ctrl-C.
    ByPerson,
    /// SIGTERM.
    ByManager,
}

#[cfg(unix)]
async fn stop_asked() -> Asked {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => Asked::ByPerson,
                _ = terminate.recv() => Asked::ByManager,
            }
        }
        Err(_) => interrupted().await,
    }
}

#[cfg(not(unix))]
async fn stop_asked() -> Asked {
    interrupted().await
}

async fn interrupted() -> Asked {
    if tokio::signal::ctrl_c().await.is_err() {
        // No signal can ever come.
        std::future::pending::<()>().await;
    }
    Asked::ByPerson
}
