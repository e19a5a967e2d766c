//! The answer to one exchange as a polling bridge sends it: parts in order, each once, at the pace of the caller.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot};

use super::TUNING;
use crate::transport::headers::length;
use crate::transport::{Body, BoxError, ExchangeError, Sliced, full};

/// What an exchange comes to.
pub type Answered = Result<Response<Body>, ExchangeError>;

/// The relay's side of an answer that is under way.
pub struct Answer {
    waiting: Option<oneshot::Sender<Answered>>,
    pieces: Option<mpsc::Sender<Piece>>,
    /// The next part to be taken.
    next: u32,
    /// What is left of the length that the head told, if it told one for a body.
    left: Option<u64>,
    /// Of the head as it was taken: the same again is a repetition, another is a mistake.
    head: u64,
}

/// What goes into the caller's body.
struct Piece {
    bytes: Bytes,
    end: Option<Option<HeaderMap>>,
}

/// The head of an answer, with the octets that came along.
pub struct Head {
    /// The response without its body.
    pub response: Response<()>,
    /// The body, or its beginning.
    pub bytes: Bytes,
    /// Whether parts follow.
    pub more: bool,
}

impl Head {
    /// Whether its `Content-Length`, if it has one, may stand there; `whole`: it is that of the octets at hand. hyper sends it as it
    /// is, and a caller would take the beginning of its next answer for the rest of this one.
    pub fn has_true_length(&self, whole: bool) -> bool {
        let headers = self.response.headers();
        let fits = |length| !whole || length == self.bytes.len() as u64;
        !headers.contains_key(CONTENT_LENGTH) || length(headers, &CONTENT_LENGTH).is_some_and(fits)
    }
}

/// Why a part was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// The caller has no room yet.
    NoRoom,
    /// Another part is to come first.
    OutOfOrder {
        /// That one.
        next: u32,
    },
    /// There was another head already.
    SecondHead,
    /// The body is longer or shorter than its head said.
    WrongLength,
    /// The caller is gone.
    Gone,
}

/// Where a part goes. It keeps the caller's body open: not to be held for long.
pub struct Place(mpsc::Sender<Piece>);

impl Place {
    /// Waits until there is room for a part, for as long as a bridge may be kept waiting.
    ///
    /// # Errors
    /// [`NotTaken::NoRoom`], [`NotTaken::Gone`].
    pub async fn room(self) -> Result<(), NotTaken> {
        match tokio::time::timeout(TUNING.room, self.0.reserve()).await {
            Err(_) => Err(NotTaken::NoRoom),
            Ok(Err(_)) => Err(NotTaken::Gone),
            Ok(Ok(_)) => Ok(()),
        }
    }
}

impl Answer {
    /// Nothing has come yet.
    pub fn new(waiting: oneshot::Sender<Answered>) -> Self {
        Self {
            waiting: Some(waiting),
            pieces: None,
            next: 0,
            left: None,
            head: 0,
        }
    }

    /// Takes the head; `message` is what it came as, `bodiless` whether a length in it is of a body that is not sent (RFC 9110
    /// §8.6). `conclude` is called if it is all of the answer, before the caller gets it: a caller that has everything leaves.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn take_head(
        &mut self,
        message: &[u8],
        head: Head,
        bodiless: bool,
        conclude: impl FnOnce(),
    ) -> Result<(), NotTaken> {
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        let hash = hasher.finish();
        if self.waiting.is_none() {
            return if self.head == hash {
                Ok(())
            } else {
                Err(NotTaken::SecondHead)
            };
        }
        self.left = length(head.response.headers(), &CONTENT_LENGTH).filter(|_| !bodiless);
        self.left = count(self.left, head.bytes.len(), !head.more)?;
        let Some(waiting) = self.waiting.take() else {
            return Err(NotTaken::Gone);
        };
        self.head = hash;
        self.next = 1;
        let end = (!head.more).then_some(None);
        let whole = head.response.headers().contains_key(CONTENT_LENGTH) || head.bytes.is_empty();
        let body = if whole && !head.more {
            full(head.bytes)
        } else {
            // A body of unknown length stays one, even if all of it came at once.
            let (sender, receiver) = mpsc::channel(1);
            if end.is_some() || !head.bytes.is_empty() {
                // The channel is empty: there is room.
                let bytes = head.bytes;
                let _ = sender.try_send(Piece { bytes, end });
            }
            self.pieces = Some(sender);
            let body = Pieces {
                receiver: Some(receiver),
                rest: Sliced::default(),
                trailers: None,
            };
            body.boxed_unsync()
        };
        if !head.more {
            conclude();
        }
        waiting
            .send(Ok(head.response.map(|()| body)))
            .map_err(|_| NotTaken::Gone)
    }

    /// Where part `n` goes; none if it was taken before.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn place(&self, n: u32) -> Result<Option<Place>, NotTaken> {
        if n < self.next {
            return Ok(None);
        }
        match &self.pieces {
            _ if n > self.next || self.next == 0 => Err(NotTaken::OutOfOrder { next: self.next }),
            Some(pieces) => Ok(Some(Place(pieces.clone()))),
            None => Err(NotTaken::Gone),
        }
    }

    /// Takes part `n`, if there still is room; `end` with the trailers, on the last one. `conclude` is called for that one,
    /// before the caller gets it.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn take_part(
        &mut self,
        n: u32,
        bytes: Bytes,
        end: Option<Option<HeaderMap>>,
        conclude: impl FnOnce(),
    ) -> Result<(), NotTaken> {
        let Some(Place(pieces)) = self.place(n)? else {
            return Ok(());
        };
        let room = pieces.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => NotTaken::NoRoom,
            mpsc::error::TrySendError::Closed(()) => NotTaken::Gone,
        })?;
        self.left = count(self.left, bytes.len(), end.is_some())?;
        self.next += 1;
        if end.is_some() {
            conclude();
        }
        room.send(Piece { bytes, end });
        Ok(())
    }

    /// Fails the exchange: its caller gets the error, or a broken body if the head has gone out.
    pub fn fail(&mut self, error: ExchangeError) {
        self.pieces = None;
        if let Some(waiting) = self.waiting.take() {
            // A caller that has left needs no reason.
            let _ = waiting.send(Err(error));
        }
    }
}

/// Counts octets against the length that was told, if one was: hyper would cut what is over without a word.
fn count(left: Option<u64>, octets: usize, end: bool) -> Result<Option<u64>, NotTaken> {
    let Some(left) = left else {
        return Ok(None);
    };
    let left = left.checked_sub(octets as u64).filter(|left| !end || *left == 0);
    left.map(Some).ok_or(NotTaken::WrongLength)
}

/// The caller's body: broken if what feeds it goes before the end came.
struct Pieces {
    receiver: Option<mpsc::Receiver<Piece>>,
    /// What is left of the last piece.
    rest: Sliced,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if let Some(slice) = self.rest.next_slice() {
                return Poll::Ready(Some(Ok(Frame::data(slice))));
            }
            let Some(receiver) = &mut self.receiver else {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            };
            let Some(piece) = ready!(receiver.poll_recv(cx)) else {
                self.receiver = None;
                return Poll::Ready(Some(Err("the answer broke off".into())));
            };
            self.rest = Sliced::new(piece.bytes);
            if let Some(trailers) = piece.end {
                self.receiver = None;
                self.trailers = trailers;
            }
        }
    }
}
