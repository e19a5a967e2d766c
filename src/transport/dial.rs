//! How the bridge reaches a server: name, TCP (IPv6 and IPv4 raced), then TLS for https.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::socket;

/// Where a server is: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    tls: bool,
    host: String,
    port: u16,
}

/// Why an address is not one to dial.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no URL of the form http://HOST[:PORT] or https://HOST[:PORT]")]
pub struct BadUrl(String);

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let tls = match uri.scheme()? {
            scheme if *scheme == Scheme::HTTP => false,
            scheme if *scheme == Scheme::HTTPS => true,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?;
        if uri.authority()?.as_str().contains('@') {
            return None;
        }
        Some(Self {
            tls,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        })
    }

    /// Whether the bytes are encrypted on the way.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host without its port, IPv6 addresses in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether nobody but this machine can listen in.
    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        bare == "localhost"
            || bare
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// As it stands in a `Host` header.
    pub fn authority(&self) -> String {
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    fn uri(&self) -> Uri {
        // TLS is ours; the connector only ever makes the TCP connection.
        Uri::builder()
            .scheme("http")
            .authority(format!("{}:{}", self.host, self.port))
            .path_and_query("/")
            .build()
            .unwrap_or_default()
    }
}

/// An origin with the path below which the server's own paths begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    origin: Origin,
    prefix: String,
}

/// The URL of a relay. A trailing `/api`, as shipped desktop apps are configured, names the same relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayUrl(BaseUrl);

impl std::str::FromStr for BaseUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl(text.to_owned());
        let uri: Uri = text.trim().parse().map_err(|_| bad())?;
        if uri.query().is_some() {
            return Err(bad());
        }
        Ok(Self {
            origin: Origin::of(&uri).ok_or_else(bad)?,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl BaseUrl {
    /// Where to dial.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The path of a request whose path is `path` seen from the server.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

impl std::fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.origin.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.origin.authority(), self.prefix)
    }
}

impl std::str::FromStr for RelayUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let mut base: BaseUrl = text.parse()?;
        if let Some(short) = base.prefix.strip_suffix("/api") {
            base.prefix = short.trim_end_matches('/').to_owned();
        }
        Ok(Self(base))
    }
}

impl std::ops::Deref for RelayUrl {
    type Target = BaseUrl;

    fn deref(&self) -> &BaseUrl {
        &self.0
    }
}

impl std::fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a server could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address now.
    #[error("cannot find {host}: {detail}")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's words.
        detail: String,
    },
    /// No TCP connection.
    #[error("cannot connect to {authority}: {detail}")]
    Connect {
        /// Host and port.
        authority: String,
        /// The system's words.
        detail: String,
    },
    /// TCP, but no TLS.
    #[error("cannot trust {authority}: {detail}")]
    Tls {
        /// Host and port.
        authority: String,
        /// What the certificate or the handshake lacks.
        detail: String,
    },
    /// Neither yes nor no in time.
    #[error("no answer from {authority} within {} s", .after.as_secs())]
    Timeout {
        /// Host and port.
        authority: String,
        /// How long it was waited for.
        after: Duration,
    },
}

/// Why there is no dialer.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file of extra certificates is of no use.
    #[error("cannot read certificates from {path}: {detail}")]
    CaFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// TLS cannot be set up on this machine.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Makes connections.
#[derive(Clone)]
pub struct Dialer {
    connector: HttpConnector,
    tls: TlsConnector,
    timeout: Duration,
}

impl Dialer {
    /// Trusts the platform's roots, and those in `ca_file` besides.
    ///
    /// # Errors
    /// [`SetupError`] when the file or the platform's roots cannot be used.
    pub fn new(ca_file: Option<&Path>, timeout: Duration) -> Result<Self, SetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let extra = ca_file.map_or_else(|| Ok(Vec::new()), read_certificates)?;
        let verifier = Verifier::new_with_extra_roots(extra, Arc::clone(&provider))?;
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        Ok(Self {
            connector,
            tls: TlsConnector::from(Arc::new(tls)),
            timeout,
        })
    }

    /// Connects.
    ///
    /// # Errors
    /// [`DialError`] names the step that failed.
    pub async fn dial(&self, origin: &Origin) -> Result<Stream, DialError> {
        let authority = origin.authority();
        timeout(self.timeout, self.connect(origin))
            .await
            .unwrap_or(Err(DialError::Timeout {
                authority,
                after: self.timeout,
            }))
    }

    async fn connect(&self, origin: &Origin) -> Result<Stream, DialError> {
        let tcp = self
            .connector
            .clone()
            .call(origin.uri())
            .await
            .map_err(|error| connect_error(origin, &error))?
            .into_inner();
        socket::tune_link(&tcp);
        if !origin.tls {
            return Ok(Stream::Plain(tcp));
        }
        let tls_error = |detail: String| DialError::Tls {
            authority: origin.authority(),
            detail,
        };
        let bare = origin.host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned()).map_err(|e| tls_error(e.to_string()))?;
        let stream = self
            .tls
            .connect(name, tcp)
            .await
            .map_err(|error| tls_error(tls_detail(&error)))?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// rustls' words, but for the one case in which they help nobody.
fn tls_detail(error: &io::Error) -> String {
    let words = error.to_string();
    if words.contains("InvalidContentType") {
        "it does not speak TLS at that port; is the address http://?".to_owned()
    } else {
        words
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let bad = |detail: String| SetupError::CaFile {
        path: path.display().to_string(),
        detail,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| bad(error.to_string()))?
        .collect();
    let found = found.map_err(|error| bad(error.to_string()))?;
    if found.is_empty() {
        return Err(bad("there is no certificate in it".into()));
    }
    Ok(found)
}

fn connect_error(origin: &Origin, error: &(dyn std::error::Error + 'static)) -> DialError {
    let mut root: &dyn std::error::Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let detail = root.to_string();
    if error.to_string().contains("dns") {
        DialError::Resolve {
            host: origin.host.clone(),
            detail,
        }
    } else {
        DialError::Connect {
            authority: origin.authority(),
            detail,
        }
    }
}

/// A connection that was dialed.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Calls the method of the stream inside.
macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Stream::Tls($stream) => {
                let $stream = Pin::new($stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relays_url_is_understood_as_people_write_it() {
        for (text, shown, path) in [
            ("https://relay.example.com", "https://relay.example.com", "/ws/tunnel"),
            ("https://relay.example.com/", "https://relay.example.com", "/ws/tunnel"),
            (
                "https://relay.example.com/api",
                "https://relay.example.com",
                "/ws/tunnel",
            ),
            (
                "https://relay.example.com:443/api/",
                "https://relay.example.com",
                "/ws/tunnel",
            ),
            (
                "http://relay:8080/below/it",
                "http://relay:8080/below/it",
                "/below/it/ws/tunnel",
            ),
            ("http://relay/below/api", "http://relay/below", "/below/ws/tunnel"),
            ("http://[::1]:8080", "http://[::1]:8080", "/ws/tunnel"),
        ] {
            let url: RelayUrl = text.parse().unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.path("/ws/tunnel").as_str()),
                (shown, path),
                "{text}"
            );
        }
        for text in [
            "",
            "relay.example.com",
            "ftp://relay",
            "https://",
            "http://a@relay",
            "http://relay?x=1",
        ] {
            assert!(text.parse::<RelayUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (text, loopback) in [
            ("http://localhost:1", true),
            ("http://127.0.0.2", true),
            ("http://[::1]", true),
            ("http://127.0.0.1.example.com", false),
            ("http://192.168.1.2", false),
        ] {
            let url: BaseUrl = text.parse().unwrap();
            assert_eq!(url.origin().is_loopback(), loopback, "{text}");
        }
    }
}
