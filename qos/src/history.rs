//! The last hour of a queue, in means over a few seconds.

use std::collections::VecDeque;

use crate::Bps;

/// Milliseconds of a point.
pub const STEP_MS: u64 = 5_000;
/// Points that are kept: an hour.
pub const POINTS: usize = 720;

/// The means of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// When it began: milliseconds of the clock that [`History::add`] is told, a whole number of [`STEP_MS`].
    pub at_ms: u64,
    /// What the queue carried.
    pub obtained: Bps,
    /// What it should have.
    pub expected: Bps,
}

/// See the module. Takes 24 bytes a point.
#[derive(Debug, Clone, Default)]
pub struct History {
    points: VecDeque<Point>,
    /// The step that is not over: bits, and the milliseconds they are of.
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    at_ms: u64,
    ms: u64,
    obtained: u128,
    expected: u128,
}

impl History {
    /// In the `ms` before `now_ms` so much was carried, and should have been.
    pub fn add(&mut self, now_ms: u64, ms: u64, obtained: Bps, expected: Bps) {
        let at_ms = now_ms / STEP_MS * STEP_MS;
        if let Some(open) = self.open.filter(|open| open.at_ms != at_ms) {
            self.points.push_back(open.mean());
            self.open = None;
            if self.points.len() > POINTS {
                self.points.pop_front();
            }
        }
        let open = self.open.get_or_insert(Open { at_ms, ms: 0, obtained: 0, expected: 0 });
        open.ms += ms;
        open.obtained += u128::from(obtained) * u128::from(ms);
        open.expected += u128::from(expected) * u128::from(ms);
    }

    /// Oldest first; the step that is not over is not among them.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        self.points.iter().copied()
    }
}

impl Open {
    fn mean(self) -> Point {
        let mean = |sum: u128| {
            sum.checked_div(u128::from(self.ms)).and_then(|mean| u64::try_from(mean).ok()).unwrap_or_default()
        };
        Point { at_ms: self.at_ms, obtained: mean(self.obtained), expected: mean(self.expected) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_the_mean_of_its_step_by_time() {
        let mut history = History::default();
        history.add(10_000, 1000, 100, 50);
        history.add(12_000, 3000, 20, 50);
        assert_eq!(history.points().count(), 0);
        history.add(20_000, 1000, 0, 0);
        assert_eq!(
            history.points().collect::<Vec<_>>(),
            [Point { at_ms: 10_000, obtained: 40, expected: 50 }]
        );
    }

    #[test]
    fn an_hour_is_kept() {
        let mut history = History::default();
        for second in 0..2 * 3600 {
            history.add(second * 1000, 1000, second, 0);
        }
        assert_eq!(history.points().count(), POINTS);
        assert_eq!(history.points().next().map(|point| point.at_ms), Some(3_595_000));
    }
}
