//! What is seen of a relay's work: metrics that say what callers did, a line for each exchange, and no secret in either.

use std::time::Duration;

use http::{Request, Response};
use tunnel::relay::auth::tokens::Tokens;
use tunnel::relay::keeper::Keeper;
use tunnel::relay::proxies::Proxies;
use tunnel::relay::store::StoreConfig;
use tunnel::relay::tls::Tls;
use tunnel::transport::{Body, empty, full};

use crate::harness::bridge::Transport;
use crate::harness::caller::Raw;
#[cfg(target_os = "linux")]
use crate::harness::process::{Process, command};
use crate::harness::relay::SECRET;
use crate::harness::tls::Authority;
use crate::harness::watch::Watched;
use crate::harness::{Caller, PATIENCE, Path, Upstream, chunk, get, on_each_transport, text, until};

async fn path(transport: Transport) -> (Path, Watched) {
    let (relay, watched) = Watched::start(|_| {}).await;
    let path = Path::with(relay, Upstream::scripted().await, transport).await;
    (path, watched)
}

fn answer(status: u16, body: &'static str) -> Response<Body> {
    Response::builder().status(status).body(full(body)).unwrap()
}

on_each_transport! {
    async fn counts_and_lines_say_what_callers_did(transport: Transport) {
        let (path, watched) = path(transport).await;
        let mut caller = path.caller().await;
        let mut ids = Vec::new();
        for (asked, status) in [("/api/chat", 200), ("/api/chat", 200), ("/v1/chat/completions", 404), ("/api/tags", 500)] {
            let ((), response) = tokio::join!(
                async {
                    let mut call = path.upstream.next().await;
                    assert_eq!(call.read().await.unwrap(), "{asked}");
                    call.finish(answer(status, "answer"));
                },
                caller.post(asked, "{asked}"),
            );
            ids.push(response.headers()["x-request-id"].to_str().unwrap().to_owned());
            assert_eq!(text(response).await, "answer");
        }
        let lines = watched.log.fields(4).await;
        for (line, id) in lines.iter().zip(&ids) {
            assert_eq!(line["id"], id.as_str());
            assert_eq!(
                (&line["user"], &line["bridge"], &line["transport"]),
                (&"ann".into(), &"box".into(), &transport.name().into())
            );
            assert_eq!((&line["peer"], &line["method"]), (&"127.0.0.1".into(), &"POST".into()));
            assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&7.into(), &6.into()));
            assert_eq!(line["outcome"], "done");
            assert!(line["first_byte_ms"].as_f64() <= line["total_ms"].as_f64());
            assert!(line.get("code").is_none());
        }
        assert_eq!((&lines[2]["path"], &lines[2]["status"]), (&"/v1/chat/completions".into(), &404.into()));
        let page = watched.page().await;
        for (route, outcome, count) in [
            ("ollama_chat", "ok", 2.0),
            ("openai_chat", "client_error", 1.0),
            ("models", "upstream_error", 1.0),
        ] {
            let labels = [("route", route), ("outcome", outcome), ("transport", transport.name())];
            assert_eq!(page.sum("tunnel_exchanges_total", &labels), count, "{route}");
        }
        assert_eq!(page.sum("tunnel_exchanges_total", &[]), 4.0);
        assert_eq!(page.sum("tunnel_exchange_duration_seconds_count", &[]), 4.0);
        assert_eq!(page.sum("tunnel_exchange_first_byte_seconds_count", &[("transport", transport.name())]), 4.0);
        assert_eq!(page.sum("tunnel_exchange_bytes_total", &[("direction", "in")]), 28.0);
        assert_eq!(page.sum("tunnel_exchange_bytes_total", &[("direction", "out")]), 24.0);
        assert_eq!(page.sum("tunnel_exchanges_in_flight", &[]), 0.0);
        assert_eq!(page.sum("tunnel_bridges_connected", &[("transport", transport.name())]), 1.0);
        assert_eq!(page.sum("tunnel_bridges_connected", &[]), 1.0);
        assert_eq!(page.sum("tunnel_bridge_connects_total", &[("kind", "first")]), 1.0);
        assert!(page.sum("tunnel_connections", &[]) >= 1.0);
    }

    async fn a_caller_that_leaves_in_mid_stream_is_told_when_it_left(transport: Transport) {
        let (path, watched) = path(transport).await;
        let mut caller = path.caller().await;
        let (upstream, mut response) = path.begun(&mut caller).await;
        upstream.send("one").await;
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "one");
        assert_eq!(watched.page().await.sum("tunnel_exchanges_in_flight", &[]), 1.0);
        assert_eq!(watched.log.text(), "");
        drop(response);
        drop(caller);
        upstream.abandoned().await;
        let line = watched.log.last(1).await;
        assert_eq!((&line["outcome"], &line["status"], &line["bytes_out"]), (&"cancelled".into(), &200.into(), &3.into()));
        let page = watched.page().await;
        assert_eq!(page.sum("tunnel_exchanges_total", &[("outcome", "cancelled")]), 1.0);
        assert_eq!(page.sum("tunnel_exchanges_total", &[]), 1.0);
        assert_eq!(page.sum("tunnel_cancel_told_seconds_count", &[("transport", transport.name())]), 1.0);
    }

    async fn a_caller_that_leaves_before_the_head_is_seen_too(transport: Transport) {
        let (path, watched) = path(transport).await;
        let mut raw = Raw::connect(path.relay.address).await;
        let head = format!("GET /api/tags HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {}\r\n\r\n", path.token);
        raw.send(head).await;
        let mut call = path.upstream.next().await;
        drop(raw);
        call.abandoned().await;
        let line = watched.log.last(1).await;
        assert_eq!(line["outcome"], "cancelled");
        assert!(line.get("status").is_none() && line.get("first_byte_ms").is_none());
    }

    async fn an_upstream_that_breaks_off_is_seen(transport: Transport) {
        let (path, watched) = path(transport).await;
        let mut caller = path.caller().await;
        let (upstream, mut response) = path.begun(&mut caller).await;
        upstream.send("one").await;
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "one");
        upstream.break_off().await;
        assert!(chunk(&mut response).await.unwrap().is_err());
        assert_eq!(watched.log.last(1).await["outcome"], "broken");
        let page = watched.page().await;
        assert_eq!(page.sum("tunnel_exchanges_total", &[("outcome", "broken")]), 1.0);
        assert_eq!(page.sum("tunnel_exchanges_total", &[]), 1.0);
    }

    async fn answers_without_a_body_and_streams_of_known_length_are_whole(transport: Transport) {
        let (path, watched) = path(transport).await;
        let mut caller = path.caller().await;
        for (number, (method, response)) in [
            ("HEAD", Response::builder().header("content-length", "12").body(empty()).unwrap()),
            ("GET", Response::builder().status(204).body(empty()).unwrap()),
            ("GET", Response::builder().status(304).body(empty()).unwrap()),
            ("GET", Response::new(empty())),
            ("GET", Response::new(full(vec![b'x'; 300_000]))),
        ].into_iter().enumerate() {
            let ((), response) = tokio::join!(
                async { path.upstream.next().await.finish(response) },
                caller.send(Request::builder().method(method).uri("/x").body(empty()).unwrap()),
            );
            text(response).await;
            assert_eq!(watched.log.last(number + 1).await["outcome"], "done", "{number}");
        }
        let (upstream, response) = path.begun(&mut caller).await;
        upstream.send("streamed").await;
        drop(upstream);
        assert_eq!(text(response).await, "streamed");
        assert_eq!(watched.log.last(6).await["outcome"], "done");
        assert_eq!(watched.page().await.sum("tunnel_exchanges_total", &[("outcome", "ok")]), 6.0);
    }

    async fn what_names_an_exchange_and_a_trace_passes(transport: Transport) {
        let (path, _watched) = path(transport).await;
        let mut caller = path.caller().await;
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut request = get("/api/tags");
        for (name, value) in [("traceparent", parent), ("tracestate", "a=b"), ("x-request-id", "mine")] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (id, response) = tokio::join!(
            async {
                let call = path.upstream.next().await;
                let headers = call.request.headers();
                assert_eq!((&headers["traceparent"], &headers["tracestate"]), (&parent.parse().unwrap(), &"a=b".parse().unwrap()));
                let id = headers["x-request-id"].clone();
                call.finish(Response::builder().header("traceparent", parent).body(full("x")).unwrap());
                id
            },
            caller.send(request),
        );
        assert_eq!(response.headers()["traceparent"], parent);
        // What the desktop's log has is what the caller is told.
        assert_eq!(response.headers()["x-request-id"], id);
        assert_ne!(id, "mine");
    }
}

#[tokio::test]
async fn a_trusted_proxy_names_requests() {
    let (relay, watched) = Watched::start(|config| {
        config.proxies = Proxies::new(vec!["127.0.0.1".parse::<std::net::IpAddr>().unwrap().into()]);
    })
    .await;
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    for (given, taken) in [
        ("4bf9-2f_3.5", true),
        ("with space", false),
        ("a\"b", false),
        (&"x".repeat(65), false),
    ] {
        let mut request = get("/api/tags");
        request.headers_mut().insert("x-request-id", given.parse().unwrap());
        request
            .headers_mut()
            .insert("x-forwarded-for", "203.0.113.7".parse().unwrap());
        let response = caller.send(request).await;
        assert_eq!(response.headers()["x-request-id"] == given, taken, "{given}");
    }
    let lines = watched.log.fields(4).await;
    assert_eq!(
        (&lines[0]["id"], &lines[0]["peer"]),
        (&"4bf9-2f_3.5".into(), &"203.0.113.7".into())
    );
}

#[tokio::test]
async fn refusals_are_counted_by_code_and_by_reason() {
    let (relay, watched) = Watched::start(|_| {}).await;
    let mut stranger = Caller::connect(relay.address, "wrong").await;
    assert_eq!(stranger.get("/api/tags").await.status(), 401);
    let mut nobody = Caller::connect(relay.address, "").await;
    assert_eq!(nobody.post("/v1/chat/completions", "{}").await.status(), 401);
    let mut ann = Caller::connect(relay.address, &relay.token("ann")).await;
    let response = ann.get("/b/gone/api/tags").await;
    assert_eq!(response.headers()["tunnel-error"], "no_bridge");
    text(response).await;
    // What the relay answers for itself is no exchange.
    assert_eq!(ann.get("/healthz").await.status(), 200);
    assert_eq!(nobody.get("/api/bridge").await.status(), 401);
    let lines = watched.log.fields(3).await;
    assert_eq!(
        (&lines[0]["code"], &lines[0]["reason"]),
        (&"unauthorized".into(), &"token malformed".into())
    );
    assert_eq!(
        (&lines[1]["reason"], &lines[1]["status"]),
        (&"no token".into(), &401.into())
    );
    assert_eq!(
        (&lines[2]["code"], &lines[2]["path"]),
        (&"no_bridge".into(), &"/b/gone/api/tags".into())
    );
    assert!(
        lines
            .iter()
            .all(|line| line["outcome"] == "refused" && line.get("transport").is_none())
    );
    let page = watched.page().await;
    assert_eq!(
        page.sum("tunnel_exchanges_refused_total", &[("code", "unauthorized")]),
        2.0
    );
    assert_eq!(
        page.sum("tunnel_exchanges_refused_total", &[("code", "no_bridge")]),
        1.0
    );
    assert_eq!(page.sum("tunnel_auth_refusals_total", &[("reason", "no token")]), 2.0);
    assert_eq!(
        page.sum("tunnel_auth_refusals_total", &[("reason", "token malformed")]),
        1.0
    );
    let refused = [("outcome", "refused"), ("transport", "none")];
    assert_eq!(page.sum("tunnel_exchanges_total", &refused), 3.0);
    let models = [("outcome", "refused"), ("route", "models")];
    assert_eq!(page.sum("tunnel_exchanges_total", &models), 2.0);
}

#[tokio::test]
async fn whatever_callers_ask_for_the_series_are_as_many_and_no_secret_is_told() {
    let (relay, watched) = Watched::start(|_| {}).await;
    let token = relay.token("ann");
    let mut caller = Caller::connect(relay.address, &token).await;
    caller.get("/first").await;
    let before = watched.page().await.series();
    for number in 0..3000 {
        let asked = format!("/path/{number}?token={token}&key=s3cret");
        text(caller.get(&asked).await).await;
    }
    let mut raw = Raw::connect(relay.address).await;
    raw.send(format!("GET /ws/tunnel?token={token}x HTTP/1.1\r\nHost: r\r\n\r\n"))
        .await;
    raw.until("\r\n\r\n").await;
    let page = watched.page().await;
    assert_eq!(
        page.sum("tunnel_exchanges_total", &[("route", "other"), ("outcome", "refused")]),
        3001.0
    );
    // The one wrong token is a reason that was not there before.
    assert!(page.series() <= before + 1, "{} {before}", page.series());
    watched.log.fields(3001).await;
    for text in [page.text, watched.log.text()] {
        for secret in [token.as_str(), "token=", "s3cret", "Bearer", "?"] {
            assert!(!text.contains(secret), "{secret}");
        }
    }
}

#[tokio::test]
async fn metrics_have_a_port_of_their_own_that_knows_nothing_else() {
    let (relay, watched) = Watched::start(|_| {}).await;
    assert_eq!(
        Caller::connect(relay.address, "").await.get("/metrics").await.status(),
        401
    );
    let mut inside = Caller::connect(relay.address, &relay.token("ann")).await;
    assert_eq!(inside.get("/metrics").await.headers()["tunnel-error"], "no_bridge");

    let mut watcher = Caller::connect(watched.metrics, &relay.token("ann")).await;
    for (asked, status) in [
        ("/healthz", 200),
        ("/metrics", 200),
        ("/metrics?a=b", 200),
        ("/api/tags", 404),
        ("/api/bridge", 404),
        ("/", 404),
    ] {
        let response = watcher.get(asked).await;
        assert_eq!(response.status(), status, "{asked}");
        text(response).await;
    }
    assert_eq!(watcher.post("/metrics", "x").await.status(), 405);
    let newer = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    for (accept, expected) in [
        ("*/*", "text/plain; version=0.0.4"),
        (newer, "application/openmetrics-text"),
    ] {
        let mut request = get("/metrics");
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let mut watcher = Caller::connect(watched.metrics, "").await;
        let response = watcher.send(request).await;
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with(expected), "{kind}");
    }
    let mut raw = Raw::connect(watched.metrics).await;
    raw.send(format!("GET /metrics HTTP/1.1\r\nHost: r\r\nx: {}", "x".repeat(9000)))
        .await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn a_bridge_that_comes_back_and_one_that_had_to_poll_are_seen() {
    let (relay, watched) = Watched::start(|config| config.transports.ws = false).await;
    let upstream = Upstream::scripted().await;
    let plan = || crate::harness::TestBridge::to(&relay, &upstream).client_id("same");
    let first = plan().transport(Transport::Auto).start().await;
    first.connected_over("poll").await;
    first.stop().await;
    until("it to be gone", || relay.relay.registry.list("ann").is_empty()).await;
    let second = plan().transport(Transport::Poll).start().await;
    second.connected().await;
    let page = watched.page().await;
    for (kind, count) in [("first", 1.0), ("again", 1.0)] {
        let labels = [("transport", "poll"), ("kind", kind)];
        assert_eq!(page.sum("tunnel_bridge_connects_total", &labels), count, "{kind}");
    }
    assert_eq!(page.sum("tunnel_bridge_fallbacks_total", &[("reason", "steered")]), 1.0);
    assert_eq!(page.sum("tunnel_bridge_fallbacks_total", &[]), 1.0);
}

/// Words of a text that could be names of metrics.
fn names_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    words.filter(|word| word.starts_with("tunnel_") || word.starts_with("process_"))
}

#[tokio::test]
async fn what_is_written_of_metrics_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = Authority::named("Test CA").write(folder.path(), &["localhost"], |_| {});
    let store = StoreConfig::Sqlite(folder.path().join("relay.db"));
    let keeper = Keeper::begin(store, Duration::from_secs(3600), &Tokens::new(SECRET), PATIENCE).await;
    let (_relay, watched) = Watched::start(|config| {
        config.tls = Some(Tls::from_files(certificate, key).unwrap());
        config.keeper = Some(keeper.unwrap());
    })
    .await;
    let page = watched.page().await;
    assert!(page.sum("tunnel_tls_certificate_left_seconds", &[]) > 0.0);
    assert_eq!(page.sum("tunnel_store_up", &[]), 1.0);
    let names = page.names();

    let dashboard = include_str!("../../docs/deploy/grafana-dashboard.json");
    let parsed: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let panels = parsed["panels"].as_array().unwrap();
    assert!(panels.iter().all(|panel| panel["targets"][0]["expr"].is_string()));
    let alerts = include_str!("../../docs/deploy/alerts.yml");
    for text in [dashboard, alerts] {
        let used: Vec<_> = names_in(text).collect();
        assert!(used.len() > 10);
        for name in used {
            assert!(names.contains(name), "{name} is not there");
        }
    }

    // The names in the documents are those of the samples, of a histogram without what follows.
    let operations = include_str!("../../docs/operations.md");
    let plain = |name: &str| {
        let endings = ["_bucket", "_sum", "_count"];
        let of_histogram = endings.iter().find_map(|ending| name.strip_suffix(ending));
        of_histogram.unwrap_or(name).to_owned()
    };
    let mut told: Vec<String> = names_in(operations).map(str::to_owned).collect();
    told.sort_unstable();
    told.dedup();
    let mut there: Vec<String> = names.iter().map(|name| plain(name)).collect();
    there.dedup();
    assert_eq!(told, there);
}

#[tokio::test]
async fn labels_in_queries_are_labels_of_metrics() {
    let (path, watched) = path(Transport::Ws).await;
    let mut caller = path.caller().await;
    let (upstream, response) = path.begun(&mut caller).await;
    drop((response, caller));
    upstream.abandoned().await;
    let mut stranger = Caller::connect(path.relay.address, "").await;
    assert_eq!(stranger.get("/").await.status(), 401);
    watched.log.fields(2).await;
    let page = watched.page().await;
    let mut known = page.labels();
    // Those that Prometheus itself adds.
    known.extend(["job", "instance"]);
    let files = [
        include_str!("../../docs/deploy/grafana-dashboard.json"),
        include_str!("../../docs/deploy/alerts.yml"),
    ];
    for file in files {
        let grouped = file.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap());
        for label in grouped.flat_map(|labels| labels.split(", ")) {
            assert!(known.contains(label), "{label}");
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_program_shows_metrics_and_tells_of_requests_unless_told_not_to() {
    let home = tempfile::tempdir().unwrap();
    let (mut relay, address) = Process::relay(home.path(), &["--metrics-listen", "127.0.0.1:0"]).await;
    let line = relay.error_line("metrics are at").await;
    let metrics = line.split('/').nth(2).unwrap().parse().unwrap();
    let response = Caller::connect(address, "wrong").await.get("/api/tags?a=b").await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let line = relay.error_line(" request ").await;
    for field in [
        format!("id={id} "),
        "path=/api/tags ".into(),
        "code=unauthorized".into(),
    ] {
        assert!(line.contains(&field), "{line}");
    }
    let page = text(Caller::connect(metrics, "").await.get("/metrics").await).await;
    for name in names_in("process_resident_memory_bytes process_open_fds process_start_time_seconds") {
        let line = page.lines().find(|line| line.starts_with(name)).unwrap();
        let value: f64 = line.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(value > 1.0, "{line}");
    }
    relay.signal(rustix::process::Signal::TERM);
    assert_eq!(relay.ended().await, Some(0));

    for quiet in [["--access-log", "off"].as_slice(), &["--log-format", "json"]] {
        let home = tempfile::tempdir().unwrap();
        let address = crate::harness::programs::free_address();
        let listen = address.to_string();
        let arguments = [&["relay", "--listen", &listen], quiet].concat();
        let mut relay = Process::start(command(home.path(), &arguments));
        relay.error_line("relay started").await;
        Caller::connect(address, "wrong").await.get("/api/tags").await;
        let line = relay.error_line("refused").await;
        let is_access = line.contains("\"target\":\"tunnel::access\"");
        assert_eq!(is_access, quiet[0] == "--log-format", "{line}");
        assert!(line.contains("token malformed"), "{line}");
    }
}
