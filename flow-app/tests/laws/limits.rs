//! What has a maximum passes its meters at uplinks that cannot shape: its class's, then its network's. One that drops costs
//! nobody else anything.

use std::cell::Cell;

use openflow::{Action, Flow, Instruction};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::queue::{meter_id, meter_of};
use xenflow_flow_app::sim::{Packet, Switch};
use xenflow_flow_app::{PortNo, Topology, pipeline};
use xenflow_proto::VlanId;

use super::isolation::frame;
use super::model;
use super::queues::queue_of;
use super::world::{World, world};
use super::{finds, law};

/// The meters that a copy passes, in their order.
fn meters(topology: &Topology, port: PortNo, packet: &Packet) -> Vec<u32> {
    let queue = queue_of(topology, port, packet);
    if queue == 0 || !topology.metered.contains(&port) {
        return Vec::new();
    }
    let own = topology.queues[&VlanId::try_from(i64::from(packet.tags[0].vid)).unwrap()];
    let mut queues = vec![queue, own];
    queues.dedup();
    let limited = queues.into_iter().filter(|queue| topology.maxima.contains_key(queue));
    limited.map(|queue| meter_id(port, queue)).collect()
}

fn check(
    world: &World,
    mut switch: Switch,
    frames: &[[u8; 10]],
    seen: &[Cell<usize>; 3],
) -> Result<(), String> {
    let topology = world.plan.topology();
    let add = |kind: usize, n| seen[kind].set(seen[kind].get() + n);
    for dice in frames {
        let (port, packet) = frame(&topology, *dice);
        let send = |switch: &Switch| switch.send(port, &packet).map_err(|fault| fault.to_string());
        let before = send(&switch)?;
        let met = |(port, packet): &(PortNo, Packet)| meters(&topology, *port, packet);
        let wanted: Vec<u32> = before.sent.iter().flat_map(met).collect();
        let got: Vec<u32> = before.metered.iter().copied().filter(|id| meter_of(*id).is_some()).collect();
        if wanted != got {
            return Err(format!("meters {got:x?}, not {wanted:x?}: {port}, {packet:?}"));
        }
        add(0, got.len());
        add(1, usize::from(before.sent.iter().any(|copy| met(copy).len() == 2)));
        for meter in got {
            switch.exhaust(meter);
            let after = send(&switch)?;
            switch.refill();
            let spared: Vec<_> = before.sent.iter().filter(|copy| !met(copy).contains(&meter)).collect();
            if after.sent.iter().ne(spared.iter().copied()) || before.learned != after.learned {
                return Err(format!("{:?}, not {spared:?} without meter {meter:x}", after.sent));
            }
            add(2, spared.len());
        }
    }
    Ok(())
}

fn cases() -> impl Strategy<Value = (World, Vec<[u8; 10]>)> {
    (world(), vec(any::<[u8; 10]>(), 40))
}

#[test]
fn a_maximum_is_held_by_meters_that_cost_nobody_else() {
    let seen: [Cell<usize>; 3] = Default::default();
    law(200, cases(), |(world, frames)| check(&world, model::switch(&world.app(), Some), &frames, &seen));
    let seen = seen.map(Cell::into_inner);
    println!("metered, by class and network, spared: {seen:?}");
    assert!(seen.into_iter().zip([500, 25, 600]).all(|(n, least)| n > least), "{seen:?}");
}

#[test]
fn a_maximum_that_is_not_held_is_noticed() {
    let noticed = |change: &dyn Fn(Flow) -> Option<Flow>| {
        finds(60, cases(), |(world, frames)| {
            check(&world, model::switch(&world.app(), change), &frames, &Default::default())
        });
    };
    let actions = |mut flow: Flow, change: &dyn Fn(&mut Vec<Action>)| {
        for instruction in &mut flow.instructions {
            if let Instruction::ApplyActions(actions) = instruction {
                change(actions);
            }
        }
        Some(flow)
    };
    noticed(&|flow| (flow.table != pipeline::LIMIT).then_some(flow));
    // A class's packets do not come to their network's meter.
    noticed(&|flow| match flow.table {
        pipeline::LIMIT => actions(flow, &|all| all.retain(|it| !matches!(it, Action::Resubmit { .. }))),
        _ => Some(flow),
    });
    // Copies that the datapath does not keep apart.
    noticed(&|flow| {
        actions(flow, &|all| {
            for action in all {
                if let Action::Clone(inner) = action {
                    let kept = |it: &&Action| !matches!(it, Action::OutputTrunc { .. });
                    *inner = inner.iter().filter(kept).cloned().collect();
                }
            }
        })
    });
}
