//! What lists and the page of `xenflow show` look like, as JSON and as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use dom0_server::clock::{now_ms, utc_of_ms};
use dom0_server::db::class::{Matching, protocol_name};
use dom0_server::db::edit::{EditError, Key, Snapshot};
use dom0_server::db::policy::{PuntClass, fast_path_str};
use dom0_server::db::row::{Network, Router};
use dom0_server::db::{Access, Attachment, Contract, Desired, Kind, Rate, Status, TrafficClass, Vif};
use serde_json::{Map, Value, json};

use crate::show::printable;

/// A list, one object each.
pub(crate) fn list(desired: &Desired, kind: Kind) -> Vec<Value> {
    let name = |name: &xenflow_proto::Name| name.to_string();
    match kind {
        Kind::Node => {
            let nodes = desired.uplinks.iter();
            let row = |(node, uplinks): (&xenflow_proto::Name, &BTreeSet<String>)| json!({ "node": name(node), "uplinks": uplinks, "uplink_capacity": capacities(desired, node) });
            nodes.map(row).collect()
        }
        Kind::Network => desired.networks.values().map(network).collect(),
        Kind::Segment => {
            let row = |s: &dom0_server::db::Segment| json!({ "name": name(&s.name), "network": name(&s.network), "vlan": s.vlan.get() });
            desired.segments.values().map(row).collect()
        }
        Kind::Router => desired.routers.values().map(router).collect(),
        Kind::Vif => desired.vifs.values().map(vif).collect(),
        Kind::Access => desired.access.values().map(access).collect(),
        Kind::Class => desired.classes.values().map(class).collect(),
    }
}

/// What has been said of a node's uplinks, in bit/s.
fn capacities(desired: &Desired, node: &xenflow_proto::Name) -> Map<String, Value> {
    let said = desired.capacities.get(node).into_iter().flatten();
    said.map(|(port, rate)| (port.clone(), rate.bps().into())).collect()
}

/// Rates in bit/s.
fn contract(contract: &Contract) -> [(&'static str, Value); 2] {
    let rate = |rate: Option<Rate>| rate.map_or(Value::Null, |rate| rate.bps().into());
    [("min_bps", rate(contract.min())), ("max_bps", rate(contract.max()))]
}

fn network(network: &Network) -> Value {
    let name = [("name", Value::from(network.name.as_str()))];
    object(name.into_iter().chain(contract(&network.contract)))
}

fn class(class: &TrafficClass) -> Value {
    let TrafficClass { name, network, priority, matching, .. } = class;
    let columns = [
        ("network", network.as_str().into()),
        ("name", name.as_str().into()),
        ("priority", (*priority).into()),
        ("dscp", matching.dscp.iter().copied().collect()),
        ("protocol", matching.protocol.map_or(Value::Null, |number| protocol_name(number).into())),
        ("ports", matching.ports.iter().copied().collect()),
    ];
    object(columns.into_iter().chain(contract(&class.contract)))
}

fn object(columns: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Object(columns.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// With the defaults for what its row does not say.
pub(crate) fn router(router: &Router) -> Value {
    let policy = router.policy.effective();
    let rates: Map<_, _> = PuntClass::ALL
        .iter()
        .map(|class| (class.as_str().to_owned(), policy.punt_rates.of(*class).into()))
        .collect();
    json!({
        "name": router.name.to_string(), "network": router.network.to_string(), "id": router.id.get(),
        "fastpath": fast_path_str(policy.fast_path), "max_routes": policy.max_routes, "punt_rate": rates,
    })
}

pub(crate) fn vif(vif: &Vif) -> Value {
    let (kind, segment) = match &vif.attachment {
        Attachment::Segment(segment) => ("data", Some(segment.to_string())),
        Attachment::Control => ("control", None),
    };
    json!({
        "name": vif.name.to_string(), "router": vif.router.to_string(), "number": vif.number.get(),
        "kind": kind, "segment": segment, "mac": vif.mac.to_string(),
    })
}

fn access(access: &Access) -> Value {
    let macs: Vec<_> = access.macs.iter().map(ToString::to_string).collect();
    json!({ "name": access.name.to_string(), "segment": access.segment.to_string(), "macs": macs })
}

pub(crate) fn status(status: &Status) -> Value {
    let ports: Map<_, _> =
        status.ports.iter().map(|(vif, port)| (vif.to_string(), port.as_str().into())).collect();
    json!({
        "node": status.node.to_string(), "router": status.router.to_string(), "state": status.state.as_str(),
        "since_ms": status.since_ms, "age_s": age_s(status.since_ms), "routes": status.counts.routes,
        "neighbors": status.counts.neighbors, "next_hops": status.counts.next_hops, "prefixes": status.counts.prefixes,
        "acked_seq": status.acked_seq, "message": status.message, "slow": status.slow, "ports": ports,
        "up": status.up.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "vif_mtus": status.vif_mtus.iter().map(|(vif, mtu)| (vif.to_string(), *mtu)).collect::<BTreeMap<_, _>>(),
        "unresolved": status.unresolved.count, "unresolved_gateways": status.unresolved.gateways,
    })
}

/// All that the database holds of one thing.
pub(crate) fn one(now: &Snapshot, key: &Key) -> Result<Value, EditError> {
    let row = now.row(key)?;
    let is_it = |value: &Value| {
        let name = if key.kind == Kind::Node { "node" } else { "name" };
        value[name] == *key.name && key.network.as_ref().is_none_or(|network| value["network"] == **network)
    };
    let mut value = list(&now.desired, key.kind).into_iter().find(is_it).unwrap_or_default();
    value["external_ids"] = row.map_str_str("external_ids").unwrap_or_default().into_iter().collect();
    Ok(value)
}

/// Members of an object in a fixed order: `name` (or `node`) first.
fn heads(first: &Map<String, Value>) -> Vec<&str> {
    let mut heads: Vec<&str> = first.keys().map(String::as_str).collect();
    let order = [
        "node",
        "name",
        "network",
        "router",
        "number",
        "id",
        "vlan",
        "kind",
        "segment",
        "mac",
        "priority",
        "dscp",
        "protocol",
        "ports",
        "min_bps",
        "max_bps",
        "version",
        "ovs_version",
        "datapath",
        "seen",
        "is_behind",
        "problems",
        "uplinks",
        "uplink_capacity",
        "from",
        "to",
        "via",
        "phase",
        "since",
        "error",
    ];
    heads.sort_by_key(|head| order.iter().position(|known| known == head).unwrap_or(order.len()));
    heads
}

fn cell(value: Option<&Value>) -> String {
    let item = |item: &Value| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
    match value {
        Some(Value::Array(items)) if !items.is_empty() => {
            items.iter().map(item).collect::<Vec<_>>().join(",")
        }
        Some(Value::Object(pairs)) if !pairs.is_empty() => {
            let pairs = pairs.iter().map(|(key, value)| format!("{key}={}", item(value)));
            pairs.collect::<Vec<_>>().join(",")
        }
        Some(Value::Array(_) | Value::Object(_) | Value::Null) | None => "-".to_owned(),
        Some(other) => printable(&item(other)),
    }
}

/// An object, one member on a line.
pub(crate) fn record(value: &Value) -> String {
    let Value::Object(members) = value else { return String::new() };
    let heads = heads(members);
    let width = heads.iter().map(|head| head.len()).max().unwrap_or(0);
    let line = |head: &&str| format!("{head:width$}  {}\n", printable(&cell(members.get(*head))));
    heads.iter().map(line).collect()
}

/// Objects with the same members, as columns.
pub(crate) fn columns(rows: &[Value]) -> String {
    let Some(Value::Object(first)) = rows.first() else { return String::new() };
    let heads = heads(first);
    let cell = |row: &Value, head: &str| cell(row.get(head));
    let mut lines = vec![heads.iter().map(|head| head.to_uppercase()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| heads.iter().map(|head| cell(row, head)).collect()));
    let width = |at: usize| lines.iter().filter_map(|line| line.get(at)).map(String::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// The page of `xenflow show` as JSON.
pub(crate) fn page_json(now: &Snapshot) -> Value {
    let list = |kind| list(&now.desired, kind);
    let invalid: Vec<_> = now.invalid.iter().map(ToString::to_string).collect();
    json!({
        "networks": list(Kind::Network), "segments": list(Kind::Segment), "routers": list(Kind::Router),
        "vifs": list(Kind::Vif), "access": list(Kind::Access), "classes": list(Kind::Class), "nodes": list(Kind::Node),
        "status": now.status().iter().map(status).collect::<Vec<_>>(), "invalid": invalid,
    })
}

/// The page of `xenflow show`.
pub(crate) fn page(now: &Snapshot) -> String {
    let mut page = String::new();
    let reports = now.status();
    for (network, row) in &now.desired.networks {
        line(&mut page, 0, format_args!("network {network}{}", words(&row.contract)));
        for class in now.desired.classes.values().filter(|class| class.network == *network) {
            let TrafficClass { name, priority, matching, contract, .. } = class;
            line(
                &mut page,
                1,
                format_args!("class {name} priority {priority}{}{}", takes(matching), words(contract)),
            );
        }
        for segment in now.desired.segments.values().filter(|s| s.network == *network) {
            line(&mut page, 1, format_args!("segment {} vlan {}", segment.name, segment.vlan));
            for port in now.desired.access.values().filter(|a| a.segment == segment.name) {
                let macs: Vec<_> = port.macs.iter().map(ToString::to_string).collect();
                line(&mut page, 2, format_args!("access {} {}", port.name, macs.join(" ")));
            }
        }
        for router in now.desired.routers.values().filter(|r| r.network == *network) {
            line(&mut page, 1, format_args!("router {} id {}", router.name, router.id));
            for vif in now.desired.vifs_of(&router.name) {
                let place = match &vif.attachment {
                    Attachment::Segment(segment) => format!("segment {segment}"),
                    Attachment::Control => "control".to_owned(),
                };
                line(&mut page, 2, format_args!("vif {} {} {} {place}", vif.number, vif.name, vif.mac));
            }
            for report in reports.iter().filter(|report| report.router == router.name) {
                let (since, ago) = (instant(report.since_ms), ago(report.since_ms));
                let Status { node, state, counts, acked_seq, message, .. } = report;
                let text = format_args!(
                    "on {node}: {state} since {since} ({ago}), routes {}, acked {acked_seq}{}{}",
                    counts.routes,
                    if message.is_empty() { "" } else { ": " },
                    message.escape_debug(),
                );
                line(&mut page, 2, text);
            }
        }
    }
    for (node, uplinks) in &now.desired.uplinks {
        let capacity = |port: &str| now.desired.capacity_of(node, port);
        let words = |port: &String| match capacity(port) {
            Some(rate) => format!("{port} ({rate})"),
            None => port.clone(),
        };
        let uplinks: Vec<_> = uplinks.iter().map(words).collect();
        line(&mut page, 0, format_args!("node {node} uplinks {}", uplinks.join(" ")));
    }
    for row in &now.invalid {
        line(&mut page, 0, format_args!("left out: {row}"));
    }
    page
}

/// A contract, after a blank.
fn words(contract: &Contract) -> String {
    let rate = |word, rate: Option<Rate>| rate.map_or(String::new(), |rate| format!(" {word} {rate}"));
    rate("min", contract.min()) + &rate("max", contract.max())
}

/// What a class takes in, after a blank.
fn takes(matching: &Matching) -> String {
    let list = |numbers: Vec<String>| numbers.join(",");
    let mut text = String::new();
    if !matching.dscp.is_empty() {
        text += &format!(" dscp {}", list(matching.dscp.iter().map(u8::to_string).collect()));
    }
    if let Some(number) = matching.protocol {
        text += &format!(" protocol {}", protocol_name(number));
    }
    if !matching.ports.is_empty() {
        text += &format!(" ports {}", list(matching.ports.iter().map(u16::to_string).collect()));
    }
    text
}

pub(crate) fn line(page: &mut String, depth: usize, text: std::fmt::Arguments<'_>) {
    let mut whole = String::new();
    // Writing to a string cannot fail.
    let _ = write!(whole, "{:1$}{text}", "", depth * 2);
    page.push_str(whole.trim_end());
    page.push('\n');
}

/// Milliseconds since the Unix epoch, in UTC.
pub(crate) fn instant(ms: u64) -> String {
    utc_of_ms(ms).unwrap_or_else(|| "?".to_owned())
}

/// How long ago, in the two largest units: "1 d 4 h ago".
pub(crate) fn ago(since_ms: u64) -> String {
    format!("{} ago", span(age_s(since_ms)))
}

/// Seconds since then; 0 where the clock that wrote it is ahead of this one.
fn age_s(since_ms: u64) -> u64 {
    (now_ms() / 1000).saturating_sub(since_ms / 1000)
}

pub(crate) fn span(seconds: u64) -> String {
    let units = [
        ("d", seconds / 86_400),
        ("h", seconds / 3_600 % 24),
        ("min", seconds / 60 % 60),
        ("s", seconds % 60),
    ];
    let first = units.iter().position(|(_, n)| *n > 0).unwrap_or(3);
    let parts = units.iter().skip(first).take(2).map(|(unit, n)| format!("{n} {unit}"));
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3_600, "1 h 0 min"),
            (90_061, "1 d 1 h"),
            (864_000, "10 d 0 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn what_began_by_a_clock_that_is_ahead_is_new() {
        assert_eq!(ago(u64::MAX), "0 s ago");
    }
}
