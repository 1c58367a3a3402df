//! Taking away what a node has reported that will not come back.

use ovsdb::{Condition, Operation};

use super::edit::{EditError, Snapshot, none, unchanged};
use super::row::Kind;
use super::table;

/// After so long without a word a node is taken for gone, in milliseconds: four of its reports, one
/// every 20 s, have not come.
pub const SILENT_MS: u64 = 90_000;

/// Tables whose rows nodes write, by their column `node`.
pub const REPORTS: [&str; 4] = [table::NODE_STATUS, table::STATUS, table::STATISTICS, table::LOCATION];

/// Reads whether there is anything of a node: the results have rows then.
#[must_use]
pub fn select(node: &str) -> Vec<Operation> {
    let of = |table: &&str| Operation::select(*table).filter(Condition::eq("node", node)).columns(&["node"]);
    REPORTS.iter().map(of).collect()
}

impl Snapshot {
    /// Removes what a node has reported. Without `force` only of one that has no uplink and has been silent for
    /// [`SILENT_MS`] at `now_ms`. `is_known`: there is something, by [`select`].
    ///
    /// # Errors
    /// [`EditError::Unknown`], [`EditError::InUse`] or [`EditError::Alive`].
    pub fn retire(
        &self,
        node: &str,
        is_known: bool,
        now_ms: u64,
        force: bool,
    ) -> Result<Vec<Operation>, EditError> {
        let (kind, name) = (Kind::Node, node.to_owned());
        let mut operations = Vec::new();
        if !force {
            if let Some((_, row)) = self.rows.named(table::NODE, node) {
                let uplinks = row.set_str("uplinks").unwrap_or_default().into_iter();
                let users = uplinks.map(|port| format!("uplink {port}")).collect::<Vec<_>>().join(", ");
                return Err(EditError::InUse { kind, name, users });
            }
            operations.push(none(table::NODE, [Condition::eq("name", node)]));
        }
        let mut rows = self.rows.of(table::NODE_STATUS);
        match rows.find(|(_, row)| row.str("node") == Ok(node)) {
            Some((uuid, row)) if !force => {
                let seen = row.int("seen_ms").ok().and_then(|seen| u64::try_from(seen).ok());
                let silent = now_ms.saturating_sub(seen.unwrap_or_default());
                if silent < SILENT_MS {
                    return Err(EditError::Alive { node: name, seconds: silent / 1000 });
                }
                operations.push(unchanged(table::NODE_STATUS, uuid, row, &["seen_ms"]));
            }
            None if !is_known => return Err(EditError::Unknown { kind, name }),
            Some(_) | None => {}
        }
        let delete = |table: &&str| Operation::delete(*table).filter(Condition::eq("node", node));
        operations.extend(REPORTS.iter().map(delete));
        Ok(operations)
    }
}
