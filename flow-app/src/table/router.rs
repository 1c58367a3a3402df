//! Router: (segment, MAC of a vif) → that router; all else is switched.

use openflow::{Flow, Match};
use xenflow_proto::table::Family;

use crate::fib::BoundVif;
use crate::pipeline::{
    ETH_IPV4, ETH_IPV6, HOPS, L2, LOCAL, MAX_ROUTERS, ROUTER, ROUTER_ID, TABLE_ID, cookie, priority, punt,
    set_reg, table_id,
};
use crate::punt::PuntClass;

pub(super) fn flows(flows: &mut Vec<Flow>) {
    let last = 1 << (MAX_ROUTERS - 1);
    let too_many = Match::builder().reg_masked(HOPS, last, last).build();
    let loops = Flow::new(ROUTER, priority::EXCEPTION, cookie::TOPOLOGY, too_many);
    flows.push(loops.apply([punt(PuntClass::Exception)]).goto(L2));
    flows.push(Flow::new(ROUTER, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).goto(L2));
}

/// The gate of a vif for a family: with this flow its router's packets are forwarded by the host, without it by the
/// guest.
pub(crate) fn gate(vif: &BoundVif, family: Family) -> Flow {
    let eth_type = match family {
        Family::V4 => ETH_IPV4,
        Family::V6 => ETH_IPV6,
    };
    let matching = Match::builder().vlan(vif.vlan.get()).eth_dst(vif.mac.0).eth_type(eth_type).build();
    let table = table_id(vif.table);
    let mut actions = vec![set_reg(ROUTER_ID, vif.id.router.0.into())];
    if table != 0 {
        actions.push(set_reg(TABLE_ID, table));
    }
    Flow::new(ROUTER, priority::NORMAL, cookie::router(vif.id.router), matching).apply(actions).goto(LOCAL)
}
