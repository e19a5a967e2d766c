//! The page: the files in `web/page`, which are part of the program. It asks no other host for anything but the provider of sign-in,
//! and runs no script but these files (docs/page.md).

use std::collections::HashMap;
use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};

use super::Relay;
use super::error::Error;
use crate::transport::dial::Origin;
use crate::transport::headers::{TUNNEL_BRIDGE, X_API_KEY};
use crate::transport::{Body, empty, full};

/// The one that is served at `/`.
const INDEX: &str = "index.html";
const CROSS_ORIGIN_OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

macro_rules! files {
    ($($name:literal)*) => {
        &[$(($name, include_bytes!(concat!("web/page/", $name)))),*]
    };
}

const FILES: &[(&str, &[u8])] = files! {
    "index.html" "style.css" "views.css" "manifest.webmanifest"
    "icon.svg" "icon-192.png" "icon-512.png" "icon-maskable-512.png"
    "app.js" "address.js" "session.js" "api.js" "stream.js" "dom.js" "words.js" "live.js" "models.js"
    "desktops.js" "add.js" "share.js" "chat.js" "choice.js" "conversation.js" "turn.js" "answer.js"
    "stopping.js" "prose.js"
    "keys.js" "qr.js" "usage.js" "chart.js" "developers.js"
};

static ASSETS: LazyLock<HashMap<&str, Asset>> = LazyLock::new(|| {
    let assets = FILES.iter().map(|(name, bytes)| (*name, Asset::new(name, bytes)));
    assets.collect()
});

#[derive(Debug)]
struct Asset {
    bytes: Bytes,
    kind: HeaderValue,
    hash: String,
}

impl Asset {
    fn new(name: &str, bytes: &'static [u8]) -> Self {
        Self {
            bytes: Bytes::from_static(bytes),
            kind: HeaderValue::from_static(kind(name)),
            hash: hash(bytes),
        }
    }

    /// Changes with the octets, and with the policy: browsers keep the one they had when they are told that nothing changed.
    fn tag(&self, policy: &str) -> String {
        format!("\"{}{}\"", self.hash, hash(policy.as_bytes()))
    }
}

fn hash(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(&digest(&SHA256, bytes).as_ref()[..12])
}

/// Whether the browser has what this tag is of (RFC 9110, 13.1.2). A proxy that compresses makes tags weak.
fn is_known(tag: &str, headers: &HeaderMap) -> bool {
    let lists = headers.get_all(IF_NONE_MATCH).into_iter();
    let mut known = lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','));
    known.any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    })
}

fn kind(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("webmanifest") => "application/manifest+json",
        _ => "application/octet-stream",
    }
}

/// Whether somebody opens the page: a browser that shows no credential. Everybody else at `/` asks a desktop, as Ollama's clients do.
pub fn is_visit(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    let reads = method == Method::GET || method == Method::HEAD;
    let mut accepted = headers.get_all(ACCEPT).into_iter();
    let takes_html = accepted.any(|list| list.to_str().is_ok_and(|list| list.contains("text/html")));
    let asks_a_desktop = [AUTHORIZATION, X_API_KEY, TUNNEL_BRIDGE]
        .iter()
        .any(|name| headers.contains_key(name));
    reads && uri.path() == "/" && takes_html && !asks_a_desktop
}

/// `GET /`, of a browser.
///
/// # Errors
/// As for [`asset`].
pub fn page(relay: &Relay, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let mut response = asset(relay, INDEX, headers)?;
    let differs = HeaderValue::from_static("Accept, Authorization, X-Api-Key, Tunnel-Bridge");
    response.headers_mut().insert(VARY, differs);
    Ok(response)
}

/// `GET /-/page/NAME`: for anybody.
///
/// # Errors
/// `not_found` for a name that none of the files has.
pub fn asset(relay: &Relay, name: &str, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let asset = ASSETS.get(name).ok_or_else(Error::not_found)?;
    let policy = policy(&origins(relay));
    let tag = asset.tag(&policy);
    let known = is_known(&tag, headers);
    let mut response = Response::new(if known { empty() } else { full(asset.bytes.clone()) });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let answer = response.headers_mut();
    answer.insert(CONTENT_TYPE, asset.kind.clone());
    for (name, value) in [
        (ETAG, &*tag),
        (CONTENT_SECURITY_POLICY, &policy),
        (CACHE_CONTROL, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CROSS_ORIGIN_OPENER_POLICY, "same-origin"),
        (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            answer.insert(name, value);
        }
    }
    Ok(response)
}

/// Where the page signs people in: the only origins beside the relay's own that it may talk to.
fn origins(relay: &Relay) -> Vec<String> {
    let Some(oidc) = &relay.config.oidc else {
        return Vec::new();
    };
    let token = relay.tokens.endpoints().map(|endpoints| endpoints.token);
    let urls = [Some(oidc.issuer.as_str().to_owned()), token];
    let mut origins: Vec<_> = urls.iter().flatten().filter_map(|url| origin(url)).collect();
    origins.sort_unstable();
    origins.dedup();
    origins
}

/// The origin of a URL, as a source in a policy.
fn origin(url: &str) -> Option<String> {
    let origin = Origin::of(&url.parse().ok()?)?;
    let scheme = if origin.is_tls() { "https" } else { "http" };
    Some(format!("{scheme}://{}", origin.authority()))
}

/// What the page may do, as its browser enforces it (Content Security Policy Level 3).
fn policy(origins: &[String]) -> String {
    let connect: String = origins.iter().map(|origin| format!(" {origin}")).collect();
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'{connect}; \
         manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &'static [u8]) -> Option<&'static str> {
        std::str::from_utf8(bytes).ok()
    }

    #[test]
    fn every_file_of_the_folder_is_served_and_knows_its_type() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/relay/web/page");
        let names = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut there: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        let mut served: Vec<_> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        there.sort();
        served.sort();
        assert_eq!(there, served);
        for name in served {
            assert_ne!(kind(&name), "application/octet-stream", "{name}");
        }
    }

    #[test]
    fn no_file_has_script_or_style_in_the_page_or_names_another_host() {
        for (name, bytes) in FILES {
            let Some(text) = text(bytes) else { continue };
            for host in text.split("://").skip(1) {
                // The name of a language, which nobody asks for.
                assert!(host.starts_with("www.w3.org/"), "{name}: ://{host:.40}");
            }
            for never in [" style=", "<style", " onclick=", "javascript:", "innerHTML", "eval("] {
                assert!(!text.contains(never), "{name} has {never}");
            }
            let mut scripts = text.split("<script").skip(1);
            assert!(scripts.all(|script| script.contains(" src=\"./-/page/")), "{name}");
        }
    }

    #[test]
    fn the_provider_is_the_only_other_origin_of_the_policy() {
        assert!(policy(&[]).contains("connect-src 'self';"));
        let login = origin("https://login.example.com/realms/home").unwrap();
        assert_eq!(login, "https://login.example.com");
        assert_eq!(
            origin("http://127.0.0.1:9000/token"),
            Some("http://127.0.0.1:9000".to_owned())
        );
        assert!(policy(&[login]).contains("connect-src 'self' https://login.example.com;"));
    }

    #[test]
    fn a_browser_takes_what_it_has_while_it_is_the_same() {
        let tag = ASSETS[INDEX].tag("a policy");
        let has = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, value.parse().unwrap());
            is_known(&tag, &headers)
        };
        assert!(has(&tag) && has(&format!("\"a\", W/{tag}")) && has("*"));
        assert!(!has("\"a\"") && !has("") && !has(&ASSETS[INDEX].tag("another")));
    }
}
