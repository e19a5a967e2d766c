//! Keys for callers, and codes that a bridge is paired with: of both only the hash is kept.

use serde::Serialize;

use super::accounts::{self, TOUCH, Token};
use super::driver::{Row, Statement};
use super::{Store, StoreError, now};
use crate::relay::auth::caller_keys::{CallerKey, CallerKeys, MOST};

/// Keys of one user that are valid at once.
const MOST_OF_USER: i64 = 1000;
/// Codes of one user that wait to be claimed.
const MOST_CODES: i64 = 10;

const ADD: &str = "INSERT INTO keys (id, hash, user_name, label, bridge, rate, issued, expires) \
    SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS text), CAST($5 AS text), CAST($6 AS text), \
    CAST($7 AS bigint), CAST($8 AS bigint) \
    WHERE (SELECT count(*) FROM keys WHERE user_name = $3 AND revoked IS NULL AND (expires IS NULL OR expires > $7)) < $9 \
    AND (SELECT count(*) FROM keys WHERE revoked IS NULL AND (expires IS NULL OR expires > $7)) < $10";
const LIST: &str = "SELECT id, user_name, label, bridge, rate, issued, expires, last_used, revoked FROM keys \
    WHERE user_name = COALESCE(CAST($1 AS text), user_name) ORDER BY user_name, issued, id";
const REVOKE: &str = "UPDATE keys SET revoked = $1 WHERE id = $2 AND revoked IS NULL \
    AND user_name = COALESCE(CAST($3 AS text), user_name)";
const VALID: &str = "SELECT hash, id, user_name, bridge, rate, issued, expires FROM keys \
    WHERE revoked IS NULL AND (expires IS NULL OR expires > $1) ORDER BY issued, id LIMIT $2";
const DROP_OLD_CODES: &str = "DELETE FROM codes WHERE expires <= $1";
const ADD_CODE: &str = "INSERT INTO codes (hash, user_name, expires, life) \
    SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS bigint), CAST($4 AS bigint) \
    WHERE (SELECT count(*) FROM codes WHERE user_name = $2) < $5";
const CODE: &str = "SELECT user_name, life FROM codes WHERE hash = $1 AND expires > $2";
const CLAIM: &str = "DELETE FROM codes WHERE hash = $1 AND expires > $2";

/// A key for callers, as it is shown; the key itself is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// What it is called.
    pub label: Option<String>,
    /// The name of the only bridge that it reaches.
    pub bridge: Option<String>,
    /// How many requests it may make, as in `20/s`.
    pub rate: Option<String>,
    /// Seconds since 1970.
    pub issued: u64,
    /// Seconds since 1970; never, if none.
    pub expires: Option<u64>,
    /// Seconds since 1970.
    pub last_used: Option<u64>,
    /// Seconds since 1970; valid, if none.
    pub revoked: Option<u64>,
}

/// A code that was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Whose bridge it is for.
    pub user: String,
    /// How long the bridge's token lives, seconds.
    pub life: u64,
}

impl Store {
    /// Remembers a key that is about to be handed out, by its hash.
    ///
    /// # Errors
    /// `Full` when there are as many as may be, `Away`.
    pub async fn add_key(&self, key: &Key, hash: &str) -> Result<(), StoreError> {
        let values = [
            key.id.as_str().into(),
            hash.into(),
            key.user.as_str().into(),
            key.label.as_deref().into(),
            key.bridge.as_deref().into(),
            key.rate.as_deref().into(),
            key.issued.into(),
            key.expires.into(),
            MOST_OF_USER.into(),
            (MOST as u64).into(),
        ];
        let statements = vec![
            accounts::add_user(&key.user),
            Statement::new(ADD, values).must_touch(),
            Statement::new(TOUCH, []),
        ];
        self.driver.write(statements).await.map_err(full)
    }

    /// All keys, or those of one user.
    ///
    /// # Errors
    /// `Away`.
    pub async fn keys(&self, user: Option<&str>) -> Result<Vec<Key>, StoreError> {
        let rows = self.driver.read(Statement::new(LIST, [user.into()])).await?;
        rows.into_iter().map(read_key).collect()
    }

    /// Takes a key back, if it is this user's; anybody's, where none is named.
    ///
    /// # Errors
    /// `Absent` when there is none that is valid, `Away`.
    pub async fn revoke_key(&self, id: &str, user: Option<&str>) -> Result<(), StoreError> {
        let revoke = Statement::new(REVOKE, [now().into(), id.into(), user.into()]).must_touch();
        self.driver.write(vec![revoke, Statement::new(TOUCH, [])]).await
    }

    /// Keys that are valid.
    pub(super) async fn caller_keys(&self) -> Result<CallerKeys, StoreError> {
        let values = [now().into(), (MOST as u64).into()];
        let rows = self.driver.read(Statement::new(VALID, values)).await?;
        let keys: Result<Vec<_>, _> = rows.into_iter().map(read_caller_key).collect();
        Ok(keys?.into_iter().flatten().collect())
    }

    /// Remembers a code by its hash until that second.
    ///
    /// # Errors
    /// `Full` when the user has as many as one may, `Away`.
    pub async fn add_code(&self, code: &Code, hash: &str, expires: u64) -> Result<(), StoreError> {
        let values = [
            hash.into(),
            code.user.as_str().into(),
            expires.into(),
            code.life.into(),
            MOST_CODES.into(),
        ];
        let statements = vec![
            Statement::new(DROP_OLD_CODES, [now().into()]),
            accounts::add_user(&code.user),
            Statement::new(ADD_CODE, values).must_touch(),
        ];
        self.driver.write(statements).await.map_err(full)
    }

    /// The code of this hash, while it can be claimed.
    ///
    /// # Errors
    /// `Away`.
    pub async fn code(&self, hash: &str) -> Result<Option<Code>, StoreError> {
        let rows = self
            .driver
            .read(Statement::new(CODE, [hash.into(), now().into()]))
            .await?;
        let read = |mut row: Row| {
            Ok(Code {
                user: row.text()?,
                life: row.number()?,
            })
        };
        rows.into_iter().next().map(read).transpose()
    }

    /// Gives a code up for a token: whoever else does so gets nothing.
    ///
    /// # Errors
    /// `Absent` when it was given up before, `Away`.
    pub async fn claim(&self, hash: &str, token: &Token) -> Result<(), StoreError> {
        let claim = Statement::new(CLAIM, [hash.into(), now().into()]).must_touch();
        self.driver.write(vec![claim, accounts::issue(token)]).await
    }
}

fn full(error: StoreError) -> StoreError {
    match error {
        StoreError::Absent => StoreError::Full,
        error => error,
    }
}

fn read_key(mut row: Row) -> Result<Key, StoreError> {
    Ok(Key {
        id: row.text()?,
        user: row.text()?,
        label: row.text_or_null()?,
        bridge: row.text_or_null()?,
        rate: row.text_or_null()?,
        issued: row.number()?,
        expires: row.number_or_null()?,
        last_used: row.number_or_null()?,
        revoked: row.number_or_null()?,
    })
}

/// None for a key with a limit that only a later release can read: rather no key than one without its limit.
fn read_caller_key(mut row: Row) -> Result<Option<(Box<str>, CallerKey)>, StoreError> {
    let hash = row.text()?.into();
    let (id, user) = (row.text()?.into(), row.text()?.into());
    let bridge = row.text_or_null()?.map(Into::into);
    let rate = row.text_or_null()?.map(|rate| rate.parse()).transpose();
    let (issued, expires) = (row.number()?, row.number_or_null()?);
    Ok(rate.ok().map(|rate| {
        let key = CallerKey {
            id,
            user,
            bridge,
            rate,
            issued,
            expires,
        };
        (hash, key)
    }))
}
