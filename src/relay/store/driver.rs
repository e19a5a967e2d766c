//! What a database must be able to do for the store: run statements. Both databases understand the same SQL, with parameters `$1`,
//! `$2`… that first appear in this order.

use std::borrow::Cow;
use std::fmt;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::StoreError;
use super::schema::Migration;

/// One database.
#[async_trait]
pub(super) trait Driver: fmt::Debug + Send + Sync {
    /// Brings the schema up to date; of two that start at once, one does it and the other waits.
    async fn migrate(&self, missing: Plan) -> Result<(), StoreError>;

    /// Runs the statements in one transaction.
    ///
    /// # Errors
    /// What a statement that must touch a row says to it that it touched none; then nothing is changed.
    async fn write(&self, statements: Vec<Statement>) -> Result<(), StoreError>;

    /// The rows that a query finds.
    async fn read(&self, statement: Statement) -> Result<Vec<Row>, StoreError>;

    /// Sends the rows of each query with its number, all as they are at one moment.
    async fn dump(&self, queries: Vec<String>, rows: mpsc::Sender<(usize, Row)>) -> Result<(), StoreError>;
}

/// Tells which migrations a schema needs.
pub(super) type Plan = fn(Option<Applied>) -> Result<&'static [Migration], StoreError>;

/// What stands in a database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Applied {
    /// The newest migration that was applied.
    pub version: i64,
    /// The oldest release, by the newest migration it knows, that still runs on it.
    pub oldest: i64,
}

/// SQL and its parameters.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub sql: Cow<'static, str>,
    pub values: Vec<Value>,
    /// Which error it is that no row is touched, if it is one.
    pub untouched: Option<fn() -> StoreError>,
}

impl Statement {
    pub(super) fn new(sql: impl Into<Cow<'static, str>>, values: impl Into<Vec<Value>>) -> Self {
        Self {
            sql: sql.into(),
            values: values.into(),
            untouched: None,
        }
    }

    /// It is [`StoreError::Absent`] that no row is touched.
    pub(super) fn must_touch(self) -> Self {
        self.must_touch_or(|| StoreError::Absent)
    }

    pub(super) fn must_touch_or(self, error: fn() -> StoreError) -> Self {
        Self {
            untouched: Some(error),
            ..self
        }
    }
}

/// A value in a statement or a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(String),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        // PostgreSQL takes every character but this one, and what a bridge says of itself may hold it.
        Self::Text(text.replace('\0', ""))
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A row, read from left to right.
#[derive(Debug)]
pub(super) struct Row(std::vec::IntoIter<Value>);

impl Row {
    pub(super) fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    pub(super) fn values(self) -> Vec<Value> {
        self.0.collect()
    }

    pub(super) fn text(&mut self) -> Result<String, StoreError> {
        self.text_or_null()?.ok_or_else(StoreError::unexpected)
    }

    pub(super) fn text_or_null(&mut self) -> Result<Option<String>, StoreError> {
        match self.0.next() {
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(Value::Null) => Ok(None),
            _ => Err(StoreError::unexpected()),
        }
    }

    pub(super) fn number(&mut self) -> Result<u64, StoreError> {
        self.number_or_null()?.ok_or_else(StoreError::unexpected)
    }

    pub(super) fn number_or_null(&mut self) -> Result<Option<u64>, StoreError> {
        match self.0.next() {
            Some(Value::Integer(number)) => Ok(Some(u64::try_from(number).unwrap_or_default())),
            Some(Value::Null) => Ok(None),
            _ => Err(StoreError::unexpected()),
        }
    }
}
