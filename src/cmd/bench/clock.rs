//! Waits that end within a fraction of a millisecond of their time: the runtime's own are only precise to a whole one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use anyhow::Context as _;

use crate::platform::wake_precisely;

/// The thread that wakes others; it ends with this value.
pub(super) struct Ticker {
    clock: Clock,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Waits on a [`Ticker`].
#[derive(Clone, Default)]
pub(super) struct Clock(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: BinaryHeap<Reverse<Entry>>,
    count: u64,
    ended: bool,
}

struct Entry {
    due: Instant,
    /// Makes entries different, and those of the same moment come in order.
    number: u64,
    waker: Waker,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl Ticker {
    /// Starts it.
    pub(super) fn start() -> anyhow::Result<Self> {
        let clock = Clock::default();
        let shared = Arc::clone(&clock.0);
        let thread = std::thread::Builder::new()
            .name("clock".to_owned())
            .spawn(move || shared.tick());
        Ok(Self {
            clock,
            thread: Some(thread.context("cannot start a thread")?),
        })
    }

    /// To wait with.
    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.clock.0.lock().ended = true;
        self.clock.0.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // Wakers do not panic.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        wake_precisely();
        let mut queue = self.lock();
        while !queue.ended {
            let now = Instant::now();
            let next = queue.waiting.peek().map(|Reverse(entry)| entry.due);
            queue = match next {
                Some(due) if due <= now => {
                    if let Some(Reverse(entry)) = queue.waiting.pop() {
                        drop(queue);
                        entry.waker.wake();
                    }
                    self.lock()
                }
                Some(due) => {
                    let waited = self.changed.wait_timeout(queue, due - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Clock {
    /// Waits until this moment.
    pub(super) fn sleep_until(&self, due: Instant) -> Sleep {
        Sleep {
            shared: Arc::clone(&self.0),
            due,
            told: None,
        }
    }

    fn wake_at(shared: &Shared, due: Instant, waker: Waker) {
        let mut queue = shared.lock();
        let first = queue.waiting.peek().is_none_or(|Reverse(next)| due < next.due);
        queue.count += 1;
        let number = queue.count;
        queue.waiting.push(Reverse(Entry { due, number, waker }));
        drop(queue);
        if first {
            shared.changed.notify_one();
        }
    }
}

/// A wait; see [`Clock::sleep_until`].
pub(super) struct Sleep {
    shared: Arc<Shared>,
    due: Instant,
    told: Option<Waker>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.due <= Instant::now() {
            return Poll::Ready(());
        }
        if !self.told.as_ref().is_some_and(|told| told.will_wake(cx.waker())) {
            Clock::wake_at(&self.shared, self.due, cx.waker().clone());
            self.told = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn waits_end_in_order_and_never_early() {
        let ticker = Ticker::start().unwrap();
        let began = Instant::now();
        let order = Mutex::new(Vec::new());
        let wait = async |ms: u64| {
            let due = began + Duration::from_millis(ms);
            ticker.clock().sleep_until(due).await;
            assert!(Instant::now() >= due);
            order.lock().unwrap().push(ms);
        };
        tokio::join!(wait(9), wait(3), wait(0), wait(6));
        assert_eq!(*order.lock().unwrap(), [0, 3, 6, 9]);
    }
}
