//! A copy of the database's rows, fed by a monitor's changes or by a select.
//!
//! Owns which rows there are. What they mean is the business of `row` and `desired`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ovsdb::{Condition, OpResult, Row, RowChange, Uuid};

use super::table;

/// Tables of [`super::select_all`], in this order.
pub(super) const SELECTED: [&str; 10] = [
    table::XENFLOW,
    table::NODE,
    table::NETWORK,
    table::SEGMENT,
    table::ROUTER,
    table::VIF,
    table::ACCESS,
    table::TRAFFIC_CLASS,
    table::NODE_STATUS,
    table::STATUS,
];

/// Rows by table and UUID.
#[derive(Debug, Clone, Default)]
pub struct Rows(BTreeMap<Arc<str>, BTreeMap<Uuid, Arc<Row>>>);

impl Rows {
    /// Takes in what a monitor of [`super::monitor`] reports: a snapshot's differences or an update.
    pub fn apply(&mut self, changes: &[RowChange]) {
        for change in changes {
            let rows = self.0.entry(change.table.clone()).or_default();
            match &change.new {
                Some(row) => rows.insert(change.uuid, row.clone()),
                None => rows.remove(&change.uuid),
            };
        }
    }

    /// The results of [`super::select_all`]. A row without `_uuid` cannot be referred to and is left out.
    #[must_use]
    pub fn from_select(results: &[OpResult]) -> Self {
        let tables = SELECTED.iter().zip(results).map(|(table, result)| {
            let rows = result.rows().iter();
            let rows = rows.filter_map(|row| Some((row.uuid("_uuid").ok()?, Arc::new(row.clone()))));
            (Arc::from(*table), rows.collect())
        });
        Self(tables.collect())
    }

    /// One row more, for tests and tools.
    pub fn insert(&mut self, table: &str, uuid: Uuid, row: Row) {
        self.0.entry(Arc::from(table)).or_default().insert(uuid, Arc::new(row));
    }

    /// These and those of another copy, of other tables.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// One row less.
    pub(super) fn remove(&mut self, table: &str, uuid: Uuid) {
        if let Some(rows) = self.0.get_mut(table) {
            rows.remove(&uuid);
        }
    }

    /// The rows of a table, by UUID.
    pub fn of(&self, table: &str) -> impl Iterator<Item = (Uuid, &Row)> {
        self.0.get(table).into_iter().flatten().map(|(uuid, row)| (*uuid, &**row))
    }

    /// One row.
    #[must_use]
    pub fn get(&self, table: &str, uuid: Uuid) -> Option<&Row> {
        self.0.get(table)?.get(&uuid).map(|row| &**row)
    }

    /// The row whose column `name` is this.
    #[must_use]
    pub fn named(&self, table: &str, name: &str) -> Option<(Uuid, &Row)> {
        self.of(table).find(|(_, row)| row.str("name") == Ok(name))
    }

    /// The name of a row, also of an invalid one, for messages.
    #[must_use]
    pub fn name_of(&self, table: &str, uuid: Uuid) -> Option<&str> {
        self.get(table, uuid)?.str("name").ok()
    }

    /// The condition that selects one row.
    pub(super) fn is(uuid: Uuid) -> Condition {
        Condition::uuid(uuid)
    }
}
