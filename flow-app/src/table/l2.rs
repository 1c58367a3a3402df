//! L2 and flood: switching within a segment. A routed packet for a vif of this host enters that router; a known
//! MAC has one port; all else goes to every port of the segment. A guest gets its frames by class.
//!
//! What another node has is known to be behind the uplink, if there is one uplink; of several the one is learned. That
//! holds for a vif that is plugged in here too: its port stays open, but its frames go where it counts. Of a router that moves
//! its stance says where that is ([`super::outlet`]).

use std::collections::BTreeSet;

use openflow::{Action, Field, Flow, Match};
use xenflow_proto::{MacAddr, VlanId};

use super::GROUP;
use super::outlet::{is_here, is_open, outlet};
use crate::pipeline::{
    CLASSIFY, EGRESS, ETH_IP, FLAGS, FLOOD, FROM_UPLINK, IN_PORT, L2, LEARNED, NEXT_HOP_ID, NEXT_HOP_IPV6,
    OUT_PORT, REHEARSED, ROUTED, ROUTER, ROUTER_ID, TABLE_ID, cookie, count_lookup, kept_clone, priority,
    punt, set_reg, virtual_port,
};
use crate::punt::PuntClass;
use crate::stance::Gate;
use crate::topology::{PortNo, Topology};

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    let mut here: BTreeSet<(VlanId, MacAddr)> = BTreeSet::new();
    for (id, vif, vlan) in topology.segment_vifs() {
        let to = || Match::builder().vlan(vlan.get()).eth_dst(vif.mac.0);
        let deliver =
            |flow: Flow, port| flow.apply([set_reg(OUT_PORT, port), Action::resubmit(CLASSIFY)]).goto(EGRESS);
        if is_open(topology, id, vif, vlan) {
            for eth_type in ETH_IP {
                let routed = to().eth_type(eth_type).reg_masked(FLAGS, ROUTED, ROUTED).build();
                let flow = Flow::new(L2, priority::EXCEPTION, cookie::TOPOLOGY, routed);
                flows.push(flow.apply(enter_router()));
            }
        }
        if is_here(topology, id, vif, vlan) {
            let flow = Flow::new(L2, priority::NORMAL, cookie::TOPOLOGY, to().build());
            flows.push(match outlet(topology, id, vif) {
                Some(port) => deliver(flow, port),
                None => flow,
            });
            here.insert((vlan, vif.mac));
        }
        if topology.stance(id.router).is_some_and(|stance| stance.gate == Gate::Late) {
            // What came by an uplink and is sent back makes the switches between believe that its sender is here.
            let late = to().reg_masked(FLAGS, FROM_UPLINK, FROM_UPLINK | ROUTED).build();
            let flow = Flow::new(L2, priority::EXCEPTION, cookie::TOPOLOGY, late);
            flows.push(deliver(flow, virtual_port(id)));
        }
    }
    let mut known = |vlan: VlanId, mac: MacAddr, port: PortNo| {
        let matching = Match::builder().vlan(vlan.get()).eth_dst(mac.0).build();
        let flow = Flow::new(L2, priority::NORMAL, cookie::TOPOLOGY, matching);
        flows.push(flow.apply([set_reg(OUT_PORT, port)]).goto(EGRESS));
    };
    if let (Some(&uplink), 1) = (topology.uplinks.first(), topology.uplinks.len()) {
        let is_there =
            |place: &&(VlanId, MacAddr)| topology.segments.contains(&place.0) && !here.contains(*place);
        let there = topology.elsewhere.iter().filter(is_there);
        there.for_each(|&(vlan, mac)| known(vlan, mac, uplink));
    }
    for ((vlan, mac), port) in topology.placed_hosts() {
        known(vlan, mac, port);
    }
    let rehearsed = || Match::builder().reg_masked(FLAGS, REHEARSED, REHEARSED);
    // Whoever sends a frame on with another tag looks at all of the tag that it came with.
    let no_pcp = rehearsed().vlan_tagged().vlan_pcp(0).build();
    flows.push(Flow::new(L2, priority::REHEARSED + 1, cookie::TOPOLOGY, no_pcp));
    flows.push(Flow::new(L2, priority::REHEARSED, cookie::TOPOLOGY, rehearsed().build()));
    let ask = [set_reg(OUT_PORT, 0), Action::resubmit(LEARNED)];
    flows.push(Flow::new(L2, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).apply(ask).goto(FLOOD));

    for &vlan in &topology.segments {
        let mut ports = topology.members(vlan);
        let mut vifs: BTreeSet<PortNo> = BTreeSet::new();
        for (id, vif, _) in topology.segment_vifs().filter(|(.., segment)| *segment == vlan) {
            let outlet = outlet(topology, id, vif);
            // In the place of its port.
            if let Some(port) = vif.port {
                ports.remove(&port);
            }
            ports.extend(outlet);
            vifs.extend(outlet);
        }
        // A guest or a network over its limit costs the others nothing.
        let copy = |port: PortNo| {
            let actions = [set_reg(OUT_PORT, port), Action::resubmit(EGRESS)];
            if vifs.contains(&port) || topology.is_limited(vlan, port) {
                kept_clone(actions)
            } else {
                Action::Clone(Box::new(actions))
            }
        };
        let copies: Vec<Action> = ports.into_iter().map(copy).collect();
        let unknown = || Match::builder().vlan(vlan.get()).reg(OUT_PORT, 0);
        let mut flood = |matching: Match, class: Option<Action>| {
            let actions = class.into_iter().chain(copies.iter().cloned()).collect::<Vec<_>>();
            flows.push(Flow::new(FLOOD, priority::NORMAL, cookie::TOPOLOGY, matching).apply(actions));
        };
        if vifs.is_empty() {
            flood(unknown().build(), None);
        } else {
            flood(unknown().eth_dst_masked(GROUP, GROUP).build(), Some(Action::resubmit(CLASSIFY)));
            // Nobody's MAC address is no guest's, whatever is in the frame.
            let class = punt(PuntClass::Host);
            flood(unknown().eth_dst_masked([0; 6], GROUP).build(), Some(class));
        }
    }
    flows.push(Flow::new(FLOOD, priority::FALLBACK, cookie::TOPOLOGY, Match::any()).goto(EGRESS));
}

/// The next router of this host: as if the packet had just come in, but for the count of routers passed.
fn enter_router() -> Vec<Action> {
    let [shift, count] = count_lookup();
    vec![
        shift,
        count,
        set_reg(FLAGS, 0),
        set_reg(IN_PORT, 0),
        set_reg(OUT_PORT, 0),
        set_reg(ROUTER_ID, 0),
        set_reg(TABLE_ID, 0),
        Action::set_field(Field::Xreg(NEXT_HOP_ID), 0),
        Action::set_field(Field::Xxreg(NEXT_HOP_IPV6), 0),
        Action::resubmit(ROUTER),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Packet, Switch, Tag};
    use crate::topology::{Attachment, RouterId, Vif, VifId};

    const UPLINK: PortNo = 1;
    const OTHER_UPLINK: PortNo = 2;
    const HOST: PortNo = 10;
    const OWNER: PortNo = 11;
    const VIF: PortNo = 100;
    const HOST_MAC: [u8; 6] = [6, 0, 0, 0, 0, 1];
    const OWN_MAC: [u8; 6] = [6, 0, 0, 0, 0, 2];
    const VIF_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    /// A free access port, one with an address of its own, a vif, and what another node has.
    fn topology(uplinks: &[PortNo], elsewhere: &[[u8; 6]]) -> Topology {
        let vlan = VlanId::MIN;
        let vif = Vif { mac: MacAddr(VIF_MAC), attachment: Attachment::Segment(vlan), port: Some(VIF) };
        Topology {
            segments: [vlan].into(),
            uplinks: uplinks.iter().copied().collect(),
            access: [(HOST, vlan), (OWNER, vlan)].into(),
            access_macs: [(OWNER, [MacAddr(OWN_MAC)].into())].into(),
            elsewhere: elsewhere.iter().map(|mac| (vlan, MacAddr(*mac))).collect(),
            vifs: [(VifId { router: RouterId(1), number: 1 }, vif)].into(),
            ..Topology::default()
        }
    }

    /// The ports that a frame leaves by; with `learn`, after this port has sent one from the same destination.
    fn ports(
        topology: &Topology,
        port: PortNo,
        src: [u8; 6],
        dst: [u8; 6],
        learn: Option<PortNo>,
    ) -> Vec<PortNo> {
        let mut switch: Switch = super::super::topology_flows(topology).into_iter().collect();
        let frame = |port: PortNo, src, dst| {
            let packet = Packet::default()
                .with(Field::EthSrc, openflow::mac_bits(src))
                .with(Field::EthDst, openflow::mac_bits(dst));
            let is_trunk = topology.uplinks.contains(&port);
            if is_trunk { packet.tagged(Tag::new(VlanId::MIN.get())) } else { packet }
        };
        if let Some(port) = learn {
            for flow in switch.send(port, &frame(port, dst, [0xff; 6])).unwrap().learned {
                switch.insert(flow);
            }
        }
        let mut ports: Vec<PortNo> = switch
            .send(port, &frame(port, src, dst))
            .unwrap()
            .sent
            .into_iter()
            .map(|(port, _)| port)
            .collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn what_another_node_has_is_behind_the_uplink() {
        let plain = topology(&[UPLINK], &[]);
        assert_eq!(ports(&plain, HOST, HOST_MAC, FAR_MAC, None), [UPLINK, OWNER, VIF], "nobody knows");
        assert_eq!(ports(&plain, HOST, HOST_MAC, VIF_MAC, None), [VIF]);
        let located = topology(&[UPLINK], &[FAR_MAC, VIF_MAC]);
        assert_eq!(ports(&located, HOST, HOST_MAC, FAR_MAC, None), [UPLINK]);
        assert_eq!(
            ports(&located, HOST, HOST_MAC, VIF_MAC, None),
            [UPLINK],
            "plugged in here, but it counts there"
        );
        assert_eq!(ports(&located, VIF, VIF_MAC, FAR_MAC, None), [UPLINK], "its own port stays open");
        assert_eq!(ports(&located, UPLINK, HOST_MAC, FAR_MAC, None), [0; 0], "no way between trunks");
        // With several the one is learned, and with none there is no way.
        let two = topology(&[UPLINK, OTHER_UPLINK], &[FAR_MAC, VIF_MAC]);
        assert_eq!(ports(&two, HOST, HOST_MAC, FAR_MAC, Some(OTHER_UPLINK)), [OTHER_UPLINK]);
        assert_eq!(ports(&two, HOST, HOST_MAC, VIF_MAC, Some(UPLINK)), [UPLINK]);
    }

    #[test]
    fn nobody_here_speaks_for_what_another_node_has() {
        let located = topology(&[UPLINK], &[FAR_MAC]);
        assert_eq!(ports(&located, HOST, FAR_MAC, OWN_MAC, None), [0; 0]);
        assert_eq!(ports(&located, VIF, FAR_MAC, OWN_MAC, None), [0; 0]);
        assert_eq!(ports(&located, UPLINK, FAR_MAC, OWN_MAC, None), [OWNER]);
        // An end host that is on its way here.
        let moving = topology(&[UPLINK], &[OWN_MAC]);
        assert_eq!(ports(&moving, OWNER, OWN_MAC, VIF_MAC, None), [VIF]);
        assert_eq!(ports(&moving, HOST, OWN_MAC, VIF_MAC, None), [0; 0]);
        assert_eq!(ports(&moving, HOST, HOST_MAC, OWN_MAC, None), [UPLINK]);
    }

    #[test]
    fn the_place_of_an_address_beats_what_was_learned() {
        let located = topology(&[UPLINK], &[FAR_MAC]);
        assert_eq!(ports(&located, VIF, VIF_MAC, HOST_MAC, Some(UPLINK)), [UPLINK], "learned");
        assert_eq!(
            ports(&located, VIF, VIF_MAC, OWN_MAC, Some(UPLINK)),
            [OWNER],
            "somebody out there claims it"
        );
    }
}
