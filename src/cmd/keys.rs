//! `tunnel relay key` and `pair`: keys for callers, and codes for bridges. Like those of `accounts`, they work on the database.

use anyhow::Context;
use clap::Subcommand;

use super::accounts::{
    Expiry, ListArgs, await_second_after_deletion, check_user, ended, expiry, label, tell_made, time, until,
};
use super::database::DatabaseArgs;
use super::secret::SecretArgs;
use super::{Failure, print, qr, tell};
use crate::relay::auth::caller_keys;
use crate::relay::auth::tokens::now;
use crate::relay::host::PublicUrl;
use crate::relay::keys::{Wish, make};
use crate::relay::pairing::{self, CODE_LIFE};
use crate::relay::rate::Rate;
use crate::relay::store::StoreError;
use crate::relay::store::keys::{Key, Maker};

const EXAMPLE: &str = "\
Examples:
  tunnel relay key add --user ann --label phone
  tunnel relay key add --user ann --label phone --bridge box --expires 30d --rate 60/m
  tunnel relay key add --user ann --qr --public-url https://relay.example.com
  tunnel relay key revoke ID";

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLE)]
pub(super) enum KeyCommand {
    /// Print a new key: it is short enough for a phone, good for requests only, and shown this once
    Add(AddArgs),
    /// List the keys, and when each was last used
    List(ListArgs),
    /// Take a key back: what goes on with it is cut
    Revoke {
        /// The key's id, as the list shows it
        id: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// Whose key it is
    #[arg(long, value_name = "NAME")]
    user: String,
    /// What to call it in lists, as in phone
    #[arg(long, value_name = "TEXT", value_parser = label)]
    label: Option<String>,
    /// The name of the only bridge that it reaches [default: all of the user's]
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// How long it is valid, or never for one that does not end
    #[arg(long, value_name = "TIME", default_value = "never", value_parser = expiry)]
    expires: Expiry,
    /// Requests that it may make in a time, as in 20/s, 600/m or 1000/h [default: as many as the relay lets any]
    #[arg(long = "rate", value_name = "RATE", value_parser = rate)]
    key_rate: Option<String>,
    /// Draw it too, with the relay's address, for a phone's camera
    #[arg(long, requires = "public_url")]
    qr: bool,
    /// Where the relay is reached from outside, as in https://relay.example.com
    #[arg(long, value_name = "URL")]
    public_url: Option<PublicUrl>,
}

#[derive(Debug, clap::Args)]
pub(super) struct PairArgs {
    /// Whose bridge it will be
    #[arg(long, value_name = "NAME")]
    user: String,
}

fn rate(text: &str) -> Result<String, String> {
    let read = text.parse::<Rate>().map_err(|error| error.to_string());
    read.map(|_| text.to_owned())
}

/// `tunnel relay key`.
pub(super) fn key(command: &KeyCommand, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    match command {
        KeyCommand::Add(args) => add(args, data, database),
        KeyCommand::List(list) => database.with_store(data, async |store| {
            let keys = store.keys(list.user()).await?;
            list.show(&keys, COLUMNS, row)
        }),
        KeyCommand::Revoke { id } => database.with_store(data, async |store| match store.revoke_key(id, None).await {
            Err(StoreError::Absent) => Err(anyhow::anyhow!(
                "no valid key has the id {}; see: tunnel relay key list",
                id.escape_debug()
            )
            .into()),
            revoked => Ok(revoked?),
        }),
    }
}

fn add(args: &AddArgs, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    check_user(&args.user)?;
    let key = database.with_store(data, async |store| {
        await_second_after_deletion(&store, &args.user).await?;
        let wish = Wish {
            label: args.label.clone(),
            bridge: args.bridge.clone(),
            rate: args.key_rate.clone(),
            expires: args.expires.0.map(|life| now().saturating_add(life.as_secs())),
        };
        let maker = Maker::operator();
        let (key, kept) = make(&args.user, &maker, wish).map_err(|error| Failure::usage(error.detail))?;
        store.add_key(&kept, &caller_keys::hash(key.expose()), &maker).await?;
        Ok(key)
    })?;
    print(key.expose());
    if let (true, Some(url)) = (args.qr, &args.public_url) {
        // No link: a browser would keep the key in its history.
        let drawn = qr::drawn(format!("{url}\n{}", key.expose()));
        print(&drawn.context("cannot draw the key")?);
    }
    Ok(())
}

/// `tunnel relay pair`.
pub(super) fn pair(args: &PairArgs, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    check_user(&args.user)?;
    let (tokens, made) = data.issuer()?;
    tell_made(made.as_deref());
    let code = database.with_store(data, async |store| {
        await_second_after_deletion(&store, &args.user).await?;
        let made = pairing::make(&tokens, &store, args.user.clone(), Maker::operator()).await?;
        Ok(made.0)
    })?;
    tell(&format!(
        "On the desktop, within {} minutes: tunnel bridge login --relay URL-OF-THIS-RELAY --code {code}",
        CODE_LIFE.as_secs() / 60
    ));
    print(&code);
    Ok(())
}

const COLUMNS: &[&str] = &[
    "ID",
    "USER",
    "LABEL",
    "BRIDGE",
    "RATE",
    "ISSUED",
    "EXPIRES",
    "LAST USED",
    "",
];

fn row(key: &Key) -> Vec<String> {
    vec![
        key.id.clone(),
        key.user.clone(),
        key.label.clone().unwrap_or_default(),
        key.bridge.clone().unwrap_or_default(),
        key.rate.clone().unwrap_or_default(),
        time(Some(key.issued)),
        until(key.expires),
        time(key.last_used),
        ended(key.revoked, key.expires).to_owned(),
    ]
}
