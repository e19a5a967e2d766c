//! What every hop does to header fields (protocol.md section 4): one set of functions for both transports and both ends.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, PROXY_AUTHORIZATION, REFERER, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

/// What this program calls itself in `User-Agent`.
pub const PROGRAM: &str = concat!("tunnel/", env!("CARGO_PKG_VERSION"));
/// The code of an error of ours; on a response it is always ours, an upstream's own is removed.
pub const TUNNEL_ERROR: HeaderName = HeaderName::from_static("tunnel-error");
/// From the bridge to the relay only: a sentence for the person behind [`TUNNEL_ERROR`].
pub const TUNNEL_ERROR_DETAIL: HeaderName = HeaderName::from_static("tunnel-error-detail");
/// A random name of the bridge's installation, the same for ever (protocol.md section 2).
pub const TUNNEL_CLIENT_ID: HeaderName = HeaderName::from_static("tunnel-client-id");
/// A random name of the bridge's process.
pub const TUNNEL_INSTANCE: HeaderName = HeaderName::from_static("tunnel-instance");
/// From the bridge: the name it would like; from the relay: the name it got.
pub const TUNNEL_BRIDGE_NAME: HeaderName = HeaderName::from_static("tunnel-bridge-name");
/// A whole number; the highest takes the work that names no bridge.
pub const TUNNEL_PRIORITY: HeaderName = HeaderName::from_static("tunnel-priority");
/// `1`: reachable by name only, and in no list.
pub const TUNNEL_EPHEMERAL: HeaderName = HeaderName::from_static("tunnel-ephemeral");
/// From the relay: a keyed hash of user and client id.
pub const TUNNEL_BRIDGE_ID: HeaderName = HeaderName::from_static("tunnel-bridge-id");
/// From the relay: how many streams it may have open at once on this link.
pub const TUNNEL_MAX_IN_FLIGHT: HeaderName = HeaderName::from_static("tunnel-max-in-flight");
/// On a request: the relay takes reports of tokens; in the trailers of an answer, or in its head: the report
/// ([`super::usage`]).
pub const TUNNEL_USAGE: HeaderName = HeaderName::from_static("tunnel-usage");
/// From the relay, beside [`TUNNEL_USAGE`]: the caller's own `TE`, where that takes trailers.
pub const TUNNEL_TE: HeaderName = HeaderName::from_static("tunnel-te");
/// From the bridge: the `Content-Length` of an answer that ends with trailers.
pub const TUNNEL_CONTENT_LENGTH: HeaderName = HeaderName::from_static("tunnel-content-length");
/// From the caller: the bridge wanted.
pub const TUNNEL_BRIDGE: HeaderName = HeaderName::from_static("tunnel-bridge");
/// The credential of Anthropic's clients.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Names an exchange in the logs of relay and bridge, and to the caller.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// From a proxy: where the caller is. To the bridge: the relay's own word on it.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme that the caller used.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The host that the caller named.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// From a proxy: where the caller is.
pub const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Of one connection only, beside `Connection`, what that names, and `Proxy-*`.
static HOP_BY_HOP: [HeaderName; 5] = [KEEP_ALIVE, HTTP2_SETTINGS, TE, TRANSFER_ENCODING, UPGRADE];
/// What a caller may not tell the bridge, beside `Tunnel-*` and `X-Forwarded-*`.
static CALLERS_OWN: [HeaderName; 6] = [
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    X_API_KEY,
    COOKIE,
    FORWARDED,
    X_REAL_IP,
];
/// What stands in no trailers, besides (RFC 9110 §6.5.1).
static OF_HEADS: [HeaderName; 3] = [HOST, CONTENT_LENGTH, SET_COOKIE];
/// What tells which page asks.
static OF_PAGES: [HeaderName; 2] = [ORIGIN, REFERER];

/// Whether the message asks for (or announces) another protocol on its connection (RFC 9110 §7.8).
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    // Nothing but a WebSocket: after an upgrade to h2c a caller would speak to the local server past the policy.
    let mut protocols = headers.get_all(UPGRADE).into_iter();
    let only = protocols.next().filter(|_| protocols.next().is_none());
    only.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && has_token(headers, &CONNECTION, "upgrade")
}

/// Whether a comma-separated field names this token, whatever its case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Removes what belongs to one connection only (RFC 9110 §7.6.1): `Connection` and every field it names, `Keep-Alive`,
/// `Proxy-*`, `TE` (`te: trailers` is put back), `Transfer-Encoding`, and `Upgrade` unless `keep_upgrade`.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    let upgrade = keep_upgrade && is_upgrade(headers);
    let trailers = has_token(headers, &TE, "trailers");
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .filter(|name| *name != HOST)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    remove_where(headers, |name| {
        HOP_BY_HOP.contains(name) || name.as_str().starts_with("proxy-")
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// Removes what a caller may not tell the bridge: its credentials and cookies, and whatever claims to come from us or from a
/// proxy before us.
pub fn remove_caller_identity(headers: &mut HeaderMap) {
    remove_where(headers, |name| {
        let text = name.as_str();
        CALLERS_OWN.contains(name) || text.starts_with("tunnel-") || text.starts_with("x-forwarded-")
    });
}

/// Removes from trailers what may not stand in them on any hop of ours.
pub fn scrub_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers, false);
    remove_caller_identity(trailers);
    remove_where(trailers, |name| OF_HEADS.contains(name));
}

/// Removes what makes Ollama answer 403 to a request that comes from elsewhere; `Host` is set by whoever sends the request.
pub fn remove_origin(headers: &mut HeaderMap) {
    remove_where(headers, |name| OF_PAGES.contains(name));
}

/// Removes every `Tunnel-*` field, and what announces one as a trailer, so that those on a response are ours alone.
pub fn remove_tunnel(headers: &mut HeaderMap) {
    remove_where(headers, |name| name.as_str().starts_with("tunnel-"));
    let is_tunnel = |name: &&str| name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("tunnel-"));
    if tokens(headers, &TRAILER).any(|name| is_tunnel(&name)) {
        let others: Vec<&str> = tokens(headers, &TRAILER).filter(|name| !is_tunnel(name)).collect();
        let others = HeaderValue::from_str(&others.join(", ")).ok();
        headers.remove(TRAILER);
        if let Some(others) = others.filter(|others| !others.is_empty()) {
            headers.insert(TRAILER, others);
        }
    }
}

/// The length of a body as this field tells it, octets; none if it is not there once, or is no plain number.
pub fn length(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).into_iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let digits = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
    value.to_str().ok().filter(digits)?.parse().ok()
}

/// Whether a body can be read as it is: it has no coding but `identity`.
pub fn is_plain(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().all(|value| {
        let mut codings = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
    })
}

/// Looks at the few fields that are there, instead of for each of the many that may be: most messages have none of them.
fn remove_where(headers: &mut HeaderMap, is_doomed: impl Fn(&HeaderName) -> bool) {
    let doomed: Vec<HeaderName> = headers.keys().filter(|name| is_doomed(name)).cloned().collect();
    for name in doomed {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn connection_and_every_field_it_names_are_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "keep-alive"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "Basic"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers, deflate"),
            ("content-type", "text/plain"),
        ]);
        remove_hop_by_hop(&mut headers, false);
        assert_eq!(headers, map(&[("content-type", "text/plain"), ("te", "trailers")]));
    }

    #[test]
    fn connection_cannot_name_host_away() {
        let mut headers = map(&[("connection", "host"), ("host", "a")]);
        remove_hop_by_hop(&mut headers, false);
        assert_eq!(headers, map(&[("host", "a")]));
    }

    #[test]
    fn upgrade_is_kept_only_when_asked_for() {
        let fields = [("connection", "Upgrade, x-a"), ("upgrade", "websocket"), ("x-a", "1")];
        let mut kept = map(&fields);
        remove_hop_by_hop(&mut kept, true);
        assert_eq!(kept, map(&[("connection", "upgrade"), ("upgrade", "websocket")]));
        let mut removed = map(&fields);
        remove_hop_by_hop(&mut removed, false);
        assert!(removed.is_empty());
    }

    #[test]
    fn credentials_and_claims_of_a_caller_are_removed() {
        let mut headers = map(&[
            ("authorization", "Bearer x"),
            ("x-api-key", "x"),
            ("cookie", "a=b"),
            ("tunnel-error", "policy"),
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("accept", "*/*"),
        ]);
        remove_caller_identity(&mut headers);
        assert_eq!(headers, map(&[("accept", "*/*")]));
    }

    proptest::proptest! {
        #[test]
        fn no_connection_header_makes_scrubbing_panic_or_leave_itself(value in "[ -~]{0,60}") {
            let mut headers = map(&[("connection", value.as_str()), ("a", "1"), ("keep-alive", "x")]);
            remove_hop_by_hop(&mut headers, false);
            proptest::prop_assert!(!headers.contains_key(CONNECTION));
            proptest::prop_assert!(!headers.contains_key(KEEP_ALIVE));
        }
    }
}
