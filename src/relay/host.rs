//! The names that the outside has for the relay: in `Host` and what proxies make of it, and in `--public-url`. Pure.

use std::fmt;
use std::net::Ipv6Addr;

use crate::transport::dial::BaseUrl;

/// A host as a request names it; nothing but letters, digits and what belongs between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    name: String,
    port: Option<u16>,
}

impl Host {
    /// Reads `NAME`, `NAME:PORT`, `[IPV6]` or `[IPV6]:PORT`; none of anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (text, None),
        };
        let port = match port {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
            None => None,
        };
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let is_name = (1..=253).contains(&name.len()) && name.bytes().all(known);
        let is_address = name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|bare| bare.parse::<Ipv6Addr>().is_ok());
        (is_name || is_address).then(|| Self {
            name: name.to_owned(),
            port,
        })
    }

    /// The same host at another port.
    #[must_use]
    pub fn at(self, port: u16) -> Self {
        Self {
            port: Some(port),
            ..self
        }
    }

    /// As it stands in a URL that begins with `https://`.
    pub fn in_https(&self) -> String {
        match self.port {
            None | Some(443) => self.name.clone(),
            Some(port) => format!("{}:{port}", self.name),
        }
    }
}

/// Where the relay is reached from outside: `https://HOST[:PORT]`, or `http://` for one that stands in a network of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(BaseUrl);

/// Why a URL is none of a relay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write it as https://relay.example.com, without a path")]
pub struct BadPublicUrl;

impl std::str::FromStr for PublicUrl {
    type Err = BadPublicUrl;

    fn from_str(text: &str) -> Result<Self, BadPublicUrl> {
        let url: BaseUrl = text.parse().map_err(|_| BadPublicUrl)?;
        let is_root = url.path("").is_empty();
        match Host::parse(&url.origin().authority()) {
            Some(_) if is_root => Ok(Self(url)),
            _ => Err(BadPublicUrl),
        }
    }
}

impl PublicUrl {
    /// Whether callers come by TLS.
    pub fn is_https(&self) -> bool {
        self.0.origin().is_tls()
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        for (text, shown) in [
            ("relay.example.com", "relay.example.com"),
            ("relay:8443", "relay:8443"),
            ("relay:443", "relay"),
            ("10.0.0.7:80", "10.0.0.7:80"),
            ("[::1]", "[::1]"),
            ("[2001:db8::7]:8443", "[2001:db8::7]:8443"),
        ] {
            assert_eq!(Host::parse(text).unwrap().in_https(), shown);
        }
        assert_eq!(Host::parse("relay:80").unwrap().at(443).in_https(), "relay");
        for text in [
            "",
            ":80",
            "a b",
            "a/b",
            "a@b",
            "a\\b",
            "a?b",
            "a#b",
            "a%2fb",
            "relay:",
            "relay:x",
            "relay:+1",
            "relay:99999",
            "relay:1:2",
            "::1",
            "[::1",
            "[x]",
            "[::1]x",
            "é.example",
        ] {
            let parsed = Host::parse(text);
            assert!(parsed.is_none(), "{text} became {parsed:?}");
        }
    }

    #[test]
    fn a_public_url_is_scheme_and_host() {
        for (text, shown) in [
            ("https://relay.example.com", "https://relay.example.com"),
            ("https://relay.example.com:443/", "https://relay.example.com"),
            ("http://relay:8080", "http://relay:8080"),
        ] {
            assert_eq!(text.parse::<PublicUrl>().unwrap().to_string(), shown);
        }
        for text in [
            "relay.example.com",
            "https://",
            "https://relay/path",
            "https://relay?x",
            "https://a@relay",
            "ftp://relay",
        ] {
            assert!(text.parse::<PublicUrl>().is_err(), "{text}");
        }
    }
}
