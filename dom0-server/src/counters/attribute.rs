//! What a flow, a port or a meter counts for.

use std::collections::{BTreeMap, BTreeSet};

use openflow::{Action, Field, Flow, Instruction};
use xenflow_flow_app::pipeline::{
    ADMISSION, EGRESS, FLAGS, NEXT_HOP, OUT_PORT, PUNT_CLASS, PUNT_CLASS_BIT, ROUTER, cookie, priority,
};
use xenflow_flow_app::{PortNo, PuntClass, RouterId, Topology};
use xenflow_proto::{MacAddr, Name};

use super::{Place, Scope};
use crate::db::{self, Desired};
use crate::ports::SwitchPorts;

/// The names of what is counted, as they are now.
#[derive(Debug, Clone, Default)]
pub struct Names {
    node: Option<Place>,
    ports: BTreeMap<PortNo, Place>,
    /// By VLAN: its segment and network.
    segments: BTreeMap<u16, [Place; 2]>,
    routers: BTreeMap<RouterId, Place>,
    /// By port, the router that a vif's is of.
    router_of_port: BTreeMap<PortNo, RouterId>,
    /// Vifs of each router by MAC.
    vifs: BTreeMap<(RouterId, MacAddr), Place>,
    all: BTreeSet<Place>,
}

impl Names {
    /// Of what is configured and plugged in.
    #[must_use]
    pub fn new(node: &Name, desired: &Desired, topology: &Topology, ports: &SwitchPorts) -> Self {
        let mut names = Self { node: Some((Scope::Node, node.to_string())), ..Self::default() };
        for segment in desired.segments.values() {
            let places =
                [(Scope::Segment, segment.name.to_string()), (Scope::Network, segment.network.to_string())];
            names.segments.insert(segment.vlan.get(), places);
        }
        for router in desired.routers.values() {
            names.routers.insert(RouterId(router.id.get()), (Scope::Router, router.name.to_string()));
        }
        let vifs: BTreeMap<(u16, u16), &db::Vif> = desired
            .vifs
            .values()
            .filter_map(|vif| Some(((desired.routers.get(&vif.router)?.id.get(), vif.number.get()), vif)))
            .collect();
        for (id, vif) in &topology.vifs {
            let Some(row) = vifs.get(&(id.router.0, id.number)) else { continue };
            let place = (Scope::Vif, row.name.to_string());
            names.vifs.insert((id.router, vif.mac), place.clone());
            if let Some(port) = vif.port {
                names.ports.insert(port, place);
                names.router_of_port.insert(port, id.router);
            }
        }
        let by_number: BTreeMap<PortNo, &str> =
            ports.ports.iter().map(|port| (port.number, port.name.as_str())).collect();
        for port in &topology.uplinks {
            if let Some(name) = by_number.get(port) {
                names.ports.insert(*port, (Scope::Uplink, (*name).to_owned()));
            }
        }
        for port in &ports.ports {
            let name = port.iface_id.as_deref().filter(|_| topology.access.contains_key(&port.number));
            if let Some(name) = name {
                names.ports.insert(port.number, (Scope::Access, name.to_owned()));
            }
        }
        let segments = names.segments.values().flatten();
        let known =
            names.ports.values().chain(segments).chain(names.routers.values()).chain(names.vifs.values());
        names.all = known.chain(&names.node).cloned().collect();
        // What is unplugged for a while keeps its counters.
        names.all.extend(desired.access.keys().map(|name| (Scope::Access, name.to_string())));
        names.all.extend(desired.uplinks_of(node).into_iter().map(|name| (Scope::Uplink, name)));
        names
    }

    pub(super) fn has(&self, place: &Place) -> bool {
        self.all.contains(place)
    }

    pub(super) fn of_port(&self, port: PortNo) -> Option<Place> {
        self.ports.get(&port).cloned()
    }

    pub(super) fn of_router(&self, router: RouterId) -> Option<Place> {
        self.routers.get(&router).cloned()
    }

    /// The counters of a flow: places, and the first part of the counter's name.
    pub(super) fn of_flow(&self, flow: &Flow) -> Vec<(Place, String)> {
        match flow.table {
            ADMISSION => self.of_admission(flow),
            ROUTER => self.of_gate(flow),
            NEXT_HOP => {
                let router = cookie::router_of(flow.cookie).and_then(|id| self.of_router(id));
                router.into_iter().map(|place| (place, "forwarded".to_owned())).collect()
            }
            EGRESS => self.of_egress(flow),
            _ => Vec::new(),
        }
    }

    /// The tagger inward: what is admitted goes to the port and to its segment and network. What is refused counts by
    /// reason for the port; for the node, if it is nobody's.
    fn of_admission(&self, flow: &Flow) -> Vec<(Place, String)> {
        if let Some((reason, port)) = cookie::refusal_of(flow.cookie) {
            let counter = format!("dropped_{}", reason.as_str().replace('-', "_"));
            let place = self.of_port(port).or_else(|| self.node.clone());
            return place.into_iter().map(|place| (place, counter.clone())).collect();
        }
        let Some(port) = exact(flow, Field::InPort).and_then(|port| self.of_port(port)) else {
            return Vec::new();
        };
        if flow.priority != priority::NORMAL {
            // The control network.
            return Vec::new();
        }
        let segment = match exact(flow, Field::VlanVid) {
            // Untagged: the tag is what its actions set.
            Some(0) | None => vlan_set(flow),
            Some(tag) => Some(tag & 0xfff),
        };
        self.within(segment, "in").chain([(port, "in".to_owned())]).collect()
    }

    fn of_gate(&self, flow: &Flow) -> Vec<(Place, String)> {
        let Some(id) = cookie::router_of(flow.cookie) else { return Vec::new() };
        let mac = flow.matching.field(Field::EthDst).map(|field| mac_of(field.value));
        let vif = mac.and_then(|mac| self.vifs.get(&(id, mac)).cloned());
        self.of_router(id).into_iter().chain(vif).map(|place| (place, "received".to_owned())).collect()
    }

    /// The tagger outward: what leaves by a port; of it, what a guest gets, by class.
    fn of_egress(&self, flow: &Flow) -> Vec<(Place, String)> {
        let Some(number) = register(flow, OUT_PORT) else { return Vec::new() };
        let Some(port) = self.of_port(number) else { return Vec::new() };
        if flow.instructions.is_empty() {
            return Vec::new();
        }
        let segment = exact(flow, Field::VlanVid).map(|tag| tag & 0xfff);
        let class = register(flow, FLAGS).unwrap_or_default() & PUNT_CLASS;
        let class = PuntClass::ALL.into_iter().find(|it| u32::from(it.number()) << PUNT_CLASS_BIT == class);
        let router = self.router_of_port.get(&number).and_then(|id| self.of_router(*id));
        let punted = class.into_iter().flat_map(|class| {
            let counter = format!("punted_{}", class.as_str());
            [router.clone(), Some(port.clone())]
                .into_iter()
                .flatten()
                .map(move |place| (place, counter.clone()))
        });
        self.within(segment, "out").chain(punted).chain([(port.clone(), "out".to_owned())]).collect()
    }

    fn within(&self, vlan: Option<u32>, counter: &str) -> impl Iterator<Item = (Place, String)> {
        let vlan = vlan.and_then(|vlan| u16::try_from(vlan).ok());
        let places = vlan.and_then(|vlan| self.segments.get(&vlan));
        places.into_iter().flatten().map(move |place| (place.clone(), counter.to_owned()))
    }
}

/// The value of a field that is matched whole, or under a mask.
fn exact(flow: &Flow, field: Field) -> Option<u32> {
    u32::try_from(flow.matching.field(field)?.value).ok()
}

/// The bits of a register that are matched. Matches have registers in pairs, the even one first.
fn register(flow: &Flow, number: u8) -> Option<u32> {
    let pair = flow.matching.field(Field::Xreg(number / 2))?;
    let shift = if number.is_multiple_of(2) { 32 } else { 0 };
    let part = |bits: u128| u32::try_from((bits >> shift) & 0xffff_ffff).ok();
    part(pair.mask).filter(|mask| *mask != 0)?;
    part(pair.value)
}

fn mac_of(bits: u128) -> MacAddr {
    let [.., a, b, c, d, e, f] = bits.to_be_bytes();
    MacAddr([a, b, c, d, e, f])
}

/// The tag that a flow puts on its packets.
fn vlan_set(flow: &Flow) -> Option<u32> {
    let applied = flow.instructions.iter().filter_map(|instruction| {
        if let Instruction::ApplyActions(actions) = instruction { Some(actions) } else { None }
    });
    let mut tags = applied.flatten().filter_map(|action| {
        if let Action::SetField { field: Field::VlanVid, value, .. } = action {
            Some(value.get())
        } else {
            None
        }
    });
    let tag = tags.next().and_then(|tag| u32::try_from(tag).ok());
    tag.map(|tag| tag & 0xfff)
}
