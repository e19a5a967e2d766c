//! A certificate with its key, as it stands in PEM: checked as far as that can be done without a caller.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;

/// A certificate that can be shown to callers.
#[derive(Debug)]
pub(super) struct Certificate {
    /// The chain and the key.
    pub(super) key: Arc<CertifiedKey>,
    /// From when on it is valid.
    pub(super) not_before: SystemTime,
    /// Until when it is valid.
    pub(super) not_after: SystemTime,
    /// The host names it is for.
    pub(super) names: Vec<String>,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// No certificate in the PEM.
    #[error("there is no certificate in it (PEM, the server's own first, then those that vouch for it)")]
    NoCertificate,
    /// No key in the PEM.
    #[error("there is no private key in it that can be read (PEM, without a passphrase)")]
    NoKey,
    /// The certificate cannot be understood.
    #[error("its first certificate cannot be read: {0}")]
    Unreadable(String),
    /// The key is of a kind that TLS here does not know.
    #[error("the private key is of a kind that is not supported: {0}")]
    UnknownKey(String),
    /// They are not a pair.
    #[error("certificate and key do not belong together")]
    Mismatch,
}

impl BadCertificate {
    /// Whether the fault is the key's.
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::NoKey | Self::UnknownKey(_))
    }
}

impl Certificate {
    /// Reads both; where they stand in one file, it is given twice.
    ///
    /// # Errors
    /// [`BadCertificate`].
    pub(super) fn from_pem(chain: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<Self, BadCertificate> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| BadCertificate::Unreadable(error.to_string()))?;
        let first = chain.first().ok_or(BadCertificate::NoCertificate)?;
        let (not_before, not_after, names) = read(first)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| BadCertificate::NoKey)?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| BadCertificate::UnknownKey(error.to_string()))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(Self {
                key: Arc::new(certified),
                not_before,
                not_after,
                names,
            }),
            Err(rustls::Error::InconsistentKeys(_)) => Err(BadCertificate::Mismatch),
            Err(error) => Err(BadCertificate::Unreadable(error.to_string())),
        }
    }

    /// Whether it can be shown for this host name.
    pub(super) fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// When it should have a successor: with a third of its life left.
    pub(super) fn renewal(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after - life / 3
    }

    /// What is wrong with its time, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        let now = SystemTime::now();
        if self.not_after <= now {
            Some(format!(
                "has expired on {}: callers do not accept it",
                day(self.not_after)
            ))
        } else if now < self.not_before {
            Some(format!(
                "is valid only from {} on: callers do not accept it before, or the clock here is wrong",
                day(self.not_before)
            ))
        } else {
            None
        }
    }
}

/// From when to when a certificate is valid, and for whom.
fn read(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime, Vec<String>), BadCertificate> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| BadCertificate::Unreadable(error.to_string()))?;
    let validity = certificate.validity();
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.into_iter().flat_map(|names| &names.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    Ok((
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
        names.collect(),
    ))
}

/// A moment in seconds; what lies before 1970 or after all calendars is put at the edge.
fn time(seconds: i64) -> SystemTime {
    const LAST: u64 = 253_402_300_799;
    let seconds = u64::try_from(seconds).unwrap_or_default().min(LAST);
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The day of a moment, for people.
pub(super) fn day(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn provider() -> CryptoProvider {
        rustls::crypto::aws_lc_rs::default_provider()
    }

    fn pair(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::new(vec!["relay.example.com".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn read(chain: &str, key: &str) -> Result<Certificate, BadCertificate> {
        Certificate::from_pem(chain.as_bytes(), key.as_bytes(), &provider())
    }

    #[test]
    fn a_pair_is_read_from_two_files_or_from_one() {
        let (chain, key) = pair(|_| {});
        let read_pair = read(&chain, &key).unwrap();
        assert!(read_pair.is_for("Relay.example.com") && !read_pair.is_for("example.com"));
        let both = format!("{key}{chain}");
        assert!(read(&both, &both).is_ok());
    }

    #[test]
    fn what_is_no_pair_is_told_apart() {
        let (chain, key) = pair(|_| {});
        let (_, other) = pair(|_| {});
        assert_eq!(read(&chain, &other).unwrap_err(), BadCertificate::Mismatch);
        assert_eq!(read(&key, &key).unwrap_err(), BadCertificate::NoCertificate);
        assert_eq!(read(&chain, &chain).unwrap_err(), BadCertificate::NoKey);
        assert_eq!(read("", "").unwrap_err(), BadCertificate::NoCertificate);
        let cut = &chain[..chain.len() / 2];
        assert!(read(cut, &key).is_err());
    }

    #[test]
    fn its_time_is_told_and_a_third_of_its_life_is_left_for_a_successor() {
        let life = |from: i32, to: i32| {
            let (chain, key) = pair(|params| {
                params.not_before = date_time_ymd(from, 1, 1);
                params.not_after = date_time_ymd(to, 1, 1);
            });
            read(&chain, &key).unwrap()
        };
        let old = life(2001, 2004);
        assert!(old.complaint().unwrap().contains("expired on 2004-01-01"));
        assert_eq!(day(old.renewal()), "2003-01-01");
        assert!(life(2200, 2201).complaint().unwrap().contains("only from 2200-01-01"));
        assert_eq!(life(2001, 2200).complaint(), None);
    }
}
