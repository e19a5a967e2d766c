//! Callers with a kept HTTP/1.1 connection each, the same whomever they ask.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::upstream::{BULK, BULK_SIZE, CHUNK, CHUNKS, SMALL, SMALL_REQUEST, Upstream};

/// The length of the answer to a small exchange, as first seen.
static SMALL_LENGTH: OnceLock<usize> = OnceLock::new();

/// One caller.
#[derive(Debug)]
pub(crate) struct Caller {
    sender: SendRequest<Full<Bytes>>,
    headers: HeaderMap,
    small: Uri,
}

impl Caller {
    /// Connects; with a token where there is a relay.
    pub(crate) async fn connect(address: SocketAddr, token: Option<&str>) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(&address.to_string()).unwrap());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = token {
            headers.insert(
                AUTHORIZATION,
                HeaderValue::from_str(&format!("Bearer {token}")).unwrap(),
            );
        }
        Self {
            sender,
            headers,
            small: Uri::from_static(SMALL),
        }
    }

    async fn send(&mut self, method: Method, uri: Uri, body: &'static [u8]) -> Incoming {
        let mut request = Request::new(Full::new(Bytes::from_static(body)));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        request.headers_mut().clone_from(&self.headers);
        self.sender.ready().await.expect("a connection that is kept");
        let response = self.sender.send_request(request).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK, "{:?}", response.headers());
        response.into_body()
    }

    /// One small exchange.
    pub(crate) async fn small(&mut self) {
        let body = self.send(Method::POST, self.small.clone(), SMALL_REQUEST).await;
        let length = length(body).await;
        // Always the same question, so always the same length.
        assert_eq!(length, *SMALL_LENGTH.get_or_init(|| length));
    }

    /// One large download.
    pub(crate) async fn bulk(&mut self) {
        let body = self.send(Method::GET, Uri::from_static(BULK), b"").await;
        assert_eq!(length(body).await, BULK_SIZE);
    }

    /// A streamed answer of so many chunks, each sent once the one before it has been read.
    pub(crate) async fn chunks(&mut self, upstream: &Upstream, count: usize) {
        let mut body = self.send(Method::POST, Uri::from_static(CHUNKS), SMALL_REQUEST).await;
        for _ in 0..count {
            upstream.pace.add_permits(1);
            let mut missing = CHUNK.len();
            while missing > 0 {
                let frame = body.frame().await.expect("a chunk").expect("a whole chunk");
                missing -= frame.data_ref().map_or(0, Bytes::len);
            }
        }
    }
}

async fn length(mut body: Incoming) -> usize {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.expect("a whole body").data_ref().map_or(0, Bytes::len);
    }
    length
}

/// Some callers who ask side by side.
#[derive(Debug)]
pub(crate) struct Crowd(Vec<Caller>);

/// What a crowd did in a slice of time.
#[derive(Debug)]
pub(crate) struct Slice {
    /// How long each exchange took, in order of that.
    pub(crate) latencies: Vec<Duration>,
    elapsed: Duration,
}

impl Slice {
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The median latency, microseconds.
    pub(crate) fn median(&self) -> f64 {
        self.latencies[self.latencies.len() / 2].as_secs_f64() * 1e6
    }

    /// The longest latency, microseconds.
    pub(crate) fn worst(&self) -> f64 {
        self.latencies.last().map_or(f64::NAN, |last| last.as_secs_f64() * 1e6)
    }
}

impl Crowd {
    pub(crate) async fn connect(size: usize, address: SocketAddr, token: Option<&str>) -> Self {
        let mut callers = Vec::with_capacity(size);
        for _ in 0..size {
            callers.push(Caller::connect(address, token).await);
        }
        Self(callers)
    }

    /// Everybody makes small exchanges, one after the other, until the time is over.
    pub(crate) async fn ask_for(&mut self, time: Duration) -> Slice {
        let end = Instant::now() + time;
        self.ask_while(move || Instant::now() < end).await
    }

    /// Everybody makes small exchanges, one after the other, while the condition holds.
    pub(crate) async fn ask_while(&mut self, condition: impl Fn() -> bool + Clone + Send + 'static) -> Slice {
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for mut caller in self.0.drain(..) {
            let condition = condition.clone();
            tasks.spawn(async move {
                let mut latencies = Vec::with_capacity(16 * 1024);
                while condition() {
                    let asked = Instant::now();
                    caller.small().await;
                    latencies.push(asked.elapsed());
                }
                (caller, latencies)
            });
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (caller, some) = done.expect("a caller without complaint");
            self.0.push(caller);
            latencies.extend(some);
        }
        let elapsed = start.elapsed();
        latencies.sort_unstable();
        Slice { latencies, elapsed }
    }
}
