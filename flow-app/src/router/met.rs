//! The flows of a router that one packet may meet: of a million routes those that cover its address.
//!
//! Reads only. As in [`super::view`], what is said is what was decided last.

use std::net::IpAddr;

use ipnet::IpNet;
use openflow::{Flow, Group};
use xenflow_proto::MacAddr;
use xenflow_proto::table::{IfIndex, TABLE_MAIN};

use super::Router;
use super::place::Place;
use crate::fib::{Adjacency, Multipath};
use crate::table::Side;
use crate::topology::VifId;

/// Neighbors of a link that are looked through for a link-layer address.
const MOST_NEIGHBORS: usize = 65_536;
/// Addresses that are given of a link.
const MOST_ADDRESSES: usize = 64;

impl Router {
    /// Its gates. None before the guest's first snapshot.
    pub(crate) fn gates(&self) -> impl Iterator<Item = &Flow> {
        self.gates.values().filter(|_| self.synced)
    }

    /// The flow of the longest prefix in a routing table that covers an address; 0 is the main one.
    pub(crate) fn met_route(&self, table: u32, addr: IpAddr) -> Option<Flow> {
        let table = if table == 0 { TABLE_MAIN } else { table };
        self.entries.met(table, addr).filter(|_| self.synced)
    }

    /// The flow of packets to an address, or from one, that is the guest's own business.
    pub(crate) fn met_local(&self, is_source: bool, addr: IpAddr) -> Option<Flow> {
        let side = if is_source { Side::Source } else { Side::Destination };
        self.met(addr, |prefix| Some(Place::Local(side, prefix)))
    }

    /// The rewrite towards a next hop.
    pub(crate) fn met_next_hop(&self, adjacency: Adjacency, eth_type: u16) -> Option<Flow> {
        self.view_place(Place::NextHop(adjacency, eth_type)).filter(|_| self.synced)
    }

    pub(crate) fn met_group(&self, id: u32) -> Option<Group> {
        self.groups.get(id)
    }

    /// The next hops that a group is for.
    pub(crate) fn hops_of_group(&self, id: u32) -> Option<&Multipath> {
        self.groups.hops_of(id)
    }

    fn met(&self, addr: IpAddr, place: impl Fn(IpNet) -> Option<Place>) -> Option<Flow> {
        let lengths = (0..=IpNet::from(addr).max_prefix_len()).rev().filter(|_| self.synced);
        let prefixes = lengths.filter_map(|len| Some(IpNet::new(addr, len).ok()?.trunc()));
        prefixes.filter_map(place).find_map(|place| self.view_place(place))
    }

    /// The link-layer address of a neighbor on a vif.
    pub(crate) fn neighbor_on(&self, vif: VifId, addr: IpAddr) -> Option<MacAddr> {
        let (ifindex, _) = self.binding.link(vif)?;
        self.rib.neighbor(ifindex, addr)
    }

    /// An address that a neighbor on a vif has, by its link-layer address.
    pub(crate) fn address_on(&self, vif: VifId, mac: MacAddr, is_ipv4: bool) -> Option<IpAddr> {
        let of = |ifindex: IfIndex| self.rib.neighbors_on(ifindex).take(MOST_NEIGHBORS);
        let (ifindex, _) = self.binding.link(vif)?;
        let mut all = of(ifindex).filter(|(addr, _)| addr.is_ipv4() == is_ipv4);
        all.find(|(addr, found)| *found == mac && !is_link_local(*addr)).map(|(addr, _)| addr)
    }

    /// The guest's addresses on a vif, each with its subnet.
    pub(crate) fn own_on(&self, vif: VifId) -> Vec<IpNet> {
        let Some((ifindex, _)) = self.binding.link(vif) else { return Vec::new() };
        let all = self.rib.addresses_on(ifindex).filter(|net| !is_link_local(net.addr()));
        all.take(MOST_ADDRESSES).collect()
    }
}

/// No router forwards from or to it.
fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}
