//! The dialer as hyper-util's pooled HTTP client wants it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::{BadUrl, Dialer, Origin, Stream};
use crate::transport::BoxError;

/// Makes connections for HTTP/2, or HTTP/1.1 where the server does not speak that. Its errors are [`super::DialError`] and
/// [`BadUrl`].
#[derive(Clone)]
pub struct HttpDialer(pub Dialer);

/// A connection for HTTP.
#[derive(Debug)]
pub struct HttpStream(TokioIo<Stream>);

impl Service<Uri> for HttpDialer {
    type Response = HttpStream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<HttpStream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.0.clone();
        async move {
            let origin = Origin::of(&uri).ok_or_else(|| BadUrl::new(&uri.to_string()))?;
            let stream = dialer.dial_http(&origin).await?;
            Ok(HttpStream(TokioIo::new(stream)))
        }
        .boxed()
    }
}

impl Connection for HttpStream {
    fn connected(&self) -> Connected {
        if self.0.inner().is_http2() {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl Read for HttpStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for HttpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
