//! Zebra's side of the client without a zebra: its bytes as they were captured, what it is answered and when, and
//! bytes that no zebra sends.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::BytesMut;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol};
use proptest::prelude::*;
use xenflow_guest_client::fpm::fuzz;
use xenflow_guest_client::fpm::table::Table;
use xenflow_guest_client::fpm::wire::{Answer, Asked, Decoder, WireError, Word, words};
use xenflow_guest_client::mirror::{Limits, Mirror};
use xenflow_guest_client::rejected::Rejected;
use xenflow_guest_client::session::Acked;
use xenflow_guest_client::translate::{Event, Place};
use xenflow_proto::table::{
    Hop, HopFlags, Link, NextHop, NextHopKind, Route, RouteKey, RouteKind, RouteTarget,
};
use xenflow_proto::{Key, Object, Seq};

const NOW: Duration = Duration::ZERO;
/// zebra 10.3: `203.0.113.0/28 via 10.1.0.2 dev 2`, protocol bgp, metric 20, table main.
const PUT: &str = "01010040 3c000000 18000105 00000000 600d02ac 021c0000feba0001 00000000 \
                   08000100cb007100 0800060014000000 080005000a010002 0800040002000000";
/// The same zebra, when the route went.
const GONE: &str = "01010030 2c000000 19000104 00000000 600d02ac 021c0000feba0000 00000000 \
                    08000100cb007100 0800060014000000";

fn unhex(text: &str) -> Vec<u8> {
    let lines = text.lines().flat_map(|line| line.split('#').next().unwrap().bytes());
    let digits: Vec<u8> = lines.filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn heard(bytes: &[u8]) -> Result<Vec<Word>, WireError> {
    let mut decoder = Decoder::default();
    decoder.buffer().extend_from_slice(bytes);
    let mut all = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        for word in words(&frame) {
            all.push(word?);
        }
    }
    Ok(all)
}

fn key(table: u32, dst: &str) -> RouteKey {
    RouteKey { table, dst: dst.parse().unwrap(), tos: 0, metric: 20 }
}

fn asked(key: RouteKey) -> Asked {
    Asked { key, protocol: 186, kind: 1 }
}

#[test]
fn what_zebra_sends_is_understood() {
    let route = asked(key(254, "203.0.113.0/28"));
    assert_eq!(heard(&unhex(PUT)), Ok(vec![Word::Put(route)]));
    assert_eq!(heard(&unhex(GONE)), Ok(vec![Word::Gone(route.prefix())]));
    // Started with --routing-table=0, it calls the main table so.
    assert_eq!(heard(&unhex(&PUT.replace("feba", "00ba"))), Ok(vec![Word::Put(route)]));
    // What it heard from the kernel itself: connected routes.
    assert_eq!(heard(&unhex(&PUT.replace("feba", "fe02"))), Ok(vec![]));
    // A change without "route replace" is one frame with both.
    let both = unhex(&format!("0101006c {} {}", &GONE[8..], &PUT[8..]));
    assert_eq!(heard(&both), Ok(vec![Word::Gone(route.prefix()), Word::Put(route)]));
}

#[test]
fn a_stream_in_pieces_is_the_same_stream() {
    let bytes = unhex(&format!("{PUT} {GONE} {PUT}"));
    for size in 1..bytes.len() {
        let mut decoder = Decoder::default();
        let mut frames = 0;
        for piece in bytes.chunks(size) {
            decoder.buffer().extend_from_slice(piece);
            while decoder.next_frame().unwrap().is_some() {
                frames += 1;
            }
        }
        assert_eq!(frames, 3, "in pieces of {size}");
    }
}

#[test]
fn what_is_no_zebra_is_refused() {
    for (hex, error) in [
        ("02010040", WireError::Version(2)),
        ("01020040", WireError::Kind(2)),
        ("01010003", WireError::Length(3)),
    ] {
        assert_eq!(heard(&unhex(hex)), Err(error));
    }
    // A message that is longer than its frame, and a prefix of 33 bits.
    assert!(matches!(heard(&unhex(&PUT.replace("3c000000", "40000000"))), Err(WireError::Message(_))));
    assert!(matches!(heard(&unhex(&PUT.replace("021c0000", "02210000"))), Err(WireError::Message(_))));
}

/// Reads an answer with the independent decoder.
fn read(answer: &Answer) -> RouteMessage {
    let mut out = BytesMut::new();
    answer.encode(&mut out);
    let (header, message) = out.split_at(4);
    assert_eq!(header[..2], [1, 1]);
    assert_eq!(usize::from(u16::from_be_bytes([header[2], header[3]])), out.len());
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).unwrap();
    // NLM_F_REQUEST: zebra skips anything else.
    assert_eq!(message.header.flags, 1);
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = message.payload else {
        panic!("this is no route: {out:?}");
    };
    route
}

#[test]
fn answers_are_what_zebra_reads() {
    let v4 = read(&Answer { asked: asked(key(254, "203.0.113.0/28")), vrf: 0, offloaded: true });
    assert_eq!((v4.header.table, v4.header.destination_prefix_length), (0, 28));
    assert_eq!((v4.header.protocol, v4.header.flags), (RouteProtocol::Bgp, RouteFlags::RtOffload));
    assert!(
        v4.attributes.contains(&RouteAttribute::Destination(
            "203.0.113.0".parse::<std::net::Ipv4Addr>().unwrap().into()
        ))
    );
    assert!(v4.attributes.contains(&RouteAttribute::Priority(20)));
    let v6 = read(&Answer { asked: asked(key(1001, "2001:db8::/32")), vrf: 300, offloaded: false });
    assert_eq!(v6.header.flags, RouteFlags::OffloadFailed);
    assert!(v6.attributes.contains(&RouteAttribute::Table(300)));
    let small = read(&Answer { asked: asked(key(1001, "2001:db8::/32")), vrf: 255, offloaded: false });
    assert_eq!(small.header.table, 255);
}

/// A guest's mirror, and a host that takes what it is told when the test says so.
struct Guest {
    mirror: Mirror,
    untold: u64,
    rejected: Rejected,
    table: Table,
}

impl Guest {
    fn new() -> Self {
        let mut guest = Self {
            mirror: Mirror::new(&[7; 16]),
            untold: 0,
            rejected: Rejected::default(),
            table: Table::default(),
        };
        guest.session();
        guest.acked(&[], &[]);
        guest
    }

    fn kernel(&mut self, key: RouteKey, oif: u32) {
        let hop = Hop { gateway: None, oif: Some(oif), weight: 1, flags: HopFlags(0), encap: false };
        let target = RouteTarget::Hops(vec![hop]);
        let route = Route { key, kind: RouteKind::Unicast, protocol: 186, scope: 0, target, mtu: None };
        let _ = self.mirror.apply(Event::Route(route, Place::Replaced), NOW);
    }

    fn zebra(&mut self, route: RouteKey) {
        let mut decoder = Decoder::default();
        Answer { asked: asked(route), vrf: route.table, offloaded: false }.encode(decoder.buffer());
        self.table.hear(&mut decoder).unwrap();
    }

    /// A new session, whose snapshot is sent.
    fn session(&mut self) {
        self.mirror.begin(None, NOW);
        self.rejected.session_began();
        self.untold = 1;
        self.tell();
        self.mirror.end();
        self.untold += 1;
    }

    /// Sends what the host does not know.
    fn tell(&mut self) {
        while self.mirror.take(Limits { changes: 10, bytes: 10_000 }).is_some() {
            self.untold += 1;
        }
    }

    /// The host acknowledges all that was sent.
    fn acked(&mut self, rejected: &[RouteKey], accepted: &[RouteKey]) {
        let messages = std::mem::take(&mut self.untold);
        self.acked_some(messages, rejected, accepted);
    }

    fn acked_some(&mut self, messages: u64, rejected: &[RouteKey], accepted: &[RouteKey]) {
        let step = self.mirror.acknowledge(messages);
        let rejected: Vec<_> = rejected.iter().map(|key| (Key::Route(*key), "no room".to_owned())).collect();
        let no: BTreeSet<_> = rejected.iter().map(|(key, _)| key.clone()).collect();
        let step = Acked {
            seq: Seq(1),
            oldest: step.oldest,
            changes: step.changes,
            confirmed: step.keys.into_iter().filter(|key| !no.contains(key)).collect(),
            whole: step.whole,
            rejected,
            accepted: accepted.iter().map(|key| Key::Route(*key)).collect(),
        };
        self.rejected.acknowledged(&step);
        self.table.acknowledged(&step);
    }

    /// What zebra is told now: prefixes, and whether they are offloaded.
    fn answers(&mut self) -> Vec<(String, bool)> {
        let answers = std::iter::from_fn(|| self.table.answer(&self.mirror, &self.rejected));
        answers.map(|answer| (answer.asked.key.dst.to_string(), answer.offloaded)).collect()
    }
}

fn yes(dst: &str) -> Vec<(String, bool)> {
    vec![(dst.to_owned(), true)]
}

fn no(dst: &str) -> Vec<(String, bool)> {
    vec![(dst.to_owned(), false)]
}

const DST: &str = "203.0.113.0/28";

#[test]
fn a_route_is_offloaded_once_the_switch_has_it() {
    let (mut guest, route) = (Guest::new(), key(254, DST));
    guest.zebra(route);
    assert_eq!(guest.answers(), []);
    guest.kernel(route, 2);
    guest.tell();
    assert_eq!(guest.answers(), []);
    guest.acked(&[], &[]);
    assert_eq!(guest.answers(), yes(DST));
    assert_eq!(guest.answers(), []);
    // A zebra that comes later, or says it again, is answered at once.
    guest.table.clear();
    guest.zebra(route);
    assert_eq!(guest.answers(), yes(DST));
    // Not so if the kernel has another route by then.
    guest.kernel(route, 3);
    guest.zebra(route);
    assert_eq!(guest.answers(), []);
    guest.tell();
    guest.acked(&[], &[]);
    assert_eq!(guest.answers(), yes(DST));
}

/// Zebra changes a next-hop object without its routes, and says that these are others now.
#[test]
fn a_route_is_not_offloaded_before_its_next_hops() {
    let (mut guest, route) = (Guest::new(), key(254, DST));
    let hop = Hop { gateway: None, oif: Some(2), weight: 1, flags: HopFlags(0), encap: false };
    let object = |id, kind| Event::Upsert(Object::NextHop(NextHop { id, kind }));
    let target = RouteTarget::NextHop(9);
    let by = Route { key: route, kind: RouteKind::Unicast, protocol: 186, scope: 0, target, mtu: None };
    let said = [
        object(7, NextHopKind::Single(hop)),
        object(9, NextHopKind::Group(vec![(7, 1)])),
        Event::Route(by, Place::Replaced),
    ];
    for event in said {
        let _ = guest.mirror.apply(event, NOW);
    }
    guest.zebra(route);
    guest.tell();
    guest.acked(&[], &[]);
    assert_eq!(guest.answers(), yes(DST));
    for changed in [
        object(7, NextHopKind::Single(Hop { oif: Some(3), ..hop })),
        object(9, NextHopKind::Group(vec![(7, 2)])),
    ] {
        let _ = guest.mirror.apply(changed, NOW);
        guest.zebra(route);
        assert_eq!(guest.answers(), [], "before it is told");
        guest.tell();
        guest.zebra(route);
        assert_eq!(guest.answers(), [], "before it is confirmed");
        guest.acked(&[], &[]);
        assert_eq!(guest.answers(), yes(DST));
    }
}

#[test]
fn an_older_acknowledgement_does_not_count() {
    let (mut guest, route) = (Guest::new(), key(254, DST));
    guest.kernel(route, 2);
    guest.tell();
    guest.kernel(route, 3);
    guest.zebra(route);
    guest.acked(&[], &[]);
    assert_eq!(guest.answers(), [], "the switch has what was there before");
    guest.tell();
    guest.acked(&[], &[]);
    assert_eq!(guest.answers(), yes(DST));
}

#[test]
fn a_rejected_route_fails_until_it_is_accepted() {
    let (mut guest, route) = (Guest::new(), key(254, DST));
    guest.kernel(route, 2);
    guest.zebra(route);
    guest.tell();
    guest.acked(&[route], &[]);
    assert_eq!(guest.answers(), no(DST));
    guest.acked(&[], &[route]);
    assert_eq!(guest.answers(), yes(DST));
    guest.acked(&[route], &[]);
    assert_eq!(guest.answers(), no(DST));
    // Something else under the key: it is told that it is accepted, here with an older number.
    guest.kernel(route, 3);
    guest.tell();
    guest.acked_some(0, &[], &[route]);
    assert_eq!(guest.answers(), []);
    guest.acked(&[], &[]);
    assert_eq!(guest.answers(), yes(DST));
}

#[test]
fn a_rejection_with_an_older_number_outlives_the_confirmation() {
    let (mut guest, route) = (Guest::new(), key(254, DST));
    guest.zebra(route);
    for oif in [2, 3] {
        guest.kernel(route, oif);
        guest.tell();
        // More than one message can name: those with the old number come first.
        guest.acked_some(0, &[route], &[]);
        guest.acked(&[], &[]);
        assert!(guest.rejected.contains(&Key::Route(route)), "by {oif}");
    }
    assert_eq!(guest.answers(), no(DST), "and never anything else");
}

#[test]
fn rejections_may_come_before_what_they_are_about_is_confirmed() {
    let (mut guest, one, two) = (Guest::new(), key(254, DST), key(254, "203.0.113.16/28"));
    for route in [one, two] {
        guest.kernel(route, 2);
        guest.zebra(route);
    }
    guest.tell();
    // More than one message can name: those with the old number come first.
    guest.acked_some(0, &[one], &[]);
    assert_eq!(guest.answers(), []);
    guest.acked(&[two], &[]);
    assert_eq!(guest.answers(), [no(DST), no("203.0.113.16/28")].concat());
    // The same at the end of a snapshot.
    guest.session();
    guest.acked_some(0, &[one], &[]);
    guest.acked(&[], &[]);
    assert_eq!(guest.answers(), yes("203.0.113.16/28"));
    guest.kernel(one, 3);
    guest.tell();
    guest.acked(&[], &[one]);
    assert_eq!(guest.answers(), yes(DST));
}

#[test]
fn a_lost_session_takes_nothing_back_and_the_next_one_tells_anew() {
    let (mut guest, one, two) = (Guest::new(), key(254, DST), key(254, "203.0.113.16/28"));
    for route in [one, two] {
        guest.kernel(route, 2);
        guest.zebra(route);
    }
    guest.tell();
    guest.acked(&[one], &[]);
    assert_eq!(guest.answers(), [no(DST), yes("203.0.113.16/28")].concat());
    guest.mirror.hang_up();
    assert_eq!(guest.answers(), []);
    guest.session();
    assert_eq!(guest.answers(), []);
    // Another host, perhaps, which has room for other routes.
    guest.acked(&[two], &[]);
    assert_eq!(guest.answers(), [yes(DST), no("203.0.113.16/28")].concat());
}

#[test]
fn a_route_that_comes_again_is_answered_again() {
    let (mut guest, route) = (Guest::new(), key(254, DST));
    guest.kernel(route, 2);
    guest.zebra(route);
    guest.tell();
    guest.acked(&[], &[]);
    assert_eq!(guest.answers(), yes(DST));
    let mut decoder = Decoder::default();
    decoder.buffer().extend_from_slice(&unhex(GONE));
    guest.table.hear(&mut decoder).unwrap();
    guest.acked(&[route], &[]);
    assert_eq!(guest.answers(), [], "zebra has no such route");
    guest.zebra(route);
    assert_eq!(guest.answers(), no(DST));
}

#[test]
fn a_vrf_is_named_by_its_interface() {
    let (mut guest, route) = (Guest::new(), key(1001, DST));
    guest.kernel(route, 2);
    guest.zebra(route);
    guest.tell();
    guest.acked(&[], &[]);
    assert_eq!(guest.table.answer(&guest.mirror, &guest.rejected), None, "no VRF has this table");
    let link = Link {
        ifindex: 300,
        name: "blue".into(),
        mac: None,
        mtu: 65_575,
        up: true,
        running: true,
        kind: "vrf".into(),
        master: None,
        vrf_table: Some(1001),
        ipv6_mtu: None,
    };
    let _ = guest.mirror.apply(Event::Upsert(Object::Link(link)), NOW);
    guest.zebra(route);
    let answer = guest.table.answer(&guest.mirror, &guest.rejected).unwrap();
    assert_eq!((answer.vrf, answer.offloaded), (300, true));
}

#[test]
fn the_corpus_is_understood_as_named() {
    let mut files = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus-fpm")).unwrap() {
        let path = entry.unwrap().path();
        let data = unhex(&std::fs::read_to_string(&path).unwrap());
        let name = path.file_name().unwrap().to_str().unwrap();
        let count: usize = name.split('.').nth(1).unwrap().parse().unwrap();
        assert_eq!(fuzz::stream(&data), count, "{name}");
        files += 1;
    }
    assert!(files >= 5, "{files} files");
}

proptest! {
    #[test]
    fn any_bytes_harm_nobody(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz::stream(&data);
        // The same behind a header that lets them in.
        let length = u16::try_from(data.len() + 4).unwrap().to_be_bytes();
        fuzz::stream(&[&[1, 1], &length[..], &data].concat());
    }

    #[test]
    fn a_damaged_route_harms_nobody(at in 0usize..64, byte: u8) {
        let mut data = unhex(PUT);
        data[at] = byte;
        fuzz::stream(&data);
    }
}
