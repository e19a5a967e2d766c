//! Which bridges are shared with whom, and what the provider of sign-in said of users' groups, which shares may name.

use serde::Serialize;

use super::accounts::{self, TOUCH};
use super::driver::{Row, Statement};
use super::keys::{Maker, let_in};
use super::{Store, StoreError, now};
use crate::relay::auth::shares::{self, Groups, MOST, Memberships, REMEMBERED, Shared, Shares, With};

/// Shares of one owner.
const MOST_OF_OWNER: i64 = 1000;
/// For so long it is not told to relays that the provider says the same again, seconds.
const SAID_OF_LATE: u64 = 24 * 3600;

/// A bridge is written within this time, seconds.
const UNWRITTEN: i64 = 24 * 3600;

const ADD: &str = "INSERT INTO shares (id, owner, bridge_id, bridge_name, kind, name, since) \
    SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS text), CAST($5 AS text), CAST($6 AS text), \
    CAST($7 AS bigint) \
    WHERE (SELECT count(*) FROM shares WHERE owner = $2) < $8 AND (SELECT count(*) FROM shares) < $9 \
    ON CONFLICT (bridge_id, kind, name) DO NOTHING";
const LIST: &str = "SELECT id, owner, bridge_id, \
    COALESCE((SELECT bridges.name FROM bridges WHERE bridges.id = bridge_id), bridge_name), kind, name, since FROM shares \
    WHERE owner = COALESCE(CAST($1 AS text), owner) ORDER BY owner, 4, bridge_id, kind, name";
const REMOVE: &str = "DELETE FROM shares WHERE id = $1 AND owner = COALESCE(CAST($2 AS text), owner)";
const ALL: &str = "SELECT owner, bridge_id, kind, name FROM shares ORDER BY since, id LIMIT $1";
// Nobody looks at them where no share names a group.
const MEMBERSHIPS: &str = "SELECT user_name, group_names, said FROM memberships \
    WHERE said > $1 AND EXISTS (SELECT 1 FROM shares WHERE kind = 'group')";
const TOUCH_IF_OTHERS: &str = "UPDATE revision SET number = number + 1 \
    WHERE one = 1 AND EXISTS (SELECT 1 FROM shares WHERE kind = 'group') AND NOT EXISTS (SELECT 1 FROM memberships \
    WHERE user_name = $1 AND (said >= $2 OR (group_names = $3 AND said > $4)))";
const SAY: &str = "INSERT INTO memberships (user_name, group_names, said) \
    SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS bigint) \
    WHERE NOT EXISTS (SELECT 1 FROM users WHERE name = $1 AND deleted >= $3) \
    ON CONFLICT (user_name) DO UPDATE SET group_names = excluded.group_names, said = excluded.said \
    WHERE memberships.said < excluded.said";
pub(super) const DELETE_OF_OWNER: &str = "DELETE FROM shares WHERE owner = $1";
pub(super) const DELETE_WITH_USER: &str = "DELETE FROM shares WHERE kind = 'user' AND name = $1";
pub(super) const DELETE_MEMBERSHIP: &str = "DELETE FROM memberships WHERE user_name = $1";
const TOUCH_IF_LEFT_OVER: &str = "UPDATE revision SET number = number + 1 WHERE one = 1 AND EXISTS (SELECT 1 FROM shares \
    WHERE since < $1 AND NOT EXISTS (SELECT 1 FROM bridges WHERE bridges.id = bridge_id))";
const PRUNE: &str = "DELETE FROM shares \
    WHERE since < $1 AND NOT EXISTS (SELECT 1 FROM bridges WHERE bridges.id = bridge_id)";
const PRUNE_MEMBERSHIPS: &str = "DELETE FROM memberships WHERE said < $1";

/// That a bridge is shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Its id.
    pub id: String,
    /// Whose the bridge is.
    pub owner: String,
    /// The bridge's id.
    pub bridge: String,
    /// What the bridge is called.
    pub name: String,
    /// With whom.
    #[serde(serialize_with = "serialize_text")]
    pub with: With,
    /// Seconds since 1970.
    pub since: u64,
}

fn serialize_text<S: serde::Serializer>(with: &With, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(with)
}

/// What the provider said of a user's groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The user.
    pub user: String,
    /// The groups.
    pub groups: Groups,
    /// When it was said, seconds since 1970.
    pub said: u64,
}

impl Store {
    /// Shares a bridge; the share, which may be one that was there before.
    ///
    /// # Errors
    /// `Full` when there are as many as may be, `ShutOut`, `Away`.
    pub async fn share(&self, share: &Share, maker: &Maker) -> Result<Share, StoreError> {
        let (kind, name) = share.with.parts();
        let values = [
            share.id.as_str().into(),
            share.owner.as_str().into(),
            share.bridge.as_str().into(),
            share.name.as_str().into(),
            kind.into(),
            name.into(),
            share.since.into(),
            MOST_OF_OWNER.into(),
            (MOST as u64).into(),
        ];
        let statements = vec![
            accounts::add_user(&share.owner),
            let_in(&share.owner, maker),
            Statement::new(ADD, values).must_touch_or(|| StoreError::Full),
            Statement::new(TOUCH, []),
        ];
        match self.driver.write(statements).await {
            Ok(()) => Ok(share.clone()),
            Err(StoreError::Full) => {
                let shares = self.shares(Some(&share.owner)).await?;
                let same = |other: &Share| (&other.bridge, &other.with) == (&share.bridge, &share.with);
                shares.into_iter().find(same).ok_or(StoreError::Full)
            }
            Err(error) => Err(error),
        }
    }

    /// All shares, or those of one owner.
    ///
    /// # Errors
    /// `Away`.
    pub async fn shares(&self, owner: Option<&str>) -> Result<Vec<Share>, StoreError> {
        let rows = self.driver.read(Statement::new(LIST, [owner.into()])).await?;
        let shares: Result<Vec<_>, _> = rows.into_iter().map(read_share).collect();
        Ok(shares?.into_iter().flatten().collect())
    }

    /// Takes a share back, if it is this owner's; anybody's, where none is named.
    ///
    /// # Errors
    /// `Absent`, `Away`.
    pub async fn unshare(&self, id: &str, owner: Option<&str>) -> Result<(), StoreError> {
        let remove = Statement::new(REMOVE, [id.into(), owner.into()]).must_touch();
        self.driver.write(vec![remove, Statement::new(TOUCH, [])]).await
    }

    /// All shares, as relays hold them.
    pub(super) async fn all_shares(&self) -> Result<Shares, StoreError> {
        let rows = self.driver.read(Statement::new(ALL, [(MOST as u64).into()])).await?;
        let shares: Result<Vec<_>, _> = rows.into_iter().map(read_shared).collect();
        Ok(shares?.into_iter().flatten().collect())
    }

    /// What the provider said of users' groups, if a share names one.
    pub(super) async fn memberships(&self) -> Result<Memberships, StoreError> {
        let since = now().unsigned_abs().saturating_sub(REMEMBERED);
        let rows = self.driver.read(Statement::new(MEMBERSHIPS, [since.into()])).await?;
        let read = |mut row: Row| {
            let (user, groups) = (row.text()?.into(), row.text()?);
            let groups: Vec<String> = serde_json::from_str(&groups).unwrap_or_default();
            let groups = shares::groups(groups.iter().map(String::as_str));
            Ok((user, (groups, row.number()?)))
        };
        rows.into_iter().map(read).collect()
    }
}

/// What is written of groups, those of the newest word of each user; relays are told if it is another word and a share names a group.
pub(super) fn say(memberships: &[Membership]) -> Vec<Statement> {
    let mut sorted: Vec<_> = memberships.iter().collect();
    sorted.sort_by(|one, other| one.user.cmp(&other.user));
    let text = |groups: &Groups| serde_json::json!(**groups).to_string();
    let touch = |said: &&Membership| {
        let values = [
            said.user.as_str().into(),
            said.said.into(),
            text(&said.groups).as_str().into(),
            said.said.saturating_sub(SAID_OF_LATE).into(),
        ];
        Statement::new(TOUCH_IF_OTHERS, values)
    };
    let say = |said: &&Membership| {
        let values = [
            said.user.as_str().into(),
            text(&said.groups).as_str().into(),
            said.said.into(),
        ];
        Statement::new(SAY, values)
    };
    // The revision's row first: two relays must not wait for each other in a circle.
    sorted.iter().map(touch).chain(sorted.iter().map(say)).collect()
}

/// What is forgotten: shares of bridges that are forgotten, and groups that do not count any more.
pub(super) fn prune() -> Vec<Statement> {
    let said = now().unsigned_abs().saturating_sub(REMEMBERED);
    // A bridge that has just come may not be written yet.
    let made_before = now() - UNWRITTEN;
    vec![
        Statement::new(TOUCH_IF_LEFT_OVER, [made_before.into()]),
        Statement::new(PRUNE, [made_before.into()]),
        Statement::new(PRUNE_MEMBERSHIPS, [said.into()]),
    ]
}

/// None for a share with a kind of people that only a later release knows.
fn read_share(mut row: Row) -> Result<Option<Share>, StoreError> {
    let (id, owner, bridge, name) = (row.text()?, row.text()?, row.text()?, row.text()?);
    let (kind, whose, since) = (row.text()?, row.text()?, row.number()?);
    Ok(With::of(&kind, &whose).map(|with| Share {
        id,
        owner,
        bridge,
        name,
        with,
        since,
    }))
}

fn read_shared(mut row: Row) -> Result<Option<(Shared, With)>, StoreError> {
    let shared = Shared {
        owner: row.text()?.into(),
        bridge: row.text()?.into(),
    };
    let (kind, name) = (row.text()?, row.text()?);
    Ok(With::of(&kind, &name).map(|with| (shared, with)))
}
