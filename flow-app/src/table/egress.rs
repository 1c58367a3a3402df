//! Egress, the VLAN tagger outward: a packet leaves only by a port of the segment whose tag it carries. What goes to
//! a guest passes the meter of its router and class, if it has one. What leaves by an uplink has the queue of its network, or of
//! a class of it; nothing else of the same packet has.

use openflow::{Action, Flow, Match, MatchBuilder};
use xenflow_proto::VlanId;

use crate::pipeline::{
    EGRESS, FLAGS, FROM_UPLINK, IN_PORT, LIMIT, OUT_PORT, PUNT_CLASS, QUEUE, QUEUE_ID, ROUTED, UNPOLICED,
    cookie, priority, punt_class, set_reg,
};
use crate::punt::{PuntClass, meter_id};
use crate::topology::{PortNo, Topology};

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    let to = |vlan: VlanId, port: PortNo| Match::builder().vlan(vlan.get()).reg(OUT_PORT, port);
    let leave = |matching: MatchBuilder, actions: Vec<Action>| {
        Flow::new(EGRESS, priority::NORMAL, cookie::TOPOLOGY, matching.build()).apply(actions)
    };
    let refuse = |matching| Flow::new(EGRESS, priority::EXCEPTION, cookie::TOPOLOGY, matching);

    for (id, _, vlan, port) in topology.bound_vifs() {
        let of = |class: u32| to(vlan, port).reg_masked(FLAGS, class, PUNT_CLASS);
        for class in PuntClass::ALL {
            let meter = Action::Meter(meter_id(id.router, class));
            let actions = vec![meter, Action::PopVlan, Action::output(port)];
            flows.push(leave(of(punt_class(class)), actions));
        }
        flows.push(leave(of(UNPOLICED), vec![Action::PopVlan, Action::output(port)]));
        flows.push(refuse(back_out(port)));
    }
    for (&port, &vlan) in &topology.access {
        flows.push(leave(to(vlan, port), vec![Action::PopVlan, Action::output(port)]));
        flows.push(refuse(back_out(port)));
    }
    for &port in &topology.uplinks {
        for &vlan in &topology.segments {
            flows.push(leave(to(vlan, port), by_uplink(topology, vlan, port)));
        }
        // Trunks of one host are no path between other hosts: the fabric is. This covers the way back as well.
        let transit =
            Match::builder().reg_masked(FLAGS, FROM_UPLINK, FROM_UPLINK | ROUTED).reg(OUT_PORT, port);
        flows.push(refuse(transit.build()));
    }
}

/// Out of an uplink, by the queue that the packet belongs to.
fn by_uplink(topology: &Topology, vlan: VlanId, port: PortNo) -> Vec<Action> {
    let output = Action::output(port);
    let Some(&own) = topology.queues.get(&vlan) else { return vec![output] };
    let mut actions = vec![Action::SetQueue(own)];
    let has_classes = topology.classes.get(&own).is_some_and(|classes| !classes.is_empty());
    let is_limited = topology.is_limited(vlan, port);
    if has_classes || is_limited {
        actions.push(set_reg(QUEUE_ID, own));
    }
    actions.extend(has_classes.then_some(Action::resubmit(QUEUE)));
    actions.extend(is_limited.then_some(Action::resubmit(LIMIT)));
    actions.extend([output, Action::PopQueue]);
    actions
}

/// Split horizon, for packets that were not routed.
fn back_out(port: PortNo) -> Match {
    Match::builder().reg(IN_PORT, port).reg(OUT_PORT, port).reg_masked(FLAGS, 0, ROUTED).build()
}
