//! Whom TLS trusts, and what is said of a certificate that is not trusted. Nothing here can switch that off.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_platform_verifier::Verifier;

use super::SetupError;

/// A certificate's own words are shown up to this length.
const LONGEST_NAME: usize = 100;
/// So many of the names in a certificate are shown.
const MOST_NAMES: usize = 3;

/// Trusts the platform's roots, and those in `ca_file` besides.
///
/// # Errors
/// When the file holds no certificates, or the platform has no roots.
pub fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, SetupError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let extra = ca_file.map_or_else(|| Ok(Vec::new()), read_certificates)?;
    let verifier = Verifier::new_with_extra_roots(extra, Arc::clone(&provider))?;
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(IssuerTelling(verifier)))
        .with_no_client_auth())
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

/// Decides as the platform does; of an unknown issuer, it tells the name.
#[derive(Debug)]
struct IssuerTelling(Verifier);

/// The issuer that nobody here knows.
#[derive(Debug, thiserror::Error)]
#[error("unknown issuer {0}")]
struct UnknownIssuer(String);

impl ServerCertVerifier for IssuerTelling {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| match (&error, issuer(end_entity)) {
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), Some(issuer)) => {
                CertificateError::Other(OtherError(Arc::new(UnknownIssuer(issuer)))).into()
            }
            _ => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The name of who issued a certificate, as people know it.
pub(super) fn issuer(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let issuer = certificate.issuer();
    let named = issuer.iter_common_name().chain(issuer.iter_organization());
    let name = named
        .filter_map(|name| name.as_str().ok())
        .find(|name| !name.is_empty());
    let name = name.map_or_else(|| issuer.to_string(), str::to_owned);
    (!name.is_empty()).then(|| shown(&name))
}

/// What stands in a certificate was written by whoever made it: no control characters, and no novel.
fn shown(name: &str) -> String {
    name.chars()
        .take(LONGEST_NAME)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Why there is no TLS, for a person.
pub(super) fn words(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match cause {
        Some(Error::InvalidCertificate(error)) => certificate_words(error),
        // rustls tells of a first byte that no TLS begins with.
        Some(error) if error.to_string().contains("InvalidContentType") => {
            "it does not speak TLS at that port; is the address http://?".to_owned()
        }
        Some(error) => error.to_string(),
        None if matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ) =>
        {
            "the connection was closed in the middle of the TLS handshake; a firewall may have done that".to_owned()
        }
        None => error.to_string(),
    }
}

fn certificate_words(error: &CertificateError) -> String {
    let clock = "if it is valid, this computer's clock is wrong";
    match error {
        CertificateError::UnknownIssuer => issuer_words("somebody"),
        CertificateError::Other(OtherError(cause)) => match cause.downcast_ref::<UnknownIssuer>() {
            Some(UnknownIssuer(issuer)) => issuer_words(&format!("'{issuer}'")),
            None if cause.to_string().contains("CaUsedAsEndEntity") => {
                "its certificate is that of a CA (made with CA:TRUE), and no server's".to_owned()
            }
            None => format!("its certificate is not valid: {cause}"),
        },
        CertificateError::Expired => format!("its certificate has expired; {clock}"),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate expired on {}; {clock}", day(*not_after))
        }
        CertificateError::NotValidYet => format!("its certificate is not valid yet; {clock}"),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is valid only from {} on; {clock}", day(*not_before))
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "its certificate is for {}, not for {}",
            names(presented),
            expected.to_str()
        ),
        other => format!("its certificate is not valid: {other}"),
    }
}

fn issuer_words(issuer: &str) -> String {
    format!(
        "its certificate was issued by {issuer}, which this computer does not know; if your company's network opens TLS, \
         give its CA with --ca-file FILE"
    )
}

fn day(time: UnixTime) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()));
    // Years of more than four digits cannot be written.
    let text = time.filter(|time| *time < UNIX_EPOCH + Duration::from_secs(253_402_300_800));
    text.map_or_else(
        || "a day far away".to_owned(),
        |time| {
            let text = humantime::format_rfc3339_seconds(time).to_string();
            text.split('T').next().unwrap_or_default().to_owned()
        },
    )
}

/// The names as rustls has them are `DnsName("a")`, `IpAddress(1.2.3.4)`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let name = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest);
        shown(name.trim_end_matches(')').trim_matches('"'))
    };
    let mut shown: Vec<_> = presented.iter().take(MOST_NAMES).map(bare).collect();
    if presented.len() > MOST_NAMES {
        shown.push("others".to_owned());
    }
    if shown.is_empty() {
        shown.push("no name at all".to_owned());
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: CertificateError) -> String {
        words(&io::Error::new(io::ErrorKind::InvalidData, Error::from(error)))
    }

    #[test]
    fn certificates_that_are_not_trusted_are_told_of_in_plain_words() {
        let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (time, not_after) = (time(1_800_000_000), time(1_700_000_000));
        assert_eq!(
            told(CertificateError::ExpiredContext { time, not_after }),
            "its certificate expired on 2023-11-14; if it is valid, this computer's clock is wrong"
        );
        let early = CertificateError::NotValidYetContext {
            time: not_after,
            not_before: time,
        };
        assert!(told(early).contains("valid only from 2027-01-15 on; if it is valid, this computer's clock"));
        let other_name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("relay.example.com").unwrap(),
            presented: vec!["DnsName(\"a.example\")".to_owned(), "IpAddress(10.0.0.7)".to_owned()],
        };
        assert_eq!(
            told(other_name),
            "its certificate is for a.example, 10.0.0.7, not for relay.example.com"
        );
        assert!(told(CertificateError::UnknownIssuer).contains("--ca-file"));
    }

    #[test]
    fn a_certificate_cannot_write_what_it_likes_to_the_terminal() {
        assert_eq!(shown("a\x1b[2Jb\r\n"), "a [2Jb  ");
        assert_eq!(shown(&"x".repeat(5000)).len(), LONGEST_NAME);
    }

    #[test]
    fn a_day_beyond_all_calendars_is_no_panic() {
        assert_eq!(
            day(UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX))),
            "a day far away"
        );
    }
}
