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

    /// Puts a row where none is; a server refuses a second one of the same thing.
    #[must_use]
    pub fn insert(&self) -> Operation {
        let (scope, name) = &self.place;
        Operation::insert(table::STATISTICS)
            .set("node", self.node.as_str())
            .set("scope", scope.as_str())
            .set("name", name.as_str())
            .set("counters", self.datum())
            .set("since_ms", number(self.since_ms))
            .set("updated_ms", number(self.updated_ms))
    }

    /// Changes the row that is there, if it says something else: the count of the result says so. Where the same was written already
    /// it stays as it is, its time as well.
    #[must_use]
    pub fn update(&self) -> Operation {
        of(Operation::update(table::STATISTICS), &self.node, &self.place)
            .filter(Condition::ne("counters", self.datum()))
            .set("counters", self.datum())
            .set("updated_ms", number(self.updated_ms))
    }

    fn datum(&self) -> Datum {
        let counters = self.counters.iter().take(MAX);
        Datum::map(counters.map(|(name, value)| (name.as_str(), number(*value))))
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
pub fn remove(node: &Name, place: &Place) -> Operation {
    of(Operation::delete(table::STATISTICS), node, place)
}

fn of(operation: Operation, node: &Name, (scope, name): &Place) -> Operation {
    operation
        .filter(Condition::eq("node", node.as_str()))
        .filter(Condition::eq("scope", scope.as_str()))
        .filter(Condition::eq("name", name.as_str()))
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
