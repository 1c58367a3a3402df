//! What the host was told of the mirror, and what it does not know yet.
//!
//! Of each key it is remembered what the host was told last, also beyond the end of a session: in its entry, or, of a key
//! that is gone, in its mark. A key of which the host should know something else is *dirty*: it has a mark
//! until it is taken. What is taken is the value at that moment, so changes of one key coalesce and a slow host
//! costs no more memory than one mark per key. A key that came and went before the host heard of it leaves no
//! mark, nor does one that is again as the host knows it. Keys that a snapshot has yet to list need none.
//!
//! Every message is a step from one state of the host to the next, and the last of them can be taken back ([`Past`]):
//! so a host that says which tables it holds is sent the difference (`start`), wherever the last session broke, and
//! whichever host it is.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::iter;
use std::ops::Bound;
use std::time::Duration;

use xenflow_proto::digest::{Digest, Keyed};
use xenflow_proto::table::{NextHopKind, Route, RouteKey, RouteKind, RouteTarget};
use xenflow_proto::{Change, Key, Object};

use super::entries::{State, Told};
use super::marks::Marks;
use super::past::{self, Past};
use super::{Mirror, Slot};
use crate::translate::UNDESCRIBED;

/// Most changes in messages that are not acknowledged. It is as much as keeps a host busy that has two bundles of a thousand under
/// way and another one ready: whatever is told next waits for all of them.
pub const MAX_IN_FLIGHT: usize = 4 << 10;
const _: () = assert!(MAX_IN_FLIGHT <= past::MAX_CHANGES, "they can be taken back");

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
pub(super) struct Telling {
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

impl Telling {
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

    /// Hash of what the host is to be told of an object, of whose key there are several routes or not.
    pub(super) fn hash(&mut self, object: &Object, is_duplicated: bool) -> u64 {
        self.keyed.hash(&as_told(object, is_duplicated))
    }

    /// What the host is to be told of a key had that hash before, and has this one from now on.
    pub(super) fn replace(&mut self, slot: &Slot, before: Option<u64>, hash: u64) {
        swap(&mut self.current, before, Some(hash));
        if before != Some(hash) && self.elsewhere.is_some() {
            self.changed(slot.clone(), before);
        }
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
        if !key.dst.addr().is_ipv6() {
            return;
        }
        let is_duplicated = self.duplicated.contains_key(&key);
        let Some((object, state)) = self.entries.get(&slot) else { return };
        let before = self.told.hash(&object, !is_duplicated);
        let hash = self.told.hash(&object, is_duplicated);
        self.told.replace(&slot, Some(before), hash);
        let told = Told::of(state.told.hash(before), hash);
        self.entries.set(&slot, State { told, ..state });
        self.review(&slot, None, now);
    }

    /// Marks a key if the host must hear of it; of one that is gone the host was told this.
    pub(super) fn review(&mut self, slot: &Slot, gone: Option<u64>, since: Duration) {
        let state = self.entries.state(slot);
        let is_there = state.is_some();
        let told = match state.map(|state| state.told) {
            Some(Told::Nothing) => None,
            Some(Told::Other(hash)) => Some(hash),
            Some(Told::This) => {
                self.told.marks.unmark(slot);
                return;
            }
            None => gone,
        };
        let listed = is_there && self.told.listing.is_some() && !self.told.listening;
        if listed || (!is_there && told.is_none()) {
            self.told.marks.unmark(slot);
            return;
        }
        self.told.marks.mark(slot, told, is_there, since);
    }

    /// Hash of what is under a key.
    pub(super) fn hash(&mut self, slot: &Slot) -> Option<u64> {
        let is_duplicated = self.is_duplicated(slot);
        let (object, _) = self.entries.get(slot)?;
        Some(self.told.hash(&object, is_duplicated))
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
        let state = self.entries.state(&Slot::from(key.clone()));
        state.is_some_and(|state| state.told == Told::This && state.sent <= self.told.confirmed)
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
        while batch.changes.len() < limits.changes {
            let Some(slot) = self.told.marks.first().cloned() else { break };
            let is_duplicated = self.is_duplicated(&slot);
            let entry = self.entries.get(&slot);
            let change = match entry.as_ref().map(|(object, _)| as_told(object, is_duplicated)) {
                Some(object) => Change::Upsert(object.into_owned()),
                None => Change::Remove(slot.1.clone()),
            };
            bytes += encoded_bound(&change);
            if bytes > limits.bytes && !batch.changes.is_empty() {
                break;
            }
            let state = entry.map(|(_, state)| state);
            let dirty = self.told.marks.take(&slot);
            let (before, now) = match (state, &change) {
                (Some(state), Change::Upsert(object)) => self.tell(&slot, object, state),
                (_, Change::Upsert(_) | Change::Remove(_)) => (dirty.and_then(|dirty| dirty.told), None),
            };
            swap(&mut self.told.digest, before, now);
            undo.push((slot, before));
            batch.oldest = batch.oldest.into_iter().chain(dirty.map(|dirty| dirty.since)).min();
            batch.changes.push(change);
        }
        if batch.changes.is_empty() {
            return None;
        }
        self.told.send(batch.oldest, undo);
        Some(batch)
    }

    /// By the next message the host is told this of a key, whose entry has that state. Hashes of what it knew, and knows.
    fn tell(&mut self, slot: &Slot, as_told: &Object, state: State) -> (Option<u64>, Option<u64>) {
        let hash = self.told.keyed.hash(as_told);
        self.entries.set(slot, State { told: Told::This, sent: self.told.sent + 1, ..state });
        (state.told.hash(hash), Some(hash))
    }

    fn take_listed(&mut self, limits: Limits) -> Option<Batch> {
        let from = self.told.listing.take()?;
        let mut bytes = 0;
        let mut listed: Vec<(Slot, Object, State)> = Vec::new();
        for (object, state) in self.entries.range(from).filter(|(_, state)| state.told != Told::This) {
            let slot = Slot::from(object.key());
            let object = as_told(&object, self.is_duplicated(&slot)).into_owned();
            bytes += encoded_bound_of(&object);
            if listed.len() == limits.changes || (bytes > limits.bytes && !listed.is_empty()) {
                self.told.listing = listed.last().map(|(slot, ..)| Bound::Excluded(slot.clone()));
                break;
            }
            listed.push((slot, object, state));
        }
        let mut changes = Vec::with_capacity(listed.len());
        let mut undo: Vec<past::Change> = Vec::with_capacity(listed.len());
        for (slot, object, state) in listed {
            let (before, now) = self.tell(&slot, &object, state);
            swap(&mut self.told.digest, before, now);
            self.told.marks.unmark(&slot);
            changes.push(Change::Upsert(object));
            undo.push((slot, before));
        }
        if changes.is_empty() {
            return None;
        }
        self.told.send(None, undo);
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
fn as_told(object: &Object, is_duplicated: bool) -> Cow<'_, Object> {
    let Object::Route(route) = object else { return Cow::Borrowed(object) };
    if !route.key.dst.addr().is_ipv6() || !is_duplicated {
        return Cow::Borrowed(object);
    }
    let target = RouteTarget::Hops(vec![UNDESCRIBED]);
    Cow::Owned(Object::Route(Route { kind: RouteKind::Unicast, target, mtu: None, ..route.clone() }))
}

/// No change is encoded in more bytes than this: fields of schema v1 at their longest.
fn encoded_bound(change: &Change) -> usize {
    match change {
        Change::Upsert(object) => encoded_bound_of(object),
        Change::Remove(_) => FIXED,
    }
}

const FIXED: usize = 128;

fn encoded_bound_of(object: &Object) -> usize {
    const HOP: usize = 48;
    const MEMBER: usize = 16;
    FIXED
        + match object {
            Object::Route(Route { target: RouteTarget::Hops(hops), .. }) => hops.len() * HOP,
            Object::NextHop(next_hop) => match &next_hop.kind {
                NextHopKind::Group(members) => members.len() * MEMBER,
                NextHopKind::Single(_) => HOP,
                NextHopKind::Blackhole | NextHopKind::Unsupported => 0,
            },
            Object::Obstacle(obstacle) => obstacle.detail.len(),
            Object::Link(_)
            | Object::Address(_)
            | Object::Neighbor(_)
            | Object::Route(_)
            | Object::Settings(_) => 0,
        }
}
