//! What the mirror keeps of each key: its object, and what is known of it. Routes are packed: there may be a million.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

use xenflow_proto::routes::{RouteRef, Routes};
use xenflow_proto::table::RouteKey;
use xenflow_proto::{Key, Object};

use super::Slot;

/// What the host was told last under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Told {
    /// Nothing, or that it is gone.
    #[default]
    Nothing,
    /// What is there now.
    This,
    /// Something else, with this hash.
    Other(u64),
}

impl Told {
    /// Of a key whose object has a hash now, and of which the host was told one with another, or none.
    pub(super) fn of(told: Option<u64>, hash: u64) -> Self {
        match told {
            None => Self::Nothing,
            Some(told) if told == hash => Self::This,
            Some(told) => Self::Other(told),
        }
    }

    /// Hash of what it was told, where that of what is there is this.
    pub(super) fn hash(self, hash: u64) -> Option<u64> {
        match self {
            Self::Nothing => None,
            Self::This => Some(hash),
            Self::Other(told) => Some(told),
        }
    }
}

/// What is known of an object.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct State {
    /// Confirmed since the last dump began, by whatever message.
    pub(super) is_seen: bool,
    /// The last dump listed it.
    pub(super) is_dumped: bool,
    /// An event told of it since the last dump began.
    pub(super) is_told: bool,
    /// What the host knows.
    pub(super) told: Told,
    /// Number of the message by which it was told.
    pub(super) sent: u64,
}

/// A [`State`], but for the hash of [`Told::Other`]: five bits and the number of the message.
#[derive(Debug, Clone, Copy)]
struct Stamp([u32; 2]);

const SEEN: u64 = 1;
const DUMPED: u64 = 2;
const BY_EVENT: u64 = 4;
const THIS: u64 = 8;
const OTHER: u64 = 16;
const BITS: u32 = 5;

impl Stamp {
    fn new(state: State) -> Self {
        let State { is_seen, is_dumped, is_told, told, sent } = state;
        let bit = |is_set: bool, bit: u64| if is_set { bit } else { 0 };
        let told = match told {
            Told::Nothing => 0,
            Told::This => THIS,
            Told::Other(_) => OTHER,
        };
        Self::from(bit(is_seen, SEEN) | bit(is_dumped, DUMPED) | bit(is_told, BY_EVENT) | told | sent << BITS)
    }

    fn from(bits: u64) -> Self {
        // Halves, for they are kept in the order of 32 bits.
        Self([(bits >> u32::BITS) as u32, bits as u32])
    }

    fn bits(self) -> u64 {
        let [high, low] = self.0;
        u64::from(high) << u32::BITS | u64::from(low)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// All that are no routes.
    others: BTreeMap<Slot, (Object, State)>,
    routes: Routes<Stamp>,
    /// Of routes the hashes of [`Told::Other`].
    stale: BTreeMap<RouteKey, u64>,
}

impl Entries {
    /// Number of routes.
    pub(super) fn routes(&self) -> usize {
        self.routes.len()
    }

    pub(super) fn contains(&self, slot: &Slot) -> bool {
        route_key(slot).map_or_else(|| self.others.contains_key(slot), |key| self.routes.contains(key))
    }

    pub(super) fn state(&self, slot: &Slot) -> Option<State> {
        match route_key(slot) {
            Some(key) => self.routes.get(key).map(|(_, stamp)| self.unpack(key, stamp)),
            None => self.others.get(slot).map(|(_, state)| *state),
        }
    }

    pub(super) fn get(&self, slot: &Slot) -> Option<(Cow<'_, Object>, State)> {
        match route_key(slot) {
            Some(key) => self.routes.get(key).map(|(route, stamp)| self.read(route, stamp)),
            None => self.others.get(slot).map(|(object, state)| (Cow::Borrowed(object), *state)),
        }
    }

    /// The object is there as it is.
    pub(super) fn holds(&self, object: &Object) -> bool {
        if let Object::Route(route) = object {
            return self.routes.get(route.key).is_some_and(|(kept, _)| kept.is(route));
        }
        self.others.get(&Slot::from(object.key())).is_some_and(|(kept, _)| kept == object)
    }

    /// Something else is known of the object under a key.
    pub(super) fn set(&mut self, slot: &Slot, state: State) {
        if let Some(key) = route_key(slot) {
            if let Some(stamp) = self.routes.stamp_mut(key) {
                *stamp = Stamp::new(state);
                self.note(key, state.told);
            }
        } else if let Some((_, kept)) = self.others.get_mut(slot) {
            *kept = state;
        }
    }

    /// The object comes, in the place of what is under its key.
    pub(super) fn insert(&mut self, object: Object, state: State) {
        if let Object::Route(route) = object {
            self.note(route.key, state.told);
            self.routes.insert(route, Stamp::new(state));
        } else {
            self.others.insert(Slot::from(object.key()), (object, state));
        }
    }

    /// The object under a key goes.
    pub(super) fn remove(&mut self, slot: &Slot) -> Option<(Object, State)> {
        let Some(key) = route_key(slot) else { return self.others.remove(slot) };
        let (attributes, stamp) = self.routes.remove(key)?;
        let state = self.unpack(key, stamp);
        self.stale.remove(&key);
        Some((Object::Route(attributes.to_route(key)), state))
    }

    /// A dump begins: nothing has told of anything since.
    pub(super) fn begin_dump(&mut self) {
        for (_, state) in self.others.values_mut() {
            (state.is_seen, state.is_dumped, state.is_told) = (false, false, false);
        }
        for stamp in self.routes.stamps_mut() {
            *stamp = Stamp::from(stamp.bits() & !(SEEN | DUMPED | BY_EVENT));
        }
    }

    /// Nothing has confirmed these since the last dump began.
    pub(super) fn unseen(&self) -> impl Iterator<Item = Slot> {
        let others =
            self.others.iter().filter(|(_, (_, state))| !state.is_seen).map(|(slot, _)| slot.clone());
        let routes = self.routes.iter().filter(|(_, stamp)| stamp.bits() & SEEN == 0);
        others.chain(routes.map(|(route, _)| Slot::from(Key::Route(route.key))))
    }

    /// The host was told nothing.
    pub(super) fn forget(&mut self) {
        self.others.values_mut().for_each(|(_, state)| state.told = Told::Nothing);
        for stamp in self.routes.stamps_mut() {
            *stamp = Stamp::from(stamp.bits() & !(THIS | OTHER));
        }
        self.stale.clear();
    }

    /// The host knows all of it; what it was not told it counts as told by the message of that number.
    pub(super) fn adopt(&mut self, sent: u64) {
        for (_, state) in self.others.values_mut().filter(|(_, state)| state.told != Told::This) {
            (state.told, state.sent) = (Told::This, sent);
        }
        for stamp in self.routes.stamps_mut().filter(|stamp| stamp.bits() & THIS == 0) {
            let flags = stamp.bits() & (SEEN | DUMPED | BY_EVENT);
            *stamp = Stamp::from(flags | THIS | sent << BITS);
        }
        self.stale.clear();
    }

    /// Those that are no routes, in order, from a key on.
    pub(super) fn others(&self, from: Slot) -> impl Iterator<Item = (&Slot, &Object)> {
        self.others.range(from..).map(|(slot, (object, _))| (slot, object))
    }

    /// All in order, from a key on or behind it.
    pub(super) fn range(&self, from: Bound<Slot>) -> impl Iterator<Item = (Cow<'_, Object>, State)> {
        let from_route = match &from {
            Bound::Unbounded => Some(Bound::Unbounded),
            Bound::Included(Slot(_, Key::Route(key))) => Some(Bound::Included(*key)),
            Bound::Excluded(Slot(_, Key::Route(key))) => Some(Bound::Excluded(*key)),
            Bound::Included(slot) | Bound::Excluded(slot) => {
                (slot.0 < Slot::ROUTES).then_some(Bound::Unbounded)
            }
        };
        let routes = from_route.into_iter().flat_map(|from| self.routes.range(from));
        let routes = routes.map(|(route, stamp)| self.read(route, stamp));
        // Settings are behind them.
        let is_before = |(slot, _): &(&Slot, _)| slot.0 < Slot::ROUTES;
        let others = self.others.range((from, Bound::Unbounded));
        let before = others.clone().take_while(is_before);
        let behind = others.skip_while(is_before);
        before.map(other).chain(routes).chain(behind.map(other))
    }

    fn read(&self, route: RouteRef<'_>, stamp: Stamp) -> (Cow<'static, Object>, State) {
        (Cow::Owned(Object::Route(route.to_route())), self.unpack(route.key, stamp))
    }

    fn unpack(&self, key: RouteKey, stamp: Stamp) -> State {
        let bits = stamp.bits();
        let told = match bits & (THIS | OTHER) {
            0 => Told::Nothing,
            OTHER => self.stale.get(&key).map_or(Told::Nothing, |hash| Told::Other(*hash)),
            _ => Told::This,
        };
        State {
            is_seen: bits & SEEN != 0,
            is_dumped: bits & DUMPED != 0,
            is_told: bits & BY_EVENT != 0,
            told,
            sent: bits >> BITS,
        }
    }

    fn note(&mut self, key: RouteKey, told: Told) {
        match told {
            Told::Other(hash) => _ = self.stale.insert(key, hash),
            Told::Nothing | Told::This if self.stale.is_empty() => {}
            Told::Nothing | Told::This => _ = self.stale.remove(&key),
        }
    }
}

fn route_key(slot: &Slot) -> Option<RouteKey> {
    if let Key::Route(key) = slot.1 { Some(key) } else { None }
}

fn other<'a>((_, (object, state)): (&Slot, &'a (Object, State))) -> (Cow<'a, Object>, State) {
    (Cow::Borrowed(object), *state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_packed_whole() {
        for told in [Told::Nothing, Told::This] {
            for bits in 0..8 {
                let state = State {
                    is_seen: bits & 1 != 0,
                    is_dumped: bits & 2 != 0,
                    is_told: bits & 4 != 0,
                    told,
                    sent: (1 << 58) + bits,
                };
                let key = RouteKey { table: 254, dst: "10.0.0.0/8".parse().unwrap(), tos: 0, metric: 0 };
                let back = Entries::default().unpack(key, Stamp::new(state));
                assert_eq!(format!("{back:?}"), format!("{state:?}"));
            }
        }
    }
}
