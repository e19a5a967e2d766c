//! What stands in for Ollama: an HTTP/1.1 server on a thread of its own. Small exchanges are answered by the demonstration
//! model without a pause; bulk and chunks always the same.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tunnel::demo::Demo;
use tunnel::transport::{Body, full};

/// A small exchange, an embedding: about 200 octets there, about 300 back.
pub(crate) const SMALL: &str = "/api/embed";
pub(crate) const SMALL_REQUEST: &[u8] = br#"{"model":"demo","input":"A sentence as people write them to have it found again later among many others, by what it means and not by its words: the relay carries it to the desktop and back."}"#;

/// One large answer.
pub(crate) const BULK: &str = "/api/tags";
pub(crate) const BULK_SIZE: usize = 24 * 1024 * 1024;

/// A streamed answer.
pub(crate) const CHUNKS: &str = "/api/chat";
pub(crate) const CHUNK: &[u8] = &[b'c'; 100];

/// The server; its thread lives as long as the process.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// How many more chunks may be sent; closed, the stream ends. So each chunk crosses alone, as tokens do.
    pub(crate) pace: Arc<Semaphore>,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let upstream = Self {
            address: listener.local_addr().unwrap(),
            pace: Arc::new(Semaphore::new(0)),
        };
        let pace = Arc::clone(&upstream.pace);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(accept(listener, pace));
        });
        upstream
    }
}

async fn accept(listener: std::net::TcpListener, pace: Arc<Semaphore>) {
    let listener = TcpListener::from_std(listener).unwrap();
    let bulk = Bytes::from(vec![b'b'; BULK_SIZE]);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(serve(stream, bulk.clone(), Arc::clone(&pace)));
    }
}

async fn serve(stream: TcpStream, bulk: Bytes, pace: Arc<Semaphore>) {
    let service = service_fn(|request| answer(request, bulk.clone(), Arc::clone(&pace)));
    // How a connection ends is the other side's affair.
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    drop(connection.await);
}

async fn answer(request: Request<Incoming>, bulk: Bytes, pace: Arc<Semaphore>) -> hyper::Result<Response<Body>> {
    let path = request.uri().path().to_owned();
    if path == SMALL {
        return Ok(Demo::new(Duration::ZERO).answer(request).await);
    }
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(Response::new(match path.as_str() {
        BULK => full(bulk),
        CHUNKS => chunks(pace),
        _ => panic!("nobody asks for {path}"),
    }))
}

fn chunks(pace: Arc<Semaphore>) -> Body {
    let stream = futures_util::stream::unfold(pace, |pace| async move {
        Arc::clone(&pace).acquire_owned().await.ok()?.forget();
        let chunk = Frame::data(Bytes::from_static(CHUNK));
        Some((Ok::<_, Infallible>(chunk), pace))
    });
    StreamBody::new(stream).map_err(|never| match never {}).boxed_unsync()
}
