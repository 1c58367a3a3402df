//! The session under virtual time against a switch made of bytes.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

use bytes::{Bytes, BytesMut};
use openflow::*;
use std::time::{Duration, Instant};

fn bytes(xid: u32, message: &Message) -> Vec<u8> {
    let mut out = BytesMut::new();
    message.encode(xid, &mut out).unwrap();
    out.to_vec()
}

fn take(session: &mut Session) -> Vec<(u32, Message)> {
    let mut decoder = Decoder::new();
    while let Some(piece) = session.poll_transmit() {
        decoder.push(&piece);
    }
    std::iter::from_fn(|| decoder.next_frame().unwrap())
        .map(|f| Message::decode(&f).unwrap_or((0, other())))
        .collect()
}

fn other() -> Message {
    Message::Other { kind: 255, body: Bytes::new() }
}

fn up(now: Instant) -> Session {
    let mut session = Session::new(Config::default(), now);
    session.handle_input(&bytes(1, &Message::Hello(Hello::V15)), now).unwrap();
    let said: Vec<u8> = take(&mut session).iter().map(|(_, m)| m.kind()).collect();
    assert_eq!(said, [0, 5, 4, 9], "hello, features request, packet-in format, set-config");
    let features = Features { datapath_id: 7, n_tables: 254, ..Features::default() };
    session.handle_input(&bytes(2, &Message::FeaturesReply(features)), now).unwrap();
    assert_eq!(session.poll_event(), Some(Event::Up(features)));
    session
}

fn flow(i: u64) -> Message {
    Message::FlowMod(FlowMod::add(Flow::new(0, 1, i, Match::any())))
}

fn control(id: BundleId, kind: BundleCtrlType) -> Message {
    Message::BundleCtrl(BundleCtrl { id: id.0, kind, flags: 3 })
}

#[test]
fn nothing_but_the_handshake_before_the_switch_is_known() {
    let now = Instant::now();
    let mut session = Session::new(Config::default(), now);
    session.send(&flow(1)).unwrap();
    assert_eq!(take(&mut session).len(), 1, "hello only");
    assert_eq!(session.poll_timeout(), Some((now + Duration::from_secs(10), "handshake")));
    assert_eq!(session.handle_timeout(now + Duration::from_secs(10)), Err(SessionError::HandshakeTimeout));
}

#[test]
fn another_version_is_refused() {
    let now = Instant::now();
    for (hello, good) in [
        (Hello { version: 4, bitmap: None }, false),
        (Hello { version: 4, bitmap: Some(0x12) }, false),
        (Hello { version: 6, bitmap: Some(0x12) }, false),
        (Hello { version: 6, bitmap: None }, true),
        (Hello { version: 7, bitmap: Some(0xc0) }, true),
    ] {
        let mut session = Session::new(Config::default(), now);
        let result = session.handle_input(&bytes(1, &Message::Hello(hello)), now);
        assert_eq!(result.is_ok(), good, "{hello:?}");
        if !good {
            assert_eq!(result, Err(SessionError::Version(hello)));
            let said = take(&mut session);
            assert!(
                matches!(&said.last().unwrap().1, Message::Error(e) if e.code == ErrorCode::HELLO_INCOMPATIBLE)
            );
        }
    }
}

#[test]
fn an_echo_reply_overtakes_bulk() {
    let now = Instant::now();
    let mut session = up(now);
    for i in 0..10_000 {
        session.send(&flow(i)).unwrap();
    }
    let first = session.poll_transmit().unwrap();
    assert!(first.len() < 20_000, "a piece is small: {}", first.len());
    let echo = Message::EchoRequest(Bytes::from_static(b"x"));
    session.handle_input(&bytes(77, &echo), now).unwrap();
    let next = session.poll_transmit().unwrap();
    assert_eq!(Message::decode(&next), Ok((77, Message::EchoReply(Bytes::from_static(b"x")))));
    assert!(session.pending_output() > 400_000);
}

#[test]
fn silence_is_probed_then_given_up() {
    let now = Instant::now();
    let mut session = up(now);
    let step = Duration::from_secs(30);
    assert_eq!(session.poll_timeout(), Some((now + step, "probe")));
    session.handle_timeout(now + step / 2).unwrap();
    assert!(take(&mut session).is_empty());
    session.handle_timeout(now + step).unwrap();
    let (xid, probe) = take(&mut session).remove(0);
    assert_eq!(probe, Message::EchoRequest(Bytes::new()));
    let answered = now + step + Duration::from_secs(1);
    session.handle_input(&bytes(xid, &Message::EchoReply(Bytes::new())), answered).unwrap();
    assert_eq!(session.poll_event(), None);
    session.handle_timeout(answered + step).unwrap();
    assert_eq!(session.handle_timeout(answered + step * 2), Err(SessionError::ProbeTimeout));
}

#[test]
fn a_bundle_is_committed_after_its_close_was_answered() {
    let now = Instant::now();
    let mut session = up(now);
    let id = session.send_bundle(&[flow(1), flow(2)]).unwrap();
    let later = session.send_barrier();
    let said = take(&mut session);
    assert_eq!(said.iter().map(|(_, m)| m.kind()).collect::<Vec<_>>(), [33, 34, 34, 33]);
    let close = said[3].0;
    session.handle_input(&bytes(close, &control(id, BundleCtrlType::CloseReply)), now).unwrap();
    let said = take(&mut session);
    assert_eq!(said[0].1, control(id, BundleCtrlType::CommitRequest));
    assert_eq!((&said[1].1, &said[2]), (&Message::BarrierRequest, &(later, Message::BarrierRequest)));
    session.handle_input(&bytes(said[0].0, &control(id, BundleCtrlType::CommitReply)), now).unwrap();
    assert_eq!(session.poll_event(), None, "the barrier makes it sure");
    session.handle_input(&bytes(said[1].0, &Message::BarrierReply), now).unwrap();
    assert_eq!(session.poll_event(), Some(Event::BundleCommitted { id }));
    session.handle_input(&bytes(later, &Message::BarrierReply), now).unwrap();
    assert_eq!(session.poll_event(), Some(Event::BarrierReply { xid: later }));
}

#[test]
fn a_bundle_with_a_bad_message_is_discarded() {
    let now = Instant::now();
    let mut session = up(now);
    let id = session.send_bundle(&[flow(1), flow(2), flow(3)]).unwrap();
    let said = take(&mut session);
    let error = Error { code: ErrorCode::BAD_PREREQ, data: Bytes::new() };
    session.handle_input(&bytes(said[2].0, &Message::Error(error.clone())), now).unwrap();
    assert!(take(&mut session).is_empty(), "more errors may follow");
    session.handle_input(&bytes(said[4].0, &control(id, BundleCtrlType::CloseReply)), now).unwrap();
    let said = take(&mut session);
    assert_eq!(said[0].1, control(id, BundleCtrlType::DiscardRequest));
    session.handle_input(&bytes(said[1].0, &Message::BarrierReply), now).unwrap();
    assert_eq!(session.poll_event(), Some(Event::BundleFailed { id, errors: vec![(Some(1), error)] }));
    assert_eq!(session.pending_bundles(), 0);
}

#[test]
fn a_message_that_is_too_long_queues_nothing() {
    let now = Instant::now();
    let mut session = up(now);
    let long = Flow::new(0, 1, 1, Match::any()).apply(vec![Action::output(1); 5000]);
    let long = Message::FlowMod(FlowMod::add(long));
    assert!(matches!(session.send_bundle(&[flow(1), long.clone()]), Err(EncodeError::TooLong(_))));
    assert!(matches!(session.send(&long), Err(EncodeError::TooLong(_))));
    assert_eq!(session.pending_output(), 0);
    assert_eq!(session.pending_bundles(), 0);
    assert!(matches!(session.send_bundle(&[long]), Err(EncodeError::TooLong(_))));
    assert_eq!((session.pending_output(), session.pending_bundles()), (0, 0));
    session.send_bundle(&[flow(1), flow(2)]).unwrap();
    assert_eq!(take(&mut session).len(), 4);
}

#[test]
fn a_single_message_goes_out_with_its_barrier() {
    let now = Instant::now();
    let mut session = up(now);
    let error = Error { code: ErrorCode::BAD_PREREQ, data: Bytes::new() };
    let before = session.send(&flow(1)).unwrap();
    let good = session.send_bundle(&[flow(2)]).unwrap();
    let bad = session.send_bundle(&[flow(3)]).unwrap();
    let said = take(&mut session);
    assert_eq!(said.iter().map(|(_, m)| m.kind()).collect::<Vec<_>>(), [14, 14, 20, 14, 20]);
    for (xid, answer) in [
        (before, Message::Error(error.clone())),
        (said[2].0, Message::BarrierReply),
        (said[3].0, Message::Error(error.clone())),
        (said[4].0, Message::BarrierReply),
    ] {
        session.handle_input(&bytes(xid, &answer), now).unwrap();
    }
    let events: Vec<Event> = std::iter::from_fn(|| session.poll_event()).collect();
    let failed = Event::BundleFailed { id: bad, errors: vec![(Some(0), error.clone())] };
    let errors = Event::Error { xid: before, error };
    assert_eq!(events, [errors, Event::BundleCommitted { id: good }, failed]);
    assert_eq!(session.pending_bundles(), 0);
}

/// Not a limit, a report: `cargo test --test session -- --nocapture cost`.
#[test]
fn cost_of_a_flow_mod() {
    let flow = Flow::new(
        3,
        24,
        0x1234,
        Match::builder().metadata(7).ipv4_dst_prefix([10, 1, 2, 0].into(), 24).build(),
    )
    .apply([Action::set_field(Field::Reg(0), 99)])
    .goto(4);
    let m = FlowMod::add(flow);
    let mut out = BytesMut::with_capacity(64 << 20);
    let start = Instant::now();
    for i in 0..100_000 {
        encode_flow_mod(&m, i, &mut out).unwrap();
    }
    let each = start.elapsed() / 100_000;
    println!("{} bytes, {each:?} each", out.len() / 100_000);
    assert_eq!(out.len() % 100_000, 0);
}
