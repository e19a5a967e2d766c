//! PostgreSQL, by a pool of connections.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType};
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, pin_mut};
use tokio::sync::mpsc;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{IsolationLevel, Transaction};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::driver::{Applied, Driver, Plan, Row, Statement, Value};
use super::{StoreError, now, schema};
use crate::transport::dial::trust;

/// Held while the schema is brought up to date.
const LOCK: &str = "SELECT pg_advisory_xact_lock(8421504271)";
/// How much longer the server may take for each statement of many.
const EACH: Duration = Duration::from_millis(5);
/// How long a server may be silent before its connection is given up.
const SILENCE: Duration = Duration::from_secs(10);

/// How to reach a PostgreSQL.
#[derive(Debug, Clone)]
pub struct PostgresConfig {
    /// Where, as whom, and whether by TLS (`sslmode`).
    pub server: tokio_postgres::Config,
    /// Whom its TLS may be vouched for by, besides the CAs that the system knows.
    pub ca_file: Option<PathBuf>,
    /// Connections at once.
    pub pool: usize,
    /// How long connecting may take, and how long one question.
    pub timeout: Duration,
}

#[derive(Debug)]
pub(super) struct Postgres {
    pool: Pool,
    timeout: Duration,
    place: String,
}

impl Postgres {
    /// Connects to nothing yet.
    pub(super) fn new(config: PostgresConfig) -> Result<Self, StoreError> {
        let place = place(&config.server);
        let tls =
            trust::client_config(config.ca_file.as_deref()).map_err(|error| StoreError::Settings(error.to_string()))?;
        let mut server = config.server;
        server
            .application_name("tunnel relay")
            .connect_timeout(config.timeout)
            .keepalives_idle(SILENCE)
            .tcp_user_timeout(SILENCE);
        let how = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_config(server, MakeRustlsConnect::new(tls), how);
        let pool = Pool::builder(manager)
            .max_size(config.pool)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(config.timeout))
            .create_timeout(Some(config.timeout))
            .recycle_timeout(Some(config.timeout))
            .build()
            .map_err(|error| StoreError::Settings(error.to_string()))?;
        Ok(Self {
            pool,
            timeout: config.timeout,
            place,
        })
    }

    async fn connection(&self) -> Result<Object, StoreError> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Timeout(TimeoutType::Wait) => self.away("all its connections are busy"),
            PoolError::Timeout(_) => self.away("it does not answer in time"),
            PoolError::Backend(error) => match StoreError::from(error) {
                StoreError::Away(why) => self.away(&why),
                error => error,
            },
            error => self.away(&error.to_string()),
        })
    }

    fn away(&self, why: &str) -> StoreError {
        StoreError::Away(format!("cannot connect to PostgreSQL at {}: {why}", self.place))
    }

    /// Gives the work a connection. One on which it did not end in time is not used again.
    async fn run<T>(
        &self,
        patience: Duration,
        work: impl AsyncFnOnce(&mut Object) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection().await?;
        match tokio::time::timeout(patience, work(&mut connection)).await {
            Ok(done) => done,
            Err(_) => {
                drop(Object::take(connection));
                let place = &self.place;
                Err(StoreError::Away(format!(
                    "PostgreSQL at {place} does not answer in time (--database-timeout)"
                )))
            }
        }
    }
}

/// The server's addresses and the database's name, for people.
fn place(server: &tokio_postgres::Config) -> String {
    let ports = server.get_ports();
    let hosts = server.get_hosts().iter().enumerate().map(|(number, host)| {
        let host = match host {
            tokio_postgres::config::Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        };
        let port = ports.get(number).or(ports.first()).copied().unwrap_or(5432);
        format!("{host}:{port}")
    });
    hosts.collect::<Vec<_>>().join(",")
}

/// What went wrong, with its cause.
fn words(error: &tokio_postgres::Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = error.source();
    }
    words
}

#[async_trait]
impl Driver for Postgres {
    async fn migrate(&self, missing: Plan) -> Result<(), StoreError> {
        // Another relay may be at it, and much data takes its time.
        let mut connection = self.connection().await?;
        let transaction = connection.transaction().await?;
        let encoding: String = transaction.query_one("SHOW server_encoding", &[]).await?.try_get(0)?;
        if encoding != "UTF8" {
            return Err(StoreError::Settings(format!(
                "the database keeps text as {encoding}; make one with: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            )));
        }
        transaction.batch_execute(LOCK).await?;
        transaction.batch_execute(schema::VERSIONS).await?;
        let row = transaction.query_one(schema::APPLIED, &[]).await?;
        let applied = match (row.try_get(0)?, row.try_get(1)?) {
            (Some(version), Some(oldest)) => Some(Applied { version, oldest }),
            _ => None,
        };
        for step in missing(applied)? {
            transaction.batch_execute(step.sql).await?;
            let now = Value::from(now());
            transaction
                .execute(schema::APPLY, &[&step.version, &step.oldest, &now])
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn write(&self, statements: Vec<Statement>) -> Result<(), StoreError> {
        let patience = self.timeout + EACH * u32::try_from(statements.len()).unwrap_or(u32::MAX);
        self.run(patience, async |connection| {
            let transaction = connection.transaction().await?;
            let mut prepared = Vec::with_capacity(statements.len());
            for statement in &statements {
                prepared.push(transaction.prepare_cached(&statement.sql).await?);
            }
            // Asked for at once, they are sent at once, and run one after the other.
            let running = statements.iter().zip(&prepared).map(async |(statement, prepared)| {
                let touched = execute(&transaction, prepared, &statement.values).await?;
                if let (0, Some(error)) = (touched, statement.untouched) {
                    return Err(error());
                }
                Ok(())
            });
            try_join_all(running).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    async fn read(&self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        self.run(self.timeout, async |connection| {
            let prepared = connection.prepare_cached(&statement.sql).await?;
            let rows = connection.query_raw(&prepared, &statement.values).await?;
            rows.map(|row| read_row(&row?)).try_collect().await
        })
        .await
    }

    async fn dump(&self, queries: Vec<String>, sink: mpsc::Sender<(usize, Row)>) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let transaction = connection
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await?;
        for (number, query) in queries.iter().enumerate() {
            let none: [Value; 0] = [];
            let rows = transaction.query_raw(query, &none).await?;
            pin_mut!(rows);
            while let Some(row) = rows.next().await {
                if sink.send((number, read_row(&row?)?)).await.is_err() {
                    return Err(StoreError::ended());
                }
            }
        }
        Ok(())
    }
}

async fn execute(
    transaction: &Transaction<'_>,
    prepared: &tokio_postgres::Statement,
    values: &[Value],
) -> Result<u64, StoreError> {
    Ok(transaction.execute_raw(prepared, values).await?)
}

fn read_row(row: &tokio_postgres::Row) -> Result<Row, StoreError> {
    let values = row.columns().iter().enumerate().map(|(number, column)| {
        Ok(match *column.type_() {
            Type::INT8 => row.try_get::<_, Option<i64>>(number)?.into(),
            Type::TEXT => row.try_get::<_, Option<&str>>(number)?.into(),
            _ => return Err(StoreError::unexpected()),
        })
    });
    values.collect::<Result<_, _>>().map(Row::new)
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Integer(number) => number.to_sql(kind, out),
            Self::Text(text) => text.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::INT8 | Type::TEXT)
    }

    to_sql_checked!();
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        // Data exceptions, violated constraints, limits: the same again would be refused again (PostgreSQL, appendix A).
        let is_ours = |code: &str| ["22", "23", "54"].iter().any(|class| code.starts_with(class));
        // Who is not let in, and what is not there or not allowed, is so again the next time.
        let is_setting = |code: &str| code.starts_with("28") || matches!(code, "3D000" | "42501");
        match error.code() {
            Some(code) if is_setting(code.code()) => Self::Settings(format!("PostgreSQL: {}", words(&error))),
            Some(code) if is_ours(code.code()) => Self::Rejected(words(&error)),
            _ => Self::Away(words(&error)),
        }
    }
}
