//! What the database says at one look: counters, reports, contracts. Reads rows into types; what they come to is
//! `model`'s business.

use std::collections::BTreeMap;

use dom0_server::counters::Scope;
use dom0_server::db::edit::Snapshot;
use dom0_server::db::{Migration, NodeStatus, Rows, SessionState, Statistics, Status, monitor, table};
use dom0_server::shaper::report::LinkReport;
use ovsdb::Monitor;

/// What is watched: all that [`Sample::of`] reads.
pub(super) fn watched() -> Monitor {
    monitor()
        .table(table::STATISTICS, &Statistics::COLUMNS)
        .table(table::STATUS, &Status::COLUMNS)
        .table(table::MIGRATION, &Migration::COLUMNS)
        .table(table::NODE_STATUS, &NodeStatus::COLUMNS)
}

/// Who counts what.
pub(super) type Key = (String, Scope, String);

/// Counters of one thing on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) since_ms: u64,
    pub(super) updated_ms: u64,
    pub(super) counters: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Network {
    /// Bit/s.
    pub(super) min_bps: Option<u64>,
    /// Bit/s.
    pub(super) max_bps: Option<u64>,
}

/// A router's session: the best of what nodes report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) node: String,
    pub(super) state: SessionState,
    pub(super) since_ms: u64,
    pub(super) routes: u64,
}

/// What a daemon says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) version: String,
    pub(super) switch: String,
    /// `None`: it has never reported.
    pub(super) seen_ms: Option<u64>,
    pub(super) problems: usize,
}

/// One look.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sample {
    /// When, by this host's clock: milliseconds since the Unix epoch.
    pub(super) at_ms: u64,
    pub(super) counted: BTreeMap<Key, Counted>,
    pub(super) networks: BTreeMap<String, Network>,
    /// Routers and their networks.
    pub(super) routers: BTreeMap<String, String>,
    pub(super) reports: BTreeMap<String, Report>,
    pub(super) migrations: Vec<Migration>,
    pub(super) nodes: BTreeMap<String, Node>,
    /// Links of this host, as its daemon says; none if there is no daemon.
    pub(super) links: Vec<LinkReport>,
}

impl Sample {
    /// Rows that do not parse are left out, as daemons do.
    pub(super) fn of(rows: &Rows, links: Vec<LinkReport>, at_ms: u64) -> Self {
        let now = Snapshot::from(rows.clone());
        let mut sample = Self { at_ms, links, ..Self::default() };
        for (name, network) in &now.desired.networks {
            let rate = |rate: Option<dom0_server::db::Rate>| rate.map(dom0_server::db::Rate::bps);
            let (min_bps, max_bps) = (rate(network.contract.min()), rate(network.contract.max()));
            sample.networks.insert(name.to_string(), Network { min_bps, max_bps });
        }
        for (name, router) in &now.desired.routers {
            sample.routers.insert(name.to_string(), router.network.to_string());
        }
        for report in now.status() {
            let new = Report {
                node: report.node.to_string(),
                state: report.state,
                since_ms: report.since_ms,
                routes: report.counts.routes,
            };
            let known = sample.reports.get(report.router.as_str());
            if known.is_none_or(|known| (known.state, known.since_ms) < (new.state, new.since_ms)) {
                sample.reports.insert(report.router.to_string(), new);
            }
        }
        for statistics in rows.of(table::STATISTICS).filter_map(|(_, row)| Statistics::parse(row).ok()) {
            let Statistics { node, place: (scope, name), counters, since_ms, updated_ms } = statistics;
            let counted = Counted { since_ms, updated_ms, counters };
            sample.counted.insert((node.to_string(), scope, name), counted);
        }
        sample.migrations = Migration::read(rows);
        sample.nodes = now.desired.uplinks.keys().map(|name| (name.to_string(), Node::default())).collect();
        sample.nodes.extend(now.nodes().into_iter().map(node));
        sample
    }
}

fn node(status: NodeStatus) -> (String, Node) {
    let NodeStatus { node, version, ovs_version: switch, seen_ms, problems, .. } = status;
    (node.to_string(), Node { version, switch, seen_ms: Some(seen_ms), problems: problems.len() })
}
