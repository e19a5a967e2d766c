//! `tunnel bench`, the program itself: what it prints and writes, what it counts as an error, how it ends.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response, StatusCode};
use rustix::process::Signal;
use serde_json::Value;
use tunnel::transport::full;

use crate::harness::process::{Ended, Process, command, run};
use crate::harness::{TestBridge, TestRelay, Upstream, ready, until};

/// Over in a moment.
const SHORT: [&str; 12] = [
    "--rounds",
    "1",
    "--slice",
    "40ms",
    "--concurrency",
    "3",
    "--token-interval",
    "5ms",
    "--bulk-size",
    "100KiB",
    "--json",
    "figures",
];

async fn bench(home: &Path, token: Option<&str>, more: &[&str]) -> Ended {
    let arguments = [&["bench"], SHORT.as_slice(), more].concat();
    let mut command = command(home, &arguments);
    command.current_dir(home);
    if let Some(token) = token {
        command.env("TUNNEL_TOKEN", token);
    }
    run(command).await
}

fn figures(home: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(home.join("figures")).unwrap()).unwrap()
}

fn scenario<'a>(figures: &'a Value, name: &str) -> &'a Vec<Value> {
    let scenarios = figures["scenarios"].as_array().unwrap();
    let found = scenarios.iter().find(|scenario| scenario["name"] == name);
    found.unwrap_or_else(|| panic!("no {name}"))["ways"].as_array().unwrap()
}

fn ways(scenario: &[Value]) -> Vec<&str> {
    scenario.iter().map(|way| way["way"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn alone_it_prints_a_table_and_writes_every_figure_and_a_picture() {
    let home = tempfile::tempdir().unwrap();
    let ended = bench(home.path(), None, &["--plot", "plot.svg"]).await;
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{}", ended.output);
    for words in [
        "Small exchange, one caller",
        "3 callers",
        "First token",
        "Gaps",
        "Bodies",
        "cut link",
        "No errors.",
    ] {
        assert!(ended.output.contains(words), "{words}: {}", ended.output);
    }
    assert!(
        ended.output.lines().all(|line| line.chars().count() <= 100),
        "{}",
        ended.output
    );
    let figures = figures(home.path());
    assert_eq!(
        (&figures["errors"], &figures["settings"]["subject"]),
        (&0.into(), &"alone".into())
    );
    assert!(figures["machine"]["cores"].as_u64().unwrap() > 0);
    for name in ["small", "crowd", "first", "tokens"] {
        let measured = scenario(&figures, name);
        assert_eq!(ways(measured), ["direct", "ws", "poll"], "{name}");
        for way in measured {
            for figure in ["p50Us", "p90Us", "p99Us", "p999Us", "maxUs"] {
                assert!(way["time"][figure].as_f64().unwrap() > 0.0, "{name} {figure}");
            }
            let through = way["way"] != "direct";
            assert_eq!(way["added"]["p50Us"].is_f64(), through, "{name}");
            assert_eq!(
                way["cpu"]["relayUs"].is_f64() && way["cpu"]["bridgeUs"].is_f64(),
                through,
                "{name}"
            );
            assert_eq!(way["rounds"].as_array().unwrap().len(), 1);
            if name == "tokens" {
                assert!(way["tokens"]["jitterUs"].is_f64() && way["tokens"]["transit"]["p50Us"].is_f64());
                assert_eq!(way["tokens"]["wireOctetsPerToken"].is_f64(), through);
            }
        }
    }
    for way in scenario(&figures, "bulk") {
        assert!(way["bulk"]["down"]["median"].as_f64().unwrap() > 0.0 && way["bulk"]["up"]["median"].is_f64());
    }
    let reconnect = scenario(&figures, "reconnect");
    assert_eq!(ways(reconnect), ["ws", "poll"]);
    assert!(
        reconnect
            .iter()
            .all(|way| way["done"] == 1 && way["time"]["p50Us"].is_f64())
    );
    let plot = std::fs::read_to_string(home.path().join("plot.svg")).unwrap();
    assert!(plot.starts_with("<svg ") && plot.trim_end().ends_with("</svg>"));
}

#[tokio::test]
async fn a_relay_that_is_far_away_costs_its_round_trip_and_nothing_of_the_direct_way() {
    let home = tempfile::tempdir().unwrap();
    let ended = bench(
        home.path(),
        None,
        &["--rtt", "30ms", "--only", "small", "--rate", "100/s"],
    )
    .await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.output, ended.errors);
    assert!(ended.output.contains("30 ms apart"), "{}", ended.output);
    let figures = figures(home.path());
    let p50 = |way: &Value| way["time"]["p50Us"].as_f64().unwrap();
    let [direct, ws, poll] = scenario(&figures, "small").as_slice() else {
        panic!("three ways")
    };
    assert!(p50(ws) >= 30_000.0 && p50(poll) >= 30_000.0);
    assert!(p50(direct) < 30_000.0);
    assert_eq!(direct["done"], 4);
}

#[tokio::test]
async fn a_deployment_is_measured_through_bridges_that_leave_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let relay = TestRelay::with(|config| config.transports.poll = false).await;
    // One is set aside for whoever comes next.
    let free = relay.relay.free_connections() - 1;
    let at = format!("http://{}", relay.address);
    let ended = bench(home.path(), Some(&relay.token("ann")), &["--relay", &at]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.output, ended.errors);
    assert!(ended.output.contains("left out: poll"), "{}", ended.output);
    let figures = figures(home.path());
    assert_eq!(ways(scenario(&figures, "tokens")), ["direct", "ws"]);
    assert!(
        figures["scenarios"]
            .as_array()
            .unwrap()
            .iter()
            .all(|scenario| scenario["name"] != "reconnect")
    );
    until("everybody to be gone", || relay.relay.free_connections() >= free).await;
}

#[tokio::test]
async fn a_desktop_is_measured_with_its_own_model_and_what_it_answers_wrong_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let relay = TestRelay::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let upstream = Upstream::serving(move |request: Request<hyper::body::Incoming>| {
        let odd = asked.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        let (status, body) = match request.uri().path() {
            "/api/version" if odd => (StatusCode::INTERNAL_SERVER_ERROR, "{}"),
            "/api/version" => (StatusCode::OK, r#"{"version":"0.17.1"}"#),
            // Without its last line.
            _ => (StatusCode::OK, "{\"response\":\"one\"}\n{\"response\":\"two\"}\n"),
        };
        async move {
            let mut response = Response::new(full(body));
            *response.status_mut() = status;
            response
        }
    })
    .await;
    let _bridge = TestBridge::to(&relay, &upstream).start().await;
    ready(&relay, "ann").await;
    let at = format!("http://{}", relay.address);
    let arguments = [
        "--relay",
        &at,
        "--bridge",
        "box",
        "--model",
        "m",
        "--only",
        "small,tokens,bulk",
    ];
    let ended = bench(home.path(), Some(&relay.token("ann")), &arguments).await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.output, ended.errors);
    assert!(ended.output.contains("answered 500"), "{}", ended.output);
    assert!(ended.output.contains("a stream ended too soon"), "{}", ended.output);
    let figures = figures(home.path());
    assert_eq!(figures["settings"]["transport"], "ws");
    let small = &scenario(&figures, "small")[0];
    assert!(small["errors"].as_u64().unwrap() > 0);
    assert_eq!(small["rounds"][0]["done"], small["done"]);
    assert_eq!(figures["scenarios"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_refused_token_ends_with_3_and_a_desktop_that_is_not_there_with_1() {
    let home = tempfile::tempdir().unwrap();
    let relay = TestRelay::start().await;
    let at = format!("http://{}", relay.address);
    for token in ["nonsense", &crate::harness::relay::token_for("ann", "api")] {
        let ended = bench(home.path(), Some(token), &["--relay", &at]).await;
        assert_eq!((ended.code, ended.output.as_str()), (Some(3), ""), "{}", ended.errors);
        assert!(
            ended.errors.contains("tunnel relay token") && !ended.errors.contains(token),
            "{}",
            ended.errors
        );
    }
    let ended = bench(
        home.path(),
        Some(&relay.token("ann")),
        &["--relay", &at, "--bridge", "box"],
    )
    .await;
    assert_eq!(ended.code, Some(1), "{}", ended.errors);
    assert!(ended.errors.contains("no desktop called box"), "{}", ended.errors);
}

#[tokio::test]
async fn what_is_no_relay_fails_and_what_makes_no_sense_is_wrong_usage() {
    let home = tempfile::tempdir().unwrap();
    let page = Upstream::serving(|_| async { Response::new(full("<html>")) }).await;
    let at = format!("http://{}", page.address);
    for (arguments, code, words) in [
        (vec!["--relay", &at, "--bridge", "box"], 1, "no relay"),
        (vec!["--relay", &at, "--rtt", "5ms"], 2, "--rtt"),
        (vec!["--model", "m"], 2, "--bridge"),
        (vec!["--bridge", "box"], 2, "--relay"),
        (vec!["--rate", "200"], 2, "200/s"),
        (vec!["--plot", "no/such/folder"], 2, "cannot write"),
        (vec!["--only", "nothing"], 2, "reconnect"),
    ] {
        let ended = bench(home.path(), Some("any"), &arguments).await;
        assert_eq!(
            (ended.code, ended.output.as_str()),
            (Some(code), ""),
            "{arguments:?}: {}",
            ended.errors
        );
        assert!(ended.errors.contains(words), "{arguments:?}: {}", ended.errors);
    }
}

#[tokio::test]
async fn an_interrupted_measurement_says_goodbye() {
    let home = tempfile::tempdir().unwrap();
    let relay = TestRelay::start().await;
    // One is set aside for whoever comes next.
    let free = relay.relay.free_connections() - 1;
    let at = format!("http://{}", relay.address);
    let mut command = command(home.path(), &["bench", "--relay", &at, "--slice", "20s"]);
    command.env("TUNNEL_TOKEN", relay.token("ann"));
    let bench = Process::start(command);
    // Two bridges and a caller, at least.
    until("the measurement", || relay.relay.free_connections() + 3 <= free).await;
    bench.signal(Signal::INT);
    assert_eq!(bench.ended().await, Some(1));
    until("everybody to be gone", || relay.relay.free_connections() >= free).await;
}
