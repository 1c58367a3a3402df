//! The flow app: everything that one host's switch should hold, kept up to date step by step.
//!
//! Events go in (topology, a guest's words, the switch's state); batches of flow changes come out. The app never
//! remembers what the switch holds. Each *scope* (the topology, each router) is either in step with the switch, so
//! that what is due is the whole difference, or not yet: then the caller dumps its flows, and the difference to
//! what is desired becomes due. A router whose guest has not finished a snapshot in this life of the daemon is
//! left as it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use openflow::{Flow, FlowFilter};
use xenflow_proto::Change;

use crate::flow::{FlowChange, FlowKey};
use crate::pipeline::{self, cookie};
use crate::rib::{RibCounts, TooManyObjects};
use crate::router::{Router, Step, diff};
use crate::table;
use crate::topology::{RouterId, Topology};

/// A part of the switch's flows that is compared and kept on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
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

/// Flow changes to send together, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// At most as many as asked for.
    pub changes: Vec<FlowChange>,
    /// Marks that are reached when the switch has confirmed the changes.
    pub reached: Vec<(RouterId, u64)>,
}

/// What the operator is shown of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterStatus {
    /// Its tables.
    pub rib: RibCounts,
    /// The guest has finished a snapshot, so the host forwards for it.
    pub synced: bool,
}

#[derive(Debug)]
struct Scoped {
    router: Router,
    sync: Sync,
}

/// See the module.
#[derive(Debug)]
pub struct App {
    topology: Topology,
    flows: BTreeMap<FlowKey, Flow>,
    sync: Sync,
    due: VecDeque<FlowChange>,
    routers: BTreeMap<RouterId, Scoped>,
    /// Where the next batch begins, so that routers take turns.
    turn: RouterId,
    limit: usize,
    dump: Option<(Scope, BTreeMap<FlowKey, Flow>)>,
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
            limit,
            dump: None,
        }
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
        self.due.extend(diff(&self.flows, &flows));
        self.flows = flows;
        for segment in self.topology.segments.iter().copied() {
            // What was learned behind a port that is gone, or that is another one now, misleads.
            if self.topology.members(segment) != topology.members(segment) {
                self.due.push_back(FlowChange::ForgetLearned(segment));
            }
        }
        let ids = topology.routers();
        let gone: Vec<RouterId> = self.routers.keys().copied().filter(|id| !ids.contains(id)).collect();
        for id in gone {
            self.routers.remove(&id);
            self.due.push_back(FlowChange::RemoveRouter(id));
        }
        self.topology = topology;
        for id in ids {
            let fresh = || Scoped { router: Router::new(id, &self.topology), sync: Sync::Unknown };
            self.routers.entry(id).or_insert_with(fresh).router.rebind(&self.topology);
        }
    }

    /// A snapshot of a router begins.
    pub fn begin_snapshot(&mut self, id: RouterId) {
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.router.rib.snapshot_begin();
        }
    }

    /// A change of a router's tables.
    ///
    /// # Errors
    /// [`TooManyObjects`]: the change is not made.
    pub fn apply(&mut self, id: RouterId, change: Change) -> Result<(), TooManyObjects> {
        match self.routers.get_mut(&id) {
            Some(scoped) => scoped.router.apply(change, self.limit, &self.topology),
            None => Ok(()),
        }
    }

    /// End-of-RIB of a router.
    pub fn end_snapshot(&mut self, id: RouterId) {
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.router.end_snapshot(&self.topology);
        }
    }

    /// Asks for `token` back in a [`Batch`], behind everything that is due for the router now.
    pub fn mark(&mut self, id: RouterId, token: u64) {
        if let Some(scoped) = self.routers.get_mut(&id) {
            scoped.router.mark(token);
        }
    }

    /// The switch is new, or was away: nobody knows what it holds.
    pub fn switch_reset(&mut self) {
        self.dump = None;
        self.sync = Sync::Unknown;
        for scoped in self.routers.values_mut() {
            scoped.sync = Sync::Unknown;
        }
    }

    /// The scope to dump next, if none is being dumped: give its flows to [`App::dumped`], then call
    /// [`App::dump_end`].
    pub fn begin_dump(&mut self) -> Option<(Scope, Vec<FlowFilter>)> {
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
        self.dump = Some((scope, BTreeMap::new()));
        let filter = |cookie, cookie_mask| FlowFilter { cookie, cookie_mask, ..FlowFilter::default() };
        let filters = match scope {
            // Gates and local addresses show which routers the switch holds, to find those that are configured no
            // more: every kernel has local addresses, and a router without a port has no gate.
            Scope::Topology => {
                let routers = |table| FlowFilter { table, ..filter(cookie::ROUTERS, cookie::CATEGORY_MASK) };
                let topology = filter(cookie::TOPOLOGY, cookie::CATEGORY_MASK);
                vec![topology, routers(pipeline::ROUTER), routers(pipeline::LOCAL)]
            }
            Scope::Router(id) => vec![filter(cookie::router(id), cookie::OWNER_MASK)],
        };
        Some((scope, filters))
    }

    /// A flow that the switch holds, of the scope that is being dumped.
    pub fn dumped(&mut self, flow: Flow) {
        if let Some((_, flows)) = &mut self.dump {
            flows.insert(FlowKey::from(&flow), flow);
        }
    }

    /// All flows of the scope were given: the difference is due now.
    pub fn dump_end(&mut self) {
        let Some((scope, mut installed)) = self.dump.take() else { return };
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
                self.sync = Sync::InStep;
            }
            Scope::Router(id) => {
                // One that went and came back meanwhile was not dumped: its removal is still due.
                let dumped = |scoped: &&mut Scoped| scoped.sync == Sync::Dumping;
                if let Some(scoped) = self.routers.get_mut(&id).filter(dumped) {
                    scoped.router.reconcile(installed);
                    scoped.sync = Sync::InStep;
                }
            }
        }
    }

    /// The next changes to send, at most `max`: the topology's first, then the routers' in turns.
    pub fn next_batch(&mut self, max: usize) -> Batch {
        let mut batch = Batch::default();
        if self.sync == Sync::InStep {
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
            if scoped.sync != Sync::InStep {
                continue;
            }
            // A fair share of the batch, so that one router's million waits for another's one.
            let share = batch.changes.len().saturating_add(max.div_ceil(4)).min(max);
            while scoped.router.is_due() && batch.changes.len() < share {
                match scoped.router.next_due() {
                    Some(Step::Change(change)) => batch.changes.push(change),
                    Some(Step::Marker(token)) => batch.reached.push((id, token)),
                    None => break,
                }
            }
            while let Some(token) = scoped.router.next_marker() {
                batch.reached.push((id, token));
            }
            self.turn = RouterId(id.0.wrapping_add(1));
            if batch.changes.len() >= max {
                break;
            }
        }
        batch
    }

    /// All flows that the switch should hold: a full compile, for audits and tests. Routers whose guest has not
    /// finished a snapshot have none.
    pub fn desired(&self) -> impl Iterator<Item = Flow> {
        let routers = self.routers.values().filter(|scoped| scoped.router.synced);
        self.flows.values().cloned().chain(routers.flat_map(|scoped| scoped.router.flows()))
    }

    /// What there is to show of a router; none for one that is not configured.
    #[must_use]
    pub fn router(&self, id: RouterId) -> Option<RouterStatus> {
        let router = &self.routers.get(&id)?.router;
        Some(RouterStatus { rib: router.rib.counts(), synced: router.synced })
    }

    /// Everything that is not under way: scopes in step, nothing due.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let idle = |scoped: &Scoped| {
            !scoped.router.synced || (scoped.sync == Sync::InStep && !scoped.router.is_due())
        };
        self.sync == Sync::InStep && self.due.is_empty() && self.routers.values().all(idle)
    }
}
