//! A caller as programs are: one that keeps its connections, over the same ways as the bridge.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::token::Secret;
use crate::transport::dial::{BaseUrl, DialError, Dialer, HttpDialer};
use crate::transport::headers::{PROGRAM, TUNNEL_BRIDGE};
use crate::transport::{Body, collect};

/// Sends requests to one server.
#[derive(Clone)]
pub(in crate::cmd) struct Caller {
    client: legacy::Client<HttpDialer, Body>,
    base: BaseUrl,
    headers: HeaderMap,
}

/// Why there was no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::cmd) enum CallError {
    /// The server could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Nothing came in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// A header or the path cannot be sent.
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(in crate::cmd) struct Answer {
    pub(in crate::cmd) status: StatusCode,
    pub(in crate::cmd) headers: HeaderMap,
    pub(in crate::cmd) body: Bytes,
}

impl Caller {
    /// Nothing is connected yet.
    pub(in crate::cmd) fn new(dialer: &Dialer, base: &BaseUrl) -> Self {
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .retry_canceled_requests(false)
            .build(HttpDialer(dialer.clone()));
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(PROGRAM));
        Self {
            client,
            base: base.clone(),
            headers,
        }
    }

    /// With this credential, over the same connections.
    pub(in crate::cmd) fn with_token(&self, token: &Secret) -> Self {
        let mut caller = self.clone();
        if let Ok(mut value) = HeaderValue::from_str(&token.bearer()) {
            value.set_sensitive(true);
            caller.headers.insert(AUTHORIZATION, value);
        }
        caller
    }

    /// To this bridge, over the same connections.
    pub(in crate::cmd) fn to_bridge(&self, name: &str) -> Self {
        let mut caller = self.clone();
        if let Ok(value) = HeaderValue::from_str(name) {
            caller.headers.insert(TUNNEL_BRIDGE, value);
        }
        caller
    }

    fn request(&self, method: Method, path: &str, headers: HeaderMap, body: Body) -> Result<Request<Body>, CallError> {
        let scheme = if self.base.origin().is_tls() { "https" } else { "http" };
        let uri = format!("{scheme}://{}{}", self.base.origin().authority(), self.base.path(path));
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .body(body)
            .map_err(|error| CallError::Request(error.to_string()))?;
        request.headers_mut().clone_from(&self.headers);
        request.headers_mut().extend(headers);
        Ok(request)
    }

    /// Sends a request, with these headers besides its own, and gives the head of the answer.
    pub(in crate::cmd) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response<Incoming>, CallError> {
        let request = self.request(method, path, headers, body)?;
        self.client.request(request).await.map_err(|error| reason(&error))
    }

    /// The same, and reads the answer, at most `most` octets of it.
    pub(in crate::cmd) async fn fetch(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
        most: usize,
    ) -> Result<Answer, CallError> {
        let (head, body) = self.send(method, path, headers, body).await?.into_parts();
        let body = collect(body, most)
            .await
            .ok_or_else(|| CallError::Broken("in the middle of an answer".into()))?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }
}

/// The connection's own words, without those of the layers around it.
fn reason(error: &legacy::Error) -> CallError {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(dial) = cause.downcast_ref::<DialError>() {
            return dial.clone().into();
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return CallError::Broken(cause.to_string()),
        }
    }
}
