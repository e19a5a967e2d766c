//! `tunnel probe` behind proxies that do one thing wrong: it names that, with what to change, and nothing else.
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::join;
use tokio::sync::Semaphore;

use crate::harness::TestRelay;
use crate::harness::deployed::{Deployed, Kind};
use crate::harness::misbehaving::{Fault, Misbehaving};
use crate::harness::probe::{Report, WHOLE, probe, probe_url, while_busy};
use crate::harness::programs::{DENY_UPGRADES, PROMPT, Program, UPGRADES};

/// What an nginx needs besides upgrades.
const ROOMY: [&str; 3] = [
    "client_max_body_size 0;",
    "proxy_request_buffering off;",
    "proxy_read_timeout 1h;",
];
const LEAVERS: &str = "option abortonclose";
const TUNNELS: &str = "timeout tunnel 1h";

/// What nginx should have, but for these directives, which stand instead.
fn but_for(directives: &str) -> String {
    let name = |line: &&str| !directives.contains(line.split(' ').next().unwrap());
    [directives, &ROOMY.into_iter().filter(name).collect::<String>()].concat()
}

/// nginx as it should be, but for these directives.
async fn nginx(directives: &str, groups: &str) -> Report {
    let relay = TestRelay::start().await;
    let front = Program::nginx(relay.address, &[UPGRADES, &but_for(directives)].concat()).await;
    probe(front.address).only(groups).run().await
}

/// haproxy with these settings and this rule.
async fn haproxy(settings: &[&str], rule: &str, groups: &str) -> Report {
    let relay = TestRelay::start().await;
    let front = Program::haproxy(relay.address, settings, rule).await;
    probe(front.address).only(groups).run().await
}

/// A proxy that does this wrong.
async fn misbehaving(fault: Fault, groups: &str) -> Report {
    let relay = TestRelay::start().await;
    let front = Misbehaving::before(relay.address, fault).await;
    probe(front.address).only(groups).run().await
}

#[tokio::test]
async fn behind_proxies_that_are_set_up_as_documented_there_is_no_trouble() {
    let relay = TestRelay::start().await;
    let well = async |kind, name| {
        let front = Deployed::before(relay.address, kind).await;
        let ca_file = front.authority.ca_file();
        let probe = probe_url(front.url()).with("--ca-file", ca_file.display());
        let report = probe.with("--origin", "https://app.example.com").run().await;
        report.is_well().saw("pass", "reach/front", name);
        assert!(report.took < WHOLE, "{:?}", report.took);
    };
    join!(well(Kind::Nginx, "nginx"), well(Kind::Haproxy, "haproxy"));
}

/// What the faults of the others stand out from.
#[tokio::test]
async fn behind_proxies_without_a_fault_there_is_no_trouble() {
    let groups = "websocket,polling,streaming,cancel";
    let nginx = while_busy(&[], async || nginx("", groups).await).await;
    let haproxy = while_busy(&[], async || haproxy(&[PROMPT, LEAVERS, TUNNELS], "", groups).await).await;
    let unknown = while_busy(&[], async || misbehaving(Fault::None, groups).await).await;
    for report in [nginx, haproxy, unknown] {
        report.is_well().over_each_transport("cancel");
    }
}

#[tokio::test]
async fn a_proxy_that_buffers_answers_is_named() {
    let waits = "http-response wait-for-body time 10s";
    let (haproxy, unknown) = join!(
        haproxy(&[PROMPT, LEAVERS, TUNNELS], waits, "streaming"),
        misbehaving(Fault::HoldsAnswers, "streaming"),
    );
    for (report, word) in [(haproxy, "wait-for-body"), (unknown, "nginx: proxy_buffering off")] {
        report
            .only_failed(["streaming/ndjson", "streaming/sse"], word)
            .over_each_transport("streaming")
            .saw("fail", "streaming/sse", "response buffered");
    }
}

#[tokio::test]
async fn a_proxy_that_buffers_requests_is_warned_of() {
    let (nginx, haproxy) = join!(
        nginx("proxy_request_buffering on;", "streaming"),
        haproxy(
            &[PROMPT, LEAVERS, TUNNELS, "option http-buffer-request"],
            "",
            "streaming"
        ),
    );
    for (report, word) in [(nginx, "proxy_request_buffering off"), (haproxy, "http-buffer-request")] {
        report
            .only_warned(["streaming/upload"], word)
            .over_each_transport("streaming");
    }
}

#[tokio::test]
async fn a_proxy_that_lets_no_upgrade_pass_is_named_and_polling_works() {
    let relay = TestRelay::start().await;
    let naive = Program::nginx(relay.address, &but_for("")).await;
    let groups = "websocket,polling,exchange,cancel";
    let naive = probe(naive.address).only(groups);
    let (naive, strict) = join!(naive.run(), haproxy(&[PROMPT, LEAVERS, TUNNELS], DENY_UPGRADES, groups),);
    for (report, seen, word) in [
        (naive, "426", "proxy_set_header Upgrade"),
        (strict, "403", "http-request deny"),
    ] {
        report
            .only_failed(["websocket/upgrade"], word)
            .saw("fail", "websocket/upgrade", seen)
            .saw("skipped", "websocket/ping", "WebSocket does not get through")
            .saw("pass", "polling/long poll", "answered")
            .saw("pass", "exchange/32 MiB", "as sent")
            .saw("skipped", "exchange/bridge", "WebSocket does not get through")
            .saw("skipped", "cancel/all", "no bridge");
    }
}

#[tokio::test]
async fn each_wrong_answer_to_an_upgrade_has_its_own_remedy() {
    let answers = [
        (200, "proxy_set_header Upgrade"),
        (301, "proxy_pass"),
        (404, "location /"),
        (502, "check the address"),
        (504, "Upgrade and Connection headers"),
    ];
    let answers = answers.map(|(status, words)| async move {
        let report = misbehaving(Fault::AnswersUpgrades(status), "websocket").await;
        report
            .only_failed(["websocket/upgrade"], words)
            .saw("fail", "websocket/upgrade", &status.to_string());
    });
    join_all(answers).await;
}

#[tokio::test]
async fn a_proxy_that_takes_no_large_bodies_is_named() {
    let report = nginx("client_max_body_size 1m;", "exchange,streaming").await;
    report
        .only_failed(["exchange/32 MiB"], "nginx: client_max_body_size 0;")
        .over_each_transport("exchange");
}

#[tokio::test]
async fn a_proxy_that_cuts_silent_answers_is_named() {
    let (nginx, haproxy) = join!(
        nginx("proxy_read_timeout 5s;", "slowness,streaming,polling"),
        haproxy(
            &[PROMPT, LEAVERS, TUNNELS, "timeout server 5s"],
            "",
            "slowness,streaming,polling"
        ),
    );
    for (report, word) in [(nginx, "proxy_read_timeout"), (haproxy, "timeout server")] {
        report
            .only_failed(["slowness/first byte"], word)
            .over_each_transport("slowness")
            .saw("fail", "slowness/first byte", "504");
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_named() {
    let (ahead, behind, little) = join!(
        misbehaving(Fault::ShiftsDates(600), "reach,routes,websocket"),
        misbehaving(Fault::ShiftsDates(-600), "reach,routes,websocket"),
        misbehaving(Fault::ShiftsDates(60), "reach"),
    );
    for (report, words) in [(ahead, "s ahead of"), (behind, "s behind")] {
        report
            .only_failed(["reach/clock"], "NTP")
            .saw("fail", "reach/clock", words);
    }
    little.only_warned(["reach/clock"], "NTP");
}

/// The relay says no, but it was not the relay that refused this token: the exit code is not 3.
#[tokio::test]
async fn a_proxy_that_takes_the_credential_away_is_named() {
    let report = nginx("proxy_set_header Authorization \"\";", "routes,exchange").await;
    report
        .only_failed(["routes/token"], "proxy_set_header Authorization $http_authorization")
        .saw("fail", "routes/token", "removes the Authorization header");
    let report = misbehaving(Fault::DropsHeader("authorization"), "routes").await;
    report.only_failed(["routes/token"], "del-header Authorization");
}

const GZIP: &str = "
            gzip on;
            gzip_proxied any;
            gzip_min_length 1;
            gzip_types application/x-ndjson text/event-stream;";

#[tokio::test]
async fn a_proxy_that_compresses_streams_is_named() {
    let holds = [GZIP, "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"].concat();
    let passes = [GZIP, "proxy_buffering off;"].concat();
    let (holds, passes) = join!(nginx(&holds, "streaming"), nginx(&passes, "streaming"));
    holds
        .only_failed(["streaming/gzip"], "nginx: gzip off")
        .over_each_transport("streaming")
        .saw("fail", "streaming/gzip", "held back by gzip");
    passes.only_warned(["streaming/gzip"], "nginx: gzip off");
}

#[tokio::test]
async fn a_proxy_that_sends_pieces_in_bunches_is_warned_of() {
    // haproxy without its option bunches within 200 ms, which a busy machine does as well.
    let bunches = Fault::BunchesAnswers(Duration::from_millis(700));
    let report = misbehaving(bunches, "streaming").await;
    report.only_warned(["streaming/ndjson", "streaming/sse"], "haproxy: option http-no-delay");
}

#[tokio::test]
async fn a_proxy_that_does_not_tell_that_a_caller_left_is_named() {
    let (haproxy, nginx, unknown) = join!(
        haproxy(&[PROMPT, TUNNELS], "", "cancel"),
        nginx("proxy_ignore_client_abort on;", "cancel"),
        misbehaving(Fault::ReadsOn, "cancel"),
    );
    for (report, check, words) in [
        (haproxy, "cancel/waiting", "haproxy: option abortonclose"),
        (nginx, "cancel/waiting", "nginx: proxy_ignore_client_abort off"),
        (unknown, "cancel/mid-stream", "proxy_ignore_client_abort off"),
    ] {
        report
            .only_failed([check], words)
            .over_each_transport("cancel")
            .saw("fail", check, "would go on computing");
    }
}

#[tokio::test]
async fn a_proxy_that_changes_paths_is_named() {
    // The path that matches is a decoded one.
    let rewrites = "rewrite ^(/rig/mirror/.*)$ $1 break;";
    let (nginx, unknown) = join!(
        nginx(rewrites, "exchange"),
        misbehaving(Fault::DecodesPaths, "exchange"),
    );
    for (report, word) in [
        (nginx, "proxy_pass http://RELAY; with nothing"),
        (unknown, "normalize-uri"),
    ] {
        report
            .only_failed(["exchange/path"], word)
            .over_each_transport("exchange");
    }
}

#[tokio::test]
async fn a_proxy_that_changes_headers_is_named() {
    let faults = [
        Fault::DropsHeader("probe-sent"),
        Fault::DropsAnswerHeader("set-cookie"),
        Fault::AddsAnswerHeader("tunnel-error", "forged"),
    ];
    let reports = join_all(faults.map(|fault| misbehaving(fault, "exchange"))).await;
    for (report, seen) in reports
        .iter()
        .zip(["a repeated header", "Set-Cookie", "a forged Tunnel-Error"])
    {
        report
            .only_failed(["exchange/headers"], "proxy_hide_header")
            .over_each_transport("exchange")
            .saw("fail", "exchange/headers", seen);
    }
}

#[tokio::test]
async fn a_proxy_that_changes_bodies_is_named() {
    let (up, down) = join!(
        misbehaving(Fault::ChangesUploads, "exchange"),
        misbehaving(Fault::ChangesDownloads, "exchange"),
    );
    for (report, way) in [(up, "up"), (down, "down")] {
        report
            .only_failed(["exchange/1 MiB", "exchange/32 MiB"], "changes bodies")
            .saw("fail", "exchange/1 MiB", &format!("on the way {way}, octet 0"));
    }
}

#[tokio::test]
async fn a_proxy_that_meddles_with_permissions_for_pages_is_named() {
    let relay = TestRelay::start().await;
    let doubles = "add_header Access-Control-Allow-Origin * always;";
    let refuses = "if ($request_method = OPTIONS) { return 405; }";
    for (directive, checks, words) in [
        (
            doubles,
            &["browser/preflight", "browser/answer"][..],
            "remove add_header Access-Control",
        ),
        (refuses, &["browser/preflight"], "let OPTIONS requests through"),
    ] {
        let front = Program::nginx(relay.address, &[UPGRADES, &but_for(directive)].concat()).await;
        let probe = probe(front.address).only("browser");
        let report = probe.with("--origin", "https://app.example.com").run().await;
        report.only_failed(checks, words);
    }
    let probe = probe(relay.address).only("browser");
    probe.with("--origin", "https://app.example.com").run().await.is_well();
}

#[tokio::test]
async fn a_proxy_that_takes_few_requests_at_once_is_named() {
    let permits = Arc::new(Semaphore::new(40));
    let report = misbehaving(Fault::Admits(permits), "exchange").await;
    report
        .only_failed(["exchange/100 at once"], "limit_req")
        .saw("fail", "exchange/100 at once", "of 100 failed: 429");
}

#[tokio::test]
async fn a_proxy_that_breaks_answers_off_is_named() {
    let report = misbehaving(Fault::CutsAnswers(7), "streaming").await;
    report
        .only_failed(["streaming/ndjson", "streaming/sse"], "proxy_read_timeout")
        .saw("fail", "streaming/ndjson", "broke off after 7 of 20");
}

#[tokio::test]
async fn an_upgrade_that_is_never_answered_and_a_websocket_that_carries_nothing_are_named() {
    let (silent, mute) = join!(
        misbehaving(Fault::IgnoresUpgrades, "websocket,polling,cancel"),
        misbehaving(Fault::MutesUpgrades, "websocket,polling,cancel"),
    );
    silent.saw("fail", "websocket/upgrade", "no answer to the upgrade");
    for (report, check) in [(silent, "websocket/upgrade"), (mute, "websocket/ping")] {
        report
            .only_failed([check], "timeout tunnel")
            .saw("pass", "polling/requests", "register, poll, respond");
    }
}

#[tokio::test]
async fn what_is_no_relay_or_another_one_is_named() {
    let answers = |path, status, words| misbehaving(Fault::Answers(path, status, words), "routes");
    let (sick, draining, foreign, old) = join!(
        answers("/healthz", 500, "no"),
        answers("/readyz", 503, "{\"status\":\"draining\"}"),
        answers("/-/version", 200, "<html>"),
        answers("/-/version", 200, "{\"name\":\"tunnel\",\"version\":\"0.0.1\"}"),
    );
    sick.only_failed(["routes/health"], "location /");
    draining.only_warned(["routes/ready"], "wait for its successor");
    foreign.only_failed(["routes/version"], "sends all paths to the relay");
    old.only_warned(["routes/version"], "update the older one");
}

#[tokio::test]
async fn a_proxy_that_hides_where_a_page_is_from_is_warned_of() {
    let report = misbehaving(Fault::DropsHeader("origin"), "websocket").await;
    report.only_warned(["websocket/origin"], "let the Origin header through");
}

#[tokio::test]
async fn paths_that_are_not_routed_are_named() {
    let bridge = nginx("location /api/bridge { return 404; }", "routes").await;
    bridge.only_failed(
        [
            "routes/token",
            "routes/register",
            "routes/poll",
            "routes/respond",
            "routes/heartbeat",
        ],
        "nginx: location /",
    );
    let ws = nginx("location /ws { return 404; }", "routes,websocket,polling").await;
    ws.only_failed(["routes/ws", "websocket/upgrade"], "nginx: location /");
}

#[tokio::test]
async fn a_poll_that_is_answered_at_an_interval_is_named() {
    let slow = Fault::AnswersPollsEvery(Duration::from_secs(3));
    let report = misbehaving(slow, "polling,websocket").await;
    report.only_failed(["polling/long poll"], "proxy_buffering").saw(
        "pass",
        "polling/requests",
        "register, poll, respond",
    );
}

#[tokio::test]
async fn a_relay_that_is_open_to_everybody_is_named() {
    let token = crate::harness::relay::token_for("ann", "bridge api");
    let report = misbehaving(Fault::ShowsToken(token), "routes").await;
    report.only_failed(
        [
            "routes/register",
            "routes/poll",
            "routes/respond",
            "routes/heartbeat",
            "routes/ws",
            "routes/forwarded",
        ],
        "the rule that sets Authorization",
    );
}
