//! What a guest gets, and what goes out for it, whatever comes in between; see [`world`].

use std::net::IpAddr;

use proptest::prelude::*;
use xenflow_flow_app::Punts;
use xenflow_proto::VlanId;

use super::*;
use crate::migration::announce::ANNOUNCEMENT;

mod world;

use world::{End, NODE, Op, World, frame, id, op, post, posts, vif};

const MS: Duration = Duration::from_millis(1);
const ID: RouterId = RouterId(7);

fn heard(kind: HeardKind) -> Heard {
    Heard { kind, vif: VifId { router: ID, number: 1 } }
}

fn given(out: &[Out]) -> Vec<u32> {
    let is_given = |packet: &&openflow::PacketOut| **packet == out::given(5, packet.data.clone());
    let packets = out.iter().filter_map(|out| if let Out::Send(packet) = out { Some(packet) } else { None });
    packets.filter(is_given).map(|packet| id(&packet.data)).collect()
}

fn relayed(out: &[Out]) -> Vec<u32> {
    out.iter()
        .filter_map(|out| if let Out::Relay(_, punt) = out { Some(id(&punt.frame)) } else { None })
        .collect()
}

fn punt(number: u32) -> Punt {
    Punt { vif: 1, kind: PuntKind::Punt, frame: frame(number) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_guest_gets_all_in_order_wherever_it_goes(
        ends in prop::collection::vec(world::end(), 1..=4),
        ops in prop::collection::vec(op(), 0..300),
    ) {
        let mut world = World::new(ops);
        for end in &ends {
            world.go(*end);
        }
        world.check();
    }
}

#[test]
fn there_and_back_again_twice_with_something_at_every_instant() {
    for end in End::ALL {
        let ops = [Op::Comes(0), Op::Comes(1), Op::Says, Op::Send, Op::Wait(3), Op::Arrive];
        let mut world = World::new(ops.into_iter().cycle().take(600).collect());
        for _ in 0..4 {
            world.go(end);
        }
        assert!(world.came >= 15, "something came: {}", world.came);
        world.check();
    }
}

#[test]
fn neighbors_are_answered_for_a_guest_that_is_away_or_may_be_and_only_then() {
    let request = world::arp_request();
    // A suspended guest's ports are there for as long as it takes to arrive elsewhere.
    for (asked, is_here, kind, is_answered) in [
        (Stance::YIELDED, true, HeardKind::Copy, true),
        (Stance::AWAY, true, HeardKind::Copy, true),
        (Stance::AWAY, false, HeardKind::Punt, true),
        (Stance::AWAITED, false, HeardKind::Punt, false),
        (Stance::HOME, true, HeardKind::Copy, false),
    ] {
        let mut carrier = Carrier::default();
        carrier.set_streamed(ID, true, MS);
        carrier.set(&posts(post(Some(1), asked, is_here)), MS);
        let out = carrier.heard(heard(kind), request.clone(), MS);
        match &out[..] {
            [Out::Send(packet)] if is_answered => {
                assert_eq!(packet.data[..12], [&[0x52, 0x54, 0, 0, 0, 2][..], &NODE.0].concat());
            }
            [] if !is_answered => {}
            _ => panic!("{out:?}"),
        }
        // Other frames are not.
        let out = carrier.heard(heard(HeardKind::Punt), frame(3), MS);
        assert_eq!(relayed(&out), if asked == Stance::AWAY { vec![3] } else { vec![] });
    }
}

#[test]
fn the_special_announcement_leaves_by_uplinks_only() {
    let mut carrier = Carrier::default();
    let mut all = posts(Post { tell: true, ..post(Some(1), Stance::HOME, true) });
    all.uplinks = BTreeSet::from([20, 21]);
    let mut out = carrier.set(&all, MS);
    let told = Out::Carried(ID, Carried { migration: Some(1), end_mark: true, told: true });
    out.extend(carrier.due(MS));
    assert!(out.contains(&Out::Confirm(ID, 1)) && !out.contains(&told), "the switch may not have sent it");
    assert_eq!(carrier.confirmed(ID, 1, false, MS), [], "it is gone: all is told again");
    out = carrier.due(MS);
    assert!(out.contains(&Out::Confirm(ID, 1)));
    assert_eq!(carrier.confirmed(ID, 2, true, MS), [], "of another migration");
    assert_eq!(carrier.confirmed(ID, 1, true, MS), [told]);
    while let Some(wake) = carrier.wake() {
        out.extend(carrier.due(wake));
    }
    let packets: Vec<_> =
        out.iter().filter_map(|out| if let Out::Send(packet) = out { Some(packet) } else { None }).collect();
    let (special, others): (Vec<_>, Vec<_>) =
        packets.into_iter().partition(|packet| packet.data.starts_with(&ANNOUNCEMENT.0));
    assert_eq!((special.len(), others.len()), (6, 2), "three rounds by two uplinks; ARP in two of them");
    let by = |port: PortNo| {
        let to = xenflow_flow_app::pipeline::set_reg(xenflow_flow_app::pipeline::OUT_PORT, port);
        special.iter().filter(|packet| packet.actions.contains(&to)).count()
    };
    assert_eq!((by(20), by(21), by(5)), (3, 3, 0));
    assert!(others.iter().all(|packet| **packet == out::switched(VlanId::MIN, Some(5), packet.data.clone())));
    // All was told: nothing keeps it.
    carrier.set(&Posts::default(), MS);
    assert!(carrier.routers.is_empty());
}

#[test]
fn what_comes_before_there_is_a_way_takes_it_later() {
    let mut carrier = Carrier::default();
    carrier.set(&posts(post(None, Stance::YIELDED, true)), MS);
    carrier.heard(heard(HeardKind::Copy), frame(1), MS);
    carrier.set(&posts(post(None, Stance::AWAY, false)), MS);
    assert_eq!(carrier.heard(heard(HeardKind::Punt), frame(2), MS), []);
    assert_eq!(carrier.heard(heard(HeardKind::Copy), frame(3), MS), [], "handed over before");
    // The row comes, and the others know already where the router is.
    carrier.set(&posts(post(Some(1), Stance::LATE, false)), MS);
    assert_eq!(carrier.heard(heard(HeardKind::Late), frame(4), MS), []);
    assert_eq!(relayed(&carrier.set_streamed(ID, true, MS)), [1, 3, 2, 4]);
    assert_eq!(relayed(&carrier.heard(heard(HeardKind::Copy), frame(5), MS)), [5], "nobody else has it");
    // A connection that is there before anything is known of the router.
    let mut carrier = Carrier::default();
    carrier.set_streamed(ID, true, MS);
    carrier.set(&posts(post(Some(1), Stance::AWAY, false)), MS);
    assert_eq!(relayed(&carrier.heard(heard(HeardKind::Punt), frame(6), MS)), [6]);
}

#[test]
fn what_is_to_come_back_comes_before_what_came_since() {
    let mut carrier = Carrier::default();
    carrier.set_streamed(ID, true, MS);
    carrier.set(&posts(post(Some(1), Stance::AWAY, false)), MS);
    carrier.heard(heard(HeardKind::Punt), frame(1), MS);
    let out = carrier.set(&posts(post(Some(1), Stance::HOME, true)), MS);
    assert!(out.contains(&Out::TakeBack(ID)));
    carrier.heard(heard(HeardKind::Punt), frame(2), MS);
    assert_eq!(given(&carrier.due(MS)), [0; 0], "1 is not there yet");
    carrier.set(&posts(post(None, Stance::HOME, true)), MS);
    assert_eq!(given(&carrier.due(MS)), [0; 0]);
    carrier.set(&Posts::default(), MS);
    carrier.taken_back(ID, vec![punt(1)], MS);
    assert_eq!(given(&carrier.due(MS)), [1, 2]);
    assert!(carrier.routers.is_empty(), "it is forgotten then");
}

#[test]
fn a_stream_that_ends_gives_back_what_another_one_takes() {
    let mut carrier = Carrier::default();
    carrier.set_streamed(ID, true, MS);
    carrier.set(&posts(post(Some(1), Stance::AWAY, false)), MS);
    carrier.heard(heard(HeardKind::Punt), frame(1), MS);
    assert_eq!(carrier.set_streamed(ID, false, MS), [Out::TakeBack(ID)]);
    assert_eq!(carrier.set_streamed(ID, true, MS), []);
    assert_eq!(carrier.heard(heard(HeardKind::Punt), frame(2), MS), [], "behind 1");
    assert_eq!(relayed(&carrier.taken_back(ID, vec![punt(1)], MS)), [1, 2]);
    assert_eq!(carrier.counters(ID, Role::Source)["source/returned"], 1);
    // The end mark is the stream's as well.
    carrier.set(&posts(Post { end_mark: true, ..post(Some(1), Stance::LATE, false) }), MS);
    assert!(carrier.due(100 * MS).contains(&Out::EndMark(ID)));
    carrier.heard(heard(HeardKind::Late), frame(3), 200 * MS);
    assert_eq!(carrier.counters(ID, Role::Source)["source/lost"], 1, "behind the end mark");
    carrier.set_streamed(ID, false, 200 * MS);
    carrier.taken_back(ID, Vec::new(), 200 * MS);
    carrier.set_streamed(ID, true, 200 * MS);
    assert!(carrier.due(300 * MS).contains(&Out::EndMark(ID)), "again over another one");
    // Of a migration that is over nothing comes back.
    carrier.set(&posts(post(None, Stance::NONE, false)), 300 * MS);
    assert_eq!(carrier.set_streamed(ID, false, 300 * MS), []);
}

#[test]
fn what_the_switch_handed_over_long_ago_goes_to_where_the_router_is() {
    let its = |id: u32| Bytes::from([&world::ROUTER.0[..], &frame(id)].concat());
    let switched = |frame| vec![Out::Send(out::switched(VlanId::MIN, None, frame))];
    let mut carrier = Carrier::default();
    carrier.set_streamed(ID, true, MS);
    carrier.set(&posts(Post { end_mark: true, ..post(Some(1), Stance::LATE, false) }), MS);
    assert_eq!(relayed(&carrier.heard(heard(HeardKind::Punt), frame(1), MS)), [1]);
    assert!(carrier.due(100 * MS).contains(&Out::EndMark(ID)));
    for kind in [HeardKind::Punt, HeardKind::Copy] {
        assert_eq!(carrier.heard(heard(kind), its(2), 200 * MS), switched(its(2)), "behind the end mark");
    }
    assert_eq!(carrier.heard(heard(HeardKind::Late), its(3), 200 * MS), [], "it came from there");
    assert_eq!(carrier.heard(heard(HeardKind::Punt), frame(4), 200 * MS), [], "others have had it");
    let counters = carrier.counters(ID, Role::Source);
    assert_eq!((counters["source/switched"], counters["source/lost"]), (2, 2));
    // The switch might hand it over again.
    let proven = Stance { punts: Punts::Relayed, ..Stance::LATE };
    carrier.set(&posts(Post { proven, ..post(None, Stance::NONE, false) }), 300 * MS);
    assert_eq!(carrier.heard(heard(HeardKind::Punt), its(5), 300 * MS), []);
    carrier.set(&posts(post(None, Stance::NONE, false)), 300 * MS);
    assert_eq!(carrier.heard(heard(HeardKind::Punt), its(6), 300 * MS), switched(its(6)), "all is over");
}

#[test]
fn vifs_are_waited_for_and_a_missing_one_is_counted() {
    let mut carrier = Carrier::default();
    let mut arrived = post(Some(1), Stance { punts: Punts::Guest, ..Stance::ARRIVED }, true);
    arrived.vifs.insert(2, (None, vif()));
    carrier.set(&posts(post(Some(1), Stance::AWAITED, false)), MS);
    carrier.relayed(1, 1, vec![punt(1), Punt { vif: 2, ..punt(2) }], MS);
    carrier.set(&posts(arrived), MS);
    assert_eq!(given(&carrier.due(999 * MS)), [0; 0]);
    assert_eq!(carrier.wake(), Some(1001 * MS));
    assert_eq!(given(&carrier.due(1001 * MS)), [1]);
    let counters = carrier.counters(ID, Role::Destination);
    assert_eq!((counters["destination/given"], counters["destination/lost"]), (1, 1));
}

#[test]
fn the_switch_gives_nothing_itself_before_all_that_came_here_is_given() {
    let mut carrier = Carrier::default();
    carrier.set(&posts(post(Some(1), Stance::ARRIVED, true)), MS);
    (1..=100).for_each(|number| _ = carrier.heard(heard(HeardKind::Punt), frame(number), MS));
    carrier.end_mark(1, 0);
    let carried = |end_mark| Out::Carried(ID, Carried { migration: Some(1), end_mark, told: false });
    let out = carrier.due(MS);
    assert_eq!(given(&out), (1..=64).collect::<Vec<_>>());
    assert!(!out.contains(&carried(true)));
    let out = carrier.due(carrier.wake().unwrap());
    assert_eq!(given(&out), (65..=100).collect::<Vec<_>>());
    assert!(out.contains(&carried(true)));
    // What comes then does not take the word back.
    carrier.heard(heard(HeardKind::Punt), frame(101), 9 * MS);
    assert!(!carrier.set(&posts(post(Some(1), Stance::ARRIVED, true)), 9 * MS).contains(&carried(false)));
}

#[test]
fn an_aborted_move_leaves_nothing_to_the_next() {
    let mut carrier = Carrier::default();
    carrier.set(&posts(post(Some(1), Stance::AWAITED, false)), MS);
    carrier.connected(1, 77);
    carrier.relayed(1, 1, vec![punt(1)], MS);
    carrier.set(&posts(post(Some(2), Stance::AWAITED, false)), MS);
    assert_eq!(carrier.connected(2, 78), 1);
    carrier.relayed(2, 1, vec![punt(2)], MS);
    let counters = carrier.counters(ID, Role::Destination);
    assert_eq!(counters["destination/kept"], 1, "of this one");
    assert!(counters.len() == 11 && counters.keys().all(|key| key.len() < 64));
    let out = carrier.set(&posts(post(Some(2), Stance::ARRIVED, true)), MS);
    assert!(!out.iter().any(|out| matches!(out, Out::Given(..))));
    let out = carrier.due(MS);
    assert_eq!(given(&out), [2]);
    assert!(out.contains(&Out::Given(2, 1)));
    // Another connection is told again, once it has said something.
    assert_eq!(carrier.connected(2, 78), 2);
    assert_eq!(carrier.due(2 * MS), []);
    carrier.end_mark(2, 1);
    assert!(carrier.due(2 * MS).contains(&Out::Given(2, 1)));
    // What nobody can be given is kept for as long as anything is.
    carrier.heard(heard(HeardKind::Mute), frame(9), MS);
    carrier.set(&Posts::default(), MS);
    assert_eq!(carrier.wake(), Some(MS + super::super::punts::Bounds::KEPT.age));
    carrier.due(carrier.wake().unwrap());
    assert!(carrier.routers.is_empty());
}

#[test]
fn what_is_given_to_a_guest_that_is_about_to_leave_is_copied() {
    let mut carrier = Carrier::default();
    carrier.set(&posts(post(Some(1), Stance::AWAY, false)), MS);
    carrier.heard(heard(HeardKind::Punt), frame(1), MS);
    carrier.set(&posts(post(Some(1), Stance::YIELDED, true)), MS);
    assert_eq!(given(&carrier.due(MS)), [1]);
    carrier.set_streamed(ID, true, MS);
    assert_eq!(relayed(&carrier.set(&posts(post(Some(1), Stance::AWAY, false)), MS)), [1]);
}

fn router_address() -> IpAddr {
    "192.0.2.1".parse().unwrap()
}
