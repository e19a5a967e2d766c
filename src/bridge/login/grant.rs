//! The provider's token endpoint (RFC 6749 §3.2): what it grants, and why it does not.

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::LoginError;
use crate::token::{Claims, Secret};
use crate::transport::dial::Dialer;
use crate::transport::issuer::{FetchError, Place, post};

/// How long a token is taken to live of which nobody says it, seconds.
const USUAL_LIFE: u64 = 3600;
/// One that is said to live for less is taken to live so long, seconds: it is not refreshed all the time.
const LEAST_LIFE: u64 = 5;
/// Longer words of a provider are cut, characters.
const LONGEST_WORDS: usize = 300;

/// What was granted.
pub(super) struct Grant {
    pub(super) access: Secret,
    pub(super) refresh: Option<Secret>,
    /// Seconds.
    pub(super) life: u64,
}

/// Why nothing was (RFC 6749 §5.2, RFC 8628 §3.5).
pub(super) struct Refusal {
    pub(super) code: String,
    description: Option<String>,
}

impl Refusal {
    /// Whether another answer may come of asking again.
    pub(super) fn may_pass(&self) -> bool {
        ["slow_down", "temporarily_unavailable", "server_error"].contains(&self.code.as_str())
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.code.escape_debug())?;
        match &self.description {
            Some(words) => write!(f, ": {}", words.escape_debug()),
            None => Ok(()),
        }
    }
}

/// Asks for a grant. The provider's own no is none of its troubles.
///
/// # Errors
/// [`LoginError::Provider`] where there is no answer that counts.
pub(super) async fn ask(
    dialer: &Dialer,
    place: &Place,
    fields: &[(&str, &str)],
) -> Result<Result<Grant, Refusal>, LoginError> {
    let (status, body) = post(dialer, place, fields).await?;
    if status != StatusCode::OK {
        return Ok(Err(refusal(place, status, &body)?));
    }
    let granted: Option<Granted> = serde_json::from_slice(&body).ok();
    let grant = granted.ok_or_else(|| FetchError::Unreadable(place.to_string()))?;
    Ok(Ok(grant.into()))
}

/// The reason that an answer gives.
///
/// # Errors
/// [`FetchError::Status`] where it gives none, or may be another one the next time.
pub(super) fn refusal(place: &Place, status: StatusCode, body: &Bytes) -> Result<Refusal, FetchError> {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
        error_description: Option<String>,
    }
    let refused: Option<Refused> = serde_json::from_slice(body).ok();
    let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    let cut = |words: String| words.chars().take(LONGEST_WORDS).collect();
    match refused.filter(|refused| !may_pass || refused.error == "slow_down") {
        Some(refused) => Ok(Refusal {
            code: cut(refused.error),
            description: refused.error_description.map(cut),
        }),
        None => Err(FetchError::Status {
            place: place.to_string(),
            status,
        }),
    }
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    refresh_token: Option<String>,
    /// A number, but for providers that write it as a text.
    expires_in: Option<Value>,
}

impl From<Granted> for Grant {
    fn from(granted: Granted) -> Self {
        let access = Secret::new(&granted.access_token);
        let told = granted
            .expires_in
            .and_then(|life| life.as_u64().or_else(|| life.as_str()?.parse().ok()))
            // No token is given that has ended.
            .filter(|life| *life > 0);
        let of_token = || {
            let claims = Claims::peek(&access)?;
            claims.exp?.checked_sub(claims.iat?)
        };
        Self {
            life: told.or_else(of_token).unwrap_or(USUAL_LIFE).max(LEAST_LIFE),
            refresh: granted.refresh_token.map(|token| Secret::new(&token)),
            access,
        }
    }
}
