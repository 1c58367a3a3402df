//! What leaves by an uplink leaves by the queue of its network, or of the class of it that it is in; nothing else has a queue.

use std::cell::Cell;

use openflow::{Action, Field, Flow, Instruction};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::queue::class_flows;
use xenflow_flow_app::sim::{Outcome, Packet, Switch};
use xenflow_flow_app::{PortNo, QueueClass, Topology, pipeline};
use xenflow_proto::VlanId;

use super::isolation::frame;
use super::model;
use super::world::{World, world};
use super::{finds, law};

const PORTS: [Field; 6] =
    [Field::TcpSrc, Field::TcpDst, Field::UdpSrc, Field::UdpDst, Field::SctpSrc, Field::SctpDst];

fn is_in(class: &QueueClass, packet: &Packet) -> bool {
    let is_ip = packet.tags.len() == 1 && [0x800, 0x86dd].contains(&packet.header(Field::EthType));
    let dscp = packet.header(Field::IpDscp) as u8;
    let mut ports = PORTS.iter().filter_map(|field| packet.headers.get(field));
    is_ip
        && (class.dscp.is_empty() || class.dscp.contains(&dscp))
        && class.protocol.is_none_or(|protocol| packet.header(Field::IpProto) == protocol.into())
        && (class.ports.is_empty() || ports.any(|port| class.ports.contains(&(*port as u16))))
}

/// The queue that a packet is to leave by.
pub fn queue_of(topology: &Topology, port: PortNo, packet: &Packet) -> u32 {
    let tag = packet.tags.first().filter(|_| topology.uplinks.contains(&port));
    let vlan = tag.and_then(|tag| VlanId::try_from(i64::from(tag.vid)).ok());
    let Some(own) = vlan.and_then(|vlan| topology.queues.get(&vlan)) else { return 0 };
    let mut classes = topology.classes.get(own).into_iter().flatten().rev();
    classes.find(|(_, class)| is_in(class, packet)).map_or(*own, |(_, class)| class.queue)
}

/// What left by another queue than it should.
pub fn misqueued(topology: &Topology, outcome: &Outcome) -> Option<String> {
    let Outcome { sent, queues, .. } = outcome;
    assert_eq!(sent.len(), queues.len());
    sent.iter().zip(queues).find_map(|((port, packet), queue)| {
        let wanted = queue_of(topology, *port, packet);
        (wanted != *queue).then(|| format!("queue {queue}, not {wanted}: {port}, {packet:?}"))
    })
}

fn check(world: &World, switch: &Switch, frames: &[[u8; 10]], seen: &[Cell<usize>; 4]) -> Result<(), String> {
    let topology = world.plan.topology();
    for dice in frames {
        let (port, packet) = frame(&topology, *dice);
        let outcome = switch.send(port, &packet).map_err(|fault| fault.to_string())?;
        if let Some(wrong) = misqueued(&topology, &outcome) {
            return Err(wrong);
        }
        let add = |kind: usize| seen[kind].set(seen[kind].get() + 1);
        for ((_, packet), queue) in outcome.sent.iter().zip(outcome.queues).filter(|(_, queue)| *queue > 0) {
            add(usize::from(!topology.classes.contains_key(&queue)));
            let class = topology.classes.values().flat_map(|classes| classes.values());
            if class.into_iter().any(|class| class.queue == queue && !class.ports.is_empty()) {
                add(2);
            }
            if packet.headers.contains_key(&Field::IpFrag) {
                add(3);
            }
        }
    }
    Ok(())
}

fn cases() -> impl Strategy<Value = (World, Vec<[u8; 10]>)> {
    (world(), vec(any::<[u8; 10]>(), 60))
}

#[test]
fn what_leaves_by_an_uplink_has_the_queue_of_its_class() {
    let seen: [Cell<usize>; 4] = Default::default();
    law(200, cases(), |(world, frames)| check(&world, &model::switch(&world.app(), Some), &frames, &seen));
    let seen = seen.map(Cell::into_inner);
    println!("own, of a class, of a class with ports, fragments: {seen:?}");
    assert!(seen.into_iter().zip([1_300, 400, 50, 200]).all(|(n, least)| n > least), "{seen:?}");
}

/// With the flows of classes changed.
fn noticed(change: impl Fn(Flow) -> Option<Flow> + Copy) {
    finds(100, cases(), |(world, frames)| {
        let change = |flow: Flow| if flow.table == pipeline::QUEUE { change(flow) } else { Some(flow) };
        check(&world, &model::switch(&world.app(), change), &frames, &Default::default())
    });
}

#[test]
fn a_wrong_queue_is_noticed() {
    noticed(|_| None);
    let upside_down = |flow: Flow| {
        let rank = flow.priority - pipeline::priority::CLASS;
        Flow { priority: pipeline::priority::CLASS + 1000 - rank, ..flow }
    };
    noticed(move |flow| Some(upside_down(flow)));
    // Of one end only, of one family only.
    let asks = |flow: &Flow, field| flow.matching.field(field).is_some();
    noticed(move |flow| (!asks(&flow, Field::UdpSrc)).then_some(flow));
    noticed(move |flow| {
        let is_ipv6 = flow.matching.field(Field::EthType).is_some_and(|it| it.value == 0x86dd);
        (!is_ipv6).then_some(flow)
    });
    // Whatever uplink a flow of egress is for.
    finds(100, cases(), |(world, frames)| {
        let mute = |mut flow: Flow| {
            for instruction in &mut flow.instructions {
                if let Instruction::ApplyActions(actions) = instruction {
                    actions.retain(|action| !matches!(action, Action::SetQueue(_)));
                }
            }
            Some(flow)
        };
        check(&world, &model::switch(&world.app(), mute), &frames, &Default::default())
    });
}

#[test]
fn a_class_has_as_many_flows_as_it_is_said_to_have() {
    law(200, world(), |world| {
        let topology = world.plan.topology();
        let classes = topology.classes.values().flat_map(|classes| classes.values());
        let wanted: usize = classes.map(|it| 2 * class_flows(it.dscp.len(), it.ports.len())).sum();
        let flows = world.app().desired().flows;
        let got = flows.iter().filter(|flow| flow.table == pipeline::QUEUE).count();
        if got == wanted { Ok(()) } else { Err(format!("{got} flows, not {wanted}: {:?}", topology.classes)) }
    });
}
