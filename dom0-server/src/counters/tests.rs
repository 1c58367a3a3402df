//! Samples in, totals out: by hand, and the flows of the real tables for what they count.

use openflow::{Action, Flow, FlowCounters, Match};
use xenflow_flow_app::pipeline::{self, ADMISSION, NEXT_HOP, cookie, priority};
use xenflow_flow_app::punt::meter_id;
use xenflow_flow_app::{PuntClass, Refusal, RouterId};
use xenflow_proto::Name;

use super::*;
use crate::db::{self, Desired, RouterPolicy, row};
use crate::ports::{SwitchPort, SwitchPorts, bind};
use crate::queues::{Numbers, wanted};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Router r1 of network red with a vif on each of two segments; an end host at port 3; trunk t0 at port 7.
fn names() -> (Names, Vec<Flow>) {
    let uuid = ovsdb::Uuid::ZERO;
    let mut desired = Desired::default();
    let red = name("red");
    let contract = crate::db::Contract::new(Some("1mbit".parse().unwrap()), None).unwrap();
    desired.networks.insert(red.clone(), row::Network { uuid, name: red.clone(), contract });
    let id = row::RouterId::try_from(1).unwrap();
    let policy = RouterPolicy::default();
    desired
        .routers
        .insert(name("r1"), row::Router { uuid, name: name("r1"), network: red.clone(), id, policy });
    let mac = |n: u8| xenflow_proto::MacAddr([2, 0, 0, 0, 0, n]);
    for n in [1_u8, 2] {
        let segment = name(&format!("s{n}"));
        let vlan = xenflow_proto::VlanId::try_from(i64::from(10 + n)).unwrap();
        let vif = db::Vif {
            uuid,
            name: name(&format!("v{n}")),
            router: name("r1"),
            number: row::VifNumber::try_from(i64::from(n)).unwrap(),
            mac: mac(n),
            attachment: db::Attachment::Segment(segment.clone()),
        };
        desired.vifs.insert(vif.name.clone(), vif);
        let row = db::Segment { uuid, name: segment.clone(), network: red.clone(), vlan };
        desired.segments.insert(segment, row);
    }
    let access = db::Access { uuid, name: name("h1"), segment: name("s1"), macs: [].into() };
    desired.access.insert(name("h1"), access);
    desired.uplinks.insert(name("a"), ["t0".to_owned()].into());
    let port = |name: &str, number, iface_id: Option<&str>| SwitchPort {
        row: ovsdb::Uuid(u128::from(number)),
        name: name.to_owned(),
        number,
        iface_id: iface_id.map(str::to_owned),
        attached_mac: None,
        is_up: true,
        was_home: false,
        mtu: 1500,
    };
    let ports = vec![
        port("p1", 1, Some("v1")),
        port("p2", 2, Some("v2")),
        port("p3", 3, Some("h1")),
        port("t0", 7, None),
    ];
    let ports = SwitchPorts { ports, ..SwitchPorts::default() };
    let mut queues = Numbers::default();
    queues.assign(&wanted(&desired), &BTreeMap::new());
    let (topology, problems) = bind(&name("a"), &desired, &ports, &queues);
    assert_eq!(topology.queues.len(), 2);
    assert_eq!(problems, [].into());
    let names = Names::new(&name("a"), &desired, &topology, &ports);
    let mut app = xenflow_flow_app::App::new(10);
    app.set_topology(topology);
    assert!(app.begin_dump().is_some());
    app.dump_end();
    let changes = app.next_batch(10_000).changes.into_iter();
    let flows = changes.filter_map(|change| {
        if let xenflow_flow_app::FlowChange::Upsert(flow) = change { Some(flow) } else { None }
    });
    (names, flows.collect())
}

fn counted(flow: &Flow, age_s: u32, packets: u64) -> FlowDesc {
    let counters = FlowCounters {
        duration: Some((age_s, 0)),
        packets: Some(packets),
        bytes: Some(packets * 100),
        ..FlowCounters::default()
    };
    FlowDesc { flow: flow.clone(), counters }
}

fn poll(flows: impl IntoIterator<Item = FlowDesc>) -> Poll {
    Poll { flows: flows.into_iter().collect(), ..Poll::default() }
}

fn total(counters: &Counters, scope: Scope, name: &str, counter: &str) -> Option<u64> {
    counters.totals().get(&(scope, name.to_owned()))?.get(counter).copied()
}

fn forwards(host: u32) -> Flow {
    let matching = Match::builder().reg(7, host).build();
    Flow::new(NEXT_HOP, priority::NORMAL, cookie::router(RouterId(1)), matching).apply([Action::DecTtl])
}

#[test]
fn what_was_there_before_the_daemon_is_where_counting_begins() {
    let (names, _) = names();
    let mut counters = Counters::default();
    let now = |counters: &Counters| total(counters, Scope::Router, "r1", "forwarded_packets");
    counters.take(&poll([counted(&forwards(1), 50, 1000)]), &names);
    assert_eq!(now(&counters), Some(0));
    counters.take(&poll([counted(&forwards(1), 55, 1007)]), &names);
    assert_eq!(now(&counters), Some(7));
    // A former life had counted too, and is heard of late.
    let before = [("forwarded_packets".to_owned(), 100), ("received_packets".to_owned(), 9)];
    counters.remember([((Scope::Router, "r1".to_owned()), before.into())].into());
    assert_eq!(now(&counters), Some(107));
    assert_eq!(total(&counters, Scope::Router, "r1", "received_packets"), Some(9));
    assert_eq!(total(&counters, Scope::Router, "r1", "forwarded_bytes"), Some(700));
}

#[test]
fn totals_grow_however_flows_come_and_go() {
    let (names, _) = names();
    let mut counters = Counters::default();
    counters.take(&Poll::default(), &names);
    for (what, flows, expected) in [
        ("new flows count from their first packet", vec![(1, 5, 10), (2, 5, 1)], 11),
        ("they grow", vec![(1, 10, 15), (2, 10, 1)], 16),
        ("one goes", vec![(2, 15, 2)], 17),
        ("it comes back, younger", vec![(1, 2, 16), (2, 20, 2)], 33),
        ("the switch is a new one: younger, though more was counted", vec![(1, 1, 20), (2, 1, 3)], 56),
        ("its counters were reset, at whatever age", vec![(1, 6, 4), (2, 6, 3)], 60),
    ] {
        let flows = flows.into_iter().map(|(host, age_s, packets)| counted(&forwards(host), age_s, packets));
        counters.take(&poll(flows), &names);
        assert_eq!(total(&counters, Scope::Router, "r1", "forwarded_packets"), Some(expected), "{what}");
    }
}

#[test]
fn neighbors_that_packets_go_to_are_in_use() {
    let (names, _) = names();
    let mut counters = Counters::default();
    let neighbor_of = |flow: &FlowKey| {
        let host = flow.matching.field(openflow::Field::Xreg(3))?.value as u32;
        let addr = std::net::Ipv4Addr::from_bits(host).into();
        Some((RouterId(1), NeighborKey { ifindex: 1, addr }))
    };
    let in_use = |counters: &Counters| -> Vec<std::net::IpAddr> {
        counters.in_use(neighbor_of).into_values().flatten().map(|key| key.addr).collect()
    };
    let host = |host: u32| std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(host));
    counters.take(&poll([counted(&forwards(1), 50, 1000), counted(&forwards(2), 50, 0)]), &names);
    assert!(in_use(&counters).is_empty(), "nobody knows when they were counted");
    counters.take(&poll([counted(&forwards(1), 55, 1000), counted(&forwards(2), 55, 1)]), &names);
    assert_eq!(in_use(&counters), [host(2)]);
    let gate = Flow::new(pipeline::ROUTER, 200, cookie::router(RouterId(1)), forwards(3).matching);
    counters.take(
        &poll([counted(&forwards(1), 60, 1001), counted(&forwards(2), 60, 1), counted(&gate, 1, 9)]),
        &names,
    );
    assert_eq!(in_use(&counters), [host(1), host(2)], "those of the next hops, now or lately");
    counters.take(&Poll::default(), &names);
    assert!(in_use(&counters).is_empty());
}

#[test]
fn every_flow_of_the_ports_counts_for_its_port_and_segment() {
    let (names, flows) = names();
    let mut counters = Counters::default();
    counters.take(&Poll::default(), &names);
    let admission = flows.iter().filter(|flow| flow.table == ADMISSION);
    counters.take(&poll(admission.map(|flow| counted(flow, 1, 1))), &names);
    for (scope, name, packets) in [
        (Scope::Vif, "v1", 1),
        (Scope::Vif, "v2", 1),
        (Scope::Access, "h1", 1),
        (Scope::Uplink, "t0", 2),
        (Scope::Segment, "s1", 3),
        (Scope::Segment, "s2", 2),
        (Scope::Network, "red", 5),
    ] {
        assert_eq!(total(&counters, scope, name, "in_packets"), Some(packets), "{name}");
    }
    assert!(total(&counters, Scope::Access, "h1", "dropped_foreign_source_packets") >= Some(1));
    let egress = flows.iter().filter(|flow| flow.table == pipeline::EGRESS);
    counters.take(&poll(egress.map(|flow| counted(flow, 1, 1))), &names);
    assert_eq!(total(&counters, Scope::Access, "h1", "out_packets"), Some(1));
    assert_eq!(total(&counters, Scope::Uplink, "t0", "out_packets"), Some(2));
    for class in PuntClass::ALL {
        let counter = format!("punted_{}_packets", class.as_str());
        assert_eq!(total(&counters, Scope::Vif, "v1", &counter), Some(1), "{counter}");
        assert_eq!(total(&counters, Scope::Router, "r1", &counter), Some(2), "{counter}");
    }
    let out = total(&counters, Scope::Vif, "v1", "out_packets").unwrap();
    assert_eq!(out, PuntClass::ALL.len() as u64 + 1, "each class, and what is in none");
}

#[test]
fn the_tagger_says_why_it_drops() {
    let (names, flows) = names();
    let of = |port, reason: Refusal| {
        let flow = Flow::new(ADMISSION, priority::REFUSE, cookie::refusal(reason, port), Match::any());
        names.of_flow(&flow)
    };
    let h1 = (Scope::Access, "h1".to_owned());
    assert_eq!(of(3, Refusal::DoubleTag), [(h1, "dropped_double_tag".to_owned())]);
    let t0 = (Scope::Uplink, "t0".to_owned());
    assert_eq!(of(7, Refusal::NoTag), [(t0, "dropped_no_tag".to_owned())]);
    let node = (Scope::Node, "a".to_owned());
    for port in [0, 99] {
        assert_eq!(of(port, Refusal::UnknownPort), [(node.clone(), "dropped_unknown_port".to_owned())]);
    }
    // Every flow of the table that drops counts for somebody.
    let mut drops = flows.iter().filter(|flow| flow.table == ADMISSION && flow.instructions.is_empty());
    assert!(drops.clone().count() > 10);
    assert!(drops.all(|flow| !names.of_flow(flow).is_empty()));
}

#[test]
fn meters_and_links_count_for_their_router_and_port_and_what_is_gone_for_nobody() {
    let (names, _) = names();
    let meter = |packets| MeterStats {
        id: meter_id(RouterId(1), PuntClass::Host),
        flows: 1,
        packets_in: 90,
        bytes_in: 0,
        bands: vec![(packets, 0)],
    };
    let link = |number, rx_packets| PortStats {
        number,
        duration: (1, 0),
        rx_packets,
        tx_packets: u64::MAX,
        rx_bytes: 0,
        tx_bytes: 0,
        rx_dropped: 0,
        tx_dropped: 0,
        rx_errors: 0,
        tx_errors: 0,
    };
    let poll = |n| Poll { flows: Vec::new(), ports: vec![link(1, n), link(99, n)], meters: vec![meter(n)] };
    let mut counters = Counters::default();
    counters.take(&poll(5), &names);
    counters.take(&poll(8), &names);
    assert_eq!(total(&counters, Scope::Router, "r1", "policed_host_packets"), Some(3));
    assert_eq!(total(&counters, Scope::Vif, "v1", "link_rx_packets"), Some(3));
    assert_eq!(
        total(&counters, Scope::Vif, "v1", "link_tx_packets"),
        Some(0),
        "the switch does not count it"
    );
    counters.take(&poll(9), &Names::default());
    assert_eq!(counters.totals(), &Totals::new());
}
