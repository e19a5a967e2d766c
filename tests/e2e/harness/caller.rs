//! A caller with one connection, over HTTP/1.1 or HTTP/2, in clear or by TLS.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tunnel::transport::{Body, empty, full};

use super::within;

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// Dropping it closes its connection.
pub(crate) struct Caller {
    host: String,
    token: String,
    sender: Sender,
    connection: AbortHandle,
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Caller {
    pub(crate) async fn connect(address: SocketAddr, token: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::http1(stream, address.to_string(), token).await
    }

    /// By TLS, as a caller of this host; over HTTP/2 if both sides want that.
    pub(crate) async fn connect_tls(address: SocketAddr, host: &str, tls: &TlsConnector, token: &str) -> Self {
        Self::try_connect_tls(address, host, tls, token).await.unwrap()
    }

    pub(crate) async fn try_connect_tls(
        address: SocketAddr,
        host: &str,
        tls: &TlsConnector,
        token: &str,
    ) -> std::io::Result<Self> {
        Self::over(TcpStream::connect(address).await?, host, tls, token).await
    }

    /// By TLS on this connection.
    pub(crate) async fn over(stream: TcpStream, host: &str, tls: &TlsConnector, token: &str) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        let port = stream.peer_addr()?.port();
        let stream = tls.connect(host.to_owned().try_into().unwrap(), stream).await?;
        let host = format!("{host}:{port}");
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            Ok(Self::http2(stream, host, token).await)
        } else {
            Ok(Self::http1(stream, host, token).await)
        }
    }

    async fn http1<S>(stream: S, host: String, token: &str) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = connection.with_upgrades();
        let connection = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Self {
            host,
            token: token.to_owned(),
            sender: Sender::Http1(sender),
            connection,
        }
    }

    pub(crate) async fn connect_http2(address: SocketAddr, token: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        Self::http2(stream, address.to_string(), token).await
    }

    /// The same, with room for so many octets of an answer that is not read.
    pub(crate) async fn connect_http2_narrow(address: SocketAddr, token: &str, room: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut settings = http2::Builder::new(TokioExecutor::new());
        settings.initial_stream_window_size(room);
        Self::http2_with(settings, stream, address.to_string(), token).await
    }

    async fn http2<S>(stream: S, host: String, token: &str) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self::http2_with(http2::Builder::new(TokioExecutor::new()), stream, host, token).await
    }

    async fn http2_with<S>(settings: http2::Builder<TokioExecutor>, stream: S, host: String, token: &str) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = settings.handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Self {
            host,
            token: token.to_owned(),
            sender: Sender::Http2(sender),
            connection,
        }
    }

    /// Sends a request as it is, with `Host` and token if it has none, and waits for the head of the response.
    pub(crate) async fn try_send(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        let headers = request.headers_mut();
        if !self.token.is_empty() && !headers.contains_key(AUTHORIZATION) {
            headers.insert(AUTHORIZATION, format!("Bearer {}", self.token).parse().unwrap());
        }
        match &mut self.sender {
            Sender::Http1(sender) => {
                request.headers_mut().entry(HOST).or_insert(self.host.parse().unwrap());
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                let path = request.uri().path_and_query().unwrap().clone();
                *request.uri_mut() = Uri::builder()
                    .scheme("http")
                    .authority(self.host.as_str())
                    .path_and_query(path)
                    .build()
                    .unwrap();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        within("a response", self.try_send(request)).await.unwrap()
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response<Incoming> {
        self.send(get(path)).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        self.send(post(path, body)).await
    }
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(empty()).unwrap()
}

pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Request<Body> {
    Request::post(path).body(full(body)).unwrap()
}

/// The next piece of a body; none at its end.
pub(crate) async fn chunk(response: &mut Response<Incoming>) -> Option<hyper::Result<Bytes>> {
    loop {
        match within("a piece of the body", response.frame()).await? {
            Ok(frame) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Some(Ok(data)),
                Err(_) => {}
            },
            Err(error) => return Some(Err(error)),
        }
    }
}

/// All of a body, as text.
pub(crate) async fn text(response: Response<Incoming>) -> String {
    let body = within("the whole body", response.into_body().collect()).await.unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// All of a body, as JSON.
pub(crate) async fn json(response: Response<Incoming>) -> serde_json::Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// A connection on which the test writes every byte itself.
pub(crate) struct Raw(TcpStream);

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads until this text has come, or the end.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        let reading = async {
            while !read.windows(end.len()).any(|part| part == end.as_bytes()) {
                if self.0.read_buf(&mut read).await.unwrap_or(0) == 0 {
                    return;
                }
            }
        };
        within("an answer", reading).await;
        String::from_utf8_lossy(&read).into_owned()
    }

    /// Reads to the end of the connection; an error if it was reset.
    pub(crate) async fn rest(&mut self) -> std::io::Result<String> {
        let mut read = Vec::new();
        within("the end of the connection", self.0.read_to_end(&mut read)).await?;
        Ok(String::from_utf8_lossy(&read).into_owned())
    }
}
