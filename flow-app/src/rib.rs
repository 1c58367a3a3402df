//! What one guest says: the mirror of its kernel's tables, IPv4 and IPv6, every routing table.
//!
//! Owns the objects, the marking of a snapshot and the digest of what a boot of the guest has said; decides nothing
//! about forwarding ([`crate::fib`] does).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use xenflow_proto::digest::{Digest, Keyed};
use xenflow_proto::table::{
    AddressKey, IfIndex, Link, Neighbor, NeighborKey, NextHop, NextHopKind, Obstacle, ObstacleKey, Route,
    RouteKey, RouteTarget, Settings,
};
use xenflow_proto::{Change, Key, MacAddr, Object};

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
    routes: BTreeMap<RouteKey, Stamped<Route>>,
    next_hops: BTreeMap<u32, Stamped<NextHop>>,
    neighbors: BTreeMap<NeighborKey, Stamped<MacAddr>>,
    /// At most one.
    settings: BTreeMap<(), Stamped<Settings>>,
    /// With their details.
    obstacles: BTreeMap<ObstacleKey, Stamped<String>>,
    /// How many routes refer to a next-hop object.
    users: BTreeMap<u32, usize>,
    epoch: u32,
    in_snapshot: bool,
    tally: Option<Tally>,
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

/// A guest said more than its host will remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {limit} links, addresses, routes, next hops and neighbors")]
pub struct TooManyObjects {
    /// The most that are kept.
    pub limit: usize,
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

    /// End-of-RIB: the keys that the snapshot did not confirm, in an order in which they can be removed. None
    /// without a beginning: an end alone must not sweep everything.
    pub fn unconfirmed(&mut self) -> Vec<Key> {
        if !std::mem::take(&mut self.in_snapshot) {
            return Vec::new();
        }
        fn old<K: Clone, V>(map: &BTreeMap<K, Stamped<V>>, epoch: u32) -> impl Iterator<Item = K> {
            map.iter().filter(move |(_, entry)| entry.epoch != epoch).map(|(key, _)| key.clone())
        }
        let epoch = self.epoch;
        let routes = old(&self.routes, epoch).map(Key::Route);
        let neighbors = old(&self.neighbors, epoch).map(Key::Neighbor);
        let next_hops = old(&self.next_hops, epoch).map(Key::NextHop);
        let addresses = old(&self.addresses, epoch).map(Key::Address);
        let links = old(&self.links, epoch).map(Key::Link);
        let settings = old(&self.settings, epoch).map(|()| Key::Settings);
        let obstacles = old(&self.obstacles, epoch).map(Key::Obstacle);
        let links = links.chain(settings).chain(obstacles);
        routes.chain(neighbors).chain(next_hops).chain(addresses).chain(links).collect()
    }

    /// Makes the change; true if anything is different now.
    ///
    /// # Errors
    /// [`TooManyObjects`] if the change would add one more than `limit`; nothing is changed then.
    pub fn apply(&mut self, change: Change, limit: usize) -> Result<bool, TooManyObjects> {
        if matches!(change, Change::Upsert(_)) && self.len() >= limit && !self.contains(&change.key()) {
            return Err(TooManyObjects { limit });
        }
        Ok(self.apply_within_limit(change))
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
            epoch: _,
            in_snapshot: _,
            tally: _,
        } = self;
        links.len() + addresses.len() + routes.len() + next_hops.len() + neighbors.len() + obstacles.len()
    }

    fn contains(&self, key: &Key) -> bool {
        match key {
            Key::Link(ifindex) => self.links.contains_key(ifindex),
            Key::Address(key) => self.addresses.contains_key(key),
            Key::Route(key) => self.routes.contains_key(key),
            Key::NextHop(id) => self.next_hops.contains_key(id),
            Key::Neighbor(key) => self.neighbors.contains_key(key),
            Key::Settings => true,
            Key::Obstacle(key) => self.obstacles.contains_key(key),
        }
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
            Object::NextHop(it) => put(&mut self.next_hops, it.id, it, epoch, tally, next_hop_of),
            Object::Neighbor(it) => put(&mut self.neighbors, it.key, it.mac, epoch, tally, neighbor_of),
            Object::Settings(it) => put(&mut self.settings, (), it, epoch, tally, settings_of),
            Object::Obstacle(it) => put(&mut self.obstacles, it.key, it.detail, epoch, tally, obstacle_of),
            Object::Route(route) => {
                let key = route.key;
                self.count_user(key, -1);
                let changed = put(&mut self.routes, key, route, epoch, &mut self.tally, route_of);
                self.count_user(key, 1);
                changed
            }
        }
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
            Key::NextHop(id) => take(&mut self.next_hops, id, epoch, tally, next_hop_of),
            Key::Neighbor(key) => take(&mut self.neighbors, key, epoch, tally, neighbor_of),
            Key::Settings => take(&mut self.settings, (), epoch, tally, settings_of),
            Key::Obstacle(key) => take(&mut self.obstacles, key, epoch, tally, obstacle_of),
            Key::Route(key) => {
                self.count_user(key, -1);
                take(&mut self.routes, key, epoch, &mut self.tally, route_of)
            }
        }
    }

    fn count_user(&mut self, key: RouteKey, step: isize) {
        let Some(Stamped { value: Route { target: RouteTarget::NextHop(id), .. }, .. }) =
            self.routes.get(&key)
        else {
            return;
        };
        let users = self.users.entry(*id).or_default();
        *users = users.saturating_add_signed(step);
        if *users == 0 {
            self.users.remove(id);
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
        let contains = |next_hop: &NextHop| match &next_hop.kind {
            NextHopKind::Group(members) => members.iter().any(|(member, _)| *member == id),
            NextHopKind::Blackhole | NextHopKind::Single(_) | NextHopKind::Unsupported => false,
        };
        let groups =
            self.next_hops.values().filter(|entry| contains(&entry.value)).map(|entry| entry.value.id);
        groups.chain([id]).filter(|id| self.users.contains_key(id)).collect()
    }

    /// Routes of one prefix in one table, in the kernel's order of preference but for the TOS.
    pub fn candidates(&self, table: u32, dst: IpNet) -> impl Iterator<Item = &Route> {
        let first = RouteKey { table, dst, tos: 0, metric: 0 };
        let last = RouteKey { table, dst, tos: u8::MAX, metric: u32::MAX };
        self.routes.range(first..=last).map(|(_, entry)| &entry.value)
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values().map(|entry| &entry.value)
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

    /// Neighbors with an address in the prefix, on any link.
    pub fn neighbors_in(&self, prefix: IpNet) -> impl Iterator<Item = IpAddr> {
        let bound = |ifindex, addr| NeighborKey { ifindex, addr };
        self.links.keys().flat_map(move |&ifindex| {
            let range = bound(ifindex, prefix.network())..=bound(ifindex, prefix.broadcast());
            self.neighbors.range(range).map(|(key, _)| key.addr)
        })
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

fn route_of(_: RouteKey, route: Route) -> Object {
    Object::Route(route)
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
