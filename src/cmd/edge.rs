//! Options of the relay's edge: TLS, certificates from a CA, the port for plain HTTP, proxies in front.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;

use super::Failure;
use super::relay::address;
use crate::relay::config::Config;
use crate::relay::host::PublicUrl;
use crate::relay::proxies::Proxies;
use crate::relay::tls::{AcmeSettings, Directory, Retry, Tls, TlsError};
use crate::transport::dial::Dialer;

/// How long a connection to the CA may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// As many as one certificate may be for.
const MOST_NAMES: usize = 100;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct EdgeArgs {
    /// The certificate to show, with those that vouch for it (PEM); looked at again when the file changes
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM, without a passphrase)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Get a certificate for this name from a CA that speaks ACME, whose terms you accept by this; may be repeated
    #[arg(long = "acme-domain", value_name = "NAME", value_delimiter = ',')]
    acme_domains: Vec<String>,
    /// Where the CA may write to when it has something to say
    #[arg(long, value_name = "ADDRESS")]
    acme_email: Option<String>,
    /// The CA: the URL of its ACME directory [default: Let's Encrypt]
    #[arg(long, value_name = "URL")]
    acme_directory: Option<String>,
    /// Let's Encrypt for trying things out: its certificates are trusted by nobody
    #[arg(long)]
    acme_staging: bool,
    /// Trust these certificates too when connecting to the CA (PEM)
    #[arg(long, value_name = "FILE")]
    acme_ca: Option<PathBuf>,
    /// Listen here for plain HTTP too, usually port 80: answers the CA, and sends everybody else on to https
    #[arg(long, value_name = "ADDR", value_parser = address)]
    http_listen: Option<SocketAddr>,
    /// Where the relay is reached from outside, as in https://relay.example.com
    #[arg(long, value_name = "URL", help_heading = "Network")]
    public_url: Option<PublicUrl>,
    /// Believe what proxies in this network say of who calls (X-Forwarded-For and its like); may be repeated
    #[arg(
        long = "trusted-proxy",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = network,
        help_heading = "Network"
    )]
    trusted_proxies: Vec<IpNet>,
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse()
        .or_else(|_| address())
        .map_err(|_| "write a network as in 10.0.0.0/8, or an address".to_owned())
}

impl EdgeArgs {
    /// Where plain HTTP is listened for.
    pub(super) fn http_listen(&self) -> Option<SocketAddr> {
        self.http_listen
    }

    /// Whether the relay does TLS itself.
    pub(super) fn is_tls(&self) -> bool {
        self.tls_cert.is_some() || self.tls_key.is_some() || !self.acme_domains.is_empty()
    }

    /// Whether something else is known to do TLS in front.
    pub(super) fn is_behind_proxy(&self) -> bool {
        !self.trusted_proxies.is_empty() || self.public_url.as_ref().is_some_and(PublicUrl::is_https)
    }

    /// What a bridge is given as the URL of this relay, if that is known.
    pub(super) fn url(&self, listens_on: SocketAddr) -> Option<String> {
        if let Some(url) = &self.public_url {
            return Some(url.to_string());
        }
        let name = self.acme_domains.first()?;
        Some(match listens_on.port() {
            443 => format!("https://{name}"),
            port => format!("https://{name}:{port}"),
        })
    }

    /// Puts these settings into the relay's. Reads the certificate, if it is in files.
    pub(super) fn apply(
        &self,
        config: &mut Config,
        data: impl FnOnce() -> Result<PathBuf, Failure>,
    ) -> Result<(), Failure> {
        self.check()?;
        config.proxies = Proxies::new(self.trusted_proxies.clone());
        config.public_url.clone_from(&self.public_url);
        config.tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(from_files(certificate, key)?),
            _ if self.acme_domains.is_empty() => None,
            _ => Some(self.acme(&data()?)?),
        };
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        let is_acme = !self.acme_domains.is_empty();
        let of_acme = [
            ("--acme-email", self.acme_email.is_some()),
            ("--acme-directory", self.acme_directory.is_some()),
            ("--acme-staging", self.acme_staging),
            ("--acme-ca", self.acme_ca.is_some()),
        ];
        let wrong = match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => "--tls-cert needs --tls-key FILE, the key of that certificate".to_owned(),
            (None, Some(_)) => "--tls-key needs --tls-cert FILE, the certificate of that key".to_owned(),
            (Some(_), Some(_)) if is_acme => {
                "--tls-cert and --acme-domain are two ways to a certificate: give one of them".to_owned()
            }
            _ => match of_acme.iter().find(|(_, given)| *given && !is_acme) {
                Some((option, _)) => format!("{option} needs --acme-domain NAME, the name of the certificate"),
                None if self.acme_staging && self.acme_directory.is_some() => {
                    "--acme-staging and --acme-directory name two CAs: give one of them".to_owned()
                }
                None if self.http_listen.is_some() && !self.is_tls() => {
                    "--http-listen sends callers on to https: it needs --acme-domain, or --tls-cert and --tls-key"
                        .to_owned()
                }
                None if self.is_tls() && self.public_url.as_ref().is_some_and(|url| !url.is_https()) => {
                    "--public-url must begin with https://, for the relay does TLS".to_owned()
                }
                None => return Ok(()),
            },
        };
        Err(Failure::usage(wrong))
    }

    fn acme(&self, data: &Path) -> Result<Tls, Failure> {
        let names: Vec<_> = self.acme_domains.iter().map(|name| name.to_ascii_lowercase()).collect();
        if let Some(name) = names.iter().find(|name| !is_domain(name)) {
            return Err(Failure::usage(format!(
                "--acme-domain {}: write a name as in relay.example.com, without https:// and without *",
                name.escape_debug()
            )));
        }
        if names.len() > MOST_NAMES {
            return Err(Failure::usage(format!("--acme-domain: {MOST_NAMES} names at most")));
        }
        if let Some(email) = self.acme_email.as_ref().filter(|email| !is_email(email)) {
            let email = email.escape_debug();
            return Err(Failure::usage(format!(
                "--acme-email {email}: write it as ann@example.com"
            )));
        }
        let directory = match &self.acme_directory {
            Some(url) => url
                .parse()
                .map_err(|error| Failure::usage(format!("--acme-directory {}: {error}", url.escape_debug())))?,
            None if self.acme_staging => Directory::staging(),
            None => Directory::production(),
        };
        let dialer = Dialer::new(self.acme_ca.as_deref(), CONNECT_TIMEOUT)
            .map_err(|error| Failure::usage(format!("connections to the CA (--acme-ca FILE): {error}")))?;
        let tls = Tls::from_acme(AcmeSettings {
            names,
            email: self.acme_email.clone(),
            directory,
            dialer,
            folder: data.join("acme"),
            retry: Retry::default(),
        });
        Ok(tls.context("--acme-domain")?)
    }
}

fn from_files(certificate: &Path, key: &Path) -> Result<Tls, Failure> {
    Tls::from_files(certificate.to_owned(), key.to_owned()).map_err(|error| match error {
        TlsError::Setup(_) => Failure::from(anyhow::Error::from(error)),
        error => Failure::usage(format!("--tls-cert, --tls-key: {error}")),
    })
}

/// Whether a CA could give a certificate for it without asking the DNS for more.
fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(known) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 253 && text.parse::<IpAddr>().is_err() && text.split('.').all(is_label)
}

fn is_email(text: &str) -> bool {
    let known = |c: char| c.is_ascii_graphic() && !matches!(c, ',' | '?' | '<' | '>' | '"');
    text.chars().all(known)
        && text
            .split_once('@')
            .is_some_and(|(who, at)| !who.is_empty() && !at.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_a_plain_name() {
        assert!(is_domain("relay.example.com") && is_domain("xn--bcher-kva.example") && is_domain("localhost"));
        for text in [
            "",
            "*.example.com",
            "https://a",
            "a..b",
            "a.",
            "-a.b",
            "10.0.0.7",
            "a_b.c",
            "bücher.de",
            "a:443",
        ] {
            assert!(!is_domain(text), "{text}");
        }
    }

    #[test]
    fn an_address_for_mail_is_one() {
        assert!(is_email("ann@example.com"));
        for text in ["", "ann", "@x", "ann@", "a b@c", "a@b,c@d", "a@b?x"] {
            assert!(!is_email(text), "{text}");
        }
    }

    #[test]
    fn a_network_may_be_one_address() {
        assert_eq!(network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("::1").unwrap().to_string(), "::1/128");
        assert!(network("10.0.0.0/33").is_err() && network("relay").is_err());
    }
}
