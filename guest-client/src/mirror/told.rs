//! What of the mirror the host does not know yet.
//!
//! A changed key is *dirty* until it is taken; what is taken is the value at that moment, so changes of one key
//! coalesce and a slow host costs no more memory than one mark per key. A key that came and went before the host
//! heard of it leaves no mark.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use xenflow_proto::table::{NextHopKind, Route, RouteKey, RouteKind, RouteTarget};
use xenflow_proto::{Change, Key, Object};

use super::{Mirror, Slot};
use crate::translate::UNDESCRIBED;

#[derive(Debug, Clone, Copy)]
pub(super) struct Dirty {
    ticket: i64,
    since: Duration,
    /// The host was told of the key before.
    pub(super) known: bool,
}

/// How much one message may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most changes.
    pub changes: usize,
    /// Most bytes of encoded changes.
    pub bytes: usize,
}

/// Changes for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// In order, one per key.
    pub changes: Vec<Change>,
    /// When the kernel told the oldest of them; none in a snapshot.
    pub oldest: Option<Duration>,
}

impl Mirror {
    /// Whether an IPv6 key has several routes has changed, and with it what the host is to know.
    pub(super) fn tell_again(&mut self, key: RouteKey, now: Duration) {
        let slot = Slot::from(Key::Route(key));
        if key.dst.addr().is_ipv6()
            && let Some(entry) = self.entries.get(&slot)
        {
            let known = entry.told == self.stream;
            self.mark(slot, now, known);
        }
    }

    pub(super) fn mark(&mut self, slot: Slot, since: Duration, known: bool) {
        if !self.streaming {
            return;
        }
        // Whatever else waits: the host must not forward what it should not.
        let urgent = matches!(slot.1, Key::Obstacle(_)) && self.entries.contains_key(&slot);
        let (since, known) = match self.dirty.get(&slot) {
            Some(_) if !urgent => return,
            Some(before) => (before.since, before.known),
            None => (since, known),
        };
        self.unmark(&slot);
        let ticket = if urgent {
            self.last_urgent -= 1;
            self.last_urgent
        } else {
            self.next_ticket += 1;
            self.next_ticket
        };
        self.order.insert(ticket, slot.clone());
        self.dirty.insert(slot, Dirty { ticket, since, known });
    }

    pub(super) fn unmark(&mut self, slot: &Slot) -> Option<Dirty> {
        let dirty = self.dirty.remove(slot)?;
        self.order.remove(&dirty.ticket);
        Some(dirty)
    }

    /// A new host that knows nothing listens from now on.
    pub fn start_stream(&mut self) {
        self.stop_stream();
        // Entries are made with the stream before as `told`.
        self.stream = self.stream.wrapping_add(1);
        self.streaming = true;
    }

    /// Nobody listens; changes need not be remembered.
    pub fn stop_stream(&mut self) {
        self.streaming = false;
        self.dirty.clear();
        self.order.clear();
    }

    /// Number of keys that the host does not know the state of, what a running snapshot still sends apart.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.dirty.len()
    }

    /// Changes that the host does not know of yet, the oldest first; they count as told.
    pub fn take_changes(&mut self, limits: Limits) -> Option<Batch> {
        let mut batch = Batch { changes: Vec::new(), oldest: None };
        let mut bytes = 0;
        while batch.changes.len() < limits.changes {
            let Some((_, slot)) = self.order.first_key_value() else { break };
            let change = match self.entries.get(slot) {
                Some(entry) => Change::Upsert(told(&entry.object, &self.duplicated)),
                None => Change::Remove(slot.1.clone()),
            };
            bytes += encoded_bound(&change);
            if bytes > limits.bytes && !batch.changes.is_empty() {
                break;
            }
            let slot = slot.clone();
            if let Some(entry) = self.entries.get_mut(&slot) {
                entry.told = self.stream;
            }
            let since = self.unmark(&slot).map(|dirty| dirty.since);
            batch.oldest = batch.oldest.into_iter().chain(since).min();
            batch.changes.push(change);
        }
        (!batch.changes.is_empty()).then_some(batch)
    }

    /// The next part of a snapshot, after `cursor`, which moves; what was told already is left out. None: that
    /// was all of it.
    pub fn take_snapshot(&mut self, cursor: &mut Option<Slot>, limits: Limits) -> Option<Batch> {
        let mut changes = Vec::new();
        let mut bytes = 0;
        let mut taken = Vec::new();
        let after = cursor.take().map_or(Bound::Unbounded, Bound::Excluded);
        for (slot, entry) in self.entries.range_mut((after, Bound::Unbounded)) {
            if entry.told == self.stream {
                continue;
            }
            let change = Change::Upsert(told(&entry.object, &self.duplicated));
            bytes += encoded_bound(&change);
            if changes.len() == limits.changes || (bytes > limits.bytes && !changes.is_empty()) {
                break;
            }
            entry.told = self.stream;
            changes.push(change);
            taken.push(slot.clone());
        }
        for slot in &taken {
            self.unmark(slot);
        }
        *cursor = taken.pop();
        (!changes.is_empty()).then_some(Batch { changes, oldest: None })
    }
}

/// What the host is told of an object. Of several IPv6 routes with one metric the kernel prefers that through the
/// interface by which a packet came (`rt6_score_route`, which `ip6_pol_route_input` gives that one): no destination
/// decides, so the guest does.
fn told(object: &Object, duplicated: &BTreeMap<RouteKey, u32>) -> Object {
    let Object::Route(route) = object else { return object.clone() };
    if !route.key.dst.addr().is_ipv6() || !duplicated.contains_key(&route.key) {
        return object.clone();
    }
    let target = RouteTarget::Hops(vec![UNDESCRIBED]);
    Object::Route(Route { kind: RouteKind::Unicast, target, mtu: None, ..route.clone() })
}

/// No change is encoded in more bytes than this: fields of schema v1 at their longest.
fn encoded_bound(change: &Change) -> usize {
    const FIXED: usize = 128;
    const HOP: usize = 48;
    const MEMBER: usize = 16;
    FIXED
        + match change {
            Change::Upsert(Object::Route(Route { target: RouteTarget::Hops(hops), .. })) => hops.len() * HOP,
            Change::Upsert(Object::NextHop(next_hop)) => match &next_hop.kind {
                NextHopKind::Group(members) => members.len() * MEMBER,
                NextHopKind::Single(_) => HOP,
                NextHopKind::Blackhole | NextHopKind::Unsupported => 0,
            },
            Change::Upsert(Object::Obstacle(obstacle)) => obstacle.detail.len(),
            Change::Upsert(
                Object::Link(_)
                | Object::Address(_)
                | Object::Neighbor(_)
                | Object::Route(_)
                | Object::Settings(_),
            )
            | Change::Remove(_) => 0,
        }
}
