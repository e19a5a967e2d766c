//! The `Content-Length` of an answer that ends with a report. On a stream, which is HTTP/1.1, an answer has a length or trailers (RFC
//! 9112 §7.1.2). If all of it is there already, the report goes into its head; else the length crosses as `Tunnel-Content-Length`,
//! and the body in chunks.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use crate::transport::headers::{TUNNEL_CONTENT_LENGTH, TUNNEL_USAGE, length};
use crate::transport::{Body, BoxError, full, usage};

/// A longer answer is not looked at before it is sent, octets.
const SHORT: u64 = 16 * 1024;
/// More pieces of a body are not looked at.
const PIECES: usize = 8;

/// The bridge makes room for the report of an answer whose length is told.
pub(super) fn make_room(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    if !usage::is_announced(headers) || !headers.contains_key(CONTENT_LENGTH) {
        return response;
    }
    let short = length(headers, &CONTENT_LENGTH).filter(|length| *length <= SHORT);
    let (mut head, mut body) = response.into_parts();
    if let Some(short) = short {
        let begun = Begun::of(body);
        if let Some((octets, mut report)) = begun.whole(short) {
            usage::to_head(&mut report, &mut head.headers);
            return Response::from_parts(head, full(octets));
        }
        body = begun.boxed_unsync();
    }
    if let Some(length) = head.headers.remove(CONTENT_LENGTH) {
        head.headers.insert(TUNNEL_CONTENT_LENGTH, length);
    }
    Response::from_parts(head, body)
}

/// A body of which something is there already.
struct Begun {
    there: VecDeque<Result<Frame<Bytes>, BoxError>>,
    rest: Option<Body>,
}

impl Begun {
    /// Takes what is there; waits for nothing.
    fn of(mut body: Body) -> Self {
        let mut there = VecDeque::new();
        while there.len() < PIECES {
            match body.frame().now_or_never() {
                Some(Some(Ok(frame))) => there.push_back(Ok(frame)),
                // Nothing follows an error.
                Some(Some(Err(error))) => {
                    there.push_back(Err(error));
                    return Self { there, rest: None };
                }
                Some(None) => return Self { there, rest: None },
                None => break,
            }
        }
        Self {
            there,
            rest: Some(body),
        }
    }

    /// All of the body, and what stands behind it, if it is of this length and has no trailers of its own.
    fn whole(&self, length: u64) -> Option<(Bytes, Option<HeaderMap>)> {
        let mut octets = BytesMut::new();
        let mut report = None;
        for frame in &self.there {
            let frame = frame.as_ref().ok()?;
            match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) if report.is_none() => octets.extend_from_slice(data),
                (_, Some(trailers)) if trailers.keys().all(|name| name == TUNNEL_USAGE) => {
                    report = Some(trailers.clone());
                }
                _ => return None,
            }
        }
        let is_whole = self.rest.is_none() && octets.len() as u64 == length;
        is_whole.then(|| (octets.freeze(), report))
    }
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match (self.there.pop_front(), &mut self.rest) {
            (Some(frame), _) => Poll::Ready(Some(frame)),
            (None, Some(rest)) => Pin::new(rest).poll_frame(cx),
            (None, None) => Poll::Ready(None),
        }
    }
}

/// The relay puts it back, if it is a number. From then on the body breaks if that is not its length: hyper would cut what is over
/// without a word.
pub(super) fn put_back(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    let fits = response.status() == StatusCode::OK && !headers.contains_key(CONTENT_LENGTH);
    let Some(left) = length(headers, &TUNNEL_CONTENT_LENGTH).filter(|_| fits) else {
        return response;
    };
    let mut response = response.map(|body| Measured { body, left }.boxed_unsync());
    response.headers_mut().insert(CONTENT_LENGTH, left.into());
    response
}

/// A body of which so many octets are to come.
struct Measured {
    body: Body,
    left: u64,
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let data = match &frame {
            Some(Ok(frame)) => frame.data_ref(),
            Some(Err(_)) => return Poll::Ready(frame),
            None => None,
        };
        let left = match data {
            Some(data) => self.left.checked_sub(data.len() as u64),
            None => Some(self.left).filter(|left| *left == 0),
        };
        let Some(left) = left else {
            return Poll::Ready(Some(Err("the body has not the length that its head told".into())));
        };
        self.left = left;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use http::header::{ETAG, TRAILER};
    use http_body_util::StreamBody;

    use super::*;

    fn told(length: &str) -> Response<Body> {
        let response = Response::builder().header(TUNNEL_CONTENT_LENGTH, length);
        put_back(response.body(full("four")).unwrap())
    }

    /// An answer of four octets that come in these pieces; with `None`, the rest comes later.
    fn answer(announced: bool, pieces: &'static [Option<&'static str>]) -> Response<Body> {
        let frames = futures_util::stream::iter(pieces).then(|piece| async move {
            let Some(piece) = piece else {
                tokio::task::yield_now().await;
                return Ok(Frame::data(Bytes::new()));
            };
            Ok::<_, BoxError>(match piece.strip_prefix("report ") {
                Some(report) => Frame::trailers(HeaderMap::from_iter([(TUNNEL_USAGE, report.parse().unwrap())])),
                None => Frame::data(Bytes::from_static(piece.as_bytes())),
            })
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(CONTENT_LENGTH, 4.into());
        if announced {
            response.headers_mut().insert(TRAILER, "Tunnel-Usage".parse().unwrap());
        }
        response
    }

    #[tokio::test]
    async fn a_report_that_is_there_goes_into_the_head_and_else_the_length_is_put_aside_and_put_back() {
        for (announced, pieces, in_head, aside) in [
            (false, &[Some("four")][..], false, false),
            (true, &[Some("four"), Some("report 7")], true, false),
            (true, &[Some("fo"), Some("ur"), Some("report 7")], true, false),
            (true, &[Some("four")], false, false),
            (true, &[Some("fo"), None, Some("ur"), Some("report 7")], false, true),
            (true, &[Some("four"), None, Some("report 7")], false, true),
            (true, &[None, Some("four"), Some("report 7")], false, true),
        ] {
            let response = make_room(answer(announced, pieces));
            let headers = response.headers();
            let report = headers.get(TUNNEL_USAGE).map(|report| report.to_str().unwrap());
            assert_eq!(report, in_head.then_some("7"), "{pieces:?}");
            assert_eq!(headers.contains_key(TUNNEL_CONTENT_LENGTH), aside, "{pieces:?}");
            assert_eq!(headers.contains_key(CONTENT_LENGTH), !aside, "{pieces:?}");
            assert_eq!(headers.contains_key(TRAILER), aside, "{pieces:?}");
            let response = put_back(response);
            assert_eq!(response.headers()[CONTENT_LENGTH], "4");
            let body = response.into_body().collect().await.unwrap();
            let trailers = body.trailers().map(|trailers| trailers[TUNNEL_USAGE].to_str().unwrap());
            assert_eq!(trailers, aside.then_some("7"), "{pieces:?}");
            assert_eq!(body.to_bytes(), "four");
        }
    }

    #[tokio::test]
    async fn what_is_long_or_comes_in_many_pieces_or_has_trailers_of_its_own_is_passed_on_as_it_is() {
        let report = || Frame::trailers(HeaderMap::from_iter([(TUNNEL_USAGE, "7".parse().unwrap())]));
        let own = || Frame::trailers(HeaderMap::from_iter([(ETAG, "own".parse().unwrap())]));
        let octets = |length: usize| Frame::data(Bytes::from(vec![b'x'; length]));
        let piecemeal = |pieces: usize| (0..pieces).map(|_| octets(1)).chain([report()]).collect();
        for (frames, length, aside) in [
            (vec![octets(SHORT as usize), report()], SHORT, false),
            (vec![octets(SHORT as usize + 1), report()], SHORT + 1, true),
            (piecemeal(PIECES - 2), PIECES as u64 - 2, false),
            (piecemeal(PIECES), PIECES as u64, true),
            (vec![octets(4), own()], 4, true),
        ] {
            let (mut head, _) = answer(true, &[]).into_parts();
            head.headers.insert(CONTENT_LENGTH, length.into());
            let frames = futures_util::stream::iter(frames).map(Ok::<_, BoxError>);
            let response = make_room(Response::from_parts(head, StreamBody::new(frames).boxed_unsync()));
            assert_eq!(
                response.headers().contains_key(TUNNEL_CONTENT_LENGTH),
                aside,
                "{length}"
            );
            let body = put_back(response).into_body().collect().await.unwrap();
            assert_eq!(body.trailers().is_some(), aside, "{length}");
            assert_eq!(body.to_bytes().len() as u64, length);
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_or_is_too_short_is_passed_on_as_it_is() {
        let short = make_room(answer(true, &[Some("fou"), Some("report 7")]));
        assert!(put_back(short).into_body().collect().await.is_err());
        let (head, _) = answer(true, &[]).into_parts();
        let pieces = [
            Ok(Frame::data(Bytes::from_static(b"fo"))),
            Err(BoxError::from("broken")),
        ];
        let body = StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync();
        let broken = make_room(Response::from_parts(head, body));
        assert_eq!(broken.headers()[TUNNEL_CONTENT_LENGTH], "4");
        assert!(broken.into_body().collect().await.is_err());
    }

    #[test]
    fn a_length_that_is_none_is_passed_over_and_a_wrong_one_breaks_the_body() {
        for length in ["", "-4", "+4", "4,4", "0x4", "99999999999999999999"] {
            assert!(!told(length).headers().contains_key(CONTENT_LENGTH), "{length}");
        }
        for length in ["0", "3", "5", "18446744073709551615"] {
            let response = told(length);
            assert_eq!(response.headers()[CONTENT_LENGTH], length);
            let body = response.into_body().collect().now_or_never().unwrap();
            assert!(body.is_err(), "{length}");
        }
    }
}
