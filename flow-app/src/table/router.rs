//! Router: (segment, MAC of a vif) → that router; all else is switched.

use openflow::{Flow, Match};

use crate::fib::BoundVif;
use crate::pipeline::{ETH_IPV4, HOPS, L2, LOCAL, MAX_ROUTERS, ROUTER, ROUTER_ID, cookie, priority, set_reg};

pub(super) fn flows(flows: &mut Vec<Flow>) {
    let last = 1 << (MAX_ROUTERS - 1);
    let too_many = Match::builder().reg_masked(HOPS, last, last).build();
    flows.push(Flow::new(ROUTER, priority::EXCEPTION, cookie::TOPOLOGY, too_many).goto(L2));
    flows.push(Flow::new(ROUTER, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).goto(L2));
}

/// The gate of a vif: with this flow its router's packets are forwarded by the host, without it by the guest.
pub(crate) fn gate(vif: &BoundVif) -> Flow {
    let BoundVif { id, mac, vlan, is_narrow: _ } = vif;
    let matching = Match::builder().vlan(vlan.get()).eth_dst(mac.0).eth_type(ETH_IPV4).build();
    Flow::new(ROUTER, priority::NORMAL, cookie::router(id.router), matching)
        .apply([set_reg(ROUTER_ID, id.router.0.into())])
        .goto(LOCAL)
}
