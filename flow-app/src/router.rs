//! One router: its guest's tables, the places in the flow tables that they decide, and which of them are due.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use openflow::{ErrorCode, Flow, Group};
use xenflow_proto::table::{Family, NeighborKey, RouteKey, RouteTarget, TABLE_LOCAL};
use xenflow_proto::{Change, Key, MacAddr, VlanId};

use crate::answer::{Answers, Rejection};
use crate::fast_path::{self, Slow, SlowReason};
use crate::fib::{Adjacency, Binding, Fib, Ruling, Verdict};
use crate::flow::{FlowChange, FlowKey};
use crate::group::Groups;
use crate::limit::{Class, Limit, Prefix};
use crate::pipeline::ROUTER;
use crate::punt::PuntClass;
use crate::rib::{Rib, TooManyObjects};
use crate::table::{self, Side};
use crate::topology::{FastPath, RouterId, Topology};

use self::place::{Place, of_neighbor, own, places_of, route};
use self::refused::Refused;

mod place;
mod refused;

/// What a place holds, but for what other places have a say in: limits, and the numbers of groups.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Local,
    Route(Ruling),
    NextHop { source: MacAddr, destination: MacAddr, vlan: VlanId },
}

/// Something to do for the switch, in order.
#[derive(Debug)]
enum Due {
    /// Whatever the place holds when its turn comes.
    Place(Place),
    /// As it was decided.
    Change(FlowChange),
    /// The group, as it is when its turn comes.
    Group(u32),
    /// A group that was found and is not used.
    Unused(u32),
    /// This many prefixes are forwarded from now on.
    Limit(usize),
    /// Everything that was due before is on its way.
    Marker(u64),
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// For the switch.
    Change(FlowChange),
    /// Everything up to here has been taken.
    Marker(u64),
}

/// How many of a router's prefixes have a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteCounts {
    /// Prefixes that the host may forward for the router.
    pub max: usize,
    /// Within it.
    pub forwarded: usize,
    /// Above it: the guest forwards these itself.
    pub punted: usize,
    /// Above twice of it: a shorter prefix hands these to the guest.
    pub absent: usize,
    /// Four fifths of it are in use.
    pub is_near: bool,
}

/// A router and what its switch flows should be.
#[derive(Debug)]
pub(crate) struct Router {
    id: RouterId,
    pub(crate) rib: Rib,
    binding: Binding,
    /// The guest finished a snapshot in this life of the daemon; before, its flows are left as they are.
    pub(crate) synced: bool,
    /// The flows that lead packets into the router.
    gates: BTreeMap<FlowKey, Flow>,
    due: VecDeque<Due>,
    /// With the mark behind which the guest said it, where it is about a route.
    waiting: HashMap<Place, u64>,
    /// What became of the last due, before the next one's turn.
    ready: VecDeque<FlowChange>,
    /// As far as the switch was told.
    limit: Limit,
    /// As far as the switch was told.
    groups: Groups,
    max_routes: usize,
    /// As far as the switch was told.
    pub(crate) answers: Answers,
    refused: Refused,
    /// How many markers are due.
    markers: usize,
}

impl Router {
    pub(crate) fn new(id: RouterId, topology: &Topology) -> Self {
        let rib = Rib::default();
        let binding = Binding::new(&rib, topology, id);
        let max_routes = topology.policy(id).max_routes;
        Self {
            id,
            rib,
            binding,
            synced: false,
            gates: BTreeMap::new(),
            due: VecDeque::new(),
            waiting: HashMap::new(),
            ready: VecDeque::new(),
            limit: Limit::new(max_routes),
            groups: Groups::new(id),
            max_routes,
            answers: Answers::default(),
            refused: Refused::default(),
            markers: 0,
        }
    }

    /// End-of-RIB: sweeps what the snapshot did not confirm, and opens the gates. The guest's session is a new one.
    pub(crate) fn end_snapshot(&mut self, topology: &Topology) {
        for key in self.rib.unconfirmed() {
            // A removal cannot pass a limit.
            let _ = self.apply(Change::Remove(key), usize::MAX, topology);
        }
        self.synced = true;
        self.rebind(topology);
        self.answers.retell();
    }

    /// Applies what the guest says and marks the places that it may decide.
    pub(crate) fn apply(
        &mut self,
        change: Change,
        limit: usize,
        topology: &Topology,
    ) -> Result<(), TooManyObjects> {
        let key = change.key();
        let readers = match key {
            Key::NextHop(id) => self.rib.users_of(id),
            Key::Link(_)
            | Key::Address(_)
            | Key::Route(_)
            | Key::Neighbor(_)
            | Key::Settings
            | Key::Obstacle(_) => BTreeSet::new(),
        };
        if !self.rib.apply(change, limit)? {
            return Ok(());
        }
        if let Key::Route(route) = key {
            self.answers.changed(route);
        }
        match key {
            Key::Link(_) | Key::Obstacle(_) => self.rebind(topology),
            Key::Settings => {
                let settings = self.rib.settings().unwrap_or_default();
                self.due.extend(self.groups.set_settings(settings).into_iter().map(Due::Group));
                self.rebind(topology);
            }
            Key::Address(key) => self.touch(own(key.address.addr())),
            Key::Route(route) => {
                for place in places_of(route.table, route.dst) {
                    self.touch(place);
                    self.waiting.insert(place, self.answers.last());
                }
                self.touch_hosts(Prefix { table: route.table, dst: route.dst });
            }
            Key::NextHop(_) if readers.is_empty() => {}
            Key::NextHop(_) => {
                let uses =
                    |target: &RouteTarget| matches!(target, RouteTarget::NextHop(id) if readers.contains(id));
                let users = self.rib.routes().filter(|route| uses(&route.target));
                let prefixes: Vec<Prefix> =
                    users.map(|route| Prefix { table: route.key.table, dst: route.key.dst }).collect();
                for prefix in prefixes {
                    route(prefix).into_iter().for_each(|place| self.touch(place));
                    self.touch_hosts(prefix);
                }
            }
            Key::Neighbor(neighbor) => {
                let mut places: Vec<Place> =
                    of_neighbor(&self.binding, neighbor.ifindex, neighbor.addr).collect();
                let mut is_tried = false;
                for place in &places {
                    if let Place::NextHop(adjacency, _) = place {
                        is_tried |= self.refused.forget_hop(*adjacency);
                    }
                }
                if is_tried {
                    places.extend(self.places(&self.binding));
                }
                places.into_iter().for_each(|place| self.touch(place));
            }
        }
        Ok(())
    }

    fn touch(&mut self, place: Place) {
        if let Entry::Vacant(entry) = self.waiting.entry(place) {
            entry.insert(0);
            self.due.push_back(Due::Place(place));
        }
    }

    /// A route decides whether the neighbors in its prefix are on-link.
    fn touch_hosts(&mut self, prefix: Prefix) {
        let hosts = self.rib.neighbors_in(prefix.dst).map(|addr| Prefix { dst: addr.into(), ..prefix });
        let places: Vec<Place> = hosts.filter_map(route).collect();
        places.into_iter().for_each(|place| self.touch(place));
    }

    /// Links, vifs, obstacles or the policy changed: the places that hold something else now are due. Gates close
    /// before and open after it.
    pub(crate) fn rebind(&mut self, topology: &Topology) {
        let policy = topology.policy(self.id);
        let binding = Binding::new(&self.rib, topology, self.id);
        let is_open = self.synced && self.refused.all().is_none();
        let gates = if is_open { self.open_gates(&binding, policy.fast_path) } else { BTreeMap::new() };
        let (opening, closing): (Vec<FlowChange>, Vec<FlowChange>) =
            diff(&self.gates, &gates).into_iter().partition(|change| matches!(change, FlowChange::Upsert(_)));
        self.gates = gates;
        self.due.extend(closing.into_iter().map(Due::Change));
        if self.max_routes != policy.max_routes {
            self.max_routes = policy.max_routes;
            self.due.push_back(Due::Limit(policy.max_routes));
        }
        if binding != self.binding {
            let mut places = self.places(&self.binding);
            places.extend(self.places(&binding));
            places.sort_unstable();
            places.dedup();
            places.retain(|place| self.content(*place, &self.binding) != self.content(*place, &binding));
            self.binding = binding;
            for place in places {
                self.touch(place);
            }
        }
        self.due.extend(opening.into_iter().map(Due::Change));
    }

    fn open_gates(&self, binding: &Binding, policy: FastPath) -> BTreeMap<FlowKey, Flow> {
        let families = [Family::V4, Family::V6];
        binding
            .vifs()
            .flat_map(|(ifindex, vif)| families.map(|family| (ifindex, vif, family)))
            .filter(|(ifindex, _, family)| fast_path::is_fast(policy, &self.rib, *ifindex, *family))
            .map(|(_, vif, family)| table::gate(vif, family))
            .map(|flow| (FlowKey::from(&flow), flow))
            .collect()
    }

    /// Every place that may hold a flow.
    fn places(&self, binding: &Binding) -> Vec<Place> {
        let tables = binding.tables();
        let mut places = Vec::new();
        for known in self.rib.routes() {
            if known.key.table == TABLE_LOCAL || tables.contains(&known.key.table) {
                places.extend(places_of(known.key.table, known.key.dst));
            }
        }
        places.extend(self.rib.own_addresses().map(own));
        for (ifindex, addr) in self.rib.neighbors() {
            places.extend(of_neighbor(binding, ifindex, addr));
        }
        places.sort_unstable();
        places.dedup();
        places
    }

    /// What a place holds.
    fn content(&self, place: Place, binding: &Binding) -> Option<Content> {
        let fib = Fib { rib: &self.rib, binding };
        match place {
            Place::Local(Side::Destination, prefix) => fib.is_local(prefix).then_some(Content::Local),
            Place::Local(Side::Source, prefix) => fib.is_own(prefix).then_some(Content::Local),
            Place::Route(Prefix { table, dst }) => fib.route(table, dst).map(Content::Route),
            Place::NextHop(adjacency, _) if self.refused.hop(adjacency).is_some() => None,
            Place::NextHop(adjacency, _) => {
                let destination = fib.resolve(adjacency)?;
                let (_, vif) = binding.link(adjacency.vif)?;
                Some(Content::NextHop { source: vif.mac, destination, vlan: vif.vlan })
            }
        }
    }

    /// The flow of a place that is no route.
    fn flow(&self, place: Place, content: &Content) -> Option<Flow> {
        match (place, content) {
            (Place::Local(side, prefix), Content::Local) => Some(table::local(self.id, side, prefix)),
            (Place::NextHop(adjacency, eth_type), Content::NextHop { source, destination, vlan }) => {
                Some(table::next_hop(adjacency, eth_type, *source, *destination, *vlan))
            }
            _ => None,
        }
    }

    /// The identity of a place's flow, whether it is there or not.
    fn key(&self, place: Place) -> FlowKey {
        // The instructions do not matter for the identity, so any will do.
        let flow = match place {
            Place::Local(side, prefix) => table::local(self.id, side, prefix),
            Place::Route(prefix) => table::route(self.id, prefix, &Verdict::Drop, None),
            Place::NextHop(adjacency, eth_type) => {
                table::next_hop(adjacency, eth_type, MacAddr::default(), MacAddr::default(), VlanId::MIN)
            }
        };
        FlowKey::from(&flow)
    }

    fn ruling(&self, prefix: Prefix) -> Option<Ruling> {
        match self.content(Place::Route(prefix), &self.binding)? {
            Content::Route(ruling) => Some(ruling),
            Content::Local | Content::NextHop { .. } => None,
        }
    }

    /// Makes ready what is to be said of a place, to the guest with a mark that comes after that one.
    fn turn(&mut self, place: Place, after: u64) {
        let Place::Route(prefix) = place else {
            let content = self.content(place, &self.binding);
            let flow = content.and_then(|content| self.flow(place, &content));
            self.ready.push_back(match flow {
                Some(flow) => FlowChange::Upsert(flow),
                None => FlowChange::Remove(self.key(place)),
            });
            return;
        };
        let ruling = self.ruling(prefix);
        let moved = self.limit.set(prefix, ruling.is_some());
        for other in moved.before {
            self.say_moved(other);
        }
        self.say_route(prefix, ruling, after);
        for other in moved.after {
            self.say_moved(other);
        }
    }

    /// Its place within the limit is another one. The guest may have said something of it meanwhile that is still to
    /// have its turn or its mark, so it is told late rather than early.
    fn say_moved(&mut self, prefix: Prefix) {
        let after = self.waiting.get(&Place::Route(prefix)).copied().unwrap_or_default();
        self.say_route(prefix, self.ruling(prefix), after.max(self.answers.before_last()));
    }

    /// Makes ready the flow of a prefix, with its group, and what the guest is told of its routes.
    fn say_route(&mut self, prefix: Prefix, ruling: Option<Ruling>, after: u64) {
        let class = self.limit.class(prefix);
        let RouteFlow { add, flow, remove, rejection } =
            route_flow(self.id, &mut self.groups, &self.refused, prefix, class, ruling);
        self.ready.extend(add.map(FlowChange::UpsertGroup));
        self.ready.push_back(match flow {
            Some(flow) => FlowChange::Upsert(flow),
            None => FlowChange::Remove(self.key(Place::Route(prefix))),
        });
        self.ready.extend(remove.map(FlowChange::RemoveGroup));
        self.answers.settle(prefix, routes_of(&self.rib, prefix), rejection, after);
    }

    /// All flows and groups that should be there: a full compile.
    pub(crate) fn desired(&self) -> (Vec<Flow>, Vec<Group>) {
        let mut groups = self.groups.clone();
        let mut flows: Vec<Flow> = self.gates.values().cloned().collect();
        let places = self.places(&self.binding);
        let limit = self.full_limit(&places);
        for place in places {
            let Some(content) = self.content(place, &self.binding) else { continue };
            match (place, content) {
                (Place::Route(prefix), Content::Route(ruling)) => {
                    let class = limit.class(prefix);
                    let RouteFlow { flow, .. } =
                        route_flow(self.id, &mut groups, &self.refused, prefix, class, Some(ruling));
                    flows.extend(flow);
                }
                (_, content) => flows.extend(self.flow(place, &content)),
            }
        }
        let groups = groups.in_use().filter_map(|id| groups.get(id)).collect();
        (flows, groups)
    }

    fn full_limit(&self, places: &[Place]) -> Limit {
        let mut limit = Limit::new(self.max_routes);
        limit.set_room(self.refused.room());
        for place in places {
            if let Place::Route(prefix) = place
                && self.ruling(*prefix).is_some()
            {
                limit.set(*prefix, true);
            }
        }
        limit
    }

    /// Why packets take the slow path.
    pub(crate) fn slow(&self, policy: FastPath) -> Vec<Slow> {
        let mut slow = fast_path::reasons(policy, &self.rib, &self.binding, self.synced);
        let mut refused: BTreeSet<ErrorCode> = BTreeSet::new();
        if self.refused.is_any() {
            let why = |(_, why)| if let Rejection::Switch(why) = why { Some(why) } else { None };
            refused.extend(self.answers.rejected().filter_map(why));
        }
        let reasons = refused.into_iter().map(SlowReason::Routes);
        let reasons = reasons.chain(self.refused.all().map(SlowReason::Refused));
        slow.extend(reasons.map(|reason| Slow { vif: None, family: None, reason, detail: String::new() }));
        slow
    }

    /// The switch refuses one of these changes, which were sent in one bundle that was not taken. False if that is no
    /// change that anything can stand in for. [`Router::reconcile`] is to come.
    pub(crate) fn refuse(
        &mut self,
        sent: &[FlowChange],
        index: usize,
        why: ErrorCode,
        topology: &Topology,
    ) -> bool {
        match sent.get(index) {
            Some(FlowChange::Upsert(flow)) => {
                if !self.refused.flow(flow, sent.get(..index).unwrap_or_default(), why) {
                    return false;
                }
            }
            Some(FlowChange::UpsertGroup(group)) => {
                let Some(hops) = self.groups.hops_of(group.id) else { return false };
                self.refused.group(hops.clone(), why);
            }
            Some(
                FlowChange::Remove(_)
                | FlowChange::RemoveRouter(_)
                | FlowChange::ForgetLearned(_)
                | FlowChange::RemoveGroup(_),
            )
            | None => return false,
        }
        self.rebind(topology);
        true
    }

    /// What the switch refused is to be tried again. True if there was any; then [`Router::reconcile`] is to come.
    pub(crate) fn forgive(&mut self, topology: &Topology) -> bool {
        let is_any = self.refused.forgive();
        if is_any {
            self.rebind(topology);
        }
        is_any
    }

    /// Of what the switch refused something is left out or replaced.
    pub(crate) fn has_refused(&self) -> bool {
        self.refused.is_any()
    }

    /// The switch refused something once: what is sent may depend on what it takes before.
    pub(crate) fn is_wary(&self) -> bool {
        self.refused.is_wary()
    }

    /// How much of its limit is used.
    pub(crate) fn route_counts(&self) -> RouteCounts {
        RouteCounts {
            max: self.limit.max(),
            forwarded: self.limit.forwarded(),
            punted: self.limit.punted(),
            absent: self.limit.absent(),
            is_near: self.limit.is_near(),
        }
    }

    /// Numbers of groups that the switch may hold for it.
    pub(crate) fn group_ids(&self) -> Vec<u32> {
        self.groups.ids()
    }

    pub(crate) fn mark(&mut self, token: u64) {
        self.markers += 1;
        self.answers.ask(token);
        self.due.push_back(Due::Marker(token));
    }

    /// There is something to tell the guest, and no marker to tell it with.
    pub(crate) fn wants_mark(&self) -> bool {
        self.answers.is_untold() && self.markers == 0
    }

    /// The guest's name of a next hop.
    pub(crate) fn neighbor_of(&self, next_hop: Adjacency) -> Option<NeighborKey> {
        let (ifindex, _) = self.binding.link(next_hop.vif)?;
        Some(NeighborKey { ifindex, addr: next_hop.addr })
    }

    /// Anything to do?
    pub(crate) fn is_due(&self) -> bool {
        !self.ready.is_empty() || !self.due.is_empty()
    }

    /// The next thing to do.
    pub(crate) fn next_due(&mut self) -> Option<Step> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Step::Change(change));
            }
            match self.due.pop_front()? {
                Due::Place(place) => {
                    let after = self.waiting.remove(&place).unwrap_or_default();
                    self.turn(place, after);
                }
                Due::Change(change) => self.ready.push_back(change),
                Due::Group(id) => self.ready.extend(self.groups.get(id).map(FlowChange::UpsertGroup)),
                Due::Unused(id) => {
                    self.groups.removed(id);
                    self.ready.push_back(FlowChange::RemoveGroup(id));
                }
                Due::Limit(max) => {
                    for prefix in self.limit.set_max(max) {
                        self.say_moved(prefix);
                    }
                }
                Due::Marker(token) => return Some(Step::Marker(self.reached(token))),
            }
        }
    }

    fn reached(&mut self, token: u64) -> u64 {
        self.markers -= 1;
        self.answers.mark(token);
        token
    }

    /// A marker, if nothing stands before it.
    pub(crate) fn next_marker(&mut self) -> Option<u64> {
        match self.due.front() {
            Some(Due::Marker(token)) if self.ready.is_empty() => {
                let token = *token;
                self.due.pop_front();
                Some(self.reached(token))
            }
            _ => None,
        }
    }

    /// Decides anew what is due, from what the switch holds. Gates that should be closed close first and those
    /// that should be open open last; a marker stays due behind all of it.
    pub(crate) fn reconcile(&mut self, mut installed: BTreeMap<FlowKey, Flow>, groups: BTreeMap<u32, Group>) {
        let markers: Vec<Due> = self.due.drain(..).filter(|due| matches!(due, Due::Marker(_))).collect();
        let waiting = std::mem::take(&mut self.waiting);
        self.ready.clear();
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
        self.limit = self.full_limit(&places);
        let mut adding = Vec::new();
        let mut rejected = BTreeMap::new();
        places.retain(|place| {
            let Some(content) = self.content(*place, &self.binding) else { return false };
            let flow = match (place, content) {
                (Place::Route(prefix), Content::Route(ruling)) => {
                    let class = self.limit.class(*prefix);
                    let RouteFlow { add, flow, remove: _, rejection } =
                        route_flow(self.id, &mut self.groups, &self.refused, *prefix, class, Some(ruling));
                    adding.extend(add.map(FlowChange::UpsertGroup));
                    if let Some(why) = rejection {
                        let after = waiting.get(place).copied().unwrap_or_default();
                        rejected.extend(routes_of(&self.rib, *prefix).map(|key| (key, (why, after))));
                    }
                    flow
                }
                (_, content) => self.flow(*place, &content),
            };
            flow.is_some_and(|flow| installed.remove(&FlowKey::from(&flow)) != Some(flow))
        });
        self.answers.replace(rejected);
        // A prefix that comes back does so before the one that stood in for it lets go.
        places.sort_by_key(|place| match place {
            Place::Route(prefix) => Reverse(Some(prefix.dst.prefix_len())),
            Place::Local(..) | Place::NextHop(..) => Reverse(None),
        });
        let (closing, obsolete): (Vec<FlowKey>, Vec<FlowKey>) =
            installed.into_keys().partition(|key| key.table == ROUTER);
        let remove = |key| Due::Change(FlowChange::Remove(key));
        self.due.extend(closing.into_iter().map(remove));
        let (first, obsolete) = if is_tight { (obsolete, Vec::new()) } else { (Vec::new(), obsolete) };
        self.due.extend(first.into_iter().map(remove));
        self.due.extend(adding.into_iter().map(Due::Change));
        for place in places {
            self.touch(place);
        }
        self.due.extend(obsolete.into_iter().map(remove));
        self.due.extend(self.groups.unused().into_iter().map(Due::Unused));
        self.due.extend(opening.into_iter().map(Due::Change));
        self.due.extend(markers);
    }
}

/// What is left of a verdict at its place within the limit.
fn limited(class: Class, verdict: Option<Verdict>) -> Option<Verdict> {
    match class {
        Class::Forward if verdict.is_some() => verdict,
        // One that is wanted no more goes when its own turn comes.
        Class::Forward | Class::Punt => Some(Verdict::Punt(PuntClass::Transit)),
        Class::Absent => None,
    }
}

/// What becomes of a prefix.
struct RouteFlow {
    /// The group that comes before its flow.
    add: Option<Group>,
    flow: Option<Flow>,
    /// The group that goes after it.
    remove: Option<u32>,
    /// Why the host does not forward by it, where it does not.
    rejection: Option<Rejection>,
}

/// The flow of a prefix at its place within the limit.
fn route_flow(
    router: RouterId,
    groups: &mut Groups,
    refused: &Refused,
    prefix: Prefix,
    class: Class,
    ruling: Option<Ruling>,
) -> RouteFlow {
    let (verdict, rejection) = match ruling {
        Some(Ruling { verdict, rejection }) => match refused.by(&verdict) {
            Some(why) => (Some(Verdict::Punt(PuntClass::Transit)), Some(Rejection::Switch(why))),
            None => (Some(verdict), rejection),
        },
        None => (None, None),
    };
    // What the guest gets anyway loses nothing by the limit.
    let is_forwarded = verdict.as_ref().is_some_and(|verdict| !matches!(verdict, Verdict::Punt(_)));
    let verdict = limited(class, verdict);
    let shared = match &verdict {
        Some(Verdict::OneOf(hops, _)) => Some(hops),
        Some(Verdict::Via(_) | Verdict::Punt(_) | Verdict::Drop) | None => None,
    };
    let assigned = groups.assign(prefix, shared);
    let rejection = match class {
        Class::Punt | Class::Absent if is_forwarded => Some(match refused.room() {
            Some(_) => Rejection::Switch(ErrorCode::TABLE_FULL),
            None => Rejection::Limit,
        }),
        Class::Forward if shared.is_some() && assigned.id.is_none() => Some(Rejection::Groups),
        Class::Forward | Class::Punt | Class::Absent => rejection,
    };
    let flow = verdict.map(|verdict| table::route(router, prefix, &verdict, assigned.id));
    let (flow, rejection) = match flow.as_ref().and_then(|flow| refused.why(flow)) {
        Some(why) => {
            let punt = table::route(router, prefix, &Verdict::Punt(PuntClass::Transit), None);
            (Some(punt), Some(Rejection::Switch(why)))
        }
        None => (flow, rejection),
    };
    RouteFlow { add: assigned.add, flow, remove: assigned.remove, rejection }
}

/// The guest's routes of a prefix.
fn routes_of(rib: &Rib, Prefix { table, dst }: Prefix) -> impl Iterator<Item = RouteKey> {
    rib.candidates(table, dst).map(|route| route.key)
}

/// What turns one set of flows into another: upserts, then removals. What refuses comes before what it is an
/// exception from, and goes after it; otherwise the last table is first, so that nothing is let in before it is
/// known where it may go, nor while it can still go where it may not.
pub(crate) fn diff(from: &BTreeMap<FlowKey, Flow>, to: &BTreeMap<FlowKey, Flow>) -> Vec<FlowChange> {
    let mut upserts: Vec<(&FlowKey, &Flow)> =
        to.iter().filter(|(key, flow)| from.get(key) != Some(flow)).collect();
    upserts.sort_by_key(|(key, _)| (Reverse(key.priority), Reverse(key.table)));
    let mut removals: Vec<&FlowKey> = from.keys().filter(|key| !to.contains_key(key)).collect();
    removals.sort_by_key(|key| (key.priority, Reverse(key.table)));
    let upserts = upserts.into_iter().map(|(_, flow)| FlowChange::Upsert(flow.clone()));
    upserts.chain(removals.into_iter().map(|key| FlowChange::Remove(key.clone()))).collect()
}
