//! The flows of a router's prefixes: as many as it takes for every address to meet what it meets by all of them.
//!
//! Owns what each prefix's packets are to meet, and numbers that stand for it in [`Aggregate`]. It is a mirror of what was sent to
//! the switch.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::net::IpAddr;

use openflow::Flow;

use crate::aggregate::{Aggregate, Label};
use crate::flow::{FlowChange, FlowKey};
use crate::limit::Prefix;
use crate::table::{self, Outcome};
use crate::topology::RouterId;

/// See the module.
#[derive(Debug)]
pub(super) struct Entries {
    router: RouterId,
    aggregate: Aggregate,
    /// With how many prefixes have it.
    outcomes: BTreeMap<Label, (Outcome, usize)>,
    labels: BTreeMap<Outcome, Label>,
    /// Nothing has it since it was settled last.
    unused: Vec<Label>,
    free: Vec<Label>,
}

impl Entries {
    /// None; with a flow for each prefix, or fewer.
    pub(super) fn new(router: RouterId, is_aggregated: bool) -> Self {
        Self {
            router,
            aggregate: if is_aggregated { Aggregate::default() } else { Aggregate::plain() },
            outcomes: BTreeMap::new(),
            labels: BTreeMap::new(),
            unused: Vec::new(),
            free: Vec::new(),
        }
    }

    /// There may be fewer flows than prefixes.
    pub(super) fn is_aggregated(&self) -> bool {
        !self.aggregate.is_plain()
    }

    /// The packets of a prefix are to meet this; none: what those of a shorter one do.
    pub(super) fn set(&mut self, prefix: Prefix, outcome: Option<Outcome>) {
        let label = outcome.map(|outcome| self.take(outcome));
        if let Some(before) = self.aggregate.set(prefix, label)
            && let btree_map::Entry::Occupied(mut users) = self.outcomes.entry(before)
        {
            users.get_mut().1 -= 1;
            if users.get().1 == 0 {
                // Until the switch has been told, entries may have it.
                self.unused.push(before);
            }
        }
    }

    /// It is known what its packets are to meet.
    pub(super) fn has(&self, prefix: Prefix) -> bool {
        self.aggregate.has(prefix)
    }

    fn take(&mut self, outcome: Outcome) -> Label {
        let label = *self.labels.entry(outcome).or_insert_with(|| {
            let next = || Label::try_from(self.outcomes.len()).unwrap_or(Label::MAX);
            self.free.pop().unwrap_or_else(next)
        });
        self.outcomes.entry(label).or_insert((outcome, 0)).1 += 1;
        label
    }

    /// What changes since it was asked last, in an order in which it can be made.
    pub(super) fn settle(&mut self) -> Vec<FlowChange> {
        let changes = self.aggregate.settle();
        let flows = changes.into_iter().map(|(prefix, label)| {
            match label.and_then(|label| self.flow(prefix, label)) {
                Some(flow) => FlowChange::Upsert(flow),
                None => FlowChange::Remove(key(self.router, prefix)),
            }
        });
        let flows = flows.collect();
        for label in std::mem::take(&mut self.unused) {
            if let btree_map::Entry::Occupied(users) = self.outcomes.entry(label)
                && users.get().1 == 0
            {
                self.labels.remove(&users.remove().0);
                self.free.push(label);
            }
        }
        flows
    }

    /// What becomes of an entry's flow, as it was settled last.
    pub(super) fn change(&self, prefix: Prefix) -> FlowChange {
        match self.aggregate.entry(prefix).and_then(|label| self.flow(prefix, label)) {
            Some(flow) => FlowChange::Upsert(flow),
            None => FlowChange::Remove(key(self.router, prefix)),
        }
    }

    /// The flow that an address meets, as it was settled last.
    pub(super) fn met(&self, table: u32, addr: IpAddr) -> Option<Flow> {
        let (prefix, label) = self.aggregate.longest_match(table, addr)?;
        self.flow(prefix, label)
    }

    /// Flows behind that of a prefix, in an order of their own.
    pub(super) fn after(&self, after: Option<Prefix>) -> impl Iterator<Item = (Prefix, Flow)> {
        let entries = self.aggregate.entries_after(after);
        entries.filter_map(|(prefix, label)| Some((prefix, self.flow(prefix, label)?)))
    }

    fn flow(&self, prefix: Prefix, label: Label) -> Option<Flow> {
        let (outcome, _) = self.outcomes.get(&label)?;
        Some(table::route(self.router, prefix, *outcome))
    }
}

/// The identity of a prefix's flow, whether it is there or not.
fn key(router: RouterId, prefix: Prefix) -> FlowKey {
    // The instructions do not matter for the identity, so any will do.
    FlowKey::from(&table::route(router, prefix, Outcome::Drop))
}
