//! SOCKS 5 (RFC 1928, RFC 1929), where the proxy resolves the name.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::proxy::SocksV5;
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::proxy::Proxy;
use super::{DialError, Origin, Stream};

/// A connector whose connection is made already.
struct Made(Option<Stream>);

impl Service<Uri> for Made {
    type Response = TokioIo<Stream>;
    type Error = &'static str;
    type Future = Ready<Result<TokioIo<Stream>, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().map(TokioIo::new).ok_or("used twice"))
    }
}

/// Asks a proxy for a connection to the server, on one to the proxy.
pub(super) async fn lead(proxy: &Proxy, stream: Stream, server: &Origin) -> Result<Stream, DialError> {
    let mut socks = SocksV5::new(proxy.origin().uri(), Made(Some(stream)));
    let user = proxy.user();
    let given = user.is_some();
    if let Some((user, password)) = user {
        // RFC 1929 has no more room; hyper-util does not look.
        if user.len() > 255 || password.len() > 255 {
            return Err(proxy.password(true));
        }
        socks = socks.with_auth(user, password);
    }
    match socks.call(server.uri()).await {
        Ok(stream) => Ok(stream.into_inner()),
        Err(error) => Err(refusal(proxy, server, given, &format!("{error:?}"), &error.to_string())),
    }
}

/// hyper-util keeps the type of its error to itself; the names in its `Debug` tell what the proxy said.
fn refusal(proxy: &Proxy, server: &Origin, given: bool, name: &str, words: &str) -> DialError {
    let (target, answer) = (
        server.host_and_port(),
        words.trim_start_matches("SOCKS error: ").to_owned(),
    );
    if name.contains("Auth(Failed") || (name.contains("Auth(") && !given) {
        proxy.password(given)
    } else if name.contains("Auth(") {
        proxy.broken(server, &"it takes no password")
    } else if name.contains("ConnectionNotAllowed") {
        let proxy = proxy.to_string();
        DialError::ProxyRefused { proxy, target, answer }
    } else if name.contains("Command(") {
        let proxy = proxy.to_string();
        DialError::ProxyFailed { proxy, target, answer }
    } else {
        proxy.broken(server, &answer)
    }
}
