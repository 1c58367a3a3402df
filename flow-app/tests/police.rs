//! Against a real Open vSwitch, whose meters drop on virtual time: no kind of packet for a guest starves another,
//! and a guest over its limit costs nobody else a copy.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "nobody else sees a test's modules")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]
#![allow(clippy::disallowed_methods, reason = "a test that talks to a switch has sockets and a clock")]

#[path = "../../crates/openflow/tests/common/mod.rs"]
mod common;
mod live;

use openflow::{Action, Flow, Instruction, Message, MultipartReply, MultipartRequest};
use xenflow_flow_app::punt::{PuntClass, PuntRates, meter_id};
use xenflow_flow_app::{
    Attachment, Policy, PortNo, QueueClass, RouterId, Stance, Topology, Vif, VifId, pipeline,
};
use xenflow_proto::table::{Link, Route, RouteKey, RouteKind, RouteTarget, TABLE_LOCAL};
use xenflow_proto::{Change, MacAddr, Object, VlanId};

use live::{Frame, Live};

const UPLINK: PortNo = 1;
const HOST: PortNo = 10;
const OTHER: PortNo = 11;
/// Vif ports of routers 1 and 2 on the segment.
const X: PortNo = 100;
const Y: PortNo = 110;
const X_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
const Y_MAC: MacAddr = MacAddr([2, 0, 0, 0, 2, 1]);
const HOST_MAC: MacAddr = MacAddr([6, 0, 0, 0, 0, 1]);
const X_ADDR: [u8; 4] = [10, 0, 0, 1];
const FAR: [u8; 4] = [192, 168, 7, 7];

/// Few packets of most classes; the burst is a tenth of it.
const FEW: u32 = 100;
const BURST: usize = 10;

fn vlan() -> VlanId {
    VlanId::try_from(100).unwrap()
}

fn topology() -> Topology {
    let mut topology = Topology {
        segments: [vlan()].into(),
        uplinks: [UPLINK].into(),
        access: [(HOST, vlan()), (OTHER, vlan())].into(),
        ..Topology::default()
    };
    for (router, mac, port) in [(1, X_MAC, X), (2, Y_MAC, Y)] {
        let id = VifId { router: RouterId(router), number: 1 };
        let attachment = Attachment::Segment(vlan());
        topology.vifs.insert(id, Vif { mac, attachment, port: Some(port) });
    }
    let punt_rates = PuntRates { routing: 10_000, resolution: FEW, host: FEW, exception: FEW, transit: FEW };
    topology.policies.insert(RouterId(1), Policy { punt_rates, ..Policy::default() });
    let punt_rates = PuntRates { resolution: 10_000, host: 10_000, ..PuntRates::default() };
    topology.policies.insert(RouterId(2), Policy { punt_rates, ..Policy::default() });
    topology
}

/// What the guest of router 1 says: a link and its own address.
fn guest() -> [Object; 2] {
    let link = Link {
        ifindex: 1,
        name: "eth0".to_owned(),
        mac: Some(X_MAC),
        mtu: 1500,
        up: true,
        running: true,
        kind: String::new(),
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    };
    let dst = format!("{}/32", std::net::Ipv4Addr::from(X_ADDR)).parse().unwrap();
    let key = RouteKey { table: TABLE_LOCAL, dst, tos: 0, metric: 0 };
    let target = RouteTarget::Hops(Vec::new());
    let own = Route { key, kind: RouteKind::Local, protocol: 2, scope: 254, target, mtu: None };
    [Object::Link(link), Object::Route(own)]
}

/// A switch with both routers, the gate of router 1 open or not.
fn start(name: &str, open: bool, change: impl Fn(Vec<Action>) -> Vec<Action>) -> Live {
    let mut topology = topology();
    if open {
        topology.policies.get_mut(&RouterId(1)).unwrap().fast_path = xenflow_flow_app::FastPath::Always;
    }
    let other = |flow: Flow| {
        let instructions = flow.instructions.into_iter().map(|instruction| match instruction {
            Instruction::ApplyActions(actions) => Instruction::ApplyActions(change(actions)),
            other => other,
        });
        Flow { instructions: instructions.collect(), ..flow }
    };
    let said = open.then(guest).into_iter().flatten().map(Change::Upsert);
    Live::start(name, topology, &[(RouterId(1), said.collect())], other)
}

fn same(actions: Vec<Action>) -> Vec<Action> {
    actions
}

fn arp() -> Frame {
    Frame::arp(HOST_MAC, MacAddr::BROADCAST)
}

fn ipv4(dst: MacAddr, to: [u8; 4], proto: u8, ttl: u8) -> Frame {
    Frame::ipv4(HOST_MAC, dst, [10, 0, 0, 9], to, proto, ttl)
}

#[test]
fn a_network_over_its_maximum_gets_that_at_the_uplink_and_costs_nobody_else_a_copy() {
    let mut topology = topology();
    topology.queues.insert(vlan(), 5);
    let tcp = QueueClass { protocol: Some(6), queue: 6, ..QueueClass::default() };
    topology.classes.insert(5, [(1, tcp)].into());
    // The least that may come at once is 16 frames of 1000 bytes, with their tags.
    topology.maxima = [(5, 2560), (6, 1280)].into();
    let frame = |proto| {
        let mut frame = ipv4(MacAddr::BROADCAST, FAR, proto, 64);
        frame.0.resize(996, 0);
        frame
    };
    let flood = |proto| -> Vec<Frame> { (0..60).map(|_| frame(proto)).collect() };
    for (name, metered) in [("police-network", true), ("police-shaped", false)] {
        topology.metered = metered.then_some(UPLINK).into_iter().collect();
        let mut live = Live::start(name, topology.clone(), &[], |flow| flow);
        // The class has its own maximum, and what it has too much is not the network's.
        let [uplink, other] = live.sent([UPLINK, OTHER], |live| live.receive(HOST, &flood(6)));
        assert_eq!([uplink, other], if metered { [16, 60] } else { [60, 60] }, "{name}");
        let [uplink, other] = live.sent([UPLINK, OTHER], |live| live.receive(HOST, &flood(17)));
        assert_eq!([uplink, other], if metered { [16, 60] } else { [60, 60] }, "{name}");
    }
}

/// Hellos to the group, database descriptions and a BGP session to the router's own address.
fn routing() -> Vec<Frame> {
    let group = MacAddr([1, 0, 0x5e, 0, 0, 5]);
    let mut frames = Vec::new();
    for _ in 0..20 {
        frames.push(ipv4(group, [224, 0, 0, 5], 89, 1));
        frames.push(ipv4(X_MAC, X_ADDR, 89, 1));
        frames.push(ipv4(X_MAC, X_ADDR, 6, 1).ports(40_000, 179));
        frames.push(ipv4(X_MAC, X_ADDR, 6, 64).ports(179, 40_000));
        frames.push(ipv4(X_MAC, X_ADDR, 17, 255).ports(50_000, 3784));
    }
    frames
}

#[test]
fn a_router_over_its_meter_costs_nobody_else_a_copy() {
    let mut live = start("police-flood", true, same);
    let storm: Vec<Frame> = (0..200).map(|_| arp()).collect();
    let [x, y, other, uplink] = live.sent([X, Y, OTHER, UPLINK], |live| live.receive(HOST, &storm));
    assert_eq!([x, y, other, uplink], [BURST, 200, 200, 200]);
    // As the datapath has it, and for virtual seconds to come.
    let actions = live.trace(HOST, "dl_src=06:00:00:00:00:01,dl_dst=ff:ff:ff:ff:ff:ff,dl_type=0x806");
    assert!(actions.contains("clone(meter("), "{actions}");
    live.warp(1000);
    let [x, other] = live.sent([X, OTHER], |live| live.receive(HOST, &storm));
    assert_eq!([x, other], [BURST, 200]);
    // What was dropped is counted, by router and class.
    let counted = |live: &mut Live, class| {
        let id = meter_id(RouterId(1), class);
        match live.client.ask(MultipartRequest::MeterStats(id)) {
            MultipartReply::MeterStats(stats) => (stats[0].packets_in as usize, stats[0].bands[0].0 as usize),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(counted(&mut live, PuntClass::Resolution), (400, 400 - 2 * BURST));
    assert_eq!(counted(&mut live, PuntClass::Routing), (0, 0));

    // The clones as Open vSwitch likes them: the first router's meter drops the rest of the flood.
    let plain = |actions: Vec<Action>| {
        let strip = |action| match action {
            Action::Clone(inner) => Action::Clone(
                inner.iter().filter(|a| !matches!(a, Action::OutputTrunc { .. })).cloned().collect(),
            ),
            other => other,
        };
        actions.into_iter().map(strip).collect()
    };
    let mut live = start("police-flood-plain", true, plain);
    let [x, y] = live.sent([X, Y], |live| live.receive(HOST, &storm));
    assert_eq!([x, y], [BURST, BURST], "the control lost nothing");
}

/// Each with many frames, and the class whose limit they meet.
fn attacks() -> Vec<(&'static str, Vec<Frame>)> {
    let many = |frame: Frame| vec![frame; 300];
    vec![
        ("end of life", many(ipv4(X_MAC, FAR, 17, 1))),
        ("no route", many(ipv4(X_MAC, [8, 8, 8, 8], 17, 64))),
        ("martians", many(Frame::ipv4(HOST_MAC, X_MAC, [127, 0, 0, 1], FAR, 17, 64))),
        ("ARP storm", many(arp())),
        ("ARP to the router", many(Frame::arp(HOST_MAC, X_MAC))),
        ("pings", many(ipv4(X_MAC, X_ADDR, 1, 64))),
        ("broadcast", many(ipv4(MacAddr::BROADCAST, [255; 4], 17, 64))),
        ("nobody's MAC", many(ipv4(MacAddr([6, 0, 0, 0, 9, 9]), FAR, 89, 64))),
    ]
}

#[test]
fn no_kind_of_packets_starves_routing_protocols() {
    let mut live = start("police-starve", true, same);
    let routing = routing();
    for (name, attack) in attacks() {
        live.warp(1000);
        let [got] = live.sent([X], |live| {
            live.receive(HOST, &attack);
            live.receive(HOST, &routing);
        });
        assert_eq!(got, BURST + routing.len(), "{name}");
    }
    // The routing protocols have a limit too.
    live.warp(1000);
    let hellos = vec![routing[0].clone(); 1200];
    assert_eq!(live.sent([X], |live| live.receive(HOST, &hellos)), [1000]);

    // With one meter for everything there is nothing left for the routing protocols.
    let one = |actions: Vec<Action>| {
        let exception = |id| meter_id(xenflow_flow_app::punt::meter_of(id).unwrap().0, PuntClass::Exception);
        let common = |action| match action {
            Action::Meter(id) => Action::Meter(exception(id)),
            other => other,
        };
        actions.into_iter().map(common).collect()
    };
    let mut live = start("police-starve-one", true, one);
    for (name, attack) in attacks() {
        live.warp(1000);
        let [got] = live.sent([X], |live| {
            live.receive(HOST, &attack);
            live.receive(HOST, &routing);
        });
        assert_eq!(got, BURST, "{name}");
    }
}

#[test]
fn a_guest_that_forwards_everything_gets_everything() {
    let mut live = start("police-closed", false, same);
    let transit: Vec<Frame> =
        (0..500).map(|n| ipv4(X_MAC, FAR, 17, if n % 2 == 0 { 1 } else { 64 })).collect();
    assert_eq!(live.sent([X, OTHER], |live| live.receive(HOST, &transit)), [500, 0]);
    // What is not for it to forward has its limits.
    let arps = vec![arp(); 100];
    assert_eq!(live.sent([X], |live| live.receive(HOST, &arps)), [BURST]);
}

/// Router 1 has a route by a neighbor on the segment, which the switch knows.
fn with_a_route(name: &str) -> Live {
    let mut live = start(name, true, same);
    let gateway = xenflow_proto::table::Hop {
        gateway: Some([10, 0, 0, 2].into()),
        oif: Some(1),
        weight: 1,
        flags: xenflow_proto::table::HopFlags(0),
        encap: false,
    };
    let key = RouteKey {
        table: xenflow_proto::table::TABLE_MAIN,
        dst: "192.168.0.0/16".parse().unwrap(),
        tos: 0,
        metric: 0,
    };
    let target = RouteTarget::Hops(vec![gateway]);
    let route = Route { key, kind: RouteKind::Unicast, protocol: 4, scope: 0, target, mtu: None };
    let key = xenflow_proto::table::NeighborKey { ifindex: 1, addr: [10, 0, 0, 2].into() };
    let mac = MacAddr([6, 0, 0, 0, 0, 2]);
    let said = [Object::Route(route), Object::Neighbor(xenflow_proto::table::Neighbor { key, mac })];
    live.tell(RouterId(1), said.map(Change::Upsert));
    live.receive(OTHER, &[Frame::arp(mac, MacAddr::BROADCAST)]);
    live
}

/// A packet that it forwards.
const ROUTED: &str = "dl_src=06:00:00:00:00:01,dl_dst=02:00:00:00:01:01,dl_type=0x800,nw_src=10.0.0.9,\
                nw_dst=192.168.7.7,nw_proto=6,nw_ttl=64,tp_src=4000,tp_dst=179";

/// What its flow in the datapath looks at, and the whole trace.
fn megaflow(live: &Live, port: PortNo, flow: &str) -> (String, String) {
    let trace = live.trace_all(port, flow);
    let line = trace.lines().find_map(|line| line.strip_prefix("Megaflow: ")).map(str::to_owned);
    (line.unwrap_or_else(|| panic!("{trace}")), trace)
}

#[test]
fn a_closed_gate_looks_at_all_that_an_open_one_does() {
    let mut live = with_a_route("police-rehearsal");
    let mut topology = live.app.topology().clone();
    topology.elsewhere.insert((vlan(), X_MAC));
    topology.node_mac = Some(MacAddr([10, 0, 0, 0, 0, 1]));
    let tagged = format!("dl_vlan=100,dl_vlan_pcp=0,{ROUTED}");
    let mut looks = |stance, port, flow: &str| {
        topology.stances = [(RouterId(1), stance)].into();
        topology.rehearsed = [RouterId(1)].into_iter().filter(|_| stance.tables).collect();
        live.stand(topology.clone());
        let (looks, trace) = megaflow(&live, port, flow);
        let fields: std::collections::BTreeSet<String> = looks.split(',').map(str::to_owned).collect();
        let actions = trace.lines().find_map(|line| line.strip_prefix("Datapath actions: "));
        (fields, actions.unwrap_or_else(|| panic!("{trace}")).to_owned())
    };
    let mut needed = Vec::new();
    for (port, flow, switched) in [
        // Switched as it came, to where the router is, and nothing else becomes of it.
        (HOST, ROUTED, "push_vlan(vid=100,pcp=0),1"),
        (UPLINK, &tagged, "drop"),
    ] {
        let (closed, actions) = looks(Stance::AWAITED, port, flow);
        assert_eq!(actions, switched);
        let (open, actions) = looks(Stance::ARRIVED, port, flow);
        assert!(actions.starts_with("set("), "{actions}");
        assert!(open.is_subset(&closed), "{open:?} {closed:?}");
        needed.push(open);
    }
    // Without tables there is nothing to look at.
    let (nowhere, actions) = looks(Stance::NONE, HOST, ROUTED);
    assert_eq!(actions, "push_vlan(vid=100,pcp=0),1");
    assert!(!needed[0].is_subset(&nowhere), "{nowhere:?}");
}

#[test]
fn forwarded_packets_make_no_narrow_flows() {
    let live = with_a_route("police-megaflow");
    let (forwarded, trace) = megaflow(&live, HOST, ROUTED);
    assert!(trace.contains("Datapath actions: set("), "it is not forwarded: {trace}");
    assert!(!forwarded.contains("tp_"), "{forwarded}");
    let to_the_router = ROUTED.replace("192.168.7.7", "10.0.0.1");
    let (own, trace) = megaflow(&live, HOST, &to_the_router);
    assert!(trace.contains("Datapath actions: meter("), "{trace}");
    assert!(own.contains("tp_dst=179"), "{own}");
    // Nor would they be wider without the table that looks at more. (Whoever sets the TTL sees the protocol.)
    let table = format!("table={}", pipeline::CLASSIFY);
    live.switch.run("ovs-ofctl", &["-O", "OpenFlow15", "del-flows", "unix:br0.mgmt", &table]);
    assert_eq!(megaflow(&live, HOST, ROUTED).0, forwarded);
    assert!(!megaflow(&live, HOST, &to_the_router).0.contains("tp_dst"), "the control sees the same");
}

#[test]
fn meters_are_read_back_as_they_were_sent() {
    let mut live = start("police-read-back", true, same);
    let MultipartReply::Meters(mut held) =
        live.client.ask(MultipartRequest::Meters(openflow::meter::ALL_METERS))
    else {
        panic!("another answer")
    };
    let topology = topology();
    let rates = |id: RouterId| topology.policy(id).punt_rates.meters(id);
    let mut sent: Vec<_> = topology.routers().into_iter().flat_map(rates).collect();
    held.sort_unstable();
    sent.sort_unstable();
    assert_eq!(held, sent);
    // The largest number that there can be.
    let last = PuntRates::default().meters(RouterId(u16::MAX)).last().unwrap();
    let add = xenflow_flow_app::MeterChange::Add(last.clone());
    live.client.install(&[Message::from(add)]);
    let MultipartReply::Meters(held) = live.client.ask(MultipartRequest::Meters(last.id)) else {
        panic!("another answer")
    };
    assert_eq!(held, [last]);
}
