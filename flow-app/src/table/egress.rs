//! Egress, the VLAN tagger outward: a packet leaves only by a port of the segment whose tag it carries. What goes to
//! a guest passes the meter of its router and class, if it has one; what the daemon gets in the guest's place passes one always.
//! What leaves by an uplink has the queue of its network, or of a class of it; nothing else of the same packet has. There
//! a router that moves is not to be seen: what it forwards comes from the node.

use openflow::{Action, Field, Flow, Match, MatchBuilder};
use xenflow_proto::{MacAddr, VlanId};

use super::outlet::outlet;
use crate::heard::{Heard, HeardKind};
use crate::pipeline::{
    EGRESS, FLAGS, FROM_UPLINK, IN_PORT, LIMIT, OUT_PORT, PUNT_CLASS, QUEUE, QUEUE_ID, ROUTED, UNPOLICED,
    cookie, priority, punt_class, set_reg, virtual_port,
};
use crate::punt::{PuntClass, meter_id};
use crate::stance::{Emission, Gate, Punts, Stance};
use crate::topology::{PortNo, Topology, Vif, VifId};

fn to(vlan: VlanId, port: PortNo) -> MatchBuilder {
    Match::builder().vlan(vlan.get()).reg(OUT_PORT, port)
}

fn flow(priority: u16, matching: MatchBuilder, actions: Vec<Action>) -> Flow {
    Flow::new(EGRESS, priority, cookie::TOPOLOGY, matching.build()).apply(actions)
}

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    let leave = |matching, actions| flow(priority::NORMAL, matching, actions);
    let refuse = |matching| Flow::new(EGRESS, priority::EXCEPTION, cookie::TOPOLOGY, matching);

    for (id, vif, vlan) in topology.segment_vifs() {
        if let Some(port) = vif.port {
            by_port(topology, id, vlan, port, flows);
            flows.push(refuse(back_out(port, port)));
        }
        to_daemon(topology, id, vif, vlan, flows);
        if let Some(node) = topology.node_mac.filter(|_| topology.segments.contains(&vlan)) {
            as_node(topology, id, vif, vlan, node, flows);
        }
    }
    for (&port, &vlan) in &topology.access {
        flows.push(leave(to(vlan, port), vec![Action::PopVlan, Action::output(port)]));
        flows.push(refuse(back_out(port, port)));
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

/// To a guest, by its port.
fn by_port(topology: &Topology, id: VifId, vlan: VlanId, port: PortNo, flows: &mut Vec<Flow>) {
    let is_copied = topology.stance(id.router).is_some_and(|stance| stance.punts == Punts::Copied);
    let copy = Heard { kind: HeardKind::Copy, vif: id };
    let mut leave = |class: u32, meter: Option<Action>, copy: Option<Action>| {
        let out = [meter, Some(Action::PopVlan), copy, Some(Action::output(port))];
        let matching = to(vlan, port).reg_masked(FLAGS, class, PUNT_CLASS);
        flows.push(flow(priority::NORMAL, matching, out.into_iter().flatten().collect()));
    };
    for class in PuntClass::ALL {
        let meter = Action::Meter(meter_id(id.router, class));
        leave(punt_class(class), Some(meter), is_copied.then(|| copy.tell(None)));
    }
    // The guest's own is not limited, and its copy is.
    let transit = meter_id(id.router, PuntClass::Transit);
    leave(UNPOLICED, None, is_copied.then(|| copy.tell(Some(transit))));
}

/// To the daemon, in the place of a guest. What a guest without a gate would forward itself is transit here: the daemon is to bear it
/// as well.
fn to_daemon(topology: &Topology, id: VifId, vif: &Vif, vlan: VlanId, flows: &mut Vec<Flow>) {
    let Some(stance) = topology.stance(id.router) else { return };
    let outlet = outlet(topology, id, vif).filter(|port| *port == virtual_port(id));
    let policed = PuntClass::ALL.map(|class| (punt_class(class), class));
    for (bits, class) in policed.into_iter().chain([(UNPOLICED, PuntClass::Transit)]) {
        let tell = |kind| {
            let meter = Action::Meter(meter_id(id.router, class));
            vec![meter, Action::PopVlan, Heard { kind, vif: id }.tell(None)]
        };
        if let Some(port) = outlet {
            let kind = if stance.punts == Punts::Copied { HeardKind::Copy } else { HeardKind::Punt };
            let matching = to(vlan, port).reg_masked(FLAGS, bits, PUNT_CLASS);
            flows.push(flow(priority::NORMAL, matching, tell(kind)));
        }
        if stance.gate == Gate::Late {
            let late = to(vlan, virtual_port(id)).eth_dst(vif.mac.0);
            let late = late.reg_masked(FLAGS, FROM_UPLINK | bits, FROM_UPLINK | ROUTED | PUNT_CLASS);
            flows.push(flow(priority::EXCEPTION, late, tell(HeardKind::Late)));
        }
    }
    if let (Some(own), Some(outlet)) = (vif.port, outlet) {
        flows.push(Flow::new(EGRESS, priority::EXCEPTION, cookie::TOPOLOGY, back_out(own, outlet)));
    }
}

/// Out of the uplinks of a segment, what a router forwards that is not to be seen there. All that has its vif's address is that, but
/// for what came by the vif's port: also what another router of the host was to have, and did not take in.
fn as_node(topology: &Topology, id: VifId, vif: &Vif, vlan: VlanId, node: MacAddr, flows: &mut Vec<Flow>) {
    let is_hidden = |stance: Stance| stance.tables && stance.emission == Emission::Node;
    if !topology.stance(id.router).is_some_and(is_hidden) {
        return;
    }
    for &uplink in &topology.uplinks {
        let from = || to(vlan, uplink).eth_src(vif.mac.0);
        let reentered = from().reg(IN_PORT, 0).reg_masked(FLAGS, 0, ROUTED);
        for matching in [from().reg_masked(FLAGS, ROUTED, ROUTED), reentered] {
            let mut actions = vec![Action::set_field(Field::EthSrc, openflow::mac_bits(node.0))];
            actions.extend(by_uplink(topology, vlan, uplink));
            flows.push(flow(priority::EXCEPTION, matching, actions));
        }
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

/// Split horizon, for packets that were not routed: what came by a port does not leave by it, nor by what stands for it.
fn back_out(came: PortNo, leaves: PortNo) -> Match {
    Match::builder().reg(IN_PORT, came).reg(OUT_PORT, leaves).reg_masked(FLAGS, 0, ROUTED).build()
}
