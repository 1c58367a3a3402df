//! Queue: which class of its network's traffic a packet is in, on its way out by an uplink. The network's own queue is set by
//! then, and stays where no class takes the packet in. Only packets of networks with classes are looked up, so no others'
//! megaflows have their code points, protocols or ports.
//!
//! Limit: where the uplink cannot shape, a packet passes the meter of its class and then that of its network, as far as there is
//! a maximum: what a class has too much is not its network's. A meter must be a flow's first action, so each has a flow.

use std::collections::BTreeSet;

use openflow::{Action, Field, Flow, Match, MatchBuilder};

use crate::pipeline::{ETH_IP, LIMIT, OUT_PORT, QUEUE, QUEUE_ID, cookie, priority, set_reg};
use crate::queue::{QueueClass, meter_id};
use crate::topology::Topology;

/// IP protocols with ports (RFC 9293, 768, 9260), and the fields of both ends.
const WITH_PORTS: [(u8, [Field; 2]); 3] = [
    (6, [Field::TcpSrc, Field::TcpDst]),
    (17, [Field::UdpSrc, Field::UdpDst]),
    (132, [Field::SctpSrc, Field::SctpDst]),
];

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    let classes = topology.classes.iter().flat_map(|(own, classes)| classes.iter().map(move |it| (*own, it)));
    for (own, (rank, class)) in classes {
        let priority = priority::CLASS.saturating_add(*rank);
        for eth_type in ETH_IP {
            let packets = Match::builder().reg(QUEUE_ID, own).eth_type(eth_type);
            flows.extend(taken_in(class, packets).into_iter().map(|matching| {
                let flow = Flow::new(QUEUE, priority, cookie::TOPOLOGY, matching.build());
                flow.apply([Action::SetQueue(class.queue), set_reg(QUEUE_ID, class.queue)])
            }));
        }
    }
}

/// The flows of [`LIMIT`], of the uplinks that cannot shape.
pub(super) fn limits(topology: &Topology, flows: &mut Vec<Flow>) {
    let networks: BTreeSet<u32> = topology.queues.values().copied().collect();
    for &port in &topology.metered {
        let mut limit = |queue: u32, then: Vec<Action>| {
            let meter = topology.maxima.contains_key(&queue).then(|| Action::Meter(meter_id(port, queue)));
            let actions: Vec<Action> = meter.into_iter().chain(then).collect();
            if !actions.is_empty() {
                let packets = Match::builder().reg(OUT_PORT, port).reg(QUEUE_ID, queue).build();
                flows.push(Flow::new(LIMIT, priority::NORMAL, cookie::TOPOLOGY, packets).apply(actions));
            }
        };
        for &own in &networks {
            limit(own, Vec::new());
            let has_max = topology.maxima.contains_key(&own);
            let then =
                || if has_max { vec![set_reg(QUEUE_ID, own), Action::resubmit(LIMIT)] } else { Vec::new() };
            let classes = topology.classes.get(&own).into_iter().flat_map(|classes| classes.values());
            classes.for_each(|class| limit(class.queue, then()));
        }
    }
}

/// What a class takes in, of these packets.
fn taken_in(class: &QueueClass, packets: MatchBuilder) -> Vec<MatchBuilder> {
    let mut all = vec![packets];
    if !class.dscp.is_empty() {
        let with = |it: &MatchBuilder, dscp: &u8| it.clone().exact(Field::IpDscp, (*dscp).into());
        all = all.iter().flat_map(|it| class.dscp.iter().map(move |dscp| with(it, dscp))).collect();
    }
    if let Some(protocol) = class.protocol {
        all = all.into_iter().map(|it| it.ip_proto(protocol)).collect();
    }
    if !class.ports.is_empty() {
        let ends = WITH_PORTS.iter().find(|(protocol, _)| class.protocol == Some(*protocol));
        let ends = ends.map_or(&[][..], |(_, ends)| ends);
        let with = |it: &MatchBuilder, end: Field, port: &u16| it.clone().exact(end, (*port).into());
        let of =
            |it| ends.iter().flat_map(move |end| class.ports.iter().map(move |port| with(it, *end, port)));
        all = all.iter().flat_map(of).collect();
    }
    all
}
