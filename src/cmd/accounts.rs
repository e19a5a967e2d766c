//! `tunnel relay token`, `user`, `bridges` and `kick`: who may use a relay. They work on its database; a relay that runs notices
//! within a second.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;

use super::database::DatabaseArgs;
use super::secret::SecretArgs;
use super::{Failure, duration, print, tell};
use crate::relay::address::Address;
use crate::relay::auth::Scopes;
use crate::relay::auth::tokens::{is_user, now};
use crate::relay::keys::{LONGEST_LABEL, is_label};
use crate::relay::store::accounts::{Bridge, Token};
use crate::relay::store::{Store, StoreError};

const TOKEN_EXAMPLE: &str = "\
Examples:
  tunnel relay token --user ann --scope bridge --label desktop > bridge.token
  tunnel relay token --user ann --scope api --label phone --expires 30d
  tunnel relay token list
  tunnel relay token revoke ID";

/// Longer than anybody keeps a token; what lives longer is better said with never.
const LONGEST_LIFE: Duration = Duration::from_secs(101 * 365 * 24 * 3600);

#[derive(Debug, clap::Args)]
#[command(after_help = TOKEN_EXAMPLE, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: Option<TokenCommand>,
    /// Whose token it is
    #[arg(long, value_name = "NAME", required = true)]
    user: Option<String>,
    /// What it is good for: bridge (attach a bridge), api (make requests), manage (make keys and codes for bridges, share bridges)
    #[arg(long, value_name = "LIST", default_value = "bridge,api", value_parser = scopes)]
    scope: Scopes,
    /// How long it is valid, or never for one that does not end
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = expiry)]
    expires: Expiry,
    /// What to call it in lists, as in phone
    #[arg(long, value_name = "TEXT", value_parser = label)]
    label: Option<String>,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// List the tokens that were issued, or used since there is a database
    List(ListArgs),
    /// Take a token back: what goes on with it is cut
    Revoke {
        /// The token's id, as the list shows it
        #[arg(allow_hyphen_values = true)]
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// List everybody who has, or had, a token
    List(ListArgs),
    /// Let somebody in no more, with whatever token or key; what goes on is cut
    Disable {
        /// The user's name
        name: String,
    },
    /// Let somebody who was disabled in again
    Enable {
        /// The user's name
        name: String,
    },
    /// Forget somebody: tokens, keys, bridges, shares and usage; tokens issued until now are refused for ever
    Delete {
        /// The user's name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Of this user only
    #[arg(long = "of", value_name = "NAME")]
    user: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Expiry(pub(super) Option<Duration>);

pub(super) fn expiry(text: &str) -> Result<Expiry, String> {
    match text {
        "never" => Ok(Expiry(None)),
        text => duration(text)
            .ok()
            .filter(|life| (Duration::from_secs(1)..=LONGEST_LIFE).contains(life))
            .map(|life| Expiry(Some(life)))
            .ok_or_else(|| "write a time as in 90d or 12h, up to 100y, or never".to_owned()),
    }
}

fn scopes(text: &str) -> Result<Scopes, String> {
    let known = |scope: &str| matches!(scope, "bridge" | "api" | "manage");
    if text.split(',').all(known) {
        Ok(Scopes::parse(Some(&text.replace(',', " "))))
    } else {
        Err("the scopes are bridge, api and manage, as in bridge,api".to_owned())
    }
}

pub(super) fn label(text: &str) -> Result<String, String> {
    if is_label(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "a label has up to {LONGEST_LABEL} characters and no control characters"
        ))
    }
}

/// `tunnel relay token`.
pub(super) fn token(args: &TokenArgs, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    match &args.command {
        None => issue(args, data, database),
        Some(TokenCommand::List(list)) => database.with_store(data, async |store| {
            let tokens = store.tokens().await?;
            let tokens: Vec<_> = tokens.into_iter().filter(|token| list.wants(&token.user)).collect();
            list.show(&tokens, TOKEN_COLUMNS, token_row)
        }),
        Some(TokenCommand::Revoke { id }) => database.with_store(data, async |store| {
            match store.revoke(id).await {
                Ok(true) => {}
                Ok(false) => tell("No token of this id was seen here; one that comes is refused from now on."),
                Err(StoreError::Absent) => tell("It was revoked already."),
                Err(error) => return Err(error.into()),
            }
            Ok(())
        }),
    }
}

fn issue(args: &TokenArgs, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    let user = args.user.as_deref().unwrap_or_default();
    check_user(user)?;
    let (tokens, made) = data.issuer()?;
    tell_made(made.as_deref());
    let token = database.with_store(data, async |store| {
        await_second_after_deletion(&store, user).await?;
        let token = tokens
            .issue(user, args.scope, args.expires.0)
            .map_err(|error| Failure::usage(format!("--user {}: {error}", user.escape_debug())))?;
        let kept = Token::of(&token, args.label.clone()).context("the token that was made cannot be read")?;
        store.issue(&kept).await?;
        Ok(token)
    })?;
    print(token.expose());
    Ok(())
}

pub(super) fn tell_made(secret: Option<&Path>) {
    if let Some(path) = secret {
        tell(&format!(
            "Made a new secret: {}\nWhat is printed works at a relay that uses this secret: start it with the same --data-dir.",
            path.display()
        ));
    }
}

/// A token issued in the second of a deletion would be one of those before it.
pub(super) async fn await_second_after_deletion(store: &Store, user: &str) -> Result<(), Failure> {
    let Some(removal) = store.removal(user).await? else {
        return Ok(());
    };
    if removal.disabled {
        return Err(anyhow::anyhow!("this user is disabled; first: tunnel relay user enable {user}").into());
    }
    while removal.deleted.is_some_and(|deleted| deleted >= now()) {
        let rest = 1_000_000_000 - UNIX_EPOCH.elapsed().map_or(0, |now| now.subsec_nanos());
        tokio::time::sleep(Duration::from_nanos(rest.into())).await;
    }
    Ok(())
}

pub(super) fn check_user(name: &str) -> Result<(), Failure> {
    if is_user(name) {
        return Ok(());
    }
    let name = name.escape_debug();
    Err(Failure::usage(format!(
        "{name} is no name of a user: it has 1 to 256 characters and no control characters"
    )))
}

/// `tunnel relay user`.
pub(super) fn user(command: &UserCommand, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    match command {
        UserCommand::List(list) => database.with_store(data, async |store| {
            let users = store.users().await?;
            let users: Vec<_> = users.into_iter().filter(|user| list.wants(&user.name)).collect();
            list.show(&users, USER_COLUMNS, |user| {
                vec![
                    user.name.clone(),
                    user.tokens.to_string(),
                    user.keys.to_string(),
                    user.bridges.to_string(),
                    time(Some(user.first_seen)),
                    time(user.last_used),
                    if user.disabled.is_some() { "disabled" } else { "" }.to_owned(),
                ]
            })
        }),
        UserCommand::Disable { name } => {
            check_user(name)?;
            database.with_store(data, async |store| {
                tell_unknown(&store, name).await?;
                already(store.disable(name).await, "is disabled already", name)
            })
        }
        UserCommand::Enable { name } => database.with_store(data, async |store| {
            tell_unknown(&store, name).await?;
            already(store.enable(name).await, "is not disabled", name)
        }),
        UserCommand::Delete { name } => {
            check_user(name)?;
            database.with_store(data, async |store| {
                tell_unknown(&store, name).await?;
                Ok(store.delete(name).await?)
            })
        }
    }
}

/// It may be meant so, for one who has a token from before there was a database; or it is a slip of the pen.
async fn tell_unknown(store: &Store, name: &str) -> Result<(), Failure> {
    if store.removal(name).await?.is_none() {
        tell(&format!("{} was not known here before.", name.escape_debug()));
    }
    Ok(())
}

/// It is as it was wished: said, and no failure.
fn already(outcome: Result<(), StoreError>, what: &str, name: &str) -> Result<(), Failure> {
    match outcome {
        Err(StoreError::Absent) => {
            tell(&format!("{} {what}.", name.escape_debug()));
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

/// `tunnel relay bridges`.
pub(super) fn bridges(list: &ListArgs, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    database.with_store(data, async |store| {
        let bridges = store.bridges().await?;
        let bridges: Vec<_> = bridges.into_iter().filter(|bridge| list.wants(&bridge.user)).collect();
        list.show(&bridges, BRIDGE_COLUMNS, bridge_row)
    })
}

/// `tunnel relay kick`.
pub(super) fn kick(bridge: &str, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    database.with_store(data, async |store| {
        let bridges = store.bridges().await?;
        let meant = meant(&bridges, bridge)?;
        if !meant.is_connected() {
            tell("This bridge is not connected.");
        }
        Ok(store.kick(&meant.id).await?)
    })
}

/// The one bridge of this id; else the one that is called so, of those connected if some are. A name alone is that of one user's.
pub(super) fn meant<'a>(bridges: &'a [Bridge], text: &str) -> Result<&'a Bridge, Failure> {
    if let Some(bridge) = bridges.iter().find(|bridge| bridge.id == text) {
        return Ok(bridge);
    }
    let written = text.rsplit_once('/');
    let address = Address::parse(text);
    let is_called = |bridge: &&Bridge| {
        let is = |owner: &str, name: &str| bridge.user == owner && bridge.name == name;
        bridge.name == text
            || written.is_some_and(|(owner, name)| is(owner, name))
            || address
                .as_ref()
                .is_some_and(|address| is(&address.owner, &address.name))
    };
    let mut called: Vec<_> = bridges.iter().filter(is_called).collect();
    let is_of_one = called.windows(2).all(|two| two[0].user == two[1].user);
    if is_of_one && called.iter().any(|bridge| bridge.is_connected()) {
        called.retain(|bridge| bridge.is_connected());
    }
    match called.as_slice() {
        [bridge] => Ok(bridge),
        [] => {
            let text = text.escape_debug();
            Err(anyhow::anyhow!("no bridge is called {text}; see: tunnel relay bridges").into())
        }
        _ => Err(Failure::usage(
            "several bridges are called so: say USER/NAME, or the id that 'tunnel relay bridges' shows",
        )),
    }
}

const TOKEN_COLUMNS: &[&str] = &["ID", "USER", "LABEL", "SCOPES", "ISSUED", "EXPIRES", "LAST USED", ""];
const USER_COLUMNS: &[&str] = &["USER", "TOKENS", "KEYS", "BRIDGES", "FIRST SEEN", "LAST SEEN", ""];
const BRIDGE_COLUMNS: &[&str] = &["ID", "USER", "NAME", "TRANSPORT", "PROGRAM", "FIRST SEEN", "LAST SEEN"];

fn token_row(token: &Token) -> Vec<String> {
    vec![
        token.id.clone(),
        token.user.clone(),
        token.label.clone().unwrap_or_default(),
        token.scopes.clone(),
        time(token.issued),
        until(token.expires),
        time(token.last_used),
        ended(token.revoked, token.expires).to_owned(),
    ]
}

/// When it ends, for people.
pub(super) fn until(expires: Option<u64>) -> String {
    expires.map_or_else(|| "never".to_owned(), |end| time(Some(end)))
}

/// Why it is good for nothing any more, if so.
pub(super) fn ended(revoked: Option<u64>, expires: Option<u64>) -> &'static str {
    match (revoked, expires) {
        (Some(_), _) => "revoked",
        (None, Some(end)) if end <= now() => "expired",
        _ => "",
    }
}

fn bridge_row(bridge: &Bridge) -> Vec<String> {
    let program = [bridge.version.as_deref(), bridge.platform.as_deref()];
    vec![
        bridge.id.clone(),
        bridge.user.clone(),
        bridge.name.clone(),
        bridge.transport.clone(),
        program.into_iter().flatten().collect::<Vec<_>>().join(" "),
        time(Some(bridge.first_seen)),
        if bridge.is_connected() {
            "connected".to_owned()
        } else {
            time(Some(bridge.last_seen))
        },
    ]
}

impl ListArgs {
    /// Whose entries are listed, if not everybody's.
    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    fn wants(&self, user: &str) -> bool {
        self.user.as_deref().is_none_or(|wanted| wanted == user)
    }

    pub(super) fn show<T: Serialize>(
        &self,
        entries: &[T],
        columns: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Failure> {
        if self.json {
            print(&serde_json::to_string_pretty(entries).context("cannot write the list")?);
        } else if entries.is_empty() {
            tell("There are none.");
        } else {
            print(&table(columns, &entries.iter().map(row).collect::<Vec<_>>()));
        }
        Ok(())
    }
}

/// Seconds since 1970 for people.
pub(super) fn time(seconds: Option<u64>) -> String {
    let at = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    // What lies beyond the calendar was never meant as a date.
    let shown = |at| {
        let mut text = String::new();
        std::fmt::Write::write_fmt(&mut text, format_args!("{}", humantime::format_rfc3339_seconds(at))).ok()?;
        Some(text)
    };
    at.and_then(shown).unwrap_or_else(|| "-".to_owned())
}

/// Columns as wide as what is in them. What users and bridges call themselves is shown without control characters.
fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let clean = |cell: &str| {
        cell.chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect::<String>()
    };
    let head = columns.iter().map(|name| (*name).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(&head)
        .chain(rows)
        .map(|row: &Vec<String>| row.iter().map(|cell| clean(cell)).collect())
        .collect();
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| console::measure_text_width(&line[column]))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let line = |cells: &Vec<String>| {
        let cells = cells.iter().zip(&widths);
        let padded =
            cells.map(|(cell, width)| console::pad_str(cell, *width, console::Alignment::Left, None).into_owned());
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_what_is_in_it_and_shows_no_control_characters() {
        let rows = [
            vec!["a".to_owned(), "long one".to_owned()],
            vec!["b\u{1b}[31m".to_owned(), String::new()],
        ];
        assert_eq!(table(&["ID", "USER"], &rows), "ID      USER\na       long one\nb?[31m");
    }

    #[test]
    fn a_bridge_is_found_by_its_id_before_its_name_and_connected_before_gone() {
        let bridge = |id: &str, user: &str, name: &str, gone| Bridge {
            id: id.into(),
            user: user.into(),
            client_id: None,
            name: name.into(),
            platform: None,
            version: None,
            transport: "ws".into(),
            first_seen: 0,
            last_seen: now(),
            gone,
        };
        let bridges = [
            bridge("1", "ann", "box", None),
            bridge("2", "bob", "1", None),
            bridge("3", "ann", "box", Some(5)),
            bridge("4", "bob", "box", Some(5)),
            bridge("5", "carl", "box", None),
            bridge("6", "ann", "den", None),
            bridge("7", "auth0|1", "den", Some(5)),
            bridge("8", "ann", "hut", None),
            bridge("9", "ann", "hut", Some(5)),
        ];
        let id = |text| meant(&bridges, text).ok().map(|bridge| bridge.id.as_str());
        assert_eq!(
            (id("1"), id("ann/box"), id("bob/box")),
            (Some("1"), Some("1"), Some("4"))
        );
        assert_eq!((id("box"), id("nobody")), (None, None));
        // Whoever else has one that is called so need not be connected.
        assert_eq!(
            (id("den"), id("ann/den"), id("auth0|1/den")),
            (None, Some("6"), Some("7"))
        );
        assert_eq!((id("auth0%7C1/den"), id("hut")), (Some("7"), Some("8")));
    }

    #[test]
    fn times_are_shown_as_dates() {
        assert_eq!(time(Some(0)), "1970-01-01T00:00:00Z");
        assert_eq!(time(None), "-");
        assert_eq!(time(Some(u64::MAX)), "-");
        assert_eq!(time(Some(1 << 50)), "-");
    }
}
