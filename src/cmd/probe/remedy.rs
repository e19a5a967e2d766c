//! What to change where a check does not pass: for the proxy that was seen, or for the usual ones.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::header::{SERVER, VIA};
use http::{HeaderMap, HeaderName, HeaderValue};

/// What stands before the relay, as far as its answers tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    /// nginx.
    Nginx,
    /// haproxy, which seldom tells.
    Haproxy,
    /// Caddy.
    Caddy,
    /// Cloudflare.
    Cloudflare,
}

impl Front {
    /// Looks for a name in the answer of whatever stands before the relay, which itself tells none.
    fn of(headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key("cf-ray") {
            return Some(Self::Cloudflare);
        }
        let named = headers.get_all(SERVER).into_iter().chain(headers.get_all(VIA));
        let named: String = named
            .filter_map(|value| value.to_str().ok())
            .map(str::to_ascii_lowercase)
            .collect();
        [
            ("cloudflare", Self::Cloudflare),
            ("nginx", Self::Nginx),
            ("openresty", Self::Nginx),
            ("caddy", Self::Caddy),
            ("haproxy", Self::Haproxy),
        ]
        .into_iter()
        .find(|(name, _)| named.contains(name))
        .map(|(_, front)| front)
    }
}

/// What haproxy says to a request that is none.
const HAPROXY_WORDS: &str = "Your browser sent an invalid request.";

/// What was seen of the front so far; shared by all checks.
#[derive(Debug, Default)]
pub(super) struct Fronts(Mutex<Option<Front>>);

impl Fronts {
    /// Learns from an answer.
    pub(super) fn learn(&self, headers: &HeaderMap) {
        if let Some(front) = Front::of(headers) {
            self.set(front);
        }
    }

    /// Learns from the raw answer to a request that is none, to which a front answers by itself.
    pub(super) fn learn_raw(&self, answer: &str) {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
        let named = head.lines().filter_map(|line| line.split_once(':'));
        let named = named.filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        });
        self.learn(&named.collect());
        if body.contains(HAPROXY_WORDS) {
            self.set(Front::Haproxy);
        }
    }

    /// Its name, if it is known.
    pub(super) fn name(&self) -> Option<&'static str> {
        self.lock().map(front_name)
    }

    fn set(&self, front: Front) {
        *self.lock() = Some(front);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Front>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there to be done about a cause.
    pub(super) fn remedy(&self, cause: Cause) -> String {
        cause.remedy(*self.lock())
    }
}

/// Why a check does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The headers of an upgrade do not reach the relay.
    NoUpgrade,
    /// Somebody refuses upgrades.
    UpgradeRefused,
    /// The answer to an upgrade does not come.
    UpgradeSilent,
    /// Answers are held until they are whole.
    ResponseBuffered,
    /// Pieces come in bunches.
    Bunched,
    /// Uploads are held until they are whole.
    RequestBuffered,
    /// Compression holds streams back.
    Gzip,
    /// Bodies may not be so large.
    BodyLimit,
    /// What is silent is cut.
    ReadTimeout,
    /// An idle link is cut.
    IdleTimeout,
    /// The credential does not reach the relay.
    NoAuthorization,
    /// A path does not reach the relay.
    NotRouted,
    /// The path arrives changed.
    PathChanged,
    /// Headers arrive changed.
    HeadersChanged,
    /// A rule refuses what passes elsewhere.
    Refused,
    /// Requests are refused when there are many.
    TooMany,
    /// That a caller left is not told.
    CancelLate,
    /// The proxy does not reach the relay.
    BadGateway,
    /// Somebody adds CORS headers of their own.
    CorsDoubled,
}

impl Cause {
    /// One setting for a front that is known, those of all for one that is not.
    fn remedy(self, front: Option<Front>) -> String {
        let settings = self.settings();
        let known = front.and_then(|front| settings.iter().find(|(of, _)| *of == front));
        let of = |wanted: &dyn Fn(Front) -> bool| {
            let some = settings.iter().filter(|(front, _)| wanted(*front));
            let some: Vec<_> = some
                .map(|(front, setting)| format!("{}: {setting}", front_name(*front)))
                .collect();
            some.join(" · ")
        };
        match known {
            // Its own settings, or those of what it hides.
            Some((Front::Cloudflare, _)) => format!(
                "{}; or in the proxy behind it: {}",
                of(&|front| front == Front::Cloudflare),
                of(&|front| front != Front::Cloudflare)
            ),
            Some((known, _)) => of(&|front| front == *known),
            None => format!("in the proxy before the relay: {}", of(&|_| true)),
        }
    }

    /// Longer than other functions: it is a table.
    fn settings(self) -> &'static [(Front, &'static str)] {
        use Front::{Caddy, Cloudflare, Haproxy, Nginx};
        match self {
            Self::NoUpgrade => &[
                (
                    Nginx,
                    "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\";",
                ),
                (Haproxy, "remove rules that delete the headers Upgrade or Connection"),
                (
                    Caddy,
                    "reverse_proxy passes upgrades; remove header_up rules for Upgrade or Connection",
                ),
                (Cloudflare, "switch WebSockets on under Network"),
            ],
            Self::UpgradeRefused => &[
                (
                    Nginx,
                    "remove the rule that refuses requests with an Upgrade header (return, deny, a WAF)",
                ),
                (
                    Haproxy,
                    "remove the http-request deny rule that matches the Upgrade header",
                ),
                (Caddy, "remove the matcher that refuses /ws/tunnel"),
                (
                    Cloudflare,
                    "switch WebSockets on under Network, and look at Security Events for a rule that blocks",
                ),
            ],
            Self::UpgradeSilent => &[
                (
                    Nginx,
                    "proxy_http_version 1.1; and the Upgrade and Connection headers set as for any WebSocket",
                ),
                (Haproxy, "timeout tunnel 1h, and no option http-buffer-request"),
                (Caddy, "reverse_proxy without transport timeouts"),
                (Cloudflare, "switch WebSockets on under Network"),
            ],
            Self::ResponseBuffered => &[
                (
                    Nginx,
                    "proxy_buffering off; and no proxy_ignore_headers X-Accel-Buffering",
                ),
                (
                    Haproxy,
                    "remove http-response wait-for-body, and filters that collect answers",
                ),
                (Caddy, "remove response_buffers from reverse_proxy"),
                (Cloudflare, "a configuration rule with response body buffering: none"),
            ],
            Self::Bunched => &[
                (Nginx, "tcp_nodelay on; proxy_buffering off;"),
                (Haproxy, "option http-no-delay"),
                (Caddy, "remove flush_interval from reverse_proxy"),
                (Cloudflare, "a configuration rule with response body buffering: none"),
            ],
            Self::RequestBuffered => &[
                (Nginx, "proxy_request_buffering off; proxy_http_version 1.1;"),
                (
                    Haproxy,
                    "remove option http-buffer-request and http-request wait-for-body",
                ),
                (Caddy, "remove request_buffers from reverse_proxy"),
                (Cloudflare, "a configuration rule with request body buffering: none"),
            ],
            Self::Gzip => &[
                (
                    Nginx,
                    "gzip off; for the relay, or take application/x-ndjson and text/event-stream out of gzip_types",
                ),
                (
                    Haproxy,
                    "remove compression algo, or take these types out of compression type",
                ),
                (Caddy, "remove encode, or match it to other types"),
                (
                    Cloudflare,
                    "a compression rule that switches it off for the relay's host",
                ),
            ],
            Self::BodyLimit => &[
                (Nginx, "client_max_body_size 0;"),
                (
                    Haproxy,
                    "remove the rule that denies by req.body_size or Content-Length",
                ),
                (Caddy, "raise max_size of request_body"),
                (
                    Cloudflare,
                    "uploads end at 100 MB on most plans; go past it with a DNS-only record",
                ),
            ],
            Self::ReadTimeout => &[
                (Nginx, "proxy_read_timeout 1h; proxy_send_timeout 1h;"),
                (Haproxy, "timeout server 1h, timeout client 1h"),
                (
                    Caddy,
                    "remove response_header_timeout and read_timeout from reverse_proxy's transport",
                ),
                (
                    Cloudflare,
                    "its limit is fixed on most plans; go past it with a DNS-only record",
                ),
            ],
            Self::IdleTimeout => &[
                (Nginx, "proxy_read_timeout 1h; proxy_send_timeout 1h; for /ws/tunnel"),
                (Haproxy, "timeout tunnel 1h"),
                (Caddy, "remove stream_timeout from reverse_proxy"),
                (Cloudflare, "nothing to set; bridges ping more often than its limit"),
            ],
            Self::NoAuthorization => &[
                (
                    Nginx,
                    "proxy_set_header Authorization $http_authorization; and no auth_basic for the relay",
                ),
                (Haproxy, "remove http-request del-header Authorization"),
                (Caddy, "remove header_up -Authorization and basic_auth"),
                (
                    Cloudflare,
                    "remove the transform rule or Access policy that takes Authorization away",
                ),
            ],
            Self::NotRouted => &[
                (
                    Nginx,
                    "location / { proxy_pass http://RELAY; } and no other location for the relay's paths",
                ),
                (Haproxy, "send every path of the relay's host to its backend"),
                (Caddy, "reverse_proxy without a path matcher"),
                (Cloudflare, "no rule that answers or redirects paths of the relay"),
            ],
            Self::PathChanged => &[
                (
                    Nginx,
                    "proxy_pass http://RELAY; with nothing after the host, not even a slash, and no rewrite",
                ),
                (Haproxy, "remove http-request set-path, replace-path and normalize-uri"),
                (Caddy, "remove rewrite and uri"),
                (Cloudflare, "switch off URL normalization to origin"),
            ],
            Self::HeadersChanged => &[
                (Nginx, "remove proxy_hide_header and proxy_set_header rules for it"),
                (Haproxy, "remove del-header, set-header and replace-header rules for it"),
                (Caddy, "remove header_up and header_down rules for it"),
                (Cloudflare, "remove transform rules for it"),
            ],
            Self::Refused => &[
                (
                    Nginx,
                    "look into error.log for the request; remove the deny, return or WAF rule that refuses it",
                ),
                (
                    Haproxy,
                    "look into the log for the request (PR-- in its line); remove the http-request deny rule",
                ),
                (
                    Caddy,
                    "look into its log for the request; remove the matcher that refuses it",
                ),
                (Cloudflare, "look at Security Events for the rule that blocks it"),
            ],
            Self::TooMany => &[
                (Nginx, "raise limit_req, limit_conn and worker_connections"),
                (Haproxy, "raise maxconn and the limits of stick tables"),
                (Caddy, "remove rate limits for the relay"),
                (Cloudflare, "remove rate limiting rules for the relay"),
            ],
            Self::CancelLate => &[
                (
                    Nginx,
                    "proxy_ignore_client_abort off; (the default), and proxy_buffering off;",
                ),
                (Haproxy, "option abortonclose"),
                (
                    Caddy,
                    "remove flush_interval -1 from reverse_proxy: with it, requests go on when their caller left",
                ),
                (
                    Cloudflare,
                    "nothing to set; the relay ends it when the next octets cannot be sent",
                ),
            ],
            Self::BadGateway => &[
                (Nginx, "check the address in proxy_pass, and that the relay runs there"),
                (
                    Haproxy,
                    "check the server line of the backend, and that the relay runs there",
                ),
                (
                    Caddy,
                    "check the address in reverse_proxy, and that the relay runs there",
                ),
                (
                    Cloudflare,
                    "check the origin's address and port, and that the relay runs there",
                ),
            ],
            Self::CorsDoubled => &[
                (Nginx, "remove add_header Access-Control-…; the relay sends them"),
                (
                    Haproxy,
                    "remove http-response set-header Access-Control-…; the relay sends them",
                ),
                (Caddy, "remove header Access-Control-…; the relay sends them"),
                (
                    Cloudflare,
                    "remove the transform rule that sets Access-Control-…; the relay sends them",
                ),
            ],
        }
    }
}

fn front_name(front: Front) -> &'static str {
    match front {
        Front::Nginx => "nginx",
        Front::Haproxy => "haproxy",
        Front::Caddy => "Caddy",
        Front::Cloudflare => "Cloudflare",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: http::HeaderName, value: &'static str) -> Fronts {
        let fronts = Fronts::default();
        fronts.learn(&HeaderMap::from_iter([(name, HeaderValue::from_static(value))]));
        fronts
    }

    #[test]
    fn a_front_that_tells_its_name_gets_its_own_remedy() {
        let nginx = seen(SERVER, "nginx/1.22.1").remedy(Cause::BodyLimit);
        assert_eq!(nginx, "nginx: client_max_body_size 0;");
        let caddy = seen(VIA, "1.1 Caddy").remedy(Cause::ResponseBuffered);
        assert_eq!(caddy, "Caddy: remove response_buffers from reverse_proxy");
        let cloudflare = seen(http::HeaderName::from_static("cf-ray"), "8").remedy(Cause::NoUpgrade);
        assert!(cloudflare.starts_with("Cloudflare: "), "{cloudflare}");
    }

    #[test]
    fn haproxy_is_known_by_what_it_says_to_nonsense() {
        let fronts = Fronts::default();
        fronts.learn_raw("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(fronts.name(), None, "the relay itself");
        fronts.learn_raw(
            "HTTP/1.1 400 Bad request\r\nContent-Type: text/html\r\n\r\n<html><body><h1>400 Bad request</h1>\n\
             Your browser sent an invalid request.\n</body></html>\n",
        );
        assert_eq!(fronts.name(), Some("haproxy"));
        fronts.learn_raw("HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n");
        assert_eq!(fronts.name(), Some("nginx"));
    }

    #[test]
    fn a_front_that_tells_nothing_gets_all_of_them() {
        let all = Fronts::default().remedy(Cause::ReadTimeout);
        for name in [
            "nginx: proxy_read_timeout",
            "haproxy: timeout server",
            "Caddy: ",
            "Cloudflare: ",
        ] {
            assert!(all.contains(name), "{all}");
        }
    }
}
