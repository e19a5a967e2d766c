//! deploy.sh: what it asks of Docker, what it writes, and what it says where it cannot go on. Docker is a script that writes down what it
//! is asked and answers as the test wants.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use crate::harness::process::{Ended, run};
use crate::harness::programs::script;

/// Answers with the tokens it is asked for, and builds the image that the file `next` names.
const DOCKER: &str = r#"echo "docker $* [${TUNNEL_TOKEN-}${TUNNEL_ACME_STAGING+staging}]" >> told
case "$*" in
    "compose version" | info) ;;
    "volume inspect"*) [ -e volume ] || exit 1 ;;
    "image inspect"*) cat image 2>/dev/null || exit 1 ;;
    "image tag"*) ;;
    "compose pull postgres") ;;
    "compose build"*) cat next > image ;;
    "compose ps --quiet relay") [ ! -e running ] || echo container ;;
    "inspect"*container) cat running ;;
    "compose up"*)
        if [ -e unhealthy ]; then echo "unhealthy $(cat image)" > running; exit 1; fi
        echo "healthy $(cat image)" > running ;;
    "compose logs"*) echo 'relay | last words'; [ -e uncertified ] || echo 'relay | certificate in use' ;;
    *"relay token"*) echo "token.of.$(echo "$*" | sed 's/.*--user //; s/ --scope /./; s/ .*//')" ;;
    *"probe --health"*) [ ! -e unreachable ] || exit 1 ;;
    *"relay probe"*) echo 'what was checked'; [ ! -e faulty ] || exit 1 ;;
    *) exit 9 ;;
esac"#;

const PROBE: &str =
    "docker compose run --rm --no-deps -T -e TUNNEL_TOKEN relay probe --relay https://relay.example.com";

/// A server, with the repository in it.
struct Server {
    folder: TempDir,
}

impl Server {
    /// To which the name leads.
    fn new() -> Self {
        let server = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for file in ["deploy.sh", "compose.yaml"] {
            fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), server.path(file)).unwrap();
        }
        server.has("next", "sha256:one");
        server.program("docker", DOCKER);
        server.program("sleep", ":");
        server.program("hostname", "echo '203.0.113.5 2001:db8::5 '");
        server.program(
            "ip",
            "echo '2: eth0    inet 10.0.0.2/24 brd 10.0.0.255 scope global eth0'",
        );
        server.program("curl", "exit 7");
        server.leads_to(&["203.0.113.5", "2001:db8::5"]);
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, body: &str) {
        script(&self.path("bin"), name, body);
    }

    fn has(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// By the DNS.
    fn leads_to(&self, addresses: &[&str]) {
        let lines: Vec<_> = addresses
            .iter()
            .map(|address| format!("echo '{address}    STREAM'"))
            .collect();
        let found = if lines.is_empty() {
            "exit 2".to_owned()
        } else {
            lines.join("; ")
        };
        self.program("getent", &format!("[ \"$1 $2\" = '-s dns' ] || exit 64\n{found}"));
    }

    async fn deploy(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(self.path("deploy.sh"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        run(command).await
    }

    /// What Docker was asked since this was last looked at, without the questions whether it is there.
    fn told(&self) -> Vec<String> {
        let told = fs::read_to_string(self.path("told")).unwrap_or_default();
        self.has("told", "");
        let lines = told.lines().map(|line| line.replace(" []", ""));
        let asks = |line: &String| {
            [" version", " info", " inspect ", " ps "]
                .iter()
                .any(|word| line.contains(word))
        };
        lines.filter(|line| !asks(line)).collect()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }
}

#[tokio::test]
async fn the_first_run_needs_a_name_and_ends_with_what_to_start_on_the_desktop() {
    let server = Server::new();
    let ended = server
        .deploy(&["relay.example.com", "--email", "ann@example.com", "--user", "ann"])
        .await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.output, ended.errors);
    let asked = [
        "docker compose pull postgres",
        "docker compose build --pull relay",
        "docker compose up --detach --wait --wait-timeout 300 relay",
        "docker compose logs relay",
        "docker compose exec -T relay /tunnel relay token --user deploy --expires 15m",
        &format!("{PROBE} [token.of.deploy]"),
        "docker compose exec -T relay /tunnel relay token --user ann --scope bridge",
        "docker compose exec -T relay /tunnel relay token --user ann --scope api",
    ];
    assert_eq!(server.told(), asked);
    for words in [
        "what was checked",
        "TUNNEL_TOKEN=token.of.ann.bridge tunnel bridge --relay https://relay.example.com",
        "token.of.ann.api",
    ] {
        assert!(ended.output.contains(words), "{}", ended.output);
    }
    assert_eq!(
        server.read(".env"),
        "TUNNEL_DOMAIN=relay.example.com\nTUNNEL_ACME_EMAIL=ann@example.com\n"
    );
    let password = server.read("secrets/database-password");
    assert!(password.len() == 64 && password.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(
        server.read("secrets/database-url"),
        format!("postgres://tunnel:{password}@postgres/tunnel?sslmode=disable\n")
    );
    // The relay's numeric user reads the URL in its container, and nobody here gets into the folder.
    let modes = [
        ("secrets", 0o700),
        ("secrets/database-password", 0o600),
        ("secrets/database-url", 0o444),
        (".env", 0o600),
    ];
    for (name, mode) in modes {
        assert_eq!(server.mode(name), mode, "{name}");
    }
    assert!(!ended.output.contains(&password) && !ended.errors.contains(&password));
}

#[tokio::test]
async fn another_run_keeps_what_is_there_and_the_image_from_before() {
    let server = Server::new();
    server.deploy(&["relay.example.com"]).await;
    let password = server.read("secrets/database-password");
    server.told();
    // As it is once there is a database.
    server.has("volume", "");
    let same = server.deploy(&[]).await;
    assert_eq!(same.code, Some(0), "{}", same.errors);
    assert!(!same.output.contains("TUNNEL_TOKEN="), "{}", same.output);
    assert!(server.told().iter().all(|line| !line.contains("tag")));
    server.has("next", "sha256:two");
    assert_eq!(server.deploy(&["relay.example.com"]).await.code, Some(0));
    assert!(
        server
            .told()
            .contains(&"docker image tag sha256:one tunnel:previous".to_owned())
    );
    assert_eq!(server.read("secrets/database-password"), password);
    let other = server.deploy(&["other.example.com"]).await;
    assert!(other.errors.contains("change it there"), "{}", other.errors);
    fs::remove_file(server.path("secrets/database-password")).unwrap();
    let lost = server.deploy(&[]).await;
    assert!(lost.errors.contains("from a backup"), "{}", lost.errors);
    assert_eq!((other.code, lost.code), (Some(1), Some(1)));
}

#[tokio::test]
async fn a_version_that_does_not_start_leaves_the_way_back_to_the_one_that_did() {
    let server = Server::new();
    server.deploy(&["relay.example.com"]).await;
    server.told();
    server.has("next", "sha256:two");
    server.has("unhealthy", "");
    let previous = |image: &str| format!("docker image tag {image} tunnel:previous");
    let ended = server.deploy(&[]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.errors.contains("Rollback"), "{}", ended.errors);
    assert!(server.told().contains(&previous("sha256:one")));
    fs::remove_file(server.path("unhealthy")).unwrap();
    server.has("next", "sha256:three");
    assert_eq!(server.deploy(&[]).await.code, Some(0));
    assert!(server.told().iter().all(|line| !line.contains("tag")));
    server.has("next", "sha256:four");
    assert_eq!(server.deploy(&[]).await.code, Some(0));
    assert!(server.told().contains(&previous("sha256:three")));
}

#[tokio::test]
async fn settings_are_read_as_editors_leave_them_and_options_without_effect_are_told() {
    let server = Server::new();
    for written in [
        "\"relay.example.com\"",
        " 'relay.example.com' \r",
        "relay.example.com\r",
    ] {
        server.has(".env", &format!("TUNNEL_DOMAIN={written}\n"));
        let ended = server
            .deploy(&["relay.example.com", "--email", "ann@example.com"])
            .await;
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        assert!(
            ended.errors.contains("put TUNNEL_ACME_EMAIL=ann@example.com into it"),
            "{}",
            ended.errors
        );
        assert!(
            ended.output.contains("at https://relay.example.com.\n"),
            "{}",
            ended.output
        );
    }
    let ended = server.deploy(&["--user", "bob"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert!(ended.errors.contains("relay token --user bob"), "{}", ended.errors);
    server.told();
    let staging = server.deploy(&["--staging"]).await;
    assert!(staging.errors.contains("this relay is in use"), "{}", staging.errors);
    server.has(".env", "TUNNEL_DOMAIN=https://relay.example.com\n");
    let address = server.deploy(&[]).await;
    assert!(address.errors.contains("no name of a machine"), "{}", address.errors);
    assert_eq!((staging.code, address.code), (Some(1), Some(1)));
    assert!(server.told().is_empty());
}

#[tokio::test]
async fn a_name_that_only_this_machine_takes_for_itself_is_told() {
    let server = Server::new();
    server.program("getent", "[ \"$1\" = -s ] && exit 64\necho '127.0.1.1    STREAM'");
    let ended = server.deploy(&["relay.example.com"]).await;
    assert_eq!(ended.code, Some(1));
    for words in ["127.0.1.1", "/etc/hosts", "--skip-dns"] {
        assert!(ended.errors.contains(words), "{}", ended.errors);
    }
}

#[tokio::test]
async fn a_name_that_does_not_lead_here_is_told_before_a_ca_is_asked() {
    for addresses in [["198.51.100.7"].as_slice(), &["203.0.113.5", "2001:db8::7"], &[]] {
        let server = Server::new();
        server.leads_to(addresses);
        let ended = server.deploy(&["relay.example.com"]).await;
        assert_eq!(ended.code, Some(1));
        let words = addresses.last().copied().unwrap_or("no DNS yet");
        assert!(ended.errors.contains(words), "{}", ended.errors);
        assert!(server.told().is_empty());
        assert!(!server.path("secrets").exists());
        let ended = server.deploy(&["--skip-dns"]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
    }
    // Behind a router the machine does not know the address under which it is seen.
    let server = Server::new();
    server.leads_to(&["198.51.100.7"]);
    server.program(
        "curl",
        "case \"$*\" in *//api.*) printf 198.51.100.7 ;; *) exit 7 ;; esac",
    );
    let ended = server.deploy(&["relay.example.com"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
}

#[tokio::test]
async fn staging_tries_the_certificate_and_makes_no_tokens() {
    let server = Server::new();
    let ended = server.deploy(&["--staging", "relay.example.com"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert!(ended.output.contains("again without --staging"), "{}", ended.output);
    let told = server.told();
    assert!(told.contains(&"docker compose up --detach --wait --wait-timeout 300 relay [staging]".to_owned()));
    assert!(
        told.iter()
            .all(|line| !line.contains("token") && !line.contains("probe"))
    );
    let ended = server.deploy(&[]).await;
    assert!(ended.output.contains("TUNNEL_TOKEN="), "{}", ended.output);
    assert!(server.told().iter().all(|line| !line.contains("staging")));
}

#[tokio::test]
async fn what_goes_wrong_is_told_with_what_to_do() {
    let server = Server::new();
    for (trouble, words) in [
        ("unhealthy", "last words"),
        ("uncertified", "Ports 443 and 80"),
        ("faulty", "what stands above"),
    ] {
        server.has(trouble, "");
        server.has("unreachable", "");
        let ended = server.deploy(&["relay.example.com"]).await;
        assert_eq!(ended.code, Some(1), "{trouble}: {}", ended.errors);
        assert!(ended.errors.contains(words), "{trouble}: {}", ended.errors);
        fs::remove_file(server.path(trouble)).unwrap();
    }
    // Of a relay that runs for long, the log has lost its beginning.
    server.has("uncertified", "");
    fs::remove_file(server.path("unreachable")).unwrap();
    let ended = server.deploy(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let fresh = Server::new();
    for (arguments, words) in [
        (vec![], "which name"),
        (vec!["https://relay.example.com"], "no name"),
        (vec!["--email"], "needs a value"),
        (vec!["--fast", "relay.example.com"], "no option --fast"),
        (vec!["a.example.com", "b.example.com"], "one name"),
    ] {
        let ended = fresh.deploy(&arguments).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}");
        assert!(ended.errors.contains(words), "{}", ended.errors);
    }
    assert!(!fresh.path(".env").exists());
    for (refused, words) in [
        ("info", "Docker does not answer"),
        ("compose version", "plugin for Compose"),
    ] {
        fresh.program("docker", &format!("[ \"$*\" != \"{refused}\" ]"));
        let ended = fresh.deploy(&["relay.example.com"]).await;
        assert_eq!(ended.code, Some(1));
        assert!(ended.errors.contains(words), "{}", ended.errors);
    }
}
