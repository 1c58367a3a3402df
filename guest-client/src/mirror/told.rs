//! What the host was told of the mirror, and what it does not know yet.
//!
//! Of each key the hash of what the host was told last is remembered, also beyond the end of a session: in its entry,
//! or, of a key that is gone, in its mark. A key of which the host should know something else is *dirty*: it has a mark
//! until it is taken. What is taken is the value at that moment, so changes of one key coalesce and a slow host
//! costs no more memory than one mark per key. A key that came and went before the host heard of it leaves no
//! mark, nor does one that is again as the host knows it. Keys that a snapshot has yet to list need none.
//!
//! Every message is a step from one state of the host to the next, and the last of them can be taken back ([`Past`]):
//! so a host that says which tables it holds is sent the difference (`start`), wherever the last session broke, and
//! whichever host it is.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::iter;
use std::ops::Bound;
use std::time::Duration;

use xenflow_proto::digest::{Digest, Keyed};
use xenflow_proto::table::{NextHopKind, Route, RouteKey, RouteKind, RouteTarget};
use xenflow_proto::{Change, Key, Object};

use super::marks::Marks;
use super::past::{self, Past};
use super::{Mirror, Slot};
use crate::translate::UNDESCRIBED;

/// Most changes in messages that are not acknowledged: as many as can be taken back.
pub const MAX_IN_FLIGHT: usize = past::MAX_CHANGES;

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

/// What an acknowledgement tells of the messages that it is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// When the kernel told the oldest change in them; none if all were of a snapshot.
    pub oldest: Option<Duration>,
    /// Changes in them.
    pub changes: usize,
    /// Keys in them that the switch confirmed; none before the end of a snapshot or resume.
    pub keys: Vec<Key>,
    /// That was its end: the switch confirmed all that the host held or was told before, too.
    pub whole: bool,
}

/// A message that is not acknowledged.
#[derive(Debug)]
struct Flight {
    oldest: Option<Duration>,
    /// Of which the keys are in the line.
    changes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Told {
    keyed: Keyed,
    /// Of everything, as it would be told now.
    pub(super) current: Digest,
    /// Of what the host holds once it took all messages.
    pub(super) digest: Digest,
    /// What hosts were told, up to that.
    pub(super) line: Past,
    /// What hosts were told before a snapshot that has not come through, and from there on the tables up to now.
    pub(super) elsewhere: Option<Past>,
    flights: VecDeque<Flight>,
    /// Changes in them: the last of the line.
    pub(super) in_flight: usize,
    /// Number of the last message, counted over all sessions.
    sent: u64,
    /// That of the last one acknowledged in this session; all before this session if none was.
    acked: u64,
    /// That of the last one which the switch confirmed.
    confirmed: u64,
    /// The end of the snapshot or resume that is under way, [`u64::MAX`] before it is sent. Only its acknowledgement
    /// confirms anything: a host may take all first, and forward by it then.
    end: Option<u64>,
    /// From where on entries are to be listed that the host does not know; none: such entries have marks.
    pub(super) listing: Option<Bound<Slot>>,
    /// There is a host that listens.
    pub(super) listening: bool,
    pub(super) marks: Marks,
}

impl Told {
    pub(super) fn new(boot_id: &[u8; 16]) -> Self {
        Self {
            keyed: Keyed::new(boot_id),
            current: Digest::default(),
            digest: Digest::default(),
            line: Past::new(Digest::default()),
            elsewhere: None,
            flights: VecDeque::new(),
            in_flight: 0,
            sent: 0,
            acked: 0,
            confirmed: 0,
            end: None,
            listing: Some(Bound::Unbounded),
            listening: false,
            marks: Marks::default(),
        }
    }

    /// Hash of what the host is to be told of an object from now on; `before` is no more.
    pub(super) fn replace(
        &mut self,
        before: Option<u64>,
        object: &Object,
        duplicated: &BTreeMap<RouteKey, u32>,
    ) -> u64 {
        let hash = self.keyed.hash(&as_told(object, duplicated));
        swap(&mut self.current, before, Some(hash));
        if before != Some(hash) && self.elsewhere.is_some() {
            self.changed(Slot::from(object.key()), before);
        }
        hash
    }

    /// The object under this key, with this hash, is no more.
    pub(super) fn remove(&mut self, slot: &Slot, hash: u64) {
        self.current.remove(hash);
        self.changed(slot.clone(), Some(hash));
    }

    fn changed(&mut self, slot: Slot, before: Option<u64>) {
        if let Some(line) = &mut self.elsewhere {
            line.push(self.current, iter::once((slot, before)));
        }
    }

    /// What the host has under a key without an entry.
    pub(super) fn of_gone(&self, slot: &Slot) -> Option<u64> {
        self.marks.get(slot).and_then(|dirty| dirty.told)
    }

    /// Number of the last message: what was told of any key was told by then.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// A session begins, by a message of its own.
    pub(super) fn begin(&mut self) {
        self.flights.clear();
        self.in_flight = 0;
        self.acked = self.sent;
        // It may be another host.
        self.confirmed = 0;
        self.send(None, Vec::new());
        self.end = Some(u64::MAX);
        self.listening = true;
    }

    fn send(&mut self, oldest: Option<Duration>, changes: Vec<past::Change>) {
        self.sent += 1;
        self.in_flight += changes.len();
        self.flights.push_back(Flight { oldest, changes: changes.len() });
        self.line.push(self.digest, changes.into_iter());
    }
}

impl Mirror {
    /// Whether an IPv6 key has several routes has changed, and with it what the host is to know.
    pub(super) fn tell_again(&mut self, key: RouteKey, now: Duration) {
        let slot = Slot::from(Key::Route(key));
        if key.dst.addr().is_ipv6()
            && let Some(entry) = self.entries.get_mut(&slot)
        {
            entry.hash = self.told.replace(Some(entry.hash), &entry.object, &self.duplicated);
            let told = entry.told;
            self.review(&slot, told, now);
        }
    }

    /// Marks a key if the host, which was told this of it, must hear of it.
    pub(super) fn review(&mut self, slot: &Slot, told: Option<u64>, since: Duration) {
        let hash = self.entries.get(slot).map(|entry| entry.hash);
        let listed = hash.is_some() && self.told.listing.is_some() && !self.told.listening;
        if hash == told || listed {
            self.told.marks.unmark(slot);
            return;
        }
        // Whatever else waits: the host must not forward what it should not.
        let urgent = matches!(slot.1, Key::Obstacle(_)) && hash.is_some();
        self.told.marks.mark(slot, told, since, urgent);
    }

    /// Number of keys that the host does not know the state of, what a running snapshot still sends apart.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.told.marks.len()
    }

    /// Nothing may be taken before the host acknowledges something: [`MAX_IN_FLIGHT`] is reached.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.told.in_flight >= MAX_IN_FLIGHT
    }

    /// The host was told of what is under this key, and its switch confirmed it. It may have rejected it.
    #[must_use]
    pub fn is_confirmed(&self, key: &Key) -> bool {
        let entry = self.entries.get(&Slot::from(key.clone()));
        entry.is_some_and(|entry| entry.told == Some(entry.hash) && entry.sent <= self.told.confirmed)
    }

    /// The next message: changes, the oldest first, then what the snapshot has yet to list. They count as told.
    /// None: the host was told all, or [`Self::is_full`].
    pub fn take(&mut self, limits: Limits) -> Option<Batch> {
        let room = MAX_IN_FLIGHT.saturating_sub(self.told.in_flight);
        let limits = Limits { changes: limits.changes.min(room), ..limits };
        if limits.changes == 0 {
            return None;
        }
        self.take_marked(limits).or_else(|| self.take_listed(limits))
    }

    fn take_marked(&mut self, limits: Limits) -> Option<Batch> {
        let mut batch = Batch { changes: Vec::new(), oldest: None };
        let mut undo = Vec::new();
        let mut bytes = 0;
        let told = &mut self.told;
        while batch.changes.len() < limits.changes {
            let Some(slot) = told.marks.first().cloned() else { break };
            let entry = self.entries.get_mut(&slot);
            let change = match &entry {
                Some(entry) => Change::Upsert(as_told(&entry.object, &self.duplicated).into_owned()),
                None => Change::Remove(slot.1.clone()),
            };
            bytes += encoded_bound(&change);
            if bytes > limits.bytes && !batch.changes.is_empty() {
                break;
            }
            let dirty = told.marks.unmark(&slot);
            let (before, now) = match entry {
                Some(entry) => {
                    entry.sent = told.sent + 1;
                    (entry.told.replace(entry.hash), Some(entry.hash))
                }
                None => (dirty.and_then(|dirty| dirty.told), None),
            };
            swap(&mut told.digest, before, now);
            undo.push((slot, before));
            batch.oldest = batch.oldest.into_iter().chain(dirty.map(|dirty| dirty.since)).min();
            batch.changes.push(change);
        }
        if batch.changes.is_empty() {
            return None;
        }
        told.send(batch.oldest, undo);
        Some(batch)
    }

    fn take_listed(&mut self, limits: Limits) -> Option<Batch> {
        let told = &mut self.told;
        let from = told.listing.take()?;
        let mut changes = Vec::new();
        let mut undo: Vec<past::Change> = Vec::new();
        let mut bytes = 0;
        for (slot, entry) in self.entries.range_mut((from, Bound::Unbounded)) {
            if entry.told == Some(entry.hash) {
                continue;
            }
            let change = Change::Upsert(as_told(&entry.object, &self.duplicated).into_owned());
            bytes += encoded_bound(&change);
            if changes.len() == limits.changes || (bytes > limits.bytes && !changes.is_empty()) {
                told.listing = undo.last().map(|(slot, _)| Bound::Excluded(slot.clone()));
                break;
            }
            entry.sent = told.sent + 1;
            let before = entry.told.replace(entry.hash);
            swap(&mut told.digest, before, Some(entry.hash));
            changes.push(change);
            undo.push((slot.clone(), before));
        }
        for (slot, _) in &undo {
            told.marks.unmark(slot);
        }
        if changes.is_empty() {
            return None;
        }
        told.send(None, undo);
        Some(Batch { changes, oldest: None })
    }

    /// The host is told that this was all. Counts as a message.
    pub fn end(&mut self) {
        self.told.send(None, Vec::new());
        self.told.end = Some(self.told.sent);
    }

    /// The host acknowledged so many more messages.
    pub fn acknowledge(&mut self, messages: u64) -> Confirmed {
        let told = &mut self.told;
        told.acked += messages;
        let pending = told.end.is_some_and(|end| told.acked < end);
        let mut step = Confirmed { whole: !pending && told.end.is_some(), ..Confirmed::default() };
        for _ in 0..messages {
            let Some(flight) = told.flights.pop_front() else { break };
            step.oldest = step.oldest.into_iter().chain(flight.oldest).min();
            step.changes += flight.changes;
            if !pending {
                let keys = told.line.last(told.in_flight).take(flight.changes);
                step.keys.extend(keys.map(|(slot, _)| slot.1.clone()));
            }
            told.in_flight -= flight.changes;
        }
        if !pending {
            told.end = None;
            told.confirmed = told.acked;
        }
        if step.whole {
            self.join();
        }
        step
    }
}

fn swap(digest: &mut Digest, before: Option<u64>, now: Option<u64>) {
    if let Some(hash) = before {
        digest.remove(hash);
    }
    if let Some(hash) = now {
        digest.add(hash);
    }
}

/// What the host is told of an object. Of several IPv6 routes with one metric the kernel prefers that through the
/// interface by which a packet came (`rt6_score_route`, which `ip6_pol_route_input` gives that one): no destination
/// decides, so the guest does.
fn as_told<'a>(object: &'a Object, duplicated: &BTreeMap<RouteKey, u32>) -> Cow<'a, Object> {
    let Object::Route(route) = object else { return Cow::Borrowed(object) };
    if !route.key.dst.addr().is_ipv6() || !duplicated.contains_key(&route.key) {
        return Cow::Borrowed(object);
    }
    let target = RouteTarget::Hops(vec![UNDESCRIBED]);
    Cow::Owned(Object::Route(Route { kind: RouteKind::Unicast, target, mtu: None, ..route.clone() }))
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
