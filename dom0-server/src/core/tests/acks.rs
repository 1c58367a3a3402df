//! What guests are told of their routes.

use std::collections::BTreeSet;

use xenflow_proto::Key;
use xenflow_proto::message::MAX_REJECTED;

use super::*;

/// As [`route`], of which there may be many.
fn one_of_many(number: u32) -> Object {
    let Object::Route(mut it) = route(0) else { panic!() };
    it.key.dst = format!("10.{}.{}.0/24", number / 200, number % 200).parse().unwrap();
    Object::Route(it)
}

fn say_many(core: &mut Core, seq: u64, numbers: std::ops::Range<u32>) -> Vec<Effect> {
    let changes = numbers.map(|number| Change::Upsert(one_of_many(number))).collect();
    say(core, 1, GuestMessage::Changes { seq: Seq(seq), changes })
}

/// At most so many routes of r1 are forwarded.
fn limited(max: usize) -> Event {
    let mut wanted = desired(&[1, 2]);
    wanted.routers.get_mut(&name("r1")).unwrap().policy.max_routes = Some(max as u32);
    Event::Desired(wanted)
}

/// Numbers, and how many were rejected and accepted.
fn told(told: &[(SessionId, HostMessage)]) -> Vec<(u64, usize, usize)> {
    let ack = |(_, message): &(SessionId, HostMessage)| {
        let HostMessage::Ack { seq, rejected, accepted } = message else { return None };
        Some((seq.0, rejected.len(), accepted.len()))
    };
    told.iter().filter_map(ack).collect()
}

fn tell_on(core: &mut Core, id: u64) -> Vec<(u64, usize, usize)> {
    let effects = core.handle(Event::Told(SessionId(id)));
    told(&confirm_all(core, effects))
}

/// A session of r1 with 6000 routes of which 5 may be forwarded, past end-of-RIB with sequence number 4; nothing of
/// it is confirmed.
fn crowded() -> (Core, Vec<Effect>) {
    let mut core = core(10_000);
    core.handle(limited(5));
    core.handle(Event::Ports(ports(&[1, 2])));
    let effects = core.handle(SWITCH_UP());
    confirm_all(&mut core, effects);
    open(&mut core, 1, 1);
    say(&mut core, 1, GuestMessage::SnapshotBegin(Seq(1)));
    say_many(&mut core, 2, 0..3000);
    say_many(&mut core, 3, 3000..6000);
    let effects = say(&mut core, 1, GuestMessage::SnapshotEnd(Seq(4)));
    (core, effects)
}

#[test]
fn rejected_routes_are_told_by_the_message_and_the_number_comes_with_the_last() {
    let (mut core, effects) = crowded();
    let first = confirm_all(&mut core, effects);
    assert_eq!(told(&first), [(3, MAX_REJECTED, 0)]);
    let Some((_, HostMessage::Ack { rejected, .. })) = first.first() else { panic!() };
    let Object::Route(fifth) = one_of_many(5) else { panic!() };
    let reason = "over the limit of routes that the host forwards".to_owned();
    assert!(rejected.contains(&(Key::Route(fifth.key), reason)), "{:?}", rejected.first());
    // No more until these are out; then the rest.
    let effects = say_many(&mut core, 5, 0..0);
    assert_eq!(told(&confirm_all(&mut core, effects)), []);
    assert_eq!(tell_on(&mut core, 1), [(5, 5995 - MAX_REJECTED, 0)]);
    assert_eq!(tell_on(&mut core, 1), []);
}

#[test]
fn what_the_operator_changes_is_told_without_a_message_of_the_guest() {
    let (mut core, effects) = crowded();
    confirm_all(&mut core, effects);
    assert_eq!(tell_on(&mut core, 1), [(4, 5995 - MAX_REJECTED, 0)]);
    tell_on(&mut core, 1);
    let effects = core.handle(limited(15));
    assert_eq!(told(&confirm_all(&mut core, effects)), [(4, 0, 10)]);
    assert_eq!(tell_on(&mut core, 1), []);
    let effects = core.handle(limited(10));
    assert_eq!(told(&confirm_all(&mut core, effects)), [(4, 5, 0)]);
}

#[test]
fn of_what_is_to_be_told_of_a_route_the_last_counts() {
    let (mut core, effects) = crowded();
    let (_, HostMessage::Ack { rejected, .. }) = confirm_all(&mut core, effects).remove(0) else { panic!() };
    let mut known: BTreeSet<Key> = rejected.into_iter().map(|(key, _)| key).collect();
    let all: Vec<Key> = (5..6000).map(|number| one_of_many(number).key()).collect();
    let waiting: Vec<Key> = all.iter().filter(|key| !known.contains(*key)).cloned().collect();
    let removals = waiting[..10].iter().cloned().map(Change::Remove).collect();
    let effects = say(&mut core, 1, GuestMessage::Changes { seq: Seq(5), changes: removals });
    confirm_all(&mut core, effects);
    let effects = core.handle(Event::Told(SessionId(1)));
    let (_, HostMessage::Ack { seq, rejected, accepted }) = confirm_all(&mut core, effects).remove(0) else {
        panic!()
    };
    assert_eq!(seq, Seq(5));
    known.extend(rejected.into_iter().map(|(key, _)| key));
    accepted.iter().for_each(|key| assert!(waiting[..10].contains(key), "{key:?}"));
    let expected: BTreeSet<Key> = all.into_iter().filter(|key| !waiting[..10].contains(key)).collect();
    assert_eq!(known, expected);
}

#[test]
fn a_new_session_is_told_all_that_stands_behind_its_end_of_rib() {
    let (mut core, effects) = crowded();
    confirm_all(&mut core, effects);
    // The old one ends with answers on their way and others waiting.
    core.handle(Event::Closed(SessionId(1)));
    assert!(matches!(open(&mut core, 2, 1).last(), Some(Effect::Tell(_, HostMessage::Welcome(_)))));
    assert_eq!(core.handle(Event::Told(SessionId(1))), []);
    let effects = say(&mut core, 2, GuestMessage::Resume(Seq(1)));
    assert_eq!(told(&confirm_all(&mut core, effects)), [(1, 0, 0)]);
    let effects = say(&mut core, 2, GuestMessage::SnapshotEnd(Seq(2)));
    assert_eq!(told(&confirm_all(&mut core, effects)), [(1, MAX_REJECTED, 0)]);
    assert_eq!(tell_on(&mut core, 2), [(2, 5995 - MAX_REJECTED, 0)]);
}
