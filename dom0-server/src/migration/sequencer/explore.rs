//! Walks through every state that a [`World`] can come to, and checks the laws in each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use super::Phase;
use super::world::{Event, Sequencer, World};

/// What was found.
#[derive(Debug)]
pub(super) struct Explored {
    /// How many states there are.
    pub(super) states: usize,
    /// How many steps lead from one to another.
    pub(super) steps: usize,
    /// How many of the states are clean, and the last migration is done.
    pub(super) done: usize,
    /// How many of the states are clean, and the last migration is aborted.
    pub(super) aborted: usize,
}

/// All states from `first` on. Law 5 holds in each of them; and from each a clean state can be reached without any more
/// faults or wishes.
///
/// # Errors
/// The shortest way to a state where this is not so, and what is wrong there.
pub(super) fn explore(first: World, sequencer: Sequencer) -> Result<Explored, String> {
    let mut numbers: HashMap<World, u32, BuildHasherDefault<Fold>> = HashMap::default();
    let mut states = vec![first];
    let mut before: Vec<Option<(u32, Event)>> = vec![None];
    let mut fair: Vec<(u32, u32)> = Vec::new();
    let mut steps = 0;
    numbers.insert(first, 0);
    let mut at = 0;
    while let Some(world) = states.get(at).copied() {
        let number = u32::try_from(at).unwrap();
        if let Err(what) = world.check(sequencer) {
            return Err(way(&states, &before, number, &what));
        }
        for (event, next) in world.next(sequencer) {
            steps += 1;
            let to = match numbers.entry(next) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let to = *new.insert(u32::try_from(states.len()).unwrap());
                    states.push(next);
                    before.push(Some((number, event)));
                    to
                }
            };
            if event.is_fair() && to != number {
                fair.push((to, number));
            }
        }
        at += 1;
    }
    let reach = reaches(&states, fair);
    if let Some(lost) = reach.iter().position(|reaches| !reaches) {
        return Err(way(&states, &before, u32::try_from(lost).unwrap(), "from here it never becomes clean"));
    }
    let clean =
        |phase| states.iter().filter(|world| world.is_clean() && world.phase() == Some(phase)).count();
    Ok(Explored { states: states.len(), steps, done: clean(Phase::Done), aborted: clean(Phase::Aborted) })
}

/// From which states a clean one is reached by steps that happen sooner or later, given as (to, from).
fn reaches(states: &[World], mut fair: Vec<(u32, u32)>) -> Vec<bool> {
    fair.sort_unstable();
    let mut reach: Vec<bool> = states.iter().map(World::is_clean).collect();
    let mut due: Vec<u32> =
        (0..).zip(&reach).filter(|(_, reaches)| **reaches).map(|(number, _)| number).collect();
    while let Some(to) = due.pop() {
        let begin = fair.partition_point(|(other, _)| *other < to);
        for (_, from) in fair[begin..].iter().take_while(|(other, _)| *other == to) {
            if !std::mem::replace(&mut reach[*from as usize], true) {
                due.push(*from);
            }
        }
    }
    reach
}

/// The way to a state, in words.
fn way(states: &[World], before: &[Option<(u32, Event)>], mut at: u32, what: &str) -> String {
    let mut events = vec![format!("{what}: {:#?}", states[at as usize])];
    while let Some((from, event)) = before[at as usize] {
        events.push(format!("{event:?}"));
        at = from;
    }
    events.reverse();
    events.join("\n")
}

/// A quick hash: the states are no input of anybody.
#[derive(Default)]
struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(7) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value.cast_unsigned() as u64);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}
