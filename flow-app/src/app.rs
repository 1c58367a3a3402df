//! The flow app: everything that one host's switch should hold, kept up to date step by step.
//!
//! Events go in (topology, a guest's words, the switch's state); batches of flow changes come out. The app never
//! remembers what the switch holds. Each *scope* (the topology, each router) is either in step with the switch, so
//! that what is due is the whole difference, or not yet: then the caller dumps its flows, and the difference to
//! what is desired becomes due. A router whose guest has not finished a snapshot in this life of the daemon is
//! left as it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use openflow::{ErrorCode, Flow, FlowFilter, Group, Meter};
use xenflow_proto::Change;
use xenflow_proto::digest::Digest;
use xenflow_proto::table::{NeighborKey, RouteKey};

use crate::answer::{Answer, Rejection};
use crate::flow::{FlowChange, FlowKey, MeterChange};
use crate::group::{self, MAX_ROUTER_BUCKETS};
use crate::pipeline::{self, cookie};
use crate::punt::meter_of;
use crate::queue;
use crate::rib::{Quota, TooMuch};
use crate::router::status::RouterStatus;
use crate::router::view::{FlowCursor, FlowPage, RouteView, Which};
use crate::router::{Router, Step, diff};
use crate::table;
use crate::topology::{RouterId, Topology};

mod follow;

/// A part of the switch's flows that is compared and kept on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Scope {
    /// What depends on no guest.
    Topology,
    /// What one guest's tables decide.
    Router(RouterId),
}

/// How the switch stands to what is due in a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// Nobody knows what the switch holds.
    Unknown,
    /// Its flows are being dumped.
    Dumping,
    /// What is due is all the difference.
    InStep,
}

/// What to ask the switch for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dump {
    /// Flows: give them to [`App::dumped`].
    pub flows: Vec<FlowFilter>,
    /// All groups and all meters as well: give them to [`App::dumped_group`] and [`App::dumped_meter`].
    pub groups_and_meters: bool,
}

/// Flow changes to send together, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// To be sent before the changes, each by itself: meters take no part in bundles.
    pub meters: Vec<MeterChange>,
    /// At most as many as asked for.
    pub changes: Vec<FlowChange>,
    /// Marks that are reached when the switch has confirmed the changes.
    pub reached: Vec<(RouterId, u64)>,
    /// There may be more changes, but to find them takes time that others may need: ask again.
    pub more: bool,
    /// The routers whose changes are among them.
    pub routers: Vec<RouterId>,
}

/// Steps in the search for what is due, for each change that there is room for. Most of them find nothing where the
/// places of a router are walked over (its links changed, say), and cost about as much as one that does.
const STEPS: usize = 8;

/// All that a switch should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Flows, each with a key of its own.
    pub flows: Vec<Flow>,
    /// Groups that they send to.
    pub groups: Vec<Group>,
    /// Meters that they use.
    pub meters: Vec<Meter>,
}

#[derive(Debug)]
struct Scoped {
    router: Router,
    sync: Sync,
    /// See [`App::press`].
    is_pressing: bool,
}

/// See the module.
#[derive(Debug)]
pub struct App {
    topology: Topology,
    pub(crate) flows: BTreeMap<FlowKey, Flow>,
    sync: Sync,
    due: VecDeque<FlowChange>,
    routers: BTreeMap<RouterId, Scoped>,
    /// Where the next batch begins, so that routers take turns.
    turn: RouterId,
    /// See [`App::rest`].
    is_resting: bool,
    quota: Quota,
    max_buckets: usize,
    is_aggregated: bool,
    dump: Option<Dumping>,
    /// By number.
    meters: BTreeMap<u32, Meter>,
    /// What the switch has been told of meters since it was dumped.
    meters_sent: BTreeMap<u32, Meter>,
    /// Groups that the switch held when it was dumped, of routers that have not been dumped since.
    groups_found: BTreeMap<RouterId, BTreeMap<u32, Group>>,
}

#[derive(Debug)]
struct Dumping {
    scope: Scope,
    flows: BTreeMap<FlowKey, Flow>,
}

impl App {
    /// An app without ports; `limit` is how many objects it keeps of one guest.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            topology: Topology::default(),
            flows: BTreeMap::new(),
            sync: Sync::Unknown,
            due: VecDeque::new(),
            routers: BTreeMap::new(),
            turn: RouterId(0),
            is_resting: false,
            quota: Quota { objects: limit, ..Quota::NONE },
            max_buckets: MAX_ROUTER_BUCKETS,
            is_aggregated: true,
            dump: None,
            meters: BTreeMap::new(),
            meters_sent: BTreeMap::new(),
            groups_found: BTreeMap::new(),
        }
    }

    /// An app that keeps no more bytes of one guest's tables than that, by the estimate of [`Quota::bytes`].
    #[must_use]
    pub fn with_max_bytes(self, bytes: usize) -> Self {
        Self { quota: Quota { bytes, ..self.quota }, ..self }
    }

    /// An app whose routers' groups have no more buckets each than that; 262,144 by default.
    #[must_use]
    pub fn with_max_buckets(self, max_buckets: usize) -> Self {
        Self { max_buckets, ..self }
    }

    /// An app with as few flows of prefixes as it takes, as by default, or with one for each.
    #[must_use]
    pub fn with_aggregation(self, is_aggregated: bool) -> Self {
        Self { is_aggregated, ..self }
    }

    /// The topology it works on.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The host's ports and configuration are these now.
    pub fn set_topology(&mut self, topology: Topology) {
        let flows: BTreeMap<FlowKey, Flow> =
            table::topology_flows(&topology).into_iter().map(|flow| (FlowKey::from(&flow), flow)).collect();
        self.supersede(diff(&self.flows, &flows));
        self.flows = flows;
        for segment in self.topology.segments.iter().copied() {
            // What was learned behind a port that is gone, or that is another one now, misleads. To forget it costs: all that
            // the segment's packets have in the datapath is looked at anew. So guests come and go without.
            if !self.topology.learning(segment).eq(topology.learning(segment)) {
                self.due.push_back(FlowChange::ForgetLearned(segment));
            }
        }
        let ids = topology.routers();
        let meters = ids.iter().flat_map(|id| topology.policy(*id).punt_rates.meters(*id));
        self.meters = meters.chain(queue::meters(&topology)).map(|meter| (meter.id, meter)).collect();
        let ids: BTreeSet<RouterId> = ids.into_iter().filter(|id| topology.has_tables(*id)).collect();
        let gone: Vec<RouterId> = self.routers.keys().copied().filter(|id| !ids.contains(id)).collect();
        for id in gone {
            self.remove_flows(id);
            self.routers.remove(&id);
        }
        // One that has left keeps its tables, and has no flow by them.
        let left: Vec<RouterId> = self.routers.keys().copied().collect();
        for id in left {
            if self.topology.is_here(id) && !topology.is_here(id) {
                self.remove_flows(id);
            }
        }
        self.topology = topology;
        for id in ids {
            let router = || Router::new(id, &self.topology, self.max_buckets, self.is_aggregated);
            let fresh = || Scoped { router: router(), sync: Sync::Unknown, is_pressing: false };
            self.routers.entry(id).or_insert_with(fresh).router.rebind();
        }
    }

    /// All flows of a router are to go, with one change: there may be a million.
    fn remove_flows(&mut self, id: RouterId) {
        self.due.push_back(FlowChange::RemoveRouter(id));
        let mut groups = BTreeSet::new();
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.sync = Sync::Unknown;
            groups.extend(scoped.router.group_ids());
        }
        // Else the dump that is to come, or has begun, finds them.
        if self.sync == Sync::InStep {
            groups.extend(self.groups_found.remove(&id).unwrap_or_default().into_keys());
            self.due.extend(groups.into_iter().map(FlowChange::RemoveGroup));
        }
    }

    /// A snapshot of a router begins, by a guest of which nobody knows when it booted.
    pub fn begin_snapshot(&mut self, id: RouterId) {
        self.begin_snapshot_of(id, [0; 16]);
    }

    /// A snapshot of a router begins, by this boot of its guest.
    pub fn begin_snapshot_of(&mut self, id: RouterId, boot_id: [u8; 16]) {
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.router.begin_snapshot(boot_id);
        }
    }

    /// A router's tables go on from what they are; [`App::end_snapshot`] will sweep nothing.
    pub fn resume(&mut self, id: RouterId) {
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.router.resume();
        }
    }

    /// The digest of a router's tables, if this boot of its guest has said all that is in them.
    #[must_use]
    pub fn held(&self, id: RouterId, boot_id: &[u8; 16]) -> Option<Digest> {
        self.routers.get(&id)?.router.rib.held(boot_id)
    }

    /// A change of a router's tables.
    ///
    /// # Errors
    /// [`TooMuch`]: the change is not made.
    pub fn apply(&mut self, id: RouterId, change: Change) -> Result<(), TooMuch> {
        match self.routers.get_mut(&id) {
            Some(scoped) => scoped.router.apply(change, self.quota),
            None => Ok(()),
        }
    }

    /// How many times a route of each router came, changed or went since this was asked last, sweeps among them. A route
    /// that is told again as it was does not count.
    pub fn take_routes_changed(&mut self) -> impl Iterator<Item = (RouterId, u64)> {
        self.routers.iter_mut().map(|(id, scoped)| (*id, std::mem::take(&mut scoped.router.routes_changed)))
    }

    /// End-of-RIB of a router: all that its snapshot did not confirm is swept.
    pub fn end_snapshot(&mut self, id: RouterId) {
        self.begin_sweep(id);
        while self.go_on_sweeping(id, usize::MAX) {}
    }

    /// End-of-RIB of a router. [`App::go_on_sweeping`] does what there is to do; a snapshot or a resumption that begins
    /// before that is done ends it.
    pub fn begin_sweep(&mut self, id: RouterId) {
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.router.end_snapshot();
        }
    }

    /// Looks at `most` more objects of a router that is being swept. False: nothing is left to do.
    pub fn go_on_sweeping(&mut self, id: RouterId, most: usize) -> bool {
        self.routers.get_mut(&id).is_some_and(|scoped| scoped.router.go_on_sweeping(most))
    }

    /// Asks for `token` back in a [`Batch`], behind everything that is due for the router now. Tokens grow from
    /// 1, but one that was lost with the switch may be asked for again.
    pub fn mark(&mut self, id: RouterId, token: u64) {
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.router.mark(token);
        }
    }

    /// What to tell a router's guest of its routes when the switch has confirmed a mark: call it for each mark of
    /// [`Batch::reached`]. Only what changed, with one answer for a route: the last. See [`crate::answer`].
    pub fn take_answers(&mut self, id: RouterId, token: u64) -> Vec<(RouteKey, Answer)> {
        self.routers.get_mut(&id).map(|scoped| scoped.router.answers.take(token)).unwrap_or_default()
    }

    /// There are answers for a router's guest that no mark stands behind: something else than its guest caused them,
    /// as the operator or the switch. They are told with the next [`App::mark`].
    #[must_use]
    pub fn wants_mark(&self, id: RouterId) -> bool {
        self.routers.get(&id).is_some_and(|scoped| scoped.router.wants_mark())
    }

    /// Routes of a router that are rejected as far as the switch was told, confirmed or not.
    pub fn rejected(&self, id: RouterId) -> impl Iterator<Item = (RouteKey, Rejection)> {
        self.routers.get(&id).into_iter().flat_map(|scoped| scoped.router.answers.rejected())
    }

    /// The neighbor that a flow of [`pipeline::NEXT_HOP`] sends to, as its router's guest names it; none for other
    /// flows, and where the guest has no link for the vif at present.
    #[must_use]
    pub fn neighbor_of(&self, flow: &FlowKey) -> Option<(RouterId, NeighborKey)> {
        let next_hop = pipeline::next_hop_of(&flow.matching).filter(|_| flow.table == pipeline::NEXT_HOP)?;
        let id = next_hop.vif.router;
        Some((id, self.routers.get(&id)?.router.neighbor_of(next_hop)?))
    }

    /// The switch refuses one of these changes, which were sent in one bundle that was not taken. True: it is decided
    /// otherwise, and the routes that it was for are rejected; false: it will come again. [`App::switch_reset`] is to
    /// follow. See `router::refused`.
    pub fn refuse(&mut self, sent: &[FlowChange], index: usize, why: ErrorCode) -> bool {
        let router = match sent.get(index) {
            Some(FlowChange::Upsert(flow)) => cookie::router_of(flow.cookie),
            Some(FlowChange::UpsertGroup(group)) => group::router_of(group.id),
            _ => None,
        };
        let scoped = router.and_then(|id| self.routers.get_mut(&id));
        scoped.is_some_and(|scoped| scoped.router.refuse(sent, index, why))
    }

    /// What the switch refused is to be tried again. True if there was any; then [`App::switch_reset`] is to follow.
    pub fn forgive(&mut self) -> bool {
        let mut is_any = false;
        for scoped in self.routers.values_mut() {
            is_any |= scoped.router.forgive();
        }
        is_any
    }

    /// The switch refuses something of these routers' at present.
    #[must_use]
    pub fn has_refused(&self) -> bool {
        self.routers.values().any(|scoped| scoped.router.has_refused())
    }

    /// The switch refused something once: a batch is to be sent only when the one before was confirmed.
    #[must_use]
    pub fn is_wary(&self) -> bool {
        self.routers.values().any(|scoped| scoped.router.is_wary())
    }

    /// The switch is new, or was away: nobody knows what it holds.
    pub fn switch_reset(&mut self) {
        self.dump = None;
        self.sync = Sync::Unknown;
        for scoped in self.routers.values_mut() {
            scoped.sync = Sync::Unknown;
        }
    }

    /// What to ask the switch for next, if no answer is awaited; call [`App::dump_end`] when all of it was given.
    pub fn begin_dump(&mut self) -> Option<Dump> {
        if self.dump.is_some() {
            return None;
        }
        let scope = if self.sync == Sync::Unknown {
            self.sync = Sync::Dumping;
            Scope::Topology
        } else if !self.due.is_empty() {
            // A removal by cookie may be among them: it must not meet flows that a dump has found to be right.
            return None;
        } else {
            let ready = |scoped: &&mut Scoped| scoped.sync == Sync::Unknown && scoped.router.synced;
            let (id, scoped) = self.routers.iter_mut().find(|(_, scoped)| ready(scoped))?;
            scoped.sync = Sync::Dumping;
            Scope::Router(*id)
        };
        self.dump = Some(Dumping { scope, flows: BTreeMap::new() });
        let filter = |cookie, cookie_mask| FlowFilter { cookie, cookie_mask, ..FlowFilter::default() };
        let flows = match scope {
            // Gates and local addresses show which routers the switch holds, to find those that are configured no
            // more: every kernel has local addresses, and a router without a port has no gate.
            Scope::Topology => {
                let routers = |table| FlowFilter { table, ..filter(cookie::ROUTERS, cookie::CATEGORY_MASK) };
                let topology = filter(cookie::TOPOLOGY, cookie::CATEGORY_MASK);
                vec![topology, routers(pipeline::ROUTER), routers(pipeline::LOCAL)]
            }
            Scope::Router(id) => vec![filter(cookie::router(id), cookie::OWNER_MASK)],
        };
        let groups_and_meters = scope == Scope::Topology;
        if groups_and_meters {
            self.groups_found.clear();
            self.meters_sent.clear();
        }
        Some(Dump { flows, groups_and_meters })
    }

    /// A flow that the switch holds, of the scope that is being dumped.
    pub fn dumped(&mut self, flow: Flow) {
        if let Some(dump) = &mut self.dump {
            dump.flows.insert(FlowKey::from(&flow), flow);
        }
    }

    /// A group that the switch holds. Numbers that are no router's are somebody else's.
    pub fn dumped_group(&mut self, group: Group) {
        if let Some(router) = group::router_of(group.id) {
            self.groups_found.entry(router).or_default().insert(group.id, group);
        }
    }

    /// A meter that the switch holds. Numbers that are no router's and no queue's are somebody else's.
    pub fn dumped_meter(&mut self, meter: Meter) {
        if meter_of(meter.id).is_some() || queue::meter_of(meter.id).is_some() {
            self.meters_sent.insert(meter.id, meter);
        }
    }

    /// More is due for flows of the topology. What was due for them before is not sent any more: a flow that has come and
    /// gone meanwhile may pass a meter that has gone as well.
    fn supersede(&mut self, changes: Vec<FlowChange>) {
        let keys: BTreeSet<FlowKey> = changes.iter().filter_map(FlowChange::key).collect();
        self.due.retain(|change| change.key().is_none_or(|key| !keys.contains(&key)));
        self.due.extend(changes);
    }

    /// Meters that flows may refer to come first; those that none refers to any more go when the flows have gone.
    fn next_meters(&mut self) -> Vec<MeterChange> {
        let removed: Vec<u32> = if self.due.is_empty() {
            self.meters_sent.keys().copied().filter(|id| !self.meters.contains_key(id)).collect()
        } else {
            Vec::new()
        };
        let mut changes: Vec<MeterChange> = removed.iter().copied().map(MeterChange::Remove).collect();
        for id in removed {
            self.meters_sent.remove(&id);
        }
        for (id, meter) in &self.meters {
            match self.meters_sent.insert(*id, meter.clone()) {
                None => changes.push(MeterChange::Add(meter.clone())),
                Some(old) if old != *meter => changes.push(MeterChange::Modify(meter.clone())),
                Some(_) => {}
            }
        }
        changes
    }

    /// All flows of the scope were given: the difference is due now.
    pub fn dump_end(&mut self) {
        let Some(Dumping { scope, flows: mut installed }) = self.dump.take() else { return };
        match scope {
            Scope::Topology => {
                let held: BTreeSet<RouterId> =
                    installed.values().filter_map(|flow| cookie::router_of(flow.cookie)).collect();
                installed.retain(|_, flow| cookie::router_of(flow.cookie).is_none());
                // Flushes and removals that are due by cookie stay due.
                let by_cookie = |change: &FlowChange| {
                    matches!(change, FlowChange::RemoveRouter(_) | FlowChange::ForgetLearned(_))
                };
                self.due.retain(by_cookie);
                self.due.extend(diff(&installed, &self.flows));
                let unknown = held.into_iter().filter(|id| !self.routers.contains_key(id));
                self.due.extend(unknown.map(FlowChange::RemoveRouter));
                // Groups go after the flows that send to them.
                let (known, unknown) = std::mem::take(&mut self.groups_found)
                    .into_iter()
                    .partition(|(id, _)| self.routers.contains_key(id));
                self.groups_found = known;
                let unknown: BTreeMap<RouterId, BTreeMap<u32, Group>> = unknown;
                let ids = unknown.into_values().flat_map(BTreeMap::into_keys);
                self.due.extend(ids.map(FlowChange::RemoveGroup));
                self.sync = Sync::InStep;
            }
            Scope::Router(id) => {
                // One that went and came back meanwhile was not dumped: its removal is still due.
                let dumped = |scoped: &&mut Scoped| scoped.sync == Sync::Dumping;
                if let Some(scoped) = self.routers.get_mut(&id).filter(dumped) {
                    let groups = self.groups_found.remove(&id).unwrap_or_default();
                    scoped.router.reconcile(installed, groups, &self.topology);
                    scoped.sync = Sync::InStep;
                }
            }
        }
    }

    /// The next changes to send, at most `max`: the topology's first, then the routers' in turns.
    pub fn next_batch(&mut self, max: usize) -> Batch {
        let mut batch = Batch::default();
        if self.sync == Sync::InStep {
            batch.meters = self.next_meters();
            let n = self.due.len().min(max);
            batch.changes.extend(self.due.drain(..n));
        }
        let ids: Vec<RouterId> = self
            .routers
            .range(self.turn..)
            .chain(self.routers.range(..self.turn))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(scoped) = self.routers.get_mut(&id) else { continue };
            if scoped.sync != Sync::InStep || (self.is_resting && scoped.is_pressing) {
                continue;
            }
            let before = batch.changes.len();
            // A fair share of the batch, so that one router's million waits for another's one; and of the work.
            let most = max.div_ceil(4);
            let share = batch.changes.len().saturating_add(most).min(max);
            let mut work = most.saturating_mul(STEPS);
            while scoped.router.is_due() && batch.changes.len() < share {
                match scoped.router.next_due(&self.topology, &mut work) {
                    Some(Step::Change(change)) => batch.changes.push(change),
                    Some(Step::Marker(token)) => batch.reached.push((id, token)),
                    None => {
                        batch.more |= scoped.router.is_due();
                        break;
                    }
                }
            }
            while let Some(token) = scoped.router.next_marker() {
                batch.reached.push((id, token));
            }
            if batch.changes.len() > before {
                batch.routers.push(id);
            }
            self.turn = RouterId(id.0.wrapping_add(1));
            if batch.changes.len() >= max {
                break;
            }
        }
        batch
    }

    /// The switch has confirmed a batch with changes of these routers. A router *presses* if more is due for it by then:
    /// it keeps the switch busy for as long as it may. True if any of them does.
    pub fn press(&mut self, routers: &[RouterId]) -> bool {
        let mut is_any = false;
        for id in routers {
            if let Some(scoped) = self.routers.get_mut(id) {
                scoped.is_pressing = scoped.router.is_due();
                is_any |= scoped.is_pressing;
            }
        }
        is_any
    }

    /// See [`App::press`].
    #[must_use]
    pub fn is_pressing(&self, id: RouterId) -> bool {
        self.routers.get(&id).is_some_and(|scoped| scoped.is_pressing)
    }

    /// Whether routers that press are left out of batches from now on.
    pub fn rest(&mut self, is_resting: bool) {
        self.is_resting = is_resting;
    }

    /// See [`App::rest`].
    #[must_use]
    pub const fn is_resting(&self) -> bool {
        self.is_resting
    }

    /// All that the switch should hold: a full compile, for audits and tests. Routers whose guest has not
    /// finished a snapshot have none.
    pub fn desired(&self) -> Desired {
        let mut desired = Desired {
            flows: self.flows.values().cloned().collect(),
            groups: Vec::new(),
            meters: self.meters.values().cloned().collect(),
        };
        for scoped in self.routers.values().filter(|scoped| scoped.router.synced) {
            let (flows, groups) = scoped.router.desired(&self.topology);
            desired.flows.extend(flows);
            desired.groups.extend(groups);
        }
        desired
    }

    /// What there is to show of a router; none for one that is not configured, or has no tables here.
    #[must_use]
    pub fn router(&self, id: RouterId) -> Option<RouterStatus> {
        Some(self.routers.get(&id)?.router.status(&self.topology))
    }

    /// About `most` of a router's routes behind one, with what becomes of them, and where the next page begins, if there
    /// may be one; none for a router that is not configured. See [`crate::router::view`].
    #[must_use]
    pub fn view_routes(
        &self,
        id: RouterId,
        which: Which,
        after: Option<RouteKey>,
        most: usize,
    ) -> Option<(Vec<RouteView<'_>>, Option<RouteKey>)> {
        Some(self.routers.get(&id)?.router.view_routes(which, after, most))
    }

    /// A router's flows and groups of about `most` things behind a cursor; none for a router that is not configured. All
    /// pages give what [`App::desired`] gives, once nothing is due.
    #[must_use]
    pub fn view_flows(&self, id: RouterId, after: Option<FlowCursor>, most: usize) -> Option<FlowPage> {
        Some(self.routers.get(&id)?.router.view_flows(after, most))
    }

    pub(crate) fn router_of(&self, id: RouterId) -> Option<&Router> {
        self.routers.get(&id).map(|scoped| &scoped.router)
    }

    pub(crate) fn all_routers(&self) -> impl Iterator<Item = &Router> {
        self.routers.values().map(|scoped| &scoped.router)
    }

    /// A router's guest has finished a snapshot in this life of the daemon.
    #[must_use]
    pub fn is_synced(&self, id: RouterId) -> bool {
        self.routers.get(&id).is_some_and(|scoped| scoped.router.synced)
    }

    /// A guest has finished a snapshot, and what is due for its router is all that the switch lacks.
    #[must_use]
    pub fn is_in_step(&self, id: RouterId) -> bool {
        self.routers.get(&id).is_some_and(|scoped| scoped.sync == Sync::InStep && scoped.router.synced)
    }

    /// About how much is due for a router whose scope is in step; of others nothing is sent before that is decided anew.
    #[must_use]
    pub fn backlog(&self, id: RouterId) -> usize {
        let in_step = self.routers.get(&id).filter(|scoped| scoped.sync == Sync::InStep);
        in_step.map_or(0, |scoped| scoped.router.backlog())
    }

    /// Something is due for another router than this one.
    #[must_use]
    pub fn is_due_beside(&self, id: RouterId) -> bool {
        let mut others = self.routers.iter().filter(|(other, _)| **other != id);
        others.any(|(_, scoped)| scoped.sync == Sync::InStep && scoped.router.is_due())
    }

    /// Everything that is not under way: scopes in step, nothing due.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let idle = |scoped: &Scoped| {
            !scoped.router.synced || (scoped.sync == Sync::InStep && !scoped.router.is_due())
        };
        self.is_topology_sent() && self.routers.values().all(idle)
    }

    /// Nothing is left to send of what depends on no guest: all of it is under way, or the switch has it.
    #[must_use]
    pub fn is_topology_sent(&self) -> bool {
        self.sync == Sync::InStep && self.due.is_empty() && self.meters == self.meters_sent
    }
}
