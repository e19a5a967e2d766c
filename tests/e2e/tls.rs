//! TLS of the relay's own: what is spoken, whose certificate is shown, and what happens when its files change.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use rcgen::{CertificateParams, SerialNumber, date_time_ymd};
use rustls::version::{TLS12, TLS13};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tunnel::relay::config::Config;
use tunnel::relay::tls::Tls;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::caller::Raw;
use crate::harness::tls::{Authority, connector};
use crate::harness::{
    Caller, TestBridge, TestRelay, Upstream, chat_in_lock_step, chunk, on_each_transport, ready, text, until,
};

pub(crate) const HOST: &str = "localhost";

/// A relay that shows a certificate from files.
pub(crate) struct Sealed {
    pub(crate) relay: TestRelay,
    pub(crate) authority: Authority,
    folder: TempDir,
}

impl Sealed {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let authority = Authority::named("Test CA");
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = authority.write(folder.path(), &[HOST], |_| {});
        let relay = TestRelay::with(|config| {
            config.tls = Some(Tls::from_files(certificate, key).unwrap());
            change(config);
        })
        .await;
        Self {
            relay,
            authority,
            folder,
        }
    }

    /// Puts another certificate into the files, one after the other.
    fn replace(&self, serial: u8) {
        let elsewhere = tempfile::tempdir().unwrap();
        let change = |params: &mut CertificateParams| params.serial_number = Some(SerialNumber::from(vec![serial]));
        let (certificate, key) = self.authority.write(elsewhere.path(), &[HOST], change);
        for path in [certificate, key] {
            std::fs::copy(&path, self.folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }

    pub(crate) async fn bridge(&self, upstream: &Upstream, transport: Transport) -> TestBridge {
        let bridge = TestBridge::to(&self.relay, upstream)
            .transport(transport)
            .allow("* /*")
            .relay_url(format!("https://{HOST}:{}", self.relay.address.port()))
            .ca_file(self.authority.ca_file())
            .start()
            .await;
        ready(&self.relay, "ann").await;
        bridge
    }

    pub(crate) async fn caller(&self, tls: &TlsConnector) -> Caller {
        Caller::connect_tls(self.relay.address, HOST, tls, &self.relay.token("ann")).await
    }

    /// The serial number of the certificate that a new caller sees.
    async fn serial(&self, tls: &TlsConnector) -> std::io::Result<Vec<u8>> {
        let stream = TcpStream::connect(self.relay.address).await?;
        let stream = tls.connect(HOST.try_into().unwrap(), stream).await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let (_, shown) = x509_parser::parse_x509_certificate(&shown).unwrap();
        Ok(shown.raw_serial().to_vec())
    }
}

on_each_transport! {
    async fn callers_and_bridges_meet_by_tls(transport: Transport) {
        let sealed = Sealed::start().await;
        let upstream = Upstream::scripted().await;
        let bridge = sealed.bridge(&upstream, transport).await;
        for protocols in [["http/1.1"].as_slice(), &["h2", "http/1.1"]] {
            let mut caller = sealed.caller(&sealed.authority.connector(protocols)).await;
            chat_in_lock_step(&upstream, &mut caller).await;
            let upload = vec![b'x'; 3_000_000];
            let (received, response) = tokio::join!(
                async {
                    let mut call = upstream.next().await;
                    let mut received = 0;
                    while let Some(piece) = call.read().await {
                        received += piece.len();
                    }
                    let headers = call.request.headers();
                    assert_eq!(headers["x-forwarded-proto"], "https");
                    call.finish(Response::new(full(vec![b'y'; 3_000_000])));
                    received
                },
                caller.post("/api/chat", upload),
            );
            assert_eq!(received, 3_000_000);
            assert_eq!(response.headers()["strict-transport-security"], "max-age=31536000");
            assert_eq!(text(response).await.len(), 3_000_000);
        }
        bridge.stop().await;
    }

    async fn an_answer_that_breaks_off_is_broken_by_tls_too(transport: Transport) {
        let sealed = Sealed::start().await;
        let upstream = Upstream::scripted().await;
        let bridge = sealed.bridge(&upstream, transport).await;
        for protocols in [["http/1.1"].as_slice(), &["h2"]] {
            let mut caller = sealed.caller(&sealed.authority.connector(protocols)).await;
            let (answer, mut response) = tokio::join!(
                async { upstream.next().await.begin(Response::builder()) },
                caller.post("/api/chat", "{}"),
            );
            answer.send("first").await;
            assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "first");
            answer.break_off().await;
            assert!(chunk(&mut response).await.unwrap().is_err());
        }
        bridge.stop().await;
    }

    async fn a_caller_who_leaves_is_seen_leaving_by_tls_too(transport: Transport) {
        let sealed = Sealed::start().await;
        let upstream = Upstream::scripted().await;
        let bridge = sealed.bridge(&upstream, transport).await;
        let mut caller = sealed.caller(&sealed.authority.connector(&[])).await;
        let (answer, response) = tokio::join!(
            async { upstream.next().await.begin(Response::builder()) },
            caller.post("/api/chat", "{}"),
        );
        drop((caller, response));
        answer.abandoned().await;
        bridge.stop().await;
    }

    async fn a_relay_that_stops_lets_streams_by_tls_finish(transport: Transport) {
        let sealed = Sealed::start().await;
        let upstream = Upstream::scripted().await;
        let bridge = sealed.bridge(&upstream, transport).await;
        let mut caller = sealed.caller(&sealed.authority.connector(&["h2"])).await;
        let (answer, mut response) = tokio::join!(
            async { upstream.next().await.begin(Response::builder()) },
            caller.post("/api/chat", "{}"),
        );
        sealed.relay.shutdown.drain();
        answer.send("last").await;
        drop(answer);
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "last");
        assert!(chunk(&mut response).await.is_none());
        sealed.relay.stopped().await;
        drop(bridge);
    }
}

#[tokio::test]
async fn tls_1_2_and_1_3_and_both_kinds_of_http_are_spoken() {
    let sealed = Sealed::start().await;
    let roots = std::fs::read_to_string(sealed.authority.ca_file()).unwrap();
    for version in [&TLS12, &TLS13] {
        for (offered, taken) in [
            (["h2", "http/1.1"].as_slice(), Some("h2")),
            (&["http/1.1", "h2"], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let tls = connector(&roots, offered, &[version]);
            let stream = TcpStream::connect(sealed.relay.address).await.unwrap();
            let stream = tls.connect(HOST.try_into().unwrap(), stream).await.unwrap();
            let spoken = stream.get_ref().1;
            assert_eq!(spoken.protocol_version(), Some(version.version));
            assert_eq!(spoken.alpn_protocol(), taken.map(str::as_bytes));
            let response = sealed.caller(&tls).await.get("/healthz").await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["strict-transport-security"], "max-age=31536000");
        }
    }
}

/// The answers of the relay itself, too, and those that an upstream had another opinion on.
#[tokio::test]
async fn every_answer_by_tls_asks_browsers_to_come_by_tls_and_none_in_clear_does() {
    let sealed = Sealed::start().await;
    let upstream = Upstream::scripted().await;
    let bridge = sealed.bridge(&upstream, Transport::Ws).await;
    let tls = sealed.authority.connector(&[]);
    let mut caller = sealed.caller(&tls).await;
    let ((), response) = tokio::join!(
        async {
            let response = Response::builder().header("strict-transport-security", "max-age=0");
            let call = upstream.next().await;
            call.finish(response.body(full("x")).unwrap());
        },
        caller.post("/api/chat", "{}"),
    );
    let fields: Vec<_> = response.headers().get_all("strict-transport-security").iter().collect();
    assert_eq!(fields, ["max-age=31536000"]);
    let response = Caller::connect_tls(sealed.relay.address, HOST, &tls, "wrong")
        .await
        .get("/api/tags")
        .await;
    assert_eq!(
        (
            response.status().as_u16(),
            response.headers().contains_key("strict-transport-security")
        ),
        (401, true)
    );
    let plain = TestRelay::start().await;
    let response = Caller::connect(plain.address, "").await.get("/healthz").await;
    assert!(!response.headers().contains_key("strict-transport-security"));
    bridge.stop().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_come_ends_in_time_and_holds_nobody_up() {
    let sealed = Sealed::with(|config| config.limits.first_head = Duration::from_millis(300)).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(Raw::connect(sealed.relay.address).await);
    }
    // The beginning of a handshake, and no more of it.
    silent[0].send([0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await;
    // It counts among the connections.
    let free = || sealed.relay.relay.free_connections();
    until("the silent ones to be accepted", || free() < 10_000 - 50).await;
    let tls = sealed.authority.connector(&[]);
    assert_eq!(sealed.caller(&tls).await.get("/healthz").await.status(), 200);
    for mut raw in silent {
        // With or without words of TLS.
        raw.rest().await.ok();
    }
    until("room for others", || free() >= 10_000 - 2).await;
}

#[tokio::test]
async fn plain_http_to_the_port_with_tls_is_refused_and_not_answered() {
    let sealed = Sealed::start().await;
    let mut raw = Raw::connect(sealed.relay.address).await;
    raw.send("GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n").await;
    let answer = raw.rest().await.unwrap_or_default();
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
}

#[tokio::test]
async fn certificates_replaced_on_disk_under_load_fail_no_handshake_and_drop_no_connection() {
    let sealed = Arc::new(Sealed::start().await);
    let tls = sealed.authority.connector(&[]);
    let upstream = Upstream::scripted().await;
    let bridge = sealed.bridge(&upstream, Transport::Ws).await;
    let mut old = sealed.caller(&tls).await;
    let (answer, mut response) = tokio::join!(
        async { upstream.next().await.begin(Response::builder()) },
        old.post("/api/chat", "{}"),
    );
    let (stop, handshakes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (sealed, tls) = (Arc::clone(&sealed), tls.clone());
            let (stop, handshakes) = (Arc::clone(&stop), Arc::clone(&handshakes));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    sealed.serial(&tls).await.unwrap();
                    handshakes.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for serial in [1, 2] {
        sealed.replace(serial);
        shown(&sealed, &tls, serial).await;
    }
    // A pair that is none, files that are gone, then a good one again.
    let elsewhere = tempfile::tempdir().unwrap();
    let (_, key) = sealed.authority.write(elsewhere.path(), &[HOST], |_| {});
    std::fs::copy(key, sealed.folder.path().join("key.pem")).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    std::fs::remove_file(sealed.folder.path().join("cert.pem")).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(sealed.serial(&tls).await.unwrap(), [2]);
    sealed.replace(3);
    shown(&sealed, &tls, 3).await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
    assert!(handshakes.load(Ordering::Relaxed) > 50);
    answer.send("still here").await;
    assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "still here");
    bridge.stop().await;
}

/// Waits until a new caller sees the certificate with this number.
async fn shown(sealed: &Sealed, tls: &TlsConnector, serial: u8) {
    let seen = async {
        while sealed.serial(tls).await.unwrap() != [serial] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    crate::harness::within("the certificate from the files", seen).await;
}

#[cfg(target_os = "linux")]
mod told {
    use super::*;
    use crate::harness::process::{Process, command, run};

    /// Files to give to the program.
    fn files(change: impl FnOnce(&mut CertificateParams)) -> (TempDir, [String; 2], PathBuf) {
        let authority = Authority::named("Test CA");
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = authority.write(folder.path(), &[HOST], change);
        let ca = folder.path().join("ca.pem");
        std::fs::copy(authority.ca_file(), &ca).unwrap();
        (
            folder,
            [certificate, key].map(|path| path.to_str().unwrap().to_owned()),
            ca,
        )
    }

    #[tokio::test]
    async fn files_that_cannot_be_used_are_told_at_the_start() {
        let (folder, [certificate, key], _) = files(|_| {});
        let (_other, [_, other], _) = files(|_| {});
        let locked = folder.path().join("locked.pem");
        std::fs::write(
            &locked,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        )
        .unwrap();
        let locked = locked.to_str().unwrap();
        let url = ["--public-url", "http://relay.example.com"];
        for (arguments, words) in [
            (vec!["--tls-cert", &certificate], "--tls-cert needs --tls-key"),
            (vec!["--tls-key", &key], "--tls-key needs --tls-cert"),
            (
                vec!["--tls-cert", "/nowhere", "--tls-key", &key],
                "cannot read /nowhere: No such file",
            ),
            (
                vec!["--tls-cert", &certificate, "--tls-key", "/nowhere"],
                "cannot read /nowhere: No such file",
            ),
            (
                vec!["--tls-cert", &certificate, "--tls-key", &other],
                "does not belong to the certificate",
            ),
            (
                vec!["--tls-cert", &key, "--tls-key", &key],
                "there is no certificate in it",
            ),
            (
                vec!["--tls-cert", &certificate, "--tls-key", &certificate],
                "there is no private key in it",
            ),
            (
                vec!["--tls-cert", &certificate, "--tls-key", locked],
                "without a passphrase",
            ),
            (
                vec!["--tls-cert", &certificate, "--tls-key", &key, "--acme-domain", "a.b"],
                "give one of them",
            ),
            (
                [vec!["--tls-cert", &certificate, "--tls-key", &key], url.to_vec()].concat(),
                "must begin with https://",
            ),
            (
                vec!["--tls-cert", &certificate, "--tls-key", &key, "--demo"],
                "--demo is without TLS",
            ),
            (
                vec!["--acme-email", "ann@example.com"],
                "--acme-email needs --acme-domain",
            ),
            (vec!["--acme-staging"], "--acme-staging needs --acme-domain"),
            (vec!["--acme-domain", "*.example.com"], "without *"),
            (
                vec!["--acme-domain", "a.b", "--acme-directory", "http://ca"],
                "begins with https://",
            ),
            (
                vec![
                    "--acme-domain",
                    "a.b",
                    "--acme-staging",
                    "--acme-directory",
                    "https://ca",
                ],
                "name two CAs",
            ),
            (
                vec!["--acme-domain", "a.b", "--acme-ca", "/nowhere"],
                "cannot read certificates from /nowhere",
            ),
            (
                vec!["--acme-domain", "a.b", "--acme-email", "ann"],
                "write it as ann@example.com",
            ),
            (
                vec!["--http-listen", "127.0.0.1:0"],
                "--http-listen sends callers on to https",
            ),
            (vec!["--public-url", "https://relay.example.com/path"], "without a path"),
            (vec!["--trusted-proxy", "10.0.0.0/33"], "write a network"),
        ] {
            let arguments = [vec!["relay", "--listen", "127.0.0.1:0"], arguments].concat();
            let ended = run(command(folder.path(), &arguments)).await;
            assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.errors);
            assert!(ended.errors.contains(words), "{arguments:?}: {}", ended.errors);
        }
    }

    /// The program with this certificate.
    fn serving(home: &std::path::Path, certificate: &str, key: &str) -> Process {
        let arguments = [
            "relay",
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            certificate,
            "--tls-key",
            key,
        ];
        Process::start(command(home, &arguments))
    }

    #[tokio::test]
    async fn a_certificate_that_has_expired_is_told_and_shown_all_the_same() {
        let (folder, [certificate, key], ca) = files(|params| {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        });
        let mut relay = serving(folder.path(), &certificate, &key);
        relay.error_line("the certificate has expired on 2002-01-01").await;
        let line = relay.error_line("listens on https://").await;
        let address = line.rsplit("https://").next().unwrap().trim().parse().unwrap();
        let tls = connector(&std::fs::read_to_string(ca).unwrap(), &[], crate::harness::tls::BOTH);
        let error = Caller::try_connect_tls(address, HOST, &tls, "").await.err().unwrap();
        assert!(
            error.to_string().contains("Expired") || error.to_string().contains("expired"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_broken_pair_on_disk_is_told_and_so_is_the_next_good_one() {
        let (folder, [certificate, key], _) = files(|_| {});
        let mut relay = serving(folder.path(), &certificate, &key);
        relay.error_line("relay started").await;
        std::fs::write(&key, "nothing").unwrap();
        let line = relay.error_line("no private key").await;
        assert!(
            line.contains("the certificate from before goes on") && line.contains(&key),
            "{line}"
        );
        let (_next, [next, next_key], _) = files(|_| {});
        std::fs::copy(next, &certificate).unwrap();
        std::fs::copy(next_key, &key).unwrap();
        relay.error_line("certificate in use").await;
    }
}
