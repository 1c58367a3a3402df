//! States that a host may hold, and the way back to each. Bounded by changes.
//!
//! A state is known by its digest. Of every change from one state to the next the key is remembered, with the hash of
//! what was under it before: whoever takes back all that came after a state is in that state. The states are in one line.
//! Going back to one of them is a step forward on it, so that those between stay within reach.
//!
//! Not here: of what these are the states (`told`), and when to go back (`start`).

use std::collections::VecDeque;

use xenflow_proto::digest::Digest;

use super::Slot;

/// Most changes in a line. Each takes 56 bytes, and the state after it 24: a line takes no more than 5 MiB.
pub const MAX_CHANGES: usize = 64 << 10;

/// A key, and the hash of what was under it before.
pub(super) type Change = (Slot, Option<u64>);

#[derive(Debug, Clone, Copy)]
struct State {
    digest: Digest,
    /// Changes that led to it from the one before, at least one.
    changes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Past {
    /// The state that the line begins with.
    first: Digest,
    /// Those after it.
    states: VecDeque<State>,
    changes: VecDeque<Change>,
}

impl Past {
    /// A line of one state.
    pub(super) fn new(digest: Digest) -> Self {
        Self { first: digest, states: VecDeque::new(), changes: VecDeque::new() }
    }

    /// The line goes on, by these changes to a state with this digest. What would be too much is forgotten, the
    /// oldest first.
    pub(super) fn push(&mut self, digest: Digest, changes: impl ExactSizeIterator<Item = Change>) {
        let more = changes.len();
        if more > MAX_CHANGES {
            *self = Self::new(digest);
            return;
        }
        if more == 0 {
            return;
        }
        self.truncate(MAX_CHANGES - more);
        let wanted = (self.changes.len() + more).next_power_of_two();
        self.changes.reserve_exact(wanted - self.changes.len());
        self.changes.extend(changes);
        self.states.push_back(State { digest, changes: more });
    }

    /// The line goes on with one that begins with its newest state.
    pub(super) fn append(&mut self, mut other: Self) {
        debug_assert_eq!(self.newest(), other.oldest(), "another line");
        for state in &other.states {
            self.push(state.digest, other.changes.drain(..state.changes));
        }
    }

    /// Forgets all but so many changes, which the last states were reached by.
    pub(super) fn truncate(&mut self, changes: usize) {
        while self.changes.len() > changes
            && let Some(state) = self.states.pop_front()
        {
            self.first = state.digest;
            self.changes.drain(..state.changes);
        }
    }

    /// What the line begins with, as far as it is remembered.
    pub(super) fn oldest(&self) -> Digest {
        self.first
    }

    fn newest(&self) -> Digest {
        self.states.back().map_or(self.first, |state| state.digest)
    }

    /// How many changes came after the state with this digest, the newest if there are several.
    pub(super) fn find(&self, digest: Digest) -> Option<usize> {
        let mut since = 0;
        for state in self.states.iter().rev() {
            if state.digest == digest {
                return Some(since);
            }
            since += state.changes;
        }
        (self.first == digest).then_some(since)
    }

    /// The last so many changes, in their order.
    pub(super) fn last(&self, changes: usize) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.range(self.changes.len().saturating_sub(changes)..)
    }
}

#[cfg(test)]
mod tests {
    use xenflow_proto::Key;

    use super::*;

    fn digest(n: u64) -> Digest {
        Digest { objects: 1, sum: n }
    }

    fn change(n: usize) -> Change {
        (Slot::from(Key::NextHop(u32::try_from(n).unwrap())), Some(n as u64))
    }

    /// State n is reached by change n.
    fn line(from: usize, to: usize) -> Past {
        let mut past = Past::new(digest(from as u64));
        (from + 1..=to).for_each(|n| past.push(digest(n as u64), [change(n)].into_iter()));
        past
    }

    #[test]
    fn the_way_back_leads_over_what_came_after() {
        let mut past = line(0, 9);
        past.push(digest(10), [change(10), change(11)].into_iter());
        assert_eq!(past.find(digest(10)), Some(0));
        assert_eq!(past.find(digest(9)), Some(2));
        assert_eq!(past.find(digest(7)), Some(4));
        let back: Vec<Change> = past.last(4).rev().cloned().collect();
        assert_eq!(back, [change(11), change(10), change(9), change(8)]);
        assert_eq!(past.find(digest(0)), Some(11));
        assert_eq!(past.find(digest(12)), None);
        // Of two that are the same, the newer is nearer.
        past.push(digest(7), [change(12)].into_iter());
        assert_eq!(past.find(digest(7)), Some(0));
    }

    #[test]
    fn lines_are_joined_and_cut() {
        let mut past = line(0, 5);
        let mut other = line(3, 9);
        other.truncate(4);
        assert_eq!((other.oldest(), other.newest()), (digest(5), digest(9)));
        past.append(other);
        assert_eq!(past.find(digest(2)), Some(7));
        assert!(past.last(9).eq(&(1..=9).map(change).collect::<Vec<_>>()));
    }

    #[test]
    fn memory_is_bounded() {
        assert_eq!((size_of::<Change>(), size_of::<State>()), (56, 24));
        let bound = |past: &Past| {
            assert!(past.changes.capacity() <= MAX_CHANGES, "{}", past.changes.capacity());
            assert!(past.states.capacity() <= MAX_CHANGES, "{}", past.states.capacity());
        };
        let mut past = line(0, 3 * MAX_CHANGES);
        bound(&past);
        let newest = 3 * MAX_CHANGES as u64;
        assert_eq!(past.find(digest(newest - 60_000)), Some(60_000));
        assert_eq!(past.find(digest(newest - MAX_CHANGES as u64 - 1)), None);
        past.push(digest(0), (0..MAX_CHANGES - 1).map(change).collect::<Vec<_>>().into_iter());
        bound(&past);
        assert_eq!(past.find(digest(newest)), Some(MAX_CHANGES - 1));
        assert_eq!(past.find(digest(newest - 2)), None);
        past.push(digest(1), (0..=MAX_CHANGES).map(change).collect::<Vec<_>>().into_iter());
        assert_eq!((past.find(digest(1)), past.find(digest(0))), (Some(0), None));
    }
}
