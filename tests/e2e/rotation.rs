//! SIGHUP: another secret while the one before is accepted, then without it; the log's level. Nothing is restarted.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Response;
use rustix::process::Signal;
use tokio::time::Instant;
use tunnel::bridge::config::TokenSource;
use tunnel::token::Secret;
use tunnel::transport::full;

use crate::harness::process::{Process, command, run};
use crate::harness::{Caller, TestBridge, Upstream, chunk, json, on_each_transport, text};

const NEW_SECRET: &str = "another secret, of more than 32 characters\n";

async fn token(home: &Path, data: &str) -> String {
    let arguments = ["relay", "token", "--user", "ann", "--data-dir", data];
    run(command(home, &arguments)).await.output.trim().to_owned()
}

async fn reload(relay: &mut Process) {
    relay.signal(Signal::HUP);
    relay.error_line("what=\"log level\"").await;
}

async fn status(address: SocketAddr, token: &str) -> u16 {
    Caller::connect(address, token)
        .await
        .get("/api/tags")
        .await
        .status()
        .as_u16()
}

/// The id of the one bridge.
async fn bridge_id(address: SocketAddr, token: &str) -> String {
    let list = json(Caller::connect(address, token).await.get("/api/bridge").await).await;
    list["bridges"][0]["id"].as_str().unwrap().to_owned()
}

on_each_transport! {
    async fn a_secret_is_replaced_while_bridges_and_callers_go_on(transport: Transport) {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        let folder = data.to_str().unwrap();
        let (mut relay, address) = Process::relay(home.path(), &["--data-dir", folder]).await;
        let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
        let old = token(home.path(), folder).await;
        let plan = |token: &str| {
            TestBridge::between(address, upstream.address)
                .client_id("the same desktop")
                .token(TokenSource::Given(Secret::new(token)))
                .transport(transport)
        };
        let bridge = plan(&old).start().await;
        assert_eq!(status(address, &old).await, 200);
        let id = bridge_id(address, &old).await;

        let (secret, previous) = (data.join("jwt.secret"), data.join("jwt.secret.previous"));
        fs::copy(&secret, &previous).unwrap();
        fs::write(&secret, NEW_SECRET).unwrap();
        reload(&mut relay).await;
        let new = token(home.path(), folder).await;
        for token in [&old, &new] {
            assert_eq!(status(address, token).await, 200);
            assert_eq!(bridge_id(address, token).await, id);
        }

        fs::remove_file(&previous).unwrap();
        let began = Instant::now();
        relay.signal(Signal::HUP);
        bridge.disconnected().await;
        assert!(began.elapsed() < Duration::from_secs(1), "cut after {:?}", began.elapsed());
        assert_eq!(status(address, &old).await, 401);
        bridge.stop().await;
        let _bridge = plan(&new).start().await;
        assert_eq!(status(address, &new).await, 200);
        assert_eq!(bridge_id(address, &new).await, id);
    }

    async fn a_stream_goes_on_over_a_rotation(transport: Transport) {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        let folder = data.to_str().unwrap();
        let (mut relay, address) = Process::relay(home.path(), &["--data-dir", folder]).await;
        let upstream = Upstream::scripted().await;
        let old = token(home.path(), folder).await;
        let source = TokenSource::Given(Secret::new(&old));
        let _bridge = TestBridge::between(address, upstream.address).token(source).transport(transport).start().await;
        let mut caller = Caller::connect(address, &old).await;
        let (answer, response) = tokio::join!(
            async { upstream.next().await.begin(Response::builder()) },
            caller.post("/api/chat", "{}"),
        );
        let mut response = response;
        fs::copy(data.join("jwt.secret"), data.join("jwt.secret.previous")).unwrap();
        fs::write(data.join("jwt.secret"), NEW_SECRET).unwrap();
        reload(&mut relay).await;
        answer.send("still here").await;
        drop(answer);
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "still here");
        assert!(chunk(&mut response).await.is_none());
    }
}

/// A relay that has its secret and its level from these files.
async fn reading(home: &Path, level: &str) -> (Process, SocketAddr, [PathBuf; 2]) {
    let files = ["secret", "level"].map(|name| home.join(name));
    let [secret_file, level_file] = files.each_ref().map(|path| path.to_str().unwrap());
    fs::write(secret_file, NEW_SECRET).unwrap();
    fs::write(level_file, level).unwrap();
    let options = ["--jwt-secret-file", secret_file, "--log-level-file", level_file];
    let (relay, address) = Process::relay(home, &options).await;
    (relay, address, files)
}

#[tokio::test]
async fn what_cannot_be_read_again_stays_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let (mut relay, address, [secret, level]) = reading(home.path(), "info\n").await;
    let issue = [
        "relay",
        "token",
        "--user",
        "ann",
        "--jwt-secret-file",
        secret.to_str().unwrap(),
    ];
    let token = run(command(home.path(), &issue)).await.output.trim().to_owned();

    fs::write(&secret, "short").unwrap();
    fs::write(&level, "debug").unwrap();
    relay.signal(Signal::HUP);
    let line = relay.error_line("goes on").await;
    assert!(line.contains("shorter than 32"), "{line}");
    relay.error_line("what=\"log level\"").await;
    let list = Caller::connect(address, &token).await.get("/api/bridge").await;
    assert_eq!(text(list).await, r#"{"bridges":[],"shared":[]}"#);
    relay.error_line("DEBUG").await;

    fs::write(&level, "loud").unwrap();
    relay.signal(Signal::HUP);
    let line = relay.error_line("--log-level-file").await;
    assert!(line.contains("the levels are"), "{line}");
    let ended = run(command(
        home.path(),
        &["relay", "--log-level-file", level.to_str().unwrap()],
    ))
    .await;
    assert_eq!(ended.code, Some(2), "{}", ended.errors);
}

#[tokio::test]
async fn the_access_log_follows_the_level_of_the_log() {
    let home = tempfile::tempdir().unwrap();
    let (mut relay, address, [secret, level]) = reading(home.path(), "warn").await;
    let mut caller = Caller::connect(address, "nobody's").await;
    for words in ["path=/first", "path=/second"] {
        fs::write(&secret, NEW_SECRET).unwrap();
        fs::write(&level, "info").unwrap();
        relay.signal(Signal::HUP);
        let line = line_before("path=/unseen", "what=\"log level\"", &mut relay).await;
        assert!(line.contains("read again"), "{line}");
        text(caller.get(&words["path=".len()..]).await).await;
        line_before("path=/unseen", words, &mut relay).await;

        // What cannot be read is told at this level, too.
        fs::write(&secret, "short").unwrap();
        fs::write(&level, "warn").unwrap();
        relay.signal(Signal::HUP);
        relay.error_line("goes on").await;
        // The one is over when the other is answered.
        text(caller.get("/unseen").await).await;
        text(caller.get("/afterwards").await).await;
    }
}

/// The next line with these words; none before it has the others.
async fn line_before(never: &str, words: &str, relay: &mut Process) -> String {
    loop {
        let line = relay.error_line("").await;
        assert!(!line.contains(never), "{line}");
        if line.contains(words) {
            return line;
        }
    }
}

#[tokio::test]
async fn ids_of_bridges_are_kept_beside_the_secret_and_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().to_str().unwrap();
    let (_relay, _) = Process::relay(home.path(), &["--data-dir", folder]).await;
    let key = home.path().join("bridge-ids.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&key, "damaged").unwrap();
    let ended = run(command(home.path(), &["relay", "--data-dir", folder])).await;
    assert_eq!(ended.code, Some(2), "{}", ended.errors);
    assert!(ended.errors.contains("bridge-ids.key"), "{}", ended.errors);
}
