//! Egress, the VLAN tagger outward: a packet leaves only by a port of the segment whose tag it carries.

use openflow::{Action, Flow, Match};
use xenflow_proto::VlanId;

use crate::pipeline::{EGRESS, FLAGS, FROM_UPLINK, IN_PORT, OUT_PORT, ROUTED, cookie, priority};
use crate::topology::{PortNo, Topology};

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    let leave = |vlan: VlanId, port: PortNo, actions: Vec<Action>| {
        let matching = Match::builder().vlan(vlan.get()).reg(OUT_PORT, port).build();
        Flow::new(EGRESS, priority::NORMAL, cookie::TOPOLOGY, matching).apply(actions)
    };
    let refuse = |matching| Flow::new(EGRESS, priority::EXCEPTION, cookie::TOPOLOGY, matching);

    let vifs = topology.bound_vifs().map(|(_, _, vlan, port)| (port, vlan));
    for (port, vlan) in vifs.chain(topology.access.iter().map(|(port, vlan)| (*port, *vlan))) {
        flows.push(leave(vlan, port, vec![Action::PopVlan, Action::output(port)]));
        flows.push(refuse(back_out(port)));
    }
    for &port in &topology.uplinks {
        for &vlan in &topology.segments {
            flows.push(leave(vlan, port, vec![Action::output(port)]));
        }
        // Trunks of one host are no path between other hosts: the fabric is. This covers the way back as well.
        let transit =
            Match::builder().reg_masked(FLAGS, FROM_UPLINK, FROM_UPLINK | ROUTED).reg(OUT_PORT, port);
        flows.push(refuse(transit.build()));
    }
}

/// Split horizon, for packets that were not routed.
fn back_out(port: PortNo) -> Match {
    Match::builder().reg(IN_PORT, port).reg(OUT_PORT, port).reg_masked(FLAGS, 0, ROUTED).build()
}
