//! What forwards: the decision for a prefix, from one guest's tables and the vifs its host has plugged in.
//!
//! Pure functions of the present state: nothing is stored here, so nothing can be stale. The order of preference
//! is the kernel's (`fib_table_lookup`, `fib_select_default`, `fib6_table_lookup`): the table `local` before `main`; in a table the
//! longest prefix; of a prefix the lowest metric; a route whose next hops are all dead does not count. Whatever
//! destination-only flows cannot decide as the kernel would is [`Verdict::Punt`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use xenflow_proto::table::{
    Hop, HopFlags, IfIndex, Link, NextHopKind, Route, RouteKind, RouteTarget, TABLE_LOCAL, TABLE_MAIN,
};
use xenflow_proto::{MacAddr, VlanId};

use crate::rib::Rib;
use crate::topology::{RouterId, Topology, Vif, VifId};

/// What becomes of the packets of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// They leave by this next hop.
    Via(Adjacency),
    /// The guest decides.
    Punt,
    /// Dropped without a word (blackhole).
    Drop,
}

/// A next hop: a neighbor's address on one of the router's vifs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Adjacency {
    /// The vif it is reached by.
    pub vif: VifId,
    /// The neighbor; an IPv6 one hands IPv4 packets on as well (RFC 8950).
    pub addr: IpAddr,
}

/// How the guest's links and the host's vifs belong together. With the [`Rib`] it decides every flow of a router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binding {
    links: BTreeMap<IfIndex, BoundVif>,
}

/// A vif that is plugged in here and is a link of its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundVif {
    /// Which one.
    pub id: VifId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its segment.
    pub vlan: VlanId,
    /// Another vif of the router lets bigger packets in: the guest must answer or fragment them.
    pub is_narrow: bool,
}

impl Binding {
    /// Finds a guest's links by their MAC among the vifs of its router. A link counts if it is up, has carrier,
    /// is no stacked device (a VLAN or macvlan has its parent's MAC too) and belongs to no bridge or VRF; two
    /// links with one MAC: neither counts.
    #[must_use]
    pub fn new(rib: &Rib, topology: &Topology, router: RouterId) -> Self {
        let mut by_mac: BTreeMap<MacAddr, Vec<&Link>> = BTreeMap::new();
        for link in rib.links().filter(|link| is_plain(link)) {
            if let Some(mac) = link.mac {
                by_mac.entry(mac).or_default().push(link);
            }
        }
        let bound = |(id, vif): (VifId, &Vif)| {
            vif.port?;
            let vlan = vif.vlan()?;
            match by_mac.get(&vif.mac)?.as_slice() {
                [link] if link.up && link.running && link.master.is_none() => {
                    Some((*link, BoundVif { id, mac: vif.mac, vlan, is_narrow: false }))
                }
                _ => None,
            }
        };
        let bound: Vec<(&Link, BoundVif)> = topology.vifs_of(router).filter_map(bound).collect();
        let widest = bound.iter().map(|(link, _)| link.mtu).max().unwrap_or(0);
        let narrowed =
            |(link, vif): (&Link, BoundVif)| (link.ifindex, BoundVif { is_narrow: link.mtu < widest, ..vif });
        Self { links: bound.into_iter().map(narrowed).collect() }
    }

    /// The vif of a link.
    #[must_use]
    pub fn vif(&self, ifindex: IfIndex) -> Option<&BoundVif> {
        self.links.get(&ifindex)
    }

    /// The vif of that id, with its link.
    #[must_use]
    pub fn link(&self, vif: VifId) -> Option<(IfIndex, &BoundVif)> {
        self.links.iter().find(|(_, bound)| bound.id == vif).map(|(ifindex, bound)| (*ifindex, bound))
    }

    /// Vifs that have a link.
    pub fn vifs(&self) -> impl Iterator<Item = &BoundVif> {
        self.links.values()
    }
}

/// Kinds of links that are interfaces of their own: hardware (and what Xen and QEMU offer), and the veth of a lab.
fn is_plain(link: &Link) -> bool {
    matches!(link.kind.as_str(), "" | "veth")
}

/// One guest's tables with the binding of its links.
#[derive(Debug, Clone, Copy)]
pub struct Fib<'a> {
    /// What the guest says.
    pub rib: &'a Rib,
    /// Where its links are.
    pub binding: &'a Binding,
}

impl Fib<'_> {
    /// The flow that the route table holds for exactly this prefix; none where shorter ones decide.
    #[must_use]
    pub fn route(&self, prefix: IpNet) -> Option<Verdict> {
        match self.best(prefix) {
            Some(Best::Via(adjacency)) => Some(Verdict::Via(adjacency)),
            Some(Best::Drop) => Some(Verdict::Drop),
            // Each destination is its own next hop: hosts have flows of their own once they are resolved.
            Some(Best::OnLink(_) | Best::Punt) => Some(Verdict::Punt),
            None if is_host(prefix) => self.on_link_host(prefix.addr()),
            None => None,
        }
    }

    /// The local table decides before any other, and the guest must see what it holds.
    #[must_use]
    pub fn is_local(&self, prefix: IpNet) -> bool {
        self.rib.candidates(TABLE_LOCAL, prefix).next().is_some()
    }

    /// The neighbor's link-layer address, where the next hop can be used now.
    #[must_use]
    pub fn resolve(&self, adjacency: Adjacency) -> Option<MacAddr> {
        let (ifindex, _) = self.binding.link(adjacency.vif)?;
        let mac = self.rib.neighbor(ifindex, adjacency.addr)?;
        (mac.is_unicast() && !adjacency.addr.is_unspecified()).then_some(mac)
    }

    /// The best route of a prefix in the main table.
    fn best(&self, prefix: IpNet) -> Option<Best> {
        let candidates = || self.rib.candidates(TABLE_MAIN, prefix);
        if candidates().any(|route| route.key.tos != 0) {
            // The packet's TOS decides too, which destination-only flows do not look at.
            return Some(Best::Punt);
        }
        candidates().find_map(|route| self.judge(route, prefix))
    }

    /// What a route says; none: it does not count, the next candidate or a shorter prefix decides.
    fn judge(&self, route: &Route, prefix: IpNet) -> Option<Best> {
        match route.kind {
            RouteKind::Blackhole => return Some(Best::Drop),
            RouteKind::Unicast => {}
            RouteKind::Local
            | RouteKind::Broadcast
            | RouteKind::Anycast
            | RouteKind::Multicast
            | RouteKind::Unreachable
            | RouteKind::Prohibit
            | RouteKind::Throw
            | RouteKind::Other(_) => return Some(Best::Punt),
        }
        let hops = match &route.target {
            RouteTarget::Hops(hops) => hops.as_slice(),
            RouteTarget::NextHop(id) => match self.rib.next_hop(*id).map(|object| &object.kind) {
                Some(NextHopKind::Single(hop)) => std::slice::from_ref(hop),
                Some(NextHopKind::Blackhole) => return Some(Best::Drop),
                Some(NextHopKind::Group(_) | NextHopKind::Unsupported) | None => return Some(Best::Punt),
            },
        };
        match hops {
            [hop] if hop.flags.0 & HopFlags::DEAD != 0 => None,
            [hop] => Some(self.hop(hop, route, prefix).unwrap_or(Best::Punt)),
            _ => Some(Best::Punt),
        }
    }

    /// A next hop that the host can use for the guest.
    fn hop(&self, hop: &Hop, route: &Route, prefix: IpNet) -> Option<Best> {
        let ifindex = hop.oif?;
        let BoundVif { id: vif, is_narrow, .. } = *self.binding.vif(ifindex)?;
        if hop.encap || hop.flags.is_dead() || route.mtu.is_some() || is_narrow {
            return None;
        }
        match hop.gateway {
            Some(IpAddr::V4(_)) if prefix.addr().is_ipv6() => None,
            Some(addr) => Some(Best::Via(Adjacency { vif, addr })),
            None if is_host(prefix) => Some(Best::Via(Adjacency { vif, addr: prefix.addr() })),
            None => Some(Best::OnLink(vif)),
        }
    }

    /// A resolved neighbor that its on-link prefix covers: it is its own next hop.
    fn on_link_host(&self, addr: IpAddr) -> Option<Verdict> {
        let shorter = (0..IpNet::from(addr).prefix_len()).rev();
        let covering = shorter.into_iter().find_map(|len| self.best(IpNet::new(addr, len).ok()?.trunc()))?;
        let Best::OnLink(vif) = covering else { return None };
        let adjacency = Adjacency { vif, addr };
        self.resolve(adjacency).map(|_| Verdict::Via(adjacency))
    }
}

fn is_host(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// What the best route of a prefix says.
#[derive(Debug, Clone, Copy)]
enum Best {
    Via(Adjacency),
    OnLink(VifId),
    Punt,
    Drop,
}
