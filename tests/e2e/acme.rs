//! Certificates from a real CA that speaks ACME.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tunnel::relay::Sockets;
use tunnel::relay::tls::{AcmeSettings, Retry, Tls};
use tunnel::transport::dial::Dialer;

use crate::harness::pebble::{Pebble, Ports};
use crate::harness::process::{Process, command};
use crate::harness::{Caller, TestRelay, text, until, until_within, within};

const NAME: &str = "relay.example.com";
/// Seconds.
const LONG: u64 = 90 * 24 * 3600;

/// The program, with options for this CA.
fn program(home: &Path, pebble: &Pebble, ports: Ports, more: &[&str]) -> Process {
    let ca = pebble.ca_file();
    let of_ca = ["--acme-email", "ann@example.com", "--acme-ca", ca.to_str().unwrap()];
    asking(home, &pebble.directory(), ports, &[&of_ca, more].concat())
}

/// The program, with a CA whose directory is there.
fn asking(home: &Path, directory: &str, ports: Ports, more: &[&str]) -> Process {
    let listen = ports.tls.to_string();
    let arguments = [
        "relay",
        "--listen",
        &listen,
        "--acme-domain",
        NAME,
        "--acme-directory",
        directory,
    ];
    Process::start(command(home, &[arguments.as_slice(), more].concat()))
}

/// A relay in this process, that tries again soon.
async fn relay(folder: &Path, pebble: &Pebble, ports: Ports, names: &[&str]) -> TestRelay {
    let settings = AcmeSettings {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        email: None,
        directory: pebble.directory().parse().unwrap(),
        dialer: Dialer::new(Some(&pebble.ca_file()), Duration::from_secs(5)).unwrap(),
        folder: folder.to_owned(),
        retry: Retry {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(1),
        },
    };
    let sockets = Sockets {
        main: TcpListener::bind(ports.tls).await.unwrap(),
        http: None,
        kept: false,
    };
    TestRelay::on(sockets, |config| config.tls = Some(Tls::from_acme(settings).unwrap()))
}

/// The certificate that a caller of this name gets to see.
async fn seen(address: SocketAddr, name: &'static str, tls: &TlsConnector) -> std::io::Result<Vec<u8>> {
    let stream = TcpStream::connect(address).await?;
    let stream = tls.connect(name.try_into().unwrap(), stream).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

#[tokio::test]
async fn a_certificate_is_got_by_tls_alpn_kept_and_used_again_without_the_ca() {
    let (home, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ports = Ports::free();
    let pebble = Pebble::start(ports, LONG).await;
    let data_dir = ["--data-dir", data.path().to_str().unwrap()];
    let mut relay = program(home.path(), &pebble, ports, &data_dir);
    let line = relay.error_line("tunnel bridge --relay").await;
    assert!(line.contains(&format!("https://{NAME}:{}", ports.tls.port())), "{line}");
    relay.error_line("no certificate yet").await;
    relay.error_line("certificate in use").await;
    for protocols in [["h2"].as_slice(), &["http/1.1"], &[]] {
        let tls = pebble.connector(protocols).await;
        let mut caller = Caller::connect_tls(ports.tls, NAME, &tls, "").await;
        assert_eq!(caller.get("/healthz").await.status(), 200);
    }
    // Nobody but its owner reads any of it.
    let folder = data.path().join("acme").join(format!(
        "localhost_{}_dir",
        pebble.directory().split(':').nth(2).unwrap().trim_end_matches("/dir")
    ));
    for (path, mode) in [("", 0o700), ("account.json", 0o600), ("certificate.pem", 0o600)] {
        let found = std::fs::metadata(folder.join(path)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{path}");
    }
    let tls = pebble.connector(&[]).await;
    let first = seen(ports.tls, NAME, &tls).await.unwrap();
    relay.signal(rustix::process::Signal::TERM);
    assert_eq!(relay.ended().await, Some(0));

    let directory = pebble.directory();
    drop(pebble);
    let mut relay = asking(home.path(), &directory, ports, &data_dir);
    relay.error_line("certificate in use").await;
    until("the port", || std::net::TcpStream::connect(ports.tls).is_ok()).await;
    assert_eq!(seen(ports.tls, NAME, &tls).await.unwrap(), first);
}

/// The CA finds nobody at the port for TLS: what it asks for is then answered at the other.
#[tokio::test]
async fn a_certificate_is_got_by_plain_http_where_only_that_port_is_seen() {
    let home = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let elsewhere = Ports {
        tls: Ports::free().tls,
        ..ports
    };
    let pebble = Pebble::start(elsewhere, LONG).await;
    let http = ports.http.to_string();
    let mut relay = program(home.path(), &pebble, ports, &["--http-listen", &http]);
    let line = relay.error_line("the CA did not find this relay").await;
    assert!(
        line.contains("tls-alpn-01, at port 443") && line.contains(NAME),
        "{line}"
    );
    relay.error_line("certificate in use").await;
    let tls = pebble.connector(&[]).await;
    let mut caller = Caller::connect_tls(ports.tls, NAME, &tls, "").await;
    assert_eq!(caller.get("/healthz").await.status(), 200);
    // Everybody else is sent on.
    for path in ["/api/tags?x=1", "/.well-known/acme-challenge/unknown"] {
        let response = Caller::connect(ports.http, "").await.get(path).await;
        assert_eq!(response.status(), 308);
        let expected = format!("https://127.0.0.1:{}{path}", ports.tls.port());
        assert_eq!(response.headers()["location"], expected.as_str());
        text(response).await;
    }
}

#[tokio::test]
async fn a_refusal_is_told_in_plain_words_and_when_it_is_tried_again() {
    let home = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let pebble = Pebble::start(ports, LONG).await;
    // Where nobody listens.
    pebble.every_name_is("127.0.0.9").await;
    let mut relay = program(home.path(), &pebble, ports, &[]);
    let line = relay.error_line("no new certificate for").await;
    for words in [
        NAME,
        "did not find this relay by tls-alpn-01, at port 443",
        "trying again in",
        "nobody can connect",
    ] {
        assert!(line.contains(words), "{line}");
    }
    // Without a certificate there is no handshake, and the relay goes on.
    assert!(seen(ports.tls, NAME, &pebble.connector(&[]).await).await.is_err());
    drop(pebble);
    let home = tempfile::tempdir().unwrap();
    let pebble = Pebble::start(Ports::free(), LONG).await;
    let directory = pebble.directory();
    let arguments = [
        "relay",
        "--listen",
        "127.0.0.1:0",
        "--acme-domain",
        NAME,
        "--acme-directory",
        &directory,
    ];
    // Without --acme-ca.
    let mut relay = Process::start(command(home.path(), &arguments));
    let line = relay.error_line("no new certificate for").await;
    assert!(
        line.contains("cannot trust localhost") && line.contains("issued by"),
        "{line}"
    );
}

#[tokio::test]
async fn what_was_refused_is_tried_again_until_it_works() {
    let folder = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let pebble = Pebble::moody(ports, LONG).await;
    pebble.every_name_is("127.0.0.9").await;
    let relay = relay(folder.path(), &pebble, ports, &[NAME]).await;
    until("a refusal", || pebble.said().contains("set INVALID")).await;
    pebble.every_name_is("127.0.0.1").await;
    let tls = pebble.connector(&[]).await;
    let mut caller = got(relay.address, NAME, &tls).await;
    assert_eq!(caller.get("/healthz").await.status(), 200);
}

/// A caller, as soon as there is a certificate.
async fn got(address: SocketAddr, name: &str, tls: &TlsConnector) -> Caller {
    let connected = async {
        loop {
            match Caller::try_connect_tls(address, name, tls, "").await {
                Ok(caller) => return caller,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    within("a certificate", connected).await
}

#[tokio::test]
async fn one_certificate_is_for_all_names_and_another_name_brings_another() {
    const OTHER: &str = "ollama.example.com";
    let folder = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let pebble = Pebble::moody(ports, LONG).await;
    let tls = pebble.connector(&[]).await;
    let first = relay(folder.path(), &pebble, ports, &[NAME]).await;
    got(first.address, NAME, &tls).await;
    assert!(seen(first.address, OTHER, &tls).await.is_err());
    first.kill().await;
    let second = relay(folder.path(), &pebble, ports, &[NAME, OTHER]).await;
    got(second.address, OTHER, &tls).await;
    assert_eq!(
        seen(second.address, NAME, &tls).await.unwrap(),
        seen(second.address, OTHER, &tls).await.unwrap()
    );
}

#[tokio::test]
async fn an_account_that_the_ca_has_forgotten_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let pebble = Pebble::moody(ports, LONG).await;
    let first = relay(folder.path(), &pebble, ports, &[NAME]).await;
    got(first.address, NAME, &pebble.connector(&[]).await).await;
    first.kill().await;
    // Another start of it: it keeps nothing. The account of the one is shown to the other.
    let kept = only_folder(folder.path());
    let account = std::fs::read_to_string(kept.join("account.json")).unwrap();
    let old = pebble.directory();
    drop(pebble);
    let pebble = Pebble::moody(ports, LONG).await;
    std::fs::remove_file(kept.join("certificate.pem")).unwrap();
    let port = pebble.directory().split(':').nth(2).unwrap().to_owned();
    let renamed = kept.with_file_name(format!("localhost_{}", port.replace('/', "_")));
    std::fs::rename(&kept, &renamed).unwrap();
    let account = account.replace(
        old.trim_end_matches("/dir"),
        pebble.directory().trim_end_matches("/dir"),
    );
    std::fs::write(renamed.join("account.json"), &account).unwrap();
    let second = relay(folder.path(), &pebble, ports, &[NAME]).await;
    got(second.address, NAME, &pebble.connector(&[]).await).await;
    assert_ne!(std::fs::read_to_string(renamed.join("account.json")).unwrap(), account);
}

fn only_folder(folder: &Path) -> std::path::PathBuf {
    std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
}

/// Takes two lives of a certificate, twelve seconds each until it is renewed.
#[tokio::test]
async fn certificates_are_renewed_well_before_they_end_and_no_handshake_fails_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let pebble = Pebble::moody(ports, 18).await;
    let relay = relay(folder.path(), &pebble, ports, &[NAME]).await;
    let tls = pebble.connector(&[]).await;
    got(relay.address, NAME, &tls).await;

    let mut caller = Caller::connect_tls(relay.address, NAME, &tls, "").await;
    text(caller.get("/healthz").await).await;

    let (stop, handshakes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (address, stopped, counted) = (relay.address, Arc::clone(&stop), Arc::clone(&handshakes));
    let load = tokio::spawn(async move {
        let mut certificates = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let certificate = seen(address, NAME, &tls).await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            if certificates.last() != Some(&certificate) {
                certificates.push(certificate);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        certificates
    });
    let shown = || relay.relay.config.tls.as_ref().unwrap().expires().unwrap();
    for _ in 0..2 {
        let before = shown();
        until_within(Duration::from_secs(60), "another certificate", || shown() > before).await;
    }
    stop.store(true, Ordering::Relaxed);
    let certificates = load.await.unwrap();
    assert!(certificates.len() >= 2, "{} certificates", certificates.len());
    assert!(handshakes.load(Ordering::Relaxed) > 100);
    // A connection from before is as good as ever.
    assert_eq!(caller.get("/healthz").await.status(), 200);
}
