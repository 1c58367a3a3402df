//! What a daemon reports of its node: rows of `Node_Status`.

use std::collections::{BTreeMap, BTreeSet};

use ovsdb::{Condition, Datum, Operation, Row};
use xenflow_proto::Name;

use super::capacity::{self, Capacities};
use super::{RowError, table};

/// Longest version, kind of a datapath or address, in characters; the schema's limit.
const WORD_MAX: usize = 63;
/// The column of [`NodeStatus::prepared`].
pub const PREPARED: &str = "prepared";

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name.
    pub node: Name,
    /// Version of its daemon.
    pub version: String,
    /// Version of Open vSwitch; empty: not known.
    pub ovs_version: String,
    /// `system` or `netdev`; empty: not known.
    pub datapath: String,
    /// When the daemon began: milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// When it last wrote this: milliseconds since the Unix epoch.
    pub seen_ms: u64,
    /// The greatest `XenFlow.next_cfg` whose state the switch has confirmed. None, of a daemon that has not confirmed any
    /// yet: what stands there stays.
    pub cfg: Option<i64>,
    /// What is not as it should be, in words; as [`bounded`](super::status::bounded) makes them.
    pub problems: BTreeSet<String>,
    /// MTU in bytes of its uplinks that are on the bridge.
    pub uplink_mtus: BTreeMap<String, u32>,
    /// What its uplinks carry, where it is known.
    pub uplink_capacity: Capacities,
    /// By what its uplinks are shaped, and behind `: ` why not as they should be.
    pub shaping: BTreeMap<String, String>,
    /// Where nodes that a router leaves connect to; empty: it takes no planned moves.
    pub address: String,
}

impl NodeStatus {
    /// The columns of a row, `node` first.
    pub const COLUMNS: [&'static str; 13] = [
        "node",
        "version",
        "ovs_version",
        "datapath",
        "started_ms",
        "seen_ms",
        "cfg",
        "problems",
        "uplink_mtus",
        capacity::COLUMN,
        "shaping",
        "address",
        PREPARED,
    ];
    /// The columns that a waiting command reads.
    pub const WAITED_FOR: [&'static str; 3] = ["node", "cfg", "seen_ms"];

    /// Reads a row of `Node_Status`.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn parse(row: &Row) -> Result<Self, RowError> {
        let count = |column: &str| Ok::<_, RowError>(u64::try_from(row.int(column)?).unwrap_or_default());
        Ok(Self {
            node: row.str("node")?.parse()?,
            version: row.str("version")?.to_owned(),
            ovs_version: row.str("ovs_version")?.to_owned(),
            datapath: row.str("datapath")?.to_owned(),
            started_ms: count("started_ms")?,
            seen_ms: count("seen_ms")?,
            cfg: Some(row.int("cfg")?),
            problems: row.set_str("problems")?.into_iter().map(str::to_owned).collect(),
            uplink_mtus: row
                .map_str_int("uplink_mtus")?
                .into_iter()
                .map(|(port, mtu)| (port.to_owned(), u32::try_from(mtu).unwrap_or_default()))
                .collect(),
            uplink_capacity: capacity::parse(row)?,
            shaping: row
                .map_str_str("shaping")?
                .into_iter()
                .map(|(port, words)| (port.to_owned(), words.to_owned()))
                .collect(),
            address: row.str("address")?.to_owned(),
        })
    }

    /// Changes the node's row, if it has one; the count of the result says so. `node` itself is left alone: a server may
    /// let a node write only rows that are its own before and after.
    #[must_use]
    pub fn update(&self) -> Operation {
        self.columns(Operation::update(table::NODE_STATUS).filter(self.is_own()))
    }

    /// The node's first row. Fails if it has one.
    #[must_use]
    pub fn insert(&self) -> Operation {
        self.columns(Operation::insert(table::NODE_STATUS).set("node", self.node.as_str()))
    }

    /// Says in a node's row for which migrations its datapath is prepared, whatever else is reported.
    #[must_use]
    pub fn prepare(node: &Name, numbers: &BTreeSet<u64>) -> Operation {
        let numbers = numbers.iter().filter_map(|number| i64::try_from(*number).ok());
        Operation::update(table::NODE_STATUS)
            .filter(Condition::eq("node", node.as_str()))
            .set(PREPARED, Datum::set(numbers))
    }

    /// The node of a row, and for which migrations its datapath is prepared.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn prepared(row: &Row) -> Result<(Name, BTreeSet<u64>), RowError> {
        let numbers = row.set_int(PREPARED)?.into_iter().filter_map(|number| u64::try_from(number).ok());
        Ok((row.str("node")?.parse()?, numbers.collect()))
    }

    fn is_own(&self) -> Condition {
        Condition::eq("node", self.node.as_str())
    }

    fn columns(&self, operation: Operation) -> Operation {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let word = |text: &str| text.chars().take(WORD_MAX).collect::<String>();
        let operation = operation
            .set("version", word(&self.version))
            .set("ovs_version", word(&self.ovs_version))
            .set("datapath", word(&self.datapath))
            .set("started_ms", number(self.started_ms))
            .set("seen_ms", number(self.seen_ms))
            .set("address", word(&self.address))
            .set("problems", Datum::set(&self.problems))
            .set(
                "uplink_mtus",
                Datum::map(self.uplink_mtus.iter().map(|(port, mtu)| (port.as_str(), i64::from(*mtu)))),
            )
            .set(capacity::COLUMN, capacity::datum(&self.uplink_capacity))
            .set(
                "shaping",
                Datum::map(self.shaping.iter().map(|(port, words)| (port.as_str(), words.as_str()))),
            );
        match self.cfg {
            Some(cfg) => operation.set("cfg", cfg),
            None => operation,
        }
    }
}
