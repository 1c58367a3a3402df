//! Routes as both ends keep them, so that a million take little room.
//!
//! Very many routes say the same of their destinations: that is kept once ([`Attributes`]). Keys are kept by family, each in as
//! many bytes as it has, so an IPv4 route takes 16 and its stamp's beside four, an IPv6 route 28, in B-trees whose nodes are half
//! empty at worst. The order is that of [`RouteKey`].
//!
//! Knows nothing of what a stamp says.

use std::collections::BTreeMap;
use std::iter;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::{Bound, Deref};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::table::{Route, RouteKey, RouteKind, RouteTarget};

/// What a route says of its destinations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attributes {
    /// See [`Route::kind`].
    pub kind: RouteKind,
    /// See [`Route::protocol`].
    pub protocol: u8,
    /// See [`Route::scope`].
    pub scope: u8,
    /// See [`Route::target`].
    pub target: RouteTarget,
    /// See [`Route::mtu`].
    pub mtu: Option<u32>,
}

impl Attributes {
    /// Of a route.
    #[must_use]
    pub fn of(Route { key: _, kind, protocol, scope, target, mtu }: Route) -> Self {
        Self { kind, protocol, scope, target, mtu }
    }

    /// A route says this, too.
    #[must_use]
    pub fn is(&self, route: &Route) -> bool {
        let Route { key: _, kind, protocol, scope, target, mtu } = route;
        (self.kind, self.protocol, self.scope, self.mtu) == (*kind, *protocol, *scope, *mtu)
            && self.target == *target
    }

    /// The route under that key that says this.
    #[must_use]
    pub fn to_route(&self, key: RouteKey) -> Route {
        let Self { kind, protocol, scope, target, mtu } = self.clone();
        Route { key, kind, protocol, scope, target, mtu }
    }
}

/// A route that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteRef<'a> {
    /// What it is found by.
    pub key: RouteKey,
    /// What it says.
    pub attributes: &'a Attributes,
}

impl Deref for RouteRef<'_> {
    type Target = Attributes;

    fn deref(&self) -> &Attributes {
        self.attributes
    }
}

impl RouteRef<'_> {
    /// As it was said.
    #[must_use]
    pub fn to_route(self) -> Route {
        self.attributes.to_route(self.key)
    }
}

/// Routes by their keys, each with a stamp. See the module.
#[derive(Debug, Clone)]
pub struct Routes<S> {
    v4: BTreeMap<Key4, Kept<S>>,
    v6: BTreeMap<Key6, Kept<S>>,
    attributes: Interned,
}

/// In the order of [`RouteKey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key4 {
    table: u32,
    addr: Ipv4Addr,
    len: u8,
    tos: u8,
    metric: u32,
}

/// In the order of [`RouteKey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key6 {
    table: u32,
    addr: Ipv6Addr,
    len: u8,
    tos: u8,
    metric: u32,
}

/// A key of either family.
#[derive(Debug, Clone, Copy)]
enum Packed {
    V4(Key4),
    V6(Key6),
}

impl From<RouteKey> for Packed {
    fn from(RouteKey { table, dst, tos, metric }: RouteKey) -> Self {
        match dst {
            IpNet::V4(net) => Self::V4(Key4 { table, addr: net.addr(), len: net.prefix_len(), tos, metric }),
            IpNet::V6(net) => Self::V6(Key6 { table, addr: net.addr(), len: net.prefix_len(), tos, metric }),
        }
    }
}

impl From<Key4> for RouteKey {
    fn from(Key4 { table, addr, len, tos, metric }: Key4) -> Self {
        // The length is that of a prefix.
        let net = Ipv4Net::new(addr, len).unwrap_or_default();
        Self { table, dst: net.into(), tos, metric }
    }
}

impl From<Key6> for RouteKey {
    fn from(Key6 { table, addr, len, tos, metric }: Key6) -> Self {
        let net = Ipv6Net::new(addr, len).unwrap_or_default();
        Self { table, dst: net.into(), tos, metric }
    }
}

/// Where a family's keys begin that are behind a bound of the other one's. In a table IPv4 comes first.
impl Packed {
    fn bounds(from: Bound<RouteKey>) -> (Bound<Key4>, Bound<Key6>) {
        let (key, is_included) = match from {
            Bound::Unbounded => return (Bound::Unbounded, Bound::Unbounded),
            Bound::Included(key) => (key, true),
            Bound::Excluded(key) => (key, false),
        };
        match Self::from(key) {
            Self::V4(key) => {
                let first = Key6 { table: key.table, addr: Ipv6Addr::UNSPECIFIED, len: 0, tos: 0, metric: 0 };
                (bound(key, is_included), Bound::Included(first))
            }
            Self::V6(key) => {
                let last = Key4 {
                    table: key.table,
                    addr: Ipv4Addr::BROADCAST,
                    len: u8::MAX,
                    tos: u8::MAX,
                    metric: u32::MAX,
                };
                (Bound::Excluded(last), bound(key, is_included))
            }
        }
    }
}

fn bound<K>(key: K, is_included: bool) -> Bound<K> {
    if is_included { Bound::Included(key) } else { Bound::Excluded(key) }
}

#[derive(Debug, Clone, Copy)]
struct Kept<S> {
    /// Number of its [`Attributes`].
    attributes: u32,
    stamp: S,
}

impl<S> Default for Routes<S> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new(), attributes: Interned::default() }
    }
}

impl<S: Copy> Routes<S> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many different things they say.
    #[must_use]
    pub fn attributes(&self) -> usize {
        self.attributes.users.len()
    }

    fn kept(&self, key: RouteKey) -> Option<&Kept<S>> {
        match Packed::from(key) {
            Packed::V4(key) => self.v4.get(&key),
            Packed::V6(key) => self.v6.get(&key),
        }
    }

    /// There is a route under that key.
    #[must_use]
    pub fn contains(&self, key: RouteKey) -> bool {
        self.kept(key).is_some()
    }

    /// The route under a key.
    #[must_use]
    pub fn get(&self, key: RouteKey) -> Option<(RouteRef<'_>, S)> {
        self.kept(key)
            .map(|kept| (RouteRef { key, attributes: self.attributes.get(kept.attributes) }, kept.stamp))
    }

    /// The stamp of the route under a key.
    pub fn stamp_mut(&mut self, key: RouteKey) -> Option<&mut S> {
        let kept = match Packed::from(key) {
            Packed::V4(key) => self.v4.get_mut(&key),
            Packed::V6(key) => self.v6.get_mut(&key),
        };
        kept.map(|kept| &mut kept.stamp)
    }

    /// All stamps.
    pub fn stamps_mut(&mut self) -> impl Iterator<Item = &mut S> {
        let v4 = self.v4.values_mut().map(|kept| &mut kept.stamp);
        v4.chain(self.v6.values_mut().map(|kept| &mut kept.stamp))
    }

    /// A route comes, in the place of that under its key, whose attributes and stamp are given.
    pub fn insert(&mut self, route: Route, stamp: S) -> Option<(Arc<Attributes>, S)> {
        let key = route.key;
        let attributes = self.attributes.take(Attributes::of(route));
        let kept = Kept { attributes, stamp };
        let before = match Packed::from(key) {
            Packed::V4(key) => self.v4.insert(key, kept),
            Packed::V6(key) => self.v6.insert(key, kept),
        };
        before.and_then(|before| Some((self.attributes.release(before.attributes)?, before.stamp)))
    }

    /// The route under a key goes; its attributes and stamp.
    pub fn remove(&mut self, key: RouteKey) -> Option<(Arc<Attributes>, S)> {
        let kept = match Packed::from(key) {
            Packed::V4(key) => self.v4.remove(&key),
            Packed::V6(key) => self.v6.remove(&key),
        };
        kept.and_then(|kept| Some((self.attributes.release(kept.attributes)?, kept.stamp)))
    }

    /// Routes from a key on, or behind it.
    pub fn range(&self, from: Bound<RouteKey>) -> impl Iterator<Item = (RouteRef<'_>, S)> {
        let (from4, from6) = Packed::bounds(from);
        let mut v4 = self.v4.range((from4, Bound::Unbounded)).peekable();
        let mut v6 = self.v6.range((from6, Bound::Unbounded)).peekable();
        iter::from_fn(move || {
            let is_v4 = match (v4.peek(), v6.peek()) {
                (Some((v4, _)), Some((v6, _))) => v4.table <= v6.table,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if is_v4 {
                v4.next().map(|(key, kept)| self.read((*key).into(), kept))
            } else {
                v6.next().map(|(key, kept)| self.read((*key).into(), kept))
            }
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (RouteRef<'_>, S)> {
        self.range(Bound::Unbounded)
    }

    /// Routes of one prefix in one table: by TOS, then in the kernel's order of preference.
    pub fn of_prefix(&self, table: u32, dst: IpNet) -> impl DoubleEndedIterator<Item = (RouteRef<'_>, S)> {
        let first = Packed::from(RouteKey { table, dst, tos: 0, metric: 0 });
        let last = Packed::from(RouteKey { table, dst, tos: u8::MAX, metric: u32::MAX });
        let (v4, v6) = match (first, last) {
            (Packed::V4(first), Packed::V4(last)) => (Some(self.v4.range(first..=last)), None),
            (Packed::V6(first), Packed::V6(last)) => (None, Some(self.v6.range(first..=last))),
            // One prefix is of one family.
            (Packed::V4(_), Packed::V6(_)) | (Packed::V6(_), Packed::V4(_)) => (None, None),
        };
        let v4 = v4.into_iter().flatten().map(|(key, kept)| self.read((*key).into(), kept));
        v4.chain(v6.into_iter().flatten().map(|(key, kept)| self.read((*key).into(), kept)))
    }

    fn read(&self, key: RouteKey, kept: &Kept<S>) -> (RouteRef<'_>, S) {
        (RouteRef { key, attributes: self.attributes.get(kept.attributes) }, kept.stamp)
    }
}

/// Attributes, each once and by number.
#[derive(Debug, Clone, Default)]
struct Interned {
    /// By number; none: the number is free.
    values: Vec<Option<Arc<Attributes>>>,
    /// Their numbers, and how many routes say them.
    users: BTreeMap<Arc<Attributes>, (u32, u32)>,
    free: Vec<u32>,
}

impl Interned {
    fn get(&self, number: u32) -> &Attributes {
        match self.values.get(number as usize) {
            Some(Some(attributes)) => attributes,
            // No route has such a number.
            Some(None) | None => &NOTHING,
        }
    }

    /// One route more says it.
    fn take(&mut self, attributes: Attributes) -> u32 {
        if let Some((number, users)) = self.users.get_mut(&attributes) {
            *users += 1;
            return *number;
        }
        let attributes = Arc::new(attributes);
        let number = self.free.pop().unwrap_or_else(|| {
            self.values.push(None);
            // There are fewer than there are routes, and these are fewer than 2^32.
            u32::try_from(self.values.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(value) = self.values.get_mut(number as usize) {
            *value = Some(Arc::clone(&attributes));
        }
        self.users.insert(attributes, (number, 1));
        number
    }

    /// One route less does.
    fn release(&mut self, number: u32) -> Option<Arc<Attributes>> {
        let value = self.values.get_mut(number as usize)?;
        let attributes = Arc::clone(value.as_ref()?);
        let (_, users) = self.users.get_mut(&attributes)?;
        *users -= 1;
        if *users == 0 {
            self.users.remove(&attributes);
            *value = None;
            self.free.push(number);
        }
        Some(attributes)
    }
}

/// What no route says.
static NOTHING: Attributes = Attributes {
    kind: RouteKind::Other(0),
    protocol: 0,
    scope: 0,
    target: RouteTarget::Hops(Vec::new()),
    mtu: None,
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::Hop;

    fn key() -> impl Strategy<Value = RouteKey> {
        let v4 = (0..4_u32, 0..=4_u8).prop_map(|(bits, len)| {
            IpNet::from(Ipv4Net::new_assert(Ipv4Addr::from_bits(bits << 30), len).trunc())
        });
        let v6 = (0..4_u128, 0..=4_u8).prop_map(|(bits, len)| {
            IpNet::from(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits << 126), len).trunc())
        });
        let table = prop_oneof![Just(0), Just(1), Just(254), Just(u32::MAX)];
        let metric = prop_oneof![Just(0), Just(1), Just(u32::MAX)];
        let tos = prop_oneof![Just(0), Just(u8::MAX)];
        (table, prop_oneof![v4, v6], tos, metric).prop_map(|(table, dst, tos, metric)| RouteKey {
            table,
            dst,
            tos,
            metric,
        })
    }

    fn route(key: RouteKey, says: u8) -> Route {
        let hop = Hop {
            gateway: None,
            oif: Some(u32::from(says % 3) + 1),
            weight: 1,
            flags: Default::default(),
            encap: false,
        };
        let target = RouteTarget::Hops(vec![hop]);
        Route { key, kind: RouteKind::Unicast, protocol: says % 2, scope: 0, target, mtu: None }
    }

    proptest! {
        /// As a map from keys to routes.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((key(), prop::option::of(any::<u8>())), 0..200), from in key()) {
            let (mut routes, mut model) = (Routes::default(), BTreeMap::new());
            for (at, (key, says)) in steps.into_iter().enumerate() {
                let before = match says {
                    Some(says) => {
                        model.insert(key, (route(key, says), at)) == routes
                            .insert(route(key, says), at)
                            .map(|(attributes, stamp)| (attributes.to_route(key), stamp))
                    }
                    None => {
                        model.remove(&key) == routes
                            .remove(key)
                            .map(|(attributes, stamp)| (attributes.to_route(key), stamp))
                    }
                };
                prop_assert!(before, "{key:?}");
                prop_assert_eq!(routes.contains(key), model.contains_key(&key));
                prop_assert_eq!(routes.len(), model.len());
            }
            let read = |(route, stamp): (RouteRef<'_>, usize)| (route.to_route(), stamp);
            for bound in [Bound::Unbounded, Bound::Included(from), Bound::Excluded(from)] {
                let expected: Vec<_> = model.range((bound, Bound::Unbounded)).map(|(_, it)| it.clone()).collect();
                prop_assert_eq!(routes.range(bound).map(read).collect::<Vec<_>>(), expected);
            }
            let of: Vec<_> = routes.of_prefix(from.table, from.dst).map(read).collect();
            let is_of = |(route, _): &&(Route, usize)| (route.key.table, route.key.dst) == (from.table, from.dst);
            prop_assert_eq!(&of, &model.values().filter(is_of).cloned().collect::<Vec<_>>());
            let back: Vec<_> = routes.of_prefix(from.table, from.dst).rev().map(read).collect();
            prop_assert!(back.iter().eq(of.iter().rev()));
            let mut says: Vec<Attributes> = model.values().map(|(route, _)| Attributes::of(route.clone())).collect();
            says.sort_unstable();
            says.dedup();
            prop_assert_eq!(routes.attributes(), says.len(), "each once, and none that nobody says");
            prop_assert_eq!(routes.get(from).map(read), model.get(&from).cloned());
        }
    }

    #[test]
    fn a_route_takes_little() {
        assert_eq!((size_of::<Key4>(), size_of::<Key6>(), size_of::<Kept<u32>>()), (16, 28, 8));
    }
}
