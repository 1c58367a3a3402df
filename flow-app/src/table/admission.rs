//! Admission, the VLAN tagger inward: each port's packets get the tag of its segment, or go no further.

use std::collections::{BTreeMap, BTreeSet};

use openflow::{Action, Field, Flow, Learn, LearnSpec, LearnSrc, Match};
use xenflow_proto::{MacAddr, VlanId};

use super::GROUP;
use crate::pipeline::{
    self, ADMISSION, FLAGS, FROM_UPLINK, IN_PORT, OUT_PORT, ROUTER, cookie, priority, set_reg,
};
use crate::topology::{PortNo, Topology};

/// The address of the special ARP reply that announces a router's move.
const ANNOUNCEMENT: MacAddr = MacAddr([0xaa; 6]);

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    let refuse = |matching| Flow::new(ADMISSION, priority::REFUSE, cookie::TOPOLOGY, matching);
    flows.push(refuse(Match::builder().eth_src_masked(GROUP, GROUP).build()));
    flows.push(refuse(Match::builder().eth_dst(ANNOUNCEMENT.0).build()));
    // The inner tag of a packet with two: it would show up behind an access port.
    for inner in [pipeline::ETH_VLAN, pipeline::ETH_SVLAN] {
        flows.push(refuse(Match::builder().vlan_tagged().eth_type(inner).build()));
    }

    let mut macs: BTreeMap<VlanId, BTreeSet<MacAddr>> = BTreeMap::new();
    for vif in topology.vifs.values() {
        if let Some(vlan) = vif.vlan() {
            macs.entry(vlan).or_default().insert(vif.mac);
        }
    }
    for (_, vif, vlan, port) in topology.bound_vifs() {
        let matching = Match::builder().in_port(port).untagged().eth_src(vif.mac.0);
        flows.push(admit(matching.build(), tag(vlan), port, 0, None));
    }
    for (&port, &vlan) in &topology.access {
        let untagged = || Match::builder().in_port(port).untagged();
        match topology.access_macs.get(&port) {
            None => flows.push(admit(untagged().build(), tag(vlan), port, 0, Some(vlan))),
            Some(allowed) => flows.extend(
                allowed
                    .iter()
                    .map(|mac| admit(untagged().eth_src(mac.0).build(), tag(vlan), port, 0, Some(vlan))),
            ),
        }
        for mac in macs.get(&vlan).into_iter().flatten() {
            flows.push(refuse(Match::builder().in_port(port).eth_src(mac.0).build()));
        }
    }
    for &port in &topology.uplinks {
        for &vlan in &topology.segments {
            let matching = Match::builder().in_port(port).vlan(vlan.get());
            flows.push(admit(matching.build(), Vec::new(), port, FROM_UPLINK, Some(vlan)));
        }
    }
}

fn tag(vlan: VlanId) -> Vec<Action> {
    let vid = openflow::VLAN_PRESENT | vlan.get();
    vec![Action::PushVlan(pipeline::ETH_VLAN), Action::set_field(Field::VlanVid, vid.into())]
}

fn admit(matching: Match, mut actions: Vec<Action>, port: PortNo, flags: u32, learn: Option<VlanId>) -> Flow {
    actions.push(set_reg(IN_PORT, port));
    if flags != 0 {
        actions.push(set_reg(FLAGS, flags));
    }
    if let Some(vlan) = learn {
        actions.push(Action::Learn(Box::new(learn_source(vlan))));
    }
    Flow::new(ADMISSION, priority::NORMAL, cookie::TOPOLOGY, matching).apply(actions).goto(ROUTER)
}

/// Packets of the segment to this packet's source leave by the port it came in.
fn learn_source(vlan: VlanId) -> Learn {
    let vid = Field::VlanTci.slice(0, 12);
    Learn {
        table: pipeline::LEARNED,
        priority: priority::LEARNED,
        cookie: cookie::learned(vlan),
        idle_timeout: pipeline::LEARNED_IDLE_S,
        limit: pipeline::LEARNED_LIMIT,
        specs: vec![
            LearnSpec::Match(LearnSrc::Field(vid), (Field::VlanTci, 0)),
            LearnSpec::Match(LearnSrc::Field(Field::EthSrc.whole()), (Field::EthDst, 0)),
            LearnSpec::Load(LearnSrc::Field(Field::Reg(IN_PORT).whole()), (Field::Reg(OUT_PORT), 0)),
        ],
        ..Learn::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Packet, Switch};

    /// Where a broadcast from this source goes that comes in by the access port 1, with another at 2.
    fn ports(allowed: Option<[u8; 6]>, source: [u8; 6]) -> Vec<PortNo> {
        let vlan = VlanId::MIN;
        let topology = Topology {
            segments: [vlan].into(),
            access: [(1, vlan), (2, vlan)].into(),
            access_macs: allowed.into_iter().map(|mac| (1, [MacAddr(mac)].into())).collect(),
            ..Topology::default()
        };
        let switch: Switch = super::super::topology_flows(&topology).into_iter().collect();
        let packet = Packet::default()
            .with(Field::EthSrc, openflow::mac_bits(source))
            .with(Field::EthDst, openflow::mac_bits([0xff; 6]));
        switch.send(1, &packet).unwrap().sent.into_iter().map(|(port, _)| port).collect()
    }

    #[test]
    fn an_access_port_uses_its_own_addresses() {
        let (own, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        assert_eq!(ports(None, other), [2]);
        assert_eq!(ports(Some(own), own), [2]);
        assert_eq!(ports(Some(own), other), [0; 0]);
        assert_eq!(ports(None, [3, 0, 0, 0, 0, 1]), [0; 0], "a group address is no source");
    }
}
