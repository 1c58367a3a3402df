//! What daemons count: rows of `Statistics`.

use std::collections::BTreeMap;

use ovsdb::{Condition, Datum, Operation, Row};
use xenflow_proto::Name;

use super::{RowError, table};
use crate::counters::{Place, Scope};

/// Most counters of a place; the schema's limit.
const MAX: usize = 64;

/// What one node counts of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// The node.
    pub node: Name,
    /// The thing.
    pub place: Place,
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
    /// Since when: milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// When a counter last changed.
    pub updated_ms: u64,
}

impl Statistics {
    /// The columns of a row, `node` first.
    pub const COLUMNS: [&'static str; 6] = ["node", "scope", "name", "counters", "since_ms", "updated_ms"];

    /// Reads a row of `Statistics`.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn parse(row: &Row) -> Result<Self, RowError> {
        let count = |value: i64| u64::try_from(value).unwrap_or_default();
        let scope = row.str("scope")?;
        let scope = Scope::ALL.into_iter().find(|known| known.as_str() == scope);
        let counters = row.map_str_int("counters")?.into_iter();
        Ok(Self {
            node: row.str("node")?.parse()?,
            place: (
                scope.ok_or_else(|| RowError::Scope(row.str("scope").unwrap_or_default().to_owned()))?,
                row.str("name")?.to_owned(),
            ),
            counters: counters.map(|(name, value)| (name.to_owned(), count(value))).collect(),
            since_ms: count(row.int("since_ms")?),
            updated_ms: count(row.int("updated_ms")?),
        })
    }

    /// Operations that put these in the place of the ones before.
    #[must_use]
    pub fn upsert(&self) -> Vec<Operation> {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let counters = self.counters.iter().take(MAX);
        let (scope, name) = &self.place;
        let insert = Operation::insert(table::STATISTICS)
            .set("node", self.node.as_str())
            .set("scope", scope.as_str())
            .set("name", name.as_str())
            .set("counters", Datum::map(counters.map(|(name, value)| (name.as_str(), number(*value)))))
            .set("since_ms", number(self.since_ms))
            .set("updated_ms", number(self.updated_ms));
        vec![remove(&self.node, &self.place), insert]
    }
}

/// Reads the rows of a node, or of all.
#[must_use]
pub fn select(node: Option<&Name>) -> Operation {
    let all = Operation::select(table::STATISTICS);
    match node {
        Some(node) => all.filter(Condition::eq("node", node.as_str())),
        None => all,
    }
}

/// Forgets what a node counted of a thing.
#[must_use]
pub fn remove(node: &Name, (scope, name): &Place) -> Operation {
    Operation::delete(table::STATISTICS)
        .filter(Condition::eq("node", node.as_str()))
        .filter(Condition::eq("scope", scope.as_str()))
        .filter(Condition::eq("name", name.as_str()))
}
