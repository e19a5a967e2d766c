//! TLS of the relay's own: which certificate is shown, and where it comes from ([`files`], [`acme`]).

mod acme;
mod certificate;
mod files;

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use std::{fmt, io};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use self::acme::{Directory, Retry, Settings as AcmeSettings};
pub use self::certificate::BadCertificate;
use self::certificate::Certificate;
use self::files::{Content, Files};

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";
/// What a CA asks for in ALPN when it looks whether a name is ours (RFC 8737).
const ACME_TLS: &[u8] = b"acme-tls/1";

/// TLS on the relay's port; cloning it gives another handle to the same.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    acceptor: TlsAcceptor,
    certificates: Arc<Certificates>,
    source: Source,
}

enum Source {
    Files(Files, Content),
    Acme(Box<acme::Acme>),
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {detail}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        detail: String,
    },
    /// What is in a file is of no use.
    #[error("cannot use {path}: {error}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: BadCertificate,
    },
    /// They are not a pair.
    #[error(
        "the key in {key} does not belong to the certificate in {certificate}: its first certificate must be the server's own"
    )]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// TLS cannot be set up on this machine.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

impl TlsError {
    fn read(path: &Path, error: &io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            detail: error.to_string(),
        }
    }

    fn bad(path: &Path, error: BadCertificate) -> Self {
        Self::Bad {
            path: path.to_owned(),
            error,
        }
    }
}

impl Tls {
    /// With a certificate and key in files, in PEM.
    ///
    /// # Errors
    /// [`TlsError`] when they cannot be used.
    pub fn from_files(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let files = Files { certificate, key };
        let certificates = Arc::new(Certificates::new());
        let content = files.read()?;
        files::show(&certificates, files.parse(&content, &certificates)?);
        Self::new(certificates, &[HTTP2, HTTP1], Source::Files(files, content))
    }

    /// With a certificate from a CA that speaks ACME.
    ///
    /// # Errors
    /// [`TlsError`] when TLS cannot be set up.
    pub fn from_acme(settings: AcmeSettings) -> Result<Self, TlsError> {
        let certificates = Arc::new(Certificates::new());
        let source = Source::Acme(Box::new(acme::Acme::new(settings)));
        Self::new(certificates, &[HTTP2, HTTP1, ACME_TLS], source)
    }

    fn new(certificates: Arc<Certificates>, protocols: &[&[u8]], source: Source) -> Result<Self, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&certificates.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as _);
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Self(Arc::new(Inner {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificates,
            source,
        })))
    }

    /// The handshake; none if it was a CA that only wanted to see a certificate.
    ///
    /// # Errors
    /// What was wrong with it.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<Option<TlsStream<S>>> {
        let mut stream = self.0.acceptor.accept(stream).await?;
        if stream.get_ref().1.alpn_protocol() == Some(ACME_TLS) {
            stream.shutdown().await?;
            return Ok(None);
        }
        Ok(Some(stream))
    }

    /// Keeps the certificate fresh for as long as it is polled. `http` says whether a CA may look at the port for plain HTTP.
    pub async fn keep_fresh(&self, http: bool) -> Infallible {
        let certificates = &self.0.certificates;
        match &self.0.source {
            Source::Files(files, content) => files.watch(certificates, content).await,
            Source::Acme(acme) => acme.keep_fresh(certificates, http).await,
        }
    }

    /// The answer to a CA that asks for this token by plain HTTP.
    pub fn http_answer(&self, token: &str) -> Option<String> {
        self.0.certificates.lock().http_answers.get(token).cloned()
    }

    /// Until when the certificate in use is valid; none while there is none.
    pub fn expires(&self) -> Option<SystemTime> {
        let shown = self.0.certificates.lock();
        shown.current.as_ref().map(|certificate| certificate.not_after)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("expires", &self.expires())
            .finish_non_exhaustive()
    }
}

/// What is shown to whom.
#[derive(Debug)]
struct Certificates {
    provider: Arc<CryptoProvider>,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    current: Option<Certificate>,
    /// By host name, for the CA that looks at this port; as many as there are names.
    challenges: HashMap<String, Arc<CertifiedKey>>,
    /// By token, for the CA that looks at the port for plain HTTP; as many as there are names.
    http_answers: HashMap<String, String>,
}

impl Certificates {
    fn new() -> Self {
        Self {
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            shown: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parse(&self, chain: &[u8], key: &[u8]) -> Result<Certificate, BadCertificate> {
        Certificate::from_pem(chain, key, &self.provider)
    }

    fn show(&self, certificate: Certificate) {
        self.lock().current = Some(certificate);
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_ca = hello.alpn().is_some_and(|names| names.eq([ACME_TLS]));
        let shown = self.lock();
        if is_ca {
            shown.challenges.get(hello.server_name()?).cloned()
        } else {
            shown.current.as_ref().map(|certificate| Arc::clone(&certificate.key))
        }
    }
}
