//! Which database the relay keeps its accounts and usage in.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgMatches, Command, FromArgMatches};
use tokio::runtime;
use tokio_postgres::config::{Host, SslMode};

use super::access::read_secret;
use super::secret::{SecretArgs, repeated};
use super::secret_url::{SecretUrl, secret};
use super::{Exit, Failure, duration};
use crate::files;
use crate::relay::store::{PostgresConfig, Store, StoreConfig, StoreError};
use crate::token::Secret;

/// The database of a relay that was given none.
const FILE: &str = "relay.db";
const EXAMPLE: &str = "postgres://USER:PASSWORD@HOST/DATABASE";

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Data")]
struct Options {
    /// The PostgreSQL that keeps tokens, users, bridges and usage, as in postgres://USER@HOST/DATABASE?sslmode=require [default:
    /// relay.db in the data folder, SQLite]
    #[arg(long, global = true, value_name = "URL", value_parser = secret)]
    database_url: Option<Secret>,
    /// A file with the URL of the PostgreSQL, for one with a password
    #[arg(long, global = true, value_name = "FILE")]
    database_url_file: Option<PathBuf>,
    /// Also trust the CA certificates in this file (PEM) for the PostgreSQL
    #[arg(long, global = true, value_name = "FILE")]
    database_ca: Option<PathBuf>,
    /// Connections to the PostgreSQL at once
    #[arg(long, global = true, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=256))]
    database_pool: u16,
    /// How long the PostgreSQL may take to answer
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = patience)]
    database_timeout: Duration,
}

/// The options of the database.
#[derive(Debug, Clone)]
pub(super) struct DatabaseArgs(Options);

fn patience(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let sensible = (Duration::from_millis(100)..=Duration::from_secs(600)).contains(&time);
    sensible
        .then_some(time)
        .ok_or_else(|| "it is from 100ms to 10m".to_owned())
}

const URL: SecretUrl = SecretUrl {
    option: "database-url",
    several: "databases",
    has_password,
};

impl DatabaseArgs {
    /// Which one it is; makes the data folder where it is needed.
    pub(super) fn config(&self, data: &SecretArgs) -> Result<StoreConfig, Failure> {
        let options = &self.0;
        let url = match (&options.database_url, &options.database_url_file) {
            (Some(url), _) if !url.expose().is_empty() => url.clone(),
            (_, Some(path)) => read_secret("--database-url-file", path)?,
            _ => {
                let folder = data.folder()?;
                files::make_private_folder(&folder)
                    .with_context(|| format!("cannot make {} (another folder: --data-dir DIR)", folder.display()))?;
                return Ok(StoreConfig::Sqlite(folder.join(FILE)));
            }
        };
        Ok(StoreConfig::Postgres(Box::new(PostgresConfig {
            server: parse(url.expose())?,
            ca_file: options.database_ca.clone(),
            pool: options.database_pool.into(),
            timeout: options.database_timeout,
        })))
    }

    /// A command with these options again, so that it uses the same database.
    pub(super) fn repeated(&self, command: &str) -> String {
        let options = &self.0;
        let url = options.database_url.as_ref().map(Secret::expose);
        let (variable, of_url) = match url.filter(|url| !url.is_empty()) {
            Some(url) if has_password(url) => ("TUNNEL_DATABASE_URL=… ", String::new()),
            Some(_) => ("", " --database-url …".to_owned()),
            None => ("", repeated("database-url-file", options.database_url_file.as_deref())),
        };
        let of_ca = repeated("database-ca", options.database_ca.as_deref());
        format!("{variable}{command}{of_url}{of_ca}")
    }

    /// Does something with the store, as commands do beside a relay that runs.
    pub(super) fn with_store<T>(
        &self,
        data: &SecretArgs,
        work: impl AsyncFnOnce(Store) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let config = self.config(data)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start the runtime")?.block_on(async {
            let store = Store::open(&config).await?;
            work(store).await
        })
    }
}

/// What stands before the parameters, and these: all of it, where it is written as `host=… dbname=…`.
fn split(url: &str) -> (&str, &str) {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return ("", url);
    }
    // A password before the host may hold anything but an @.
    let host = url.find('@').unwrap_or_default();
    let query = url.bytes().skip(host).position(|byte| byte == b'?');
    url.split_at(query.map_or(url.len(), |query| host + query))
}

/// Certificates are always checked, whichever of these words asks for it.
fn folded(url: &str) -> String {
    let (before, parameters) = split(url);
    let words = ["verify-full", "verify-ca"];
    let parameters = words.iter().fold(parameters.to_owned(), |parameters, word| {
        parameters.replace(&format!("sslmode={word}"), "sslmode=require")
    });
    format!("{before}{parameters}")
}

fn says_ssl_mode(url: &str) -> bool {
    let parameters = split(url)
        .1
        .split(|c: char| matches!(c, '?' | '&') || c.is_whitespace());
    let mut names = parameters.filter_map(|parameter| parameter.split('=').next());
    names.any(|name| name == "sslmode")
}

/// What stands in the URL is shown to nobody. A server elsewhere is spoken to by TLS unless the URL says otherwise.
fn parse(url: &str) -> Result<tokio_postgres::Config, Failure> {
    let wrong = |why: &str| Failure::usage(format!("the URL of the database: {why}; write it as {EXAMPLE}"));
    let mut config: tokio_postgres::Config = folded(url).parse().map_err(|_| wrong("it cannot be read"))?;
    if config.get_hosts().is_empty() {
        return Err(wrong("it names no host"));
    }
    if !says_ssl_mode(url) && !config.get_hosts().iter().all(is_here) {
        config.ssl_mode(SslMode::Require);
    }
    Ok(config)
}

fn is_here(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

fn has_password(url: &str) -> bool {
    match folded(url).parse::<tokio_postgres::Config>() {
        Ok(config) => config.get_password().is_some(),
        // Rather one time too often.
        Err(_) => url.contains("password") || url.contains('@'),
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match &error {
            StoreError::Settings(_) | StoreError::Newer { .. } => Exit::Usage,
            StoreError::Away(_)
            | StoreError::Rejected(_)
            | StoreError::Absent
            | StoreError::Full
            | StoreError::ShutOut => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl FromArgMatches for DatabaseArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Options::from_arg_matches(matches)?;
        URL.settle(matches, &mut options.database_url)?;
        Ok(Self(options))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for DatabaseArgs {
    fn augment_args(command: Command) -> Command {
        <Options as clap::Args>::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        <Options as clap::Args>::augment_args_for_update(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_repeated_would_use_the_same_database() {
        let repeated = |url: Option<&str>, file: Option<&str>| {
            let args = DatabaseArgs(Options {
                database_url: url.map(Secret::new),
                database_url_file: file.map(PathBuf::from),
                database_ca: None,
                database_pool: 4,
                database_timeout: Duration::from_secs(5),
            });
            args.repeated("run")
        };
        assert_eq!(repeated(Some("postgres://db/x"), None), "run --database-url …");
        let with_password = repeated(Some("postgres://ann:sesame@db/x"), Some("unused"));
        assert_eq!(with_password, "TUNNEL_DATABASE_URL=… run");
        assert_eq!(repeated(Some(""), Some("url")), "run --database-url-file 'url'");
        assert_eq!(repeated(Some(""), None), "run");
    }

    #[test]
    fn an_url_is_read_and_a_wrong_one_is_not_shown() {
        let config = parse("postgres://ann:sesame@db.example.com/relay?sslmode=verify-full").unwrap();
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        for (url, mode) in [
            ("postgres://db/x", SslMode::Require),
            ("postgres://db/x?sslmode=disable", SslMode::Disable),
            ("postgres://db/x?connect_timeout=5&sslmode=prefer", SslMode::Prefer),
            ("host=db sslmode=disable", SslMode::Disable),
            ("postgres://ann:?sslmode=prefer@db/sslmode", SslMode::Require),
            ("postgres://db/x?application_name=sslmode", SslMode::Require),
            ("host=db dbname=sslmode", SslMode::Require),
            ("postgres://127.0.0.1/x", SslMode::Prefer),
            ("host=/run/postgresql", SslMode::Prefer),
        ] {
            assert_eq!(parse(url).unwrap().get_ssl_mode(), mode, "{url}");
        }
        for url in ["postgres://ann:sesame@db:port/x", "sesame", "postgres:///x"] {
            let error = parse(url).unwrap_err();
            assert!(!format!("{error:?}").contains("sesame"), "{error:?}");
        }
    }

    #[test]
    fn a_password_is_found_wherever_it_stands() {
        for url in [
            "postgres://ann:x@db/y",
            "host=db password=x",
            "postgres://db/y?password=x",
            "?:x@y",
        ] {
            assert!(has_password(url), "{url}");
        }
        assert!(!has_password("postgres://ann@db/y?sslmode=verify-full"));
    }
}
