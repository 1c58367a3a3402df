//! Sessions take turns.

use xenflow_proto::table::{NextHop, NextHopKind};

use super::*;

/// A core with two sessions past end-of-RIB, which take turns after two changes.
fn two_live() -> Core {
    let mut core = ready();
    core.slice = 2;
    for router in [1, 2] {
        open(&mut core, router, u8::try_from(router).unwrap());
        for message in [GuestMessage::SnapshotBegin(Seq(1)), GuestMessage::SnapshotEnd(Seq(2))] {
            let effects = say(&mut core, router, message);
            confirm_all(&mut core, effects);
        }
    }
    core
}

fn routes(core: &Core, router: u16) -> usize {
    core.app.router(RouterId(router)).unwrap().rib.routes
}

#[test]
fn a_long_message_does_not_keep_a_short_one_waiting() {
    let mut core = two_live();
    let effects = core.handle(Event::Said(SessionId(1), changes(3, 0..5)));
    assert!(!effects.contains(&Effect::Taken(SessionId(1))), "{effects:?}");
    assert_eq!((routes(&core, 1), core.is_behind()), (2, true));
    let effects = core.handle(Event::Said(SessionId(2), changes(3, [9])));
    assert!(effects.contains(&Effect::Taken(SessionId(2))), "{effects:?}");
    assert_eq!((routes(&core, 1), routes(&core, 2)), (2, 1));
    let effects = core.handle(Event::Turn);
    assert!(!effects.contains(&Effect::Taken(SessionId(1))), "{effects:?}");
    assert_eq!(routes(&core, 1), 4);
    let effects = core.handle(Event::Turn);
    assert!(effects.contains(&Effect::Taken(SessionId(1))), "{effects:?}");
    assert_eq!((routes(&core, 1), core.is_behind()), (5, false));
}

#[test]
fn long_messages_get_on_side_by_side() {
    let mut core = two_live();
    core.handle(Event::Said(SessionId(1), changes(3, 0..6)));
    core.handle(Event::Said(SessionId(2), changes(3, 0..6)));
    let mut seen = Vec::new();
    while core.is_behind() {
        core.handle(Event::Turn);
        seen.push((routes(&core, 1), routes(&core, 2)));
    }
    assert_eq!(seen, [(4, 2), (4, 4), (6, 4), (6, 6)]);
}

#[test]
fn a_change_that_may_cost_much_has_a_turn_of_its_own() {
    let mut core = two_live();
    core.slice = 64;
    let next_hop = |id| Change::Upsert(Object::NextHop(NextHop { id, kind: NextHopKind::Blackhole }));
    let changes = vec![next_hop(1), next_hop(2), Change::Upsert(route(1)), Change::Upsert(route(2))];
    core.handle(Event::Said(SessionId(1), GuestMessage::Changes { seq: Seq(3), changes }));
    let next_hops = |core: &Core| core.app.router(RouterId(1)).unwrap().rib.next_hops;
    assert_eq!((next_hops(&core), core.is_behind()), (1, true));
    core.handle(Event::Turn);
    assert_eq!((next_hops(&core), routes(&core, 1), core.is_behind()), (2, 0, true));
    core.handle(Event::Turn);
    assert_eq!((routes(&core, 1), core.is_behind()), (2, false));
}

/// A guest knows what was held by whole messages.
#[test]
fn what_a_lost_session_has_said_is_taken_in_whole() {
    let mut core = two_live();
    core.handle(Event::Said(SessionId(1), changes(3, 0..9)));
    core.handle(Event::Closed(SessionId(1)));
    assert_eq!((routes(&core, 1), core.is_behind()), (9, false));
    // Another that is replaced.
    open(&mut core, 3, 1);
    core.handle(Event::Said(SessionId(3), GuestMessage::SnapshotBegin(Seq(1))));
    core.handle(Event::Said(SessionId(3), changes(2, 0..20)));
    open(&mut core, 4, 1);
    assert_eq!((routes(&core, 1), core.is_behind()), (20, false));
}

#[test]
fn a_limit_in_the_middle_of_a_message_ends_it_there() {
    let mut core = core(5);
    core.slice = 2;
    core.handle(Event::Desired(desired(&[1])));
    core.handle(Event::Ports(ports(&[1])));
    open(&mut core, 1, 1);
    say(&mut core, 1, GuestMessage::SnapshotBegin(Seq(1)));
    let effects = say(&mut core, 1, changes(2, 0..9));
    assert!(
        matches!(effects.as_slice(), [Effect::Refuse(SessionId(1), RefusalReason::Limit, _)]),
        "{effects:?}"
    );
    assert_eq!((routes(&core, 1), core.is_behind()), (5, false));
}
