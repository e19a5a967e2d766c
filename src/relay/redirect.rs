//! The port for plain HTTP of a relay that does TLS: answers the CA, and sends everybody else to `https://`.

use http::header::{CONNECTION, CONTENT_TYPE, HOST, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode};

use super::Relay;
use super::host::Host;
use crate::transport::{Body, empty, full};

/// Where a CA looks (RFC 8555 §8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// Answers a request.
pub fn answer<B>(relay: &Relay, request: &Request<B>) -> Response<Body> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if let Some(token) = request.uri().path().strip_prefix(CHALLENGES).filter(|_| is_read)
        && let Some(answer) = relay.config.tls.as_ref().and_then(|tls| tls.http_answer(token))
    {
        return text(StatusCode::OK, "application/octet-stream", answer);
    }
    let mut response = match target(relay, request) {
        Some(target) => {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
            response.headers_mut().insert(LOCATION, target);
            response
        }
        None => text(
            StatusCode::BAD_REQUEST,
            "text/plain; charset=utf-8",
            "the request names no host that could be sent on to https\n".to_owned(),
        ),
    };
    // Nobody keeps a place here that a CA may need.
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The same with `https://`: at the public URL where there is one, else at the host that the request names.
fn target<B>(relay: &Relay, request: &Request<B>) -> Option<HeaderValue> {
    let uri = request.uri();
    let root = match &relay.config.public_url {
        Some(url) => url.to_string(),
        None => {
            let named = match uri.authority() {
                Some(authority) => authority.as_str(),
                None => request.headers().get(HOST)?.to_str().ok()?,
            };
            format!("https://{}", Host::parse(named)?.at(relay.port()).in_https())
        }
    };
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if !path.starts_with('/') {
        return None;
    }
    HeaderValue::from_str(&format!("{root}{path}")).ok()
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
