//! `tunnel relay share`, `unshare` and `shares`: which bridges are shared with whom. Like those of `accounts`, they work on the
//! database.

use anyhow::Context;

use super::accounts::{ListArgs, await_second_after_deletion, meant, time};
use super::database::DatabaseArgs;
use super::secret::SecretArgs;
use super::{Failure, tell};
use crate::relay::address::Address;
use crate::relay::auth::shares::With;
use crate::relay::shares::make;
use crate::relay::store::StoreError;
use crate::relay::store::accounts::Bridge;
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

/// A name alone is that of a user, unless it looks like a slip of the pen.
fn with(text: &str) -> Result<With, String> {
    const HOW: &str =
        "write NAME, user:NAME, group:NAME or all; a name has 1 to 256 characters and no control characters";
    if let Ok(with) = text.parse() {
        return Ok(with);
    }
    let (kind, is_alone) = match text.split_once([':', '=']) {
        Some((kind, _)) => (kind, false),
        None => (text, true),
    };
    let is_slip = match kind.to_lowercase().as_str() {
        "all" => true,
        "user" | "users" | "group" | "groups" => !is_alone,
        _ => false,
    };
    match With::of("user", text) {
        Some(_) if is_slip => Err(format!("{HOW}; for a user who is called so, write user:{text}")),
        Some(user) => Ok(user),
        None => Err(HOW.to_owned()),
    }
}

/// The bridge as callers name it.
fn address(bridge: &Bridge) -> Address {
    Address {
        owner: bridge.user.clone(),
        name: bridge.name.clone(),
    }
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
        tell(&format!("{} is shared with {}.", address(bridge), &args.with));
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
        let (address, with) = (address(bridge), &args.with);
        match removed {
            Err(StoreError::Absent) => {
                Err(anyhow::anyhow!("{address} is not shared with {with}; see: tunnel relay shares").into())
            }
            Err(error) => Err(error.into()),
            Ok(()) => {
                tell(&format!("{address} is not shared with {with} any more."));
                Ok(())
            }
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
        assert_eq!(read("group"), Ok("user:group".to_owned()));
        for slip in [
            "groups:staff",
            "Group:staff",
            "group=staff",
            "user=bob",
            "All",
            "all:x",
            "group:",
            "",
        ] {
            assert!(read(slip).is_err(), "{slip}");
        }
    }
}
