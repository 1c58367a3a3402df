//! What a real `dpctl/dump-flows --names -m` said is read, and what is made of it goes where it should.

use super::*;

/// Of Open vSwitch 3.1: a routed flow that came by the trunk, and one of a host of this node.
const ROUTED: &str = "ufid:5e71f8ab-427e-48cb-a9db-ddca2e15b78a, recirc_id(0),dp_hash(0/0),skb_priority(0/0),in_port(trunk),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0),eth(src=02:48:00:00:00:02,dst=02:52:00:00:01:02),eth_type(0x8100),vlan(vid=13,pcp=0),encap(eth_type(0x0800),ipv4(src=10.3.0.10/255.255.255.248,dst=10.1.0.10,proto=17,tos=0/0,ttl=64,frag=no),udp(src=46297/0,dst=7001/0)), packets:780, bytes:85800, used:0.010s, dp:ovs, actions:set(eth(src=02:52:00:00:01:00,dst=02:48:00:00:00:00)),set(ipv4(ttl=63)),pop_vlan,h1";
const LOCAL: &str = "ufid:b243fc66-54b6-4868-8d58-82a8ca605f4a, recirc_id(0),dp_hash(0/0),skb_priority(0/0),in_port(h1),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0),eth(src=02:48:00:00:00:00,dst=02:52:00:00:01:00),eth_type(0x86dd),ipv6(src=fd00:1::a/::,dst=fd00:3::a,label=0/0,proto=6,tclass=0/0,hlimit=64,frag=no),key32(00 00/00 00),tcp(src=5001/0,dst=80/0),tcp_flags(0/0), packets:1, bytes:74, used:3.900s, dp:ovs, actions:set(eth(src=02:52:00:00:01:02,dst=02:48:00:00:00:02)),push_vlan(vid=13,pcp=0),trunk";
/// A frame that another node has routed.
const SWITCHED: &str = "ufid:69109e77-74a9-41a9-a1d0-e723741be920, recirc_id(0),in_port(trunk),eth(src=0a:03:a0:bf:36:f6,dst=02:48:00:00:00:00),eth_type(0x8100),vlan(vid=11,pcp=0),encap(eth_type(0x0800),ipv4(src=10.3.0.10/0.0.0.0,dst=10.1.0.10/0.0.0.0,proto=17/0,tos=0/0,ttl=63/0,frag=no),udp(src=1/0,dst=2/0)), packets:242, bytes:26620, used:0.1s, dp:ovs, actions:pop_vlan,h1";

const FROM: MacAddr = MacAddr([0x0a, 0x03, 0xa0, 0xbf, 0x36, 0xf6]);
const TO: MacAddr = MacAddr([0x0a, 0xb5, 0x62, 0x77, 0xef, 0x82]);

fn vlan(vid: i64) -> VlanId {
    vid.try_into().unwrap()
}

fn host(access: &[(&str, i64)]) -> Host {
    let access = access.iter().map(|(port, vid)| ((*port).to_owned(), vlan(*vid))).collect();
    Host { uplinks: ["trunk".to_owned()].into(), access }
}

fn moving(role: Option<Role>) -> Move {
    let mac = |last| MacAddr([2, 0x52, 0, 0, 1, last]);
    let vifs = [(vlan(11), mac(0)), (vlan(12), mac(1)), (vlan(13), mac(2))].into();
    Move { role, is_ahead: true, are_others: true, vifs, nodes: [FROM, TO] }
}

fn flow(line: &str) -> Flow {
    Flow::parse(line).unwrap_or_else(|| panic!("{line} is not read"))
}

#[test]
fn what_the_source_has_is_made_at_the_destination() {
    let source = host(&[("h1", 11)]);
    let told = told(&[flow(ROUTED), flow(LOCAL), flow(SWITCHED)], &source, &moving(Some(Role::Source)));
    let senders: Vec<_> = told.iter().map(|flow| (flow.vlan.get(), flow.src.0[5])).collect();
    assert_eq!(senders, [(13, 2), (11, 0)]);
    // Nor what nothing has come by for a while: at the destination it may be gone, also of a host that is there.
    for used in ["used:never", "used:4.010s"] {
        let idle = flow(&LOCAL.replace("used:3.900s", used));
        assert_eq!(super::told(&[idle], &source, &moving(None)), [], "{used}");
    }
    let of = moving(Some(Role::Destination));
    let frames = to_router(&told, &[], &host(&[]), &of);
    let [(by, udp), (_, tcp)] = frames.as_slice() else { panic!("{frames:?}") };
    // RFC 791, 768: from 10.3.0.10 to 10.1.0.10, and nobody takes it in.
    assert_eq!((by.as_str(), &udp[..12]), ("trunk", &[2, 0x52, 0, 0, 1, 2, 2, 0x48, 0, 0, 0, 2][..]));
    assert_eq!(udp[12..28], [0x81, 0, 0, 13, 8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17]);
    assert_eq!((&udp[30..38], udp.len()), (&[10, 3, 0, 10, 10, 1, 0, 10][..], 46));
    let words = udp[18..38].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    assert_ne!(words.sum::<u32>() % 0xffff, 0, "its checksum is right");
    // RFC 8200, 9293: tagged, with a header of TCP.
    assert_eq!(tcp[12..20], [0x81, 0, 0, 11, 0x86, 0xdd, 0x60, 0]);
    assert_eq!((&tcp[22..26], tcp.len()), (&[0, 20, 6, 64][..], 18 + 40 + 20));
    // What a host of the destination's own sends comes by its port.
    let there = SWITCHED
        .replace("in_port(trunk)", "in_port(h3)")
        .replace("eth_type(0x8100),vlan(vid=11,pcp=0),encap(", "")
        .replace("dst=2/0)),", "dst=2/0),")
        .replace(
            "src=0a:03:a0:bf:36:f6,dst=02:48:00:00:00:00",
            "src=02:48:00:00:00:02,dst=02:52:00:00:01:02",
        );
    assert_eq!(to_router(&told, &[flow(&there)], &host(&[("h3", 13)]), &of), [frames[1].clone()]);
}

#[test]
fn hosts_know_the_router_under_all_its_addresses() {
    // By its own node they are hosts of, and by another one: the same, but for the address that it has already.
    let source = from_router(&[flow(ROUTED)], &host(&[("h1", 11)]), &moving(Some(Role::Source)), Some(FROM));
    let other = from_router(&[flow(SWITCHED)], &host(&[("h1", 11)]), &moving(None), None);
    let router = MacAddr([2, 0x52, 0, 0, 1, 0]);
    for frames in [source, other] {
        let heads: Vec<_> = frames.iter().map(|(port, frame)| (port.as_str(), &frame[..18])).collect();
        let of = |src: MacAddr| [&[2, 0x48, 0, 0, 0, 0][..], &src.0, &[0x81, 0, 0, 11, 8, 0]].concat();
        assert_eq!(heads, [("trunk", of(TO).as_slice()), ("trunk", of(router).as_slice())]);
    }
    // One that nothing comes by is made again: it would be gone when it is needed.
    let unused = SWITCHED.replace("used:0.1s", "used:9.990s");
    assert!(unused != SWITCHED);
    assert_eq!(from_router(&[flow(&unused)], &host(&[("h1", 11)]), &moving(None), None).len(), 3);
    // What leads to other nodes is nobody's here.
    assert!(from_router(&[flow(LOCAL)], &host(&[("h1", 11)]), &moving(None), None).is_empty());
}

#[test]
fn nothing_but_the_routers_packets_is_made_for_a_source() {
    let of = moving(Some(Role::Destination));
    let told = |vid, dst, fields: &str| Megaflow {
        vlan: vlan(vid),
        src: MacAddr([2; 6]),
        dst: MacAddr([2, 0x52, 0, 0, 1, dst]),
        fields: fields.parse().unwrap(),
    };
    let made = |flow: Megaflow| to_router(&[flow], &[], &host(&[]), &of).len();
    let fields = "eth_type(0x0800),ipv4(src=0.0.0.0/0.0.0.0,dst=10.1.0.0/255.255.0.0)";
    assert_eq!(made(told(11, 0, fields)), 1);
    // Another segment's, or no vif of this router.
    assert_eq!(made(told(12, 0, fields)) + made(told(11, 9, fields)), 0);
    for fields in [
        "eth_type(0x0800)),in_port(3",
        "eth_type(0x0800),in_port(3)",
        "ipv4(dst=10.1.0.1)",
        "eth_type(0x0800),eth_type(0x0806)",
        "eth_type(0x8100),encap(eth_type(0x0800))",
        "eth_type(0x0800),",
        "eth_type(0x0800",
        "eth_type",
    ] {
        assert_eq!(made(told(11, 0, fields)), 0, "{fields}");
    }
}

#[test]
fn what_looks_at_more_is_not_read() {
    for (from, to) in [
        ("recirc_id(0)", "recirc_id(7)"),
        ("ct_state(0/0)", "ct_state(0x2a/0x2a)"),
        ("src=02:48:00:00:00:02,", "src=02:48:00:00:00:02/01:00:00:00:00:00,"),
        ("vid=13,pcp=0", "vid=13,pcp=0/0x0"),
        ("udp(src=46297/0,dst=7001/0)", "nd(target=fe80::1)"),
        (", packets:780", ""),
        ("encap(eth_type", "encap(eth_type("),
    ] {
        let line = ROUTED.replace(from, to);
        assert!(line != ROUTED && Flow::parse(&line).is_none(), "{line}");
    }
}

#[test]
fn the_datapaths_ports_have_numbers_of_their_own() {
    let said = "system@ovs-system: hit:512 missed:8\n  br-xf:\n    br-xf 65534/1: (internal)\n    h2 2/3: (system)\n";
    assert_eq!(ports(said), Some(("ovs-system", [("br-xf", 1), ("h2", 3)].into())));
    assert_eq!(ports("netdev@ovs-netdev: hit:0 missed:0\n"), None);
}
