//! Whatever stances the routers of a host have, and however they change: nobody is heard who should not be, nothing is lost or
//! there twice, and what changes does not depend on how many routes there are.

use std::cell::Cell;
use std::collections::BTreeMap;

use openflow::{Field, Flow, mac_bits};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::pipeline::{self, cookie, priority};
use xenflow_flow_app::sim::{Outcome, Packet, Switch, Tag};
use xenflow_flow_app::stance::{Emission, Gate, Punts, Stance};
use xenflow_flow_app::{
    App, FlowChange, FlowKey, Heard, HeardKind, Hints, PortNo, RouterId, Topology, Vif, VifId,
};
use xenflow_proto::VlanId;

use super::isolation::frame;
use super::model::{Model, same, switch};
use super::stances::{NODE, ROUTER, host, route, tell, tells};
use super::world::{ROUTERS, World, among_others, router_id, world};
use super::{finds, law};

type Dice = [u8; 2];

const PUNTS: [Punts; 6] =
    [Punts::Copied, Punts::Relayed, Punts::Kept, Punts::Ordered, Punts::Guest, Punts::Elsewhere];

fn stance([a, b]: Dice) -> Option<Stance> {
    let stance = Stance {
        tables: a / 8 % 8 > 0,
        gate: [Gate::Closed, Gate::Late, Gate::Open, Gate::Open][usize::from(b % 4)],
        emission: if a / 64 == 0 { Emission::Router } else { Emission::Node },
        punts: PUNTS[usize::from(b / 4) % 6],
        answers: false,
        mute: b / 32 < 3,
    };
    (a % 8 > 0).then_some(stance)
}

fn dice() -> impl Strategy<Value = Vec<Dice>> {
    vec(any::<Dice>(), ROUTERS as usize)
}

/// The host of a world, whose routers stand like that.
fn standing(world: &World, dice: &[Dice]) -> Topology {
    let stances = (0..).zip(dice).filter_map(|(r, dice)| Some((router_id(r), stance(*dice)?)));
    let rehearsed = (0..).zip(dice).filter(|(_, [a, _])| a % 3 == 0).map(|(r, _)| router_id(r)).collect();
    Topology { stances: stances.collect(), rehearsed, node_mac: Some(NODE), ..world.plan.topology() }
}

fn heard(outcome: &Outcome) -> Vec<(Heard, &Packet)> {
    outcome.told.iter().map(|(word, packet)| (Heard::decode(word).unwrap(), packet)).collect()
}

/// The router and the vif whose address a packet that leaves by an uplink comes from.
fn sender<'a>(topology: &'a Topology, packet: &Packet) -> Option<(VifId, &'a Vif)> {
    let vlan = VlanId::try_from(i64::from(packet.tags.first()?.vid)).unwrap();
    let src = packet.header(Field::EthSrc);
    let mut vifs = topology.segment_vifs().filter(|(_, vif, of)| *of == vlan && mac_bits(vif.mac.0) == src);
    vifs.next().map(|(id, vif, _)| (id, vif))
}

fn is_hidden(topology: &Topology, router: RouterId) -> bool {
    topology.stance(router).is_some_and(|it| it.tables && it.emission == Emission::Node)
}

/// Nobody is heard who should not be, and no frame has two fates.
fn sound(topology: &Topology, port: PortNo, packet: &Packet, outcome: &Outcome) -> Result<(), String> {
    let heard = heard(outcome);
    let mute = topology
        .bound_vifs()
        .find(|(id, .., of)| *of == port && topology.stance(id.router).is_some_and(|stance| stance.mute));
    if let Some((id, ..)) = mute {
        let is_it = |(heard, _): &(Heard, _)| *heard == Heard { kind: HeardKind::Mute, vif: id };
        return if outcome.sent.is_empty() && heard.len() <= 1 && heard.iter().all(is_it) {
            Ok(())
        } else {
            Err("a mute guest is heard".to_owned())
        };
    }
    for (_, copy) in outcome.sent.iter().filter(|(port, _)| topology.uplinks.contains(port)) {
        let Some((id, vif)) = sender(topology, copy).filter(|(id, _)| is_hidden(topology, id.router)) else {
            continue;
        };
        if vif.port != Some(port) || copy.headers != packet.headers {
            return Err(format!("router {} is seen: {copy:?}", id.router));
        }
    }
    for (Heard { kind, vif: id }, copy) in &heard {
        let vif = &topology.vifs[id];
        let stance = topology.stance(id.router).ok_or("heard of one that stands as its ports do")?;
        let is_group = copy.header(Field::EthDst) >> 40 & 1 == 1;
        let is_own = copy.header(Field::EthDst) == mac_bits(vif.mac.0);
        let kinds = match (stance.punts, stance.gate) {
            (_, Gate::Late) if *kind == HeardKind::Late => is_own,
            (Punts::Copied, _) => *kind == HeardKind::Copy,
            (Punts::Relayed | Punts::Kept | Punts::Ordered, _) => *kind == HeardKind::Punt,
            (Punts::Guest | Punts::Elsewhere, _) => false,
        };
        if !kinds {
            return Err(format!("{kind:?} of {stance:?}"));
        }
        // A flood has many, of which one may be behind each vif.
        if is_group || !is_own || (stance.gate != Gate::Open && *kind != HeardKind::Late) {
            continue;
        }
        let by_port = vif.port.filter(|_| *kind == HeardKind::Copy);
        let sent: Vec<_> = by_port.into_iter().map(|port| (port, (*copy).clone())).collect();
        if heard.len() != 1 || outcome.sent != sent {
            return Err(format!("{kind:?}, and more"));
        }
    }
    Ok(())
}

/// A frame of anybody, mostly to a vif: by an uplink, or by an end host of its segment.
fn aimed(topology: &Topology, dice: [u8; 10]) -> (PortNo, Packet) {
    let (port, packet) = frame(topology, dice);
    let [.., n, by, is_any] = dice;
    let vifs: Vec<_> = topology.segment_vifs().collect();
    if is_any % 4 == 0 || vifs.is_empty() {
        return (port, packet);
    }
    let (_, vif, vlan) = vifs[usize::from(n) % vifs.len()];
    let ends = topology.access.iter().filter(|(_, of)| **of == vlan).map(|(port, _)| *port);
    let ports: Vec<PortNo> = topology.uplinks.iter().copied().chain(ends).collect();
    let Some(port) = ports.get(usize::from(by) % ports.len().max(1)) else { return (port, packet) };
    let tags = if topology.uplinks.contains(port) { vec![Tag::new(vlan.get())] } else { Vec::new() };
    let packet = packet.with(Field::EthDst, mac_bits(vif.mac.0)).with(Field::EthSrc, 0x0600_0000_0077);
    (*port, Packet { tags, ..packet })
}

type Case = (World, Vec<Dice>, Vec<[u8; 10]>);

/// With what is seen of each kind.
fn check_sound(
    (world, dice, frames): &Case,
    change: impl FnMut(Flow) -> Option<Flow>,
    seen: &[Cell<usize>; 7],
) -> Result<(), String> {
    let topology = standing(world, dice);
    let mut app = world.app_on(topology.clone());
    Model::default().settle(&mut app, 1000, |_| {});
    let switch: Switch = switch(&app, change);
    if let Some(wrong) = app.desired().flows.iter().find_map(pipeline::violation) {
        return Err(wrong);
    }
    let add = |kind: usize| seen[kind].set(seen[kind].get() + 1);
    for dice in frames {
        let (port, packet) = aimed(&topology, *dice);
        let outcome = switch.send(port, &packet).map_err(|fault| fault.to_string())?;
        let wrong =
            |wrong: String| format!("{wrong}: {packet:?} by {port}: {outcome:?}, {:?}", topology.stances);
        sound(&topology, port, &packet, &outcome).map_err(wrong)?;
        for (heard, _) in heard(&outcome) {
            add(HeardKind::ALL.iter().position(|kind| *kind == heard.kind).unwrap());
        }
        if outcome.sent.iter().any(|(_, copy)| copy.header(Field::EthSrc) == mac_bits(NODE.0)) {
            add(4);
        }
        // Only whom the gate lets in comes to the routes.
        let steps = app.explain(port, &packet, &Hints::default()).steps;
        for step in steps.iter().filter(|step| step.table == pipeline::ROUTE) {
            let reg = |number: u8| step.regs[usize::from(number)];
            if reg(pipeline::FLAGS) & pipeline::REHEARSED != 0 {
                add(6);
                continue;
            }
            let router = RouterId(reg(pipeline::ROUTER_ID) as u16);
            let is_let_in = match topology.stance(router).map(|stance| stance.gate) {
                None | Some(Gate::Open) => true,
                Some(Gate::Late) => reg(pipeline::FLAGS) & pipeline::FROM_UPLINK != 0,
                Some(Gate::Closed) => false,
            };
            if !is_let_in {
                return Err(wrong(format!("router {router} lets it in")));
            }
            add(5);
        }
    }
    Ok(())
}

fn cases() -> impl Strategy<Value = Case> {
    (among_others(), dice(), vec(any::<[u8; 10]>(), 40))
}

#[test]
fn nobody_is_heard_who_should_not_be_and_no_frame_has_two_fates() {
    let seen: [Cell<usize>; 7] = Default::default();
    law(150, cases(), |case| check_sound(&case, Some, &seen));
    let seen = seen.map(Cell::into_inner);
    assert!(seen.iter().all(|seen| *seen > 20), "too little was seen: {seen:?}");
}

#[test]
fn a_router_that_is_seen_or_heard_is_noticed() {
    let emits = |flow: Flow| {
        let is_it = flow.table == pipeline::EGRESS
            && flow.priority == priority::EXCEPTION
            && flow.matching.field(Field::EthSrc).is_some();
        (!is_it).then_some(flow)
    };
    finds(300, cases(), |case| check_sound(&case, emits, &Default::default()));
}

/// Every router whose vifs are all plugged in, and forwards and is not mute: some of them have no port.
fn at_home(world: &World, dice: &[Dice]) -> Topology {
    let mut topology = standing(world, dice);
    let is_plugged = |id: &RouterId| {
        let mut vifs = topology.segment_vifs().filter(|(vif, ..)| vif.router == *id);
        vifs.all(|(_, vif, _)| vif.port.is_some())
    };
    let whole: Vec<RouterId> = topology.stances.keys().copied().filter(is_plugged).collect();
    topology.stances.retain(|id, _| whole.contains(id));
    for (id, stance) in &mut topology.stances {
        let [a, _] = dice[usize::from(id.0) - 1];
        let punts = PUNTS[usize::from(a) % 5];
        *stance = Stance { tables: true, gate: Gate::Open, mute: false, punts, ..*stance };
        let vifs = topology.vifs.iter_mut().filter(|(vif, it)| vif.router == *id && it.vlan().is_some());
        vifs.filter(|_| a / 5 % 2 == 0 && punts != Punts::Guest).for_each(|(_, vif)| vif.port = None);
    }
    topology
}

/// What becomes of a frame, as it would be where every router is at home.
fn translated(plain: &Topology, topology: &Topology, port: PortNo, packet: &Packet, home: Outcome) -> Fates {
    let mut fates = Vec::new();
    for (to, mut copy) in home.sent {
        let vif = plain.bound_vifs().find(|(.., of)| *of == to).map(|(id, ..)| id);
        let punts = vif.and_then(|id| Some((id, topology.stance(id.router)?.punts)));
        let mut told = |kind, vif, copy| fates.push((Err(Heard { kind, vif }), copy));
        match punts {
            Some((id, Punts::Copied)) => told(HeardKind::Copy, id, copy.clone()),
            Some((id, Punts::Relayed | Punts::Kept | Punts::Ordered)) => {
                told(HeardKind::Punt, id, copy);
                continue;
            }
            Some((_, Punts::Guest | Punts::Elsewhere)) | None => {}
        }
        if vif.is_some_and(|id| topology.vifs[&id].port.is_none()) {
            continue;
        }
        if topology.uplinks.contains(&to)
            && let Some((id, vif)) = sender(plain, &copy)
            && is_hidden(topology, id.router)
            && (vif.port != Some(port) || copy.headers != packet.headers)
        {
            copy = copy.with(Field::EthSrc, mac_bits(NODE.0));
        }
        fates.push((Ok(to), copy));
    }
    fates.sort();
    fates
}

type Fates = Vec<(Result<PortNo, Heard>, Packet)>;

fn check_home(
    (world, dice, frames): &Case,
    change: impl FnMut(Flow) -> Option<Flow>,
    told: &Cell<usize>,
) -> Result<(), String> {
    let (plain, topology) = (world.plan.topology(), at_home(world, dice));
    let home = switch(&world.app_on(plain.clone()), Some);
    let switch = switch(&world.app_on(topology.clone()), change);
    for dice in frames {
        let (port, packet) = aimed(&topology, *dice);
        let send = |switch: &Switch| switch.send(port, &packet).map_err(|fault| fault.to_string());
        let outcome = send(&switch)?;
        let mut fates: Fates =
            heard(&outcome).into_iter().map(|(it, copy)| (Err(it), copy.clone())).collect();
        told.set(told.get() + fates.len());
        fates.extend(outcome.sent.into_iter().map(|(port, copy)| (Ok(port), copy)));
        fates.sort();
        let wanted = translated(&plain, &topology, port, &packet, send(&home)?);
        if fates != wanted {
            return Err(format!("{packet:?} by {port}: {fates:#?}, not {wanted:#?}; {:?}", topology.stances));
        }
    }
    Ok(())
}

#[test]
fn a_guest_that_is_away_gets_what_it_would_get_at_home_and_so_do_all_others() {
    let cases = || (world(), dice(), vec(any::<[u8; 10]>(), 40));
    let told = Cell::new(0);
    law(150, cases(), |case| check_home(&case, Some, &told));
    assert!(told.get() > 1000, "too little was told: {}", told.get());
    let silent = |flow: Flow| (!tells(&flow, HeardKind::Punt)).then_some(flow);
    finds(300, cases(), |case| check_home(&case, silent, &Cell::new(0)));
}

#[test]
fn gates_come_first_and_steps_lead_where_a_full_compile_does() {
    let steps = vec((dice(), any::<[u8; 6]>()), 1..5);
    let most = Cell::new(0);
    law(60, (among_others(), dice(), steps), |(world, first, steps)| {
        let mut app = world.app_on(standing(&world, &first));
        let gates = app.desired().flows.into_iter().filter(|flow| flow.priority == priority::GATE);
        let gates: Vec<FlowKey> = gates.map(|gate| FlowKey::from(&gate)).collect();
        most.set(most.get().max(gates.len()));
        let (mut model, mut is_late) = (Model::default(), false);
        model.settle(&mut app, 3, |model| {
            let is_routers = |flow: &Flow| cookie::router_of(flow.cookie).is_some();
            let is_shut = gates.iter().all(|gate| model.flows.contains_key(gate));
            is_late |= !is_shut && model.flows.values().any(is_routers);
        });
        if is_late {
            return Err("a router's flow is there before its gate".to_owned());
        }
        let mut world = world;
        for (dice, change) in steps {
            world.plan.mutate(change);
            app.set_topology(standing(&world, &dice));
            model.settle(&mut app, 100, |_| {});
            same("after a step", &model, &Model::desired(&app)?)?;
            world.tell(&mut app);
            model.settle(&mut app, 100, |_| {});
            same("told again", &model, &Model::desired(&app)?)?;
            same("told again", &model, &Model::desired(&world.app_on(standing(&world, &dice)))?)?;
        }
        Ok(())
    });
    assert!(most.get() > 2, "hardly any gate");
}

/// A stance, whether the ports are here, whether another node has the addresses.
type Standing = (Option<Stance>, bool, bool);

/// How many changes lead to each from the one before, and how many prefixes have flows then.
fn costs(routes: u16, steps: &[Standing]) -> Vec<(usize, usize)> {
    let (mut app, mut model) = (App::new(50_000).with_aggregation(false), Model::default());
    let (stance, plugged, away) = steps[0];
    app.set_topology(host(stance, plugged, away));
    let route = |n: u16| route(&format!("172.{}.{}.0/24", 16 + n / 256, n % 256), Some([10, 1, 0, 9]), 2);
    tell(&mut app, (0..routes).map(route));
    model.settle(&mut app, 1000, |_| {});
    let mut costs = vec![(0, model.prefixes_of(ROUTER))];
    for (stance, plugged, away) in &steps[1..] {
        app.set_topology(host(*stance, *plugged, *away));
        let changes = model.settle(&mut app, 1000, |_| {});
        costs.push((changes, model.prefixes_of(ROUTER)));
    }
    costs
}

#[test]
fn what_a_move_costs_the_switch_does_not_depend_on_the_routes() {
    let source: [Standing; 9] = [
        (None, true, false),
        (Some(Stance::HOME), true, false),
        (Some(Stance::YIELDED), true, false),
        (Some(Stance::AWAY), true, false),
        (Some(Stance::AWAY), false, false),
        (Some(Stance::AWAY), false, true),
        (Some(Stance::LATE), false, true),
        (Some(Stance { tables: true, ..Stance::NONE }), false, true),
        (Some(Stance::NONE), false, true),
    ];
    let destination: [Standing; 6] = [
        (Some(Stance::AWAITED), false, true),
        (Some(Stance::AWAITED), true, true),
        (Some(Stance::ARRIVED), true, true),
        (Some(Stance::HOME), true, true),
        (Some(Stance::HOME), true, false),
        (None, true, false),
    ];
    for (steps, with_tables) in [(&source[..], 8), (&destination[..], 6)] {
        let (few, many) = (costs(10, steps), costs(10_000, steps));
        let changes =
            |costs: &[(usize, usize)]| costs.iter().map(|(changes, _)| *changes).collect::<Vec<_>>();
        assert_eq!(changes(&few), changes(&many));
        assert!(changes(&few).into_iter().all(|changes| changes < 80), "{few:?}");
        let all = many[0].1;
        assert!(all > 10_000);
        for (at, (_, prefixes)) in many.into_iter().enumerate() {
            assert_eq!(prefixes, if at < with_tables { all } else { 0 }, "after {:?}", steps[at]);
        }
    }
    // Without a stance routes go with the port, and at once: nothing is looked up for who has no vif.
    let (changes, prefixes) = costs(1000, &[(None, true, false), (None, false, false)])[1];
    assert!(changes < 80 && prefixes == 0, "{changes} changes, {prefixes} prefixes");
}

#[test]
fn to_be_at_home_is_to_stand_as_ones_ports_do() {
    law(100, world(), |world| {
        let plain = world.plan.topology();
        let mut home = plain.clone();
        let mut plugged: BTreeMap<RouterId, bool> = BTreeMap::new();
        for (id, vif, _) in plain.segment_vifs() {
            *plugged.entry(id.router).or_insert(true) &= vif.port.is_some();
        }
        let whole = plugged.into_iter().filter(|(_, is_whole)| *is_whole);
        home.stances = whole.map(|(id, _)| (id, Stance::HOME)).collect();
        home.node_mac = Some(NODE);
        let flows = |topology| Model::desired(&world.app_on(topology));
        same("at home", &flows(home)?, &flows(plain)?)
    });
}

/// What is forgotten costs all of a segment's packets their place in the datapath, and so their order.
#[test]
fn only_a_port_that_learned_is_forgotten_with_what_it_learned() {
    let home = host(None, true, false);
    let forgotten = |topology: Topology| {
        let mut app = App::new(100);
        app.set_topology(home.clone());
        Model::default().settle(&mut app, 1000, |_| {});
        app.set_topology(topology);
        let changes = app.next_batch(usize::MAX).changes;
        let learned = |change: &&FlowChange| matches!(change, FlowChange::ForgetLearned(_));
        (changes.len(), changes.iter().filter(learned).count())
    };
    let (changes, none) = forgotten(host(Some(Stance::AWAY), false, true));
    assert!(changes > 10 && none == 0, "{none} of {changes}");
    let mut without = home.clone();
    without.access.pop_first();
    assert_eq!(forgotten(without).1, 1);
    let mut without = home.clone();
    without.uplinks.clear();
    assert_eq!(forgotten(without).1, 2);
}
