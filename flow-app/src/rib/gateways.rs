//! Gateways of routes, and which of them no neighbor stands for: counted as routes, next-hop objects and neighbors come
//! and go. Decides nothing: what is counted here is shown to people.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv4Addr};

use xenflow_proto::MacAddr;
use xenflow_proto::table::{Hop, IfIndex, NeighborKey, NextHop, NextHopKind, RouteKey, RouteTarget};

use super::{Rib, Stamped, count};

type Neighbors = BTreeMap<NeighborKey, Stamped<MacAddr>>;
type NextHops = BTreeMap<u32, Stamped<NextHop>>;

/// See the module. A gateway is in one of the two, with how many hops of routes and of next-hop objects in use name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gateways {
    resolved: BTreeMap<NeighborKey, u32>,
    unresolved: BTreeMap<NeighborKey, u32>,
    /// How many of them are on each link.
    on_links: BTreeMap<IfIndex, u32>,
    /// Next-hop objects in use, known or not: one for all routes that refer to it themselves, and one for each time that
    /// it is a member of a group that routes refer to.
    uses: BTreeMap<u32, u32>,
}

impl Gateways {
    /// A hop names its gateway, or no more. One that is dead or encapsulated is not used whatever its neighbor does.
    fn name(&mut self, hop: &Hop, counts: bool, neighbors: &Neighbors) {
        let (Some(ifindex), Some(addr)) = (hop.oif, hop.gateway) else { return };
        if hop.flags.is_dead() || hop.encap {
            return;
        }
        let key = NeighborKey { ifindex, addr };
        if is_resolved(neighbors, &key) {
            tally(&mut self.resolved, key, counts);
        } else if tally(&mut self.unresolved, key, counts) {
            tally(&mut self.on_links, ifindex, counts);
        }
    }

    /// What uses a next-hop object comes or goes.
    fn use_object(&mut self, id: u32, counts: bool, next_hops: &NextHops, neighbors: &Neighbors) {
        if tally(&mut self.uses, id, counts)
            && let Some(Stamped { value: NextHop { kind: NextHopKind::Single(hop), .. }, .. }) =
                next_hops.get(&id)
        {
            self.name(hop, counts, neighbors);
        }
    }
}

fn is_resolved(neighbors: &Neighbors, key: &NeighborKey) -> bool {
    neighbors.get(key).is_some_and(|entry| entry.value.is_unicast())
}

/// Adds or takes away one; true if it was the first or the last.
fn tally<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K, comes: bool) -> bool {
    match (counts.entry(key), comes) {
        (Entry::Vacant(entry), true) => {
            entry.insert(1);
            true
        }
        (Entry::Occupied(mut entry), true) => {
            *entry.get_mut() += 1;
            false
        }
        (Entry::Occupied(entry), false) if *entry.get() == 1 => {
            entry.remove();
            true
        }
        (Entry::Occupied(mut entry), false) => {
            *entry.get_mut() -= 1;
            false
        }
        (Entry::Vacant(_), false) => false,
    }
}

impl Rib {
    /// A route, as it is, counts among those of its next-hop object, and for its gateways; or no more.
    pub(super) fn count_route(&mut self, key: RouteKey, counts: bool) {
        let Self { routes, gateways, neighbors, .. } = self;
        let Some((route, _)) = routes.get(key) else { return };
        let id = match &route.attributes.target {
            RouteTarget::Hops(hops) => {
                hops.iter().for_each(|hop| gateways.name(hop, counts, neighbors));
                return;
            }
            RouteTarget::NextHop(id) => *id,
        };
        count(&mut self.users, (id, key), counts);
        // The first one that comes, the last one that goes.
        let others = self.routes_by(id, None).take(2).count();
        if others != usize::from(counts) {
            return;
        }
        let Self { next_hops, neighbors, gateways, .. } = self;
        gateways.use_object(id, counts, next_hops, neighbors);
        if let Some(Stamped { value: NextHop { kind: NextHopKind::Group(members), .. }, .. }) =
            next_hops.get(&id)
        {
            for (member, _) in members {
                gateways.use_object(*member, counts, next_hops, neighbors);
            }
        }
    }

    /// A next-hop object, as it is, counts among the groups of its members, and for its gateway; or no more.
    pub(super) fn count_next_hop(&mut self, id: u32, counts: bool) {
        let is_used = self.routes_by(id, None).next().is_some();
        let Self { next_hops, neighbors, gateways, groups, .. } = self;
        match next_hops.get(&id).map(|entry| &entry.value.kind) {
            Some(NextHopKind::Group(members)) => {
                for (member, _) in members {
                    count(groups, (*member, id), counts);
                    if is_used {
                        gateways.use_object(*member, counts, next_hops, neighbors);
                    }
                }
            }
            Some(NextHopKind::Single(hop)) if gateways.uses.contains_key(&id) => {
                gateways.name(hop, counts, neighbors);
            }
            Some(NextHopKind::Single(_) | NextHopKind::Blackhole | NextHopKind::Unsupported) | None => {}
        }
    }

    /// A neighbor came, changed or went.
    pub(super) fn settle_gateway(&mut self, key: NeighborKey) {
        let Gateways { resolved, unresolved, on_links, uses: _ } = &mut self.gateways;
        let is_resolved = is_resolved(&self.neighbors, &key);
        let (from, to) = if is_resolved { (unresolved, resolved) } else { (resolved, unresolved) };
        if let Some(hops) = from.remove(&key) {
            to.insert(key, hops);
            tally(on_links, key.ifindex, !is_resolved);
        }
    }

    /// How many gateways on a link are named by routes and stood for by no neighbor.
    #[must_use]
    pub fn count_unresolved(&self, ifindex: IfIndex) -> u32 {
        self.gateways.on_links.get(&ifindex).copied().unwrap_or_default()
    }

    /// Which ones, in order.
    pub fn unresolved_on(&self, ifindex: IfIndex) -> impl Iterator<Item = IpAddr> {
        let first = NeighborKey { ifindex, addr: Ipv4Addr::UNSPECIFIED.into() };
        let range = self.gateways.unresolved.range(first..);
        range.take_while(move |(key, _)| key.ifindex == ifindex).map(|(key, _)| key.addr)
    }
}
