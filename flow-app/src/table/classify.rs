//! Classify: why a guest gets a frame that the tables of its router have said nothing about, so that no kind of
//! frames starves another (RFC 6192). Looked up for frames that go to a vif's port and for no others: what it looks
//! at makes no flow of forwarded packets narrower.
//!
//! Without a gate its router forwards all IP itself, and what comes to it is as fast as its vif: how much its guest
//! bears is not the host's business, and whose packets they are is not known here.

use openflow::{Field, Flow, Match, MatchBuilder};

use super::GROUP;
use crate::pipeline::{
    self, CLASSIFY, ETH_ARP, ETH_IP, ETH_IPV4, ETH_IPV6, ETH_LLC, FLAGS, PUNT_CLASS_BIT, ROUTER_ID, cookie,
    priority, punt,
};
use crate::punt::PuntClass;

const ICMPV6: u8 = 58;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// IGMP, NHRP, EIGRP, OSPF, PIM, VRRP.
const ROUTING_PROTOCOLS: [u8; 6] = [2, 54, 88, 89, 103, 112];
/// BGP, MSDP, LDP; of either end.
const ROUTING_TCP: [u16; 3] = [179, 639, 646];
/// RIP, RIPng, LDP, BFD (single hop, echo, multihop, of link aggregations), Babel.
const ROUTING_UDP: [u16; 8] = [520, 521, 646, 3784, 3785, 4784, 6784, 6696];
/// Multicast listener discovery (RFC 2710, RFC 3810).
const LISTENER_DISCOVERY: [u8; 4] = [130, 131, 132, 143];
/// Neighbor discovery (RFC 4861), redirects included.
const NEIGHBOR_DISCOVERY: [u8; 5] = [133, 134, 135, 136, 137];
/// Groups of IS-IS: all level 1 systems, all level 2 systems, all intermediate systems.
const ISIS: [[u8; 6]; 3] =
    [[0x01, 0x80, 0xc2, 0, 0, 0x14], [0x01, 0x80, 0xc2, 0, 0, 0x15], [0x09, 0, 0x2b, 0, 0, 5]];

pub(super) fn flows(flows: &mut Vec<Flow>) {
    let new =
        |priority, matching: MatchBuilder| Flow::new(CLASSIFY, priority, cookie::TOPOLOGY, matching.build());
    // The tables before know better.
    for bit in 0..3 {
        let set = 1 << (PUNT_CLASS_BIT + bit);
        flows.push(new(priority::FIRST, Match::builder().reg_masked(FLAGS, set, set)));
    }
    for eth_type in ETH_IP {
        let closed = Match::builder().eth_type(eth_type).eth_dst_masked([0; 6], GROUP).reg(ROUTER_ID, 0);
        flows.push(new(priority::EXCEPTION, closed).apply([pipeline::unpoliced()]));
    }

    let mut is = |class, matching| flows.push(new(priority::NORMAL, matching).apply([punt(class)]));
    is(PuntClass::Resolution, Match::builder().eth_type(ETH_ARP));
    let icmpv6 = |icmp_type| Match::builder().eth_type(ETH_IPV6).ip_proto(ICMPV6).icmpv6_type(icmp_type);
    NEIGHBOR_DISCOVERY.into_iter().for_each(|of| is(PuntClass::Resolution, icmpv6(of)));
    LISTENER_DISCOVERY.into_iter().for_each(|of| is(PuntClass::Routing, icmpv6(of)));
    for eth_type in [ETH_IPV4, ETH_IPV6] {
        let ip = |proto| Match::builder().eth_type(eth_type).ip_proto(proto);
        ROUTING_PROTOCOLS.into_iter().for_each(|proto| is(PuntClass::Routing, ip(proto)));
        for (proto, field, ports) in [
            (TCP, Field::TcpDst, &ROUTING_TCP[..]),
            (TCP, Field::TcpSrc, &ROUTING_TCP),
            (UDP, Field::UdpDst, &ROUTING_UDP),
        ] {
            ports.iter().for_each(|port| is(PuntClass::Routing, ip(proto).exact(field, (*port).into())));
        }
    }
    for group in ISIS {
        is(PuntClass::Routing, Match::builder().eth_dst(group).eth_type(ETH_LLC));
    }
    flows.push(new(priority::FALLBACK, Match::builder()).apply([punt(PuntClass::Host)]));
}
