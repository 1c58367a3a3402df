//! The flows forward as the guests' kernels would, or hand the packet to the guest.

use std::cell::Cell;
use std::net::Ipv4Addr;

use openflow::{Action, Field, Flow, Instruction, mac_bits};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::sim::{Packet, Switch, Tag};
use xenflow_flow_app::{FlowChange, PortNo, RouterId, Topology, VifId, pipeline};
use xenflow_proto::{Change, MacAddr, VlanId};

use super::model::Model;
use super::oracle::{self, Allowed, Sent};
use super::world::{Dice, World, address, chain, host_mac, object, router_id, vif_id, vif_mac, world};
use super::{finds, law};

/// An IPv4 packet without a tag.
pub fn ipv4(src: MacAddr, dst: MacAddr, from: Ipv4Addr, to: Ipv4Addr, ttl: u8) -> Packet {
    let headers = [
        (Field::EthSrc, mac_bits(src.0)),
        (Field::EthDst, mac_bits(dst.0)),
        (Field::EthType, pipeline::ETH_IPV4.into()),
        (Field::Ipv4Src, from.to_bits().into()),
        (Field::Ipv4Dst, to.to_bits().into()),
        (Field::IpProto, 17),
        (Field::IpTtl, ttl.into()),
        (Field::IpDscp, 0),
    ];
    Packet { tags: Vec::new(), headers: headers.into() }
}

fn any_address(a: u8, b: u8) -> Ipv4Addr {
    match a % 16 {
        0 => Ipv4Addr::new(127, 0, 0, b),
        1 => Ipv4Addr::new(224, 0, 0, b),
        2 => Ipv4Addr::new(10, a / 16 % 3, 0, 255),
        3 | 4 => Ipv4Addr::new(10, a / 16 % 3, 7, b),
        5..8 => Ipv4Addr::new(192, 168, a / 16 % 3, b),
        8 => Ipv4Addr::new(8, 8, 8, b),
        _ => address(a / 16, b),
    }
}

/// A packet to a vif from a port of its segment: the port, the segment and the packet without a tag.
fn to_a_vif(topology: &Topology, dice: Dice) -> Option<(PortNo, VlanId, Packet)> {
    let [r, p, a, b, c, d] = dice;
    let vifs: Vec<_> = topology.bound_vifs().collect();
    let (_, vif, segment, _) = *vifs.get(usize::from(r).checked_rem(vifs.len())?)?;
    let ports: Vec<PortNo> =
        topology.members(segment).into_iter().filter(|port| Some(*port) != vif.port).collect();
    let port = *ports.get(usize::from(p).checked_rem(ports.len())?)?;
    let source = vifs.iter().find(|(.., port_of)| *port_of == port);
    let src = source.map_or(host_mac(0, 60), |(_, vif, ..)| vif.mac);
    let ttl = match d % 16 {
        0 => 0,
        1 => 1,
        2 => 2,
        _ => 64,
    };
    let packet = ipv4(src, vif.mac, any_address(a ^ 0x0f, c), any_address(b, c.wrapping_add(d)), ttl);
    Some((port, segment, packet.with(Field::IpDscp, if d % 16 == 3 { 2 } else { 0 })))
}

pub fn enter(
    topology: &Topology,
    switch: &Switch,
    port: PortNo,
    segment: VlanId,
    packet: &Packet,
) -> Result<Sent, String> {
    let on_wire = topology.uplinks.contains(&port);
    let packet = if on_wire { packet.clone().tagged(Tag::new(segment.get())) } else { packet.clone() };
    let sent = switch.send(port, &packet).map_err(|fault| fault.to_string())?.sent;
    let set: Sent = sent.iter().cloned().collect();
    if set.len() == sent.len() { Ok(set) } else { Err(format!("a copy too many: {sent:?}")) }
}

#[derive(Default)]
struct Counts {
    packets: Cell<u32>,
    forwarded: Cell<u32>,
    chained: Cell<u32>,
    dropped: Cell<u32>,
    /// The kernels would forward it.
    forwardable: Cell<u32>,
}

impl Counts {
    /// Counts an outcome that is allowed; false if it is not.
    fn take(&self, allowed: &Allowed, sent: &Sent) -> bool {
        let add = |cell: &Cell<u32>, yes: bool| cell.set(cell.get() + u32::from(yes));
        add(&self.packets, true);
        add(&self.forwardable, allowed.passed > 0 && allowed.end.is_some());
        if let Some(at) = allowed.punts.iter().position(|punt| punt == sent) {
            add(&self.chained, at > 0);
            return true;
        }
        let at_end = allowed.end.as_ref() == Some(sent);
        add(&self.dropped, at_end && sent.is_empty());
        add(&self.forwarded, at_end && !sent.is_empty());
        add(&self.chained, at_end && allowed.passed > 1);
        at_end
    }
}

fn check(world: &World, switch: &Switch, packets: &[Dice], counts: &Counts) -> Result<(), String> {
    check_any(&[world], switch, packets, counts)
}

/// Each packet goes as the kernels of one of the worlds would send it, all on the same topology.
fn check_any(worlds: &[&World], switch: &Switch, packets: &[Dice], counts: &Counts) -> Result<(), String> {
    let topology = worlds[0].plan.topology();
    for dice in packets {
        let Some((port, segment, packet)) = to_a_vif(&topology, *dice) else { continue };
        let sent = enter(&topology, switch, port, segment, &packet)?;
        let allowed: Vec<Allowed> =
            worlds.iter().map(|world| oracle::allowed(world, &topology, segment, &packet)).collect();
        if !allowed.iter().any(|allowed| counts.take(allowed, &sent)) {
            return Err(format!("port {port}, {segment}, {packet:?}: {sent:#?}, but {allowed:#?}"));
        }
    }
    Ok(())
}

fn cases() -> impl Strategy<Value = (World, Vec<Dice>)> {
    (world(), vec(any::<Dice>(), 40))
}

#[test]
fn flows_forward_as_the_kernels_would_or_punt() {
    let counts = Counts::default();
    law(1500, cases(), |(world, packets)| {
        let switch: Switch = world.app().desired().collect();
        check(&world, &switch, &packets, &counts)
    });
    let Counts { packets, forwarded, chained, dropped, forwardable } = counts;
    let (packets, forwarded, chained) = (packets.get(), forwarded.get(), chained.get());
    println!(
        "{packets} packets: {forwarded} forwarded of {} forwardable, {chained} chained, {} dropped",
        forwardable.get(),
        dropped.get()
    );
    assert!(packets > 30_000, "{packets}");
    assert!(forwarded * 5 > packets, "{forwarded} of {packets}");
    assert!(forwarded * 10 > forwardable.get() * 9, "{forwarded} of {}", forwardable.get());
    assert!(chained * 30 > packets, "{chained} of {packets}");
    assert!(dropped.get() > 50, "{}", dropped.get());
}

/// Changes what the flows of a table do.
fn broken(world: &World, table: u8, change: impl Fn(&mut Action)) -> Switch {
    let change = |mut flow: Flow| {
        for instruction in &mut flow.instructions {
            if let (true, Instruction::ApplyActions(actions)) = (flow.table == table, instruction) {
                actions.iter_mut().for_each(&change);
            }
        }
        flow
    };
    world.app().desired().map(change).collect()
}

#[test]
fn a_wrong_next_hop_is_noticed() {
    let wrong = |action: &mut Action| {
        if matches!(action, Action::SetField { field: Field::EthDst, .. }) {
            *action = Action::set_field(Field::EthDst, 0x0600_0000_6666);
        }
    };
    finds(5, cases(), |(world, packets)| {
        check(&world, &broken(&world, pipeline::NEXT_HOP, wrong), &packets, &Counts::default())
    });
    let immortal = |action: &mut Action| {
        if *action == Action::DecTtl {
            *action = Action::set_masked(Field::Reg(15), 0, 1);
        }
    };
    finds(5, cases(), |(world, packets)| {
        check(&world, &broken(&world, pipeline::NEXT_HOP, immortal), &packets, &Counts::default())
    });
}

#[test]
fn a_missing_route_is_noticed() {
    finds(20, cases(), |(world, packets)| {
        let is_lost = |f: &Flow| f.table == pipeline::ROUTE && f.priority > pipeline::priority::PREFIX + 8;
        let switch: Switch = world.app().desired().filter(|flow| !is_lost(flow)).collect();
        check(&world, &switch, &packets, &Counts::default())
    });
}

/// While the flows of routers come in, batch by batch, packets go the right way or to the guest.
fn loads((world, packets): (World, Vec<Dice>), early: bool) -> Result<(), String> {
    let counts = Counts::default();
    let mut app = world.app();
    let mut model = Model::default();
    let mut result = Ok(());
    if early {
        let gates: Vec<Flow> = app.desired().filter(|flow| flow.table == pipeline::ROUTER).collect();
        app.begin_dump().unwrap();
        app.dump_end();
        app.next_batch(usize::MAX)
            .changes
            .into_iter()
            .chain(gates.into_iter().map(FlowChange::Upsert))
            .for_each(|change| model.change(change));
    }
    model.settle(&mut app, 7, |model| {
        // Before the topology is complete packets are lost.
        if result.is_ok()
            && model.flows.values().any(|flow| {
                flow.table == pipeline::ROUTER && pipeline::cookie::router_of(flow.cookie).is_some()
            })
        {
            result = check(&world, &model.switch(), &packets[..8], &counts);
        }
    });
    result
}

#[test]
fn no_packet_goes_wrong_while_flows_come_in() {
    law(60, cases(), |case| loads(case, false));
}

/// One change of one guest, flow by flow: each packet goes the old way, the new way, or to the guest.
fn changes_one(mut world: World, packets: &[Dice], words: &[Dice]) -> Result<usize, String> {
    let mut app = world.app();
    let mut model = Model::default();
    model.settle(&mut app, 1000, |_| {});
    let mut flows = 0;
    for dice in words {
        let Some(router) = world.tables.keys().copied().nth(usize::from(dice[5] % 6)) else { continue };
        let before = world.clone();
        let object = object(&world.plan, router, *dice);
        let tables = world.tables.get_mut(&router).unwrap();
        let change = match tables.remove(&object.key()) {
            Some(_) if dice[4] % 2 == 0 => Change::Remove(object.key()),
            _ => {
                tables.insert(object.key(), object.clone());
                Change::Upsert(object)
            }
        };
        if app.apply(router_id(router), change).is_err() {
            return Ok(flows);
        }
        for change in app.next_batch(usize::MAX).changes {
            flows += 1;
            model.change(change);
            check_any(&[&before, &world], &model.switch(), packets, &Counts::default())?;
        }
    }
    Ok(flows)
}

#[test]
fn no_packet_goes_wrong_while_a_guest_changes_one_thing() {
    let flows = Cell::new(0);
    law(300, (world(), vec(any::<Dice>(), 12), vec(any::<Dice>(), 12)), |(world, packets, words)| {
        flows.set(flows.get() + changes_one(world, &packets, &words)?);
        Ok(())
    });
    println!("{} flows", flows.get());
    assert!(flows.get() > 2000, "{}", flows.get());
}

#[test]
fn a_gate_that_opens_early_is_noticed() {
    finds(60, cases(), |case| loads(case, true));
}

#[test]
fn the_router_after_the_limit_gets_a_punt() {
    assert_eq!(vif_id(0, 0), VifId { router: RouterId(1), number: 1 });
    let packet =
        ipv4(host_mac(0, 9), vif_mac(0, 0), Ipv4Addr::new(10, 9, 9, 9), Ipv4Addr::new(8, 8, 8, 8), 64);
    for count in [1, 2, 31, 32, 33, 34, 50] {
        let app = chain(count);
        let (topology, switch) = (app.topology(), app.desired().collect());
        let sent = enter(topology, &switch, 1, super::world::vlan(0), &packet).unwrap();
        let passed = count.min(32);
        let src = mac_bits(vif_mac(passed - 1, 0).0);
        let routed = packet.clone().with(Field::IpTtl, (64 - passed).into()).with(Field::EthSrc, src);
        let expected: Sent = if count <= 32 {
            let routed = routed.with(Field::EthDst, mac_bits(host_mac(0, 1).0));
            topology.members(super::world::vlan(0)).into_iter().map(|port| (port, routed.clone())).collect()
        } else {
            [(100 + 32, routed.with(Field::EthDst, mac_bits(vif_mac(32, 0).0)))].into()
        };
        assert_eq!(sent, expected, "{count} routers");
    }
}
