use super::explore::{Explored, explore};
use super::world::{Budget, Sequencer, World};
use super::*;

const NOTHING: Budget = Budget {
    planned: 0,
    by_hand: 0,
    crashes: 0,
    aborts: 0,
    failures: 0,
    cuts: 0,
    unable: 0,
    repeats: 0,
    deadlines: 0,
    presumed_dead: 0,
    deaths: 0,
};
const PLANNED: Budget = Budget { planned: 1, ..NOTHING };
const BY_HAND: Budget = Budget { by_hand: 1, ..NOTHING };

fn holds(budget: Budget) -> Explored {
    match explore(World::new(budget), step) {
        Ok(found) => {
            println!("{} states, {} steps with {budget:?}", found.states, found.steps);
            found
        }
        Err(way) => panic!("{budget:?}\n{way}"),
    }
}

#[test]
fn a_move_that_nothing_disturbs_is_done() {
    for budget in [PLANNED, BY_HAND] {
        let found = holds(budget);
        assert!(found.done > 0 && found.aborted == 0, "{found:?}");
    }
}

/// The tables that are there before do not change what may happen, and stay at either node.
#[test]
fn a_standby_keeps_the_tables_whatever_happens() {
    let standby = |budget| explore(World::new(budget).with_standby(), step).unwrap();
    let found = standby(Budget { crashes: 1, aborts: 1, ..PLANNED });
    assert!(found.done > 0 && found.aborted > 0, "{found:?}");
    for budget in [BY_HAND, Budget { planned: 2, ..NOTHING }, Budget { presumed_dead: 1, ..PLANNED }] {
        assert!(standby(budget).done > 0);
    }
}

#[test]
fn any_daemon_dies_at_any_step_of_a_planned_move() {
    assert!(holds(Budget { crashes: 2, ..PLANNED }).done > 0);
}

#[test]
fn any_daemon_dies_at_any_step_of_a_move_by_hand() {
    assert!(holds(Budget { crashes: 1, ..BY_HAND }).done > 0);
}

#[test]
fn the_operator_aborts_at_any_step() {
    let found = holds(Budget { aborts: 1, crashes: 1, ..PLANNED });
    assert!(found.done > 0 && found.aborted > 0, "{found:?}");
}

#[test]
fn the_toolstack_fails_at_any_step() {
    for budget in [Budget { crashes: 1, ..PLANNED }, Budget { aborts: 1, ..PLANNED }] {
        let found = holds(Budget { failures: 1, ..budget });
        assert!(found.done > 0 && found.aborted > 0, "{found:?}");
    }
    holds(Budget { failures: 1, ..BY_HAND });
}

#[test]
fn a_deadline_passes_at_any_step() {
    for budget in [PLANNED, BY_HAND] {
        assert!(holds(Budget { deadlines: 1, ..budget }).done > 0);
    }
}

#[test]
fn the_link_is_cut_and_transactions_come_twice() {
    assert!(holds(Budget { cuts: 1, repeats: 1, ..PLANNED }).done > 0);
    assert!(holds(Budget { repeats: 1, ..BY_HAND }).done > 0);
}

#[test]
fn a_node_cannot_go_on() {
    let found = holds(Budget { unable: 1, ..PLANNED });
    assert!(found.done > 0 && found.aborted > 0, "{found:?}");
}

/// What it was not, or what died behind the guest: the destination goes on without it.
#[test]
fn the_source_is_taken_for_dead() {
    for budget in [PLANNED, BY_HAND] {
        assert!(holds(Budget { presumed_dead: 1, ..budget }).done > 0);
        assert!(holds(Budget { deaths: 1, ..budget }).done > 0);
    }
}

#[test]
fn a_second_move_may_follow_at_any_moment() {
    for budget in [Budget { planned: 2, ..NOTHING }, Budget { by_hand: 1, ..PLANNED }] {
        assert!(holds(budget).done > 0);
    }
}

#[test]
fn a_second_move_follows_one_that_was_aborted() {
    let found = holds(Budget { planned: 2, aborts: 1, ..NOTHING });
    assert!(found.done > 0 && found.aborted > 0, "{found:?}");
}

#[test]
fn a_source_that_lets_a_guest_speak_that_was_elsewhere_meanwhile_is_caught() {
    breaks(Budget { by_hand: 1, ..PLANNED }, "node 0 emits", |open, facts, limits| {
        let right = step(open, facts, limits);
        let is_trusted = is_at(open, Role::Source, Phase::Moving) && facts.guest == Guest::Running;
        Step { stance: Stance { mute: right.stance.mute && !is_trusted, ..right.stance }, ..right }
    });
}

/// A variant of the sequencer breaks the law that it should.
fn breaks(budget: Budget, what: &str, variant: Sequencer) {
    match explore(World::new(budget), variant) {
        Ok(found) => panic!("{what}: nothing is found: {found:?}"),
        Err(way) => assert!(way.contains(what), "{what}: {way}"),
    }
}

fn is_at(open: Option<&Open>, role: Role, phase: Phase) -> bool {
    open.is_some_and(|open| open.role == role && open.phase == phase)
}

#[test]
fn a_source_that_removes_its_flows_when_the_guest_has_arrived_is_caught() {
    breaks(PLANNED, "nobody forwards", |open, facts, limits| {
        let right = step(open, facts, limits);
        let too_early = is_at(open, Role::Source, Phase::Arrived);
        Step { stance: if too_early { Stance::NONE } else { right.stance }, ..right }
    });
}

#[test]
fn a_source_that_does_not_wait_for_late_frames_is_caught() {
    breaks(PLANNED, "nobody forwards what others send to node 0", |open, facts, limits| {
        let hasty = Facts { still: true, ..*facts };
        step(open, if is_at(open, Role::Source, Phase::Draining) { &hasty } else { facts }, limits)
    });
}

#[test]
fn a_destination_that_announces_before_it_is_verified_is_caught() {
    breaks(PLANNED, "nobody forwards", |open, facts, limits| {
        let right = step(open, facts, limits);
        let too_early = is_at(open, Role::Destination, Phase::Arrived);
        Step { write: if too_early { Some(Write::Announce) } else { right.write }, ..right }
    });
}

#[test]
fn a_destination_that_speaks_before_it_has_announced_is_caught() {
    breaks(PLANNED, "node 1 emits", |open, facts, limits| {
        let right = step(open, facts, limits);
        let too_early = is_at(open, Role::Destination, Phase::Arrived);
        Step { stance: Stance { mute: !too_early && right.stance.mute, ..right.stance }, ..right }
    });
}

#[test]
fn a_destination_that_does_not_wait_for_the_source_to_yield_is_caught() {
    breaks(BY_HAND, "node 0 emits", |open, facts, limits| {
        let open = open.map(|open| Open { yielded: open.yielded || open.role == Role::Destination, ..*open });
        step(open.as_ref(), facts, limits)
    });
}

#[test]
fn a_source_that_lets_the_guest_go_before_it_has_yielded_is_caught() {
    breaks(PLANNED, "node 0 emits", |open, facts, limits| {
        let yielded = Stance { emission: Emission::Node, ..facts.stance };
        step(open, &Facts { stance: yielded, ..*facts }, limits)
    });
}

#[test]
fn a_source_that_lets_the_guest_go_before_it_copies_is_caught() {
    breaks(PLANNED, "punts of the guest", |open, facts, limits| {
        let copied = Stance { punts: Punts::Copied, ..facts.stance };
        let is_staged = is_at(open, Role::Source, Phase::Staged);
        step(open, &Facts { stance: if is_staged { copied } else { facts.stance }, ..*facts }, limits)
    });
}

#[test]
fn a_destination_that_forwards_and_does_not_answer_is_caught() {
    breaks(PLANNED, "nobody answers the hosts on node 1", |open, facts, limits| {
        let right = step(open, facts, limits);
        let answers = right.stance.answers && !is_at(open, Role::Destination, Phase::Moving);
        Step { stance: Stance { answers, ..right.stance }, ..right }
    });
    breaks(BY_HAND, "nobody answers the hosts on node 1", |open, facts, limits| {
        let right = step(open, facts, limits);
        let answers = right.stance.answers && !is_at(open, Role::Destination, Phase::Arrived);
        Step { stance: Stance { answers, ..right.stance }, ..right }
    });
    breaks(PLANNED, "nobody answers the hosts on node 1", |open, facts, limits| {
        let right = step(open, facts, limits);
        let answers = right.stance.answers && !is_at(open, Role::Destination, Phase::Announced);
        Step { stance: Stance { answers, ..right.stance }, ..right }
    });
}

#[test]
fn an_abort_after_the_announcement_is_caught() {
    breaks(PLANNED, "node 1 owns the router in phase aborting", |open, facts, limits| {
        let right = step(open, facts, limits);
        let too_late = is_at(open, Role::Source, Phase::Announced);
        let abort = Some(Write::Abort(Reason::Expired(Phase::Announced)));
        Step { write: if too_late { abort } else { right.write }, ..right }
    });
}

#[test]
fn a_destination_that_believes_in_an_abort_when_the_guest_has_come_is_caught() {
    let budget = Budget { aborts: 1, ..PLANNED };
    breaks(budget, "from here it never becomes clean", |open, facts, limits| {
        let right = step(open, facts, limits);
        let is_late = is_at(open, Role::Destination, Phase::Aborting);
        Step { write: right.write.filter(|_| !is_late), ..right }
    });
}

#[test]
fn a_source_that_leaves_something_behind_is_caught() {
    breaks(PLANNED, "from here it never becomes clean", |open, facts, limits| {
        let right = step(open, facts, limits);
        let is_gone = is_at(open, Role::Source, Phase::Draining);
        let answers = right.stance.answers || is_gone;
        Step { stance: Stance { answers, ..right.stance }, ..right }
    });
}

const HOME: Facts = Facts {
    guest: Guest::Running,
    stayed: true,
    gone_for: Duration::ZERO,
    owner: Owner::Here,
    stance: Stance::HOME,
    standby: false,
    run: Run::None,
    staged: false,
    end_mark: false,
    told: false,
    still: false,
    unable: false,
    in_phase: Duration::ZERO,
};

fn open(role: Role, phase: Phase) -> Open {
    let move_limit = Duration::from_secs(600);
    Open { role, phase, yielded: false, left: false, driven: true, move_limit }
}

fn after(seconds: u64, open: &Open, facts: &Facts) -> Step {
    let facts = Facts { in_phase: Duration::from_secs(seconds), ..*facts };
    step(Some(open), &facts, &Limits::default())
}

#[test]
fn deadlines_have_reasons_and_come_once() {
    let staging = open(Role::Source, Phase::Staging);
    let before = after(299, &staging, &HOME);
    let wake = Wake { after: Duration::from_secs(1), why: "the destination installs the tables" };
    assert_eq!((before.wake, before.write), (Some(wake), None));
    let then = after(300, &staging, &HOME);
    assert_eq!((then.wake, then.write), (None, Some(Write::Abort(Reason::Expired(Phase::Staging)))));
    assert_eq!(Reason::Expired(Phase::Staging).to_string(), "staging took longer than its limit");
}

#[test]
fn a_guest_that_has_left_is_waited_for_and_not_called_back() {
    let moving = open(Role::Source, Phase::Moving);
    let away = Facts { guest: Guest::Gone, stance: Stance::AWAY, run: Run::Running, ..HOME };
    let late = after(600, &moving, &away);
    assert_eq!((late.write, late.overdue), (None, Some("the guest has left, and does not arrive")));
    assert_eq!(after(600, &moving, &HOME).write, Some(Write::Abort(Reason::Expired(Phase::Moving))));
}

#[test]
fn a_router_that_is_not_here_is_not_moved_from_here() {
    let staging = open(Role::Source, Phase::Staging);
    let elsewhere = Facts { guest: Guest::Gone, owner: Owner::Other, stance: Stance::NONE, ..HOME };
    let step = after(0, &staging, &elsewhere);
    assert_eq!(
        (step.write, step.stance, step.stream),
        (Some(Write::Abort(Reason::NotHere)), Stance::NONE, false)
    );
}

#[test]
fn a_guest_that_vanishes_is_stood_in_for_until_its_deadline() {
    let gone = |seconds| Facts { guest: Guest::Gone, gone_for: Duration::from_secs(seconds), ..HOME };
    let first = step(None, &gone(59), &Limits::default());
    assert_eq!((first.stance, first.claim), (Stance { mute: true, ..Stance::AWAY }, true));
    let last = step(None, &gone(60), &Limits::default());
    assert_eq!((last.stance.gate, last.stance.tables, last.claim), (Gate::Closed, true, false));
    let closed = Facts { stance: last.stance, ..gone(60) };
    assert_eq!(step(None, &closed, &Limits::default()).stance, Stance::NONE);
}
