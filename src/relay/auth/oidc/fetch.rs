//! Asks the provider over HTTP: by TLS, within bounds of time and size, and following nobody elsewhere.

use std::sync::Weak;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, HOST};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::transport::dial::{DialError, Dialer, Origin};
use crate::transport::http1::{self, Connection};
use crate::transport::{collect, empty};

/// What the provider may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// More than any such answer, octets.
const LARGEST: usize = 512 * 1024;

/// Why the provider told nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0}")]
    Dial(#[from] DialError),
    #[error("{0} does not answer")]
    Silent(String),
    #[error("the connection to {0} broke")]
    Broken(String),
    #[error("{place} answered {status}")]
    Status { place: String, status: StatusCode },
    #[error("what {0} answered cannot be read")]
    Unreadable(String),
    #[error("{0} is no URL of the form https://HOST/PATH")]
    Place(String),
    #[error("the provider calls itself {0}: give exactly this with --oidc-issuer, if it is the one")]
    Issuer(String),
    #[error("{0} has no key that could verify tokens (RS256, ES256, EdDSA)")]
    NoKeys(String),
}

/// Why an issuer is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("write the issuer as the provider does, as in https://login.example.com; http:// only for this machine itself")]
pub struct BadIssuer;

/// A provider: its URL, letter for letter as it stands in its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    text: String,
    place: Place,
}

/// Where something of the provider is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    origin: Origin,
    target: PathAndQuery,
}

/// What the provider answered, and how long it holds, if that was said.
pub(super) struct Answer<T> {
    pub(super) content: T,
    pub(super) holds: Option<Duration>,
}

impl std::str::FromStr for Issuer {
    type Err = BadIssuer;

    fn from_str(text: &str) -> Result<Self, BadIssuer> {
        let place = Place::read(text).filter(|place| place.origin.is_tls() || place.origin.is_loopback());
        let place = place.filter(|place| place.target.query().is_none() && !text.contains('#'));
        Ok(Self {
            text: text.to_owned(),
            place: place.ok_or(BadIssuer)?,
        })
    }
}

impl Issuer {
    /// As it stands in tokens.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where it tells of itself.
    pub(super) fn discovery(&self) -> Result<Place, FetchError> {
        let root = self.text.trim_end_matches('/');
        self.place(&format!("{root}/.well-known/openid-configuration"))
    }

    /// A URL that it told. Who is asked by TLS cannot send us where there is none.
    pub(super) fn place(&self, url: &str) -> Result<Place, FetchError> {
        let is_open = !self.place.origin.is_tls();
        Place::read(url)
            .filter(|place| place.origin.is_tls() || (is_open && place.origin.is_loopback()))
            .ok_or_else(|| FetchError::Place(url.chars().take(200).collect()))
    }
}

impl Place {
    fn read(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        Some(Self {
            origin: Origin::of(&uri)?,
            target: uri.path_and_query()?.clone(),
        })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.origin.authority(), self.target.path())
    }
}

/// Gets JSON.
pub(super) async fn json<T: DeserializeOwned>(dialer: &Dialer, place: &Place) -> Result<Answer<T>, FetchError> {
    let (headers, body) = get(dialer, place, None).await?;
    let content = serde_json::from_slice(&body).map_err(|_| FetchError::Unreadable(place.to_string()))?;
    Ok(Answer {
        content,
        holds: max_age(&headers),
    })
}

/// What the provider tells of the user to whom a token belongs; nothing, where it does not want to.
pub(super) async fn userinfo(dialer: &Dialer, place: &Place, token: &str) -> Result<Map<String, Value>, FetchError> {
    match get(dialer, place, Some(token)).await {
        // It may be signed, or in another form; then it says nothing that could be read here.
        Ok((_, body)) => Ok(serde_json::from_slice(&body).unwrap_or_default()),
        Err(FetchError::Status { status, .. })
            if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS =>
        {
            Ok(Map::new())
        }
        Err(error) => Err(error),
    }
}

async fn get(dialer: &Dialer, place: &Place, token: Option<&str>) -> Result<(HeaderMap, bytes::Bytes), FetchError> {
    let asked = timeout(TIMEOUT, ask(dialer, place, token)).await;
    asked.unwrap_or_else(|_| Err(FetchError::Silent(place.to_string())))
}

async fn ask(dialer: &Dialer, place: &Place, token: Option<&str>) -> Result<(HeaderMap, bytes::Bytes), FetchError> {
    let broken = || FetchError::Broken(place.to_string());
    let stream = dialer.dial(&place.origin).await?;
    let connection = Connection::begin(stream).await.map_err(|_| broken())?;
    let mut request = Request::get(Uri::from(place.target.clone()))
        .header(HOST, place.origin.authority())
        .header(ACCEPT, "application/json");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(empty()).map_err(|_| broken())?;
    let response = http1::exchange(connection, Weak::new(), request)
        .await
        .map_err(|_| broken())?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(FetchError::Status {
            place: place.to_string(),
            status: head.status,
        });
    }
    let body = collect(body, LARGEST).await;
    let body = body.ok_or_else(|| FetchError::Unreadable(place.to_string()))?;
    Ok((head.headers, body))
}

/// How long an answer may be kept (RFC 9111 §5.2.2.1).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers
        .get_all(CACHE_CONTROL)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(',')).map(str::trim);
    directives.find_map(|directive| {
        let (name, seconds) = directive.split_once('=')?;
        let is_age = name.eq_ignore_ascii_case("max-age");
        is_age.then(|| seconds.trim_matches('"').parse().ok().map(Duration::from_secs))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_asked_by_tls_unless_it_is_this_machine() {
        for issuer in [
            "https://login.example.com",
            "https://login.example.com/",
            "https://login.example.com/realms/one",
            "http://127.0.0.1:9000",
            "http://localhost:9000/x",
        ] {
            assert_eq!(issuer.parse::<Issuer>().unwrap().as_str(), issuer);
        }
        for issuer in [
            "http://login.example.com",
            "login.example.com",
            "ftp://login.example.com",
            "https://ann:sesame@login.example.com",
            "https://login.example.com?x=1",
            "https://login.example.com#x",
            "",
        ] {
            assert_eq!(issuer.parse::<Issuer>(), Err(BadIssuer), "{issuer}");
        }
    }

    #[test]
    fn a_provider_sends_nobody_where_there_is_no_tls() {
        let issuer: Issuer = "https://login.example.com/a/".parse().unwrap();
        let discovery = issuer.discovery().unwrap();
        assert_eq!(
            discovery.to_string(),
            "login.example.com/a/.well-known/openid-configuration"
        );
        assert!(issuer.place("https://keys.example.net/jwks?v=1").is_ok());
        for url in [
            "http://login.example.com/jwks",
            "http://127.0.0.1/jwks",
            "/jwks",
            "file:///etc/passwd",
        ] {
            assert!(issuer.place(url).is_err(), "{url}");
        }
        let near: Issuer = "http://127.0.0.1:9000".parse().unwrap();
        assert!(near.place("http://127.0.0.1:9000/jwks").is_ok());
        assert!(near.place("http://example.com/jwks").is_err());
    }

    #[test]
    fn an_answer_tells_how_long_it_holds() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, value.parse().unwrap());
            max_age(&headers).map(|age| age.as_secs())
        };
        assert_eq!(of("public, max-age=600, must-revalidate"), Some(600));
        assert_eq!(of("Max-Age=\"5\""), Some(5));
        assert_eq!(of("s-maxage=9"), None);
        assert_eq!(of("no-store"), None);
        assert_eq!(of("max-age=x"), None);
    }
}
