//! The wire format holds: golden files never change, anything encodable decodes to itself, and no bytes panic.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use bytes::BytesMut;
use proptest::prelude::*;
use xenflow_proto::frame::FrameDecoder;
use xenflow_proto::fuzz;
use xenflow_proto::message::{GuestMessage, Hello, HostMessage, RefusalReason, Renewed, Welcome};
use xenflow_proto::table::*;
use xenflow_proto::{Change, Digest, Key, MacAddr, Object, Seq};

use support::{check_golden, corpus, unhex};

mod support;

fn samples() -> Vec<(&'static str, GuestMessage)> {
    let hop = |gateway: Option<&str>, oif, weight| Hop {
        gateway: gateway.map(|g| g.parse().unwrap()),
        oif: Some(oif),
        weight,
        flags: HopFlags(HopFlags::ONLINK),
        encap: false,
    };
    let route_key = |dst: &str| RouteKey { table: TABLE_MAIN, dst: dst.parse().unwrap(), tos: 0, metric: 20 };
    let neighbor = NeighborKey { ifindex: 3, addr: "10.0.0.7".parse().unwrap() };
    let upserts = vec![
        Object::Link(Link {
            ifindex: 3,
            name: "eth1".into(),
            mac: Some(MacAddr([0x52, 0x54, 0, 0, 0, 1])),
            mtu: 1500,
            up: true,
            running: true,
            kind: String::new(),
            master: Some(9),
            vrf_table: None,
            ipv6_mtu: None,
        }),
        Object::Address(AddressKey { ifindex: 3, address: "10.0.0.1/24".parse().unwrap() }),
        Object::Route(Route {
            key: route_key("10.9.0.0/16"),
            kind: RouteKind::Unicast,
            protocol: 188,
            scope: 0,
            target: RouteTarget::Hops(vec![hop(Some("10.0.0.7"), 3, 1), hop(Some("fe80::7"), 4, 3)]),
            mtu: Some(1400),
        }),
        Object::Route(Route {
            key: route_key("2001:db8::/32"),
            kind: RouteKind::Blackhole,
            protocol: 3,
            scope: 0,
            target: RouteTarget::NextHop(77),
            mtu: None,
        }),
        Object::NextHop(NextHop { id: 7, kind: NextHopKind::Single(hop(None, 3, 1)) }),
        Object::NextHop(NextHop { id: 77, kind: NextHopKind::Group(vec![(7, 1), (8, 256)]) }),
        Object::NextHop(NextHop { id: 8, kind: NextHopKind::Blackhole }),
        Object::NextHop(NextHop { id: 9, kind: NextHopKind::Unsupported }),
        Object::Neighbor(Neighbor { key: neighbor, mac: MacAddr([0x52, 0x54, 0, 0, 0, 2]) }),
    ];
    let facts = vec![
        Object::Link(Link {
            ifindex: 4,
            name: "eth2".into(),
            mac: None,
            mtu: 1500,
            up: true,
            running: false,
            kind: "vrf".into(),
            master: None,
            vrf_table: Some(10),
            ipv6_mtu: Some(1280),
        }),
        Object::Settings(Settings { ipv4_hash_policy: 1, ipv6_hash_policy: 3 }),
        Object::Obstacle(Obstacle {
            key: ObstacleKey { ifindex: None, family: Some(Family::V4), kind: ObstacleKind::Rules },
            detail: "100: from 10.0.0.0/8 lookup 7".into(),
        }),
        Object::Obstacle(Obstacle {
            key: ObstacleKey { ifindex: Some(3), family: None, kind: ObstacleKind::Other(200) },
            detail: String::new(),
        }),
    ];
    let mut fact_changes: Vec<Change> = facts.iter().map(|object| Change::Remove(object.key())).collect();
    fact_changes.extend(facts.into_iter().map(Change::Upsert));
    let removals = upserts.iter().map(|object| Change::Remove(object.key())).collect();
    vec![
        (
            "hello",
            GuestMessage::Hello(Hello {
                versions: vec![1, 2],
                router: "r1".parse().unwrap(),
                boot_id: *b"0123456789abcdef",
                agent: "xenflow-guest 0.1.0".into(),
            }),
        ),
        ("snapshot-begin", GuestMessage::SnapshotBegin(Seq(1))),
        (
            "upserts",
            GuestMessage::Changes { seq: Seq(2), changes: upserts.into_iter().map(Change::Upsert).collect() },
        ),
        ("removals", GuestMessage::Changes { seq: Seq(3), changes: removals }),
        ("facts", GuestMessage::Changes { seq: Seq(4), changes: fact_changes }),
        ("resume", GuestMessage::Resume(Seq(1))),
        ("renew", GuestMessage::Renew),
        ("snapshot-end", GuestMessage::SnapshotEnd(Seq(4))),
        ("ping", GuestMessage::Ping(u64::MAX)),
        ("pong", GuestMessage::Pong(0)),
    ]
}

fn host_samples() -> Vec<(&'static str, HostMessage)> {
    vec![
        (
            "welcome",
            HostMessage::Welcome(Welcome {
                version: 1,
                node: "a".parse().unwrap(),
                max_frame_bytes: 1 << 20,
                max_changes: 4096,
                window: 64,
                held: None,
            }),
        ),
        (
            "welcome-back",
            HostMessage::Welcome(Welcome {
                version: 1,
                node: "b".parse().unwrap(),
                max_frame_bytes: 1 << 20,
                max_changes: 4096,
                window: 64,
                held: Some(Digest { objects: 1_000_000, sum: u64::MAX - 1 }),
            }),
        ),
        (
            "ack",
            HostMessage::Ack {
                seq: Seq(300),
                rejected: vec![(Key::NextHop(5), "over the limit of 10 routes".into())],
                accepted: vec![],
            },
        ),
        (
            "ack-accepted",
            HostMessage::Ack {
                seq: Seq(301),
                rejected: vec![],
                accepted: vec![Key::NextHop(5), Key::Settings],
            },
        ),
        ("in-use", HostMessage::InUse(vec![NeighborKey { ifindex: 3, addr: "fe80::7".parse().unwrap() }])),
        (
            "renewed",
            HostMessage::Renewed(Renewed { chain: vec![vec![0x30, 1, 0]], anchors: vec![vec![0x30, 0]; 2] }),
        ),
        ("refusal", HostMessage::Refusal { reason: RefusalReason::Identity, detail: "r2 is not r1".into() }),
        ("host-ping", HostMessage::Ping(1)),
        ("host-pong", HostMessage::Pong(1)),
    ]
}

#[test]
fn golden_files_hold() {
    for (name, message) in samples() {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        check_golden(name, &out);
        let mut decoder = FrameDecoder::new(usize::MAX);
        decoder.buffer().extend_from_slice(&out);
        assert_eq!(GuestMessage::decode(decoder.next_frame().unwrap().unwrap()).unwrap(), message);
    }
    for (name, message) in host_samples() {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        check_golden(name, &out);
        let mut decoder = FrameDecoder::new(usize::MAX);
        decoder.buffer().extend_from_slice(&out);
        assert_eq!(HostMessage::decode(decoder.next_frame().unwrap().unwrap()).unwrap(), message);
    }
}

#[test]
fn corpus_is_accepted_as_named() {
    let files = corpus("corpus");
    assert!(files.len() >= 8, "{} files", files.len());
    for (name, data, accepted) in files {
        assert_eq!(fuzz::guest_stream(&data), accepted, "{name}");
        fuzz::host_stream(&data);
    }
}

#[test]
fn refusals_name_the_field_and_the_value() {
    // A frame's contents in protobuf, by hand: field 3 (changes) of length n …
    let cases: &[(&str, &str)] = &[
        ("", "body of the message is missing or of a kind unknown to this version"),
        ("0a05 12 03 2e2e2e", "\"...\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit"),
        ("0a06 12 02 7231 1a00", "boot_id has 0 bytes, not 16"),
        ("1a04 12 02 1200", "kind of a key is missing or of a kind unknown to this version"),
        ("1a06 12 04 1202 0800", "ifindex is 0, not 1 or more"),
        ("1a02 1200", "op of a change is missing or of a kind unknown to this version"),
        ("1a0c", "malformed message"),
    ];
    for (code, want) in cases {
        let error = GuestMessage::decode(unhex(code).into()).unwrap_err();
        assert_eq!(error.to_string(), *want, "{code}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz::guest_stream(&data);
        fuzz::host_stream(&data);
    }

    /// Damaged messages get further into the decoder than noise does.
    #[test]
    fn no_damage_panics(which in 0usize..10, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut out = BytesMut::new();
        samples()[which].1.encode(&mut out);
        let index = at.index(out.len());
        out[index] = byte;
        out.truncate(cut.index(out.len()) + 1);
        fuzz::guest_stream(&out);
        // and with a header that fits, so that the damage is in the message
        if out.len() > 4 {
            let len = u32::try_from(out.len() - 4).unwrap();
            out[..4].copy_from_slice(&len.to_be_bytes());
            fuzz::guest_stream(&out);
            fuzz::host_stream(&out);
        }
    }
}
