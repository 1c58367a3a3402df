//! Waits between attempts to reach the host: they double, with jitter, and start anew after a success. Pure.

use std::time::Duration;

/// See the module.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: u64,
}

impl Backoff {
    /// `seed` makes the guests of a host wait differently.
    #[must_use]
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, next: min, random: seed | 1 }
    }

    /// The next wait: between half and all of a time that doubles up to the maximum.
    pub fn wait(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.max);
        // xorshift64 (Marsaglia, 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let permille = u32::try_from(self.random % 501).unwrap_or_default();
        full * (500 + permille) / 1000
    }

    /// The host was reached, or something tells that it can be.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_bounds() {
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(5));
        for seed in 0..100 {
            let mut backoff = Backoff::new(min, max, seed);
            for full in [200, 400, 800, 1600, 3200, 5000, 5000] {
                let wait = backoff.wait().as_millis();
                assert!((full / 2..=full).contains(&wait), "{wait} for {full}, seed {seed}");
            }
            backoff.reset();
            assert!(backoff.wait() <= min);
        }
    }

    #[test]
    fn seeds_differ() {
        let waits: std::collections::BTreeSet<_> = (1..20)
            .map(|seed| Backoff::new(Duration::from_secs(1), Duration::from_secs(1), seed * 7919).wait())
            .collect();
        assert!(waits.len() > 10);
    }
}
