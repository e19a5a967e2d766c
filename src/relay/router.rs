//! Which path is whose: the relay owns few, everything else goes to a bridge (protocol.md section 1). Pure: looks at the
//! request, touches nothing.

use http::{HeaderMap, Method, Uri};

use super::error::{Code, Error};
use super::web;
use crate::transport::headers::TUNNEL_BRIDGE;
use crate::transport::path::normalise;
use crate::transport::ws;

/// Where the files of the page are.
const ASSETS: &str = "/-/page/";

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// Alive.
    Health,
    /// Ready for work.
    Ready,
    /// A bridge connects.
    Bridge,
    /// The caller's own bridges.
    Bridges,
    /// What the caller used.
    Usage,
    /// The version of the relay.
    Version,
    /// The page.
    Page,
    /// The file of this name that belongs to it.
    Asset(String),
    /// How people sign in.
    AuthConfig,
    /// Whose the credential is, and what it is good for.
    Me,
    /// What becomes of the caller's bridges.
    Events,
    /// A token for the one-time code of a demonstration.
    ClaimOpening,
    /// A fresh token for a valid one.
    RenewToken,
    /// The user's keys for callers.
    Keys,
    /// A fresh one.
    AddKey,
    /// To take back the one of this id.
    RevokeKey(String),
    /// A code for a bridge.
    Pair,
    /// A token for a code.
    ClaimCode,
    /// A bridge that polls.
    Polling(Polling),
    /// To a bridge.
    Forward(Target),
}

/// What a polling bridge asks for (protocol.md section 3); the ids are as they stand in the path.
#[derive(Debug, PartialEq, Eq)]
pub enum Polling {
    /// To be registered.
    Register,
    /// For requests.
    Poll(String),
    /// For a part of a request's body: bridge, request, number.
    Body(String, String, u32),
    /// To take an answer, or a part of one: bridge, and the request if the path names it.
    Respond(String, Option<String>),
    /// To be known as alive.
    Heartbeat(String),
    /// To note which model servers it has.
    Providers(String),
    /// How it stands.
    Status(String),
}

/// A request for a bridge.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// The bridge named, if one is.
    pub bridge: Option<String>,
    /// The normalised path with its query.
    pub path_and_query: String,
}

/// Decides.
///
/// # Errors
/// `not_found` for a path of ours that does not exist, `bad_request` for one without a safe reading.
pub fn route(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Route, Error> {
    let path = uri.path();
    match path {
        "/" if web::is_visit(method, uri, headers) => return Ok(Route::Page),
        "/healthz" | "/health" => return read_only(method, Route::Health),
        "/readyz" => return read_only(method, Route::Ready),
        ws::PATH => return read_only(method, Route::Bridge),
        "/api/bridge" => return read_only(method, Route::Bridges),
        "/api/bridge/usage" => return read_only(method, Route::Usage),
        "/-/version" => return read_only(method, Route::Version),
        "/-/auth/config" => return read_only(method, Route::AuthConfig),
        "/-/auth/claim" if method == Method::POST => return Ok(Route::ClaimOpening),
        "/-/me" => return read_only(method, Route::Me),
        "/-/events" => return read_only(method, Route::Events),
        "/-/token/renew" if method == Method::POST => return Ok(Route::RenewToken),
        "/-/keys" if method == Method::POST => return Ok(Route::AddKey),
        "/-/keys" => return read_only(method, Route::Keys),
        "/-/pair" if method == Method::POST => return Ok(Route::Pair),
        "/-/pair/claim" if method == Method::POST => return Ok(Route::ClaimCode),
        _ if is_owned(path) && method == Method::DELETE => {
            let id = path
                .strip_prefix("/-/keys/")
                .filter(|id| !id.is_empty() && !id.contains('/'));
            return id
                .map(|id| Route::RevokeKey(id.to_owned()))
                .ok_or_else(Error::not_found);
        }
        _ if path.starts_with(ASSETS) => return read_only(method, Route::Asset(path[ASSETS.len()..].to_owned())),
        _ if is_owned(path) => return polling(method, path).map(Route::Polling).ok_or_else(Error::not_found),
        _ => {}
    }
    let (named, rest) = split_prefix(path);
    let bridge = wanted_bridge(named, headers)?;
    let normal = normalise(rest).map_err(|error| Error::new(Code::BadRequest, error.to_string()))?;
    if is_owned(&normal.path) {
        return Err(Error::not_found());
    }
    let mut path_and_query = normal.path.into_owned();
    if let Some(query) = uri.query() {
        path_and_query.push('?');
        path_and_query.push_str(query);
    }
    Ok(Route::Forward(Target { bridge, path_and_query }))
}

/// The routes of polling bridges, and the same under the paths of shipped desktop apps.
fn polling(method: &Method, path: &str) -> Option<Polling> {
    let segments: Vec<&str> = path.strip_prefix("/api/bridge/")?.split('/').collect();
    if segments.iter().any(|segment| segment.is_empty()) {
        return None;
    }
    let owned = |text: &str| text.to_owned();
    match (method, segments.as_slice()) {
        (&Method::POST, ["register"]) => Some(Polling::Register),
        (&Method::GET, ["poll", bridge] | [bridge, "poll"]) => Some(Polling::Poll(owned(bridge))),
        (&Method::GET, ["poll", bridge, request, "body", n]) => {
            Some(Polling::Body(owned(bridge), owned(request), n.parse().ok()?))
        }
        (&Method::POST, ["respond", bridge, request]) => Some(Polling::Respond(owned(bridge), Some(owned(request)))),
        (&Method::POST, [bridge, "response"]) => Some(Polling::Respond(owned(bridge), None)),
        (&Method::POST, ["heartbeat", bridge] | [bridge, "heartbeat"]) => Some(Polling::Heartbeat(owned(bridge))),
        (&Method::POST, [bridge, "provider-status"]) => Some(Polling::Providers(owned(bridge))),
        (&Method::GET, [bridge, "status"]) => Some(Polling::Status(owned(bridge))),
        _ => None,
    }
}

fn read_only(method: &Method, route: Route) -> Result<Route, Error> {
    if method == Method::GET || method == Method::HEAD {
        Ok(route)
    } else {
        Err(Error::not_found())
    }
}

fn is_owned(path: &str) -> bool {
    let below = |root: &str| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    matches!(path, "/healthz" | "/health" | "/readyz")
        || ["/ws/tunnel", "/api/bridge", "/-", "/.tunnel"].into_iter().any(below)
}

/// Takes a forwarding prefix off: the bridge it names, if any, and what is left.
fn split_prefix(path: &str) -> (Option<&str>, &str) {
    for prefix in ["/api/ollama", "/ollama"] {
        match path.strip_prefix(prefix) {
            Some("") => return (None, "/"),
            Some(rest) if rest.starts_with('/') => return (None, rest),
            _ => {}
        }
    }
    match path.strip_prefix("/b/") {
        Some(rest) => match rest.find('/') {
            Some(at) => (Some(&rest[..at]), &rest[at..]),
            None => (Some(rest), "/"),
        },
        None => (None, path),
    }
}

fn wanted_bridge(named: Option<&str>, headers: &HeaderMap) -> Result<Option<String>, Error> {
    let header = match headers.get(TUNNEL_BRIDGE).map(|value| value.to_str()) {
        None => None,
        Some(Ok(name)) => Some(name),
        Some(Err(_)) => return Err(Error::new(Code::BadRequest, "Tunnel-Bridge is no name of a bridge")),
    };
    match (named, header) {
        (Some(path), Some(header)) if path != header => Err(Error::new(
            Code::BadRequest,
            "the path and the header Tunnel-Bridge name different bridges",
        )),
        (Some(name), _) | (None, Some(name)) => Ok(Some(name.to_owned())),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn get(uri: &str) -> Result<Route, Error> {
        route(&Method::GET, &uri.parse().unwrap(), &HeaderMap::new())
    }

    fn forward(bridge: Option<&str>, path: &str) -> Result<Route, Error> {
        Ok(Route::Forward(Target {
            bridge: bridge.map(str::to_owned),
            path_and_query: path.to_owned(),
        }))
    }

    #[test]
    fn everything_that_is_not_ours_is_forwarded() {
        assert_eq!(get("/api/chat?x=1"), forward(None, "/api/chat?x=1"));
        assert_eq!(get("/"), forward(None, "/"));
        assert_eq!(get("/ollama/api/tags"), forward(None, "/api/tags"));
        assert_eq!(get("/api/ollama/api/tags"), forward(None, "/api/tags"));
        assert_eq!(get("/ollama"), forward(None, "/"));
        assert_eq!(get("/ollamas"), forward(None, "/ollamas"));
        assert_eq!(get("/b/box/v1/models"), forward(Some("box"), "/v1/models"));
        assert_eq!(get("/b/box"), forward(Some("box"), "/"));
        assert_eq!(get("/api/bridges"), forward(None, "/api/bridges"));
    }

    #[test]
    fn a_browser_without_a_credential_gets_the_page_and_everybody_else_the_desktop() {
        let by = |uri: &str, headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter().map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            });
            route(&Method::GET, &uri.parse().unwrap(), &headers.collect())
        };
        let html = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        assert_eq!(by("/", &[html]), Ok(Route::Page));
        assert_eq!(by("/?code=a&state=b", &[html]), Ok(Route::Page));
        assert_eq!(by("/", &[("accept", "*/*")]), forward(None, "/"));
        for shown in [("authorization", "Bearer t"), ("x-api-key", "t")] {
            assert_eq!(by("/", &[html, shown]), forward(None, "/"));
        }
        assert_eq!(by("/", &[html, ("tunnel-bridge", "box")]), forward(Some("box"), "/"));
        assert_eq!(by("/b/box/", &[html]), forward(Some("box"), "/"));
        assert_eq!(by("/-/page/app.js", &[]), Ok(Route::Asset("app.js".to_owned())));
        let post = route(&Method::POST, &"/-/page/app.js".parse().unwrap(), &HeaderMap::new());
        assert_eq!(post, Err(Error::not_found()));
    }

    #[test]
    fn what_is_ours_is_never_forwarded_however_it_is_spelled() {
        for uri in [
            "/ollama/healthz",
            "/b/box/api/bridge/poll/1",
            "//healthz",
            "/x/../-/version",
            "/ollama/%2d/version",
            "/api/ollama/ws/tunnel",
            "/.tunnel/ready",
            "/-/nothing",
            "/api/bridge/nothing",
        ] {
            assert_eq!(get(uri), Err(Error::not_found()), "{uri}");
        }
    }

    #[test]
    fn keys_and_codes_have_routes_of_their_own() {
        let to = |method: Method, uri: &str| route(&method, &uri.parse().unwrap(), &HeaderMap::new());
        assert_eq!(to(Method::GET, "/-/keys"), Ok(Route::Keys));
        assert_eq!(to(Method::POST, "/-/keys"), Ok(Route::AddKey));
        assert_eq!(to(Method::DELETE, "/-/keys/a"), Ok(Route::RevokeKey("a".to_owned())));
        assert_eq!(to(Method::POST, "/-/pair"), Ok(Route::Pair));
        assert_eq!(to(Method::POST, "/-/pair/claim"), Ok(Route::ClaimCode));
        for uri in ["/-/keys/", "/-/keys/a/b", "/-/keys", "/b/box/-/keys/a", "/api/bridge/a"] {
            assert_eq!(to(Method::DELETE, uri), Err(Error::not_found()), "{uri}");
        }
        assert_eq!(to(Method::GET, "/-/pair"), Err(Error::not_found()));
    }

    #[test]
    fn the_paths_of_polling_and_of_shipped_apps_lead_to_the_same() {
        let to = |method: Method, uri: &str| match route(&method, &uri.parse().unwrap(), &HeaderMap::new()) {
            Ok(Route::Polling(polling)) => Some(polling),
            _ => None,
        };
        let id = || "B".to_owned();
        assert_eq!(to(Method::POST, "/api/bridge/register"), Some(Polling::Register));
        for (method, ours, theirs, polling) in [
            (Method::GET, "poll/B", "B/poll", Polling::Poll(id())),
            (Method::POST, "heartbeat/B", "B/heartbeat", Polling::Heartbeat(id())),
        ] {
            for path in [ours, theirs] {
                assert_eq!(
                    to(method.clone(), &format!("/api/bridge/{path}")).as_ref(),
                    Some(&polling)
                );
            }
        }
        assert_eq!(
            to(Method::GET, "/api/bridge/poll/B/r-1/body/3"),
            Some(Polling::Body(id(), "r-1".into(), 3))
        );
        assert_eq!(
            to(Method::POST, "/api/bridge/respond/B/r-1"),
            Some(Polling::Respond(id(), Some("r-1".into())))
        );
        assert_eq!(
            to(Method::POST, "/api/bridge/B/response"),
            Some(Polling::Respond(id(), None))
        );
        for path in [
            "poll",
            "poll/",
            "poll/B/r/body/x",
            "poll/B/r/body/-1",
            "B/poll/",
            "/B/poll",
            "respond/B",
        ] {
            assert_eq!(to(Method::GET, &format!("/api/bridge/{path}")), None, "{path}");
        }
    }

    #[test]
    fn a_bridge_is_named_by_path_or_header_and_not_by_two_names() {
        let mut headers = HeaderMap::new();
        headers.insert(TUNNEL_BRIDGE, HeaderValue::from_static("box"));
        let by = |uri: &str| route(&Method::GET, &uri.parse().unwrap(), &headers);
        assert_eq!(by("/api/tags"), forward(Some("box"), "/api/tags"));
        assert_eq!(by("/b/box/api/tags"), forward(Some("box"), "/api/tags"));
        assert_eq!(by("/b/other/api/tags").unwrap_err().code, Code::BadRequest);
    }
}
