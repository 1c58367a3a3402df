//! Any bytes are read without a panic, and what is read and can be written is read again as the same value.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

use bytes::BytesMut;
use openflow::*;
use proptest::prelude::*;

fn samples() -> Vec<Vec<u8>> {
    let learn = Learn { limit: 3, specs: vec![LearnSpec::same(Field::EthSrc)], ..Learn::default() };
    let flow = Flow::new(1, 2, 3, Match::builder().vlan(7).eth_type(0x86dd).reg_masked(3, 1, 3).build())
        .apply([
            Action::Learn(Box::new(learn)),
            Action::Clone([Action::set_masked(Field::Xxreg(1), 5, 7), Action::resubmit(3)].into()),
            Action::CheckPktLarger { len: 1500, dst: (Field::Reg(1), 1) },
            Action::Controller(Box::new(action::Controller {
                userdata: [1, 2, 3].into(),
                ..Default::default()
            })),
        ])
        .write_metadata(1, 3)
        .goto(9);
    let flow = Message::FlowMod(FlowMod::add(flow));
    let group = Group {
        id: 2,
        kind: GroupType::Select,
        buckets: vec![Bucket::weighted(1, 1, [Action::output(1)])],
        selection: Some(Selection::hash([Field::Ipv4Dst])),
    };
    let mut all: Vec<Vec<u8>> = [
        flow.clone(),
        Message::BundleAdd(BundleAdd { id: 1, flags: 3, message: Box::new(flow) }),
        Message::GroupMod(GroupMod::new(GroupCommand::Add, group)),
        Message::MeterMod(MeterMod::new(MeterCommand::Add, Meter::drop_kbps(1, 2, 3))),
        Message::Hello(Hello::V15),
        Message::Error(Error { code: ErrorCode::BAD_PREREQ, data: vec![1, 2, 3].into() }),
    ]
    .iter()
    .map(|m| {
        let mut out = BytesMut::new();
        m.encode(7, &mut out).unwrap();
        out.to_vec()
    })
    .collect();
    // From a switch: flow description, group description, port description, packet-ins, flow-removed.
    for hex in [
        "0613004000000009 0001000000000000 00300000 0100 0002 0000 0000 0000 0000 0000000000000003 0001 0004 00000000 8000 0010 80020808 0000000000000005",
        "0613003800000009 0007000000000000 0028 0100 00000002 0018 000000000000 0018 0010 00000001 0000001000000001 0000 000000000000",
        "060c005000000000 0000000000000000 00000001 0048 0000 020000000001 0000 70310000000000000000000000000000 00000000 00000004 0000 0020 00000000 00000000 00000000 00000000 00000000 00989680 00989680",
        "060a002a00000000 ffffffff 0000 01 00 0000000000000abc 0001 000c 80000004 00000002 00000000 0000",
        "0604003800000000 00002320 0000001e 0000 0012 6666666666666666666666666666 000000000000 0003 0005 00000000 0007 0007 07080900",
        "060b003800000000 03020009 00000000 0000000000000077 0001 0004 00000000 0000 0010 80020808 0000000000000000",
    ] {
        let digits: Vec<u8> = hex.bytes().filter(|b| *b != b' ').collect();
        let mut bytes: Vec<u8> = digits
            .chunks(2)
            .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
            .collect();
        let len = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        bytes[2..4].copy_from_slice(&len);
        all.push(bytes);
    }
    all
}

fn check(bytes: &[u8]) {
    let Ok((xid, message)) = Message::decode(bytes) else { return };
    let mut out = BytesMut::new();
    match message.encode(xid, &mut out) {
        Ok(()) => assert_eq!(Message::decode(&out), Ok((xid, message))),
        Err(EncodeError::SwitchOnly(_)) => {}
        // A canonical form may be longer than the bytes it was read from (registers are widened).
        Err(EncodeError::TooLong(_)) => {}
        Err(e) => panic!("{e}"),
    }
}

fn fix_len(bytes: &mut [u8]) {
    let len = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    if let Some(slot) = bytes.get_mut(2..4) {
        slot.copy_from_slice(&len);
    }
}

#[test]
fn truncations() {
    for sample in samples() {
        check(&sample);
        for n in 0..sample.len() {
            let mut cut = sample[..n].to_vec();
            check(&cut);
            fix_len(&mut cut);
            check(&cut);
        }
    }
}

#[test]
fn single_byte_changes() {
    for sample in samples() {
        for at in 0..sample.len() {
            for value in [0, 1, 4, 7, 8, 16, 0x7f, 0x80, 0xfe, 0xff] {
                let mut changed = sample.clone();
                changed[at] = value;
                check(&changed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(mut bytes in prop::collection::vec(any::<u8>(), 8..200), kind in 0u8..36) {
        bytes[0] = VERSION;
        bytes[1] = kind;
        fix_len(&mut bytes);
        check(&bytes);
    }

    #[test]
    fn random_changes(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let all = samples();
        let mut bytes = all[which.index(all.len())].clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut.index(3) == 0 {
            bytes.truncate(8 + cut.index(bytes.len() - 7));
        }
        fix_len(&mut bytes);
        check(&bytes);
    }

    #[test]
    fn matches_have_one_form(
        parts in prop::collection::vec((any::<prop::sample::Index>(), any::<(u128, u128)>()), 0..8),
    ) {
        let fields: Vec<Field> = Field::every().filter(|f| *f != Field::VlanTci && *f != Field::InPortNxm).collect();
        // Each part of the packet once: registers of the three widths overlap.
        let mut seen = Vec::new();
        let parts: Vec<(Field, u128, u128)> = parts
            .into_iter()
            .map(|(i, (value, mask))| (fields[i.index(fields.len())], value, mask))
            .filter(|(f, ..)| {
                let part = match *f {
                    Field::Reg(n) => (true, n / 4),
                    Field::Xreg(n) => (true, n / 2),
                    Field::Xxreg(n) => (true, n),
                    _ => (false, u8::try_from(fields.iter().position(|g| g == f).unwrap()).unwrap()),
                };
                let new = !seen.contains(&part);
                seen.push(part);
                new
            })
            .collect();
        let add = |b: MatchBuilder, &(f, v, m): &(Field, u128, u128)| b.masked(f, v, m);
        let forward = parts.iter().fold(Match::builder(), add).build();
        let backward = parts.iter().rev().fold(Match::builder(), add).build();
        prop_assert_eq!(&forward, &backward);
        prop_assert!(!forward.has_unknown());
        let message = Message::FlowMod(FlowMod::add(Flow::new(0, 0, 0, forward)));
        let mut out = BytesMut::new();
        message.encode(1, &mut out).unwrap();
        prop_assert_eq!(Message::decode(&out), Ok((1, message)));
    }

    #[test]
    fn random_streams(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let now = std::time::Instant::now();
        let mut session = Session::new(Config::default(), now);
        for chunk in &chunks {
            if session.handle_input(chunk, now).is_err() {
                break;
            }
        }
        while session.poll_transmit().is_some() {}
    }

    #[test]
    fn framing_does_not_depend_on_the_pieces(cuts in prop::collection::vec(1usize..90, 1..40)) {
        let stream: Vec<u8> = samples().concat();
        let mut decoder = Decoder::new();
        let mut got = Vec::new();
        let mut rest = stream.as_slice();
        for cut in cuts.into_iter().chain([stream.len()]) {
            let (head, tail) = rest.split_at(cut.min(rest.len()));
            rest = tail;
            decoder.push(head);
            while let Some(frame) = decoder.next_frame().unwrap() {
                got.push(frame.to_vec());
            }
        }
        prop_assert_eq!(got, samples());
    }
}

/// The samples from a switch really are what they are meant to be.
#[test]
fn samples_are_read() {
    let kinds: Vec<u8> = samples().iter().map(|s| Message::decode(s).unwrap().1.kind()).collect();
    assert_eq!(kinds, [14, 34, 15, 29, 0, 1, 19, 19, 12, 10, 10, 11]);
}
