//! Keeps the desktop awake while requests are answered.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::status::Status;
use crate::platform::awake::Lock;

/// So long after the last exchange the lock is still held: a chat goes on, and nothing is started for each of its requests. Nor is a
/// lock that was lost taken again sooner after it was taken: where the system refuses it, that is asked for seldom.
const SPELL: Duration = Duration::from_secs(30);

/// Holds a lock against sleep while exchanges are under way, and for a spell after; never ends.
pub async fn keep_awake(status: &Status) -> Infallible {
    let lost = async |lock: &mut Lock| {
        lock.lost().await;
        tracing::debug!("this desktop may fall asleep while it answers: the lock against that was refused, or is lost");
    };
    let failed = hold(status, Lock::take, lost).await;
    tracing::debug!(error = %failed, "this desktop may fall asleep while it answers: nothing can take a lock against that");
    std::future::pending().await
}

/// Ends where there is nothing that could hold a lock.
async fn hold<L>(
    status: &Status,
    mut take: impl FnMut() -> io::Result<L>,
    mut lost: impl AsyncFnMut(&mut L),
) -> io::Error {
    let mut in_flight = status.in_flight();
    loop {
        // It ends only with the status, which outlives it.
        let _ = in_flight.wait_for(|count| *count > 0).await;
        let again = Instant::now() + SPELL;
        let mut lock = match take() {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return error,
            Err(error) => {
                tracing::debug!(%error, "this desktop may fall asleep while it answers: no lock against that for now");
                sleep_until(again).await;
                continue;
            }
        };
        tokio::select! {
            () = quiet(&mut in_flight) => {}
            () = lost(&mut lock) => sleep_until(again).await,
        }
    }
}

/// Resolves when the last exchange was over for a spell.
async fn quiet(in_flight: &mut watch::Receiver<u64>) {
    loop {
        let _ = in_flight.wait_for(|count| *count == 0).await;
        let next = in_flight.wait_for(|count| *count > 0);
        if timeout(SPELL, next).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use tokio::sync::Notify;
    use tokio::time::sleep;

    use super::*;

    /// Counts the locks that were taken, and whether one is held; cuts the one that is held.
    #[derive(Default)]
    struct System {
        taken: Cell<u32>,
        held: Cell<bool>,
        cut: Notify,
    }

    struct Held<'a>(&'a System);

    impl Drop for Held<'_> {
        fn drop(&mut self) {
            self.0.held.set(false);
        }
    }

    impl System {
        fn take(&self) -> Held<'_> {
            self.taken.set(self.taken.get() + 1);
            self.held.set(true);
            Held(self)
        }

        async fn watched(&self, status: &Status, exchanges: impl Future<Output = ()>) {
            let lost = async |held: &mut Held<'_>| {
                self.cut.notified().await;
                held.0.held.set(false);
            };
            tokio::select! {
                error = hold(status, || Ok(self.take()), lost) => panic!("{error}"),
                () = exchanges => {}
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_lock_is_for_all_exchanges_of_a_spell() {
        let (status, system) = (Arc::new(Status::default()), System::default());
        let exchanges = async {
            sleep(SPELL).await;
            assert!(!system.held.get());
            for _ in 0..10 {
                let running = status.begin();
                sleep(SPELL * 3).await;
                assert!(system.held.get());
                drop(running);
                sleep(SPELL / 2).await;
                assert!(system.held.get());
            }
            assert_eq!(system.taken.get(), 1);
            sleep(SPELL).await;
            assert!(!system.held.get());
            let _running = status.begin();
            sleep(Duration::from_millis(1)).await;
            assert_eq!((system.taken.get(), system.held.get()), (2, true));
        };
        system.watched(&status, exchanges).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_is_lost_is_taken_again_while_it_is_needed() {
        let (status, system) = (Arc::new(Status::default()), System::default());
        let moment = Duration::from_millis(10);
        let exchanges = async {
            let running = status.begin();
            sleep(SPELL * 2).await;
            system.cut.notify_one();
            sleep(moment).await;
            assert_eq!((system.taken.get(), system.held.get()), (2, true));
            // Refused at once, it is asked for once in a spell.
            for taken in 2..5 {
                system.cut.notify_one();
                sleep(SPELL - moment * 2).await;
                assert_eq!((system.taken.get(), system.held.get()), (taken, false));
                sleep(moment * 2).await;
                assert_eq!((system.taken.get(), system.held.get()), (taken + 1, true));
            }
            drop(running);
            system.cut.notify_one();
            sleep(SPELL * 2).await;
            assert_eq!((system.taken.get(), system.held.get()), (5, false));
        };
        system.watched(&status, exchanges).await;
    }

    #[tokio::test]
    async fn where_there_is_no_lock_it_is_tried_once() {
        let status = Arc::new(Status::default());
        let _running = status.begin();
        let none = || Err::<(), _>(io::ErrorKind::NotFound.into());
        let never = async |_: &mut ()| std::future::pending().await;
        assert_eq!(hold(&status, none, never).await.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_lock_cannot_be_had_now_it_is_tried_again() {
        let (status, system) = (Arc::new(Status::default()), System::default());
        let _running = status.begin();
        let mut errors = [io::ErrorKind::WouldBlock, io::ErrorKind::OutOfMemory].into_iter();
        let take = || errors.next().map_or_else(|| Ok(system.take()), |kind| Err(kind.into()));
        let never = async |_: &mut Held<'_>| std::future::pending().await;
        tokio::select! {
            error = hold(&status, take, never) => panic!("{error}"),
            () = sleep(SPELL * 2 + SPELL / 2) => {}
        }
        assert_eq!(system.taken.get(), 1);
    }
}
