//! Flows by their identity, and the changes that are sent to a switch.

use openflow::{Flow, FlowMod, Group, GroupCommand, GroupMod, Match, Message, Meter, MeterCommand, MeterMod};
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
    /// The group is there, as given, whatever had its number.
    UpsertGroup(Group),
    /// No group has this number.
    RemoveGroup(u32),
}

impl FlowChange {
    /// Of the one flow that it is about.
    pub(crate) fn key(&self) -> Option<FlowKey> {
        match self {
            Self::Upsert(flow) => Some(flow.into()),
            Self::Remove(key) => Some(key.clone()),
            Self::RemoveRouter(_) | Self::ForgetLearned(_) | Self::UpsertGroup(_) | Self::RemoveGroup(_) => {
                None
            }
        }
    }
}

impl From<FlowChange> for Message {
    fn from(change: FlowChange) -> Self {
        let flow = match change {
            FlowChange::Upsert(flow) => FlowMod::add(flow),
            FlowChange::Remove(key) => FlowMod::delete_strict(key.table, key.priority, key.matching),
            FlowChange::RemoveRouter(id) => {
                FlowMod::delete_by_cookie(openflow::flow::ALL_TABLES, cookie::router(id), cookie::OWNER_MASK)
            }
            FlowChange::ForgetLearned(vlan) => {
                FlowMod::delete_by_cookie(LEARNED, cookie::learned(vlan), cookie::OWNER_MASK)
            }
            FlowChange::UpsertGroup(group) => {
                return Self::GroupMod(GroupMod::new(GroupCommand::AddOrModify, group));
            }
            FlowChange::RemoveGroup(id) => return Self::GroupMod(GroupMod::delete(id)),
        };
        Self::FlowMod(flow)
    }
}

/// A step of the switch's meters. They take no part in bundles: it goes before the flow changes of its batch, each
/// by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeterChange {
    /// There is none of that number yet.
    Add(Meter),
    /// There is one of that number.
    Modify(Meter),
    /// No meter has this number.
    Remove(u32),
}

impl From<MeterChange> for Message {
    fn from(change: MeterChange) -> Self {
        Self::MeterMod(match change {
            MeterChange::Add(meter) => MeterMod::new(MeterCommand::Add, meter),
            MeterChange::Modify(meter) => MeterMod::new(MeterCommand::Modify, meter),
            MeterChange::Remove(id) => MeterMod::delete(id),
        })
    }
}
