//! Checks of the trunk between the nodes, by what each reports of its own end: MTUs that differ, and routers that send
//! more than the least of them carries.

use std::collections::BTreeMap;

use dom0_server::db::{Attachment, Status};
use xenflow_proto::Name;

use super::facts::Fleet;
use super::finding::{Finding, ok, or_ok, some, warn};
use super::ports::TAG;

const CHECK: &str = "trunk-mtu";

/// One node's end of the trunk.
struct End<'a> {
    node: &'a Name,
    port: &'a str,
    mtu: i64,
    /// Bytes of the largest IP packet that it carries with a VLAN tag.
    carries: i64,
}

impl End<'_> {
    fn words(&self) -> String {
        format!("{} of node {}", self.port, self.node)
    }

    /// Whether the tag is in its MTU.
    fn counts_tag(&self) -> bool {
        self.carries < self.mtu
    }
}

pub(super) fn check(fleet: &Fleet) -> Vec<Finding> {
    let ends: Vec<End<'_>> = (fleet.nodes.iter())
        .flat_map(|status| status.uplink_mtus.iter().map(move |(port, mtu)| (status, port, i64::from(*mtu))))
        .map(|(status, port, mtu)| End {
            node: &status.node,
            port,
            mtu,
            // The kernel's datapath does not count a tag in the MTU of a device; user space does.
            carries: if status.datapath == "netdev" { mtu - TAG } else { mtu },
        })
        .collect();
    let Some(least) = ends.iter().min_by_key(|end| end.carries) else {
        return vec![ok(CHECK, "no node reports an uplink's MTU")];
    };
    let mut wrong: Vec<Finding> = differ(&ends).into_iter().collect();
    wrong.extend(fleet.status.iter().filter_map(|report| too_large(fleet, report, least)));
    or_ok(wrong, CHECK, format!("{} uplinks carry {} bytes, no router sends more", ends.len(), least.carries))
}

fn differ(ends: &[End<'_>]) -> Option<Finding> {
    let mut by_size: BTreeMap<i64, Vec<&End<'_>>> = BTreeMap::new();
    for end in ends {
        by_size.entry(end.carries).or_default().push(end);
    }
    let ((least, least_of), (most, most_of)) = (by_size.first_key_value()?, by_size.last_key_value()?);
    if least == most {
        return None;
    }
    let words = |ends: &[&End<'_>]| {
        let tag = |end: &End<'_>| if end.counts_tag() { " with the tag" } else { "" };
        let each: Vec<_> =
            ends.iter().map(|end| format!("{} (MTU {}{})", end.words(), end.mtu, tag(end))).collect();
        some(&each)
    };
    let smaller: Vec<_> = by_size.range(..most).flat_map(|(_, ends)| ends).map(|end| end.words()).collect();
    Some(warn(
        CHECK,
        format!(
            "uplinks differ, so what fits depends on the way: {least} bytes by {}, {most} by {}",
            words(least_of),
            words(most_of)
        ),
        format!(
            "give all uplinks and the switches between them one MTU: ip link set DEVICE mtu N for {}",
            some(&smaller)
        ),
    ))
}

/// The vifs of a router on a segment, where their guest sends more than the trunk carries everywhere.
fn too_large(fleet: &Fleet, report: &Status, least: &End<'_>) -> Option<Finding> {
    let on_segment = |vif: &Name| match &fleet.desired.vifs.get(vif)?.attachment {
        Attachment::Segment(segment) => Some(segment.clone()),
        Attachment::Control => None,
    };
    let large = report.vif_mtus.iter().filter(|(_, mtu)| i64::from(**mtu) > least.carries);
    let large: Vec<_> =
        large.filter_map(|(vif, mtu)| Some((vif, on_segment(vif)?, i64::from(*mtu)))).collect();
    let needed = large.iter().map(|(.., mtu)| *mtu).max()?;
    let vifs: Vec<_> =
        large.iter().map(|(vif, segment, mtu)| format!("{mtu} bytes by {vif} (segment {segment})")).collect();
    let tag = if least.counts_tag() { TAG } else { 0 };
    let counted = if tag > 0 { format!(", {TAG} of them for the VLAN tag") } else { String::new() };
    Some(warn(
        CHECK,
        format!(
            "router {} on {} sends packets of {}, and uplink {} has MTU {}{counted}: what is larger is lost there",
            report.router,
            report.node,
            some(&vifs),
            least.words(),
            least.mtu
        ),
        format!(
            "on node {}: ip link set {} mtu {}, and frames of {} bytes with the tag on every switch of the trunk; or \
             MTU {} in the guest of {}",
            least.node,
            least.port,
            needed + tag,
            needed + TAG + ETHERNET,
            least.carries,
            report.router
        ),
    ))
}

/// Bytes of an Ethernet header.
const ETHERNET: i64 = 14;
