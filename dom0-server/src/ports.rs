//! Ports of the integration bridge, and how they belong to the desired state: the topology that the flow app gets.

use std::collections::{BTreeMap, BTreeSet};

use xenflow_flow_app::{self as flow_app, PortNo, Topology};
use xenflow_proto::{MacAddr, Name, VlanId};

use crate::db::location::Place;
use crate::db::row::Router;
use crate::db::{Attachment, Desired};

/// An interface on the integration bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchPort {
    /// Name of the interface.
    pub name: String,
    /// Its OpenFlow number.
    pub number: PortNo,
    /// `external_ids:iface-id`, set by the toolstack.
    pub iface_id: Option<String>,
    /// `external_ids:attached-mac`, set by the toolstack.
    pub attached_mac: Option<MacAddr>,
    /// It has a link.
    pub is_up: bool,
    /// Bytes of the largest IP packet that comes in by it; 0 where Open vSwitch does not say.
    pub mtu: u32,
}

/// The host's port on the control network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlPort {
    /// Its OpenFlow number.
    pub number: PortNo,
    /// Its number in the host's kernel.
    pub ifindex: u32,
}

/// What the switch is, as its own database says; empty where that does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwitchBuild {
    /// Of Open vSwitch: `3.1.0`.
    pub version: String,
    /// The kind of the integration bridge's datapath: `system` or `netdev`.
    pub datapath: String,
}

/// What is plugged into the integration bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwitchPorts {
    /// Ordinary ports.
    pub ports: Vec<SwitchPort>,
    /// The control port.
    pub control: Option<ControlPort>,
}

/// A port that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum PortProblem {
    /// Nothing in the database wants it: it stays dark.
    #[error("port {port} belongs to no vif, access port or uplink: it stays dark")]
    Unclaimed {
        /// Its name.
        port: String,
    },
    /// Two ports claim to be one thing: neither is used.
    #[error("ports {first} and {second} both claim to be {claim}: neither is used")]
    Ambiguous {
        /// A port.
        first: String,
        /// Another.
        second: String,
        /// The name of the vif or access port.
        claim: Name,
    },
}

/// Binds the ports to the desired state of this node.
#[must_use]
pub fn bind(node: &Name, desired: &Desired, ports: &SwitchPorts) -> (Topology, BTreeSet<PortProblem>) {
    let mut problems = BTreeSet::new();
    let uplinks = desired.uplinks_of(node);
    let mut topology = Topology {
        control_port: ports.control.map(|control| control.number),
        segments: desired.segments.values().map(|segment| segment.vlan).collect(),
        policies: desired.routers.values().map(policy).collect(),
        max_mtu: ports.ports.iter().map(|port| port.mtu).max().unwrap_or(0),
        ..Topology::default()
    };

    let by_mac: BTreeMap<MacAddr, &Name> = desired.vifs.iter().map(|(name, vif)| (vif.mac, name)).collect();
    let mut claims: BTreeMap<&Name, Vec<&SwitchPort>> = BTreeMap::new();
    for port in &ports.ports {
        if uplinks.contains(&port.name) {
            topology.uplinks.insert(port.number);
            continue;
        }
        // The MAC says more than the name, which operators may choose twice.
        let vif = port.attached_mac.and_then(|mac| by_mac.get(&mac).copied());
        let named = || {
            let name: Name = port.iface_id.as_deref()?.parse().ok()?;
            let vif = desired.vifs.get_key_value(&name).map(|(name, _)| name);
            vif.or_else(|| desired.access.get_key_value(&name).map(|(name, _)| name))
        };
        match vif.or_else(named) {
            Some(name) => claims.entry(name).or_default().push(port),
            None => {
                problems.insert(PortProblem::Unclaimed { port: port.name.clone() });
            }
        }
    }
    let mut port_of = |name: &Name| match claims.get(name)?.as_slice() {
        [port] => Some(port.number),
        [first, second, ..] => {
            let (first, second) = (first.name.clone(), second.name.clone());
            problems.insert(PortProblem::Ambiguous { first, second, claim: name.clone() });
            None
        }
        [] => None,
    };
    for (name, vif) in &desired.vifs {
        let Some(router) = desired.routers.get(&vif.router) else { continue };
        let attachment = match &vif.attachment {
            Attachment::Control => flow_app::Attachment::Control,
            Attachment::Segment(segment) => match desired.segments.get(segment) {
                Some(segment) => flow_app::Attachment::Segment(segment.vlan),
                None => continue,
            },
        };
        let router = flow_app::RouterId(router.id.get());
        let id = flow_app::VifId { router, number: vif.number.get() };
        let port = port_of(name);
        topology.vifs.insert(id, flow_app::Vif { mac: vif.mac, attachment, port });
    }
    for (name, access) in &desired.access {
        if let (Some(port), Some(segment)) = (port_of(name), desired.segments.get(&access.segment)) {
            topology.access.insert(port, segment.vlan);
            if !access.macs.is_empty() {
                topology.access_macs.insert(port, access.macs.clone());
            }
        }
    }
    (topology, problems)
}

/// Addresses of data vifs, and of access ports that have theirs declared, whose port is here and has a link.
#[must_use]
pub fn here(desired: &Desired, topology: &Topology, ports: &SwitchPorts) -> BTreeSet<Place> {
    let up: BTreeSet<PortNo> = ports.ports.iter().filter(|port| port.is_up).map(|port| port.number).collect();
    let names: BTreeMap<VlanId, &Name> =
        desired.segments.values().map(|segment| (segment.vlan, &segment.name)).collect();
    let place = |vlan: VlanId, mac: MacAddr| {
        names.get(&vlan).map(|segment| Place { segment: (*segment).clone(), mac })
    };
    let vifs = topology.bound_vifs().filter(|(.., port)| up.contains(port));
    let vifs = vifs.filter_map(|(_, vif, vlan, _)| place(vlan, vif.mac));
    let hosts = topology.access_macs.iter().filter(|(port, _)| up.contains(port));
    let hosts = hosts.filter_map(|(port, macs)| Some((*topology.access.get(port)?, macs)));
    vifs.chain(hosts.flat_map(|(vlan, macs)| macs.iter().filter_map(move |mac| place(vlan, *mac)))).collect()
}

/// What other nodes have, as far as anybody wants it: a row may outlive what it is of.
#[must_use]
pub fn elsewhere(desired: &Desired, places: &BTreeSet<Place>) -> BTreeSet<(VlanId, MacAddr)> {
    let vifs = desired.vifs.values().filter_map(|vif| match &vif.attachment {
        Attachment::Segment(segment) => Some((segment, vif.mac)),
        Attachment::Control => None,
    });
    let hosts = desired.access.values();
    let hosts = hosts.flat_map(|access| access.macs.iter().map(|mac| (&access.segment, *mac)));
    let is_there = |segment: &Name, mac| places.contains(&Place { segment: segment.clone(), mac });
    let there = vifs.chain(hosts).filter(|(segment, mac)| is_there(segment, *mac));
    there.filter_map(|(segment, mac)| Some((desired.segments.get(segment)?.vlan, mac))).collect()
}

fn policy(router: &Router) -> (flow_app::RouterId, flow_app::Policy) {
    (flow_app::RouterId(router.id.get()), router.policy.effective())
}
