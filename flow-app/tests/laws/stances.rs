//! How a router stands while it moves, case by case: on a small host, for each stance, with and without its ports, what becomes of
//! frames from everywhere.

use std::collections::BTreeMap;

use openflow::{Action, Field, Flow, Instruction, mac_bits};
use xenflow_flow_app::pipeline::{self, priority};
use xenflow_flow_app::sim::{Outcome, Packet, Switch, Tag};
use xenflow_flow_app::stance::{Emission, Gate, Punts, Stance};
use xenflow_flow_app::{App, Attachment, Heard, HeardKind, PortNo, RouterId, Topology, Vif, VifId};
use xenflow_proto::table::{
    Hop, HopFlags, Link, Neighbor, NeighborKey, Route, RouteKey, RouteKind, RouteTarget, Settings,
    TABLE_LOCAL, TABLE_MAIN,
};
use xenflow_proto::{Change, MacAddr, Object, VlanId};

use super::forwarding::ip;
use super::model::switch;

pub const UPLINK: PortNo = 1;
const HOST: PortNo = 10;
const NEAR: PortNo = 12;
const OTHER_PORT: PortNo = 110;
/// The first vif's port; the second's is the next.
const PORT: PortNo = 100;

pub const ROUTER: RouterId = RouterId(1);
const OTHER: RouterId = RouterId(2);
/// Of both vifs, and of the other router's.
const A: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 1, 2]);
const O: MacAddr = MacAddr([2, 0, 0, 0, 2, 1]);
pub const NODE: MacAddr = MacAddr([0x0e, 0, 0, 0, 0, 1]);
/// A host on the first segment, one on the second, and two behind the uplink.
const HOST_MAC: MacAddr = MacAddr([6, 0, 0, 0, 0, 1]);
const NEAR_MAC: MacAddr = MacAddr([6, 0, 0, 0, 1, 9]);
const FAR_MAC: MacAddr = MacAddr([6, 0, 0, 0, 1, 10]);
const SENDER_MAC: MacAddr = MacAddr([6, 0, 0, 0, 0, 7]);

fn vlan(segment: u8) -> VlanId {
    VlanId::try_from(100 + i64::from(segment)).unwrap()
}

pub fn vif(router: RouterId, number: u16) -> VifId {
    VifId { router, number }
}

/// A router with a vif on each of two segments, another one on the first, hosts, an uplink. `away`: another node has the router's
/// addresses.
pub fn host(stance: Option<Stance>, plugged: bool, away: bool) -> Topology {
    let new = |mac, segment, port| Vif { mac, attachment: Attachment::Segment(vlan(segment)), port };
    let vifs = [
        (vif(ROUTER, 1), new(A, 0, plugged.then_some(PORT))),
        (vif(ROUTER, 2), new(B, 1, plugged.then_some(PORT + 1))),
        (vif(OTHER, 1), new(O, 0, Some(OTHER_PORT))),
    ];
    let elsewhere = [(vlan(0), A), (vlan(1), B)].into_iter().filter(|_| away);
    Topology {
        segments: [vlan(0), vlan(1)].into(),
        uplinks: [UPLINK].into(),
        access: [(HOST, vlan(0)), (NEAR, vlan(1))].into(),
        access_macs: [(NEAR, [NEAR_MAC].into())].into(),
        elsewhere: elsewhere.chain([(vlan(1), FAR_MAC)]).collect(),
        vifs: vifs.into(),
        stances: stance.map(|stance| (ROUTER, stance)).into_iter().collect(),
        node_mac: Some(NODE),
        ..Topology::default()
    }
}

fn link(ifindex: u32, mac: MacAddr) -> Object {
    Object::Link(Link {
        ifindex,
        name: format!("eth{ifindex}"),
        mac: Some(mac),
        mtu: 1500,
        up: true,
        running: true,
        kind: String::new(),
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    })
}

fn neighbor(ifindex: u32, addr: [u8; 4], mac: MacAddr) -> Object {
    Object::Neighbor(Neighbor { key: NeighborKey { ifindex, addr: addr.into() }, mac })
}

pub fn route(dst: &str, gateway: Option<[u8; 4]>, oif: u32) -> Object {
    let key = RouteKey { table: TABLE_MAIN, dst: dst.parse().unwrap(), tos: 0, metric: 0 };
    let gateway = gateway.map(Into::into);
    let hop = Hop { gateway, oif: Some(oif), weight: 1, flags: HopFlags(0), encap: false };
    let target = RouteTarget::Hops(vec![hop]);
    Object::Route(Route { key, kind: RouteKind::Unicast, protocol: 4, scope: 0, target, mtu: None })
}

fn own(dst: &str) -> Object {
    let key = RouteKey { table: TABLE_LOCAL, dst: dst.parse().unwrap(), tos: 0, metric: 0 };
    let target = RouteTarget::Hops(Vec::new());
    Object::Route(Route { key, kind: RouteKind::Local, protocol: 2, scope: 254, target, mtu: None })
}

/// What the guests say: of the router also these objects. The other's default route is by the router.
pub fn tell(app: &mut App, more: impl IntoIterator<Item = Object>) {
    let router = [
        Object::Settings(Settings::default()),
        link(1, A),
        link(2, B),
        own("10.0.0.1/32"),
        own("10.1.0.1/32"),
        route("10.0.0.0/24", None, 1),
        route("10.1.0.0/24", None, 2),
        neighbor(2, [10, 1, 0, 9], NEAR_MAC),
        neighbor(2, [10, 1, 0, 10], FAR_MAC),
        // The other router.
        neighbor(1, [10, 0, 0, 2], O),
        route("10.7.0.0/16", Some([10, 0, 0, 2]), 1),
    ];
    let other = [
        Object::Settings(Settings::default()),
        link(1, O),
        own("10.0.0.2/32"),
        route("10.0.0.0/24", None, 1),
        route("0.0.0.0/0", Some([10, 0, 0, 1]), 1),
        neighbor(1, [10, 0, 0, 1], A),
    ];
    for (id, said) in [(ROUTER, router.into_iter().chain(more).collect()), (OTHER, Vec::from(other))] {
        app.begin_snapshot(id);
        said.into_iter().for_each(|object| app.apply(id, Change::Upsert(object)).unwrap());
        app.end_snapshot(id);
    }
}

fn app(topology: Topology) -> App {
    let mut app = App::new(1000);
    app.set_topology(topology);
    tell(&mut app, []);
    app
}

/// By the name of what is sent: the port, and the frame.
fn frames() -> Vec<(&'static str, PortNo, Packet)> {
    let data = |src, dst, to: [u8; 4]| ip(src, dst, [10, 0, 0, 9].into(), to.into(), 64);
    let arp = |src: MacAddr, dst: MacAddr| {
        let headers = [
            (Field::EthSrc, mac_bits(src.0)),
            (Field::EthDst, mac_bits(dst.0)),
            (Field::EthType, pipeline::ETH_ARP.into()),
        ];
        Packet { headers: headers.into(), ..Packet::default() }
    };
    let hello = |src| data(src, MacAddr([1, 0, 0x5e, 0, 0, 5]), [224, 0, 0, 5]).with(Field::IpProto, 89);
    let all = MacAddr::BROADCAST;
    let by_uplink = |packet: Packet| packet.tagged(Tag::new(vlan(0).get()));
    let (far, near, own, nobody) = ([10, 1, 0, 10], [10, 1, 0, 9], [10, 0, 0, 1], [10, 1, 0, 99]);
    vec![
        ("uplink to far", UPLINK, by_uplink(data(SENDER_MAC, A, far))),
        ("uplink to near", UPLINK, by_uplink(data(SENDER_MAC, A, near))),
        ("host to far", HOST, data(HOST_MAC, A, far)),
        ("host to near", HOST, data(HOST_MAC, A, near)),
        ("host by the other", HOST, data(HOST_MAC, O, far)),
        ("uplink to own", UPLINK, by_uplink(data(SENDER_MAC, A, own))),
        ("host to own", HOST, data(HOST_MAC, A, own)),
        ("uplink glean", UPLINK, by_uplink(data(SENDER_MAC, A, nobody))),
        ("host glean", HOST, data(HOST_MAC, A, nobody)),
        ("uplink answer", UPLINK, by_uplink(arp(SENDER_MAC, A))),
        ("host question", HOST, arp(HOST_MAC, all)),
        ("uplink question", UPLINK, by_uplink(arp(SENDER_MAC, all))),
        ("host hello", HOST, hello(HOST_MAC)),
        ("uplink hello", UPLINK, by_uplink(hello(SENDER_MAC))),
        ("guest question", PORT, arp(A, all)),
        ("guest data", PORT, data(A, HOST_MAC, [10, 0, 0, 9])),
    ]
}

/// The ports by which it leaves, each with whose source address it has if that is not the sender's: the node's, the router's, the
/// other router's; then what the daemon is told.
fn fate(packet: &Packet, Outcome { sent, told, .. }: Outcome) -> String {
    let mut fates: Vec<(PortNo, String)> = Vec::new();
    for (port, copy) in sent {
        let src = copy.header(Field::EthSrc);
        let names = [(NODE, "N"), (A, "R"), (B, "R"), (O, "O")];
        let name = names.into_iter().find(|(mac, _)| mac_bits(mac.0) == src).map_or("?", |(_, name)| name);
        let name = if src == packet.header(Field::EthSrc) { "" } else { name };
        fates.push((port, format!("{port}{name}")));
    }
    fates.sort();
    let mut fates: Vec<String> = fates.into_iter().map(|(_, fate)| fate).collect();
    for (word, copy) in told {
        let heard = Heard::decode(&word).unwrap();
        assert_eq!((heard.vif.router, copy.tags.len()), (ROUTER, 0), "{copy:?}");
        assert_eq!(copy.headers, packet.headers, "what is told is what was sent");
        fates.push(format!("{:?}", heard.kind));
    }
    if fates.is_empty() { "-".to_owned() } else { fates.join(" ") }
}

type Fates = BTreeMap<&'static str, String>;

fn fates(topology: &Topology, change: impl FnMut(Flow) -> Option<Flow>) -> Fates {
    let switch: Switch = switch(&app(topology.clone()), change);
    let is_there = |port: PortNo| port != PORT || topology.vifs[&vif(ROUTER, 1)].port.is_some();
    let sent = frames().into_iter().filter(|(_, port, _)| is_there(*port));
    sent.map(|(name, port, packet)| (name, fate(&packet, switch.send(port, &packet).unwrap()))).collect()
}

/// A stance, whether its ports are here, whether its addresses are elsewhere; then what is routed (uplink to far and near, host to
/// far and near, by the other router), what is the guest's (of the uplink's; of the host's), floods (of the host's, the
/// uplink's), and what the guest says (a question, data).
type Case = (Stance, bool, bool, [&'static str; 5], [&'static str; 2], [&'static str; 2], [&'static str; 2]);

const IN_ROUTERS_NAME: [&str; 5] = ["1R", "12R", "1R", "12R", "1R"];
const IN_NODES_NAME: [&str; 5] = ["1N", "12R", "1N", "12R", "1N"];
const SWITCHED: [&str; 5] = ["-", "-", "1", "1", "1O"];
const LATE_ONLY: [&str; 5] = ["1N", "12R", "1", "1", "1O"];
const SPEAKS: [&str; 2] = ["1 10 110", "1 10 110"];
const MUTE: [&str; 2] = ["Mute", "Mute"];
const NOBODY: [&str; 2] = ["", ""];
const AT_PORT: [&str; 2] = ["1 100 110", "10 100 110"];
const NOT_HERE: [&str; 2] = ["1 110", "10 110"];
const TOLD: [&str; 2] = ["1 110 Punt", "10 110 Punt"];
const COPIED: [&str; 2] = ["1 100 110 Copy", "10 100 110 Copy"];

const CASES: [Case; 17] = [
    (Stance::HOME, true, false, IN_ROUTERS_NAME, ["100", "100"], AT_PORT, SPEAKS),
    (Stance::HOME, false, false, IN_ROUTERS_NAME, ["-", "-"], NOT_HERE, NOBODY),
    // Whoever else is said to have it.
    (Stance::HOME, true, true, IN_ROUTERS_NAME, ["100", "100"], AT_PORT, SPEAKS),
    (Stance::YIELDED, true, false, IN_NODES_NAME, ["100 Copy", "100 Copy"], COPIED, SPEAKS),
    (Stance::YIELDED, false, false, IN_NODES_NAME, ["Copy", "Copy"], ["1 110 Copy", "10 110 Copy"], NOBODY),
    (Stance::AWAY, true, false, IN_NODES_NAME, ["Punt", "Punt"], TOLD, SPEAKS),
    (Stance::AWAY, false, false, IN_NODES_NAME, ["Punt", "Punt"], TOLD, NOBODY),
    (Stance::AWAY, false, true, IN_NODES_NAME, ["Punt", "Punt"], TOLD, NOBODY),
    (Stance::AWAITED, false, true, SWITCHED, ["-", "1"], TOLD, NOBODY),
    (Stance::AWAITED, true, true, SWITCHED, ["-", "1"], TOLD, MUTE),
    (Stance::EXPECTED, true, true, IN_NODES_NAME, ["Punt", "Punt"], TOLD, MUTE),
    (Stance::ARRIVED, true, true, IN_NODES_NAME, ["Punt", "Punt"], TOLD, MUTE),
    (Stance::ARRIVED, false, true, IN_NODES_NAME, ["Punt", "Punt"], TOLD, NOBODY),
    (Stance::LATE, false, true, LATE_ONLY, ["Late", "1"], NOT_HERE, NOBODY),
    (Stance::LATE, true, true, LATE_ONLY, ["Late", "1"], AT_PORT, MUTE),
    (Stance::NONE, false, true, SWITCHED, ["-", "1"], NOT_HERE, NOBODY),
    (Stance::NONE, true, true, SWITCHED, ["-", "1"], AT_PORT, MUTE),
];

fn expected((_, plugged, _, routed, punted, flooded, said): Case) -> Fates {
    let names = frames().into_iter().map(|(name, ..)| name);
    let [by_uplink, by_host] = punted;
    let punts = [by_uplink, by_host, by_uplink, by_host, by_uplink];
    let [host, uplink] = flooded;
    let fates = routed.into_iter().chain(punts).chain([host, uplink, host, uplink]).chain(said);
    names.zip(fates.map(str::to_owned)).take(if plugged { 16 } else { 14 }).collect()
}

#[test]
fn each_stance_has_its_fates() {
    for case in CASES {
        let (stance, plugged, away, ..) = case;
        let got = fates(&host(Some(stance), plugged, away), Some);
        assert_eq!(got, expected(case), "{stance:?}, plugged: {plugged}, elsewhere: {away}");
    }
}

/// Flows without the actions that are not kept.
fn without(flow: Flow, keep: impl Fn(&Action) -> bool) -> Flow {
    let instructions = flow.instructions.into_iter().map(|instruction| match instruction {
        Instruction::ApplyActions(actions) => {
            Instruction::ApplyActions(actions.into_iter().filter(&keep).collect())
        }
        other => other,
    });
    Flow { instructions: instructions.collect(), ..flow }
}

/// It hands over what it is for that reason.
pub fn tells(flow: &Flow, kind: HeardKind) -> bool {
    let is_it = |action: &Action| match action {
        Action::Controller(it) => Heard::decode(&it.userdata).is_some_and(|heard| heard.kind == kind),
        _ => false,
    };
    flow.instructions
        .iter()
        .any(|it| matches!(it, Instruction::ApplyActions(actions) if actions.iter().any(is_it)))
}

#[test]
fn the_cases_notice_every_part_that_is_missing() {
    type Part = fn(Flow) -> Option<Flow>;
    let parts: [(&str, Part); 7] = [
        ("gate", |flow| (flow.priority != priority::GATE).then_some(flow)),
        ("emission", |flow| {
            let is_it = |action: &Action| matches!(action, Action::SetField { field: Field::EthSrc, .. });
            Some(if flow.table == pipeline::EGRESS { without(flow, |it| !is_it(it)) } else { flow })
        }),
        ("punts", |flow| (!tells(&flow, HeardKind::Punt)).then_some(flow)),
        ("copies", |flow| {
            let is_copied = tells(&flow, HeardKind::Copy);
            Some(if is_copied { without(flow, |it| !matches!(it, Action::Controller(_))) } else { flow })
        }),
        ("mute", |flow| (!tells(&flow, HeardKind::Mute)).then_some(flow)),
        ("late", |flow| (!tells(&flow, HeardKind::Late)).then_some(flow)),
        // What a guest has flooded comes back by the other way.
        ("horizon", |flow| {
            let is_it = flow.table == pipeline::EGRESS && flow.instructions.is_empty();
            (!is_it).then_some(flow)
        }),
    ];
    for (name, part) in parts {
        let differs = |case: &Case| fates(&host(Some(case.0), case.1, case.2), part) != expected(*case);
        assert!(CASES.iter().any(differs), "nobody misses: {name}");
    }
}

#[test]
fn two_tables_tell_the_controller() {
    let tells = |table| {
        let tell = Action::Controller(Box::default());
        Flow::new(table, 1, 0, openflow::Match::any()).apply([Action::Clone(Box::new([tell]))])
    };
    let may = |stage: &&pipeline::Stage| pipeline::violation(&tells(stage.table)).is_none();
    let tables: Vec<u8> = pipeline::STAGES.iter().filter(may).map(|stage| stage.table).collect();
    assert_eq!(tables, [pipeline::ADMISSION, pipeline::EGRESS]);
}

#[test]
fn home_is_what_its_ports_say() {
    let flows = |stance| app(host(stance, true, false)).desired();
    assert_eq!(flows(Some(Stance::HOME)), flows(None));
    assert_ne!(flows(Some(Stance::YIELDED)), flows(None));
}

#[test]
fn a_node_without_an_address_leaves_frames_as_they_are() {
    let topology = Topology { node_mac: None, ..host(Some(Stance::YIELDED), true, false) };
    assert_eq!(fates(&topology, Some)["uplink to far"], "1R");
}

#[test]
fn what_another_router_of_the_host_does_not_take_in_leaves_as_the_nodes() {
    let mut topology = host(Some(Stance::YIELDED), true, false);
    let odd = Stance { gate: Gate::Open, punts: Punts::Elsewhere, ..Stance::LATE };
    let odd = Stance { emission: Emission::Router, ..odd };
    topology.stances.insert(OTHER, odd);
    topology.elsewhere.insert((vlan(0), O));
    let switch = switch(&app(topology), Some);
    // By the router to the other one, where it is at the end of its life.
    let packet = ip(HOST_MAC, A, [10, 0, 0, 9].into(), [10, 7, 0, 1].into(), 2);
    assert_eq!(fate(&packet, switch.send(HOST, &packet).unwrap()), "1N");
}

#[test]
fn a_mute_port_refuses_what_it_always_did() {
    let refused = |stance| {
        let switch = switch(&app(host(Some(stance), true, false)), Some);
        let packet = ip(HOST_MAC, O, [10, 0, 0, 1].into(), [10, 1, 0, 9].into(), 64);
        let wrong = [
            packet.clone(),
            packet.clone().tagged(Tag::new(100)),
            packet.clone().with(Field::EthSrc, mac_bits(A.0)).with(Field::EthDst, mac_bits([0xaa; 6])),
        ];
        wrong.map(|packet| switch.send(PORT, &packet).unwrap())
    };
    let (mute, home) = (refused(Stance::ARRIVED), refused(Stance::HOME));
    assert_eq!(mute, home);
    let is_refused = |it: Outcome| {
        let reason = pipeline::cookie::refusal_of(it.cookies[0]);
        it.told.is_empty() && it.sent.is_empty() && reason.is_some()
    };
    assert_eq!(mute.map(is_refused), [true; 3]);
}
