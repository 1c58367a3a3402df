//! The flows of each table. Every function here is pure: state in, flows out.

mod admission;
mod control;
mod egress;
mod l2;
mod local;
mod next_hop;
mod route;
mod router;

use openflow::Flow;

use crate::topology::Topology;

pub(crate) use local::{local_destination, local_source};
pub(crate) use next_hop::next_hop;
pub(crate) use route::route;
pub(crate) use router::gate;

/// The flows that depend on no guest.
pub(crate) fn topology_flows(topology: &Topology) -> Vec<Flow> {
    let mut flows = Vec::new();
    admission::flows(topology, &mut flows);
    control::flows(topology, &mut flows);
    router::flows(&mut flows);
    local::flows(&mut flows);
    route::flows(&mut flows);
    next_hop::flows(&mut flows);
    l2::flows(topology, &mut flows);
    egress::flows(topology, &mut flows);
    flows
}
