//! Keys of which the host does not know the state, in the order in which it is to be told of them.
//!
//! Three classes: what is urgent; what is there otherwise than the host knows, or that routes refer to; and, last, routes that it
//! does not know, those that are gone, and obstacles that are. Packets of a new route are the guest's until the host knows it, so a full table that
//! comes keeps nothing else waiting; one that goes may have a new one take its place, which comes first. Each class goes in
//! the order in which the kernel told; of every [`SHARE`] keys one is of the last class, however much the others have.

use std::collections::BTreeMap;
use std::time::Duration;

use xenflow_proto::Key;

use super::Slot;

/// A key of which the host does not know the state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dirty {
    ticket: Ticket,
    /// When the kernel told of the first change.
    pub(super) since: Duration,
    /// Hash of what the host has under the key.
    pub(super) told: Option<u64>,
}

/// The lowest is taken first.
type Ticket = (Class, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Urgent,
    Changed,
    Last,
}

/// One of so many is of the last class.
const SHARE: u64 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Marks {
    dirty: BTreeMap<Slot, Dirty>,
    order: BTreeMap<Ticket, Slot>,
    next_ticket: u64,
    /// How many keys were taken.
    taken: u64,
}

impl Marks {
    /// Marks a key of which the host has this, and there is something now or not. It keeps its place in its class; an
    /// urgent one comes behind others that are.
    pub(super) fn mark(&mut self, slot: &Slot, told: Option<u64>, is_there: bool, since: Duration) {
        let class = match &slot.1 {
            // The host must not forward what it should not.
            Key::Obstacle(_) if is_there => Class::Urgent,
            // They open the way.
            Key::Obstacle(_) => Class::Last,
            Key::Route(_) if !is_there || told.is_none() => Class::Last,
            Key::Route(_)
            | Key::Link(_)
            | Key::Address(_)
            | Key::NextHop(_)
            | Key::Neighbor(_)
            | Key::Settings => Class::Changed,
        };
        let mut first = since;
        if let Some(dirty) = self.dirty.get_mut(slot) {
            if dirty.ticket.0 == class {
                dirty.told = told;
                return;
            }
            first = dirty.since;
        }
        self.unmark(slot);
        self.next_ticket += 1;
        let ticket = (class, self.next_ticket);
        self.order.insert(ticket, slot.clone());
        self.dirty.insert(slot.clone(), Dirty { ticket, since: first, told });
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
        let is_turn_of_last = self.taken % SHARE == SHARE - 1;
        let last = || self.order.range((Class::Last, 0)..).next();
        let next = if is_turn_of_last { last() } else { None };
        next.or_else(|| self.order.iter().next()).map(|(_, slot)| slot)
    }

    /// Takes what [`Marks::first`] gave.
    pub(super) fn take(&mut self, slot: &Slot) -> Option<Dirty> {
        self.taken += 1;
        self.unmark(slot)
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

#[cfg(test)]
mod tests {
    use xenflow_proto::table::{Family, ObstacleKey, ObstacleKind, RouteKey};

    use super::*;

    fn route(third: u8) -> Slot {
        let dst = format!("10.0.{third}.0/24").parse().unwrap();
        Slot::from(Key::Route(RouteKey { table: 254, dst, tos: 0, metric: 0 }))
    }

    fn all(marks: &mut Marks) -> Vec<Slot> {
        std::iter::from_fn(|| {
            let slot = marks.first()?.clone();
            marks.take(&slot).map(|_| slot)
        })
        .collect()
    }

    #[test]
    fn what_changes_comes_before_what_is_new_or_gone() {
        let key = ObstacleKey { ifindex: None, family: Some(Family::V4), kind: ObstacleKind::Rules };
        let obstacle = Slot::from(Key::Obstacle(key));
        let hop = Slot::from(Key::NextHop(1));
        let mut marks = Marks::default();
        let mut mark = |slot: &Slot, told, is_there| marks.mark(slot, told, is_there, Duration::ZERO);
        mark(&route(1), None, true);
        mark(&route(2), Some(7), false);
        mark(&route(3), Some(7), true);
        mark(&hop, None, true);
        mark(&obstacle, None, true);
        // It was another one, and goes: behind what may take its place.
        mark(&route(4), Some(7), true);
        mark(&route(5), None, true);
        mark(&route(4), Some(7), false);
        // It was new, and is another one: it keeps its place.
        mark(&route(1), None, true);
        assert_eq!(all(&mut marks), [obstacle, route(3), hop, route(1), route(2), route(5), route(4)]);
        assert_eq!(marks.len(), 0);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut marks = Marks::default();
        marks.mark(&route(0), None, true, Duration::ZERO);
        for round in 1..=SHARE {
            marks.mark(&route(1), Some(7), true, Duration::ZERO);
            let slot = marks.first().unwrap().clone();
            marks.take(&slot);
            if slot == route(0) {
                return;
            }
            assert!(round < SHARE, "the new one waits for what changes again and again");
        }
    }
}
