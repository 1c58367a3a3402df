//! What this host has: ports, segments, vifs. The flow app's view of the configuration and of the switch, as
//! plain values; where they come from (OVSDB) is the daemon's business.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use xenflow_proto::{MacAddr, VlanId};

use crate::punt::PuntRates;
use crate::queue::QueueClass;
use crate::stance::Stance;

/// OpenFlow number of a port.
pub type PortNo = u32;

/// Number of a router in the flow tables; the same on every host and for ever. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId(pub u16);

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a vif: unique within its router, never 0, the same on every host and for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VifId {
    /// Its router.
    pub router: RouterId,
    /// Its number within the router.
    pub number: u16,
}

/// A router's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vif {
    /// Unique on the host: the guest's link is found by it.
    pub mac: MacAddr,
    /// Where it is attached.
    pub attachment: Attachment,
    /// The switch port, once the toolstack has plugged it.
    pub port: Option<PortNo>,
}

/// Where a vif is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// To a segment.
    Segment(VlanId),
    /// To the control network.
    Control,
}

impl Vif {
    /// The segment, unless it is the control vif.
    #[must_use]
    pub fn vlan(&self) -> Option<VlanId> {
        match self.attachment {
            Attachment::Segment(vlan) => Some(vlan),
            Attachment::Control => None,
        }
    }
}

/// Whether the host forwards for a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum FastPath {
    /// Where destination-only flows decide as the guest would.
    #[default]
    Auto,
    /// Whatever else the guest's kernel would look at.
    Always,
    /// The guest forwards everything itself.
    Never,
}

/// What the operator says of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Whether the host forwards for it.
    pub fast_path: FastPath,
    /// Prefixes that the host forwards for it, at most; as many more are punted (see [`crate::limit`]).
    pub max_routes: usize,
    /// Packets that its guest gets.
    pub punt_rates: PuntRates,
}

impl Default for Policy {
    fn default() -> Self {
        Self { fast_path: FastPath::Auto, max_routes: 1_000_000, punt_rates: PuntRates::default() }
    }
}

/// Everything that the flows of a host depend on, but for what its guests say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Segments that exist.
    pub segments: BTreeSet<VlanId>,
    /// Trunks to other hosts.
    pub uplinks: BTreeSet<PortNo>,
    /// End hosts and ordinary VMs: port and segment.
    pub access: BTreeMap<PortNo, VlanId>,
    /// The only source addresses that an access port may use, where it is not free to use any.
    pub access_macs: BTreeMap<PortNo, BTreeSet<MacAddr>>,
    /// Addresses that another node has, by segment: of vifs, also of one that is plugged in here, and of end hosts.
    pub elsewhere: BTreeSet<(VlanId, MacAddr)>,
    /// Vifs of the routers that are configured, plugged in here or not.
    pub vifs: BTreeMap<VifId, Vif>,
    /// By router; the default for one that is missing.
    pub policies: BTreeMap<RouterId, Policy>,
    /// The number of the queue that a segment's packets have on every uplink: its network's, 1 to
    /// [`crate::queue::MAX_QUEUE`]. A segment that is missing has none.
    pub queues: BTreeMap<VlanId, u32>,
    /// Classes of the networks' traffic, by the number of the network's queue and priority, 1 to 1000: the greater wins.
    pub classes: BTreeMap<u32, BTreeMap<u16, QueueClass>>,
    /// Uplinks that cannot shape: what has a maximum passes meters there.
    pub metered: BTreeSet<PortNo>,
    /// Most that a queue's packets get of an uplink, in kbit/s, by its number. A network's own is the most of all its packets,
    /// those of its classes included.
    pub maxima: BTreeMap<u32, u32>,
    /// Bytes of the largest IP packet that any of the ports takes in, where that is more than Ethernet's 1500.
    pub max_mtu: u32,
    /// The host's own port on the control network.
    pub control_port: Option<PortNo>,
    /// How routers stand here while they move. One that is missing stands as its ports do: [`Stance::HOME`] where they are
    /// plugged in and nobody else has their addresses, nothing elsewhere.
    pub stances: BTreeMap<RouterId, Stance>,
    /// Of those whose gates are closed, whose tables are whole: packets that are taken back out rehearse in them. Earlier, each change of
    /// the tables would be another thing to look at.
    pub rehearsed: BTreeSet<RouterId>,
    /// The address that the node itself sends from, where it is known.
    pub node_mac: Option<MacAddr>,
}

impl Topology {
    /// How a router stands here; none: as its ports do.
    #[must_use]
    pub fn stance(&self, router: RouterId) -> Option<Stance> {
        self.stances.get(&router).copied()
    }

    /// The flows of a router may be here; else it is as if it were not configured.
    #[must_use]
    pub fn has_tables(&self, router: RouterId) -> bool {
        self.stance(router).is_none_or(|stance| stance.tables)
    }

    /// What a guest says of the link that is this vif counts.
    #[must_use]
    pub fn is_bound(&self, id: VifId, vif: &Vif) -> bool {
        self.stance(id.router).map_or(vif.port.is_some(), |stance| stance.tables)
    }

    /// Some vif of the router counts here: packets may come in by it.
    #[must_use]
    pub fn is_here(&self, router: RouterId) -> bool {
        self.vifs_of(router).any(|(id, vif)| self.is_bound(id, vif))
    }

    /// Vifs that sit on a segment, plugged in here or not: id, vif, segment.
    pub fn segment_vifs(&self) -> impl Iterator<Item = (VifId, &Vif, VlanId)> {
        self.vifs.iter().filter_map(|(id, vif)| Some((*id, vif, vif.vlan()?)))
    }

    /// Vifs of a router.
    pub fn vifs_of(&self, router: RouterId) -> impl Iterator<Item = (VifId, &Vif)> {
        let bounds = VifId { router, number: 0 }..=VifId { router, number: u16::MAX };
        self.vifs.range(bounds).map(|(id, vif)| (*id, vif))
    }

    /// What the operator says of a router.
    #[must_use]
    pub fn policy(&self, router: RouterId) -> Policy {
        self.policies.get(&router).copied().unwrap_or_default()
    }

    /// Routers that have a vif.
    #[must_use]
    pub fn routers(&self) -> BTreeSet<RouterId> {
        self.vifs.keys().map(|id| id.router).collect()
    }

    /// Vifs that are plugged in here and sit on a segment: id, vif, segment, port.
    pub fn bound_vifs(&self) -> impl Iterator<Item = (VifId, &Vif, VlanId, PortNo)> {
        self.segment_vifs().filter_map(|(id, vif, vlan)| Some((id, vif, vlan, vif.port?)))
    }

    /// Control vifs that are plugged in here: vif and port.
    pub fn control_vifs(&self) -> impl Iterator<Item = (&Vif, PortNo)> {
        self.vifs
            .values()
            .filter(|vif| vif.attachment == Attachment::Control)
            .filter_map(|v| Some((v, v.port?)))
    }

    /// Another node has this address of the segment, whatever is plugged in here.
    #[must_use]
    pub fn is_elsewhere(&self, segment: VlanId, mac: MacAddr) -> bool {
        self.elsewhere.contains(&(segment, mac))
    }

    /// Addresses of end hosts that one access port of a segment may use, and no other node has: segment, address, port.
    #[must_use]
    pub fn placed_hosts(&self) -> BTreeMap<(VlanId, MacAddr), PortNo> {
        let mut ports: BTreeMap<(VlanId, MacAddr), BTreeSet<PortNo>> = BTreeMap::new();
        for (port, macs) in &self.access_macs {
            let Some(vlan) = self.access.get(port) else { continue };
            for mac in macs.iter().filter(|mac| !self.is_elsewhere(*vlan, **mac)) {
                ports.entry((*vlan, *mac)).or_default().insert(*port);
            }
        }
        let one = |(place, ports): (_, BTreeSet<PortNo>)| match ports.first() {
            Some(port) if ports.len() == 1 => Some((place, *port)),
            _ => None,
        };
        ports.into_iter().filter_map(one).collect()
    }

    /// Something of a segment's packets has a maximum at a port that cannot shape.
    #[must_use]
    pub fn is_limited(&self, segment: VlanId, port: PortNo) -> bool {
        let Some(own) = self.queues.get(&segment).filter(|_| self.metered.contains(&port)) else {
            return false;
        };
        let classes = self.classes.get(own).into_iter().flat_map(BTreeMap::values).map(|class| class.queue);
        classes.chain([*own]).any(|queue| self.maxima.contains_key(&queue))
    }

    /// Ports of a segment on this host, uplinks included.
    #[must_use]
    pub fn members(&self, segment: VlanId) -> BTreeSet<PortNo> {
        let vifs = self.bound_vifs().filter(|(_, _, vlan, _)| *vlan == segment).map(|(_, _, _, port)| port);
        vifs.chain(self.learning(segment)).collect()
    }

    /// Those of them behind which addresses are learned. A vif's is known.
    pub fn learning(&self, segment: VlanId) -> impl Iterator<Item = PortNo> {
        let access = self.access.iter().filter(move |(_, vlan)| **vlan == segment).map(|(port, _)| *port);
        access.chain(self.uplinks.iter().copied())
    }
}
