//! From counters to load: differences over the time that really passed, the last few of them averaged.

use std::collections::VecDeque;

use crate::Bps;

/// What OpenFlow says where a counter is not kept (OpenFlow 1.4, section 7.3.5.7: all bits set).
const UNKNOWN: u64 = u64::MAX;

/// The load of one queue.
#[derive(Debug, Clone)]
pub struct Load {
    /// Newest last: bytes, and the milliseconds in which they went.
    spans: VecDeque<(u64, u64)>,
    kept: usize,
    /// When the counter was read last, in ms, and what it said.
    last: Option<(u64, u64)>,
}

impl Load {
    /// Averages over the last `kept` spans between samples; at least one.
    #[must_use]
    pub fn new(kept: usize) -> Self {
        Self { spans: VecDeque::new(), kept: kept.max(1), last: None }
    }

    /// The queue has sent so many bytes since it was made, as of `at_ms` of a clock that never goes back. `fastest` is
    /// the link's rate: no span holds more than that.
    ///
    /// A sample that is missing makes the next span longer, one that is late makes its own longer: a rate is of the
    /// time that passed. A counter that is less than before has begun anew, or gone past its end; the difference is
    /// what the smaller of the two says that the link can have carried.
    pub fn sample(&mut self, at_ms: u64, bytes: u64, fastest: Bps) {
        if bytes == UNKNOWN {
            return;
        }
        let Some((then, before)) = self.last else {
            self.last = Some((at_ms, bytes));
            return;
        };
        let Some(ms) = at_ms.checked_sub(then).filter(|ms| *ms > 0) else { return };
        self.last = Some((at_ms, bytes));
        let most = u64::try_from(u128::from(fastest) * u128::from(ms) / 8000).unwrap_or(u64::MAX);
        let went = match bytes.checked_sub(before) {
            Some(went) => went,
            // Past its end: the difference is small. Begun anew: all of it went since.
            None => Some(bytes.wrapping_sub(before)).filter(|went| *went <= most).unwrap_or(bytes),
        };
        self.spans.push_back((went.min(most), ms));
        if self.spans.len() > self.kept {
            self.spans.pop_front();
        }
    }

    /// The mean over what is kept; `None` before two samples.
    #[must_use]
    pub fn mean(&self) -> Option<Bps> {
        let (bytes, ms) = self
            .spans
            .iter()
            .fold((0u128, 0u128), |(bytes, ms), span| (bytes + u128::from(span.0), ms + u128::from(span.1)));
        (ms > 0).then(|| u64::try_from(bytes * 8000 / ms).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Bps = 100_000_000;

    fn load(kept: usize, samples: &[(u64, u64)]) -> Option<Bps> {
        let mut load = Load::new(kept);
        samples.iter().for_each(|&(at, bytes)| load.sample(at, bytes, LINK));
        load.mean()
    }

    #[test]
    fn a_rate_is_of_the_time_that_passed() {
        assert_eq!(load(3, &[]), None);
        assert_eq!(load(3, &[(0, 500)]), None);
        assert_eq!(load(3, &[(0, 500), (1000, 1_250_500)]), Some(10_000_000));
        // Late by half a period; one that is missing.
        assert_eq!(load(3, &[(0, 0), (1500, 1_875_000)]), Some(10_000_000));
        assert_eq!(load(3, &[(0, 0), (1000, UNKNOWN), (2000, 2_500_000)]), Some(10_000_000));
        // Only so many are kept.
        assert_eq!(load(1, &[(0, 0), (1000, 1_250_000), (2000, 1_250_000)]), Some(0));
        assert_eq!(load(2, &[(0, 0), (1000, 1_250_000), (2000, 1_250_000)]), Some(5_000_000));
        // Twice at once, and back in time: nothing new.
        assert_eq!(load(3, &[(5, 0), (5, 100), (4, 200)]), None);
    }

    #[test]
    fn a_counter_that_shrank_has_begun_anew_or_gone_past_its_end() {
        assert_eq!(load(1, &[(0, 9_000_000), (1000, 1_250_000)]), Some(10_000_000));
        assert_eq!(load(1, &[(0, UNKNOWN - 250_000), (1000, 1_000_000 - 1)]), Some(10_000_000));
        // More than the link can carry was not carried.
        assert_eq!(load(1, &[(0, 0), (1000, 1 << 60)]), Some(LINK));
    }
}
