//! `tunnel relay share`, `unshare` and `shares`: which bridges are shared with whom. Like those of `accounts`, they work on the
//! database.

use anyhow::Context;

use super::Failure;
use super::accounts::{ListArgs, await_second_after_deletion, meant, time};
use super::database::DatabaseArgs;
use super::secret::SecretArgs;
use crate::relay::auth::shares::With;
use crate::relay::shares::make;
use crate::relay::store::StoreError;
use crate::relay::store::keys::Maker;
use crate::relay::store::shares::Share;

const EXAMPLE: &str = "\
Examples:
  tunnel relay share ann/box --with bob
  tunnel relay share ann/box --with group:staff
  tunnel relay share box --with all
  tunnel relay unshare ann/box --with bob";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct ShareArgs {
    /// Its name, OWNER/NAME, or its id
    #[arg(allow_hyphen_values = true)]
    bridge: String,
    /// With whom: a user's name (or user:NAME), group:NAME of the provider of sign-in, or all for everybody who may come in
    #[arg(long, value_name = "WHOM", value_parser = with)]
    with: With,
}

fn with(text: &str) -> Result<With, String> {
    let is_bare = text != "all" && !["user:", "group:"].iter().any(|kind| text.starts_with(kind));
    let read = if is_bare {
        With::of("user", text)
    } else {
        text.parse().ok()
    };
    read.ok_or_else(|| "write NAME, user:NAME, group:NAME or all; a name has 1 to 256 characters".to_owned())
}

/// `tunnel relay share`.
pub(super) fn share(args: &ShareArgs, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    database.with_store(data, async |store| {
        let bridges = store.bridges().await?;
        let bridge = meant(&bridges, &args.bridge)?;
        await_second_after_deletion(&store, &bridge.user).await?;
        let share = make(&bridge.user, &bridge.id, &bridge.name, args.with.clone());
        let share = share.context("no random numbers to be had")?;
        store.share(&share, &Maker::operator()).await?;
        Ok(())
    })
}

/// `tunnel relay unshare`.
pub(super) fn unshare(args: &ShareArgs, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    database.with_store(data, async |store| {
        let bridges = store.bridges().await?;
        let bridge = meant(&bridges, &args.bridge)?;
        let shares = store.shares(Some(&bridge.user)).await?;
        let share = shares
            .iter()
            .find(|share| share.bridge == bridge.id && share.with == args.with);
        let removed = match share {
            Some(share) => store.unshare(&share.id, None).await,
            None => Err(StoreError::Absent),
        };
        match removed {
            Err(StoreError::Absent) => {
                let name = bridge.name.escape_debug();
                Err(anyhow::anyhow!("{name} is not shared so; see: tunnel relay shares").into())
            }
            removed => Ok(removed?),
        }
    })
}

/// `tunnel relay shares`.
pub(super) fn shares(list: &ListArgs, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    database.with_store(data, async |store| {
        let shares = store.shares(list.user()).await?;
        list.show(&shares, COLUMNS, row)
    })
}

const COLUMNS: &[&str] = &["OWNER", "NAME", "WITH", "SINCE", "BRIDGE"];

fn row(share: &Share) -> Vec<String> {
    vec![
        share.owner.clone(),
        share.name.clone(),
        share.with.to_string(),
        time(Some(share.since)),
        share.bridge.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_is_that_of_a_user() {
        let read = |text: &str| with(text).map(|with| with.to_string());
        assert_eq!(read("bob"), Ok("user:bob".to_owned()));
        assert_eq!(read("user:all"), Ok("user:all".to_owned()));
        assert_eq!(read("group:staff"), Ok("group:staff".to_owned()));
        assert_eq!(read("all"), Ok("all".to_owned()));
        assert_eq!(read("urn:bob"), Ok("user:urn:bob".to_owned()));
        assert!(read("group:").is_err() && read("").is_err());
    }
}
