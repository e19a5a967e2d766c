//! The bodies of an exchange as the relay passes them on: counted, bounded, and ended when they must be.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::{Cut, Held};
use crate::relay::Relay;
use crate::relay::access::{Record, Upload};
use crate::transport::idle::{Activity, IdleLimit};
use crate::transport::{Body, BoxError, headers};

/// A request body on its way to the bridge: counted, and bounded where `--max-body` says so.
pub(super) struct MeteredBody {
    pub(super) body: Incoming,
    pub(super) activity: Activity,
    pub(super) left: Option<u64>,
    pub(super) upload: Arc<Upload>,
    pub(super) relay: Arc<Relay>,
}

impl http_body::Body for MeteredBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let Poll::Ready(Some(Ok(mut frame))) = frame else {
            return frame.map_err(Into::into);
        };
        if let Some(trailers) = frame.trailers_mut() {
            headers::scrub_trailers(trailers);
        }
        self.activity.touch();
        let octets = frame.data_ref().map_or(0, Bytes::len);
        if let Some(left) = &mut self.left {
            match left.checked_sub(octets as u64) {
                Some(rest) => *left = rest,
                None => {
                    self.upload.too_large.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err("the body is too large".into())));
                }
            }
        }
        self.upload.received.fetch_add(octets as u64, Ordering::Relaxed);
        self.relay.metrics.received(octets);
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response body on its way to the caller: breaks when nothing moves for too long, and holds what the exchange holds.
pub(super) struct HeldBody {
    // Dropped in this order: the stream is free again before the next exchange is let in.
    pub(super) body: Body,
    /// The bridge tells tokens behind the body.
    pub(super) report_follows: bool,
    /// The last piece of a body of known length, until that report is there: with the piece, hyper has done with the body.
    pub(super) last: Option<Frame<Bytes>>,
    pub(super) activity: Activity,
    pub(super) idle: IdleLimit,
    pub(super) cut: Cut,
    /// Set where a broken body could be taken for a whole one (HTTP/1.0): the connection is then reset.
    pub(super) broken: Option<Arc<AtomicBool>>,
    pub(super) _held: Held,
    pub(super) record: Record,
}

impl HeldBody {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the caller is not let in any more".into())));
        }
        let frame = match http_body::Body::poll_frame(Pin::new(&mut self.body), cx) {
            Poll::Pending => {
                ready!(Pin::new(&mut self.idle).poll(cx));
                Some(Err("nothing moved for too long".into()))
            }
            Poll::Ready(frame) => frame,
        };
        self.activity.touch();
        Poll::Ready(frame)
    }

    /// What of a frame goes to the caller now.
    fn take(&mut self, mut frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        if let Some(trailers) = frame.trailers_mut() {
            self.record.set_usage(trailers);
            headers::scrub_trailers(trailers);
            self.record.finish();
            // Only ours were in it, or there is no place for any behind a known length.
            let goes = self.last.is_none() && !trailers.is_empty();
            return goes.then_some(frame);
        }
        let octets = frame.data_ref().map_or(0, Bytes::len);
        self.record.send(octets);
        if self.report_follows && self.record.is_complete() {
            self.last.get_or_insert(frame);
            return None;
        }
        Some(frame)
    }
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            match ready!(this.poll_body(cx)) {
                Some(Ok(frame)) => {
                    if let Some(frame) = this.take(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Some(Err(error)) => {
                    this.record.break_off();
                    if let Some(broken) = &this.broken {
                        broken.store(true, Ordering::Release);
                    }
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.record.finish();
                    return Poll::Ready(this.last.take().map(Ok));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of the relay's own answer.
pub(super) struct RefusalBody {
    pub(super) body: Body,
    pub(super) record: Record,
}

impl http_body::Body for RefusalBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.record.send(frame.data_ref().map_or(0, Bytes::len));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
