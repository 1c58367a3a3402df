//! The state as others may look at it, to answer operators.

use xenflow_flow_app::App;
use xenflow_proto::Name;

use super::Core;
use crate::db::Desired;
use crate::ports::SwitchPorts;

impl Core {
    /// This host.
    #[must_use]
    pub fn node(&self) -> &Name {
        &self.node
    }

    /// What decides the flows.
    #[must_use]
    pub fn app(&self) -> &App {
        &self.app
    }

    /// What the XenFlow database said last; none before it has spoken.
    #[must_use]
    pub fn desired(&self) -> Option<&Desired> {
        self.desired.as_ref()
    }

    /// The integration bridge's ports are known.
    #[must_use]
    pub fn has_ports(&self) -> bool {
        self.ports.is_some()
    }

    /// The integration bridge's ports; none before they are known.
    #[must_use]
    pub fn ports(&self) -> Option<&SwitchPorts> {
        self.ports.as_ref()
    }

    /// Bundles that the switch has not confirmed yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Guests that have a session.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.values().filter(|session| session.source.is_none()).count()
    }
}
