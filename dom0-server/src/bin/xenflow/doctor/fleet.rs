//! Checks of the XenFlow database and of what all nodes report in it.

use std::collections::BTreeSet;

use dom0_server::counters::Scope;
use dom0_server::db::policy::PuntClass;
use dom0_server::db::{SessionState, Statistics, Status};

use super::facts::{Facts, Fleet, Node, Server};
use super::finding::{Finding, fail, ok, or_ok, some, span, version, warn};

/// After so long without a word a node is taken for gone, in milliseconds: nine of its reports.
const SILENT_MS: u64 = 90_000;
/// Clocks that are kept by NTP differ by less, in milliseconds.
const AHEAD_MS: u64 = 2_000;
/// A session is back after less, in milliseconds.
const DOWN_MS: u64 = 60_000;
/// Share of a router's `max_routes`, in percent, at which more is to be asked for.
const FULL: u64 = 80;

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
            all.extend(neighbors(&fleet.status));
            all.extend(policed(&fleet.statistics));
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
                wrong.push(fail(check, format!("{remote}: {reason}"), "start it, or see the way to it"))
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
    for Node { name, seen_ms, problems, .. } in &fleet.nodes {
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
        if !fleet.nodes.iter().any(|node| node.name == name.as_str()) {
            let seen = format!("node {name} has uplinks here and reports nothing of itself");
            wrong.push(warn(check, seen, "start xenflow-dom0 there, or take its uplinks away"));
        }
    }
    or_ok(wrong, check, format!("{}, all seen within {} s", fleet.nodes.len(), SILENT_MS / 1000))
}

pub(super) fn versions(nodes: &[Node]) -> Vec<Finding> {
    let mut wrong = Vec::new();
    let different = |of: fn(&Node) -> &str| nodes.iter().map(of).collect::<BTreeSet<_>>();
    for (what, all) in
        [("xenflow-dom0", different(|node| &node.version)), ("Open vSwitch", different(|node| &node.switch))]
    {
        if all.len() > 1 {
            let all: Vec<_> = all.into_iter().collect();
            let seen = format!("{what} differs between nodes: {}", some(&all));
            wrong.push(warn("node-versions", seen, "finish the upgrade"));
        }
    }
    for node in nodes {
        if version(&node.switch).is_some_and(|found| found < (2, 17)) {
            let seen = format!("node {} has Open vSwitch {}, older than 2.17", node.name, node.switch);
            wrong.push(fail("node-versions", seen, "upgrade openvswitch-switch there"));
        }
        if node.datapath == "netdev" {
            let seen = format!("node {} forwards in user space (netdev)", node.name);
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

pub(super) fn neighbors(status: &[Status]) -> Vec<Finding> {
    let fails = |report: &&Status| {
        report.state == SessionState::Up && report.counts.routes > 0 && report.counts.neighbors == 0
    };
    let wrong = status.iter().filter(fails).map(|report| {
        let (router, routes) = (&report.router, report.counts.routes);
        warn(
            "neighbors",
            format!("router {router} has {routes} routes and no neighbor that answers"),
            "see ip neigh in the guest, the segment's VLAN on the trunk, and the MTU",
        )
    });
    or_ok(wrong.collect(), "neighbors", "every router with routes has one that answers")
}

/// What meters have dropped on the way to guests.
pub(super) fn policed(statistics: &[Statistics]) -> Vec<Finding> {
    let routers = statistics.iter().filter(|row| row.place.0 == Scope::Router);
    let wrong = routers.flat_map(|row| {
        PuntClass::ALL.iter().filter_map(|class| {
            let class = class.as_str();
            let dropped = row.counters.get(&format!("policed_{class}_packets")).filter(|n| **n > 0)?;
            let router = &row.place.1;
            let seen =
                format!("router {router} on {}: {dropped} packets of class {class} were too many", row.node);
            let todo = format!(
                "watch xenflow top; if they are wanted: xenflow router set {router} --punt-rate {class}=PPS"
            );
            Some(warn("policed", seen, todo))
        })
    });
    or_ok(wrong.collect(), "policed", "no packet for a guest was too many")
}
