//! The configurations that the documents give for proxies in front of a relay, run as they stand there but for ports and paths.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::programs::{Program, folder, free_address, write};
use super::tls::Authority;

/// The name that the documents give the relay.
pub(crate) const NAME: &str = "relay.example.com";

/// A proxy that does TLS, as the documents have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nginx,
    Haproxy,
}

pub(crate) struct Deployed {
    /// For `https://`.
    pub(crate) tls: SocketAddr,
    /// For `http://`.
    pub(crate) plain: SocketAddr,
    pub(crate) authority: Authority,
    program: Program,
}

impl Drop for Deployed {
    #[allow(clippy::print_stderr, reason = "a test that fails shows what the program said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("its logs:\n{}", self.logs());
        }
    }
}

impl Deployed {
    /// In front of this relay.
    pub(crate) async fn before(relay: SocketAddr, kind: Kind) -> Self {
        let authority = Authority::named("Test CA");
        let (tls, plain) = (free_address(), free_address());
        let folder = folder();
        let (certificate, key) = authority.write(folder.path(), &[NAME, "localhost"], |_| {});
        let [chain, key] = [certificate, key].map(|path| std::fs::read_to_string(path).unwrap());
        let certificate = write(folder.path(), "relay.pem", &(chain + &key));
        let here = folder.path().to_str().unwrap().to_owned();
        let program = match kind {
            Kind::Nginx => {
                let config = adapted(
                    "nginx.conf",
                    &[
                        ("listen 443 ", &format!("listen {tls} ")),
                        ("listen 80;", &format!("listen {plain};")),
                        ("/etc/ssl/relay.pem", &certificate),
                        ("/etc/ssl/relay.key", &certificate),
                        ("/var/log/nginx", &here),
                        ("127.0.0.1:8080", &relay.to_string()),
                    ],
                );
                write(folder.path(), "relay.conf", &config);
                let main = write(folder.path(), "nginx.conf", &around(&here));
                Program::start("nginx", tls, folder, &["-e", "stderr", "-p", &here, "-c", &main]).await
            }
            Kind::Haproxy => {
                let config = adapted(
                    "haproxy.cfg",
                    &[
                        ("bind :443 ", &format!("bind {tls} ")),
                        ("bind :80\n", &format!("bind {plain}\n")),
                        ("/etc/haproxy/relay.pem", &certificate),
                        ("127.0.0.1:8080", &relay.to_string()),
                    ],
                );
                let config = write(folder.path(), "haproxy.cfg", &config);
                Program::start("haproxy", tls, folder, &["-db", "-f", &config]).await
            }
        };
        Self {
            tls,
            plain,
            authority,
            program,
        }
    }

    /// The URL of the relay behind it.
    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.tls.port())
    }

    /// All that stands in its logs.
    pub(crate) fn logs(&self) -> String {
        let files = ["relay.log", "relay-error.log"].map(|name| self.program.file(name));
        files.concat() + &self.program.said()
    }
}

/// What the packages of nginx have around the folder `conf.d`, without what only root may do.
fn around(here: &str) -> String {
    let folders: String = ["client_body", "proxy", "fastcgi", "scgi", "uwsgi"]
        .map(|kind| format!("    {kind}_temp_path {kind};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid pid;\nevents {{}}\nhttp {{\n{folders}    include {here}/relay.conf;\n}}\n"
    )
}

/// The file from the documents, with something else in these places.
fn adapted(name: &str, places: &[(&str, &str)]) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/deploy").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    places.iter().fold(text, |text, (before, after)| {
        assert!(text.contains(before), "{name} has no {before}");
        text.replace(before, after)
    })
}
