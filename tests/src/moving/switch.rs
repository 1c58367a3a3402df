//! A host's switch as a toolstack sees it: ports are put in and taken out by its database, and it says when that is done.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ovsdb::{Condition, Connection, Datum, Mutator, Notification, Operation, Options, Remote};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

use super::vm::Vif;
use crate::node::BRIDGE;

const DATABASE: &str = "Open_vSwitch";
const LIMIT: Duration = Duration::from_secs(20);

/// A connection to the database.
pub(super) struct Switch {
    runtime: Runtime,
    connection: Connection,
    _notifications: Receiver<Notification>,
}

impl Switch {
    pub(super) fn open(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let remote = Remote::Unix(socket.to_owned());
        let (connection, notifications) = runtime.block_on(Connection::open(&remote, &Options::default()))?;
        Ok(Self { runtime, connection, _notifications: notifications })
    }

    /// Makes vifs ports of the integration bridge, with what everybody says of them, and waits for the switch.
    pub(super) fn plug(&self, vifs: &[Vif], vm_uuid: &str) -> Result<()> {
        let mut operations = Vec::new();
        let mut ports = Vec::new();
        for (index, Vif { port, iface_id, mac, tag, .. }) in vifs.iter().enumerate() {
            let ids = [
                ("iface-id", iface_id.as_str()),
                ("attached-mac", mac),
                ("vm-uuid", vm_uuid),
                ("iface-status", "active"),
            ];
            operations.push(
                Operation::insert("Interface")
                    .set("name", port)
                    .set("external_ids", Datum::map(ids))
                    .uuid_name(format!("interface{index}")),
            );
            let row = Operation::insert("Port").set("name", port).uuid_name(format!("port{index}"));
            let row = row.set("interfaces", Datum::named_uuid(format!("interface{index}")));
            operations.push(match tag {
                Some(tag) => row.set("tag", i64::from(*tag)),
                None => row,
            });
            ports.push(Datum::named_uuid(format!("port{index}")));
        }
        operations.extend(ports.into_iter().map(|port| bridge(Mutator::Insert, port)));
        self.change(operations).context("cannot plug in")
    }

    /// Takes ports out, and waits for the switch.
    pub(super) fn unplug(&self, vifs: &[Vif]) -> Result<()> {
        let select = |vif: &Vif| {
            Operation::select("Port").filter(Condition::eq("name", &vif.port)).columns(&["_uuid"])
        };
        let found = self.transact(&vifs.iter().map(select).collect::<Vec<_>>())?;
        let mut operations = Vec::new();
        for row in found.iter().flat_map(|result| result.rows()) {
            operations.push(bridge(Mutator::Delete, Datum::from(row.uuid("_uuid")?)));
        }
        self.change(operations).context("cannot unplug")
    }

    /// As `ovs-vsctl` does: the switch has done what the database says once it gives back the number.
    fn change(&self, mut operations: Vec<Operation>) -> Result<()> {
        operations.push(Operation::mutate(DATABASE).mutation("next_cfg", Mutator::Add, 1));
        operations.push(Operation::select(DATABASE).columns(&["next_cfg"]));
        let results = self.transact(&operations)?;
        let row = results.last().and_then(|result| result.rows().first()).context("no next_cfg")?;
        let wanted = row.int("next_cfg")?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let results = self.transact(&[Operation::select(DATABASE).columns(&["cur_cfg"])])?;
            let row = results.first().and_then(|result| result.rows().first()).context("no cur_cfg")?;
            if row.int("cur_cfg")? >= wanted {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the switch has not done it after {} s", LIMIT.as_secs());
            // A guest is frozen meanwhile: shorter than others wait between two looks.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn transact(&self, operations: &[Operation]) -> Result<Vec<ovsdb::OpResult>> {
        Ok(self.runtime.block_on(self.connection.transact(DATABASE, operations))?)
    }
}

fn bridge(mutator: Mutator, port: Datum) -> Operation {
    Operation::mutate("Bridge").filter(Condition::eq("name", BRIDGE)).mutation("ports", mutator, port)
}
