//! One router: its guest's tables, the places in the flow tables that they decide, and which of them are due.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;
use openflow::Flow;
use xenflow_proto::table::{IfIndex, RouteTarget, TABLE_LOCAL, TABLE_MAIN};
use xenflow_proto::{Change, Key, MacAddr, VlanId};

use crate::fast_path::{self, Slow};
use crate::fib::{Adjacency, Binding, Fib, Verdict};
use crate::flow::{FlowChange, FlowKey};
use crate::pipeline::{ETH_IP, ETH_IPV4, ROUTER};
use crate::rib::{Rib, TooManyObjects};
use crate::table::{self, Side};
use crate::topology::{FastPath, RouterId, Topology};

/// A place in the flow tables that a router's own tables decide: there is at most one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// Packets to or from a local prefix.
    Local(Side, IpNet),
    /// The route of a prefix.
    Route(IpNet),
    /// The rewrite for a neighbor, of packets of that Ethernet type.
    NextHop(Adjacency, u16),
}

/// Something to do for the switch, in order.
#[derive(Debug)]
enum Due {
    /// Whatever the place holds when its turn comes.
    Place(Place),
    /// As it was decided.
    Change(FlowChange),
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
    waiting: HashSet<Place>,
}

impl Router {
    pub(crate) fn new(id: RouterId, topology: &Topology) -> Self {
        let rib = Rib::default();
        let binding = Binding::new(&rib, topology, id);
        Self {
            id,
            rib,
            binding,
            synced: false,
            gates: BTreeMap::new(),
            due: VecDeque::new(),
            waiting: HashSet::new(),
        }
    }

    /// End-of-RIB: sweeps what the snapshot did not confirm, and opens the gates.
    pub(crate) fn end_snapshot(&mut self, topology: &Topology) {
        for key in self.rib.unconfirmed() {
            // A removal cannot pass a limit.
            let _ = self.apply(Change::Remove(key), usize::MAX, topology);
        }
        self.synced = true;
        self.rebind(topology);
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
            | Key::Obstacle(_) => Default::default(),
        };
        if !self.rib.apply(change, limit)? {
            return Ok(());
        }
        match key {
            Key::Link(_) | Key::Settings | Key::Obstacle(_) => self.rebind(topology),
            Key::Address(_) => {}
            Key::Route(route) => match route.table {
                TABLE_LOCAL => local(route.dst).into_iter().for_each(|place| self.touch(place)),
                TABLE_MAIN => self.touch_route(route.dst),
                _ => {}
            },
            Key::NextHop(_) if readers.is_empty() => {}
            Key::NextHop(_) => {
                let uses =
                    |target: &RouteTarget| matches!(target, RouteTarget::NextHop(id) if readers.contains(id));
                for prefix in self.main_prefixes(|route| uses(&route.target)) {
                    self.touch_route(prefix);
                }
            }
            Key::Neighbor(neighbor) => {
                let places: Vec<Place> =
                    of_neighbor(&self.binding, neighbor.ifindex, neighbor.addr).collect();
                places.into_iter().for_each(|place| self.touch(place));
            }
        }
        Ok(())
    }

    fn main_prefixes(&self, wanted: impl Fn(&xenflow_proto::table::Route) -> bool) -> Vec<IpNet> {
        let routes = self.rib.routes().filter(|route| route.key.table == TABLE_MAIN && wanted(route));
        routes.map(|route| route.key.dst).collect()
    }

    fn touch(&mut self, place: Place) {
        if self.waiting.insert(place) {
            self.due.push_back(Due::Place(place));
        }
    }

    /// A route decides its prefix, and whether the neighbors in it are on-link.
    fn touch_route(&mut self, prefix: IpNet) {
        let hosts = self.rib.neighbors_in(prefix).map(IpNet::from);
        let places: Vec<Place> = [prefix].into_iter().chain(hosts).filter_map(route).collect();
        places.into_iter().for_each(|place| self.touch(place));
    }

    /// Links or vifs changed: the places that hold another flow now are due. Gates close before and open after it.
    pub(crate) fn rebind(&mut self, topology: &Topology) {
        let binding = Binding::new(&self.rib, topology, self.id);
        let bound = self.synced.then(|| binding.vifs()).into_iter().flatten();
        let gates: BTreeMap<FlowKey, Flow> =
            bound.flat_map(table::gates).map(|flow| (FlowKey::from(&flow), flow)).collect();
        let (opening, closing): (Vec<FlowChange>, Vec<FlowChange>) =
            diff(&self.gates, &gates).into_iter().partition(|change| matches!(change, FlowChange::Upsert(_)));
        self.gates = gates;
        self.due.extend(closing.into_iter().map(Due::Change));
        if binding != self.binding {
            let mut places = self.places(&self.binding);
            places.extend(self.places(&binding));
            places.sort_unstable();
            places.dedup();
            places.retain(|place| self.flow_with(*place, &self.binding) != self.flow_with(*place, &binding));
            self.binding = binding;
            for place in places {
                self.touch(place);
            }
        }
        self.due.extend(opening.into_iter().map(Due::Change));
    }

    /// Every place that may hold a flow.
    fn places(&self, binding: &Binding) -> Vec<Place> {
        let mut places = Vec::new();
        for known in self.rib.routes() {
            match known.key.table {
                TABLE_LOCAL => places.extend(local(known.key.dst)),
                TABLE_MAIN => places.extend(route(known.key.dst)),
                _ => {}
            }
        }
        for (ifindex, addr) in self.rib.neighbors() {
            places.extend(of_neighbor(binding, ifindex, addr));
        }
        places.sort_unstable();
        places.dedup();
        places
    }

    /// The flow that belongs to a place now.
    fn flow(&self, place: Place) -> Option<Flow> {
        self.flow_with(place, &self.binding)
    }

    fn flow_with(&self, place: Place, binding: &Binding) -> Option<Flow> {
        let fib = Fib { rib: &self.rib, binding };
        match place {
            Place::Local(side, prefix) => fib.is_local(prefix).then(|| table::local(self.id, side, prefix)),
            Place::Route(prefix) => fib.route(prefix).map(|verdict| table::route(self.id, prefix, verdict)),
            Place::NextHop(adjacency, eth_type) => {
                let destination = fib.resolve(adjacency)?;
                let (_, vif) = binding.link(adjacency.vif)?;
                Some(table::next_hop(adjacency, eth_type, vif.mac, destination, vif.vlan))
            }
        }
    }

    /// The identity of a place's flow, whether it is there or not.
    fn key(&self, place: Place) -> FlowKey {
        // The instructions do not matter for the identity, so any will do.
        let flow = match place {
            Place::Local(side, prefix) => table::local(self.id, side, prefix),
            Place::Route(prefix) => table::route(self.id, prefix, Verdict::Drop),
            Place::NextHop(adjacency, eth_type) => {
                table::next_hop(adjacency, eth_type, MacAddr::default(), MacAddr::default(), VlanId::MIN)
            }
        };
        FlowKey::from(&flow)
    }

    /// All flows that should be there: a full compile.
    pub(crate) fn flows(&self) -> impl Iterator<Item = Flow> {
        let places = self.places(&self.binding).into_iter();
        places.filter_map(|place| self.flow(place)).chain(self.gates.values().cloned())
    }

    /// Why packets take the slow path.
    pub(crate) fn slow(&self, policy: FastPath) -> Vec<Slow> {
        fast_path::reasons(policy, &self.rib, &self.binding, self.synced)
    }

    pub(crate) fn mark(&mut self, token: u64) {
        self.due.push_back(Due::Marker(token));
    }

    /// Anything to do?
    pub(crate) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next thing to do.
    pub(crate) fn next_due(&mut self) -> Option<Step> {
        Some(match self.due.pop_front()? {
            Due::Place(place) => {
                self.waiting.remove(&place);
                Step::Change(match self.flow(place) {
                    Some(flow) => FlowChange::Upsert(flow),
                    None => FlowChange::Remove(self.key(place)),
                })
            }
            Due::Change(change) => Step::Change(change),
            Due::Marker(token) => Step::Marker(token),
        })
    }

    /// A marker, if nothing stands before it.
    pub(crate) fn next_marker(&mut self) -> Option<u64> {
        match self.due.front() {
            Some(Due::Marker(token)) => {
                let token = *token;
                self.due.pop_front();
                Some(token)
            }
            _ => None,
        }
    }

    /// Decides anew what is due, from what the switch holds. Gates that should be closed close first and those
    /// that should be open open last; a marker stays due behind all of it.
    pub(crate) fn reconcile(&mut self, mut installed: BTreeMap<FlowKey, Flow>) {
        let markers: Vec<Due> = self.due.drain(..).filter(|due| matches!(due, Due::Marker(_))).collect();
        self.waiting.clear();
        let opening: Vec<FlowChange> = self
            .gates
            .iter()
            .filter(|(key, gate)| installed.remove(key).as_ref() != Some(gate))
            .map(|(_, gate)| FlowChange::Upsert(gate.clone()))
            .collect();
        let mut places = self.places(&self.binding);
        places.retain(|place| {
            let Some(flow) = self.flow(*place) else { return false };
            installed.remove(&FlowKey::from(&flow)) != Some(flow)
        });
        let (closing, obsolete): (Vec<FlowKey>, Vec<FlowKey>) =
            installed.into_keys().partition(|key| key.table == ROUTER);
        let remove = |key| Due::Change(FlowChange::Remove(key));
        self.due.extend(closing.into_iter().map(remove));
        for place in places {
            self.touch(place);
        }
        self.due.extend(obsolete.into_iter().map(remove));
        self.due.extend(opening.into_iter().map(Due::Change));
        self.due.extend(markers);
    }
}

/// What a prefix in the local table decides.
fn local(prefix: IpNet) -> [Place; 2] {
    [Place::Local(Side::Destination, prefix), Place::Local(Side::Source, prefix)]
}

/// What a prefix in the main table decides.
fn route(prefix: IpNet) -> Option<Place> {
    (!table::is_martian(prefix)).then_some(Place::Route(prefix))
}

/// What a neighbor decides: the rewrites, where its link is bound, and whether it is its own next hop. An IPv6
/// neighbor may be the next hop of IPv4 packets (RFC 8950).
fn of_neighbor(binding: &Binding, ifindex: IfIndex, addr: IpAddr) -> impl Iterator<Item = Place> {
    let eth_types: &[u16] = if addr.is_ipv4() { &[ETH_IPV4] } else { &ETH_IP };
    let bound = binding.vif(ifindex).map(|vif| Adjacency { vif: vif.id, addr });
    let rewrites = bound.into_iter().flat_map(|to| eth_types.iter().map(move |of| Place::NextHop(to, *of)));
    rewrites.chain(route(addr.into()))
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
