//! What guests get passes their meters, and a meter that drops costs nobody else anything.

use std::cell::Cell;
use std::collections::BTreeSet;

use openflow::{Action, Field, Flow, Instruction};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::punt::{PuntClass, meter_id, meter_of};
use xenflow_flow_app::sim::{Outcome, Switch, Tag};
use xenflow_flow_app::{PortNo, RouterId, Topology, pipeline};
use xenflow_proto::Key;

use super::forwarding::ip;
use super::isolation::frame;
use super::model::Model;
use super::world::{
    Plan, ROUTERS, SEGMENTS, V4, V6, World, far, host_mac, router_id, sane, vif_id, vif_mac, world,
};
use super::{finds, law};

type Case = (World, Vec<[u8; 10]>, u8);

fn cases() -> impl Strategy<Value = Case> {
    (world(), vec(any::<[u8; 10]>(), 40), any::<u8>())
}

fn router_at(topology: &Topology, port: PortNo) -> Option<RouterId> {
    topology.bound_vifs().find(|(.., of)| *of == port).map(|(id, ..)| id.router)
}

/// The same flows, each with other actions.
fn changed(world: &World, change: impl Fn(Vec<Action>) -> Vec<Action>) -> Switch {
    let other = |flow: &Flow| {
        let instructions = flow.instructions.iter().map(|instruction| match instruction {
            Instruction::ApplyActions(actions) => Instruction::ApplyActions(change(actions.clone())),
            other => other.clone(),
        });
        Flow { instructions: instructions.collect(), ..flow.clone() }
    };
    let mut model = Model::default();
    model.settle(&mut world.app(), 1000, |_| {});
    model.flows.values_mut().for_each(|flow| *flow = other(flow));
    model.switch()
}

#[derive(Default)]
struct Counts {
    metered: Cell<usize>,
    unpoliced: Cell<usize>,
    spared: Cell<usize>,
    classes: Cell<BTreeSet<PuntClass>>,
}

fn add(cell: &Cell<usize>, n: usize) {
    cell.set(cell.get() + n);
}

/// Each copy for a guest passes one meter of its router, or it is the only one, of an IP packet, and has met no flow
/// of that router: its gate is closed.
fn metered(topology: &Topology, sent: &Outcome, counts: &Counts) -> Result<(), String> {
    let mut guests: Vec<RouterId> =
        sent.sent.iter().filter_map(|(port, _)| router_at(topology, *port)).collect();
    let meters: Vec<(RouterId, PuntClass)> = sent.metered.iter().filter_map(|id| meter_of(*id)).collect();
    let mut routers: Vec<RouterId> = meters.iter().map(|(router, _)| *router).collect();
    guests.sort_unstable();
    routers.sort_unstable();
    let mut classes = counts.classes.take();
    classes.extend(meters.iter().map(|(_, class)| *class));
    counts.classes.set(classes);
    add(&counts.metered, routers.len());
    if let ([], [guest], [(_, packet)]) = (routers.as_slice(), guests.as_slice(), sent.sent.as_slice()) {
        let is_ip = pipeline::ETH_IP.map(u128::from).contains(&packet.header(Field::EthType));
        let mut met = sent.cookies.iter().filter_map(|cookie| pipeline::cookie::router_of(*cookie));
        if is_ip && met.all(|router| router != *guest) {
            add(&counts.unpoliced, 1);
            return Ok(());
        }
    }
    if guests == routers { Ok(()) } else { Err(format!("{guests:?} get {sent:?}")) }
}

/// With meters exhausted their routers get nothing of those classes, and everybody else what they got before.
fn spared(topology: &Topology, before: &Outcome, after: &Outcome, router: RouterId) -> Result<usize, String> {
    let others = |outcome: &Outcome| -> Vec<_> {
        let is_other = |port: PortNo| router_at(topology, port) != Some(router);
        outcome.sent.iter().filter(|(port, _)| is_other(*port)).cloned().collect()
    };
    let (want, got) = (others(before), others(after));
    if want != got || before.learned != after.learned {
        return Err(format!("{want:?}, but {got:?} without {router}"));
    }
    Ok(if after.sent.len() < before.sent.len() { got.len() } else { 0 })
}

fn check((world, frames, dice): &Case, mut switch: Switch, counts: &Counts) -> Result<(), String> {
    let topology = world.plan.topology();
    let routers: Vec<RouterId> = topology.routers().into_iter().collect();
    for dice_of_frame in frames {
        let (port, packet) = frame(&topology, *dice_of_frame);
        let before = switch.send(port, &packet).map_err(|fault| fault.to_string())?;
        metered(&topology, &before, counts)?;
        let Some(router) = routers.get(usize::from(*dice).checked_rem(routers.len()).unwrap_or(0)) else {
            continue;
        };
        PuntClass::ALL.into_iter().for_each(|class| switch.exhaust(meter_id(*router, class)));
        let after = switch.send(port, &packet).map_err(|fault| fault.to_string())?;
        switch.refill();
        add(&counts.spared, spared(&topology, &before, &after, *router)?);
    }
    Ok(())
}

#[test]
fn guests_get_what_passes_their_meters_and_meters_cost_nobody_else() {
    let counts = Counts::default();
    law(600, cases(), |case| check(&case, changed(&case.0, |actions| actions), &counts));
    let Counts { metered, unpoliced, spared, classes } = counts;
    let numbers = [metered, unpoliced, spared].map(Cell::into_inner);
    println!("metered, unpoliced, spared: {numbers:?}");
    assert!(numbers.into_iter().zip([8_000, 50, 2_000]).all(|(n, least)| n > least), "{numbers:?}");
    let classes = classes.take();
    let wanted = [PuntClass::Resolution, PuntClass::Host, PuntClass::Exception];
    assert!(wanted.iter().all(|class| classes.contains(class)), "{classes:?}");
}

/// Without a route there is nothing but an answer to give, unless the guest looks on in another table.
#[test]
fn a_miss_is_an_exception_and_in_a_vrf_it_is_transit() {
    let plan = Plan {
        elsewhere: Vec::new(),
        routers: vec![(true, vec![(0, true), (1, true), (2, true)]); 2],
        access: Vec::new(),
        uplinks: [true, false],
        segments: [true; SEGMENTS as usize],
        control: false,
        policies: vec![(1, 63); ROUTERS as usize],
        queues: Default::default(),
        is_plain: false,
    };
    let is_default = |key: &Key| matches!(key, Key::Route(key) if key.dst.prefix_len() == 0);
    let said = sane(&plan, 1).into_iter().map(|object| (object.key(), object));
    let tables = said.filter(|(key, _)| !is_default(key)).collect();
    let world = World { plan, tables: [(1, tables)].into() };
    let topology = world.plan.topology();
    let switch = changed(&world, |actions| actions);
    for (vif, class) in [(0, PuntClass::Exception), (1, PuntClass::Transit), (2, PuntClass::Transit)] {
        for (family, nowhere) in [(V4, "8.8.8.8"), (V6, "2606::8")] {
            let from = far(family, 7, 0, 7);
            let packet = ip(host_mac(0, 9), vif_mac(1, vif), from, nowhere.parse().unwrap(), 64).sized(100);
            let segment = topology.vifs[&vif_id(1, vif)].vlan().unwrap();
            let sent = switch.send(1, &packet.tagged(Tag::new(segment.get()))).unwrap();
            assert_eq!(sent.metered, [meter_id(router_id(1), class)], "{family:?} to vif {vif}");
        }
    }
}

#[test]
fn a_way_past_the_meter_is_noticed() {
    finds(20, cases(), |case| {
        let unmetered = |actions: Vec<Action>| {
            actions.into_iter().filter(|action| !matches!(action, Action::Meter(_))).collect()
        };
        check(&case, changed(&case.0, unmetered), &Counts::default())
    });
    // As if all gates were closed.
    finds(20, cases(), |case| {
        let host = Action::set_masked(
            Field::Reg(pipeline::FLAGS),
            u128::from(PuntClass::Host.number()) << pipeline::PUNT_CLASS_BIT,
            pipeline::PUNT_CLASS.into(),
        );
        let freely = |actions: Vec<Action>| {
            let free = Action::set_masked(
                Field::Reg(pipeline::FLAGS),
                pipeline::UNPOLICED.into(),
                pipeline::PUNT_CLASS.into(),
            );
            actions.into_iter().map(|action| if action == host { free.clone() } else { action }).collect()
        };
        check(&case, changed(&case.0, freely), &Counts::default())
    });
}

#[test]
fn a_clone_that_is_not_kept_is_noticed() {
    finds(20, cases(), |case| {
        let plain = |actions: Vec<Action>| {
            let strip = |action: Action| match action {
                Action::Clone(inner) => Action::Clone(
                    inner.iter().filter(|a| !matches!(a, Action::OutputTrunc { .. })).cloned().collect(),
                ),
                other => other,
            };
            actions.into_iter().map(strip).collect()
        };
        check(&case, changed(&case.0, plain), &Counts::default())
    });
}
