//! Which numbers are reported, and when.

use super::*;

/// The state of these routers with that number.
fn asking(cfg: i64, routers: &[u8]) -> Event {
    Event::Desired(Desired { cfg, ..desired(routers) })
}

/// A core in step that knows ports of a third router, which is not configured yet.
fn plugged() -> Core {
    let mut core = ready();
    core.handle(Event::Ports(ports(&[1, 2, 3])));
    assert!(core.is_in_step());
    assert_eq!(core.confirmed_cfg(), Some(0));
    core
}

/// The only batch in it.
fn sent(effects: &[Effect]) -> BatchId {
    let mut all =
        effects.iter().filter_map(|it| if let Effect::Send(id, ..) = it { Some(*id) } else { None });
    let first = all.next().unwrap_or_else(|| panic!("{effects:?}"));
    assert_eq!(all.next(), None, "{effects:?}");
    first
}

#[test]
fn a_number_counts_when_the_switch_has_confirmed_the_last_change() {
    let mut core = plugged();
    let effects = core.handle(asking(1, &[1, 2, 3]));
    let id = sent(&effects);
    assert_eq!(core.confirmed_cfg(), Some(0));
    core.handle(Event::Tick(Duration::from_secs(1)));
    assert_eq!(core.confirmed_cfg(), Some(0));
    core.handle(Event::Confirmed(id, TOOK));
    assert_eq!(core.confirmed_cfg(), Some(1));
}

#[test]
fn a_state_that_asks_for_nothing_is_there_at_once() {
    let mut core = plugged();
    assert_eq!(core.handle(asking(1, &[1, 2])), []);
    assert_eq!(core.confirmed_cfg(), Some(1));
    // But not without a switch, whatever was confirmed of an earlier number.
    core.handle(Event::SwitchDown);
    core.handle(asking(2, &[1, 2]));
    assert_eq!(core.confirmed_cfg(), Some(1));
}

#[test]
fn a_guest_that_never_stops_holds_nothing_up() {
    let mut core = plugged();
    live(&mut core, 1);
    let mut guests = sent(&say(&mut core, 1, changes(3, [0])));
    let mine = sent(&core.handle(asking(1, &[1, 2, 3])));
    for seq in 4..9 {
        // There is always something under way, and something due.
        say(&mut core, 1, changes(seq, [u8::try_from(seq).unwrap()]));
        guests = sent(&core.handle(Event::Confirmed(guests, TOOK)));
        assert!(!core.is_in_step());
        assert_eq!(core.confirmed_cfg(), Some(0), "of the guest's only");
    }
    core.handle(Event::Confirmed(mine, TOOK));
    assert!(!core.is_in_step());
    assert_eq!(core.confirmed_cfg(), Some(1));
}

#[test]
fn what_was_under_way_to_a_lost_switch_does_not_count() {
    let mut core = plugged();
    let lost = sent(&core.handle(asking(1, &[1, 2, 3])));
    core.handle(Event::SwitchDown);
    core.handle(Event::Confirmed(lost, TOOK));
    core.handle(SWITCH_UP());
    assert_eq!(core.confirmed_cfg(), Some(0), "nobody knows what it holds");
    let id = sent(&core.handle(Event::DumpEnd));
    assert_eq!(core.confirmed_cfg(), Some(0));
    core.handle(Event::Confirmed(id, TOOK));
    assert_eq!(core.confirmed_cfg(), Some(1));
}

#[test]
fn a_batch_that_is_refused_confirms_nothing() {
    let mut core = plugged();
    let id = sent(&core.handle(asking(1, &[1, 2, 3])));
    let effects = core.handle(Event::Refused(id, vec![(0, ErrorCode::TABLE_FULL)]));
    assert_eq!(core.confirmed_cfg(), Some(0));
    confirm_all(&mut core, effects);
    assert_eq!((core.confirmed_cfg(), core.left_out_flows()), (Some(1), 1));
}

#[test]
fn a_later_number_stands_for_the_one_before() {
    let mut core = plugged();
    let id = sent(&core.handle(asking(1, &[1, 2, 3])));
    core.handle(asking(2, &[1, 2, 3]));
    assert_eq!(core.confirmed_cfg(), Some(0));
    core.handle(Event::Confirmed(id, TOOK));
    assert_eq!(core.confirmed_cfg(), Some(2));
    // The database is another one, which has counted less.
    core.handle(asking(1, &[1, 2, 3]));
    assert_eq!(core.confirmed_cfg(), Some(1));
}

/// What a router's flows make of a change counts as well; a router whose guest has told nothing has no flows.
#[test]
fn a_routers_own_flows_are_waited_for() {
    let limit = |cfg, router: &str| {
        let mut desired = Desired { cfg, ..desired(&[1, 2]) };
        desired.routers.get_mut(&name(router)).unwrap().policy.max_routes = Some(1);
        Event::Desired(desired)
    };
    let mut core = ready();
    live(&mut core, 1);
    let effects = say(&mut core, 1, changes(3, [0, 1]));
    confirm_all(&mut core, effects);
    let effects = core.handle(limit(1, "r1"));
    assert_eq!(core.confirmed_cfg(), Some(0), "two prefixes still have flows");
    let told = confirm_all(&mut core, effects);
    assert_eq!(core.confirmed_cfg(), Some(1));
    let is_rejected = |(_, message): &(SessionId, HostMessage)| matches!(message, HostMessage::Ack { rejected, .. } if !rejected.is_empty());
    assert!(told.iter().any(is_rejected), "the guest is told by the same mark: {told:?}");
    // Back again while its guest leaves: the flows stay, and so does the promise.
    let effects = core.handle(asking(2, &[1, 2]));
    core.handle(Event::Closed(SessionId(1)));
    assert_eq!(core.confirmed_cfg(), Some(1));
    core.handle(Event::Confirmed(sent(&effects), TOOK));
    assert_eq!(core.confirmed_cfg(), Some(2));
    core.handle(limit(3, "r2"));
    assert_eq!(core.confirmed_cfg(), Some(3), "it has none");
}

/// What others have is part of a state as far as it was written before its number, and so is that others can know what is
/// here.
#[test]
fn locations_are_waited_for() {
    let mut core = plugged().with_locations();
    core.handle(Event::Whereabouts(Whereabouts::default()));
    let id = sent(&core.handle(asking(1, &[1, 2, 3])));
    core.handle(Event::Confirmed(id, TOOK));
    assert_eq!(core.confirmed_cfg(), Some(0), "nobody has read what others have since then");
    let here = core.here().cloned();
    let other = here.as_ref().unwrap().first().unwrap().clone();
    core.handle(Event::Located(1, None));
    assert_eq!(core.confirmed_cfg(), Some(0), "others do not know what is here");
    let id = sent(
        &core.handle(Event::Whereabouts(Whereabouts { elsewhere: [other].into(), ..Whereabouts::default() })),
    );
    let here = core.here().cloned().or(here);
    core.handle(Event::Located(1, here.clone()));
    assert_eq!(core.confirmed_cfg(), Some(0), "it is under way");
    core.handle(Event::Confirmed(id, TOOK));
    assert_eq!(core.confirmed_cfg(), Some(1));
    core.handle(Event::Located(2, here));
    assert_eq!(core.confirmed_cfg(), Some(1), "only the one connection has read it");
    core.handle(asking(2, &[1, 2, 3]));
    assert_eq!(core.confirmed_cfg(), Some(2));
}
