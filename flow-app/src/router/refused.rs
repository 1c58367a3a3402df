//! What the switch will not have of a router's flows, and what stands in for it.
//!
//! A flow that is just left out would do harm: its packets would meet a shorter prefix, or be forwarded where they are
//! the guest's. So each refusal is decided around, such that a packet meets its verdict or is handed to the guest:
//!
//! * **The table of routes is full.** What fits is counted at the next dump, and from then on no more prefixes than that
//!   have a flow: [`Limit::set_room`](crate::limit::Limit::set_room) chooses which, and shields the others. One place is
//!   left free, since a prefix that comes takes its place before another gives up its own. While a switch with so little
//!   room is brought in step, the gates are closed and what is obsolete goes first.
//! * **The flow of a prefix** becomes a punt: the plainest flow there is for the prefix.
//! * **A group**: the prefixes that share these next hops become punts.
//! * **The flow of a next hop** stays out, which is a glean; prefixes that go there become punts, so that their routes are
//!   told as rejected. Until the neighbor changes.
//! * **Anything else**, a punt among it, and too many of all these: the gates close, the guest forwards all by itself.
//!
//! Everything counts for the flow, group or next hop as it was refused: what comes under the same key is tried. All of it
//! is tried again by [`Refused::forgive`]. Until the switch has been dumped after a refusal, a bundle that was sent behind
//! the refused one may have been taken alone; who sends keeps to one at a time from the first refusal on
//! ([`Refused::is_wary`]). As long as anything is refused each prefix has a flow of its own.
//!
//! Owns what was refused; the flows themselves are the router's.

use std::collections::{BTreeMap, BTreeSet};

use openflow::{ErrorCode, Flow};

use super::Router;
use crate::fib::{Adjacency, Multipath, Verdict};
use crate::flow::{FlowChange, FlowKey};
use crate::limit::Prefix;
use crate::pipeline::{NEXT_HOP, ROUTE, next_hop_of};
use crate::table::{self, Outcome};
use crate::topology::RouterId;

/// Refused flows, groups and next hops of one router that are kept apart.
const MAX_APART: usize = 1000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    flows: BTreeMap<FlowKey, (Flow, ErrorCode)>,
    groups: BTreeMap<Multipath, ErrorCode>,
    hops: BTreeMap<Adjacency, ErrorCode>,
    /// What was sent before the flow for which there was no room.
    before: Option<Vec<FlowChange>>,
    /// So many prefixes may have a flow.
    room: Option<usize>,
    /// Nothing helps but to leave it to the guest.
    all: Option<ErrorCode>,
    is_wary: bool,
}

impl Refused {
    /// The switch refuses this flow, of which there were those changes before in the same bundle. False if nothing can
    /// stand in for it that does not already: it is to be left out.
    pub(crate) fn flow(&mut self, flow: &Flow, before: &[FlowChange], why: ErrorCode) -> bool {
        self.is_wary = true;
        let next_hop = next_hop_of(&flow.matching).filter(|_| flow.table == NEXT_HOP);
        match (flow.table, next_hop) {
            (ROUTE, _) if why == ErrorCode::TABLE_FULL => self.before = Some(before.to_vec()),
            (ROUTE, _) if !table::is_punt(flow) => {
                self.flows.insert(FlowKey::from(flow), (flow.clone(), why));
            }
            (_, Some(adjacency)) => {
                self.hops.insert(adjacency, why);
            }
            _ if self.all.is_some() => return false,
            _ => self.all = Some(why),
        }
        self.bound(why);
        true
    }

    /// The switch refuses a group of these next hops.
    pub(crate) fn group(&mut self, hops: Multipath, why: ErrorCode) {
        self.is_wary = true;
        self.groups.insert(hops, why);
        self.bound(why);
    }

    fn bound(&mut self, why: ErrorCode) {
        if self.flows.len() + self.groups.len() + self.hops.len() > MAX_APART {
            self.all = Some(why);
        }
    }

    /// Everything may be tried again. True if anything was refused.
    pub(crate) fn forgive(&mut self) -> bool {
        let is_wary = self.is_wary;
        let was = std::mem::take(self);
        self.is_wary = is_wary;
        was.is_any()
    }

    /// Something is left out or replaced at present.
    pub(crate) fn is_any(&self) -> bool {
        let Self { flows, groups, hops, before, room, all, is_wary: _ } = self;
        let is_none = flows.is_empty() && groups.is_empty() && hops.is_empty();
        !is_none || before.is_some() || room.is_some() || all.is_some()
    }

    /// Something was refused in this life of the daemon.
    pub(crate) fn is_wary(&self) -> bool {
        self.is_wary
    }

    /// Why everything is left to the guest, if it is.
    pub(crate) fn all(&self) -> Option<ErrorCode> {
        self.all
    }

    /// How many prefixes may have a flow, where that is known.
    pub(crate) fn room(&self) -> Option<usize> {
        self.room
    }

    /// A dump tells which flows of prefixes there are. Each time that there is no room it becomes smaller.
    pub(crate) fn count_room<'a>(&mut self, held: impl Iterator<Item = &'a FlowKey>) {
        let Some(before) = self.before.take() else { return };
        let mut held: BTreeSet<FlowKey> = held.filter(|key| key.table == ROUTE).cloned().collect();
        for change in &before {
            match change {
                FlowChange::Upsert(flow) if flow.table == ROUTE => {
                    held.insert(FlowKey::from(flow));
                }
                FlowChange::Remove(key) => {
                    held.remove(key);
                }
                FlowChange::Upsert(_)
                | FlowChange::RemoveRouter(_)
                | FlowChange::ForgetLearned(_)
                | FlowChange::UpsertGroup(_)
                | FlowChange::RemoveGroup(_) => {}
            }
        }
        let least = self.room.unwrap_or(usize::MAX).min(held.len());
        self.room = Some(least.saturating_sub(1));
    }

    /// Why nothing can be forwarded by a verdict: its group or a next hop was refused.
    pub(crate) fn by(&self, verdict: &Verdict) -> Option<ErrorCode> {
        match verdict {
            Verdict::Via(hop) => self.hop(hop.adjacency),
            Verdict::OneOf(multipath, _) => {
                let hop = || multipath.hops.iter().find_map(|(adjacency, _)| self.hop(*adjacency));
                self.groups.get(multipath).copied().or_else(hop)
            }
            Verdict::Punt(_) | Verdict::Drop => None,
        }
    }

    /// Why there is no flow of a next hop.
    pub(crate) fn hop(&self, adjacency: Adjacency) -> Option<ErrorCode> {
        self.hops.get(&adjacency).copied()
    }

    /// A next hop is another one now. True if it was refused.
    pub(crate) fn forget_hop(&mut self, adjacency: Adjacency) -> bool {
        self.hops.remove(&adjacency).is_some()
    }

    /// Why there is not that flow of a prefix.
    pub(crate) fn why(&self, router: RouterId, prefix: Prefix, outcome: Outcome) -> Option<ErrorCode> {
        if self.flows.is_empty() {
            return None;
        }
        let flow = table::route(router, prefix, outcome);
        self.flows.get(&FlowKey::from(&flow)).filter(|(refused, _)| *refused == flow).map(|(_, why)| *why)
    }
}

impl Router {
    /// The switch refuses one of these changes, which were sent in one bundle that was not taken. False if that is no
    /// change that anything can stand in for. [`Router::reconcile`] is to come.
    pub(crate) fn refuse(&mut self, sent: &[FlowChange], index: usize, why: ErrorCode) -> bool {
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
        self.rebind();
        true
    }

    /// What the switch refused is to be tried again. True if there was any; then [`Router::reconcile`] is to come.
    pub(crate) fn forgive(&mut self) -> bool {
        let is_any = self.refused.forgive();
        if is_any {
            self.rebind();
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
}
