//! Many bridges in this process: real links to the relay, and behind each an answer that waits until all its requests are
//! there. On a runtime of their own, away from the callers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tunnel::token::Secret;
use tunnel::transport::attach::Hello;
use tunnel::transport::dial::{Dialer, RelayUrl};
use tunnel::transport::poll::bridge::register;
use tunnel::transport::ws::bridge::{answer, connect};
use tunnel::transport::ws::mux::Event;
use tunnel::transport::{Body, Exchange, ExchangeError, collect, full};

use super::process::token;
use super::upstream::{SMALL, SMALL_REQUEST};

const ANSWER: &[u8] = &[b'a'; 300];

/// Bridges of one user.
const PER_USER: usize = 100;
/// Connections made at once, and callers' connections in a burst: each has one bridge's requests under way.
const SIDE_BY_SIDE: usize = 50;
const PATIENCE: Duration = Duration::from_secs(120);

/// The bridges; dropping it loses them all.
pub(crate) struct Swarm {
    relay: SocketAddr,
    bridges: usize,
    together: usize,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Swarm {
    /// Connects so many, each of which answers `together` requests at once.
    pub(crate) async fn connect(relay: SocketAddr, bridges: usize, together: usize, transport: Transport) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut workers = JoinSet::new();
        for worker in 0..SIDE_BY_SIDE {
            let connecting = async move {
                for number in (worker..bridges).step_by(SIDE_BY_SIDE) {
                    begin(relay, number, together, transport).await;
                }
            };
            workers.spawn_on(connecting, runtime.handle());
        }
        timeout(PATIENCE, workers.join_all())
            .await
            .expect("all bridges to be connected");
        Self {
            relay,
            bridges,
            together,
            runtime: Some(runtime),
        }
    }

    /// Requests at once on each bridge, bridge after bridge, many side by side; each user has one token for all of them.
    pub(crate) async fn burst(&self) {
        let users = self.bridges.div_ceil(PER_USER);
        let bearers: Arc<[String]> = (0..users)
            .map(|number| format!("Bearer {}", token(&user(number * PER_USER))))
            .collect();
        let mut workers = JoinSet::new();
        for worker in 0..SIDE_BY_SIDE.min(self.bridges) {
            let numbers = (worker..self.bridges).step_by(SIDE_BY_SIDE);
            workers.spawn(requests(
                self.relay,
                numbers.collect(),
                self.together,
                Arc::clone(&bearers),
            ));
        }
        timeout(PATIENCE, workers.join_all())
            .await
            .expect("the burst to be answered");
    }
}

/// Whose the bridge of this number is.
pub(crate) fn user(number: usize) -> String {
    format!("user-{}", number / PER_USER)
}

fn name(number: usize) -> String {
    format!("bridge-{number}")
}

/// How a swarm is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Ws,
    Poll,
}

/// Connects one bridge, and drives it in a task of its own.
async fn begin(relay: SocketAddr, number: usize, together: usize, transport: Transport) {
    let url: RelayUrl = format!("http://{relay}").parse().unwrap();
    let dialer = Dialer::new(None, PATIENCE).unwrap();
    let hello = Hello {
        token: Secret::new(&token(&user(number))),
        client_id: format!("client-{number}"),
        instance: "bench".to_owned(),
        name: name(number),
        priority: 0,
        ephemeral: false,
    };
    let exchange: Arc<dyn Exchange> = Arc::new(Together(Barrier::new(together)));
    if transport == Transport::Poll {
        let registering = register(&dialer, &url, &hello, None, exchange);
        let (_poller, driver, _welcome) = registering.await.expect("a link");
        tokio::spawn(driver.run(Box::new(|_| {})));
        return;
    }
    let (_mux, mut driver, _welcome) = connect(&dialer, &url, &hello, || {}).await.expect("a link");
    tokio::spawn(async move {
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                event = driver.next() => match event {
                    Event::Stream(stream) => drop(streams.spawn(answer(stream, Arc::clone(&exchange), Arc::default()))),
                    Event::Text(_) => {}
                    Event::Ended(_) => return,
                },
                Some(_) = streams.join_next(), if !streams.is_empty() => {}
            }
        }
    });
}

/// Answers when all requests of a burst have come.
struct Together(Barrier);

impl Exchange for Together {
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, ExchangeError>> {
        async move {
            let body = collect(request.into_body(), SMALL_REQUEST.len()).await;
            assert_eq!(body.map(|body| body.len()), Some(SMALL_REQUEST.len()));
            self.0.wait().await;
            Ok(Response::new(full(ANSWER)))
        }
        .boxed()
    }
}

/// The requests of some bridges, one bridge after the other, over one HTTP/2 connection.
async fn requests(relay: SocketAddr, bridges: Vec<usize>, together: usize, bearers: Arc<[String]>) {
    let stream = TcpStream::connect(relay).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    for number in bridges {
        let bearer = &bearers[number / PER_USER];
        let mut exchanges = JoinSet::new();
        for _ in 0..together {
            exchanges.spawn(request(sender.clone(), relay, bearer.clone(), name(number)));
        }
        exchanges.join_all().await;
    }
    drop(sender);
    connection.abort();
}

async fn request(mut sender: SendRequest<Full<Bytes>>, relay: SocketAddr, bearer: String, bridge: String) {
    let request = Request::post(format!("http://{relay}{SMALL}"))
        .header(AUTHORIZATION, bearer)
        .header("tunnel-bridge", bridge)
        .body(Full::new(Bytes::from_static(SMALL_REQUEST)))
        .unwrap();
    sender.ready().await.expect("a connection that is kept");
    let response = sender.send_request(request).await.expect("a response");
    assert_eq!(response.status(), StatusCode::OK, "{:?}", response.headers());
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    assert_eq!(body.len(), ANSWER.len());
}
