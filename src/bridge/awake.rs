//! Keeps the desktop awake while requests are answered.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use tokio::time::timeout;

use super::status::Status;
use crate::platform::awake::Lock;

/// So long after the last exchange the lock is still held: a chat goes on, and nothing is started for each of its requests.
const SPELL: Duration = Duration::from_secs(30);

/// Holds a lock against sleep while exchanges are under way, and for a spell after; never ends.
pub async fn keep_awake(status: &Status) -> Infallible {
    let mut told = false;
    let release = |mut lock: Lock| {
        if lock.is_lost() && !told {
            told = true;
            tracing::debug!("this desktop may fall asleep while it answers: it does not allow a lock against that");
        }
    };
    let failed = hold(status, Lock::take, release).await;
    tracing::debug!(error = %failed, "this desktop may fall asleep while it answers: nothing can take a lock against that");
    std::future::pending().await
}

/// Ends when the lock cannot be taken.
async fn hold<L>(status: &Status, mut take: impl FnMut() -> io::Result<L>, mut release: impl FnMut(L)) -> io::Error {
    let mut in_flight = status.in_flight();
    loop {
        // These end only with the status, which outlives them.
        let _ = in_flight.wait_for(|count| *count > 0).await;
        let lock = match take() {
            Ok(lock) => lock,
            Err(error) => return error,
        };
        loop {
            let _ = in_flight.wait_for(|count| *count == 0).await;
            let next = in_flight.wait_for(|count| *count > 0);
            if timeout(SPELL, next).await.is_err() {
                break;
            }
        }
        release(lock);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_lock_is_for_all_exchanges_of_a_spell() {
        let status = Arc::new(Status::default());
        let (taken, held) = (Cell::new(0), Cell::new(false));
        let take = || {
            taken.set(taken.get() + 1);
            held.set(true);
            Ok(())
        };
        let exchanges = async {
            sleep(SPELL).await;
            assert!(!held.get());
            for _ in 0..10 {
                let running = status.begin();
                sleep(SPELL * 3).await;
                assert!(held.get());
                drop(running);
                sleep(SPELL / 2).await;
                assert!(held.get());
            }
            assert_eq!(taken.get(), 1);
            sleep(SPELL).await;
            assert!(!held.get());
            let _running = status.begin();
            sleep(Duration::from_millis(1)).await;
            assert_eq!((taken.get(), held.get()), (2, true));
        };
        tokio::select! {
            error = hold(&status, take, |()| held.set(false)) => panic!("{error}"),
            () = exchanges => {}
        }
    }

    #[tokio::test]
    async fn where_there_is_no_lock_it_is_tried_once() {
        let status = Arc::new(Status::default());
        let _running = status.begin();
        let none = || Err::<(), _>(io::ErrorKind::NotFound.into());
        assert_eq!(hold(&status, none, |()| {}).await.kind(), io::ErrorKind::NotFound);
    }
}
