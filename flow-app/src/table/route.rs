//! Route: router and prefix → next hop. The priority is the prefix length; without a route the guest answers.

use ipnet::IpNet;
use openflow::{Action, Flow, Match};

use super::{Side, address};
use crate::fib::Verdict;
use crate::pipeline::{L2, NEXT_HOP, ROUTE, ROUTER_ID, cookie, next_hop, priority};
use crate::topology::RouterId;

pub(super) fn flows(flows: &mut Vec<Flow>) {
    flows.push(Flow::new(ROUTE, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).goto(L2));
}

/// The flow of one prefix.
pub(crate) fn route(router: RouterId, prefix: IpNet, verdict: Verdict) -> Flow {
    let matching = address(Side::Destination, prefix).reg(ROUTER_ID, router.0.into()).build();
    let priority = priority::PREFIX + u16::from(prefix.prefix_len());
    let flow = Flow::new(ROUTE, priority, cookie::router(router), matching);
    match verdict {
        Verdict::Via(adjacency) => {
            let set = next_hop(adjacency).map(|(register, value)| Action::set_field(register, value));
            flow.apply(set.collect::<Vec<_>>()).goto(NEXT_HOP)
        }
        Verdict::Punt => flow.goto(L2),
        Verdict::Drop => flow,
    }
}
