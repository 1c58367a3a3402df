//! Places in the flow tables, and which of them each thing that a guest says decides.

use std::net::IpAddr;

use ipnet::IpNet;
use xenflow_proto::table::{IfIndex, TABLE_LOCAL};

use crate::fib::{Adjacency, Binding};
use crate::limit::Prefix;
use crate::pipeline::{ETH_IP, ETH_IPV4};
use crate::table::{self, Side};

/// A place in the flow tables that a router's own tables decide: there is at most one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    /// Packets to or from a local prefix.
    Local(Side, IpNet),
    /// The route of a prefix.
    Route(Prefix),
    /// The rewrite for a neighbor, of packets of that Ethernet type.
    NextHop(Adjacency, u16),
}

/// What a prefix in a table decides.
pub(super) fn places_of(table: u32, dst: IpNet) -> Vec<Place> {
    match table {
        TABLE_LOCAL => vec![Place::Local(Side::Destination, dst), Place::Local(Side::Source, dst)],
        _ => route(Prefix { table, dst }).into_iter().collect(),
    }
}

/// What an address of the guest decides.
pub(super) fn own(addr: IpAddr) -> Place {
    Place::Local(Side::Source, addr.into())
}

/// What a prefix in a table but the local one decides.
pub(super) fn route(prefix: Prefix) -> Option<Place> {
    (prefix.table != TABLE_LOCAL && !table::is_martian(prefix.dst)).then_some(Place::Route(prefix))
}

/// What a neighbor decides: the rewrites, where its link is bound, and whether it is its own next hop.
pub(super) fn of_neighbor(binding: &Binding, ifindex: IfIndex, addr: IpAddr) -> impl Iterator<Item = Place> {
    rewrites_of(binding, ifindex, addr).chain(hosts_of(binding, addr))
}

/// The rewrites for a neighbor, where its link is bound. An IPv6 neighbor may be the next hop of IPv4 packets (RFC
/// 8950).
pub(super) fn rewrites_of(binding: &Binding, ifindex: IfIndex, addr: IpAddr) -> impl Iterator<Item = Place> {
    let eth_types: &[u16] = if addr.is_ipv4() { &[ETH_IPV4] } else { &ETH_IP };
    let bound = binding.vif(ifindex).map(|vif| Adjacency { vif: vif.id, addr });
    bound.into_iter().flat_map(move |to| eth_types.iter().map(move |of| Place::NextHop(to, *of)))
}

/// Where a neighbor may be its own next hop.
pub(super) fn hosts_of(binding: &Binding, addr: IpAddr) -> impl Iterator<Item = Place> {
    binding.tables().iter().filter_map(move |&table| route(Prefix { table, dst: addr.into() }))
}
