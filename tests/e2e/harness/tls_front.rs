//! TLS in front of a relay that speaks none itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::tls::Authority;

/// Speaks TLS and passes what is inside on, as a proxy in front of a relay does.
pub(crate) struct TlsFront {
    pub(crate) address: SocketAddr,
    authority: Authority,
    task: AbortHandle,
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TlsFront {
    pub(crate) async fn before(target: SocketAddr) -> Self {
        Self::speaking(&[], target).await
    }

    /// With these protocols to choose from.
    pub(crate) async fn speaking(protocols: &[&str], target: SocketAddr) -> Self {
        Self::with(target, |authority| {
            authority.acceptor_with("localhost", protocols, |_| {})
        })
        .await
    }

    /// With the certificate of this acceptor.
    pub(crate) async fn with(target: SocketAddr, acceptor: impl FnOnce(&Authority) -> TlsAcceptor) -> Self {
        let authority = Authority::named("Test CA");
        let acceptor = acceptor(&authority);
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
            authority,
            task: task.abort_handle(),
        }
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.authority.ca_file()
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}
