//! Which path is whose: the relay owns few, everything else goes to a bridge (protocol.md section 1). Pure: looks at the
//! request, touches nothing.

use http::{HeaderMap, Method, Uri};

use super::address::Address;
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
    /// What the user shares.
    Shares,
    /// To share more.
    AddShare,
    /// To take the share of this id back.
    RemoveShare(String),
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
    pub bridge: Option<Named>,
    /// The normalised path with its query.
    pub path_and_query: String,
    /// `/b/X/Y/…` may mean X, and the path `/Y/…` there; or the bridge Y of the user X, and this.
    pub longer: Option<Longer>,
}

/// How a bridge is named.
#[derive(Debug, PartialEq, Eq)]
pub enum Named {
    /// By its name alone: the caller's own.
    Own(String),
    /// With its owner.
    Of(Address),
}

/// The other reading of a path with a bridge in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Longer {
    /// The bridge.
    pub bridge: Address,
    /// The normalised path with its query, if it may be forwarded.
    pub path_and_query: Result<String, Error>,
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
        "/-/shares" if method == Method::POST => return Ok(Route::AddShare),
        "/-/shares" => return read_only(method, Route::Shares),
        "/-/pair" if method == Method::POST => return Ok(Route::Pair),
        "/-/pair/claim" if method == Method::POST => return Ok(Route::ClaimCode),
        _ if is_owned(path) && method == Method::DELETE => {
            let below = |root: &str| {
                let id = path.strip_prefix(root)?;
                (!id.is_empty() && !id.contains('/')).then(|| id.to_owned())
            };
            let key = below("/-/keys/").map(Route::RevokeKey);
            return key
                .or_else(|| below("/-/shares/").map(Route::RemoveShare))
                .ok_or_else(Error::not_found);
        }
        _ if path.starts_with(ASSETS) => return read_only(method, Route::Asset(path[ASSETS.len()..].to_owned())),
        _ if is_owned(path) => return polling(method, path).map(Route::Polling).ok_or_else(Error::not_found),
        _ => {}
    }
    let (named, rest) = split_prefix(path);
    let header = bridge_header(headers)?;
    let longer = named.and_then(|owner| longer(owner, rest));
    let (bridge, rest, longer) = match (named, header, longer) {
        (None, header, _) => (header, rest, None),
        (Some(name), None, longer) => (Some(Named::Own(name.to_owned())), rest, longer),
        (Some(name), Some(Named::Own(header)), _) if name == header => (Some(Named::Own(header)), rest, None),
        (_, Some(Named::Of(header)), Some((address, rest))) if address == header => {
            (Some(Named::Of(header)), rest, None)
        }
        _ => {
            let detail = "the path and the header Tunnel-Bridge name different bridges";
            return Err(Error::new(Code::BadRequest, detail));
        }
    };
    Ok(Route::Forward(Target {
        bridge,
        path_and_query: forwarded(rest, uri.query())?,
        longer: longer.map(|(bridge, rest)| Longer {
            bridge,
            path_and_query: forwarded(rest, uri.query()),
        }),
    }))
}

/// The path that goes to a bridge.
fn forwarded(path: &str, query: Option<&str>) -> Result<String, Error> {
    let normal = normalise(path).map_err(|error| Error::new(Code::BadRequest, error.to_string()))?;
    if is_owned(&normal.path) {
        return Err(Error::not_found());
    }
    let mut path_and_query = normal.path.into_owned();
    if let Some(query) = query {
        path_and_query.push('?');
        path_and_query.push_str(query);
    }
    Ok(path_and_query)
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

/// What follows `/b/X` read as a bridge of the user X and what is left.
fn longer<'a>(owner: &str, rest: &'a str) -> Option<(Address, &'a str)> {
    let rest = rest.strip_prefix('/')?;
    let at = rest.find('/').unwrap_or(rest.len());
    let address = Address::parse(&format!("{owner}/{}", &rest[..at]))?;
    let rest = &rest[at..];
    Some((address, if rest.is_empty() { "/" } else { rest }))
}

fn bridge_header(headers: &HeaderMap) -> Result<Option<Named>, Error> {
    let mut values = headers.get_all(TUNNEL_BRIDGE).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.any(|other| other != value) {
        return Err(Error::new(
            Code::BadRequest,
            "send one header Tunnel-Bridge, not two that differ",
        ));
    }
    let named = value.to_str().ok().and_then(|text| match text.contains('/') {
        true => Address::parse(text).map(Named::Of),
        false => Some(Named::Own(text.to_owned())),
    });
    let named = named.ok_or_else(|| {
        let detail = "Tunnel-Bridge is no name of a bridge: write NAME, or OWNER/NAME for one that is shared";
        Error::new(Code::BadRequest, detail)
    })?;
    Ok(Some(named))
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
            bridge: bridge.map(|name| Named::Own(name.to_owned())),
            path_and_query: path.to_owned(),
            longer: None,
        }))
    }

    fn address(owner: &str, name: &str) -> Address {
        Address {
            owner: owner.to_owned(),
            name: name.to_owned(),
        }
    }

    /// To an own bridge of the first name and path, or to the one of the owner and this path.
    fn forward_or(own: (&str, &str), other: (&str, &str), path: Result<&str, Error>) -> Result<Route, Error> {
        let mut route = forward(Some(own.0), own.1)?;
        if let Route::Forward(target) = &mut route {
            target.longer = Some(Longer {
                bridge: address(other.0, other.1),
                path_and_query: path.map(str::to_owned),
            });
        }
        Ok(route)
    }

    #[test]
    fn everything_that_is_not_ours_is_forwarded() {
        assert_eq!(get("/api/chat?x=1"), forward(None, "/api/chat?x=1"));
        assert_eq!(get("/"), forward(None, "/"));
        assert_eq!(get("/ollama/api/tags"), forward(None, "/api/tags"));
        assert_eq!(get("/api/ollama/api/tags"), forward(None, "/api/tags"));
        assert_eq!(get("/ollama"), forward(None, "/"));
        assert_eq!(get("/ollamas"), forward(None, "/ollamas"));
        assert_eq!(get("/b/box/v1"), forward_or(("box", "/v1"), ("box", "v1"), Ok("/")));
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

    #[test]
    fn a_path_with_two_readings_has_both() {
        let two = get("/b/ann/box/api/tags?x=1");
        assert_eq!(
            two,
            forward_or(("ann", "/box/api/tags?x=1"), ("ann", "box"), Ok("/api/tags?x=1"))
        );
        assert_eq!(get("/b/ann/box"), forward_or(("ann", "/box"), ("ann", "box"), Ok("/")));
        let encoded = get("/b/auth0%7C1/box/v1");
        assert_eq!(
            encoded,
            forward_or(("auth0%7C1", "/box/v1"), ("auth0|1", "box"), Ok("/v1"))
        );
        let slash = get("/b/a%2Fb/box/v1");
        assert_eq!(slash, forward_or(("a%2Fb", "/box/v1"), ("a/b", "box"), Ok("/v1")));
        for path in ["/-/keys", "/api/bridge", "/x/../healthz"] {
            let rest = format!("/box{path}").replace("/x/..", "");
            let owned = get(&format!("/b/ann/box{path}"));
            let none = Err(Error::not_found());
            assert_eq!(owned, forward_or(("ann", &rest), ("ann", "box"), none), "{path}");
        }
        for path in ["/b/%/box", "/b/%ff/box", "/b/ann/", "/b/ann/b:x", "/b//box"] {
            let Ok(Route::Forward(target)) = get(path) else {
                panic!("{path}");
            };
            assert_eq!(target.longer, None, "{path}");
        }
    }

    #[test]
    fn a_bridge_with_its_owner_is_named_by_path_or_header() {
        let by = |uri: &str, names: &[&'static str]| {
            let headers = names.iter().map(|name| (TUNNEL_BRIDGE, HeaderValue::from_static(name)));
            route(&Method::GET, &uri.parse().unwrap(), &headers.collect())
        };
        let box_of = |owner: &str, path: &str| {
            Ok(Route::Forward(Target {
                bridge: Some(Named::Of(address(owner, "box"))),
                path_and_query: path.to_owned(),
                longer: None,
            }))
        };
        assert_eq!(by("/api/tags", &["ann/box"]), box_of("ann", "/api/tags"));
        assert_eq!(by("/api/tags", &["a%2fb/box"]), box_of("a/b", "/api/tags"));
        assert_eq!(by("/api/tags", &["a/b/box"]), box_of("a/b", "/api/tags"));
        assert_eq!(by("/b/a%2Fb/box/api/tags", &["a/b/box"]), box_of("a/b", "/api/tags"));
        assert_eq!(by("/b/ann/box/-/keys", &["ann/box"]), Err(Error::not_found()));
        for (uri, header) in [
            ("/b/ann/box/api/tags", "bob/box"),
            ("/b/ann/box/api/tags", "box"),
            ("/api/tags", "ann/b:x"),
            ("/api/tags", "/box"),
            ("/api/tags", "%zz/box"),
        ] {
            assert_eq!(by(uri, &[header]).unwrap_err().code, Code::BadRequest, "{uri} {header}");
        }
        assert_eq!(by("/api/tags", &["ann/box"; 2]), box_of("ann", "/api/tags"));
        assert_eq!(by("/api/tags", &["box", "den"]).unwrap_err().code, Code::BadRequest);
    }
}
