//! Who may ask: like Ollama, the model answers to local names only, and to pages from there.

use std::net::IpAddr;

use http::header::{HOST, HeaderName, ORIGIN};
use http::request::Parts;
use http::uri::Authority;

/// Schemes of programs and extensions on the caller's own machine.
const LOCAL_SCHEMES: [&str; 9] = [
    "app",
    "chrome-extension",
    "file",
    "moz-extension",
    "ms-browser-extension",
    "safari-extension",
    "tauri",
    "vscode-file",
    "vscode-webview",
];

const LOCAL_ORIGINS: [&str; 4] = ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"];

/// Whether a request names this machine as its host and, if a page sent it, comes from a page of
/// this machine.
pub(super) fn admits(head: &Parts) -> bool {
    let host = match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => header(head, HOST),
    };
    let origin = header(head, ORIGIN);
    local_host(host) && (origin.is_empty() || local_origin(origin, host))
}

/// A header's text. What is no text stands for itself: it is not empty, and no local name either.
fn header(head: &Parts, name: HeaderName) -> &str {
    head.headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"))
}

fn local_host(host: &str) -> bool {
    if host.is_empty() {
        return true;
    }
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host().to_ascii_lowercase();
    match name.trim_matches(['[', ']']).parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unspecified(),
        Err(_) => {
            name == "localhost"
                || [".localhost", ".local", ".internal"]
                    .iter()
                    .any(|suffix| name.ends_with(suffix))
        }
    }
}

fn local_origin(origin: &str, host: &str) -> bool {
    let Some((scheme, rest)) = origin.split_once("://") else {
        return false;
    };
    if LOCAL_SCHEMES.contains(&scheme) {
        return true;
    }
    let local = rest
        .parse::<Authority>()
        .is_ok_and(|authority| LOCAL_ORIGINS.contains(&authority.host()));
    matches!(scheme, "http" | "https") && (local || rest == host)
}

#[cfg(test)]
mod tests {
    use super::{local_host, local_origin};

    #[test]
    fn local_names_pass_and_others_do_not() {
        let local = [
            "",
            "localhost",
            "LOCALHOST:11434",
            "127.0.0.1:11434",
            "127.8.0.1",
            "[::1]:11434",
            "0.0.0.0",
            "10.1.2.3",
            "192.168.0.9:80",
            "[fd00::1]",
            "desk.local",
            "host.docker.internal:11434",
            "a.localhost",
        ];
        for host in local {
            assert!(local_host(host), "{host}");
        }
        let foreign = [
            "example.com",
            "example.com:11434",
            "8.8.8.8",
            "[2001:db8::1]",
            "local",
            "127.0.0.1.nip.io",
            "localhost.example.com",
            "bad host",
        ];
        for host in foreign {
            assert!(!local_host(host), "{host}");
        }
    }

    #[test]
    fn local_pages_pass_and_others_do_not() {
        let local = [
            "http://localhost",
            "https://localhost:3000",
            "http://127.0.0.1:8080",
            "http://[::1]:1",
            "app://obsidian.md",
            "chrome-extension://abc",
            "http://desk.local:11434",
        ];
        for origin in local {
            assert!(local_origin(origin, "desk.local:11434"), "{origin}");
        }
        let foreign = [
            "null",
            "https://example.com",
            "http://localhost.example.com",
            "http://desk.local",
            "ftp://localhost",
        ];
        for origin in foreign {
            assert!(!local_origin(origin, "desk.local:11434"), "{origin}");
        }
    }
}
