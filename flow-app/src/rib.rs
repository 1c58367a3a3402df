//! What one guest says: the mirror of its kernel's tables, IPv4 and IPv6, every routing table.
//!
//! Owns the objects, the marking of a snapshot and the digest of what a boot of the guest has said; decides nothing
//! about forwarding ([`crate::fib`] does).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use xenflow_proto::digest::{Digest, Keyed};
use xenflow_proto::routes::Routes;
use xenflow_proto::table::{
    AddressKey, Family, IfIndex, Link, Neighbor, NeighborKey, NextHop, Obstacle, ObstacleKey, Route,
    RouteKey, Settings,
};
use xenflow_proto::{Change, Key, MacAddr, Object};

mod follow;
mod gateways;
mod size;

pub use xenflow_proto::routes::{Attributes, RouteRef};

/// A table entry and the snapshot that last confirmed it.
#[derive(Debug, Clone)]
struct Stamped<T> {
    value: T,
    epoch: u32,
}

/// The tables of one guest.
#[derive(Debug, Clone, Default)]
pub struct Rib {
    links: BTreeMap<IfIndex, Stamped<Link>>,
    addresses: BTreeMap<AddressKey, Stamped<()>>,
    /// On how many links an address is.
    own: BTreeMap<IpAddr, usize>,
    /// With the snapshot that last confirmed each.
    routes: Routes<u32>,
    next_hops: BTreeMap<u32, Stamped<NextHop>>,
    neighbors: BTreeMap<NeighborKey, Stamped<MacAddr>>,
    /// At most one.
    settings: BTreeMap<(), Stamped<Settings>>,
    /// With their details.
    obstacles: BTreeMap<ObstacleKey, Stamped<String>>,
    /// Next-hop objects with the routes that refer to them.
    users: BTreeSet<(u32, RouteKey)>,
    /// Next-hop objects with the groups that they are members of.
    groups: BTreeSet<(u32, u32)>,
    gateways: gateways::Gateways,
    /// What all objects cost: see [`size`].
    bytes: usize,
    epoch: u32,
    in_snapshot: bool,
    tally: Option<Tally>,
    follow: Option<follow::Follow>,
}

/// The digest of the objects that one boot of the guest has said. What an earlier boot said stays until the end of
/// the snapshot, and is not in it.
#[derive(Debug, Clone)]
struct Tally {
    boot_id: [u8; 16],
    /// The first of this boot.
    since: u32,
    keyed: Keyed,
    digest: Digest,
}

impl Tally {
    fn new(boot_id: [u8; 16], since: u32) -> Self {
        Self { boot_id, since, keyed: Keyed::new(&boot_id), digest: Digest::default() }
    }

    fn add(&mut self, object: &Object) {
        let hash = self.keyed.hash(object);
        self.digest.add(hash);
    }

    fn remove(&mut self, object: &Object) {
        let hash = self.keyed.hash(object);
        self.digest.remove(hash);
    }

    /// An object of this epoch is in the digest. Epochs wrap.
    fn has(&self, epoch: u32, now: u32) -> bool {
        now.wrapping_sub(epoch) <= now.wrapping_sub(self.since)
    }
}

/// How far the sweep at the end of a snapshot has come: all up to this object of this kind is done.
#[derive(Debug, Clone, Copy)]
pub enum Sweep {
    /// Routes first: they refer to others.
    Routes(Option<RouteKey>),
    /// Then neighbors.
    Neighbors(Option<NeighborKey>),
    /// Then next-hop objects.
    NextHops(Option<u32>),
    /// Then addresses.
    Addresses(Option<AddressKey>),
    /// Then links.
    Links(Option<IfIndex>),
    /// Then obstacles.
    Obstacles(Option<ObstacleKey>),
    /// Then the settings.
    Settings,
    /// Nothing is left.
    Done,
}

/// The most that a host remembers of one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Links, addresses, routes, next hops, neighbors and obstacles.
    pub objects: usize,
    /// What the daemon keeps for them, by an estimate from above (`rib/size.rs`): a plain route is about 860.
    pub bytes: usize,
}

impl Quota {
    /// No bound.
    pub const NONE: Self = Self { objects: usize::MAX, bytes: usize::MAX };
}

/// A guest said more than its host will remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// In number.
    #[error("more than {limit} links, addresses, routes, next hops and neighbors")]
    Objects {
        /// The most that are kept.
        limit: usize,
    },
    /// In memory.
    #[error("the tables would take {bytes} bytes here, more than {limit}")]
    Bytes {
        /// What they would take with the change.
        bytes: usize,
        /// The most that they may.
        limit: usize,
    },
}

/// Numbers for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RibCounts {
    /// Routes of every table and family.
    pub routes: usize,
    /// Resolved neighbors.
    pub neighbors: usize,
    /// Next-hop objects.
    pub next_hops: usize,
    /// Links.
    pub links: usize,
}

impl Rib {
    /// A snapshot by this boot of the guest begins: what it does not confirm until its end is swept.
    pub fn snapshot_begin(&mut self, boot_id: [u8; 16]) {
        self.epoch = self.epoch.wrapping_add(1);
        self.in_snapshot = true;
        if self.tally.as_ref().is_none_or(|tally| tally.boot_id != boot_id) {
            self.tally = Some(Tally::new(boot_id, self.epoch));
        }
    }

    /// The tables go on from what they are: a snapshot that was broken off sweeps nothing any more.
    pub fn resume(&mut self) {
        self.in_snapshot = false;
    }

    /// The digest of the tables, if this boot of the guest has said all that is in them.
    #[must_use]
    pub fn held(&self, boot_id: &[u8; 16]) -> Option<Digest> {
        let tally = self.tally.as_ref().filter(|tally| tally.boot_id == *boot_id)?;
        let objects = self.len() + self.settings.len();
        (tally.digest.objects == objects as u64).then_some(tally.digest)
    }

    /// The boot of the guest that is telling the tables, or has told them.
    #[must_use]
    pub fn boot(&self) -> Option<[u8; 16]> {
        self.tally.as_ref().map(|tally| tally.boot_id)
    }

    /// End-of-RIB: the way to the keys that the snapshot did not confirm, for [`Rib::unconfirmed`]. None without a
    /// beginning: an end alone must not sweep everything.
    pub fn snapshot_end(&mut self) -> Option<Sweep> {
        std::mem::take(&mut self.in_snapshot).then_some(Sweep::Routes(None))
    }

    /// Looks at up to `most` objects: the keys that the snapshot did not confirm, in an order in which they can be
    /// removed.
    pub fn unconfirmed(&self, sweep: &mut Sweep, most: usize) -> Vec<Key> {
        /// What is old of the next ones; the last of them, if there may be more.
        fn old<K: Copy + Ord, V>(
            map: &BTreeMap<K, Stamped<V>>,
            epoch: u32,
            after: Option<K>,
            most: usize,
            key: fn(K) -> Key,
        ) -> (Vec<Key>, Option<K>) {
            let mut last = None;
            let mut seen = 0;
            let mut keys = Vec::new();
            for (at, entry) in map.range((behind(after), Bound::Unbounded)).take(most) {
                seen += 1;
                last = Some(*at);
                if entry.epoch != epoch {
                    keys.push(key(*at));
                }
            }
            (keys, last.filter(|_| seen == most))
        }
        let (epoch, most) = (self.epoch, most.max(1));
        let (keys, next) = match *sweep {
            Sweep::Routes(after) => {
                let (keys, last) = self.old_routes(after, most);
                (keys, last.map_or(Sweep::Neighbors(None), |last| Sweep::Routes(Some(last))))
            }
            Sweep::Neighbors(after) => {
                let (keys, last) = old(&self.neighbors, epoch, after, most, Key::Neighbor);
                (keys, last.map_or(Sweep::NextHops(None), |last| Sweep::Neighbors(Some(last))))
            }
            Sweep::NextHops(after) => {
                let (keys, last) = old(&self.next_hops, epoch, after, most, Key::NextHop);
                (keys, last.map_or(Sweep::Addresses(None), |last| Sweep::NextHops(Some(last))))
            }
            Sweep::Addresses(after) => {
                let (keys, last) = old(&self.addresses, epoch, after, most, Key::Address);
                (keys, last.map_or(Sweep::Links(None), |last| Sweep::Addresses(Some(last))))
            }
            Sweep::Links(after) => {
                let (keys, last) = old(&self.links, epoch, after, most, Key::Link);
                (keys, last.map_or(Sweep::Obstacles(None), |last| Sweep::Links(Some(last))))
            }
            Sweep::Obstacles(after) => {
                let (keys, last) = old(&self.obstacles, epoch, after, most, Key::Obstacle);
                (keys, last.map_or(Sweep::Settings, |last| Sweep::Obstacles(Some(last))))
            }
            Sweep::Settings => {
                let (keys, _) = old(&self.settings, epoch, None, most, |()| Key::Settings);
                (keys, Sweep::Done)
            }
            Sweep::Done => (Vec::new(), Sweep::Done),
        };
        *sweep = next;
        keys
    }

    /// What is old of the next routes; the last of these, if there may be more.
    fn old_routes(&self, after: Option<RouteKey>, most: usize) -> (Vec<Key>, Option<RouteKey>) {
        let next = self.routes.range(behind(after)).take(most);
        let next: Vec<(RouteKey, u32)> = next.map(|(route, epoch)| (route.key, epoch)).collect();
        let last = next.last().filter(|_| next.len() == most).map(|(key, _)| *key);
        let old = next.into_iter().filter(|(_, epoch)| *epoch != self.epoch);
        (old.map(|(key, _)| Key::Route(key)).collect(), last)
    }

    /// Makes the change; true if anything is different now.
    ///
    /// # Errors
    /// [`TooMuch`] if the change would make more of the tables than `quota` allows; nothing is changed then.
    pub fn apply(&mut self, mut change: Change, quota: Quota) -> Result<bool, TooMuch> {
        let before = self.size_at(&change.key());
        let after = match &mut change {
            Change::Upsert(object) => {
                size::trim(object);
                size::size(object)
            }
            Change::Remove(_) => 0,
        };
        let is_added =
            before.is_none() && !matches!(change, Change::Upsert(Object::Settings(_)) | Change::Remove(_));
        if is_added && self.len() >= quota.objects {
            return Err(TooMuch::Objects { limit: quota.objects });
        }
        let before = before.unwrap_or_default();
        let bytes = self.bytes - before + after;
        if after > before && bytes > quota.bytes {
            return Err(TooMuch::Bytes { bytes, limit: quota.bytes });
        }
        self.bytes = bytes;
        let key = change.key();
        let is_another = self.apply_within_limit(change);
        if is_another {
            self.note(key);
        }
        Ok(is_another)
    }

    /// What the object of a key costs, if there is one.
    fn size_at(&self, key: &Key) -> Option<usize> {
        match key {
            Key::Link(ifindex) => self.links.get(ifindex).map(|entry| size::link_size(&entry.value)),
            Key::Address(key) => self.addresses.get(key).map(|_| size::size(&Object::Address(*key))),
            Key::Route(key) => self.routes.get(*key).map(|(route, _)| size::route_size(&route.target)),
            Key::NextHop(id) => self.next_hops.get(id).map(|entry| size::next_hop_size(&entry.value)),
            Key::Neighbor(key) => {
                let entry = self.neighbors.get(key)?;
                Some(size::size(&Object::Neighbor(Neighbor { key: *key, mac: entry.value })))
            }
            Key::Settings => self.settings.get(&()).map(|entry| size::size(&Object::Settings(entry.value))),
            Key::Obstacle(key) => self.obstacles.get(key).map(|entry| size::obstacle_size(&entry.value)),
        }
    }

    /// What all objects cost by the estimate that [`Quota::bytes`] bounds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn len(&self) -> usize {
        let Self {
            links,
            addresses,
            routes,
            next_hops,
            neighbors,
            obstacles,
            settings: _,
            own: _,
            users: _,
            groups: _,
            gateways: _,
            bytes: _,
            epoch: _,
            in_snapshot: _,
            tally: _,
            follow: _,
        } = self;
        links.len() + addresses.len() + routes.len() + next_hops.len() + neighbors.len() + obstacles.len()
    }

    fn apply_within_limit(&mut self, change: Change) -> bool {
        match change {
            Change::Upsert(object) => self.upsert(object),
            Change::Remove(key) => self.remove(key),
        }
    }

    fn upsert(&mut self, object: Object) -> bool {
        let (epoch, tally) = (self.epoch, &mut self.tally);
        match object {
            Object::Link(link) => put(&mut self.links, link.ifindex, link, epoch, tally, link_of),
            Object::Address(key) => {
                let is_new = put(&mut self.addresses, key, (), epoch, tally, address_of);
                *self.own.entry(key.address.addr()).or_default() += usize::from(is_new);
                is_new
            }
            Object::NextHop(it) => {
                let id = it.id;
                self.count_next_hop(id, false);
                let changed = put(&mut self.next_hops, id, it, epoch, &mut self.tally, next_hop_of);
                self.count_next_hop(id, true);
                changed
            }
            Object::Neighbor(it) => {
                let changed = put(&mut self.neighbors, it.key, it.mac, epoch, tally, neighbor_of);
                self.settle_gateway(it.key);
                changed
            }
            Object::Settings(it) => put(&mut self.settings, (), it, epoch, tally, settings_of),
            Object::Obstacle(it) => put(&mut self.obstacles, it.key, it.detail, epoch, tally, obstacle_of),
            Object::Route(route) => self.put_route(route),
        }
    }

    fn put_route(&mut self, route: Route) -> bool {
        let (key, epoch) = (route.key, self.epoch);
        self.count_route(key, false);
        let before = self.routes.insert(route.clone(), epoch);
        let said = self.routes.get(key).map(|(route, _)| route.attributes);
        let changed = before.as_ref().map(|(attributes, _)| attributes.as_ref()) != said;
        if let Some(tally) = &mut self.tally {
            let counted = before.filter(|(_, at)| tally.has(*at, epoch));
            if changed || counted.is_none() {
                tally.add(&Object::Route(route));
            }
            if let Some((before, _)) = counted.filter(|_| changed) {
                tally.remove(&Object::Route(before.to_route(key)));
            }
        }
        self.count_route(key, true);
        changed
    }

    fn remove(&mut self, key: Key) -> bool {
        let (epoch, tally) = (self.epoch, &mut self.tally);
        match key {
            Key::Link(ifindex) => take(&mut self.links, ifindex, epoch, tally, link_of),
            Key::Address(key) => {
                let was_there = take(&mut self.addresses, key, epoch, tally, address_of);
                if let Entry::Occupied(mut links) = self.own.entry(key.address.addr()) {
                    *links.get_mut() -= usize::from(was_there);
                    if *links.get() == 0 {
                        links.remove();
                    }
                }
                was_there
            }
            Key::NextHop(id) => {
                self.count_next_hop(id, false);
                take(&mut self.next_hops, id, epoch, &mut self.tally, next_hop_of)
            }
            Key::Neighbor(key) => {
                let was_there = take(&mut self.neighbors, key, epoch, tally, neighbor_of);
                self.settle_gateway(key);
                was_there
            }
            Key::Settings => take(&mut self.settings, (), epoch, tally, settings_of),
            Key::Obstacle(key) => take(&mut self.obstacles, key, epoch, tally, obstacle_of),
            Key::Route(key) => {
                self.count_route(key, false);
                let Some((before, at)) = self.routes.remove(key) else { return false };
                if let Some(tally) = self.tally.as_mut().filter(|tally| tally.has(at, epoch)) {
                    tally.remove(&Object::Route(before.to_route(key)));
                }
                true
            }
        }
    }

    /// The link of that number.
    #[must_use]
    pub fn link(&self, ifindex: IfIndex) -> Option<&Link> {
        self.links.get(&ifindex).map(|entry| &entry.value)
    }

    /// All links.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values().map(|entry| &entry.value)
    }

    /// It is an address of one of the guest's links.
    #[must_use]
    pub fn has_address(&self, addr: IpAddr) -> bool {
        self.own.contains_key(&addr)
    }

    /// Addresses of the guest's behind one, in their order.
    pub fn own_addresses_after(&self, after: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        self.own.range((behind(after), Bound::Unbounded)).map(|(addr, _)| *addr)
    }

    /// All addresses of the guest, each once.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.own.keys().copied()
    }

    /// The next-hop object of that id.
    #[must_use]
    pub fn next_hop(&self, id: u32) -> Option<&NextHop> {
        self.next_hops.get(&id).map(|entry| &entry.value)
    }

    /// Ids through which routes see a change of this next-hop object: its own and those of its groups, where
    /// they have routes.
    #[must_use]
    pub fn users_of(&self, id: u32) -> BTreeSet<u32> {
        let groups = self.groups.range((id, 0)..=(id, u32::MAX)).map(|(_, group)| *group);
        groups.chain([id]).filter(|id| self.routes_by(*id, None).next().is_some()).collect()
    }

    /// Routes of that family refer to a next-hop object themselves.
    #[must_use]
    pub fn is_used_by(&self, id: u32, family: Family) -> bool {
        // In each table IPv4 comes first.
        let mut from = (id, FIRST);
        loop {
            let Some((_, key)) = self.users.range(from..).next().filter(|(of, _)| *of == id) else {
                return false;
            };
            if Family::of(key.dst.addr()) == family {
                return true;
            }
            let next = match family {
                Family::V4 => key.table.checked_add(1).map(|table| RouteKey { table, ..FIRST }),
                Family::V6 => {
                    let dst = IpNet::V6(Ipv6Net::default());
                    Some(RouteKey { table: key.table, dst, ..FIRST })
                }
            };
            let Some(next) = next else { return false };
            // What is behind it is of the other family, or in another table.
            from = (id, next);
        }
    }

    /// Routes that refer to a next-hop object themselves, behind one of them.
    pub fn routes_by(&self, id: u32, after: Option<RouteKey>) -> impl Iterator<Item = RouteKey> {
        let from = match after {
            Some(after) => Bound::Excluded((id, after)),
            None => Bound::Included((id, FIRST)),
        };
        let users = self.users.range((from, Bound::Unbounded));
        users.take_while(move |(of, _)| *of == id).map(|(_, route)| *route)
    }

    /// Routes of one prefix in one table: by TOS, then in the kernel's order of preference.
    pub fn candidates(&self, table: u32, dst: IpNet) -> impl DoubleEndedIterator<Item = RouteRef<'_>> {
        self.routes.of_prefix(table, dst).map(|(route, _)| route)
    }

    /// All routes behind one, in the order of their keys.
    pub fn routes_after(&self, after: Option<RouteKey>) -> impl Iterator<Item = RouteRef<'_>> {
        self.routes_from(behind(after))
    }

    /// All routes from one on.
    pub fn routes_from(&self, from: Bound<RouteKey>) -> impl Iterator<Item = RouteRef<'_>> {
        self.routes.range(from).map(|(route, _)| route)
    }

    /// The first routing table with that number or a higher one that has a route.
    #[must_use]
    pub fn first_table(&self, table: u32) -> Option<u32> {
        let from = RouteKey { table, ..FIRST };
        self.routes_from(Bound::Included(from)).next().map(|route| route.key.table)
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = RouteRef<'_>> {
        self.routes_from(Bound::Unbounded)
    }

    /// The link-layer address of a neighbor.
    #[must_use]
    pub fn neighbor(&self, ifindex: IfIndex, addr: IpAddr) -> Option<MacAddr> {
        self.neighbors.get(&NeighborKey { ifindex, addr }).map(|entry| entry.value)
    }

    /// All neighbors: interface and address.
    pub fn neighbors(&self) -> impl Iterator<Item = (IfIndex, IpAddr)> {
        self.neighbors.keys().map(|key| (key.ifindex, key.addr))
    }

    /// All neighbors behind one, in the order of their keys.
    pub fn neighbors_after(&self, after: Option<NeighborKey>) -> impl Iterator<Item = NeighborKey> {
        self.neighbors.range((behind(after), Bound::Unbounded)).map(|(key, _)| *key)
    }

    /// Neighbors on a link with an address in the prefix, behind one of them.
    pub fn neighbors_in(
        &self,
        ifindex: IfIndex,
        prefix: IpNet,
        after: Option<NeighborKey>,
    ) -> impl Iterator<Item = NeighborKey> {
        let first = NeighborKey { ifindex, addr: prefix.network() };
        let last = NeighborKey { ifindex, addr: prefix.broadcast() };
        let from = match after {
            Some(after) if after >= first => Bound::Excluded(after.min(last)),
            Some(_) | None => Bound::Included(first),
        };
        // A range from behind its end is none.
        let is_over = after.is_some_and(|after| after >= last);
        let range = (!is_over).then(|| self.neighbors.range((from, Bound::Included(last))));
        range.into_iter().flatten().map(|(key, _)| *key)
    }

    /// Neighbors on a link, each with its link-layer address.
    pub fn neighbors_on(&self, ifindex: IfIndex) -> impl Iterator<Item = (IpAddr, MacAddr)> {
        let first = NeighborKey { ifindex, addr: std::net::Ipv4Addr::UNSPECIFIED.into() };
        let range = self.neighbors.range(first..);
        range.take_while(move |(key, _)| key.ifindex == ifindex).map(|(key, entry)| (key.addr, entry.value))
    }

    /// The guest's addresses on a link, each with the length of its subnet.
    pub fn addresses_on(&self, ifindex: IfIndex) -> impl Iterator<Item = IpNet> {
        let all = IpNet::new_assert(std::net::Ipv4Addr::UNSPECIFIED.into(), 0);
        let first = AddressKey { ifindex, address: all };
        let range = self.addresses.range(first..).map(|(key, _)| key);
        range.take_while(move |key| key.ifindex == ifindex).map(|key| key.address)
    }

    /// Settings of the whole kernel, once the guest has said them.
    #[must_use]
    pub fn settings(&self) -> Option<Settings> {
        self.settings.get(&()).map(|entry| entry.value)
    }

    /// What destination-only forwarding would overlook, with details for people.
    pub fn obstacles(&self) -> impl Iterator<Item = (ObstacleKey, &str)> {
        self.obstacles.iter().map(|(key, entry)| (*key, entry.value.as_str()))
    }

    /// How much there is.
    #[must_use]
    pub fn counts(&self) -> RibCounts {
        RibCounts {
            routes: self.routes.len(),
            neighbors: self.neighbors.len(),
            next_hops: self.next_hops.len(),
            links: self.links.len(),
        }
    }
}

fn behind<K>(after: Option<K>) -> Bound<K> {
    after.map_or(Bound::Unbounded, Bound::Excluded)
}

/// No route stands before this one.
const FIRST: RouteKey =
    RouteKey { table: 0, dst: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)), tos: 0, metric: 0 };

/// Puts something into a set, or takes it out.
fn count<T: Ord>(set: &mut BTreeSet<T>, what: T, counts: bool) {
    if counts {
        set.insert(what);
    } else {
        set.remove(&what);
    }
}

/// Inserts or replaces; true if the value is another one now.
fn put<K: Ord + Copy, V: PartialEq + Clone>(
    map: &mut BTreeMap<K, Stamped<V>>,
    key: K,
    value: V,
    epoch: u32,
    tally: &mut Option<Tally>,
    object: impl Fn(K, V) -> Object,
) -> bool {
    match map.entry(key) {
        Entry::Vacant(entry) => {
            if let Some(tally) = tally {
                tally.add(&object(key, value.clone()));
            }
            entry.insert(Stamped { value, epoch });
            true
        }
        Entry::Occupied(mut entry) => {
            let before = entry.insert(Stamped { value, epoch });
            let value = &entry.get().value;
            let changed = before.value != *value;
            if let Some(tally) = tally {
                let was_in = tally.has(before.epoch, epoch);
                if changed || !was_in {
                    tally.add(&object(key, value.clone()));
                }
                if changed && was_in {
                    tally.remove(&object(key, before.value));
                }
            }
            changed
        }
    }
}

/// Removes; true if it was there.
fn take<K: Ord + Copy, V>(
    map: &mut BTreeMap<K, Stamped<V>>,
    key: K,
    epoch: u32,
    tally: &mut Option<Tally>,
    object: impl Fn(K, V) -> Object,
) -> bool {
    let Some(before) = map.remove(&key) else { return false };
    if let Some(tally) = tally.as_mut().filter(|tally| tally.has(before.epoch, epoch)) {
        tally.remove(&object(key, before.value));
    }
    true
}

fn link_of(_: IfIndex, link: Link) -> Object {
    Object::Link(link)
}

fn address_of(key: AddressKey, (): ()) -> Object {
    Object::Address(key)
}

fn next_hop_of(_: u32, next_hop: NextHop) -> Object {
    Object::NextHop(next_hop)
}

fn neighbor_of(key: NeighborKey, mac: MacAddr) -> Object {
    Object::Neighbor(Neighbor { key, mac })
}

fn settings_of((): (), settings: Settings) -> Object {
    Object::Settings(settings)
}

fn obstacle_of(key: ObstacleKey, detail: String) -> Object {
    Object::Obstacle(Obstacle { key, detail })
}

#[cfg(test)]
mod tests;
