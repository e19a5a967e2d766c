//! The network's edge: the port for plain HTTP, what proxies in front are believed, and the configurations that the documents
//! give for them.

use std::net::SocketAddr;

use http::header::{HeaderMap, HeaderName};
use http::{Request, Response};
use ipnet::IpNet;
use tokio::net::TcpListener;
use tunnel::relay::Sockets;
use tunnel::relay::config::Config;
use tunnel::relay::proxies::Proxies;
use tunnel::relay::tls::Tls;
use tunnel::transport::{empty, full};

use crate::harness::bridge::Transport;
use crate::harness::caller::Raw;
use crate::harness::tls::Authority;
use crate::harness::{Caller, Path, TestRelay, Upstream, on_each_transport, text};

/// A relay with TLS, and its port for plain HTTP.
async fn with_redirects(change: impl FnOnce(&mut Config)) -> (TestRelay, SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = Authority::named("Test CA").write(folder.path(), &["localhost"], |_| {});
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = http.local_addr().unwrap();
    let sockets = Sockets {
        main: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        http: Some(http),
        kept: false,
    };
    let relay = TestRelay::on(sockets, |config| {
        config.tls = Some(Tls::from_files(certificate, key).unwrap());
        change(config);
    });
    (relay, address)
}

/// Status and `Location` of the answer to this request.
async fn redirected(address: SocketAddr, head: &str) -> (u16, Option<String>) {
    let mut raw = Raw::connect(address).await;
    raw.send(format!("{head}\r\nConnection: close\r\n\r\n")).await;
    let answer = raw.until("\r\n\r\n").await;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let location = answer.lines().find_map(|line| line.strip_prefix("location: "));
    (status, location.map(str::to_owned))
}

#[tokio::test]
async fn plain_http_is_sent_on_to_the_same_path_by_https() {
    let (relay, http) = with_redirects(|_| {}).await;
    let port = relay.address.port();
    for (head, expected) in [
        (
            "GET / HTTP/1.1\r\nHost: relay.example.com",
            format!("https://relay.example.com:{port}/"),
        ),
        (
            "POST /api/chat?a=b&c=%20d HTTP/1.1\r\nHost: relay:8080\r\nContent-Length: 0",
            format!("https://relay:{port}/api/chat?a=b&c=%20d"),
        ),
        ("GET /x HTTP/1.1\r\nHost: [::1]:80", format!("https://[::1]:{port}/x")),
        // It stays at this host, whatever the path looks like.
        (
            "GET //evil.example/x HTTP/1.1\r\nHost: relay",
            format!("https://relay:{port}//evil.example/x"),
        ),
        (
            "GET http://relay/x HTTP/1.1\r\nHost: relay",
            format!("https://relay:{port}/x"),
        ),
        (
            "OPTIONS /x HTTP/1.1\r\nHost: relay\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: GET",
            format!("https://relay:{port}/x"),
        ),
    ] {
        assert_eq!(redirected(http, head).await, (308, Some(expected)), "{head}");
    }
}

#[tokio::test]
async fn nobody_is_sent_to_a_host_that_is_none() {
    let (_relay, http) = with_redirects(|_| {}).await;
    for host in [
        "a@evil.example",
        "evil.example/x",
        "a b",
        "relay:80x",
        "relay:99999",
        "",
        "re%6cay",
        "rel\\ay",
    ] {
        let (status, location) = redirected(http, &format!("GET /x HTTP/1.1\r\nHost: {host}")).await;
        assert_eq!((status, location), (400, None), "{host}");
    }
    for head in ["GET /x HTTP/1.0", "OPTIONS * HTTP/1.1\r\nHost: relay"] {
        assert_eq!(redirected(http, head).await, (400, None), "{head}");
    }
}

#[tokio::test]
async fn the_public_url_is_where_everybody_is_sent() {
    let (_relay, http) = with_redirects(|config| {
        config.public_url = Some("https://relay.example.com".parse().unwrap());
    })
    .await;
    for host in ["other.example", "a@b"] {
        let expected = Some("https://relay.example.com/api/tags?x".to_owned());
        let head = format!("GET /api/tags?x HTTP/1.1\r\nHost: {host}");
        assert_eq!(redirected(http, &head).await, (308, expected));
    }
}

#[tokio::test]
async fn the_port_for_plain_http_serves_nothing_else_and_closes_first() {
    let (relay, http) = with_redirects(|_| {}).await;
    for path in [
        "/healthz",
        "/api/bridge",
        "/api/tags",
        "/ws/tunnel",
        "/.well-known/acme-challenge/",
    ] {
        let response = Caller::connect(http, &relay.token("ann")).await.get(path).await;
        assert_eq!(response.status(), 308, "{path}");
        assert_eq!(response.headers()["connection"], "close");
        assert!(!response.headers().contains_key("strict-transport-security"));
        assert_eq!(text(response).await, "");
    }
    relay.shutdown.drain();
    crate::harness::until("the port to be closed", || std::net::TcpStream::connect(http).is_err()).await;
}

/// What the upstream is told of a caller who sends these fields.
async fn told(path: &Path, fields: &[(&str, &str)]) -> HeaderMap {
    let mut caller = path.caller().await;
    let mut request = Request::get("/api/tags").body(empty()).unwrap();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let (headers, response) = tokio::join!(
        async {
            let call = path.upstream.next().await;
            let headers = call.request.headers().clone();
            call.finish(Response::new(full("")));
            headers
        },
        caller.send(request),
    );
    assert_eq!(response.status(), 200);
    headers
}

const CLAIMS: &[(&str, &str)] = &[
    ("x-forwarded-for", "203.0.113.7, 10.0.0.2"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "relay.example.com"),
    ("x-forwarded-prefix", "/x"),
    ("forwarded", "for=192.0.2.1"),
    ("x-real-ip", "192.0.2.1"),
];

async fn trusting(networks: &[&str], transport: Transport) -> Path {
    let networks: Vec<IpNet> = networks.iter().map(|network| network.parse().unwrap()).collect();
    let relay = TestRelay::with(|config| config.proxies = Proxies::new(networks)).await;
    Path::with(relay, Upstream::scripted().await, transport).await
}

on_each_transport! {
    async fn a_trusted_proxy_is_believed_and_what_goes_on_is_the_relays_own_word(transport: Transport) {
        let path = trusting(&["127.0.0.0/8", "10.0.0.0/8"], transport).await;
        let headers = told(&path, CLAIMS).await;
        for (name, expected) in [
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "relay.example.com"),
        ] {
            let values: Vec<_> = headers.get_all(name).iter().collect();
            assert_eq!(values, [expected]);
        }
        for name in ["x-forwarded-prefix", "forwarded", "x-real-ip"] {
            assert!(!headers.contains_key(name), "{name}");
        }
        // Another proxy on the way, which is not trusted, is the one that calls.
        let headers = told(&path, &[("x-forwarded-for", "1.1.1.1, 203.0.113.9, 10.0.0.2")]).await;
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], path.relay.address.to_string().as_str());
        let headers = told(&path, &[("forwarded", "for=\"[2001:db8::7]:1\";proto=https;host=a.example")]).await;
        assert_eq!(headers["x-forwarded-for"], "2001:db8::7");
        assert_eq!((&headers["x-forwarded-proto"], &headers["x-forwarded-host"]), (&"https".parse().unwrap(), &"a.example".parse().unwrap()));
        assert_eq!(told(&path, &[("x-real-ip", "203.0.113.8")]).await["x-forwarded-for"], "203.0.113.8");
    }

    async fn nobody_else_is_believed(transport: Transport) {
        for networks in [[].as_slice(), &["10.0.0.0/8", "::1/128"]] {
            let path = trusting(networks, transport).await;
            let headers = told(&path, CLAIMS).await;
            assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
            assert_eq!(headers["x-forwarded-proto"], "http");
            assert_eq!(headers["x-forwarded-host"], path.relay.address.to_string().as_str());
            for name in ["x-forwarded-prefix", "forwarded", "x-real-ip"] {
                assert!(!headers.contains_key(name), "{name}");
            }
        }
    }
}

#[cfg(target_os = "linux")]
mod documented {
    use std::time::Duration;

    use super::*;
    use crate::harness::deployed::{Deployed, Kind, NAME};
    use crate::harness::process::{Process, command};
    use crate::harness::{TestBridge, chat_in_lock_step, chat_in_lock_step_after_the_head, until};
    use tokio::net::TcpSocket;

    struct Behind {
        path: Path,
        front: Deployed,
    }

    impl Behind {
        async fn new(kind: Kind, transport: Transport) -> Self {
            let relay = TestRelay::with(|config| {
                config.proxies = Proxies::new(vec!["127.0.0.1/32".parse().unwrap()]);
            })
            .await;
            let front = Deployed::before(relay.address, kind).await;
            let upstream = Upstream::scripted().await;
            let bridge = TestBridge::to(&relay, &upstream)
                .transport(transport)
                .relay_url(front.url())
                .ca_file(front.authority.ca_file())
                .allow("* /*")
                .start()
                .await;
            let path = Path::over(relay, upstream, bridge).await;
            Self { path, front }
        }

        /// One who comes from elsewhere than the proxy.
        async fn caller(&self, protocols: &[&str]) -> Caller {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            let stream = socket.connect(self.front.tls).await.unwrap();
            let tls = self.front.authority.connector(protocols);
            Caller::over(stream, NAME, &tls, &self.path.token).await.unwrap()
        }
    }

    async fn carries_everything(kind: Kind, transport: Transport) {
        let behind = Behind::new(kind, transport).await;
        for protocols in [["http/1.1"], ["h2"]] {
            let mut caller = behind.caller(&protocols).await;
            if (kind, protocols) == (Kind::Nginx, ["h2"]) {
                chat_in_lock_step_after_the_head(&behind.path.upstream, &mut caller).await;
            } else {
                chat_in_lock_step(&behind.path.upstream, &mut caller).await;
            }
            let upload = vec![b'x'; 5 << 20];
            let mut request = Request::post("/api/blobs/x").body(full(upload)).unwrap();
            request
                .headers_mut()
                .insert("x-forwarded-for", "203.0.113.7".parse().unwrap());
            let (received, response) = tokio::join!(
                async {
                    let mut call = behind.path.upstream.next().await;
                    let headers = call.request.headers().clone();
                    let mut received = 0;
                    while let Some(piece) = call.read().await {
                        received += piece.len();
                    }
                    call.finish(Response::new(full("")));
                    (received, headers)
                },
                caller.send(request),
            );
            let (received, headers) = received;
            assert_eq!((received, response.status().as_u16()), (5 << 20, 200));
            assert_eq!(response.headers()["strict-transport-security"], "max-age=31536000");
            let host = format!("{NAME}:{}", behind.front.tls.port());
            for (name, expected) in [
                ("x-forwarded-for", "127.0.0.2"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", &host),
            ] {
                assert_eq!(headers[name], expected, "{name}");
            }
        }
        let mut plain = Caller::connect(behind.front.plain, "").await;
        assert_eq!(plain.get("/api/tags?x=1").await.status(), 308);
        behind.path.bridge.stop().await;
    }

    /// Takes longer than a ping.
    async fn keeps_an_idle_link(kind: Kind) {
        let behind = Behind::new(kind, Transport::Ws).await;
        let session = || {
            behind
                .path
                .relay
                .relay
                .registry
                .pick("ann", None)
                .map(|session| session.connection_id)
        };
        let first = session();
        // Nothing but time tells that a link is not cut.
        tokio::time::sleep(Duration::from_secs(18)).await;
        assert!(first.is_some() && session() == first);
        chat_in_lock_step(&behind.path.upstream, &mut behind.caller(&[]).await).await;
        behind.path.bridge.stop().await;
    }

    /// Whether the relay is there or not.
    async fn logs_no_token(kind: Kind) {
        let behind = Behind::new(kind, Transport::Ws).await;
        let mut caller = behind.caller(&[]).await;
        let spelled = [
            "token=s3cret",
            "a=b&token=s3cret",
            "token=s3cret&a=b",
            "Token=s3cret",
            "%74oken=s3cret",
        ];
        for query in spelled {
            text(caller.get(&format!("/ws/tunnel?{query}")).await).await;
        }
        behind.path.bridge.shutdown.end();
        behind.path.relay.kill().await;
        for query in spelled {
            let response = caller.get(&format!("/ws/tunnel?{query}")).await;
            assert!(response.status().is_server_error(), "{}", response.status());
            text(response).await;
        }
        until("the log", || {
            behind.front.logs().matches("/ws/tunnel").count() >= 2 * spelled.len()
        })
        .await;
        let logs = behind.front.logs();
        assert!(!logs.contains("s3cret") && !logs.contains(&behind.path.token), "{logs}");
    }

    on_each_transport! {
        async fn nginx_carries_chats_in_lock_step_uploads_and_who_calls(transport: Transport) {
            carries_everything(Kind::Nginx, transport).await;
        }

        async fn haproxy_carries_chats_in_lock_step_uploads_and_who_calls(transport: Transport) {
            carries_everything(Kind::Haproxy, transport).await;
        }
    }

    #[tokio::test]
    async fn an_idle_bridge_stays_connected_through_nginx_and_haproxy() {
        tokio::join!(keeps_an_idle_link(Kind::Nginx), keeps_an_idle_link(Kind::Haproxy));
    }

    #[tokio::test]
    async fn no_token_in_a_query_stands_in_the_logs_of_nginx_and_haproxy() {
        logs_no_token(Kind::Nginx).await;
        logs_no_token(Kind::Haproxy).await;
    }

    #[tokio::test]
    async fn the_log_names_the_caller_behind_a_trusted_proxy() {
        let home = tempfile::tempdir().unwrap();
        let options = [
            "--trusted-proxy",
            "127.0.0.1",
            "--public-url",
            "https://relay.example.com",
        ];
        let mut relay = Process::start(command(
            home.path(),
            &[["relay", "--listen", "127.0.0.1:0"].as_slice(), &options].concat(),
        ));
        let line = relay.error_line("listens on http://").await;
        let address = line.rsplit("http://").next().unwrap().trim().parse().unwrap();
        relay
            .error_line("tunnel bridge --relay https://relay.example.com")
            .await;
        let mut request = Request::get("/api/tags").body(empty()).unwrap();
        request
            .headers_mut()
            .insert("x-forwarded-for", "203.0.113.7".parse().unwrap());
        assert_eq!(
            Caller::connect(address, "wrong").await.send(request).await.status(),
            401
        );
        let line = relay.error_line("refused").await;
        assert!(line.contains("peer=203.0.113.7"), "{line}");
    }
}
