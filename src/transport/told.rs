//! What is to be called once the other side of a link was told of everything up to now: how long a cancel takes is measured so.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Called once, or dropped if the link ends before.
pub type Told = Box<dyn FnOnce() + Send>;

/// Calls that wait on one link; more than that are not kept.
const MOST: usize = 256;

/// The calls of one link, which all come to be at the same moment.
#[derive(Default)]
pub struct Calls(Mutex<Vec<Told>>);

impl Calls {
    /// One more.
    pub fn push(&self, told: Told) {
        let mut calls = self.lock();
        if calls.len() < MOST {
            calls.push(told);
        }
    }

    /// The moment came.
    pub fn call(&self) {
        let calls = std::mem::take(&mut *self.lock());
        for told in calls {
            told();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Calls").field(&self.lock().len()).finish()
    }
}
