//! From looks at the queues to what is worth writing: who wants more, and which changes are more than noise.

use std::collections::BTreeMap;

use crate::Bps;
use crate::law::{FRAME, Setting};
use crate::rates::Load;

/// What is seen of a queue at one time. Numbers that only grow count from when the queue was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Sent, of Ethernet frames.
    pub bytes: u64,
    /// Packets dropped because the queue was full or slow.
    pub dropped: u64,
    /// Bytes that wait; none: it cannot be seen.
    pub backlog: Option<u64>,
}

/// What was seen of the queues of a link, by number.
#[derive(Debug, Clone)]
pub struct Seen {
    kept: usize,
    queues: BTreeMap<u32, One>,
}

#[derive(Debug, Clone)]
struct One {
    load: Load,
    dropped: u64,
    backlog: Option<u64>,
    /// It dropped or had packets waiting in the last looks, newest first.
    pressed: [bool; LOOKS],
}

/// A sender that has just been slowed down has nothing waiting for a moment; it wants more all the same.
const LOOKS: usize = 2;
/// What waits this long, at the queue's load, does not only wait for its turn.
const WAIT_MS: u64 = 5;

impl Seen {
    /// Loads are means over so many looks, at least one.
    #[must_use]
    pub fn new(kept: usize) -> Self {
        Self { kept, queues: BTreeMap::new() }
    }

    /// A look at all queues at `at_ms` of a clock that never goes back, on a link of that capacity. A queue that is not
    /// among them is gone.
    pub fn look(&mut self, at_ms: u64, capacity: Bps, samples: &BTreeMap<u32, Sample>) {
        self.queues.retain(|number, _| samples.contains_key(number));
        for (number, sample) in samples {
            let one = self.queues.entry(*number).or_insert_with(|| One {
                load: Load::new(self.kept),
                dropped: sample.dropped,
                backlog: None,
                pressed: [false; LOOKS],
            });
            one.load.sample(at_ms, sample.bytes, capacity);
            // Begun anew: all that it says was dropped since.
            let is_dropping = sample.dropped != one.dropped && sample.dropped > 0;
            let waits = one.load.mean().unwrap_or_default() / 8 / 1000 * WAIT_MS;
            let is_waiting = sample.backlog.is_some_and(|bytes| bytes >= waits.max(2 * u64::from(FRAME)));
            one.pressed.rotate_right(1);
            one.pressed[0] = is_dropping || is_waiting;
            (one.dropped, one.backlog) = (sample.dropped, sample.backlog);
        }
    }

    /// What a queue carries; 0 before two looks.
    #[must_use]
    pub fn load(&self, number: u32) -> Bps {
        self.queues.get(&number).and_then(|one| one.load.mean()).unwrap_or_default()
    }

    /// Packets wait in it, or were dropped.
    #[must_use]
    pub fn wants_more(&self, number: u32) -> bool {
        self.queues.get(&number).is_some_and(|one| one.pressed.contains(&true))
    }

    /// Packets that were dropped, and bytes that wait.
    #[must_use]
    pub fn losses(&self, number: u32) -> (u64, Option<u64>) {
        self.queues.get(&number).map(|one| (one.dropped, one.backlog)).unwrap_or_default()
    }
}

/// What a queue should be told that was told `standing`: `wanted`, unless the difference is noise of measured loads. What
/// follows from contracts alone is exact: rates, a ceiling that is as far up as it goes (`open`), and the turn of a queue
/// that is its network's only one (`is_alone`).
#[must_use]
pub fn worth(standing: Setting, wanted: Setting, open: Bps, is_alone: bool) -> Setting {
    let is_near = |a: u64, b: u64, part: u64| a.abs_diff(b) <= b / part;
    let keeps_ceil = wanted.ceil != open
        && standing.ceil != open
        && standing.ceil >= wanted.rate
        && is_near(wanted.ceil, standing.ceil, 64);
    let quantum = match (standing.quantum, wanted.quantum) {
        (Some(old), Some(new)) if !is_alone && is_near(new.into(), old.into(), 8) => Some(old),
        (_, new) => new,
    };
    Setting { rate: wanted.rate, ceil: if keeps_ceil { standing.ceil } else { wanted.ceil }, quantum }
}

/// The same before anything was seen of the queue: what a loop before this one has told it stays, as far as contracts
/// allow it.
#[must_use]
pub fn adopted(standing: Setting, wanted: Setting, open: Bps, is_alone: bool) -> Setting {
    if standing.rate != wanted.rate || standing.ceil > open {
        return wanted;
    }
    let quantum = if is_alone { wanted.quantum } else { wanted.quantum.and(standing.quantum) };
    Setting { quantum, ..standing }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Bps = 100_000_000;

    fn look(seen: &mut Seen, at_ms: u64, bytes: u64, dropped: u64, backlog: u64) -> (Bps, bool) {
        seen.look(at_ms, LINK, &[(7, Sample { bytes, dropped, backlog: Some(backlog) })].into());
        (seen.load(7), seen.wants_more(7))
    }

    #[test]
    fn who_waits_or_loses_wants_more() {
        let mut seen = Seen::new(1);
        // Dropped before anybody looked.
        assert_eq!(look(&mut seen, 0, 0, 9, 0), (0, false));
        assert_eq!(look(&mut seen, 1000, 1_250_000, 9, 3000), (10_000_000, false), "two frames");
        assert_eq!(look(&mut seen, 2000, 2_500_000, 9, 6250), (10_000_000, true), "5 ms");
        assert_eq!(look(&mut seen, 3000, 3_750_000, 9, 0), (10_000_000, true), "a moment ago");
        assert_eq!(look(&mut seen, 4000, 5_000_000, 9, 0), (10_000_000, false));
        assert_eq!(look(&mut seen, 5000, 5_000_000, 10, 0), (0, true), "dropped");
        // Made anew.
        assert_eq!(look(&mut seen, 6000, 0, 0, 0), (0, true));
        assert_eq!(look(&mut seen, 7000, 0, 0, 0), (0, false));
        seen.look(8000, LINK, &BTreeMap::new());
        assert_eq!((seen.load(7), seen.losses(7)), (0, (0, None)));
    }

    #[test]
    fn noise_is_not_written() {
        let told = |rate, ceil, quantum| Setting { rate, ceil, quantum };
        let standing = told(20, 6_400, Some(8000));
        assert_eq!(worth(standing, told(20, 6_500, Some(9000)), 10_000, false), standing);
        assert_eq!(worth(standing, told(20, 6_501, Some(9001)), 10_000, false), told(20, 6_501, Some(9001)));
        assert_eq!(worth(standing, told(21, 6_400, Some(8000)), 10_000, false), told(21, 6_400, Some(8000)));
        assert_eq!(worth(standing, told(20, 6_400, Some(8001)), 10_000, true), told(20, 6_400, Some(8001)));
        // Up to its bound, and off it, to the letter.
        assert_eq!(worth(standing, told(20, 6_410, None), 6_410, false), told(20, 6_410, None));
        assert_eq!(worth(standing, told(20, 6_390, None), 6_400, false), told(20, 6_390, None));
        // Never below the rate.
        assert_eq!(worth(standing, told(6_450, 6_450, None), 10_000, false), told(6_450, 6_450, None));
    }

    #[test]
    fn what_a_loop_before_has_told_stays_as_far_as_it_may() {
        let told = |rate, ceil, quantum| Setting { rate, ceil, quantum };
        let (standing, wanted) = (told(20, 5_000, Some(8000)), told(20, 9_000, Some(3000)));
        assert_eq!(adopted(standing, wanted, 9_000, false), standing);
        assert_eq!(adopted(standing, wanted, 9_000, true), told(20, 5_000, Some(3000)));
        assert_eq!(adopted(standing, told(20, 4_000, Some(3000)), 4_000, false), told(20, 4_000, Some(3000)));
        assert_eq!(adopted(standing, told(30, 9_000, None), 9_000, false), told(30, 9_000, None));
        // A driver that tells no turn.
        assert_eq!(adopted(standing, told(20, 9_000, None), 9_000, false), told(20, 5_000, None));
    }
}
