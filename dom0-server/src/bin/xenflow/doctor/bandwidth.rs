//! Checks of contracts: whether somebody keeps them at every uplink, by what all nodes report, and whether they are kept
//! here, by what this host's daemon says.

use std::collections::BTreeMap;

use dom0_server::db::{Contract, NodeStatus};
use dom0_server::shaper::report::Report;
use xenflow_proto::Name;

use super::facts::{Facts, Fleet};
use super::finding::{Finding, ok, or_ok, some, span, warn};
use crate::sla::rate;

/// A queue has been short for so many looks: less passes by itself.
const LOOKS: u64 = 5;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut all = facts.known().map(shaping).unwrap_or_default();
    match &facts.shared {
        None => {}
        Some(Ok(report)) => all.extend(kept(report, facts.now_ms)),
        Some(Err(reason)) => all.push(warn(
            "contracts",
            format!("how they are kept here is not known: {reason}"),
            "see that xenflow-dom0 runs (systemctl status xenflow-dom0)",
        )),
    }
    all
}

/// An uplink, in words.
fn place(node: &Name, port: &str) -> String {
    format!("{port} of node {node}")
}

/// Whether every uplink of a node that reports has a capacity and somebody who shapes it.
pub(super) fn shaping(fleet: &Fleet) -> Vec<Finding> {
    let desired = &fleet.desired;
    let says = |contract: &Contract| *contract != Contract::default();
    let promised: Vec<_> =
        desired.networks.values().filter(|it| says(&it.contract)).map(|it| it.name.as_str()).collect();
    if promised.is_empty() {
        return vec![ok("shaping", "no network has a contract")];
    }
    let (mut unknown, mut wrong) = (Vec::new(), BTreeMap::<&str, Vec<String>>::new());
    for (node, ports) in &desired.uplinks {
        let reports = |status: &&NodeStatus| status.node == *node;
        let Some(status) = fleet.nodes.iter().find(reports) else { continue };
        for port in ports {
            let is_known =
                desired.capacity_of(node, port).is_some() || status.uplink_capacity.contains_key(port);
            if !is_known {
                unknown.push((node, port));
            }
            match status.shaping.get(port).map(String::as_str) {
                Some("tc" | "ovs") => {}
                Some(words) => wrong.entry(words).or_default().push(place(node, port)),
                None => {
                    wrong.entry("none: its daemon says nothing of it").or_default().push(place(node, port))
                }
            }
        }
    }
    let mut findings: Vec<_> = unknown
        .first()
        .map(|(node, port)| {
            let places: Vec<_> = unknown.iter().map(|(node, port)| place(node, port)).collect();
            warn(
                "capacity",
                format!("the capacity of {} is not known: contracts cannot be kept there", some(&places)),
                format!("xenflow uplink set {node} {port} --capacity RATE"),
            )
        })
        .into_iter()
        .collect();
    findings.extend(wrong.into_iter().map(|(words, places)| {
        warn(
            "shaping",
            format!("{}: shaped by {words}; contracts of {}", some(&places), some(&promised)),
            "there, xenflow explain sla NETWORK says what that costs, and the log of xenflow-dom0 why",
        )
    }));
    or_ok(findings, "shaping", format!("contracts of {}; every uplink is shaped", some(&promised)))
}

/// Whether queues have their part, and how long not.
pub(super) fn kept(report: &Report, now_ms: u64) -> Vec<Finding> {
    let check = "contracts";
    let mut wrong = Vec::new();
    for link in &report.links {
        for queue in link.queues.iter().filter(|queue| queue.state == "short") {
            let short_ms = now_ms.saturating_sub(queue.since_ms);
            if short_ms <= report.period_ms.saturating_mul(LOOKS) {
                continue;
            }
            let class = queue.class.as_ref().map(|class| format!(", class {class}")).unwrap_or_default();
            wrong.push(warn(
                check,
                format!(
                    "network {}{class} has had less than its part of uplink {} for {}: {} of {}",
                    queue.network,
                    link.port,
                    span((short_ms / 1000).cast_signed()),
                    rate(queue.obtained_bps),
                    rate(queue.expected_bps)
                ),
                format!("xenflow explain sla {}", queue.network),
            ));
        }
    }
    let queues: usize = report.links.iter().map(|link| link.queues.len()).sum();
    or_ok(
        wrong,
        check,
        format!("{queues} queues on {} uplinks here, none short for long", report.links.len()),
    )
}
