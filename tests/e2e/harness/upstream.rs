//! A local server whose answers the test writes, or a function does.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tunnel::transport::{Body, BoxError};

use super::within;

type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Option<Response<Body>>> + Send + Sync>;

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    calls: Mutex<mpsc::Receiver<Call>>,
    task: AbortHandle,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request that arrived at a scripted upstream and waits for its answer.
pub(crate) struct Call {
    pub(crate) request: Request<Incoming>,
    reply: oneshot::Sender<Response<Body>>,
}

/// Writes the body of an answer.
pub(crate) struct Answer(mpsc::Sender<Result<Frame<Bytes>, BoxError>>);

impl Upstream {
    /// Every request waits until the test answers it.
    pub(crate) async fn scripted() -> Self {
        let (sender, calls) = mpsc::channel(4096);
        let handler: Handler = Arc::new(move |request| {
            let sender = sender.clone();
            Box::pin(async move {
                let (reply, answer) = oneshot::channel();
                sender.send(Call { request, reply }).await.ok()?;
                // A call that is dropped unanswered closes the connection.
                answer.await.ok()
            })
        });
        Self::start(handler, calls).await
    }

    /// A function answers.
    pub(crate) async fn serving<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| {
            let response = answer(request);
            Box::pin(async move { Some(response.await) })
        });
        Self::start(handler, mpsc::channel(1).1).await
    }

    async fn start(handler: Handler, calls: mpsc::Receiver<Call>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve(listener, handler)).abort_handle();
        Self {
            address,
            calls: Mutex::new(calls),
            task,
        }
    }

    /// The next request that arrives.
    pub(crate) async fn next(&self) -> Call {
        let mut calls = self.calls.lock().await;
        within("a request at the upstream", calls.recv()).await.unwrap()
    }

    /// Closes its port and every connection.
    pub(crate) async fn stop(&self) {
        self.task.abort();
        super::until("the upstream's end", || self.task.is_finished()).await;
    }
}

async fn serve(listener: TcpListener, handler: Handler) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let handler = Arc::clone(&handler);
        let service = service_fn(move |request| {
            let response = handler(request);
            async move { response.await.ok_or("no answer") }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        connections.spawn(async move { drop(connection.await) });
        while connections.try_join_next().is_some() {}
    }
}

impl Call {
    /// Sends the head; the body is written by the returned value.
    pub(crate) fn begin(self, response: http::response::Builder) -> Answer {
        // As a real server does: only one that reads sees its client leave.
        tokio::spawn(self.request.into_body().collect());
        let (answer, body) = channel_body();
        self.reply.send(response.body(body).unwrap()).ok();
        answer
    }

    /// Sends a whole answer.
    pub(crate) fn finish(self, response: Response<Body>) {
        self.reply.send(response).ok();
    }

    /// The request, and where its answer goes.
    pub(crate) fn split(self) -> (Request<Incoming>, oneshot::Sender<Response<Body>>) {
        (self.request, self.reply)
    }

    /// The next piece of the request's body; none at its end, also where it broke.
    pub(crate) async fn read(&mut self) -> Option<Bytes> {
        loop {
            let frame = within("a piece of the request", self.request.body_mut().frame()).await?;
            match frame.ok()?.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Some(data),
                Err(_) => {}
            }
        }
    }

    /// Resolves when the request's body breaks off; fails if it ends as if it were whole.
    pub(crate) async fn broken_off(&mut self) {
        loop {
            match within("the upload to break off", self.request.body_mut().frame()).await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return,
                None => panic!("the upload ended as if it were whole"),
            }
        }
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Resolves when nobody waits for the answer any more.
    pub(crate) async fn abandoned(&mut self) {
        within("the upstream to see the caller leave", self.reply.closed()).await;
    }
}

impl Answer {
    pub(crate) async fn send(&self, data: impl Into<Bytes>) {
        let sent = self.0.send(Ok(Frame::data(data.into())));
        within("room for a chunk", sent).await.unwrap();
    }

    /// Sends a piece if anybody still takes it.
    pub(crate) async fn try_send(&self, data: impl Into<Bytes>) -> bool {
        self.0.send(Ok(Frame::data(data.into()))).await.is_ok()
    }

    pub(crate) async fn trailers(&self, trailers: HeaderMap) {
        self.0.send(Ok(Frame::trailers(trailers))).await.unwrap();
    }

    /// Breaks the body off.
    pub(crate) async fn break_off(self) {
        self.0.send(Err("broken off".into())).await.unwrap();
    }

    /// Whether nobody reads the body any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }

    /// Resolves when nobody reads the body any more.
    pub(crate) async fn abandoned(&self) {
        within("the upstream to see the caller leave", self.0.closed()).await;
    }
}

/// A body, and what writes it.
pub(crate) fn channel_body() -> (Answer, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (Answer(sender), ScriptedBody(receiver).boxed_unsync())
}

struct ScriptedBody(mpsc::Receiver<Result<Frame<Bytes>, BoxError>>);

impl http_body::Body for ScriptedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx)
    }
}
