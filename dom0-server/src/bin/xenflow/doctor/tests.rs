//! Every check with a good and a bad input.

use std::collections::BTreeSet;
use std::path::PathBuf;

use dom0_server::counters::Scope;
use dom0_server::db::status::Unresolved;
use dom0_server::db::{Counts, Desired, NodeStatus, Rows, SessionState, Statistics, Status, table};
use dom0_server::shaper::report::{LinkReport, QueueReport, Report};
use ovsdb::{Atom, Datum, Row, Uuid};

use super::facts::*;
use super::finding::*;
use super::{bandwidth, fleet, host, ports, trunk, trust};

const DAY: i64 = 86_400;

/// The levels of findings; each that is not well says what to do.
fn levels(findings: &[Finding]) -> Vec<Level> {
    for finding in findings {
        assert_eq!(finding.todo.is_some(), finding.level != Level::Ok, "{finding:?}");
        assert!(!finding.seen.is_empty() && !finding.seen.contains('\n'), "{finding:?}");
    }
    findings.iter().map(|finding| finding.level).collect()
}

fn level(finding: Finding) -> Level {
    levels(&[finding])[0]
}

use Level::{Fail, Ok as Well, Warn};

#[test]
fn versions_are_compared_by_number() {
    for (seen, expected) in [
        (Some("2.17.0"), Well),
        (Some("3.1.0"), Well),
        (Some("2.9.8"), Fail),
        (Some("odd"), Warn),
        (None, Warn),
    ] {
        assert_eq!(level(host::switch_version(seen)), expected, "{seen:?}");
    }
    assert_eq!(level(host::kernel(Some("6.1.0-13-amd64"), true, Some(""))), Well);
    assert_eq!(level(host::kernel(Some("6.1.0"), false, Some("netdev"))), Well);
    assert_eq!(level(host::kernel(Some("4.19.0"), true, Some("system"))), Warn);
    assert_eq!(level(host::kernel(Some("6.1.0"), false, Some("system"))), Fail);
    assert_eq!(level(host::kernel(None, true, None)), Warn);
    assert_eq!(level(host::switch_keeps_up(0)), Well);
    assert_eq!(level(host::switch_keeps_up(2)), Warn);
}

fn bridge() -> Bridge {
    Bridge { name: "br-xf".into(), fail_mode: Some("secure".into()), ..Bridge::default() }
}

#[test]
fn the_bridge_is_there_secure_and_speaks_openflow_15() {
    assert_eq!(levels(&host::integration_bridge(Some(&bridge()), "br-xf")), [Well, Well]);
    assert_eq!(levels(&host::integration_bridge(None, "br-xf")), [Fail]);
    let open = Bridge { fail_mode: None, ..bridge() };
    assert_eq!(levels(&host::integration_bridge(Some(&open), "br-xf")), [Fail, Well]);
    let old = Bridge { protocols: vec!["OpenFlow10".into()], ..bridge() };
    assert_eq!(levels(&host::integration_bridge(Some(&old), "br-xf")), [Fail, Well]);
    let both = Bridge { protocols: vec!["OpenFlow10".into(), "OpenFlow15".into()], ..bridge() };
    assert_eq!(levels(&host::integration_bridge(Some(&both), "br-xf")), [Well, Well]);
    let user = Bridge { datapath: "netdev".into(), ..bridge() };
    assert_eq!(levels(&host::integration_bridge(Some(&user), "br-xf")), [Well, Warn]);
}

#[test]
fn flow_restore_wait_is_for_a_switch_of_one_bridge() {
    let other = Bridge { name: "br-ex".into(), ..Bridge::default() };
    let mut switch = Switch { bridges: vec![bridge(), other], ..Switch::default() };
    assert_eq!(level(host::restore_wait(&switch, "br-xf")), Well);
    switch.restore_wait = true;
    let finding = host::restore_wait(&switch, "br-xf");
    assert!(finding.seen.contains("br-ex") && finding.seen.contains("somebody else"), "{finding:?}");
    assert_eq!(level(finding), Fail);
    switch.bridges.pop();
    assert_eq!(level(host::restore_wait(&switch, "br-xf")), Well);
}

#[test]
fn flows_clock_and_disk() {
    assert_eq!(level(host::flows(&Ok((7, 7)), "br-xf")), Well);
    let foreign = host::flows(&Ok((9, 7)), "br-xf");
    assert!(foreign.seen.starts_with("2 of 9 flows"), "{foreign:?}");
    assert_eq!(level(foreign), Warn);
    assert_eq!(level(host::flows(&Err("closed".into()), "br-xf")), Fail);
    for (clock, expected) in [(Some(true), Well), (Some(false), Warn), (None, Warn)] {
        assert_eq!(level(host::clock(clock)), expected);
    }
    for (free, expected) in [(10 << 30, Well), (200 << 20, Warn), (1 << 20, Fail)] {
        let disk = Disk { dir: PathBuf::from("/d"), free, total: 100 << 30 };
        assert_eq!(level(host::disk(&disk)), expected, "{free}");
    }
}

fn life(of: &str, begin: i64, end: i64) -> Life {
    Life { of: of.into(), begin, end }
}

#[test]
fn certificates_warn_at_a_third_of_their_life() {
    for (now, expected) in [(-1, Fail), (0, Well), (19, Well), (21, Warn), (29, Warn), (30, Fail)] {
        assert_eq!(level(trust::own(&life("a", 0, 30 * DAY), now * DAY)), expected, "day {now}");
    }
}

#[test]
fn authorities_are_in_time_and_one() {
    let (a, b) = (life("CN=a", 0, 1000 * DAY), life("CN=b", 0, 1000 * DAY));
    let check = |lives: &[Life], issuer, day| levels(&trust::authorities(lives, Some(issuer), day * DAY));
    let one = [a.clone()];
    assert_eq!(check(&one, "CN=a", 1), [Well]);
    assert_eq!(check(&one, "CN=a", 950), [Warn]);
    assert_eq!(check(&one, "CN=a", 1001), [Fail]);
    assert_eq!(check(&[a, b], "CN=a", 1), [Warn]);
    assert_eq!(check(&one, "CN=c", 1), [Fail]);
}

#[test]
fn lists_are_of_an_authority_and_not_overdue() {
    let trust = Trust { authorities: Some(Ok(vec![life("CN=a", 0, 1000 * DAY)])), ..Trust::default() };
    let check = |lives: &[Life], day| levels(&trust::lists(lives, &trust, day * DAY));
    assert_eq!(check(&[life("CN=a", 0, 30 * DAY)], 1), [Well]);
    assert_eq!(check(&[life("CN=a", 0, 30 * DAY)], 31), [Warn]);
    assert_eq!(check(&[life("CN=b", 0, 30 * DAY)], 1), [Warn]);
    assert_eq!(levels(&trust::check(&Trust::default(), 0)), []);
    let lacking = Trust { own: Some(Ok(life("n", 0, 30 * DAY))), ..Trust::default() };
    assert_eq!(levels(&trust::check(&lacking, DAY)), [Well, Warn]);
    let broken =
        Trust { own: Some(Err("cannot read x".into())), lists: Some(Ok(vec![])), ..Trust::default() };
    assert_eq!(levels(&trust::check(&broken, DAY))[0], Fail);
}

/// A network with a router r1 (vif r1-core) and an end host h1, and an uplink of node a.
fn desired(min_bps: Option<i64>) -> Desired {
    let mut rows = Rows::default();
    let id = |n: u128| Uuid(n);
    let none = || Datum::set(Vec::<Atom>::new());
    let no_map = || Datum::map(Vec::<(Atom, Atom)>::new());
    let mut insert = |table: &str, n: u128, columns: Vec<(&str, Datum)>| {
        rows.insert(table, id(n), columns.into_iter().collect::<Row>());
    };
    let text = |text: &str| Datum::from(text);
    let unsaid = Datum::map::<&str, i64>([]);
    insert(
        table::NODE,
        1,
        vec![("name", text("a")), ("uplinks", Datum::set(["trunk0", "trunk1"])), ("uplink_capacity", unsaid)],
    );
    let min = Datum::set(min_bps.map(Atom::from));
    insert(table::NETWORK, 2, vec![("name", text("red")), ("min_bps", min), ("max_bps", none())]);
    insert(
        table::SEGMENT,
        3,
        vec![("name", text("core")), ("network", Datum::from(id(2))), ("vlan", Datum::from(7_i64))],
    );
    insert(
        table::ROUTER,
        4,
        vec![
            ("name", text("r1")),
            ("network", Datum::from(id(2))),
            ("id", Datum::from(1_i64)),
            ("fastpath", none()),
            ("max_routes", Datum::set([100_i64])),
            ("punt_rate", no_map()),
        ],
    );
    insert(
        table::VIF,
        5,
        vec![
            ("name", text("r1-core")),
            ("router", Datum::from(id(4))),
            ("number", Datum::from(1_i64)),
            ("kind", text("data")),
            ("segment", Datum::from(id(3))),
            ("mac", text("52:54:00:00:00:01")),
        ],
    );
    insert(table::ACCESS, 6, vec![("name", text("h1")), ("segment", Datum::from(id(3))), ("macs", none())]);
    let (desired, invalid) = Desired::assemble(&rows);
    assert_eq!(invalid, []);
    desired
}

fn port(name: &str, iface_id: Option<&str>, mtu: i64) -> Port {
    let iface_id = iface_id.map(str::to_owned);
    Port { name: name.into(), iface_id, mtu: Some(mtu), has_link: true, ..Port::default() }
}

fn trunks() -> BTreeSet<String> {
    ["trunk0".to_owned(), "trunk1".to_owned()].into()
}

fn plugged() -> Bridge {
    let own = Port { is_own: true, ..port("br-xf", None, 1500) };
    let ports = vec![
        own,
        port("tap1", Some("r1-core"), 1500),
        port("tap2", Some("h1"), 1400),
        port("trunk0", None, 1500),
        port("trunk1", None, 1500),
    ];
    Bridge { ports, ..bridge() }
}

#[test]
fn ports_are_somebodys() {
    let desired = desired(None);
    let mut bridge = plugged();
    assert_eq!(levels(&ports::dark(&bridge, &desired, &trunks())), [Well]);
    assert_eq!(levels(&ports::errors(&bridge)), [Well]);
    assert_eq!(levels(&ports::trunks(&bridge, &trunks())), [Well]);
    bridge.ports.push(port("tap3", Some("r9-core"), 1500));
    bridge.ports.push(port("tap4", None, 1500));
    let dark = ports::dark(&bridge, &desired, &trunks());
    assert_eq!(levels(&dark), [Warn, Warn]);
    assert!(dark[0].seen.contains("tap3") && dark[0].seen.contains("r9-core"), "{dark:?}");
    // By the address that a toolstack says; the name may be one that it made up.
    bridge.ports[1].iface_id = Some("7c1d1a52-5f0e-4d5c-9a9e-0d2f6f3b8a01".into());
    assert_eq!(ports::dark(&bridge, &desired, &trunks()).len(), 3);
    bridge.ports[1].attached_mac = "52:54:00:00:00:01".parse().ok();
    assert_eq!(ports::dark(&bridge, &desired, &trunks()), dark);
    bridge.ports[4].attached_mac = bridge.ports[1].attached_mac;
    let dark = ports::dark(&bridge, &desired, &trunks());
    assert_eq!(dark.len(), 2, "trunk1 is an uplink whatever else is said of it: {dark:?}");
    bridge.ports[5].attached_mac = bridge.ports[1].attached_mac;
    let dark = ports::dark(&bridge, &desired, &trunks());
    assert!(
        dark.iter().any(|one| one.seen == "ports tap1, tap3 all claim to be r1-core: none is used"),
        "{dark:?}"
    );
    bridge.ports[1].error = Some("could not open network device tap1".into());
    assert_eq!(levels(&ports::errors(&bridge)), [Warn]);
    bridge.ports.retain(|port| port.name != "trunk1");
    bridge.ports.iter_mut().for_each(|port| port.has_link = port.name != "trunk0");
    assert_eq!(levels(&ports::trunks(&bridge, &trunks())), [Fail, Fail]);
}

#[test]
fn trunks_carry_what_guests_send() {
    let desired = desired(None);
    let check = |bridge: &Bridge| levels(&ports::mtu(bridge, &desired, &trunks()));
    let mut bridge = plugged();
    assert_eq!(check(&bridge), [Well]);
    bridge.ports[1].mtu = Some(9000);
    assert_eq!(check(&bridge), [Fail, Fail]);
    bridge.ports[3].mtu = Some(9000);
    assert_eq!(check(&bridge), [Fail]);
    bridge.ports[4].mtu = Some(9000);
    assert_eq!(check(&bridge), [Well]);
    // User space counts the tag.
    bridge.datapath = "netdev".into();
    assert_eq!(check(&bridge), [Fail, Fail]);
    bridge.ports[3].mtu = Some(9004);
    bridge.ports[4].mtu = Some(9004);
    assert_eq!(check(&bridge), [Well]);
    bridge.ports.clear();
    assert_eq!(check(&bridge), [Well]);
}

#[test]
fn contracts_need_somebody_who_shapes_by_a_known_capacity() {
    let promised = |min, nodes: Vec<NodeStatus>| Fleet { desired: desired(min), nodes, ..Fleet::default() };
    let says = |trunk0: &str, trunk1: &str, known: &[&str]| {
        let words =
            [("trunk0", trunk0), ("trunk1", trunk1)].into_iter().filter(|(_, words)| !words.is_empty());
        NodeStatus {
            shaping: words.map(|(port, words)| (port.to_owned(), words.to_owned())).collect(),
            uplink_capacity: known
                .iter()
                .map(|port| ((*port).to_owned(), "1gbit".parse().unwrap()))
                .collect(),
            ..node("a", NOW)
        }
    };
    let check = |status| bandwidth::shaping(&promised(Some(20_000_000), vec![status]));
    let both = ["trunk0", "trunk1"];
    assert_eq!(levels(&check(says("tc", "ovs", &both))), [Well]);
    assert_eq!(
        levels(&bandwidth::shaping(&promised(None, vec![says("none", "none", &[])]))),
        [Well],
        "no contract"
    );
    assert_eq!(
        levels(&bandwidth::shaping(&promised(Some(20_000_000), vec![]))),
        [Well],
        "silence is told elsewhere"
    );

    let findings = check(says("tc", "none: it has no speed", &["trunk0"]));
    assert_eq!(levels(&findings), [Warn, Warn]);
    assert_eq!(findings[0].check, "capacity");
    assert_eq!(
        findings[0].seen,
        "the capacity of trunk1 of node a is not known: contracts cannot be kept there"
    );
    assert_eq!(findings[0].todo.as_deref(), Some("xenflow uplink set a trunk1 --capacity RATE"));
    assert_eq!(findings[1].seen, "trunk1 of node a: shaped by none: it has no speed; contracts of red");
    // What ails several is said once.
    let findings = check(says("meter: no queues in user space", "meter: no queues in user space", &both));
    assert_eq!(levels(&findings), [Warn]);
    assert!(
        findings[0].seen.starts_with("trunk0 of node a, trunk1 of node a: shaped by meter"),
        "{findings:?}"
    );
    assert_eq!(levels(&check(says("tc", "", &both))), [Warn], "its daemon says nothing");
    assert_eq!(levels(&check(says("tc: minima are scaled", "tc", &both))), [Warn]);
}

#[test]
fn queues_are_not_short_for_long() {
    let check = |state: &str, short_ms: u64| {
        let queue = QueueReport {
            network: "red".into(),
            class: Some("voice".into()),
            obtained_bps: 5_000_000,
            expected_bps: 20_000_000,
            state: state.into(),
            since_ms: NOW - short_ms,
            ..QueueReport::default()
        };
        let link = LinkReport { port: "eth0".into(), queues: vec![queue], ..LinkReport::default() };
        let report = Report { policy: "fair".into(), period_ms: 1000, links: vec![link] };
        bandwidth::kept(&report, NOW)
    };
    assert_eq!(levels(&check("met", 1 << 20)), [Well]);
    assert_eq!(levels(&check("short", 5_000)), [Well], "it passes");
    let findings = check("short", 5_001);
    assert_eq!(levels(&findings), [Warn]);
    assert_eq!(
        findings[0].seen,
        "network red, class voice has had less than its part of uplink eth0 for 5 s: 5.00 Mbit/s of 20.0 Mbit/s"
    );
    assert_eq!(findings[0].todo.as_deref(), Some("xenflow explain sla red"));
    assert_eq!(levels(&bandwidth::kept(&Report::default(), NOW)), [Well]);
}

#[test]
fn a_cluster_needs_most_of_its_members() {
    let server = |model: &str, connected, leader| Ok(Server { model: model.into(), connected, leader });
    let check = |servers: Vec<Result<Server, String>>| {
        let named: Vec<_> = servers.into_iter().map(|server| ("ssl:a".to_owned(), server)).collect();
        levels(&fleet::servers(&named))
    };
    assert_eq!(check(vec![server("standalone", true, true)]), [Well]);
    assert_eq!(check(vec![server("clustered", true, true), server("clustered", true, false)]), [Well]);
    assert_eq!(check(vec![server("clustered", false, false)]), [Fail]);
    assert_eq!(check(vec![server("clustered", true, false), server("clustered", true, false)]), [Warn]);
    assert_eq!(check(vec![server("clustered", true, true), Err("refused".into())]), [Fail]);
    assert_eq!(check(vec![]), []);
}

const NOW: u64 = 1_800_000_000_000;

fn node(name: &str, seen_ms: u64) -> NodeStatus {
    NodeStatus {
        node: name.parse().unwrap(),
        version: "0.1.0".into(),
        ovs_version: "3.1.0".into(),
        datapath: "system".into(),
        started_ms: 0,
        seen_ms,
        cfg: Some(0),
        problems: BTreeSet::new(),
        uplink_mtus: [].into(),
        uplink_capacity: [].into(),
        shaping: [].into(),
        address: String::new(),
    }
}

#[test]
fn nodes_are_seen_with_clocks_that_agree() {
    let check = |nodes: Vec<NodeStatus>| {
        levels(&fleet::nodes(&Fleet { nodes, desired: desired(None), ..Fleet::default() }, NOW))
    };
    assert_eq!(check(vec![node("a", NOW - 9_000)]), [Well]);
    assert_eq!(check(vec![node("a", NOW - 91_000)]), [Fail]);
    assert_eq!(check(vec![node("a", NOW + 5_000)]), [Warn]);
    assert_eq!(check(vec![node("b", NOW)]), [Warn]);
    let troubled = NodeStatus { problems: ["no bridge".into()].into(), ..node("a", NOW) };
    assert_eq!(check(vec![troubled]), [Warn]);
}

#[test]
fn nodes_run_the_same() {
    let check = |nodes: &[NodeStatus]| levels(&fleet::versions(nodes));
    assert_eq!(check(&[node("a", 0), node("b", 0)]), [Well]);
    assert_eq!(check(&[node("a", 0), NodeStatus { version: "0.2.0".into(), ..node("b", 0) }]), [Warn]);
    assert_eq!(
        check(&[node("a", 0), NodeStatus { ovs_version: "2.13.0".into(), ..node("b", 0) }]),
        [Warn, Fail]
    );
    assert_eq!(check(&[NodeStatus { datapath: "netdev".into(), ..node("b", 0) }]), [Warn]);
    assert_eq!(check(&[]), []);
}

fn report(state: SessionState, age_ms: u64) -> Status {
    Status {
        node: "a".parse().unwrap(),
        router: "r1".parse().unwrap(),
        state,
        since_ms: NOW - age_ms,
        counts: Counts { routes: 10, neighbors: 1, ..Counts::default() },
        acked_seq: 1,
        message: String::new(),
        slow: BTreeSet::new(),
        ports: [].into(),
        up: BTreeSet::new(),
        vif_mtus: [].into(),
        unresolved: Unresolved::default(),
    }
}

fn fleet_of(status: Vec<Status>) -> Fleet {
    Fleet { desired: desired(None), status, ..Fleet::default() }
}

#[test]
fn sessions_are_not_lost_for_long() {
    let check = |status| levels(&fleet::sessions(&fleet_of(status), NOW));
    assert_eq!(check(vec![report(SessionState::Up, 1 << 40)]), [Well]);
    assert_eq!(check(vec![report(SessionState::Down, 59_000)]), [Well]);
    assert_eq!(check(vec![report(SessionState::Down, 61_000)]), [Fail]);
    assert_eq!(check(vec![report(SessionState::Syncing, 61_000)]), [Fail]);
    assert_eq!(check(vec![report(SessionState::Down, 61_000), report(SessionState::Up, 0)]), [Well]);
    assert_eq!(check(vec![]), [Warn]);
}

#[test]
fn guests_limits_and_meters() {
    let well = report(SessionState::Up, 0);
    assert_eq!(levels(&fleet::slow(std::slice::from_ref(&well))), [Well]);
    let mut filtered = well.clone();
    filtered.slow.insert("r1-core IPv4: rp_filter is 1".into());
    let findings = fleet::slow(&[filtered]);
    assert!(findings[0].todo.as_deref().is_some_and(|todo| todo.contains("rp_filter=0")), "{findings:?}");
    assert_eq!(levels(&findings), [Warn]);

    let limits = |forwarded, punted| {
        let mut full = well.clone();
        full.counts.prefixes = [("forwarded".to_owned(), forwarded), ("punted".to_owned(), punted)].into();
        levels(&fleet::limits(&fleet_of(vec![full])))
    };
    assert_eq!((limits(79, 0), limits(80, 0), limits(10, 1)), (vec![Well], vec![Warn], vec![Warn]));

    let counted = |dropped| Statistics {
        node: "a".parse().unwrap(),
        place: (Scope::Router, "r1".into()),
        counters: [("policed_host_packets".to_owned(), dropped)].into(),
        since_ms: 0,
        updated_ms: NOW,
    };
    policed(&counted);
    assert_eq!(levels(&fleet::rows(&[])), [Well]);
    assert_eq!(levels(&fleet::rows(&["segment \"x\": vlan 0".into()])), [Warn]);
}

#[test]
fn gateways_have_neighbors() {
    let check = |report: &Status| fleet::neighbors(&fleet_of(vec![report.clone()]));
    let mut router = report(SessionState::Up, 0);
    assert_eq!(levels(&check(&router)), [Well]);
    router.counts.neighbors = 0;
    assert_eq!(levels(&check(&router)), [Warn]);
    let gateways = ["10.0.0.7%r1-core".to_owned(), "fe80::8%r1-core".to_owned()].into();
    router.unresolved = Unresolved { count: 5, gateways };
    for neighbors in [0, 1] {
        router.counts.neighbors = neighbors;
        let findings = check(&router);
        assert_eq!(levels(&findings), [Warn], "once: {findings:?}");
        assert!(
            findings[0].seen.starts_with("router r1 on a: 5 gateways")
                && findings[0].seen.ends_with(": 10.0.0.7 on r1-core, fe80::8 on r1-core and 3 more"),
            "{findings:?}"
        );
        let todo = findings[0].todo.as_deref().unwrap();
        assert!(todo.contains("ip neigh show 10.0.0.7,") && todo.contains("segment core, VLAN 7"), "{todo}");
    }
    // What a node says may be anything.
    router.unresolved.gateways = ["odd".to_owned()].into();
    assert!(check(&router)[0].todo.as_deref().unwrap().contains("ip neigh show odd"));
    router.state = SessionState::Down;
    assert_eq!(levels(&check(&router)), [Well], "that the session is lost is said elsewhere");
}

#[test]
fn the_trunk_carries_the_same_everywhere_and_what_routers_send() {
    let end = |name: &str, datapath: &str, mtus: &[(&str, u32)]| NodeStatus {
        datapath: datapath.into(),
        uplink_mtus: mtus.iter().map(|(port, mtu)| ((*port).to_owned(), *mtu)).collect(),
        ..node(name, NOW)
    };
    let check = |nodes: &[NodeStatus], mtu: u32| {
        let vif_mtus = [("r1-core".parse().unwrap(), mtu), ("r1-ctl".parse().unwrap(), 65535)].into();
        let report = Status { vif_mtus, ..report(SessionState::Up, 0) };
        trunk::check(&Fleet { nodes: nodes.to_vec(), ..fleet_of(vec![report]) })
    };
    let (a, b) = (end("a", "system", &[("trunk0", 1500)]), end("b", "system", &[("eno1", 1500)]));
    assert_eq!(levels(&check(&[], 9000)), [Well], "nobody knows");
    assert_eq!(levels(&check(&[a.clone(), b.clone()], 1500)), [Well]);

    let jumbo = end("a", "system", &[("trunk0", 9000)]);
    let findings = check(&[jumbo.clone(), b.clone()], 1500);
    assert_eq!(levels(&findings), [Warn]);
    let seen = "1500 bytes by eno1 of node b (MTU 1500), 9000 by trunk0 of node a (MTU 9000)";
    assert!(findings[0].seen.contains(seen), "{findings:?}");
    assert!(findings[0].todo.as_deref().unwrap().ends_with(" for eno1 of node b"), "{findings:?}");

    let findings = check(&[jumbo, b.clone()], 9000);
    assert_eq!(levels(&findings), [Warn, Warn]);
    let seen = "router r1 on a sends packets of 9000 bytes by r1-core (segment core), and uplink eno1 of node b has MTU 1500:";
    assert!(findings[1].seen.starts_with(seen), "{findings:?}");
    let todo = findings[1].todo.as_deref().unwrap();
    assert!(todo.starts_with("on node b: ip link set eno1 mtu 9000, and frames of 9018 bytes"), "{todo}");
    assert!(todo.ends_with("or MTU 1500 in the guest of r1"), "{todo}");

    // User space counts the tag: 1500 is too little there, 1504 is as much as 1500 in a kernel.
    let user = |mtu| end("b", "netdev", &[("eno1", mtu)]);
    assert_eq!(levels(&check(&[a.clone(), user(1504)], 1500)), [Well]);
    let findings = check(&[a, user(1500)], 1500);
    assert_eq!(levels(&findings), [Warn, Warn]);
    assert!(
        findings[0].seen.contains("1496 bytes by eno1 of node b (MTU 1500 with the tag)"),
        "{findings:?}"
    );
    assert!(findings[1].seen.contains("has MTU 1500, 4 of them for the VLAN tag"), "{findings:?}");
    assert!(findings[1].todo.as_deref().unwrap().starts_with("on node b: ip link set eno1 mtu 1504,"));
    // Two uplinks of one node.
    assert_eq!(levels(&check(&[end("a", "system", &[("t0", 1500), ("t1", 1600)]), b], 1500)), [Warn]);
}

/// What was dropped once is told in a sum; only what is dropped now is a warning.
fn policed(counted: &dyn Fn(u64) -> Statistics) {
    use Level::{Ok as Well, Warn};
    let check =
        |first: Vec<Statistics>, second: Option<Result<_, String>>| fleet::policed(&first, second.as_ref());
    let again = |packets| Ok(vec![counted(packets)]);
    assert_eq!(levels(&check(vec![counted(0)], None)), [Well]);
    assert_eq!(levels(&check(vec![], Some(again(5)))), [Well], "nobody knows since when");
    for seen in [check(vec![counted(5)], None), check(vec![counted(5)], Some(again(5)))] {
        assert_eq!(levels(&seen), [Well]);
        assert_eq!(seen[0].seen, "no packet for a guest is too many now; 5 were since counting began");
    }
    for before in [counted(5), Statistics { since_ms: 1, ..counted(9) }] {
        assert_eq!(levels(&check(vec![before], Some(again(7)))), [Warn]);
    }
    let grows = check(vec![counted(5)], Some(again(7)));
    assert!(grows[0].seen.contains(": 2 packets of class host were too many just now, 7 since"), "{grows:?}");
    assert_eq!(levels(&check(vec![counted(5)], Some(Err("gone".into())))), [Warn]);
    // A second look is for what may be growing only.
    let may_grow = |packets, now_ms| fleet::may_grow(&[counted(packets)], now_ms);
    assert!(may_grow(5, NOW) && may_grow(5, NOW + 15_000) && may_grow(5, NOW - 1));
    assert!(!may_grow(5, NOW + 15_001) && !may_grow(0, NOW));
}

#[test]
fn spans_and_lists_are_short() {
    for (seconds, text) in
        [(0, "0 s"), (119, "119 s"), (3_600, "60 min"), (86_400, "24 h"), (DAY * 30, "30 d")]
    {
        assert_eq!(span(seconds), text);
    }
    let many: Vec<_> = (0..10).map(|n| n.to_string()).collect();
    assert_eq!(some(&many), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
}
