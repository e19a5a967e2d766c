//! The port for those who watch: `/metrics` and `/healthz` in clear, and nothing else. It knows no tokens, so it is a port of its
//! own that the outside does not reach.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::export;
use crate::relay::{Relay, own};
use crate::transport::{Body, empty, full};

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 16;
/// The head of a request, octets.
const HEAD: usize = 8 * 1024;
/// From the beginning of a connection, or the end of an answer, to the next whole head.
const HEAD_TIME: Duration = Duration::from_secs(90);
/// A connection lasts no longer, whatever comes over it.
const LIFE: Duration = Duration::from_secs(600);
/// After the system could not accept a connection.
const PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers for as long as it is polled.
pub async fn serve(listener: TcpListener, relay: Arc<Relay>) -> Infallible {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let relay = Arc::clone(&relay);
                tokio::spawn(async move {
                    // Whoever is still connected then connects again.
                    let _ = tokio::time::timeout(LIFE, connection(stream, relay)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection to the metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, relay: Arc<Relay>) {
    let service = service_fn(move |request| {
        let response = answer(&relay, &request);
        async { Ok::<_, Infallible>(response) }
    });
    // An error is that of whoever asks.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(relay: &Arc<Relay>, request: &Request<Incoming>) -> Response<Body> {
    let known = matches!(request.uri().path(), "/metrics" | "/healthz");
    if !known {
        return bare(StatusCode::NOT_FOUND);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = bare(StatusCode::METHOD_NOT_ALLOWED);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if request.uri().path() == "/healthz" {
        return own::health();
    }
    let Ok(text) = export::text(relay) else {
        return bare(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut response = Response::new(full(text));
    let kind = HeaderValue::from_static(format_for(request.headers()));
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn bare(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}

/// What is written is both: to a reader of the older format, what only the newer has are comments.
fn format_for(headers: &HeaderMap) -> &'static str {
    let accepts = headers.get_all(ACCEPT).into_iter();
    let newer = accepts
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"));
    if newer { OPEN_METRICS } else { PLAIN }
}
