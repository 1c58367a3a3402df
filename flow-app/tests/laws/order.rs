//! What is due for a router, and before what.

use ipnet::IpNet;
use xenflow_flow_app::{App, FlowChange};
use xenflow_proto::table::{
    Hop, HopFlags, Link, NextHop, NextHopKind, Route, RouteKey, RouteKind, RouteTarget, TABLE_MAIN,
};
use xenflow_proto::{Change, Key, Object};

use super::model::{Model, same};

use super::world::{V4, chain_of, router_id, vif_mac};

fn hop(last: u8) -> Hop {
    Hop { gateway: Some([10, 0, 0, last].into()), oif: Some(1), weight: 1, flags: HopFlags(0), encap: false }
}

fn key(dst: &str) -> RouteKey {
    let dst: IpNet = dst.parse().unwrap();
    RouteKey { table: TABLE_MAIN, dst, tos: 0, metric: 0 }
}

fn route(dst: &str, target: RouteTarget) -> Change {
    let route = Route { key: key(dst), kind: RouteKind::Unicast, protocol: 4, scope: 0, target, mtu: None };
    Change::Upsert(Object::Route(route))
}

fn by(last: u8) -> RouteTarget {
    RouteTarget::Hops(vec![hop(last)])
}

fn link() -> Change {
    Change::Upsert(Object::Link(Link {
        ifindex: 1,
        name: "eth1".to_owned(),
        mac: Some(vif_mac(0, 0)),
        mtu: 1500,
        up: true,
        running: true,
        kind: String::new(),
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    }))
}

/// A router whose switch has what these say.
fn settled(said: impl IntoIterator<Item = Change>) -> (App, Model) {
    let mut app = chain_of(App::new(1000).with_aggregation(false), 1, V4, V4);
    let mut model = Model::default();
    let said = std::iter::once(link()).chain(said);
    said.for_each(|change| app.apply(router_id(0), change).unwrap());
    model.settle(&mut app, 1000, |_| {});
    (app, model)
}

/// The prefixes of routes' flows in the next changes: with `+` or `-`.
fn next(app: &mut App, model: &mut Model, most: usize) -> Vec<String> {
    let batch = app.next_batch(most);
    let words = batch.changes.iter().filter_map(|change| {
        let (sign, text) = match change {
            FlowChange::Upsert(flow) => {
                ('+', format!("{:?}", flow.matching.field(openflow::Field::Ipv4Dst)?.value))
            }
            FlowChange::Remove(key) => {
                ('-', format!("{:?}", key.matching.field(openflow::Field::Ipv4Dst)?.value))
            }
            _ => return None,
        };
        let bits: u32 = text.parse().ok()?;
        Some(format!("{sign}{}", std::net::Ipv4Addr::from_bits(bits)))
    });
    let words = words.collect();
    batch.changes.into_iter().for_each(|change| model.change(change));
    words
}

#[test]
fn a_route_that_changes_overtakes_those_that_come_and_one_that_goes_does_not() {
    let id = router_id(0);
    let (mut app, mut model) =
        settled(["172.16.1.0/24", "172.16.2.0/24", "172.16.3.0/24"].map(|dst| route(dst, by(2))));
    for third in 0..200 {
        app.apply(id, route(&format!("172.17.{third}.0/24"), by(2))).unwrap();
    }
    app.apply(id, route("172.16.1.0/24", by(3))).unwrap();
    app.apply(id, Change::Remove(Key::Route(key("172.16.2.0/24")))).unwrap();
    app.apply(id, route("172.16.3.0/24", by(3))).unwrap();
    // It goes before its turn.
    app.apply(id, Change::Remove(Key::Route(key("172.16.3.0/24")))).unwrap();
    app.mark(id, 1);
    assert_eq!(next(&mut app, &mut model, 1), ["+172.16.1.0"]);
    let mut rest = Vec::new();
    loop {
        let batch = next(&mut app, &mut model, 7);
        if batch.is_empty() && app.is_idle() {
            break;
        }
        rest.extend(batch);
    }
    assert_eq!(rest.len(), 202);
    let at = |word: &str| rest.iter().position(|other| other == word).unwrap();
    assert!(at("-172.16.2.0") > at("+172.17.199.0") && at("-172.16.3.0") > at("+172.17.199.0"), "{rest:?}");
    same("in the end", &model, &Model::desired(&app).unwrap()).unwrap();
}

#[test]
fn a_hop_of_a_group_that_dies_is_one_change_whatever_its_routes() {
    let id = router_id(0);
    let object = |id, kind| Change::Upsert(Object::NextHop(NextHop { id, kind }));
    let group =
        |members: &[u32]| object(30, NextHopKind::Group(members.iter().map(|member| (*member, 1)).collect()));
    let single = |id, last| object(id, NextHopKind::Single(hop(last)));
    let routes = (0..200).map(|third| route(&format!("172.17.{third}.0/24"), RouteTarget::NextHop(30)));
    let said = [single(11, 2), single(12, 3), single(13, 4), group(&[11, 12])].into_iter().chain(routes);
    let (mut app, mut model) = settled(said);
    let dead =
        |id, last| object(id, NextHopKind::Single(Hop { flags: HopFlags(HopFlags::DEAD), ..hop(last) }));
    for (change, changes) in [
        (group(&[11]), 1),
        (group(&[11, 12]), 1),
        (dead(12, 3), 1),
        (single(12, 3), 1),
        (group(&[12, 13]), 1),
        // Nobody is left: each route is the guest's, and its group goes; and back.
        (group(&[]), 201),
        (group(&[11, 12]), 201),
        // What the switch cannot do is said of each route.
        (object(30, NextHopKind::Single(hop(2))), 201),
    ] {
        app.apply(id, change.clone()).unwrap();
        let mut made = 0;
        while !app.is_idle() {
            let batch = app.next_batch(100);
            made += batch.changes.len();
            batch.changes.into_iter().for_each(|change| model.change(change));
        }
        assert_eq!(made, changes, "{change:?}");
        same("then", &model, &Model::desired(&app).unwrap()).unwrap();
    }
}
