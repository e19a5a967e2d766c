//! Keys for callers, and codes that a bridge is paired with: of both only the hash is kept. What else is kept of users and of what
//! they hold is in [`super::accounts`].

use serde::Serialize;

use super::accounts::{self, TOUCH, Token};
use super::driver::{Row, Statement};
use super::{Store, StoreError, now};
use crate::relay::auth::Identity;
use crate::relay::auth::caller_keys::{CallerKey, CallerKeys, MOST};

/// Keys of one user that are valid at once.
const MOST_OF_USER: i64 = 1000;
/// Keys of one user, with those that ended or were revoked; and tokens of one for whom codes are made.
const MOST_ROWS: i64 = 5000;
/// Keys of one user that are listed; all that are valid are among them.
const MOST_LISTED: i64 = 1000;
/// Codes of one user that wait to be claimed.
const MOST_CODES: i64 = 10;
/// For so long after its end, relays hold a key: what goes on with it is cut when it is revoked; seconds.
const HELD: i64 = 24 * 3600;

// It keeps the user's row until the transaction ends: nobody is disabled or deleted between this and what follows.
const LET_IN: &str = "UPDATE users SET first_seen = first_seen WHERE name = $1 AND disabled IS NULL \
    AND (deleted IS NULL OR deleted < $2) \
    AND NOT EXISTS (SELECT 1 FROM tokens WHERE id = CAST($3 AS text) AND revoked IS NOT NULL)";
const ADD: &str = "INSERT INTO keys (id, hash, user_name, label, bridge, rate, issued, expires, maker) \
    SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS text), CAST($5 AS text), CAST($6 AS text), \
    CAST($7 AS bigint), CAST($8 AS bigint), CAST($9 AS text) \
    WHERE (SELECT count(*) FROM keys WHERE user_name = $3 AND revoked IS NULL AND (expires IS NULL OR expires > $7)) < $10 \
    AND (SELECT count(*) FROM keys WHERE user_name = $3) < $11 \
    AND (SELECT count(*) FROM keys WHERE revoked IS NULL AND (expires IS NULL OR expires > $12)) < $13";
const LIST: &str = "SELECT id, user_name, label, bridge, rate, issued, expires, last_used, revoked, maker FROM keys \
    ORDER BY user_name, issued, id";
const LIST_OF_USER: &str = "SELECT id, user_name, label, bridge, rate, issued, expires, last_used, revoked, maker FROM keys \
    WHERE user_name = $1 ORDER BY CASE WHEN revoked IS NULL AND (expires IS NULL OR expires > $2) THEN 0 ELSE 1 END, \
    issued DESC, id LIMIT $3";
const REVOKE: &str = "UPDATE keys SET revoked = $1 WHERE id = $2 AND revoked IS NULL \
    AND user_name = COALESCE(CAST($3 AS text), user_name)";
const VALID: &str = "SELECT hash, id, user_name, bridge, rate, issued, expires FROM keys \
    WHERE revoked IS NULL AND (expires IS NULL OR expires > $1) ORDER BY issued, id LIMIT $2";
const DROP_OLD_CODES: &str = "DELETE FROM codes WHERE expires <= $1";
const ADD_CODE: &str = "INSERT INTO codes (hash, user_name, expires, maker, maker_issued, maker_expires) \
    SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS bigint), CAST($4 AS text), CAST($5 AS bigint), CAST($6 AS bigint) \
    WHERE (SELECT count(*) FROM codes WHERE user_name = $2) < $7 \
    AND (SELECT count(*) FROM tokens WHERE user_name = $2) < $8";
const CODE: &str = "SELECT user_name, maker, maker_issued, maker_expires FROM codes WHERE hash = $1 AND expires > $2";
const CLAIM: &str = "DELETE FROM codes WHERE hash = $1 AND expires > $2";
const HAS_ROOM: &str = "UPDATE users SET first_seen = first_seen WHERE name = $1 \
    AND (SELECT count(*) FROM tokens WHERE user_name = $1) < $2";

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
    /// The id of the token that made it; the operator did, if none.
    pub maker: Option<String>,
}

/// Who makes a key or a code. What is made is good only while the maker is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// The id of the token that asks; none, if the operator does.
    pub id: Option<String>,
    /// When that token was issued; the operator's moment is now. Seconds since 1970.
    pub issued: u64,
    /// When what is made must have ended, seconds since 1970: with that token. A provider's is only the proof of the hour that its
    /// holder signed in, and ends nothing.
    pub expires: Option<u64>,
}

impl Maker {
    /// Whoever has the database.
    pub fn operator() -> Self {
        Self {
            id: None,
            issued: now().unsigned_abs(),
            expires: None,
        }
    }
}

impl From<&Identity> for Maker {
    fn from(identity: &Identity) -> Self {
        Self {
            id: Some(identity.id.to_string()),
            issued: identity.issued.unwrap_or_default(),
            expires: identity.expires.filter(|_| !identity.is_sign_in()),
        }
    }
}

/// A code that was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Whose bridge it is for.
    pub user: String,
    /// Who made it.
    pub maker: Maker,
}

impl Store {
    /// Remembers a key that is about to be handed out, by its hash.
    ///
    /// # Errors
    /// `Full` when there are as many as may be, `ShutOut`, `Away`.
    pub async fn add_key(&self, key: &Key, hash: &str, maker: &Maker) -> Result<(), StoreError> {
        let values = [
            key.id.as_str().into(),
            hash.into(),
            key.user.as_str().into(),
            key.label.as_deref().into(),
            key.bridge.as_deref().into(),
            key.rate.as_deref().into(),
            key.issued.into(),
            key.expires.into(),
            key.maker.as_deref().into(),
            MOST_OF_USER.into(),
            MOST_ROWS.into(),
            (now() - HELD).into(),
            (MOST as u64).into(),
        ];
        let statements = vec![
            accounts::add_user(&key.user),
            let_in(&key.user, maker),
            Statement::new(ADD, values).must_touch_or(|| StoreError::Full),
            Statement::new(TOUCH, []),
        ];
        self.driver.write(statements).await
    }

    /// All keys, or those of one user: the valid ones, and the newest of the others.
    ///
    /// # Errors
    /// `Away`.
    pub async fn keys(&self, user: Option<&str>) -> Result<Vec<Key>, StoreError> {
        let list = match user {
            None => Statement::new(LIST, []),
            Some(user) => Statement::new(LIST_OF_USER, [user.into(), now().into(), MOST_LISTED.into()]),
        };
        let rows = self.driver.read(list).await?;
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

    /// Keys that are valid, or were not long ago.
    pub(super) async fn caller_keys(&self) -> Result<CallerKeys, StoreError> {
        let values = [(now() - HELD).into(), (MOST as u64).into()];
        let rows = self.driver.read(Statement::new(VALID, values)).await?;
        let keys: Result<Vec<_>, _> = rows.into_iter().map(read_caller_key).collect();
        Ok(keys?.into_iter().flatten().collect())
    }

    /// Remembers a code by its hash until that second.
    ///
    /// # Errors
    /// `Full` when the user has as many as one may, `ShutOut`, `Away`.
    pub async fn add_code(&self, code: &Code, hash: &str, expires: u64) -> Result<(), StoreError> {
        let values = [
            hash.into(),
            code.user.as_str().into(),
            expires.into(),
            code.maker.id.as_deref().into(),
            code.maker.issued.into(),
            code.maker.expires.into(),
            MOST_CODES.into(),
            MOST_ROWS.into(),
        ];
        let statements = vec![
            Statement::new(DROP_OLD_CODES, [now().into()]),
            accounts::add_user(&code.user),
            let_in(&code.user, &code.maker),
            Statement::new(ADD_CODE, values).must_touch_or(|| StoreError::Full),
        ];
        self.driver.write(statements).await
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
                maker: Maker {
                    id: row.text_or_null()?,
                    issued: row.number()?,
                    expires: row.number_or_null()?,
                },
            })
        };
        rows.into_iter().next().map(read).transpose()
    }

    /// Gives a code up for a token: whoever else does so gets nothing.
    ///
    /// # Errors
    /// `Absent` when it was given up before, `ShutOut` when its user or maker is, `Full`, `Away`.
    pub async fn claim(&self, hash: &str, code: &Code, token: &Token) -> Result<(), StoreError> {
        let statements = vec![
            let_in(&code.user, &code.maker),
            Statement::new(CLAIM, [hash.into(), now().into()]).must_touch(),
            Statement::new(HAS_ROOM, [code.user.as_str().into(), MOST_ROWS.into()]).must_touch_or(|| StoreError::Full),
            accounts::issue(token),
        ];
        self.driver.write(statements).await
    }
}

/// What follows in the transaction is done only if the user is let in, and so is the maker. The memory of a relay is behind the
/// store: it may have let in somebody who is not any more.
pub(super) fn let_in(user: &str, maker: &Maker) -> Statement {
    let values = [user.into(), maker.issued.into(), maker.id.as_deref().into()];
    Statement::new(LET_IN, values).must_touch_or(|| StoreError::ShutOut)
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
        maker: row.text_or_null()?,
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
