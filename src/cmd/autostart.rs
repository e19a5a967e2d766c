//! `tunnel bridge --install` and `--uninstall`: the same bridge, started by the system.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use super::{Exit, Failure, tell};
use crate::files;
use crate::platform::autostart::{self, AutostartError};
use crate::token::Secret;
use crate::transport::dial::RelayUrl;

const HEADING: &str = "Running by itself";
/// The variables that name a proxy for all programs, in small letters, too.
const PROXY_VARIABLES: &[&str] = &["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];

#[derive(Debug, Default, clap::Args)]
struct Wishes {
    /// Have systemd run the bridge with these options, for you, from now on and whenever this machine runs
    #[arg(long, help_heading = HEADING)]
    install: bool,
    /// Undo that
    #[arg(long, conflicts_with = "install", help_heading = HEADING)]
    uninstall: bool,
}

/// The options, and all others that were given beside them.
#[derive(Debug, Default)]
pub(super) struct AutostartArgs {
    wishes: Wishes,
    given: Given,
}

/// What a bridge that is started by the system is to be started with.
#[derive(Debug, Default)]
struct Given {
    words: Vec<OsString>,
    /// Settings that come from variables, with the option that says the same.
    variables: Vec<(String, String)>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Install,
    Uninstall,
}

/// With what the bridge that the system runs is let in.
#[derive(Debug)]
pub(super) enum Installed {
    /// A token in this file, which is to be put there if one is given.
    Token(PathBuf, Option<Secret>),
    /// The login for the relay.
    Login,
}

impl AutostartArgs {
    /// What is asked for, if anything.
    pub(super) fn wish(&self) -> Option<Wish> {
        match (self.wishes.install, self.wishes.uninstall) {
            (true, _) => Some(Wish::Install),
            (_, true) => Some(Wish::Uninstall),
            _ => None,
        }
    }

    /// The bridge goes to this relay, though a later login may be for another one.
    pub(super) fn name_relay(&mut self, relay: &RelayUrl) {
        self.given.words.push(format!("--relay={relay}").into());
    }

    /// Puts the token into its place, and has the system run the bridge.
    pub(super) fn install(&self, from: &Installed) -> Result<(), Failure> {
        if let Some((variable, option)) = self.given.variables.first() {
            return Err(Failure::usage(format!(
                "{variable} is not known to what systemd starts: give it as an option, {option}"
            )));
        }
        autostart::check().map_err(explain)?;
        let config = config_folder()?;
        let mut arguments = vec!["bridge".to_owned()];
        if let Installed::Token(place, _) = from {
            arguments.push(format!("--token-file={}", text(place)?));
        }
        for word in &self.given.words {
            arguments.push(text(Path::new(word))?.to_owned());
        }
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        if let Installed::Token(place, Some(token)) = from {
            keep(place, token).map_err(|error| explain(AutostartError::file(place, &error)))?;
        }
        let was_there = autostart::unit_path(&config).exists();
        let lingers = autostart::install(&config, text(&program)?, &arguments).map_err(explain)?;
        if let Some(how) = autostart::first_end().map_err(explain)? {
            return Err(anyhow::anyhow!(
                "systemd started the bridge, and it ended ({how}). Why it did:\n  \
                 journalctl --user -u tunnel-bridge -n 20\n\
                 When that is mended, give the same command again; to undo it: tunnel bridge --uninstall"
            )
            .into());
        }
        let how = match from {
            Installed::Token(place, _) => format!("Its token is in {}, where it is renewed.", place.display()),
            Installed::Login => {
                let place = token_file()?;
                // Without a unit before this one it is somebody else's.
                let is_gone = was_there && std::fs::remove_file(&place).is_ok();
                let gone = format!("\nThe token that it had before, in {}, is removed.", place.display());
                let gone = if is_gone { gone.as_str() } else { "" };
                format!("It is signed in as you are, until: tunnel bridge logout{gone}")
            }
        };
        tell(&format!(
            "The bridge runs, and will whenever this machine does: {}\n\
             {how}\n\
             What it says:  journalctl --user -u tunnel-bridge -f\n\
             To undo this:  tunnel bridge --uninstall",
            autostart::unit_path(&config).display(),
        ));
        if !lingers {
            tell(
                "While you are not logged in it does not run: this machine did not allow it. To allow it:\n  \
                 sudo loginctl enable-linger $USER",
            );
        }
        Ok(())
    }
}

/// Stops the bridge that the system runs, and removes what was made for it.
pub(super) fn uninstall() -> Result<(), Failure> {
    let (config, place) = (config_folder()?, token_file()?);
    let was_there = autostart::uninstall(&config).map_err(explain)?;
    // Without a unit it is somebody else's.
    if was_there && place.exists() {
        std::fs::remove_file(&place).map_err(|error| explain(AutostartError::file(&place, &error)))?;
    }
    tell(if was_there {
        "The bridge that systemd ran is stopped and gone, its unit and its token with it.\n\
         Other services of yours still run while you are not logged in; 'loginctl disable-linger' ends that."
    } else {
        "There was nothing to remove: no bridge is set up here to run by itself."
    });
    Ok(())
}

/// Where the token of the bridge that the system runs is.
pub(super) fn token_file() -> Result<PathBuf, Failure> {
    Ok(config_folder()?.join("tunnel").join("bridge.token"))
}

/// Whether the bridge that the system runs by now goes to this relay.
pub(super) fn goes_to(relay: &RelayUrl) -> Result<bool, Failure> {
    let words = autostart::command_words(&config_folder()?);
    let mut relays = words.iter().filter_map(|word| word.strip_prefix("--relay="));
    Ok(relays.any(|named| named.parse().as_ref() == Ok(relay)))
}

fn config_folder() -> Result<PathBuf, Failure> {
    dirs::config_dir().ok_or_else(|| Failure::usage("there is no home folder here (HOME)"))
}

fn keep(place: &Path, token: &Secret) -> std::io::Result<()> {
    if let Some(folder) = place.parent() {
        files::make_private_folder(folder)?;
    }
    files::replace_private(place, format!("{}\n", token.expose()).as_bytes())
}

/// As a unit can have it.
fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str()
        .ok_or_else(|| Failure::usage(format!("{} is no UTF-8, which a unit needs", path.display())))
}

fn explain(error: AutostartError) -> Failure {
    let exit = match error {
        AutostartError::NotHere | AutostartError::NoSystemd | AutostartError::NoManager(_) => Exit::Usage,
        AutostartError::Failed { .. } | AutostartError::File { .. } => Exit::Failed,
    };
    Failure::new(exit, error)
}

impl Given {
    fn of(matches: &ArgMatches) -> Self {
        let root = super::command();
        let bridge = root.find_subcommand("bridge").into_iter();
        let mut given = Self::default();
        for arg in bridge.flat_map(Command::get_arguments).chain(root.get_arguments()) {
            let id = arg.get_id().as_str();
            // The token has a place of its own.
            if matches!(id, "install" | "uninstall" | "token_file") {
                continue;
            }
            match matches.value_source(id) {
                Some(ValueSource::CommandLine) => given.words.extend(words(arg, matches)),
                Some(ValueSource::EnvVariable) => {
                    let variable = arg.get_env().unwrap_or_default().to_string_lossy().into_owned();
                    given.variables.push((variable, option(arg)));
                }
                _ => {}
            }
        }
        given.variables.extend(proxy_variable(matches));
        given
    }
}

/// What names a proxy for all programs, where no option does.
fn proxy_variable(matches: &ArgMatches) -> Option<(String, String)> {
    let is_given = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    if is_given("proxy") || is_given("proxy_file") {
        return None;
    }
    let names = PROXY_VARIABLES
        .iter()
        .flat_map(|name| [(*name).to_owned(), name.to_lowercase()]);
    let is_set = |name: &String| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let option = "--proxy URL (--proxy-file FILE for one with a password), or unset it";
    names.into_iter().find(is_set).map(|name| (name, option.to_owned()))
}

fn option(arg: &Arg) -> String {
    format!("--{}", arg.get_long().unwrap_or_default())
}

/// An option as it would be typed anywhere else: paths do not depend on the folder of now.
fn words(arg: &Arg, matches: &ArgMatches) -> Vec<OsString> {
    let (id, option) = (arg.get_id().as_str(), option(arg));
    match arg.get_action() {
        ArgAction::SetTrue => vec![option.into()],
        ArgAction::Count => vec![option.into(); matches.get_count(id).into()],
        _ => {
            let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
            let values = matches.get_raw(id).into_iter().flatten();
            let word = |value: &OsStr| {
                let absolute = std::path::absolute(value).ok().filter(|_| is_path);
                let mut word = OsString::from(format!("{option}="));
                word.push(absolute.as_deref().map_or(value, Path::as_os_str));
                word
            };
            values.map(word).collect()
        }
    }
}

impl FromArgMatches for AutostartArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let wishes = Wishes::from_arg_matches(matches)?;
        let given = if wishes.install {
            Given::of(matches)
        } else {
            Given::default()
        };
        Ok(Self { wishes, given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for AutostartArgs {
    fn augment_args(command: Command) -> Command {
        <Wishes as clap::Args>::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        <Wishes as clap::Args>::augment_args_for_update(command)
    }
}
