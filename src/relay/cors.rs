//! Cross-origin requests (the Fetch standard): the relay answers for every path, so a web page can use it. Credentials are
//! never ambient, so any origin may ask by default.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, ORIGIN, VARY,
};
use http::{HeaderValue, Method, Response, StatusCode};

use crate::transport::{Body, empty};

/// Which origins may call.
#[derive(Debug, Clone)]
pub struct Cors(Vec<String>);

impl Cors {
    /// These origins; any, if there are none.
    pub fn new(origins: Vec<String>) -> Self {
        Self(origins)
    }

    /// Whether this origin was named; with none named, none is.
    pub fn names(&self, origin: &HeaderValue) -> bool {
        self.0.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.0.is_empty() || self.names(origin)
    }

    /// The answer to a preflight, if this is one; it needs no token.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response<Body>> {
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
        let origin = headers.get(ORIGIN)?;
        if method != Method::OPTIONS {
            return None;
        }
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        if self.allows(origin) {
            let answer = response.headers_mut();
            answer.insert(ACCESS_CONTROL_ALLOW_METHODS, asked.clone());
            if let Some(names) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
                answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
            }
            answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
        }
        Some(response)
    }

    /// Puts the permission on any response; the upstream's own opinion is replaced.
    pub fn apply(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) {
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            response.remove(name);
        }
        let Some(origin) = origin else {
            return;
        };
        response.append(VARY, HeaderValue::from_static("Origin"));
        if self.allows(origin) {
            response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            response.insert(
                ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static("Tunnel-Error, Retry-After, X-Request-Id"),
            );
        }
    }
}
