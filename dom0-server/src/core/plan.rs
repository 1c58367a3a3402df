//! The queues of what is wanted: their numbers, and what is to be shaped.

use std::collections::BTreeSet;
use std::sync::Arc;

use xenflow_flow_app::Topology;

use super::Core;
use crate::db::Desired;
use crate::queues::{Numbers, Surplus, plan, wanted};
use crate::shaper::plan::Plan;

/// The queues of this node's uplinks.
#[derive(Debug)]
pub(super) struct Queues {
    is_on: bool,
    pub(super) numbers: Numbers,
    surplus: Option<Surplus>,
    plan: Option<Arc<Plan>>,
}

impl Default for Queues {
    fn default() -> Self {
        Self { is_on: true, numbers: Numbers::default(), surplus: None, plan: None }
    }
}

impl Core {
    /// A core whose networks and classes have queues, or have none; without this they have.
    #[must_use]
    pub fn with_queues(mut self, is_on: bool) -> Self {
        self.queues.is_on = is_on;
        self
    }

    /// What is to be shaped; another one when it changes, none before it is known.
    #[must_use]
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        self.queues.plan.as_ref()
    }

    /// Networks and classes that have no queue, though they should.
    #[must_use]
    pub fn surplus(&self) -> Option<Surplus> {
        self.queues.surplus
    }

    /// Has meters hold the maxima where queues cannot.
    pub(super) fn limit(&self, desired: &Desired, topology: &mut Topology) {
        if !self.build.can_shape() {
            topology.metered = topology.uplinks.clone();
            topology.maxima = self.queues.numbers.maxima(desired);
        }
    }

    /// Gives what is wanted its queues.
    pub(super) fn number_queues(&mut self) {
        let (Some(desired), Some(ports)) = (&self.desired, &self.ports) else { return };
        let queues = &mut self.queues;
        let wanted = if queues.is_on { wanted(desired) } else { BTreeSet::new() };
        let surplus = queues.numbers.assign(&wanted, &ports.queues);
        match (std::mem::replace(&mut queues.surplus, surplus), surplus) {
            (before, Some(now)) if before != surplus => tracing::warn!(name: "problem", "{now}"),
            (Some(gone), None) => tracing::info!(name: "problem-gone", "no more: {gone}"),
            _ => {}
        }
        let plan = plan(&self.node, desired, ports, &queues.numbers);
        if queues.plan.as_deref() != Some(&plan) {
            queues.plan = Some(Arc::new(plan));
        }
    }
}
