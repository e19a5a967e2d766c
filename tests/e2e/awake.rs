//! A desktop that does not fall asleep while it answers: the lock is taken, held and free again. What holds it is a script, and a `cat`
//! that the script runs as the real one would.

use std::fs;

use http::Response;
use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group};
use tempfile::TempDir;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::process::{Process, command};
use crate::harness::programs::script;
use crate::harness::{Caller, TestRelay, Upstream, chunk, on_each_transport, ready, text, until};

struct Desk {
    folder: TempDir,
    relay: TestRelay,
    upstream: Upstream,
    bridge: Process,
}

impl Desk {
    async fn new(transport: Transport, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        let log = here.join("locks");
        // As the real one does, it runs the command and lets go when that ends.
        let body = format!(
            "words=\"taken $*\"\nshift 4\nexport PATH=/usr/bin:/bin words\n\
             sh -c 'echo $$ > {1}; echo \"$words\" >> {0}; exec \"$@\"' sh \"$@\"\necho free >> {0}",
            log.display(),
            here.join("holder").display()
        );
        script(&here.join("bin"), "systemd-inhibit", &body);
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let (at, local) = (
            format!("http://{}", relay.address),
            format!("http://{}", upstream.address),
        );
        let over = transport.name();
        let arguments = ["bridge", "--relay", &at, "--upstream", &local, "--transport", over];
        let mut command = command(here, &[&arguments, more].concat());
        command
            .env("PATH", here.join("bin"))
            .env("TUNNEL_TOKEN", relay.token("ann"))
            // As a shell does, so that Ctrl-C reaches the bridge and not the tests.
            .process_group(0);
        let mut bridge = Process::start(command);
        bridge.error_line("connected relay=").await;
        ready(&relay, "ann").await;
        Self {
            folder,
            relay,
            upstream,
            bridge,
        }
    }

    async fn caller(&self) -> Caller {
        Caller::connect(self.relay.address, &self.relay.token("ann")).await
    }

    fn locks(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("locks")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// What lives as long as the lock is held: the innermost process.
    fn holder(&self) -> Pid {
        let holder = fs::read_to_string(self.folder.path().join("holder")).unwrap();
        Pid::from_raw(holder.trim().parse().unwrap()).unwrap()
    }

    async fn exchange(&self) {
        let mut caller = self.caller().await;
        let ((), response) = tokio::join!(
            async { self.upstream.next().await.finish(Response::new(full("done"))) },
            caller.post("/api/chat", "{}"),
        );
        assert_eq!(text(response).await, "done");
    }
}

/// Not if it only waits for somebody to ask how it ended.
fn is_alive(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

on_each_transport! {
    async fn one_lock_is_held_while_exchanges_run_and_is_free_after_the_bridge(transport: Transport) {
        let desk = Desk::new(transport, &[]).await;
        assert!(desk.locks().is_empty());
        let mut caller = desk.caller().await;
        let (answer, mut response) = tokio::join!(
            async { desk.upstream.next().await.begin(Response::builder()) },
            caller.post("/api/chat", "{}"),
        );
        until("the lock", || desk.locks().len() == 1).await;
        let taken = "taken --what=sleep:idle --mode=block --who=tunnel --why=A request is being answered cat";
        assert_eq!(desk.locks(), [taken]);
        for _ in 0..5 {
            desk.exchange().await;
        }
        answer.send("end").await;
        drop(answer);
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "end");
        desk.exchange().await;
        assert_eq!(desk.locks(), [taken]);
        let Desk { folder, bridge, .. } = desk;
        // A crash, too, closes the input of what holds it.
        bridge.signal(Signal::KILL);
        assert_eq!(bridge.ended().await, None);
        let locks = || fs::read_to_string(folder.path().join("locks")).unwrap();
        until("the lock to be free", || locks().ends_with("free\n")).await;
    }

    async fn a_lock_is_held_until_the_drain_is_over_when_somebody_presses_ctrl_c(transport: Transport) {
        let mut desk = Desk::new(transport, &[]).await;
        let mut caller = desk.caller().await;
        let (answer, mut response) = tokio::join!(
            async { desk.upstream.next().await.begin(Response::builder()) },
            caller.post("/api/chat", "{}"),
        );
        until("the lock", || desk.locks().len() == 1).await;
        let (holder, bridge) = (desk.holder(), desk.bridge.id());
        assert_ne!(getpgid(Some(holder)).unwrap(), getpgid(Some(bridge)).unwrap());
        // At a terminal all of the group are told.
        kill_process_group(bridge, Signal::INT).unwrap();
        desk.bridge.error_line("stopping").await;
        answer.send("still").await;
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "still");
        assert!(is_alive(holder));
        assert_eq!(desk.locks().len(), 1);
        drop(answer);
        assert!(chunk(&mut response).await.is_none());
        let Desk { bridge, relay, upstream, folder } = desk;
        assert_eq!(bridge.ended().await, Some(0));
        until("the holder's end", || !is_alive(holder)).await;
        drop((relay, upstream, folder));
    }

    async fn none_is_taken_where_it_is_not_wanted(transport: Transport) {
        let desk = Desk::new(transport, &["--keep-awake", "off"]).await;
        desk.exchange().await;
        desk.bridge.signal(Signal::TERM);
        let Desk { folder, bridge, relay, upstream } = desk;
        assert_eq!(bridge.ended().await, Some(0));
        assert!(!folder.path().join("locks").exists());
        drop((relay, upstream));
    }
}

#[tokio::test]
async fn a_bridge_that_ends_leaves_no_holder_behind() {
    let desk = Desk::new(Transport::Ws, &[]).await;
    desk.exchange().await;
    until("the lock", || desk.locks().len() == 1).await;
    let holder = desk.holder();
    assert!(is_alive(holder));
    let Desk { folder, bridge, .. } = desk;
    bridge.signal(Signal::TERM);
    assert_eq!(bridge.ended().await, Some(0));
    until("the end of the innermost", || !is_alive(holder)).await;
    let name = folder.path().to_str().unwrap().to_owned();
    let holders = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
            .any(|line| String::from_utf8_lossy(&line).contains(&name))
    };
    until("the holder's end", || !holders()).await;
}

#[tokio::test]
async fn a_lock_that_is_lost_while_it_is_needed_is_noticed() {
    let mut desk = Desk::new(Transport::Ws, &["-v"]).await;
    let mut caller = desk.caller().await;
    let (answer, response) = tokio::join!(
        async { desk.upstream.next().await.begin(Response::builder()) },
        caller.post("/api/chat", "{}"),
    );
    until("the lock", || desk.locks().len() == 1).await;
    kill_process(desk.holder(), Signal::INT).unwrap();
    desk.bridge.error_line("may fall asleep while it answers").await;
    drop((answer, response));
}
