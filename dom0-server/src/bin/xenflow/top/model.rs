//! Rates out of looks at counters. Pure: samples in, rows out.
//!
//! A daemon writes its counters every few seconds, all at once, and only those that changed. So the time between two
//! values of a counter is that between two writes of its node, not that between two looks; what was not written at
//! the last write has not moved.

use std::collections::{BTreeMap, BTreeSet};

use dom0_server::counters::Scope;
use dom0_server::db::Migration;
use dom0_server::db::policy::PuntClass;
use dom0_server::shaper::report::QueueReport;
use serde::Serialize;

use super::sample::{Key, Sample};

/// How often daemons write by default, in milliseconds.
const REPORT_MS: u64 = 5_000;
/// After so long without a write of its node nothing moves there, in milliseconds.
const QUIET_MS: u64 = 3 * REPORT_MS;

/// Changes a second of the counters of one thing on one node.
type Rates = BTreeMap<String, f64>;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct NetworkRow {
    pub(super) name: String,
    /// Into the network, on all nodes: bit/s.
    pub(super) in_bps: f64,
    pub(super) out_bps: f64,
    pub(super) in_pps: f64,
    pub(super) out_pps: f64,
    /// The contract, in bit/s and for each uplink. How much of it is used is not known here: what goes out is counted at
    /// all ports of all nodes, those inside a host too.
    pub(super) min_bps: Option<u64>,
    pub(super) max_bps: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RouterRow {
    pub(super) name: String,
    pub(super) network: String,
    /// The node with its session; empty if none reports.
    pub(super) node: String,
    /// `up`, `syncing`, `down`, or `-` if no node reports.
    pub(super) session: &'static str,
    /// How long the session is so, in seconds.
    pub(super) age_s: u64,
    pub(super) forwarded_bps: f64,
    pub(super) forwarded_pps: f64,
    pub(super) routes: u64,
    /// Those that came, changed or went: one that flaps counts each time.
    pub(super) routes_per_s: f64,
    /// Packets/s for the guest, by class.
    pub(super) punted_pps: BTreeMap<&'static str, f64>,
    /// Of them, what meters dropped.
    pub(super) policed_pps: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct NodeRow {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) switch: String,
    /// Seconds since its last report; `None`: never.
    pub(super) seen_s: Option<u64>,
    pub(super) problems: usize,
    /// In by its uplinks, admitted: bit/s.
    pub(super) in_bps: f64,
    pub(super) out_bps: f64,
    /// Packets/s that its ports refused.
    pub(super) dropped_pps: f64,
}

/// A network's or class's part of an uplink of this host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct UplinkRow {
    pub(super) port: String,
    pub(super) network: String,
    pub(super) class: Option<String>,
    pub(super) min_bps: u64,
    pub(super) max_bps: Option<u64>,
    pub(super) obtained_bps: u64,
    pub(super) expected_bps: u64,
    pub(super) fitness: Option<f64>,
    pub(super) state: String,
}

/// What one screen shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct View {
    pub(super) at_ms: u64,
    /// Milliseconds between the two looks; 0 after the first.
    pub(super) elapsed_ms: u64,
    pub(super) networks: Vec<NetworkRow>,
    pub(super) routers: Vec<RouterRow>,
    pub(super) nodes: Vec<NodeRow>,
    pub(super) migrations: Vec<Migration>,
    pub(super) uplinks: Vec<UplinkRow>,
}

/// The last look, and what moved at it.
#[derive(Debug, Default)]
pub(super) struct Model {
    last: Option<Sample>,
    rates: BTreeMap<Key, Rates>,
    elapsed_ms: u64,
    has_moved: bool,
}

fn uplinks(now: &Sample) -> Vec<UplinkRow> {
    let row = |port: &str, queue: &QueueReport| UplinkRow {
        port: port.to_owned(),
        network: queue.network.clone(),
        class: queue.class.clone(),
        min_bps: queue.min_bps,
        max_bps: queue.max_bps,
        obtained_bps: queue.obtained_bps,
        expected_bps: queue.expected_bps,
        fitness: queue.fitness,
        state: queue.state.clone(),
    };
    let rows = now.links.iter().flat_map(|link| link.queues.iter().map(move |queue| row(&link.port, queue)));
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|a, b| (&a.port, &a.network, &a.class).cmp(&(&b.port, &b.network, &b.class)));
    rows
}

/// The last write of each node.
fn writes(sample: &Sample) -> BTreeMap<&str, u64> {
    let mut writes = BTreeMap::new();
    for ((node, _, _), counted) in &sample.counted {
        let last = writes.entry(node.as_str()).or_insert(0);
        *last = counted.updated_ms.max(*last);
    }
    writes
}

/// A sum that is 0 of nothing; that of the library is -0.
fn total<'a>(rates: impl Iterator<Item = &'a f64>) -> f64 {
    rates.fold(0.0, |sum, rate| sum + rate)
}

impl Model {
    /// A node has written between the last two looks.
    pub(super) const fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// Takes the next look.
    pub(super) fn look(&mut self, new: Sample) {
        if let Some(old) = self.last.take() {
            self.elapsed_ms = new.at_ms.saturating_sub(old.at_ms);
            self.compare(&old, &new);
        }
        self.last = Some(new);
    }

    fn compare(&mut self, old: &Sample, new: &Sample) {
        let (before, after) = (writes(old), writes(new));
        // Nodes that wrote, and the time that their values are of, in seconds.
        let mut spans = BTreeMap::new();
        for (node, write) in &after {
            let Some(span) = before.get(node).and_then(|before| write.checked_sub(*before)) else { continue };
            // One that was idle for long has counted since its last turn only.
            let span = span.min(self.elapsed_ms.saturating_add(REPORT_MS));
            if span > 0 {
                spans.insert(*node, span as f64 / 1000.0);
            }
        }
        self.has_moved = !spans.is_empty();
        let is_quiet =
            |node: &str| after.get(node).is_none_or(|write| new.at_ms.saturating_sub(*write) > QUIET_MS);
        self.rates.retain(|key, _| new.counted.contains_key(key) && !is_quiet(&key.0));
        for (key, counted) in &new.counted {
            let Some(span) = spans.get(key.0.as_str()) else { continue };
            // What was not there began at a time that nobody knows.
            let Some(last) = old.counted.get(key) else { continue };
            let began_anew = last.since_ms != counted.since_ms;
            let rate = |(name, value): (&String, &u64)| {
                let base = last.counters.get(name).copied().filter(|base| !began_anew && base <= value);
                (name.clone(), (value - base.unwrap_or(0)) as f64 / span)
            };
            self.rates.insert(key.clone(), counted.counters.iter().map(rate).collect());
        }
    }

    /// The sum of a counter's rates over nodes.
    fn sum(&self, scope: Scope, name: &str, counter: impl Fn(&str) -> bool) -> f64 {
        let of = self.rates.iter().filter(|((_, s, n), _)| *s == scope && n == name);
        total(of.flat_map(|(_, rates)| rates).filter(|(name, _)| counter(name)).map(|(_, rate)| rate))
    }

    /// Rows, by name.
    pub(super) fn view(&self) -> View {
        let Some(now) = &self.last else { return View::default() };
        View {
            at_ms: now.at_ms,
            elapsed_ms: self.elapsed_ms,
            networks: self.networks(now),
            routers: self.routers(now),
            nodes: self.nodes(now),
            migrations: now.migrations.clone(),
            uplinks: uplinks(now),
        }
    }

    fn networks(&self, now: &Sample) -> Vec<NetworkRow> {
        let row = |(name, network): (&String, &super::sample::Network)| {
            let rate = |counter: &str| self.sum(Scope::Network, name, |known| known == counter);
            NetworkRow {
                name: name.clone(),
                in_bps: rate("in_bytes") * 8.0,
                out_bps: rate("out_bytes") * 8.0,
                in_pps: rate("in_packets"),
                out_pps: rate("out_packets"),
                min_bps: network.min_bps,
                max_bps: network.max_bps,
            }
        };
        now.networks.iter().map(row).collect()
    }

    fn routers(&self, now: &Sample) -> Vec<RouterRow> {
        let row = |(name, network): (&String, &String)| {
            let rate = |counter: &str| self.sum(Scope::Router, name, |known| known == counter);
            let report = now.reports.get(name);
            let punted = PuntClass::ALL.iter().map(|class| {
                let class = class.as_str();
                (class, rate(&format!("punted_{class}_packets")))
            });
            RouterRow {
                name: name.clone(),
                network: network.clone(),
                node: report.map_or(String::new(), |report| report.node.clone()),
                session: report.map_or("-", |report| report.state.as_str()),
                age_s: report.map_or(0, |report| now.at_ms.saturating_sub(report.since_ms) / 1000),
                forwarded_bps: rate("forwarded_bytes") * 8.0,
                forwarded_pps: rate("forwarded_packets"),
                routes: report.map_or(0, |report| report.routes),
                routes_per_s: rate("routes_changed"),
                punted_pps: punted.collect(),
                policed_pps: self.sum(Scope::Router, name, |known| known.starts_with("policed_")),
            }
        };
        now.routers.iter().map(row).collect()
    }

    fn nodes(&self, now: &Sample) -> Vec<NodeRow> {
        let counting = now.counted.keys().map(|(node, _, _)| node);
        let names: BTreeSet<&String> = now.nodes.keys().chain(counting).collect();
        let row = |name: &String| {
            let rate = |scopes: &[Scope], counter: &dyn Fn(&str) -> bool| -> f64 {
                let own =
                    self.rates.iter().filter(|((node, scope, _), _)| node == name && scopes.contains(scope));
                total(
                    own.flat_map(|(_, rates)| rates).filter(|(name, _)| counter(name)).map(|(_, rate)| rate),
                )
            };
            let uplink = |counter: &str| rate(&[Scope::Uplink], &|known| known == counter) * 8.0;
            let refused = |known: &str| known.starts_with("dropped_") && known.ends_with("_packets");
            let node = now.nodes.get(name).cloned().unwrap_or_default();
            NodeRow {
                name: name.clone(),
                version: node.version,
                switch: node.switch,
                seen_s: node.seen_ms.map(|seen| now.at_ms.saturating_sub(seen) / 1000),
                problems: node.problems,
                in_bps: uplink("in_bytes"),
                out_bps: uplink("out_bytes"),
                dropped_pps: rate(&[Scope::Vif, Scope::Access, Scope::Uplink, Scope::Node], &refused),
            }
        };
        names.into_iter().map(row).collect()
    }
}
