//! What is known of a connection after it was made, for those who look at deployments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::ProtocolVersion;

use super::{Dialer, Origin, Stream, trust};

/// What both sides of a TLS connection agreed on, and the certificate that was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFacts {
    /// The version, in the usual spelling.
    pub version: &'static str,
    /// Who issued the certificate; empty where it does not say.
    pub issuer: String,
    /// When the certificate ends.
    pub not_after: SystemTime,
    /// Certificates in the chain that was sent.
    pub chain: usize,
}

impl Stream {
    /// The TLS of this connection; none if there is none.
    pub fn tls(&self) -> Option<TlsFacts> {
        let Self::Tls(tls) = self else {
            return None;
        };
        let session = tls.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        let first = chain.first()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(first).ok()?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
        Some(TlsFacts {
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
                Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
                _ => "TLS",
            },
            issuer: trust::issuer(first).unwrap_or_default(),
            not_after: UNIX_EPOCH + Duration::from_secs(seconds),
            chain: chain.len(),
        })
    }
}

impl Dialer {
    /// The proxy on the way to a server, and where it was set; none if it is reached without. Never shows a password.
    pub fn proxy_to(&self, origin: &Origin) -> Option<String> {
        self.proxies.to(origin).map(|proxy| proxy.with_setting())
    }
}
