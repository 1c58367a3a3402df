//! Admission, the VLAN tagger inward: each port's packets get the tag of its segment, or go no further and are counted
//! by port and reason. What a mute router's guest sends goes to the controller, and no further.

use std::collections::{BTreeMap, BTreeSet};

use openflow::{Action, Field, Flow, Learn, LearnSpec, LearnSrc, Match, MatchBuilder};
use xenflow_proto::{MacAddr, VlanId};

use super::GROUP;
use crate::heard::{Heard, HeardKind};
use crate::pipeline::{
    self, ADMISSION, FLAGS, FROM_UPLINK, IN_PORT, OUT_PORT, ROUTER, cookie, priority, set_reg,
};
use crate::punt::{PuntClass, meter_id};
use crate::refusal::Refusal;
use crate::topology::{PortNo, Topology};

/// The address of the special ARP reply that announces a router's move.
const ANNOUNCEMENT: MacAddr = MacAddr([0xaa; 6]);

pub(super) fn flows(topology: &Topology, flows: &mut Vec<Flow>) {
    let mut macs: BTreeMap<VlanId, BTreeSet<MacAddr>> = BTreeMap::new();
    for vif in topology.vifs.values() {
        if let Some(vlan) = vif.vlan() {
            macs.entry(vlan).or_default().insert(vif.mac);
        }
    }
    for &(vlan, mac) in &topology.elsewhere {
        macs.entry(vlan).or_default().insert(mac);
    }
    for (id, vif, vlan, port) in topology.bound_vifs() {
        let matching = Match::builder().in_port(port).untagged().eth_src(vif.mac.0).build();
        flows.push(if topology.stance(id.router).is_some_and(|stance| stance.mute) {
            // As fast as what its guest is to forward comes to it.
            let meter = Action::Meter(meter_id(id.router, PuntClass::Transit));
            let heard = Heard { kind: HeardKind::Mute, vif: id };
            Flow::new(ADMISSION, priority::NORMAL, cookie::TOPOLOGY, matching)
                .apply([meter, heard.tell(None)])
        } else {
            admit(matching, tag(vlan), port, 0, None)
        });
        flows.push(refuse(priority::FALLBACK, Refusal::ForeignSource, port, of(port).untagged()));
        no_tags(port, flows);
        never(port, Refusal::ForgedAnnouncement, flows);
    }
    for (&port, &vlan) in &topology.access {
        let allowed = topology.access_macs.get(&port);
        match allowed {
            None => flows.push(admit(of(port).untagged().build(), tag(vlan), port, 0, Some(vlan))),
            Some(allowed) => {
                let allow = |mac: &MacAddr| of(port).untagged().eth_src(mac.0).build();
                flows.extend(allowed.iter().map(|mac| admit(allow(mac), tag(vlan), port, 0, Some(vlan))));
                flows.push(refuse(priority::FALLBACK, Refusal::ForeignSource, port, of(port).untagged()));
            }
        }
        // Its own address may be on its way here, as that of a vif's port.
        let is_own = |mac: &MacAddr| allowed.is_some_and(|allowed| allowed.contains(mac));
        for mac in macs.get(&vlan).into_iter().flatten().filter(|mac| !is_own(mac)) {
            let spoofed = of(port).untagged().eth_src(mac.0);
            flows.push(refuse(priority::REFUSE, Refusal::ForeignSource, port, spoofed));
        }
        no_tags(port, flows);
        never(port, Refusal::ForgedAnnouncement, flows);
    }
    for &port in &topology.uplinks {
        for &vlan in &topology.segments {
            flows.push(admit(of(port).vlan(vlan.get()).build(), Vec::new(), port, FROM_UPLINK, Some(vlan)));
        }
        flows.push(refuse(priority::FALLBACK, Refusal::NoTag, port, of(port).untagged()));
        no_tags(port, flows);
        never(port, Refusal::Announcement, flows);
    }
    // On the control network too.
    for (reason, matching) in [
        (Refusal::GroupSource, Match::builder().eth_src_masked(GROUP, GROUP)),
        (Refusal::ForgedAnnouncement, Match::builder().eth_dst(ANNOUNCEMENT.0)),
    ] {
        flows.push(refuse(priority::REFUSE_ANYWHERE, reason, 0, matching));
    }
    flows.push(refuse(priority::LAST, Refusal::UnknownPort, 0, Match::builder()));
}

fn of(port: PortNo) -> MatchBuilder {
    Match::builder().in_port(port)
}

pub(super) fn refuse(priority: u16, reason: Refusal, port: PortNo, matching: MatchBuilder) -> Flow {
    Flow::new(ADMISSION, priority, cookie::refusal(reason, port), matching.build())
}

/// What no port lets in, whatever else is in the frame.
fn never(port: PortNo, announcement: Refusal, flows: &mut Vec<Flow>) {
    let group = of(port).eth_src_masked(GROUP, GROUP);
    flows.push(refuse(priority::REFUSE, Refusal::GroupSource, port, group));
    flows.push(refuse(priority::REFUSE, announcement, port, of(port).eth_dst(ANNOUNCEMENT.0)));
    for inner in [pipeline::ETH_VLAN, pipeline::ETH_SVLAN] {
        let double = of(port).vlan_tagged().eth_type(inner);
        flows.push(refuse(priority::REFUSE, Refusal::DoubleTag, port, double));
    }
}

/// What is left of the frames with a tag.
fn no_tags(port: PortNo, flows: &mut Vec<Flow>) {
    flows.push(refuse(priority::FIRST_FALLBACK, Refusal::PriorityTag, port, of(port).vlan(0)));
    flows.push(refuse(priority::FALLBACK, Refusal::ForeignTag, port, of(port).vlan_tagged()));
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
        hard_timeout: pipeline::LEARNED_S,
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
