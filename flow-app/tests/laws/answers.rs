//! What guests are told of their routes: rejected are those that the flows do not forward, and each reason in turn.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;
use xenflow_flow_app::fib::{Binding, Fib};
use xenflow_flow_app::rib::{Quota, Rib};
use xenflow_flow_app::sim::{Packet, Switch};
use xenflow_flow_app::{
    Answer, App, Attachment, FastPath, FlowKey, Policy, PortNo, Rejection, RouterId, SlowReason, Topology,
    Vif, VifId, pipeline,
};
use xenflow_proto::table::{
    Hop, HopFlags, Link, Neighbor, NeighborKey, NextHop, NextHopKind, Route, RouteKey, RouteKind,
    RouteTarget, Settings, TABLE_LOCAL, TABLE_MAIN,
};
use xenflow_proto::{Change, Key, MacAddr, Object, VlanId};

use super::forwarding::{enter_all, ip};
use super::model::{self, Dislike, Model};
use super::oracle::Sent;
use super::world::{LIMIT, Tables, World, host_mac, router_id, world};
use super::{finds, law};

type Rejected = BTreeMap<RouteKey, Rejection>;

pub fn rejected(app: &App, id: RouterId) -> Rejected {
    app.rejected(id).collect()
}

/// All guests' words on a topology, and the switch in step with them.
fn settled(world: &World, topology: &Topology) -> (App, Model) {
    let mut app = App::new(LIMIT);
    app.set_topology(topology.clone());
    for (router, tables) in &world.tables {
        let id = router_id(*router);
        app.begin_snapshot(id);
        tables.values().for_each(|object| app.apply(id, Change::Upsert(object.clone())).unwrap());
        app.end_snapshot(id);
    }
    let mut model = Model::default();
    model.settle(&mut app, 1000, |_| {});
    (app, model)
}

/// Everybody forwards as much as they like.
fn wide(world: &World) -> Topology {
    let mut topology = world.plan.topology();
    for policy in topology.policies.values_mut() {
        *policy = Policy { fast_path: FastPath::Always, ..Policy::default() };
    }
    topology
}

/// A packet to a destination that comes to a vif, and from where.
fn to_vif(topology: &Topology, vif: &Vif, to: IpAddr) -> Option<(PortNo, VlanId, Packet)> {
    let segment = vif.vlan().filter(|segment| !topology.is_elsewhere(*segment, vif.mac))?;
    let port = topology.members(segment).into_iter().find(|port| Some(*port) != vif.port)?;
    let source = topology.bound_vifs().find(|(.., of)| *of == port).map(|(_, vif, ..)| vif.mac);
    let from = match to {
        IpAddr::V4(_) => Ipv4Addr::new(203, 0, 113, 9).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2606, 0, 0, 0, 0, 0, 0, 9).into(),
    };
    let packet = ip(source.unwrap_or(host_mac(0, 60)), vif.mac, from, to, 64).sized(100);
    Some((port, segment, packet))
}

/// A destination whose longest match among these prefixes is that one.
fn destination_of(dst: IpNet, among: &BTreeSet<IpNet>) -> Option<IpAddr> {
    let best = |addr: &IpAddr| among.iter().filter(|of| of.contains(addr)).max_by_key(|of| of.prefix_len());
    let offset = |n: u128| -> IpAddr {
        match dst.network() {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().wrapping_add(n as u32)).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().wrapping_add(n)).into(),
        }
    };
    let scattered = (0..128).map(|bit| 77 << bit);
    let near = [0, 1, 7, 60, 130, 200, 254].into_iter().chain(scattered).map(offset);
    near.filter(|addr| dst.contains(addr)).find(|addr| best(addr) == Some(&dst))
}

#[derive(Default)]
struct Counts {
    over: Cell<u32>,
    other: Cell<u32>,
    forwarded: Cell<u32>,
}

fn add(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

/// One router's switch with a limit and without one: what the limit hands to the guest is rejected for that, and what
/// is not handed to the guest is not rejected.
fn limited(world: &World, router: u8, max_routes: usize, lie: bool, counts: &Counts) -> Result<(), String> {
    let Some(tables) = world.tables.get(&router) else { return Ok(()) };
    let id = router_id(router);
    let free = wide(world);
    let mut narrow = free.clone();
    narrow.policies.entry(id).or_default().max_routes = max_routes;
    let (app, free_model) = settled(world, &free);
    let free_rejected = rejected(&app, id);
    let (mut app, mut model) = settled(world, &narrow);
    let mut held = rejected(&app, id);
    if lie {
        held.pop_first();
    }
    let mut rib = Rib::default();
    for object in tables.values() {
        rib.apply(Change::Upsert(object.clone()), Quota::NONE).unwrap();
    }
    let binding = Binding::new(&rib, &narrow, id);
    let fib = Fib { rib: &rib, binding: &binding };
    let switches = [model.switch(), free_model.switch()];
    for (_, bound) in binding.vifs() {
        let vif = &narrow.vifs[&bound.id];
        let among = deciding(tables, &fib, bound.table);
        for dst in among.iter().copied() {
            let Some(to) = destination_of(dst, &among).filter(|to| !is_local(tables, *to)) else { continue };
            let Some((port, segment, packet)) = to_vif(&narrow, vif, to) else { continue };
            let punt: Sent = [(vif.port.unwrap(), packet.clone())].into();
            let punts = |topology: &Topology, switch: &Switch| -> Result<bool, String> {
                let outcomes = enter_all(topology, switch, port, segment, &packet)?;
                Ok(outcomes.iter().all(|sent| *sent == punt))
            };
            let [now, without] = [punts(&narrow, &switches[0])?, punts(&free, &switches[1])?];
            let answers = |held: &Rejected| -> BTreeSet<Option<Rejection>> {
                let routes =
                    tables.keys().filter_map(|key| if let Key::Route(key) = key { Some(*key) } else { None });
                let routes = routes.filter(|key| key.table == bound.table && key.dst == dst);
                routes.map(|key| held.get(&key).copied()).collect()
            };
            let (limited, unlimited) = (answers(&held), answers(&free_rejected));
            if limited.len() > 1 {
                return Err(format!("routes of {dst}: {limited:?}"));
            }
            if limited.is_empty() {
                // A neighbor's, without a route.
                continue;
            }
            let only = |why| BTreeSet::from([why]);
            let is_right = match (now, without) {
                (true, false) => limited == only(Some(Rejection::Limit)) && unlimited == only(None),
                (false, false) => limited == only(None) && unlimited == only(None),
                // Not the limit, or one cannot tell: then it must not say anything else than without.
                (true, true) => limited == unlimited || limited == only(Some(Rejection::Limit)),
                (false, true) => false,
            };
            if !is_right {
                return Err(format!(
                    "{dst} in table {}: {limited:?}, without a limit {unlimited:?}; punted {now}, {without}",
                    bound.table
                ));
            }
            if limited == only(Some(Rejection::Limit)) {
                add(&counts.over);
            } else if limited != only(None) {
                add(&counts.other);
            } else if !now {
                add(&counts.forwarded);
            }
        }
    }
    // All of it is accepted with more room, or rejected for its own reasons.
    app.mark(id, 1);
    model.settle(&mut app, 1000, |_| {});
    let told: Rejected = view(app.take_answers(id, 1), Rejected::new());
    if told != rejected(&app, id) {
        return Err(format!("told {told:?}"));
    }
    app.set_topology(free);
    model.settle(&mut app, 1000, |_| {});
    if told != rejected(&app, id) && !app.wants_mark(id) {
        return Err("nobody is asked for a mark".to_owned());
    }
    app.mark(id, 2);
    model.settle(&mut app, 1000, |_| {});
    let told = view(app.take_answers(id, 2), told);
    if told == free_rejected && app.take_answers(id, 2).is_empty() && !app.wants_mark(id) {
        Ok(())
    } else {
        Err(format!("told {told:?}, but without a limit {free_rejected:?}"))
    }
}

/// What comes to a vif for a prefix, and what becomes of it.
struct Probe {
    port: PortNo,
    segment: VlanId,
    packet: Packet,
    /// Its routes; none where a neighbor decides.
    routes: Vec<RouteKey>,
    punt: Sent,
    /// Where the switch takes everything.
    free: Vec<Sent>,
}

fn probes(tables: &Tables, topology: &Topology, id: RouterId, free: &Model) -> Result<Vec<Probe>, String> {
    let mut rib = Rib::default();
    for object in tables.values() {
        rib.apply(Change::Upsert(object.clone()), Quota::NONE).unwrap();
    }
    let binding = Binding::new(&rib, topology, id);
    let fib = Fib { rib: &rib, binding: &binding };
    let (switch, mut probes) = (free.switch(), Vec::new());
    for (_, bound) in binding.vifs() {
        let vif = &topology.vifs[&bound.id];
        let among = deciding(tables, &fib, bound.table);
        for dst in among.iter().copied() {
            let Some(to) = destination_of(dst, &among).filter(|to| !is_local(tables, *to)) else { continue };
            let Some((port, segment, packet)) = to_vif(topology, vif, to) else { continue };
            let routes =
                tables.keys().filter_map(|key| if let Key::Route(key) = key { Some(*key) } else { None });
            let routes = routes.filter(|key| key.table == bound.table && key.dst == dst).collect();
            let free = enter_all(topology, &switch, port, segment, &packet)?;
            let punt = [(vif.port.unwrap(), packet.clone())].into();
            probes.push(Probe { port, segment, packet, routes, punt, free });
        }
    }
    Ok(probes)
}

/// A switch that refuses something of one router: at every moment packets go as they would without that, or to the guest,
/// and in the end the guest knows which. When the switch takes it again, all is as if nothing had been.
fn refusing(
    world: &World,
    router: u8,
    dislike: Dislike,
    leaves_out: bool,
    counts: &Counts,
) -> Result<(), String> {
    let Some(tables) = world.tables.get(&router) else { return Ok(()) };
    let (id, topology) = (router_id(router), wide(world));
    let (free_app, free_model) = settled(world, &topology);
    let probes = probes(tables, &topology, id, &free_model)?;
    let ports: BTreeSet<PortNo> = topology.vifs_of(id).filter_map(|(_, vif)| vif.port).collect();
    let (mut app, mut model) = (App::new(LIMIT), Model::default());
    app.set_topology(topology.clone());
    for (other, tables) in
        world.tables.iter().filter(|(other, _)| **other != router).chain([(&router, tables)])
    {
        model.settle(&mut app, 1000, |_| {});
        let other = router_id(*other);
        app.begin_snapshot(other);
        tables.values().for_each(|object| app.apply(other, Change::Upsert(object.clone())).unwrap());
        app.end_snapshot(other);
    }
    (model.dislikes, model.leaves_out) = (Some((id, dislike)), leaves_out);
    let mut fault = None;
    model.settle(&mut app, 20, |now| {
        let switch = now.switch();
        for probe in &probes {
            let sent = match enter_all(&topology, &switch, probe.port, probe.segment, &probe.packet) {
                Ok(sent) => sent,
                Err(error) => return fault = Some(error),
            };
            let to_guest =
                |sent: &Sent| sent.iter().all(|(port, _)| ports.contains(port)) && !sent.is_empty();
            if sent != probe.free && !sent.iter().all(to_guest) {
                fault = Some(format!("{:?} becomes {sent:?}, not {:?}", probe.packet, probe.free));
            }
        }
    });
    if let Some(fault) = fault {
        return Err(fault);
    }
    app.mark(id, 1);
    model.settle(&mut app, 1000, |_| {});
    let told: Rejected = view(app.take_answers(id, 1), Rejected::new());
    if told != rejected(&app, id) {
        return Err(format!("told {told:?}"));
    }
    let slow = app.router(id).map(|status| status.slow).unwrap_or_default();
    let is_slow = slow.iter().any(|slow| matches!(slow.reason, SlowReason::Refused(_)));
    let switch = model.switch();
    for probe in &probes {
        let sent = enter_all(&topology, &switch, probe.port, probe.segment, &probe.packet)?;
        let punted = |sent: &[Sent]| sent.iter().all(|sent| *sent == probe.punt);
        let (now, without) = (punted(&sent), punted(&probe.free));
        for key in &probe.routes {
            let why = told.get(key);
            let is_refused = matches!(why, Some(Rejection::Switch(_)));
            if is_refused && !now || now && !without && !is_refused && !is_slow {
                return Err(format!("{key:?} is punted: {now}, without a refusal {without}; told {why:?}"));
            }
            add(match (is_refused, is_slow) {
                (true, _) => &counts.over,
                (false, true) => &counts.other,
                (false, false) => &counts.forwarded,
            });
        }
    }
    if leaves_out {
        return Ok(());
    }
    model.dislikes = None;
    model.left_out.clear();
    if app.forgive() != (model.refusals > 0) {
        return Err("refusals are not known".to_owned());
    }
    app.switch_reset();
    model.settle(&mut app, 1000, |_| {});
    model::same("forgiven", &Model { refusals: 0, ..model.clone() }, &Model::desired(&app)?)?;
    app.mark(id, 2);
    model.settle(&mut app, 1000, |_| {});
    let told = view(app.take_answers(id, 2), told);
    if told == rejected(&free_app, id) { Ok(()) } else { Err(format!("forgiven, and told {told:?}")) }
}

#[test]
fn what_a_switch_refuses_the_guest_forwards_and_is_told() {
    use pipeline::{LOCAL, NEXT_HOP, ROUTE, ROUTER as GATE};
    for (dislike, least) in [
        (Dislike::MoreThan(0), 50),
        (Dislike::MoreThan(3), 50),
        (Dislike::MoreThan(9), 20),
        (Dislike::Forwarding, 50),
        (Dislike::Table(NEXT_HOP), 30),
        (Dislike::Groups, 5),
        (Dislike::Table(ROUTE), 0),
        (Dislike::Table(LOCAL), 0),
        (Dislike::Table(GATE), 0),
    ] {
        let counts = Counts::default();
        law(16, (world(), 0..4u8), |(world, router)| refusing(&world, router, dislike, false, &counts));
        let [refused, slow, rest] = [counts.over, counts.other, counts.forwarded].map(Cell::into_inner);
        println!("{dislike:?}: {refused} refused, {slow} slow, {rest} as without");
        assert!(refused >= least && (least > 0 || slow > 50), "{dislike:?}: {refused} {slow} {rest}");
    }
}

#[test]
fn a_refused_flow_that_is_just_left_out_is_noticed() {
    let left_out =
        |world: &World, router, dislike| refusing(world, router, dislike, true, &Counts::default());
    for dislike in [Dislike::MoreThan(3), Dislike::Forwarding] {
        finds(20, (world(), 0..4u8), |(world, router)| left_out(&world, router, dislike));
    }
}

/// What a guest knows after more answers.
pub fn view(answers: Vec<(RouteKey, Answer)>, mut known: Rejected) -> Rejected {
    for (key, answer) in answers {
        match answer {
            Answer::Accepted => known.remove(&key),
            Answer::Rejected(why) => known.insert(key, why),
        };
    }
    known
}

/// The prefixes that decide in a table, neighbors in on-link prefixes among them.
fn deciding(tables: &Tables, fib: &Fib<'_>, table: u32) -> BTreeSet<IpNet> {
    let prefixes = tables.keys().filter_map(|key| match key {
        Key::Route(key) if key.table == table => Some(key.dst),
        Key::Neighbor(key) => Some(key.addr.into()),
        _ => None,
    });
    prefixes.filter(|dst| fib.route(table, *dst).is_some()).collect()
}

fn is_local(tables: &Tables, addr: IpAddr) -> bool {
    let local =
        |key: &Key| matches!(key, Key::Route(key) if key.table == TABLE_LOCAL && key.dst.contains(&addr));
    tables.keys().any(local)
}

fn cases() -> impl Strategy<Value = (World, u8, usize)> {
    (world(), 0..4u8, 0..40usize)
}

#[test]
fn rejected_is_what_the_limit_hands_to_the_guest() {
    let counts = Counts::default();
    law(300, cases(), |(world, router, max)| limited(&world, router, max, false, &counts));
    let [over, other, forwarded] = [counts.over, counts.other, counts.forwarded].map(Cell::into_inner);
    println!("{over} over the limit, {other} rejected for other reasons, {forwarded} forwarded");
    assert!(over > 500 && other > 50 && forwarded > 500, "{over} {other} {forwarded}");
}

#[test]
fn a_rejection_that_is_not_told_is_noticed() {
    finds(20, cases(), |(world, router, max)| limited(&world, router, max, true, &Counts::default()));
}

const ROUTER: RouterId = RouterId(1);
const VIF: u32 = 1;
const DOWN: u32 = 2;
const TUNNEL: u32 = 3;

/// A router with a vif, one without carrier, and a tunnel.
fn one_router(max_routes: usize) -> App {
    let vlan = VlanId::try_from(100).unwrap();
    let mut topology = Topology { segments: [vlan].into(), uplinks: [1].into(), ..Topology::default() };
    let mac = |n: u32| MacAddr([2, 0, 0, 0, 0, n as u8]);
    for n in [VIF, DOWN] {
        let vif = Vif { mac: mac(n), attachment: Attachment::Segment(vlan), port: Some(100 + n) };
        topology.vifs.insert(VifId { router: ROUTER, number: n as u16 }, vif);
    }
    topology.policies.insert(ROUTER, Policy { max_routes, ..Policy::default() });
    let mut app = App::new(1000);
    app.set_topology(topology);
    app.begin_snapshot(ROUTER);
    app.apply(ROUTER, Change::Upsert(Object::Settings(Settings::default()))).unwrap();
    for (ifindex, kind) in [(VIF, ""), (DOWN, ""), (TUNNEL, "gre")] {
        let link = Link {
            ifindex,
            name: format!("l{ifindex}"),
            mac: kind.is_empty().then(|| mac(ifindex)),
            mtu: 1500,
            up: true,
            running: ifindex != DOWN,
            kind: kind.to_owned(),
            master: None,
            vrf_table: None,
            ipv6_mtu: None,
        };
        app.apply(ROUTER, Change::Upsert(Object::Link(link))).unwrap();
    }
    app.end_snapshot(ROUTER);
    app
}

fn key(dst: &str) -> RouteKey {
    RouteKey { table: TABLE_MAIN, dst: dst.parse().unwrap(), tos: 0, metric: 20 }
}

fn route(dst: &str, kind: RouteKind, target: RouteTarget) -> Route {
    Route { key: key(dst), kind, protocol: 186, scope: 0, target, mtu: None }
}

fn by(oif: u32, gateway: Option<&str>) -> Hop {
    let gateway = gateway.map(|addr| addr.parse().unwrap());
    Hop { gateway, oif: Some(oif), weight: 1, flags: HopFlags(0), encap: false }
}

fn hops(hops: &[Hop]) -> RouteTarget {
    RouteTarget::Hops(hops.to_vec())
}

fn unicast(dst: &str, of: &[Hop]) -> Route {
    route(dst, RouteKind::Unicast, hops(of))
}

const GATEWAY: Option<&str> = Some("10.0.0.9");

/// Tells a guest's words and gives what it is told with their mark.
fn told(app: &mut App, model: &mut Model, token: u64, changes: Vec<Change>) -> Vec<(RouteKey, Answer)> {
    changes.into_iter().for_each(|change| app.apply(ROUTER, change).unwrap());
    app.mark(ROUTER, token);
    model.settle(app, 1000, |_| {});
    app.take_answers(ROUTER, token)
}

fn say(route: Route) -> Vec<Change> {
    vec![Change::Upsert(Object::Route(route))]
}

#[test]
fn each_kind_of_route_has_its_answer() {
    let next_hop = |id, kind| Object::NextHop(NextHop { id, kind });
    let objects = [
        next_hop(1, NextHopKind::Single(by(VIF, GATEWAY))),
        next_hop(2, NextHopKind::Unsupported),
        next_hop(3, NextHopKind::Group(vec![(1, 1), (2, 1)])),
        next_hop(4, NextHopKind::Group(vec![(1, 1), (77, 1)])),
        next_hop(5, NextHopKind::Blackhole),
    ];
    let dst = "10.7.0.0/16";
    let encap = Hop { encap: true, ..by(VIF, GATEWAY) };
    let dead = |flag| Hop { flags: HopFlags(flag), ..by(VIF, GATEWAY) };
    let object = |id| route(dst, RouteKind::Unicast, RouteTarget::NextHop(id));
    let kind = |kind| route(dst, kind, hops(&[]));
    let tos = Route { key: RouteKey { tos: 8, ..key(dst) }, ..unicast(dst, &[by(VIF, GATEWAY)]) };
    for (what, route, expected) in [
        ("by a neighbor that is still unknown", unicast(dst, &[by(VIF, GATEWAY)]), None),
        ("on-link", unicast(dst, &[by(VIF, None)]), None),
        ("a host on the link", unicast("10.7.0.1/32", &[by(VIF, None)]), None),
        ("IPv4 by IPv6", unicast(dst, &[by(VIF, Some("fe80::9"))]), None),
        ("IPv6 by IPv4", unicast("2001:db8::/32", &[by(VIF, GATEWAY)]), Some(Rejection::NextHop)),
        ("several", unicast(dst, &[by(VIF, GATEWAY), by(VIF, Some("10.0.0.8"))]), None),
        ("several, one on-link", unicast(dst, &[by(VIF, GATEWAY), by(VIF, None)]), Some(Rejection::NextHop)),
        ("a dead hop", unicast(dst, &[dead(HopFlags::DEAD)]), None),
        ("no carrier, it says", unicast(dst, &[dead(HopFlags::LINKDOWN)]), None),
        ("a vif without carrier", unicast(dst, &[by(DOWN, GATEWAY)]), None),
        ("a tunnel", unicast(dst, &[by(TUNNEL, GATEWAY)]), Some(Rejection::Interface)),
        (
            "a tunnel among others",
            unicast(dst, &[by(VIF, GATEWAY), by(TUNNEL, GATEWAY)]),
            Some(Rejection::Interface),
        ),
        ("the inside of a tunnel", unicast(dst, &[by(TUNNEL, None)]), None),
        ("no interface", unicast(dst, &[Hop { oif: None, ..by(VIF, GATEWAY) }]), Some(Rejection::Interface)),
        ("encapsulated", unicast(dst, &[encap]), Some(Rejection::Encapsulation)),
        (
            "encapsulated, the other waits",
            unicast(dst, &[by(DOWN, GATEWAY), encap]),
            Some(Rejection::Encapsulation),
        ),
        ("a next-hop object", object(1), None),
        ("an object of another kind", object(2), Some(Rejection::NextHop)),
        ("a group with one", object(3), Some(Rejection::NextHop)),
        ("a group of which a part is unknown", object(4), None),
        ("an object that drops", object(5), None),
        ("an object that is not known yet", object(66), None),
        ("blackhole", kind(RouteKind::Blackhole), None),
        ("unreachable", kind(RouteKind::Unreachable), None),
        ("prohibit", kind(RouteKind::Prohibit), None),
        ("local", kind(RouteKind::Local), None),
        ("multicast", kind(RouteKind::Multicast), None),
        ("throw", kind(RouteKind::Throw), Some(Rejection::Kind)),
        ("NAT", kind(RouteKind::Other(10)), Some(Rejection::Kind)),
        ("type of service", tos, Some(Rejection::TypeOfService)),
    ] {
        let (mut app, mut model) = (one_router(100), Model::default());
        let objects = objects.iter().cloned().map(Change::Upsert).collect();
        assert_eq!(told(&mut app, &mut model, 1, objects), []);
        let key = route.key;
        let expected: Vec<_> = expected.into_iter().map(|why| (key, Answer::Rejected(why))).collect();
        assert_eq!(told(&mut app, &mut model, 2, say(route.clone())), expected, "{what}");
        // Nothing that is the same has to be told, and what is gone is not rejected any more.
        assert_eq!(told(&mut app, &mut model, 3, say(route)), [], "{what}");
        let gone: Vec<_> = expected.iter().map(|(key, _)| (*key, Answer::Accepted)).collect();
        assert_eq!(told(&mut app, &mut model, 4, vec![Change::Remove(Key::Route(key))]), gone, "{what}");
        assert_eq!(rejected(&app, ROUTER), Rejected::new(), "{what}");
    }
}

/// Two routes of a prefix: what the better one says is the answer of both.
#[test]
fn a_prefix_has_one_answer() {
    let (mut app, mut model) = (one_router(100), Model::default());
    let dst = "10.7.0.0/16";
    let worse = unicast(dst, &[by(VIF, GATEWAY)]);
    let better = Route { key: RouteKey { metric: 0, ..worse.key }, ..unicast(dst, &[by(TUNNEL, GATEWAY)]) };
    assert_eq!(told(&mut app, &mut model, 1, say(worse.clone())), []);
    let why = Answer::Rejected(Rejection::Interface);
    assert_eq!(told(&mut app, &mut model, 2, say(better.clone())), [(better.key, why), (worse.key, why)]);
    let gone = vec![Change::Remove(Key::Route(better.key))];
    let accepted = [better.key, worse.key].map(|key| (key, Answer::Accepted));
    assert_eq!(told(&mut app, &mut model, 3, gone), accepted);
}

#[test]
fn answers_come_with_the_mark_behind_the_change_and_with_each_session() {
    let (mut app, mut model) = (one_router(1), Model::default());
    let (short, long) =
        (unicast("10.7.0.0/16", &[by(VIF, GATEWAY)]), unicast("10.8.8.0/24", &[by(VIF, GATEWAY)]));
    assert_eq!(told(&mut app, &mut model, 1, say(long.clone())), []);
    let over = Answer::Rejected(Rejection::Limit);
    assert_eq!(told(&mut app, &mut model, 2, say(short.clone())), [(long.key, over)]);
    // It goes and comes back: rejected anew, since the guest has forgotten it meanwhile.
    let back = [vec![Change::Remove(Key::Route(long.key))], say(long.clone())].concat();
    assert_eq!(told(&mut app, &mut model, 3, back), [(long.key, over)]);
    // Another session.
    app.begin_snapshot(ROUTER);
    for route in [&short, &long] {
        app.apply(ROUTER, Change::Upsert(Object::Route(route.clone()))).unwrap();
    }
    app.end_snapshot(ROUTER);
    // The guest's links went with the snapshot, so nothing is by a vif any more, and the limit is as full.
    let answers = told(&mut app, &mut model, 4, Vec::new());
    assert_eq!(view(answers, Rejected::new()), rejected(&app, ROUTER));
    assert!(!rejected(&app, ROUTER).is_empty());
    // A mark that is lost with the switch says it when it is reached again.
    let (mut app, mut model) = (one_router(1), Model::default());
    told(&mut app, &mut model, 1, say(long.clone()));
    app.apply(ROUTER, Change::Upsert(Object::Route(short))).unwrap();
    app.mark(ROUTER, 2);
    assert_eq!(app.next_batch(100).reached, [(ROUTER, 2)]);
    app.switch_reset();
    app.mark(ROUTER, 2);
    model.settle(&mut app, 100, |_| {});
    assert_eq!(app.take_answers(ROUTER, 2), [(long.key, over)]);
}

/// The operator's doing is told too, as soon as somebody marks it.
#[test]
fn more_room_is_told_without_a_word_of_the_guest() {
    let (mut app, mut model) = (one_router(1), Model::default());
    let routes = ["10.7.0.0/16", "10.8.8.0/24"].map(|dst| say(unicast(dst, &[by(VIF, GATEWAY)])));
    let long = key("10.8.8.0/24");
    assert_eq!(told(&mut app, &mut model, 1, routes.concat()), [(long, Answer::Rejected(Rejection::Limit))]);
    assert!(!app.wants_mark(ROUTER));
    let mut topology = app.topology().clone();
    topology.policies.insert(ROUTER, Policy::default());
    app.set_topology(topology);
    assert!(!app.wants_mark(ROUTER), "not decided yet");
    model.settle(&mut app, 100, |_| {});
    assert!(app.wants_mark(ROUTER));
    app.mark(ROUTER, 2);
    assert!(!app.wants_mark(ROUTER));
    assert_eq!(app.next_batch(100).reached, [(ROUTER, 2)]);
    assert_eq!(app.take_answers(ROUTER, 2), [(long, Answer::Accepted)]);
    assert!(!app.wants_mark(ROUTER));
}

/// Every rewrite names the neighbor it is for.
#[test]
fn a_next_hop_flow_is_of_a_neighbor() {
    let (mut app, mut model) = (one_router(10), Model::default());
    let neighbors = ["10.0.0.9", "fe80::9", "fd00::7"].map(|addr| {
        let key = NeighborKey { ifindex: VIF, addr: addr.parse().unwrap() };
        Neighbor { key, mac: host_mac(0, 9) }
    });
    let changes = neighbors.map(|neighbor| Change::Upsert(Object::Neighbor(neighbor))).to_vec();
    told(&mut app, &mut model, 1, [changes, say(unicast("10.7.0.0/16", &[by(VIF, GATEWAY)]))].concat());
    let mut named = BTreeSet::new();
    for flow in model.flows.keys() {
        match app.neighbor_of(flow) {
            Some((router, key)) => {
                assert_eq!((router, flow.table), (ROUTER, pipeline::NEXT_HOP));
                named.insert(key);
            }
            None => assert!(flow.table != pipeline::NEXT_HOP || flow.priority != pipeline::priority::NORMAL),
        }
    }
    assert_eq!(named, neighbors.map(|neighbor| neighbor.key).into());
    let of =
        |flows: &BTreeMap<FlowKey, _>| flows.keys().filter(|flow| app.neighbor_of(flow).is_some()).count();
    assert_eq!(of(&model.flows), 5, "an IPv6 neighbor has one for each family");
}
