//! How a host is brought up to date that says what it holds.
//!
//! If these are the tables as they are, nothing is to be told. If they are in the past of what hosts were told, all that
//! came after is taken back, and the keys that differ get marks: each is told once, as it is now. Otherwise there is
//! nothing to go on from, and a snapshot is due. Which host it is does not matter.
//!
//! A snapshot says nothing of what other hosts hold, and until its end what it told is far from the tables. So, as long as
//! it lasts, the past of what hosts were told before it goes on with the changes of the tables themselves. Once
//! the host confirmed its end, that past leads on to what this host was told.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use xenflow_proto::Key;
use xenflow_proto::digest::Digest;

use super::entries::{State, Told};
use super::past::{self, Past};
use super::{Mirror, Slot};

/// How a host is brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It gets everything, and drops what else it holds.
    Snapshot,
    /// It gets what it does not hold yet.
    Resume,
}

impl Mirror {
    /// Begins to tell a host that holds tables with this digest. Counts as a message.
    pub fn begin(&mut self, held: Option<Digest>, now: Duration) -> Start {
        self.hang_up();
        // Into empty tables a snapshot goes faster: the host takes it as fast as it can.
        let start = match held.filter(|held| held.objects > 0) {
            Some(held) if self.go_on_from(held, now) => Start::Resume,
            Some(_) | None => {
                self.forget();
                Start::Snapshot
            }
        };
        self.told.begin();
        start
    }

    /// Nobody listens any more. What was told is remembered.
    pub fn hang_up(&mut self) {
        let told = &mut self.told;
        told.listening = false;
        if told.listing.is_none() {
            return;
        }
        // The next host is sent them in the order of a snapshot.
        told.listing = Some(Bound::Unbounded);
        told.marks.retain(|slot| !self.entries.contains(slot));
    }

    /// False: nothing is known of these tables.
    fn go_on_from(&mut self, held: Digest, now: Duration) -> bool {
        if held == self.told.current {
            self.adopt();
            return true;
        }
        if let Some(changes) = self.told.line.find(held) {
            self.rewind(held, changes, now);
            return true;
        }
        let Some(changes) = self.told.elsewhere.as_ref().and_then(|line| line.find(held)) else {
            return false;
        };
        self.adopt();
        self.rewind(held, changes, now);
        true
    }

    /// The host holds just what is here, whoever told it.
    fn adopt(&mut self) {
        let elsewhere = self.told.elsewhere.take();
        if elsewhere.is_none() && self.told.listing.is_none() {
            self.lead_on();
        }
        let told = &mut self.told;
        let next = told.sent() + 1;
        if told.listing.take().is_some() {
            self.entries.adopt(next);
            told.line = Past::new(told.current);
        } else {
            for slot in told.marks.slots() {
                if let Some(state) = self.entries.state(slot) {
                    self.entries.set(slot, State { told: Told::This, sent: next, ..state });
                }
            }
        }
        told.marks.clear();
        told.digest = told.current;
        if let Some(elsewhere) = elsewhere {
            told.line = elsewhere;
        }
    }

    /// Takes back so many changes, before which the host's tables were these.
    fn rewind(&mut self, held: Digest, changes: usize, now: Duration) {
        // What was told last under each key, and what was before.
        let mut differ: BTreeMap<Slot, (Option<u64>, Option<u64>)> = BTreeMap::new();
        let back: Vec<past::Change> = self.told.line.last(changes).rev().cloned().collect();
        for (slot, before) in back {
            if let Some((_, first)) = differ.get_mut(&slot) {
                *first = before;
                continue;
            }
            let last = match self.entries.state(&slot).map(|state| state.told) {
                None => self.told.of_gone(&slot),
                Some(Told::This) => self.hash(&slot),
                Some(Told::Nothing) => None,
                Some(Told::Other(hash)) => Some(hash),
            };
            differ.insert(slot, (last, before));
        }
        let back: Vec<_> = differ.iter().map(|(slot, (last, _))| (slot.clone(), *last)).collect();
        self.told.line.push(held, back.into_iter());
        self.told.digest = held;
        // What was in the way of forwarding is told of as gone when all the rest is told.
        let is_lifted = |slot: &Slot| matches!(slot.1, Key::Obstacle(_)) && !self.entries.contains(slot);
        let (lifted, differ): (Vec<_>, Vec<_>) = differ.into_iter().partition(|(slot, _)| is_lifted(slot));
        for (slot, (_, before)) in differ.into_iter().chain(lifted) {
            if let (Some(state), Some(hash)) = (self.entries.state(&slot), self.hash(&slot)) {
                self.entries.set(&slot, State { told: Told::of(before, hash), ..state });
            }
            self.review(&slot, before, now);
        }
    }

    /// The host gets everything. Others may hold what they were told.
    fn forget(&mut self) {
        if self.told.elsewhere.is_none() && self.told.listing.is_none() {
            self.lead_on();
            let line = std::mem::replace(&mut self.told.line, Past::new(Digest::default()));
            self.told.elsewhere = Some(line);
        }
        self.entries.forget();
        let told = &mut self.told;
        told.marks.clear();
        told.digest = Digest::default();
        told.line = Past::new(told.digest);
        told.listing = Some(Bound::Unbounded);
    }

    /// The line leads on from what was told to what there is: marks tell the two apart.
    fn lead_on(&mut self) {
        let told = &mut self.told;
        let differ = told.marks.iter().map(|(slot, dirty)| (slot.clone(), dirty.told));
        told.line.push(told.current, differ);
    }

    /// The host has confirmed a whole snapshot: what others hold leads on to what this one was told.
    pub(super) fn join(&mut self) {
        let told = &mut self.told;
        let Some(mut line) = told.elsewhere.take() else { return };
        told.line.truncate(told.in_flight);
        let in_flight = told.line.last(told.in_flight).map(|(slot, _)| slot);
        let differ: BTreeSet<Slot> = told.marks.slots().chain(in_flight).cloned().collect();
        let differ: Vec<past::Change> = differ
            .into_iter()
            .map(|slot| {
                let now = self.hash(&slot);
                (slot, now)
            })
            .collect();
        let told = &mut self.told;
        line.push(told.line.oldest(), differ.into_iter());
        line.append(std::mem::replace(&mut told.line, Past::new(told.digest)));
        told.line = line;
    }
}
