//! Local and source: what only the guest's IP stack can answer goes to its vif: its own and broadcast addresses, of
//! whatever class their packets are, and as exceptions packets at the end of their life, and addresses to or from which
//! a router must not forward (RFC 1812 5.3.7, `ip_route_input_slow`; RFC 4291 2.5 and 2.7, `ip6_rcv_core`,
//! `ip6_forward`). What a packet comes from only marks it; the route table hands it over.
//!
//! Before all of that is the gate of a router that moves: one flow, which takes a packet back out of the router, so that it is
//! switched to where that is. Where there are tables behind it, a copy goes through them, and then nowhere.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use openflow::{Action, Field, Flow, Match, MatchBuilder};

use super::{Side, address};
use crate::pipeline::{
    ETH_IP, FLAGS, FROM_UPLINK, L2, LATE, LOCAL, REHEARSED, ROUTE, ROUTER_ID, SOURCE, TABLE_ID, cookie,
    priority, punt, set_reg,
};
use crate::punt::PuntClass;
use crate::stance::Gate;
use crate::topology::{RouterId, Topology};

/// Never forwarded, as destination or as source: "this network", loopback, multicast, reserved and broadcast; the
/// unspecified address, loopback, IPv4-mapped, link-local and multicast.
const MARTIANS: [IpNet; 9] = [
    ipv4(0, 8),
    ipv4(127, 8),
    ipv4(224, 4),
    ipv4(240, 4),
    ipv6([0; 8], 128),
    ipv6([0, 0, 0, 0, 0, 0, 0, 1], 128),
    ipv6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    ipv6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    ipv6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const fn ipv4(first: u8, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(first, 0, 0, 0), len))
}

const fn ipv6([a, b, c, d, e, f, g, h]: [u16; 8], len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), len))
}

/// No packet to the prefix gets as far as the route table: the kernel's own `fe80::/64` and `ff00::/8` among others.
pub(crate) fn is_martian(prefix: IpNet) -> bool {
    MARTIANS.iter().any(|martian| martian.contains(&prefix))
}

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    for (id, stance) in &topology.stances {
        let packets = Match::builder().reg(ROUTER_ID, id.0.into());
        if stance.gate == Gate::Late {
            let late = packets.clone().reg_masked(FLAGS, FROM_UPLINK, FROM_UPLINK | LATE);
            let count = Flow::new(LOCAL, priority::LATE, cookie::TOPOLOGY, late.build());
            let once = Action::set_masked(Field::Reg(FLAGS), LATE.into(), LATE.into());
            flows.push(count.apply([once, Action::resubmit(LOCAL)]));
        }
        let (packets, is_rehearsed) = match stance.gate {
            Gate::Closed => {
                (packets.reg_masked(FLAGS, 0, REHEARSED), stance.tables && topology.rehearsed.contains(id))
            }
            Gate::Late => (packets.reg_masked(FLAGS, 0, FROM_UPLINK), false),
            Gate::Open => continue,
        };
        let mut actions = Vec::new();
        if is_rehearsed {
            let mark = Action::set_masked(Field::Reg(FLAGS), REHEARSED.into(), REHEARSED.into());
            actions.push(Action::Clone(Box::new([mark, Action::resubmit(LOCAL)])));
        }
        actions.extend([set_reg(ROUTER_ID, 0), set_reg(TABLE_ID, 0)]);
        let gate = Flow::new(LOCAL, priority::GATE, cookie::TOPOLOGY, packets.build());
        flows.push(gate.apply(actions).goto(L2));
    }
    let exception = |table, matching: MatchBuilder| {
        let flow = Flow::new(table, priority::EXCEPTION, cookie::TOPOLOGY, matching.build());
        flow.apply([punt(PuntClass::Exception)])
    };
    for eth_type in ETH_IP {
        for ttl in [0, 1] {
            flows.push(exception(LOCAL, Match::builder().eth_type(eth_type).ip_ttl(ttl)).goto(L2));
        }
    }
    for martian in MARTIANS {
        flows.push(exception(LOCAL, address(Side::Destination, martian)).goto(L2));
        flows.push(exception(SOURCE, address(Side::Source, martian)));
    }
    let ask = [Action::resubmit(SOURCE)];
    flows.push(Flow::new(LOCAL, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).apply(ask).goto(ROUTE));
}

/// Packets to an address of the guest's local table, or *from* one: somebody else uses it, and the guest sees to it.
pub(crate) fn local(router: RouterId, side: Side, prefix: IpNet) -> Flow {
    let matching = address(side, prefix).reg(ROUTER_ID, router.0.into());
    let flow = |table, priority| Flow::new(table, priority, cookie::router(router), matching.build());
    match side {
        // Hellos and eBGP come with a TTL of 1 and must not drown among those that are to be answered.
        Side::Destination => flow(LOCAL, priority::FIRST).goto(L2),
        Side::Source => flow(SOURCE, priority::NORMAL).apply([punt(PuntClass::Exception)]),
    }
}
