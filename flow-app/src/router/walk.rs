//! Walks over a router's places that something far-reaching may have changed, a few of them at a time.
//!
//! A link, an obstacle or a next-hop object may decide a whole table. Nothing of that is done when the guest says so: a
//! walk stands in the queue of what is due, in the order in which things were said, and each turn of the router goes on
//! with it for a few steps. So what one guest says in a word costs the others no more than their turns.
//!
//! A place that is looked at holds what the guest's tables say *now*. One that has changed since the walk was asked
//! for is due by itself as well; whichever comes first decides it.

use xenflow_proto::table::{NeighborKey, RouteKey, TABLE_LOCAL};

use super::place::{Place, hosts_of, rewrites_of, route};
use super::{Due, Router};
use crate::fib::{Binding, Ruling, Verdict};
use crate::limit::{Class, Prefix};

/// Places in a step of a walk.
pub(super) const STRIDE: usize = 8;
/// As many places as this are due one by one; more of them by a walk.
pub(super) const FEW: usize = 4;

/// Where a walk goes on: behind this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Walk {
    /// Places that hold something else under the binding than under the one before: those of routes,
    Routes(Option<RouteKey>),
    /// then those of neighbors that are their own next hops,
    Hosts(Option<NeighborKey>),
    /// then their rewrites. Routes leave a next hop before its rewrite goes.
    Rewrites(Option<NeighborKey>),
    /// Routes by a next-hop object.
    Users(u32, Option<RouteKey>),
    /// Neighbors that a prefix covers.
    Covered(Prefix, Option<NeighborKey>),
    /// Prefixes that found no group left. What they hold is no harm, so others go first.
    Lacking(Option<RouteKey>),
}

impl Router {
    /// A few steps of a walk; what is left of it.
    pub(super) fn step(&mut self, walk: Walk) -> Option<Walk> {
        match walk {
            Walk::Routes(after) => Some(self.step_routes(after)),
            Walk::Hosts(after) => Some(self.step_hosts(after)),
            Walk::Rewrites(after) => self.step_rewrites(after),
            Walk::Users(id, after) => self.step_users(id, after),
            Walk::Covered(prefix, after) => self.step_covered(prefix, after),
            Walk::Lacking(after) => self.step_lacking(after),
        }
    }

    fn step_routes(&mut self, after: Option<RouteKey>) -> Walk {
        let Some(before) = self.before.take() else { return Walk::Rewrites(None) };
        let (prefixes, next) = self.prefixes_behind(after);
        for prefix in prefixes {
            let is_looked_up = |binding: &Binding| binding.tables().contains(&prefix.table);
            if prefix.table != TABLE_LOCAL && (is_looked_up(&before) || is_looked_up(&self.binding)) {
                route(prefix).into_iter().for_each(|place| self.pass(place, &before));
            }
        }
        self.before = Some(before);
        next.map_or(Walk::Hosts(None), |next| Walk::Routes(Some(next)))
    }

    /// Prefixes that there are routes of; the last of these routes, if there may be more.
    fn prefixes_behind(&self, after: Option<RouteKey>) -> (Vec<Prefix>, Option<RouteKey>) {
        let mut prefixes: Vec<Prefix> = Vec::new();
        let mut next = after;
        while prefixes.len() < STRIDE
            && let Some(known) = self.rib.routes_after(next).next()
        {
            let RouteKey { table, dst, .. } = known.key;
            // However many routes of it there are.
            next = Some(RouteKey { table, dst, tos: u8::MAX, metric: u32::MAX });
            prefixes.push(Prefix { table, dst });
        }
        let is_over = prefixes.len() < STRIDE;
        (prefixes, next.filter(|_| !is_over))
    }

    fn step_lacking(&mut self, after: Option<RouteKey>) -> Option<Walk> {
        let (prefixes, next) = self.prefixes_behind(after);
        for prefix in prefixes {
            if self.limit.class(prefix) != Class::Forward || self.groups.has(prefix) {
                continue;
            }
            let Some(Ruling { verdict, .. }) = self.ruling(prefix, &self.binding) else { continue };
            if let Verdict::OneOf(hops, _) = &verdict
                && self.refused.by(&verdict).is_none()
                && self.groups.may_have(hops)
                && let Some(place) = route(prefix)
            {
                self.turn_now(place);
            }
        }
        if next.is_none() {
            self.asks_again = false;
            if std::mem::take(&mut self.has_room_again) {
                self.ask_again();
            }
        }
        next.map(|next| Walk::Lacking(Some(next)))
    }

    fn neighbors_behind(&self, after: Option<NeighborKey>) -> (Vec<NeighborKey>, Option<NeighborKey>) {
        let neighbors: Vec<NeighborKey> = self.rib.neighbors_after(after).take(STRIDE).collect();
        let last = neighbors.last().copied().filter(|_| neighbors.len() == STRIDE);
        (neighbors, last)
    }

    fn step_hosts(&mut self, after: Option<NeighborKey>) -> Walk {
        let Some(before) = self.before.take() else { return Walk::Rewrites(None) };
        let (neighbors, last) = self.neighbors_behind(after);
        for NeighborKey { ifindex, addr } in neighbors {
            if before.vif(ifindex).is_none() && self.binding.vif(ifindex).is_none() {
                continue;
            }
            let mut places: Vec<Place> =
                hosts_of(&before, addr).chain(hosts_of(&self.binding, addr)).collect();
            places.sort_unstable();
            places.dedup();
            places.into_iter().for_each(|place| self.pass(place, &before));
        }
        self.before = Some(before);
        last.map_or(Walk::Rewrites(None), |last| Walk::Hosts(Some(last)))
    }

    fn step_rewrites(&mut self, after: Option<NeighborKey>) -> Option<Walk> {
        let before = self.before.take()?;
        let (neighbors, last) = self.neighbors_behind(after);
        for NeighborKey { ifindex, addr } in neighbors {
            let mut places: Vec<Place> = rewrites_of(&before, ifindex, addr).collect();
            places.extend(rewrites_of(&self.binding, ifindex, addr));
            places.sort_unstable();
            places.dedup();
            places.into_iter().for_each(|place| self.pass(place, &before));
        }
        // Nothing is of the binding before, when all was looked at.
        self.before = last.map(|_| before);
        last.map(|last| Walk::Rewrites(Some(last)))
    }

    /// Decides a place anew that a binding may have changed.
    fn pass(&mut self, place: Place, before: &Binding) {
        let waits = self.waiting.remove(&place);
        if waits.is_some() || self.content(place, before) != self.content(place, &self.binding) {
            self.turn(place, waits.unwrap_or_default());
        }
    }

    fn step_users(&mut self, id: u32, after: Option<RouteKey>) -> Option<Walk> {
        let users: Vec<RouteKey> = self.rib.routes_by(id, after).take(STRIDE).collect();
        for RouteKey { table, dst, .. } in &users {
            let prefix = Prefix { table: *table, dst: *dst };
            if let Some(place) = route(prefix) {
                self.turn_now(place);
            }
            match self.few_hosts(prefix) {
                Some(hosts) => hosts.into_iter().for_each(|host| self.turn_now(host)),
                None => self.due.push_front(Due::Walk(Walk::Covered(prefix, None))),
            }
        }
        let Some(last) = users.last().filter(|_| users.len() == STRIDE) else {
            self.walked.remove(&id);
            return None;
        };
        Some(Walk::Users(id, Some(*last)))
    }

    fn step_covered(&mut self, prefix: Prefix, after: Option<NeighborKey>) -> Option<Walk> {
        let links = self.bound_links();
        let here = links.into_iter().find(|ifindex| after.is_none_or(|after| after.ifindex <= *ifindex));
        let ifindex = here?;
        let on_it = after.filter(|after| after.ifindex == ifindex);
        let hosts: Vec<NeighborKey> =
            self.rib.neighbors_in(ifindex, prefix.dst, on_it).take(STRIDE).collect();
        for host in &hosts {
            if let Some(place) = route(Prefix { dst: host.addr.into(), ..prefix }) {
                self.turn_now(place);
            }
        }
        let last = match hosts.last() {
            Some(last) if hosts.len() == STRIDE => *last,
            // On with the next link.
            _ => {
                NeighborKey { ifindex: ifindex.checked_add(1)?, addr: std::net::Ipv4Addr::UNSPECIFIED.into() }
            }
        };
        Some(Walk::Covered(prefix, Some(last)))
    }

    fn turn_now(&mut self, place: Place) {
        let after = self.waiting.remove(&place).unwrap_or_default();
        self.turn(place, after);
    }

    /// Links on which neighbors may be next hops: now, or as far as the switch was told.
    fn bound_links(&self) -> std::collections::BTreeSet<u32> {
        let bindings = [Some(&self.binding), self.before.as_ref()].into_iter().flatten();
        bindings.flat_map(|binding| binding.vifs().map(|(ifindex, _)| ifindex)).collect()
    }

    /// Places of the neighbors that a prefix covers; none: too many.
    pub(super) fn few_hosts(&self, prefix: Prefix) -> Option<Vec<Place>> {
        let links = self.bound_links().into_iter();
        let hosts = links.flat_map(|ifindex| self.rib.neighbors_in(ifindex, prefix.dst, None));
        let hosts: Vec<NeighborKey> = hosts.take(FEW + 1).collect();
        let place = |host: NeighborKey| route(Prefix { dst: host.addr.into(), ..prefix });
        (hosts.len() <= FEW).then(|| hosts.into_iter().filter_map(place).collect())
    }
}
