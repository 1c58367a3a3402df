//! What forwards: the decision for a prefix, from one guest's tables and the vifs that count at its host.
//!
//! Pure functions of the present state: nothing is stored here, so nothing can be stale. The order of preference
//! is the kernel's (`fib_table_lookup`, `fib_select_default`, `fib6_table_lookup`): the table `local` first, then that of
//! the vif: `main`, or its VRF's; in a table the longest prefix; of a prefix the lowest metric; a route whose next
//! hops are all dead does not count. What a VRF's table does not know is looked up in `main` by the guest itself.
//! Whatever destination-only flows cannot decide as the kernel would is [`Verdict::Punt`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use xenflow_proto::table::{
    Family, Hop, HopFlags, IfIndex, Link, NextHopKind, RouteKey, RouteKind, RouteTarget, TABLE_LOCAL,
    TABLE_MAIN,
};
use xenflow_proto::{MacAddr, VlanId};

use crate::answer::Rejection;
use crate::fast_path;
use crate::punt::PuntClass;
use crate::rib::{Rib, RouteRef};
use crate::topology::{RouterId, Topology, Vif, VifId};

/// What becomes of the packets of a prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// They leave by this next hop.
    Via(NextHop),
    /// They leave by one of several, those of one flow by the same. Packets larger than the smallest of their MTUs are
    /// the guest's, where any may be.
    OneOf(Multipath, Option<u16>),
    /// The guest decides.
    Punt(PuntClass),
    /// Dropped without a word (blackhole).
    Drop,
}

/// What a routing table says of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// What becomes of its packets, if there is room.
    pub verdict: Verdict,
    /// Why that is the guest's business where the guest's tables say how to forward; none: it is not, or passes.
    pub rejection: Option<Rejection>,
}

/// A next hop and what fits through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// Whom it goes to.
    pub adjacency: Adjacency,
    /// Bytes of the largest IP packet, where bigger ones may come: the guest answers or fragments those.
    pub mtu: Option<u16>,
}

/// Next hops that share the packets of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Multipath {
    /// Of the packets.
    pub family: Family,
    /// With their weights; sorted, each once.
    pub hops: Vec<(Adjacency, u32)>,
    /// The next-hop object that names them, which all of its routes follow.
    pub object: Option<u32>,
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
    /// Links that are vifs of the router, whether they can be used or not.
    vif_links: BTreeSet<IfIndex>,
    /// Links that are switched off, vifs or not.
    down: BTreeSet<IfIndex>,
    tables: BTreeSet<u32>,
    /// IP packets that come in are not larger, in bytes.
    widest: u32,
}

/// A vif that counts here ([`Topology::is_bound`]) and is a link of its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundVif {
    /// Which one.
    pub id: VifId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its segment.
    pub vlan: VlanId,
    /// The routing table for what comes in: [`TABLE_MAIN`], or that of its VRF.
    pub table: u32,
    /// Bytes of the largest IPv4 packet that it sends, and of the largest IPv6 packet.
    mtu: (u32, u32),
    /// Nothing of the guest's hangs in the way out.
    may_send: bool,
}

impl BoundVif {
    /// Bytes of the largest IP packet that it sends.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu.0
    }
}

/// What Ethernet carries everywhere: end hosts send that much, whatever the router's vifs take.
const ETHERNET_MTU: u32 = 1500;

impl Binding {
    /// Finds a guest's links by their MAC among the vifs of its router. A link counts if it is up, has carrier,
    /// is no stacked device (a VLAN or macvlan has its parent's MAC too) and belongs to nothing but a VRF; two
    /// links with one MAC: neither counts.
    #[must_use]
    pub fn new(rib: &Rib, topology: &Topology, router: RouterId) -> Self {
        let policy = topology.policy(router).fast_path;
        let mut by_mac: BTreeMap<MacAddr, Vec<&Link>> = BTreeMap::new();
        for link in rib.links().filter(|link| is_plain(link)) {
            if let Some(mac) = link.mac {
                by_mac.entry(mac).or_default().push(link);
            }
        }
        let bound = |(id, vif): (VifId, &Vif)| {
            let vlan = vif.vlan().filter(|_| topology.is_bound(id, vif))?;
            let [link] = by_mac.get(&vif.mac)?.as_slice() else { return None };
            if !link.up || !link.running {
                return None;
            }
            let ipv6_mtu = link.ipv6_mtu.unwrap_or(link.mtu).min(link.mtu);
            let bound = BoundVif {
                id,
                mac: vif.mac,
                vlan,
                table: table_of(link, rib)?,
                mtu: (link.mtu, ipv6_mtu),
                may_send: fast_path::may_send(policy, rib, link.ifindex),
            };
            Some((link.ifindex, bound))
        };
        let links: BTreeMap<IfIndex, BoundVif> = topology.vifs_of(router).filter_map(bound).collect();
        let vifs = topology.vifs_of(router).filter(|(_, vif)| vif.vlan().is_some());
        let links_of_vifs = vifs.filter_map(|(_, vif)| by_mac.get(&vif.mac)).flatten();
        let vif_links = links_of_vifs.map(|link| link.ifindex).collect();
        let widest = links.values().map(|vif| vif.mtu.0).max().unwrap_or(0);
        // Where no packet comes in there is nothing to look up: a router that has left may have a million routes.
        let main = topology.is_here(router).then_some(TABLE_MAIN);
        let tables = links.values().map(|vif| vif.table).chain(main).collect();
        let down = rib.links().filter(|link| !link.up).map(|link| link.ifindex).collect();
        Self { links, vif_links, down, tables, widest: widest.max(topology.max_mtu).max(ETHERNET_MTU) }
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
    pub fn vifs(&self) -> impl Iterator<Item = (IfIndex, &BoundVif)> {
        self.links.iter().map(|(ifindex, vif)| (*ifindex, vif))
    }

    /// Routing tables that have flows: the main one, and those that packets of vifs are looked up in. None where no vif counts.
    #[must_use]
    pub fn tables(&self) -> &BTreeSet<u32> {
        &self.tables
    }

    /// The limit of packets of that family that leave by a vif with a route of that MTU, if any that come in may
    /// be larger; an error if the switch cannot compare with it.
    fn limit(&self, vif: &BoundVif, family: Family, route: Option<u32>) -> Result<Option<u16>, u32> {
        let mtu = match family {
            Family::V4 => vif.mtu.0,
            Family::V6 => vif.mtu.1,
        };
        let mtu = route.unwrap_or(mtu).min(mtu);
        match u16::try_from(mtu) {
            _ if mtu >= self.widest => Ok(None),
            Ok(mtu) if mtu <= MAX_COMPARED => Ok(Some(mtu)),
            Ok(_) | Err(_) => Err(mtu),
        }
    }
}

/// The switch compares lengths of frames, of 16 bits.
const MAX_COMPARED: u16 = u16::MAX - crate::pipeline::ETH_HEADER;

/// Kinds of links that are interfaces of their own: hardware (and what Xen and QEMU offer), and the veth of a lab.
fn is_plain(link: &Link) -> bool {
    matches!(link.kind.as_str(), "" | "veth")
}

/// The table in which packets are looked up that come in by a link; none where that is not known.
fn table_of(link: &Link, rib: &Rib) -> Option<u32> {
    let Some(master) = link.master else { return Some(TABLE_MAIN) };
    let vrf = rib.link(master).filter(|master| master.kind == "vrf" && master.up)?;
    vrf.vrf_table.filter(|table| !matches!(*table, 0 | TABLE_MAIN | TABLE_LOCAL))
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
    /// What a routing table says of exactly this prefix; none where shorter ones decide.
    #[must_use]
    pub fn route(&self, table: u32, prefix: IpNet) -> Option<Ruling> {
        if !self.binding.tables.contains(&table) {
            return None;
        }
        let mut rejection = None;
        let verdict = match self.best(table, prefix) {
            Some(Best::Via(hop)) => Verdict::Via(hop),
            Some(Best::OneOf(hops, mtu)) => Verdict::OneOf(hops, mtu),
            Some(Best::Drop) => Verdict::Drop,
            Some(Best::Punt(class)) => Verdict::Punt(class),
            Some(Best::Unable(why)) => {
                rejection = why;
                Verdict::Punt(PuntClass::Transit)
            }
            // Each destination is its own next hop: hosts have flows of their own once they are resolved.
            Some(Best::OnLink(..)) => Verdict::Punt(PuntClass::Transit),
            None if is_host(prefix) => self.on_link_host(table, prefix.addr())?,
            None => return None,
        };
        Some(Ruling { verdict, rejection })
    }

    /// The local table decides before any other, and the guest must see what it holds.
    #[must_use]
    pub fn is_local(&self, prefix: IpNet) -> bool {
        self.rib.candidates(TABLE_LOCAL, prefix).next().is_some()
    }

    /// Packets *from* it are somebody else's: the local table has it, or it is an address of the guest's, which VRFs
    /// have in tables of their own.
    #[must_use]
    pub fn is_own(&self, prefix: IpNet) -> bool {
        self.is_local(prefix) || (is_host(prefix) && self.rib.has_address(prefix.addr()))
    }

    /// The neighbor's link-layer address, where the next hop can be used now.
    #[must_use]
    pub fn resolve(&self, adjacency: Adjacency) -> Option<MacAddr> {
        let (ifindex, _) = self.binding.link(adjacency.vif)?;
        let mac = self.rib.neighbor(ifindex, adjacency.addr)?;
        (mac.is_unicast() && !adjacency.addr.is_unspecified()).then_some(mac)
    }

    /// The best route of a prefix in a table.
    fn best(&self, table: u32, prefix: IpNet) -> Option<Best> {
        let candidates = || self.rib.candidates(table, prefix);
        // The last has the highest; there may be very many.
        if candidates().next_back().is_some_and(|route| route.key.tos != 0) {
            // The packet's TOS decides too, which destination-only flows do not look at.
            return Some(Best::Unable(Some(Rejection::TypeOfService)));
        }
        candidates().find_map(|route| self.judge(route, prefix))
    }

    /// The route that decides for a prefix in a table; none where none counts, or where a type of service stands in the
    /// way.
    #[must_use]
    pub fn deciding(&self, table: u32, prefix: IpNet) -> Option<RouteKey> {
        let candidates = || self.rib.candidates(table, prefix);
        if candidates().next_back().is_some_and(|route| route.key.tos != 0) {
            return None;
        }
        candidates().find(|route| self.judge(*route, prefix).is_some()).map(|route| route.key)
    }

    /// What a route says; none: it does not count, the next candidate or a shorter prefix decides.
    fn judge(&self, route: RouteRef<'_>, prefix: IpNet) -> Option<Best> {
        match route.kind {
            RouteKind::Blackhole => return Some(Best::Drop),
            RouteKind::Unicast => {}
            RouteKind::Local | RouteKind::Broadcast | RouteKind::Anycast => {
                return Some(Best::Punt(PuntClass::Host));
            }
            RouteKind::Unreachable | RouteKind::Prohibit => return Some(Best::Punt(PuntClass::Exception)),
            RouteKind::Multicast => return Some(Best::Punt(PuntClass::Transit)),
            RouteKind::Throw | RouteKind::Other(_) => return Some(Best::Unable(Some(Rejection::Kind))),
        }
        let group;
        let mut object = None;
        let hops = match &route.target {
            RouteTarget::Hops(hops) => hops.as_slice(),
            RouteTarget::NextHop(id) => match self.rib.next_hop(*id).map(|object| &object.kind) {
                Some(NextHopKind::Single(hop)) => std::slice::from_ref(hop),
                Some(NextHopKind::Blackhole) => return Some(Best::Drop),
                Some(NextHopKind::Group(members)) => match self.members(members) {
                    Ok(hops) => {
                        object = Some(*id);
                        group = hops;
                        group.as_slice()
                    }
                    Err(why) => return Some(Best::Unable(why)),
                },
                Some(NextHopKind::Unsupported) => return Some(Best::Unable(Some(Rejection::NextHop))),
                // It is still to be told, or its routes are to go.
                None => return Some(Best::Unable(None)),
            },
        };
        match hops {
            [hop] if hop.flags.0 & HopFlags::DEAD != 0 => None,
            // One that is left of a group stays one: its routes need not change when others come and go.
            [hop] if object.is_none() || hop.gateway.is_none() => {
                Some(self.hop(hop, route.mtu, prefix).unwrap_or_else(Best::Unable))
            }
            _ => Some(self.share(hops, route.mtu, prefix, object).unwrap_or_else(Best::Unable)),
        }
    }

    /// The hops of a group, with the group's weights; an error says why they cannot be used.
    fn members(&self, members: &[(u32, u32)]) -> Result<Vec<Hop>, Option<Rejection>> {
        let hop = |&(id, weight): &(u32, u32)| match self.rib.next_hop(id).map(|object| &object.kind) {
            Some(NextHopKind::Single(hop)) => Ok(Hop { weight, ..*hop }),
            Some(NextHopKind::Blackhole | NextHopKind::Group(_) | NextHopKind::Unsupported) => {
                Err(Some(Rejection::NextHop))
            }
            None => Err(None),
        };
        all(members.iter().map(hop))
    }

    /// A next hop that the host can use for the guest; an error says why it cannot be used.
    fn hop(&self, hop: &Hop, mtu: Option<u32>, prefix: IpNet) -> Result<Best, Option<Rejection>> {
        if hop.encap {
            return Err(Some(Rejection::Encapsulation));
        }
        let Some(vif) = hop.oif.and_then(|oif| self.binding.vif(oif)) else {
            let is_vif = hop.oif.is_some_and(|oif| self.binding.vif_links.contains(&oif));
            // Without a gateway it is a network of the guest's own.
            let is_foreign = !is_vif && (hop.gateway.is_some() || hop.oif.is_none());
            return Err(is_foreign.then_some(Rejection::Interface));
        };
        if matches!(hop.gateway, Some(IpAddr::V4(_))) && prefix.addr().is_ipv6() {
            return Err(Some(Rejection::NextHop));
        }
        let mtu = self.binding.limit(vif, Family::of(prefix.addr()), mtu);
        let mtu = mtu.map_err(|_| Some(Rejection::Mtu))?;
        if hop.flags.is_dead() || !vif.may_send {
            return Err(None);
        }
        let via = |addr| Best::Via(NextHop { adjacency: Adjacency { vif: vif.id, addr }, mtu });
        Ok(match hop.gateway {
            Some(addr) => via(addr),
            None if is_host(prefix) => via(prefix.addr()),
            None => Best::OnLink(vif.id, mtu),
        })
    }

    /// Several next hops: all that live must be usable. One whose link is down is dead for the kernel as well, even
    /// before the guest says so.
    fn share(
        &self,
        hops: &[Hop],
        mtu: Option<u32>,
        prefix: IpNet,
        object: Option<u32>,
    ) -> Result<Best, Option<Rejection>> {
        let is_down = |hop: &Hop| hop.oif.is_some_and(|oif| self.binding.down.contains(&oif));
        let is_alive = |hop: &&Hop| hop.flags.0 & HopFlags::DEAD == 0 && !is_down(hop);
        let usable = |hop: &Hop| match self.hop(hop, mtu, prefix)? {
            Best::Via(to) => Ok((to, hop.weight)),
            Best::OneOf(..) | Best::OnLink(..) | Best::Punt(_) | Best::Unable(_) | Best::Drop => {
                Err(Some(Rejection::NextHop))
            }
        };
        let mut shares: BTreeMap<Adjacency, u32> = BTreeMap::new();
        let mut smallest: Option<u16> = None;
        for (to, weight) in all(hops.iter().filter(is_alive).map(usable))? {
            smallest = [smallest, to.mtu].into_iter().flatten().min();
            let share = shares.entry(to.adjacency).or_default();
            *share = share.saturating_add(weight);
        }
        let hops: Vec<(Adjacency, u32)> = shares.into_iter().collect();
        match hops.as_slice() {
            [] => Err(None),
            [(adjacency, _)] if object.is_none() => {
                Ok(Best::Via(NextHop { adjacency: *adjacency, mtu: smallest }))
            }
            _ => Ok(Best::OneOf(Multipath { family: Family::of(prefix.addr()), hops, object }, smallest)),
        }
    }

    /// What routes of that family without an MTU of their own share by a next-hop object that is a group, and the smallest of its
    /// MTUs; none: it is no group, or the guest forwards by it.
    #[must_use]
    pub fn shared(&self, object: u32, family: Family) -> Option<(Multipath, Option<u16>)> {
        let Some(NextHopKind::Group(members)) = self.rib.next_hop(object).map(|object| &object.kind) else {
            return None;
        };
        let any: IpAddr = match family {
            Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let hops = self.members(members).ok()?;
        let all = IpNet::new(any, 0).ok()?;
        match self.share(&hops, None, all, Some(object)).ok()? {
            Best::OneOf(multipath, mtu) => Some((multipath, mtu)),
            Best::Via(_) | Best::OnLink(..) | Best::Punt(_) | Best::Unable(_) | Best::Drop => None,
        }
    }

    /// The smallest MTU of next hops, for routes without one of their own.
    #[must_use]
    pub fn smallest(&self, multipath: &Multipath) -> Option<u16> {
        let vifs = multipath.hops.iter().filter_map(|(hop, _)| self.binding.link(hop.vif));
        vifs.filter_map(|(_, vif)| self.binding.limit(vif, multipath.family, None).ok().flatten()).min()
    }

    /// A resolved neighbor that its on-link prefix covers: it is its own next hop.
    fn on_link_host(&self, table: u32, addr: IpAddr) -> Option<Verdict> {
        let shorter = (0..IpNet::from(addr).prefix_len()).rev();
        let covering =
            shorter.into_iter().find_map(|len| self.best(table, IpNet::new(addr, len).ok()?.trunc()))?;
        let Best::OnLink(vif, mtu) = covering else { return None };
        let adjacency = Adjacency { vif, addr };
        self.resolve(adjacency).map(|_| Verdict::Via(NextHop { adjacency, mtu }))
    }
}

/// All of them, or why not: of several errors one that does not pass.
fn all<T>(each: impl Iterator<Item = Result<T, Option<Rejection>>>) -> Result<Vec<T>, Option<Rejection>> {
    let (mut good, mut bad) = (Vec::new(), None);
    for one in each {
        match one {
            Ok(one) => good.push(one),
            Err(why) => bad = Some(bad.flatten().or(why)),
        }
    }
    bad.map_or(Ok(good), Err)
}

fn is_host(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// What the best route of a prefix says.
#[derive(Debug, Clone)]
enum Best {
    Via(NextHop),
    OneOf(Multipath, Option<u16>),
    OnLink(VifId, Option<u16>),
    Punt(PuntClass),
    /// The guest forwards, because the host cannot: never, for this reason, or not now.
    Unable(Option<Rejection>),
    Drop,
}
