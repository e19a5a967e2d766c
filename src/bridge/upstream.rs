//! The local server: pooled HTTP/1.1 to Ollama, or whatever else answers at `--upstream`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use tokio::sync::Semaphore;

use crate::transport::dial::{BaseUrl, Dialer};
use crate::transport::http1::{Connection, Pool};
use crate::transport::{Body, Exchange, ExchangeError, expect};

/// Connections kept for the next request. Some local servers close theirs after five seconds, so ours go earlier: a request
/// must not meet a connection that is just being closed.
const KEPT: usize = 64;
const KEPT_FOR: Duration = Duration::from_secs(3);

/// Carries exchanges to the local server.
pub struct Upstream {
    base: BaseUrl,
    host: HeaderValue,
    extra: HeaderMap,
    dialer: Dialer,
    pool: Arc<Pool>,
}

impl Upstream {
    /// Nothing is connected yet; `extra` header fields go along with each request.
    pub fn new(base: BaseUrl, extra: HeaderMap, dialer: Dialer) -> Self {
        let authority = base.origin().authority();
        Self {
            host: HeaderValue::from_str(&authority).unwrap_or_else(|_| HeaderValue::from_static("localhost")),
            base,
            extra,
            dialer,
            pool: Pool::new(Arc::new(Semaphore::new(KEPT)), KEPT_FOR),
        }
    }

    /// Closes connections that nobody used for a while; never ends.
    pub async fn expire_idle(&self) -> std::convert::Infallible {
        self.pool.expire().await
    }

    async fn exchange(&self, mut request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = self
            .base
            .path(path)
            .parse::<Uri>()
            .map_err(|error| ExchangeError::Protocol(error.to_string()))?;
        request.headers_mut().insert(HOST, self.host.clone());
        for (name, value) in &self.extra {
            request.headers_mut().insert(name, value.clone());
        }
        let request = expect::hold_body(request);
        self.pool.exchange(request, || self.connect()).await
    }

    async fn connect(&self) -> Result<Connection, ExchangeError> {
        let stream = self
            .dialer
            .dial(self.base.origin())
            .await
            .map_err(|error| ExchangeError::Unreachable(error.to_string()))?;
        Connection::begin(stream)
            .await
            .map_err(|error| ExchangeError::Gone(error.to_string()))
    }
}

impl Exchange for Upstream {
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, ExchangeError>> {
        self.exchange(request).boxed()
    }
}
