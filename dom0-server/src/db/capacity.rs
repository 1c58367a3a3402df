//! What uplinks carry: the columns `uplink_capacity` of `Node`, written by operators, and of `Node_Status`, written by
//! daemons. By name of the OVS port.

use std::collections::{BTreeMap, BTreeSet};

use ovsdb::{Datum, Row};

use super::contract::Rate;
use super::policy::shown;
use super::row::RowError;

/// Name of the column in both tables.
pub const COLUMN: &str = "uplink_capacity";

/// By name of the OVS port.
pub type Capacities = BTreeMap<String, Rate>;

/// Reads the column of a row.
///
/// # Errors
/// [`RowError`] names the value and the rule.
pub fn parse(row: &Row) -> Result<Capacities, RowError> {
    let pairs = row.map_str_int(COLUMN)?.into_iter();
    pairs.map(|(port, bps)| Ok((port.to_owned(), Rate::try_from(bps)?))).collect()
}

/// The column that says this.
#[must_use]
pub fn datum(capacities: &Capacities) -> Datum {
    Datum::map(capacities.iter().map(|(port, rate)| (port.as_str(), rate.column())))
}

/// Refuses to say what a port carries that is no uplink.
///
/// # Errors
/// [`RowError::CapacityOfNoUplink`].
pub fn only_of<'a>(
    ports: impl IntoIterator<Item = &'a str>,
    uplinks: &BTreeSet<&str>,
) -> Result<(), RowError> {
    match ports.into_iter().find(|port| !uplinks.contains(port)) {
        Some(port) => Err(RowError::CapacityOfNoUplink(shown(port))),
        None => Ok(()),
    }
}
