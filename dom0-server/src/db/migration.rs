//! Routers on their way from one node to another: rows of `Migration`, as they are read.

use ovsdb::{ColumnError, Row};
use serde::Serialize;

use super::{Rows, table};

/// A row: text for people, that nobody here acts on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Migration {
    /// The router.
    pub router: String,
    /// The node that it leaves.
    pub from: String,
    /// The node that it goes to.
    pub to: String,
    /// How far it has come.
    pub phase: String,
    /// Of its locations once it has arrived.
    pub generation: i64,
    /// Why it was aborted; empty if it was not.
    pub error: String,
}

impl Migration {
    /// The columns of a row.
    pub const COLUMNS: [&'static str; 6] = ["router", "from", "to", "phase", "generation", "error"];

    /// The rows of a monitor by router and generation; those that do not parse are left out.
    #[must_use]
    pub fn read(rows: &Rows) -> Vec<Self> {
        let mut all: Vec<_> =
            rows.of(table::MIGRATION).filter_map(|(_, row)| Self::parse(row).ok()).collect();
        all.sort_by(|a, b| (&a.router, a.generation).cmp(&(&b.router, b.generation)));
        all
    }

    fn parse(row: &Row) -> Result<Self, ColumnError> {
        let text = |column: &str| row.str(column).map(str::to_owned);
        Ok(Self {
            router: text("router")?,
            from: text("from")?,
            to: text("to")?,
            phase: text("phase")?,
            generation: row.int("generation")?,
            error: text("error")?,
        })
    }
}
