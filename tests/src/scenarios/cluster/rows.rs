//! What is in the database: by a member's socket, or in the copy of a member's file.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use dom0_server::db::{DATABASE, table};
use ovsdb::{Connection, Operation, Options, Remote};
use serde_json::{Value, json};

use crate::process;

/// The table that is written.
pub(super) const TABLE: &str = table::NETWORK;

/// Runs a future to its end in this thread.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

/// The names of all rows of the table, as one member knows them.
pub(super) fn names(socket: &Path) -> Result<BTreeSet<String>> {
    let read = async {
        let remote = Remote::Unix(socket.to_owned());
        let (connection, _notifications) = Connection::open(&remote, &Options::default()).await?;
        let select = Operation::select(TABLE).columns(&["name"]);
        let found = connection.transact(DATABASE, &[select]).await?;
        let rows = found.first().map(|result| result.rows()).unwrap_or_default();
        Ok(rows.iter().filter_map(|row| row.str("name").ok()).map(str::to_owned).collect())
    };
    block_on(read)?
}

/// The same of the copy of a member's file.
pub(super) fn names_in(copy: &Path) -> Result<BTreeSet<String>> {
    let plain = copy.with_extension("plain");
    process::output(Command::new("ovsdb-tool").arg("cluster-to-standalone").args([&plain, copy]))?;
    let select = json!([DATABASE, {"op": "select", "table": TABLE, "where": [], "columns": ["name"]}]);
    let said = process::output(Command::new("ovsdb-tool").arg("query").arg(&plain).arg(select.to_string()))?;
    let said: Value = serde_json::from_str(&said)?;
    let rows = said[0]["rows"].as_array().with_context(|| format!("no rows in {said}"))?;
    Ok(rows.iter().filter_map(|row| row["name"].as_str()).map(str::to_owned).collect())
}
