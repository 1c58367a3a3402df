//! Whatever frames come: no segment hears another, no network another, and the control network is apart.

use std::cell::Cell;
use std::collections::BTreeSet;

use openflow::{Action, Field, Flow, Instruction, mac_bits};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::sim::{Packet, Switch, Tag};
use xenflow_flow_app::{PortNo, Refusal, Topology, pipeline};
use xenflow_proto::control::{HOST_IPV4, HOST_MAC, PORT, guest_ipv4};
use xenflow_proto::{MacAddr, VlanId};

use super::forwarding::ip;
use super::model::Model;
use super::queues::misqueued;
use super::world::{
    CONTROL_PORT, Dice, V4, V6, World, address, among_others, host_mac, network_of, vlan, world,
};
use super::{finds, law};

const ANNOUNCEMENT: u128 = 0xaaaa_aaaa_aaaa;

/// The segment of a port that is no trunk.
fn segment_of(topology: &Topology, port: PortNo) -> Option<VlanId> {
    let vif = topology.bound_vifs().find(|(.., of)| *of == port).map(|(_, _, vlan, _)| vlan);
    vif.or_else(|| topology.access.get(&port).copied())
}

fn is_elsewhere(topology: &Topology, segment: VlanId, mac: u128) -> bool {
    topology.elsewhere.iter().any(|(vlan, of)| *vlan == segment && mac_bits(of.0) == mac)
}

fn is_control(topology: &Topology, port: PortNo) -> bool {
    topology.control_vifs().any(|(_, of)| of == port)
}

/// A frame of anybody: (port, packet).
pub fn frame(topology: &Topology, dice: [u8; 10]) -> (PortNo, Packet) {
    let [p, s, d, a, b, c, e, t, u, v] = dice;
    let mut ports: Vec<PortNo> =
        topology.access.keys().copied().chain(topology.uplinks.iter().copied()).collect();
    ports.extend(topology.vifs.values().filter_map(|vif| vif.port));
    ports.extend([CONTROL_PORT, 777]);
    let port = ports[usize::from(p) % ports.len()];
    let vif = |n: u8| {
        topology
            .vifs
            .values()
            .nth(usize::from(n) % topology.vifs.len().max(1))
            .map_or(MacAddr::ZERO, |v| v.mac)
    };
    let mac = |kind: u8, n: u8| match kind % 16 {
        0 => MacAddr([0xaa; 6]),
        1 => MacAddr::BROADCAST,
        2 => MacAddr([1, 0, 0x5e, 0, 0, n]),
        3 => HOST_MAC,
        4..10 => vif(n),
        _ => host_mac(n % 6, n / 6 % 4),
    };
    // An honest source, mostly.
    let own = topology.vifs.values().find(|vif| vif.port == Some(port)).map(|vif| vif.mac);
    let src = if s % 8 == 0 { mac(s / 8, e) } else { own.unwrap_or(host_mac(e % 6, s / 8 % 4)) };
    let family = if matches!(e % 8, 1 | 3 | 5) { V6 } else { V4 };
    let mut packet = ip(src, mac(d, a), address(family, b, a), address(family, c, d / 16), 64);
    match e % 8 {
        0 => {
            packet = packet
                .with(Field::EthType, pipeline::ETH_ARP.into())
                .with(Field::ArpSha, mac_bits(src.0))
                .with(Field::ArpSpa, guest_ipv4(src).to_bits().into())
        }
        2 => {
            let (guest, host) = (guest_ipv4(src).to_bits().into(), HOST_IPV4.to_bits().into());
            packet = packet
                .with(Field::Ipv4Src, guest)
                .with(Field::Ipv4Dst, host)
                .with(Field::IpProto, 6)
                .with(Field::TcpDst, PORT.into())
                .with(Field::TcpSrc, PORT.into())
                .with(Field::EthDst, mac_bits(HOST_MAC.0));
            if port == CONTROL_PORT {
                packet =
                    packet.with(Field::EthSrc, mac_bits(HOST_MAC.0)).with(Field::EthDst, mac_bits(vif(a).0));
            }
        }
        _ => {}
    }
    if e % 8 != 0 {
        packet = packet.with(Field::IpDscp, [0, 46, 10, 7][usize::from(c / 3 % 4)]);
    }
    if !matches!(e % 8, 0 | 2) {
        packet = with_ports(packet, family == V6, v / 16);
    }
    let tag = |n: u8| Tag {
        tpid: if n % 16 == 3 { 0x88a8 } else { 0x8100 },
        vid: if n % 16 == 4 { 0 } else { vlan(n % 7).get() },
        pcp: n % 8,
    };
    if v % 16 == 0 {
        packet = packet.tagged(tag(u));
    }
    // Trunks are tagged, mostly.
    if topology.uplinks.contains(&port) != (t % 8 == 0) {
        packet = packet.tagged(tag(t / 8));
    }
    (port, packet)
}

/// UDP, TCP, ICMP or a later fragment, which has no ports, and in IPv6 no protocol (`parse_ipv6_ext_hdrs__`).
fn with_ports(packet: Packet, is_ipv6: bool, dice: u8) -> Packet {
    let (protocol, ends) = match dice % 4 {
        0 => return packet.with(Field::IpProto, 1),
        1 => (6, [Field::TcpSrc, Field::TcpDst]),
        _ => (17, [Field::UdpSrc, Field::UdpDst]),
    };
    let (from, to) = match dice / 4 {
        0 => return packet.with(Field::IpProto, if is_ipv6 { 44 } else { protocol }).with(Field::IpFrag, 3),
        1 => (40_000, 53),
        2 => (53, 40_000),
        _ => (40_000, 80),
    };
    packet.with(Field::IpProto, protocol).with(ends[0], from).with(ends[1], to)
}

/// The segment that a frame is of, if it may enter at all.
fn admitted(topology: &Topology, port: PortNo, packet: &Packet) -> Option<VlanId> {
    let src = packet.header(Field::EthSrc);
    if src >> 40 & 1 == 1 || packet.header(Field::EthDst) == ANNOUNCEMENT {
        return None;
    }
    if topology.uplinks.contains(&port) {
        let [tag] = packet.tags.as_slice() else { return None };
        return topology.segments.iter().copied().find(|vlan| vlan.get() == tag.vid);
    }
    let segment = segment_of(topology, port)?;
    let vif = topology.vifs.values().find(|vif| vif.port == Some(port));
    let honest = match vif {
        Some(vif) => mac_bits(vif.mac.0) == src,
        None => {
            let is_vif =
                topology.vifs.values().any(|v| v.vlan() == Some(segment) && mac_bits(v.mac.0) == src);
            !is_vif && !is_elsewhere(topology, segment, src)
        }
    };
    (packet.tags.is_empty() && honest).then_some(segment)
}

/// Why a frame is not let in: all that is wrong with it.
fn wrongs(topology: &Topology, port: PortNo, packet: &Packet) -> BTreeSet<Refusal> {
    let (src, dst) = (packet.header(Field::EthSrc), packet.header(Field::EthDst));
    let uplink = topology.uplinks.contains(&port);
    let segment = segment_of(topology, port);
    let mut wrongs = BTreeSet::new();
    let mut add = |wrong, reason| {
        if wrong {
            wrongs.insert(reason);
        }
    };
    let control = is_control(topology, port) || Some(port) == topology.control_port;
    let known = uplink || segment.is_some();
    add(src >> 40 & 1 == 1, Refusal::GroupSource);
    add(dst == ANNOUNCEMENT, if uplink { Refusal::Announcement } else { Refusal::ForgedAnnouncement });
    // There is no control network without its port.
    add(control && topology.control_port.is_some(), Refusal::Control);
    add(!known && (!control || topology.control_port.is_none()), Refusal::UnknownPort);
    if !known {
        return wrongs;
    }
    let segments: Vec<u16> = topology.segments.iter().map(|vlan| vlan.get()).collect();
    match packet.tags.as_slice() {
        [] => add(uplink, Refusal::NoTag),
        [tag] => {
            add(tag.vid == 0, Refusal::PriorityTag);
            add(tag.vid != 0 && !(uplink && segments.contains(&tag.vid)), Refusal::ForeignTag);
        }
        _ => add(true, Refusal::DoubleTag),
    }
    add(
        packet.tags.is_empty() && !uplink && admitted(topology, port, packet).is_none(),
        Refusal::ForeignSource,
    );
    wrongs
}

/// Each frame meets one flow that counts its refusal, by the right port and for one of the right reasons, or none.
fn counts_refusals(
    world: &World,
    switch: &Switch,
    frames: &[[u8; 10]],
    seen: &Cell<BTreeSet<Refusal>>,
) -> Result<(), String> {
    let topology = world.plan.topology();
    for dice in frames {
        let (port, packet) = frame(&topology, *dice);
        let outcome = switch.send(port, &packet).map_err(|fault| fault.to_string())?;
        let counted: Vec<_> =
            outcome.cookies.iter().filter_map(|cookie| pipeline::cookie::refusal_of(*cookie)).collect();
        let wrongs = wrongs(&topology, port, &packet);
        let is_in = admitted(&topology, port, &packet).is_some()
            || wrongs.iter().all(|wrong| *wrong == Refusal::Control) && !outcome.sent.is_empty();
        let right = match counted.as_slice() {
            [] => is_in,
            [(reason, of)] => !is_in && wrongs.contains(reason) && (*of == port || *of == 0),
            _ => false,
        };
        // By port wherever the port is known.
        let by_port = |(_, of): &(Refusal, PortNo)| {
            *of == port || !topology.uplinks.contains(&port) && segment_of(&topology, port).is_none()
        };
        if !right || !counted.iter().all(by_port) {
            return Err(format!("{port}, {packet:?} counts as {counted:?}, but {wrongs:?}"));
        }
        let mut all = seen.take();
        all.extend(counted.iter().map(|(reason, _)| *reason));
        seen.set(all);
    }
    Ok(())
}

#[test]
fn what_is_refused_is_counted_by_port_and_reason() {
    let seen = Cell::default();
    law(400, cases(), |(world, frames)| counts_refusals(&world, &switch(&world), &frames, &seen));
    assert_eq!(seen.take(), Refusal::ALL.into());
}

#[test]
fn a_refusal_that_is_not_counted_is_noticed() {
    for reason in Refusal::ALL {
        finds(400, cases(), |(world, frames)| {
            let counted = |flow: Flow| {
                let is_it = pipeline::cookie::refusal_of(flow.cookie).is_some_and(|(it, _)| it == reason);
                (!is_it).then_some(flow)
            };
            counts_refusals(&world, &broken(&world, counted), &frames, &Cell::default())
        });
    }
}

/// Segments that routers with a vif in them connect, one or more of them in a row.
fn reachable(topology: &Topology, from: VlanId) -> BTreeSet<VlanId> {
    let mut seen = BTreeSet::from([from]);
    loop {
        let before = seen.len();
        for router in topology.routers() {
            let vlans: Vec<VlanId> = topology
                .vifs_of(router)
                .filter(|(_, vif)| vif.port.is_some())
                .filter_map(|(_, vif)| vif.vlan())
                .collect();
            if vlans.iter().any(|vlan| seen.contains(vlan)) {
                seen.extend(vlans);
            }
        }
        if seen.len() == before {
            return seen;
        }
    }
}

/// What is wrong with one frame's going from port to port.
fn leak(
    topology: &Topology,
    in_port: PortNo,
    packet: &Packet,
    port: PortNo,
    sent: &Packet,
) -> Option<&'static str> {
    if is_control(topology, in_port) {
        return (Some(port) != topology.control_port).then_some("a control vif reaches more than the host");
    }
    if Some(in_port) == topology.control_port {
        return (!is_control(topology, port))
            .then_some("the host's control port reaches more than control vifs");
    }
    if is_control(topology, port) || Some(port) == topology.control_port {
        return Some("the control network is reached");
    }
    let Some(from) = admitted(topology, in_port, packet) else {
        return Some("it should not have been let in");
    };
    let to_uplink = topology.uplinks.contains(&port);
    let to = match (to_uplink, sent.tags.as_slice()) {
        (true, [tag]) => topology.segments.iter().copied().find(|vlan| vlan.get() == tag.vid),
        (false, []) => segment_of(topology, port),
        _ => return Some("tagged where it should not be, or not where it should"),
    };
    let Some(to) = to else { return Some("no segment is there") };
    if network_of(from) != network_of(to) {
        return Some("it crosses networks");
    }
    if sent.headers == packet.headers {
        let back = port == in_port || to_uplink && topology.uplinks.contains(&in_port);
        return match (from == to, back) {
            (false, _) => Some("it crosses segments without a router"),
            (true, true) => Some("it goes back where it came from"),
            (true, false) => None,
        };
    }
    let src = sent.header(Field::EthSrc);
    let by_vif = topology.bound_vifs().any(|(_, vif, vlan, _)| vlan == to && mac_bits(vif.mac.0) == src);
    let hops = packet.header(Field::IpTtl).wrapping_sub(sent.header(Field::IpTtl));
    (!by_vif || !(1..=32).contains(&hops) || !reachable(topology, from).contains(&to))
        .then_some("no router could do that")
}

#[derive(Default)]
struct Counts {
    sent: Cell<usize>,
    routed: Cell<usize>,
    routed6: Cell<usize>,
    control: Cell<usize>,
    learned: Cell<usize>,
    refused: Cell<usize>,
}

fn check(world: &World, mut switch: Switch, frames: &[[u8; 10]], counts: &Counts) -> Result<(), String> {
    check_any(&[&world.plan.topology()], &mut switch, frames, counts).map(|_| ())
}

/// A frame that is only switched goes to a port of this host, though another node has its address and there is one way
/// out. (While a segment comes or goes, it may.)
fn is_astray(topology: &Topology, in_port: PortNo, packet: &Packet, port: PortNo, sent: &Packet) -> bool {
    let to = packet.header(Field::EthDst);
    let is_there = admitted(topology, in_port, packet).is_some_and(|from| is_elsewhere(topology, from, to));
    is_there
        && sent.headers == packet.headers
        && topology.uplinks.len() == 1
        && !topology.uplinks.contains(&port)
}

/// No frame leaks as one of the topologies has it; gives what was learned.
fn check_any(
    topologies: &[&Topology],
    switch: &mut Switch,
    frames: &[[u8; 10]],
    counts: &Counts,
) -> Result<Vec<Flow>, String> {
    let topology = topologies[0];
    let mut all_learned = Vec::new();
    let add = |cell: &Cell<usize>, n| cell.set(cell.get() + n);
    for dice in frames {
        let (port, packet) = frame(topology, *dice);
        let outcome = switch.send(port, &packet).map_err(|fault| fault.to_string())?;
        for (to, sent) in &outcome.sent {
            let leaks = topologies.iter().map(|topology| leak(topology, port, &packet, *to, sent));
            if let Some(leak) = leaks.reduce(|a, b| a.and(b)).flatten() {
                return Err(format!("{leak}: {port} -> {to}, {packet:?} -> {sent:?}"));
            }
            if topologies.len() == 1 && is_astray(topology, port, &packet, *to, sent) {
                return Err(format!("another node has it: {port} -> {to}, {packet:?}"));
            }
            let routed = usize::from(sent.headers != packet.headers);
            let is_ipv6 = packet.headers.contains_key(&Field::Ipv6Dst);
            add(if is_ipv6 { &counts.routed6 } else { &counts.routed }, routed);
        }
        // On the way from one to another it may be that of either.
        if topologies.len() == 1
            && let Some(wrong) = misqueued(topology, &outcome)
        {
            return Err(wrong);
        }
        let ports: BTreeSet<PortNo> = outcome.sent.iter().map(|(port, _)| *port).collect();
        if ports.len() < outcome.sent.len() {
            return Err(format!("twice by one port: {port}, {packet:?}, {:?}", outcome.sent));
        }
        add(&counts.sent, ports.len());
        add(&counts.refused, usize::from(ports.is_empty()));
        add(
            &counts.control,
            ports.iter().filter(|port| **port == CONTROL_PORT || is_control(topology, **port)).count(),
        );
        add(&counts.learned, outcome.learned.len());
        for flow in outcome.learned {
            switch.insert(flow.clone());
            all_learned.push(flow);
        }
    }
    Ok(all_learned)
}

fn cases() -> impl Strategy<Value = (World, Vec<[u8; 10]>)> {
    (world(), vec(any::<[u8; 10]>(), 60))
}

fn switch(world: &World) -> Switch {
    super::model::switch(&world.app(), Some)
}

#[test]
fn nothing_leaves_its_segment_but_by_a_router() {
    let counts = Counts::default();
    law(1200, cases(), |(world, frames)| check(&world, switch(&world), &frames, &counts));
    let Counts { sent, routed, routed6, control, learned, refused } = counts;
    let counts = [sent, routed, routed6, control, learned, refused].map(|cell| cell.get());
    println!("sent, routed, IPv6 routed, control, learned, refused: {counts:?}");
    for (count, least) in counts.into_iter().zip([40_000, 1_000, 1_000, 500, 8_000, 5_000]) {
        assert!(count > least, "sent, routed, IPv6 routed, control, learned, refused: {counts:?}");
    }
}

type Changing = (World, Vec<[u8; 10]>, Vec<Dice>);

fn changing() -> impl Strategy<Value = Changing> {
    (world(), vec(any::<[u8; 10]>(), 20), vec(any::<Dice>(), 1..5))
}

/// The host changes, and the flows one by one: at every step each frame goes as before or as after.
fn changes((mut world, frames, dice): Changing, backwards: bool) -> Result<usize, String> {
    let mut app = world.app();
    let mut model = Model::default();
    model.settle(&mut app, 1000, |_| {});
    let mut steps = 0;
    for dice in dice {
        let before = world.plan.topology();
        world.plan.mutate(dice);
        let after = world.plan.topology();
        let run = |model: &mut Model, topologies: &[&Topology]| {
            let learned = check_any(topologies, &mut model.switch(), &frames, &Counts::default())?;
            learned.into_iter().for_each(|flow| model.insert(flow));
            Ok::<(), String>(())
        };
        run(&mut model, &[&before])?;
        app.set_topology(after.clone());
        let mut batch = app.next_batch(usize::MAX).changes;
        if backwards {
            batch.reverse();
        }
        for change in batch {
            steps += 1;
            model.change(change);
            run(&mut model, &[&after, &before])?;
        }
        run(&mut model, &[&after])?;
    }
    Ok(steps)
}

#[test]
fn nothing_leaks_while_the_host_changes() {
    let steps = Cell::new(0);
    law(150, changing(), |case| {
        steps.set(steps.get() + changes(case, false)?);
        Ok(())
    });
    assert!(steps.get() > 1500, "{}", steps.get());
}

#[test]
fn changes_in_the_wrong_order_are_noticed() {
    finds(150, changing(), |case| changes(case, true).map(|_| ()));
}

/// A switch of desired flows, each of which may be changed or left out.
fn broken(world: &World, change: impl Fn(Flow) -> Option<Flow>) -> Switch {
    super::model::switch(&world.app(), change)
}

fn noticed(change: impl Fn(Flow) -> Option<Flow> + Copy) {
    finds(100, cases(), |(world, frames)| check(&world, broken(&world, change), &frames, &Counts::default()));
}

/// The same flow for every VLAN.
fn any_vlan(flow: Flow) -> Flow {
    let mut matching = openflow::Match::builder();
    for f in flow.matching.fields().filter(|f| f.field != Field::VlanVid) {
        matching = matching.masked(f.field, f.value, f.mask);
    }
    Flow { matching: matching.vlan_tagged().build(), ..flow }
}

#[test]
fn a_missing_egress_check_is_noticed() {
    // What must not go back or from trunk to trunk.
    noticed(|flow| {
        (flow.table != pipeline::EGRESS || flow.priority != pipeline::priority::EXCEPTION).then_some(flow)
    });
    // What says of which segment a port is, and the ports that are known by MAC alone.
    noticed(|flow| {
        Some(if matches!(flow.table, pipeline::EGRESS | pipeline::L2) { any_vlan(flow) } else { flow })
    });
}

#[test]
fn a_missing_refusal_is_noticed() {
    noticed(|flow| {
        let is_it = flow.priority >= pipeline::priority::REFUSE_ANYWHERE;
        (flow.table != pipeline::ADMISSION || !is_it).then_some(flow)
    });
}

#[test]
fn what_another_node_has_goes_there_and_comes_from_there() {
    let cases = (among_others(), vec(any::<[u8; 10]>(), 60));
    law(300, cases, |(world, frames)| check(&world, switch(&world), &frames, &Counts::default()));
}

#[test]
fn a_missing_place_of_another_nodes_address_is_noticed() {
    finds(200, (among_others(), vec(any::<[u8; 10]>(), 60)), |(world, frames)| {
        let topology = world.plan.topology();
        let is_known = |flow: &Flow| {
            let field = |field| flow.matching.field(field).map(|it| it.value);
            let of = |(vlan, mac): &(VlanId, MacAddr)| {
                field(Field::VlanVid) == Some(u128::from(vlan.get() | 0x1000))
                    && field(Field::EthDst) == Some(mac_bits(mac.0))
            };
            flow.table == pipeline::L2 && topology.elsewhere.iter().any(of)
        };
        let switch = broken(&world, |flow| (!is_known(&flow)).then_some(flow));
        check(&world, switch, &frames, &Counts::default())
    });
}

#[test]
fn another_tag_is_noticed() {
    let other = |mut flow: Flow| {
        for instruction in &mut flow.instructions {
            if let Instruction::ApplyActions(actions) = instruction {
                for action in
                    actions.iter_mut().filter(|a| matches!(a, Action::SetField { field: Field::VlanVid, .. }))
                {
                    *action = Action::set_field(Field::VlanVid, 0x1000 | u128::from(vlan(4).get()));
                }
            }
        }
        Some(flow)
    };
    noticed(move |flow| if flow.table == pipeline::NEXT_HOP { other(flow) } else { Some(flow) });
    noticed(move |flow| if flow.table == pipeline::ADMISSION { other(flow) } else { Some(flow) });
}

#[test]
fn a_way_into_the_control_network_is_noticed() {
    noticed(|flow| {
        let to_host = |action: &Action| *action == Action::output(CONTROL_PORT);
        let control = flow
            .instructions
            .iter()
            .any(|i| matches!(i, Instruction::ApplyActions(a) if a.iter().any(to_host)));
        Some(if control { Flow { matching: openflow::Match::any(), ..flow } } else { flow })
    });
}
