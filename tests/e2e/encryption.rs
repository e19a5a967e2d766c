//! TLS between bridge and relay, and between bridge and local server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tunnel::bridge::status::Phase;
use tunnel::transport::dial::Dialer;
use tunnel::transport::full;

use crate::harness::{Caller, TestBridge, TestRelay, Upstream, on_each_transport, ready, text, within};

/// Speaks TLS and passes what is inside on, as a proxy in front of a relay does.
struct TlsFront {
    address: SocketAddr,
    folder: tempfile::TempDir,
    task: AbortHandle,
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TlsFront {
    async fn before(target: SocketAddr) -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut near = acceptor.accept(near).await.ok()?;
                    let mut far = TcpStream::connect(target).await.ok()?;
                    copy_bidirectional(&mut near, &mut far).await.ok()
                });
            }
        });
        Self {
            address,
            folder,
            task: task.abort_handle(),
        }
    }

    fn ca_file(&self) -> std::path::PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

on_each_transport! {
    async fn a_relay_behind_tls_is_reached_and_so_is_a_local_server(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let (front, local) = (TlsFront::before(relay.address).await, TlsFront::before(upstream.address).await);
        // Both authorities in one file.
        let both = front.folder.path().join("both.pem");
        let certificates = [front.ca_file(), local.ca_file()].map(|path| std::fs::read_to_string(path).unwrap());
        std::fs::write(&both, certificates.concat()).unwrap();
        let bridge = TestBridge::to(&relay, &upstream)
            .transport(transport)
            .relay_url(front.url())
            .upstream_url(local.url())
            .ca_file(both)
            .start()
            .await;
        ready(&relay, "ann").await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        let ((), response) = tokio::join!(
            async {
                let call = upstream.next().await;
                assert_eq!(call.request.headers()["host"], format!("localhost:{}", local.address.port()));
                call.finish(Response::new(full("sealed")));
            },
            caller.post("/api/chat", "{}"),
        );
        assert_eq!(text(response).await, "sealed");
        drop(bridge);
    }

    async fn a_certificate_nobody_vouches_for_is_not_trusted(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let front = TlsFront::before(relay.address).await;
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).relay_url(front.url()).launch();
        let mut phase = bridge.status.phase();
        let refused = phase.wait_for(|phase| matches!(phase, Phase::Waiting { why } if why.contains("cannot trust")));
        within("the refusal", refused).await.unwrap();
        bridge.stop().await;
    }

    async fn https_to_a_port_without_tls_is_told_in_plain_words(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let url = format!("https://{}", relay.address);
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).relay_url(url).launch();
        let mut phase = bridge.status.phase();
        let told = phase.wait_for(|phase| matches!(phase, Phase::Waiting { why } if why.contains("does not speak TLS")));
        within("the words", told).await.unwrap();
        bridge.stop().await;
    }
}

#[test]
fn a_ca_file_without_a_certificate_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    assert!(Dialer::new(Some(&file), Duration::from_secs(1)).is_err());
    std::fs::write(&file, "nothing").unwrap();
    assert!(Dialer::new(Some(&file), Duration::from_secs(1)).is_err());
}
