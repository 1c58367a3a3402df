//! What an operator asks of a router: its routes with what becomes of them, and its flows. Some of them at a time, so that
//! a question about a million holds nobody up.
//!
//! Reads only. What it says is what was decided last, as far as the switch is being told: while something is due it may be
//! ahead of the switch or behind the guest by that.

use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;
use openflow::{Flow, Group};
use xenflow_proto::table::{Hop, NeighborKey, NextHopKind, RouteKey, RouteTarget, TABLE_LOCAL};

use super::Router;
use super::place::{Place, own, places_of, rewrites_of};
use crate::answer::Rejection;
use crate::fib::{Fib, Ruling, Verdict};
use crate::limit::{Class, Prefix};
use crate::punt::PuntClass;
use crate::rib::RouteRef;
use crate::table;

/// Which routes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// Those of a prefix and of all within it.
    Within(IpNet),
    /// Those that an address may be looked up by: in each table the longest prefix first, and the first few of it.
    Covering(IpAddr),
}

/// A route and what becomes of its packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteView<'a> {
    /// As the guest says.
    pub route: RouteRef<'a>,
    /// Its next hops, those of a next-hop object included, each with the name of its link in the guest.
    pub hops: Vec<(Hop, Option<&'a str>)>,
    /// What becomes of its packets.
    pub fate: Fate,
}

/// What becomes of a route's packets, where the host forwards for the router at all ([`crate::RouterStatus::slow`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The host forwards them.
    Forwarded,
    /// The host drops them, as the route says.
    Dropped,
    /// The guest gets them, and why.
    Punted(&'static str),
    /// The guest gets them although its tables say how to forward, and why.
    Rejected(Rejection),
    /// No packet is looked up by it, and why.
    Unused(&'static str),
}

/// Where a listing of flows goes on: behind this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowCursor {
    /// Those of prefixes,
    Route(Option<Prefix>),
    /// then those of the guest's own prefixes,
    Local(Option<RouteKey>),
    /// then those of the guest's own addresses,
    Own(Option<IpAddr>),
    /// then those of neighbors,
    Neighbor(Option<NeighborKey>),
    /// then groups.
    Group(Option<u32>),
}

/// Some of a router's flows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowPage {
    /// Flows.
    pub flows: Vec<Flow>,
    /// Groups that flows send to.
    pub groups: Vec<Group>,
    /// Where the next page begins, if there may be one.
    pub next: Option<FlowCursor>,
}

/// Routes of one prefix that are given for an address: a guest may have very many.
const FEW_OF_PREFIX: usize = 8;
/// Routing tables that are looked in for an address before the next page.
const TABLES: usize = 64;
/// Hops that are given before the next page.
const HOPS: usize = 4096;

impl Router {
    /// At most about `most` routes behind one, and where the next page begins, if there may be one.
    pub(crate) fn view_routes(
        &self,
        which: Which,
        after: Option<RouteKey>,
        most: usize,
    ) -> (Vec<RouteView<'_>>, Option<RouteKey>) {
        let (routes, mut next) = match which {
            Which::All => self.routes_within(None, after, most),
            Which::Within(prefix) => self.routes_within(Some(prefix.trunc()), after, most),
            Which::Covering(addr) => self.routes_covering(addr, after, most),
        };
        let mut views: Vec<RouteView<'_>> = Vec::with_capacity(routes.len());
        let mut decided: Option<(Prefix, Decided)> = None;
        let mut hops = 0;
        for route in routes {
            if hops >= HOPS && matches!(which, Which::All | Which::Within(_)) {
                next = views.last().map(|view| view.route.key);
                break;
            }
            let prefix = Prefix { table: route.key.table, dst: route.key.dst };
            let known = match decided.take() {
                Some((of, known)) if of == prefix => known,
                _ => self.decided(prefix),
            };
            let fate = self.fate(route, &known);
            decided = Some((prefix, known));
            let view = RouteView { route, hops: self.hops_of(route), fate };
            hops += view.hops.len();
            views.push(view);
        }
        (views, next)
    }

    fn routes_within(
        &self,
        within: Option<IpNet>,
        after: Option<RouteKey>,
        most: usize,
    ) -> (Vec<RouteRef<'_>>, Option<RouteKey>) {
        let first = |table| within.map(|dst| RouteKey { table, dst, tos: 0, metric: 0 });
        let mut from = match (after, first(0)) {
            (Some(after), _) => Bound::Excluded(after),
            (None, Some(first)) => Bound::Included(first),
            (None, None) => Bound::Unbounded,
        };
        let (mut found, mut next) = (Vec::new(), after);
        // Of each table one route may be looked at in vain.
        for _ in 0..most {
            let Some(route) = self.rib.routes_from(from).next() else { return (found, None) };
            let key = route.key;
            next = Some(key);
            from = Bound::Excluded(key);
            match (within, first(key.table)) {
                (Some(prefix), Some(first)) if !prefix.contains(&key.dst) => {
                    let seek = if key < first { Some(key.table) } else { key.table.checked_add(1) };
                    let Some(table) = seek else { return (found, None) };
                    from = Bound::Included(RouteKey { table, ..first });
                }
                _ => found.push(route),
            }
        }
        (found, next)
    }

    fn routes_covering(
        &self,
        addr: IpAddr,
        after: Option<RouteKey>,
        most: usize,
    ) -> (Vec<RouteRef<'_>>, Option<RouteKey>) {
        let mut table = after.map_or(Some(0), |after| after.table.checked_add(1));
        let mut found: Vec<RouteRef<'_>> = Vec::new();
        let mut next = after;
        for _ in 0..TABLES {
            let here = table.and_then(|table| self.rib.first_table(table));
            let Some(here) = here else { return (found, None) };
            for len in (0..=IpNet::from(addr).max_prefix_len()).rev() {
                let Ok(net) = IpNet::new(addr, len) else { continue };
                found.extend(self.rib.candidates(here, net.trunc()).take(FEW_OF_PREFIX));
            }
            next = Some(RouteKey { table: here, dst: addr.into(), tos: u8::MAX, metric: u32::MAX });
            table = here.checked_add(1);
            if found.len() >= most {
                break;
            }
        }
        (found, next)
    }

    fn hops_of(&self, route: RouteRef<'_>) -> Vec<(Hop, Option<&str>)> {
        let named = |hop: &Hop| {
            let link = hop.oif.and_then(|oif| self.rib.link(oif));
            (*hop, link.map(|link| link.name.as_str()))
        };
        match &route.target {
            RouteTarget::Hops(hops) => hops.iter().map(named).collect(),
            RouteTarget::NextHop(id) => match self.rib.next_hop(*id).map(|object| &object.kind) {
                Some(NextHopKind::Single(hop)) => vec![named(hop)],
                Some(NextHopKind::Group(members)) => {
                    let member = |(id, weight): &(u32, u32)| match &self.rib.next_hop(*id)?.kind {
                        NextHopKind::Single(hop) => Some(named(&Hop { weight: *weight, ..*hop })),
                        NextHopKind::Blackhole | NextHopKind::Group(_) | NextHopKind::Unsupported => None,
                    };
                    members.iter().filter_map(member).collect()
                }
                Some(NextHopKind::Blackhole | NextHopKind::Unsupported) | None => Vec::new(),
            },
        }
    }

    fn decided(&self, prefix: Prefix) -> Decided {
        let fib = Fib { rib: &self.rib, binding: &self.binding };
        Decided {
            by: fib.deciding(prefix.table, prefix.dst),
            ruling: self.ruling(prefix, &self.binding),
            class: self.limit.class(prefix),
        }
    }

    fn fate(&self, route: RouteRef<'_>, decided: &Decided) -> Fate {
        let RouteKey { table, dst, .. } = route.key;
        if let Some(why) = self.answers.rejection(&route.key) {
            return Fate::Rejected(why);
        }
        if table == TABLE_LOCAL {
            return Fate::Punted("an address of the guest's");
        }
        if table::is_martian(dst) {
            return Fate::Punted("addresses that no router forwards to");
        }
        if !self.binding.tables().contains(&table) {
            return Fate::Unused("no vif looks in this table");
        }
        let Some(Ruling { verdict, .. }) = &decided.ruling else {
            return Fate::Unused("its next hops are dead");
        };
        if decided.by.is_some_and(|by| by != route.key) {
            return Fate::Unused("another route of the prefix is preferred");
        }
        match (verdict, decided.class) {
            (Verdict::Via(_) | Verdict::OneOf(..) | Verdict::Drop, Class::Punt | Class::Absent) => {
                Fate::Rejected(Rejection::Limit)
            }
            (Verdict::Via(hop), Class::Forward) => {
                let fib = Fib { rib: &self.rib, binding: &self.binding };
                match fib.resolve(hop.adjacency) {
                    Some(_) => Fate::Forwarded,
                    None => Fate::Punted("its next hop's neighbor is not resolved"),
                }
            }
            (Verdict::OneOf(..), Class::Forward) => Fate::Forwarded,
            (Verdict::Drop, Class::Forward) => Fate::Dropped,
            (Verdict::Punt(PuntClass::Exception), _) => Fate::Punted("the guest answers"),
            (Verdict::Punt(PuntClass::Transit), _) => {
                let is_on_link = self.hops_of(route).iter().any(|(hop, _)| hop.gateway.is_none());
                Fate::Punted(match is_on_link {
                    true => "on link: only resolved neighbors are forwarded to",
                    false => "its next hop is not usable at present",
                })
            }
            (Verdict::Punt(PuntClass::Routing | PuntClass::Resolution | PuntClass::Host), _) => {
                Fate::Punted("an address of the guest's")
            }
        }
    }

    /// Flows and groups of about `most` things behind a cursor. None before the guest's first snapshot, since the switch
    /// keeps those that it has until then.
    pub(crate) fn view_flows(&self, after: Option<FlowCursor>, most: usize) -> FlowPage {
        let mut page = FlowPage::default();
        if !self.synced {
            return page;
        }
        page.next = match after {
            None => {
                page.flows.extend(self.gates.values().cloned());
                Some(FlowCursor::Route(None))
            }
            Some(FlowCursor::Route(after)) => {
                let mut last = None;
                for (prefix, flow) in self.entries.after(after).take(most) {
                    last = Some(prefix);
                    page.flows.push(flow);
                }
                Some(match last {
                    Some(last) => FlowCursor::Route(Some(last)),
                    None => FlowCursor::Local(None),
                })
            }
            Some(FlowCursor::Local(after)) => {
                let of_table = |key: &RouteKey| key.table == TABLE_LOCAL;
                let first = RouteKey { table: TABLE_LOCAL, dst: IpNet::default(), tos: 0, metric: 0 };
                let from = after.map_or(Bound::Included(first), Bound::Excluded);
                let keys = self.rib.routes_from(from).map(|it| it.key).take_while(of_table).take(most);
                let keys: Vec<RouteKey> = keys.collect();
                let mut last = after.map(|key| key.dst);
                for key in &keys {
                    // One flow for all routes of a prefix.
                    if last.replace(key.dst) != Some(key.dst) {
                        let places = places_of(key.table, key.dst);
                        page.flows.extend(places.into_iter().filter_map(|place| self.view_place(place)));
                    }
                }
                Some(match keys.last() {
                    Some(last) => FlowCursor::Local(Some(*last)),
                    None => FlowCursor::Own(None),
                })
            }
            Some(FlowCursor::Own(after)) => {
                let addrs: Vec<IpAddr> = self.rib.own_addresses_after(after).take(most).collect();
                for addr in &addrs {
                    // One of the local table was given with that.
                    let is_given = self.rib.candidates(TABLE_LOCAL, (*addr).into()).next().is_some();
                    page.flows.extend((!is_given).then(|| self.view_place(own(*addr))).flatten());
                }
                Some(match addrs.last() {
                    Some(last) => FlowCursor::Own(Some(*last)),
                    None => FlowCursor::Neighbor(None),
                })
            }
            Some(FlowCursor::Neighbor(after)) => {
                let keys: Vec<NeighborKey> = self.rib.neighbors_after(after).take(most).collect();
                keys.iter().for_each(|key| self.view_neighbor(*key, &mut page.flows));
                Some(match keys.last() {
                    Some(last) => FlowCursor::Neighbor(Some(*last)),
                    None => FlowCursor::Group(None),
                })
            }
            Some(FlowCursor::Group(after)) => {
                // A group may have very many buckets.
                let most = most.div_ceil(16);
                let groups = self.groups.in_use().filter(|id| after.is_none_or(|after| *id > after));
                let ids: Vec<u32> = groups.take(most).collect();
                page.groups.extend(ids.iter().filter_map(|id| self.groups.get(*id)));
                ids.last().map(|last| FlowCursor::Group(Some(*last)))
            }
        };
        page
    }

    /// The rewrites of a neighbor.
    fn view_neighbor(&self, NeighborKey { ifindex, addr }: NeighborKey, flows: &mut Vec<Flow>) {
        if self.binding.vif(ifindex).is_none() {
            return;
        }
        let places = rewrites_of(&self.binding, ifindex, addr);
        flows.extend(places.filter_map(|place| self.view_place(place)));
    }

    /// The flow of a place that is no route.
    pub(super) fn view_place(&self, place: Place) -> Option<Flow> {
        let content = self.content(place, &self.binding)?;
        self.flow(place, &content)
    }
}

/// What a prefix's routes have in common.
struct Decided {
    by: Option<RouteKey>,
    ruling: Option<Ruling>,
    class: Class,
}
