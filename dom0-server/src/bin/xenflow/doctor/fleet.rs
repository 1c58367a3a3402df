//! Checks of the XenFlow database and of what all nodes report in it.

use std::collections::BTreeSet;

use dom0_server::counters::Scope;
use dom0_server::db::policy::PuntClass;
use dom0_server::db::retire::SILENT_MS;
use dom0_server::db::{Attachment, NodeStatus, SessionState, Statistics, Status};
use xenflow_proto::Name;

use super::facts::{Facts, Fleet, Server};
use super::finding::{Finding, fail, ok, or_ok, some, span, version, warn};
use super::trunk;
use crate::show::unresolved_words;

/// Clocks that are kept by NTP differ by less, in milliseconds.
const AHEAD_MS: u64 = 2_000;
/// A session is back after less, in milliseconds.
const DOWN_MS: u64 = 60_000;
/// Share of a router's `max_routes`, in percent, at which more is to be asked for.
const FULL: u64 = 80;
/// Counters that have not been written for longer do not grow: three times the default of `statistics_interval_s`, in
/// milliseconds.
const WRITTEN_MS: u64 = 15_000;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut all = servers(&facts.servers);
    match &facts.fleet {
        None => {}
        Some(Err(reason)) => all.push(fail(
            "database",
            format!("the XenFlow database cannot be read: {reason}"),
            "start its server, name it with --db, or make it with xenflow init",
        )),
        Some(Ok(fleet)) => {
            all.push(ok("database", format!("schema {} or alike", dom0_server::db::VERSION)));
            all.extend(rows(&fleet.invalid));
            all.extend(nodes(fleet, facts.now_ms));
            all.extend(versions(&fleet.nodes));
            all.extend(sessions(fleet, facts.now_ms));
            all.extend(slow(&fleet.status));
            all.extend(limits(fleet));
            all.extend(neighbors(fleet));
            all.extend(trunk::check(fleet));
            all.extend(policed(&fleet.statistics, fleet.later.as_ref()));
        }
    }
    all
}

/// Whether the servers of the database have each other.
pub(super) fn servers(servers: &[(String, Result<Server, String>)]) -> Vec<Finding> {
    let check = "cluster";
    let mut wrong = Vec::new();
    for (remote, seen) in servers {
        match seen {
            Err(reason) => {
                wrong.push(fail(check, format!("{remote}: {reason}"), "start ovsdb-server there; see that its port is not filtered on the way, and --certificate and --ca-cert if it is ssl:"))
            }
            Ok(server) if server.model == "clustered" && !server.connected => wrong.push(fail(
                check,
                format!("{remote} has no contact with most of its cluster: it takes no changes"),
                "start the other members; ovs-appctl -t … cluster/status XenFlow names them",
            )),
            Ok(_) => {}
        }
    }
    let known: Vec<_> = servers.iter().filter_map(|(_, seen)| seen.as_ref().ok()).collect();
    let clustered = known.iter().filter(|server| server.model == "clustered").count();
    if clustered > 1 && !known.iter().any(|server| server.leader) {
        let seen = format!("none of the {clustered} members that answer leads");
        wrong.push(warn(
            check,
            seen,
            "name every member in --db; a member that is cut off may be the leader",
        ));
    }
    match known.len() {
        0 if wrong.is_empty() => wrong,
        n => or_ok(wrong, check, format!("{n} servers, {clustered} of a cluster")),
    }
}

pub(super) fn rows(invalid: &[String]) -> Vec<Finding> {
    let wrong = invalid.iter().map(|row| {
        warn(
            "rows",
            format!("left out by every node: {row}"),
            "correct or remove the row; xenflow show names it",
        )
    });
    or_ok(wrong.collect(), "rows", "none is left out")
}

pub(super) fn nodes(fleet: &Fleet, now_ms: u64) -> Vec<Finding> {
    let check = "nodes";
    let mut wrong = Vec::new();
    for NodeStatus { node: name, seen_ms, problems, .. } in &fleet.nodes {
        let silent = now_ms.saturating_sub(*seen_ms);
        let ahead = seen_ms.saturating_sub(now_ms);
        if silent > SILENT_MS {
            let seen = format!("node {name} was last seen {} ago", span((silent / 1000).cast_signed()));
            let todo = "see that xenflow-dom0 runs there and reaches the database; it forwards on meanwhile";
            wrong.push(fail(check, seen, todo));
        }
        if ahead > AHEAD_MS {
            let seen = format!("the clock of node {name} is ahead of this one by {ahead} ms");
            wrong.push(warn("node-clocks", seen, "have both synchronized by NTP"));
        }
        for problem in problems {
            wrong.push(warn(
                "node-problems",
                format!("node {name}: {problem}"),
                "see the journal of that node",
            ));
        }
    }
    for name in fleet.desired.uplinks.keys() {
        if !fleet.nodes.iter().any(|node| node.node == *name) {
            let seen = format!("node {name} has uplinks here and reports nothing of itself");
            wrong.push(warn(check, seen, "start xenflow-dom0 there, or take its uplinks away"));
        }
    }
    or_ok(wrong, check, format!("{}, all seen within {} s", fleet.nodes.len(), SILENT_MS / 1000))
}

pub(super) fn versions(nodes: &[NodeStatus]) -> Vec<Finding> {
    let mut wrong = Vec::new();
    let different = |of: fn(&NodeStatus) -> &str| nodes.iter().map(of).collect::<BTreeSet<_>>();
    for (what, all) in [
        ("xenflow-dom0", different(|node| &node.version)),
        ("Open vSwitch", different(|node| &node.ovs_version)),
    ] {
        if all.len() > 1 {
            let all: Vec<_> = all.into_iter().collect();
            let seen = format!("{what} differs between nodes: {}", some(&all));
            wrong.push(warn("node-versions", seen, "finish the upgrade"));
        }
    }
    for node in nodes {
        if version(&node.ovs_version).is_some_and(|found| found < (2, 17)) {
            let seen = format!("node {} has Open vSwitch {}, older than 2.17", node.node, node.ovs_version);
            wrong.push(fail("node-versions", seen, "upgrade openvswitch-switch there"));
        }
        if node.datapath == "netdev" {
            let seen = format!("node {} forwards in user space (netdev)", node.node);
            wrong.push(warn("node-versions", seen, "run xenflow doctor there"));
        }
    }
    if nodes.is_empty() { wrong } else { or_ok(wrong, "node-versions", "the same on every node") }
}

pub(super) fn sessions(fleet: &Fleet, now_ms: u64) -> Vec<Finding> {
    let check = "sessions";
    let mut wrong = Vec::new();
    for router in fleet.desired.routers.keys() {
        let reports: Vec<_> = fleet.status.iter().filter(|report| report.router == *router).collect();
        if reports.is_empty() {
            let seen = format!("no node reports about router {router}");
            wrong.push(warn(check, seen, "plug its vifs in on a node that runs xenflow-dom0, or remove it"));
            continue;
        }
        if reports.iter().any(|report| report.state == SessionState::Up) {
            continue;
        }
        let Some(report) = reports.iter().max_by_key(|report| report.since_ms) else { continue };
        let age_ms = now_ms.saturating_sub(report.since_ms);
        if age_ms <= DOWN_MS {
            continue;
        }
        let Status { node, state, message, .. } = report;
        let why = if message.is_empty() { String::new() } else { format!(" ({message})") };
        let seen = format!(
            "router {router} on {node}: {state} for {}{why}; forwarded by what it said last, until hold_time_s",
            span((age_ms / 1000).cast_signed()),
        );
        let todo = "see in the guest: xenflow-guest status, its certificate, its control vif";
        wrong.push(fail(check, seen, todo));
    }
    or_ok(wrong, check, format!("of {} routers, none is lost", fleet.desired.routers.len()))
}

/// What guests forward themselves, in their words: reverse-path filters, netfilter, forwarding off.
pub(super) fn slow(status: &[Status]) -> Vec<Finding> {
    let wrong = status.iter().flat_map(|report| {
        report.slow.iter().map(|reason| {
            let todo = if reason.contains("rp_filter") || reason.contains("reverse") {
                "in the guest: sysctl -w net.ipv4.conf.all.rp_filter=0 and of that interface"
            } else if reason.contains("forwarding") {
                "in the guest: sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
            } else {
                "take it away in the guest, or live with its VM's speed; xenflow router set … --fastpath always if \
                 it does not matter"
            };
            warn("guests", format!("router {} forwards itself: {reason}", report.router), todo)
        })
    });
    or_ok(wrong.collect(), "guests", "the host forwards all it can")
}

pub(super) fn limits(fleet: &Fleet) -> Vec<Finding> {
    let mut wrong = Vec::new();
    for report in &fleet.status {
        let Some(router) = fleet.desired.routers.get(&report.router) else { continue };
        let max = u64::try_from(router.policy.effective().max_routes).unwrap_or(u64::MAX);
        let of = |kind: &str| report.counts.prefixes.get(kind).copied().unwrap_or_default();
        let (forwarded, beyond) = (of("forwarded"), of("punted").saturating_add(of("absent")));
        if beyond == 0 && forwarded.saturating_mul(100) < max.saturating_mul(FULL) {
            continue;
        }
        let seen = format!(
            "router {} on {}: {forwarded} prefixes of at most {max} are forwarded, {beyond} are left to the guest",
            report.router, report.node,
        );
        let todo = format!("xenflow router set {} --max-routes N", report.router);
        wrong.push(warn("limits", seen, todo));
    }
    or_ok(wrong, "limits", format!("every router has less than {FULL} % of its prefixes"))
}

pub(super) fn neighbors(fleet: &Fleet) -> Vec<Finding> {
    let check = "neighbors";
    let has_session = |report: &&Status| report.state == SessionState::Up;
    let wrong = fleet.status.iter().filter(has_session).filter_map(|report| {
        let Status { node, router, counts, unresolved, .. } = report;
        if let Some(first) = unresolved.gateways.first() {
            let seen = format!(
                "router {router} on {node}: {} gateways of its routes have no neighbor that answers: {}",
                unresolved.count,
                unresolved_words(unresolved)
            );
            return Some(warn(check, seen, look_at(fleet, first)));
        }
        (counts.routes > 0 && counts.neighbors == 0).then(|| {
            warn(
                check,
                format!("router {router} has {} routes and no neighbor that answers", counts.routes),
                "see ip neigh in the guest, the segment's VLAN on the trunk, and the MTU",
            )
        })
    });
    or_ok(wrong.collect(), check, "every router with routes has one that answers, and every gateway does")
}

/// What to do about a gateway, as `Status` names it.
fn look_at(fleet: &Fleet, gateway: &str) -> String {
    let (addr, vif) = gateway.split_once('%').unwrap_or((gateway, ""));
    let vif = vif.parse().ok().and_then(|vif: Name| fleet.desired.vifs.get(&vif));
    let segment = match vif.map(|vif| &vif.attachment) {
        Some(Attachment::Segment(segment)) => fleet.desired.segments.get(segment),
        Some(Attachment::Control) | None => None,
    };
    let place = segment.map_or_else(
        || "its segment".to_owned(),
        |segment| format!("segment {}, VLAN {} on the trunk", segment.name, segment.vlan),
    );
    format!(
        "in the guest: ip neigh show {addr}, ping {addr}; see that this device is up, and its cable or port in {place}; if \
         it is gone for good, take its routes away"
    )
}

/// The counters of a router's meters that are not zero: class and packets.
fn dropped(row: &Statistics) -> impl Iterator<Item = (&'static str, u64)> {
    let is_router = row.place.0 == Scope::Router;
    PuntClass::ALL.iter().filter(move |_| is_router).filter_map(|class| {
        let class = class.as_str();
        let packets = row.counters.get(&format!("policed_{class}_packets"))?;
        (*packets > 0).then_some((class, *packets))
    })
}

/// Counters of meters may be growing: they are not zero, and their rows are being written. Only a second look tells.
pub(super) fn may_grow(statistics: &[Statistics], now_ms: u64) -> bool {
    let is_written = |row: &&Statistics| now_ms.saturating_sub(row.updated_ms) <= WRITTEN_MS;
    statistics.iter().filter(is_written).any(|row| dropped(row).next().is_some())
}

/// What meters drop now on the way to guests: by how much their counters, which never shrink, have grown between two
/// looks. There is no second one where [`may_grow`] is false.
pub(super) fn policed(
    first: &[Statistics],
    second: Option<&Result<Vec<Statistics>, String>>,
) -> Vec<Finding> {
    let check = "policed";
    let second = match second {
        None => first,
        Some(Ok(second)) => second,
        Some(Err(reason)) => {
            let seen = format!("what meters drop cannot be read a second time: {reason}");
            return vec![warn(check, seen, "run xenflow doctor again")];
        }
    };
    let mut wrong = Vec::new();
    let mut total = 0_u64;
    for row in second {
        let before = first.iter().find(|before| before.node == row.node && before.place == row.place);
        for (class, packets) in dropped(row) {
            total = total.saturating_add(packets);
            // A row that was not there may have counted for long.
            let Some(before) = before else { continue };
            let is_same = before.since_ms == row.since_ms;
            let known = before.counters.get(&format!("policed_{class}_packets")).filter(|_| is_same);
            let more = packets.saturating_sub(known.copied().unwrap_or_default());
            if more == 0 {
                continue;
            }
            let router = &row.place.1;
            let seen = format!(
                "router {router} on {}: {more} packets of class {class} were too many just now, {packets} since \
                 counting began",
                row.node
            );
            let todo = format!(
                "watch xenflow top; if they are wanted: xenflow router set {router} --punt-rate {class}=PPS"
            );
            wrong.push(warn(check, seen, todo));
        }
    }
    let well = match total {
        0 => "no packet for a guest was too many".to_owned(),
        _ => format!("no packet for a guest is too many now; {total} were since counting began"),
    };
    or_ok(wrong, check, well)
}
