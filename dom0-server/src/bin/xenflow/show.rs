//! `xenflow show router` and its like: one block for each thing, with what the daemons report of it.

use std::collections::BTreeMap;

use dom0_server::counters::Scope;
use dom0_server::db::edit::{EditError, Snapshot};
use dom0_server::db::policy::fast_path_str;
use dom0_server::db::row::{Network, Router};
use dom0_server::db::status::Unresolved;
use dom0_server::db::{Attachment, Kind, NodeStatus, Rate, Segment, Statistics, Status, Vif};
use serde_json::{Value, json};
use xenflow_proto::Name;

use crate::args::ShowCommand;
use crate::client::Client;
use crate::view::{ago, instant, line};
use crate::{Failure, output, view};

/// What the database says of everything.
struct Now {
    snapshot: Snapshot,
    status: Vec<Status>,
    statistics: Vec<Statistics>,
}

pub(crate) async fn run(client: &Client, what: &ShowCommand, json: bool) -> Result<(), Failure> {
    let snapshot = client.snapshot().await?;
    let now = Now { status: snapshot.status(), snapshot, statistics: client.statistics().await? };
    let desired = &now.snapshot.desired;
    match what {
        ShowCommand::Router { name } => {
            let routers = chosen(&desired.routers, Kind::Router, name.as_deref())?;
            print(json, &now, &routers, router_json, router_block);
        }
        ShowCommand::Segment { name } => {
            let segments = chosen(&desired.segments, Kind::Segment, name.as_deref())?;
            print(json, &now, &segments, segment_json, segment_block);
        }
        ShowCommand::Network { name } => {
            let networks = chosen(&desired.networks, Kind::Network, name.as_deref())?;
            print(json, &now, &networks, network_json, network_block);
        }
        ShowCommand::Node { name } => {
            let nodes = now.nodes();
            let nodes = chosen(&nodes, Kind::Node, name.as_deref())?;
            print(json, &now, &nodes, node_json, node_block);
        }
    }
    Ok(())
}

fn print<T>(
    as_json: bool,
    now: &Now,
    things: &[&T],
    json: impl Fn(&Now, &T) -> Value,
    block: impl Fn(&mut String, &Now, &T),
) {
    if as_json {
        output::json(&things.iter().map(|thing| json(now, thing)).collect::<Vec<_>>());
    } else {
        let mut page = String::new();
        things.iter().for_each(|thing| block(&mut page, now, thing));
        output::text(&page);
    }
}

/// The thing of that name, or all of them.
fn chosen<'a, T>(all: &'a BTreeMap<Name, T>, kind: Kind, name: Option<&str>) -> Result<Vec<&'a T>, Failure> {
    let Some(name) = name else { return Ok(all.values().collect()) };
    let name: Name = name.parse()?;
    let unknown = || EditError::Unknown { kind, name: name.to_string() };
    Ok(vec![all.get(&name).ok_or_else(unknown)?])
}

impl Now {
    /// What nodes count of a thing.
    fn counted<'a>(&'a self, scope: Scope, name: &'a str) -> impl Iterator<Item = &'a Statistics> {
        self.statistics.iter().filter(move |row| row.place.0 == scope && row.place.1 == name)
    }

    /// By node.
    fn counters(&self, scope: Scope, name: &str) -> Value {
        let rows = self.counted(scope, name).map(|row| {
            let value = json!({
                "since_ms": row.since_ms, "updated_ms": row.updated_ms, "counters": row.counters,
            });
            (row.node.to_string(), value)
        });
        Value::Object(rows.collect())
    }

    /// A line for each node: what is not zero.
    fn counted_lines(&self, page: &mut String, depth: usize, scope: Scope, name: &str) {
        for row in self.counted(scope, name) {
            let since = instant(row.since_ms);
            line(
                page,
                depth,
                format_args!("counted on {} since {since}: {}", row.node, counters(&row.counters)),
            );
        }
    }
}

/// "in 5 packets 300 bytes, out 0 packets 0 bytes, dropped_foreign_tag 1 packets 60 bytes".
fn counters(all: &BTreeMap<String, u64>) -> String {
    let mut words = Vec::new();
    for (name, value) in all.iter().filter(|(_, value)| **value > 0) {
        if name.strip_suffix("_bytes").is_some_and(|stem| all.contains_key(&format!("{stem}_packets"))) {
            continue;
        }
        words.push(match name.strip_suffix("_packets") {
            Some(stem) => match all.get(&format!("{stem}_bytes")) {
                Some(bytes) => format!("{stem} {value} packets {bytes} bytes"),
                None => format!("{stem} {value} packets"),
            },
            None => format!("{name} {value}"),
        });
    }
    if words.is_empty() { "nothing".to_owned() } else { printable(&words.join(", ")) }
}

/// A node, its uplinks with what somebody has said that they carry, and what it reports of itself.
struct Node {
    name: Name,
    uplinks: BTreeMap<String, Option<Rate>>,
    status: Option<NodeStatus>,
}

impl Node {
    /// Of one of its uplinks, if it reports it: bytes.
    fn mtu(&self, port: &str) -> Option<u32> {
        self.status.as_ref()?.uplink_mtus.get(port).copied()
    }

    /// What an uplink carries, and who says so: an operator, or else the node.
    fn capacity(&self, port: &str) -> Option<(Rate, &'static str)> {
        let said = self.uplinks.get(port).copied().flatten().map(|rate| (rate, "operator"));
        said.or_else(|| Some((*self.status.as_ref()?.uplink_capacity.get(port)?, "node")))
    }

    /// By what an uplink is shaped, and why not as it should be.
    fn shaping(&self, port: &str) -> Option<&str> {
        Some(self.status.as_ref()?.shaping.get(port)?)
    }
}

impl Now {
    /// Those that have uplinks, and those that report.
    fn nodes(&self) -> BTreeMap<Name, Node> {
        let desired = &self.snapshot.desired;
        let reporting =
            self.statistics.iter().map(|row| &row.node).chain(self.status.iter().map(|row| &row.node));
        let reports = self.snapshot.nodes();
        let names = desired.uplinks.keys().chain(reporting).chain(reports.iter().map(|row| &row.node));
        names
            .map(|name| {
                let status = reports.iter().find(|row| row.node == *name).cloned();
                let uplinks = desired.uplinks_of(name).into_iter();
                let uplinks = uplinks.map(|port| (port.clone(), desired.capacity_of(name, &port))).collect();
                (name.clone(), Node { name: name.clone(), uplinks, status })
            })
            .collect()
    }

    /// What a node counts of itself or of one of its uplinks.
    fn own<'a>(&'a self, node: &Node, scope: Scope, name: &'a str) -> Option<&'a Statistics> {
        self.counted(scope, name).find(|row| row.node == node.name)
    }
}

fn node_json(now: &Now, node: &Node) -> Value {
    let of = |scope, name| now.own(node, scope, name).map(|row| json!(row.counters));
    let uplinks = node.uplinks.keys().map(|port| {
        let capacity = node.capacity(port);
        json!({
            "port": port, "mtu": node.mtu(port), "capacity_bps": capacity.map(|(rate, _)| rate.bps()),
            "capacity_from": capacity.map(|(_, from)| from), "shaping": node.shaping(port),
            "counters": of(Scope::Uplink, port),
        })
    });
    let name = node.name.as_str();
    let asked = now.snapshot.desired.cfg;
    let status = node.status.as_ref().map(|status| {
        let NodeStatus {
            node: _,
            version,
            ovs_version,
            datapath,
            started_ms,
            seen_ms,
            cfg,
            problems,
            uplink_mtus: _,
            uplink_capacity: _,
            shaping: _,
            address,
        } = status;
        json!({
            "version": version, "ovs_version": ovs_version, "datapath": datapath, "started_ms": started_ms,
            "seen_ms": seen_ms, "cfg": cfg, "is_behind": *cfg < Some(asked), "problems": problems,
            "address": address,
        })
    });
    json!({
        "name": name, "uplinks": uplinks.collect::<Vec<_>>(), "counters": of(Scope::Node, name), "status": status,
    })
}

/// Every node in a few words, one object each.
pub(crate) async fn nodes(client: &Client) -> Result<Vec<Value>, Failure> {
    let snapshot = client.snapshot().await?;
    let now = Now { status: snapshot.status(), snapshot, statistics: client.statistics().await? };
    let asked = now.snapshot.desired.cfg;
    let row = |node: &Node| {
        let of = |text: fn(&NodeStatus) -> &str| node.status.as_ref().map(text);
        json!({
            "node": node.name.as_str(), "uplinks": node.uplinks.keys().collect::<Vec<_>>(), "version": of(|status| &status.version),
            "ovs_version": of(|status| &status.ovs_version), "datapath": of(|status| &status.datapath),
            "seen_ms": node.status.as_ref().map(|status| status.seen_ms),
            "is_behind": node.status.as_ref().map(|status| status.cfg < Some(asked)),
            "problems": node.status.as_ref().map(|status| status.problems.len()),
        })
    };
    Ok(now.nodes().values().map(row).collect())
}

/// What a node reports of itself.
fn node_lines(page: &mut String, status: &NodeStatus, asked: i64) {
    let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { printable(text) };
    let NodeStatus { version, ovs_version, datapath, started_ms, seen_ms, cfg, .. } = status;
    let (version, ovs_version, datapath) = (known(version), known(ovs_version), known(datapath));
    line(page, 1, format_args!("xenflow {version}, Open vSwitch {ovs_version}, datapath {datapath}"));
    line(page, 1, format_args!("seen {}, runs since {}", ago(*seen_ms), instant(*started_ms)));
    match cfg.unwrap_or_default() {
        cfg if cfg < asked => line(page, 1, format_args!("behind: its switch has {cfg} of {asked}")),
        cfg => line(page, 1, format_args!("not behind: its switch has {cfg}")),
    }
    if !status.address.is_empty() {
        line(page, 1, format_args!("takes planned moves at {}", printable(&status.address)));
    }
    for problem in &status.problems {
        line(page, 1, format_args!("problem: {}", printable(problem)));
    }
}

fn node_block(page: &mut String, now: &Now, node: &Node) {
    line(page, 0, format_args!("node {}", node.name));
    match &node.status {
        Some(status) => node_lines(page, status, now.snapshot.desired.cfg),
        None => line(page, 1, format_args!("its daemon has reported nothing")),
    }
    let counted = |page: &mut String, depth, scope, name| {
        if let Some(row) = now.own(node, scope, name) {
            line(
                page,
                depth,
                format_args!("counted since {}: {}", instant(row.since_ms), counters(&row.counters)),
            );
        }
    };
    counted(page, 1, Scope::Node, node.name.as_str());
    for port in node.uplinks.keys() {
        let mtu = node.mtu(port).map(|mtu| format!(", MTU {mtu}"));
        let capacity = node.capacity(port).map(|(rate, from)| match from {
            "operator" => format!(", {rate} (set)"),
            _ => format!(", {rate}"),
        });
        let shaping = node.shaping(port).map(|words| format!(", shaping {}", printable(words)));
        let words = [mtu, capacity, shaping].into_iter().flatten().collect::<String>();
        line(page, 1, format_args!("uplink {port}{words}"));
        counted(page, 2, Scope::Uplink, port);
    }
}

fn segment_json(now: &Now, segment: &Segment) -> Value {
    let (vifs, access) = ports_of(now, segment);
    json!({
        "name": segment.name.to_string(), "network": segment.network.to_string(), "vlan": segment.vlan.get(),
        "vifs": vifs, "access": access, "statistics": now.counters(Scope::Segment, segment.name.as_str()),
    })
}

/// Names of the vifs and access ports on a segment.
fn ports_of(now: &Now, segment: &Segment) -> (Vec<String>, Vec<String>) {
    let desired = &now.snapshot.desired;
    let here = Attachment::Segment(segment.name.clone());
    let vifs = desired.vifs.values().filter(|vif| vif.attachment == here).map(|vif| vif.name.to_string());
    let access = desired.access.values().filter(|access| access.segment == segment.name);
    (vifs.collect(), access.map(|access| access.name.to_string()).collect())
}

fn segment_block(page: &mut String, now: &Now, segment: &Segment) {
    line(page, 0, format_args!("segment {}", segment.name));
    line(page, 1, format_args!("network {}, vlan {}", segment.network, segment.vlan));
    now.counted_lines(page, 1, Scope::Segment, segment.name.as_str());
    let (vifs, access) = ports_of(now, segment);
    for (kind, scope, names) in [("vif", Scope::Vif, vifs), ("access", Scope::Access, access)] {
        for name in names {
            line(page, 1, format_args!("{kind} {name}"));
            now.counted_lines(page, 2, scope, &name);
        }
    }
}

fn network_json(now: &Now, network: &Network) -> Value {
    let (segments, routers) = parts_of(now, network);
    json!({
        "name": network.name.to_string(), "segments": segments, "routers": routers,
        "statistics": now.counters(Scope::Network, network.name.as_str()),
    })
}

/// Names of the segments and routers of a network.
fn parts_of(now: &Now, network: &Network) -> (Vec<String>, Vec<String>) {
    let desired = &now.snapshot.desired;
    let segments = desired.segments.values().filter(|segment| segment.network == network.name);
    let routers = desired.routers.values().filter(|router| router.network == network.name);
    (
        segments.map(|segment| segment.name.to_string()).collect(),
        routers.map(|router| router.name.to_string()).collect(),
    )
}

fn network_block(page: &mut String, now: &Now, network: &Network) {
    line(page, 0, format_args!("network {}", network.name));
    now.counted_lines(page, 1, Scope::Network, network.name.as_str());
    let (segments, routers) = parts_of(now, network);
    for (kind, scope, names) in [("segment", Scope::Segment, segments), ("router", Scope::Router, routers)] {
        for name in names {
            line(page, 1, format_args!("{kind} {name}"));
            now.counted_lines(page, 2, scope, &name);
        }
    }
}

fn reports<'a>(now: &'a [Status], router: &'a Router) -> impl Iterator<Item = &'a Status> {
    now.iter().filter(|report| report.router == router.name)
}

fn router_json(now: &Now, router: &Router) -> Value {
    let all = &now.status;
    let vif_json = |vif: &Vif| {
        let plugged = |report: &Status| {
            let port = report.ports.get(&vif.name)?;
            let node = report.node.to_string();
            Some(json!({ "node": node, "port": port, "up": report.up.contains(&vif.name) }))
        };
        let mut value = view::vif(vif);
        value["ports"] = reports(all, router).filter_map(plugged).collect();
        value["statistics"] = now.counters(Scope::Vif, vif.name.as_str());
        value
    };
    let mut value = view::router(router);
    value["statistics"] = now.counters(Scope::Router, router.name.as_str());
    value["vifs"] = now.snapshot.desired.vifs_of(&router.name).into_iter().map(vif_json).collect();
    value["nodes"] = reports(all, router).map(view::status).collect();
    value
}

fn router_block(page: &mut String, now: &Now, router: &Router) {
    let all = &now.status;
    let policy = router.policy.effective();
    line(page, 0, format_args!("router {}", router.name));
    let fast_path = fast_path_str(policy.fast_path);
    let max = policy.max_routes;
    line(page, 1, format_args!("network {}, id {}, fastpath {fast_path}", router.network, router.id));
    now.counted_lines(page, 1, Scope::Router, router.name.as_str());
    for vif in now.snapshot.desired.vifs_of(&router.name) {
        let place = match &vif.attachment {
            Attachment::Segment(segment) => format!("segment {segment}"),
            Attachment::Control => "control".to_owned(),
        };
        let mut ports: Vec<_> = reports(all, router)
            .filter_map(|report| {
                let state = if report.up.contains(&vif.name) { "up" } else { "down" };
                Some(format!("port {} on {} {state}", printable(report.ports.get(&vif.name)?), report.node))
            })
            .collect();
        if ports.is_empty() {
            ports.push("not plugged in".to_owned());
        }
        let ports = ports.join(", ");
        line(page, 1, format_args!("vif {} {} {} {place}: {ports}", vif.number, vif.name, vif.mac));
        now.counted_lines(page, 2, Scope::Vif, vif.name.as_str());
    }
    if reports(all, router).next().is_none() {
        line(page, 1, format_args!("no node reports about it"));
    }
    for report in reports(all, router) {
        let Status { node, state, counts, acked_seq, message, slow, unresolved, .. } = report;
        let (since, ago) = (instant(report.since_ms), ago(report.since_ms));
        line(page, 1, format_args!("node {node}: session {state} since {since} ({ago}), acked {acked_seq}"));
        if !message.is_empty() {
            line(page, 2, format_args!("{}", printable(message)));
        }
        let (routes, neighbors, next_hops) = (counts.routes, counts.neighbors, counts.next_hops);
        line(page, 2, format_args!("routes {routes}, neighbors {neighbors}, next hops {next_hops}"));
        if unresolved.count > 0 {
            let (count, which) = (unresolved.count, unresolved_words(unresolved));
            line(page, 2, format_args!("gateways without a neighbor {count}: {which}"));
        }
        if !counts.prefixes.is_empty() {
            let of = |kind| counts.prefixes.get(kind).copied().unwrap_or_default();
            let (forwarded, punted, absent) = (of("forwarded"), of("punted"), of("absent"));
            let text = format_args!(
                "prefixes forwarded {forwarded} of at most {max} ({} %), punted {punted}, without a flow {absent}",
                forwarded.saturating_mul(100) / (max as u64).max(1),
            );
            line(page, 2, text);
        }
        if slow.is_empty() {
            line(page, 2, format_args!("the host forwards all it can"));
        } else {
            line(page, 2, format_args!("the guest forwards:"));
            slow.iter().for_each(|reason| line(page, 3, format_args!("{}", printable(reason))));
        }
    }
}

/// "10.0.0.7 on r1-core, 10.0.0.8 on r1-core and 3 more".
pub(crate) fn unresolved_words(Unresolved { count, gateways }: &Unresolved) -> String {
    let named = gateways.iter().map(|at| printable(&at.replacen('%', " on ", 1)));
    let named = named.collect::<Vec<_>>().join(", ");
    match count.saturating_sub(gateways.len() as u64) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Words of somebody else, so that they cannot write to the terminal what they like.
pub(crate) fn printable(text: &str) -> String {
    let odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if odd(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{202e}c é"), "a\u{fffd}[31m\u{fffd}b\u{fffd}c é");
    }
}
