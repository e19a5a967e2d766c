//! One exchange at the relay while a polling bridge has it: what is sent of the request, and what takes the answer.

use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use http::header::EXPECT;
use http::request::Parts;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::TUNING;
use super::answer::{Answer, Answered};
use super::upload::Upload;
use super::wire::{Capabilities, PolledRequest, RequestData};
use crate::transport::json::{self, Fields, encode_body, timestamp};
use crate::transport::{Body, ExchangeError, collect, empty, full, usage};

/// One exchange between its call and the end of its answer.
pub(super) struct Pending {
    pub(super) head: Parts,
    /// The body, if it goes along with the poll.
    pub(super) inline: Option<Bytes>,
    has_upload: bool,
    since: SystemTime,
    pub(super) upload: Mutex<Upload>,
    answer: Lock<Answer>,
    /// Fires when it is over, whatever the reason.
    pub(super) over: CancellationToken,
    _budget: Option<OwnedSemaphorePermit>,
}

impl Pending {
    /// Takes a request apart: its head, and its body at hand or to be fetched. `budget` bounds what is held.
    ///
    /// # Errors
    /// What the bridge cannot take.
    pub(super) async fn new(
        mut request: Request<Body>,
        capabilities: Capabilities,
        budget: &Arc<Semaphore>,
    ) -> Result<(Self, oneshot::Receiver<Answered>), ExchangeError> {
        if capabilities.parts {
            usage::ask(&mut request);
        }
        let (head, body) = request.into_parts();
        let (waiting, answered) = oneshot::channel();
        let mut pending = Self {
            head,
            inline: None,
            has_upload: false,
            since: SystemTime::now(),
            upload: Mutex::new(Upload::new(empty())),
            answer: Lock::new(Answer::new(waiting)),
            over: CancellationToken::new(),
            _budget: None,
        };
        if http_body::Body::is_end_stream(&body) {
            return Ok((pending, answered));
        }
        let length = http_body::Body::size_hint(&body).exact();
        let length = length.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        // A caller that waits to be asked for the body sends it when the bridge fetches it.
        let small = length.is_some_and(|length| length <= TUNING.inline) && !pending.head.headers.contains_key(EXPECT);
        if capabilities.body_parts && !small {
            pending.has_upload = true;
            pending.upload = Mutex::new(Upload::new(body));
            return Ok((pending, answered));
        }
        if capabilities.body_parts {
            // A caller that breaks off waits for no answer.
            let broken = || ExchangeError::Gone("the caller broke off".into());
            pending.inline = Some(collect(body, TUNING.inline).await.ok_or_else(broken)?);
        } else {
            let (text, permit) = json::whole_text(body, budget).await?;
            pending.inline = Some(text.into());
            pending._budget = permit;
        }
        Ok((pending, answered))
    }

    /// As it stands in the answer to a poll.
    pub(super) fn to_message(&self, id: String, capabilities: Capabilities) -> PolledRequest {
        let (body, body_encoding) = self.inline.as_deref().map_or((None, None), encode_body);
        let path = self.head.uri.path_and_query().map_or("/", |path| path.as_str());
        PolledRequest {
            id,
            timestamp: timestamp(self.since),
            timeout: TUNING.request_timeout.as_millis() as u64,
            data: RequestData {
                method: self.head.method.to_string(),
                path: path.to_owned(),
                headers: Fields::of(&self.head.headers, capabilities.parts),
                body,
                body_encoding,
                body_parts: self.has_upload,
            },
        }
    }

    /// The request again, nothing of which was sent.
    pub(super) fn unsent(&self) -> ExchangeError {
        let body = match &self.inline {
            Some(bytes) => full(bytes.clone()),
            None => match self
                .upload
                .try_lock()
                .ok()
                .and_then(|mut upload| upload.take_untouched())
            {
                Some(body) => body,
                None => return ExchangeError::Gone("the bridge is gone".into()),
            },
        };
        ExchangeError::NotSent(Box::new(Request::from_parts(self.head.clone(), body)))
    }

    /// Fails it.
    pub(super) fn fail(&self, delivered: bool) {
        let error = if delivered {
            ExchangeError::Gone("the bridge is gone".into())
        } else {
            self.unsent()
        };
        self.answer().fail(error);
        self.over.cancel();
    }

    /// What takes the answer; nobody holds it for longer than a moment.
    pub(super) fn answer(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
