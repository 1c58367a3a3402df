//! Which neighbors guests are told to keep fresh.

use openflow::{FlowCounters, FlowDesc};
use xenflow_flow_app::FlowKey;
use xenflow_flow_app::pipeline::NEXT_HOP;
use xenflow_proto::table::{Link, Neighbor, NeighborKey};

use super::*;

const HOST: NeighborKey = NeighborKey { ifindex: 2, addr: IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 5)) };

/// A session of r1 that knows a neighbor, past end-of-RIB; and the neighbor's flow.
fn with_neighbor() -> (Core, Flow) {
    let mut core = ready();
    let link = Link {
        ifindex: 2,
        name: "lan".to_owned(),
        mac: Some(mac(1, 1)),
        mtu: 1500,
        up: true,
        running: true,
        kind: String::new(),
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    };
    let neighbor = Neighbor { key: HOST, mac: mac(9, 9) };
    let changes = [Object::Link(link), Object::Neighbor(neighbor)].map(Change::Upsert).to_vec();
    open(&mut core, 1, 1);
    for message in [
        GuestMessage::SnapshotBegin(Seq(1)),
        GuestMessage::Changes { seq: Seq(2), changes },
        GuestMessage::SnapshotEnd(Seq(3)),
    ] {
        let effects = say(&mut core, 1, message);
        confirm_all(&mut core, effects);
    }
    let mut flows = core.app.desired().flows.into_iter();
    let of_neighbor = |flow: &Flow| core.app.neighbor_of(&FlowKey::from(flow)).is_some();
    let flow = flows.find(of_neighbor).expect("a flow for the neighbor");
    assert_eq!(flow.table, NEXT_HOP);
    (core, flow)
}

fn count(core: &mut Core, flow: &Flow, age_s: u32, packets: u64) -> Vec<Effect> {
    let counters =
        FlowCounters { duration: Some((age_s, 0)), packets: Some(packets), ..FlowCounters::default() };
    let flows = vec![FlowDesc { flow: flow.clone(), counters }];
    core.handle(Event::Counted(Poll { flows, ..Poll::default() }))
}

fn in_use(id: u64, neighbors: &[NeighborKey]) -> Effect {
    Effect::Tell(SessionId(id), HostMessage::InUse(neighbors.to_vec()))
}

#[test]
fn a_guest_is_told_the_neighbors_in_use_when_they_are_others() {
    let (mut core, flow) = with_neighbor();
    assert_eq!(count(&mut core, &flow, 5, 0), []);
    assert_eq!(count(&mut core, &flow, 10, 7), [in_use(1, &[HOST])]);
    assert_eq!(count(&mut core, &flow, 15, 9), [], "the same");
    // A new session knows of none, and is told when it is past end-of-RIB.
    open(&mut core, 2, 1);
    assert_eq!(count(&mut core, &flow, 20, 11), []);
    say(&mut core, 2, GuestMessage::Resume(Seq(1)));
    let effects = say(&mut core, 2, GuestMessage::SnapshotEnd(Seq(2)));
    confirm_all(&mut core, effects);
    assert_eq!(count(&mut core, &flow, 25, 13), [in_use(2, &[HOST])]);
    // Its flow is gone.
    assert_eq!(core.handle(Event::Counted(Poll::default())), [in_use(2, &[])]);
}
