//! Local: what only the guest's IP stack can answer goes to its vif: its own and broadcast addresses, packets at
//! the end of their life, and addresses that a router must not forward (RFC 1812 5.3.7, `ip_route_input_slow`).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use openflow::{Flow, Match, MatchBuilder};

use crate::pipeline::{ETH_IPV4, L2, LOCAL, ROUTE, ROUTER_ID, cookie, priority};
use crate::topology::RouterId;

/// Never forwarded, as destination or as source: "this network", loopback, multicast, reserved and broadcast.
const MARTIANS: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

pub(super) fn flows(flows: &mut Vec<Flow>) {
    let ip = || Match::builder().eth_type(ETH_IPV4);
    let mut punt = |matching: MatchBuilder| {
        flows.push(Flow::new(LOCAL, priority::EXCEPTION, cookie::TOPOLOGY, matching.build()).goto(L2));
    };
    punt(ip().ip_ttl(0));
    punt(ip().ip_ttl(1));
    for (addr, len) in MARTIANS {
        let mask = mask(len);
        punt(ip().ipv4_dst_masked(addr, mask));
        punt(ip().ipv4_src_masked(addr, mask));
    }
    flows.push(Flow::new(LOCAL, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).goto(ROUTE));
}

/// Packets to an address of the guest's local table.
pub(crate) fn local_destination(router: RouterId, prefix: Ipv4Net) -> Flow {
    let matching = of(router).ipv4_dst_masked(prefix.addr(), prefix.netmask());
    punt(router, prefix, matching)
}

/// Packets *from* an address of the guest's local table: somebody else uses it, and the guest drops and logs them.
pub(crate) fn local_source(router: RouterId, prefix: Ipv4Net) -> Flow {
    let matching = of(router).ipv4_src_masked(prefix.addr(), prefix.netmask());
    punt(router, prefix, matching)
}

fn of(router: RouterId) -> MatchBuilder {
    Match::builder().reg(ROUTER_ID, router.0.into()).eth_type(ETH_IPV4)
}

fn punt(router: RouterId, prefix: Ipv4Net, matching: MatchBuilder) -> Flow {
    let priority = priority::PREFIX + u16::from(prefix.prefix_len());
    Flow::new(LOCAL, priority, cookie::router(router), matching.build()).goto(L2)
}

fn mask(len: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0))
}
