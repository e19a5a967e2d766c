//! The relay's end of a `poll` link: requests wait in a queue for the bridge's long poll, answers come back in parts.

mod life;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::TUNING;
use super::answer::{Head, NotTaken};
use super::pending::Pending;
use super::queue::{Finished, Queue};
use super::upload::{NoPart, Part};
use super::wire::{Batch, Capabilities};
use crate::transport::json;
use crate::transport::told::{Calls, Told};
use crate::transport::{Body, Ending, Exchange, ExchangeError, Link, accept, headers};

pub use life::Loss;

/// The relay's handle to one bridge that polls; cheap to clone.
#[derive(Clone)]
pub struct PollLink(Arc<Shared>);

struct Shared {
    /// Begins the id of every exchange, so that none of another link, or of before a restart, is taken for one of this.
    prefix: String,
    state: Mutex<State>,
    /// Something for the waiting poll.
    news: Notify,
    /// Something for whoever watches the link: contact, a first exchange, the end.
    life: Notify,
    /// What whole bodies of requests hold; apart, so that there is always room for the answers that free it.
    requests: Arc<Semaphore>,
    /// What answers hold.
    answers: Arc<Semaphore>,
    max_in_flight: usize,
    told: Calls,
}

struct State {
    queue: Queue<Arc<Pending>>,
    ending: Option<Ending>,
    last_contact: Instant,
    /// Since when anything is in flight.
    busy_since: Instant,
}

/// Why a bridge's request on an exchange, or its poll, came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such exchange.
    Unknown,
    /// Its caller is gone.
    Gone,
    /// Not now; the same again, please.
    NoRoom,
    /// Another part is to come first.
    OutOfOrder {
        /// That one.
        next: u32,
    },
    /// Another head was taken before.
    SecondHead,
    /// Its `Content-Length` is not that of the body, or none.
    WrongLength,
    /// The link is over.
    Ended(Ending),
}

impl From<NotTaken> for Refusal {
    fn from(not: NotTaken) -> Self {
        match not {
            NotTaken::NoRoom => Self::NoRoom,
            NotTaken::OutOfOrder { next } => Self::OutOfOrder { next },
            NotTaken::SecondHead => Self::SecondHead,
            NotTaken::WrongLength => Self::WrongLength,
            NotTaken::Gone => Self::Gone,
        }
    }
}

impl PollLink {
    /// A link nobody has polled yet. `prefix` is random.
    pub fn new(prefix: String, capabilities: Capabilities, max_in_flight: usize) -> Self {
        let now = Instant::now();
        Self(Arc::new(Shared {
            prefix,
            state: Mutex::new(State {
                queue: Queue::new(capabilities),
                ending: None,
                last_contact: now,
                busy_since: now,
            }),
            news: Notify::new(),
            life: Notify::new(),
            requests: Arc::new(Semaphore::new(TUNING.relay_budget)),
            answers: Arc::new(Semaphore::new(TUNING.relay_budget)),
            max_in_flight,
            told: Calls::default(),
        }))
    }

    /// The bridge registered again.
    pub fn renew(&self, capabilities: Capabilities) {
        let mut state = self.0.lock();
        state.queue.capabilities = capabilities;
        state.queue.set_draining(false);
        drop(state);
        self.note_contact();
    }

    /// The bridge was heard of.
    pub fn note_contact(&self) {
        self.0.lock().last_contact = Instant::now();
        self.0.life.notify_waiters();
    }

    /// Its random name.
    pub fn name(&self) -> &str {
        &self.0.prefix
    }

    /// Requests that the bridge was not told of yet.
    pub fn queued(&self) -> usize {
        self.0.lock().queue.waiting()
    }

    /// Room for so many octets of an answer in memory, if they are more than what is always taken; none if there is none for as
    /// long as a bridge may be kept waiting. Apps that do not know that they should send again are waited for.
    pub async fn budget(&self, octets: usize) -> Option<Option<OwnedSemaphorePermit>> {
        if let Some(now) = json::room(&self.0.answers, octets) {
            return Some(now);
        }
        let permits = u32::try_from(octets).ok()?;
        let room = Arc::clone(&self.0.answers).acquire_many_owned(permits);
        let room = if self.0.lock().queue.capabilities.parts {
            tokio::time::timeout(TUNING.room, room).await.ok()?
        } else {
            room.await
        };
        room.ok().map(Some)
    }

    /// What there is for the bridge: at once if there is something, else when something comes, or nothing after `wait`.
    /// `acknowledged` is the number of the last batch that it has.
    ///
    /// # Errors
    /// [`Refusal::Ended`].
    pub async fn poll(&self, acknowledged: Option<u64>, wait: Duration) -> Result<Batch, Refusal> {
        let deadline = Instant::now() + wait;
        self.note_contact();
        let turn = self.0.lock().queue.begin_poll(acknowledged);
        // An older poll that still waits gives way.
        self.0.news.notify_waiters();
        loop {
            let mut news = std::pin::pin!(self.0.news.notified());
            news.as_mut().enable();
            let whatever = Instant::now() >= deadline;
            if let Some(batch) = self.0.take_batch(turn, whatever)? {
                return Ok(batch);
            }
            tokio::select! {
                () = news => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Part `n` of the body of an exchange's request.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn body_part(&self, id: &str, n: u32, wait: Duration) -> Result<Part, Refusal> {
        self.note_contact();
        let (number, pending) = self.find(id)?;
        let deadline = Instant::now() + wait;
        // Another fetch of the part may be waiting, perhaps over a connection that is dead.
        let fetching = timeout_at(deadline, pending.upload.lock());
        let fetching = fetching.map_err(|_| Refusal::NoRoom).and_then(async |mut upload| {
            let left = deadline.saturating_duration_since(Instant::now());
            Ok(upload.part(n, left).await)
        });
        let part = tokio::select! {
            part = fetching => part?,
            () = pending.over.cancelled() => return Err(Refusal::Gone),
        };
        match part {
            Ok(part) => Ok(part),
            Err(NoPart::OutOfOrder { next }) => Err(Refusal::OutOfOrder { next }),
            Err(NoPart::Broken) => {
                self.0.finish(number, Finished::Abandoned);
                Err(Refusal::Gone)
            }
        }
    }

    /// Takes the head of an exchange's answer, or all of it; `message` is what it came as.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn take_head(&self, id: &str, message: &[u8], mut head: Head) -> Result<(), Refusal> {
        self.note_contact();
        let Some((number, pending)) = self.find_or_finished(id)? else {
            return Ok(());
        };
        let bodiless = pending.head.method == Method::HEAD
            || matches!(
                head.response.status(),
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let whole = !bodiless && !head.more;
        if !self.0.lock().queue.capabilities.parts && whole {
            // What an app says of the length may be of the body before its own library decoded it.
            let length = HeaderValue::from(head.bytes.len());
            head.response.headers_mut().insert(CONTENT_LENGTH, length);
            head.response.headers_mut().remove(CONTENT_ENCODING);
        }
        if !head.has_true_length(whole) {
            return Err(Refusal::WrongLength);
        }
        let conclude = || self.0.finish(number, Finished::Answered);
        Ok(pending.answer().take_head(message, head, bodiless, conclude)?)
    }

    /// Fails an exchange for which the bridge has an error instead of an answer.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn take_error(&self, id: &str, error: ExchangeError) -> Result<(), Refusal> {
        self.note_contact();
        let Some((number, pending)) = self.find_or_finished(id)? else {
            return Ok(());
        };
        self.0.finish(number, Finished::Answered);
        pending.answer().fail(error);
        Ok(())
    }

    /// Room for part `n` of an exchange's answer; none if it was taken before.
    ///
    /// # Errors
    /// [`Refusal`]; [`Refusal::NoRoom`] after a short wait.
    pub async fn room(&self, id: &str, n: u32) -> Result<Option<PartRoom>, Refusal> {
        self.note_contact();
        let Some((number, pending)) = self.find_or_finished(id)? else {
            return Ok(None);
        };
        let place = pending.answer().place(n)?;
        let Some(place) = place else {
            return Ok(None);
        };
        tokio::select! {
            room = place.room() => room?,
            () = pending.over.cancelled() => return Err(self.after(number)),
        }
        Ok(Some(PartRoom {
            link: self.clone(),
            number,
            pending,
            part: n,
        }))
    }

    /// The upstream broke off: the caller sees a broken body.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn abort(&self, id: &str) -> Result<(), Refusal> {
        self.note_contact();
        if let Some((number, pending)) = self.find_or_finished(id)? {
            self.0.finish(number, Finished::Answered);
            pending
                .answer()
                .fail(ExchangeError::Gone("the answer broke off".into()));
        }
        Ok(())
    }

    /// Fails everything that is in flight.
    pub fn fail_all(&self) {
        let all = self.0.lock().queue.finish_all();
        for (pending, delivered) in all {
            pending.fail(delivered);
        }
    }

    fn find(&self, id: &str) -> Result<(u64, Arc<Pending>), Refusal> {
        self.find_or_finished(id)?.ok_or(Refusal::Gone)
    }

    /// The exchange; none if it was answered before.
    fn find_or_finished(&self, id: &str) -> Result<Option<(u64, Arc<Pending>)>, Refusal> {
        let number = id
            .strip_prefix(self.0.prefix.as_str())
            .and_then(|rest| rest.strip_prefix('-')?.parse::<u64>().ok())
            .ok_or(Refusal::Unknown)?;
        let state = self.0.lock();
        if let Some(pending) = state.queue.find(number) {
            return Ok(Some((number, Arc::clone(pending))));
        }
        match state.queue.finished_as(number) {
            Some(Finished::Answered) => Ok(None),
            Some(Finished::Abandoned) => Err(Refusal::Gone),
            None => Err(Refusal::Unknown),
        }
    }

    fn after(&self, number: u64) -> Refusal {
        match self.0.lock().queue.finished_as(number) {
            // Somebody else brought the last part meanwhile: asked again, that is what it will hear.
            Some(Finished::Answered) => Refusal::NoRoom,
            _ => Refusal::Gone,
        }
    }

    async fn exchange(&self, request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        if headers::is_upgrade(request.headers()) {
            return Err(ExchangeError::Refused {
                code: "not_implemented".to_owned(),
                detail: "this desktop is connected by HTTP polling, which carries no WebSockets".to_owned(),
            });
        }
        let capabilities = self.0.lock().queue.capabilities;
        let (pending, answered) = Pending::new(request, capabilities, &self.0.requests).await?;
        let guard = Guard {
            shared: Arc::clone(&self.0),
            number: self.0.enqueue(pending)?,
        };
        let limit = async {
            if capabilities.parts {
                // Only the idle limit of the exchange counts.
                return std::future::pending().await;
            }
            tokio::time::sleep(TUNING.request_timeout).await;
        };
        let answered = tokio::select! {
            answered = answered => answered.unwrap_or_else(|_| Err(ExchangeError::Gone("the bridge is gone".into()))),
            () = limit => Err(ExchangeError::Refused {
                code: "timeout".to_owned(),
                detail: "the desktop app did not answer in time".to_owned(),
            }),
        };
        // The exchange lasts as long as anybody has the body.
        let held = |body: Body| {
            body.map_frame(move |frame| {
                let _guard = &guard;
                frame
            })
        };
        Ok(accept(answered?)?.map(|body| held(body).boxed_unsync()))
    }
}

/// There was room for a part of an answer. It is not kept: of several copies of a part on their way, the first that arrives is
/// taken, and one that hangs is in nobody's way.
pub struct PartRoom {
    link: PollLink,
    number: u64,
    pending: Arc<Pending>,
    part: u32,
}

impl PartRoom {
    /// Brings the part; `end` with the trailers, on the last one.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn fill(self, bytes: Bytes, end: Option<Option<HeaderMap>>) -> Result<(), Refusal> {
        let conclude = || self.link.0.finish(self.number, Finished::Answered);
        Ok(self.pending.answer().take_part(self.part, bytes, end, conclude)?)
    }
}

impl PollLink {
    /// Ends the link, unless it was ended before; tells how.
    pub fn end_with(&self, ending: Ending) -> Ending {
        let ending = *self.0.lock().ending.get_or_insert(ending);
        self.fail_all();
        self.0.news.notify_waiters();
        self.0.life.notify_waiters();
        ending
    }
}

impl Exchange for PollLink {
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, ExchangeError>> {
        self.exchange(request).boxed()
    }
}

impl Link for PollLink {
    fn is_alive(&self) -> bool {
        self.0.lock().ending.is_none()
    }

    fn silence(&self) -> Duration {
        self.0.lock().last_contact.elapsed()
    }

    fn round_trip(&self) -> Option<Duration> {
        self.0.lock().queue.round_trip()
    }

    fn doubt(&self) {
        // Whatever is in flight tells, or its time limit.
    }

    fn when_told(&self, told: Told) {
        // Held until it is noted: who takes the cancels tells of them under the same lock.
        let state = self.0.lock();
        if state.queue.has_cancelled() {
            self.0.told.push(told);
        }
    }

    fn end(&self, ending: Ending) {
        self.end_with(ending);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, pending: Pending) -> Result<u64, ExchangeError> {
        let mut state = self.lock();
        if state.ending.is_some() {
            return Err(pending.unsent());
        }
        if state.queue.len() >= self.max_in_flight {
            return Err(ExchangeError::Overloaded);
        }
        if state.queue.len() == 0 {
            state.busy_since = Instant::now();
        }
        let number = state.queue.push(Arc::new(pending));
        drop(state);
        self.news.notify_waiters();
        self.life.notify_waiters();
        Ok(number)
    }

    /// The exchange is over.
    fn finish(&self, number: u64, finished: Finished) {
        let ended = self.lock().queue.finish(number, finished);
        if let Some(pending) = ended {
            pending.over.cancel();
            self.news.notify_waiters();
            self.life.notify_waiters();
        }
    }

    /// What is to be told to the poll of this turn, if it is to be answered now.
    fn take_batch(&self, turn: u64, whatever: bool) -> Result<Option<Batch>, Refusal> {
        let mut state = self.lock();
        if let Some(ending) = state.ending {
            return Err(Refusal::Ended(ending));
        }
        let capabilities = state.queue.capabilities;
        let size = |pending: &Arc<Pending>| pending.inline.as_ref().map_or(0, Bytes::len);
        let id = |number: u64| format!("{}-{number}", self.prefix);
        let taken = state.queue.take(turn, whatever, size);
        if taken.as_ref().is_some_and(|taken| !taken.cancelled.is_empty()) {
            self.told.call();
        }
        Ok(taken.map(|taken| Batch {
            requests: taken
                .requests
                .into_iter()
                .map(|(number, pending)| pending.to_message(id(number), capabilities))
                .collect(),
            cancelled: taken.cancelled.iter().copied().map(id).collect(),
            ..taken.batch
        }))
    }
}

/// Dropping it ends the exchange: the bridge is told if it has the request.
struct Guard {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.finish(self.number, Finished::Abandoned);
    }
}
