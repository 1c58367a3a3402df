//! Against a real Open vSwitch: refused frames are counted by port and reason, and learning stays within its bounds.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "nobody else sees a test's modules")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]
#![allow(clippy::disallowed_methods, reason = "a test that talks to a switch has sockets and a clock")]

#[path = "../../crates/openflow/tests/common/mod.rs"]
mod common;
mod live;

use std::collections::BTreeMap;

use openflow::FlowFilter;
use xenflow_flow_app::pipeline::{LEARNED_LIMIT, cookie};
use xenflow_flow_app::{Attachment, PortNo, Refusal, RouterId, Topology, Vif, VifId};
use xenflow_proto::{MacAddr, VlanId};

use live::{Frame, Live};

const UPLINK: PortNo = 1;
/// Of segment 100, of segment 100 with one MAC address allowed, of segment 200.
const FREE: PortNo = 10;
const BOUND: PortNo = 11;
const ELSEWHERE: PortNo = 12;
const VIF: PortNo = 100;
const VIF_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
const BOUND_MAC: MacAddr = MacAddr([6, 0, 0, 0, 0, 11]);
const ANNOUNCED: MacAddr = MacAddr([0xaa; 6]);

fn vlan(vid: i64) -> VlanId {
    VlanId::try_from(vid).unwrap()
}

fn start(name: &str) -> Live {
    let mut topology = Topology {
        segments: [vlan(100), vlan(200)].into(),
        uplinks: [UPLINK].into(),
        access: [(FREE, vlan(100)), (BOUND, vlan(100)), (ELSEWHERE, vlan(200))].into(),
        access_macs: [(BOUND, [BOUND_MAC].into())].into(),
        ..Topology::default()
    };
    let attachment = Attachment::Segment(vlan(100));
    let id = VifId { router: RouterId(1), number: 1 };
    topology.vifs.insert(id, Vif { mac: VIF_MAC, attachment, port: Some(VIF) });
    Live::start(name, topology, &[], |flow| flow)
}

fn host(number: u32) -> MacAddr {
    let [_, a, b, c] = number.to_be_bytes();
    MacAddr([6, 1, 0, a, b, c])
}

/// Frames that met the flows of each port and reason, where there were any.
fn refused(live: &mut Live) -> BTreeMap<(PortNo, Refusal), u64> {
    let filter =
        FlowFilter { cookie: cookie::TOPOLOGY, cookie_mask: cookie::CATEGORY_MASK, ..FlowFilter::default() };
    let mut counts = BTreeMap::new();
    for desc in live.client.dump(filter) {
        if let Some((reason, port)) = cookie::refusal_of(desc.flow.cookie) {
            *counts.entry((port, reason)).or_insert(0) += desc.counters.packets.unwrap();
        }
    }
    counts.retain(|_, count| *count > 0);
    counts
}

#[test]
fn refused_frames_are_counted_by_port_and_reason() {
    let mut live = start("tagger-refused");
    let to = MacAddr::BROADCAST;
    let plain = |src| Frame::arp(src, to);
    let tag = |vid: u16| Frame::arp(host(1), to).tagged(0x8100, vid);
    let announce = |src| Frame::arp(src, ANNOUNCED);
    use Refusal::*;
    // By port: a frame, how many of it, and why not.
    let frames = [
        (FREE, tag(0), 1, PriorityTag),
        (FREE, tag(0xe000), 1, PriorityTag),
        (FREE, tag(100), 2, ForeignTag),
        (FREE, tag(100).tagged(0x8100, 100), 3, DoubleTag),
        (FREE, tag(100).tagged(0x88a8, 100), 1, DoubleTag),
        (FREE, plain(VIF_MAC), 4, ForeignSource),
        (FREE, announce(host(1)), 5, ForgedAnnouncement),
        (FREE, plain(MacAddr([3, 0, 0, 0, 0, 1])), 6, GroupSource),
        (BOUND, plain(host(1)), 7, ForeignSource),
        (BOUND, tag(200), 1, ForeignTag),
        (VIF, plain(host(1)), 8, ForeignSource),
        (VIF, announce(VIF_MAC), 9, ForgedAnnouncement),
        (VIF, Frame::arp(VIF_MAC, to).tagged(0x8100, 0), 2, PriorityTag),
        (UPLINK, plain(host(1)), 10, NoTag),
        (UPLINK, tag(300), 11, ForeignTag),
        (UPLINK, tag(0), 12, PriorityTag),
        (UPLINK, tag(200).tagged(0x8100, 100), 13, DoubleTag),
        (UPLINK, announce(host(1)).tagged(0x8100, 100), 14, Announcement),
    ];
    let mut wanted: BTreeMap<(PortNo, Refusal), u64> = BTreeMap::new();
    let all = [UPLINK, FREE, BOUND, ELSEWHERE, VIF];
    let sent = live.sent(all, |live| {
        for (port, frame, count, reason) in &frames {
            live.receive(*port, &vec![frame.clone(); *count]);
            *wanted.entry((*port, *reason)).or_default() += *count as u64;
        }
    });
    assert_eq!(sent, [0; 5], "something got through");
    // The switch adds the datapath's counters to its flows from time to time.
    live.warp(3000);
    live.switch.appctl(&["revalidator/purge"]);
    assert_eq!(refused(&mut live), wanted);
    // What is right is let in and not counted.
    let sent = live.sent(all, |live| {
        live.receive(FREE, &[plain(host(1))]);
        live.receive(BOUND, &[plain(BOUND_MAC)]);
        live.receive(VIF, &[plain(VIF_MAC)]);
        live.receive(UPLINK, &[tag(100)]);
        live.receive(UPLINK, &[tag(0x6000 | 200)]);
    });
    assert_eq!(sent, [3, 3, 3, 1, 3]);
    live.warp(3000);
    live.switch.appctl(&["revalidator/purge"]);
    assert_eq!(refused(&mut live), wanted);
}

fn learned(live: &mut Live, segment: i64) -> usize {
    let filter = FlowFilter {
        cookie: cookie::learned(vlan(segment)),
        cookie_mask: cookie::OWNER_MASK,
        ..FlowFilter::default()
    };
    live.client.dump(filter).len()
}

#[test]
fn a_segment_learns_so_many_addresses_and_no_more() {
    let mut live = start("tagger-learned");
    let unicast = |src, dst| Frame::arp(src, dst);
    // To a guest: it is what makes the fewest copies.
    let storm: Vec<Frame> = (0..5000).map(|n| unicast(host(n), VIF_MAC)).collect();
    live.receive(FREE, &storm);
    let limit = LEARNED_LIMIT as usize;
    assert_eq!(learned(&mut live, 100), limit);
    // The first ones have their port, the last ones are flooded to.
    let ports = [UPLINK, FREE, VIF];
    let mut reply = |to| live.sent(ports, |live| live.receive(BOUND, &[unicast(BOUND_MAC, to)]));
    assert_eq!(reply(host(0)), [0, 1, 0]);
    assert_eq!(reply(host(4095)), [0, 1, 0]);
    assert_eq!(reply(host(4999)), [1, 1, 1]);
    // Other segments learn as before, of the same addresses.
    live.receive(ELSEWHERE, &[unicast(host(0), host(1)), unicast(host(4999), host(1))]);
    assert_eq!(learned(&mut live, 200), 2);
    let tagged = unicast(host(9000), host(4999)).tagged(0x8100, 200);
    assert_eq!(live.sent([FREE, ELSEWHERE], |live| live.receive(UPLINK, &[tagged])), [0, 1]);
    // A known address that moves is not followed while there is no room, for Open vSwitch asks for room even where it
    // replaces (`ofproto_flow_mod_learn`); in the other segment it is.
    let moves = |live: &mut Live, segment: u16| {
        live.receive(UPLINK, &[unicast(host(0), VIF_MAC).tagged(0x8100, segment)]);
        live.switch.appctl(&["revalidator/purge"]);
    };
    moves(&mut live, 100);
    assert_eq!(live.sent(ports, |live| live.receive(BOUND, &[unicast(BOUND_MAC, host(0))])), [0, 1, 0]);
    moves(&mut live, 200);
    let sent = live.sent([UPLINK, FREE], |live| live.receive(ELSEWHERE, &[unicast(host(1), host(0))]));
    assert_eq!(sent, [1, 0]);
    assert_eq!(learned(&mut live, 100), limit);
    // The addresses of vifs are not learned from them, and are theirs whatever an uplink says.
    live.client.install(&[xenflow_flow_app::FlowChange::ForgetLearned(vlan(100)).into()]);
    assert_eq!((learned(&mut live, 100), learned(&mut live, 200)), (0, 4));
    live.receive(VIF, &[unicast(VIF_MAC, MacAddr::BROADCAST)]);
    assert_eq!(learned(&mut live, 100), 0);
    // The storm was more than the guest's meter lets through.
    live.warp(1000);
    live.receive(UPLINK, &[unicast(VIF_MAC, MacAddr::BROADCAST).tagged(0x8100, 100)]);
    assert_eq!(live.sent(ports, |live| live.receive(FREE, &[unicast(host(1), VIF_MAC)])), [0, 0, 1]);
}
