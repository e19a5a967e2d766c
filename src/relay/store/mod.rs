//! What outlives a relay: issued tokens, keys, users, bridges, shares, and what was used; never prompts or answers. The verbs are in
//! [`accounts`], [`keys`], [`shares`], [`usage`] and [`archive`]; the databases, SQLite and PostgreSQL, behind `driver`. No exchange waits for any of this:
//! [`super::keeper`] keeps the relay's memory and the store in step.

pub mod accounts;
pub mod archive;
mod driver;
pub mod keys;
mod postgres;
mod schema;
pub mod shares;
mod sqlite;
pub mod usage;

use std::path::PathBuf;
use std::sync::Arc;

use self::driver::Driver;
use self::postgres::Postgres;
pub use self::postgres::PostgresConfig;
use self::sqlite::Sqlite;
use super::auth::tokens;

/// Which database.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// SQLite, in this file.
    Sqlite(PathBuf),
    /// SQLite, in memory: it goes with the process.
    Memory,
    /// PostgreSQL.
    Postgres(Box<PostgresConfig>),
}

/// Why the store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be used now; it may be later.
    #[error("{0}")]
    Away(String),
    /// The database cannot be used like this.
    #[error("{0}")]
    Settings(String),
    /// A newer program made the database so that this one cannot use it.
    #[error(
        "the database is of a newer release (schema {found}; this one knows {known}): run that release, or bring back a backup"
    )]
    Newer {
        /// The schema that is there.
        found: i64,
        /// The newest that this release knows.
        known: i64,
    },
    /// The database takes this not, whenever it is asked.
    #[error("the database refuses what it should keep: {0}")]
    Rejected(String),
    /// What was to be changed is not there.
    #[error("there is no such entry")]
    Absent,
    /// There are as many of the kind as may be.
    #[error("there are as many as may be; some must end or be revoked first")]
    Full,
    /// The user was disabled or deleted, or the token that asks was revoked.
    #[error("this user is disabled or was deleted, or the token that asks was revoked")]
    ShutOut,
}

impl StoreError {
    fn unexpected() -> Self {
        Self::Away("the database answered with something else than was asked for".to_owned())
    }

    pub(super) fn ended() -> Self {
        Self::Away("the work was given up".to_owned())
    }
}

/// The store.
#[derive(Debug, Clone)]
pub struct Store {
    driver: Arc<dyn Driver>,
}

impl Store {
    /// Opens the database and brings its schema up to date.
    ///
    /// # Errors
    /// Every [`StoreError`] but `Absent`.
    pub async fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let driver: Arc<dyn Driver> = match config {
            StoreConfig::Sqlite(path) => Arc::new(Sqlite::open(path).await?),
            StoreConfig::Memory => Arc::new(Sqlite::in_memory()?),
            StoreConfig::Postgres(config) => Arc::new(Postgres::new((**config).clone())?),
        };
        driver.migrate(schema::missing).await?;
        Ok(Self { driver })
    }
}

/// Seconds since 1970, as the database keeps times.
fn now() -> i64 {
    i64::try_from(tokens::now()).unwrap_or(i64::MAX)
}
