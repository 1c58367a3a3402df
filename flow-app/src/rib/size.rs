//! What an object of a guest costs its host: an estimate in bytes, from above, of what the daemon keeps for it.
//!
//! It depends on the object alone, so that sums can be kept as objects come and go. Counted are the entry in the table,
//! with leaves of a B-tree as empty as they get, what the entry points to, and what is derived from it for as long as it
//! stands. Not counted is what is under way, which other limits bound, and what ends up in the switch: flows are bounded by
//! `max_routes`, groups by [`crate::group`].

use std::mem::size_of;
use std::sync::Arc;

use xenflow_proto::Object;
use xenflow_proto::table::{
    AddressKey, Hop, IfIndex, Link, NeighborKey, NextHop, NextHopKind, ObstacleKey, Route, RouteKey,
    RouteTarget, Settings,
};

use super::{Attributes, Stamped};

/// Of a prefix: its places in the limit (24 bytes of an ordered set, up to two nodes of a trie) and among the entries (a
/// block with lists of one), whether a group is its own, a rejection with the answer that tells of it.
const PREFIX: usize = 544;
/// Of a link or an address: the binding, which may stand twice, and its places.
const BOUND: usize = 320;
/// Of a gateway that a hop names: its count, and that of those on its link.
const GATEWAY: usize = entry::<NeighborKey, u32>() + entry::<IfIndex, u32>();
/// The allocator's part of an allocation.
const ALLOCATION: usize = 16;

/// An entry of a B-tree, whose leaves may be half empty.
const fn entry<K, V>() -> usize {
    2 * (size_of::<K>() + size_of::<V>())
}

/// So many elements of a list that has no room to spare.
const fn list<T>(len: usize) -> usize {
    if len == 0 { 0 } else { len * size_of::<T>() + ALLOCATION }
}

fn gateways(hops: &[Hop]) -> usize {
    hops.iter().filter(|hop| hop.gateway.is_some()).count() * GATEWAY
}

/// Of an object of the tables, in bytes. Its lists have no room to spare: see [`trim`].
pub(super) fn size(object: &Object) -> usize {
    match object {
        Object::Link(link) => link_size(link),
        Object::Address(_) => entry::<AddressKey, Stamped<()>>() + entry::<std::net::IpAddr, usize>() + BOUND,
        Object::Route(route) => route_size(&route.target),
        Object::NextHop(it) => next_hop_size(it),
        Object::Neighbor(_) => entry::<NeighborKey, Stamped<xenflow_proto::MacAddr>>() + PREFIX,
        Object::Settings(_) => entry::<(), Stamped<Settings>>(),
        Object::Obstacle(it) => obstacle_size(&it.detail),
    }
}

pub(super) fn link_size(link: &Link) -> usize {
    let texts = list::<u8>(link.name.len()) + list::<u8>(link.kind.len());
    entry::<IfIndex, Stamped<Link>>() + texts + BOUND
}

/// Of a route with that target, which no other one may have.
pub(super) fn route_size(target: &RouteTarget) -> usize {
    let attributes = size_of::<Attributes>() + ALLOCATION + 2 * size_of::<usize>();
    let interned = entry::<Arc<Attributes>, (u32, u32)>() + 2 * size_of::<Option<Arc<Attributes>>>();
    let target = match target {
        RouteTarget::Hops(hops) => list::<Hop>(hops.len()) + gateways(hops),
        RouteTarget::NextHop(_) => entry::<(u32, RouteKey), ()>() + entry::<u32, u32>(),
    };
    entry::<RouteKey, (u32, u32)>() + attributes + interned + target + PREFIX
}

pub(super) fn next_hop_size(next_hop: &NextHop) -> usize {
    let members = match &next_hop.kind {
        NextHopKind::Group(members) => {
            let of_each = entry::<(u32, u32), ()>() + entry::<u32, u32>();
            list::<(u32, u32)>(members.len()) + members.len() * of_each
        }
        NextHopKind::Single(hop) => gateways(std::slice::from_ref(hop)),
        NextHopKind::Blackhole | NextHopKind::Unsupported => 0,
    };
    entry::<u32, Stamped<NextHop>>() + members
}

pub(super) fn obstacle_size(detail: &str) -> usize {
    entry::<ObstacleKey, Stamped<String>>() + list::<u8>(detail.len())
}

/// Gives back what the lists of an object have room for and do not hold: what comes off the wire has been built by and by.
pub(super) fn trim(object: &mut Object) {
    match object {
        Object::Link(link) => {
            link.name.shrink_to_fit();
            link.kind.shrink_to_fit();
        }
        Object::Route(Route { target: RouteTarget::Hops(hops), .. }) => hops.shrink_to_fit(),
        Object::NextHop(NextHop { kind: NextHopKind::Group(members), .. }) => members.shrink_to_fit(),
        Object::Obstacle(it) => it.detail.shrink_to_fit(),
        Object::Route(_)
        | Object::NextHop(_)
        | Object::Address(_)
        | Object::Neighbor(_)
        | Object::Settings(_) => {}
    }
}
