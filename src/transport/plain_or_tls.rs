//! What a connection is made of, the dialer's and the relay's: a socket, or TLS over one. It reads and writes as the one inside.

/// Makes an enum with the variants `Plain(stream)` and `Tls(Box<stream>)` a stream itself.
macro_rules! plain_or_tls {
    ($name:ident) => {
        impl tokio::io::AsyncRead for $name {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                $crate::transport::plain_or_tls::plain_or_tls!(self, stream => stream.poll_read(cx, buf))
            }
        }

        impl tokio::io::AsyncWrite for $name {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                $crate::transport::plain_or_tls::plain_or_tls!(self, stream => stream.poll_write(cx, buf))
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                $crate::transport::plain_or_tls::plain_or_tls!(self, stream => stream.poll_flush(cx))
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                $crate::transport::plain_or_tls::plain_or_tls!(self, stream => stream.poll_shutdown(cx))
            }
        }
    };
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Plain(stream) => {
                let $stream = std::pin::Pin::new(stream);
                $call
            }
            Self::Tls(stream) => {
                let $stream = std::pin::Pin::new(stream.as_mut());
                $call
            }
        }
    };
}
pub(crate) use plain_or_tls;
