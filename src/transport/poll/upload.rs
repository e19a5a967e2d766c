//! The body of a caller's request on its way to a polling bridge, which fetches it in parts.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body as _;

use super::TUNING;
use crate::transport::Body;

/// What is left of a body, and the part that may be asked for again.
pub struct Upload {
    body: Option<Body>,
    /// What has come and is in no part yet.
    gathered: BytesMut,
    trailers: Option<HeaderMap>,
    next: u32,
    last: Part,
}

/// A part of a request body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// Its octets; none if nothing came in time.
    pub bytes: Bytes,
    /// Whether it is the last.
    pub end: bool,
    /// The body's trailers, on the last part.
    pub trailers: Option<HeaderMap>,
}

/// Why there is no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPart {
    /// This number was not to be asked for; this one is.
    OutOfOrder {
        /// The next part.
        next: u32,
    },
    /// The caller broke off.
    Broken,
}

impl Upload {
    /// Nothing is fetched yet.
    pub fn new(body: Body) -> Self {
        Self {
            body: Some(body),
            gathered: BytesMut::new(),
            trailers: None,
            next: 0,
            last: Part::default(),
        }
    }

    /// The body, if nothing of it was fetched.
    pub fn take_untouched(&mut self) -> Option<Body> {
        (self.next == 0 && self.gathered.is_empty())
            .then(|| self.body.take())
            .flatten()
    }

    /// Part `n`: the last one again, or the next, as soon as some of it has come, or empty after `wait`.
    ///
    /// # Errors
    /// [`NoPart`].
    pub async fn part(&mut self, n: u32, wait: Duration) -> Result<Part, NoPart> {
        if n.checked_add(1) == Some(self.next) {
            return Ok(self.last.clone());
        }
        if n != self.next || self.last.end {
            return Err(NoPart::OutOfOrder { next: self.next });
        }
        // Nothing is lost if the bridge hangs up meanwhile: what was gathered stays.
        let gathered = async { self.gather().await && self.gather_more().await };
        if let Ok(false) = tokio::time::timeout(wait, gathered).await {
            return Err(NoPart::Broken);
        }
        let size = self.gathered.len().min(TUNING.upload_part);
        let bytes = self.gathered.split_to(size).freeze();
        let end = self.body.is_none() && self.gathered.is_empty();
        self.next = n.saturating_add(1);
        self.last = Part {
            bytes,
            end,
            trailers: self.trailers.take_if(|_| end),
        };
        Ok(self.last.clone())
    }

    /// Takes what the caller has sent meanwhile: its connection hands over no more than a buffer at a time, and reads on when
    /// that was taken. False if the body broke.
    async fn gather_more(&mut self) -> bool {
        loop {
            let before = self.gathered.len();
            if before >= TUNING.upload_part || self.body.is_none() {
                return true;
            }
            tokio::task::yield_now().await;
            if !self.gather().await {
                return false;
            }
            if self.gathered.len() == before {
                return true;
            }
        }
    }

    /// Waits for the first octets, or a whole part where it is known that so much is to come; then takes what is at hand, to a
    /// part's size. False if the body broke.
    async fn gather(&mut self) -> bool {
        poll_fn(|cx| {
            loop {
                if self.gathered.len() >= TUNING.upload_part {
                    return Poll::Ready(true);
                }
                let Some(body) = &mut self.body else {
                    return Poll::Ready(true);
                };
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending if self.gathered.is_empty() || is_bulk(body) => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(true),
                    Poll::Ready(None) => self.body = None,
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => self.gathered.extend_from_slice(&data),
                        Err(frame) => self.trailers = frame.into_trailers().ok(),
                    },
                }
            }
        })
        .await
    }
}

/// Whether another part's worth is known to come.
fn is_bulk(body: &Body) -> bool {
    body.size_hint().lower() >= TUNING.upload_part as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::full;

    const WAIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn parts_come_in_order_and_the_last_one_again() {
        let body: Vec<u8> = (0..TUNING.upload_part * 2 + 100).map(|n| n as u8).collect();
        let mut upload = Upload::new(full(body.clone()));
        let mut whole = Vec::new();
        for n in 0.. {
            let part = upload.part(n, WAIT).await.unwrap();
            assert_eq!(upload.part(n, WAIT).await.unwrap(), part);
            assert!(matches!(upload.part(n + 2, WAIT).await, Err(NoPart::OutOfOrder { .. })));
            whole.extend_from_slice(&part.bytes);
            if part.end {
                assert!(matches!(upload.part(n + 1, WAIT).await, Err(NoPart::OutOfOrder { .. })));
                break;
            }
        }
        assert_eq!(whole, body);
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_is_not_fetched_buffer_by_buffer() {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for _ in 0..64 {
                sender.send(Bytes::from_static(&[7; 8192])).await.unwrap();
            }
        });
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
            let frame = http_body::Frame::data(receiver.recv().await?);
            Some((Ok(frame), receiver))
        });
        let body = http_body_util::StreamBody::new(frames);
        let mut upload = Upload::new(http_body_util::BodyExt::boxed_unsync(body));
        let part = upload.part(0, WAIT).await.unwrap();
        assert_eq!((part.bytes.len(), part.end), (TUNING.upload_part, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_which_nothing_comes_gives_an_empty_part() {
        struct Silent;
        impl http_body::Body for Silent {
            type Data = Bytes;
            type Error = crate::transport::BoxError;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
                Poll::Pending
            }
        }
        let mut upload = Upload::new(http_body_util::BodyExt::boxed_unsync(Silent));
        assert_eq!(upload.part(0, WAIT).await.unwrap(), Part::default());
        assert_eq!(upload.part(1, WAIT).await.unwrap(), Part::default());
    }
}
