//! How a process ends: stop accepting, finish what is in flight within a grace period, then end. A second signal ends at once.

use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// Shared by everything that must know when to stop.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
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

    /// Begins the drain.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Ends everything at once.
    pub fn end(&self) {
        self.draining.cancel();
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
        terminated().await;
        tracing::info!("{words}");
        self.drain();
        terminated().await;
        self.end();
    }
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => interrupted().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    interrupted().await;
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // No signal can ever come.
        std::future::pending::<()>().await;
    }
}
