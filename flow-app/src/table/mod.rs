//! The flows of each table. Every function here is pure: state in, flows out.

mod admission;
mod classify;
mod control;
mod egress;
mod l2;
mod local;
mod next_hop;
mod outlet;
mod queue;
mod route;
mod router;

use std::net::IpAddr;

use ipnet::IpNet;
use openflow::{Field, Flow, Match, MatchBuilder};

use crate::pipeline::{ETH_IPV4, ETH_IPV6};
use crate::topology::Topology;

pub(crate) use local::{is_martian, local};
pub(crate) use next_hop::next_hop;
pub(crate) use route::{Outcome, is_punt, route, towards};
pub(crate) use router::gate;

/// The group bit of a MAC address.
const GROUP: [u8; 6] = [1, 0, 0, 0, 0, 0];

/// The flows that depend on no guest.
pub(crate) fn topology_flows(topology: &Topology) -> Vec<Flow> {
    let mut flows = Vec::new();
    admission::flows(topology, &mut flows);
    control::flows(topology, &mut flows);
    router::flows(&mut flows);
    local::flows(topology, &mut flows);
    route::flows(&mut flows);
    next_hop::flows(&mut flows);
    l2::flows(topology, &mut flows);
    egress::flows(topology, &mut flows);
    queue::flows(topology, &mut flows);
    queue::limits(topology, &mut flows);
    classify::flows(&mut flows);
    flows
}

/// One of the two addresses of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Side {
    Destination,
    Source,
}

/// IP packets with an address in the prefix.
fn address(side: Side, prefix: IpNet) -> MatchBuilder {
    let (eth_type, destination, source) = match prefix {
        IpNet::V4(_) => (ETH_IPV4, Field::Ipv4Dst, Field::Ipv4Src),
        IpNet::V6(_) => (ETH_IPV6, Field::Ipv6Dst, Field::Ipv6Src),
    };
    let field = match side {
        Side::Destination => destination,
        Side::Source => source,
    };
    Match::builder().eth_type(eth_type).masked(field, bits(prefix.addr()), bits(prefix.netmask()))
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}
