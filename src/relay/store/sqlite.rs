//! SQLite: one file in the data folder, for relays that need no database server. Other processes, as the commands that manage
//! tokens, may use it at the same time.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, ToSql, TransactionBehavior, params_from_iter};
use tokio::sync::mpsc;

use super::driver::{Applied, Driver, Plan, Row, Statement, Value};
use super::{StoreError, now, schema};
use crate::files;

/// How long another process may be writing.
const BUSY: Duration = Duration::from_secs(5);

/// Who reads waits for nobody who writes.
#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    reading: Arc<Mutex<Connection>>,
    writing: Arc<Mutex<Connection>>,
}

impl Sqlite {
    /// Opens the file; makes it first where there is none.
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || Ok::<_, StoreError>((open(&path)?, open(&path)?))).await;
        let (reading, writing) = opened.map_err(|_| StoreError::ended())??;
        let shared = |connection| Arc::new(Mutex::new(connection));
        Ok(Self {
            reading: shared(reading),
            writing: shared(writing),
        })
    }

    /// One that is in no file, with one connection for everything: a second one would find nothing.
    pub(super) fn in_memory() -> Result<Self, StoreError> {
        let only = Arc::new(Mutex::new(Connection::open_in_memory()?));
        Ok(Self {
            reading: Arc::clone(&only),
            writing: only,
        })
    }

    async fn reading<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    {
        run(&self.reading, work).await
    }

    async fn writing<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    {
        run(&self.writing, work).await
    }
}

/// Does it where waiting for a disk keeps nobody else.
async fn run<T, F>(connection: &Arc<Mutex<Connection>>, work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
{
    let connection = Arc::clone(connection);
    let worked =
        tokio::task::spawn_blocking(move || work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner)));
    worked.await.map_err(|_| StoreError::ended())?
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let unusable =
        |error: &dyn std::fmt::Display| StoreError::Settings(format!("cannot use {}: {error}", path.display()));
    // Nobody else may read who uses what.
    match files::create_for_owner(path, b"") {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(&error)),
        _ => {}
    }
    let prepare = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        // Readers do not wait for writers; what was acknowledged is on the disk.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        // What was deleted is not to be found in the file.
        connection.pragma_update(None, "secure_delete", true)?;
        Ok(connection)
    };
    prepare().map_err(|error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => unusable(&error),
        _ => StoreError::from(error),
    })
}

#[async_trait]
impl Driver for Sqlite {
    async fn migrate(&self, missing: Plan) -> Result<(), StoreError> {
        self.writing(move |connection| {
            // Whoever begins first does it; the other waits until it is done.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(schema::VERSIONS)?;
            let applied = transaction.query_row(schema::APPLIED, [], |row| {
                Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?))
            })?;
            let applied = match applied {
                (Some(version), Some(oldest)) => Some(Applied { version, oldest }),
                _ => None,
            };
            for step in missing(applied)? {
                transaction.execute_batch(step.sql)?;
                transaction.execute(schema::APPLY, (step.version, step.oldest, now()))?;
            }
            Ok(transaction.commit()?)
        })
        .await
    }

    async fn write(&self, statements: Vec<Statement>) -> Result<(), StoreError> {
        self.writing(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for statement in &statements {
                let mut prepared = transaction.prepare_cached(&statement.sql)?;
                let touched = prepared.execute(params_from_iter(&statement.values))?;
                if let (0, Some(error)) = (touched, statement.untouched) {
                    return Err(error());
                }
            }
            Ok(transaction.commit()?)
        })
        .await
    }

    async fn read(&self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        self.reading(move |connection| {
            let mut prepared = connection.prepare_cached(&statement.sql)?;
            let rows = prepared.query_map(params_from_iter(&statement.values), read_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn dump(&self, queries: Vec<String>, sink: mpsc::Sender<(usize, Row)>) -> Result<(), StoreError> {
        self.reading(move |connection| {
            let transaction = connection.transaction()?;
            for (number, query) in queries.iter().enumerate() {
                let mut prepared = transaction.prepare(query)?;
                for row in prepared.query_map([], read_row)? {
                    if sink.blocking_send((number, row?)).is_err() {
                        return Err(StoreError::ended());
                    }
                }
            }
            Ok(())
        })
        .await
    }
}

fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let columns = row.as_ref().column_count();
    let values = (0..columns).map(|column| {
        Ok(match row.get_ref(column)? {
            ValueRef::Integer(number) => Value::Integer(number),
            ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
            // No column of ours holds anything else.
            ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => Value::Null,
        })
    });
    values.collect::<rusqlite::Result<_>>().map(Row::new)
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
                Self::Rejected(error.to_string())
            }
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::Settings(format!(
                "the database of the relay is damaged: {error}; bring back a backup"
            )),
            _ => Self::Away(error.to_string()),
        }
    }
}
