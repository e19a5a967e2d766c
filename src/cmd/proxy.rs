//! Which proxy the bridge uses: by option, by file, or by the variables that other programs read too.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, FromArgMatches};

use super::Failure;
use crate::token::Secret;
use crate::transport::dial::Proxies;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Network")]
struct Options {
    /// Reach the relay through this proxy, http://, https:// or socks5h:// [default: what HTTPS_PROXY, HTTP_PROXY,
    /// ALL_PROXY and NO_PROXY say]
    #[arg(long, value_name = "URL", value_parser = secret)]
    proxy: Option<Secret>,
    /// A file with the proxy's URL, for one with a password (http://USER:PASSWORD@HOST:PORT)
    #[arg(long, value_name = "FILE")]
    proxy_file: Option<PathBuf>,
}

/// The options, and whether an argument or a variable gave the URL.
#[derive(Debug)]
pub(super) struct ProxyArgs {
    options: Options,
    setting: &'static str,
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

impl ProxyArgs {
    /// An option goes before the variables, `NO_PROXY` among them.
    pub(super) fn proxies(&self) -> Result<Proxies, Failure> {
        let given = self.options.proxy.as_ref().map(Secret::expose);
        let proxies = if let Some(url) = given.filter(|url| !url.is_empty()) {
            Proxies::all(url, self.setting)
        } else if let Some(path) = &self.options.proxy_file {
            Proxies::all(read(path)?.expose(), "--proxy-file")
        } else {
            Proxies::from_variables(|name| std::env::var(name).ok())
        };
        proxies.map_err(Failure::usage)
    }
}

fn read(path: &Path) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("--proxy-file {}: {error}", path.display())))?;
    Ok(Secret::new(&text))
}

impl FromArgMatches for ProxyArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Options::from_arg_matches(matches)?;
        let argument = matches.value_source("proxy") == Some(ValueSource::CommandLine);
        if argument && options.proxy.as_ref().is_some_and(|url| url.expose().contains('@')) {
            return Err(clap::Error::raw(
                ErrorKind::ValueValidation,
                "--proxy takes no password: other users of this computer can read arguments.\n\
                 Give the URL by the variable TUNNEL_PROXY or with --proxy-file FILE.\n",
            ));
        }
        match (
            argument,
            matches.value_source("proxy_file") == Some(ValueSource::CommandLine),
        ) {
            (true, true) => {
                return Err(clap::Error::raw(
                    ErrorKind::ArgumentConflict,
                    "--proxy and --proxy-file name two proxies: give one.\n",
                ));
            }
            // An argument goes before a variable.
            (false, true) => options.proxy = None,
            _ => {}
        }
        let setting = if argument { "--proxy" } else { "TUNNEL_PROXY" };
        Ok(Self { options, setting })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for ProxyArgs {
    fn augment_args(command: Command) -> Command {
        <Options as clap::Args>::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        <Options as clap::Args>::augment_args_for_update(command)
    }
}
