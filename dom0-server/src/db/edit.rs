//! Edits of the desired state, as transactions for the command line.
//!
//! Each function checks a [`Snapshot`] and returns the operations of one transaction. What the snapshot cannot
//! promise (somebody else edits too) the transaction guards itself: by the schema's indexes and references,
//! and by `wait` operations. A transaction that fails so ([`is_lost_race`]) is built again on a new snapshot.

use std::collections::BTreeSet;
use std::time::Duration;

use ovsdb::{Condition, Datum, Mutator, OpResult, Operation, Row, TransactError, Until, Uuid};
use xenflow_proto::{MacAddr, Name, VlanId};

use super::desired::same_network;
use super::policy::{PolicyChange, RouterPolicy};
use super::row::{Attachment, Kind, Router, RouterId, RowError, Segment, VifNumber, port_name, usable_mac};
use super::{Desired, InvalidRow, Rows, Status, table};

/// Why an edit is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The name is taken.
    #[error("{kind} {name} exists already")]
    Exists {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: Name,
    },
    /// No such thing.
    #[error("there is no {kind} {name}")]
    Unknown {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// There is such a row, but it breaks a rule.
    #[error("{0}")]
    Invalid(Box<InvalidRow>),
    /// The new row would break a rule.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Something else refers to it.
    #[error("{kind} {name} is in use by {users}")]
    InUse {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: String,
        /// By what: kinds and names.
        users: String,
    },
    /// The port is an uplink of the node already.
    #[error("port {port} is an uplink of node {node} already")]
    UplinkExists {
        /// The node.
        node: Name,
        /// The port.
        port: String,
    },
    /// The port is no uplink of the node.
    #[error("port {port} is no uplink of node {node}")]
    NoUplink {
        /// The node.
        node: String,
        /// The port.
        port: String,
    },
    /// No number is free.
    #[error("every {what} from 1 to {max} is taken")]
    Full {
        /// `router id` or `vif number`.
        what: &'static str,
        /// The greatest.
        max: u16,
    },
}

/// True if the transaction failed on what somebody else did at the same time: read again and try again.
#[must_use]
pub fn is_lost_race(error: &TransactError) -> bool {
    const GUARDS: [&str; 3] = ["constraint violation", "referential integrity violation", "timed out"];
    error.server_error().is_some_and(|error| GUARDS.contains(&error))
}

/// The database at one instant.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every row.
    pub rows: Rows,
    /// What they mean.
    pub desired: Desired,
    /// Rows that mean nothing.
    pub invalid: Vec<InvalidRow>,
}

impl From<Rows> for Snapshot {
    fn from(rows: Rows) -> Self {
        let (desired, invalid) = Desired::assemble(&rows);
        Self { rows, desired, invalid }
    }
}

/// No row of the table meets the condition, or the transaction fails.
fn none(table: &str, conditions: impl IntoIterator<Item = Condition>) -> Operation {
    let wait = Operation::wait(table, &["_uuid"], Until::Equal, [], Duration::ZERO);
    conditions.into_iter().fold(wait, Operation::filter)
}

fn taken(what: &'static str, value: impl ToString, kind: Kind, by: &Name) -> EditError {
    RowError::Taken { what, value: value.to_string(), kind, by: by.clone() }.into()
}

/// The lowest number from 1 that is not used.
fn lowest_free(used: &BTreeSet<i64>) -> i64 {
    (1..).find(|n| !used.contains(n)).unwrap_or(i64::MAX)
}

impl Snapshot {
    /// The results of [`super::select_all`].
    #[must_use]
    pub fn from_select(results: &[OpResult]) -> Self {
        Rows::from_select(results).into()
    }

    /// What daemons report, by node and router. Rows that do not parse are left out.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let mut all: Vec<_> =
            self.rows.of(table::STATUS).filter_map(|(_, row)| Status::parse(row).ok()).collect();
        all.sort_by(|a, b| (&a.router, &a.node).cmp(&(&b.router, &b.node)));
        all
    }

    fn free(&self, kind: Kind, name: &Name) -> Result<(), EditError> {
        match self.rows.named(kind.table(), name.as_str()) {
            Some(_) => Err(EditError::Exists { kind, name: name.clone() }),
            None => Ok(()),
        }
    }

    /// The valid thing of that name that `found` holds; a row that was left out says why.
    pub(super) fn known<'a, T>(
        &self,
        found: Option<&'a T>,
        kind: Kind,
        name: &Name,
    ) -> Result<&'a T, EditError> {
        found.ok_or_else(|| {
            let of_name = |row: &&InvalidRow| row.kind == kind && row.name == name.as_str();
            match self.invalid.iter().find(of_name) {
                Some(row) => EditError::Invalid(Box::new(row.clone())),
                None => EditError::Unknown { kind, name: name.to_string() },
            }
        })
    }

    fn segment(&self, name: &Name) -> Result<&Segment, EditError> {
        self.known(self.desired.segments.get(name), Kind::Segment, name)
    }

    fn router(&self, name: &Name) -> Result<&Router, EditError> {
        self.known(self.desired.routers.get(name), Kind::Router, name)
    }

    fn network(&self, name: &Name) -> Result<Uuid, EditError> {
        Ok(self.known(self.desired.networks.get(name), Kind::Network, name)?.uuid)
    }

    /// A network.
    pub fn add_network(&self, name: &Name) -> Result<Vec<Operation>, EditError> {
        self.free(Kind::Network, name)?;
        Ok(vec![Operation::insert(table::NETWORK).set("name", name.as_str())])
    }

    /// A segment of a network, on a VLAN that no other one has.
    pub fn add_segment(
        &self,
        name: &Name,
        network: &Name,
        vlan: VlanId,
    ) -> Result<Vec<Operation>, EditError> {
        self.free(Kind::Segment, name)?;
        let network = self.network(network)?;
        if let Some(other) = self.desired.segments.values().find(|other| other.vlan == vlan) {
            return Err(taken("VLAN", vlan, Kind::Segment, &other.name));
        }
        let row = Operation::insert(table::SEGMENT)
            .set("name", name.as_str())
            .set("network", network)
            .set("vlan", i64::from(vlan.get()));
        Ok(vec![row])
    }

    /// A router of a network, with the lowest free number.
    pub fn add_router(
        &self,
        name: &Name,
        network: &Name,
        policy: &RouterPolicy,
    ) -> Result<Vec<Operation>, EditError> {
        self.free(Kind::Router, name)?;
        let network = self.network(network)?;
        let used = self.rows.of(table::ROUTER).filter_map(|(_, row)| row.int("id").ok()).collect();
        let id = RouterId::try_from(lowest_free(&used))
            .map_err(|_| EditError::Full { what: "router id", max: RouterId::MAX })?;
        let row = Operation::insert(table::ROUTER)
            .set("name", name.as_str())
            .set("network", network)
            .set("id", i64::from(id.get()));
        let row = policy.columns().into_iter().fold(row, |row, (column, value)| row.set(column, value));
        Ok(vec![row])
    }

    /// A router's policy becomes another one; nothing if it is that already.
    pub fn set_router(&self, name: &Name, change: &PolicyChange) -> Result<Vec<Operation>, EditError> {
        let router = self.router(name)?;
        let policy = change.applied(&router.policy);
        if policy == router.policy {
            return Ok(Vec::new());
        }
        // What the change leaves out must still be what it was.
        let before = router.policy.columns();
        let columns = before.clone().map(|(column, _)| column);
        let same = Operation::wait(
            table::ROUTER,
            &columns,
            Until::Equal,
            [before.into_iter().collect::<Row>()],
            Duration::ZERO,
        );
        let update = Operation::update(table::ROUTER).filter(Rows::is(router.uuid));
        let update = policy.columns().into_iter().fold(update, |row, (column, value)| row.set(column, value));
        Ok(vec![same.filter(Rows::is(router.uuid)), update])
    }

    /// A vif of a router, with the lowest number that is free there.
    pub fn add_vif(
        &self,
        name: &Name,
        router: &Name,
        attachment: &Attachment,
        mac: MacAddr,
    ) -> Result<Vec<Operation>, EditError> {
        self.free(Kind::Vif, name)?;
        if self.rows.named(table::ACCESS, name.as_str()).is_some() {
            return Err(taken("name", name, Kind::Access, name));
        }
        let router = self.router(router)?;
        let mac = usable_mac(mac)?;
        if let Some(other) = self.desired.vifs.values().find(|other| other.mac == mac) {
            return Err(taken("MAC address", mac, Kind::Vif, &other.name));
        }
        if let Some(other) = self.desired.access.values().find(|other| other.macs.contains(&mac)) {
            return Err(taken("MAC address", mac, Kind::Access, &other.name));
        }
        let used = self.rows.of(table::VIF).filter(|(_, row)| row.uuid("router") == Ok(router.uuid));
        let used = used.filter_map(|(_, row)| row.int("number").ok()).collect();
        let number = VifNumber::try_from(lowest_free(&used))
            .map_err(|_| EditError::Full { what: "vif number", max: VifNumber::MAX })?;
        let mut operations = vec![
            none(table::ACCESS, [Condition::eq("name", name.as_str())]),
            none(table::ACCESS, [Condition::includes("macs", mac.to_string())]),
        ];
        let row = Operation::insert(table::VIF)
            .set("name", name.as_str())
            .set("router", router.uuid)
            .set("number", i64::from(number.get()))
            .set("mac", mac.to_string());
        let row = match attachment {
            Attachment::Segment(segment) => {
                let segment = self.segment(segment)?;
                same_network(segment, router)?;
                row.set("kind", "data").set("segment", segment.uuid)
            }
            Attachment::Control => {
                if let Some(other) = self.desired.control_vif(&router.name) {
                    let what = "the place of the control vif of router";
                    return Err(taken(what, &router.name, Kind::Vif, &other.name));
                }
                let same = [Condition::eq("router", router.uuid), Condition::eq("kind", "control")];
                operations.push(none(table::VIF, same));
                row.set("kind", "control")
            }
        };
        operations.push(row);
        Ok(operations)
    }

    /// An access port on a segment, and the addresses of its host, which must be no vif's.
    pub fn add_access(
        &self,
        name: &Name,
        segment: &Name,
        macs: &BTreeSet<MacAddr>,
    ) -> Result<Vec<Operation>, EditError> {
        self.free(Kind::Access, name)?;
        if self.rows.named(table::VIF, name.as_str()).is_some() {
            return Err(taken("name", name, Kind::Vif, name));
        }
        let segment = self.segment(segment)?.uuid;
        let mut operations = vec![none(table::VIF, [Condition::eq("name", name.as_str())])];
        for mac in macs {
            let mac = usable_mac(*mac)?;
            if let Some(vif) = self.desired.vifs.values().find(|vif| vif.mac == mac) {
                return Err(taken("MAC address", mac, Kind::Vif, &vif.name));
            }
            operations.push(none(table::VIF, [Condition::eq("mac", mac.to_string())]));
        }
        let row = Operation::insert(table::ACCESS)
            .set("name", name.as_str())
            .set("segment", segment)
            .set("macs", Datum::set(macs.iter().map(MacAddr::to_string)));
        operations.push(row);
        Ok(operations)
    }

    /// An uplink of a node, which is created with its first one.
    pub fn add_uplink(&self, node: &Name, port: &str) -> Result<Vec<Operation>, EditError> {
        let port = port_name(port)?;
        let uplink = Datum::set([port]);
        match self.rows.named(table::NODE, node.as_str()) {
            Some((_, row)) if row.set_str("uplinks").is_ok_and(|ports| ports.contains(port)) => {
                Err(EditError::UplinkExists { node: node.clone(), port: port.to_owned() })
            }
            Some((uuid, _)) => {
                let there = Operation::wait(table::NODE, &["name"], Until::NotEqual, [], Duration::ZERO);
                let add = Operation::mutate(table::NODE).mutation("uplinks", Mutator::Insert, uplink);
                Ok(vec![there.filter(Rows::is(uuid)), add.filter(Rows::is(uuid))])
            }
            None => {
                Ok(vec![Operation::insert(table::NODE).set("name", node.as_str()).set("uplinks", uplink)])
            }
        }
    }

    /// Takes an uplink from a node. A node without uplinks goes too.
    pub fn remove_uplink(&self, node: &str, port: &str) -> Result<Vec<Operation>, EditError> {
        let Some((uuid, row)) = self.rows.named(table::NODE, node) else {
            return Err(EditError::Unknown { kind: Kind::Node, name: node.to_owned() });
        };
        if !row.set_str("uplinks").is_ok_and(|ports| ports.contains(port)) {
            return Err(EditError::NoUplink { node: node.to_owned(), port: port.to_owned() });
        }
        let take = Operation::mutate(table::NODE).mutation("uplinks", Mutator::Delete, Datum::set([port]));
        let last = Operation::delete(table::NODE).filter(Condition::eq("uplinks", Datum::empty()));
        Ok(vec![take.filter(Rows::is(uuid)), last.filter(Rows::is(uuid))])
    }

    /// Removes a thing that nothing refers to; an invalid row too, by the name that stands there.
    pub fn remove(&self, kind: Kind, name: &str) -> Result<Vec<Operation>, EditError> {
        let Some((uuid, _)) = self.rows.named(kind.table(), name) else {
            return Err(EditError::Unknown { kind, name: name.to_owned() });
        };
        let users = self.users(kind, uuid);
        if !users.is_empty() {
            return Err(EditError::InUse { kind, name: name.to_owned(), users: users.join(", ") });
        }
        let mut operations = vec![Operation::delete(kind.table()).filter(Rows::is(uuid))];
        if kind == Kind::Router {
            operations.push(Operation::delete(table::STATUS).filter(Condition::eq("router", name)));
        }
        Ok(operations)
    }

    /// Kinds and names of what refers to a row, in order.
    fn users(&self, kind: Kind, uuid: Uuid) -> Vec<String> {
        let columns: &[(Kind, &str)] = match kind {
            Kind::Network => {
                &[(Kind::Segment, "network"), (Kind::Router, "network"), (Kind::Class, "network")]
            }
            Kind::Segment => &[(Kind::Vif, "segment"), (Kind::Access, "segment")],
            Kind::Router => &[(Kind::Vif, "router")],
            Kind::Node | Kind::Vif | Kind::Access | Kind::Class => &[],
        };
        let mut users = Vec::new();
        for (user, column) in columns {
            let refers = |row: &ovsdb::Row| row.set_uuid(column).is_ok_and(|refs| refs.contains(&uuid));
            let rows = self.rows.of(user.table()).filter(|(_, row)| refers(row));
            let mut names: Vec<_> =
                rows.map(|(_, row)| format!("{user} {}", row.str("name").unwrap_or("?"))).collect();
            names.sort();
            users.append(&mut names);
        }
        users
    }
}

/// The one row of settings, for a database that was just created.
#[must_use]
pub fn first_row() -> Vec<Operation> {
    vec![Operation::insert(table::XENFLOW).set("external_ids", Datum::map([("created-by", "xenflow")]))]
}
