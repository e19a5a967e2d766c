//! Proxies in front of the relay, and what they say of who calls: taken from those that are trusted, and from nobody else
//! (protocol.md section 4). Pure.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::host::Host;
use crate::transport::headers::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REAL_IP};

/// The networks of the proxies that are trusted.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Vec<IpNet>);

/// What a trusted proxy said of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Where the caller is.
    pub address: IpAddr,
    /// Whether the caller came by TLS, if it was said.
    pub is_tls: Option<bool>,
    /// The host that the caller named, if it was said.
    pub host: Option<HeaderValue>,
}

impl Proxies {
    /// Trusts those in these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one at this address is trusted.
    pub fn trust(&self, address: IpAddr) -> bool {
        // IPv4 that comes over IPv6 is meant by IPv4's networks.
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Reads what a trusted proxy at `peer` says. `X-Forwarded-*` goes before `Forwarded`, and that before `X-Real-IP`: most proxies
    /// set the first, and pass on what a caller wrote into the others.
    pub fn read(&self, peer: IpAddr, headers: &HeaderMap) -> Told {
        let marked = [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST];
        let fields = if marked.iter().any(|name| headers.contains_key(name)) {
            Fields {
                hops: list(headers, &X_FORWARDED_FOR).map(address).collect(),
                proto: list(headers, &X_FORWARDED_PROTO).last().unwrap_or_default(),
                host: list(headers, &X_FORWARDED_HOST).last().unwrap_or_default(),
            }
        } else if headers.contains_key(FORWARDED) {
            forwarded(headers)
        } else {
            Fields {
                hops: list(headers, &X_REAL_IP).map(address).collect(),
                ..Fields::default()
            }
        };
        Told {
            address: self.caller(peer, &fields.hops),
            is_tls: match fields.proto.to_ascii_lowercase().as_str() {
                "https" | "wss" => Some(true),
                "http" | "ws" => Some(false),
                _ => None,
            },
            host: Host::parse(fields.host).and_then(|_| HeaderValue::from_str(fields.host).ok()),
        }
    }

    /// The rightmost address that is no trusted proxy's; what stands left of it, or of what is no address, anybody may have written.
    fn caller(&self, peer: IpAddr, hops: &[Option<IpAddr>]) -> IpAddr {
        let mut last = peer.to_canonical();
        for hop in hops.iter().rev() {
            let Some(address) = hop else {
                return last;
            };
            last = address.to_canonical();
            if !self.trust(last) {
                return last;
            }
        }
        last
    }
}

#[derive(Default)]
struct Fields<'a> {
    /// From the caller to the nearest proxy; none where no address stands.
    hops: Vec<Option<IpAddr>>,
    proto: &'a str,
    host: &'a str,
}

/// The members of a list, over all its lines; one that is no text is an empty member.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter();
    lines
        .flat_map(|line| line.to_str().unwrap_or_default().split(','))
        .map(str::trim)
}

/// RFC 7239; of protocol and host, the nearest proxy's word counts.
fn forwarded(headers: &HeaderMap) -> Fields<'_> {
    let mut fields = Fields::default();
    for line in headers.get_all(FORWARDED) {
        for element in split(line.to_str().unwrap_or_default(), ',') {
            let mut hop = None;
            (fields.proto, fields.host) = ("", "");
            for pair in split(element, ';') {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let value = value.trim().trim_matches('"');
                match name.trim().to_ascii_lowercase().as_str() {
                    "for" => hop = address(value),
                    "proto" => fields.proto = value,
                    "host" => fields.host = value,
                    _ => {}
                }
            }
            fields.hops.push(hop);
        }
    }
    fields
}

/// Splits where the separator stands outside of quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}

/// An address, with or without a port and brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(bare).or_else(with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies() -> Proxies {
        Proxies::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()])
    }

    fn read(fields: &[(&str, &str)]) -> Told {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        proxies().read("10.0.0.1".parse().unwrap(), &headers)
    }

    fn caller(fields: &[(&str, &str)]) -> String {
        read(fields).address.to_string()
    }

    #[test]
    fn trusted_is_who_is_in_a_network() {
        let trust = |text: &str| proxies().trust(text.parse().unwrap());
        assert!(trust("10.1.2.3") && trust("::ffff:10.1.2.3") && trust("fd00::1"));
        assert!(!trust("11.0.0.1") && !trust("::1"));
        assert!(!Proxies::default().trust("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn the_caller_is_the_rightmost_who_is_not_trusted() {
        for (list, expected) in [
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.7, 10.0.0.2", "203.0.113.7"),
            ("1.1.1.1, 203.0.113.7, 10.0.0.3, 10.0.0.2", "203.0.113.7"),
            ("203.0.113.7:4711", "203.0.113.7"),
            ("[2001:db8::7]:4711, 10.0.0.2", "2001:db8::7"),
            ("2001:db8::7", "2001:db8::7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("10.0.0.9, 10.0.0.2", "10.0.0.9"),
            ("1.1.1.1, unknown, 10.0.0.2", "10.0.0.2"),
            ("1.1.1.1, nonsense", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(caller(&[("x-forwarded-for", list)]), expected, "{list}");
        }
        let lines = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.7")];
        assert_eq!(caller(&lines), "203.0.113.7");
        assert_eq!(caller(&[("x-real-ip", "203.0.113.7")]), "203.0.113.7");
        assert_eq!(caller(&[]), "10.0.0.1");
    }

    #[test]
    fn forwarded_is_read_as_its_standard_says() {
        for (text, expected) in [
            ("for=203.0.113.7", "203.0.113.7"),
            (
                r#"for="[2001:db8::7]:4711";by=_x, For=10.0.0.2;proto=https"#,
                "2001:db8::7",
            ),
            (r#"for=1.1.1.1, for="a,b;for=2.2.2.2", for=10.0.0.2"#, "10.0.0.2"),
            ("for=1.1.1.1, for=_hidden", "10.0.0.1"),
            ("for", "10.0.0.1"),
        ] {
            assert_eq!(caller(&[("forwarded", text)]), expected, "{text}");
        }
        let told = read(&[("forwarded", r#"for=1.1.1.1;host=evil, proto=https;host="relay:8443""#)]);
        assert_eq!(
            (told.is_tls, told.host.unwrap().to_str().unwrap()),
            (Some(true), "relay:8443")
        );
    }

    #[test]
    fn what_a_caller_writes_beside_the_proxys_own_does_not_count() {
        let both = [
            ("forwarded", "for=1.1.1.1;proto=https"),
            ("x-forwarded-for", "203.0.113.7"),
        ];
        let told = read(&both);
        assert_eq!((told.address.to_string().as_str(), told.is_tls), ("203.0.113.7", None));
        let told = read(&[
            ("x-forwarded-proto", "http, https"),
            ("x-forwarded-host", "evil, relay"),
        ]);
        assert_eq!(
            (told.is_tls, told.host.unwrap().to_str().unwrap()),
            (Some(true), "relay")
        );
        let told = read(&[("x-forwarded-proto", "gopher"), ("x-forwarded-host", "a/b@c")]);
        assert_eq!((told.is_tls, told.host), (None, None));
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_stands_there_makes_it_panic(value in "[ -~]{0,80}") {
            for name in ["x-forwarded-for", "x-forwarded-host", "forwarded", "x-real-ip"] {
                read(&[(name, value.as_str())]);
            }
        }
    }
}
