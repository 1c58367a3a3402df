//! Checks of the bridge's ports against the database: what is missing, dark or too small.

use std::collections::{BTreeMap, BTreeSet};

use dom0_server::db::Desired;
use dom0_server::ports::Owners;
use xenflow_proto::Name;

use super::facts::{Bridge, Facts, Port, Switch};
use super::finding::{Finding, fail, ok, or_ok, some, warn};

/// Bytes of an IEEE 802.1Q tag.
pub(super) const TAG: i64 = 4;

pub(super) fn check(switch: &Switch, facts: &Facts) -> Vec<Finding> {
    let Some(bridge) = switch.bridge(&facts.bridge) else { return Vec::new() };
    let mut all = errors(bridge);
    let Some(fleet) = facts.known() else { return all };
    let node = facts.node.as_ref().and_then(|node| node.as_deref().ok());
    let uplinks = uplinks(&fleet.desired, node, bridge);
    all.extend(trunks(bridge, &uplinks));
    all.extend(dark(bridge, &fleet.desired, &uplinks));
    all.extend(mtu(bridge, &fleet.desired, &uplinks));
    all
}

/// Of this node; where its name is not known, whatever here is an uplink of some node.
fn uplinks(desired: &Desired, node: Option<&str>, bridge: &Bridge) -> BTreeSet<String> {
    let own = desired.uplinks.iter().find(|(name, _)| Some(name.as_str()) == node);
    match (own, node) {
        (Some((_, uplinks)), _) => uplinks.clone(),
        (None, Some(_)) => BTreeSet::new(),
        (None, None) => {
            let all = desired.uplinks.values().flatten();
            all.filter(|uplink| bridge.ports.iter().any(|port| port.name == **uplink)).cloned().collect()
        }
    }
}

fn find<'a>(bridge: &'a Bridge, name: &str) -> Option<&'a Port> {
    bridge.ports.iter().find(|port| port.name == name)
}

/// Ports that Open vSwitch cannot open.
pub(super) fn errors(bridge: &Bridge) -> Vec<Finding> {
    let wrong = bridge.ports.iter().filter_map(|port| {
        let seen = format!("port {}: {}", port.name, port.error.as_ref()?);
        let todo = format!("bring its device back, or ovs-vsctl del-port {} {}", bridge.name, port.name);
        Some(warn("ports", seen, todo))
    });
    or_ok(wrong.collect(), "ports", format!("{} on {}, all open", bridge.ports.len(), bridge.name))
}

pub(super) fn trunks(bridge: &Bridge, uplinks: &BTreeSet<String>) -> Vec<Finding> {
    let wrong = uplinks.iter().filter_map(|name| match find(bridge, name) {
        None => Some(fail(
            "uplinks",
            format!("uplink {name} is not on {}: segments end at this host", bridge.name),
            format!("ovs-vsctl add-port {} {name}, or xenflow uplink remove", bridge.name),
        )),
        Some(port) if !port.has_link => {
            Some(fail("uplinks", format!("uplink {name} has no link"), "look at the cable and the device"))
        }
        Some(_) => None,
    });
    let seen = match uplinks.len() {
        0 => "none: routers of this host reach only each other".to_owned(),
        n => format!("{n}, with link"),
    };
    or_ok(wrong.collect(), "uplinks", seen)
}

/// Ports of nobody, and those that want to be one thing: what comes in by them is dropped.
pub(super) fn dark(bridge: &Bridge, desired: &Desired, uplinks: &BTreeSet<String>) -> Vec<Finding> {
    let owners = Owners::of(desired);
    let mut claims: BTreeMap<&Name, Vec<&str>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for port in bridge.ports.iter().filter(|port| !port.is_own && !uplinks.contains(&port.name)) {
        match owners.owner(port.attached_mac, port.iface_id.as_deref()) {
            Some(name) => claims.entry(name).or_default().push(&port.name),
            None => wrong.push(unclaimed(port)),
        }
    }
    for (name, mut ports) in claims.into_iter().filter(|(_, ports)| ports.len() > 1) {
        ports.sort_unstable();
        wrong.push(warn(
            "dark-ports",
            format!("ports {} all claim to be {name}: none is used", some(&ports)),
            format!("ovs-vsctl del-port {} all but one", bridge.name),
        ));
    }
    or_ok(wrong, "dark-ports", "every port is a vif, an access port or an uplink")
}

fn unclaimed(port: &Port) -> Finding {
    let check = "dark-ports";
    match (&port.iface_id, port.attached_mac) {
        // What libvirt and vif-xenflow set; the name that they give is none that anybody chose.
        (Some(id), Some(mac)) => warn(
            check,
            format!(
                "port {} has {mac} (external_ids:attached-mac) and is {id} (iface-id), which the database does not know",
                port.name
            ),
            format!("xenflow vif add NAME --mac {mac} … or xenflow access add NAME --mac {mac} …"),
        ),
        (None, Some(mac)) => warn(
            check,
            format!(
                "port {} has {mac} (external_ids:attached-mac), which the database does not know",
                port.name
            ),
            format!("xenflow vif add NAME --mac {mac} … or xenflow access add NAME --mac {mac} …"),
        ),
        (Some(id), None) => warn(
            check,
            format!("port {} is {id} (external_ids:iface-id), which the database does not know", port.name),
            format!("xenflow vif add {id} … or xenflow access add {id} …"),
        ),
        (None, None) => warn(
            check,
            format!("port {} has no external_ids:iface-id: its packets are dropped", port.name),
            format!(
                "ovs-vsctl set interface {} external_ids:iface-id=NAME, of a vif or access port",
                port.name
            ),
        ),
    }
}

/// The kernel's datapath does not count a tag in the MTU of a device; user space does.
pub(super) fn mtu(bridge: &Bridge, desired: &Desired, uplinks: &BTreeSet<String>) -> Vec<Finding> {
    let check = "mtu";
    let trunks: Vec<_> = uplinks.iter().filter_map(|name| find(bridge, name)).collect();
    let owners = Owners::of(desired);
    let guests = (bridge.ports.iter())
        .filter(|port| owners.owner(port.attached_mac, port.iface_id.as_deref()).is_some());
    let Some(largest) = guests.filter_map(|port| Some((port.mtu?, port.name.as_str()))).max() else {
        return vec![ok(check, "no guest's port to compare with")];
    };
    let in_kernel = matches!(bridge.datapath.as_str(), "" | "system");
    let needed = if in_kernel { largest.0 } else { largest.0 + TAG };
    let wrong: Vec<_> = trunks
        .iter()
        .filter_map(|port| {
            let mtu = port.mtu.filter(|mtu| *mtu < needed)?;
            Some(fail(
                check,
                format!(
                    "uplink {} has MTU {mtu}, port {} has {}: large packets are lost",
                    port.name, largest.1, largest.0
                ),
                format!(
                    "ip link set {} mtu {needed} and on every switch of the trunk, or less in the guests",
                    port.name
                ),
            ))
        })
        .collect();
    or_ok(wrong, check, format!("guests {}, uplinks at least {needed}", largest.0))
}
