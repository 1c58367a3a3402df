//! A planned move between two cores: what one says, the other hears; the rows are advanced as both ask for it. The switch does what
//! it is told at once, and guests say what guests say.

#![expect(clippy::wildcard_enum_match_arm, reason = "one kind of effect is looked for")]

use std::collections::{BTreeMap, BTreeSet};

use xenflow_flow_app::{Emission, Gate, Punts, Stance};
use xenflow_proto::Digest;
use xenflow_proto::node::SourceMessage;

use super::*;
use crate::core::Stream;
use crate::core::feeds::Fed;
use crate::db::migration::{Migration, Phase, Via};
use crate::migration::carrier::Carried;
use crate::migration::peer::outgoing::Tables;
use crate::migration::sequencer::{Run, Write};
use crate::migration::standby;

const NUMBER: u64 = 7;
const SOURCE: SessionId = SessionId(1 << 63 | 1);
const BOOT: [u8; 16] = [3; 16];

fn row(phase: Phase) -> Migration {
    Migration {
        number: NUMBER,
        router: name("r1"),
        from: name("a"),
        to: name("b"),
        via: Via::Lab,
        move_limit_s: 600,
        phase,
        generation: 0,
        yielded: false,
        left: false,
        error: String::new(),
        digest: String::new(),
        reached: BTreeMap::new(),
        counters: BTreeMap::new(),
    }
}

/// Two nodes, the row, and who has the addresses.
struct Pair {
    a: Core,
    b: Core,
    row: Migration,
    owner: &'static str,
    /// Either node is the other's standby.
    has_standby: bool,
    /// Of what is said by a connection.
    number: u64,
    seq: u64,
    /// What was said over the connection, and is not answered.
    staged: Option<Digest>,
}

fn places(core: &Core) -> BTreeSet<Place> {
    let _ = core;
    [Place { segment: name("lan"), mac: mac(1, 1) }].into()
}

impl Pair {
    fn new() -> Self {
        let core = |node: &str, ports: SwitchPorts| {
            let mut core = Core::new(name(node), 100_000);
            core.handle(Event::Desired(desired(&[1])));
            core.handle(Event::Ports(ports));
            core.handle(SWITCH_UP());
            let effects = core.handle(Event::DumpEnd);
            confirm_all(&mut core, effects);
            core
        };
        let none = SwitchPorts { ports: Vec::new(), ..ports(&[1]) };
        let (a, b) = (core("a", ports(&[1])), core("b", none));
        let (has_standby, number) = (false, NUMBER);
        let mut pair =
            Self { a, b, row: row(Phase::Aborted), owner: "a", has_standby, number, seq: 0, staged: None };
        pair.read();
        pair.row = row(Phase::Staging);
        open_as(&mut pair.a, 1);
        for message in
            [GuestMessage::SnapshotBegin(Seq(1)), changes(2, 0..200), GuestMessage::SnapshotEnd(Seq(3))]
        {
            let effects = say(&mut pair.a, 1, message);
            confirm_all(&mut pair.a, effects);
        }
        pair
    }

    fn whereabouts(&self, node: &str) -> Whereabouts {
        let its = self.owner == node;
        let places = places(&self.a);
        let is_open = !self.row.phase.is_over();
        Whereabouts {
            elsewhere: if its { BTreeSet::new() } else { places.clone() },
            hosts: places.iter().filter(|_| !its).map(|place| (place.clone(), name(self.owner))).collect(),
            own: if its { places } else { BTreeSet::new() },
            moves: is_open.then(|| (name("r1"), self.row.clone())).into_iter().collect(),
            addresses: ["a", "b"].map(|node| (name(node), "192.0.2.2:6642".parse().unwrap())).into(),
            standbys: self
                .has_standby
                .then(|| (name("r1"), vec![name("a"), name("b")]))
                .into_iter()
                .collect(),
            ..Whereabouts::default()
        }
    }

    /// Both read the rows.
    fn read(&mut self) {
        let (at_a, at_b) = (self.whereabouts("a"), self.whereabouts("b"));
        for (core, seen) in [(&mut self.a, at_a), (&mut self.b, at_b)] {
            let effects = core.handle(Event::Whereabouts(seen));
            quiet(core, effects);
        }
    }

    /// Does one of the transactions that are due, if any is; whose it was.
    fn transact(&mut self) -> Option<(&'static str, Write)> {
        let due = |core: &Core| core.due().values().next().cloned();
        let (who, due) = due(&self.a).map(|due| ("a", due)).or_else(|| Some(("b", due(&self.b)?)))?;
        assert_eq!(due.row.as_ref(), Some(&self.row), "{who} decides on the row as it is");
        match due.write {
            Write::Advance(phase) => {
                self.row.yielded |= phase == Phase::Moving;
                self.row.phase = phase;
            }
            Write::Yield => self.row.yielded = true,
            Write::Left => self.row.left = true,
            Write::Announce => {
                self.row.phase = Phase::Announced;
                self.owner = "b";
            }
            Write::Abort(_) => {
                (self.row.phase, self.row.yielded, self.row.left) = (Phase::Aborting, false, false);
                self.row.error = due.why.unwrap_or_default();
            }
            Write::Create => panic!("there is a row"),
        }
        self.read();
        Some((who, due.write))
    }

    /// The connection comes up, and the destination says what it holds.
    fn connect(&mut self) {
        let opened = if standby::is_standby(self.number) {
            Event::StandbyOpened(SOURCE, name("r1"), name("a"))
        } else {
            Event::SourceOpened(SOURCE, name("r1"), self.number)
        };
        let welcomed = self.b.handle(opened);
        let held = welcomed.iter().find_map(|effect| match effect {
            Effect::Peer(ToPeer::Welcome(SOURCE, held)) => Some(*held),
            _ => None,
        });
        let held = held.unwrap_or_else(|| panic!("not welcome: {welcomed:?}"));
        let effects = self.a.handle(Event::Feed(self.number, Fed::Connected { held, goes_on: false }));
        assert!(
            !effects.iter().any(|effect| matches!(effect, Effect::Peer(ToPeer::Feed(..)))),
            "there is no room yet"
        );
    }

    /// One message of tables, if there is one: what it was.
    fn say_one(&mut self) -> Option<Tables> {
        let effects = self.a.handle(Event::Feed(self.number, Fed::Room));
        let said = effects.into_iter().find_map(|effect| match effect {
            Effect::Peer(ToPeer::Feed(number, said)) if number == self.number => Some(said.tables),
            _ => None,
        })?;
        self.seq += 1;
        let seq = Seq(self.seq);
        let message = match &said {
            Tables::Snapshot(boot_id) => SourceMessage::SnapshotBegin { seq, boot_id: *boot_id },
            Tables::Resume => SourceMessage::Resume(seq),
            Tables::Changes(changes) => SourceMessage::Changes { seq, changes: changes.clone() },
            Tables::End(digest) => SourceMessage::SnapshotEnd { seq, digest: *digest },
        };
        let mut effects = self.b.handle(Event::SourceSaid(SOURCE, message));
        while self.b.is_behind() {
            effects.extend(self.b.handle(Event::Turn));
        }
        let all = quiet(&mut self.b, effects);
        assert_eq!(all.iter().filter(|effect| **effect == Effect::Taken(SOURCE)).count(), 1);
        self.staged = all.iter().find_map(|effect| match effect {
            Effect::Peer(ToPeer::Staged(SOURCE, of, digest)) if *of == seq => Some(*digest),
            _ => None,
        });
        if self.staged.is_some() && self.number == NUMBER {
            assert!(self.b.due().is_empty(), "the datapath has no flows yet");
            let effects = self.b.handle(Event::Ahead(BTreeSet::from([NUMBER])));
            quiet(&mut self.b, effects);
        }
        Some(said)
    }

    fn stances(&self) -> [Stance; 2] {
        [&self.a, &self.b].map(|core| core.moves.steps[&RouterId(1)].stance)
    }
}

fn open_as(core: &mut Core, id: u64) -> Vec<Effect> {
    let hello = Hello { boot_id: BOOT, ..hello("r1") };
    core.handle(Event::Opened(SessionId(id), Identity::Router(name("r1")), peer(1), hello))
}

/// The switch does everything; what is not for it comes back.
fn quiet(core: &mut Core, effects: Vec<Effect>) -> Vec<Effect> {
    let mut rest = Vec::new();
    let mut queue: VecDeque<Effect> = effects.into();
    loop {
        let Some(effect) = queue.pop_front() else {
            if !core.is_behind() {
                return rest;
            }
            queue.extend(core.handle(Event::Turn));
            continue;
        };
        let event = match effect {
            Effect::Send(id, ..) => Event::Confirmed(id, TOOK),
            Effect::Dump(_) => Event::DumpEnd,
            Effect::Prove(proof) => Event::Proven(proof, true),
            Effect::Wait(_) => Event::Waited,
            Effect::Rest(_) => Event::Rested,
            other => {
                rest.push(other);
                continue;
            }
        };
        queue.extend(core.handle(event));
    }
}

/// Nothing is counted in by a late gate, twice, with more than the time between.
fn nothing_comes(core: &mut Core) {
    for second in 1..10 {
        let effects = core.handle(Event::Tick(Duration::from_secs(second)));
        quiet(core, effects);
        let effects = core.handle(Event::Counted(Poll::default()));
        quiet(core, effects);
    }
}

#[test]
fn a_planned_move_runs_to_its_end() {
    let mut pair = Pair::new();
    pair.read();
    assert_eq!(pair.stances(), [Stance::HOME, Stance::AWAITED]);
    assert_eq!(pair.transact(), None, "the tables are not there");
    assert_eq!(pair.a.streams().values().map(|stream| stream.number).collect::<Vec<_>>(), [NUMBER]);
    pair.connect();
    assert_eq!(pair.say_one(), Some(Tables::Snapshot(BOOT)));
    let Some(Tables::Changes(told)) = pair.say_one() else { panic!("no changes") };
    assert_eq!(told.len(), 200);
    let Some(Tables::End(digest)) = pair.say_one() else { panic!("no end") };
    assert_eq!(pair.staged, Some(digest));
    assert_eq!(pair.say_one(), None, "there is nothing more");
    assert_eq!(pair.transact(), Some(("b", Write::Advance(Phase::Staged))));
    // What the guest says from now on is told at once: there was room.
    let effects = say(&mut pair.a, 1, changes(4, [250]));
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Peer(ToPeer::Feed(NUMBER, _)))),
        "{effects:?}"
    );
    quiet(&mut pair.a, effects);

    assert_eq!(pair.stances()[0], Stance::YIELDED);
    assert_eq!(pair.transact(), Some(("a", Write::Advance(Phase::Moving))));
    assert_eq!(pair.a.errands()[&NUMBER].drive, crate::migration::sequencer::Drive::Start);
    pair.a.handle(Event::Ran(NUMBER, Run::Running, None));
    assert_eq!(pair.transact(), None);

    // The guest leaves, and its ports come up over there.
    let none = SwitchPorts { ports: Vec::new(), ..ports(&[1]) };
    let effects = pair.a.handle(Event::Ports(none));
    quiet(&mut pair.a, effects);
    pair.a.handle(Event::Closed(SessionId(1)));
    assert_eq!(pair.stances()[0].punts, Punts::Relayed);
    assert!(pair.stances()[0].tables, "it goes on to forward");
    let effects = pair.b.handle(Event::Ports(ports(&[1])));
    quiet(&mut pair.b, effects);
    assert_eq!(pair.transact(), None, "nobody has said that the guest runs there");
    let is_ahead = |pair: &Pair| pair.b.megaflows().open[&NUMBER].is_ahead;
    assert_eq!((pair.stances()[1].gate, is_ahead(&pair)), (Gate::Open, true), "nothing else keeps them");
    pair.a.handle(Event::Ran(NUMBER, Run::Ended, None));
    assert_eq!(pair.transact(), Some(("a", Write::Left)));
    assert_eq!(pair.transact(), Some(("b", Write::Advance(Phase::Arrived))));
    assert_eq!(pair.stances()[1], Stance::ARRIVED);
    assert_eq!(pair.transact(), Some(("b", Write::Advance(Phase::Verified))));
    assert_eq!(pair.transact(), None, "others were not told");
    assert!(pair.b.posts().routers[&RouterId(1)].tell);
    let carried = Carried { migration: Some(NUMBER), end_mark: false, told: true };
    let effects = pair.b.handle(Event::Carried(RouterId(1), carried));
    quiet(&mut pair.b, effects);
    assert_eq!(pair.stances()[0].gate, Gate::Open, "frames may still come here");
    assert_eq!(pair.transact(), Some(("b", Write::Announce)));
    let [a, b] = pair.stances();
    assert_eq!((b.emission, b.gate, b.mute), (Emission::Router, Gate::Open, false));
    assert!(!is_ahead(&pair), "packets come");
    assert_eq!((a.emission, a.gate), (Emission::Node, Gate::Late));
    assert!(pair.b.posts().routers[&RouterId(1)].tell);
    assert!(pair.a.posts().routers[&RouterId(1)].end_mark);

    // The guest itself speaks: what is held is what it has, but for one route that the connection has not brought.
    let effects = open_as(&mut pair.b, 9);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Tell(_, HostMessage::Welcome(_)))),
        "{effects:?}"
    );
    assert!(pair.b.sessions.contains_key(&SOURCE), "frames still come by it");
    assert_eq!(pair.transact(), None, "frames from a may still come");
    let carried = Carried { migration: Some(NUMBER), end_mark: true, told: true };
    let effects = pair.b.handle(Event::Carried(RouterId(1), carried));
    quiet(&mut pair.b, effects);
    assert_eq!(pair.transact(), Some(("b", Write::Advance(Phase::Draining))));
    assert_eq!(pair.stances()[1], Stance::HOME);
    assert_eq!(pair.transact(), None, "late frames may come");
    nothing_comes(&mut pair.a);
    assert_eq!(pair.stances()[0], Stance::NONE);
    assert_eq!(pair.transact(), Some(("a", Write::Advance(Phase::Done))));
    assert_eq!(pair.stances(), [Stance::NONE, Stance::HOME]);
    assert!(pair.a.streams().is_empty() && pair.a.errands().is_empty());
}

#[test]
fn a_standby_has_the_tables_before_a_move_and_after_it() {
    let r1 = RouterId(1);
    let mut pair = Pair::new();
    (pair.has_standby, pair.row.phase, pair.number) = (true, Phase::Aborted, standby::number(r1));
    pair.read();
    assert_eq!(pair.stances(), [Stance::HOME, Stance::STANDBY]);
    let streams = |core: &Core| -> Vec<(u64, String)> {
        core.streams().values().map(|stream| (stream.number, stream.to.to_string())).collect()
    };
    assert_eq!(streams(&pair.a), [(pair.number, "b".to_owned())]);
    // Only by who has the router.
    let stranger = SessionId(SOURCE.0 + 1);
    let effects = pair.b.handle(Event::StandbyOpened(stranger, name("r1"), name("c")));
    assert!(matches!(&effects[..], [Effect::Refuse(of, ..)] if *of == stranger), "{effects:?}");
    pair.connect();
    assert_eq!(pair.say_one(), Some(Tables::Snapshot(BOOT)));
    let rehearses = |core: &Core| core.app.topology().rehearsed.contains(&r1);
    assert!(!rehearses(&pair.b), "its tables are not whole");
    while pair.say_one().is_some() {}
    let held = |core: &Core| core.app.held(r1, &BOOT);
    assert_eq!(held(&pair.b), held(&pair.a));
    assert!(rehearses(&pair.b));
    assert!(pair.a.due().is_empty() && pair.b.due().is_empty());
    // Whatever time passes.
    let effects = pair.b.handle(Event::Tick(Duration::from_secs(100_000)));
    quiet(&mut pair.b, effects);
    assert_eq!(held(&pair.b), held(&pair.a));

    // A move has nothing to tell but that.
    (pair.row.phase, pair.number, pair.seq) = (Phase::Staging, NUMBER, 0);
    pair.read();
    assert_eq!(pair.stances(), [Stance::HOME, Stance::AWAITED]);
    assert_eq!(streams(&pair.a), [(NUMBER, "b".to_owned())]);
    assert!(rehearses(&pair.b), "no flow of the datapath is to be made anew");
    pair.connect();
    assert_eq!(pair.say_one(), Some(Tables::Resume));
    assert!(matches!(pair.say_one(), Some(Tables::End(_))));
    assert_eq!(pair.transact(), Some(("b", Write::Advance(Phase::Staged))));

    // It is done; the guest is there.
    (pair.row.phase, pair.owner) = (Phase::Done, "b");
    let none = SwitchPorts { ports: Vec::new(), ..ports(&[1]) };
    let effects = pair.a.handle(Event::Ports(none));
    quiet(&mut pair.a, effects);
    pair.read();
    nothing_comes(&mut pair.a);
    assert_eq!(pair.stances()[0], Stance::STANDBY);
    assert!(rehearses(&pair.a), "they are whole, as they were");
    assert!(held(&pair.a).is_some_and(|digest| digest.objects > 0));
    assert_eq!(streams(&pair.b), [(standby::number(r1), "a".to_owned())]);
}

/// Whoever keeps the connections sees only the last of several values.
#[test]
fn tables_that_are_told_anew_are_told_by_another_connection() {
    let mut pair = Pair::new();
    (pair.has_standby, pair.row.phase) = (true, Phase::Aborted);
    pair.read();
    let before = pair.a.streams().clone();
    for has_standby in [false, true] {
        pair.has_standby = has_standby;
        pair.read();
    }
    let number = |streams: &BTreeMap<RouterId, Stream>| streams[&RouterId(1)].number;
    assert_eq!(number(&before), number(pair.a.streams()));
    assert_ne!(before, *pair.a.streams());
}

#[test]
fn tables_that_change_on_the_way_are_told_as_they_are_at_last() {
    let mut pair = Pair::new();
    pair.read();
    pair.connect();
    pair.say_one();
    let mut seq = 3;
    for third in 0..100 {
        seq += 1;
        let removal =
            GuestMessage::Changes { seq: Seq(seq), changes: vec![Change::Remove(route(third).key())] };
        let effects = say(&mut pair.a, 1, removal);
        quiet(&mut pair.a, effects);
    }
    while pair.say_one().is_some() {}
    let held = |core: &Core| core.app.held(RouterId(1), &BOOT);
    assert_eq!(held(&pair.a).map(|digest| digest.objects), Some(100));
    assert_eq!(held(&pair.b), held(&pair.a));
    assert_eq!(pair.transact(), Some(("b", Write::Advance(Phase::Staged))));
}

#[test]
fn tables_that_are_not_the_same_are_not_staged() {
    let mut pair = Pair::new();
    pair.read();
    pair.connect();
    pair.say_one();
    pair.say_one();
    let wrong = Digest { objects: 200, sum: 1 };
    let message = SourceMessage::SnapshotEnd { seq: Seq(3), digest: wrong };
    let effects = pair.b.handle(Event::SourceSaid(SOURCE, message));
    let effects = quiet(&mut pair.b, effects);
    let refused = effects.iter().find_map(|effect| match effect {
        Effect::Refuse(SOURCE, RefusalReason::Protocol, detail) => Some(detail.clone()),
        _ => None,
    });
    let refused = refused.unwrap_or_else(|| panic!("{effects:?}"));
    assert!(refused.starts_with("the tables are not the same: 200 objects, sum "), "{refused}");
    assert_eq!(pair.transact(), None);
}

#[test]
fn a_toolstack_that_cannot_begin_aborts_the_move_in_its_own_words() {
    let mut pair = Pair::new();
    pair.read();
    pair.connect();
    while pair.say_one().is_some() {}
    assert_eq!(pair.transact(), Some(("b", Write::Advance(Phase::Staged))));
    assert_eq!(pair.transact(), Some(("a", Write::Advance(Phase::Moving))));
    let why = "no command moves a guest by lab".to_owned();
    let effects = pair.a.handle(Event::Ran(NUMBER, Run::None, Some(why.clone())));
    quiet(&mut pair.a, effects);
    assert!(matches!(pair.transact(), Some(("a", Write::Abort(_)))));
    assert_eq!(pair.row.error, why);
    assert_eq!(pair.transact(), Some(("a", Write::Advance(Phase::Aborted))));
    assert_eq!(pair.stances(), [Stance::HOME, Stance::NONE]);
    let held = pair.b.app.held(RouterId(1), &BOOT);
    assert!(held.is_some(), "what was told is held: the next move resumes from it");
    // And it does.
    pair.row = Migration { number: NUMBER, ..row(Phase::Staging) };
    pair.read();
    pair.connect();
    pair.seq = 0;
    assert_eq!(pair.say_one(), Some(Tables::Resume));
    assert!(matches!(pair.say_one(), Some(Tables::End(_))));
    assert_eq!(pair.transact(), Some(("b", Write::Advance(Phase::Staged))));
}

#[test]
fn the_addresses_of_a_router_stay_while_its_ports_go_one_by_one() {
    let mut pair = Pair::new();
    let mut plugged = ports(&[1]);
    plugged.ports.iter_mut().for_each(|port| port.is_up = true);
    // The control vif is the last that goes; nobody has planned it.
    while !plugged.ports.is_empty() {
        let effects = pair.a.handle(Event::Ports(plugged.clone()));
        confirm_all(&mut pair.a, effects);
        assert_eq!(pair.a.here().map(|here| (**here).clone()), Some(places(&pair.a)), "{:?}", plugged.ports);
        plugged.ports.remove(0);
    }
}

/// Of a daemon that was killed while it was the source, and starts when the guest is elsewhere: the tables of that are in the
/// switch, and nobody tells them any more.
#[test]
fn what_a_former_life_has_left_in_the_switch_goes_with_the_end_of_its_part() {
    let mut pair = Pair::new();
    pair.row.phase = Phase::Draining;
    pair.owner = "b";
    let mut core = Core::new(name("a"), 100_000);
    core.handle(Event::Desired(desired(&[1])));
    core.handle(Event::Ports(SwitchPorts { ports: Vec::new(), ..ports(&[1]) }));
    core.handle(Event::Whereabouts(pair.whereabouts("a")));
    core.handle(SWITCH_UP());
    let mut queue: VecDeque<Effect> = core.handle(Event::DumpEnd).into();
    let (mut second, mut is_removed) = (0, false);
    while second < 20 {
        let Some(effect) = queue.pop_front() else {
            second += 1;
            queue.extend(core.handle(Event::Tick(Duration::from_secs(second))));
            queue.extend(core.handle(Event::Counted(Poll::default())));
            continue;
        };
        let event = match effect {
            Effect::Send(id, _, changes) => {
                is_removed |= changes.contains(&FlowChange::RemoveRouter(RouterId(1)));
                Event::Confirmed(id, TOOK)
            }
            Effect::Dump(_) => Event::DumpEnd,
            Effect::Prove(proof) => Event::Proven(proof, true),
            _ => continue,
        };
        queue.extend(core.handle(event));
    }
    assert_eq!(core.moves.steps[&RouterId(1)].stance, Stance::NONE);
    assert!(is_removed, "its flows are in the switch for good");
    assert!(core.due().values().any(|due| due.write == Write::Advance(Phase::Done)));
}

/// Nobody has told it the tables before its guest, and the switch takes longer for them than anybody waits.
#[test]
fn a_node_that_got_a_guest_by_hand_goes_on_when_the_switch_has_the_last_of_its_tables() {
    let mut pair = Pair::new();
    pair.row = Migration { via: Via::Other, yielded: true, left: true, ..row(Phase::Arrived) };
    pair.read();
    let effects = pair.b.handle(Event::Ports(ports(&[1])));
    quiet(&mut pair.b, effects);
    open_as(&mut pair.b, 9);
    let (mut bundles, mut queue) = (VecDeque::new(), VecDeque::new());
    let messages =
        [GuestMessage::SnapshotBegin(Seq(1)), changes(2, 0..250), GuestMessage::SnapshotEnd(Seq(3))];
    let words = messages.map(|message| Event::Said(SessionId(9), message));
    let seconds = (1..30).map(|second| Event::Tick(Duration::from_secs(second)));
    let is_due = |core: &Core| core.due().values().any(|due| due.write == Write::Advance(Phase::Verified));
    for event in words.into_iter().chain(seconds) {
        queue.extend(pair.b.handle(event));
        while pair.b.is_behind() {
            queue.extend(pair.b.handle(Event::Turn));
        }
        while let Some(effect) = queue.pop_front() {
            assert!(!is_due(&pair.b), "the switch has not all of its tables");
            queue.extend(match effect {
                Effect::Dump(_) => pair.b.handle(Event::DumpEnd),
                Effect::Prove(proof) => pair.b.handle(Event::Proven(proof, true)),
                // It takes its time.
                Effect::Send(id, ..) => {
                    bundles.push_back(id);
                    Vec::new()
                }
                _ => Vec::new(),
            });
        }
    }
    assert!(!bundles.is_empty());
    while let Some(id) = bundles.pop_front() {
        assert!(!is_due(&pair.b), "the switch has not all of its tables");
        let gate = pair.stances()[1].gate;
        assert_eq!(gate, Gate::Closed, "the guest would get what it cannot hand on yet");
        let effects = pair.b.handle(Event::Confirmed(id, TOOK));
        let is_last = bundles.is_empty() && pair.b.app.backlog(RouterId(1)) == 0;
        if is_last {
            quiet(&mut pair.b, effects);
            break;
        }
        for effect in effects {
            if let Effect::Send(id, ..) = effect {
                bundles.push_back(id);
            }
        }
    }
    assert_eq!(pair.stances()[1].gate, Gate::Open);
    assert!(is_due(&pair.b));
}
