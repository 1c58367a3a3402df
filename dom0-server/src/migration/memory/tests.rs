use super::*;

const R: RouterId = RouterId(7);
const STILL: Duration = Duration::from_secs(3);

fn port(number: u128) -> Uuid {
    Uuid(number)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn look(now: u64, ports: &[u128], owner: Owner) -> Look {
    Look {
        now: s(now),
        ports: ports.iter().map(|number| port(*number)).collect(),
        session: false,
        was_home: false,
        owner,
        open: None,
        late: None,
    }
}

#[test]
fn a_guest_runs_once_it_has_spoken_and_is_gone_with_its_ports() {
    let mut memory = Memory::default();
    let mut at = |look: Look| memory.look(R, &look, STILL);
    assert_eq!(at(look(0, &[], Owner::Nobody)).guest, Guest::Gone);
    assert_eq!(at(look(0, &[], Owner::Nobody)).gone_for, Duration::MAX, "nobody has seen it go");
    assert_eq!(at(look(1, &[1], Owner::Nobody)).guest, Guest::Plugged);
    assert_eq!(at(Look { session: true, ..look(2, &[1], Owner::Here) }).guest, Guest::Running);
    assert_eq!(at(look(3, &[1], Owner::Here)).guest, Guest::Running, "a lost session is no lost guest");
    let gone = at(look(5, &[], Owner::Here));
    assert_eq!((gone.guest, gone.gone_for), (Guest::Gone, Duration::ZERO));
    assert_eq!(at(look(9, &[], Owner::Here)).gone_for, s(4));
    assert_eq!(at(look(10, &[2], Owner::Here)).guest, Guest::Plugged, "it is to speak again");
}

#[test]
fn ports_are_thinned_when_some_go_and_some_stay() {
    let mut memory = Memory::default();
    let mut at = |now, ports: &[u128]| {
        memory.look(R, &look(now, ports, Owner::Here), STILL);
        memory.thinned_for(R, s(now)).map(|since| since.as_secs())
    };
    assert_eq!(at(0, &[1]), None);
    assert_eq!(at(1, &[1, 2, 3]), None, "more come");
    assert_eq!((at(2, &[2, 3]), at(4, &[2, 3])), (Some(0), Some(2)));
    assert_eq!((at(5, &[3]), at(9, &[3, 4])), (Some(0), Some(4)));
    assert_eq!((at(10, &[]), at(11, &[1])), (None, None), "all have gone");
}

#[test]
fn a_port_has_stayed_only_if_it_was_here_with_the_addresses() {
    let mut memory = Memory::default();
    let mut stayed = |look: Look| memory.look(R, &look, STILL).stayed;
    assert!(!stayed(look(0, &[1], Owner::Other)), "it came to a router that is elsewhere");
    assert!(stayed(look(1, &[1], Owner::Here)));
    assert!(stayed(look(2, &[1], Owner::Other)), "the addresses went, it did not");
    assert!(!stayed(look(3, &[2], Owner::Other)), "another one, in its place at once");
    assert!(!stayed(look(4, &[1], Owner::Other)), "it has been away");
    assert!(stayed(Look { was_home: true, ..look(5, &[1], Owner::Other) }), "its row says so");
}

#[test]
fn deadlines_run_from_when_a_phase_was_first_read() {
    let mut memory = Memory::default();
    let mut at = |now, number, phase| {
        let look = Look { open: Some((number, phase)), ..look(now, &[1], Owner::Here) };
        memory.look(R, &look, STILL).in_phase.as_secs()
    };
    assert_eq!(at(10, 1, Phase::Staging), 0);
    assert_eq!(at(14, 1, Phase::Staging), 4);
    assert_eq!(at(15, 1, Phase::Staged), 0);
    assert_eq!(at(16, 2, Phase::Staged), 0, "another move");
}

#[test]
fn what_is_asked_is_proven_by_a_later_proof_only() {
    let mut memory = Memory::default();
    let look = look(0, &[1], Owner::Here);
    assert_eq!(memory.look(R, &look, STILL).stance, Stance::NONE);
    assert!(memory.ask(R, Stance::HOME, s(0)) && !memory.ask(R, Stance::HOME, s(0)));
    let first = memory.wanted().unwrap();
    assert!(memory.ask(R, Stance::YIELDED, s(0)));
    assert!(!memory.prove(first), "it is about what nobody asks for any more");
    assert_eq!(memory.look(R, &look, STILL).stance, Stance::NONE);
    let second = memory.wanted().unwrap();
    assert!(memory.prove(second) && !memory.prove(second));
    assert_eq!(memory.look(R, &look, STILL).stance, Stance::YIELDED);
    assert_eq!(memory.wanted(), None);
}

#[test]
fn a_gate_is_still_when_two_counts_so_far_apart_are_the_same() {
    let mut memory = Memory::default();
    let at = |memory: &mut Memory, now, late, counted| {
        memory.look(R, &Look { late: Some((late, s(counted))), ..look(now, &[], Owner::Other) }, STILL).still
    };
    memory.look(R, &look(0, &[], Owner::Other), STILL);
    memory.ask(R, Stance::LATE, s(1));
    assert!(memory.wants_counts());
    assert!(!at(&mut memory, 1, 5, 0), "counted before");
    assert!(!at(&mut memory, 9, 5, 2), "once");
    assert!(!at(&mut memory, 9, 6, 5) && !at(&mut memory, 9, 6, 7) && at(&mut memory, 9, 6, 8));
    assert!(!at(&mut memory, 10, 7, 9), "one more");
}

#[test]
fn a_router_that_is_on_its_way_when_the_daemon_starts_may_have_an_open_gate() {
    let found = |open| {
        let look = Look { open, ..look(0, &[], Owner::Other) };
        Memory::default().look(R, &look, STILL).stance.gate
    };
    assert_eq!(found(Some((1, Phase::Draining))), Gate::Late);
    assert_eq!(found(None), Gate::Closed);
}

#[test]
fn ports_to_mark_are_those_that_were_here_with_the_addresses() {
    let mut memory = Memory::default();
    memory.look(R, &look(0, &[1], Owner::Here), STILL);
    memory.look(RouterId(8), &look(0, &[2], Owner::Other), STILL);
    assert_eq!(memory.home(), [port(1)].into());
    memory.retain(&[RouterId(8)].into());
    assert!(memory.home().is_empty());
}
