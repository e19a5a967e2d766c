//! The HTTP that the ACME library speaks with the CA: over the connections that everything else here dials, bounded in size and
//! time.

use std::error::Error as StdError;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use crate::transport::dial::{DialError, Dialer, HttpDialer};

/// From a request to the end of its answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// More than any answer of a CA, octets.
const LARGEST: usize = 1 << 20;
/// How long a connection that nobody uses is kept.
const KEPT_FOR: Duration = Duration::from_secs(15);

/// Sends requests to the CA.
pub(super) struct Client(legacy::Client<HttpDialer, BodyWrapper<Bytes>>);

impl Client {
    pub(super) fn new(dialer: Dialer) -> Self {
        let pool = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT_FOR)
            .build(HttpDialer(dialer));
        Self(pool)
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let sent = self.0.request(request);
        Box::pin(async move {
            let whole = async {
                let (parts, body) = sent.await.map_err(|error| words(&error))?.into_parts();
                let body = Limited::new(body, LARGEST).collect().await;
                let body = body.map_err(|error| words(error.as_ref()))?.to_bytes();
                Ok(BytesResponse {
                    parts,
                    body: Box::new(body),
                })
            };
            tokio::time::timeout(TIMEOUT, whole)
                .await
                .unwrap_or_else(|_| Err("the CA does not answer".into()))
                .map_err(|words: String| Error::Other(words.into()))
        })
    }
}

/// What went wrong at the bottom of it.
fn words(error: &(dyn StdError + 'static)) -> String {
    let mut cause = error;
    loop {
        if let Some(error) = cause.downcast_ref::<DialError>() {
            return error.to_string();
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return cause.to_string(),
        }
    }
}
