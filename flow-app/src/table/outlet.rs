//! Outlets: by which number of [`crate::pipeline::OUT_PORT`] a vif's guest gets what is for it, as its router stands. It is the
//! vif's port, or the virtual one, behind which the daemon is.

use xenflow_proto::VlanId;

use crate::pipeline::virtual_port;
use crate::stance::{Gate, Punts, Stance};
use crate::topology::{PortNo, Topology, Vif, VifId};

/// Whatever the guest gets; none: nobody here takes it in.
pub(super) fn outlet(topology: &Topology, id: VifId, vif: &Vif) -> Option<PortNo> {
    match topology.stance(id.router).map(|stance| stance.punts) {
        None | Some(Punts::Guest | Punts::Elsewhere) => vif.port,
        // A copy is kept, whether there is anything to copy from or not.
        Some(Punts::Copied) => Some(vif.port.unwrap_or(virtual_port(id))),
        Some(Punts::Relayed | Punts::Kept | Punts::Ordered) => Some(virtual_port(id)),
    }
}

/// Nobody has said otherwise: it is here if its port is, and no other node has its address.
fn stands_as_its_port(topology: &Topology, vif: &Vif, vlan: VlanId) -> bool {
    vif.port.is_some() && !topology.is_elsewhere(vlan, vif.mac)
}

/// The router forwards here for everybody, other routers of the host among them.
pub(super) fn is_open(topology: &Topology, id: VifId, vif: &Vif, vlan: VlanId) -> bool {
    match topology.stance(id.router) {
        None => stands_as_its_port(topology, vif, vlan),
        Some(stance) => stance.gate == Gate::Open,
    }
}

/// Frames to its address go to its outlet, and nowhere without one; others go to where the address is.
pub(super) fn is_here(topology: &Topology, id: VifId, vif: &Vif, vlan: VlanId) -> bool {
    match topology.stance(id.router) {
        None | Some(Stance { gate: Gate::Open, punts: Punts::Elsewhere, .. }) => {
            stands_as_its_port(topology, vif, vlan)
        }
        Some(stance) => stance.gate == Gate::Open,
    }
}
