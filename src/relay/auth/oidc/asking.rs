//! Asks the provider who somebody is whose token does not tell: once for each token, however many come with it at a time, and not
//! again at once where that was in vain.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use aws_lc_rs::digest;
use serde_json::{Map, Value};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout};

use super::userinfo::userinfo;
use crate::relay::auth::refusal::Denied;
use crate::transport::dial::Dialer;
use crate::transport::issuer::Place;

/// So many are asked after at once.
const AT_ONCE: usize = 16;
/// How long one waits until it is its turn.
const TURN: Duration = Duration::from_secs(3);
/// How long the provider is not asked again with a token after it did not answer.
const FAILED: Duration = Duration::from_secs(5);
/// So many tokens are remembered with which it was in vain.
const MOST: usize = 1024;

/// What the provider says of a user, or why nobody is let in by it.
type Told = Result<Arc<Map<String, Value>>, Denied>;

/// Who is asked after, and was.
pub(super) struct Asking {
    turns: Semaphore,
    under_way: Mutex<HashMap<[u8; 32], Weak<OnceCell<Told>>>>,
    /// With which tokens it was in vain, why, and until when that holds.
    in_vain: Mutex<HashMap<[u8; 32], (Denied, Instant)>>,
}

/// A token to ask with, and what it is remembered by.
pub(super) struct Token<'a> {
    text: &'a str,
    hash: [u8; 32],
}

impl<'a> Token<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        Self { text, hash }
    }
}

impl Asking {
    pub(super) fn new() -> Self {
        Self {
            turns: Semaphore::new(AT_ONCE),
            under_way: Mutex::default(),
            in_vain: Mutex::default(),
        }
    }

    /// What the provider says of the user of a token.
    ///
    /// # Errors
    /// `ProviderAway`; what was remembered of the token.
    pub(super) async fn ask(&self, dialer: &Dialer, place: &Place, token: &Token<'_>) -> Told {
        let answer = self.answer_to(token);
        let asked = answer.get_or_init(|| async {
            let turn = timeout(TURN, self.turns.acquire()).await;
            let Ok(Ok(_turn)) = turn else {
                return Err(Denied::ProviderAway);
            };
            // Another one may have asked until it was this one's turn.
            if let Some(denied) = self.in_vain(token) {
                return Err(denied);
            }
            userinfo(dialer, place, token.text)
                .await
                .map(Arc::new)
                .map_err(|error| {
                    tracing::debug!(%error, "the provider does not tell who signed in");
                    self.remember(token, Denied::ProviderAway, FAILED);
                    Denied::ProviderAway
                })
        });
        match self.in_vain(token) {
            Some(denied) => Err(denied),
            None => asked.await.clone(),
        }
    }

    /// Remembers for a while that asking with this token lets nobody in.
    pub(super) fn remember(&self, token: &Token<'_>, why: Denied, time: Duration) {
        let mut in_vain = lock(&self.in_vain);
        if in_vain.len() >= MOST {
            in_vain.clear();
        }
        in_vain.insert(token.hash, (why, Instant::now() + time));
    }

    fn in_vain(&self, token: &Token<'_>) -> Option<Denied> {
        let in_vain = lock(&self.in_vain);
        let (why, end) = in_vain.get(&token.hash)?;
        (Instant::now() < *end).then_some(*why)
    }

    /// The one answer for all who ask with this token now; it is gone when they have it.
    fn answer_to(&self, token: &Token<'_>) -> Arc<OnceCell<Told>> {
        let mut under_way = lock(&self.under_way);
        if let Some(answer) = under_way.get(&token.hash).and_then(Weak::upgrade) {
            return answer;
        }
        if under_way.len() >= MOST {
            under_way.retain(|_, answer| answer.strong_count() > 0);
        }
        let answer = Arc::default();
        under_way.insert(token.hash, Arc::downgrade(&answer));
        answer
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
