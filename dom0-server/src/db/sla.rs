//! Edits of contracts and classes; see [`super::edit`].

use std::time::Duration;

use ovsdb::{Datum, Operation, Row, Until, Uuid};
use xenflow_proto::Name;

use super::class::{Matching, TrafficClass};
use super::contract::{Contract, ContractChange};
use super::edit::{EditError, Snapshot};
use super::row::{Kind, RowError};
use super::{Rows, table};

/// Fails the transaction unless these columns of the row are still so.
fn unchanged<const N: usize>(table: &str, uuid: Uuid, before: [(&'static str, Datum); N]) -> Operation {
    let columns = before.clone().map(|(column, _)| column);
    let row: Row = before.into_iter().collect();
    Operation::wait(table, &columns, Until::Equal, [row], Duration::ZERO).filter(Rows::is(uuid))
}

fn update(table: &str, uuid: Uuid, columns: impl IntoIterator<Item = (&'static str, Datum)>) -> Operation {
    let update = Operation::update(table).filter(Rows::is(uuid));
    columns.into_iter().fold(update, |row, (column, value)| row.set(column, value))
}

impl Snapshot {
    /// A network's contract becomes another one; nothing if it is that already.
    pub fn set_contract(&self, network: &Name, change: &ContractChange) -> Result<Vec<Operation>, EditError> {
        let found = self.known(self.desired.networks.get(network), Kind::Network, network)?;
        self.change(table::NETWORK, found.uuid, found.contract, change)
    }

    /// A class's contract becomes another one; nothing if it is that already.
    pub fn set_class(
        &self,
        network: &Name,
        name: &Name,
        change: &ContractChange,
    ) -> Result<Vec<Operation>, EditError> {
        let class = self.class(network, name)?;
        self.change(table::TRAFFIC_CLASS, class.uuid, class.contract, change)
    }

    fn change(
        &self,
        table: &str,
        uuid: Uuid,
        before: Contract,
        change: &ContractChange,
    ) -> Result<Vec<Operation>, EditError> {
        let after = change.applied(&before)?;
        if after == before {
            return Ok(Vec::new());
        }
        Ok(vec![unchanged(table, uuid, before.columns()), update(table, uuid, after.columns())])
    }

    fn class(&self, network: &Name, name: &Name) -> Result<&TrafficClass, EditError> {
        self.known(self.desired.networks.get(network), Kind::Network, network)?;
        self.known(self.desired.classes.get(&(network.clone(), name.clone())), Kind::Class, name)
    }

    /// A class of a network.
    pub fn add_class(
        &self,
        network: &Name,
        name: &Name,
        priority: u16,
        matching: &Matching,
        contract: &Contract,
    ) -> Result<Vec<Operation>, EditError> {
        let of = self.known(self.desired.networks.get(network), Kind::Network, network)?.uuid;
        let mut others = self.desired.classes.values().filter(|class| class.network == *network);
        if others.clone().any(|class| class.name == *name) {
            return Err(EditError::Exists { kind: Kind::Class, name: name.clone() });
        }
        if let Some(other) = others.find(|class| class.priority == priority) {
            let (what, value, by) = ("priority", priority.to_string(), other.name.clone());
            return Err(RowError::Taken { what, value, kind: Kind::Class, by }.into());
        }
        let insert = Operation::insert(table::TRAFFIC_CLASS)
            .set("name", name.as_str())
            .set("network", of)
            .set("priority", i64::from(priority));
        let columns = matching.columns().into_iter().chain(contract.columns());
        Ok(vec![columns.fold(insert, |row, (column, value)| row.set(column, value))])
    }

    /// Removes a class.
    pub fn remove_class(&self, network: &Name, name: &Name) -> Result<Vec<Operation>, EditError> {
        let class = self.class(network, name)?;
        Ok(vec![Operation::delete(table::TRAFFIC_CLASS).filter(Rows::is(class.uuid))])
    }
}
