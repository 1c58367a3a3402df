//! The flows forward as the guests' kernels would, or hand the packet to the guest.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use openflow::{Action, Field, Flow, Instruction, mac_bits};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::fib::Adjacency;
use xenflow_flow_app::sim::{Packet, Switch, Tag};
use xenflow_flow_app::{App, FlowChange, PortNo, RouterId, Topology, Vif, VifId, pipeline};
use xenflow_proto::table::{Neighbor, NeighborKey};
use xenflow_proto::{Change, MacAddr, Object, VlanId};

use super::model::{Model, switch};
use super::oracle::{self, Allowed, Sent};
use super::world::{
    Dice, Family, V4, V6, World, address, chain, far, host_mac, ipv6, link_local, object, router_id, vif_id,
    vif_mac, world,
};
use super::{finds, law};

/// An IP packet without a tag; both addresses are of one family.
pub fn ip(src: MacAddr, dst: MacAddr, from: IpAddr, to: IpAddr, ttl: u8) -> Packet {
    let (eth_type, [from_field, to_field]) = if to.is_ipv4() {
        (pipeline::ETH_IPV4, [Field::Ipv4Src, Field::Ipv4Dst])
    } else {
        (pipeline::ETH_IPV6, [Field::Ipv6Src, Field::Ipv6Dst])
    };
    let bits = |addr| match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    };
    let headers = [
        (Field::EthSrc, mac_bits(src.0)),
        (Field::EthDst, mac_bits(dst.0)),
        (Field::EthType, eth_type.into()),
        (from_field, bits(from)),
        (to_field, bits(to)),
        (Field::IpProto, 17),
        (Field::IpTtl, ttl.into()),
        (Field::IpDscp, 0),
    ];
    Packet { headers: headers.into(), ..Packet::default() }
}

fn any_address(family: Family, a: u8, b: u8) -> IpAddr {
    let segment = a / 16 % 3;
    let v4 = |groups: [u8; 4]| IpAddr::from(groups);
    match (family, a % 16) {
        (_, 5 | 6) => far(family, segment, b / 64, b),
        (_, 9..) => address(family, a / 16, b),
        (V4, 0) => v4([127, 0, 0, b]),
        (V4, 1) => v4([224, 0, 0, b]),
        (V4, 2) => v4([10, segment, 0, 255]),
        (V4, 3 | 4) => v4([10, segment, 7, b]),
        (V4, 7) => v4([172, 16 + segment, 0, b]),
        (V4, _) => v4([8, 8, 8, b]),
        (V6, 0) => match b % 4 {
            0 => ipv6([0; 8]),
            1 => ipv6([0, 0, 0, 0, 0, 0, 0, 1]),
            2 => ipv6([0xff0e, 0, 0, 0, 0, 0, 0, b.into()]),
            _ => IpAddr::V6(Ipv4Addr::new(10, segment, 0, b).to_ipv6_mapped()),
        },
        (V6, 1) => link_local(b),
        (V6, 2) => ipv6([0xfd00, segment.into(), 0, 0, 0, 0, 0, 0]),
        (V6, 3 | 4) => ipv6([0xfd00, segment.into(), 0, 7, 0, 0, 0, b.into()]),
        (V6, _) => ipv6([0x2606, 0, 0, 0, 0, 0, 0, b.into()]),
    }
}

/// A packet to a vif from a port of its segment: the port, the segment and the packet without a tag.
fn to_a_vif(topology: &Topology, dice: Dice) -> Option<(PortNo, VlanId, Packet)> {
    let [r, p, a, b, c, d] = dice;
    let is_here = |vif: &Vif, segment| !topology.is_elsewhere(segment, vif.mac);
    let vifs: Vec<_> = topology.bound_vifs().filter(|(_, vif, vlan, _)| is_here(vif, *vlan)).collect();
    let (_, vif, segment, _) = *vifs.get(usize::from(r).checked_rem(vifs.len())?)?;
    let ports: Vec<PortNo> =
        topology.members(segment).into_iter().filter(|port| Some(*port) != vif.port).collect();
    let port = *ports.get(usize::from(p).checked_rem(ports.len())?)?;
    let source = topology.bound_vifs().find(|(.., port_of)| *port_of == port);
    let src = source.map_or(host_mac(0, 60), |(_, vif, ..)| vif.mac);
    let ttl = match d % 16 {
        0 => 0,
        1 => 1,
        2 => 2,
        _ => 64,
    };
    let family = if d / 16 % 2 == 0 { V4 } else { V6 };
    let address = |a, b| any_address(family, a, b);
    let packet = ip(src, vif.mac, address(a ^ 0x0f, c), address(b, c.wrapping_add(d)), ttl);
    let length = [100, 1280, 1300, 1301, 1400, 1401, 1500, 1500][usize::from(p / 32)];
    let packet = packet.sized(length).with(Field::IpDscp, if d % 16 == 3 { 2 } else { 0 });
    Some((port, segment, packet))
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
    copies(sent)
}

fn copies(sent: Vec<(PortNo, Packet)>) -> Result<Sent, String> {
    let set: Sent = sent.iter().cloned().collect();
    if set.len() == sent.len() { Ok(set) } else { Err(format!("a copy too many: {sent:?}")) }
}

/// All that may become of it, whatever buckets are picked.
pub fn enter_all(
    topology: &Topology,
    switch: &Switch,
    port: PortNo,
    segment: VlanId,
    packet: &Packet,
) -> Result<Vec<Sent>, String> {
    let on_wire = topology.uplinks.contains(&port);
    let packet = if on_wire { packet.clone().tagged(Tag::new(segment.get())) } else { packet.clone() };
    let outcomes = switch.send_all(port, &packet).map_err(|fault| fault.to_string())?;
    outcomes.into_iter().map(|outcome| copies(outcome.sent)).collect()
}

/// Of IPv4 packets and of IPv6 packets.
#[derive(Default)]
struct Counts([Count; 2]);

#[derive(Default)]
struct Count {
    packets: Cell<u32>,
    forwarded: Cell<u32>,
    /// IPv4 by an IPv6 gateway.
    crossed: Cell<u32>,
    chained: Cell<u32>,
    dropped: Cell<u32>,
    /// The kernels would forward it.
    forwardable: Cell<u32>,
    /// There was a choice between next hops.
    shared: Cell<u32>,
    /// Within a VRF.
    in_vrf: Cell<u32>,
}

impl Count {
    /// Counts an outcome that is allowed; false if it is not.
    fn take(&self, allowed: &Allowed, sent: &Sent) -> bool {
        let add = |cell: &Cell<u32>, yes: bool| cell.set(cell.get() + u32::from(yes));
        add(&self.packets, true);
        add(&self.forwardable, allowed.passed > 0 && !allowed.ends.is_empty());
        if let Some(at) = allowed.punts.iter().position(|punt| punt == sent) {
            add(&self.chained, at > 0);
            return true;
        }
        let at_end = allowed.ends.contains(sent);
        add(&self.in_vrf, at_end && !sent.is_empty() && allowed.in_vrf);
        add(&self.dropped, at_end && sent.is_empty());
        add(&self.forwarded, at_end && !sent.is_empty());
        add(&self.crossed, at_end && !sent.is_empty() && allowed.by_ipv6);
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
        let outcomes = enter_all(&topology, switch, port, segment, &packet)?;
        let allowed: Vec<Allowed> =
            worlds.iter().map(|world| oracle::allowed(world, &topology, segment, &packet)).collect();
        let count = &counts.0[usize::from(packet.headers.contains_key(&Field::Ipv6Dst))];
        count.shared.set(count.shared.get() + u32::from(outcomes.len() > 1));
        for sent in outcomes {
            if !allowed.iter().any(|allowed| count.take(allowed, &sent)) {
                return Err(format!("port {port}, {segment}, {packet:?}: {sent:#?}, but {allowed:#?}"));
            }
        }
    }
    Ok(())
}

fn cases() -> impl Strategy<Value = (World, Vec<Dice>)> {
    (world(), vec(any::<Dice>(), 48))
}

#[test]
fn flows_forward_as_the_kernels_would_or_punt() {
    let counts = Counts::default();
    law(1500, cases(), |(world, packets)| {
        let switch = switch(&world.app(), Some);
        check(&world, &switch, &packets, &counts)
    });
    let crossed = counts.0[0].crossed.get();
    for (family, count) in [V4, V6].into_iter().zip(counts.0) {
        let Count { packets, forwarded, crossed, chained, dropped, forwardable, shared, in_vrf } = count;
        let [packets, forwarded, crossed, chained, dropped, forwardable, shared, in_vrf] =
            [packets, forwarded, crossed, chained, dropped, forwardable, shared, in_vrf]
                .map(Cell::into_inner);
        println!(
            "{family:?}: {packets} packets: {forwarded} forwarded of {forwardable} forwardable, {crossed} by the \
             other family, {chained} chained, {dropped} dropped, {shared} shared, {in_vrf} in a VRF"
        );
        assert!(packets > 30_000, "{packets}");
        assert!(forwarded * 5 > packets, "{forwarded} of {packets}");
        assert!(forwarded * 10 > forwardable * 8, "{forwarded} of {forwardable}");
        assert!(chained * 30 > packets, "{chained} of {packets}");
        assert!(dropped > 50, "{dropped}");
        assert!(shared > 500, "{shared}");
        assert!(in_vrf > 500, "{in_vrf}");
    }
    assert!(crossed > 500, "{crossed}");
}

/// Changes what the flows of a table do that match a field with that value.
fn broken(world: &World, table: u8, of: (Field, u128), change: impl Fn(&mut Action)) -> Switch {
    let change = |mut flow: Flow| {
        let hit = flow.table == table && flow.matching.field(of.0).is_some_and(|f| f.value & f.mask == of.1);
        for instruction in &mut flow.instructions {
            if let (true, Instruction::ApplyActions(actions)) = (hit, instruction) {
                actions.iter_mut().for_each(&change);
            }
        }
        flow
    };
    switch(&world.app(), |flow| Some(change(flow)))
}

#[test]
fn a_wrong_next_hop_is_noticed() {
    let wrong = |action: &mut Action| {
        if matches!(action, Action::SetField { field: Field::EthDst, .. }) {
            *action = Action::set_field(Field::EthDst, 0x0600_0000_6666);
        }
    };
    let immortal = |action: &mut Action| {
        if *action == Action::DecTtl {
            *action = Action::set_masked(Field::Reg(15), 0, 1);
        }
    };
    let breaks = |of: (Field, u128), change: &dyn Fn(&mut Action)| {
        finds(5, cases(), |(world, packets)| {
            check(&world, &broken(&world, pipeline::NEXT_HOP, of, change), &packets, &Counts::default())
        });
    };
    for eth_type in pipeline::ETH_IP {
        breaks((Field::EthType, eth_type.into()), &wrong);
        breaks((Field::EthType, eth_type.into()), &immortal);
    }
    // The high half of an IPv6 next hop's address: link-local, and not.
    let high = Field::Xreg(2 * pipeline::NEXT_HOP_IPV6);
    breaks((high, 0xfe80 << 48), &wrong);
}

#[test]
fn a_lost_part_of_a_next_hop_is_noticed() {
    // A next hop by its address alone: link-local ones are on many vifs.
    finds(20, cases(), |(world, packets)| {
        let anywhere = |flow: Flow| {
            let mut matching = openflow::Match::builder();
            for f in flow.matching.fields() {
                let mask = if f.field == Field::Xreg(pipeline::NEXT_HOP_ID) { 0xffff << 48 } else { f.mask };
                matching = matching.masked(f.field, f.value, mask);
            }
            let ipv6 = flow.matching.field(Field::Xreg(2 * pipeline::NEXT_HOP_IPV6)).is_some();
            if flow.table == pipeline::NEXT_HOP && ipv6 {
                Flow { matching: matching.build(), ..flow }
            } else {
                flow
            }
        };
        let switch = switch(&world.app(), |flow| Some(anywhere(flow)));
        check(&world, &switch, &packets, &Counts::default())
    });
}

#[test]
fn a_missing_exception_is_noticed() {
    for eth_type in pipeline::ETH_IP {
        for table in [pipeline::LOCAL, pipeline::SOURCE] {
            finds(30, cases(), |(world, packets)| {
                let ip =
                    |f: &Flow| f.matching.field(Field::EthType).is_some_and(|f| f.value == eth_type.into());
                let is_lost = |f: &Flow| f.table == table && ip(f);
                let switch = switch(&world.app(), |flow| (!is_lost(&flow)).then_some(flow));
                check(&world, &switch, &packets, &Counts::default())
            });
        }
    }
}

#[test]
fn a_missing_route_is_noticed() {
    finds(20, cases(), |(world, packets)| {
        let is_lost = |f: &Flow| f.table == pipeline::ROUTE && f.priority > pipeline::priority::PREFIX + 8;
        let switch = switch(&world.app(), |flow| (!is_lost(&flow)).then_some(flow));
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
        let flows = app.desired().flows.into_iter();
        let gates: Vec<Flow> = flows.filter(|flow| flow.table == pipeline::ROUTER).collect();
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
            result = check(&world, &model.switch(), &packets[..16], &counts);
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
    // Rarely seen: routes come before next hops, so what is not yet complete punts, unless it is a blackhole.
    finds(600, cases(), |case| loads(case, true));
}

#[test]
fn the_router_after_the_limit_gets_a_punt() {
    assert_eq!(vif_id(0, 0), VifId { router: RouterId(1), number: 1 });
    for (packets, gateways, count) in [(V4, V4), (V6, V6), (V4, V6)]
        .into_iter()
        .flat_map(|(packets, gateways)| [1, 2, 31, 32, 33, 34, 50].map(|count| (packets, gateways, count)))
    {
        let (from, to) = (far(packets, 9, 0, 9), far(packets, 8, 0, 8));
        let packet = ip(host_mac(0, 9), vif_mac(0, 0), from, to, 64);
        let app = chain(count, packets, gateways);
        let (topology, switch) = (app.topology(), switch(&app, Some));
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

fn adjacency() -> impl Strategy<Value = Adjacency> {
    let few = || prop_oneof![Just(0u32), Just(1), Just(u32::MAX), any::<u32>()];
    let addr = prop_oneof![
        few().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
        [few(), few(), few(), few()].prop_map(|[a, b, c, d]| {
            let bits = [a, b, c, d].into_iter().fold(0u128, |bits, part| bits << 32 | u128::from(part));
            IpAddr::from(Ipv6Addr::from_bits(bits))
        }),
    ];
    let vif = (0..3u16, 0..3u16).prop_map(|(router, number)| VifId { router: RouterId(router), number });
    (vif, addr.prop_filter("nobody's", |addr| !addr.is_unspecified()))
        .prop_map(|(vif, addr)| Adjacency { vif, addr })
}

/// What a packet's registers are after a route, and the match of the next hop: one is met by the other's only if
/// they are the same.
#[test]
fn no_two_next_hops_have_the_same_registers() {
    law(20_000, (adjacency(), adjacency()), |(a, b)| {
        let registers = |adjacency| -> BTreeMap<Field, u128> {
            let unset = [Field::Xreg(pipeline::NEXT_HOP_ID), Field::Xxreg(pipeline::NEXT_HOP_IPV6)];
            unset.into_iter().map(|field| (field, 0)).chain(pipeline::next_hop(adjacency)).collect()
        };
        let set = registers(a);
        let met = pipeline::next_hop(b).all(|(field, value)| set[&field] == value);
        if met == (a == b) { Ok(()) } else { Err(format!("{a:?} and {b:?}")) }
    });
}

/// 0.0.0.0 and :: would have the registers of each other.
#[test]
fn nobody_is_no_next_hop() {
    for (packets, gateways) in [(V4, V4), (V6, V6), (V4, V6)] {
        let mut app = chain(1, packets, gateways);
        let rewrites =
            |app: &App| app.desired().flows.iter().filter(|flow| flow.table == pipeline::NEXT_HOP).count();
        let before = rewrites(&app);
        let neighbor = |addr| {
            let key = NeighborKey { ifindex: 1, addr };
            Change::Upsert(Object::Neighbor(Neighbor { key, mac: host_mac(0, 2) }))
        };
        for nobody in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
            app.apply(router_id(0), neighbor(nobody)).unwrap();
            assert_eq!(rewrites(&app), before, "{nobody}");
        }
        app.apply(router_id(0), neighbor(Ipv4Addr::new(0, 0, 0, 1).into())).unwrap();
        assert_eq!(rewrites(&app), before + 1);
    }
}
