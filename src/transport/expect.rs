//! `Expect: 100-continue` (RFC 9110 §10.1.1) across a hop: the body is asked for only when the next hop asks for it, so that a
//! refusal comes before the body and the body crosses once.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header::EXPECT};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Sleep, sleep};

use super::{Body, BoxError};

/// A request whose next hop never says 100 gets its body sent after this time all the same (RFC 9110: not indefinitely).
const PATIENCE: Duration = Duration::from_secs(1);

/// Holds the body of a request that expects `100-continue` back until the next hop asks for it.
pub fn hold_body(request: Request<Body>) -> Request<Body> {
    let expects = request
        .headers()
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !expects {
        return request;
    }
    let gate = Gate::default();
    let opened = gate.clone();
    let (parts, body) = request.into_parts();
    let held = HeldBody {
        body,
        gate: Some((gate, Box::pin(sleep(PATIENCE)))),
    };
    let mut request = Request::from_parts(parts, held.boxed_unsync());
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            opened.open();
        }
    });
    request
}

#[derive(Debug, Clone, Default)]
struct Gate(Arc<Mutex<(bool, Option<Waker>)>>);

impl Gate {
    fn open(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = true;
        if let Some(waker) = state.1.take() {
            waker.wake();
        }
    }

    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 {
            return Poll::Ready(());
        }
        state.1 = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct HeldBody {
    body: Body,
    gate: Option<(Gate, Pin<Box<Sleep>>)>,
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some((gate, patience)) = &mut self.gate {
            if gate.poll_open(cx).is_pending() && patience.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.gate = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
