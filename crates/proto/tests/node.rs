//! What two nodes say to each other: golden files never change, anything encodable decodes to itself, and no bytes panic.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use xenflow_proto::frame::{FrameDecoder, MAX_FRAME};
use xenflow_proto::fuzz;
use xenflow_proto::node::{
    DestinationMessage, Held, Hello, MAX_FRAME_BYTES, MAX_MEGAFLOWS, MAX_PUNTS, Megaflow, MegaflowFields,
    Punt, PuntKind, RefusalReason, SourceMessage, VERSION, Welcome,
};
use xenflow_proto::{Change, Digest, Key, MacAddr, Seq, VlanId};

use support::{check_golden, corpus, unhex};

mod support;

const DIGEST: Digest = Digest { objects: 1_000_000, sum: u64::MAX - 1 };

fn punt(vif: u16, kind: PuntKind, len: usize) -> Punt {
    Punt { vif, kind, frame: Bytes::from(vec![0xa5; len]) }
}

fn samples() -> Vec<(&'static str, SourceMessage)> {
    vec![
        (
            "node-hello",
            SourceMessage::Hello(Hello {
                versions: vec![VERSION],
                node: "a".parse().unwrap(),
                migration: 7,
                router: "r1".parse().unwrap(),
                stream: u64::MAX,
                agent: "xenflow-dom0 0.1.0".into(),
            }),
        ),
        ("node-snapshot-begin", SourceMessage::SnapshotBegin { seq: Seq(1), boot_id: *b"0123456789abcdef" }),
        ("node-resume", SourceMessage::Resume(Seq(1))),
        (
            "node-changes",
            SourceMessage::Changes { seq: Seq(2), changes: vec![Change::Remove(Key::NextHop(7))] },
        ),
        ("node-snapshot-end", SourceMessage::SnapshotEnd { seq: Seq(3), digest: DIGEST }),
        (
            "node-punts",
            SourceMessage::Punts {
                first: 300,
                punts: vec![
                    punt(1, PuntKind::Copy, 14),
                    punt(4095, PuntKind::Punt, 60),
                    punt(2, PuntKind::Late, 15),
                ],
            },
        ),
        ("node-end-mark", SourceMessage::EndMark(302)),
        (
            "node-megaflows",
            SourceMessage::Megaflows(vec![Megaflow {
                vlan: 11.try_into().unwrap(),
                src: MacAddr([2, 0, 0, 0, 0, 1]),
                dst: MacAddr([2, 0, 0, 0, 0, 2]),
                fields: "eth_type(0x0800),ipv4(dst=10.1.0.0/255.255.0.0,ttl=64)".parse().unwrap(),
            }]),
        ),
        ("node-ping", SourceMessage::Ping(1)),
        ("node-pong", SourceMessage::Pong(u64::MAX)),
    ]
}

fn answers() -> Vec<(&'static str, DestinationMessage)> {
    let welcome = |next_seq, next_punt, held, megaflows| {
        DestinationMessage::Welcome(Welcome {
            version: 1,
            node: "b".parse().unwrap(),
            max_frame_bytes: 1 << 20,
            max_changes: 4096,
            window: 16,
            next_seq: Seq(next_seq),
            next_punt,
            held,
            megaflows,
        })
    };
    vec![
        ("node-welcome", welcome(1, 1, None, false)),
        (
            "node-welcome-back",
            welcome(5, 303, Some(Held { boot_id: *b"0123456789abcdef", digest: DIGEST }), false),
        ),
        ("node-welcome-megaflows", welcome(1, 1, None, true)),
        ("node-ack", DestinationMessage::Ack(Seq(4))),
        ("node-staged", DestinationMessage::Staged { seq: Seq(3), digest: DIGEST }),
        ("node-given", DestinationMessage::Given(302)),
        (
            "node-refusal",
            DestinationMessage::Refusal {
                reason: RefusalReason::UnknownMigration,
                detail: "migration 7 is over".into(),
            },
        ),
        ("node-answer-ping", DestinationMessage::Ping(0)),
        ("node-answer-pong", DestinationMessage::Pong(3)),
    ]
}

fn contents(encoded: &[u8]) -> Bytes {
    let mut decoder = FrameDecoder::new(MAX_FRAME);
    decoder.buffer().extend_from_slice(encoded);
    decoder.next_frame().unwrap().unwrap()
}

#[test]
fn golden_files_hold() {
    for (name, message) in samples() {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        check_golden(name, &out);
        assert_eq!(SourceMessage::decode(contents(&out)).unwrap(), message);
    }
    for (name, message) in answers() {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        check_golden(name, &out);
        assert_eq!(DestinationMessage::decode(contents(&out)).unwrap(), message);
    }
}

#[test]
fn the_longest_punts_fit_a_frame() {
    let punts = vec![punt(4095, PuntKind::Late, MAX_FRAME_BYTES); MAX_PUNTS];
    let message = SourceMessage::Punts { first: 1, punts };
    let mut out = BytesMut::new();
    message.encode(&mut out);
    assert_eq!(SourceMessage::decode(contents(&out)).unwrap(), message);
}

#[test]
fn the_longest_megaflows_fit_a_frame() {
    let flow = Megaflow {
        vlan: VlanId::MIN,
        src: MacAddr([2; 6]),
        dst: MacAddr([4; 6]),
        fields: "f".repeat(MegaflowFields::MAX).parse().unwrap(),
    };
    let message = SourceMessage::Megaflows(vec![flow; MAX_MEGAFLOWS]);
    let mut out = BytesMut::new();
    message.encode(&mut out);
    assert_eq!(SourceMessage::decode(contents(&out)).unwrap(), message);
    for text in ["", "ipv4(dst=1.2.3.4) actions", "a\n", "A", &"f".repeat(MegaflowFields::MAX + 1)] {
        assert!(text.parse::<MegaflowFields>().is_err(), "{text:?}");
    }
}

#[test]
fn corpus_is_accepted_as_named() {
    let files = corpus("corpus-node");
    assert!(files.len() >= 6, "{} files", files.len());
    for (name, data, accepted) in files {
        assert_eq!(fuzz::source_stream(&data), accepted, "{name}");
        fuzz::destination_stream(&data);
    }
}

#[test]
fn refusals_name_the_field_and_the_value() {
    // A frame's contents in protobuf, by hand: field 6 (punts) of length n …
    let frame = "1a0e a5a5a5a5a5a5a5a5a5a5a5a5a5a5";
    let cases = [
        (String::new(), "body of the message is missing or of a kind unknown to this version"),
        (
            "0a05 12 03 2e2e2e".into(),
            "\"...\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit",
        ),
        ("1205 1203 010203".into(), "boot_id has 3 bytes, not 16"),
        ("2a02 0803".into(), "digest is missing or of a kind unknown to this version"),
        ("3202 0801".into(), "punts is missing or of a kind unknown to this version"),
        (format!("3218 0801 1214 0801 1002 {frame}"), ""),
        (format!("3216 1214 0801 1002 {frame}"), "first is 0, not 1 or more"),
        (format!("3216 0801 1212 1002 {frame}"), "vif is 0, not 1 to 4095"),
        (format!("3219 0801 1215 088020 1002 {frame}"), "vif is 4096, not 1 to 4095"),
        (
            format!("3216 0801 1212 0801 {frame}"),
            "kind of a punt is missing or of a kind unknown to this version",
        ),
        (
            format!("3218 0801 1214 0801 1004 {frame}"),
            "kind of a punt is missing or of a kind unknown to this version",
        ),
        ("3209 0801 1205 0801 1002 1a00".into(), "malformed message"),
        ("320a 0801 1206 0801 1002 1a00".into(), "frame has 0 bytes, not 14 to 9216"),
    ];
    for (code, want) in cases {
        match SourceMessage::decode(unhex(&code).into()) {
            Ok(_) => assert_eq!(want, "", "{code} is taken"),
            Err(error) => assert_eq!(error.to_string(), want, "{code}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz::source_stream(&data);
        fuzz::destination_stream(&data);
    }

    /// Damaged messages get further into the decoder than noise does.
    #[test]
    fn no_damage_panics(which in 0usize..17, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut out = BytesMut::new();
        let (samples, answers) = (samples(), answers());
        match samples.get(which) {
            Some((_, message)) => message.encode(&mut out),
            None => answers[which - samples.len()].1.encode(&mut out),
        }
        let index = at.index(out.len());
        out[index] = byte;
        out.truncate(cut.index(out.len()) + 1);
        fuzz::source_stream(&out);
        // and with a header that fits, so that the damage is in the message
        if out.len() > 4 {
            let len = u32::try_from(out.len() - 4).unwrap();
            out[..4].copy_from_slice(&len.to_be_bytes());
            fuzz::source_stream(&out);
            fuzz::destination_stream(&out);
        }
    }
}
