//! Monitors: what to watch, and a copy of it that follows the server's updates.
//!
//! [`Replica`] is pure: updates go in, row changes come out. Sources: RFC 7047 section 4.1.5, and
//! ovsdb-server(7) sections 4.1.12 to 4.1.15 (`monitor_cond`, `monitor_cond_since`, `update2`, `update3`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::ops::Condition;
use crate::row::Row;
use crate::schema::{ColumnType, DatabaseSchema};
use crate::value::{Datum, Uuid, ValueError};

/// Tables, columns and conditions of one database to watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Monitor {
    pub(crate) database: String,
    tables: BTreeMap<String, (Vec<String>, Vec<Condition>)>,
}

impl Monitor {
    /// A monitor of no table yet.
    pub fn new(database: impl Into<String>) -> Self {
        Self { database: database.into(), tables: BTreeMap::new() }
    }

    /// Watches these columns of all rows of a table.
    #[must_use]
    pub fn table(self, table: impl Into<String>, columns: &[&str]) -> Self {
        self.table_where(table, columns, [])
    }

    /// Watches these columns of the rows of a table that meet **any** of the conditions; no condition means
    /// all rows. A row that comes to meet them is inserted, one that no longer does is deleted.
    #[must_use]
    pub fn table_where(
        mut self,
        table: impl Into<String>,
        columns: &[&str],
        any_of: impl IntoIterator<Item = Condition>,
    ) -> Self {
        let columns = columns.iter().map(|&c| c.to_owned()).collect();
        self.tables.insert(table.into(), (columns, any_of.into_iter().collect()));
        self
    }

    /// Name of the database.
    pub fn database(&self) -> &str {
        &self.database
    }

    pub(crate) fn to_json(&self) -> Value {
        let tables = self.tables.iter().map(|(table, (columns, conditions))| {
            let mut request = json!({ "columns": columns });
            if let (false, Some(members)) = (conditions.is_empty(), request.as_object_mut()) {
                members.insert("where".to_owned(), json!(conditions));
            }
            (table.clone(), json!([request]))
        });
        Value::Object(tables.collect())
    }
}

/// `<table-updates2>`: what happened to rows, as the server says it. Not yet checked against a schema.
pub type TableUpdates = BTreeMap<String, BTreeMap<String, RowUpdate>>;

/// `<row-update2>`: what happened to one row.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowUpdate {
    /// The row was there when the monitor began. Columns that hold their default are left out.
    Initial(Map<String, Value>),
    /// The row is new. Columns that hold their default are left out.
    Insert(Map<String, Value>),
    /// The row is gone.
    Delete(Option<Map<String, Value>>),
    /// Columns changed: differences, see [`ColumnType::apply`].
    Modify(Map<String, Value>),
}

/// The first reply of a monitor.
#[derive(Clone, Debug)]
pub struct MonitorReply {
    /// True: `updates` are what changed since the transaction given. False: they are the whole contents.
    pub found: bool,
    /// The transaction that the contents are now at; zero if the server does not keep track.
    pub last: Uuid,
    /// The rows.
    pub updates: TableUpdates,
}

/// An `update2` or `update3` notification.
#[derive(Clone, Debug)]
pub struct MonitorUpdate {
    /// Id of the monitor.
    pub id: Value,
    /// The transaction that the contents are now at, if the server said.
    pub last: Option<Uuid>,
    /// What happened.
    pub updates: TableUpdates,
}

impl MonitorUpdate {
    /// Reads the parameters of a notification; `None` if the method is another one.
    pub fn parse(method: &str, params: &RawValue) -> Option<Result<Self, UpdateError>> {
        let read = || match method {
            "update2" => {
                let (id, updates) = serde_json::from_str(params.get())?;
                Ok(Self { id, last: None, updates })
            }
            _ => {
                let (id, last, updates): (_, String, _) = serde_json::from_str(params.get())?;
                let last = last.parse().map_err(|source| UpdateError::Uuid { source })?;
                Ok(Self { id, last: Some(last), updates })
            }
        };
        matches!(method, "update2" | "update3").then(read)
    }
}

/// Why a monitor cannot be set up on a schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MonitorError {
    /// The schema has no such table.
    #[error("database {database} (schema {version}) has no table '{table}'")]
    Table {
        /// Name of the database.
        database: String,
        /// Version of its schema.
        version: String,
        /// Name of the table.
        table: String,
    },
    /// The table has no such column.
    #[error("table '{table}' of database {database} (schema {version}) has no column '{column}'")]
    Column {
        /// Name of the database.
        database: String,
        /// Version of its schema.
        version: String,
        /// Name of the table.
        table: String,
        /// Name of the column.
        column: String,
    },
}

/// Why an update does not fit the replica. The replica must be loaded anew.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Not the JSON of an update.
    #[error("not the JSON of an update")]
    Json(#[from] serde_json::Error),
    /// A row's or transaction's id that is no UUID.
    #[error("an identity that is no UUID")]
    Uuid {
        /// What is wrong.
        #[source]
        source: ValueError,
    },
    /// A table that is not monitored.
    #[error("table '{table}' is not monitored")]
    Table {
        /// Name of the table.
        table: String,
    },
    /// A column that is not monitored.
    #[error("column '{column}' of table '{table}' is not monitored")]
    Column {
        /// Name of the table.
        table: String,
        /// Name of the column.
        column: String,
    },
    /// A value that does not have the column's type.
    #[error("column '{column}' of row {uuid} in table '{table}' is malformed")]
    Value {
        /// Name of the table.
        table: String,
        /// The row.
        uuid: Uuid,
        /// Name of the column.
        column: String,
        /// What is wrong.
        #[source]
        source: ValueError,
    },
    /// A change or deletion of a row that is not there.
    #[error("change of row {uuid} in table '{table}', which is not there")]
    NoRow {
        /// Name of the table.
        table: String,
        /// The row.
        uuid: Uuid,
    },
    /// An insertion of a row that is there, with other contents.
    #[error("insertion of row {uuid} in table '{table}', which is there already")]
    Duplicate {
        /// Name of the table.
        table: String,
        /// The row.
        uuid: Uuid,
    },
}

/// What became of one row. `old` and `new` differ, and at least one of them is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// Name of the table.
    pub table: Arc<str>,
    /// The row.
    pub uuid: Uuid,
    /// The row before; `None`: it is new.
    pub old: Option<Arc<Row>>,
    /// The row after; `None`: it is gone.
    pub new: Option<Arc<Row>>,
}

type Rows = BTreeMap<Uuid, Arc<Row>>;

#[derive(Clone, Debug)]
struct Table {
    columns: BTreeMap<Arc<str>, ColumnType>,
    rows: Rows,
}

/// The watched part of one database, kept in step with the server.
#[derive(Clone, Debug)]
pub struct Replica {
    tables: BTreeMap<Arc<str>, Table>,
    last: Uuid,
}

impl Replica {
    /// An empty replica of the columns that a monitor selects, with their types from the schema.
    pub fn new(schema: &DatabaseSchema, monitor: &Monitor) -> Result<Self, MonitorError> {
        let (database, version) = (|| schema.name.clone(), || schema.version.clone());
        let tables = monitor.tables.iter().map(|(table, (columns, _))| {
            let Some((name, found)) = schema.tables.get_key_value(table.as_str()) else {
                return Err(MonitorError::Table {
                    database: database(),
                    version: version(),
                    table: table.clone(),
                });
            };
            let columns = columns.iter().map(|column| match found.columns.get_key_value(column.as_str()) {
                Some((name, ty)) => Ok((name.clone(), ty.clone())),
                None => Err(MonitorError::Column {
                    database: database(),
                    version: version(),
                    table: table.clone(),
                    column: column.clone(),
                }),
            });
            let columns = columns.collect::<Result<_, _>>()?;
            Ok((name.clone(), Table { columns, rows: Rows::new() }))
        });
        Ok(Self { tables: tables.collect::<Result<_, _>>()?, last: Uuid::ZERO })
    }

    /// True if the other one has the same tables, columns and types.
    pub fn same_columns(&self, other: &Self) -> bool {
        self.tables.len() == other.tables.len()
            && self.tables.iter().zip(&other.tables).all(|(a, b)| a.0 == b.0 && a.1.columns == b.1.columns)
    }

    /// The transaction that the replica is at; [`Uuid::ZERO`] if unknown.
    pub fn last_transaction(&self) -> Uuid {
        self.last
    }

    /// The rows of a table, by UUID; none if the table is not monitored.
    pub fn rows(&self, table: &str) -> impl Iterator<Item = (Uuid, &Arc<Row>)> {
        self.tables.get(table).into_iter().flat_map(|t| t.rows.iter().map(|(uuid, row)| (*uuid, row)))
    }

    /// One row.
    pub fn row(&self, table: &str, uuid: Uuid) -> Option<&Arc<Row>> {
        self.tables.get(table)?.rows.get(&uuid)
    }

    /// Takes in a monitor's first reply. What comes back are the differences to the contents so far, over the
    /// union of the rows. After an error the replica is unchanged if everything was reloaded, and otherwise
    /// must be [`forget`](Self::forget)-ed.
    pub fn load(&mut self, reply: MonitorReply) -> Result<Vec<RowChange>, UpdateError> {
        if reply.found {
            return self.apply(reply.updates, Some(reply.last));
        }
        let mut fresh = self.emptied();
        fresh.apply(reply.updates, Some(reply.last))?;
        Ok(self.replace(fresh))
    }

    /// Takes the contents of another replica. What comes back are the differences, over the union of the rows.
    pub fn replace(&mut self, fresh: Self) -> Vec<RowChange> {
        let old = std::mem::replace(self, fresh);
        let mut changes = Vec::new();
        for (name, table) in &self.tables {
            let mut gone = old.tables.get(name).map(|t| t.rows.clone()).unwrap_or_default();
            for (uuid, row) in &table.rows {
                push(&mut changes, name, *uuid, gone.remove(uuid), Some(row.clone()));
            }
            for (uuid, row) in gone {
                push(&mut changes, name, uuid, Some(row), None);
            }
        }
        for (name, table) in old.tables.into_iter().filter(|(name, _)| !self.tables.contains_key(name)) {
            for (uuid, row) in table.rows {
                push(&mut changes, &name, uuid, Some(row), None);
            }
        }
        changes
    }

    /// Takes in what happened since. After an error the replica must be [`forget`](Self::forget)-ed.
    pub fn apply(
        &mut self,
        updates: TableUpdates,
        last: Option<Uuid>,
    ) -> Result<Vec<RowChange>, UpdateError> {
        let mut changes = Vec::new();
        for (name, updates) in updates {
            let Some((name, _)) = self.tables.get_key_value(name.as_str()) else {
                return Err(UpdateError::Table { table: name });
            };
            let name = name.clone();
            let Some(table) = self.tables.get_mut(&name) else { continue };
            for (uuid, update) in updates {
                let uuid = uuid.parse().map_err(|source| UpdateError::Uuid { source })?;
                let (old, new) = table.update(&name, uuid, update)?;
                push(&mut changes, &name, uuid, old, new);
            }
        }
        if let Some(last) = last {
            self.last = last;
        }
        Ok(changes)
    }

    /// Makes the next load a full one: the server is asked for everything. The rows stay, to be compared.
    pub fn forget(&mut self) {
        self.last = Uuid::ZERO;
    }

    fn emptied(&self) -> Self {
        let table = |t: &Table| Table { columns: t.columns.clone(), rows: Rows::new() };
        Self { tables: self.tables.iter().map(|(n, t)| (n.clone(), table(t))).collect(), last: Uuid::ZERO }
    }
}

fn push(
    changes: &mut Vec<RowChange>,
    table: &Arc<str>,
    uuid: Uuid,
    old: Option<Arc<Row>>,
    new: Option<Arc<Row>>,
) {
    if old != new {
        changes.push(RowChange { table: table.clone(), uuid, old, new });
    }
}

type OldNew = (Option<Arc<Row>>, Option<Arc<Row>>);

impl Table {
    fn update(&mut self, name: &str, uuid: Uuid, update: RowUpdate) -> Result<OldNew, UpdateError> {
        match update {
            RowUpdate::Initial(json) | RowUpdate::Insert(json) => {
                let mut row =
                    Row(self.columns.iter().map(|(n, ty)| (n.clone(), ty.default_datum())).collect());
                for (column, json) in &json {
                    let (column, _, datum) = self.read(name, uuid, column, json)?;
                    row.0.insert(column, datum);
                }
                let row = Arc::new(row);
                match self.rows.entry(uuid) {
                    Entry::Vacant(entry) => drop(entry.insert(row.clone())),
                    // The server may repeat what a client already knows, but may not contradict it.
                    Entry::Occupied(entry) if *entry.get() == row => {
                        return Ok((Some(row.clone()), Some(row)));
                    }
                    Entry::Occupied(_) => {
                        return Err(UpdateError::Duplicate { table: name.to_owned(), uuid });
                    }
                }
                Ok((None, Some(row)))
            }
            RowUpdate::Delete(_) => match self.rows.remove(&uuid) {
                Some(row) => Ok((Some(row), None)),
                None => Err(UpdateError::NoRow { table: name.to_owned(), uuid }),
            },
            RowUpdate::Modify(json) => {
                let Some(old) = self.rows.get(&uuid).cloned() else {
                    return Err(UpdateError::NoRow { table: name.to_owned(), uuid });
                };
                let mut row = Row::clone(&old);
                for (column, json) in &json {
                    let (column, ty, delta) = self.read(name, uuid, column, json)?;
                    ty.apply(row.0.entry(column).or_insert_with(|| ty.default_datum()), delta);
                }
                let row = Arc::new(row);
                self.rows.insert(uuid, row.clone());
                Ok((Some(old), Some(row)))
            }
        }
    }

    fn read(
        &self,
        table: &str,
        uuid: Uuid,
        column: &str,
        json: &Value,
    ) -> Result<(Arc<str>, &ColumnType, Datum), UpdateError> {
        let Some((name, ty)) = self.columns.get_key_value(column) else {
            return Err(UpdateError::Column { table: table.to_owned(), column: column.to_owned() });
        };
        let datum = ty.read(json).map_err(|source| UpdateError::Value {
            table: table.to_owned(),
            uuid,
            column: column.to_owned(),
            source,
        })?;
        Ok((name.clone(), ty, datum))
    }
}
