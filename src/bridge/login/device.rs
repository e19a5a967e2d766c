//! Signing in on another device (RFC 8628): a code is shown here, and confirmed wherever there is a browser.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::grant::{self, Refusal};
use super::{Login, LoginError};
use crate::token::Secret;
use crate::transport::dial::Dialer;
use crate::transport::issuer::{FetchError, Issuer, Place, discover, post};

const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// Between two questions, unless the provider says otherwise, and what it adds when it finds them too many (RFC 8628 §3.5).
const INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// No code is good for longer.
const LONGEST_LIFE: Duration = Duration::from_secs(3600);
/// What is asked for: who it is, with groups where they are part of the profile (Authentik), and to stay signed in (OpenID Connect
/// Core §5.4 and §11).
const SCOPES: [&str; 4] = ["openid", "profile", "email", "offline_access"];
/// What the relay tells tokens apart by, where the provider knows it.
const OWN_SCOPES: [&str; 2] = ["bridge", "api"];

/// Where a relay has people sign in, as `GET /-/auth/config` tells it.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Who it is.
    pub issuer: Issuer,
    /// What this program is called there.
    pub client_id: String,
    /// For whom tokens are to be.
    pub audience: Option<String>,
}

/// A sign-in that waits for somebody to confirm it.
pub struct Device {
    provider: Provider,
    token_endpoint: Place,
    revocation_endpoint: Option<Place>,
    code: Secret,
    ends: Instant,
    interval: Duration,
    /// What is typed there.
    pub user_code: String,
    /// Where.
    pub address: Place,
    /// The same with the code in it.
    pub whole_address: Option<Place>,
}

/// What is wanted of what the provider tells of itself (RFC 8414 §2).
#[derive(Deserialize)]
struct Discovery {
    device_authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    scopes_supported: Option<Vec<String>>,
}

/// RFC 8628 §3.2.
#[derive(Deserialize)]
struct Answer {
    device_code: String,
    user_code: String,
    verification_uri: String,
    verification_uri_complete: Option<String>,
    expires_in: u64,
    interval: Option<u64>,
}

impl Device {
    /// Asks the provider for a code.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn begin(dialer: &Dialer, provider: Provider) -> Result<Self, LoginError> {
        let issuer = &provider.issuer;
        let told: Discovery = discover(dialer, issuer).await?;
        let lacks = || FetchError::Lacks {
            place: issuer.as_str().to_owned(),
            what: "sign-in for devices (device_authorization_endpoint)",
        };
        let endpoints = told.device_authorization_endpoint.zip(told.token_endpoint);
        let (begun_at, granted_at) = endpoints.ok_or_else(lacks)?;
        let place = issuer.place(&begun_at)?;
        let scopes = scopes(told.scopes_supported.as_deref());
        let mut fields = vec![
            ("client_id", provider.client_id.as_str()),
            ("scope", &scopes),
            // Some give a refresh token only to who was asked (OpenID Connect Core §11).
            ("prompt", "consent"),
        ];
        // Auth0 and its like know the one, RFC 8707 the other, and each passes over what it does not know.
        fields.extend(provider.audience.as_deref().map(|audience| ("audience", audience)));
        fields.extend(provider.resource().map(|resource| ("resource", resource)));
        let (status, body) = post(dialer, &place, &fields).await?;
        if status != StatusCode::OK {
            let refusal = grant::refusal(&place, status, &body)?;
            return Err(LoginError::Refused(refusal.to_string()));
        }
        let unreadable = || FetchError::Unreadable(place.to_string());
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| unreadable())?;
        let revocation = told.revocation_endpoint.as_deref();
        let life = Duration::from_secs(answer.expires_in).min(LONGEST_LIFE);
        Ok(Self {
            token_endpoint: issuer.place(&granted_at)?,
            revocation_endpoint: revocation.map(|url| issuer.place(url)).transpose()?,
            code: Secret::new(&answer.device_code),
            ends: Instant::now() + life,
            interval: answer
                .interval
                .map_or(INTERVAL, Duration::from_secs)
                .clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL),
            user_code: answer.user_code,
            address: issuer.place(&answer.verification_uri)?,
            whole_address: answer
                .verification_uri_complete
                .map(|url| issuer.place(&url))
                .transpose()?,
            provider,
        })
    }

    /// Waits until somebody has signed in.
    ///
    /// # Errors
    /// [`LoginError::Denied`], [`LoginError::RanOut`], and whatever else the provider says.
    pub async fn wait(mut self, dialer: &Dialer) -> Result<Login, LoginError> {
        let mut fields = vec![
            ("grant_type", DEVICE_CODE),
            ("client_id", self.provider.client_id.as_str()),
            ("device_code", self.code.expose()),
        ];
        fields.extend(self.provider.resource().map(|resource| ("resource", resource)));
        let granted = loop {
            if self.ends.saturating_duration_since(Instant::now()) < self.interval {
                // One look more, at the very end.
                tokio::time::sleep_until(self.ends).await;
            } else {
                sleep(self.interval).await;
            }
            match grant::ask(dialer, &self.token_endpoint, &fields).await {
                Ok(Ok(granted)) => break granted,
                Ok(Err(refusal)) => self.interval = next_interval(self.interval, &refusal)?,
                // A provider that is away for a moment: ask less often (RFC 8628 §3.5).
                Err(error) if Instant::now() >= self.ends => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "the provider did not answer; asking again");
                    self.interval = (self.interval * 2).min(LONGEST_INTERVAL);
                }
            }
            if Instant::now() >= self.ends {
                return Err(LoginError::RanOut);
            }
        };
        let resource = self.provider.resource().map(str::to_owned);
        Ok(Login::new(
            self.provider.issuer.as_str(),
            self.provider.client_id.clone(),
            self.token_endpoint.url(),
            self.revocation_endpoint.as_ref().map(Place::url),
            resource,
            granted,
        ))
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.provider).finish()
    }
}

impl Provider {
    /// The audience as a resource (RFC 8707), which must be a URL. An id that is none is not sent: Microsoft Entra refuses whoever
    /// asks for a resource, and has such ids.
    fn resource(&self) -> Option<&str> {
        let is_url = |text: &&str| text.starts_with("https://") || text.starts_with("http://");
        self.audience.as_deref().filter(is_url)
    }
}

/// What to ask for of what the provider has; one that does not say what it has has what all have.
fn scopes(supported: Option<&[String]>) -> String {
    let is_there = |name: &&str| supported.is_some_and(|all| all.iter().any(|one| one == name));
    let common = SCOPES.iter().filter(|name| supported.is_none() || is_there(name));
    let all: Vec<_> = common
        .chain(OWN_SCOPES.iter().filter(|name| is_there(name)))
        .copied()
        .collect();
    all.join(" ")
}

/// How long to wait before the next question, if there is one.
fn next_interval(interval: Duration, refusal: &Refusal) -> Result<Duration, LoginError> {
    match refusal.code.as_str() {
        "authorization_pending" => Ok(interval),
        "slow_down" => Ok((interval + INTERVAL).min(LONGEST_INTERVAL)),
        "access_denied" => Err(LoginError::Denied),
        "expired_token" => Err(LoginError::RanOut),
        _ => Err(LoginError::Refused(refusal.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_provider_has_not_is_not_asked_for() {
        let of = |supported: &[&str]| {
            let supported: Vec<_> = supported.iter().map(|name| (*name).to_owned()).collect();
            scopes(Some(&supported))
        };
        assert_eq!(scopes(None), "openid profile email offline_access");
        assert_eq!(of(&["openid", "phone"]), "openid");
        assert_eq!(
            of(&["api", "email", "bridge", "openid", "manage"]),
            "openid email bridge api"
        );
    }

    #[test]
    fn a_provider_that_is_asked_too_often_is_asked_less_often() {
        let refused = |code: &str| {
            let body = format!(r#"{{"error":"{code}"}}"#).into();
            let issuer: Issuer = "https://login.example.com".parse().unwrap();
            let place = issuer.place("https://login.example.com/token").unwrap();
            grant::refusal(&place, StatusCode::BAD_REQUEST, &body).unwrap()
        };
        let next = |code| next_interval(INTERVAL, &refused(code));
        assert_eq!(next("authorization_pending").unwrap(), INTERVAL);
        assert_eq!(next("slow_down").unwrap(), 2 * INTERVAL);
        assert!(matches!(next("access_denied"), Err(LoginError::Denied)));
        assert!(matches!(next("expired_token"), Err(LoginError::RanOut)));
        assert!(matches!(next("invalid_client"), Err(LoginError::Refused(_))));
    }
}
