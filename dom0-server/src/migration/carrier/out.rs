//! Frames for the switch, and where it is to put each.

use std::collections::BTreeSet;

use bytes::Bytes;
use openflow::action::port;
use openflow::{Action, Field, Match, PacketOut};
use xenflow_flow_app::{PortNo, pipeline};
use xenflow_proto::VlanId;

use crate::migration::announce::{ANNOUNCEMENT, Telling};

fn packet(in_port: PortNo, actions: Vec<Action>, data: Bytes) -> PacketOut {
    PacketOut { metadata: Match::builder().in_port(in_port).build(), actions, data }
}

fn tagged(vlan: VlanId) -> Vec<Action> {
    let vid = openflow::VLAN_PRESENT | vlan.get();
    vec![Action::PushVlan(pipeline::ETH_VLAN), Action::set_field(Field::VlanVid, vid.into())]
}

/// By a vif's port, to its guest.
#[must_use]
pub fn given(port: PortNo, frame: Bytes) -> PacketOut {
    packet(port::CONTROLLER, vec![Action::output(port)], frame)
}

/// As if it came by this port.
#[must_use]
pub fn said(port: PortNo, frame: Bytes) -> PacketOut {
    packet(port, vec![Action::output(port::TABLE)], frame)
}

/// As a frame of that segment is switched that came by this port, if by any.
#[must_use]
pub fn switched(vlan: VlanId, came_by: Option<PortNo>, frame: Bytes) -> PacketOut {
    let mut actions = tagged(vlan);
    actions.extend(came_by.map(|port| pipeline::set_reg(pipeline::IN_PORT, port)));
    actions.push(Action::resubmit(pipeline::L2));
    packet(port::CONTROLLER, actions, frame)
}

/// What is told of a vif with this port: to everybody, or what is for other nodes' switches by the uplinks.
pub fn told(
    telling: Telling,
    port: Option<PortNo>,
    uplinks: &BTreeSet<PortNo>,
) -> impl Iterator<Item = PacketOut> {
    let Telling { vlan, frame } = telling;
    let frame = Bytes::from(frame);
    if !frame.starts_with(&ANNOUNCEMENT.0) {
        return vec![switched(vlan, port, frame)].into_iter();
    }
    let by = |uplink: &PortNo| {
        let mut actions = tagged(vlan);
        actions.extend([pipeline::set_reg(pipeline::OUT_PORT, *uplink), Action::resubmit(pipeline::EGRESS)]);
        packet(port::CONTROLLER, actions, frame.clone())
    };
    uplinks.iter().map(by).collect::<Vec<_>>().into_iter()
}
