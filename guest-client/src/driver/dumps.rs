//! When the kernel's tables are dumped: when an event has silent followers, and by the clock. Pure.

use std::time::Duration;

/// From an event with silent followers to the dump: one burst, one dump.
const DELAY: Duration = Duration::from_millis(5);
/// An answer of the kernel that does not come for so long was dropped; the dump begins anew.
const STALLED: Duration = Duration::from_secs(5);
/// From the end of a dump to the audit at least so many times what the dump took. A million routes take 3 s to
/// dump and compare (one core of 2026, measured), in which events wait behind what the dump lists: that may cost no more
/// than a twentieth of a processor, and of the time, however large the tables and however short the interval.
const REST: u32 = 20;

/// Why a dump starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Something happened after which the mirror may be wrong.
    Need,
    /// Nothing did: an audit.
    Clock,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Dumps {
    interval: Duration,
    /// When the next one is to start that somebody asked for.
    due: Option<Duration>,
    /// When the next one is to start if nobody asks.
    audit: Duration,
    began: Duration,
    /// When it last brought something.
    heard: Duration,
    ended: Duration,
    took: Duration,
    whole: u64,
}

impl Dumps {
    /// The first one is due at once. With audits at most so often.
    pub(super) fn new(now: Duration, interval: Duration) -> Self {
        let (due, took) = (Some(now), Duration::ZERO);
        Self { interval, due, audit: now + interval, began: now, heard: now, ended: now, took, whole: 0 }
    }

    /// Complete ones so far.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// At most once in twice the time that a dump takes, so that a flapping link does not eat the guest.
    pub(super) fn want(&mut self, now: Duration) {
        let due = (now + DELAY).max(self.ended + self.took);
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// When [`Self::start`] is to be asked.
    pub(super) fn deadline(&self, is_dumping: bool, is_congested: bool) -> Option<Duration> {
        match is_dumping {
            true => Some(self.heard + STALLED),
            // While the kernel drops events, there is something to read, which wakes.
            false => Some(self.due.unwrap_or(self.audit)).filter(|_| !is_congested),
        }
    }

    /// One is to start now, in place of one that is under way.
    pub(super) fn start(&mut self, now: Duration, is_dumping: bool, is_congested: bool) -> Option<Cause> {
        self.deadline(is_dumping, is_congested).filter(|due| *due <= now)?;
        let is_needed = self.due.take().is_some() || is_dumping;
        (self.began, self.heard) = (now, now);
        Some(if is_needed { Cause::Need } else { Cause::Clock })
    }

    /// It brought something.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// It has ended, and counts as an audit, whatever it was for. True: another one was asked for meanwhile, which
    /// waits as long as one that is asked for now.
    pub(super) fn ended(&mut self, now: Duration, whole: bool) -> bool {
        self.ended = now;
        self.took = now.saturating_sub(self.began);
        self.audit = now + self.interval.max(self.took * REST);
        self.whole += u64::from(whole);
        self.due.take().is_some()
    }

    /// How long the last one took.
    pub(super) fn took(&self) -> Duration {
        self.took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = s(60);

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// After the first dump, which took so long and ended at 100 s.
    fn after_first(took: Duration) -> Dumps {
        let start = s(100) - took;
        let mut dumps = Dumps::new(start, INTERVAL);
        assert_eq!(dumps.start(start, false, false), Some(Cause::Need), "at once");
        assert!(!dumps.ended(s(100), true));
        dumps
    }

    #[test]
    fn an_audit_is_due_by_the_clock() {
        let mut dumps = after_first(ms(100));
        assert_eq!(dumps.deadline(false, false), Some(s(160)));
        assert_eq!(dumps.start(s(160) - ms(1), false, false), None);
        assert_eq!(dumps.start(s(160), false, false), Some(Cause::Clock));
        dumps.heard(s(161));
        assert!(!dumps.ended(s(162), true));
        assert_eq!(dumps.deadline(false, false), Some(s(222)), "and again, from the end on");
        assert_eq!(dumps.whole(), 2);
    }

    #[test]
    fn large_tables_are_audited_less_often() {
        let mut dumps = after_first(s(4));
        assert_eq!(dumps.deadline(false, false), Some(s(180)));
        assert_eq!(dumps.start(s(180), false, false), Some(Cause::Clock));
        assert!(!dumps.ended(s(182), true));
        assert_eq!(dumps.deadline(false, false), Some(s(242)), "2 s are worth no more than the interval");
    }

    #[test]
    fn any_other_dump_counts_as_an_audit() {
        let mut dumps = after_first(ms(100));
        dumps.want(s(150));
        assert_eq!(dumps.deadline(false, false), Some(s(150) + DELAY));
        assert_eq!(dumps.start(s(151), false, false), Some(Cause::Need));
        assert!(!dumps.ended(s(152), true));
        assert_eq!(dumps.deadline(false, false), Some(s(212)));
    }

    #[test]
    fn one_that_is_asked_for_is_no_audit() {
        // Also if the audit would come before it.
        let mut dumps = after_first(s(4));
        dumps.want(s(103));
        assert_eq!(dumps.deadline(false, false), Some(s(104)), "as long as the last one took");
        let mut dumps = after_first(ms(100));
        dumps.want(s(160) - ms(1));
        assert_eq!(dumps.start(s(160), false, false), None);
        assert_eq!(dumps.start(s(160) - ms(1) + DELAY, false, false), Some(Cause::Need));
    }

    #[test]
    fn one_that_fails_is_asked_for_again_and_the_audit_waits() {
        let mut dumps = after_first(ms(100));
        assert_eq!(dumps.start(s(160), false, false), Some(Cause::Clock));
        dumps.want(s(161));
        assert!(dumps.ended(s(162), false), "it was asked for while the audit ran");
        assert_eq!(dumps.whole(), 1);
        dumps.want(s(162));
        assert_eq!(dumps.start(s(164), false, false), Some(Cause::Need));
        assert!(!dumps.ended(s(164), true));
        assert_eq!(dumps.deadline(false, false), Some(s(224)));
    }

    #[test]
    fn none_starts_while_the_kernel_drops_events() {
        let mut dumps = after_first(ms(100));
        assert_eq!(dumps.deadline(false, true), None);
        assert_eq!(dumps.start(s(200), false, true), None);
        assert_eq!(dumps.start(s(201), false, false), Some(Cause::Clock));
    }

    #[test]
    fn one_that_stalls_begins_anew() {
        let mut dumps = after_first(ms(100));
        assert_eq!(dumps.start(s(160), false, false), Some(Cause::Clock));
        dumps.heard(s(162));
        assert_eq!(dumps.deadline(true, false), Some(s(162) + STALLED));
        assert_eq!(dumps.start(s(166), true, false), None, "it may still come");
        // Nobody knows what else was dropped.
        assert_eq!(dumps.start(s(167), true, false), Some(Cause::Need));
        assert_eq!(dumps.deadline(true, false), Some(s(167) + STALLED));
        assert!(!dumps.ended(s(168), true));
        assert_eq!(dumps.took(), s(1), "of the second attempt");
    }
}
