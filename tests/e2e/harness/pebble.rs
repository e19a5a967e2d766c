//! A real CA that speaks ACME: Pebble, with a name server of its own in which every name is this machine.

use std::net::SocketAddr;
use std::path::PathBuf;

use http::Request;
use http_body_util::BodyExt;
use tunnel::transport::full;

use super::programs::{Program, folder, free_address, write};
use super::tls::{Authority, connector};
use super::{Caller, text};

/// The CA. It does not find what is not on the two ports it was started with.
pub(crate) struct Pebble {
    api: SocketAddr,
    management: SocketAddr,
    names: Names,
    authority: Authority,
    program: Program,
}

/// Where a CA looks for what must be proven to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) tls: SocketAddr,
    pub(crate) http: SocketAddr,
}

impl Ports {
    /// On which nobody listens yet.
    pub(crate) fn free() -> Self {
        Self {
            tls: free_address(),
            http: free_address(),
        }
    }
}

struct Names {
    management: SocketAddr,
    _program: Program,
}

impl Pebble {
    /// Its certificates are valid for so many seconds.
    pub(crate) async fn start(ports: Ports, validity: u64) -> Self {
        Self::with(ports, validity, 0).await
    }

    /// The same, and it refuses one request in ten for its nonce, as any CA may: now and then, that fails an order.
    pub(crate) async fn moody(ports: Ports, validity: u64) -> Self {
        Self::with(ports, validity, 10).await
    }

    async fn with(ports: Ports, validity: u64, refused: u8) -> Self {
        let dns = free_address();
        let names = Names::start(dns).await;
        let authority = Authority::named("The CA's own CA");
        let (api, management) = (free_address(), free_address());
        let folder = folder();
        let (certificate, key) = authority.write(folder.path(), &["localhost", "127.0.0.1"], |_| {});
        // Readable by whom it runs as.
        let [certificate, key] = [certificate, key].map(|path| {
            let content = std::fs::read_to_string(&path).unwrap();
            write(folder.path(), path.file_name().unwrap().to_str().unwrap(), &content)
        });
        let config = serde_json::json!({"pebble": {
            "listenAddress": api.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": certificate,
            "privateKey": key,
            "httpPort": ports.http.port(),
            "tlsPort": ports.tls.port(),
            "certificateValidityPeriod": validity,
        }});
        let config = write(folder.path(), "pebble.json", &config.to_string());
        let arguments = ["-config", config.as_str(), "-dnsserver", &dns.to_string(), "-strict"];
        let refused = refused.to_string();
        // No waiting before it looks.
        let variables = [("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", refused.as_str())];
        let program = Program::start_with("pebble", api, folder, &arguments, &variables).await;
        Self {
            api,
            management,
            names,
            authority,
            program,
        }
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.api.port())
    }

    /// What must be trusted to speak with it.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.authority.ca_file()
    }

    /// The root of the certificates it gives, another one at each start.
    pub(crate) async fn root(&self) -> String {
        let tls = self.authority.connector(&[]);
        let mut caller = Caller::connect_tls(self.management, "localhost", &tls, "").await;
        text(caller.get("/roots/0").await).await
    }

    /// What trusts its certificates.
    pub(crate) async fn connector(&self, protocols: &[&str]) -> tokio_rustls::TlsConnector {
        connector(&self.root().await, protocols, super::tls::BOTH)
    }

    /// What it said so far.
    pub(crate) fn said(&self) -> String {
        self.program.said()
    }

    /// From now on every name is this address to it.
    pub(crate) async fn every_name_is(&self, address: &str) {
        self.names
            .tell("/set-default-ipv4", &format!("{{\"ip\":\"{address}\"}}"))
            .await;
    }
}

impl Names {
    async fn start(dns: SocketAddr) -> Self {
        let management = free_address();
        let (dns, at) = (dns.to_string(), management.to_string());
        let arguments = [
            "-defaultIPv4",
            "127.0.0.1",
            "-defaultIPv6",
            "",
            "-dns01",
            &dns,
            "-management",
            &at,
        ];
        let nothing_else = ["-http01", "", "-https01", "", "-tlsalpn01", ""];
        let arguments = [arguments.as_slice(), nothing_else.as_slice()].concat();
        let program = Program::start("pebble-challtestsrv", management, folder(), &arguments).await;
        Self {
            management,
            _program: program,
        }
    }

    async fn tell(&self, path: &str, what: &str) {
        let mut caller = Caller::connect(self.management, "").await;
        let request = Request::post(path).body(full(what.to_owned())).unwrap();
        let answer = caller.send(request).await;
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
    }
}
