//! `tunnel probe` where nothing is wrong: it says so, takes nobody's requests, leaves nothing behind, and shows what it found.
#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::join;
use tunnel::demo::Demo;

use crate::harness::misbehaving::{Fault, Misbehaving};
use crate::harness::probe::{Probe, WHOLE, probe};
use crate::harness::process::{Process, command, run};
use crate::harness::{Caller, TestBridge, TestRelay, Upstream, json, ready, until};

/// All that can be asked for with `--only`.
const GROUPS: [&str; 10] = [
    "reach",
    "routes",
    "websocket",
    "polling",
    "exchange",
    "streaming",
    "slowness",
    "cancel",
    "desktop",
    "browser",
];
/// A stopped program is gone within this.
const GOODBYE: Duration = Duration::from_secs(3);

/// The bridges of probes that callers reach.
fn of_probes(relay: &TestRelay, front: &Misbehaving) -> usize {
    let named = front.bridges();
    let reached = |name: &&String| relay.relay.registry.pick("ann", Some(name)).is_some();
    named.iter().filter(reached).count()
}

#[tokio::test]
async fn a_deployment_without_faults_passes_every_check_and_its_desktop_is_left_alone() {
    let relay = TestRelay::start().await;
    let asked = Arc::new(Mutex::new(BTreeSet::new()));
    let upstream = {
        let asked = Arc::clone(&asked);
        Upstream::serving(move |request| {
            asked.lock().unwrap().insert(request.uri().path().to_owned());
            async move { Demo::new(Duration::ZERO).answer(request).await }
        })
        .await
    };
    let _bridge = TestBridge::to(&relay, &upstream).start().await;
    ready(&relay, "ann").await;
    let probe = probe(relay.address).with("--origin", "https://app.example.com");
    let report = probe.run().await;
    report.is_well().saw("pass", "desktop/bridge", "box over ws");
    for group in ["exchange", "streaming", "slowness", "cancel"] {
        report.over_each_transport(group);
    }
    assert_eq!(report.groups().len(), 10, "{:?}", report.groups());
    assert!(report.took < WHOLE, "{:?}", report.took);
    let known = BTreeSet::from(["/api/tags", "/api/version"].map(str::to_owned));
    assert_eq!(*asked.lock().unwrap(), known);
}

#[tokio::test]
async fn several_probes_at_once_do_not_collide_and_leave_nothing_behind() {
    let relay = TestRelay::start().await;
    let probes = [(); 3].map(|()| probe(relay.address).only("websocket,polling,streaming,cancel,desktop"));
    let (first, second, third) = join!(probes[0].run(), probes[1].run(), probes[2].run());
    for report in [first, second, third] {
        report
            .is_well()
            .saw("skipped", "desktop/bridge", "no desktop is connected");
    }
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let list = json(caller.get("/api/bridge").await).await;
    assert_eq!(list, serde_json::json!({"bridges": [], "shared": []}));
    let answer = caller.post("/api/chat", "{}").await;
    assert_eq!(answer.headers()["tunnel-error"], "no_bridge");
}

#[tokio::test]
async fn a_probe_that_is_stopped_leaves_nothing_behind_and_takes_nobodys_requests_before() {
    let relay = TestRelay::start().await;
    let front = Misbehaving::before(relay.address, Fault::None).await;
    let process = Process::start(probe(front.address).only("slowness").command());
    until("both bridges of the probe", || of_probes(&relay, &front) == 2).await;
    let mut caller = Caller::connect(relay.address, &relay.token("ann")).await;
    let list = json(caller.get("/api/bridge").await).await;
    assert_eq!(list, serde_json::json!({"bridges": [], "shared": []}));
    let answer = caller.post("/api/chat", "{}").await;
    assert_eq!(answer.headers()["tunnel-error"], "no_bridge");
    let began = Instant::now();
    process.signal(Signal::INT);
    assert_eq!(process.ended().await, Some(1));
    assert!(began.elapsed() < GOODBYE, "{:?}", began.elapsed());
    until("its bridges to be gone", || of_probes(&relay, &front) == 0).await;
}

#[tokio::test]
async fn what_a_probe_only_looks_at_is_no_trouble_in_the_relays_log() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().to_str().unwrap();
    let (mut relay, address) = Process::relay(home.path(), &["-v", "--data-dir", folder]).await;
    let issue = ["relay", "token", "--user", "ann", "--data-dir", folder];
    let token = run(command(home.path(), &issue)).await.output;
    let report = probe(address).token(&token).only("websocket").run().await;
    report.is_well().saw("pass", "websocket/ping", "round trip");
    loop {
        let line = relay.error_line("a bridge ").await;
        assert!(!line.contains("nothing crosses"), "{line}");
        if line.contains("left before it got work") {
            return;
        }
    }
}

#[tokio::test]
async fn the_help_names_the_groups() {
    let home = tempfile::tempdir().unwrap();
    let help = run(command(home.path(), &["probe", "--help"])).await.output;
    for group in GROUPS {
        assert!(help.contains(&format!("- {group}: ")), "{group}: {help}");
    }
}

#[tokio::test]
async fn health_is_an_exit_code_and_words_only_where_there_is_none() {
    let relay = TestRelay::start().await;
    let home = tempfile::tempdir().unwrap();
    let url = format!("http://{}", relay.address);
    let alive = run(command(home.path(), &["probe", "--health", &url])).await;
    assert_eq!(
        (alive.code, alive.output.as_str(), alive.errors.as_str()),
        (Some(0), "", "")
    );
    relay.kill().await;
    let dead = run(command(home.path(), &["probe", "--health", &url])).await;
    assert_eq!((dead.code, dead.output.as_str()), (Some(1), ""));
    assert!(dead.errors.contains("cannot connect"), "{}", dead.errors);
}

/// The lines up to one with these words.
async fn lines_to(process: &mut Process, words: &str) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line: &String| !line.contains(words)) {
        lines.push(process.output_line("").await);
    }
    lines
}

#[tokio::test]
async fn a_watch_prints_everything_once_and_then_what_changes() {
    let relay = TestRelay::start().await;
    let front = Misbehaving::before(relay.address, Fault::None).await;
    let watch = probe(front.address).only("reach").with("--watch", "100ms");
    let mut process = Process::start(watch.command());
    let first = lines_to(&mut process, " passed").await;
    assert!(first.iter().any(|line| line.contains("reach tcp")), "{first:?}");
    front.set(Fault::ShiftsDates(600));
    let changed = lines_to(&mut process, "→").await;
    let [time, clock, remedy] = changed.as_slice() else {
        panic!("{changed:?}")
    };
    assert!(time.contains("1 failed"), "{time}");
    assert!(clock.starts_with("FAIL  reach clock"), "{clock}");
    assert!(remedy.contains("NTP"), "{remedy}");
    front.set(Fault::None);
    let changed = lines_to(&mut process, "reach").await;
    let [time, clock] = changed.as_slice() else {
        panic!("{changed:?}")
    };
    assert!(!time.contains("failed"), "{time}");
    assert!(clock.starts_with("pass  reach clock"), "{clock}");
}

async fn table(probe: Probe) -> (Vec<String>, String) {
    let ended = probe.ended().await;
    (ended.output.lines().map(str::to_owned).collect(), ended.errors)
}

#[tokio::test]
async fn the_table_fits_a_terminal_and_ends_with_the_summary() {
    let relay = TestRelay::start().await;
    let front = Misbehaving::before(relay.address, Fault::AnswersUpgrades(403)).await;
    let probe = probe(front.address).only("reach,routes,websocket,polling,desktop,browser");
    let (lines, errors) = table(probe).await;
    for line in &lines {
        assert!(line.chars().count() <= 100, "{line}");
    }
    assert!(lines[0].contains(&front.address.to_string()), "{}", lines[0]);
    let last = lines.last().unwrap();
    assert!(last.contains(" passed, 1 failed, "), "{last}");
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.starts_with("FAIL  websocket upgrade"))
            .count(),
        1
    );
    assert!(errors.contains("one check failed"), "{errors}");
}
