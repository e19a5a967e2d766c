//! The program itself: memory, signals, exit codes, what it says.
#![cfg(target_os = "linux")]

use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::BodyExt;
use rustix::process::Signal;
use tokio::sync::Semaphore;
use tunnel::transport::{Body, full};

use crate::harness::bridge::Transport;
use crate::harness::process::{Process, command, run};
use crate::harness::upstream::channel_body;
use crate::harness::{Caller, Upstream, chunk, on_each_transport, post, text, within};

const MIB: usize = 1024 * 1024;
const MEMORY: u64 = 64 * MIB as u64;

struct Processes {
    relay: Process,
    bridge: Process,
    address: std::net::SocketAddr,
    token: String,
    _home: tempfile::TempDir,
}

async fn processes(upstream: &Upstream, transport: Transport) -> Processes {
    let home = tempfile::tempdir().unwrap();
    let (relay, address) = Process::relay(home.path(), &[]).await;
    let token = run(command(home.path(), &["relay", "token", "--user", "ann"])).await;
    assert_eq!((token.code, token.errors.as_str()), (Some(0), ""));
    let token = token.output.trim().to_owned();
    let local = format!("http://{}", upstream.address);
    let options = ["--upstream", &local, "--allow", "* /*", "--transport", transport.name()];
    let bridge = Process::bridge(home.path(), address, &token, &options).await;
    Processes {
        relay,
        bridge,
        address,
        token,
        _home: home,
    }
}

impl Processes {
    async fn caller(&self) -> Caller {
        Caller::connect(self.address, &self.token).await
    }

    fn check_memory(&self) {
        for (name, process) in [("relay", &self.relay), ("bridge", &self.bridge)] {
            let most = process.most_memory();
            assert!(most < MEMORY, "the {name} held {} MiB", most / MIB as u64);
        }
    }
}

/// A piece of a long body, different at each place.
fn piece(number: usize) -> Bytes {
    let mut state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(64 * 1024);
    while bytes.len() < 64 * 1024 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.into()
}

/// Reads a body and compares it with `pieces` pieces.
async fn compare(mut body: impl http_body::Body<Data = Bytes, Error = hyper::Error> + Unpin, pieces: usize) {
    let mut expected = Bytes::new();
    let mut number = 0;
    while let Some(frame) = within("more of the body", body.frame()).await {
        let mut data = frame.unwrap().into_data().unwrap();
        while !data.is_empty() {
            if expected.is_empty() {
                expected = piece(number);
                number += 1;
            }
            let length = data.len().min(expected.len());
            assert!(
                data.split_to(length) == expected.split_to(length),
                "piece {number} came changed"
            );
        }
    }
    assert_eq!((number, expected.len()), (pieces, 0));
}

on_each_transport! {
    async fn a_quarter_of_a_gibibyte_each_way_passes_unchanged_and_is_held_nowhere(transport: Transport) {
        let upstream = Upstream::scripted().await;
        let processes = processes(&upstream, transport).await;
        let pieces = 256 * 16;
        let mut caller = processes.caller().await;
        let (answer, response) = tokio::join!(
            async { upstream.next().await.begin(Response::builder()) },
            caller.post("/down", ""),
        );
        let sending = async move {
            for number in 0..pieces {
                answer.send(piece(number)).await;
            }
        };
        tokio::join!(sending, compare(response.into_body(), pieces));

        let (sender, body) = channel_body();
        let sending = tokio::spawn(async move {
            for number in 0..pieces {
                sender.send(piece(number)).await;
            }
        });
        let ((), response) = tokio::join!(
            async {
                let call = upstream.next().await;
                let (request, reply) = call.split();
                compare(request.into_body(), pieces).await;
                reply.send(Response::new(full("taken"))).unwrap();
            },
            async {
                let request = Request::post("/up").body(body).unwrap();
                // The whole upload may take longer than any other answer here.
                caller.try_send(request).await.unwrap()
            },
        );
        assert_eq!(text(response).await, "taken");
        sending.await.unwrap();
        processes.check_memory();
    }

    async fn as_many_slow_readers_as_may_be_in_flight_fill_nobodys_memory(transport: Transport) {
        let whole = Bytes::from(vec![7; 4 * MIB]);
        let body = whole.clone();
        let upstream = Upstream::serving(move |request: Request<hyper::body::Incoming>| {
            let small = request.uri().path() == "/small";
            let body = if small {
                Bytes::from_static(b"small")
            } else {
                body.clone()
            };
            async move { Response::new(full(body)) }
        })
        .await;
        let processes = processes(&upstream, transport).await;
        let mut slow = Vec::new();
        for _ in 0..127 {
            let mut caller = processes.caller().await;
            let response = caller.post("/large", "").await;
            slow.push((caller, response));
        }
        let mut quick = processes.caller().await;
        for _ in 0..200 {
            assert_eq!(text(quick.post("/small", "").await).await, "small");
        }
        processes.check_memory();
        for (_caller, response) in slow {
            let body = within("a slow body", response.into_body().collect()).await.unwrap();
            assert!(body.to_bytes() == whole);
        }
    }

    async fn a_thousand_exchanges_leave_memory_where_it_was(transport: Transport) {
        let upstream = Upstream::serving(|request: Request<hyper::body::Incoming>| async move {
            let body: Body = request.into_body().map_err(Into::into).boxed_unsync();
            Response::new(body)
        })
        .await;
        let processes = processes(&upstream, transport).await;
        let lanes = Semaphore::new(64);
        join_all((0..1000usize).map(|number| {
            let (processes, lanes) = (&processes, &lanes);
            async move {
                let _lane = lanes.acquire().await.unwrap();
                let sent = piece(number).slice(..(number * 7919) % 65_536);
                let mut caller = processes.caller().await;
                let response = caller.send(post("/echo", sent.clone())).await;
                let echoed = within("the echo", response.into_body().collect())
                    .await
                    .unwrap()
                    .to_bytes();
                assert!(echoed == sent, "exchange {number} came back changed");
            }
        }))
        .await;
        processes.check_memory();
    }
}

#[tokio::test]
async fn a_first_start_makes_a_secret_for_the_owner_alone_and_a_token_is_all_that_is_printed() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let folder = data.to_str().unwrap();
    let (mut relay, _) = Process::relay(home.path(), &["--data-dir", folder]).await;
    let next = relay.error_line("Next, a token").await;
    assert!(next.contains("--data-dir"), "{next}");
    let secret = data.join("jwt.secret");
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(&secret).unwrap().trim().len(), 64);
    let arguments = [
        "relay",
        "token",
        "--user",
        "ann",
        "--scope",
        "api",
        "--expires",
        "never",
        "--data-dir",
        folder,
    ];
    let token = run(command(home.path(), &arguments)).await;
    assert_eq!(token.output.trim().split('.').count(), 3);
    assert_eq!(token.output.lines().count(), 1);
    let claims = tunnel::token::Claims::peek(&tunnel::token::Secret::new(&token.output)).unwrap();
    assert_eq!(
        (claims.sub.as_str(), claims.scope.as_deref(), claims.exp),
        ("ann", Some("api"), None)
    );
    relay.signal(Signal::TERM);
    assert_eq!(relay.ended().await, Some(0));
}

#[tokio::test]
async fn the_exit_code_and_the_words_tell_what_was_wrong() {
    let home = tempfile::tempdir().unwrap();
    let upstream = Upstream::scripted().await;
    let (_relay, address) = Process::relay(home.path(), &[]).await;
    let at = format!("http://{address}");
    for (arguments, token, code, words) in [
        (vec!["bridge"], None, 2, "TUNNEL_TOKEN=… tunnel bridge --relay"),
        (vec!["bridge", "--relay", &at], None, 2, "a token is needed"),
        (vec!["bridge", "--relay", "nowhere"], Some("x"), 2, "--relay"),
        (
            vec!["bridge", "--relay", "http://relay.example.com"],
            Some("x"),
            2,
            "--insecure-http",
        ),
        (vec!["bridge", "--relay", &at, "--name", "a b"], Some("x"), 2, "--name"),
        (
            vec!["bridge", "--relay", &at, "--allow", "nonsense"],
            Some("x"),
            2,
            "--allow",
        ),
        (
            vec!["bridge", "--relay", &at],
            Some("not-a-token"),
            3,
            "tunnel relay token --user NAME",
        ),
        (vec!["bridge", "--relay", &at, "--token", "x"], None, 2, "--token"),
        (
            vec!["bridge", "--relay", &at, "--proxy", "http://ann:secret@proxy:3128"],
            Some("x"),
            2,
            "takes no password",
        ),
        (
            vec!["bridge", "--relay", &at, "--proxy", "http://p", "--proxy-file", "f"],
            Some("x"),
            2,
            "give one",
        ),
        (
            vec!["bridge", "--relay", &at, "--transport", "pigeon"],
            Some("x"),
            2,
            "auto",
        ),
        (vec!["relay", "--transports", "pigeon"], None, 2, "poll"),
        (vec!["relay", "--prefer-ws", "101"], None, 2, "0..=100"),
        (vec!["relay", "--listen", "8080"], None, 2, "127.0.0.1:8080"),
        (
            vec!["relay", "--listen", address.to_string().leak()],
            None,
            1,
            "--listen ADDR",
        ),
        (vec!["relay", "token"], None, 2, "--user"),
        (
            vec!["relay", "token", "--user", "a", "--scope", "root"],
            None,
            2,
            "bridge,api",
        ),
        (vec!["relay", "--cors-origin", "app.example"], None, 2, "origin"),
        (vec!["relay", "--max-body", "much"], None, 2, "64KiB"),
        (vec!["relay", "--rate", "20"], None, 2, "600/m"),
        (vec!["relay", "--rate", "0/s"], None, 2, "600/m"),
        (vec!["relay", "--burst", "40"], None, 2, "--rate"),
    ] {
        let mut command = command(home.path(), &arguments);
        if let Some(token) = token {
            command.env("TUNNEL_TOKEN", token);
        }
        let ended = run(command).await;
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.errors);
        assert!(ended.errors.contains(words), "{arguments:?}: {}", ended.errors);
        assert_eq!(ended.output, "", "{arguments:?}");
    }
    drop(upstream);
}

#[tokio::test]
async fn help_has_a_sentence_groups_and_an_example() {
    let home = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (
            vec!["--help"],
            vec![
                "Usage:",
                "relay",
                "bridge",
                "Exit codes: 0 done, 1 failed, 2 wrong usage",
            ],
        ),
        (
            vec!["relay", "--help"],
            vec![
                "Limits:",
                "Data:",
                "TLS:",
                "Network:",
                "Examples:",
                "--max-in-flight-per-bridge",
            ],
        ),
        (
            vec!["bridge", "--help"],
            vec!["Local server:", "Network:", "Examples:", "--allow-manage"],
        ),
        (vec!["relay", "token", "--help"], vec!["--expires", "90d"]),
        (vec!["--version"], vec![env!("CARGO_PKG_VERSION")]),
    ] {
        let ended = run(command(home.path(), &arguments)).await;
        assert_eq!(ended.code, Some(0));
        for word in words {
            assert!(
                ended.output.contains(word),
                "{arguments:?} lacks {word}: {}",
                ended.output
            );
        }
    }
}

#[tokio::test]
async fn options_come_from_the_environment_and_flags_win() {
    let home = tempfile::tempdir().unwrap();
    let mut from_environment = command(home.path(), &["relay", "token"]);
    from_environment.env("TUNNEL_USER", "env").env("TUNNEL_EXPIRES", "1h");
    let ended = run(from_environment).await;
    let claims = tunnel::token::Claims::peek(&tunnel::token::Secret::new(&ended.output)).unwrap();
    assert_eq!(
        (claims.sub.as_str(), claims.exp.unwrap() - claims.iat.unwrap()),
        ("env", 3600)
    );
    let mut both = command(home.path(), &["relay", "token", "--user", "flag"]);
    both.env("TUNNEL_USER", "env");
    let ended = run(both).await;
    let claims = tunnel::token::Claims::peek(&tunnel::token::Secret::new(&ended.output)).unwrap();
    assert_eq!(claims.sub, "flag");
}

#[tokio::test]
async fn the_demonstration_prints_what_works_when_pasted() {
    let home = tempfile::tempdir().unwrap();
    let arguments = ["relay", "--demo", "--listen", "127.0.0.1:0", "--demo-pace", "1ms"];
    let mut demo = Process::start(command(home.path(), &arguments));
    let line = demo.output_line("curl -N").await;
    let url = line
        .split_whitespace()
        .find(|word| word.starts_with("http://"))
        .unwrap();
    let address = url
        .trim_start_matches("http://")
        .trim_end_matches("/api/chat")
        .parse()
        .unwrap();
    let token = line.split("Bearer ").nth(1).unwrap().split('\'').next().unwrap();
    let mut caller = Caller::connect(address, token).await;
    let chat = r#"{"model":"demo","messages":[{"role":"user","content":"Hello!"}]}"#;
    let mut response = caller.post("/api/chat", chat).await;
    let mut lines = String::new();
    let mut pieces = 0;
    while let Some(piece) = chunk(&mut response).await {
        lines.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        pieces += 1;
    }
    assert!(pieces > 5, "not streamed");
    assert!(
        lines.trim_end().lines().last().unwrap().contains(r#""done":true"#),
        "{lines}"
    );
    demo.signal(Signal::INT);
    assert_eq!(demo.ended().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let upstream = Upstream::scripted().await;
    let processes = processes(&upstream, Transport::Ws).await;
    let mut caller = processes.caller().await;
    let (answer, response) = tokio::join!(
        async { upstream.next().await.begin(Response::builder()) },
        caller.post("/api/chat", "{}"),
    );
    let mut response = response;
    let Processes { mut relay, .. } = processes;
    relay.signal(Signal::TERM);
    relay.error_line("stopping").await;
    answer.send("still served").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "still served");
    relay.signal(Signal::TERM);
    assert_eq!(relay.ended().await, Some(0));
    assert!(chunk(&mut response).await.unwrap().is_err());
}
