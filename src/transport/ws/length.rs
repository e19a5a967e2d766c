//! The `Content-Length` of an answer that ends with trailers. On a stream, which is HTTP/1.1, an answer has one or the other (RFC
//! 9112 §7.1.2): so the length crosses it as `Tunnel-Content-Length`, and the body in chunks.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use crate::transport::headers::{TUNNEL_CONTENT_LENGTH, length};
use crate::transport::{Body, BoxError, usage};

/// The bridge puts the length aside where trailers are announced.
pub(super) fn put_aside(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    if usage::is_announced(headers)
        && let Some(length) = headers.remove(CONTENT_LENGTH)
    {
        headers.insert(TUNNEL_CONTENT_LENGTH, length);
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
    use futures_util::FutureExt;
    use http::header::TRAILER;

    use super::*;
    use crate::transport::full;

    fn told(length: &str) -> Response<Body> {
        let response = Response::builder().header(TUNNEL_CONTENT_LENGTH, length);
        put_back(response.body(full("four")).unwrap())
    }

    #[test]
    fn a_length_is_put_aside_where_trailers_follow_and_put_back() {
        for announced in [true, false] {
            let mut response = Response::new(full("four"));
            response.headers_mut().insert(CONTENT_LENGTH, 4.into());
            if announced {
                response.headers_mut().insert(TRAILER, "Tunnel-Usage".parse().unwrap());
            }
            put_aside(&mut response);
            assert_eq!(response.headers().contains_key(CONTENT_LENGTH), !announced);
            let response = put_back(response);
            assert_eq!(response.headers()[CONTENT_LENGTH], "4");
            let body = response.into_body().collect().now_or_never().unwrap();
            assert_eq!(body.unwrap().to_bytes(), "four");
        }
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
