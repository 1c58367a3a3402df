//! The control network, in the admission table: each control vif talks to the host's own port, in neighbor
//! discovery, ARP and one TCP port, with the addresses that follow from its MAC; to nobody else. The host's nudges
//! go to one UDP port of the guest, and nothing comes back.

use openflow::{Action, Flow, Match, MatchBuilder};
use xenflow_proto::MacAddr;
use xenflow_proto::control::{HOST_IPV4, HOST_IPV6, HOST_MAC, NUDGE_PORT, PORT, guest_ipv4, guest_ipv6};

use super::admission::refuse;
use crate::pipeline::{ADMISSION, ETH_ARP, ETH_IPV4, ETH_IPV6, cookie, priority};
use crate::refusal::Refusal;
use crate::topology::{PortNo, Topology};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    let Some(host) = topology.control_port else { return };
    let guests: Vec<(MacAddr, PortNo)> = topology.control_vifs().map(|(vif, port)| (vif.mac, port)).collect();
    for port in guests.iter().map(|(_, port)| *port).chain([host]) {
        let rest = Match::builder().in_port(port);
        flows.push(refuse(priority::FALLBACK, Refusal::Control, port, rest));
    }
    let mut send = |matching: MatchBuilder, ports: &[PortNo]| {
        let outputs: Vec<Action> = ports.iter().map(|&port| Action::output(port)).collect();
        flows.push(
            Flow::new(ADMISSION, priority::EXCEPTION, cookie::TOPOLOGY, matching.build()).apply(outputs),
        );
    };
    for &(mac, port) in &guests {
        let from = || Match::builder().in_port(port).untagged().eth_src(mac.0);
        let nd = |icmp_type| from().eth_type(ETH_IPV6).ip_proto(ICMPV6).icmpv6_type(icmp_type).icmpv6_code(0);
        let tcp = |eth_type| from().eth_dst(HOST_MAC.0).eth_type(eth_type).ip_proto(TCP).tcp_dst(PORT);
        send(from().eth_type(ETH_ARP).arp_sha(mac.0).arp_spa(guest_ipv4(mac)), &[host]);
        send(nd(NEIGHBOR_SOLICITATION).nd_target(HOST_IPV6).nd_sll(mac.0).ipv6_src(guest_ipv6(mac)), &[host]);
        send(nd(NEIGHBOR_ADVERTISEMENT).nd_target(guest_ipv6(mac)).ipv6_src(guest_ipv6(mac)), &[host]);
        send(tcp(ETH_IPV4).ipv4_src(guest_ipv4(mac)).ipv4_dst(HOST_IPV4), &[host]);
        send(tcp(ETH_IPV6).ipv6_src(guest_ipv6(mac)).ipv6_dst(HOST_IPV6), &[host]);

        let to = || Match::builder().in_port(host).untagged().eth_src(HOST_MAC.0).eth_dst(mac.0);
        let nd = |icmp_type| to().eth_type(ETH_IPV6).ip_proto(ICMPV6).icmpv6_type(icmp_type);
        let tcp = |eth_type| to().eth_type(eth_type).ip_proto(TCP).tcp_src(PORT);
        send(to().eth_type(ETH_ARP), &[port]);
        send(nd(NEIGHBOR_SOLICITATION), &[port]);
        send(nd(NEIGHBOR_ADVERTISEMENT), &[port]);
        send(tcp(ETH_IPV4), &[port]);
        send(tcp(ETH_IPV6), &[port]);
        let nudge = |eth_type| to().eth_type(eth_type).ip_proto(UDP).udp_dst(NUDGE_PORT);
        send(nudge(ETH_IPV4).ipv4_src(HOST_IPV4), &[port]);
        send(nudge(ETH_IPV6).ipv6_src(HOST_IPV6), &[port]);
    }
    if guests.is_empty() {
        return;
    }
    // The host asks for a guest it has forgotten: the question goes to all of them.
    let ports: Vec<PortNo> = guests.iter().map(|(_, port)| *port).collect();
    let from_host = || Match::builder().in_port(host).untagged().eth_src(HOST_MAC.0);
    send(from_host().eth_dst(MacAddr::BROADCAST.0).eth_type(ETH_ARP), &ports);
    let solicited_node = [0x33, 0x33, 0xff, 0, 0, 0];
    send(
        from_host()
            .eth_dst_masked(solicited_node, [0xff, 0xff, 0xff, 0, 0, 0])
            .eth_type(ETH_IPV6)
            .ip_proto(ICMPV6)
            .icmpv6_type(NEIGHBOR_SOLICITATION),
        &ports,
    );
}
