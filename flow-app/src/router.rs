//! One router: its guest's tables, the places in the flow tables that they decide, and which of them are due.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use openflow::Flow;
use xenflow_proto::table::{Family, NeighborKey, RouteKey, TABLE_LOCAL};
use xenflow_proto::{Change, Key, MacAddr, VlanId};

use crate::answer::Answers;
use crate::fast_path;
use crate::fib::{Adjacency, Binding, Fib, Ruling};
use crate::flow::{FlowChange, FlowKey};
use crate::group::Groups;
use crate::limit::{Limit, Moved, Prefix};
use crate::rib::{Quota, Rib, Sweep, TooMuch};
use crate::table::{self, Outcome, Side};
use crate::topology::{FastPath, RouterId, Topology};

use self::due::{Due, Queue};
use self::entries::Entries;
use self::place::{Place, of_neighbor, own, places_of, route};
use self::refused::Refused;
use self::route_flow::{RouteFlow, route_flow, routes_of};
use self::walk::{FEW, STRIDE, Walk};

mod due;
mod entries;
mod full;
mod met;
mod place;
mod refused;
mod route_flow;
pub(crate) mod status;
pub(crate) mod view;
mod walk;

/// What a place holds, but for what other places have a say in: limits, and the numbers of groups.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Local,
    Route(Ruling),
    NextHop { source: MacAddr, destination: MacAddr, vlan: VlanId },
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// For the switch.
    Change(FlowChange),
    /// Everything up to here has been taken.
    Marker(u64),
}

/// A router and what its switch flows should be.
#[derive(Debug)]
pub(crate) struct Router {
    id: RouterId,
    pub(crate) rib: Rib,
    /// What is left of the sweep at the end of a snapshot.
    sweep: Option<Sweep>,
    /// As far as the switch was told, or is being told by a walk.
    binding: Binding,
    /// The one before, while a walk goes from it to the one that is.
    before: Option<Binding>,
    /// The guest finished a snapshot in this life of the daemon; before, its flows are left as they are.
    pub(crate) synced: bool,
    /// The flows that lead packets into the router.
    gates: BTreeMap<FlowKey, Flow>,
    due: Queue,
    /// How many times [`Due::Rebind`] is due.
    rebinds: usize,
    /// [`Due::NextHop`] and [`Due::Hosts`] are due for these.
    next_hops: BTreeSet<u32>,
    /// Those whose routes a walk is under way to.
    walked: BTreeSet<u32>,
    covers: BTreeSet<Prefix>,
    /// With the mark behind which the guest said it, where it is about a route.
    waiting: HashMap<Place, u64>,
    /// What became of the last due, before the next one's turn.
    ready: VecDeque<FlowChange>,
    /// As far as the switch was told.
    limit: Limit,
    /// As far as the switch was told.
    entries: Entries,
    is_aggregated: bool,
    /// As far as the switch was told.
    groups: Groups,
    /// [`Walk::Lacking`] is due.
    asks_again: bool,
    /// A group has gone since.
    has_room_again: bool,
    max_routes: usize,
    /// As far as the switch was told.
    pub(crate) answers: Answers,
    refused: Refused,
    /// How many markers are due.
    markers: usize,
    /// Routes that came, changed or went since somebody took the number.
    pub(crate) routes_changed: u64,
}

impl Router {
    /// A router whose groups have so many buckets at most, with a flow for each prefix or fewer.
    pub(crate) fn new(id: RouterId, topology: &Topology, max_buckets: usize, is_aggregated: bool) -> Self {
        let rib = Rib::default();
        let binding = Binding::new(&rib, topology, id);
        let max_routes = topology.policy(id).max_routes;
        Self {
            id,
            rib,
            sweep: None,
            binding,
            before: None,
            synced: false,
            gates: BTreeMap::new(),
            due: Queue::default(),
            rebinds: 0,
            next_hops: BTreeSet::new(),
            walked: BTreeSet::new(),
            covers: BTreeSet::new(),
            waiting: HashMap::new(),
            ready: VecDeque::new(),
            limit: Limit::new(max_routes),
            entries: Entries::new(id, is_aggregated),
            is_aggregated,
            groups: Groups::new(id, max_buckets),
            asks_again: false,
            has_room_again: false,
            max_routes,
            answers: Answers::default(),
            refused: Refused::default(),
            markers: 0,
            routes_changed: 0,
        }
    }

    /// A snapshot begins, by this boot of the guest.
    pub(crate) fn begin_snapshot(&mut self, boot_id: [u8; 16]) {
        self.sweep = None;
        self.rib.snapshot_begin(boot_id);
    }

    /// Its tables go on from what they are.
    pub(crate) fn resume(&mut self) {
        self.sweep = None;
        self.rib.resume();
    }

    /// End-of-RIB: what the snapshot did not confirm is to be swept.
    pub(crate) fn end_snapshot(&mut self) {
        self.sweep = Some(self.rib.snapshot_end().unwrap_or(Sweep::Done));
    }

    /// Looks at some more of what is to be swept; false: nothing is left of it. With the last of it the gates are to
    /// open. The guest's session is a new one.
    pub(crate) fn go_on_sweeping(&mut self, most: usize) -> bool {
        let Some(mut sweep) = self.sweep.take() else { return false };
        for key in self.rib.unconfirmed(&mut sweep, most) {
            // A removal cannot pass a limit.
            let _ = self.apply(Change::Remove(key), Quota::NONE);
        }
        if !matches!(sweep, Sweep::Done) {
            self.sweep = Some(sweep);
            return true;
        }
        self.synced = true;
        self.rebind();
        self.answers.retell();
        false
    }

    /// Applies what the guest says and marks the places that it may decide.
    pub(crate) fn apply(&mut self, change: Change, quota: Quota) -> Result<(), TooMuch> {
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
        if !self.rib.apply(change, quota)? {
            return Ok(());
        }
        if let Key::Route(route) = key {
            self.answers.changed(route);
            self.routes_changed += 1;
        }
        match key {
            Key::Link(_) | Key::Obstacle(_) => self.rebind(),
            Key::Settings => {
                if !matches!(self.due.last(), Some(Due::Settings)) {
                    self.due.push(Due::Settings);
                }
                self.rebind();
            }
            Key::Address(key) => self.touch(own(key.address.addr())),
            Key::Route(route) => {
                for place in places_of(route.table, route.dst) {
                    self.touch(place);
                    self.waiting.insert(place, self.answers.last());
                }
                self.touch_hosts(Prefix { table: route.table, dst: route.dst });
            }
            Key::NextHop(_) => readers.into_iter().for_each(|id| self.touch_users(id)),
            Key::Neighbor(neighbor) => {
                let bindings = [self.before.as_ref(), Some(&self.binding)].into_iter().flatten();
                let of = |binding| of_neighbor(binding, neighbor.ifindex, neighbor.addr);
                let mut places: Vec<Place> = bindings.flat_map(of).collect();
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
            let may_overtake = match place {
                Place::Route(prefix) => self.entries.has(prefix) && self.has_routes(prefix),
                Place::Local(..) | Place::NextHop(..) => true,
            };
            self.due.push_place(place, may_overtake);
        }
    }

    fn has_routes(&self, Prefix { table, dst }: Prefix) -> bool {
        self.rib.candidates(table, dst).next().is_some()
    }

    /// Routes by a next-hop object are other ones.
    fn touch_users(&mut self, id: u32) {
        let users: Vec<RouteKey> = self.rib.routes_by(id, None).take(FEW + 1).collect();
        if users.len() > FEW {
            if self.regroup(id) {
                return;
            }
            if self.next_hops.insert(id) {
                self.due.push(Due::NextHop(id));
            }
            return;
        }
        for RouteKey { table, dst, .. } in users {
            let prefix = Prefix { table, dst };
            route(prefix).into_iter().for_each(|place| self.touch(place));
            self.touch_hosts(prefix);
        }
    }

    /// A next-hop object is another one, but its routes have the groups that they have: these are due, and nothing else. False:
    /// its routes may be other ones.
    fn regroup(&mut self, id: u32) -> bool {
        // Then not all of its routes need have what they should.
        if self.before.is_some()
            || self.refused.is_any()
            || self.next_hops.contains(&id)
            || self.walked.contains(&id)
        {
            return false;
        }
        let fib = Fib { rib: &self.rib, binding: &self.binding };
        let mut groups = Vec::new();
        for family in [Family::V4, Family::V6].into_iter().filter(|family| self.rib.is_used_by(id, *family)) {
            let Some(known) = self.groups.of_object(id, family) else { return false };
            let Some((now, mtu)) = fib.shared(id, family) else { return false };
            if fib.smallest(known) != mtu {
                return false;
            }
            groups.push(now);
        }
        for hops in groups {
            let Some(group) = self.groups.replace(&hops) else { return false };
            self.due.push_group(group.id);
        }
        true
    }

    /// A route decides whether the neighbors in its prefix are on-link.
    fn touch_hosts(&mut self, prefix: Prefix) {
        match self.few_hosts(prefix) {
            Some(hosts) => hosts.into_iter().for_each(|host| self.touch(host)),
            None if self.covers.insert(prefix) => self.due.push(Due::Hosts(prefix)),
            None => {}
        }
    }

    /// Links, vifs, obstacles or the policy changed: the places that hold something else now are due. Gates close
    /// before and open after it.
    pub(crate) fn rebind(&mut self) {
        if !matches!(self.due.last(), Some(Due::Rebind)) {
            self.due.push(Due::Rebind);
            self.rebinds += 1;
        }
    }

    /// The turn of [`Due::Rebind`]. Another one that is due may know better which gates to open: it opens them, behind
    /// what was said before it.
    fn turn_rebind(&mut self, topology: &Topology) {
        self.rebinds -= 1;
        let policy = topology.policy(self.id);
        let binding = Binding::new(&self.rib, topology, self.id);
        let gates = self.open_gates(&binding, policy.fast_path);
        let mut opening = Vec::new();
        for change in diff(&self.gates, &gates) {
            if let FlowChange::Upsert(gate) = change {
                opening.extend((self.rebinds == 0).then_some(gate));
                continue;
            }
            if let FlowChange::Remove(key) = &change {
                self.gates.remove(key);
            }
            self.ready.push_back(change);
        }
        self.gates.extend(opening.iter().map(|gate| (FlowKey::from(gate), gate.clone())));
        for gate in opening.into_iter().rev() {
            self.due.push_front(Due::Change(FlowChange::Upsert(gate)));
        }
        if binding != self.binding {
            self.before = Some(std::mem::replace(&mut self.binding, binding));
            self.due.push_front(Due::Walk(Walk::Routes(None)));
        }
        if self.max_routes != policy.max_routes {
            self.max_routes = policy.max_routes;
            for prefix in self.limit.set_max(policy.max_routes) {
                self.say_moved(prefix);
                self.settle();
            }
        }
    }

    fn open_gates(&self, binding: &Binding, policy: FastPath) -> BTreeMap<FlowKey, Flow> {
        if !self.synced || self.refused.all().is_some() {
            return BTreeMap::new();
        }
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
        for NeighborKey { ifindex, addr } in self.rib.neighbors_after(None) {
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
            Place::Route(prefix) => table::route(self.id, prefix, Outcome::Drop),
            Place::NextHop(adjacency, eth_type) => {
                table::next_hop(adjacency, eth_type, MacAddr::default(), MacAddr::default(), VlanId::MIN)
            }
        };
        FlowKey::from(&flow)
    }

    fn ruling(&self, prefix: Prefix, binding: &Binding) -> Option<Ruling> {
        match self.content(Place::Route(prefix), binding)? {
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
        let ruling = self.ruling(prefix, &self.binding);
        let moved = self.limit.set(prefix, ruling.is_some());
        // Each step of these is one that packets may meet, and for which the switch has room.
        let is_step = moved != Moved::default();
        for other in moved.before {
            self.say_moved(other);
            self.settle();
        }
        self.say_route(prefix, ruling, after);
        if is_step {
            self.settle();
        }
        for other in moved.after {
            self.say_moved(other);
            self.settle();
        }
    }

    /// Its place within the limit is another one. The guest may have said something of it meanwhile that is still to
    /// have its turn or its mark, so it is told late rather than early.
    fn say_moved(&mut self, prefix: Prefix) {
        let after = self.waiting.get(&Place::Route(prefix)).copied().unwrap_or_default();
        self.say_route(prefix, self.ruling(prefix, &self.binding), after.max(self.answers.before_last()));
    }

    /// Decides what the packets of a prefix are to meet, for [`Router::settle`], and what the guest is told of its routes.
    fn say_route(&mut self, prefix: Prefix, ruling: Option<Ruling>, after: u64) {
        let class = self.limit.class(prefix);
        let RouteFlow { add, outcome, remove, rejection } =
            route_flow(self.id, &mut self.groups, &self.refused, prefix, class, ruling);
        self.ready.extend(add.map(FlowChange::UpsertGroup));
        self.entries.set(prefix, outcome);
        if remove.is_some() {
            // Another one may get its number.
            self.settle();
            self.ask_again();
        }
        self.ready.extend(remove.map(FlowChange::RemoveGroup));
        self.answers.settle(prefix, routes_of(&self.rib, prefix), rejection, after);
    }

    /// Makes ready what has become of the flows of prefixes.
    fn settle(&mut self) {
        self.ready.extend(self.entries.settle());
    }

    /// There is room for groups again. Who found none may stand behind a walk that is under way: another one follows it.
    fn ask_again(&mut self) {
        if self.asks_again {
            self.has_room_again = true;
        } else if self.groups.is_short() {
            self.asks_again = true;
            self.groups.ask_again();
            self.due.push(Due::Walk(Walk::Lacking(None)));
        }
    }

    /// Numbers of groups that the switch may hold for it.
    pub(crate) fn group_ids(&self) -> Vec<u32> {
        let mut ids = self.groups.ids();
        // Those that are about to be removed.
        for change in &self.ready {
            if let FlowChange::RemoveGroup(id) = change {
                ids.push(*id);
            }
        }
        ids
    }

    pub(crate) fn mark(&mut self, token: u64) {
        self.markers += 1;
        self.answers.ask(token);
        self.due.push(Due::Marker(token));
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

    /// How many things are due.
    pub(crate) fn backlog(&self) -> usize {
        self.ready.len() + self.due.len()
    }

    /// Anything to do?
    pub(crate) fn is_due(&self) -> bool {
        !self.ready.is_empty() || !self.due.is_empty()
    }

    /// The next thing to do, looking for it in no more than `work` steps; none: nothing is due, or it takes more.
    pub(crate) fn next_due(&mut self, topology: &Topology, work: &mut usize) -> Option<Step> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Step::Change(change));
            }
            *work = work.checked_sub(1)?;
            match self.due.pop()? {
                Due::Place(place) => {
                    if let Some(after) = self.waiting.remove(&place) {
                        self.turn(place, after);
                    }
                }
                Due::Routes(prefixes, is_early) => {
                    *work = work.saturating_sub(prefixes.len());
                    for prefix in prefixes {
                        let place = Place::Route(prefix);
                        if is_early && self.waiting.contains_key(&place) && !self.has_routes(prefix) {
                            // It went meanwhile.
                            self.due.push_place(place, false);
                        } else if let Some(after) = self.waiting.remove(&place) {
                            self.turn(place, after);
                        }
                    }
                }
                Due::Entry(prefix) => self.ready.push_back(self.entries.change(prefix)),
                Due::Rebind => self.turn_rebind(topology),
                Due::Settings => {
                    let settings = self.rib.settings().unwrap_or_default();
                    for id in self.groups.set_settings(settings).into_iter().rev() {
                        self.due.push_front(Due::Group(id));
                    }
                }
                Due::NextHop(id) => {
                    self.next_hops.remove(&id);
                    self.walked.insert(id);
                    self.due.push_front(Due::Walk(Walk::Users(id, None)));
                }
                Due::Hosts(prefix) => {
                    self.covers.remove(&prefix);
                    self.due.push_front(Due::Walk(Walk::Covered(prefix, None)));
                }
                Due::Walk(walk) => {
                    *work = work.saturating_sub(STRIDE);
                    match self.step(walk) {
                        // Nobody waits for that.
                        Some(rest @ Walk::Lacking(_)) => self.due.push(Due::Walk(rest)),
                        Some(rest) => self.due.push_front(Due::Walk(rest)),
                        None => {}
                    }
                }
                Due::Change(change) => self.ready.push_back(change),
                Due::Group(id) => self.ready.extend(self.groups.get(id).map(FlowChange::UpsertGroup)),
                Due::Unused(id) => {
                    self.groups.removed(id);
                    self.ready.push_back(FlowChange::RemoveGroup(id));
                    self.ask_again();
                }
                Due::Marker(token) => return Some(Step::Marker(self.reached(token))),
            }
            self.settle();
        }
    }

    fn reached(&mut self, token: u64) -> u64 {
        self.markers -= 1;
        self.answers.mark(token);
        token
    }

    /// A marker, if nothing stands before it.
    pub(crate) fn next_marker(&mut self) -> Option<u64> {
        let token = if self.ready.is_empty() { self.due.pop_marker() } else { None }?;
        Some(self.reached(token))
    }
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
