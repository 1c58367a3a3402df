//! Route: router and prefix → next hop. The priority is the prefix length; without a route the guest answers.

use ipnet::Ipv4Net;
use openflow::{Action, Field, Flow, Match};

use crate::fib::Verdict;
use crate::pipeline::{L2, NEXT_HOP, NEXT_HOP_ID, ROUTE, ROUTER_ID, cookie, next_hop_value, priority};
use crate::topology::RouterId;

pub(super) fn flows(flows: &mut Vec<Flow>) {
    flows.push(Flow::new(ROUTE, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).goto(L2));
}

/// The flow of one prefix.
pub(crate) fn route(router: RouterId, prefix: Ipv4Net, verdict: Verdict) -> Flow {
    let matching = Match::builder()
        .reg(ROUTER_ID, router.0.into())
        .ipv4_dst_prefix(prefix.addr(), prefix.prefix_len())
        .build();
    let priority = priority::PREFIX + u16::from(prefix.prefix_len());
    let flow = Flow::new(ROUTE, priority, cookie::router(router), matching);
    match verdict {
        Verdict::Via(adjacency) => flow
            .apply([Action::set_field(Field::Xreg(NEXT_HOP_ID), next_hop_value(adjacency).into())])
            .goto(NEXT_HOP),
        Verdict::Punt => flow.goto(L2),
        Verdict::Drop => flow,
    }
}
