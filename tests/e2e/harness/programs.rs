//! Real proxies, each a process of its own on a port of its own: nginx and haproxy as they stand in front of relays, squid and
//! tinyproxy as companies put them between a desktop and the world. None of them needs root or leaves anything behind.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::until_within;

/// What stands in front of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    /// nginx with nothing but `proxy_pass`: no upgrades, HTTP/1.0 to the relay, requests and answers buffered.
    NaiveNginx,
    /// The same, and what is silent for three seconds is cut.
    HastyNaiveNginx,
    /// nginx that passes upgrades on, and cuts what is silent for three seconds.
    HastyNginx,
    /// haproxy that cuts a tunnel silent for five seconds.
    HastyHaproxy,
    /// haproxy that answers every upgrade with 403.
    StrictHaproxy,
}

/// What a company lets its desktops out through, with the user [`USER`] and the password [`PASSWORD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gateway {
    Squid,
    Tinyproxy,
}

pub(crate) const USER: &str = "ann";
pub(crate) const PASSWORD: &str = "sesame";

/// Whom the programs run as when the tests run as root: squid refuses to be root, and nobody else needs it.
const NOBODY: u32 = 65534;
/// Where systems keep servers, which is not in everybody's `PATH`.
const SERVERS: &str = "/usr/local/sbin:/usr/sbin:/sbin";
/// What a program may take to start: a CA makes its keys first.
const START: Duration = Duration::from_secs(60);
/// The file that gets all it says.
const OUTPUT: &str = "output";
/// Below the ports that systems give out for port 0, so that nobody else is given one between the look and the start.
const PORTS: std::ops::Range<u16> = 15_000..30_000;

/// A program that runs. Dropping it ends it at once.
pub(crate) struct Program {
    pub(crate) address: SocketAddr,
    name: &'static str,
    child: Child,
    folder: TempDir,
}

impl Drop for Program {
    #[allow(clippy::print_stderr, reason = "a test that fails shows what the program said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} said:\n{}", self.name, self.said());
        }
        self.child.start_kill().ok();
    }
}

impl Program {
    /// In front of this relay.
    pub(crate) async fn before(relay: SocketAddr, front: Front) -> Self {
        let address = free_address();
        let folder = folder();
        match front {
            Front::NaiveNginx => nginx(address, folder, relay, "").await,
            Front::HastyNaiveNginx => nginx(address, folder, relay, HASTY).await,
            Front::HastyNginx => nginx(address, folder, relay, &[UPGRADES, HASTY].concat()).await,
            Front::HastyHaproxy => haproxy(address, folder, relay, &[PROMPT, "timeout tunnel 5s"], "").await,
            Front::StrictHaproxy => {
                haproxy(address, folder, relay, &[PROMPT, "timeout tunnel 1h"], DENY_UPGRADES).await
            }
        }
    }

    /// nginx in front of this relay, with these directives where its requests are passed on.
    pub(crate) async fn nginx(relay: SocketAddr, directives: &str) -> Self {
        nginx(free_address(), folder(), relay, directives).await
    }

    /// haproxy in front of this relay, with these settings, and this rule for what passes.
    pub(crate) async fn haproxy(relay: SocketAddr, settings: &[&str], rule: &str) -> Self {
        haproxy(free_address(), folder(), relay, settings, rule).await
    }

    /// On the way out.
    pub(crate) async fn gateway(gateway: Gateway) -> Self {
        let address = free_address();
        let folder = folder();
        match gateway {
            Gateway::Squid => squid(address, folder).await,
            Gateway::Tinyproxy => tinyproxy(address, folder).await,
        }
    }

    /// Its URL for a user who gives this password.
    pub(crate) fn url(&self, password: &str) -> String {
        format!("http://{USER}:{password}@{}", self.address)
    }

    /// Ends it at once, and waits until it is gone.
    pub(super) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// What it wrote to its log so far.
    pub(crate) fn said(&self) -> String {
        self.file(OUTPUT)
    }

    /// What stands in a file of its folder; nothing, if there is none.
    pub(super) fn file(&self, name: &str) -> String {
        let bytes = fs::read(self.folder.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Starts it, and waits until it accepts connections.
    pub(super) async fn start(name: &'static str, address: SocketAddr, folder: TempDir, arguments: &[&str]) -> Self {
        Self::start_with(name, address, folder, arguments, &[]).await
    }

    /// The same with these variables.
    pub(super) async fn start_with(
        name: &'static str,
        address: SocketAddr,
        folder: TempDir,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let path = folder.path().join(OUTPUT);
        let output = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        give(&path);
        let mut command = as_nobody(name);
        command
            .args(arguments)
            .current_dir(folder.path())
            .envs(variables.iter().copied())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|error| not_there(name, &error));
        let mut program = Self {
            address,
            name,
            child,
            folder,
        };
        until_within(START, &format!("{name} to listen"), || {
            let ended = program.child.try_wait().unwrap();
            assert!(ended.is_none(), "{name} ended by itself");
            TcpStream::connect(address).is_ok()
        })
        .await;
        program
    }
}

/// Or each piece of an answer waits 200 ms for the next.
pub(crate) const PROMPT: &str = "option http-no-delay";
pub(crate) const DENY_UPGRADES: &str = "http-request deny deny_status 403 if { req.hdr(upgrade) -m found }";

/// As every guide on the web has it, for plain requests too.
pub(crate) const UPGRADES: &str = "
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection \"upgrade\";";

const HASTY: &str = "
            proxy_read_timeout 3s;
            proxy_send_timeout 3s;";

async fn nginx(address: SocketAddr, folder: TempDir, relay: SocketAddr, more: &str) -> Program {
    // Its own folders instead of those of the installed service, which only root may write to.
    let folders: String = ["client_body", "proxy", "fastcgi", "scgi", "uwsgi"]
        .map(|kind| format!("    {kind}_temp_path {kind};\n"))
        .concat();
    let config = format!(
        "daemon off;
master_process off;
pid pid;
events {{}}
http {{
    access_log off;
{folders}
    server {{
        listen {address};
        location / {{
            proxy_pass http://{relay};{more}
        }}
    }}
}}
"
    );
    let config = write(folder.path(), "nginx.conf", &config);
    let prefix = folder.path().to_str().unwrap().to_owned();
    Program::start(
        "nginx",
        address,
        folder,
        &["-e", "stderr", "-p", &prefix, "-c", &config],
    )
    .await
}

async fn haproxy(address: SocketAddr, folder: TempDir, relay: SocketAddr, settings: &[&str], rule: &str) -> Program {
    let settings = settings.join("\n    ");
    let config = format!(
        "global
    maxconn 500
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    {settings}
frontend in
    bind {address}
    {rule}
    default_backend relay
backend relay
    server relay {relay}
"
    );
    let config = write(folder.path(), "haproxy.cfg", &config);
    Program::start("haproxy", address, folder, &["-db", "-f", &config]).await
}

async fn squid(address: SocketAddr, folder: TempDir) -> Program {
    let passwords = format!(
        "while read -r user password; do
    if [ \"$user $password\" = '{USER} {PASSWORD}' ]; then echo OK; else echo ERR; fi
done
"
    );
    let passwords = write(folder.path(), "passwords", &passwords);
    let here = folder.path().display();
    let config = format!(
        "http_port {address}
pid_filename none
cache_log {here}/{OUTPUT}
access_log stdio:{here}/{OUTPUT}
coredump_dir {here}
netdb_filename none
pinger_enable off
cache deny all
cache_mem 1 MB
auth_param basic program /bin/sh {passwords}
auth_param basic children 2 startup=1
acl known proxy_auth REQUIRED
http_access allow known
http_access deny all
"
    );
    let config = write(folder.path(), "squid.conf", &config);
    // Names what it shares between processes, which would be the same for two of them.
    let service = format!("tunnel{}", address.port());
    let program = Program::start("squid", address, folder, &["-N", "-n", &service, "-f", &config]).await;
    // It is one process, which has these open by now: nothing is left when it is killed.
    for part in ["metadata", "queues", "readers"] {
        fs::remove_file(format!("/dev/shm/{service}-cf__{part}.shm")).ok();
    }
    program
}

async fn tinyproxy(address: SocketAddr, folder: TempDir) -> Program {
    let (ip, port) = (address.ip(), address.port());
    // Without any `ConnectPort`, every port is allowed.
    let config = format!("Listen {ip}\nPort {port}\nTimeout 600\nMaxClients 100\nBasicAuth {USER} {PASSWORD}\n");
    let config = write(folder.path(), "tinyproxy.conf", &config);
    Program::start("tinyproxy", address, folder, &["-d", "-c", &config]).await
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program with nobody's rights, wherever systems keep it.
fn as_nobody(name: &str) -> Command {
    let mut paths = format!("{}:{SERVERS}", std::env::var("PATH").unwrap_or_default());
    for version in fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        paths = format!("{paths}:{}/bin", version.path().display());
    }
    let mut command = Command::new(name);
    command.env_clear().env("PATH", paths).stdin(Stdio::null());
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn not_there(name: &str, error: &io::Error) -> ! {
    let package = name.split('-').next().unwrap_or_default();
    panic!("cannot start {name}: {error}; the package {package} has it, and tests/run installs it")
}

/// Runs a program to its end.
pub(super) async fn run_as_nobody(name: &str, folder: &Path, arguments: &[&str]) {
    let output = as_nobody(name).args(arguments).current_dir(folder).output().await;
    let output = output.unwrap_or_else(|error| not_there(name, &error));
    assert!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A folder that the program may write to.
pub(super) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    give(folder.path());
    folder
}

pub(super) fn write(folder: &Path, name: &str, text: &str) -> String {
    let path: PathBuf = folder.join(name);
    fs::write(&path, text).unwrap();
    give(&path);
    path.to_str().unwrap().to_owned()
}

/// A program of this name that does this, in a folder for `PATH`.
pub(crate) fn script(folder: &Path, name: &str, body: &str) {
    fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    // Written under another name first: a file that is being written cannot be run.
    let fresh = folder.join(format!("{name}.new"));
    fs::write(&fresh, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&fresh, &path).unwrap();
}

pub(super) fn give(path: &Path) {
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// An address on which nobody listens, another one each time.
pub(crate) fn free_address() -> SocketAddr {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    // Runs side by side begin at different places.
    let first = std::process::id().wrapping_mul(37);
    loop {
        let number = u32::from(COUNT.fetch_add(1, Ordering::Relaxed)).wrapping_add(first);
        let port = PORTS.start + (number % u32::from(PORTS.end - PORTS.start)) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
