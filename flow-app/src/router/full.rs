//! All of a router at once: what it should be, and what that means for a switch that holds something.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use openflow::{Flow, Group};

use super::entries::Entries;
use super::place::Place;
use super::route_flow::{RouteFlow, route_flow, routes_of};
use super::{Content, Due, Router};
use crate::fib::Binding;
use crate::flow::{FlowChange, FlowKey};
use crate::limit::{Limit, Prefix};
use crate::pipeline::ROUTER;
use crate::topology::Topology;

impl Router {
    /// All flows and groups that should be there: a full compile.
    pub(crate) fn desired(&self, topology: &Topology) -> (Vec<Flow>, Vec<Group>) {
        let policy = topology.policy(self.id);
        let binding = Binding::new(&self.rib, topology, self.id);
        let mut groups = self.groups.clone();
        groups.set_settings(self.rib.settings().unwrap_or_default());
        let mut flows: Vec<Flow> = self.open_gates(&binding, policy.fast_path).into_values().collect();
        let places = self.places(&binding);
        let limit = self.full_limit(&places, &binding, policy.max_routes);
        let mut entries = Entries::new(self.id, self.entries.is_aggregated());
        for place in places {
            let Some(content) = self.content(place, &binding) else { continue };
            match (place, content) {
                (Place::Route(prefix), Content::Route(ruling)) => {
                    let class = limit.class(prefix);
                    let RouteFlow { outcome, .. } =
                        route_flow(self.id, &mut groups, &self.refused, prefix, class, Some(ruling));
                    entries.set(prefix, outcome);
                }
                (_, content) => flows.extend(self.flow(place, &content)),
            }
        }
        entries.settle();
        flows.extend(entries.after(None).map(|(_, flow)| flow));
        let groups = groups.in_use().filter_map(|id| groups.get(id)).collect();
        (flows, groups)
    }

    fn full_limit(&self, places: &[Place], binding: &Binding, max: usize) -> Limit {
        let prefixes = places.iter().filter_map(|place| match place {
            Place::Route(prefix) => self.ruling(*prefix, binding).map(|_| *prefix),
            Place::Local(..) | Place::NextHop(..) => None,
        });
        Limit::of(max, self.refused.room(), prefixes)
    }

    /// Decides anew what is due, from what the switch holds. Gates that should be closed close first and those
    /// that should be open open last; a marker stays due behind all of it.
    pub(crate) fn reconcile(
        &mut self,
        mut installed: BTreeMap<FlowKey, Flow>,
        groups: BTreeMap<u32, Group>,
        topology: &Topology,
    ) {
        let markers = self.due.take_markers();
        let waiting = std::mem::take(&mut self.waiting);
        self.ready.clear();
        self.rebinds = 0;
        self.next_hops.clear();
        self.walked.clear();
        self.covers.clear();
        self.before = None;
        (self.asks_again, self.has_room_again) = (false, false);
        let policy = topology.policy(self.id);
        self.max_routes = policy.max_routes;
        self.binding = Binding::new(&self.rib, topology, self.id);
        self.gates = self.open_gates(&self.binding, policy.fast_path);
        self.groups.set_settings(self.rib.settings().unwrap_or_default());
        self.refused.count_room(installed.keys());
        let is_tight = self.refused.room().is_some();
        self.groups.adopt(groups);
        let opening: Vec<FlowChange> = self
            .gates
            .iter()
            .filter(|(key, gate)| is_tight || installed.remove(key).as_ref() != Some(gate))
            .map(|(_, gate)| FlowChange::Upsert(gate.clone()))
            .collect();
        let mut places = self.places(&self.binding);
        self.limit = self.full_limit(&places, &self.binding, self.max_routes);
        let mut adding = Vec::new();
        let mut rejected = BTreeMap::new();
        self.entries = Entries::new(self.id, self.is_aggregated && !self.refused.is_any());
        places.retain(|place| {
            let Some(content) = self.content(*place, &self.binding) else { return false };
            let flow = match (place, content) {
                (Place::Route(prefix), Content::Route(ruling)) => {
                    let class = self.limit.class(*prefix);
                    let RouteFlow { add, outcome, remove: _, rejection } =
                        route_flow(self.id, &mut self.groups, &self.refused, *prefix, class, Some(ruling));
                    adding.extend(add.map(FlowChange::UpsertGroup));
                    self.entries.set(*prefix, outcome);
                    if let Some(why) = rejection {
                        let after = waiting.get(place).copied().unwrap_or_default();
                        rejected.extend(routes_of(&self.rib, *prefix).map(|key| (key, (why, after))));
                    }
                    return false;
                }
                (_, content) => self.flow(*place, &content),
            };
            flow.is_some_and(|flow| installed.remove(&FlowKey::from(&flow)) != Some(flow))
        });
        self.answers.replace(rejected);
        self.entries.settle();
        let mut entries: Vec<Prefix> = Vec::new();
        for (prefix, flow) in self.entries.after(None) {
            if installed.remove(&FlowKey::from(&flow)) != Some(flow) {
                entries.push(prefix);
            }
        }
        // A prefix that comes back does so before the one that stood in for it lets go.
        entries.sort_by_key(|prefix| Reverse(prefix.dst.prefix_len()));
        let (closing, obsolete): (Vec<FlowKey>, Vec<FlowKey>) =
            installed.into_keys().partition(|key| key.table == ROUTER);
        let remove = |key| Due::Change(FlowChange::Remove(key));
        self.due.extend(closing.into_iter().map(remove));
        let (first, obsolete) = if is_tight { (obsolete, Vec::new()) } else { (Vec::new(), obsolete) };
        self.due.extend(first.into_iter().map(remove));
        self.due.extend(adding.into_iter().map(Due::Change));
        self.due.extend(entries.into_iter().map(Due::Entry));
        for place in places {
            // In its turn: what may go first has, for there may be no room.
            self.waiting.insert(place, 0);
            self.due.push(Due::Place(place));
        }
        self.due.extend(obsolete.into_iter().map(remove));
        self.due.extend(self.groups.unused().into_iter().map(Due::Unused));
        self.due.extend(opening.into_iter().map(Due::Change));
        self.due.extend(markers);
    }
}
