//! What happens to a request on the desktop: scrubbed, held against the policy, answered by the local server, counted (its
//! tokens by [`usage`]).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::cloud::{self, Guard};
use super::policy::Policy;
use super::status::{Running, Status};
use super::upstream::Upstream;
use super::usage::{self, Tally};
use crate::transport::headers::{self, X_REQUEST_ID};
use crate::transport::path::normalise;
use crate::transport::usage::is_asked;
use crate::transport::{Body, BoxError, Exchange, ExchangeError, upgrade};

/// Answers the relay's requests.
pub struct Local {
    policy: Policy,
    upstream: Upstream,
    status: Arc<Status>,
}

impl Local {
    /// Lets through to `upstream` what the policy says.
    pub fn new(policy: Policy, upstream: Upstream, status: Arc<Status>) -> Self {
        Self {
            policy,
            upstream,
            status,
        }
    }

    /// Keeps the connections to the local server in order; never ends.
    pub async fn tend(&self) -> std::convert::Infallible {
        self.upstream.expire_idle().await
    }

    async fn answer(&self, mut request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        let record = Record {
            running: self.status.begin(),
            started: Instant::now(),
            id: request.headers().get(X_REQUEST_ID).cloned(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
        };
        let near = upgrade::of_request(&mut request);
        let mut tally = None;
        let answered = match self.admit(request) {
            Ok(admitted) => {
                tally = admitted.tally;
                let answered = self.upstream.call(admitted.request).await;
                // The guard broke the request off: that is the reason, not what became of the connection.
                let refusal = admitted.guard.and_then(|guard| guard.refusal());
                answered.map_err(|error| refusal.unwrap_or(error))
            }
            Err(refused) => Err(refused),
        };
        self.note_upstream(&answered);
        record.log(&answered);
        let mut response = answered?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            switch(near, &mut response, record)?;
            return Ok(response);
        }
        headers::remove_hop_by_hop(response.headers_mut(), false);
        headers::remove_tunnel(response.headers_mut());
        let response = response.map(|body| CountedBody { body, record }.boxed_unsync());
        Ok(match tally {
            Some(tally) => tally.of_answer(response),
            None => response,
        })
    }

    /// The request as it goes to the local server, if the policy lets it.
    fn admit(&self, request: Request<Body>) -> Result<Admitted, ExchangeError> {
        let (mut parts, body) = request.into_parts();
        parts.uri = self.target(&parts.method, &parts.uri)?;
        let asked = is_asked(&mut parts.headers);
        let upgrades = headers::is_upgrade(&parts.headers);
        headers::remove_hop_by_hop(&mut parts.headers, upgrades);
        headers::remove_tunnel(&mut parts.headers);
        headers::remove_origin(&mut parts.headers);
        parts.extensions = http::Extensions::new();
        let guarded = self.policy.guards_cloud(&parts.method, parts.uri.path());
        let counted = asked && usage::applies(&parts.method, parts.uri.path());
        let request = Request::from_parts(parts, body);
        let (request, guard) = if guarded {
            let (request, guard) = cloud::guard(request)?;
            (request, Some(guard))
        } else {
            (request, None)
        };
        let (request, tally) = if counted {
            let (request, tally) = Tally::of_request(request);
            (request, Some(tally))
        } else {
            (request, None)
        };
        Ok(Admitted { request, guard, tally })
    }

    fn target(&self, method: &Method, uri: &Uri) -> Result<Uri, ExchangeError> {
        let refused = |code: &str, detail: String| ExchangeError::Refused {
            code: code.to_owned(),
            detail,
        };
        let normal = normalise(uri.path()).map_err(|error| refused("bad_request", error.to_string()))?;
        if normal.encoded_slash && !self.policy.is_everything() {
            return Err(refused(
                "bad_request",
                "an encoded slash cannot stand in this path".into(),
            ));
        }
        self.policy
            .check(method, &normal.path)
            .map_err(|detail| refused("policy", detail))?;
        let mut target = normal.path.into_owned();
        if let Some(query) = uri.query() {
            target.push('?');
            target.push_str(query);
        }
        let target: PathAndQuery = target
            .parse()
            .map_err(|_| refused("bad_request", "the path cannot be forwarded".into()))?;
        Ok(Uri::from(target))
    }

    /// Tells the owner when the local server goes and comes.
    fn note_upstream(&self, answered: &Result<Response<Body>, ExchangeError>) {
        match answered {
            Err(ExchangeError::Unreachable(detail)) if self.status.set_upstream_away(true) => {
                tracing::warn!("Ollama is not running here ({detail}); once it is started, requests work at once");
            }
            Ok(_) if self.status.set_upstream_away(false) => tracing::info!("Ollama answers again"),
            _ => {}
        }
    }
}

impl Exchange for Local {
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, ExchangeError>> {
        self.answer(request).boxed()
    }
}

fn switch(
    near: Option<hyper::upgrade::OnUpgrade>,
    response: &mut Response<Body>,
    record: Record,
) -> Result<(), ExchangeError> {
    let (near, far) = upgrade::switch(near, response)
        .ok_or_else(|| ExchangeError::Protocol("it switched protocols unasked".into()))?;
    tokio::spawn(async move {
        // How an upgraded connection ends is between caller and local server.
        // How long it may be idle is the relay's to say.
        let _ = upgrade::join(near, far, None).await;
        drop(record);
    });
    Ok(())
}

/// A request that may go to the local server.
struct Admitted {
    request: Request<Body>,
    guard: Option<Guard>,
    tally: Option<Tally>,
}

/// What is noted of one exchange.
struct Record {
    running: Running,
    started: Instant,
    id: Option<HeaderValue>,
    method: Method,
    path: String,
}

impl Record {
    fn log(&self, answered: &Result<Response<Body>, ExchangeError>) {
        let id = self.id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or("-");
        let (method, path) = (&self.method, &self.path);
        let ms = self.started.elapsed().as_millis();
        match answered {
            Ok(response) => tracing::debug!(id, ms, "{method} {path} {}", response.status().as_u16()),
            Err(error) => tracing::info!(id, ms, "{method} {path}: {error}"),
        }
    }

    fn log_broken(&self, error: &BoxError) {
        let id = self.id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or("-");
        tracing::info!(id, "{} {}: the local server broke off: {error}", self.method, self.path);
    }
}

/// A response body on its way to the relay.
struct CountedBody {
    body: Body,
    record: Record,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.record.running.add_bytes(data.len());
                }
                if let Some(trailers) = frame.trailers_mut() {
                    headers::scrub_trailers(trailers);
                }
            }
            Some(Err(error)) => self.record.log_broken(error),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
