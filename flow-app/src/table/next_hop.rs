//! Next hop: the rewrite that forwarding is. An unresolved one has no flow: the miss hands the packet to the
//! guest, whose kernel resolves the neighbor (glean). So does a packet that does not fit.

use openflow::{Action, Field, Flow, Match, VLAN_PRESENT};
use xenflow_proto::{MacAddr, VlanId};

use crate::fib::Adjacency;
use crate::pipeline::{self, FLAGS, L2, NEXT_HOP, ROUTED, TOO_BIG, cookie, priority, punt};
use crate::punt::PuntClass;

pub(super) fn flows(flows: &mut Vec<Flow>) {
    let glean = Flow::new(NEXT_HOP, priority::FALLBACK, cookie::TOPOLOGY, Match::any());
    flows.push(glean.apply([punt(PuntClass::Transit)]).goto(L2));
    let too_big = Match::builder().reg_masked(FLAGS, TOO_BIG, TOO_BIG).build();
    let answer = Flow::new(NEXT_HOP, priority::EXCEPTION, cookie::TOPOLOGY, too_big);
    flows.push(answer.apply([punt(PuntClass::Exception)]).goto(L2));
}

/// Hands a packet of that Ethernet type on: TTL, both MAC addresses, the VLAN of the segment it leaves by.
pub(crate) fn next_hop(
    adjacency: Adjacency,
    eth_type: u16,
    source: MacAddr,
    destination: MacAddr,
    vlan: VlanId,
) -> Flow {
    let packets = Match::builder().vlan_tagged().eth_type(eth_type);
    let matching =
        pipeline::next_hop(adjacency).fold(packets, |matching, (field, value)| matching.exact(field, value));
    let matching = matching.build();
    let vid = VLAN_PRESENT | vlan.get();
    Flow::new(NEXT_HOP, priority::NORMAL, cookie::router(adjacency.vif.router), matching)
        .apply([
            Action::DecTtl,
            Action::set_field(Field::EthSrc, openflow::mac_bits(source.0)),
            Action::set_field(Field::EthDst, openflow::mac_bits(destination.0)),
            Action::set_field(Field::VlanVid, vid.into()),
            Action::set_masked(Field::Reg(FLAGS), ROUTED.into(), ROUTED.into()),
            // A routed packet may leave by the port it came in, which the switch refuses for in_port itself.
            Action::set_field(Field::InPortNxm, 0),
        ])
        .goto(L2)
}
