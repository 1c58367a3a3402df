//! L2 and flood: switching within a segment. A routed packet for a vif of this host enters that router; a known
//! MAC has one port; all else goes to every port of the segment. A guest gets its frames by class.

use std::collections::BTreeSet;

use openflow::{Action, Field, Flow, Match};

use super::GROUP;
use crate::pipeline::{
    CLASSIFY, EGRESS, ETH_IP, FLAGS, FLOOD, IN_PORT, L2, LEARNED, NEXT_HOP_ID, NEXT_HOP_IPV6, OUT_PORT,
    ROUTED, ROUTER, ROUTER_ID, TABLE_ID, cookie, count_lookup, kept_clone, priority, punt, set_reg,
};
use crate::punt::PuntClass;
use crate::topology::{PortNo, Topology};

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    for (_, vif, vlan, port) in topology.bound_vifs() {
        let to = || Match::builder().vlan(vlan.get()).eth_dst(vif.mac.0);
        for eth_type in ETH_IP {
            let routed = to().eth_type(eth_type).reg_masked(FLAGS, ROUTED, ROUTED).build();
            flows.push(Flow::new(L2, priority::EXCEPTION, cookie::TOPOLOGY, routed).apply(enter_router()));
        }
        let deliver = Flow::new(L2, priority::NORMAL, cookie::TOPOLOGY, to().build());
        flows.push(deliver.apply([set_reg(OUT_PORT, port), Action::resubmit(CLASSIFY)]).goto(EGRESS));
    }
    let ask = [set_reg(OUT_PORT, 0), Action::resubmit(LEARNED)];
    flows.push(Flow::new(L2, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).apply(ask).goto(FLOOD));

    for &vlan in &topology.segments {
        let here = topology.bound_vifs().filter(|(_, _, segment, _)| *segment == vlan);
        let vifs: BTreeSet<PortNo> = here.map(|(.., port)| port).collect();
        // A guest over its limit costs the others nothing.
        let copy = |port: PortNo| {
            let actions = [set_reg(OUT_PORT, port), Action::resubmit(EGRESS)];
            if vifs.contains(&port) { kept_clone(actions) } else { Action::Clone(Box::new(actions)) }
        };
        let copies: Vec<Action> = topology.members(vlan).into_iter().map(copy).collect();
        let unknown = || Match::builder().vlan(vlan.get()).reg(OUT_PORT, 0);
        let mut flood = |matching: Match, class: Option<Action>| {
            let actions = class.into_iter().chain(copies.iter().cloned()).collect::<Vec<_>>();
            flows.push(Flow::new(FLOOD, priority::NORMAL, cookie::TOPOLOGY, matching).apply(actions));
        };
        if vifs.is_empty() {
            flood(unknown().build(), None);
        } else {
            flood(unknown().eth_dst_masked(GROUP, GROUP).build(), Some(Action::resubmit(CLASSIFY)));
            // Nobody's MAC address is no guest's, whatever is in the frame.
            let class = punt(PuntClass::Host);
            flood(unknown().eth_dst_masked([0; 6], GROUP).build(), Some(class));
        }
    }
    flows.push(Flow::new(FLOOD, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).goto(EGRESS));
}

/// The next router of this host: as if the packet had just come in, but for the count of routers passed.
fn enter_router() -> Vec<Action> {
    let [shift, count] = count_lookup();
    vec![
        shift,
        count,
        set_reg(FLAGS, 0),
        set_reg(IN_PORT, 0),
        set_reg(OUT_PORT, 0),
        set_reg(ROUTER_ID, 0),
        set_reg(TABLE_ID, 0),
        Action::set_field(Field::Xreg(NEXT_HOP_ID), 0),
        Action::set_field(Field::Xxreg(NEXT_HOP_IPV6), 0),
        Action::resubmit(ROUTER),
    ]
}
