//! `GET /-/events`: what becomes of the bridges that the caller sees, line by line, for as long as somebody reads. [`feed`] looks
//! at them for all who listen, [`snapshot`] is what it saw.

mod feed;
mod snapshot;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

use self::feed::Listener;
use super::Relay;
use super::auth;
use super::connection::Active;
use super::dispatch::{X_ACCEL_BUFFERING, stopping};
use super::error::{Code, Error};
use super::session::token_end;
use crate::transport::{Body, BoxError, Sliced};

pub use self::feed::Feeds;

/// How often something is said though nothing happens, so that both sides know that they are heard.
const BEAT: Duration = Duration::from_secs(15);
const BEAT_LINE: &[u8] = b"{\"type\":\"beat\"}\n";

/// Answers with the caller's bridges, and with what becomes of them until the credential ends, the relay stops or the caller leaves.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`; `overloaded` when as many listen as may, `draining`.
pub async fn listen(relay: &Arc<Relay>, active: Active, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let identity = auth::caller(&relay.tokens, headers).await?;
    relay.buckets.take(&identity)?;
    if relay.shutdown.is_draining() {
        return Err(stopping());
    }
    let listener = relay.feeds.join(relay, &identity).ok_or_else(|| {
        let detail = "as many listen to your desktops already as may; close a page that shows them";
        Error::new(Code::Overloaded, detail)
    })?;
    // One line waits at most: the next is made when there is room for it, of all that happened meanwhile.
    let (sender, lines) = mpsc::channel(1);
    let told = attend(Arc::clone(relay), identity, active, listener, sender);
    relay.shutdown.tracker().spawn(told);
    let line = Sliced::default();
    let mut response = Response::new(Lines { line, lines }.boxed_unsync());
    for (name, value) in [
        (CONTENT_TYPE, "application/x-ndjson"),
        (CACHE_CONTROL, "no-cache, no-transform"),
        (X_ACCEL_BUFFERING, "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// Tells one caller for as long as it listens and may. With its end the connection counts as idle, also where nobody reads from it.
async fn attend(
    relay: Arc<Relay>,
    identity: auth::Identity,
    active: Active,
    mut listener: Listener,
    sender: mpsc::Sender<Bytes>,
) {
    tokio::select! {
        () = tell(&mut listener, &sender, relay.config.limits.idle) => {}
        () = sender.closed() => {}
        () = token_end(&relay.tokens, &identity, Duration::ZERO) => {}
        () = relay.shutdown.draining() => {}
    }
    drop(active);
}

/// Tells until nothing was taken for the limit.
async fn tell(listener: &mut Listener, sender: &mpsc::Sender<Bytes>, limit: Duration) {
    let mut beats = beats();
    while let Ok(Ok(room)) = timeout(limit, sender.reserve()).await {
        let Some(line) = next_line(listener, &mut beats).await else {
            return;
        };
        room.send(line);
    }
}

fn beats() -> Interval {
    let mut beats = interval_at(Instant::now() + BEAT, BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

/// The next line for one who was told all before it; none once nothing can come any more.
async fn next_line(listener: &mut Listener, beats: &mut Interval) -> Option<Bytes> {
    tokio::select! {
        change = listener.change() => change,
        _ = beats.tick() => Some(Bytes::from_static(BEAT_LINE)),
    }
}

/// Lines on their way to the caller.
struct Lines {
    /// What is left of the one that is under way.
    line: Sliced,
    lines: mpsc::Receiver<Bytes>,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.line.is_end_stream() {
            match ready!(self.lines.poll_recv(cx)) {
                Some(line) => self.line = Sliced::new(line),
                None => return Poll::Ready(None),
            }
        }
        Pin::new(&mut self.line).poll_frame(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_beat_is_heard_where_nothing_happens_and_who_takes_nothing_is_left() {
        let limit = Duration::from_secs(60);
        let (feeds, mut listener) = Feeds::quiet();
        let (sender, mut lines) = mpsc::channel(1);
        let mut telling = std::pin::pin!(tell(&mut listener, &sender, limit));
        let mut next = async || {
            tokio::select! {
                () = &mut telling => None,
                line = lines.recv() => line,
            }
        };
        let first = next().await.unwrap();
        assert_eq!(first, "{\"type\":\"bridges\",\"bridges\":[],\"gone\":[]}\n");
        let began = Instant::now();
        for beat in 1..=3 {
            assert_eq!(next().await.unwrap(), BEAT_LINE);
            assert_eq!(began.elapsed(), BEAT * beat);
        }
        telling.await;
        assert_eq!(began.elapsed(), BEAT * 4 + limit);
        drop(feeds);
    }
}
