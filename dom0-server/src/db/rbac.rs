//! Who may write what by a remote of a cluster: the rows that `ovsdb-server` reads for its role-based access control
//! (ovsdb-server(7), "Role-Based Access Control"), and where its members listen.
//!
//! A daemon writes what it reports of its own node, and migrations that its node takes part in; everything else is
//! desired state, and belongs to whoever reaches a member's own socket, which has no role. Pure: JSON in, JSON out, as
//! the same transaction goes to a server and to a file (`ovsdb-tool transact`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Migration, NodeStatus, Statistics, Status, table};

/// The role of daemons.
pub const ROLE: &str = "xenflow-node";

/// What the role permits in one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// The table.
    pub table: &'static str,
    /// Columns of which one must hold the common name of the client's certificate, before a row is changed or deleted
    /// and in a row that is inserted.
    pub authorization: &'static [&'static str],
    /// Columns that may be changed. None that is in `authorization`: rows are not given away.
    pub update: &'static [&'static str],
}

/// All that the role permits. Rows of these tables may be inserted and deleted, too.
pub const PERMISSIONS: [Permission; 5] = [
    Permission {
        table: table::NODE_STATUS,
        authorization: &["node"],
        update: but_first(&NodeStatus::COLUMNS),
    },
    Permission { table: table::STATUS, authorization: &["node"], update: but_first(&Status::COLUMNS) },
    Permission {
        table: table::STATISTICS,
        authorization: &["node"],
        update: but_first(&Statistics::COLUMNS),
    },
    Permission {
        table: table::LOCATION,
        authorization: &["node"],
        update: &["segment", "mac", "generation"],
    },
    Permission {
        table: table::MIGRATION,
        authorization: &["from", "to"],
        update: of_migration(&Migration::COLUMNS),
    },
];

/// The first names the node that a row is of.
const fn but_first(columns: &'static [&'static str]) -> &'static [&'static str] {
    match columns {
        [_, others @ ..] => others,
        [] => &[],
    }
}

/// The first say which migration it is.
const fn of_migration(columns: &'static [&'static str]) -> &'static [&'static str] {
    columns.split_at(Migration::FIXED).1
}

/// The tables that [`select`] reads.
const READ: [&str; 4] = [table::XENFLOW, "Connection", "RBAC_Role", "RBAC_Permission"];

/// Operations that read what [`operations`] needs.
#[must_use]
pub fn select() -> Vec<Value> {
    READ.iter().map(|table| json!({"op": "select", "table": table, "where": []})).collect()
}

/// The results of [`select`] are not what a server returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rows of {0} cannot be read")]
pub struct ResultError(pub &'static str);

/// Operations that make the rows what they must be: none if they are. `results` are those of [`select`]; `target` is
/// where members listen if nothing says so yet, as `pssl:6660`.
///
/// # Errors
/// [`ResultError`] names the table.
pub fn operations(results: &Value, target: &str) -> Result<Vec<Value>, ResultError> {
    let mut tables = BTreeMap::new();
    for (number, table) in READ.into_iter().enumerate() {
        let rows = results.get(number).and_then(|result| result.get("rows")).and_then(Value::as_array);
        tables.insert(table, rows.ok_or(ResultError(table))?);
    }
    let rows = |table: &str| tables.get(table).into_iter().flat_map(|rows| rows.iter());
    let mut operations = Vec::new();
    let has_row = rows(table::XENFLOW).next().is_some();
    if !has_row {
        let row = json!({"external_ids": ["map", [["created-by", "xenflow"]]]});
        operations.push(json!({"op": "insert", "table": table::XENFLOW, "row": row}));
    }
    if !rows("Connection").any(|row| row.get("role") == Some(&json!(ROLE))) {
        let row = json!({"target": target, "role": ROLE});
        operations.push(json!({"op": "insert", "table": "Connection", "uuid-name": "listen", "row": row}));
        let mutation = json!(["connections", "insert", ["set", [["named-uuid", "listen"]]]]);
        let table = table::XENFLOW;
        operations.push(json!({"op": "mutate", "table": table, "where": [], "mutations": [mutation]}));
    }
    if !is_permitted(rows("RBAC_Role"), rows("RBAC_Permission")) {
        operations.extend(permit());
    }
    Ok(operations)
}

/// Operations that make the role what it must be, of a database whose members listen to clients that have it: none if it
/// is, or if nobody has the role. An earlier program's permits fewer columns.
///
/// # Errors
/// [`ResultError`] names the table.
pub fn renewal(results: &Value) -> Result<Vec<Value>, ResultError> {
    let table = READ.iter().position(|table| *table == "Connection").and_then(|at| results.get(at));
    let rows = table.and_then(|result| result.get("rows")).and_then(Value::as_array);
    let rows = rows.ok_or(ResultError("Connection"))?;
    match rows.iter().any(|row| row.get("role") == Some(&json!(ROLE))) {
        // Somebody listens, so no target is made.
        true => operations(results, ""),
        false => Ok(Vec::new()),
    }
}

/// Whether the role permits exactly what it should.
fn is_permitted<'a>(
    mut roles: impl Iterator<Item = &'a Value>,
    permissions: impl Iterator<Item = &'a Value>,
) -> bool {
    let Some(role) = roles.find(|row| row.get("name") == Some(&json!(ROLE))) else { return false };
    let found: BTreeMap<String, &Value> =
        permissions.filter_map(|row| Some((row.get("_uuid")?.get(1)?.as_str()?.to_owned(), row))).collect();
    let pairs = role.get("permissions").and_then(|map| map.get(1)).and_then(Value::as_array);
    let Some(pairs) = pairs else { return false };
    let is_right = |wanted: &Permission| {
        let mut of_table = pairs.iter().filter(|pair| pair.get(0) == Some(&json!(wanted.table)));
        let uuid = of_table.next().and_then(|pair| pair.get(1)?.get(1)?.as_str());
        uuid.and_then(|uuid| found.get(uuid)).is_some_and(|row| {
            row.get("table") == Some(&json!(wanted.table))
                && row.get("insert_delete") == Some(&json!(true))
                && set_of(row.get("authorization")) == wanted.authorization.iter().copied().collect()
                && set_of(row.get("update")) == wanted.update.iter().copied().collect()
        })
    };
    pairs.len() == PERMISSIONS.len() && PERMISSIONS.iter().all(is_right)
}

/// A set in OVSDB's notation; one element may stand alone.
fn set_of(value: Option<&Value>) -> BTreeSet<&str> {
    let Some(value) = value else { return BTreeSet::new() };
    match value.as_str() {
        Some(one) => [one].into(),
        None => {
            value.get(1).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
        }
    }
}

fn permit() -> Vec<Value> {
    let delete = |table: &str, column: &str, value: &str| json!({"op": "delete", "table": table, "where": [[column, "==", value]]});
    let mut operations = vec![delete("RBAC_Role", "name", ROLE)];
    let mut permissions = Vec::new();
    for Permission { table, authorization, update } in PERMISSIONS {
        operations.push(delete("RBAC_Permission", "table", table));
        let mut row = Map::new();
        row.insert("table".into(), table.into());
        row.insert("authorization".into(), json!(["set", authorization]));
        row.insert("insert_delete".into(), true.into());
        row.insert("update".into(), json!(["set", update]));
        operations.push(json!({"op": "insert", "table": "RBAC_Permission", "uuid-name": table, "row": row}));
        permissions.push(json!([table, ["named-uuid", table]]));
    }
    let row = json!({"name": ROLE, "permissions": ["map", permissions]});
    operations.push(json!({"op": "insert", "table": "RBAC_Role", "row": row}));
    operations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        serde_json::from_str(crate::db::schema()).unwrap()
    }

    #[test]
    fn every_column_is_there_and_nobody_gives_rows_away() {
        let schema = schema();
        for Permission { table, authorization, update } in PERMISSIONS {
            let columns = schema["tables"][table]["columns"].as_object().expect(table);
            let all: BTreeSet<&str> = columns.keys().map(String::as_str).collect();
            let (who, what): (BTreeSet<_>, BTreeSet<_>) =
                (authorization.iter().copied().collect(), update.iter().copied().collect());
            assert!(!who.is_empty() && who.is_disjoint(&what), "{table}");
            assert!(who.is_subset(&all) && what.is_subset(&all), "{table}");
            // A migration stays what it was made as. A new column is thought of here first.
            let fixed: BTreeSet<&str> =
                all.difference(&what).copied().filter(|name| !who.contains(name)).collect();
            assert_eq!(
                fixed,
                if table == table::MIGRATION {
                    ["number", "router", "via", "move_limit_s"].into()
                } else {
                    BTreeSet::new()
                },
                "{table}"
            );
        }
    }

    #[test]
    fn results_of_another_shape_are_refused() {
        assert_eq!(operations(&json!([{"rows": []}]), "pssl:6660"), Err(ResultError("Connection")));
        let empty = json!([{"rows": []}, {"rows": []}, {"rows": []}, {"rows": []}]);
        let all = operations(&empty, "pssl:6660").unwrap();
        assert_eq!(all.len(), 3 + 1 + 2 * PERMISSIONS.len() + 1);
        let there =
            json!([{"rows": [{"next_cfg": 0}]}, {"rows": [{"role": ROLE}]}, {"rows": []}, {"rows": []}]);
        assert_eq!(operations(&there, "pssl:6660").unwrap().len(), 1 + 2 * PERMISSIONS.len() + 1);
        assert_eq!(renewal(&there).unwrap().len(), 1 + 2 * PERMISSIONS.len() + 1);
        assert_eq!(renewal(&empty).unwrap(), Vec::<Value>::new(), "nobody has the role");
    }
}
