//! Which proxy leads to a server, and how it is asked to.
//!
//! A password is kept where nothing prints it: neither `Debug` nor an error shows more of a proxy than scheme, host and port.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;

use super::socks;
use super::{DialError, Origin, Stream};
use crate::transport::headers::PROGRAM;

/// The proxies for relays with and without TLS, and which servers need none.
#[derive(Clone, Default)]
pub struct Proxies {
    matcher: Option<Arc<Matcher>>,
    /// Where the proxy for `http://` was set.
    http: Arc<str>,
    /// Where the proxy for `https://` was set.
    https: Arc<str>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Proxies");
        if self.matcher.is_some() {
            shown.field("http", &self.http).field("https", &self.https);
        }
        shown.finish_non_exhaustive()
    }
}

/// A proxy that was given is none that can be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no proxy of the form http://HOST:PORT, https://HOST:PORT or socks5h://HOST:PORT")]
pub struct BadProxy(String);

impl Proxies {
    /// This proxy for every server. `setting` tells people where it was set.
    ///
    /// # Errors
    /// [`BadProxy`], which does not repeat the URL: it may have a password in it.
    pub fn all(url: &str, setting: &str) -> Result<Self, BadProxy> {
        let url = normal(url).ok_or_else(|| BadProxy(setting.to_owned()))?;
        Ok(Self {
            matcher: Some(Arc::new(Matcher::builder().all(url).build())),
            http: setting.into(),
            https: setting.into(),
        })
    }

    /// As variables tell: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`; in small letters they go first, and empty
    /// ones count for nothing.
    ///
    /// # Errors
    /// [`BadProxy`] for a variable that names no proxy.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, BadProxy> {
        let get = |name: &str| {
            [name.to_lowercase(), name.to_owned()].into_iter().find_map(|name| {
                let value = lookup(&name).filter(|value| !value.trim().is_empty())?;
                Some((name, value))
            })
        };
        let slot = |name| match get(name).or_else(|| get("ALL_PROXY")) {
            None => Ok(Default::default()),
            Some((name, value)) => match normal(&value) {
                Some(url) => Ok((name, url)),
                None => Err(BadProxy(name)),
            },
        };
        let ((http_name, http), (https_name, https)) = (slot("HTTP_PROXY")?, slot("HTTPS_PROXY")?);
        let no = get("NO_PROXY").map_or_else(String::new, |(_, value)| value);
        // curl takes spaces between the names, too.
        let no = no.split_whitespace().collect::<Vec<_>>().join(",");
        Ok(Self {
            matcher: Some(Arc::new(Matcher::builder().http(http).https(https).no(no).build())),
            http: http_name.into(),
            https: https_name.into(),
        })
    }

    /// The proxy that leads to a server; none if it is reached without.
    pub(super) fn to(&self, server: &Origin) -> Option<Proxy> {
        let intercept = self.matcher.as_ref()?.intercept(&server.uri())?;
        let uri = intercept.uri();
        Some(Proxy {
            origin: Origin::at(
                uri.scheme_str() == Some("https"),
                uri.host()?.to_owned(),
                uri.port_u16()?,
            ),
            setting: Arc::clone(if server.is_tls() { &self.https } else { &self.http }),
            intercept,
        })
    }
}

/// A proxy's URL with scheme and port, and with all escaped that people write into passwords; none if it is no such URL.
fn normal(text: &str) -> Option<String> {
    let (scheme, rest) = text.trim().split_once("://").unwrap_or(("http", text.trim()));
    let (scheme, port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => ("http", 80),
        "https" => ("https", 443),
        // Desktops that set all variables by themselves write only `socks`. Names are always the proxy's to resolve.
        "socks" | "socks5" | "socks5h" => ("socks5h", 1080),
        _ => return None,
    };
    let (user, server) = match rest.rsplit_once('@') {
        Some((user, server)) => (format!("{}@", escaped(user)), server),
        None => (String::new(), rest),
    };
    let uri: Uri = format!("http://{server}").parse().ok()?;
    let (authority, path) = (uri.authority()?, uri.path_and_query()?);
    let host = authority.host();
    let port: u16 = match authority.as_str().strip_prefix(host)? {
        "" => port,
        told => told.strip_prefix(':')?.parse().ok()?,
    };
    (!host.is_empty() && path == "/").then(|| format!("{scheme}://{user}{host}:{port}"))
}

/// Escapes what cannot stand before the host in a URL; `%` stays, for what is escaped already.
fn escaped(user: &str) -> String {
    let octets = user.bytes().map(|octet| match octet {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'%' => {
            char::from(octet).to_string()
        }
        other => format!("%{other:02X}"),
    });
    octets.collect()
}

/// The proxy on the way to one server.
pub(super) struct Proxy {
    origin: Origin,
    intercept: Intercept,
    setting: Arc<str>,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy {}://{}", self.scheme(), self.origin.host_and_port())
    }
}

impl Proxy {
    /// Where it is.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its name where the trouble may be that it is the wrong one.
    pub(super) fn with_setting(&self) -> String {
        format!("{self} (set by {})", self.setting)
    }

    /// Its name and password, for proxies that are not HTTP.
    pub(super) fn user(&self) -> Option<(String, String)> {
        let (user, password) = self.intercept.raw_auth()?;
        Some((user.to_owned(), password.to_owned()))
    }

    fn scheme(&self) -> &str {
        self.intercept.uri().scheme_str().unwrap_or("http")
    }

    /// Asks for a connection to the server, on one to the proxy.
    pub(super) async fn lead(&self, stream: Stream, server: &Origin) -> Result<Stream, DialError> {
        if self.scheme() == "socks5h" {
            socks::lead(self, stream, server).await
        } else {
            self.connect(stream, server).await
        }
    }

    /// `CONNECT` (RFC 9110 §9.3.6). hyper-util's own keeps the status of the answer for itself.
    async fn connect(&self, stream: Stream, server: &Origin) -> Result<Stream, DialError> {
        let broken = |error: hyper::Error| self.broken(server, &error);
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .title_case_headers(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Ends when the connection is handed over, or with the sender.
        tokio::spawn(connection.with_upgrades());
        let request = self
            .connect_request(server)
            .map_err(|error| self.broken(server, &error))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if !response.status().is_success() {
            return Err(self.refusal(&response, server));
        }
        let connected = hyper::upgrade::on(response).await.map_err(broken)?;
        match connected.downcast::<TokioIo<Stream>>() {
            // No server that is reached here speaks first.
            Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
            _ => Err(self.broken(server, &"it sent more than an answer")),
        }
    }

    fn connect_request(&self, server: &Origin) -> http::Result<Request<Empty<Bytes>>> {
        let target = server.host_and_port();
        let mut request = Request::connect(&target)
            .header(HOST, &target)
            .header(USER_AGENT, PROGRAM);
        if let Some(password) = self.intercept.basic_auth() {
            request = request.header(PROXY_AUTHORIZATION, password);
        }
        request.body(Empty::new())
    }

    fn refusal(&self, response: &Response<Incoming>, server: &Origin) -> DialError {
        let status = response.status();
        // tinyproxy answers 401 to a wrong password.
        if matches!(
            status,
            StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED
        ) {
            let offers = response.headers().get_all(PROXY_AUTHENTICATE).into_iter();
            let offers: Vec<_> = offers.filter_map(|offer| login_scheme(offer.to_str().ok()?)).collect();
            return if offers.is_empty() || offers.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic")) {
                self.password(self.intercept.basic_auth().is_some())
            } else {
                DialError::ProxyLogin {
                    proxy: self.to_string(),
                    schemes: offers.join(" or "),
                }
            };
        }
        let (proxy, target, answer) = (self.to_string(), server.host_and_port(), status.to_string());
        if status.is_client_error() {
            DialError::ProxyRefused { proxy, target, answer }
        } else {
            DialError::ProxyFailed { proxy, target, answer }
        }
    }

    /// The error for a password that is missing or wrong.
    pub(super) fn password(&self, given: bool) -> DialError {
        let setting = match &*self.setting {
            // An argument is no place for a password.
            "--proxy" => "TUNNEL_PROXY or --proxy-file".to_owned(),
            "--proxy-file" => "the file of --proxy-file".to_owned(),
            variable => format!("{variable} or --proxy-file"),
        };
        DialError::ProxyPassword {
            proxy: self.to_string(),
            given,
            setting,
            url: format!("{}://USER:PASSWORD@{}", self.scheme(), self.origin.host_and_port()),
        }
    }

    /// The error for a proxy that does not behave like one.
    pub(super) fn broken(&self, server: &Origin, detail: &dyn fmt::Display) -> DialError {
        DialError::ProxyBroken {
            proxy: self.to_string(),
            target: server.host_and_port(),
            detail: detail.to_string(),
        }
    }
}

/// The first word of a challenge, if it is one that may be repeated.
fn login_scheme(challenge: &str) -> Option<String> {
    let word = challenge.split([' ', ',']).next()?;
    let fits = (1..=32).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    fits.then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::dial::BaseUrl;

    fn led(proxies: &Proxies, server: &str) -> Option<String> {
        let server: BaseUrl = server.parse().unwrap();
        proxies.to(server.origin()).map(|proxy| proxy.with_setting())
    }

    fn by_variables(variables: &[(&str, &str)]) -> Result<Proxies, BadProxy> {
        let get = |name: &str| variables.iter().find(|(key, _)| *key == name);
        Proxies::from_variables(|name| get(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn variables_lead_as_they_do_for_other_programs() {
        let proxies = by_variables(&[
            ("HTTPS_PROXY", "http://secure:3128"),
            ("https_proxy", ""),
            ("HTTP_PROXY", "http://ignored"),
            ("http_proxy", "plain"),
            ("ALL_PROXY", "socks5://other"),
        ])
        .unwrap();
        let secure = led(&proxies, "https://relay.example.com").unwrap();
        assert_eq!(secure, "the proxy http://secure:3128 (set by HTTPS_PROXY)");
        let plain = led(&proxies, "http://relay.example.com").unwrap();
        assert_eq!(plain, "the proxy http://plain:80 (set by http_proxy)");
        let proxies = by_variables(&[("all_proxy", "socks://other")]).unwrap();
        let all = led(&proxies, "https://relay.example.com").unwrap();
        assert_eq!(all, "the proxy socks5h://other:1080 (set by all_proxy)");
        assert_eq!(led(&by_variables(&[]).unwrap(), "https://relay.example.com"), None);
    }

    #[test]
    fn servers_in_no_proxy_are_reached_without_one() {
        let proxies = by_variables(&[
            ("ALL_PROXY", "http://proxy:3128"),
            ("NO_PROXY", "example.com, .corp  10.0.0.0/8,::1"),
        ])
        .unwrap();
        for (server, direct) in [
            ("https://example.com", true),
            ("https://relay.example.com", true),
            ("https://notexample.com", false),
            ("http://relay.corp:8080", true),
            ("http://10.1.2.3", true),
            ("http://11.1.2.3", false),
            ("http://[::1]:8080", true),
        ] {
            assert_eq!(led(&proxies, server).is_none(), direct, "{server}");
        }
        let none = by_variables(&[("ALL_PROXY", "http://proxy:3128"), ("no_proxy", "*")]).unwrap();
        assert_eq!(led(&none, "https://relay.example.com"), None);
    }

    #[test]
    fn what_is_no_proxy_is_refused_by_the_name_of_its_setting() {
        for text in [
            "ftp://proxy:3128",
            "socks4://proxy",
            "http://",
            "http://ann:hunter2@",
            "http://ann:hunter2@proxy:99999",
            "http://proxy:",
            "http://proxy/pac?ann:hunter2",
            "http://ann:hunter2@proxy:3128/path",
        ] {
            let error = by_variables(&[("HTTPS_PROXY", text)]).expect_err(text).to_string();
            assert!(error.starts_with("HTTPS_PROXY is no proxy"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn passwords_may_have_any_characters_and_are_never_shown() {
        for (written, meant) in [
            ("http://ann:hunter2@proxy:3128", "ann:hunter2"),
            ("http://ann:p@ss/w#rd?%@proxy:3128/", "ann:p@ss/w#rd?%"),
            ("http://ann:p%40ss@proxy:3128", "ann:p@ss"),
            (r"http://corp\ann:ü{}^@proxy:3128", r"corp\ann:ü{}^"),
        ] {
            let proxies = Proxies::all(written, "--proxy-file").unwrap();
            let relay: BaseUrl = "https://relay.example.com".parse().unwrap();
            let proxy = proxies.to(relay.origin()).unwrap();
            let header = proxy.intercept.basic_auth().unwrap().to_str().unwrap();
            let expected = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, meant);
            assert_eq!(header, format!("Basic {expected}"), "{written}");
            assert_eq!(proxy.to_string(), "the proxy http://proxy:3128");
            let shown = format!("{proxies:?} {}", proxy.password(true));
            assert!(!shown.contains(meant) && !shown.contains("ann"), "{shown}");
        }
    }
}
