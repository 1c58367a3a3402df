//! Rows `QoS` and `Queue` of the `Open_vSwitch` database: the driver `ovs` is told by them, and both drivers keep the numbers of
//! the queues there. Pure: rows in, operations out.

use std::collections::{BTreeMap, BTreeSet};

use ovsdb::{Atom, Condition, Datum, Monitor, Operation, Row, Uuid};
use xenflow_qos::Bps;
use xenflow_qos::law::{FLOOR, Setting};

use super::division::Division;
use super::plan::QueueOf;
use crate::db::Rows;

/// The database.
pub const OPEN_VSWITCH: &str = "Open_vSwitch";
const BRIDGE: &str = "Bridge";
const PORT: &str = "Port";
const INTERFACE: &str = "Interface";
const QOS: &str = "QoS";
const QUEUE: &str = "Queue";
/// In the `external_ids` of rows that are XenFlow's.
const OWNER: (&str, &str) = ("created-by", "xenflow");
/// In the `external_ids` of a `Queue`: its network.
pub const NETWORK_ID: &str = "xenflow-network";
/// In the `external_ids` of a `Queue`: its class, if it has one.
pub const CLASS_ID: &str = "xenflow-class";

/// Who shapes a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Open vSwitch.
    Htb,
    /// Nobody that Open vSwitch knows of.
    Noop,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Htb => "linux-htb",
            Self::Noop => "linux-noop",
        }
    }
}

/// A port that may be an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    uuid: Uuid,
    qos: Option<Uuid>,
    /// Name of its one interface, and its number in the host's kernel; none: it has several, or it is not there.
    pub interface: Option<(String, u32)>,
    /// Of its link; none: Open vSwitch does not know.
    pub speed: Option<Bps>,
    /// Its QoS row is somebody else's.
    pub is_foreign: bool,
    /// Its QoS row is XenFlow's.
    pub is_ours: bool,
}

/// What is watched.
#[must_use]
pub fn monitor() -> Monitor {
    Monitor::new(OPEN_VSWITCH)
        .table(BRIDGE, &["name", "ports", "datapath_type"])
        .table(PORT, &["name", "interfaces", "qos"])
        .table(INTERFACE, &["name", "ifindex", "link_speed", "ofport"])
        .table(QOS, &["type", "queues", "other_config", "external_ids"])
        .table(QUEUE, &["other_config", "external_ids"])
}

/// The datapath of a bridge forwards in `ovs-vswitchd`, where nothing shapes.
#[must_use]
pub fn is_userspace(rows: &Rows, bridge: &str) -> bool {
    rows.named(BRIDGE, bridge).is_some_and(|(_, row)| row.str("datapath_type") == Ok("netdev"))
}

fn is_ours(row: &Row) -> bool {
    row.map_get("external_ids", OWNER.0) == Ok(Some(OWNER.1))
}

/// The ports of a bridge, by name.
#[must_use]
pub fn ports(rows: &Rows, bridge: &str) -> BTreeMap<String, Port> {
    let Some((_, bridge)) = rows.named(BRIDGE, bridge) else { return BTreeMap::new() };
    let ports = bridge.set_uuid("ports").unwrap_or_default();
    let port = |uuid: Uuid| {
        let row = rows.get(PORT, uuid)?;
        let interfaces: Vec<_> = row.set_uuid("interfaces").ok()?.into_iter().collect();
        let interface = match interfaces.as_slice() {
            [one] => rows.get(INTERFACE, *one),
            _ => None,
        };
        let number = |row: &Row, column| row.opt_int(column).ok().flatten();
        let index = interface.and_then(|row| {
            let index = u32::try_from(number(row, "ifindex")?).ok().filter(|index| *index > 0)?;
            Some((row.str("name").ok()?.to_owned(), index))
        });
        let speed = interface.and_then(|row| u64::try_from(number(row, "link_speed")?).ok());
        let qos = row.opt_uuid("qos").ok().flatten();
        let is_ours = qos.and_then(|uuid| rows.get(QOS, uuid)).is_some_and(is_ours);
        let port = Port {
            uuid,
            qos,
            interface: index,
            speed: speed.filter(|speed| *speed > 0),
            is_foreign: qos.is_some() && !is_ours,
            is_ours,
        };
        Some((row.str("name").ok()?.to_owned(), port))
    };
    ports.into_iter().filter_map(port).collect()
}

/// The OpenFlow number of a port of one interface.
#[must_use]
pub fn ofport(rows: &Rows, interface: &str) -> Option<u32> {
    let (_, row) = rows.named(INTERFACE, interface)?;
    u32::try_from(row.opt_int("ofport").ok()??).ok()
}

/// The queues of a QoS row: number and row.
fn queues(rows: &Rows, qos: Uuid) -> BTreeMap<i64, Uuid> {
    rows.get(QOS, qos).and_then(|row| row.map_int_uuid("queues").ok()).unwrap_or_default()
}

/// What each queue of a port stands at, by number, as far as whole numbers say it.
#[must_use]
pub fn told(rows: &Rows, port: &Port) -> BTreeMap<u32, Setting> {
    let all = port.qos.map(|qos| queues(rows, qos)).unwrap_or_default();
    let setting = |(number, uuid): (i64, Uuid)| {
        let row = rows.get(QUEUE, uuid)?;
        let rate = |key| row.map_get("other_config", key).ok()??.parse().ok();
        let setting = Setting { rate: rate("min-rate")?, ceil: rate("max-rate")?, quantum: None };
        Some((u32::try_from(number).ok()?, setting))
    };
    all.into_iter().filter_map(setting).collect()
}

/// A row of `Queue` as it should be.
fn columns(kind: Kind, of: Option<&QueueOf>, setting: Setting) -> [(&'static str, Datum); 2] {
    let rates = [("min-rate", setting.rate), ("max-rate", setting.ceil)];
    // Rates with a fraction would be read as 0 (openvswitch/ovs-issues#277).
    let rates = rates.into_iter().filter(|_| kind == Kind::Htb).map(|(key, rate)| (key, rate.to_string()));
    let ids = of.into_iter().flat_map(|of| {
        let class = of.class.as_ref().map(|class| (CLASS_ID, class.to_string()));
        [Some((NETWORK_ID, of.network.to_string())), class].into_iter().flatten()
    });
    let ids = std::iter::once((OWNER.0, OWNER.1.to_owned())).chain(ids);
    [("other_config", Datum::map(rates)), ("external_ids", Datum::map(ids))]
}

/// Operations that make a port's rows as the division says; none if they are.
#[must_use]
pub fn operations(rows: &Rows, port: &Port, kind: Kind, division: &Division) -> Vec<Operation> {
    let nobody = Setting { rate: FLOOR, ceil: division.capacity, quantum: None };
    let mut wanted = BTreeMap::from([(0_i64, columns(kind, None, nobody))]);
    for leaf in division.leaves() {
        wanted.insert(leaf.number.into(), columns(kind, Some(&leaf.of), leaf.setting));
    }
    let standing = port.qos.map(|qos| queues(rows, qos)).unwrap_or_default();
    let mut operations = Vec::new();
    let mut places: BTreeMap<Atom, Atom> = BTreeMap::new();
    for (number, columns) in wanted {
        let known = standing.get(&number).and_then(|uuid| Some((*uuid, rows.get(QUEUE, *uuid)?)));
        let Some((uuid, row)) = known else {
            let name = format!("queue_{number}");
            let insert = Operation::insert(QUEUE).uuid_name(name.as_str());
            operations
                .push(columns.into_iter().fold(insert, |insert, (column, value)| insert.set(column, value)));
            places.insert(number.into(), Atom::NamedUuid(name.as_str().into()));
            continue;
        };
        places.insert(number.into(), uuid.into());
        let differs: Vec<_> =
            columns.into_iter().filter(|(column, value)| row.get(column) != Some(value)).collect();
        if !differs.is_empty() {
            let update = Operation::update(QUEUE).filter(Condition::uuid(uuid));
            operations
                .push(differs.into_iter().fold(update, |update, (column, value)| update.set(column, value)));
        }
    }
    let gone: BTreeSet<Uuid> = {
        let kept: BTreeSet<&Atom> = places.values().collect();
        standing.values().copied().filter(|uuid| !kept.contains(&Atom::from(*uuid))).collect()
    };
    let config = match kind {
        Kind::Htb => vec![("max-rate", division.capacity.to_string())],
        Kind::Noop => Vec::new(),
    };
    let columns = [
        ("type", Datum::from(kind.as_str())),
        ("other_config", Datum::map(config)),
        ("external_ids", Datum::map([OWNER])),
        ("queues", Datum::Map(places)),
    ];
    match port.qos.and_then(|uuid| Some((uuid, rows.get(QOS, uuid)?))) {
        Some((uuid, row)) => {
            let differs: Vec<_> =
                columns.into_iter().filter(|(column, value)| row.get(column) != Some(value)).collect();
            if !differs.is_empty() {
                let update = Operation::update(QOS).filter(Condition::uuid(uuid));
                operations.push(
                    differs.into_iter().fold(update, |update, (column, value)| update.set(column, value)),
                );
            }
        }
        None => {
            let insert = Operation::insert(QOS).uuid_name("qos");
            operations
                .push(columns.into_iter().fold(insert, |insert, (column, value)| insert.set(column, value)));
            let port = Operation::update(PORT).filter(Condition::uuid(port.uuid));
            operations.push(port.set("qos", Datum::named_uuid("qos")));
        }
    }
    // Both tables are roots: nobody else deletes what is not referred to.
    operations.extend(gone.into_iter().map(|uuid| Operation::delete(QUEUE).filter(Condition::uuid(uuid))));
    operations
}

/// Operations that take a port's rows away, if they are XenFlow's.
#[must_use]
pub fn clear(rows: &Rows, port: &Port) -> Vec<Operation> {
    let Some(qos) = port.qos.filter(|_| port.is_ours) else { return Vec::new() };
    let delete = |table, uuid| Operation::delete(table).filter(Condition::uuid(uuid));
    let mut operations =
        vec![Operation::update(PORT).filter(Condition::uuid(port.uuid)).set("qos", Datum::empty())];
    operations.push(delete(QOS, qos));
    operations.extend(queues(rows, qos).into_values().map(|uuid| delete(QUEUE, uuid)));
    operations
}
