//! What the operator is shown of a router as a whole.

use std::collections::{BTreeMap, BTreeSet};

use openflow::ErrorCode;
use xenflow_proto::table::IfIndex;

use super::Router;
use crate::answer::Rejection;
use crate::fast_path::{self, Slow, SlowReason};
use crate::fib::{Adjacency, Binding, BoundVif};
use crate::rib::RibCounts;
use crate::topology::{Topology, VifId};

/// What the operator is shown of a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterStatus {
    /// Its tables.
    pub rib: RibCounts,
    /// The guest has finished a snapshot, so the host forwards for it.
    pub synced: bool,
    /// Packets that the guest forwards itself by policy, and why; none: the host forwards all it can.
    pub slow: Vec<Slow>,
    /// How many prefixes have a flow.
    pub routes: RouteCounts,
    /// Gateways of routes that cannot be sent to.
    pub unresolved: Unresolved,
    /// Bytes of the largest IP packet that the guest sends by each of its vifs that it has a link for.
    pub mtus: BTreeMap<VifId, u32>,
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

/// Gateways that routes of a router name, on its vifs, and that no neighbor stands for: packets to them are the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unresolved {
    /// How many.
    pub count: usize,
    /// The first few of them.
    pub some: Vec<Adjacency>,
}

/// Gateways in [`Unresolved::some`].
const SOME: usize = 8;

impl Router {
    pub(crate) fn status(&self, topology: &Topology) -> RouterStatus {
        let binding = Binding::new(&self.rib, topology, self.id);
        RouterStatus {
            rib: self.rib.counts(),
            synced: self.synced,
            slow: self.slow(topology, &binding),
            routes: self.route_counts(),
            unresolved: self.unresolved(&binding),
            mtus: binding.vifs().map(|(_, vif)| (vif.id, vif.mtu())).collect(),
        }
    }

    /// Why packets take the slow path.
    fn slow(&self, topology: &Topology, binding: &Binding) -> Vec<Slow> {
        let policy = topology.policy(self.id).fast_path;
        let mut slow = fast_path::reasons(policy, &self.rib, binding, self.synced);
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

    /// How much of its limit is used.
    fn route_counts(&self) -> RouteCounts {
        RouteCounts {
            max: self.limit.max(),
            forwarded: self.limit.forwarded(),
            punted: self.limit.punted(),
            absent: self.limit.absent(),
            is_near: self.limit.is_near(),
        }
    }

    /// None before the guest has told all its neighbors.
    fn unresolved(&self, binding: &Binding) -> Unresolved {
        let vifs = || binding.vifs().filter(|_| self.synced);
        let on = |(ifindex, vif): (IfIndex, &BoundVif)| {
            let vif = vif.id;
            self.rib.unresolved_on(ifindex).map(move |addr| Adjacency { vif, addr })
        };
        Unresolved {
            count: vifs().map(|(ifindex, _)| self.rib.count_unresolved(ifindex) as usize).sum(),
            some: vifs().flat_map(on).take(SOME).collect(),
        }
    }
}
