//! The idle limit of an exchange: touched by every byte in either direction, over when none came for too long.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Remembers when something last happened; shared by all parts of an exchange.
#[derive(Debug, Clone)]
pub struct Activity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    /// Begins with something that happens now.
    pub fn begin() -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            last_ms: AtomicU64::new(0),
        }))
    }

    /// Something happens now.
    pub fn touch(&self) {
        let ms = self.0.start.elapsed().as_millis() as u64;
        self.0.last_ms.store(ms, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.0.start + Duration::from_millis(self.0.last_ms.load(Ordering::Relaxed))
    }
}

/// Resolves when nothing happened for the limit. The timer is set once and looks again only when it fires, so that a touch
/// costs next to nothing.
#[derive(Debug)]
pub struct IdleLimit {
    activity: Activity,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl IdleLimit {
    /// Watches the activity.
    pub fn new(activity: Activity, limit: Duration) -> Self {
        let timer = Box::pin(sleep_until(activity.last() + limit));
        Self { activity, limit, timer }
    }
}

impl Future for IdleLimit {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.activity.last() + self.limit;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}
