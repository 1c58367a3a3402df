//! Building the operations of a transaction (RFC 7047 section 5.2) and reading their results.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::row::{ColumnError, Row};
use crate::value::{Datum, Uuid, shorten};

/// One clause that a row must meet (RFC 7047 section 5.1, `<condition>`).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Condition {
    /// Compares a column.
    Compare(String, Function, Datum),
    /// True or false for every row; in the conditions of a monitor only.
    Always(bool),
}

/// How [`Condition::Compare`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Function {
    /// Equal.
    #[serde(rename = "==")]
    Equal,
    /// Not equal.
    #[serde(rename = "!=")]
    NotEqual,
    /// Less; integers and reals.
    #[serde(rename = "<")]
    Less,
    /// Less or equal; integers and reals.
    #[serde(rename = "<=")]
    LessOrEqual,
    /// Greater; integers and reals.
    #[serde(rename = ">")]
    Greater,
    /// Greater or equal; integers and reals.
    #[serde(rename = ">=")]
    GreaterOrEqual,
    /// The column contains every element given.
    #[serde(rename = "includes")]
    Includes,
    /// The column contains none of the elements given.
    #[serde(rename = "excludes")]
    Excludes,
}

impl Condition {
    /// The column compares so with the value.
    pub fn new(column: impl Into<String>, function: Function, value: impl Into<Datum>) -> Self {
        Self::Compare(column.into(), function, value.into())
    }

    /// The column equals the value.
    pub fn eq(column: impl Into<String>, value: impl Into<Datum>) -> Self {
        Self::new(column, Function::Equal, value)
    }

    /// The column differs from the value.
    pub fn ne(column: impl Into<String>, value: impl Into<Datum>) -> Self {
        Self::new(column, Function::NotEqual, value)
    }

    /// The column contains the elements or pairs.
    pub fn includes(column: impl Into<String>, value: impl Into<Datum>) -> Self {
        Self::new(column, Function::Includes, value)
    }

    /// The column contains none of the elements or pairs.
    pub fn excludes(column: impl Into<String>, value: impl Into<Datum>) -> Self {
        Self::new(column, Function::Excludes, value)
    }

    /// The row with this UUID.
    pub fn uuid(uuid: Uuid) -> Self {
        Self::eq("_uuid", uuid)
    }
}

/// How a `mutate` changes a column (RFC 7047 section 5.1, `<mutation>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Mutator {
    /// Adds a number.
    #[serde(rename = "+=")]
    Add,
    /// Subtracts a number.
    #[serde(rename = "-=")]
    Subtract,
    /// Multiplies.
    #[serde(rename = "*=")]
    Multiply,
    /// Divides.
    #[serde(rename = "/=")]
    Divide,
    /// Remainder; integers only.
    #[serde(rename = "%=")]
    Modulo,
    /// Adds elements, or pairs whose keys are not there yet.
    #[serde(rename = "insert")]
    Insert,
    /// Removes elements, pairs, or the pairs of a set of keys.
    #[serde(rename = "delete")]
    Delete,
}

/// What a `wait` compares the rows with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The selected rows are exactly those given.
    Equal,
    /// They are not.
    NotEqual,
}

/// One operation of a transaction. The builder methods say which operations they belong to; the server
/// refuses members that an operation does not know.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    name: &'static str,
    table: Option<String>,
    members: Map<String, Value>,
    row: BTreeMap<String, Datum>,
    clauses: Vec<Condition>,
    mutations: Vec<(String, Mutator, Datum)>,
}

impl Operation {
    fn new(name: &'static str, table: Option<String>) -> Self {
        let (members, row, clauses, mutations) = Default::default();
        Self { name, table, members, row, clauses, mutations }
    }

    /// Inserts a row. Set its columns with [`set`](Self::set).
    pub fn insert(table: impl Into<String>) -> Self {
        Self::new("insert", Some(table.into()))
    }

    /// Overwrites columns, see [`set`](Self::set), of the rows that [`filter`](Self::filter) selects.
    pub fn update(table: impl Into<String>) -> Self {
        Self::new("update", Some(table.into()))
    }

    /// Changes columns, see [`mutation`](Self::mutation), of the rows that [`filter`](Self::filter) selects.
    pub fn mutate(table: impl Into<String>) -> Self {
        Self::new("mutate", Some(table.into()))
    }

    /// Deletes the rows that [`filter`](Self::filter) selects: without a filter, all rows of the table.
    pub fn delete(table: impl Into<String>) -> Self {
        Self::new("delete", Some(table.into()))
    }

    /// Reads the rows that [`filter`](Self::filter) selects.
    pub fn select(table: impl Into<String>) -> Self {
        Self::new("select", Some(table.into()))
    }

    /// Fails the transaction unless the rows that [`filter`](Self::filter) selects hold in `columns` what
    /// `rows` say. The server waits for this as long as `timeout` says; zero checks once.
    pub fn wait(
        table: impl Into<String>,
        columns: &[&str],
        until: Until,
        rows: impl IntoIterator<Item = Row>,
        timeout: Duration,
    ) -> Self {
        let mut op = Self::new("wait", Some(table.into()));
        let rows = rows.into_iter().map(|row| row_json(row.columns())).collect();
        op.put("columns", json!(columns));
        op.put("until", json!(if until == Until::Equal { "==" } else { "!=" }));
        op.put("rows", Value::Array(rows));
        op.put("timeout", json!(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX >> 1)));
        op
    }

    /// Makes the reply wait until the transaction is on disk, if `durable`.
    pub fn commit(durable: bool) -> Self {
        let mut op = Self::new("commit", None);
        op.put("durable", json!(durable));
        op
    }

    /// Fails the transaction: a way to try one out.
    pub fn abort() -> Self {
        Self::new("abort", None)
    }

    /// Writes a text into the database's log.
    pub fn comment(text: impl Into<String>) -> Self {
        let mut op = Self::new("comment", None);
        op.put("comment", Value::String(text.into()));
        op
    }

    /// Fails the transaction unless this client owns the lock.
    pub fn assert(lock: impl Into<String>) -> Self {
        let mut op = Self::new("assert", None);
        op.put("lock", Value::String(lock.into()));
        op
    }

    /// `insert`, `update`: the column takes this value.
    #[must_use]
    pub fn set(mut self, column: impl Into<String>, value: impl Into<Datum>) -> Self {
        self.row.insert(column.into(), value.into());
        self
    }

    /// `insert`: the name by which other operations of the transaction refer to the row
    /// ([`Datum::named_uuid`]). Letters, digits and underscores, not beginning with a digit.
    #[must_use]
    pub fn uuid_name(mut self, name: impl Into<String>) -> Self {
        self.put("uuid-name", Value::String(name.into()));
        self
    }

    /// `update`, `mutate`, `delete`, `select`, `wait`: one more condition that the rows must meet.
    #[must_use]
    pub fn filter(mut self, condition: Condition) -> Self {
        self.clauses.push(condition);
        self
    }

    /// `mutate`: one more change to a column, in order.
    #[must_use]
    pub fn mutation(mut self, column: impl Into<String>, mutator: Mutator, value: impl Into<Datum>) -> Self {
        self.mutations.push((column.into(), mutator, value.into()));
        self
    }

    /// `select`: only these columns; all by default.
    #[must_use]
    pub fn columns(mut self, columns: &[&str]) -> Self {
        self.put("columns", json!(columns));
        self
    }

    /// Name of the operation, such as `insert`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The table that it is about, if it is about one.
    pub fn table(&self) -> Option<&str> {
        self.table.as_deref()
    }

    fn put(&mut self, member: &str, value: Value) {
        self.members.insert(member.to_owned(), value);
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut members = self.members.clone();
        let mut put = |member: &str, value| members.insert(member.to_owned(), value);
        put("op", json!(self.name));
        if let Some(table) = &self.table {
            put("table", json!(table));
        }
        if matches!(self.name, "insert" | "update") {
            put("row", row_json(self.row.iter().map(|(k, v)| (k.as_str(), v))));
        }
        if matches!(self.name, "update" | "mutate" | "delete" | "select" | "wait") {
            put("where", json!(self.clauses));
        }
        if self.name == "mutate" {
            put("mutations", json!(self.mutations));
        }
        Value::Object(members)
    }
}

fn row_json<'a>(columns: impl Iterator<Item = (&'a str, &'a Datum)>) -> Value {
    Value::Object(columns.map(|(name, datum)| (name.to_owned(), json!(datum))).collect())
}

/// What one operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// `insert`: the new row's UUID.
    Inserted(Uuid),
    /// `update`, `mutate`, `delete`: how many rows.
    Count(u64),
    /// `select`: the rows.
    Rows(Vec<Row>),
    /// Every other operation.
    Done,
}

impl OpResult {
    /// The UUID, if this is the result of an `insert`.
    pub fn inserted(&self) -> Option<Uuid> {
        if let Self::Inserted(uuid) = self { Some(*uuid) } else { None }
    }

    /// The number of rows, if this is the result of an `update`, `mutate` or `delete`.
    pub fn count(&self) -> Option<u64> {
        if let Self::Count(count) = self { Some(*count) } else { None }
    }

    /// The rows; none if this is not the result of a `select`.
    pub fn rows(&self) -> &[Row] {
        if let Self::Rows(rows) = self { rows } else { &[] }
    }
}

/// An error that the server gave for a transaction: nothing of it was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place} failed: {error}{}", details.as_ref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct OperationError {
    /// Which operation, or the commit after all of them.
    pub place: Place,
    /// Short text such as `constraint violation`, `referential integrity violation` or `timed out`.
    pub error: String,
    /// What exactly, if the server says so.
    pub details: Option<String>,
}

/// Where a transaction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In this operation.
    Operation {
        /// Position in the transaction, from 0.
        index: usize,
        /// Name of the operation.
        name: &'static str,
    },
    /// At commit, when every operation had succeeded: the result has one element more than operations.
    Commit,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operation { index, name } => write!(f, "operation {index} ({name})"),
            Self::Commit => write!(f, "the commit"),
        }
    }
}

/// Why the result of a transaction makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// Not an array of objects.
    #[error("the result is not an array of objects")]
    Json(#[source] serde_json::Error),
    /// Fewer or more results than operations, and no error among them.
    #[error("{results} results for {operations} operations")]
    Count {
        /// Elements of the result.
        results: usize,
        /// Operations of the transaction.
        operations: usize,
    },
    /// The result of one operation is not what that operation returns.
    #[error("result {index} ({json}) is not one of {name}")]
    Kind {
        /// Position in the transaction, from 0.
        index: usize,
        /// Name of the operation.
        name: &'static str,
        /// The result, shortened.
        json: String,
    },
    /// A selected row does not parse.
    #[error("a row of result {index} is malformed")]
    Row {
        /// Position in the transaction, from 0.
        index: usize,
        /// What is wrong.
        #[source]
        source: ColumnError,
    },
}

/// Reads the result of `transact`. The outer error is a malformed result, the inner one the server's.
pub(crate) fn read_results(
    operations: &[Operation],
    result: Option<&RawValue>,
) -> Result<Result<Vec<OpResult>, OperationError>, ResultError> {
    let text = result.map_or("null", RawValue::get);
    let results: Vec<Value> = serde_json::from_str(text).map_err(ResultError::Json)?;
    for (index, json) in results.iter().enumerate() {
        if let Some(error) = json.get("error").and_then(Value::as_str) {
            let place = match operations.get(index) {
                Some(op) => Place::Operation { index, name: op.name },
                None => Place::Commit,
            };
            let details = json.get("details").and_then(Value::as_str).map(str::to_owned);
            return Ok(Err(OperationError { place, error: error.to_owned(), details }));
        }
    }
    if results.len() != operations.len() {
        return Err(ResultError::Count { results: results.len(), operations: operations.len() });
    }
    let each = operations.iter().zip(&results).enumerate();
    Ok(Ok(each.map(|(index, (op, json))| read_result(index, op, json)).collect::<Result<_, _>>()?))
}

fn read_result(index: usize, op: &Operation, json: &Value) -> Result<OpResult, ResultError> {
    let bad = || ResultError::Kind { index, name: op.name, json: shorten(&json.to_string()) };
    let row = |json: &Value| {
        let columns = json.as_object().ok_or_else(bad)?;
        Row::from_json(columns).map_err(|source| ResultError::Row { index, source })
    };
    match op.name {
        "insert" => match json.get("uuid").map(Datum::from_json) {
            Some(Ok(Datum::Scalar(crate::Atom::Uuid(uuid)))) => Ok(OpResult::Inserted(uuid)),
            _ => Err(bad()),
        },
        "update" | "mutate" | "delete" => {
            json.get("count").and_then(Value::as_u64).map(OpResult::Count).ok_or_else(bad)
        }
        "select" => {
            let rows = json.get("rows").and_then(Value::as_array).ok_or_else(bad)?;
            Ok(OpResult::Rows(rows.iter().map(row).collect::<Result<_, _>>()?))
        }
        _ => Ok(OpResult::Done),
    }
}
