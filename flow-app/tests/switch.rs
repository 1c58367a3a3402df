//! Against a real Open vSwitch on its dummy datapath: it holds the flows as they are desired, and does with packets
//! what the simulator says.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "nobody else sees a test's modules")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]
#![allow(clippy::disallowed_methods, reason = "a test that talks to a switch has sockets and a clock")]

#[path = "../../crates/openflow/tests/common/mod.rs"]
mod common;
mod live;
#[path = "switch/stances.rs"]
mod stances;
#[allow(dead_code, reason = "the laws use the rest")]
#[path = "laws/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use openflow::action::port;
use openflow::group::ALL_GROUPS;
use openflow::meter::ALL_METERS;
use openflow::{Field, Flow, FlowFilter, Message, MultipartReply, MultipartRequest, mac_bits};
use xenflow_flow_app::pipeline::{self, cookie};
use xenflow_flow_app::sim::{self, Packet, Tag};
use xenflow_flow_app::{App, Batch, Desired, FlowChange, FlowKey, MeterChange, PortNo, PuntClass};
use xenflow_proto::MacAddr;

use world::{
    CONTROL_PORT, Plan, V4, V6, World, address, chain, far, host_mac, ipv6, link_local, sane, vif_mac, vlan,
};

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
        let Desired { flows, groups, meters } = app.desired();
        let meters = meters.into_iter().map(MeterChange::Add).map(Message::from);
        let more = groups.iter().cloned().map(FlowChange::UpsertGroup).map(Message::from);
        client.install(&meters.chain(more).collect::<Vec<_>>());
        client.add_flows(&flows);
        let mut sim: sim::Switch = flows.into_iter().collect();
        groups.into_iter().for_each(|group| sim.insert_group(group));
        Self { switch, client, sim, ports: numbers }
    }

    fn dump(&mut self, cookie: u64) -> Flows {
        let filter = FlowFilter { cookie, cookie_mask: cookie::CATEGORY_MASK, ..FlowFilter::default() };
        by_key(self.client.dump(filter).into_iter().map(|desc| desc.flow))
    }

    /// What leaves, by `ofproto/trace`; by the port of that name what the controller gets.
    fn trace(&self, port: PortNo, packet: &Packet, more: &[&str]) -> BTreeSet<(PortNo, Packet)> {
        self.trace_queues(port, packet, more).into_iter().map(|(port, _, packet)| (port, packet)).collect()
    }

    /// What leaves, and by which queue.
    fn trace_queues(&self, port: PortNo, packet: &Packet, more: &[&str]) -> BTreeSet<(PortNo, u32, Packet)> {
        let text = flow_text(port, packet);
        let trace = self.switch.appctl(&[&["ofproto/trace", "br0", &text], more].concat());
        let actions = trace.lines().find_map(|line| line.strip_prefix("Datapath actions: "));
        let actions = actions.unwrap_or_else(|| panic!("{text}: {trace}"));
        let mut sent = BTreeSet::new();
        self.act(actions, &mut packet.clone(), &mut 0, &mut sent);
        sent
    }

    /// Carries out datapath actions as text (odp-util.c, `format_odp_actions`).
    fn act(
        &self,
        actions: &str,
        packet: &mut Packet,
        queue: &mut u32,
        sent: &mut BTreeSet<(PortNo, u32, Packet)>,
    ) {
        for action in split(actions) {
            let (name, args) = action
                .strip_suffix(')')
                .map_or((action, ""), |action| action.split_once('(').unwrap_or((action, "")));
            let value =
                |key: &str| args.split([',', '(']).find_map(|arg| arg.strip_prefix(key)?.strip_prefix('='));
            match name {
                "drop" | "meter" => {}
                "clone" => self.act(args, &mut packet.clone(), &mut queue.clone(), sent),
                // A meter of the controller's copy alone: of every packet.
                "sample" => {
                    let actions = args.strip_prefix("sample=100.0%,actions(").unwrap();
                    let actions = actions.strip_suffix(')').unwrap();
                    self.act(actions, &mut packet.clone(), &mut queue.clone(), sent);
                }
                "userspace" => {
                    assert!(args.contains("controller("), "{action} in {actions}");
                    sent.insert((port::CONTROLLER, 0, packet.clone()));
                }
                "pop_vlan" => drop(packet.tags.remove(0)),
                "push_vlan" => {
                    let number = |key| value(key).unwrap().parse().unwrap();
                    packet.tags.insert(0, Tag { tpid: 0x8100, vid: number("vid"), pcp: number("pcp") as u8 });
                }
                // Where the kernel has 0x10001 + N, the datapath in user space has the number itself.
                "set" if args.starts_with("skb_priority(") => {
                    let number = args.trim_start_matches("skb_priority(").trim_end_matches(')');
                    *queue = u32::from_str_radix(number.trim_start_matches("0x"), 16).unwrap();
                }
                "set" => {
                    for (key, field) in [("src", Field::EthSrc), ("dst", Field::EthDst)] {
                        if let Some(mac) = value(key) {
                            let mac: MacAddr = mac.trim_end_matches(')').parse().unwrap();
                            packet.headers.insert(field, mac_bits(mac.0));
                        }
                    }
                    if let Some(ttl) = value("ttl").or(value("hlimit")) {
                        packet.headers.insert(Field::IpTtl, ttl.trim_end_matches(')').parse().unwrap());
                    }
                }
                port => {
                    let port: u32 = port.parse().unwrap_or_else(|_| panic!("{action} in {actions}"));
                    let copy = (self.ports[&port], *queue, packet.clone());
                    assert!(sent.insert(copy), "a copy too many: {actions}");
                }
            }
        }
    }

    /// The switch does what the simulator says, or one of the things if there is a choice; gives what leaves.
    fn agree(&self, port: PortNo, packet: &Packet) -> BTreeSet<(PortNo, Packet)> {
        let sent = self.trace_queues(port, packet, &[]);
        let outcomes = self.sim.send_all(port, packet).unwrap().into_iter();
        let copies = |sim::Outcome { sent, queues, told, .. }| -> BTreeSet<_> {
            let sent = sent.into_iter().zip(queues).map(|((port, packet), queue)| (port, queue, packet));
            sent.chain(told.into_iter().map(|(_, packet)| (port::CONTROLLER, 0, packet))).collect()
        };
        let simulated: Vec<_> = outcomes.map(copies).collect();
        assert!(simulated.contains(&sent), "{}: {sent:#?}, not of {simulated:#?}", flow_text(port, packet));
        sent.into_iter().map(|(port, _, packet)| (port, packet)).collect()
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
    let ipv4 = |field| Ipv4Addr::from_bits(packet.header(field) as u32);
    let ipv6 = |field| Ipv6Addr::from_bits(packet.header(field));
    let mut text = format!("in_port={port},dl_src={},dl_dst={}", mac(Field::EthSrc), mac(Field::EthDst));
    match packet.tags.as_slice() {
        [] => text += ",vlan_tci=0",
        [tag, ..] => text += &format!(",dl_vlan={},dl_vlan_pcp={}", tag.vid, tag.pcp),
    }
    let eth_type = packet.tags.get(1).map_or(packet.header(Field::EthType), |tag| tag.tpid.into());
    text += &format!(",dl_type={eth_type:#06x}");
    let addresses = match eth_type {
        0x0800 => Some(format!(",nw_src={},nw_dst={}", ipv4(Field::Ipv4Src), ipv4(Field::Ipv4Dst))),
        0x86dd => Some(format!(",ipv6_src={},ipv6_dst={}", ipv6(Field::Ipv6Src), ipv6(Field::Ipv6Dst))),
        _ => None,
    };
    if let Some(addresses) = addresses {
        let [proto, ttl] = [Field::IpProto, Field::IpTtl].map(|field| packet.header(field));
        text += &addresses;
        text += &format!(",nw_proto={proto},nw_ttl={ttl}");
        text += &format!(",ip_dscp={}", packet.header(Field::IpDscp));
        if packet.headers.contains_key(&Field::IpFrag) {
            text += ",ip_frag=later";
        } else if let Some((name, src, dst)) = match proto {
            6 => Some(("tcp", Field::TcpSrc, Field::TcpDst)),
            17 => Some(("udp", Field::UdpSrc, Field::UdpDst)),
            132 => Some(("sctp", Field::SctpSrc, Field::SctpDst)),
            _ => None,
        } {
            text += &format!(",{name}_src={},{name}_dst={}", packet.header(src), packet.header(dst));
        }
    }
    text
}

fn ip(src: MacAddr, dst: MacAddr, from: IpAddr, to: IpAddr, ttl: u8) -> Packet {
    let (eth_type, [from_field, to_field]) = match to {
        IpAddr::V4(_) => (pipeline::ETH_IPV4, [Field::Ipv4Src, Field::Ipv4Dst]),
        IpAddr::V6(_) => (pipeline::ETH_IPV6, [Field::Ipv6Src, Field::Ipv6Dst]),
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
    ];
    Packet { headers: headers.into(), ..Packet::default() }
}

/// From a host that is far away.
fn to(src: MacAddr, dst: MacAddr, to: IpAddr, ttl: u8) -> Packet {
    let from = if to.is_ipv4() { far(V4, 9, 0, 9) } else { far(V6, 9, 0, 9) };
    ip(src, dst, from, to, ttl)
}

fn ipv4(src: MacAddr, dst: MacAddr, addr: [u8; 4], ttl: u8) -> Packet {
    to(src, dst, addr.into(), ttl)
}

/// Routers 0 and 2 of one network, 1 of the other; two trunks, access ports on most segments, the control network.
fn host() -> World {
    let all = || (true, vec![(0, true), (1, true), (2, true)]);
    let access = vec![0, 0, 1, 2, 3, 6];
    let plan = Plan {
        elsewhere: Vec::new(),
        routers: vec![all(), all(), all()],
        access,
        uplinks: [true; 2],
        segments: [true; 6],
        control: true,
        policies: vec![(9, 99); 6],
        // Queue 5, and of it 100 is EF to or from port 53 or 80, and 101 all TCP; of the other network queue 9 alone. All but
        // 101 have a maximum, at either uplink.
        queues: [(5, vec![[201, 1, 1, 2], [100, 0, 2, 0]]), (1, Vec::new())],
        is_plain: false,
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
    let pair = Pair::start(name, &world.app(), &ports());
    (world, pair)
}

/// Of [`host`].
fn ports() -> Vec<PortNo> {
    let vifs = (0..3).flat_map(|r| (0..3).map(move |n| vif_port(r, n)));
    [1, 2, CONTROL_PORT, 200, 201, 202].into_iter().chain(ACCESS).chain(vifs).collect()
}

#[test]
fn a_real_switch_holds_the_flows_as_desired() {
    let (world, mut pair) = start("flow-app-adopt");
    let app = world.app();
    let want = by_key(app.desired().flows);
    let mut held = pair.dump(cookie::TOPOLOGY);
    held.append(&mut pair.dump(cookie::ROUTERS));
    assert_eq!(held, want);
    // So a daemon that starts anew changes nothing.
    let mut app = world.app();
    let mut dumps = 0;
    while let Some(dump) = app.begin_dump() {
        for desc in dump.flows.into_iter().flat_map(|filter| pair.client.dump(filter)) {
            app.dumped(desc.flow);
        }
        if dump.groups_and_meters {
            let MultipartReply::Groups(groups) = pair.client.ask(MultipartRequest::Groups(ALL_GROUPS)) else {
                panic!("no groups");
            };
            assert!(groups.len() >= 3, "{groups:?}");
            groups.into_iter().for_each(|group| app.dumped_group(group));
            let MultipartReply::Meters(meters) = pair.client.ask(MultipartRequest::Meters(ALL_METERS)) else {
                panic!("no meters");
            };
            // Of two networks and a class at two uplinks.
            assert_eq!(meters.len(), 3 * PuntClass::ALL.len() + 2 * 3);
            meters.into_iter().for_each(|meter| app.dumped_meter(meter));
        }
        app.dump_end();
        dumps += 1;
    }
    assert_eq!(dumps, 4);
    assert_eq!(app.next_batch(100), Batch::default());
    assert!(app.is_idle());
}

#[test]
fn a_real_switch_does_what_the_simulator_says() {
    let (world, pair) = start("flow-app-trace");
    let mut packets: Vec<(PortNo, Packet)> = Vec::new();
    let host = host_mac(0, 50);
    let mut destinations: Vec<IpAddr> = [V4, V6]
        .into_iter()
        .flat_map(|family| {
            let hosts =
                [(0, 8), (1, 8), (2, 2), (1, 0)].map(|(segment, host)| address(family, segment, host));
            hosts.into_iter().chain([far(family, 1, 0, 7), far(family, 7, 0, 1)])
        })
        .collect();
    destinations.extend([[10, 0, 0, 255], [8, 8, 8, 8], [172, 16, 1, 1], [172, 17, 1, 1]].map(IpAddr::from));
    destinations.extend([
        ipv6([0x2606, 0, 0, 0, 0, 0, 0, 8]),
        ipv6([0xfd00, 1, 0, 0, 0, 0, 0, 0]),
        link_local(2),
        ipv6([0xff02, 0, 0, 0, 0, 0, 0, 1]),
    ]);
    for addr in destinations {
        for (port, gateway) in [(10, vif_mac(0, 0)), (12, vif_mac(2, 1)), (14, vif_mac(1, 0))] {
            packets.push((port, to(host, gateway, addr, 64)));
        }
        for ttl in [0, 1, 2] {
            packets.push((11, to(host, vif_mac(0, 0), addr, ttl)));
        }
        packets.push((1, to(host, vif_mac(0, 2), addr, 64).tagged(Tag::new(vlan(2).get()))));
        packets.push((vif_port(2, 0), to(vif_mac(2, 0), vif_mac(0, 0), addr, 9)));
    }
    // Hairpin: in and out by the same trunk and by the same access port.
    let hairpin = packets.len();
    packets.push((2, ipv4(host, vif_mac(0, 0), [10, 0, 0, 9], 64).tagged(Tag::new(vlan(0).get()))));
    packets.push((10, ipv4(host, vif_mac(0, 0), [10, 0, 0, 9], 64)));
    packets.push((10, to(host, vif_mac(0, 0), address(V6, 0, 8), 64)));
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
    packets.push((12, to(host, vif_mac(0, 0), address(V6, 0, 8), 64)));
    // Neighbor discovery, by group and by unicast.
    let all_nodes = ipv6([0xff02, 0, 0, 0, 0, 0, 0, 1]);
    packets.push((10, ip(host, MacAddr([0x33, 0x33, 0, 0, 0, 1]), link_local(9), all_nodes, 255)));
    packets.push((10, ip(host, vif_mac(0, 0), link_local(9), link_local(0), 255)));

    let sent: Vec<_> = packets.iter().map(|(port, packet)| pair.agree(*port, packet)).collect();
    let changed = |i: usize| sent[i].iter().any(|(_, p)| p.headers != packets[i].1.headers);
    assert!((0..hairpin).filter(|i| changed(*i)).count() > 20, "too little was forwarded");
    assert!((hairpin..switched).all(|i| changed(i) && sent[i].iter().any(|(port, _)| *port == packets[i].0)));
    assert!(sent[switched..].iter().filter(|sent| sent.is_empty()).count() > 20, "too little was refused");
    assert!(sent[switched..].iter().filter(|sent| sent.len() > 3).count() > 5, "too little was flooded");

    // The comparison notices a simulator with other flows.
    let app = world.app();
    let broken: sim::Switch =
        app.desired().flows.into_iter().filter(|flow| flow.table != pipeline::NEXT_HOP).collect();
    let (port, packet) = &packets[hairpin];
    let simulated: BTreeSet<_> = broken.send(*port, packet).unwrap().sent.into_iter().collect();
    assert_ne!(pair.trace(*port, packet, &[]), simulated);
}

#[test]
fn a_real_switch_has_packets_in_the_queues_of_their_classes() {
    let (_, pair) = start("flow-app-queues");
    let host = host_mac(0, 50);
    let queue = |port, packet: &Packet| {
        pair.agree(port, packet);
        let sent = pair.trace_queues(port, packet, &[]);
        // To others than uplinks without.
        let is_uplink = |port| (1..3).contains(&port);
        assert!(sent.iter().all(|(port, queue, _)| is_uplink(*port) || *queue == 0), "{sent:?}");
        let queues: BTreeSet<u32> =
            sent.iter().filter(|(port, ..)| is_uplink(*port)).map(|(_, queue, _)| *queue).collect();
        queues.into_iter().collect::<Vec<_>>()
    };
    let with = |packet: &Packet, fields: &[(Field, u128)]| {
        fields.iter().fold(packet.clone(), |packet, (field, value)| packet.with(*field, *value))
    };
    let ef = (Field::IpDscp, 46);
    for (family, later) in [(V4, 17), (V6, 44)] {
        // Routed to a host of another segment, and flooded within its own.
        let routed = to(host, vif_mac(0, 0), address(family, 1, 8), 64);
        let flooded = to(host, host_mac(0, 9), address(family, 1, 8), 64);
        for packet in [routed, flooded] {
            assert_eq!(queue(10, &packet), [5]);
            assert_eq!(queue(10, &with(&packet, &[ef])), [5]);
            let fragment = [ef, (Field::IpProto, later), (Field::IpFrag, 3)];
            assert_eq!(queue(10, &with(&packet, &fragment)), [5]);
            for port in [Field::UdpSrc, Field::UdpDst] {
                assert_eq!(queue(10, &with(&packet, &[(port, 53)])), [5]);
                assert_eq!(queue(10, &with(&packet, &[ef, (port, 53)])), [100]);
                assert_eq!(queue(10, &with(&packet, &[ef, (port, 80)])), [100]);
                assert_eq!(queue(10, &with(&packet, &[ef, (port, 81)])), [5]);
            }
            assert_eq!(queue(10, &with(&packet, &[ef, (Field::IpProto, 6), (Field::TcpDst, 53)])), [101]);
        }
    }
    let unrouted = to(host, host_mac(3, 9), address(V4, 0, 8), 64);
    assert_eq!(queue(14, &with(&unrouted, &[ef, (Field::UdpDst, 53)])), [9]);
    assert_eq!(queue(1, &unrouted.clone().tagged(Tag::new(vlan(3).get()))), [0; 0], "to no other trunk");

    // Classes narrow the megaflows of their own network's packets on the way to an uplink, and no others'.
    let megaflow = |port, packet: &Packet| {
        let trace = pair.switch.appctl(&["ofproto/trace", "br0", &flow_text(port, packet)]);
        trace.lines().find_map(|line| line.strip_prefix("Megaflow: ")).unwrap().to_owned()
    };
    let looks = |port, packet: &Packet| {
        let megaflow = megaflow(port, packet);
        ["nw_tos=", "tp_"].map(|field| megaflow.contains(field))
    };
    let own = to(host, host_mac(0, 9), address(V4, 0, 8), 64);
    // Of its network, and of its class before that.
    let meters = |packet: &Packet| {
        let trace = pair.switch.appctl(&["ofproto/trace", "br0", &flow_text(10, packet)]);
        let actions = trace.lines().find_map(|line| line.strip_prefix("Datapath actions: ")).unwrap();
        let to_uplinks = split(actions).into_iter().filter(|action| action.contains("skb_priority"));
        to_uplinks.map(|action| action.matches("meter(").count()).collect::<Vec<_>>()
    };
    assert_eq!(meters(&with(&own, &[ef, (Field::UdpDst, 53)])), [2, 2]);
    assert_eq!(looks(10, &with(&own, &[ef, (Field::UdpDst, 53)])), [true, true], "{}", megaflow(10, &own));
    let local = to(host, vif_mac(0, 0), address(V4, 0, 0), 64);
    assert!(!looks(10, &local)[0], "{}", megaflow(10, &local));
    let to_vif_only = |packet: &Packet| pair.agree(14, packet).iter().all(|(port, _)| *port > 2);
    let other = to(host, vif_mac(1, 0), address(V4, 1, 8), 64);
    assert!(!to_vif_only(&other));
    assert_eq!(looks(14, &other), [false, false], "{}", megaflow(14, &other));
}

#[test]
fn a_real_switch_forwards_ipv6_as_a_router_would() {
    let (_, pair) = start("flow-app-ipv6");
    let (host, router) = (host_mac(0, 50), vif_mac(0, 0));
    let sends = |packet: Packet| (pair.agree(10, &packet), packet);
    let punted = |packet| {
        let (sent, packet) = sends(packet);
        assert_eq!(sent, [(vif_port(0, 0), packet)].into());
    };
    // To a host on another segment: hop limit and MACs, by every port of the segment, tagged on the trunks.
    let (other, from) = (address(V6, 1, 8), far(V6, 9, 0, 9));
    let forwarded = |addr, ttl: u8, vif: u8, mac: MacAddr| {
        let (sent, packet) = sends(to(host, router, addr, ttl));
        let wanted = packet
            .with(Field::IpTtl, (ttl - 1).into())
            .with(Field::EthSrc, mac_bits(vif_mac(0, vif).0))
            .with(Field::EthDst, mac_bits(mac.0));
        assert!(sent.contains(&(1, wanted.clone().tagged(Tag::new(vlan(vif).get())))), "{sent:?}");
        let untagged = |(port, packet): &(PortNo, Packet)| *port < 3 || *packet == wanted;
        assert!(sent.len() > 3 && sent.iter().all(untagged), "{sent:?}");
    };
    forwarded(other, 64, 1, host_mac(1, 8));
    forwarded(other, 2, 1, host_mac(1, 8));
    // Hop limit: the guest answers.
    punted(to(host, router, other, 1));
    punted(to(host, router, other, 0));
    // Own addresses and the subnet's anycast address, as destination and as source.
    let network = ipv6([0xfd00, 1, 0, 0, 0, 0, 0, 0]);
    for own in [address(V6, 0, 0), address(V6, 1, 0), network, link_local(0)] {
        punted(to(host, router, own, 64));
        punted(ip(host, router, own, other, 64));
    }
    // What no router forwards, although there is a default route.
    for addr in [
        ipv6([0; 8]),
        Ipv6Addr::LOCALHOST.into(),
        link_local(9),
        ipv6([0xff0e, 0, 0, 0, 0, 0, 0, 1]),
        IpAddr::V6(Ipv4Addr::new(10, 1, 0, 9).to_ipv6_mapped()),
    ] {
        punted(to(host, router, addr, 64));
        punted(ip(host, router, addr, other, 64));
    }
    // The next address behind each is ordinary.
    let default = |addr| {
        let (sent, packet) = sends(ip(host, router, from, addr, 64));
        assert!(sent.iter().all(|(_, p)| p.headers != packet.headers) && !sent.is_empty(), "{sent:?}");
    };
    default(ipv6([0, 0, 0, 0, 0, 0, 0, 2]));
    default(ipv6([0xfec0, 0, 0, 0, 0, 0, 0, 1]));
    default(ipv6([0xfe7f, 0, 0, 0, 0, 0, 0, 1]));
    default(ipv6([0xfe, 0, 0, 0, 0, 0, 0, 1]));
    default(ipv6([0, 0, 0, 0, 0, 0xfffe, 0, 1]));
    // A host that is not resolved: the guest asks.
    punted(to(host, router, ipv6([0xfd00, 1, 0, 0, 0, 0, 0, 99]), 64));
    // RFC 8950: IPv4 by the link-local address of the third router, and on by that of a host.
    let (sent, packet) = sends(ipv4(host, router, [172, 17, 0, 1], 64));
    let wanted = packet
        .with(Field::IpTtl, 62)
        .with(Field::EthSrc, mac_bits(vif_mac(2, 1).0))
        .with(Field::EthDst, mac_bits(host_mac(1, 4).0));
    let ports: BTreeSet<PortNo> = sent.iter().map(|(port, _)| *port).collect();
    assert!(ports.is_superset(&[1, 2, 12].into()), "{sent:?}");
    assert!(sent.iter().all(|(_, p)| p.headers == wanted.headers), "{sent:?}");
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
    let forget = |vlan| openflow::Message::from(xenflow_flow_app::FlowChange::ForgetLearned(vlan));
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

/// An address that nobody sends to stays known while it sends, and its packets' flows in the datapath stay.
#[test]
fn a_real_switch_knows_an_address_for_as_long_as_it_sends() {
    let (_, pair) = start("flow-app-lasting");
    let frame =
        live::Frame::ipv4(host_mac(0, 50), host_mac(0, 51), [10, 0, 0, 9], [10, 0, 0, 8], 17, 64).hex();
    let seconds = |pair: &Pair| -> Option<f64> {
        let table = format!("table={}", pipeline::LEARNED);
        let said = pair.switch.run("ovs-ofctl", &["-OOpenFlow15", "dump-flows", "unix:br0.mgmt", &table]);
        said.split("duration=").nth(1)?.split('s').next()?.parse().ok()
    };
    pair.switch.appctl(&["time/stop"]);
    // Sooner than the datapath takes a flow for idle.
    let (step, lasting) = (4, u32::from(pipeline::LEARNED_S) + 40);
    for _ in 0..lasting / step {
        pair.switch.appctl(&["netdev-dummy/receive", "p10", &frame]);
        pair.switch.appctl(&["time/warp", &(step * 1000).to_string(), "500"]);
    }
    assert!(
        seconds(&pair).is_some_and(|seconds| seconds > f64::from(lasting - 2 * step)),
        "{:?}",
        seconds(&pair)
    );
    pair.switch.appctl(&["time/warp", &(u32::from(pipeline::LEARNED_S) * 1000 + 20_000).to_string(), "5000"]);
    assert_eq!(seconds(&pair), None, "it is silent");
}

#[test]
fn a_real_switch_counts_the_routers_of_a_chain() {
    for (count, packets, gateways) in [(32, V4, V4), (33, V4, V4), (40, V4, V4), (32, V6, V6), (33, V4, V6)] {
        let app = chain(count, packets, gateways);
        let ports: Vec<PortNo> =
            std::iter::once(1).chain((0..PortNo::from(count)).map(|n| 100 + n)).collect();
        let pair = Pair::start(&format!("flow-app-chain-{count}-{packets:?}-{gateways:?}"), &app, &ports);
        let sent = pair.agree(1, &to(host_mac(0, 9), vif_mac(0, 0), far(packets, 8, 0, 8), 64));
        assert!(sent.iter().all(|(_, packet)| packet.header(Field::IpTtl) == 32), "{sent:?}");
        let punted = sent.iter().map(|(port, _)| *port).eq([100 + pipeline::MAX_ROUTERS]);
        assert_eq!(punted, count > 32, "{count} routers");
    }
}
