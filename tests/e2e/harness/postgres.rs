//! A real PostgreSQL, a process of its own with its data in a folder of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::NoTls;

use super::programs::{Program, folder, free_address, give, run_as_nobody, write};
use super::tls::Authority;

/// What the server may take until it answers: after a crash it reads its log first.
const START: Duration = Duration::from_secs(60);
pub(crate) const PASSWORD: &str = "sesame and more";

pub(crate) struct Postgres {
    address: SocketAddr,
    data: TempDir,
    server: Option<Program>,
}

impl Postgres {
    /// With nothing in it, for whoever knows [`PASSWORD`].
    pub(crate) async fn start() -> Self {
        Self::prepared(|_| "").await
    }

    /// The same by TLS too, as `localhost`.
    pub(crate) async fn with_tls(authority: &Authority) -> Self {
        Self::prepared(|data| {
            let (certificate, key) = authority.write(data, &["localhost"], |_| {});
            give(&certificate);
            give(&key);
            std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            "ssl = on\nssl_cert_file = 'cert.pem'\nssl_key_file = 'key.pem'\n"
        })
        .await
    }

    async fn prepared(settings: impl FnOnce(&Path) -> &'static str) -> Self {
        let data = folder();
        let password = write(data.path(), "password", PASSWORD);
        let cluster = data.path().join("cluster");
        let cluster = cluster.to_str().unwrap();
        let arguments = [
            "-D",
            cluster,
            "-E",
            "UTF8",
            "-N",
            "-U",
            "tunnel",
            "-A",
            "scram-sha-256",
            "--pwfile",
            &password,
        ];
        run_as_nobody("initdb", data.path(), &arguments).await;
        let more = settings(Path::new(cluster));
        let settings = format!("fsync = off\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n{more}");
        write(Path::new(cluster), "postgresql.auto.conf", &settings);
        let mut postgres = Self {
            address: free_address(),
            data,
            server: None,
        };
        postgres.restart().await;
        postgres
    }

    /// Starts the server again after [`Postgres::kill`].
    pub(crate) async fn restart(&mut self) {
        let cluster = self.data.path().join("cluster");
        let port = self.address.port().to_string();
        let arguments = ["-D", cluster.to_str().unwrap(), "-p", &port];
        self.server = Some(Program::start("postgres", self.address, folder(), &arguments).await);
        let answers = async {
            while tokio_postgres::connect(&self.url("postgres"), NoTls).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(
            tokio::time::timeout(START, answers).await.is_ok(),
            "PostgreSQL does not answer"
        );
    }

    /// Ends the server at once, and everybody who is connected.
    pub(crate) async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill().await;
        }
    }

    /// Another database each time, with nothing in it.
    pub(crate) async fn database(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("relay{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name}")).await;
        self.url(&name)
    }

    /// Runs SQL in a database.
    pub(crate) async fn execute(&self, url_or_name: &str, sql: &str) {
        let url = if url_or_name.contains(':') {
            url_or_name.to_owned()
        } else {
            self.url(url_or_name)
        };
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        let work = async {
            client.batch_execute(sql).await.unwrap();
            drop(client);
        };
        let ((), ended) = tokio::join!(work, connection);
        ended.unwrap();
    }

    fn url(&self, database: &str) -> String {
        let password = PASSWORD.replace(' ', "%20");
        format!("postgres://tunnel:{password}@{}/{database}", self.address)
    }
}
