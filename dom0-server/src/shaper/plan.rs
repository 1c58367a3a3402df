//! What the core wants shaped.

use std::collections::BTreeMap;

use xenflow_proto::Name;

use crate::db::contract::{Contract, Rate};

/// What a queue is for: a network, or a class of its traffic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueOf {
    /// The network.
    pub network: Name,
    /// The class; none: what is in no class.
    pub class: Option<Name>,
}

/// The same queues are on each uplink.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// By name of the OVS port: what the operator says that the link carries.
    pub uplinks: BTreeMap<String, Option<Rate>>,
    /// By number, as `set_queue` has it.
    pub queues: BTreeMap<u32, QueueOf>,
    /// Contracts of all networks.
    pub networks: BTreeMap<Name, Contract>,
    /// Contracts of their classes.
    pub classes: BTreeMap<(Name, Name), Contract>,
}

impl Plan {
    /// Somebody was promised something, or is bounded.
    #[must_use]
    pub fn is_asked_for(&self) -> bool {
        let mut contracts = self.networks.values().chain(self.classes.values());
        contracts.any(|contract| contract.min().is_some() || contract.max().is_some())
    }
}
