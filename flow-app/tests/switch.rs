//! Against a real Open vSwitch on its dummy datapath: it holds the flows as they are desired, and does with packets
//! what the simulator says.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "nobody else sees a test's modules")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]
#![allow(clippy::disallowed_methods, reason = "a test that talks to a switch has sockets and a clock")]

#[path = "../../crates/openflow/tests/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "the laws use the rest")]
#[path = "laws/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use openflow::{Field, Flow, FlowFilter, mac_bits};
use xenflow_flow_app::pipeline::{self, cookie};
use xenflow_flow_app::sim::{self, Packet, Tag};
use xenflow_flow_app::{App, FlowKey, PortNo};
use xenflow_proto::MacAddr;

use world::{CONTROL_PORT, Plan, World, chain, host_mac, sane, vif_mac, vlan};

type Flows = BTreeMap<FlowKey, Flow>;

fn by_key(flows: impl IntoIterator<Item = Flow>) -> Flows {
    flows.into_iter().map(|flow| (FlowKey::from(&flow), flow)).collect()
}

/// A switch with the desired flows of an app, and the simulator with the same.
struct Pair {
    switch: common::Switch,
    client: common::Client,
    sim: sim::Switch,
    /// OpenFlow numbers by the datapath's.
    ports: BTreeMap<u32, PortNo>,
}

impl Pair {
    fn start(name: &str, app: &App, ports: &[PortNo]) -> Self {
        let switch = common::Switch::start(name);
        for port in ports.iter().filter(|port| **port > 3) {
            let name = format!("p{port}");
            let number = format!("ofport_request={port}");
            let add = [
                "--db=unix:db.sock",
                "--timeout=20",
                "add-port",
                "br0",
                &name,
                "--",
                "set",
                "interface",
                &name,
            ];
            switch.run("ovs-vsctl", &[&add[..], &["type=dummy", &number]].concat());
        }
        // "    p110 110/7: (dummy)"
        let show = switch.appctl(&["dpif/show"]);
        let mut numbers = BTreeMap::new();
        for word in show.split_whitespace().filter_map(|word| word.strip_suffix(':')) {
            if let Some((of, dp)) = word.split_once('/') {
                numbers.insert(dp.parse().unwrap(), of.parse().unwrap());
            }
        }
        assert!(ports.iter().all(|port| numbers.values().any(|of| of == port)), "{show}");
        let mut client = switch.connect();
        client.add_flows(&app.desired().collect::<Vec<_>>());
        Self { switch, client, sim: app.desired().collect(), ports: numbers }
    }

    fn dump(&mut self, cookie: u64) -> Flows {
        let filter = FlowFilter { cookie, cookie_mask: cookie::CATEGORY_MASK, ..FlowFilter::default() };
        by_key(self.client.dump(filter).into_iter().map(|desc| desc.flow))
    }

    /// What leaves, by `ofproto/trace`.
    fn trace(&self, port: PortNo, packet: &Packet, more: &[&str]) -> BTreeSet<(PortNo, Packet)> {
        let text = flow_text(port, packet);
        let trace = self.switch.appctl(&[&["ofproto/trace", "br0", &text], more].concat());
        let actions = trace.lines().find_map(|line| line.strip_prefix("Datapath actions: "));
        let actions = actions.unwrap_or_else(|| panic!("{text}: {trace}"));
        let mut sent = BTreeSet::new();
        self.act(actions, &mut packet.clone(), &mut sent);
        sent
    }

    /// Carries out datapath actions as text (odp-util.c, `format_odp_actions`).
    fn act(&self, actions: &str, packet: &mut Packet, sent: &mut BTreeSet<(PortNo, Packet)>) {
        for action in split(actions) {
            let (name, args) = action.trim_end_matches(')').split_once('(').unwrap_or((action, ""));
            let value =
                |key: &str| args.split([',', '(']).find_map(|arg| arg.strip_prefix(key)?.strip_prefix('='));
            match name {
                "drop" => {}
                "pop_vlan" => drop(packet.tags.remove(0)),
                "push_vlan" => {
                    let number = |key| value(key).unwrap().parse().unwrap();
                    packet.tags.insert(0, Tag { tpid: 0x8100, vid: number("vid"), pcp: number("pcp") as u8 });
                }
                "set" => {
                    for (key, field) in [("src", Field::EthSrc), ("dst", Field::EthDst)] {
                        if let Some(mac) = value(key) {
                            let mac: MacAddr = mac.trim_end_matches(')').parse().unwrap();
                            packet.headers.insert(field, mac_bits(mac.0));
                        }
                    }
                    if let Some(ttl) = value("ttl") {
                        packet.headers.insert(Field::IpTtl, ttl.trim_end_matches(')').parse().unwrap());
                    }
                }
                port => {
                    let port: u32 = port.parse().unwrap_or_else(|_| panic!("{action} in {actions}"));
                    assert!(sent.insert((self.ports[&port], packet.clone())), "a copy too many: {actions}");
                }
            }
        }
    }

    /// Both do the same; gives what leaves.
    fn agree(&self, port: PortNo, packet: &Packet) -> BTreeSet<(PortNo, Packet)> {
        let sent = self.trace(port, packet, &[]);
        let simulated: BTreeSet<_> = self.sim.send(port, packet).unwrap().sent.into_iter().collect();
        assert_eq!(sent, simulated, "{}", flow_text(port, packet));
        sent
    }
}

/// At commas outside of parentheses.
fn split(actions: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = actions.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.collect()
}

/// ovs-fields(7).
fn flow_text(port: PortNo, packet: &Packet) -> String {
    let mac = |field| {
        let bytes = packet.header(field).to_be_bytes();
        MacAddr(bytes[10..].try_into().unwrap())
    };
    let ip = |field| Ipv4Addr::from_bits(packet.header(field) as u32);
    let mut text = format!("in_port={port},dl_src={},dl_dst={}", mac(Field::EthSrc), mac(Field::EthDst));
    match packet.tags.as_slice() {
        [] => text += ",vlan_tci=0",
        [tag, ..] => text += &format!(",dl_vlan={},dl_vlan_pcp={}", tag.vid, tag.pcp),
    }
    let eth_type = packet.tags.get(1).map_or(packet.header(Field::EthType), |tag| tag.tpid.into());
    text += &format!(",dl_type={eth_type:#06x}");
    if eth_type == 0x0800 {
        let [proto, ttl] = [Field::IpProto, Field::IpTtl].map(|field| packet.header(field));
        text += &format!(",nw_src={},nw_dst={}", ip(Field::Ipv4Src), ip(Field::Ipv4Dst));
        text += &format!(",nw_proto={proto},nw_ttl={ttl}");
        if proto == 6 {
            text += &format!(",tp_dst={}", packet.header(Field::TcpDst));
        }
    }
    text
}

fn ipv4(src: MacAddr, dst: MacAddr, to: [u8; 4], ttl: u8) -> Packet {
    let headers = [
        (Field::EthSrc, mac_bits(src.0)),
        (Field::EthDst, mac_bits(dst.0)),
        (Field::EthType, 0x0800),
        (Field::Ipv4Src, Ipv4Addr::new(10, 9, 9, 9).to_bits().into()),
        (Field::Ipv4Dst, Ipv4Addr::from(to).to_bits().into()),
        (Field::IpProto, 17),
        (Field::IpTtl, ttl.into()),
    ];
    Packet { tags: Vec::new(), headers: headers.into() }
}

/// Routers 0 and 2 of one network, 1 of the other; two trunks, access ports on most segments, the control network.
fn host() -> World {
    let all = || (true, vec![(0, true), (1, true), (2, true)]);
    let access = vec![0, 0, 1, 2, 3, 6];
    let plan = Plan {
        routers: vec![all(), all(), all()],
        access,
        uplinks: [true; 2],
        segments: [true; 6],
        control: true,
    };
    let tables = |r| (r, sane(&plan, r).into_iter().map(|object| (object.key(), object)).collect());
    let tables = (0..3).map(tables).collect();
    World { plan, tables }
}

const ACCESS: [PortNo; 5] = [10, 11, 12, 13, 14];

fn vif_port(router: u8, vif: u8) -> PortNo {
    100 + 10 * PortNo::from(router) + PortNo::from(vif)
}

fn start(name: &str) -> (World, Pair) {
    let world = host();
    let vifs = (0..3).flat_map(|r| (0..3).map(move |n| vif_port(r, n)));
    let ports: Vec<PortNo> =
        [1, 2, CONTROL_PORT, 200, 201, 202].into_iter().chain(ACCESS).chain(vifs).collect();
    let pair = Pair::start(name, &world.app(), &ports);
    (world, pair)
}

#[test]
fn a_real_switch_holds_the_flows_as_desired() {
    let (world, mut pair) = start("flow-app-adopt");
    let app = world.app();
    let want = by_key(app.desired());
    let mut held = pair.dump(cookie::TOPOLOGY);
    held.append(&mut pair.dump(cookie::ROUTERS));
    assert_eq!(held, want);
    // So a daemon that starts anew changes nothing.
    let mut app = world.app();
    let mut dumps = 0;
    while let Some((_, filters)) = app.begin_dump() {
        for desc in filters.into_iter().flat_map(|filter| pair.client.dump(filter)) {
            app.dumped(desc.flow);
        }
        app.dump_end();
        dumps += 1;
    }
    assert_eq!(dumps, 4);
    assert_eq!(app.next_batch(100).changes, []);
    assert!(app.is_idle());
}

#[test]
fn a_real_switch_does_what_the_simulator_says() {
    let (world, pair) = start("flow-app-trace");
    let mut packets: Vec<(PortNo, Packet)> = Vec::new();
    let host = host_mac(0, 50);
    for to in [
        [10, 0, 0, 9],
        [10, 1, 0, 9],
        [10, 2, 0, 3],
        [10, 1, 0, 1],
        [10, 0, 0, 255],
        [8, 8, 8, 8],
        [192, 168, 1, 7],
    ] {
        for (port, gateway) in [(10, vif_mac(0, 0)), (12, vif_mac(2, 1)), (14, vif_mac(1, 0))] {
            packets.push((port, ipv4(host, gateway, to, 64)));
        }
        for ttl in [0, 1, 2] {
            packets.push((11, ipv4(host, vif_mac(0, 0), to, ttl)));
        }
        packets.push((1, ipv4(host, vif_mac(0, 2), to, 64).tagged(Tag::new(vlan(2).get()))));
        packets.push((vif_port(2, 0), ipv4(vif_mac(2, 0), vif_mac(0, 0), to, 9)));
    }
    // Hairpin: in and out by the same trunk and by the same access port.
    let hairpin = packets.len();
    packets.push((2, ipv4(host, vif_mac(0, 0), [10, 0, 0, 9], 64).tagged(Tag::new(vlan(0).get()))));
    packets.push((10, ipv4(host, vif_mac(0, 0), [10, 0, 0, 9], 64)));
    // Switched: unknown, broadcast, to a vif, from a vif; refused: a vif's MAC, an announcement, a group, tags.
    let switched = packets.len();
    let plain = |dst| ipv4(host, dst, [1, 2, 3, 4], 64);
    for port in [1, 10, 12, 13, CONTROL_PORT, 200] {
        for dst in [host_mac(0, 9), MacAddr::BROADCAST, vif_mac(0, 0), MacAddr([0xaa; 6])] {
            packets.push((port, plain(dst)));
            packets.push((port, plain(dst).tagged(Tag::new(vlan(0).get()))));
        }
    }
    packets.push((10, ipv4(vif_mac(0, 0), host, [1, 2, 3, 4], 64)));
    packets.push((10, ipv4(MacAddr([3, 0, 0, 0, 0, 1]), host, [1, 2, 3, 4], 64)));
    packets.push((vif_port(0, 0), ipv4(host, vif_mac(2, 0), [1, 2, 3, 4], 64)));
    packets.push((1, plain(vif_mac(0, 0)).tagged(Tag::new(vlan(1).get())).tagged(Tag::new(vlan(0).get()))));
    packets.push((1, plain(vif_mac(0, 0)).tagged(Tag::new(999))));
    packets.push((12, plain(vif_mac(0, 0)).with(Field::EthType, 0x86dd)));

    let sent: Vec<_> = packets.iter().map(|(port, packet)| pair.agree(*port, packet)).collect();
    let changed = |i: usize| sent[i].iter().any(|(_, p)| p.headers != packets[i].1.headers);
    assert!((0..hairpin).filter(|i| changed(*i)).count() > 20, "too little was forwarded");
    assert!((hairpin..switched).all(|i| changed(i) && sent[i].iter().any(|(port, _)| *port == packets[i].0)));
    assert!(sent[switched..].iter().filter(|sent| sent.is_empty()).count() > 20, "too little was refused");
    assert!(sent[switched..].iter().filter(|sent| sent.len() > 3).count() > 5, "too little was flooded");

    // The comparison notices a simulator with other flows.
    let app = world.app();
    let broken: sim::Switch = app.desired().filter(|flow| flow.table != pipeline::NEXT_HOP).collect();
    let (port, packet) = &packets[hairpin];
    let simulated: BTreeSet<_> = broken.send(*port, packet).unwrap().sent.into_iter().collect();
    assert_ne!(pair.trace(*port, packet, &[]), simulated);
}

#[test]
fn a_real_switch_learns_what_the_simulator_says() {
    let (_, mut pair) = start("flow-app-learn");
    let (a, b) = (host_mac(0, 50), host_mac(0, 51));
    let question = ipv4(a, b, [1, 2, 3, 4], 64);
    let learned = pair.sim.send(10, &question).unwrap().learned;
    assert_eq!(learned.len(), 1);
    pair.trace(10, &question, &["-generate"]);
    assert_eq!(pair.dump(cookie::LEARNED), by_key(learned.clone()));
    learned.into_iter().for_each(|flow| pair.sim.insert(flow));
    let answer = ipv4(b, a, [1, 2, 3, 4], 64);
    assert_eq!(pair.agree(11, &answer), [(10, answer.clone())].into());
    assert_eq!(pair.agree(1, &answer.clone().tagged(Tag::new(vlan(0).get()))), [(10, answer.clone())].into());
    // In another segment the same MAC is unknown.
    assert!(pair.agree(12, &answer).len() > 2);
    // Learning what it knows already changes nothing; forgetting a segment is a removal by cookie.
    pair.trace(10, &question, &["-generate"]);
    assert_eq!(pair.dump(cookie::LEARNED).len(), 1);
    let forget = |vlan| openflow::Message::FlowMod(xenflow_flow_app::FlowChange::ForgetLearned(vlan).into());
    pair.client.install(&[forget(vlan(1))]);
    assert_eq!(pair.dump(cookie::LEARNED).len(), 1);
    pair.client.install(&[forget(vlan(0))]);
    assert_eq!(pair.dump(cookie::LEARNED), Flows::new());
    // A packet does not meet what is learned from it.
    let own = ipv4(b, b, [1, 2, 3, 4], 64);
    let flooded = pair.agree(10, &own);
    assert_eq!(pair.trace(10, &own, &["-generate"]), flooded);
    assert_eq!(pair.dump(cookie::LEARNED).len(), 1);
}

#[test]
fn a_real_switch_counts_the_routers_of_a_chain() {
    for count in [32, 33, 40] {
        let app = chain(count);
        let ports: Vec<PortNo> =
            std::iter::once(1).chain((0..PortNo::from(count)).map(|n| 100 + n)).collect();
        let pair = Pair::start(&format!("flow-app-chain-{count}"), &app, &ports);
        let sent = pair.agree(1, &ipv4(host_mac(0, 9), vif_mac(0, 0), [8, 8, 8, 8], 64));
        assert!(sent.iter().all(|(_, packet)| packet.header(Field::IpTtl) == 32), "{sent:?}");
        let punted = sent.iter().map(|(port, _)| *port).eq([100 + pipeline::MAX_ROUTERS]);
        assert_eq!(punted, count > 32, "{count} routers");
    }
}
