//! What an audit repaired: the keys that a dump found otherwise than the events had told, and why none of them is an
//! ordinary race.
//!
//! A dump that starts by the clock should change nothing. What it changes all the same is one of these:
//!
//! * An event tells of the key while the dump runs. Then the event is what counts, and nothing is repaired.
//! * The dump is ahead of the event. Events and dumps come through one socket, in the order in which the kernel queues
//!   them, but kernels that dump without the lock of rtnetlink (routes: since Linux 6.10) may list a change before
//!   they queue its event. That comes as soon as the task that made the change goes on: so a key counts only if the
//!   socket was seen empty [`GRACE`] after the dump and no event had told of it by then.
//! * It went silently, with something of which an event tells ([`Mirror::apply`](super::Mirror::apply) is true), or an
//!   event was lost and the kernel says so. Either explains everything that the dump found.
//! * The dump is not sure of itself, and is repeated. The one in its place is no audit any more.
//! * The MTU of IPv6, for which surveys look.
//!
//! What is left was missed. Where it is not known which it was, it does not count: the figure is a lower bound.

use std::collections::BTreeSet;
use std::time::Duration;

use xenflow_proto::{Key, Object};

use super::Slot;

/// From the end of an audit to when it counts: as long as a task may wait for a processor between a change and the word
/// of it.
const GRACE: Duration = Duration::from_secs(1);
/// Most keys that are remembered, of which an event may still tell. Others count as they are: a race is about few.
const MAX_KEYS: usize = 4096;

/// What an audit repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// So many keys.
    pub keys: u64,
    /// One of them.
    pub example: Key,
}

#[derive(Debug, Default)]
struct Found {
    keys: BTreeSet<Slot>,
    more: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// Of the audit that runs.
    open: Option<Found>,
    /// Of the one that has ended, and when it counts.
    waiting: Option<(Duration, Found)>,
}

impl Audit {
    /// A dump begins, by the clock or not.
    pub(super) fn begin(&mut self, by_clock: bool) {
        self.open = by_clock.then(Found::default);
        if !by_clock {
            self.waiting = None;
        }
    }

    /// The dump corrected this key.
    pub(super) fn found(&mut self, slot: &Slot) {
        if let Some(found) = &mut self.open {
            if found.keys.len() < MAX_KEYS {
                found.keys.insert(slot.clone());
            } else {
                found.more += u64::from(!found.keys.contains(slot));
            }
        }
    }

    /// An event told of it.
    pub(super) fn told(&mut self, slot: &Slot) {
        for found in self.open.iter_mut().chain(self.waiting.iter_mut().map(|(_, found)| found)) {
            found.keys.remove(slot);
        }
    }

    /// Something happened that explains whatever a dump finds.
    pub(super) fn explained(&mut self) {
        *self = Self::default();
    }

    /// The dump has ended.
    pub(super) fn end(&mut self, now: Duration, sure: bool) {
        let found = self.open.take().filter(|found| sure && !found.keys.is_empty());
        if let Some(found) = found {
            self.waiting = Some((now + GRACE, found));
        }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.waiting.as_ref().map(|(due, _)| *due)
    }

    pub(super) fn take(&mut self, now: Duration) -> Option<Repaired> {
        let (_, found) = self.waiting.take_if(|(due, _)| *due <= now)?;
        let example = found.keys.first()?.1.clone();
        Some(Repaired { keys: found.keys.len() as u64 + found.more, example })
    }
}

/// A change of which only a survey tells.
pub(super) fn is_for_surveys(before: &Object, after: &Object) -> bool {
    match (before, after) {
        (Object::Link(before), Object::Link(after)) => {
            let mut before = before.clone();
            before.ipv6_mtu = after.ipv6_mtu;
            before == *after
        }
        _ => false,
    }
}
