//! Uplinks come and go: ports of a node, which has no other part in what is asked for. Edits of the command line.

use std::time::Duration;

use ovsdb::{Condition, Datum, Mutator, Operation, Until};
use xenflow_proto::Name;

use super::contract::Rate;
use super::edit::{EditError, Snapshot};
use super::row::{Kind, port_name};
use super::{Rows, capacity, table};

impl Snapshot {
    /// An uplink of a node, which is created with its first one, and what it carries.
    ///
    /// # Errors
    /// [`EditError`] names the value and the rule.
    pub fn add_uplink(
        &self,
        node: &Name,
        port: &str,
        capacity: Option<Rate>,
        may_exist: bool,
    ) -> Result<Vec<Operation>, EditError> {
        let port = port_name(port)?;
        let uplink = Datum::set([port]);
        let carries = capacity::datum(&capacity.map(|rate| (port.to_owned(), rate)).into_iter().collect());
        let there = self.rows.named(table::NODE, node.as_str());
        let mut after = self.desired.clone();
        after.uplinks.entry(node.clone()).or_default().insert(port.to_owned());
        if let Some(rate) = capacity {
            after.capacities.entry(node.clone()).or_default().insert(port.to_owned(), rate);
        }
        match there {
            Some((_, row)) if row.set_str("uplinks").is_ok_and(|ports| ports.contains(port)) => {
                let is = capacity::parse(row)?.get(port).copied();
                match capacity {
                    _ if !may_exist => {
                        Err(EditError::UplinkExists { node: node.clone(), port: port.to_owned() })
                    }
                    Some(asked) if is != Some(asked) => Err(EditError::Differs {
                        kind: Kind::Node,
                        name: node.to_string(),
                        column: capacity::COLUMN,
                        is: format!("{port}:{}", is.map_or("none".to_owned(), |rate| rate.to_string())),
                        asked: format!("{port}:{asked}"),
                        todo: "'xenflow uplink set' changes it".to_owned(),
                    }),
                    _ => Ok(Vec::new()),
                }
            }
            Some((uuid, _)) => {
                let mut operations = self.admit(&after)?;
                let there = Operation::wait(table::NODE, &["name"], Until::NotEqual, [], Duration::ZERO);
                // What somebody has left there of a former uplink of that name goes.
                let add = Operation::mutate(table::NODE)
                    .mutation("uplinks", Mutator::Insert, uplink.clone())
                    .mutation(capacity::COLUMN, Mutator::Delete, uplink)
                    .mutation(capacity::COLUMN, Mutator::Insert, carries);
                operations.extend([there.filter(Rows::is(uuid)), add.filter(Rows::is(uuid))]);
                Ok(operations)
            }
            None => {
                let mut operations = self.admit(&after)?;
                let insert = Operation::insert(table::NODE).set("name", node.as_str());
                operations.push(insert.set("uplinks", uplink).set(capacity::COLUMN, carries));
                Ok(operations)
            }
        }
    }

    /// Takes an uplink from a node. A node without uplinks goes too. With `if_exists` one that is not there is as good.
    ///
    /// # Errors
    /// [`EditError::Unknown`] of the node, [`EditError::NoUplink`] of the port.
    pub fn remove_uplink(
        &self,
        node: &str,
        port: &str,
        if_exists: bool,
    ) -> Result<Vec<Operation>, EditError> {
        let refused = match self.rows.named(table::NODE, node) {
            Some((uuid, row)) if row.set_str("uplinks").is_ok_and(|ports| ports.contains(port)) => {
                let take = Operation::mutate(table::NODE)
                    .mutation("uplinks", Mutator::Delete, Datum::set([port]))
                    .mutation(capacity::COLUMN, Mutator::Delete, Datum::set([port]));
                let last = Operation::delete(table::NODE).filter(Condition::eq("uplinks", Datum::empty()));
                return Ok(vec![take.filter(Rows::is(uuid)), last.filter(Rows::is(uuid))]);
            }
            Some(_) => EditError::NoUplink { node: node.to_owned(), port: port.to_owned() },
            None => EditError::Unknown { kind: Kind::Node, name: node.to_owned() },
        };
        if if_exists { Ok(Vec::new()) } else { Err(refused) }
    }
}
