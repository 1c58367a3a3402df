//! The XenFlow database as types: what operators ask for (networks, segments, routers, vifs, access ports,
//! uplinks) and what daemons report.
//!
//! Owns the names of its tables and columns ([`table`]), a copy of its rows ([`Rows`]), parsing each row once
//! into a type ([`row`]), the desired state of a node ([`Desired`]), the edits of the command line ([`edit`], [`apply`])
//! and the report of a daemon ([`status`]). Pure: connections are the business of the callers.
//! `schema/README.md` describes every column.

pub mod admission;
pub mod apply;
pub mod capacity;
pub mod class;
pub mod contract;
pub mod description;
pub mod desired;
pub mod edit;
pub mod external_ids;
pub mod happened;
pub mod location;
pub mod migration;
pub mod node_status;
pub mod policy;
pub mod rbac;
pub mod retire;
pub mod row;
mod rows;
pub mod statistics;
pub mod status;
pub mod uplink;
mod words;

pub use class::TrafficClass;
pub use contract::{Contract, Rate};
pub use desired::{Desired, InvalidRow};
pub use migration::Migration;
pub use node_status::NodeStatus;
pub use policy::RouterPolicy;
pub use row::{Access, Attachment, Kind, RouterId, RowError, Segment, Vif, VifNumber};
pub use rows::Rows;
pub use statistics::Statistics;
pub use status::{Counts, SessionState, Status};

/// Name of the database.
pub const DATABASE: &str = "XenFlow";

/// Version of the schema: databases of the same first two numbers fit.
pub const VERSION: &str = "0.6.0";

/// Names of the tables.
pub mod table {
    /// One row at most: settings of the whole database.
    pub const XENFLOW: &str = "XenFlow";
    /// Hosts and their uplinks.
    pub const NODE: &str = "Node";
    /// Virtual networks.
    pub const NETWORK: &str = "Network";
    /// Virtual links, one VLAN each.
    pub const SEGMENT: &str = "Segment";
    /// Virtual routers.
    pub const ROUTER: &str = "Router";
    /// Interfaces of routers.
    pub const VIF: &str = "Vif";
    /// Ports of end hosts.
    pub const ACCESS: &str = "Access";
    /// Parts of a network's packets that are treated alike.
    pub const TRAFFIC_CLASS: &str = "Traffic_Class";
    /// Which node a MAC address is behind.
    pub const LOCATION: &str = "Location";
    /// Routers on their way from one node to another.
    pub const MIGRATION: &str = "Migration";
    /// What daemons report of their nodes.
    pub const NODE_STATUS: &str = "Node_Status";
    /// What daemons report of routers.
    pub const STATUS: &str = "Status";
    /// What daemons count.
    pub const STATISTICS: &str = "Statistics";
}

/// Tables and columns that make the desired state, without `Status`: what a daemon watches.
const DESIRED_COLUMNS: [(&str, &[&str]); 8] = [
    (table::XENFLOW, &["next_cfg"]),
    (table::NODE, &["name", "uplinks", capacity::COLUMN]),
    (table::NETWORK, &["name", "min_bps", "max_bps"]),
    (table::SEGMENT, &["name", "network", "vlan"]),
    (table::ROUTER, &["name", "network", "id", "fastpath", "max_routes", "punt_rate"]),
    (table::VIF, &["name", "router", "number", "kind", "segment", "mac"]),
    (table::ACCESS, &["name", "segment", "macs"]),
    (
        table::TRAFFIC_CLASS,
        &["name", "network", "priority", "dscp", "protocol", "ports", "min_bps", "max_bps"],
    ),
];

/// Tables and columns that a daemon keeps a copy of on its own host: the desired state, and what is where.
pub(crate) fn kept_tables() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    DESIRED_COLUMNS.into_iter().chain([(table::LOCATION, &location::COLUMNS[..])])
}

/// The columns of a table of the desired state.
fn columns_of(table: &str) -> &'static [&'static str] {
    DESIRED_COLUMNS.iter().find(|(known, _)| *known == table).map_or(&[], |(_, columns)| columns)
}

/// The schema, as `ovsdb-tool create` reads it.
#[must_use]
pub const fn schema() -> &'static str {
    include_str!("../../schema/xenflow.ovsschema")
}

/// What a daemon watches: everything that [`Desired::assemble`] reads.
#[must_use]
pub fn monitor() -> ovsdb::Monitor {
    let empty = ovsdb::Monitor::new(DATABASE);
    DESIRED_COLUMNS.iter().fold(empty, |monitor, (table, columns)| monitor.table(*table, columns))
}

/// Reads every row, `Status` and `Node_Status` included; [`Rows::from_select`] takes the results.
#[must_use]
pub fn select_all() -> Vec<ovsdb::Operation> {
    rows::SELECTED.iter().map(|table| ovsdb::Operation::select(*table)).collect()
}

#[cfg(test)]
mod tests;
