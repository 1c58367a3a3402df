//! The tables for somebody else who is to have the same: all that there is, and from then on what changes. What changes faster
//! than it is taken is taken once, as it is then; so a follower costs no more than the keys of the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use xenflow_proto::table::{AddressKey, IfIndex, NeighborKey, ObstacleKey, RouteKey};
use xenflow_proto::{Change, Key, Object};

use super::{
    Rib, RouteRef, Stamped, address_of, behind, link_of, neighbor_of, next_hop_of, obstacle_of, settings_of,
};

/// How far somebody has followed.
#[derive(Debug, Clone)]
pub(super) struct Follow {
    walk: Walk,
    /// What has changed since, and was not told.
    changed: BTreeSet<Key>,
}

/// The first look at everything: all up to this object of this kind was told, what others refer to first.
#[derive(Debug, Clone, Copy)]
enum Walk {
    Settings,
    Links(Option<IfIndex>),
    Addresses(Option<AddressKey>),
    NextHops(Option<u32>),
    Neighbors(Option<NeighborKey>),
    Obstacles(Option<ObstacleKey>),
    Routes(Option<RouteKey>),
    Done,
}

impl Rib {
    /// Somebody follows the tables from now on, in the place of who did: with all that there is, or with what changes from now on.
    pub fn follow(&mut self, from_the_beginning: bool) {
        let walk = if from_the_beginning { Walk::Settings } else { Walk::Done };
        self.follow = Some(Follow { walk, changed: BTreeSet::new() });
    }

    /// Nobody follows the tables any more.
    pub fn unfollow(&mut self) {
        self.follow = None;
    }

    /// Nothing is to be told; also if nobody follows.
    #[must_use]
    pub fn is_followed_up(&self) -> bool {
        let is_up = |follow: &Follow| matches!(follow.walk, Walk::Done) && follow.changed.is_empty();
        self.follow.as_ref().is_none_or(is_up)
    }

    /// About `most` of what is to be told, in order; empty only if there is nothing.
    pub fn followed(&mut self, most: usize) -> Vec<Change> {
        let Some(mut follow) = self.follow.take() else { return Vec::new() };
        let mut told = Vec::new();
        while told.len() < most && !matches!(follow.walk, Walk::Done) {
            let objects = self.walk(&mut follow.walk, most - told.len());
            told.extend(objects.into_iter().map(Change::Upsert));
        }
        while told.len() < most
            && let Some(key) = follow.changed.pop_first()
        {
            told.push(self.object(&key).map_or(Change::Remove(key), Change::Upsert));
        }
        self.follow = Some(follow);
        told
    }

    /// The object of this key is another one than before, or is not there any more.
    pub(super) fn note(&mut self, key: Key) {
        if let Some(follow) = &mut self.follow {
            follow.changed.insert(key);
        }
    }

    fn walk(&self, walk: &mut Walk, most: usize) -> Vec<Object> {
        /// The next ones; the last of them, if there may be more.
        fn next<K: Copy + Ord, V: Clone>(
            map: &BTreeMap<K, Stamped<V>>,
            after: Option<K>,
            most: usize,
            object: fn(K, V) -> Object,
        ) -> (Vec<Object>, Option<K>) {
            let entries = map.range((behind(after), Bound::Unbounded)).take(most);
            let mut last = None;
            let objects: Vec<Object> = entries
                .map(|(key, entry)| {
                    last = Some(*key);
                    object(*key, entry.value.clone())
                })
                .collect();
            let is_all = objects.len() < most;
            (objects, last.filter(|_| !is_all))
        }
        let most = most.max(1);
        let (objects, after) = match *walk {
            Walk::Settings => (next(&self.settings, None, most, settings_of).0, Walk::Links(None)),
            Walk::Links(after) => {
                let (objects, last) = next(&self.links, after, most, link_of);
                (objects, last.map_or(Walk::Addresses(None), |last| Walk::Links(Some(last))))
            }
            Walk::Addresses(after) => {
                let (objects, last) = next(&self.addresses, after, most, address_of);
                (objects, last.map_or(Walk::NextHops(None), |last| Walk::Addresses(Some(last))))
            }
            Walk::NextHops(after) => {
                let (objects, last) = next(&self.next_hops, after, most, next_hop_of);
                (objects, last.map_or(Walk::Neighbors(None), |last| Walk::NextHops(Some(last))))
            }
            Walk::Neighbors(after) => {
                let (objects, last) = next(&self.neighbors, after, most, neighbor_of);
                (objects, last.map_or(Walk::Obstacles(None), |last| Walk::Neighbors(Some(last))))
            }
            Walk::Obstacles(after) => {
                let (objects, last) = next(&self.obstacles, after, most, obstacle_of);
                (objects, last.map_or(Walk::Routes(None), |last| Walk::Obstacles(Some(last))))
            }
            Walk::Routes(after) => {
                let routes: Vec<RouteRef<'_>> = self.routes_after(after).take(most).collect();
                let last = routes.last().filter(|_| routes.len() == most).map(|route| route.key);
                let objects = routes.into_iter().map(|route| Object::Route(route.to_route())).collect();
                (objects, last.map_or(Walk::Done, |last| Walk::Routes(Some(last))))
            }
            Walk::Done => (Vec::new(), Walk::Done),
        };
        *walk = after;
        objects
    }

    fn object(&self, key: &Key) -> Option<Object> {
        fn of<K: Copy + Ord, V: Clone>(
            map: &BTreeMap<K, Stamped<V>>,
            key: K,
            object: fn(K, V) -> Object,
        ) -> Option<Object> {
            Some(object(key, map.get(&key)?.value.clone()))
        }
        match *key {
            Key::Link(key) => of(&self.links, key, link_of),
            Key::Address(key) => of(&self.addresses, key, address_of),
            Key::Route(key) => self.routes.get(key).map(|(route, _)| Object::Route(route.to_route())),
            Key::NextHop(key) => of(&self.next_hops, key, next_hop_of),
            Key::Neighbor(key) => of(&self.neighbors, key, neighbor_of),
            Key::Settings => of(&self.settings, (), settings_of),
            Key::Obstacle(key) => of(&self.obstacles, key, obstacle_of),
        }
    }
}
