//! Which node a MAC address is behind: rows of `Location`.
//!
//! Owns reading and writing the rows, and which of several counts. When a node writes one is the business of
//! [`crate::locations`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ovsdb::{Condition, Datum, Function, Operation, Row, Until};
use xenflow_proto::{MacAddr, Name};

use super::migration::Migration;
use super::node_status::PREPARED;
use super::{DATABASE, RowError, Rows, table};

/// Greatest generation that the database takes.
pub const GENERATION_MAX: u64 = i64::MAX.unsigned_abs();

/// All columns.
pub const COLUMNS: [&str; 4] = ["segment", "mac", "node", "generation"];

/// A MAC address on a segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Name of the segment.
    pub segment: Name,
    /// Of a vif, or of an access port that has its addresses declared.
    pub mac: MacAddr,
}

/// All rows: by place and node the generation, from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Located(BTreeMap<Place, BTreeMap<Name, u64>>);

impl FromIterator<(Place, Name, u64)> for Located {
    fn from_iter<I: IntoIterator<Item = (Place, Name, u64)>>(rows: I) -> Self {
        let mut located = Self::default();
        for (place, node, generation) in rows {
            located.0.entry(place).or_default().insert(node, generation);
        }
        located
    }
}

impl Located {
    /// The rows of a monitor of [`monitor`]; those that do not parse are left out.
    #[must_use]
    pub fn read(rows: &Rows) -> Self {
        rows.of(table::LOCATION).filter_map(|(_, row)| parse(row).ok()).collect()
    }

    /// The rows of a [`select`], likewise.
    #[must_use]
    pub fn of_rows(rows: &[Row]) -> Self {
        rows.iter().filter_map(|row| parse(row).ok()).collect()
    }

    /// Generations of the nodes that have claimed a place.
    #[must_use]
    pub fn claims(&self, place: &Place) -> Option<&BTreeMap<Name, u64>> {
        self.0.get(place)
    }

    /// The node that has it: the one of the greatest generation, of several the first by name.
    #[must_use]
    pub fn winner(&self, place: &Place) -> Option<&Name> {
        winner(self.0.get(place)?)
    }

    /// Every place with the node that has it, and since which generation.
    pub fn winners(&self) -> impl Iterator<Item = (&Place, &Name, u64)> {
        self.0.iter().filter_map(|(place, claims)| {
            let node = winner(claims)?;
            Some((place, node, *claims.get(node)?))
        })
    }

    /// What a node has claimed, with its generations.
    pub fn claimed_by(&self, node: &Name) -> impl Iterator<Item = (&Place, u64)> {
        self.0.iter().filter_map(move |(place, claims)| Some((place, *claims.get(node)?)))
    }

    /// What other nodes than this one have.
    #[must_use]
    pub fn elsewhere(&self, node: &Name) -> BTreeSet<Place> {
        self.won_by(|winner| winner != node)
    }

    /// What this node has.
    #[must_use]
    pub fn of(&self, node: &Name) -> BTreeSet<Place> {
        self.won_by(|winner| winner == node)
    }

    fn won_by(&self, is: impl Fn(&Name) -> bool) -> BTreeSet<Place> {
        let places = self.0.iter().filter(|(_, claims)| winner(claims).is_some_and(&is));
        places.map(|(place, _)| place.clone()).collect()
    }
}

/// Asks for all rows.
#[must_use]
pub fn select() -> Operation {
    Operation::select(table::LOCATION)
}

fn winner(claims: &BTreeMap<Name, u64>) -> Option<&Name> {
    let rank = |(node, generation): &(&Name, &u64)| (**generation, std::cmp::Reverse((*node).clone()));
    claims.iter().max_by_key(rank).map(|(node, _)| node)
}

fn parse(row: &Row) -> Result<(Place, Name, u64), RowError> {
    let place = Place { segment: row.str("segment")?.parse()?, mac: row.str("mac")?.parse()? };
    Ok((place, row.str("node")?.parse()?, row.int("generation")?.unsigned_abs()))
}

/// What is watched, as of one instant: all of the table, the moves of routers and whom they concern, and up to which number of the desired state it has been read.
#[must_use]
pub fn monitor() -> ovsdb::Monitor {
    let rows = ovsdb::Monitor::new(DATABASE).table(table::LOCATION, &COLUMNS);
    rows.table(table::MIGRATION, &Migration::COLUMNS)
        .table(table::NODE_STATUS, &["node", "address", PREPARED])
        .table(table::ROUTER, &["name", "external_ids"])
        .table(table::XENFLOW, &["next_cfg"])
}

/// `XenFlow.next_cfg` of what [`monitor`] has read.
#[must_use]
pub fn cfg(rows: &Rows) -> i64 {
    rows.of(table::XENFLOW).next().and_then(|(_, row)| row.int("next_cfg").ok()).unwrap_or_default()
}

fn integer(generation: u64) -> Datum {
    i64::try_from(generation).unwrap_or(i64::MAX).into()
}

fn of(place: &Place) -> [Condition; 2] {
    [Condition::eq("segment", place.segment.as_str()), Condition::eq("mac", place.mac.to_string())]
}

fn filtered(operation: Operation, conditions: impl IntoIterator<Item = Condition>) -> Operation {
    conditions.into_iter().fold(operation, Operation::filter)
}

fn insert(place: &Place, node: &Name, generation: u64) -> Operation {
    Operation::insert(table::LOCATION)
        .set("segment", place.segment.as_str())
        .set("mac", place.mac.to_string())
        .set("node", node.as_str())
        .set("generation", integer(generation))
}

/// Fails the transaction if there is a row of the place that meets the condition.
fn none(place: &Place, condition: Condition) -> Operation {
    let wait = Operation::wait(table::LOCATION, &["node"], Until::Equal, [], Duration::ZERO);
    filtered(wait, of(place)).filter(condition)
}

/// The node has the place from that generation on; fails if somebody has that or a greater one.
#[must_use]
pub fn claim(place: &Place, node: &Name, generation: u64) -> Vec<Operation> {
    let greater = Condition::new("generation", Function::GreaterOrEqual, integer(generation));
    vec![none(place, greater), withdraw(place, node, generation), insert(place, node, generation)]
}

/// Fails the transaction unless the node has the place, with that generation.
#[must_use]
pub fn is_held(place: &Place, node: &Name, generation: u64) -> Vec<Operation> {
    let row: Row = [("node", Datum::from(node.as_str()))].into_iter().collect();
    let held = Operation::wait(table::LOCATION, &["node"], Until::Equal, [row], Duration::ZERO);
    let held = filtered(held, of(place)).filter(Condition::eq("generation", integer(generation)));
    let greater = Condition::new("generation", Function::Greater, integer(generation));
    vec![held, none(place, greater)]
}

/// Puts a row back that was the node's; fails if there is one.
#[must_use]
pub fn restore(place: &Place, node: &Name, generation: u64) -> Vec<Operation> {
    vec![none(place, Condition::eq("node", node.as_str())), insert(place, node, generation)]
}

/// The node no longer has the place since that generation, whatever it has claimed after that.
#[must_use]
pub fn withdraw(place: &Place, node: &Name, generation: u64) -> Operation {
    let older = Condition::new("generation", Function::LessOrEqual, integer(generation));
    let delete = filtered(Operation::delete(table::LOCATION), of(place));
    delete.filter(Condition::eq("node", node.as_str())).filter(older)
}
