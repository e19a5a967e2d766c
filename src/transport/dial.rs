//! How the bridge reaches a server: name, TCP (IPv6 and IPv4 raced), a proxy where there is one, then TLS for https.

mod error;
mod facts;
mod http;
mod proxy;
mod resolve;
mod socks;
pub mod trust;
mod url;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

pub use self::error::{DialError, SetupError};
pub use self::facts::TlsFacts;
pub use self::http::{HttpDialer, HttpStream};
pub use self::proxy::{BadProxy, Proxies};
use self::resolve::Resolver;
pub use self::url::{BadUrl, BaseUrl, Origin, RelayUrl};
use super::plain_or_tls::plain_or_tls;
use super::socket;

/// HTTP/2 and HTTP/1.1 in ALPN.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Makes connections.
#[derive(Clone)]
pub struct Dialer {
    connector: HttpConnector<Resolver>,
    /// Offers no protocol: HTTP/1.1 then.
    tls: TlsConnector,
    /// Offers HTTP/2 first.
    http_tls: TlsConnector,
    proxies: Proxies,
    timeout: Duration,
}

impl Dialer {
    /// Trusts the platform's roots, and those in `ca_file` besides. Goes through no proxy.
    ///
    /// # Errors
    /// [`SetupError`] when the file or the platform's roots cannot be used.
    pub fn new(ca_file: Option<&Path>, timeout: Duration) -> Result<Self, SetupError> {
        let tls = trust::client_config(ca_file)?;
        let mut http_tls = tls.clone();
        http_tls.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        let mut connector = HttpConnector::new_with_resolver(Resolver::default());
        // TLS is ours; the connector only ever makes the TCP connection.
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        Ok(Self {
            connector,
            tls: TlsConnector::from(Arc::new(tls)),
            http_tls: TlsConnector::from(Arc::new(http_tls)),
            proxies: Proxies::default(),
            timeout,
        })
    }

    /// Goes through these proxies.
    #[must_use]
    pub fn with_proxies(self, proxies: Proxies) -> Self {
        Self { proxies, ..self }
    }

    /// The same without any proxy, for servers that are near.
    #[must_use]
    pub fn direct(&self) -> Self {
        self.clone().with_proxies(Proxies::default())
    }

    /// Host and port of what is connected to for this server: its own, or its proxy's.
    pub fn first_hop(&self, origin: &Origin) -> String {
        match self.proxies.to(origin) {
            Some(proxy) => proxy.origin().host_and_port(),
            None => origin.host_and_port(),
        }
    }

    /// Connects; what speaks HTTP there is to speak HTTP/1.1.
    ///
    /// # Errors
    /// [`DialError`] names the step that failed.
    pub async fn dial(&self, origin: &Origin) -> Result<Stream, DialError> {
        self.connect(origin, &self.tls).await
    }

    /// Connects and offers HTTP/2; [`Stream::is_http2`] tells whether it was taken.
    ///
    /// # Errors
    /// [`DialError`] names the step that failed.
    pub async fn dial_http(&self, origin: &Origin) -> Result<Stream, DialError> {
        self.connect(origin, &self.http_tls).await
    }

    /// The time is one for all steps; who was silent is told.
    async fn connect(&self, origin: &Origin, tls: &TlsConnector) -> Result<Stream, DialError> {
        let authority = origin.authority();
        let deadline = Instant::now() + self.timeout;
        let (stream, silent) = match self.proxies.to(origin) {
            None => {
                let stream = within(deadline, &authority, self.timeout, self.tcp(origin, &authority));
                (stream.await?, authority.clone())
            }
            Some(proxy) => {
                let name = proxy.with_setting();
                let to_proxy = async {
                    let stream = self.tcp(proxy.origin(), &name).await?;
                    secure(&self.tls, stream, proxy.origin(), &name).await
                };
                let stream = within(deadline, &name, self.timeout, to_proxy).await?;
                let silent = format!("{authority} through {proxy}");
                let led = within(deadline, &silent, self.timeout, proxy.lead(stream, origin));
                (led.await?, silent)
            }
        };
        let secured = secure(tls, stream, origin, &authority);
        within(deadline, &silent, self.timeout, secured).await
    }

    /// A TCP connection; errors call the server by this name.
    async fn tcp(&self, origin: &Origin, name: &str) -> Result<Stream, DialError> {
        let connected = self.connector.clone().call(origin.uri()).await;
        let tcp = connected
            .map_err(|error| connect_error(origin, name, &error))?
            .into_inner();
        socket::tune_link(&tcp);
        Ok(Stream::Plain(tcp))
    }
}

/// Fails with the name of the one that was silent.
async fn within<T>(
    deadline: Instant,
    silent: &str,
    after: Duration,
    step: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    timeout_at(deadline, step).await.unwrap_or_else(|_| {
        Err(DialError::Timeout {
            authority: silent.to_owned(),
            after,
        })
    })
}

/// TLS on a connection, where the server wants it; errors call the server by this name.
async fn secure(tls: &TlsConnector, stream: Stream, origin: &Origin, name: &str) -> Result<Stream, DialError> {
    if !origin.is_tls() {
        return Ok(stream);
    }
    let error = |detail: String| DialError::Tls {
        authority: name.to_owned(),
        detail,
    };
    let server = ServerName::try_from(origin.bare_host().to_owned()).map_err(|e| error(e.to_string()))?;
    let secured = tls.connect(server, stream).await;
    let secured = secured.map_err(|e| error(trust::words(&e)))?;
    Ok(Stream::Tls(Box::new(secured)))
}

fn connect_error(origin: &Origin, name: &str, error: &(dyn std::error::Error + 'static)) -> DialError {
    let mut root: &dyn std::error::Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let detail = match root.downcast_ref::<io::Error>() {
        Some(error) if error.kind() == io::ErrorKind::TimedOut => "no answer".to_owned(),
        _ => root.to_string(),
    };
    if error.to_string().contains("dns") {
        let host = if name == origin.authority() {
            origin.host()
        } else {
            name
        };
        DialError::Resolve {
            host: host.to_owned(),
            detail,
        }
    } else {
        DialError::Connect {
            authority: name.to_owned(),
            detail,
        }
    }
}

/// A connection that was dialed.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS over TCP, or over what a proxy's TLS carries.
    Tls(Box<TlsStream<Stream>>),
}

impl Stream {
    /// Whether both sides agreed on HTTP/2.
    pub fn is_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(HTTP2),
        }
    }
}

plain_or_tls!(Stream);
