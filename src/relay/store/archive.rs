//! Everything in the store as lines, to be kept and brought back, into either database.

use serde_json::{Map, Value as Json};
use tokio::sync::mpsc;

use super::driver::{Row, Statement, Value};
use super::{Store, StoreError};

/// Lines that wait to be taken.
const WAITING: usize = 64;

/// A table whose rows are kept; where a release adds columns, they must do without a value.
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
}

const TABLES: &[Table] = &[
    Table {
        name: "users",
        columns: &["name", "first_seen", "disabled", "deleted"],
    },
    Table {
        name: "tokens",
        columns: &[
            "id",
            "user_name",
            "label",
            "scopes",
            "issued",
            "expires",
            "last_used",
            "revoked",
        ],
    },
    Table {
        name: "keys",
        columns: &[
            "id",
            "hash",
            "user_name",
            "label",
            "bridge",
            "rate",
            "issued",
            "expires",
            "last_used",
            "revoked",
            "maker",
        ],
    },
    Table {
        name: "bridges",
        columns: &[
            "id",
            "user_name",
            "client_id",
            "name",
            "platform",
            "version",
            "transport",
            "first_seen",
            "last_seen",
            "gone",
        ],
    },
    Table {
        name: "shares",
        columns: &["id", "owner", "bridge_id", "bridge_name", "kind", "name", "since"],
    },
    Table {
        name: "memberships",
        columns: &["user_name", "group_names", "said"],
    },
    Table {
        name: "usage",
        columns: &[
            "hour",
            "user_name",
            "token_id",
            "bridge_id",
            "model",
            "exchanges",
            "errors",
            "cancelled",
            "received",
            "sent",
            "prompts_counted",
            "prompt_tokens",
            "completions_counted",
            "completion_tokens",
            "answered",
            "first_byte_us",
            "total_us",
        ],
    },
];

const ANYTHING: &str = "SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM tokens) \
    + (SELECT count(*) FROM keys) + (SELECT count(*) FROM codes) + (SELECT count(*) FROM bridges) \
    + (SELECT count(*) FROM shares) + (SELECT count(*) FROM memberships) + (SELECT count(*) FROM usage)";

/// One row of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The table.
    pub table: String,
    /// Its values by column.
    pub row: Map<String, Json>,
}

impl Table {
    fn query(&self) -> String {
        format!("SELECT {} FROM {}", self.columns.join(", "), self.name)
    }

    fn entry(&self, row: Row) -> Entry {
        let values = row.values().into_iter().map(|value| match value {
            Value::Null => Json::Null,
            Value::Integer(number) => number.into(),
            Value::Text(text) => text.into(),
        });
        Entry {
            table: self.name.to_owned(),
            row: self.columns.iter().map(|name| (*name).to_owned()).zip(values).collect(),
        }
    }

    fn insert(&self, row: &Map<String, Json>) -> Option<Statement> {
        let mut columns = Vec::new();
        let mut values: Vec<Value> = Vec::new();
        for (name, value) in row {
            columns.push(*self.columns.iter().find(|column| *column == name)?);
            values.push(match value {
                Json::Null => Value::Null,
                Json::String(text) => text.as_str().into(),
                value => value.as_i64()?.into(),
            });
        }
        let marks: Vec<_> = (1..=values.len()).map(|number| format!("${number}")).collect();
        let (name, columns, marks) = (self.name, columns.join(", "), marks.join(", "));
        Some(Statement::new(
            format!("INSERT INTO {name} ({columns}) VALUES ({marks})"),
            values,
        ))
    }
}

impl Store {
    /// Sends every entry, all as they are at one moment.
    ///
    /// # Errors
    /// `Away`.
    pub async fn dump(&self, entries: mpsc::Sender<Entry>) -> Result<(), StoreError> {
        let (sink, mut rows) = mpsc::channel::<(usize, Row)>(WAITING);
        let queries = TABLES.iter().map(Table::query).collect();
        let named = async move {
            while let Some((table, row)) = rows.recv().await {
                if entries.send(TABLES[table].entry(row)).await.is_err() {
                    return;
                }
            }
        };
        let (dumped, ()) = tokio::join!(self.driver.dump(queries, sink), named);
        dumped
    }

    /// Whether nothing was ever put in.
    ///
    /// # Errors
    /// `Away`.
    pub async fn is_empty(&self) -> Result<bool, StoreError> {
        let rows = self.driver.read(Statement::new(ANYTHING, [])).await?;
        let count = rows.into_iter().next().ok_or_else(StoreError::unexpected)?.number()?;
        Ok(count == 0)
    }

    /// Takes everything out again that was put in.
    ///
    /// # Errors
    /// `Away`.
    pub async fn clear(&self) -> Result<(), StoreError> {
        let clear = |table: &Table| Statement::new(format!("DELETE FROM {}", table.name), []);
        // Codes end within minutes: none is kept, and none may outlast what it belongs to.
        let codes = Statement::new("DELETE FROM codes", []);
        self.driver
            .write(TABLES.iter().map(clear).chain([codes]).collect())
            .await
    }

    /// Puts entries in, all of these or none.
    ///
    /// # Errors
    /// `Settings` for what no release up to this one wrote, `Away`.
    pub async fn load(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let insert = |entry: &Entry| {
            let table = TABLES.iter().find(|table| table.name == entry.table);
            table.and_then(|table| table.insert(&entry.row)).ok_or_else(|| {
                let table = entry.table.escape_debug();
                StoreError::Settings(format!(
                    "an entry for {table} cannot be read; is it of a newer release?"
                ))
            })
        };
        let statements: Result<Vec<_>, _> = entries.iter().map(insert).collect();
        self.driver.write(statements?).await
    }
}
