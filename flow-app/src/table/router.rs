//! Router: (segment, MAC of a vif) → that router; all else is switched.

use openflow::{Flow, Match};

use crate::fib::BoundVif;
use crate::pipeline::{
    ETH_IP, HOPS, L2, LOCAL, MAX_ROUTERS, ROUTER, ROUTER_ID, cookie, priority, punt, set_reg,
};
use crate::punt::PuntClass;

pub(super) fn flows(flows: &mut Vec<Flow>) {
    let last = 1 << (MAX_ROUTERS - 1);
    let too_many = Match::builder().reg_masked(HOPS, last, last).build();
    let loops = Flow::new(ROUTER, priority::EXCEPTION, cookie::TOPOLOGY, too_many);
    flows.push(loops.apply([punt(PuntClass::Exception)]).goto(L2));
    flows.push(Flow::new(ROUTER, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).goto(L2));
}

/// The gates of a vif: with these flows its router's packets are forwarded by the host, without them by the guest.
pub(crate) fn gates(vif: &BoundVif) -> impl Iterator<Item = Flow> {
    let BoundVif { id, mac, vlan, is_narrow: _ } = *vif;
    ETH_IP.into_iter().map(move |eth_type| {
        let matching = Match::builder().vlan(vlan.get()).eth_dst(mac.0).eth_type(eth_type).build();
        Flow::new(ROUTER, priority::NORMAL, cookie::router(id.router), matching)
            .apply([set_reg(ROUTER_ID, id.router.0.into())])
            .goto(LOCAL)
    })
}
