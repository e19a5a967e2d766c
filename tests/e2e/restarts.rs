//! A relay that a service manager starts, watches and stops: real processes, signals, and a listening socket that is handed over.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use http::Response;
use http_body_util::BodyExt;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::Instant;
use tunnel::bridge::config::TokenSource;
use tunnel::token::Secret;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::process::{Process, command, run};
use crate::harness::upstream::channel_body;
use crate::harness::{
    Caller, TestBridge, Upstream, chunk, long, on_each_transport, post, text, until, until_within, within,
};

/// A relay that is passed these sockets, by these names.
fn activated(home: &Path, sockets: &[(&TcpListener, &str)], more: &[&str]) -> Command {
    let mut command = command(home, &[&["relay"], more].concat());
    let names: Vec<_> = sockets.iter().map(|(_, name)| *name).collect();
    command
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    let passed = sockets.iter().zip(3..).map(|((socket, _), child_fd)| FdMapping {
        parent_fd: socket.try_clone().unwrap().into(),
        child_fd,
    });
    command.fd_mappings(passed.collect()).unwrap();
    command
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn token(home: &Path) -> String {
    let issued = run(command(home, &["relay", "token", "--user", "ann"])).await;
    issued.output.trim().to_owned()
}

/// What a relay tells its manager.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn of(home: &Path, command: &mut Command) -> Self {
        let path = home.join("notify");
        command.env("NOTIFY_SOCKET", &path);
        Self {
            socket: UnixDatagram::bind(path).unwrap(),
        }
    }

    /// The next message but signs of life.
    async fn told(&self) -> String {
        loop {
            let message = self.any().await;
            if message != "WATCHDOG=1\n" {
                return message;
            }
        }
    }

    async fn any(&self) -> String {
        let mut message = [0; 1024];
        let length = within("a message", self.socket.recv(&mut message)).await.unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }
}

#[tokio::test]
async fn the_manager_is_told_how_the_relay_is() {
    let home = tempfile::tempdir().unwrap();
    let (listener, address) = listener();
    let mut command = activated(home.path(), &[(&listener, "tunnel.socket")], &["--lame-duck", "0s"]);
    command.env("WATCHDOG_USEC", "100000");
    let manager = Manager::of(home.path(), &mut command);
    let relay = Process::start(command);
    assert_eq!(manager.told().await, "READY=1\n");
    assert_eq!(Caller::connect(address, "").await.get("/readyz").await.status(), 200);
    for _ in 0..3 {
        while manager.any().await != "WATCHDOG=1\n" {}
    }
    relay.signal(Signal::HUP);
    let reloading = manager.told().await;
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(time.trim().parse::<u64>().unwrap() > 0);
    assert_eq!(manager.told().await, "READY=1\n");
    relay.signal(Signal::TERM);
    assert_eq!(manager.told().await, "STOPPING=1\n");
    assert_eq!(relay.ended().await, Some(0));
}

#[tokio::test]
async fn sockets_are_told_apart_by_their_names() {
    let home = tempfile::tempdir().unwrap();
    let (one, _) = listener();
    let (other, address) = listener();
    for (sockets, words) in [
        (vec![(&one, "a"), (&other, "b")], "one socket"),
        (vec![(&one, "relay"), (&other, "http")], "--acme-domain"),
        (vec![(&one, "http")], "one socket"),
    ] {
        let ended = run(activated(home.path(), &sockets, &[])).await;
        assert_eq!(ended.code, Some(2), "{}", ended.errors);
        assert!(ended.errors.contains(words), "{}", ended.errors);
    }
    // What was passed to another process is none of this one's.
    let mut command = activated(home.path(), &[(&one, "relay")], &["--listen", "127.0.0.1:0"]);
    command.env("LISTEN_PID", "1");
    let mut relay = Process::start(command);
    let line = relay.error_line("listens on http://").await;
    assert!(!line.contains(&one.local_addr().unwrap().to_string()), "{line}");

    let authority = crate::harness::tls::Authority::named("Test CA");
    let (certificate, key) = authority.write(home.path(), &["localhost"], |_| {});
    let options = [
        "--tls-cert",
        certificate.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ];
    let mut relay = Process::start(activated(home.path(), &[(&other, "http"), (&one, "relay")], &options));
    relay.error_line("sends callers").await;
    assert_eq!(Caller::connect(address, "").await.get("/x").await.status(), 308);
}

#[tokio::test]
async fn sigterm_begins_with_a_spell_and_ctrl_c_does_not() {
    let home = tempfile::tempdir().unwrap();
    let (mut relay, address) = Process::relay(home.path(), &["--lame-duck", "10m"]).await;
    relay.signal(Signal::TERM);
    relay.error_line("stopping").await;
    assert_eq!(Caller::connect(address, "").await.get("/readyz").await.status(), 503);
    assert_eq!(Caller::connect(address, "").await.get("/healthz").await.status(), 200);
    relay.signal(Signal::TERM);
    assert_eq!(relay.ended().await, Some(0));
    let (relay, _) = Process::relay(home.path(), &["--lame-duck", "10m"]).await;
    relay.signal(Signal::INT);
    assert_eq!(relay.ended().await, Some(0));
}

/// Calls again and again, each time on a connection of its own, until told to stop; how many answers came, all of them whole.
async fn call_on(address: SocketAddr, token: String, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) {
    while !stop.load(Ordering::Relaxed) {
        let mut caller = Caller::connect(address, &token).await;
        let response = caller.post("/api/chat", "{}").await;
        assert_eq!(response.status(), 200, "{:?}", response.headers());
        assert_eq!(text(response).await, "one two three");
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// A socket that is held while one relay follows another, and a desktop behind them.
struct Held {
    home: TempDir,
    listener: TcpListener,
    address: SocketAddr,
    lame_duck: &'static str,
    upstream: Upstream,
    token: String,
    _bridge: TestBridge,
}

impl Held {
    /// With the first relay.
    async fn start(upstream: Upstream, transport: Transport, lame_duck: &'static str) -> (Self, Process) {
        let home = tempfile::tempdir().unwrap();
        let (listener, address) = listener();
        let mut relay = holding(home.path(), &listener, lame_duck);
        relay.error_line("listens on").await;
        let token = token(home.path()).await;
        let bridge = TestBridge::between(address, upstream.address)
            .token(TokenSource::Given(Secret::new(&token)))
            .transport(transport)
            .start()
            .await;
        let held = Self {
            home,
            listener,
            address,
            lame_duck,
            upstream,
            token,
            _bridge: bridge,
        };
        (held, relay)
    }

    /// The next relay.
    fn next(&self) -> Process {
        holding(self.home.path(), &self.listener, self.lame_duck)
    }
}

fn holding(home: &Path, listener: &TcpListener, lame_duck: &str) -> Process {
    Process::start(activated(home, &[(listener, "relay")], &["--lame-duck", lame_duck]))
}

on_each_transport! {
    async fn a_restart_under_socket_activation_refuses_nobody_and_breaks_nothing(transport: Transport) {
        let upstream = Upstream::serving(|_| async {
            let (sender, body) = channel_body();
            tokio::spawn(async move {
                for piece in ["one", " two", " three"] {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    sender.send(piece).await;
                }
            });
            Response::new(body)
        })
        .await;
        let (held, mut relay) = Held::start(upstream, transport, "100ms").await;
        let (stop, done) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let callers: Vec<_> = (0..8)
            .map(|_| tokio::spawn(call_on(held.address, held.token.clone(), Arc::clone(&stop), Arc::clone(&done))))
            .collect();
        for _ in 0..2 {
            let before = done.load(Ordering::Relaxed);
            until("calls", || done.load(Ordering::Relaxed) >= before + 16).await;
            relay.signal(Signal::TERM);
            assert_eq!(relay.ended().await, Some(0));
            relay = held.next();
            relay.error_line("listens on").await;
        }
        let before = done.load(Ordering::Relaxed);
        until("calls", || done.load(Ordering::Relaxed) >= before + 16).await;
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.await.unwrap();
        }
    }

    async fn a_stream_in_flight_ends_well_at_the_old_relay_while_callers_wait_for_the_next(transport: Transport) {
        let (held, mut old) = Held::start(Upstream::scripted().await, transport, "0s").await;
        let address = held.address;
        let mut caller = Caller::connect(address, &held.token).await;
        let (answer, response) = tokio::join!(
            async { held.upstream.next().await.begin(Response::builder()) },
            caller.post("/api/chat", "{}"),
        );
        let mut response = response;
        answer.send("one").await;
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "one");
        old.signal(Signal::TERM);
        old.error_line("stopping").await;
        // It is accepted by the system, and answered by the next relay.
        let waiting = tokio::spawn(async move { Caller::connect(address, "").await.get("/healthz").await.status() });
        answer.send("two").await;
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "two");
        drop(answer);
        assert!(chunk(&mut response).await.is_none());
        let began = Instant::now();
        assert_eq!(old.ended().await, Some(0));
        assert!(began.elapsed() < Duration::from_secs(10), "it waited for nothing");
        let _next = held.next();
        assert_eq!(waiting.await.unwrap(), 200);
    }
}

on_each_transport! {
    async fn answers_that_begin_while_callers_wait_for_the_next_relay_arrive_whole(transport: Transport) {
        let home = tempfile::tempdir().unwrap();
        let (listener, address) = listener();
        let mut old = Process::start(activated(home.path(), &[(&listener, "relay")], &["--lame-duck", "0s"]));
        old.error_line("listens on").await;
        let upstream = Upstream::scripted().await;
        let token = token(home.path()).await;
        let source = TokenSource::Given(Secret::new(&token));
        let bridge = TestBridge::between(address, upstream.address).token(source).transport(transport).start().await;
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let mut caller = Caller::connect(address, &token).await;
            callers.spawn(async move { text(caller.post("/api/chat", "{}").await).await });
        }
        let mut calls = Vec::new();
        while calls.len() < callers.len() {
            calls.push(upstream.next().await);
        }
        old.signal(Signal::TERM);
        bridge.disconnected().await;
        let began = Instant::now();
        let answers: Vec<_> = calls.into_iter().map(|call| call.begin(Response::builder())).collect();
        for piece in ["one", " two"] {
            for answer in &answers {
                answer.send(piece).await;
            }
        }
        drop(answers);
        while let Some(answer) = callers.join_next().await {
            assert_eq!(answer.unwrap(), "one two");
        }
        assert_eq!(old.ended().await, Some(0));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}

/// How much is asked for while relays are restarted under it.
struct Load {
    exchanges: usize,
    callers: usize,
    /// How long a stream lasts, which every tenth answer is.
    stream: Duration,
}

impl Load {
    /// The long run (`TUNNEL_LONG_TESTS=1`) is one of minutes.
    fn of_this_run() -> Self {
        if long() {
            return Self {
                exchanges: 5000,
                callers: 32,
                stream: Duration::from_secs(5),
            };
        }
        Self {
            exchanges: 320,
            callers: 16,
            stream: Duration::from_secs(2),
        }
    }

    /// Answers whose first piece takes a while, as that of a model which is being loaded does.
    async fn upstream(&self) -> Upstream {
        let stream = self.stream;
        Upstream::serving(move |request| {
            let pause = if request.uri().path() == "/api/generate" {
                stream / PIECES
            } else {
                Duration::from_millis(10)
            };
            async move {
                tokio::time::sleep(pause * 2).await;
                let (sender, body) = channel_body();
                tokio::spawn(async move {
                    for number in 0..PIECES {
                        if !sender.try_send(format!("{number} ")).await {
                            return;
                        }
                        tokio::time::sleep(pause).await;
                    }
                });
                Response::new(body)
            }
        })
        .await
    }
}

/// Of one answer.
const PIECES: u32 = 10;

/// One exchange on a connection of its own; what went wrong, if anything did.
async fn exchange(address: SocketAddr, token: &str, path: &str) -> Result<(), String> {
    let began = Instant::now();
    let mut caller = Caller::connect(address, token).await;
    let tell = |what: String| format!("{path}, after {:?}: {what}", began.elapsed());
    let response = caller.try_send(post(path, "{}")).await;
    let response = response.map_err(|error| tell(error.to_string()))?;
    if response.status() != 200 {
        let code = response.headers().get("tunnel-error").cloned();
        return Err(tell(format!("{} {code:?}", response.status())));
    }
    let body = response.into_body().collect().await;
    let body = body.map_err(|error| tell(error.to_string()))?.to_bytes();
    let whole: String = (0..PIECES).map(|number| format!("{number} ")).collect();
    if body == whole {
        Ok(())
    } else {
        Err(tell(format!("{body:?}")))
    }
}

on_each_transport! {
    async fn no_exchange_fails_while_relays_are_restarted_under_socket_activation(transport: Transport) {
        let load = Load::of_this_run();
        let home = tempfile::tempdir().unwrap();
        let (listener, address) = listener();
        let options = ["--lame-duck", "200ms", "--access-log", "off"];
        let start = || Process::start(activated(home.path(), &[(&listener, "relay")], &options));
        let mut relay = start();
        relay.error_line("listens on").await;
        let upstream = load.upstream().await;
        let token = token(home.path()).await;
        let source = TokenSource::Given(Secret::new(&token));
        let _bridge = TestBridge::between(address, upstream.address).token(source).transport(transport).start().await;
        let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..load.callers {
            let (token, begun, done) = (token.clone(), Arc::clone(&begun), Arc::clone(&done));
            callers.spawn(async move {
                let mut failed = Vec::new();
                loop {
                    let number = begun.fetch_add(1, Ordering::Relaxed);
                    if number >= load.exchanges {
                        return failed;
                    }
                    let path = if number % 10 == 0 { "/api/generate" } else { "/api/chat" };
                    failed.extend(exchange(address, &token, path).await.err());
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for restart in 1..=3 {
            let enough = load.exchanges / 4 * restart;
            until_within(load.stream * 100, "exchanges", || done.load(Ordering::Relaxed) >= enough).await;
            relay.signal(Signal::TERM);
            assert_eq!(relay.ended().await, Some(0));
            relay = start();
            relay.error_line("listens on").await;
        }
        let failed = callers.join_all().await.concat();
        assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), load.exchanges);
    }
}

/// As a manager does that starts the next before the old one has ended.
#[tokio::test]
async fn the_next_relay_may_start_while_the_old_one_finishes() {
    let (held, mut old) = Held::start(Upstream::scripted().await, Transport::Ws, "0s").await;
    let mut caller = Caller::connect(held.address, &held.token).await;
    let (answer, mut response) = tokio::join!(
        async { held.upstream.next().await.begin(Response::builder()) },
        caller.post("/api/chat", "{}"),
    );
    old.signal(Signal::TERM);
    old.error_line("stopping").await;
    let _next = held.next();
    let mut other = Caller::connect(held.address, &held.token).await;
    let ((), fresh) = tokio::join!(
        async { held.upstream.next().await.finish(Response::new(full("the next"))) },
        other.post("/api/chat", "{}"),
    );
    assert_eq!(text(fresh).await, "the next");
    answer.send("the old").await;
    drop(answer);
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "the old");
    assert!(chunk(&mut response).await.is_none());
    assert_eq!(old.ended().await, Some(0));
}
