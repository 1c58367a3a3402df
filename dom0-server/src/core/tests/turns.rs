//! Sessions take turns.

use xenflow_flow_app::pipeline::cookie;

use super::*;
use crate::core::switch::{LATELY, REST};

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
fn a_sweep_takes_turns_and_the_next_message_waits_for_it() {
    let mut core = two_live();
    core.slice = 64;
    for seq in 3..7 {
        let third = u8::try_from(seq - 3).unwrap() * 50;
        let effects = core.handle(Event::Said(SessionId(1), changes(seq, third..third + 50)));
        confirm_all(&mut core, effects);
    }
    core.handle(Event::Closed(SessionId(1)));
    open(&mut core, 3, 1);
    core.handle(Event::Said(SessionId(3), GuestMessage::SnapshotBegin(Seq(1))));
    core.handle(Event::Said(SessionId(3), changes(2, [7])));
    let effects = core.handle(Event::Said(SessionId(3), GuestMessage::SnapshotEnd(Seq(3))));
    assert!(!effects.contains(&Effect::Taken(SessionId(3))), "{effects:?}");
    assert!(core.is_behind());
    let mut turns = 0;
    while core.is_behind() {
        let effects = core.handle(Event::Turn);
        turns += 1;
        assert_eq!(effects.contains(&Effect::Taken(SessionId(3))), !core.is_behind(), "{effects:?}");
    }
    assert_eq!((routes(&core, 1), turns > 1), (1, true));
}

#[test]
fn a_guest_that_says_more_than_its_switch_takes_waits() {
    let mut core = two_live();
    core.slice = 200;
    core.backlog = 30;
    let taken = |effects: &[Effect]| effects.contains(&Effect::Taken(SessionId(1)));
    // The first are on their way to the switch, which does not confirm them.
    let effects = core.handle(Event::Said(SessionId(1), changes(3, 0..40)));
    assert!(taken(&effects), "{effects:?}");
    let sent = |effects: &[Effect]| {
        effects.iter().find_map(|it| if let Effect::Send(id, ..) = it { Some(*id) } else { None })
    };
    let mut under_way = sent(&effects).unwrap();
    let effects = core.handle(Event::Said(SessionId(1), changes(4, 100..150)));
    assert!(!taken(&effects), "{effects:?}");
    // Another is not kept waiting.
    let effects = core.handle(Event::Said(SessionId(2), changes(3, [9])));
    assert!(effects.contains(&Effect::Taken(SessionId(2))), "{effects:?}");
    let mut effects = Vec::new();
    while !taken(&effects) {
        effects = if rest_of(&effects).is_some() {
            core.handle(Event::Rested)
        } else {
            core.handle(Event::Confirmed(under_way, TOOK))
        };
        under_way = sent(&effects).unwrap_or(under_way);
    }
    // A switch that is gone takes nothing: the guest is to say what it has to say.
    let effects = core.handle(Event::Said(SessionId(1), changes(5, 0..150)));
    assert!(!taken(&effects), "{effects:?}");
    assert!(taken(&core.handle(Event::SwitchDown)));
}

/// The batch that is sent, and the routers whose flows are in it; none: the switch is left alone.
fn sent(effects: &[Effect]) -> Option<(BatchId, Vec<u16>)> {
    let sent = effects
        .iter()
        .find_map(|it| if let Effect::Send(id, _, changes) = it { Some((*id, changes)) } else { None });
    let router = |change: &FlowChange| {
        let FlowChange::Upsert(flow) = change else { panic!("{change:?}") };
        cookie::router_of(flow.cookie).unwrap().0
    };
    sent.map(|(id, changes)| (id, changes.iter().map(router).collect()))
}

fn rest_of(effects: &[Effect]) -> Option<Duration> {
    effects.iter().find_map(|it| if let Effect::Rest(pause) = it { Some(*pause) } else { None })
}

#[test]
fn who_has_more_for_the_switch_leaves_it_to_the_others_for_a_while() {
    let mut core = two_live();
    core.slice = 200;
    let effects = core.handle(Event::Said(SessionId(1), changes(3, 0..90)));
    let (id, first) = sent(&effects).unwrap();
    assert!(first.len() < 90 && first.iter().all(|router| *router == 1), "{first:?}");
    let effects = core.handle(Event::Confirmed(id, TOOK));
    assert_eq!((rest_of(&effects), sent(&effects)), (Some(TOOK * REST), None), "{effects:?}");
    // Nor is more of it taken in meanwhile.
    let effects = core.handle(Event::Said(SessionId(1), changes(4, [90])));
    assert_eq!(effects, [], "its next message waits");
    // Another finds the switch idle, and may say some more.
    for (seq, third) in [(3, 9), (4, 10)] {
        let effects = core.handle(Event::Said(SessionId(2), changes(seq, [third])));
        let (id, all) = sent(&effects).unwrap();
        assert_eq!(all, [2]);
        let effects = core.handle(Event::Confirmed(id, TOOK));
        assert_eq!(sent(&effects), None, "the rest is not over");
        assert!(rest_of(&effects).is_none(), "one rest at a time: {effects:?}");
    }
    let mut rest = first.len();
    let mut effects = core.handle(Event::Rested);
    assert!(effects.contains(&Effect::Taken(SessionId(1))), "{effects:?}");
    while let Some((id, all)) = sent(&effects) {
        rest += all.len();
        effects = core.handle(Event::Confirmed(id, Duration::from_secs(60)));
        if let Some(pause) = rest_of(&effects) {
            assert!(pause < Duration::from_secs(1), "a switch that stalled is not made up for: {pause:?}");
            effects = core.handle(Event::Rested);
        }
    }
    assert_eq!((rest, core.is_in_step()), (91, true));
}

/// Gives the switch all that is due; how often it rested meanwhile.
fn work_off(core: &mut Core) -> usize {
    let mut rests = 0;
    loop {
        let event = match core.in_flight.keys().next() {
            Some(id) => Event::Confirmed(*id, TOOK),
            None if core.app.is_resting() => Event::Rested,
            None => return rests,
        };
        rests += usize::from(rest_of(&core.handle(event)).is_some());
    }
}

#[test]
fn the_switch_rests_only_for_who_is_at_work() {
    let mut core = two_live();
    core.slice = 200;
    core.handle(Event::Tick(LATELY));
    for third in [0, 90] {
        core.handle(Event::Said(SessionId(1), changes(3 + u64::from(third) / 90, third..third + 90)));
        assert!(work_off(&mut core) > 0, "the other said something ten seconds ago");
    }
    core.handle(Event::Tick(LATELY + Duration::from_millis(1)));
    core.handle(Event::Said(SessionId(1), changes(5, 0..180)));
    assert_eq!((work_off(&mut core), core.is_in_step()), (0, true), "it has said nothing for longer");
    // Both have more, from their second parts on: nobody would use the time.
    let mut core = two_live();
    core.slice = 200;
    core.handle(Event::Said(SessionId(1), changes(3, 0..180)));
    core.handle(Event::Said(SessionId(2), changes(3, 0..180)));
    let rests = work_off(&mut core);
    assert!(rests <= 1 && core.is_in_step(), "{rests}");
}

/// What a guest has said and left behind is still work beside another's.
#[test]
fn who_says_much_and_goes_leaves_the_switch_to_the_others_as_well() {
    let mut core = two_live();
    core.slice = 200;
    let effects = core.handle(Event::Said(SessionId(1), changes(3, 0..90)));
    core.handle(Event::Closed(SessionId(1)));
    let (id, _) = sent(&effects).unwrap();
    assert_eq!(rest_of(&core.handle(Event::Confirmed(id, TOOK))), Some(TOOK * REST));
}

#[test]
fn a_lone_router_never_rests() {
    let mut core = two_live();
    core.slice = 200;
    core.handle(Event::Closed(SessionId(2)));
    let mut effects = core.handle(Event::Said(SessionId(1), changes(3, 0..9)));
    let mut all = 0;
    for seq in 4..9 {
        // The next comes while the switch is busy with the one before.
        let third = u8::try_from(seq).unwrap() * 20;
        let more = core.handle(Event::Said(SessionId(1), changes(seq, third..third + 20)));
        for (id, some) in sent(&effects).into_iter().chain(sent(&more)) {
            all += some.len();
            effects = core.handle(Event::Confirmed(id, TOOK));
            assert!(rest_of(&effects).is_none(), "{effects:?}");
        }
    }
    assert_eq!((all, core.is_in_step()), (109, true));
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
