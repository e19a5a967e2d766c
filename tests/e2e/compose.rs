//! What compose.yaml and the Dockerfile say, run without containers: the very commands, variables and paths of our services, as the
//! numeric user of the image.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use http::Response;
use rustix::process::Signal;
use saphyr::{LoadableYamlNode, Yaml};
use tempfile::TempDir;
use tokio::process::Command;
use tunnel::transport::full;

use crate::harness::pebble::{Pebble, Ports};
use crate::harness::postgres::Postgres;
use crate::harness::process::{Process, run};
use crate::harness::programs::{free_address, is_root};
use crate::harness::{Caller, Upstream, text};

type Variables = BTreeMap<String, String>;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The instructions of this kind in the last stage of the Dockerfile.
fn instructions(kind: &str) -> Vec<String> {
    let file = read("Dockerfile");
    let last = file.rsplit("\nFROM ").next().unwrap();
    let lines = last
        .lines()
        .filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
    lines.map(str::to_owned).collect()
}

/// `${NAME}`, `${NAME:-default}` and `${NAME:?words}`, as Compose reads them.
fn interpolate(text: &str, settings: &Variables) -> String {
    let Some((before, rest)) = text.split_once("${") else {
        return text.to_owned();
    };
    let (name, after) = rest.split_once('}').unwrap();
    let end = name.find(':').unwrap_or(name.len());
    let default = name[end..].strip_prefix(":-");
    let value = settings.get(&name[..end]).map(String::as_str).or(default);
    let value = value.unwrap_or_else(|| panic!("{name} is not set"));
    format!("{before}{value}{}", interpolate(after, settings))
}

/// A service of ours, beside what it finds in its container.
struct Service {
    words: Vec<String>,
    health: Vec<String>,
    variables: Variables,
    user: u32,
    volumes: Vec<String>,
}

fn strings(list: &Yaml<'_>) -> Vec<String> {
    let items = list.as_sequence().into_iter().flatten();
    items.map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn of_image() -> Variables {
    let lines = instructions("ENV");
    let pairs = lines.iter().flat_map(|line| line.split(' '));
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn user_of_image() -> u32 {
    let [user] = instructions("USER").try_into().unwrap();
    user.split(':').next().unwrap().parse().unwrap()
}

/// The list of words that an instruction of the Dockerfile ends with, without the program.
fn words_of(kind: &str) -> Vec<String> {
    let [line] = instructions(kind).try_into().unwrap();
    let words: Vec<String> = serde_json::from_str(&line[line.find('[').unwrap()..]).unwrap();
    words.into_iter().filter(|word| word != "/tunnel").collect()
}

impl Service {
    /// The image as `docker run` starts it.
    fn of_image() -> Self {
        Self {
            words: words_of("CMD"),
            health: words_of("HEALTHCHECK"),
            variables: of_image(),
            user: user_of_image(),
            volumes: Vec::new(),
        }
    }

    fn read(name: &str, settings: &Variables) -> Self {
        let file = read("compose.yaml");
        let file = Yaml::load_from_str(&file).unwrap();
        let service = &file[0]["services"][name];
        assert_eq!(service["image"].as_str(), Some("tunnel"));
        let mut variables = of_image();
        let given = service
            .as_mapping_get("environment")
            .and_then(|given| given.as_mapping());
        for (name, value) in given.into_iter().flatten() {
            let name = name.as_str().unwrap();
            // Without a value it is passed on, if it is set.
            let value = match value.as_str() {
                Some(value) => Some(interpolate(value, settings)),
                None => settings.get(name).cloned(),
            };
            variables.extend(value.map(|value| (name.to_owned(), value)));
        }
        let command = strings(&service["command"]);
        let check = service["healthcheck"]
            .as_mapping_get("test")
            .map(strings)
            .unwrap_or_default();
        assert_eq!(instructions("ENTRYPOINT"), [r#"["/tunnel"]"#]);
        Self {
            words: command.iter().map(|word| interpolate(word, settings)).collect(),
            health: check
                .into_iter()
                .skip_while(|word| word == "CMD")
                .skip_while(|word| word == "/tunnel")
                .collect(),
            variables,
            user: user_of_image(),
            volumes: strings(&service["volumes"]),
        }
    }

    /// What is mounted where the image keeps its data.
    fn data(&self) -> &str {
        let mounted = self.volumes.iter().find_map(|volume| volume.strip_suffix(":/data"));
        mounted.unwrap()
    }

    /// What is elsewhere here than in a container.
    fn moved(mut self, places: &[(&str, &str)]) -> Self {
        let words = self
            .words
            .iter_mut()
            .chain(&mut self.health)
            .chain(self.variables.values_mut());
        for word in words {
            // The first that fits: /database-url is not in /data.
            if let Some((there, here)) = places.iter().find(|(there, _)| word.contains(there)) {
                *word = word.replace(there, here);
            }
        }
        self
    }

    fn with(mut self, name: &str, value: &Path) -> Self {
        self.variables
            .insert(name.to_owned(), value.to_str().unwrap().to_owned());
        self
    }

    /// The program as its user runs it.
    fn command<'a>(&self, program: &Path, words: impl IntoIterator<Item = &'a String>) -> Command {
        let mut command = Command::new(program);
        command
            .args(words)
            .current_dir("/")
            .env_clear()
            .envs(&self.variables)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if is_root() {
            command.uid(self.user).gid(self.user);
        }
        command
    }
}

/// The machine's files: its volumes belong to the numeric user, its secrets are read by whom Compose gives them to.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let machine = Self { folder };
        // Where the tests were built, that user may have no way.
        let program = machine.program();
        if fs::hard_link(env!("CARGO_BIN_EXE_tunnel"), &program).is_err() {
            fs::copy(env!("CARGO_BIN_EXE_tunnel"), &program).unwrap();
        }
        machine
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("tunnel")
    }

    fn volume(&self, name: &str, owner: u32) -> PathBuf {
        let volume = self.folder.path().join(name);
        fs::create_dir(&volume).unwrap();
        if is_root() {
            chown(&volume, Some(owner), Some(owner)).unwrap();
        }
        volume
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        path
    }
}

#[tokio::test]
async fn relay_and_desktop_of_compose_run_as_the_user_of_the_image_and_carry_a_request() {
    let (machine, database) = (Machine::new(), Postgres::start().await);
    let (ports, metrics, upstream) = (Ports::free(), free_address().to_string(), Upstream::scripted().await);
    let pebble = Pebble::start(ports, 90 * 24 * 3600).await;
    let settings = Variables::from([("TUNNEL_DOMAIN".to_owned(), "localhost".to_owned())]);
    let (listen, http) = (ports.tls.to_string(), ports.http.to_string());
    let public = format!("https://localhost:{}", ports.tls.port());
    let url = machine.file("database-url", &database.database().await);
    let relay = Service::read("relay", &settings);
    assert_eq!(relay.data(), "relay");
    let data = machine.volume("relay", relay.user);
    let relay = relay
        .moved(&[
            ("0.0.0.0:8443", &listen),
            ("0.0.0.0:8080", &http),
            ("127.0.0.1:9464", &metrics),
            ("https://localhost", &public),
            ("/run/secrets/database-url", url.to_str().unwrap()),
            ("/data", data.to_str().unwrap()),
        ])
        .with("TUNNEL_ACME_DIRECTORY", Path::new(&pebble.directory()))
        .with(
            "TUNNEL_ACME_CA",
            &machine.file("ca.pem", &fs::read_to_string(pebble.ca_file()).unwrap()),
        );
    let mut running = Process::start(relay.command(&machine.program(), &relay.words));
    running.error_line("certificate in use").await;
    let health = run(relay.command(&machine.program(), &relay.health)).await;
    assert_eq!((health.code, health.errors.as_str()), (Some(0), ""));
    let words = ["relay", "token", "--user", "ann"].map(str::to_owned);
    let token = run(relay.command(&machine.program(), &words)).await;
    assert_eq!((token.code, token.errors.as_str()), (Some(0), ""));
    // It is in the database that the secret leads to.
    assert!(!data.join("relay.db").exists());

    let bridge = Service::read("bridge", &settings);
    assert_eq!(bridge.data(), "./desktop");
    let state = machine.volume("desktop", bridge.user);
    let bridge = bridge
        .moved(&[
            ("https://localhost", &public),
            ("http://ollama:11434", &format!("http://{}", upstream.address)),
            ("/data", state.to_str().unwrap()),
        ])
        .with("TUNNEL_CA_FILE", &machine.file("root.pem", &pebble.root().await));
    fs::write(state.join("bridge.token"), &token.output).unwrap();
    let mut desktop = Process::start(bridge.command(&machine.program(), &bridge.words));
    desktop.error_line("connected relay=").await;
    let tls = pebble.connector(&[]).await;
    let mut caller = Caller::connect_tls(ports.tls, "localhost", &tls, token.output.trim()).await;
    let ((), response) = tokio::join!(
        async { upstream.next().await.finish(Response::new(full("answered"))) },
        caller.post("/b/desktop/api/chat", "{}"),
    );
    assert_eq!(text(response).await, "answered");
    drop(caller);
    for process in [desktop, running] {
        // As Docker does.
        process.signal(Signal::TERM);
        assert_eq!(process.ended().await, Some(0));
    }
}

#[tokio::test]
async fn the_image_alone_is_a_relay_that_is_found_alive() {
    let machine = Machine::new();
    let image = Service::of_image();
    let data = machine.volume("data", image.user);
    // Without an address the check looks at this machine, at the port of the image's own words.
    let listen = image
        .words
        .iter()
        .skip_while(|word| *word != "--listen")
        .nth(1)
        .unwrap();
    let words = ["tunnel"].into_iter().chain(image.health.iter().map(String::as_str));
    let matches = tunnel::cmd::command().try_get_matches_from(words).unwrap();
    let (_, probe) = matches.subcommand().unwrap();
    let looks_at = probe.get_one::<String>("health").unwrap();
    assert_eq!(*looks_at, format!("http://{}", listen.replace("0.0.0.0", "127.0.0.1")));

    let at = free_address().to_string();
    let image = image.moved(&[("0.0.0.0:8080", &at), ("/data", data.to_str().unwrap())]);
    let mut relay = Process::start(image.command(&machine.program(), &image.words));
    relay.error_line("listens on http://").await;
    let mut health = image.health.clone();
    let place = health.iter().position(|word| word == "--health").unwrap();
    health.insert(place + 1, format!("http://{at}"));
    let health = run(image.command(&machine.program(), &health)).await;
    assert_eq!((health.code, health.errors.as_str()), (Some(0), ""));
    assert!(data.join("jwt.secret").exists());
    relay.signal(Signal::TERM);
    assert_eq!(relay.ended().await, Some(0));
}

/// What an option of a command is where it is not given.
fn default_of(command: &str, option: &str) -> String {
    let root = tunnel::cmd::command();
    let mut args = root.find_subcommand(command).unwrap().get_arguments();
    let arg = args.find(|arg| arg.get_long() == Some(option)).unwrap();
    arg.get_default_values()[0].to_str().unwrap().to_owned()
}

#[test]
fn secrets_and_ports_lead_where_the_services_look_for_them() {
    let file = read("compose.yaml");
    let file = Yaml::load_from_str(&file).unwrap();
    let (relay, postgres) = (&file[0]["services"]["relay"], &file[0]["services"]["postgres"]);
    for (service, variable, name) in [
        (relay, "TUNNEL_DATABASE_URL_FILE", "database-url"),
        (postgres, "POSTGRES_PASSWORD_FILE", "database-password"),
    ] {
        assert_eq!(strings(&service["secrets"]), [name]);
        let place = format!("/run/secrets/{name}");
        assert_eq!(service["environment"][variable].as_str(), Some(place.as_str()));
        let made = format!("./secrets/{name}");
        assert_eq!(file[0]["secrets"][name]["file"].as_str(), Some(made.as_str()));
        assert!(read("deploy.sh").contains(&format!(" secrets/{name}\n")), "{name}");
    }
    let command = strings(&relay["command"]);
    for (option, port) in [("--listen=0.0.0.0:", "443"), ("--http-listen=0.0.0.0:", "80")] {
        let inside = command.iter().find_map(|word| word.strip_prefix(option)).unwrap();
        assert!(
            strings(&relay["ports"]).contains(&format!("{port}:{inside}")),
            "{option}"
        );
    }
    let volumes = file[0]["volumes"].as_mapping().unwrap();
    for name in ["relay", "database"] {
        assert!(volumes.keys().any(|volume| volume.as_str() == Some(name)), "{name}");
    }
}

#[test]
fn what_runs_for_long_is_bounded_and_has_time_to_stop() {
    let file = read("compose.yaml");
    let file = Yaml::load_from_str(&file).unwrap();
    let services = file[0]["services"].as_mapping().unwrap();
    let of_relay = |option| humantime::parse_duration(&default_of("relay", option)).unwrap();
    // A bridge waits no longer than that for its exchanges.
    let needed = of_relay("lame-duck") + of_relay("grace");
    for (name, service) in services {
        let name = name.as_str().unwrap();
        assert_eq!(service["restart"].as_str(), Some("unless-stopped"), "{name}");
        assert!(service["logging"]["options"]["max-size"].as_str().is_some(), "{name}");
        // A model takes what memory it needs.
        assert!(name == "ollama" || service["mem_limit"].as_str().is_some(), "{name}");
        if service.as_mapping_get("build").is_some() {
            let grace = humantime::parse_duration(service["stop_grace_period"].as_str().unwrap()).unwrap();
            assert!(grace > needed, "{name}");
            assert_eq!(service["read_only"].as_bool(), Some(true), "{name}");
            assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}");
        }
    }
}

#[test]
fn the_program_knows_every_variable_that_compose_gives_it() {
    fn known(command: &clap::Command) -> Vec<String> {
        let own = command
            .get_arguments()
            .filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned()));
        own.chain(command.get_subcommands().flat_map(known)).collect()
    }
    let known = known(&tunnel::cmd::command());
    let file = read("compose.yaml");
    let file = Yaml::load_from_str(&file).unwrap();
    let given = file[0]["services"]["relay"]["environment"].as_mapping().unwrap();
    for name in given.keys().map(|name| name.as_str().unwrap()) {
        assert!(known.iter().any(|known| known == name), "{name}");
    }
}

#[test]
fn every_setting_of_the_example_is_one_that_compose_reads() {
    let compose = read("compose.yaml");
    for line in read(".env.example").lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some((name, _)) = line.split_once('=').filter(|(name, _)| name.starts_with("TUNNEL_")) {
            let read = [format!("${{{name}"), format!(" {name}:")];
            assert!(read.iter().any(|read| compose.contains(read)), "{name}");
        }
    }
}
