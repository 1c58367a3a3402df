//! Routers without a session.

use super::*;

fn nudged(effects: &[Effect]) -> Vec<u16> {
    let router = |effect: &Effect| if let Effect::Nudge(router, _) = effect { Some(router.0) } else { None };
    effects.iter().filter_map(router).collect()
}

/// The same ports, with a control vif of r1 that has a link or not.
fn linked(is_up: bool) -> SwitchPorts {
    let mut ports = ports(&[1, 2]);
    ports.ports.iter_mut().filter(|port| port.name == "v1-2").for_each(|port| port.is_up = is_up);
    ports
}

#[test]
fn a_guest_is_nudged_when_its_control_vif_comes_up() {
    let mut core = core(100);
    assert_eq!(nudged(&core.handle(Event::Desired(desired(&[1, 2])))), [0; 0]);
    let effects = core.handle(Event::Ports(ports(&[1])));
    assert_eq!(effects, [Effect::Nudge(RouterId(1), mac(1, 2))]);
    let mut nudged_by = |event| nudged(&core.handle(event));
    assert_eq!(nudged_by(Event::Ports(ports(&[1]))), [0; 0], "nothing is new");
    assert_eq!(nudged_by(Event::Ports(ports(&[1, 2]))), [2], "plugged in");
    assert_eq!(nudged_by(Event::Ports(linked(true))), [1], "came up");
    assert_eq!(nudged_by(Event::Ports(linked(false))), [0; 0], "went down");
    assert_eq!(nudged_by(Event::Ports(linked(true))), [1]);
    let mut elsewhere = linked(true);
    elsewhere.ports.iter_mut().for_each(|port| port.number += 500);
    assert_eq!(nudged_by(Event::Ports(elsewhere)), [1, 2], "plugged in anew");
    assert_eq!(nudged_by(Event::Ports(ports(&[]))), [0; 0]);
    assert_eq!(nudged_by(Event::Desired(desired(&[]))), [0; 0]);
    assert_eq!(nudged_by(Event::Ports(ports(&[1, 2]))), [0; 0], "of routers that nobody knows");
    assert_eq!(nudged_by(Event::Desired(desired(&[2]))), [2]);
    // It may have been elsewhere meanwhile, and know nothing of the session it has here.
    open(&mut core, 1, 2);
    core.handle(Event::Ports(ports(&[1])));
    assert_eq!(nudged(&core.handle(Event::Ports(ports(&[1, 2])))), [2]);
}

const HOLD: Duration = Duration::from_secs(60);

fn tick(core: &mut Core, s: u64) -> Vec<Effect> {
    core.handle(Event::Tick(Duration::from_secs(s)))
}

fn is_over(core: &Core, router: &str) -> bool {
    core.reports().find(|(known, _)| known.as_str() == router).unwrap().1.is_over
}

#[test]
fn tables_are_swept_after_the_hold_time_and_not_before() {
    let mut core = ready().with_hold_time(HOLD);
    live(&mut core, 1);
    let effects = say(&mut core, 1, changes(3, 0..5));
    confirm_all(&mut core, effects);
    tick(&mut core, 1000);
    // r2 never came.
    assert_eq!((is_over(&core, "r1"), is_over(&core, "r2")), (false, false));
    core.handle(Event::Closed(SessionId(1)));
    tick(&mut core, 1001);
    assert_eq!(tick(&mut core, 1059), []);
    let mut effects = tick(&mut core, 1060);
    while core.is_behind() {
        effects.extend(core.handle(Event::Turn));
    }
    confirm_all(&mut core, effects);
    assert_eq!((is_over(&core, "r1"), is_over(&core, "r2")), (false, true));
    let mut effects = tick(&mut core, 1061);
    while core.is_behind() {
        effects.extend(core.handle(Event::Turn));
    }
    let removed = effects.iter().flat_map(|effect| {
        if let Effect::Send(_, _, changes) = effect { changes.clone() } else { Vec::new() }
    });
    assert_eq!(removed.filter(|change| matches!(change, FlowChange::Remove(_))).count(), 5);
    confirm_all(&mut core, effects);
    assert!(is_over(&core, "r1"));
    assert_eq!(tick(&mut core, 5000), [], "once");
    // The guest comes back with nothing to resume but what is there: nothing.
    open(&mut core, 2, 1);
    assert!(!is_over(&core, "r1"));
    say(&mut core, 2, GuestMessage::SnapshotBegin(Seq(1)));
    say(&mut core, 2, changes(2, [1]));
    let effects = say(&mut core, 2, GuestMessage::SnapshotEnd(Seq(3)));
    confirm_all(&mut core, effects);
    assert_eq!(tick(&mut core, 9000), []);
    assert_eq!(core.app.router(RouterId(1)).unwrap().rib.routes, 1);
}

#[test]
fn a_session_that_comes_back_in_time_begins_the_hold_time_anew() {
    let mut core = ready().with_hold_time(HOLD);
    live(&mut core, 1);
    core.handle(Event::Closed(SessionId(1)));
    tick(&mut core, 100);
    tick(&mut core, 159);
    open(&mut core, 2, 1);
    tick(&mut core, 161);
    core.handle(Event::Closed(SessionId(2)));
    tick(&mut core, 162);
    tick(&mut core, 221);
    assert!(!is_over(&core, "r1"));
    tick(&mut core, 222);
    assert!(is_over(&core, "r1"));
}

#[test]
fn without_a_hold_time_nothing_is_ever_swept() {
    let mut core = ready();
    live(&mut core, 1);
    let effects = say(&mut core, 1, changes(3, 0..5));
    confirm_all(&mut core, effects);
    core.handle(Event::Closed(SessionId(1)));
    for s in [1, 1_000_000_000] {
        assert_eq!(tick(&mut core, s), []);
    }
    assert_eq!(core.app.router(RouterId(1)).unwrap().rib.routes, 5);
}

#[test]
fn routes_that_flap_are_counted_each_time() {
    let mut core = ready();
    let counted = |core: &mut Core| {
        core.handle(Event::Counted(Poll::default()));
        let counters = core.totals().get(&(Scope::Router, "r1".to_owned()));
        counters.and_then(|counters| counters.get("routes_changed")).copied()
    };
    live(&mut core, 1);
    assert_eq!(counted(&mut core), None);
    let gone = |seq| GuestMessage::Changes {
        seq: Seq(seq),
        changes: (0..5).map(|third| Change::Remove(route(third).key())).collect(),
    };
    // Between two looks they come, go and come: no more are there than one coming would leave.
    for message in [changes(3, 0..5), gone(4), changes(5, 0..5)] {
        let effects = say(&mut core, 1, message);
        confirm_all(&mut core, effects);
    }
    assert_eq!(counted(&mut core), Some(15));
    // Told again as they are, nothing has changed; one that the next snapshot leaves out goes.
    let effects = say(&mut core, 1, changes(6, 0..5));
    confirm_all(&mut core, effects);
    assert_eq!(counted(&mut core), Some(15));
    open(&mut core, 2, 1);
    for message in [GuestMessage::SnapshotBegin(Seq(1)), changes(2, 0..4), GuestMessage::SnapshotEnd(Seq(3))]
    {
        let effects = say(&mut core, 2, message);
        confirm_all(&mut core, effects);
    }
    assert_eq!(counted(&mut core), Some(16));
}

#[test]
fn limits_are_counted_for_their_router_or_the_node() {
    use crate::guest::limits::Limit;
    let mut core = ready();
    let hits = [
        ((Some(name("r1")), Limit::Refused), 2),
        ((Some(name("r9")), Limit::Refused), 3),
        ((None, Limit::Crowded), 4),
    ];
    core.handle(Event::Limited(hits.into()));
    core.handle(Event::Limited([((Some(name("r1")), Limit::Refused), 5)].into()));
    let total = |scope, of: &str, counter| core.totals()[&(scope, of.to_owned())][counter];
    assert_eq!(total(Scope::Router, "r1", "sessions_refused"), 7);
    assert_eq!(total(Scope::Node, "a", "sessions_refused"), 3);
    assert_eq!(total(Scope::Node, "a", "guest_connections_crowded"), 4);
}
