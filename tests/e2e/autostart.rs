//! A bridge that the user's systemd is given to run: what is written, what systemd is told, and what is left afterwards. systemd is a
//! script that writes down what it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use crate::harness::process::{self, Ended, Process};
use crate::harness::programs::script;
use crate::harness::{Upstream, ready};

/// A home, and programs that are found before all others.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for name in ["systemctl", "loginctl"] {
            let told = desk.path("told");
            // Its state is asked for time and again, and is none of what it is told to do.
            let state = format!(
                "case \"$*\" in *ActiveState*) while read -r line; do echo \"$line\"; done < {}; exit ;; esac",
                desk.path("state").display()
            );
            desk.program(name, &format!("{state}\necho {name} \"$@\" >> {}", told.display()));
        }
        desk.is_in(&[
            "ActiveState=active",
            "SubState=running",
            "Result=success",
            "ExecMainStatus=0",
        ]);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, body: &str) {
        script(&self.path("bin"), name, body);
    }

    /// The state of the unit, as systemd has it.
    fn is_in(&self, state: &[&str]) {
        fs::write(self.path("state"), state.join("\n") + "\n").unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let home = self.path("home");
        fs::create_dir_all(&home).unwrap();
        let mut command = process::command(&home, &[&["bridge"], arguments].concat());
        command.env("PATH", self.path("bin")).current_dir(self.folder.path());
        command
    }

    async fn bridge(&self, arguments: &[&str]) -> Ended {
        process::run(self.command(arguments)).await
    }

    async fn bridge_with(&self, token: &str, arguments: &[&str]) -> Ended {
        let mut command = self.command(arguments);
        command.env("TUNNEL_TOKEN", token);
        process::run(command).await
    }

    /// What systemd was told since this was last asked.
    fn told(&self) -> Vec<String> {
        let told = fs::read_to_string(self.path("told")).unwrap_or_default();
        fs::write(self.path("told"), "").unwrap();
        told.lines().map(str::to_owned).collect()
    }

    /// The command line in the unit.
    fn exec_start(&self) -> String {
        let unit = self.read(UNIT);
        let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
        line.unwrap().to_owned()
    }
}

const UNIT: &str = "home/.config/systemd/user/tunnel-bridge.service";
const TOKEN: &str = "home/.config/tunnel/bridge.token";
const RELAY: [&str; 2] = ["--relay", "https://relay.example.com"];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn installing_writes_a_unit_without_the_token_and_starts_it() {
    let desk = Desk::new();
    fs::write(desk.path("50% $HOME"), "X-Key: local\n").unwrap();
    let options = [
        "--install",
        "--allow",
        "GET /a/*",
        "--allow-manage",
        "-vv",
        "--priority",
        "-1",
    ];
    let more = ["--upstream-header-file", "50% $HOME"];
    let ended = desk
        .bridge_with("a.secret.token", &[&RELAY[..], &options, &more].concat())
        .await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    for words in [
        "journalctl --user -u tunnel-bridge -f",
        "tunnel bridge --uninstall",
        "tunnel-bridge.service",
    ] {
        assert!(ended.errors.contains(words), "{}", ended.errors);
    }
    assert_eq!(
        desk.told(),
        [
            "systemctl --user show --property=Version",
            "systemctl --user daemon-reload",
            "systemctl --user enable --quiet tunnel-bridge.service",
            "systemctl --user restart tunnel-bridge.service",
            "loginctl --no-ask-password enable-linger",
        ]
    );
    let line = desk.exec_start();
    let here = desk.folder.path().display();
    assert_eq!(
        line,
        format!(
            "{} bridge --token-file={here}/{TOKEN} --relay=https://relay.example.com --priority=-1 \
             \"--upstream-header-file={here}/50%% $$HOME\" --allow-manage \"--allow=GET /a/*\" --verbose --verbose",
            env!("CARGO_BIN_EXE_tunnel")
        )
    );
    assert!(!desk.read(UNIT).contains("a.secret.token"));
    assert_eq!(desk.read(TOKEN), "a.secret.token\n");
    assert_eq!(mode(&desk.path(TOKEN)), 0o600);
    assert_eq!(mode(desk.path(TOKEN).parent().unwrap()), 0o700);
    verify(&desk.path(UNIT)).await;
}

/// With systemd's own eyes, where they are there.
async fn verify(unit: &Path) {
    let mut command = Command::new("systemd-analyze");
    command
        .args(["--user", "verify"])
        .arg(unit)
        .env("XDG_RUNTIME_DIR", unit.parent().unwrap());
    if let Ok(output) = command.output().await {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains("tunnel-bridge"), "{said}");
    }
}

#[tokio::test]
async fn installing_again_replaces_and_the_token_that_is_there_goes_on() {
    let desk = Desk::new();
    let again = [&RELAY[..], &["--install"]].concat();
    let ended = desk.bridge(&again).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.errors.contains("a token is needed"), "{}", ended.errors);
    assert!(desk.told().is_empty());
    assert!(!desk.path("home/.config").exists());
    assert_eq!(desk.bridge_with("first", &again).await.code, Some(0));
    fs::write(desk.path(TOKEN), "renewed\n").unwrap();
    let other = [&again[..], &["--name", "box"]].concat();
    assert_eq!(desk.bridge(&other).await.code, Some(0));
    assert_eq!(desk.read(TOKEN), "renewed\n");
    assert!(desk.exec_start().ends_with(" --name=box"));
    fs::write(desk.path("token"), "from a file\n").unwrap();
    let file = [&again[..], &["--token-file", "token"]].concat();
    assert_eq!(desk.bridge(&file).await.code, Some(0));
    assert_eq!(desk.read(TOKEN), "from a file\n");
    assert!(!desk.exec_start().contains("--name"));
    // It is that relay's: another one does not get it.
    let elsewhere = ["--relay", "https://relay.example.net", "--install"];
    let ended = desk.bridge(&elsewhere).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.errors.contains("a token is needed"), "{}", ended.errors);
    assert!(desk.exec_start().contains(RELAY[1]), "{}", desk.exec_start());
    assert_eq!(desk.bridge_with("other", &elsewhere).await.code, Some(0));
    assert_eq!(desk.read(TOKEN), "other\n");
}

#[tokio::test]
async fn uninstalling_leaves_nothing_and_says_when_there_was_nothing() {
    let desk = Desk::new();
    desk.bridge_with("x", &[&RELAY[..], &["--install"]].concat()).await;
    desk.told();
    let ended = desk.bridge(&["--uninstall"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert!(ended.errors.contains("stopped and gone"), "{}", ended.errors);
    assert_eq!(
        desk.told(),
        [
            "systemctl --user show --property=Version",
            "systemctl --user disable --quiet --now tunnel-bridge.service",
            "systemctl --user daemon-reload"
        ]
    );
    assert!(!desk.path(UNIT).exists() && !desk.path(TOKEN).exists());
    let ended = desk.bridge(&["--uninstall"]).await;
    assert_eq!(ended.code, Some(0));
    assert!(ended.errors.contains("nothing to remove"), "{}", ended.errors);
    assert!(desk.told().is_empty());
    // A token that was put there by hand is not ours.
    fs::write(desk.path(TOKEN), "mine\n").unwrap();
    assert_eq!(desk.bridge(&["--uninstall"]).await.code, Some(0));
    assert_eq!(desk.read(TOKEN), "mine\n");
    fs::create_dir_all(desk.path(UNIT).parent().unwrap()).unwrap();
    fs::write(desk.path(UNIT), "").unwrap();
    desk.program(
        "systemctl",
        "echo 'Failed to connect to bus: No medium found' >&2; exit 1",
    );
    let ended = desk.bridge(&["--uninstall"]).await;
    assert!(
        ended.errors.contains("No medium found\nLog in as this user"),
        "{}",
        ended.errors
    );
    assert_eq!(ended.code, Some(2));
    assert!(desk.path(UNIT).exists() && desk.path(TOKEN).exists());
}

#[tokio::test]
async fn a_bridge_that_ends_right_after_its_start_is_no_success() {
    let desk = Desk::new();
    for state in [
        ["ActiveState=failed", "SubState=failed"],
        ["ActiveState=activating", "SubState=auto-restart"],
    ] {
        desk.is_in(&[&state[..], &["Result=exit-code", "ExecMainStatus=3"]].concat());
        let ended = desk.bridge_with("x", &[&RELAY[..], &["--install"]].concat()).await;
        assert_eq!(ended.code, Some(1), "{}", ended.errors);
        assert!(!ended.errors.contains("The bridge runs"), "{}", ended.errors);
        for words in ["it ended (exit-code 3)", "journalctl --user -u tunnel-bridge"] {
            assert!(ended.errors.contains(words), "{}", ended.errors);
        }
    }
}

#[tokio::test]
async fn a_proxy_that_only_the_terminal_knows_is_not_lost() {
    let desk = Desk::new();
    let install = [&RELAY[..], &["--install"]].concat();
    for variable in ["HTTPS_PROXY", "http_proxy", "all_proxy"] {
        let mut command = desk.command(&install);
        command
            .env("TUNNEL_TOKEN", "x")
            .env(variable, "http://ann:sesame@proxy:3128");
        let ended = process::run(command).await;
        assert_eq!(ended.code, Some(2));
        for words in [&format!("{variable} is not known"), "--proxy-file FILE"] {
            assert!(ended.errors.contains(words), "{}", ended.errors);
        }
        assert!(!ended.errors.contains("sesame"), "{}", ended.errors);
    }
    assert!(!desk.path("home/.config").exists());
    let mut command = desk.command(&[&install[..], &["--proxy", "http://proxy:3128"]].concat());
    command.env("TUNNEL_TOKEN", "x").env("HTTPS_PROXY", "http://proxy:3128");
    let ended = process::run(command).await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert!(desk.exec_start().ends_with(" --proxy=http://proxy:3128"));
}

#[tokio::test]
async fn what_cannot_be_installed_says_why_and_leaves_nothing() {
    let desk = Desk::new();
    let install = [&RELAY[..], &["--install"]].concat();
    let insecure = ["--relay", "http://relay.example.com", "--install"];
    for (arguments, words) in [
        (&install, "TUNNEL_NAME is not known"),
        (&insecure.to_vec(), "not encrypted"),
    ] {
        let mut command = desk.command(arguments);
        command.env("TUNNEL_TOKEN", "x").env("TUNNEL_NAME", "box");
        let ended = process::run(command).await;
        assert_eq!(ended.code, Some(2));
        assert!(ended.errors.contains(words), "{}", ended.errors);
    }
    desk.program(
        "systemctl",
        "echo 'Failed to connect to bus: No medium found' >&2; exit 1",
    );
    let no_bus = desk.bridge_with("x", &install).await;
    assert!(
        no_bus.errors.contains("No medium found\nLog in as this user"),
        "{}",
        no_bus.errors
    );
    fs::remove_file(desk.path("bin/systemctl")).unwrap();
    let none = desk.bridge_with("x", &install).await;
    assert!(none.errors.contains("no systemd here"), "{}", none.errors);
    assert_eq!((no_bus.code, none.code), (Some(2), Some(2)));
    assert!(!desk.path("home/.config").exists());
}

#[tokio::test]
async fn where_the_machine_lets_nobody_linger_it_is_told_what_allows_it() {
    let desk = Desk::new();
    desk.program("loginctl", "exit 1");
    let ended = desk.bridge_with("x", &[&RELAY[..], &["--install"]].concat()).await;
    assert_eq!(ended.code, Some(0));
    assert!(ended.errors.contains("sudo loginctl enable-linger"), "{}", ended.errors);
}

/// As systemd would: the very words of the unit.
#[tokio::test]
async fn the_command_in_the_unit_is_a_bridge_that_connects() {
    let desk = Desk::new();
    let upstream = Upstream::scripted().await;
    let relay = crate::harness::TestRelay::start().await;
    let (at, local) = (
        format!("http://{}", relay.address),
        format!("http://{}", upstream.address),
    );
    let options = ["--install", "--relay", &at, "--upstream", &local, "--name", "box"];
    assert_eq!(desk.bridge_with(&relay.token("ann"), &options).await.code, Some(0));
    let line = desk.exec_start();
    let arguments: Vec<_> = line.split(' ').skip(1).collect();
    let mut bridge = Process::start(process::command(&desk.path("home"), &arguments));
    bridge.error_line("connected relay=").await;
    ready(&relay, "ann").await;
}

#[tokio::test]
async fn after_a_login_the_unit_names_its_relay_and_has_its_token() {
    let desk = Desk::new();
    let older = desk.bridge_with("older", &[&RELAY[..], &["--install"]].concat()).await;
    assert_eq!(older.code, Some(0), "{}", older.errors);
    let relays = desk.path("home/.config/tunnel/relays");
    fs::create_dir_all(&relays).unwrap();
    fs::write(relays.join("https%3A%2F%2Frelay.example.net.token"), "of.the.login").unwrap();
    // A token that is given is for the relay that is named beside it.
    let unnamed = desk.bridge_with("of.another", &["--install"]).await;
    assert_eq!(unnamed.code, Some(2), "{}", unnamed.errors);
    assert_eq!(desk.read(TOKEN), "older\n");
    let ended = desk.bridge(&["--install"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let line = desk.exec_start();
    assert!(line.contains("--relay=https://relay.example.net"), "{line}");
    assert_eq!(desk.read(TOKEN), "of.the.login\n");
}

#[tokio::test]
async fn after_a_sign_in_the_unit_uses_the_login_itself() {
    let desk = Desk::new();
    let relays = desk.path("home/.config/tunnel/relays");
    fs::create_dir_all(&relays).unwrap();
    fs::write(relays.join("https%3A%2F%2Frelay.example.net.login"), "{}").unwrap();
    let ended = desk.bridge(&["--install"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let line = desk.exec_start();
    assert!(line.ends_with("bridge --relay=https://relay.example.net"), "{line}");
    assert!(!desk.path(TOKEN).exists());
}
