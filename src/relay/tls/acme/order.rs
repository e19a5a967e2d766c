//! One order at the CA: says whose names they are, proves it, and comes back with a certificate.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, KeyAuthorization, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

use crate::relay::tls::Certificates;

/// How long the CA may take to look, and again to issue.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(90));
/// The CA's own words are shown up to this length.
const LONGEST_WORDS: usize = 400;

/// How a CA can be shown that a name is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// A certificate of its own on the port for callers and bridges.
    TlsAlpn,
    /// A text on the port for plain HTTP.
    Http,
}

impl Proof {
    /// As the CA calls it, and the port where it looks.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TlsAlpn => "tls-alpn-01, at port 443",
            Self::Http => "http-01, at port 80",
        }
    }

    fn challenge(self) -> ChallengeType {
        match self {
            Self::TlsAlpn => ChallengeType::TlsAlpn01,
            Self::Http => ChallengeType::Http01,
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// The CA was not convinced; another proof may do it.
    #[error("the CA did not find this relay by {}: {detail}", .proof.name())]
    NotProven { proof: Proof, detail: String },
    /// The CA looks for something else.
    #[error("the CA does not offer {}", .0.name())]
    NotOffered(Proof),
    /// The CA has not decided.
    #[error("the CA did not decide in time")]
    Undecided,
    /// The CA said no, or could not be reached.
    #[error("{}", words(.0))]
    Acme(#[from] Error),
    /// No key, or no certificate to prove with.
    #[error("cannot make a key: {0}")]
    Key(String),
}

impl OrderError {
    /// Whether another proof may help.
    pub(super) fn is_of_proof(&self) -> bool {
        matches!(self, Self::NotProven { .. } | Self::NotOffered(_))
    }

    /// Whether the CA does not know the account any more.
    pub(super) fn is_of_account(&self) -> bool {
        let kind = match self {
            Self::Acme(Error::Api(problem)) => problem.r#type.as_deref(),
            _ => None,
        };
        kind.is_some_and(|kind| kind.ends_with(":accountDoesNotExist"))
    }
}

/// What the CA gets to see is taken away again when this is dropped.
struct Shown<'a>(&'a Certificates);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let mut shown = self.0.lock();
        shown.challenges.clear();
        shown.http_answers.clear();
    }
}

/// Orders a certificate for all of the names: key and chain, in PEM.
pub(super) async fn place(
    account: &Account,
    names: &[String],
    proof: Proof,
    certificates: &Certificates,
) -> Result<String, OrderError> {
    let identifiers: Vec<_> = names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let shown = Shown(certificates);
    prove(&mut order, proof, certificates).await?;
    let decided = order.poll_ready(&PATIENCE).await;
    drop(shown);
    match decided {
        Ok(OrderStatus::Ready) => {}
        Err(Error::Timeout(_)) => return Err(OrderError::Undecided),
        decided => {
            let detail = match (refusal(&mut order).await, decided) {
                (Some(detail), _) => detail,
                (None, Err(error)) => return Err(error.into()),
                (None, Ok(status)) => format!("the order is {status:?}"),
            };
            return Err(OrderError::NotProven { proof, detail });
        }
    }
    let key = order.finalize().await?;
    let chain = order.poll_certificate(&PATIENCE).await.map_err(|error| match error {
        Error::Timeout(_) => OrderError::Undecided,
        error => error.into(),
    })?;
    Ok(format!("{key}{chain}"))
}

/// Prepares what the CA will look at, for every name, and tells it to look.
async fn prove(order: &mut Order, proof: Proof, certificates: &Certificates) -> Result<(), OrderError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let mut challenge = authorization
            .challenge(proof.challenge())
            .ok_or(OrderError::NotOffered(proof))?;
        let name = challenge.identifier().to_string();
        let answer = challenge.key_authorization();
        match proof {
            Proof::TlsAlpn => {
                let certificate = certificate_for_ca(&name, &answer, certificates)?;
                certificates.lock().challenges.insert(name, Arc::new(certificate));
            }
            Proof::Http => {
                let token = challenge.token.clone();
                let answer = answer.as_str().to_owned();
                certificates.lock().http_answers.insert(token, answer);
            }
        }
        challenge.set_ready().await?;
    }
    Ok(())
}

/// The certificate that only a CA gets to see (RFC 8737).
fn certificate_for_ca(
    name: &str,
    answer: &KeyAuthorization,
    certificates: &Certificates,
) -> Result<CertifiedKey, OrderError> {
    let made = || {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(answer.digest().as_ref())];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok::<_, rcgen::Error>((certificate.der().clone(), key.serialize_der()))
    };
    let (certificate, key) = made().map_err(|error| OrderError::Key(error.to_string()))?;
    let keys = certificates.provider.key_provider;
    let key = keys
        .load_private_key(PrivateKeyDer::Pkcs8(key.into()))
        .map_err(|error| OrderError::Key(error.to_string()))?;
    Ok(CertifiedKey::new(vec![certificate], key))
}

/// What the CA says of the first name that it was not convinced of.
async fn refusal(order: &mut Order) -> Option<String> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let state = authorization.refresh().await.ok()?;
        if state.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = state.identifier().to_string();
        let problems = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        if let Some(detail) = problems.filter_map(|problem| problem.detail.as_deref()).next() {
            return Some(format!("{name}: {}", shown(detail)));
        }
    }
    None
}

fn words(error: &Error) -> String {
    match error {
        Error::Api(problem) => {
            let kind = problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next());
            let detail = problem.detail.as_deref().unwrap_or("no reason given");
            shown(&format!(
                "the CA refused: {detail} ({})",
                kind.unwrap_or("no kind given")
            ))
        }
        Error::Json(_) => "its answer is not what a CA says by ACME; is that the URL of its directory?".to_owned(),
        error => shown(&error.to_string()),
    }
}

/// What comes from elsewhere: no control characters, and no novel.
fn shown(text: &str) -> String {
    let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    visible.take(LONGEST_WORDS).collect()
}
