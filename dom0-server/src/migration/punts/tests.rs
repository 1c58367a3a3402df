//! What the guest gets, whatever comes in between.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;
use xenflow_proto::node::PuntKind;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const WIDE: Bounds = Bounds { frames: 1000, bytes: 1 << 20, age: Duration::from_secs(3600) };

/// A frame that says which one it is.
fn frame(id: u32, len: usize) -> Punt {
    let mut bytes = vec![0; len.max(MIN_FRAME_BYTES)];
    bytes[..4].copy_from_slice(&id.to_be_bytes());
    Punt { vif: 1, kind: PuntKind::Punt, frame: Bytes::from(bytes) }
}

fn id(punt: &Punt) -> u32 {
    u32::from_be_bytes(punt.frame[..4].try_into().unwrap())
}

fn ids(punts: &[Punt]) -> Vec<u32> {
    punts.iter().map(id).collect()
}

#[test]
fn a_queue_refuses_what_does_not_fit_and_says_why() {
    let bounds = Bounds { frames: 3, bytes: 1000, age: SECOND };
    let mut queue = Queue::new(bounds);
    let now = Duration::ZERO;
    assert_eq!(queue.push(frame(1, 9217), now), Err(Cause::Length));
    assert_eq!(
        queue.push(Punt { frame: Bytes::from_static(&[0; 13]), ..frame(2, 14) }, now),
        Err(Cause::Length)
    );
    assert_eq!(queue.push(frame(3, 500), now), Ok(()));
    assert_eq!(queue.push(frame(4, 500), now), Err(Cause::Bytes), "its place costs as well");
    assert_eq!(queue.push(frame(5, 20), now), Ok(()));
    assert_eq!(queue.push(frame(6, 20), now + SECOND), Ok(()));
    assert_eq!(queue.push(frame(7, 20), now + SECOND), Err(Cause::Frames));
    assert_eq!((queue.len(), queue.bytes()), (3, 500 + 20 + 20 + 3 * OVERHEAD));
    // The first two are older than a second now.
    let later = now + SECOND + Duration::from_millis(1);
    assert_eq!(queue.pop(later).as_ref().map(id), Some(6));
    assert_eq!(queue.pop(later), None);
    let counters = queue.counters();
    let lost = Cause::ALL.map(|cause| counters.lost(cause));
    assert_eq!((counters.came, counters.went, lost), (7, 1, [1, 1, 2, 2, 0]));
    assert_eq!(counters.all_lost(), 6);
    assert_eq!(queue.bytes(), 0);
    let names: BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.counter()).collect();
    assert_eq!(names.len(), Cause::ALL.len());
}

#[test]
fn a_ring_has_the_newest_as_copies() {
    let bounds = Bounds { frames: 3, bytes: 1000, age: SECOND };
    let mut ring = Ring::new(bounds);
    for number in 0..10 {
        ring.push(frame(number, 20), Duration::from_millis(u64::from(number) * 400));
        assert!(ring.len() <= bounds.frames && ring.bytes() <= bounds.bytes);
    }
    let copies = ring.clone().take(Duration::from_millis(3600));
    assert_eq!(ids(&copies), [7, 8, 9]);
    assert!(copies.iter().all(|punt| punt.kind == PuntKind::Copy));
    assert_eq!(ids(&ring.clone().take(Duration::from_millis(4000))), [8, 9]);
    ring.push(frame(10, 700), Duration::from_millis(3600));
    assert_eq!(ids(&ring.clone().take(Duration::from_millis(3600))), [9, 10]);
    ring.push(frame(11, 5000), Duration::from_millis(3600));
    assert!(ring.is_empty(), "one that fits by no means leaves nothing");
}

#[test]
fn a_destination_that_died_gets_what_its_guest_has_not_been_given() {
    let now = Duration::ZERO;
    let mut relay = Relay::new(WIDE);
    (0..10).for_each(|number| assert!(relay.push(frame(number, 60), now).is_ok()));
    relay.connected(1);
    assert_eq!(relay.batch(now).map(|(first, all)| (first, ids(&all))), Some((1, (0..10).collect())));
    assert_eq!(relay.batch(now), None);
    relay.given(4);
    assert_eq!(relay.len(), 6);
    // It has forgotten everything.
    relay.connected(1);
    assert_eq!(relay.batch(now).map(|(first, all)| (first, ids(&all))), Some((5, (4..10).collect())));
    relay.end();
    assert_eq!(relay.push(frame(99, 60), now), Err(Cause::Ended));
    assert_eq!((relay.end_mark(), relay.end_mark()), (Some(10), None));
    relay.connected(11);
    assert_eq!((relay.batch(now), relay.end_mark()), (None, Some(10)), "again over each connection");
    relay.given(u64::MAX);
    assert!(relay.is_done());
}

#[test]
fn a_guest_that_is_back_is_given_what_it_may_not_have() {
    let now = Duration::ZERO;
    let mut relay = Relay::new(WIDE);
    (0..5).for_each(|number| assert!(relay.push(frame(number, 60), now).is_ok()));
    assert_eq!((relay.given(3), relay.len()), (0, 5), "nothing was sent");
    relay.connected(1);
    relay.batch(now);
    assert_eq!(relay.given(3), 3);
    assert_eq!(ids(&relay.take_back(now)), [3, 4]);
    assert_eq!((relay.returned(), relay.bytes(), relay.batch(now)), (2, 0, None));
    assert_eq!(relay.push(frame(5, 60), now), Ok(6), "numbers go on");
    assert_eq!(relay.batch(now).map(|(first, _)| first), Some(6));
}

#[test]
fn another_life_of_the_source_begins_anew_behind_the_first() {
    let now = Duration::ZERO;
    let mut keeper = Keeper::new(WIDE);
    assert_eq!(keeper.connected(7), 1);
    (1..4).for_each(|number| keeper.relayed(number, frame(number as u32, 60), now));
    assert_eq!((keeper.connected(7), keeper.settled()), (4, 0));
    assert_eq!(ids(&keeper.release(1, now)), [1]);
    assert_eq!(keeper.settled(), 1);
    assert_eq!(keeper.connected(8), 1);
    assert_eq!(keeper.settled(), 0, "of this one nothing came");
    keeper.own(frame(50, 60), now);
    keeper.relayed(1, frame(11, 60), now);
    keeper.relayed(1, frame(12, 60), now);
    assert_eq!(ids(&keeper.release(100, now)), [2, 3, 11]);
    assert_eq!((keeper.settled(), keeper.twice(), keeper.is_through()), (1, 1, false));
    keeper.go_without_end_mark();
    keeper.relayed(4, frame(14, 60), now);
    assert_eq!(ids(&keeper.release(100, now)), [14, 50], "what comes nevertheless comes first");
    assert_eq!((keeper.missed(), keeper.is_through()), (2, true));
    keeper.end_mark(6);
    assert_eq!((keeper.missed(), keeper.connected(8)), (4, 7));
}

#[derive(Debug, Clone)]
enum Op {
    /// A frame of this length comes to the source.
    Source(usize),
    /// … to the destination.
    Own(usize),
    /// The source sends what it has.
    Send,
    /// The oldest message on its way arrives.
    Arrive,
    /// The destination's word of what was given arrives.
    Confirm,
    /// The connection is another one; what was on its way is lost, or arrives late over the old one.
    Break { repeats: bool },
    /// The source has no more.
    End,
    /// The guest takes so many.
    Release(usize),
    /// Time goes by.
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (14usize..400).prop_map(Op::Source),
        4 => (14usize..400).prop_map(Op::Own),
        4 => Just(Op::Send),
        4 => Just(Op::Arrive),
        2 => Just(Op::Confirm),
        2 => any::<bool>().prop_map(|repeats| Op::Break { repeats }),
        1 => Just(Op::End),
        3 => (1usize..20).prop_map(Op::Release),
        1 => (0u64..400).prop_map(Op::Wait),
    ]
}

#[derive(Debug, Clone)]
enum Message {
    Punts(u64, Vec<Punt>),
    EndMark(u64),
}

/// Both ends, and what is on its way between them.
struct Both {
    relay: Relay,
    keeper: Keeper,
    on_the_way: VecDeque<Message>,
    now: Duration,
    bounds: Bounds,
    last: u32,
    /// Frames that an end has taken in, by where they came.
    sources: Vec<u32>,
    own: Vec<u32>,
    given: Vec<u32>,
}

impl Both {
    fn new(bounds: Bounds) -> Self {
        let (mut relay, mut keeper) = (Relay::new(bounds), Keeper::new(bounds));
        relay.connected(keeper.connected(1));
        let (on_the_way, now) = (VecDeque::new(), Duration::ZERO);
        Self { relay, keeper, on_the_way, now, bounds, last: 0, sources: vec![], own: vec![], given: vec![] }
    }

    fn fresh(&mut self, len: usize) -> Punt {
        self.last += 1;
        frame(self.last, len)
    }

    fn arrive(&mut self, message: Message) {
        match message {
            Message::Punts(first, punts) => {
                for (number, punt) in (first..).zip(punts) {
                    self.keeper.relayed(number, punt, self.now);
                }
            }
            Message::EndMark(last) => self.keeper.end_mark(last),
        }
    }

    fn release(&mut self, most: usize) {
        let was_whole = self.keeper.is_whole;
        let released = ids(&self.keeper.release(most, self.now));
        if !was_whole {
            assert!(released.iter().all(|id| !self.own.contains(id)), "own ones wait for the end mark");
        }
        self.given.extend(released);
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Source(len) => {
                let punt = self.fresh(len);
                self.sources.push(id(&punt));
                let _ = self.relay.push(punt, self.now);
            }
            Op::Own(len) => {
                let punt = self.fresh(len);
                self.own.push(id(&punt));
                self.keeper.own(punt, self.now);
            }
            Op::Send => {
                while let Some((first, punts)) = self.relay.batch(self.now) {
                    self.on_the_way.push_back(Message::Punts(first, punts));
                }
                self.on_the_way.extend(self.relay.end_mark().map(Message::EndMark));
            }
            Op::Arrive => {
                if let Some(message) = self.on_the_way.pop_front() {
                    self.arrive(message);
                }
            }
            Op::Confirm => {
                self.relay.given(self.keeper.settled());
            }
            Op::Break { repeats } => {
                let lost = std::mem::take(&mut self.on_the_way);
                self.relay.connected(self.keeper.connected(1));
                if repeats {
                    lost.into_iter().for_each(|message| self.arrive(message));
                }
            }
            Op::End => self.relay.end(),
            Op::Release(most) => self.release(most),
            Op::Wait(ms) => self.now += Duration::from_millis(ms),
        }
        self.holds();
    }

    /// What holds at any time.
    fn holds(&self) {
        let Bounds { frames, bytes, .. } = self.bounds;
        assert!(self.relay.len() <= frames && self.relay.bytes() <= bytes);
        assert!(self.keeper.kept().iter().all(|(len, cost)| *len <= frames && *cost <= bytes));
        let sum = |it: Counters, kept: usize| it.went + it.all_lost() + kept as u64;
        let [(relayed, _), (own, _)] = self.keeper.kept();
        assert_eq!(self.relay.counters().came, sum(self.relay.counters(), self.relay.len()));
        assert_eq!(self.keeper.relayed_counters().came, sum(self.keeper.relayed_counters(), relayed));
        assert_eq!(self.keeper.own_counters().came, sum(self.keeper.own_counters(), own));
        assert_eq!(self.relay.counters().came, self.sources.len() as u64);
        assert_eq!(self.keeper.own_counters().came, self.own.len() as u64);
    }

    /// Without further trouble everything arrives.
    fn settle(&mut self) {
        self.relay.end();
        self.step(&Op::Break { repeats: false });
        self.step(&Op::Send);
        while !self.on_the_way.is_empty() {
            self.step(&Op::Arrive);
        }
        self.release(usize::MAX);
        self.step(&Op::Confirm);
        assert!(self.keeper.is_through() && self.relay.is_done());
        assert_eq!(self.keeper.kept(), [(0, 0), (0, 0)]);

        let of = |all: &[u32]| -> Vec<u32> {
            let all: BTreeSet<_> = all.iter().collect();
            self.given.iter().filter(|id| all.contains(id)).copied().collect()
        };
        let (relayed, own) = (of(&self.sources), of(&self.own));
        assert_eq!(relayed.len() + own.len(), self.given.len(), "nothing that did not come");
        // Numbers grow with time: in order, and none twice.
        assert!(relayed.is_sorted_by(|a, b| a < b) && own.is_sorted_by(|a, b| a < b), "{:?}", self.given);
        let first_own = self.given.iter().position(|id| own.contains(id)).unwrap_or(self.given.len());
        assert!(self.given[first_own..].iter().all(|id| own.contains(id)), "own ones come behind");
        // What was not lost, and counted as such, was given.
        let (at_source, here) = (self.relay.counters(), self.keeper.relayed_counters());
        // One that grew too old at the source may have arrived before.
        let lost = at_source.all_lost() + here.all_lost();
        assert!(relayed.len() as u64 + lost >= self.sources.len() as u64, "{relayed:?}, {lost} lost");
        if at_source.lost(Cause::Age) == 0 {
            assert_eq!(relayed.len() as u64 + lost, self.sources.len() as u64);
            assert_eq!(self.keeper.missed(), 0);
        }
        assert_eq!(own.len() as u64 + self.keeper.own_counters().all_lost(), self.own.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_was_not_lost_is_given_once_and_in_order(ops in prop::collection::vec(op(), 0..120)) {
        let mut both = Both::new(WIDE);
        ops.iter().filter(|op| !matches!(op, Op::Wait(_))).for_each(|op| both.step(op));
        both.settle();
        let lost = both.relay.counters();
        prop_assert_eq!(lost.all_lost(), lost.lost(Cause::Ended));
        prop_assert_eq!(both.keeper.relayed_counters().all_lost(), 0);
    }

    #[test]
    fn bounds_hold_and_what_is_lost_is_counted(
        ops in prop::collection::vec(op(), 0..200),
        frames in 1usize..12,
        bytes in 600usize..3000,
        age_ms in 200u64..2000,
    ) {
        let mut both = Both::new(Bounds { frames, bytes, age: Duration::from_millis(age_ms) });
        ops.iter().for_each(|op| both.step(op));
        both.settle();
    }
}
