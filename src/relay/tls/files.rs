//! A certificate and its key in files, which somebody else renews: they are looked at again and again, and a new pair is shown
//! from then on.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::certificate::{BadCertificate, Certificate, day};
use super::{Certificates, TlsError};

/// Between two looks at the files. A pair counts once two looks found the same: both files are written by then.
const LOOK: Duration = Duration::from_secs(1);
/// More than any chain has, octets.
const LARGEST: u64 = 1 << 20;

/// Where certificate and key are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// What stands in them; it does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    /// Reads both files.
    pub(super) fn read(&self) -> Result<Content, TlsError> {
        Ok(Content {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
        })
    }

    /// Makes a certificate of what was read.
    pub(super) fn parse(&self, content: &Content, certificates: &Certificates) -> Result<Certificate, TlsError> {
        certificates
            .parse(&content.certificate, &content.key)
            .map_err(|error| match error {
                BadCertificate::Mismatch => TlsError::Mismatch {
                    certificate: self.certificate.clone(),
                    key: self.key.clone(),
                },
                error if error.is_of_key() => TlsError::bad(&self.key, error),
                error => TlsError::bad(&self.certificate, error),
            })
    }

    /// Shows each new pair from when it is there; one that is broken is told of once, and the one before goes on.
    pub(super) async fn watch(&self, certificates: &Certificates, shown: &Content) -> Infallible {
        let mut settled = Ok(shown.clone());
        let mut last = settled.clone();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.look().await;
            if now == last && now != settled {
                self.take(&now, certificates);
                settled.clone_from(&now);
            }
            last = now;
        }
    }

    fn take(&self, found: &Result<Content, String>, certificates: &Certificates) {
        let certificate = match found {
            Ok(content) => self.parse(content, certificates).map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        match certificate {
            Ok(certificate) => show(certificates, certificate),
            Err(error) => tracing::warn!("{error}; the certificate from before goes on"),
        }
    }

    /// Reads both files, off the threads that carry requests.
    async fn look(&self) -> Result<Content, String> {
        let files = self.clone();
        let read = tokio::task::spawn_blocking(move || files.read()).await;
        match read {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(error) => Err(format!("cannot look at the certificate: {error}")),
        }
    }
}

/// Shows it, and says what is wrong with its time.
pub(super) fn show(certificates: &Certificates, certificate: Certificate) {
    let until = day(certificate.not_after);
    match certificate.complaint() {
        Some(complaint) => tracing::warn!("the certificate {complaint}"),
        None => tracing::info!(until, "certificate in use"),
    }
    certificates.show(certificate);
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|error| TlsError::read(path, &error))?;
    let mut content = Vec::new();
    file.take(LARGEST)
        .read_to_end(&mut content)
        .map_err(|error| TlsError::read(path, &error))?;
    Ok(content)
}
