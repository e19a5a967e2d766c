//! Watches a `poll` link: for how long nothing was heard of the bridge, and whether it is gone. And tells the
//! bridge that the relay stops.

use tokio::time::sleep_until;

use super::super::TUNING;
use super::PollLink;

/// What became of a link that was watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No contact while something is in flight.
    Silent,
    /// No contact for so long that the bridge is taken for gone.
    Gone,
    /// It was ended.
    Ended,
}

impl PollLink {
    /// Tells the bridge to go on over the connections that it has. Resolves once it knows, or is gone.
    pub async fn settle(&self) {
        self.0.lock().queue.settle();
        self.0.news.notify_waiters();
        loop {
            let news = self.0.news.notified();
            let known = {
                let state = self.0.lock();
                state.queue.is_settled() || state.ending.is_some()
            };
            if known {
                return;
            }
            news.await;
        }
    }

    /// Tells the bridge to register anew.
    pub fn drain(&self) {
        self.0.lock().queue.set_draining(true);
        self.0.news.notify_waiters();
    }

    /// Resolves when the link is lost: no contact for too long, or ended.
    pub async fn lost(&self) -> Loss {
        loop {
            let mut change = std::pin::pin!(self.0.life.notified());
            change.as_mut().enable();
            let (deadline, loss) = {
                let state = self.0.lock();
                if state.ending.is_some() {
                    return Loss::Ended;
                }
                if state.queue.len() == 0 {
                    (state.last_contact + TUNING.gone, Loss::Gone)
                } else {
                    (state.last_contact.max(state.busy_since) + TUNING.silent, Loss::Silent)
                }
            };
            tokio::select! {
                () = change => {}
                () = sleep_until(deadline) => return loss,
            }
        }
    }

    /// Resolves once there was contact lately, with true; or when the bridge is gone, or the link ended, with false.
    pub async fn contact(&self) -> bool {
        loop {
            let mut change = std::pin::pin!(self.0.life.notified());
            change.as_mut().enable();
            let last = {
                let state = self.0.lock();
                if state.ending.is_some() {
                    return false;
                }
                state.last_contact
            };
            if last.elapsed() < TUNING.silent {
                return true;
            }
            tokio::select! {
                () = change => {}
                () = sleep_until(last + TUNING.gone) => return false,
            }
        }
    }
}
