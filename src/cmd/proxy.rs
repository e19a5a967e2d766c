//! Which proxy the bridge uses: by option, by file, or by the variables that other programs read too.

use std::path::PathBuf;

use clap::{ArgMatches, Command, FromArgMatches};

use super::Failure;
use super::access::read_secret;
use super::secret_url::{SecretUrl, secret};
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

const URL: SecretUrl = SecretUrl {
    option: "proxy",
    several: "proxies",
    has_password: |url| url.contains('@'),
};

impl ProxyArgs {
    /// An option goes before the variables, `NO_PROXY` among them.
    pub(super) fn proxies(&self) -> Result<Proxies, Failure> {
        let given = self.options.proxy.as_ref().map(Secret::expose);
        let proxies = if let Some(url) = given.filter(|url| !url.is_empty()) {
            Proxies::all(url, self.setting)
        } else if let Some(path) = &self.options.proxy_file {
            Proxies::all(read_secret("--proxy-file", path)?.expose(), "--proxy-file")
        } else {
            Proxies::from_variables(|name| std::env::var(name).ok())
        };
        proxies.map_err(Failure::usage)
    }
}

impl FromArgMatches for ProxyArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Options::from_arg_matches(matches)?;
        let argument = URL.settle(matches, &mut options.proxy)?;
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
