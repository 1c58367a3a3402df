//! How many prefixes of a router have a flow, and what becomes of those beyond the limit.
//!
//! Prefixes stand in a fixed order, their *rank*: shorter ones first, then by routing table, IPv4 before IPv6, then
//! by address. Of those that are wanted, with a maximum of R,
//!
//! * the first R are [`Class::Forward`]: their flow is the verdict of the guest's tables;
//! * the next R are [`Class::Punt`]: their flow hands packets to the guest;
//! * all others are [`Class::Absent`]: no flow. The longest prefix that has one and covers an absent one would catch
//!   its packets, so it is [`Class::Punt`] too, whatever its rank: it *shields* what it covers.
//!
//! **Guarantee.** A packet's longest match among the flows is the flow of its longest match among the wanted
//! prefixes, or a punt; no match at all is a punt. The classes depend on the maximum and on the set of wanted
//! prefixes alone, not on the order in which they came. While the steps of one change are made in the order that
//! [`Limit::set`] and [`Limit::set_max`] give, every packet meets at every moment its verdict before the change, the
//! one after it, or a punt; and `set` needs never more than 2R + 1 flows.
//!
//! **Cost.** [`Limit::set`] takes O(log n + length of the prefix) and moves at most four other prefixes, also where a
//! default route over a million absent prefixes flaps. Up to R prefixes are kept in ordered sets, about 20 bytes
//! each (IPv6: 40). Between R and 2R a trie is filled, two prefixes with each that comes, so that it is complete when the first
//! one is absent: about 100 bytes more for each prefix.
//!
//! **Room.** A switch may have less room for flows than 2R. [`Limit::set_room`] then takes the place of 2R: as many prefixes
//! have a flow, of which the first R forward, and all that is said above holds.
//!
//! Owns the order and the classes; knows nothing of verdicts and flows. It is a mirror of what was sent to the
//! switch, so `set` belongs where changes are *sent*, not where they are noted: a queue that decides late what to
//! send could otherwise take a flow away before the one that shields it has become a punt.

use std::cmp;
use std::collections::BTreeMap;

use ipnet::IpNet;

use self::index::{Index, Mark};
use self::wanted::Wanted;

mod index;
#[cfg(test)]
mod tests;
mod wanted;

/// A destination in one of a guest's routing tables. Ordered by rank: see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// Number of the routing table.
    pub table: u32,
    /// The destinations; what [`Limit`] takes may have host bits, what it gives has none.
    pub dst: IpNet,
}

impl Prefix {
    fn trunc(self) -> Self {
        Self { dst: self.dst.trunc(), ..self }
    }
}

impl Ord for Prefix {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        let rank = |prefix: &Self| (prefix.dst.prefix_len(), prefix.table, prefix.dst);
        rank(self).cmp(&rank(other))
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// What flow a prefix has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Its verdict.
    Forward,
    /// A punt, by its rank or because it shields absent prefixes.
    Punt,
    /// None: the prefix is beyond the limit, or not wanted.
    Absent,
}

/// Other prefixes whose class changed with one prefix, in the order in which their flows have to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    /// Before the flow of the prefix itself.
    pub before: Vec<Prefix>,
    /// After it.
    pub after: Vec<Prefix>,
}

/// The wanted prefixes of one router and their classes.
#[derive(Debug, Clone, Default)]
pub struct Limit {
    max: usize,
    /// How many prefixes may have a flow, where that is known to be fewer than the maximum says.
    room: Option<usize>,
    wanted: Wanted,
    /// Those that forward by their rank, shields among them.
    leading: Head,
    /// Those that have a flow.
    installed: Head,
    /// Those that the index holds: none of up to R, all of 2R and more, in proportion between.
    indexed: Head,
    index: Index,
    /// How many are [`Class::Forward`].
    forwarded: usize,
}

/// Classes of prefixes before a change.
type Classes = BTreeMap<Prefix, Class>;

impl Limit {
    /// Nothing wanted yet; at most `max` prefixes forward, and as many more have a punt of their own. With 0 there
    /// is no flow at all.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    /// With these wanted, in any order, each once: what [`Limit::set`] one by one comes to. `room` as for [`Limit::set_room`].
    #[must_use]
    pub fn of(max: usize, room: Option<usize>, prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        let mut prefixes: Vec<Prefix> = prefixes.into_iter().map(Prefix::trunc).collect();
        let flows = max.saturating_mul(2).min(room.unwrap_or(usize::MAX));
        // Up to here all lead, and none is in the index.
        let few = prefixes.len().min(max).min(flows - flows / 2);
        let rest = prefixes.split_off(few);
        let head = Head { len: few, last: prefixes.iter().max().copied() };
        let mut limit = Self {
            max,
            room,
            leading: head.clone(),
            installed: head,
            forwarded: few,
            wanted: prefixes.into_iter().collect(),
            ..Self::default()
        };
        for prefix in rest {
            limit.set(prefix, true);
        }
        limit
    }

    /// Says that a prefix is wanted, or no more. Its own flow, by its [`class`](Self::class) from now on, is sent
    /// between [`Moved::before`] and [`Moved::after`].
    pub fn set(&mut self, prefix: Prefix, wanted: bool) -> Moved {
        let prefix = prefix.trunc();
        if self.wanted.contains(prefix) == wanted {
            return Moved::default();
        }
        let mut before = Classes::from([(prefix, self.class(prefix))]);
        if wanted {
            self.wanted.insert(prefix);
            for head in [&mut self.leading, &mut self.installed, &mut self.indexed] {
                head.inserted(prefix);
            }
            self.mark(&mut before, prefix);
        } else {
            self.unmark(&mut before, prefix);
            self.wanted.remove(prefix);
            for head in [&mut self.leading, &mut self.installed, &mut self.indexed] {
                head.removed(&self.wanted, prefix);
            }
        }
        self.settle(before, Some(prefix))
    }

    /// Another maximum: all prefixes whose class changed, in the order in which their flows have to be sent. Takes
    /// time in proportion to the change.
    pub fn set_max(&mut self, max: usize) -> Vec<Prefix> {
        self.max = max;
        let Moved { mut before, after } = self.settle(Classes::new(), None);
        before.extend(after);
        before
    }

    /// No more prefixes than that have a flow, whatever the maximum; none: as many as the maximum says. Gives what
    /// [`Limit::set_max`] gives.
    pub fn set_room(&mut self, room: Option<usize>) -> Vec<Prefix> {
        self.room = room;
        self.set_max(self.max)
    }

    /// What flow a prefix has.
    #[must_use]
    pub fn class(&self, prefix: Prefix) -> Class {
        let prefix = prefix.trunc();
        if !self.installed.holds(prefix) || !self.wanted.contains(prefix) {
            Class::Absent
        } else if !self.leading.holds(prefix) || self.index.shields(prefix) {
            Class::Punt
        } else {
            Class::Forward
        }
    }

    /// The maximum.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// How many prefixes are wanted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.wanted.len()
    }

    /// None is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wanted.len() == 0
    }

    /// How many are [`Class::Forward`].
    #[must_use]
    pub fn forwarded(&self) -> usize {
        self.forwarded
    }

    /// How many are [`Class::Punt`], by their rank or as shields.
    #[must_use]
    pub fn punted(&self) -> usize {
        self.installed.len - self.forwarded
    }

    /// How many are wanted and [`Class::Absent`].
    #[must_use]
    pub fn absent(&self) -> usize {
        self.wanted.len() - self.installed.len
    }

    /// 80 % of the maximum are wanted: worth an alarm.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.wanted.len() >= self.max - self.max / 5
    }

    /// Brings the heads to the lengths that belong to what is wanted now, and says what that changed.
    fn settle(&mut self, mut before: Classes, own: Option<Prefix>) -> Moved {
        let len = self.wanted.len();
        let room = self.room.unwrap_or(usize::MAX);
        let (max, flows) = (self.max.min(room), self.max.saturating_mul(2).min(room));
        let indexed = len.saturating_sub(flows - flows / 2).saturating_mul(2).min(len);
        // In this order the index is complete whenever a prefix is absent.
        while let Some(prefix) = self.installed.next(&self.wanted, flows) {
            self.note(&mut before, prefix);
            self.installed.push(prefix);
            self.mark(&mut before, prefix);
        }
        while let Some(prefix) = self.indexed.next(&self.wanted, indexed) {
            self.indexed.push(prefix);
            self.mark(&mut before, prefix);
        }
        while let Some(prefix) = self.indexed.excess(indexed) {
            self.unmark(&mut before, prefix);
            self.indexed.pop(&self.wanted);
        }
        while let Some(prefix) = self.installed.excess(flows) {
            self.note(&mut before, prefix);
            self.installed.pop(&self.wanted);
            self.mark(&mut before, prefix);
        }
        while let Some(prefix) = self.leading.next(&self.wanted, max) {
            self.note(&mut before, prefix);
            self.leading.push(prefix);
        }
        while let Some(prefix) = self.leading.excess(max) {
            self.note(&mut before, prefix);
            self.leading.pop(&self.wanted);
        }
        self.moved(before, own)
    }

    /// Sorts what changed. A flow that becomes a punt does no harm, so those come first, and each absent prefix has
    /// its shield from then on. What forwards again comes last, when the flows that it must not stand in for are
    /// there. Between, longer ones are installed before shorter ones and removed after them, which would catch
    /// their packets.
    fn moved(&mut self, before: Classes, own: Option<Prefix>) -> Moved {
        let mut moved = Moved::default();
        let (mut install, mut remove, mut release) = (Vec::new(), Vec::new(), Vec::new());
        for (prefix, before) in before {
            let now = self.class(prefix);
            self.forwarded += usize::from(now == Class::Forward);
            self.forwarded -= usize::from(before == Class::Forward);
            match (before, now) {
                _ if before == now || own == Some(prefix) => {}
                (_, Class::Punt) => moved.before.push(prefix),
                (Class::Absent, Class::Forward) => install.push(prefix),
                (_, Class::Absent) => remove.push(prefix),
                (_, Class::Forward) => release.push(prefix),
            }
        }
        // What takes the place of one that goes is there before it: nothing else may stand in for it.
        let has_gone = own.is_some_and(|own| !self.wanted.contains(own));
        let installing = if has_gone { &mut moved.before } else { &mut moved.after };
        installing.extend(install.into_iter().rev());
        moved.after.extend(remove.into_iter().chain(release));
        moved
    }

    /// Keeps the class that a prefix had before the change, whose first steps may have been made already.
    fn note(&self, before: &mut Classes, prefix: Prefix) {
        before.entry(prefix).or_insert_with(|| self.class(prefix));
    }

    /// Tells the index whether a prefix that it holds has a flow.
    fn mark(&mut self, before: &mut Classes, prefix: Prefix) {
        let mark = if self.installed.holds(prefix) { Mark::Flow } else { Mark::NoFlow };
        self.put(before, prefix, mark);
    }

    /// Takes a prefix out of the index if it is there.
    fn unmark(&mut self, before: &mut Classes, prefix: Prefix) {
        self.put(before, prefix, Mark::Branch);
    }

    fn put(&mut self, before: &mut Classes, prefix: Prefix, mark: Mark) {
        if self.indexed.holds(prefix) {
            // Beside itself, it changes only what the nearest flow above has to shield.
            if let Some(above) = self.index.flow_above(prefix) {
                self.note(before, above);
            }
            self.index.put(prefix, mark);
        }
    }
}

/// The first `len` of the wanted prefixes.
#[derive(Debug, Clone, Default)]
struct Head {
    len: usize,
    last: Option<Prefix>,
}

impl Head {
    /// Is a wanted prefix among them?
    fn holds(&self, prefix: Prefix) -> bool {
        self.last.is_some_and(|last| prefix <= last)
    }

    /// A prefix has come into the set.
    fn inserted(&mut self, prefix: Prefix) {
        self.len += usize::from(self.holds(prefix));
    }

    /// A prefix is gone from the set.
    fn removed(&mut self, wanted: &Wanted, prefix: Prefix) {
        if self.last == Some(prefix) {
            self.pop(wanted);
        } else {
            self.len -= usize::from(self.holds(prefix));
        }
    }

    /// The one to push next to have `len` of them.
    fn next(&self, wanted: &Wanted, len: usize) -> Option<Prefix> {
        // All of them are in it, mostly: nothing to look for.
        if self.len < len.min(wanted.len()) { wanted.after(self.last) } else { None }
    }

    fn push(&mut self, next: Prefix) {
        visit();
        self.len += 1;
        self.last = Some(next);
    }

    /// The last one, if there are more than `len`.
    fn excess(&self, len: usize) -> Option<Prefix> {
        self.last.filter(|_| self.len > len)
    }

    fn pop(&mut self, wanted: &Wanted) {
        visit();
        if let Some(last) = self.last {
            self.len -= 1;
            self.last = wanted.before(last);
        }
    }
}

/// Counts what a change touches, to hold the cost in tests.
fn visit() {
    #[cfg(test)]
    tests::VISITS.with(|visits| visits.set(visits.get() + 1));
}
