//! A provider of sign-in (OpenID Connect) as HTTP sees it, for relay and bridge: asked by TLS, within bounds of time and size, and
//! followed nowhere else.

use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::response::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::dial::{DialError, Dialer, Origin};
use super::http1::{self, Connection};
use super::path::escaped;
use super::{Body, collect, empty, full};

/// What the provider may take for one answer.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// More than any such answer, octets.
const LARGEST: usize = 512 * 1024;

/// Why the provider told nothing.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It cannot be reached.
    #[error("{0}")]
    Dial(#[from] DialError),
    /// Nothing came in time.
    #[error("{0} does not answer")]
    Silent(String),
    /// The connection was lost.
    #[error("the connection to {0} broke")]
    Broken(String),
    /// It answered otherwise than with what was asked for.
    #[error("{place} answered {status}")]
    Status {
        /// Who.
        place: String,
        /// What.
        status: StatusCode,
    },
    /// It is no JSON of the form expected, or too much of it.
    #[error("what {0} answered cannot be read")]
    Unreadable(String),
    /// It sends us where we do not go.
    #[error("{} is no URL of the form https://HOST/PATH on another machine", .0.escape_debug())]
    Place(String),
    /// It is another one.
    #[error(
        "the provider calls itself {}: give the relay exactly this with --oidc-issuer, if it is the one",
        .0.escape_debug()
    )]
    Issuer(String),
    /// It has not what is needed of it.
    #[error("{place} has no {what}")]
    Lacks {
        /// Who.
        place: String,
        /// What.
        what: &'static str,
    },
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
pub struct Place {
    origin: Origin,
    target: PathAndQuery,
}

/// What the provider answered, and how long it holds, if that was said.
#[derive(Debug)]
pub struct Answer<T> {
    /// The answer.
    pub content: T,
    /// For how long it holds.
    pub holds: Option<Duration>,
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

    /// Whether it is asked without TLS: one on this machine.
    pub fn is_open(&self) -> bool {
        !self.place.origin.is_tls()
    }

    /// Whether it is on this machine.
    pub fn is_near(&self) -> bool {
        self.place.origin.is_loopback()
    }

    fn discovery(&self) -> Result<Place, FetchError> {
        let root = self.text.trim_end_matches('/');
        self.place(&format!("{root}/.well-known/openid-configuration"))
    }

    /// A URL that it told. Who is asked by TLS cannot send us where there is none, and who is elsewhere cannot send us to this machine.
    ///
    /// # Errors
    /// [`FetchError::Place`].
    pub fn place(&self, url: &str) -> Result<Place, FetchError> {
        Place::read(url)
            .filter(|place| place.origin.is_tls() || (self.is_open() && place.origin.is_loopback()))
            .filter(|place| self.is_near() || !place.origin.is_loopback())
            .ok_or_else(|| FetchError::Place(url.chars().take(200).collect()))
    }
}

impl Place {
    fn read(url: &str) -> Option<Self> {
        let uri: Uri = Some(url).filter(|url| url.is_ascii())?.parse().ok()?;
        Some(Self {
            origin: Origin::of(&uri)?,
            target: uri.path_and_query()?.clone(),
        })
    }

    /// All of it.
    pub fn url(&self) -> String {
        let scheme = if self.origin.is_tls() { "https" } else { "http" };
        format!("{scheme}://{}{}", self.origin.authority(), self.target)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.origin.authority(), self.target.path())
    }
}

/// Gets JSON.
///
/// # Errors
/// [`FetchError`].
pub async fn json<T: DeserializeOwned>(dialer: &Dialer, place: &Place) -> Result<Answer<T>, FetchError> {
    let (headers, body) = get(dialer, place, None).await?;
    let content = serde_json::from_slice(&body).map_err(|_| FetchError::Unreadable(place.to_string()))?;
    Ok(Answer {
        content,
        holds: max_age(&headers),
    })
}

/// What the provider tells of itself (OpenID Connect Discovery §3), and that it is this one.
///
/// # Errors
/// [`FetchError`].
pub async fn discover<T: DeserializeOwned>(dialer: &Dialer, issuer: &Issuer) -> Result<T, FetchError> {
    let place = issuer.discovery()?;
    let told: Value = json(dialer, &place).await?.content;
    let unreadable = || FetchError::Unreadable(place.to_string());
    let name = told.get("issuer").and_then(Value::as_str).ok_or_else(unreadable)?;
    if name != issuer.as_str() {
        return Err(FetchError::Issuer(name.chars().take(200).collect()));
    }
    serde_json::from_value(told).map_err(|_| unreadable())
}

/// Gets it, with this token if there is one; any answer but 200 is an error.
///
/// # Errors
/// [`FetchError`].
pub async fn get(dialer: &Dialer, place: &Place, token: Option<&str>) -> Result<(HeaderMap, Bytes), FetchError> {
    let mut request = Request::get(Uri::from(place.target.clone()));
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let (head, body) = asked(dialer, place, request.body(empty())).await?;
    if head.status != StatusCode::OK {
        return Err(FetchError::Status {
            place: place.to_string(),
            status: head.status,
        });
    }
    Ok((head.headers, body))
}

/// Sends a form, and gives whatever is answered.
///
/// # Errors
/// [`FetchError`], without an answer.
pub async fn post(dialer: &Dialer, place: &Place, fields: &[(&str, &str)]) -> Result<(StatusCode, Bytes), FetchError> {
    let field = |(name, value): &(&str, &str)| format!("{}={}", escaped(name), escaped(value));
    let form: Vec<_> = fields.iter().map(field).collect();
    let request = Request::post(Uri::from(place.target.clone()))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(full(form.join("&")));
    let (head, body) = asked(dialer, place, request).await?;
    Ok((head.status, body))
}

async fn asked(
    dialer: &Dialer,
    place: &Place,
    request: http::Result<Request<Body>>,
) -> Result<(Parts, Bytes), FetchError> {
    let answered = timeout(TIMEOUT, ask(dialer, place, request)).await;
    answered.unwrap_or_else(|_| Err(FetchError::Silent(place.to_string())))
}

async fn ask(
    dialer: &Dialer,
    place: &Place,
    request: http::Result<Request<Body>>,
) -> Result<(Parts, Bytes), FetchError> {
    let broken = || FetchError::Broken(place.to_string());
    let mut request = request.map_err(|_| broken())?;
    let host = HeaderValue::from_str(&place.origin.authority()).map_err(|_| broken())?;
    request.headers_mut().insert(HOST, host);
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(ACCEPT, json);
    let stream = dialer.dial(&place.origin).await?;
    let connection = Connection::begin(stream).await.map_err(|_| broken())?;
    let response = http1::exchange(connection, Weak::new(), request)
        .await
        .map_err(|_| broken())?;
    let (head, body) = response.into_parts();
    let body = collect(body, LARGEST).await;
    let body = body.ok_or_else(|| FetchError::Unreadable(place.to_string()))?;
    Ok((head, body))
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
            "https://localhost/jwks",
            "https://[::1]:8443/jwks",
            "https://login.example.com/\u{202e}jwks",
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
