//! Flows by their identity, and the changes that are sent to a switch.

use openflow::{Flow, FlowMod, Match};
use xenflow_proto::VlanId;

use crate::pipeline::{LEARNED, cookie};
use crate::topology::RouterId;

/// What OpenFlow tells flows of a switch apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Table.
    pub table: u8,
    /// Priority.
    pub priority: u16,
    /// Match.
    pub matching: Match,
}

impl From<&Flow> for FlowKey {
    fn from(flow: &Flow) -> Self {
        Self { table: flow.table, priority: flow.priority, matching: flow.matching.clone() }
    }
}

/// One step of the switch towards what is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowChange {
    /// The flow is there, as given, whatever was under its key.
    Upsert(Flow),
    /// Nothing is under the key.
    Remove(FlowKey),
    /// Nothing of this router is left.
    RemoveRouter(RouterId),
    /// Nothing learned on this segment is left.
    ForgetLearned(VlanId),
}

impl From<FlowChange> for FlowMod {
    fn from(change: FlowChange) -> Self {
        match change {
            FlowChange::Upsert(flow) => Self::add(flow),
            FlowChange::Remove(key) => Self::delete_strict(key.table, key.priority, key.matching),
            FlowChange::RemoveRouter(id) => {
                Self::delete_by_cookie(openflow::flow::ALL_TABLES, cookie::router(id), cookie::OWNER_MASK)
            }
            FlowChange::ForgetLearned(vlan) => {
                Self::delete_by_cookie(LEARNED, cookie::learned(vlan), cookie::OWNER_MASK)
            }
        }
    }
}
