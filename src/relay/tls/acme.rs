//! A certificate from a CA that speaks ACME (RFC 8555): ordered where there is none, again well before it ends, and after a while
//! where that failed. Account and certificate are kept in a folder. One order is in [`order`], its HTTP in [`client`].

mod client;
mod order;

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use instant_acme::{Account, AccountCredentials, NewAccount};

use self::client::Client;
use self::order::{OrderError, Proof};
use super::Certificates;
use super::certificate::day;
use super::files::show;
use crate::files;
use crate::transport::backoff::jitter;
use crate::transport::dial::{BaseUrl, Dialer};

/// The longest time that one order may take.
const LONGEST_ORDER: Duration = Duration::from_secs(5 * 60);
/// The clock may be set meanwhile: looked at this often.
const LOOK: Duration = Duration::from_secs(60 * 60);

/// Where a CA speaks ACME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory(String);

/// Why that is no such place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the URL of an ACME directory begins with https://")]
pub struct BadDirectory;

impl Directory {
    /// Let's Encrypt.
    pub fn production() -> Self {
        Self("https://acme-v02.api.letsencrypt.org/directory".to_owned())
    }

    /// Let's Encrypt for trying things out: its certificates are trusted by nobody.
    pub fn staging() -> Self {
        Self("https://acme-staging-v02.api.letsencrypt.org/directory".to_owned())
    }

    /// A name for a folder, another one for each.
    fn folder(&self) -> String {
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
                c
            } else {
                '_'
            }
        };
        self.0.trim_start_matches("https://").chars().map(plain).collect()
    }
}

impl std::str::FromStr for Directory {
    type Err = BadDirectory;

    fn from_str(text: &str) -> Result<Self, BadDirectory> {
        let url: BaseUrl = text.parse().map_err(|_| BadDirectory)?;
        if url.origin().is_tls() && text.len() <= 200 {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadDirectory)
        }
    }
}

/// What to order, and where.
pub struct Settings {
    /// The names, all in one certificate.
    pub names: Vec<String>,
    /// Whom the CA may write to.
    pub email: Option<String>,
    /// The CA.
    pub directory: Directory,
    /// Makes the connections to it.
    pub dialer: Dialer,
    /// Where accounts and certificates are kept, in a folder for each CA.
    pub folder: PathBuf,
    /// When to try again.
    pub retry: Retry,
}

/// When to try again what failed.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// The first time; then twice as long each time.
    pub first: Duration,
    /// But never longer.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(60),
            longest: Duration::from_secs(4 * 60 * 60),
        }
    }
}

/// Keeps a certificate fresh.
pub(super) struct Acme {
    settings: Settings,
    folder: PathBuf,
}

impl Acme {
    pub(super) fn new(settings: Settings) -> Self {
        let folder = settings.folder.join(settings.directory.folder());
        Self { settings, folder }
    }

    /// For as long as it is polled. `http` says whether the CA may look at the port for plain HTTP, too.
    pub(super) async fn keep_fresh(&self, certificates: &Certificates, http: bool) -> Infallible {
        let mut proofs = vec![Proof::TlsAlpn];
        if http {
            proofs.push(Proof::Http);
        }
        let mut due = self.load(certificates).await;
        let mut failures = 0;
        loop {
            until(due).await;
            // In a box: for months there is nothing but waiting.
            due = match Box::pin(self.obtain(certificates, &mut proofs)).await {
                Ok(due) if due > SystemTime::now() => {
                    failures = 0;
                    due.max(SystemTime::now() + self.settings.retry.first)
                }
                Ok(_) => {
                    // Asked again and again, a CA refuses the name for days.
                    let wait = self.wait(failures);
                    failures += 1;
                    tracing::warn!("the fresh certificate is due for renewal already; is this computer's clock right?");
                    SystemTime::now() + wait
                }
                Err(error) => {
                    let wait = self.wait(failures);
                    failures += 1;
                    self.tell_failure(&error, wait, certificates);
                    SystemTime::now() + wait
                }
            };
        }
    }

    /// Shows the certificate that was kept; when the next is due.
    async fn load(&self, certificates: &Certificates) -> SystemTime {
        let path = self.folder.join("certificate.pem");
        let kept = off_thread(move || std::fs::read(path)).await;
        let kept = kept.ok().and_then(|pem| certificates.parse(&pem, &pem).ok());
        let names = &self.settings.names;
        match kept.filter(|kept| names.iter().all(|name| kept.is_for(name))) {
            Some(kept) => {
                let due = kept.renewal();
                show(certificates, kept);
                due
            }
            None => {
                tracing::info!("no certificate yet: until there is one, nobody can connect by TLS");
                SystemTime::now()
            }
        }
    }

    /// Orders a certificate, keeps it and shows it; when the next is due. The proof that convinced goes to the front.
    async fn obtain(&self, certificates: &Certificates, proofs: &mut [Proof]) -> Result<SystemTime, OrderError> {
        let names = self.settings.names.join(", ");
        let mut tried = 0;
        let pem = loop {
            let proof = proofs[tried];
            tracing::info!(
                names,
                ca = self.settings.directory.0,
                by = proof.name(),
                "asking for a certificate"
            );
            match self.order(certificates, proof).await {
                Ok(pem) => break pem,
                Err(error) if error.is_of_proof() && tried + 1 < proofs.len() => tracing::warn!("{error}"),
                Err(error) => return Err(error),
            }
            tried += 1;
        };
        proofs.swap(0, tried);
        let certificate = certificates
            .parse(pem.as_bytes(), pem.as_bytes())
            .map_err(|error| OrderError::Key(error.to_string()))?;
        if let Err(error) = self.keep("certificate.pem", pem.into_bytes()).await {
            let folder = self.folder.display();
            tracing::warn!("cannot keep the certificate in {folder}: {error}; the next start asks for another");
        }
        let due = certificate.renewal();
        show(certificates, certificate);
        Ok(due)
    }

    async fn order(&self, certificates: &Certificates, proof: Proof) -> Result<String, OrderError> {
        let names = &self.settings.names;
        let placed = async {
            let account = self.account().await?;
            match order::place(&account, names, proof, certificates).await {
                Err(error) if error.is_of_account() => {
                    order::place(&self.new_account().await?, names, proof, certificates).await
                }
                placed => placed,
            }
        };
        let placed = tokio::time::timeout(LONGEST_ORDER, placed).await;
        placed.unwrap_or(Err(OrderError::Undecided))
    }

    /// The account at the CA: the one that was kept, or else a new one.
    async fn account(&self) -> Result<Account, OrderError> {
        let path = self.folder.join("account.json");
        let kept = off_thread(move || std::fs::read(path)).await.ok();
        match kept.and_then(|kept| serde_json::from_slice::<AccountCredentials>(&kept).ok()) {
            Some(credentials) => Ok(self.builder().from_credentials(credentials).await?),
            None => self.new_account().await,
        }
    }

    async fn new_account(&self) -> Result<Account, OrderError> {
        let contact = self.settings.email.as_ref().map(|email| format!("mailto:{email}"));
        let account = NewAccount {
            contact: &contact.as_deref().into_iter().collect::<Vec<_>>(),
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let directory = self.settings.directory.0.clone();
        let (account, credentials) = self.builder().create(&account, directory, None).await?;
        let content = serde_json::to_vec(&credentials).map_err(instant_acme::Error::from)?;
        if let Err(error) = self.keep("account.json", content).await {
            let folder = self.folder.display();
            tracing::warn!("cannot keep the account at the CA in {folder}: {error}");
        }
        Ok(account)
    }

    fn builder(&self) -> instant_acme::AccountBuilder {
        Account::builder_with_http(Box::new(Client::new(self.settings.dialer.clone())))
    }

    async fn keep(&self, name: &str, content: Vec<u8>) -> io::Result<()> {
        let folder = self.folder.clone();
        let path = folder.join(name);
        off_thread(move || {
            files::make_private_folder(&folder)?;
            files::replace_private(&path, &content)
        })
        .await
    }

    fn wait(&self, failures: u32) -> Duration {
        let Retry { first, longest } = self.settings.retry;
        jitter(first.saturating_mul(1 << failures.min(16)).min(longest))
    }

    fn tell_failure(&self, error: &OrderError, wait: Duration, certificates: &Certificates) {
        let names = self.settings.names.join(", ");
        let again = humantime::format_duration(Duration::from_secs(wait.as_secs().max(1)));
        let meanwhile = match &certificates.lock().current {
            Some(current) if current.not_after > SystemTime::now() => {
                format!("the one in use is valid until {}", day(current.not_after))
            }
            Some(_) => "the one in use has expired".to_owned(),
            None => "there is none yet, so nobody can connect by TLS".to_owned(),
        };
        tracing::warn!("no new certificate for {names}: {error}; trying again in {again}; {meanwhile}");
    }
}

/// Waits for a moment of the wall clock.
async fn until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

/// Does what touches files where it holds nobody up.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ca_has_a_folder_of_its_own() {
        assert_eq!(
            Directory::production().folder(),
            "acme-v02.api.letsencrypt.org_directory"
        );
        let directory: Directory = "https://ca.example:14000/a/../b".parse().unwrap();
        assert_eq!(directory.folder(), "ca.example_14000_a_.._b");
        for text in ["http://ca.example/dir", "ca.example", ""] {
            assert_eq!(text.parse::<Directory>(), Err(BadDirectory));
        }
    }
}
