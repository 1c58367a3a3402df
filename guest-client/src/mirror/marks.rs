//! Keys of which the host does not know the state, in the order in which it is to be told of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Slot;

/// A key of which the host does not know the state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dirty {
    ticket: i64,
    /// When the kernel told of the first change.
    pub(super) since: Duration,
    /// Hash of what the host has under the key.
    pub(super) told: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Marks {
    dirty: BTreeMap<Slot, Dirty>,
    order: BTreeMap<i64, Slot>,
    /// The lowest ticket is taken first. They count up, and down for what must overtake.
    next_ticket: i64,
    last_urgent: i64,
}

impl Marks {
    /// Marks a key of which the host has this. Others keep their place; an urgent one comes before all.
    pub(super) fn mark(&mut self, slot: &Slot, told: Option<u64>, since: Duration, urgent: bool) {
        let since = match self.dirty.get_mut(slot) {
            Some(dirty) if !urgent => {
                dirty.told = told;
                return;
            }
            Some(before) => before.since,
            None => since,
        };
        self.unmark(slot);
        let ticket = if urgent {
            self.last_urgent -= 1;
            self.last_urgent
        } else {
            self.next_ticket += 1;
            self.next_ticket
        };
        self.order.insert(ticket, slot.clone());
        self.dirty.insert(slot.clone(), Dirty { ticket, since, told });
    }

    pub(super) fn unmark(&mut self, slot: &Slot) -> Option<Dirty> {
        let dirty = self.dirty.remove(slot)?;
        self.order.remove(&dirty.ticket);
        Some(dirty)
    }

    pub(super) fn clear(&mut self) {
        self.dirty.clear();
        self.order.clear();
    }

    /// Keeps the marks of these keys.
    pub(super) fn retain(&mut self, keep: impl Fn(&Slot) -> bool) {
        self.dirty.retain(|slot, _| keep(slot));
        self.order.retain(|_, slot| keep(slot));
    }

    pub(super) fn get(&self, slot: &Slot) -> Option<&Dirty> {
        self.dirty.get(slot)
    }

    /// What is to be told next.
    pub(super) fn first(&self) -> Option<&Slot> {
        self.order.first_key_value().map(|(_, slot)| slot)
    }

    /// By key.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&Slot, &Dirty)> {
        self.dirty.iter()
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.dirty.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.dirty.len()
    }
}
