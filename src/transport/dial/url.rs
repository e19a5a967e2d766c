//! Where servers are: the URLs of relays and of local servers.

use http::Uri;
use http::uri::Scheme;

/// Where a server is: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    tls: bool,
    host: String,
    port: u16,
}

/// Why an address is not one to dial.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no URL of the form http://HOST[:PORT] or https://HOST[:PORT]")]
pub struct BadUrl(String);

impl BadUrl {
    /// Whatever stands before an `@` may be a password.
    pub(super) fn new(text: &str) -> Self {
        Self(match text.rsplit_once('@') {
            Some((_, rest)) => format!("…@{rest}"),
            None => text.to_owned(),
        })
    }
}

impl Origin {
    /// The server of a URL; none of one with another scheme, without a host, or with a password.
    pub fn of(uri: &Uri) -> Option<Self> {
        let tls = match uri.scheme()? {
            scheme if *scheme == Scheme::HTTP => false,
            scheme if *scheme == Scheme::HTTPS => true,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?;
        if uri.authority()?.as_str().contains('@') {
            return None;
        }
        Some(Self {
            tls,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        })
    }

    /// A server that was found elsewhere than in a URL.
    pub(super) fn at(tls: bool, host: String, port: u16) -> Self {
        Self { tls, host, port }
    }

    /// Whether the bytes are encrypted on the way.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host without its port, IPv6 addresses in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host without brackets.
    pub fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether nobody but this machine can listen in.
    pub fn is_loopback(&self) -> bool {
        let bare = self.bare_host();
        bare == "localhost"
            || bare
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// As it stands in a `Host` header.
    pub fn authority(&self) -> String {
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    /// Host and port, whatever the port.
    pub(super) fn host_and_port(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The URL of its root, the port always told.
    pub(super) fn uri(&self) -> Uri {
        Uri::builder()
            .scheme(if self.tls { "https" } else { "http" })
            .authority(self.host_and_port())
            .path_and_query("/")
            .build()
            .unwrap_or_default()
    }
}

/// An origin with the path below which the server's own paths begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    origin: Origin,
    prefix: String,
}

/// The URL of a relay. A trailing `/api`, as shipped desktop apps are configured, names the same relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayUrl(BaseUrl);

impl std::str::FromStr for BaseUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl::new(text);
        let uri: Uri = text.trim().parse().map_err(|_| bad())?;
        if uri.query().is_some() {
            return Err(bad());
        }
        Ok(Self {
            origin: Origin::of(&uri).ok_or_else(bad)?,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl BaseUrl {
    /// Where to dial.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The path of a request whose path is `path` seen from the server.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

impl std::fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.origin.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.origin.authority(), self.prefix)
    }
}

impl std::str::FromStr for RelayUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let mut base: BaseUrl = text.parse()?;
        if let Some(short) = base.prefix.strip_suffix("/api") {
            base.prefix = short.trim_end_matches('/').to_owned();
        }
        Ok(Self(base))
    }
}

impl std::ops::Deref for RelayUrl {
    type Target = BaseUrl;

    fn deref(&self) -> &BaseUrl {
        &self.0
    }
}

impl std::fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relays_url_is_understood_as_people_write_it() {
        for (text, shown, path) in [
            ("https://relay.example.com", "https://relay.example.com", "/ws/tunnel"),
            ("https://relay.example.com/", "https://relay.example.com", "/ws/tunnel"),
            (
                "https://relay.example.com/api",
                "https://relay.example.com",
                "/ws/tunnel",
            ),
            (
                "https://relay.example.com:443/api/",
                "https://relay.example.com",
                "/ws/tunnel",
            ),
            (
                "http://relay:8080/below/it",
                "http://relay:8080/below/it",
                "/below/it/ws/tunnel",
            ),
            ("http://relay/below/api", "http://relay/below", "/below/ws/tunnel"),
            ("http://[::1]:8080", "http://[::1]:8080", "/ws/tunnel"),
        ] {
            let url: RelayUrl = text.parse().unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.path("/ws/tunnel").as_str()),
                (shown, path),
                "{text}"
            );
        }
        for text in [
            "",
            "relay.example.com",
            "ftp://relay",
            "https://",
            "http://a@relay",
            "http://relay?x=1",
        ] {
            assert!(text.parse::<RelayUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_repeated() {
        let error = "https://ann:hunter2@relay.example.com".parse::<RelayUrl>().unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (text, loopback) in [
            ("http://localhost:1", true),
            ("http://127.0.0.2", true),
            ("http://[::1]", true),
            ("http://127.0.0.1.example.com", false),
            ("http://192.168.1.2", false),
        ] {
            let url: BaseUrl = text.parse().unwrap();
            assert_eq!(url.origin().is_loopback(), loopback, "{text}");
        }
    }
}
