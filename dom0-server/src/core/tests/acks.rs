//! What guests are told of their routes.

use std::collections::BTreeSet;

use xenflow_flow_app::FlowKey;
use xenflow_flow_app::pipeline::ROUTE;
use xenflow_flow_app::pipeline::cookie::router_of;
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

/// A switch with room for so many flows of prefixes, as a set of them: what is sent to it, confirmed or refused, until
/// all is quiet; what guests were told comes back, and how many bundles were refused.
fn fill(
    core: &mut Core,
    held: &mut BTreeMap<FlowKey, Flow>,
    room: usize,
    effects: Vec<Effect>,
) -> (Vec<(SessionId, HostMessage)>, usize) {
    let (mut told, mut refusals) = (Vec::new(), 0);
    let mut queue: VecDeque<Effect> = effects.into();
    while let Some(effect) = queue.pop_front() {
        match effect {
            Effect::Send(id, _, changes) => {
                let mut after = held.clone();
                let mut culprit = None;
                for (index, change) in changes.into_iter().enumerate() {
                    match change {
                        FlowChange::Upsert(flow) => drop(after.insert(FlowKey::from(&flow), flow)),
                        FlowChange::Remove(key) => drop(after.remove(&key)),
                        FlowChange::RemoveRouter(_)
                        | FlowChange::ForgetLearned(_)
                        | FlowChange::UpsertGroup(_)
                        | FlowChange::RemoveGroup(_) => {}
                    }
                    let is_prefix = |flow: &&Flow| flow.table == ROUTE && router_of(flow.cookie).is_some();
                    if after.values().filter(is_prefix).count() > room && culprit.is_none() {
                        culprit = Some((index, ErrorCode::TABLE_FULL));
                    }
                }
                refusals += usize::from(culprit.is_some());
                queue.extend(core.handle(match culprit {
                    Some(culprit) => Event::Refused(id, vec![culprit]),
                    None => {
                        *held = after;
                        Event::Confirmed(id, TOOK)
                    }
                }));
            }
            Effect::Dump(dump) => {
                let covers = |flow: &&Flow| {
                    dump.flows.iter().any(|filter| {
                        flow.cookie & filter.cookie_mask == filter.cookie
                            && [flow.table, openflow::flow::ALL_TABLES].contains(&filter.table)
                    })
                };
                core.handle(Event::Dumped(held.values().filter(covers).cloned().collect()));
                queue.extend(core.handle(Event::DumpEnd));
            }
            Effect::Tell(id, message) => {
                told.push((id, message));
                queue.extend(core.handle(Event::Told(id)));
            }
            Effect::Rest(_) => queue.extend(core.handle(Event::Rested)),
            Effect::Prove(proof) => queue.extend(core.handle(Event::Proven(proof, true))),
            Effect::Refuse(..) | Effect::Wait(_) | Effect::Taken(_) | Effect::Nudge(..) | Effect::Peer(_) => {
            }
        }
    }
    (told, refusals)
}

#[test]
fn what_the_switch_has_no_room_for_is_rejected_until_it_has() {
    let (mut core, mut held) = (core(10_000), BTreeMap::new());
    core.handle(Event::Desired(desired(&[1])));
    core.handle(Event::Ports(ports(&[1])));
    let effects = core.handle(SWITCH_UP());
    fill(&mut core, &mut held, 1500, effects);
    open(&mut core, 1, 1);
    say(&mut core, 1, GuestMessage::SnapshotBegin(Seq(1)));
    say_many(&mut core, 2, 0..2000);
    let effects = say(&mut core, 1, GuestMessage::SnapshotEnd(Seq(3)));
    let (first, refusals) = fill(&mut core, &mut held, 1500, effects);
    // One place stays free.
    assert_eq!(told(&first), [(3, 501, 0)]);
    assert!(refusals <= 3, "{refusals} bundles were refused");
    let Some((_, HostMessage::Ack { rejected, .. })) = first.first() else { panic!() };
    assert!(
        rejected.iter().all(|(_, why)| why == "the switch refused it: OFPFMFC_TABLE_FULL"),
        "{rejected:?}"
    );
    let slow = core.reports().flat_map(|(_, report)| report.slow).collect::<Vec<_>>();
    assert!(
        slow.contains(&"some routes: the switch refused them: OFPFMFC_TABLE_FULL".to_owned()),
        "{slow:?}"
    );
    // Routes that go make room for others, with no bundle refused.
    let gone = (0..100).map(|number| Change::Remove(one_of_many(number).key())).collect();
    let effects = say(&mut core, 1, GuestMessage::Changes { seq: Seq(4), changes: gone });
    let (then, refusals) = fill(&mut core, &mut held, 1500, effects);
    assert_eq!((told(&then), refusals), (vec![(4, 0, 100)], 0));
    // Asked again in vain, and again when there is room.
    let second = |seconds| Event::Tick(Duration::from_secs(seconds));
    let mut ask = |core: &mut Core, seconds, room| {
        let effects = core.handle(second(seconds));
        fill(core, &mut held, room, effects)
    };
    assert_eq!(ask(&mut core, 100, 1500), (vec![], 0));
    assert_eq!(ask(&mut core, 159, 1500), (vec![], 0));
    let (_, refusals) = ask(&mut core, 160, 1500);
    assert!(refusals > 0, "nobody asked");
    assert_eq!(core.app.rejected(RouterId(1)).count(), 401);
    assert_eq!(ask(&mut core, 161, 2500), (vec![], 0));
    assert_eq!(ask(&mut core, 280, 2500), (vec![], 0), "twice as long");
    let (last, refusals) = ask(&mut core, 281, 2500);
    assert_eq!((told(&last), refusals), (vec![(4, 0, 401)], 0));
    // A new switch is asked at once for what another refused.
    core.handle(Event::SwitchDown);
    let effects = core.handle(SWITCH_UP());
    let (_, refusals) = fill(&mut core, &mut BTreeMap::new(), 1000, effects);
    assert!(refusals > 0 && core.app.has_refused());
    core.handle(Event::SwitchDown);
    let effects = core.handle(SWITCH_UP());
    let (_, refusals) = fill(&mut core, &mut BTreeMap::new(), 2500, effects);
    assert_eq!((refusals, core.app.has_refused(), core.app.rejected(RouterId(1)).count()), (0, false, 0));
}
