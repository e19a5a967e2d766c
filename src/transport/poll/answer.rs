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
use crate::transport::{Body, BoxError, Ending, ExchangeError, Sliced, full};

/// What an exchange comes to.
pub type Answered = Result<Response<Body>, ExchangeError>;

/// The relay's side of an answer that is under way.
pub struct Answer {
    waiting: Option<oneshot::Sender<Answered>>,
    pieces: Option<mpsc::Sender<Piece>>,
    /// The next part to be taken.
    next: u32,
    /// What is left of the length that the head told, if it told one for a body.
    left: Option<usize>,
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

/// What became of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was taken; more follow.
    Yes,
    /// It was taken, and it was the last.
    Last,
    /// It had been taken before.
    Before,
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
    /// The body is longer or shorter than its head said.
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

/// Room for one part.
pub struct Room(mpsc::OwnedPermit<Piece>);

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
    /// §8.6).
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn take_head(&mut self, message: &[u8], head: Head, bodiless: bool) -> Result<Taken, NotTaken> {
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        let hash = hasher.finish();
        if self.waiting.is_none() {
            return if self.head == hash {
                Ok(Taken::Before)
            } else {
                Err(NotTaken::SecondHead)
            };
        }
        let told = head.response.headers().get(CONTENT_LENGTH).filter(|_| !bodiless);
        self.left = told.and_then(|length| length.to_str().ok()?.parse().ok());
        self.count(head.bytes.len(), !head.more)?;
        let Some(waiting) = self.waiting.take() else {
            return Err(NotTaken::Gone);
        };
        self.head = hash;
        self.next = 1;
        let end = (!head.more).then_some(None);
        let taken = if head.more { Taken::Yes } else { Taken::Last };
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
        waiting
            .send(Ok(head.response.map(|()| body)))
            .map_err(|_| NotTaken::Gone)?;
        Ok(taken)
    }

    /// Room for part `n`, waited for as long as a bridge may be kept waiting; none if the part was taken before.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub async fn room(&self, n: u32) -> Result<Option<Room>, NotTaken> {
        if n < self.next {
            return Ok(None);
        }
        let Some(pieces) = self.pieces.clone().filter(|_| n == self.next) else {
            return Err(NotTaken::OutOfOrder { next: self.next });
        };
        match tokio::time::timeout(TUNING.room, pieces.reserve_owned()).await {
            Err(_) => Err(NotTaken::NoRoom),
            Ok(Err(_)) => Err(NotTaken::Gone),
            Ok(Ok(room)) => Ok(Some(Room(room))),
        }
    }

    /// Takes a part for which there is room; `end` with the trailers, on the last one.
    ///
    /// # Errors
    /// [`NotTaken::WrongLength`].
    pub fn take_part(&mut self, room: Room, bytes: Bytes, end: Option<Option<HeaderMap>>) -> Result<Taken, NotTaken> {
        self.count(bytes.len(), end.is_some())?;
        self.next += 1;
        let taken = if end.is_some() { Taken::Last } else { Taken::Yes };
        room.0.send(Piece { bytes, end });
        Ok(taken)
    }

    /// Counts octets against the length that was told: hyper would cut what is over without a word.
    fn count(&mut self, octets: usize, end: bool) -> Result<(), NotTaken> {
        let Some(left) = self.left else {
            return Ok(());
        };
        match left.checked_sub(octets) {
            Some(left) if !end || left == 0 => {
                self.left = Some(left);
                Ok(())
            }
            _ => Err(NotTaken::WrongLength),
        }
    }

    /// Fails the exchange, if its head has not gone out.
    pub fn fail(&mut self, error: ExchangeError) {
        self.pieces = None;
        if let Some(waiting) = self.waiting.take() {
            // A caller that has left needs no reason.
            let _ = waiting.send(Err(error));
        }
    }
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
