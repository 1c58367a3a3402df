//! Route: router, routing table and prefix → next hop. The priority is the prefix length; without a route the guest
//! answers.

use openflow::{Action, Field, Flow, Instruction, Match};
use xenflow_proto::table::TABLE_MAIN;

use super::{Side, address};
use crate::fib::{Adjacency, NextHop};
use crate::limit::Prefix;
use crate::pipeline::{
    self, ETH_HEADER, FLAGS, L2, NEXT_HOP, PUNT_CLASS_BIT, ROUTE, ROUTER_ID, TABLE_ID, TOO_BIG_BIT, cookie,
    priority, punt,
};
use crate::punt::PuntClass;
use crate::topology::RouterId;

pub(super) fn flows(flows: &mut Vec<Flow>) {
    let miss = |priority, matching| Flow::new(ROUTE, priority, cookie::TOPOLOGY, matching);
    // What a VRF's table does not know the guest looks up in the main one, and may forward.
    flows.push(miss(priority::FALLBACK, Match::any()).apply([punt(PuntClass::Transit)]).goto(L2));
    let main = Match::builder().reg(TABLE_ID, pipeline::table_id(TABLE_MAIN)).build();
    flows.push(miss(priority::FIRST_FALLBACK, main).apply([punt(PuntClass::Exception)]).goto(L2));
    // Its source has said already that the guest gets it.
    for bit in 0..3 {
        let set = 1 << (PUNT_CLASS_BIT + bit);
        let marked = Match::builder().reg_masked(FLAGS, set, set).build();
        flows.push(Flow::new(ROUTE, priority::FIRST, cookie::TOPOLOGY, marked).goto(L2));
    }
}

/// What a flow does with the packets of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// They leave by this next hop.
    Via(NextHop),
    /// They leave by one of a group's; what is larger than so many bytes is the guest's.
    Group(u32, Option<u16>),
    /// The guest gets them.
    Punt(PuntClass),
    /// Nobody does.
    Drop,
}

/// The flow of one prefix.
pub(crate) fn route(router: RouterId, prefix: Prefix, outcome: Outcome) -> Flow {
    let matching = address(Side::Destination, prefix.dst)
        .reg(ROUTER_ID, router.0.into())
        .reg(TABLE_ID, pipeline::table_id(prefix.table));
    let priority = priority::PREFIX + u16::from(prefix.dst.prefix_len());
    let flow = Flow::new(ROUTE, priority, cookie::router(router), matching.build());
    match outcome {
        Outcome::Via(hop) => {
            let mut actions = towards(hop.adjacency);
            actions.extend(hop.mtu.map(mark_larger));
            flow.apply(actions).goto(NEXT_HOP)
        }
        Outcome::Group(group, mtu) => {
            let actions = mtu.map(mark_larger).into_iter().chain([Action::Group(group)]);
            flow.apply(actions.collect::<Vec<_>>())
        }
        Outcome::Punt(class) => flow.apply([punt(class)]).goto(L2),
        Outcome::Drop => flow,
    }
}

/// The flow of a prefix hands its packets to the guest.
pub(crate) fn is_punt(flow: &Flow) -> bool {
    flow.instructions.contains(&Instruction::GotoTable(L2))
}

/// Names the next hop.
pub(crate) fn towards(adjacency: Adjacency) -> Vec<Action> {
    pipeline::next_hop(adjacency).map(|(register, value)| Action::set_field(register, value)).collect()
}

/// Marks packets that do not fit. The switch compares the length of the frame, without its tag.
fn mark_larger(mtu: u16) -> Action {
    Action::CheckPktLarger { len: mtu.saturating_add(ETH_HEADER), dst: (Field::Reg(FLAGS), TOO_BIG_BIT) }
}
