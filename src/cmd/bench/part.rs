//! One part of a measurement on a thread of its own, as it has a process of its own in life: what it costs can be told apart.

use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::platform::thread_cpu;

/// A thread that runs what it is given; it ends with this value, and with it all that runs on it.
pub(super) struct Part {
    handle: Handle,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Part {
    /// Starts it.
    pub(super) fn start(name: &str) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let run = move || {
            runtime.block_on(stopped.cancelled());
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        Ok(Self {
            handle,
            stop,
            thread: Some(thread.context("cannot start a thread")?),
        })
    }

    /// Runs this here, and what it spawns.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.handle
            .spawn(future)
            .await
            .context("a part of the measurement ended")
    }

    /// CPU time spent here so far; none where the platform does not tell.
    pub(super) async fn cpu(&self) -> Option<Duration> {
        self.run(async { thread_cpu() }).await.ok().flatten()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked outside of a task.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn cpu_time_is_that_of_the_thread_and_of_no_other() {
        let (busy, idle) = (Part::start("busy").unwrap(), Part::start("idle").unwrap());
        let work = async {
            let began = std::time::Instant::now();
            while began.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
        };
        busy.run(work).await.unwrap();
        let (busy, idle) = (busy.cpu().await.unwrap(), idle.cpu().await.unwrap());
        assert!(busy > idle, "{busy:?} {idle:?}");
    }
}
