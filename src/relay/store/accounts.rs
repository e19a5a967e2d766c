//! Tokens, users and bridges: who was let in, who not any more, and who was here.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::driver::{Row, Statement};
use super::shares::{DELETE_MEMBERSHIP, DELETE_OF_OWNER, DELETE_WITH_USER};
use super::{Store, StoreError, now};
use crate::relay::auth::caller_keys::CallerKeys;
use crate::relay::auth::denials::{Denials, Removal};
use crate::relay::auth::shares::{Memberships, Shares};
use crate::token::{Claims, Secret};

/// For so long after it was last seen, a bridge counts as connected, unless it is known to have left; seconds.
pub const CONNECTED: u64 = 90;

pub(super) const TOUCH: &str = "UPDATE revision SET number = number + 1 WHERE one = 1";
const REVISION: &str = "SELECT number FROM revision WHERE one = 1";
const REVOKED: &str = "SELECT id FROM tokens WHERE revoked IS NOT NULL";
const REMOVED: &str = "SELECT name, disabled, deleted FROM users WHERE disabled IS NOT NULL OR deleted IS NOT NULL";
const KICKS: &str = "SELECT bridge_id, revision FROM kicks";
const ADD_USER: &str = "INSERT INTO users (name, first_seen) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
const USER: &str = "SELECT disabled, deleted FROM users WHERE name = $1";
const ISSUE: &str =
    "INSERT INTO tokens (id, user_name, label, scopes, issued, expires) VALUES ($1, $2, $3, $4, $5, $6)";
const KNOWN: &str = "SELECT id FROM tokens WHERE id = $1";
const REVOKE_UNKNOWN: &str = "INSERT INTO tokens (id, user_name, scopes, revoked) VALUES ($1, '', '', $2) \
    ON CONFLICT (id) DO UPDATE SET revoked = excluded.revoked";
const TOKENS: &str = "SELECT id, user_name, label, scopes, issued, expires, last_used, revoked FROM tokens \
    WHERE user_name <> '' ORDER BY user_name, issued, id";
const REVOKE: &str = "UPDATE tokens SET revoked = $1 WHERE id = $2 AND revoked IS NULL";
const USERS: &str = "SELECT name, first_seen, disabled, \
    (SELECT max(last_used) FROM tokens WHERE tokens.user_name = users.name), \
    (SELECT max(last_used) FROM keys WHERE keys.user_name = users.name), \
    (SELECT count(*) FROM tokens WHERE tokens.user_name = users.name AND revoked IS NULL \
        AND (expires IS NULL OR expires > $1)), \
    (SELECT count(*) FROM keys WHERE keys.user_name = users.name AND revoked IS NULL \
        AND (expires IS NULL OR expires > $1)), \
    (SELECT count(*) FROM bridges WHERE bridges.user_name = users.name) \
    FROM users WHERE deleted IS NULL OR EXISTS (SELECT 1 FROM tokens WHERE tokens.user_name = users.name) \
    OR EXISTS (SELECT 1 FROM keys WHERE keys.user_name = users.name) ORDER BY name";
const DISABLE: &str = "UPDATE users SET disabled = $1 WHERE name = $2 AND disabled IS NULL";
const ENABLE: &str = "UPDATE users SET disabled = NULL WHERE name = $1 AND disabled IS NOT NULL";
const DELETE: &str = "UPDATE users SET deleted = $1, disabled = NULL WHERE name = $2";
// A token that was renewed in that second is refused by its id.
const DELETE_TOKENS: &str = "UPDATE tokens SET revoked = COALESCE(revoked, $1), user_name = '', label = NULL, scopes = '', \
    last_used = NULL WHERE user_name = $2";
// The provider's tokens come with the same id again; those of before are refused by their time.
const DELETE_SIGN_INS: &str = "DELETE FROM tokens WHERE user_name = $1 AND id LIKE 'oidc:%'";
const DELETE_KICKS: &str = "DELETE FROM kicks WHERE bridge_id IN (SELECT id FROM bridges WHERE user_name = $1)";
const DELETE_KEYS: &str = "DELETE FROM keys WHERE user_name = $1";
const DELETE_CODES: &str = "DELETE FROM codes WHERE user_name = $1";
const DELETE_BRIDGES: &str = "DELETE FROM bridges WHERE user_name = $1";
const DELETE_USAGE: &str = "DELETE FROM usage WHERE user_name = $1 AND hour IN \
    (SELECT DISTINCT hour FROM usage WHERE user_name = $1 ORDER BY hour LIMIT 500)";
const BRIDGES: &str = "SELECT id, user_name, client_id, name, platform, version, transport, first_seen, last_seen, gone \
    FROM bridges ORDER BY user_name, name, id";
const BRIDGES_OF: &str = "SELECT id, user_name, client_id, name, platform, version, transport, first_seen, last_seen, gone \
    FROM bridges WHERE user_name = $1 ORDER BY name, id";
const SEEN_SINCE: &str = "SELECT id, user_name, client_id, name, platform, version, transport, first_seen, last_seen, gone \
    FROM bridges WHERE last_seen >= $1";
const KICK: &str = "INSERT INTO kicks (bridge_id, revision) SELECT id, (SELECT number FROM revision WHERE one = 1) \
    FROM bridges WHERE id = $1 ON CONFLICT (bridge_id) DO UPDATE SET revision = excluded.revision";

/// An issued token; what it was signed with is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// Its own id (`jti`).
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// What it was called when it was issued.
    pub label: Option<String>,
    /// What it is good for, separated by spaces.
    pub scopes: String,
    /// Seconds since 1970.
    pub issued: Option<u64>,
    /// Seconds since 1970; never, if none.
    pub expires: Option<u64>,
    /// Seconds since 1970.
    pub last_used: Option<u64>,
    /// Seconds since 1970; valid, if none.
    pub revoked: Option<u64>,
}

impl Token {
    /// What is to be remembered of a token that was just signed; none, if it is no token of ours.
    pub fn of(token: &Secret, label: Option<String>) -> Option<Self> {
        let claims = Claims::peek(token)?;
        Some(Self {
            id: claims.jti?,
            user: claims.sub,
            label,
            scopes: claims.scope.unwrap_or_default(),
            issued: claims.iat,
            expires: claims.exp,
            last_used: None,
            revoked: None,
        })
    }
}

/// Somebody who has tokens or keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The name (`sub`).
    pub name: String,
    /// Seconds since 1970.
    pub first_seen: u64,
    /// Seconds since 1970; let in, if none.
    pub disabled: Option<u64>,
    /// When one of the tokens or keys was last used, seconds since 1970.
    pub last_used: Option<u64>,
    /// Tokens that are valid.
    pub tokens: u64,
    /// Keys that are valid.
    pub keys: u64,
    /// Bridges that were ever seen.
    pub bridges: u64,
}

/// A bridge that was here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {
    /// The relay's id of it.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// Its own name of itself, if it said one.
    pub client_id: Option<String>,
    /// The name by which callers reach it.
    pub name: String,
    /// Its operating system.
    pub platform: Option<String>,
    /// Its program's version.
    pub version: Option<String>,
    /// `ws` or `poll`.
    pub transport: String,
    /// Seconds since 1970.
    pub first_seen: u64,
    /// Seconds since 1970.
    pub last_seen: u64,
    /// When it left, seconds since 1970; not known to have left, if none.
    pub gone: Option<u64>,
}

impl Bridge {
    /// Whether it is connected, as far as the store knows.
    pub fn is_connected(&self) -> bool {
        self.gone.is_none() && self.last_seen.saturating_add(CONNECTED) > now().unsigned_abs()
    }
}

/// What running relays must carry out.
#[derive(Debug, Default)]
pub struct Orders {
    /// Rises with each change.
    pub revision: u64,
    /// Who is not let in.
    pub denials: Denials,
    /// The keys that are valid.
    pub keys: CallerKeys,
    /// Which bridges are shared with whom.
    pub shares: Shares,
    /// In which groups users are.
    pub memberships: Memberships,
    /// Bridges to disconnect, and since which revision.
    pub kicks: HashMap<String, u64>,
}

impl Store {
    /// The revision of the orders.
    ///
    /// # Errors
    /// `Away`.
    pub async fn revision(&self) -> Result<u64, StoreError> {
        let rows = self.driver.read(Statement::new(REVISION, [])).await?;
        rows.into_iter().next().ok_or_else(StoreError::unexpected)?.number()
    }

    /// The orders as they are now. They may be newer than the revision they carry, never older.
    ///
    /// # Errors
    /// `Away`.
    pub async fn orders(&self) -> Result<Orders, StoreError> {
        let revision = self.revision().await?;
        let rows = self.driver.read(Statement::new(REVOKED, [])).await?;
        let tokens: Result<HashSet<_>, _> = rows.into_iter().map(|mut row| row.text().map(Into::into)).collect();
        let rows = self.driver.read(Statement::new(REMOVED, [])).await?;
        let users: Result<HashMap<_, _>, _> = rows.into_iter().map(removal).collect();
        let rows = self.driver.read(Statement::new(KICKS, [])).await?;
        let kicks = rows.into_iter().map(|mut row| Ok((row.text()?, row.number()?)));
        Ok(Orders {
            revision,
            denials: Denials::new(tokens?, users?),
            keys: self.caller_keys().await?,
            shares: self.all_shares().await?,
            memberships: self.memberships().await?,
            kicks: kicks.collect::<Result<_, StoreError>>()?,
        })
    }

    /// What is held against a user; none, if the user is not known.
    ///
    /// # Errors
    /// `Away`.
    pub async fn removal(&self, user: &str) -> Result<Option<Removal>, StoreError> {
        let rows = self.driver.read(Statement::new(USER, [user.into()])).await?;
        rows.into_iter().next().map(read_removal).transpose()
    }

    /// Remembers a token that is about to be handed out.
    ///
    /// # Errors
    /// `Away`.
    pub async fn issue(&self, token: &Token) -> Result<(), StoreError> {
        self.driver.write(vec![add_user(&token.user), issue(token)]).await
    }

    /// All tokens, those of one user together.
    ///
    /// # Errors
    /// `Away`.
    pub async fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        let rows = self.driver.read(Statement::new(TOKENS, [])).await?;
        rows.into_iter().map(read_token).collect()
    }

    /// Takes a token back; whether it was known. One that was never seen here is refused from now on, too.
    ///
    /// # Errors
    /// `Absent` when it was revoked before, `Away`.
    pub async fn revoke(&self, id: &str) -> Result<bool, StoreError> {
        let touch = || Statement::new(TOUCH, []);
        let revoke = Statement::new(REVOKE, [now().into(), id.into()]).must_touch();
        match self.driver.write(vec![revoke, touch()]).await {
            Err(StoreError::Absent) => {}
            revoked => return revoked.map(|()| true),
        }
        if !self.driver.read(Statement::new(KNOWN, [id.into()])).await?.is_empty() {
            return Err(StoreError::Absent);
        }
        let revoke = Statement::new(REVOKE_UNKNOWN, [id.into(), now().into()]);
        self.driver.write(vec![revoke, touch()]).await.map(|()| false)
    }

    /// Everybody who is known.
    ///
    /// # Errors
    /// `Away`.
    pub async fn users(&self) -> Result<Vec<User>, StoreError> {
        let rows = self.driver.read(Statement::new(USERS, [now().into()])).await?;
        rows.into_iter().map(read_user).collect()
    }

    /// Lets a user in no more, with whatever token.
    ///
    /// # Errors
    /// `Absent` when that is so already, `Away`.
    pub async fn disable(&self, user: &str) -> Result<(), StoreError> {
        let disable = Statement::new(DISABLE, [now().into(), user.into()]).must_touch();
        let codes = Statement::new(DELETE_CODES, [user.into()]);
        let statements = vec![add_user(user), disable, codes, Statement::new(TOUCH, [])];
        self.driver.write(statements).await
    }

    /// Lets a disabled user in again.
    ///
    /// # Errors
    /// `Absent` when the user is not disabled, `Away`.
    pub async fn enable(&self, user: &str) -> Result<(), StoreError> {
        let enable = Statement::new(ENABLE, [user.into()]).must_touch();
        self.driver.write(vec![enable, Statement::new(TOUCH, [])]).await
    }

    /// Forgets all of a user; tokens issued until now are refused for ever.
    ///
    /// # Errors
    /// `Away`.
    pub async fn delete(&self, user: &str) -> Result<(), StoreError> {
        let of_user = |sql| Statement::new(sql, [user.into()]);
        let now = now();
        let statements = vec![
            add_user(user),
            Statement::new(DELETE, [now.into(), user.into()]),
            of_user(DELETE_CODES),
            of_user(DELETE_SIGN_INS),
            Statement::new(DELETE_TOKENS, [now.into(), user.into()]),
            of_user(DELETE_KICKS),
            of_user(DELETE_KEYS),
            of_user(DELETE_BRIDGES),
            of_user(DELETE_OF_OWNER),
            of_user(DELETE_WITH_USER),
            Statement::new(TOUCH, []),
            of_user(DELETE_MEMBERSHIP),
        ];
        self.driver.write(statements).await?;
        self.until_nothing_is_left(of_user(DELETE_USAGE)).await
    }

    /// Does it again and again, so that no step takes long.
    pub(super) async fn until_nothing_is_left(&self, step: Statement) -> Result<(), StoreError> {
        let step = step.must_touch();
        loop {
            match self.driver.write(vec![step.clone()]).await {
                Ok(()) => {}
                Err(StoreError::Absent) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// All bridges, those of one user together.
    ///
    /// # Errors
    /// `Away`.
    pub async fn bridges(&self) -> Result<Vec<Bridge>, StoreError> {
        let rows = self.driver.read(Statement::new(BRIDGES, [])).await?;
        rows.into_iter().map(read_bridge).collect()
    }

    /// The bridges of one user.
    ///
    /// # Errors
    /// `Away`.
    pub async fn bridges_of(&self, user: &str) -> Result<Vec<Bridge>, StoreError> {
        let rows = self.driver.read(Statement::new(BRIDGES_OF, [user.into()])).await?;
        rows.into_iter().map(read_bridge).collect()
    }

    /// The bridges that were here at that second or later.
    ///
    /// # Errors
    /// `Away`.
    pub async fn seen_since(&self, second: u64) -> Result<Vec<Bridge>, StoreError> {
        let rows = self.driver.read(Statement::new(SEEN_SINCE, [second.into()])).await?;
        rows.into_iter().map(read_bridge).collect()
    }

    /// Disconnects a bridge once; it may come back.
    ///
    /// # Errors
    /// `Absent`, `Away`.
    pub async fn kick(&self, bridge: &str) -> Result<(), StoreError> {
        let kick = Statement::new(KICK, [bridge.into()]).must_touch();
        self.driver.write(vec![Statement::new(TOUCH, []), kick]).await
    }
}

pub(super) fn add_user(user: &str) -> Statement {
    Statement::new(ADD_USER, [user.into(), now().into()])
}

pub(super) fn issue(token: &Token) -> Statement {
    let values = [
        token.id.as_str().into(),
        token.user.as_str().into(),
        token.label.as_deref().into(),
        token.scopes.as_str().into(),
        token.issued.into(),
        token.expires.into(),
    ];
    Statement::new(ISSUE, values)
}

fn removal(mut row: Row) -> Result<(Box<str>, Removal), StoreError> {
    Ok((row.text()?.into(), read_removal(row)?))
}

fn read_removal(mut row: Row) -> Result<Removal, StoreError> {
    Ok(Removal {
        disabled: row.number_or_null()?.is_some(),
        deleted: row.number_or_null()?,
    })
}

fn read_token(mut row: Row) -> Result<Token, StoreError> {
    Ok(Token {
        id: row.text()?,
        user: row.text()?,
        label: row.text_or_null()?,
        scopes: row.text()?,
        issued: row.number_or_null()?,
        expires: row.number_or_null()?,
        last_used: row.number_or_null()?,
        revoked: row.number_or_null()?,
    })
}

fn read_user(mut row: Row) -> Result<User, StoreError> {
    Ok(User {
        name: row.text()?,
        first_seen: row.number()?,
        disabled: row.number_or_null()?,
        last_used: row.number_or_null()?.max(row.number_or_null()?),
        tokens: row.number()?,
        keys: row.number()?,
        bridges: row.number()?,
    })
}

fn read_bridge(mut row: Row) -> Result<Bridge, StoreError> {
    Ok(Bridge {
        id: row.text()?,
        user: row.text()?,
        client_id: row.text_or_null()?,
        name: row.text()?,
        platform: row.text_or_null()?,
        version: row.text_or_null()?,
        transport: row.text()?,
        first_seen: row.number()?,
        last_seen: row.number()?,
        gone: row.number_or_null()?,
    })
}
