//! Ports of the integration bridge, and how they belong to the desired state: the topology that the flow app gets.

use std::collections::{BTreeMap, BTreeSet};

use ovsdb::Uuid;
use xenflow_flow_app::{self as flow_app, PortNo, Topology};
use xenflow_proto::{MacAddr, Name, VlanId, control};

use crate::db::location::Place;
use crate::db::row::Router;
use crate::db::{Attachment, Desired};
use crate::queues::Numbers;
use crate::shaper::plan::QueueOf;

/// In the `external_ids` of an interface that was here when this node had its router's addresses: it has stayed, if these are
/// elsewhere now.
pub const HOME_ID: (&str, &str) = ("xenflow-home", "true");

/// An interface on the integration bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchPort {
    /// The interface's row: another one when it comes anew.
    pub row: Uuid,
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
    /// Its row says that it was here when this node had its router's addresses ([`HOME_ID`]).
    pub was_home: bool,
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

impl SwitchBuild {
    /// The datapath in user space ignores queues.
    #[must_use]
    pub fn can_shape(&self) -> bool {
        self.datapath != "netdev"
    }
}

/// What is plugged into the integration bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwitchPorts {
    /// Ordinary ports.
    pub ports: Vec<SwitchPort>,
    /// The control port.
    pub control: Option<ControlPort>,
    /// Queues by their numbers, as `QoS` rows of the bridge's ports have them.
    pub queues: BTreeMap<u32, QueueOf>,
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

/// Finds what a port is, from what the toolstack says of it.
#[derive(Debug)]
pub struct Owners<'a> {
    desired: &'a Desired,
    vifs: BTreeMap<MacAddr, &'a Name>,
    /// Access ports by the addresses their hosts may use; none: several may use it.
    hosts: BTreeMap<MacAddr, Option<&'a Name>>,
}

impl<'a> Owners<'a> {
    /// Among the vifs and access ports of this state.
    #[must_use]
    pub fn of(desired: &'a Desired) -> Self {
        let vifs = desired.vifs.iter().map(|(name, vif)| (vif.mac, name)).collect();
        let mut hosts = BTreeMap::new();
        for (name, access) in &desired.access {
            for mac in &access.macs {
                hosts.entry(*mac).and_modify(|one| *one = None).or_insert(Some(name));
            }
        }
        Self { desired, vifs, hosts }
    }

    /// The name of the vif or access port that an interface with these `external_ids` is; none: it stays dark.
    ///
    /// In this order: the vif with that `attached-mac`, what `iface-id` names, the only access port whose host may use
    /// that `attached-mac`.
    #[must_use]
    pub fn owner(&self, attached_mac: Option<MacAddr>, iface_id: Option<&str>) -> Option<&'a Name> {
        // A vif's MAC says more than the name, which operators may choose twice.
        let vif = attached_mac.and_then(|mac| self.vifs.get(&mac).copied());
        let named = || {
            let name: Name = iface_id?.parse().ok()?;
            let vif = self.desired.vifs.get_key_value(&name).map(|(name, _)| name);
            vif.or_else(|| self.desired.access.get_key_value(&name).map(|(name, _)| name))
        };
        let host = || self.hosts.get(&attached_mac?).copied().flatten();
        vif.or_else(named).or_else(host)
    }
}

/// Binds the ports to the desired state of this node; its queues have these numbers.
#[must_use]
pub fn bind(
    node: &Name,
    desired: &Desired,
    ports: &SwitchPorts,
    queues: &Numbers,
) -> (Topology, BTreeSet<PortProblem>) {
    let mut problems = BTreeSet::new();
    let uplinks = desired.uplinks_of(node);
    let mut topology = Topology {
        control_port: ports.control.map(|control| control.number),
        node_mac: Some(control::node_mac(node)),
        segments: desired.segments.values().map(|segment| segment.vlan).collect(),
        policies: desired.routers.values().map(policy).collect(),
        max_mtu: ports.ports.iter().map(|port| port.mtu).max().unwrap_or(0),
        ..Topology::default()
    };

    queues.put(desired, &mut topology);

    let owners = Owners::of(desired);
    let mut claims: BTreeMap<&Name, Vec<&SwitchPort>> = BTreeMap::new();
    for port in &ports.ports {
        if uplinks.contains(&port.name) {
            topology.uplinks.insert(port.number);
            continue;
        }
        match owners.owner(port.attached_mac, port.iface_id.as_deref()) {
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

/// What is bound to a port here: by its kind (`vif` or `access`) and its name.
pub type Bound = BTreeMap<(&'static str, Name), Binding>;

/// A port in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The router of a vif.
    pub router: Option<Name>,
    /// Its OpenFlow number.
    pub number: PortNo,
    /// Name of the interface.
    pub port: String,
}

/// What [`bind`] has bound, for the log.
#[must_use]
pub fn bound(desired: &Desired, topology: &Topology, ports: &SwitchPorts) -> Bound {
    let ports: BTreeMap<PortNo, &SwitchPort> = ports.ports.iter().map(|port| (port.number, port)).collect();
    let vifs = desired.vifs.values().filter_map(|vif| {
        let router = flow_app::RouterId(desired.routers.get(&vif.router)?.id.get());
        let id = flow_app::VifId { router, number: vif.number.get() };
        let port = ports.get(&topology.vifs.get(&id)?.port?)?;
        let binding =
            Binding { router: Some(vif.router.clone()), number: port.number, port: port.name.clone() };
        Some((("vif", vif.name.clone()), binding))
    });
    let owners = Owners::of(desired);
    let access = topology.access.keys().filter_map(|number| {
        let port = ports.get(number)?;
        let name = owners.owner(port.attached_mac, port.iface_id.as_deref())?.clone();
        Some((("access", name), Binding { router: None, number: port.number, port: port.name.clone() }))
    });
    vifs.chain(access).collect()
}

/// Says what was bound and what is no more; only how much, if it was not known what was bound before.
pub fn log(before: Option<&Bound>, now: &Bound) {
    let Some(before) = before else {
        tracing::info!(name: "port-bound", ports = now.len(), "ports are bound");
        return;
    };
    for (key, binding) in before.iter().filter(|(key, _)| !now.contains_key(*key)) {
        let (router, vif, access) = columns(key, binding);
        tracing::info!(name: "port-unbound", router, vif, access, port = binding.port, "the port is not bound any more");
    }
    for (key, binding) in now.iter().filter(|(key, binding)| before.get(*key) != Some(*binding)) {
        let (router, vif, access) = columns(key, binding);
        tracing::info!(name: "port-bound", router, vif, access, port = binding.port, "the port is bound");
    }
}

/// Router, vif and access port, as far as a binding has them.
fn columns<'a>(
    (kind, name): &'a (&'static str, Name),
    binding: &'a Binding,
) -> (Option<&'a str>, Option<&'a str>, Option<&'a str>) {
    let of = |which| (*kind == which).then_some(name.as_str());
    (binding.router.as_ref().map(Name::as_str), of("vif"), of("access"))
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
