//! `change ROUTES CHANGES`: a router's table of so many routes, and so many changes of one, from the guest's message to the
//! switch's. What a change costs is the difference between two runs under callgrind (`cargo lab bench instructions`).

#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking")]

use std::net::Ipv4Addr;

use bytes::BytesMut;
use ipnet::Ipv4Net;
use openflow::Message;
use xenflow_flow_app::{App, Attachment, RouterId, Topology, Vif, VifId};
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::message::GuestMessage;
use xenflow_proto::table::{
    Hop, HopFlags, Link, Neighbor, NeighborKey, Route, RouteKey, RouteKind, RouteTarget, Settings, TABLE_MAIN,
};
use xenflow_proto::{Change, FrameDecoder, MacAddr, Object, Seq, VlanId};

const ROUTER: RouterId = RouterId(1);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn main() {
    let mut args = std::env::args().skip(1).map(|word| word.parse::<u32>().unwrap());
    let (routes, changes) = (args.next().unwrap(), args.next().unwrap());
    let vlan = VlanId::MIN;
    let mut topology = Topology { segments: [vlan].into(), ..Topology::default() };
    let vif = Vif { mac: MAC, attachment: Attachment::Segment(vlan), port: Some(100) };
    topology.vifs.insert(VifId { router: ROUTER, number: 1 }, vif);
    let mut app = App::new(1 << 21).with_aggregation(false);
    app.set_topology(topology);
    app.begin_snapshot(ROUTER);
    let link = Link {
        ifindex: 1,
        name: "eth0".to_owned(),
        mac: Some(MAC),
        mtu: 1500,
        up: true,
        running: true,
        kind: String::new(),
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    };
    let neighbor = |last| Neighbor {
        key: NeighborKey { ifindex: 1, addr: [10, 0, 0, last].into() },
        mac: MacAddr([2, 0, 0, 0, 0, last]),
    };
    let first = [
        Object::Settings(Settings::default()),
        Object::Link(link),
        Object::Neighbor(neighbor(2)),
        Object::Neighbor(neighbor(3)),
    ];
    first.into_iter().for_each(|object| app.apply(ROUTER, Change::Upsert(object)).unwrap());
    for at in 0..routes {
        app.apply(ROUTER, Change::Upsert(Object::Route(route(at, 2)))).unwrap();
    }
    app.end_snapshot(ROUTER);
    while app.go_on_sweeping(ROUTER, 1000) {}
    let mut out = BytesMut::new();
    let loaded = send(&mut app, &mut out);
    assert!(loaded >= routes, "{loaded} flows");
    let mut flows = loaded;
    for change in 0..changes {
        // Routes all over the table, each once.
        let at = change * 7919 % routes;
        let changes = vec![Change::Upsert(Object::Route(route(at, 3)))];
        let mut bytes = BytesMut::new();
        GuestMessage::Changes { seq: Seq(u64::from(change)), changes }.encode(&mut bytes);
        let mut decoder = FrameDecoder::new(MAX_FRAME);
        decoder.buffer().extend_from_slice(&bytes);
        let message = GuestMessage::decode(decoder.next_frame().unwrap().unwrap()).unwrap();
        let GuestMessage::Changes { changes, .. } = message else { panic!("it is one") };
        changes.into_iter().for_each(|change| app.apply(ROUTER, change).unwrap());
        app.mark(ROUTER, u64::from(change));
        flows += send(&mut app, &mut out);
    }
    assert_eq!(flows, loaded + changes);
}

/// Number so much of the table, by the neighbor with that last byte.
fn route(at: u32, last: u8) -> Route {
    let dst = Ipv4Net::new(Ipv4Addr::from_bits((11 << 24) + (at << 8)), 24).unwrap();
    let gateway = Some([10, 0, 0, last].into());
    let hop = Hop { gateway, oif: Some(1), weight: 1, flags: HopFlags::default(), encap: false };
    let key = RouteKey { table: TABLE_MAIN, dst: dst.into(), tos: 0, metric: 0 };
    let target = RouteTarget::Hops(vec![hop]);
    Route { key, kind: RouteKind::Unicast, protocol: 4, scope: 0, target, mtu: None }
}

/// All that is due, as it goes to the switch; how much that was.
fn send(app: &mut App, out: &mut BytesMut) -> u32 {
    let mut sent = 0;
    loop {
        let batch = app.next_batch(1000);
        for (xid, change) in (1..).zip(batch.changes) {
            Message::from(change).encode(xid, out).unwrap();
            sent += 1;
        }
        out.clear();
        // Of a switch that holds nothing.
        if app.begin_dump().is_some() {
            app.dump_end();
        }
        if app.is_idle() {
            return sent;
        }
    }
}
