//! When the kernel's tables are dumped. Pure.

use std::time::Duration;

/// From an event with silent followers to the dump: one burst, one dump.
const DELAY: Duration = Duration::from_millis(5);
/// An answer of the kernel that does not come for so long was dropped; the dump begins anew.
const STALLED: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Dumps {
    /// When the next one is to start.
    due: Option<Duration>,
    began: Duration,
    /// When it last brought something.
    heard: Duration,
    ended: Duration,
    took: Duration,
    whole: u64,
}

impl Dumps {
    /// The first one is due at once.
    pub(super) fn new(now: Duration) -> Self {
        Self { due: Some(now), began: now, heard: now, ended: now, took: Duration::ZERO, whole: 0 }
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
            false => self.due.filter(|_| !is_congested),
        }
    }

    /// One is to start now, in place of one that is under way.
    pub(super) fn start(&mut self, now: Duration, is_dumping: bool, is_congested: bool) -> bool {
        let start = self.deadline(is_dumping, is_congested).is_some_and(|due| due <= now);
        if start {
            self.due = None;
            (self.began, self.heard) = (now, now);
        }
        start
    }

    /// It brought something.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// It has ended. True: another one was asked for meanwhile, which waits as long as one that is asked for now.
    pub(super) fn ended(&mut self, now: Duration, whole: bool) -> bool {
        self.ended = now;
        self.took = now.saturating_sub(self.began);
        self.whole += u64::from(whole);
        self.due.take().is_some()
    }

    /// How long the last one took.
    pub(super) fn took(&self) -> Duration {
        self.took
    }
}
