//! How far the switch has got with the desired state: which `XenFlow.next_cfg` it has confirmed.
//!
//! Operators wait for that number (`xenflow --wait`), so it is a promise: all that the state with the number asks of
//! this host's switch is there. That is the flows that depend on no guest, and of each router whose vifs or policy
//! the state has changed what its tables make of that; and where others have addresses, as far as that was written before
//! the number, while what is here has been written for others. What guests say of their routes meanwhile is not waited for:
//! the last change is in one certain batch, and the marks of routers stand at one place of what is due for them, so
//! that a switch that is never idle gets there all the same.

use std::collections::{BTreeMap, BTreeSet};

use xenflow_flow_app::{RouterId, Topology, Vif, VifId};
use xenflow_proto::Seq;

use super::{Core, Located, SessionId};

/// A number to report, and what stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Goal {
    cfg: i64,
    /// Routers' marks below this one are to be confirmed.
    marks: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The last number that was asked for.
    wanted: Option<i64>,
    /// Changes of the topology may still have to be sent before this. A later one takes its place.
    unsent: Option<Goal>,
    /// The switch has the topology of these, but not all that it makes of routers.
    half: BTreeSet<Goal>,
    /// Marks that routers have not reached, which changes of their vifs or policies stand before.
    marks: BTreeMap<u64, RouterId>,
    confirmed: Option<i64>,
}

impl Progress {
    /// The state has this number now, and the next mark will be that one.
    pub(super) fn want(&mut self, cfg: i64, next_mark: u64) {
        if self.wanted == Some(cfg) {
            return;
        }
        if self.wanted > Some(cfg) {
            // Another database: what was confirmed is not of this one.
            self.unsent = None;
            self.half.clear();
            self.confirmed = None;
        }
        self.wanted = Some(cfg);
        self.unsent = Some(Goal { cfg, marks: next_mark });
    }

    /// The switch has confirmed the topology that a goal asks for.
    pub(super) fn topology_confirmed(&mut self, goal: Option<Goal>) {
        self.half.extend(goal.filter(|goal| Some(goal.cfg) <= self.wanted));
        self.settle();
    }

    /// The switch has confirmed what stands before a mark.
    pub(super) fn router_confirmed(&mut self, mark: u64) {
        if self.marks.remove(&mark).is_some() {
            self.settle();
        }
    }

    /// The switch may have lost what it has confirmed.
    pub(super) fn start_over(&mut self) {
        for goal in std::mem::take(&mut self.half) {
            self.again(Some(goal));
        }
    }

    /// What was under way for this goal counts for nothing.
    pub(super) fn again(&mut self, goal: Option<Goal>) {
        let goal = goal.filter(|goal| Some(goal.cfg) <= self.wanted);
        self.unsent = self.unsent.max(goal);
    }

    fn settle(&mut self) {
        let first = self.marks.keys().next().copied().unwrap_or(u64::MAX);
        while let Some(goal) = self.half.first().copied().filter(|goal| goal.marks <= first) {
            self.half.remove(&goal);
            if self.confirmed < Some(goal.cfg) {
                self.confirmed = Some(goal.cfg);
                tracing::debug!(name: "desired-reached", generation = goal.cfg, "the switch has the desired state");
            }
        }
    }
}

impl Core {
    /// The greatest `XenFlow.next_cfg` whose state the switch has confirmed since this daemon began; none yet.
    #[must_use]
    pub fn confirmed_cfg(&self) -> Option<i64> {
        self.progress.confirmed
    }

    /// Pursues the greatest number up to which everything has come here that makes flows.
    pub(super) fn pursue_state(&mut self) {
        let Some(desired) = &self.desired else { return };
        let cfg = match &self.located {
            Located::Ignored => desired.cfg,
            Located::UpTo(cfg, here) if *here == self.here => desired.cfg.min(*cfg),
            Located::Unknown | Located::UpTo(..) => return,
        };
        self.progress.want(cfg, self.next_mark);
    }

    /// Asks routers for a mark behind what has changed for them. The switch is given nothing of a router whose guest has
    /// not finished a snapshot, so there is nothing to wait for.
    pub(super) fn mark_changed(&mut self, changed: BTreeSet<RouterId>) {
        let app = &self.app;
        self.progress.marks.retain(|_, router| app.is_synced(*router));
        let live = self.sessions.iter().filter(|(_, session)| session.is_live_guest());
        let live: BTreeMap<RouterId, SessionId> = live.map(|(id, session)| (session.router, *id)).collect();
        for router in changed.into_iter().filter(|router| self.app.is_synced(*router)).collect::<Vec<_>>() {
            self.progress.marks.insert(self.next_mark, router);
            match live.get(&router) {
                // What changed may be an answer for the guest.
                Some(session) => self.mark(*session, router, Seq(0)),
                None => {
                    self.app.mark(router, self.next_mark);
                    self.next_mark += 1;
                }
            }
        }
        self.progress.settle();
    }

    /// What is wanted is confirmed with the last batch under way, once nothing of the topology is left to send.
    pub(super) fn pursue(&mut self) {
        if self.progress.unsent.is_none() || !self.app.is_topology_sent() {
            return;
        }
        let goal = self.progress.unsent.take();
        match self.in_flight.values_mut().next_back() {
            Some(last) => last.goal = last.goal.max(goal),
            None => self.progress.topology_confirmed(goal),
        }
    }
}

/// Routers of which something other than ports of others' has changed.
pub(super) fn changed_routers(before: &Topology, after: &Topology) -> BTreeSet<RouterId> {
    let vifs = |topology: &Topology| -> BTreeMap<RouterId, Vec<(VifId, Vif)>> {
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (id, vif) in &topology.vifs {
            all.entry(id.router).or_default().push((*id, vif.clone()));
        }
        all
    };
    let old = vifs(before);
    let is_new = |(id, vifs): &(RouterId, Vec<(VifId, Vif)>)| {
        old.get(id) != Some(vifs) || before.policy(*id) != after.policy(*id)
    };
    vifs(after).into_iter().filter(is_new).map(|(id, _)| id).collect()
}
