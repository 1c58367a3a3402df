//! What the daemon reports of its routers and its node, written to a real `ovsdb-server`, and what `xenflow doctor` makes of
//! it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dom0_server::core::{Core, Event, SessionId};
use dom0_server::ovs::database;
use dom0_server::ports::{SwitchPort, SwitchPorts};
use dom0_server::reporter::Reporter;
use dom0_server::reporter::node::NodeReporter;
use dom0_server::shaper::report::{LinkReport, Report};
use ovsdb::Remote;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use xenflow_flow_app::PortNo;
use xenflow_proto::message::{GuestMessage, Hello, VERSION};
use xenflow_proto::table::{
    Hop, HopFlags, Neighbor, NeighborKey, Route, RouteKey, RouteKind, RouteTarget, TABLE_MAIN,
};
use xenflow_proto::{Change, Identity, MacAddr, Object, Seq, control};

use crate::support::{LIMIT, Server, link, populate};

/// Long ago.
const OLD: u64 = 1_700_000_000_000;

/// What of a daemon reports: a life of it begins when this is made, and ends when it is dropped.
struct Daemon {
    core: Core,
    reporter: Reporter,
    about_node: NodeReporter,
    events: mpsc::Receiver<Event>,
    /// What its bandwidth loop has told.
    shaped: Report,
}

impl Daemon {
    /// One that has heard nothing of the switch's ports yet.
    async fn start(server: &Server) -> Self {
        let (sender, mut events) = mpsc::channel(16);
        let database = database::desired(
            Remote::parse_list(&server.db()).unwrap(),
            None,
            "a".parse().unwrap(),
            None,
            sender,
        );
        let mut core = Core::new("a".parse().unwrap(), 1000);
        core.handle(tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap());
        let reporter = Reporter::new("a".parse().unwrap(), database.clone());
        let about_node = NodeReporter::start("a".parse().unwrap(), "10.0.0.1:6642".parse().ok(), database);
        Self { core, reporter, about_node, events, shaped: Report::default() }
    }

    /// The switch has these vifs.
    fn plug(&mut self, vifs: &[&str]) {
        let port = |(vif, number): (&&str, PortNo)| SwitchPort {
            row: ovsdb::Uuid(number.into()),
            name: format!("port-{vif}"),
            number,
            iface_id: Some((*vif).to_owned()),
            attached_mac: None,
            is_up: true,
            was_home: false,
            mtu: 1500,
        };
        let ports = vifs.iter().zip(1..).map(port).collect();
        self.core.handle(Event::Ports(SwitchPorts { ports, ..SwitchPorts::default() }));
    }

    /// The guest of r1 says this.
    fn hear(&mut self, message: GuestMessage) {
        self.core.handle(Event::Said(SessionId(1), message));
        while self.core.is_behind() {
            self.core.handle(Event::Turn);
        }
    }

    /// Reports until what the database then has is as wanted.
    async fn until(&mut self, server: &Server, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let end = Instant::now() + LIMIT;
        loop {
            while let Ok(event) = self.events.try_recv() {
                self.core.handle(event);
            }
            self.reporter.report(&self.core).await;
            self.about_node.report(&self.core, &self.shaped);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let rows = rows(server);
            if wanted(&rows) {
                return rows;
            }
            assert!(Instant::now() < end, "{rows:?}");
        }
    }
}

fn rows(server: &Server) -> Vec<Value> {
    server.json("show")["status"].as_array().unwrap().clone()
}

/// What a former life, or another node, has reported of r1.
fn reported(node: &str, state: &str) -> Value {
    json!({"op": "insert", "table": "Status", "row": {
        "node": node, "router": "r1", "state": state, "since_ms": OLD, "routes": 3}})
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// The daemon's own report of r1: its guest never said a route.
fn is_new(rows: &[Value]) -> bool {
    rows.iter().any(|row| row["node"] == "a" && row["routes"] == 0)
}

#[tokio::test]
async fn a_session_that_is_still_lost_keeps_its_age_over_restarts() {
    let server = Server::ready();
    populate(&server);
    server.write(&json!([reported("a", "down"), reported("b", "down")]));
    let both = ["r1-core", "r1-ctl"];
    for life in 1..=3 {
        let mut daemon = Daemon::start(&server).await;
        for _ in 0..10 {
            daemon.reporter.report(&daemon.core).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = rows(&server);
        assert_eq!(
            before.len(),
            2,
            "a life that ends before it knows its routers forgets nothing: {before:?}"
        );
        if life == 1 {
            continue;
        }
        daemon.plug(&both);
        let rows = daemon.until(&server, |rows| is_new(rows) && rows.len() == 2).await;
        assert_eq!((&rows[0]["node"], &rows[0]["state"]), (&json!("a"), &json!("down")));
        assert_eq!(rows[0]["since_ms"], OLD, "life {life}: {rows:?}");
        assert_eq!((&rows[1]["routes"], &rows[1]["since_ms"]), (&json!(3), &json!(OLD)), "another node's");
    }
}

#[tokio::test]
async fn a_session_that_a_former_life_had_is_lost_since_this_one() {
    let server = Server::ready();
    populate(&server);
    let begun_ms = now_ms();
    for state in ["up", "syncing"] {
        server.write(&json!([{"op": "delete", "table": "Status", "where": []}, reported("a", state)]));
        let mut daemon = Daemon::start(&server).await;
        daemon.plug(&["r1-core", "r1-ctl"]);
        let rows = daemon.until(&server, is_new).await;
        assert_eq!(rows[0]["state"], "down");
        assert!(rows[0]["since_ms"].as_u64().unwrap() >= begun_ms, "{rows:?}");
    }
}

#[tokio::test]
async fn a_router_that_was_removed_and_added_again_is_as_old_as_that() {
    let server = Server::ready();
    populate(&server);
    server.write(&json!([reported("a", "down")]));
    let mut daemon = Daemon::start(&server).await;
    // Its vifs are plugged in late, as they are when a host boots.
    for vifs in [&[][..], &["r1-core", "r1-ctl"]] {
        daemon.plug(vifs);
        let rows = daemon
            .until(&server, |rows| is_new(rows) && rows[0]["ports"].as_object().unwrap().len() == vifs.len());
        assert_eq!(rows.await[0]["since_ms"], OLD);
    }
    for vif in ["r1-core", "r1-ctl"] {
        server.ok(&format!("vif remove {vif}"));
    }
    daemon.until(&server, <[Value]>::is_empty).await;
    let added_ms = now_ms();
    server.ok("vif add r1-core --router r1 --segment red-core --mac 52:54:00:00:00:01");
    let rows = daemon.until(&server, is_new).await;
    assert!(rows[0]["since_ms"].as_u64().unwrap() >= added_ms, "{rows:?}");
}

/// The one row that node a has written, and the version that its last change gave it.
fn written(server: &Server) -> (Value, Value) {
    let columns = ["_uuid", "_version"];
    let select =
        json!([{"op": "select", "table": "Status", "where": [["node", "==", "a"]], "columns": columns}]);
    let said: Value = serde_json::from_str(&server.transact(&select)).unwrap();
    let rows = said[0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{said}");
    (rows[0]["_uuid"].clone(), rows[0]["_version"].clone())
}

#[tokio::test]
async fn what_was_reported_already_is_not_written_again() {
    let server = Server::ready();
    populate(&server);
    let has = |ports: usize| {
        move |rows: &[Value]| rows.iter().any(|row| row["ports"].as_object().unwrap().len() == ports)
    };
    let mut daemon = Daemon::start(&server).await;
    daemon.plug(&["r1-core"]);
    daemon.until(&server, has(1)).await;
    let first = written(&server);
    drop(daemon);
    // Another life, and a change: of the row that is there.
    let mut daemon = Daemon::start(&server).await;
    daemon.plug(&["r1-core"]);
    for _ in 0..10 {
        daemon.reporter.report(&daemon.core).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(written(&server), first);
    daemon.plug(&["r1-core", "r1-ctl"]);
    daemon.until(&server, has(2)).await;
    let second = written(&server);
    assert_eq!(second.0, first.0);
    assert_ne!(second.1, first.1);
    // What somebody has taken away comes again with the next change.
    server.write(&json!([{"op": "delete", "table": "Status", "where": []}]));
    daemon.plug(&["r1-core"]);
    daemon.until(&server, has(1)).await;
}

/// Level and words of a check of `xenflow doctor`.
fn judged(server: &Server, check: &str) -> Vec<(String, String)> {
    let said: Value = serde_json::from_slice(&server.run("doctor --json").stdout).unwrap();
    let findings = said["findings"].as_array().unwrap();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let these = findings.iter().filter(|finding| finding["check"] == check);
    these.map(|finding| (text(finding, "level"), text(finding, "seen"))).collect()
}

/// The guest of r1 has r1-core as eth1, and a route by each of these gateways.
fn begin(daemon: &mut Daemon, mtu: u32, gateways: impl Iterator<Item = u8>) {
    let address = |last| [10, 0, 0, last].into();
    let router: xenflow_proto::Name = "r1".parse().unwrap();
    let hello =
        Hello { versions: vec![VERSION], router: router.clone(), boot_id: [7; 16], agent: String::new() };
    let peer = control::guest_ipv6(MacAddr([0x52, 0x54, 0, 0, 0, 0x0a])).into();
    daemon.core.handle(Event::Opened(SessionId(1), Identity::Router(router), peer, hello));
    let link = link(2, "eth1", MacAddr([0x52, 0x54, 0, 0, 0, 1]), mtu);
    let route = |last| {
        let gateway = Some(address(last));
        let hop = Hop { gateway, oif: Some(2), weight: 1, flags: HopFlags(0), encap: false };
        Object::Route(Route {
            key: RouteKey {
                table: TABLE_MAIN,
                dst: format!("10.9.{last}.0/24").parse().unwrap(),
                tos: 0,
                metric: 0,
            },
            kind: RouteKind::Unicast,
            protocol: 4,
            scope: 0,
            target: RouteTarget::Hops(vec![hop]),
            mtu: None,
        })
    };
    let changes = std::iter::once(link).chain(gateways.map(route)).map(Change::Upsert).collect();
    daemon.hear(GuestMessage::SnapshotBegin(Seq(1)));
    daemon.hear(GuestMessage::Changes { seq: Seq(2), changes });
}

#[tokio::test]
async fn gateways_that_nobody_answers_for_are_reported_as_they_change() {
    let server = Server::ready();
    populate(&server);
    let mut daemon = Daemon::start(&server).await;
    daemon.plug(&["r1-core", "r1-ctl"]);
    begin(&mut daemon, 1500, 1..=10);
    // Before the end of its tables nobody knows which neighbors it has.
    let rows = daemon.until(&server, |rows| rows.iter().any(|row| row["routes"] == 10)).await;
    assert_eq!((&rows[0]["state"], &rows[0]["unresolved"]), (&json!("syncing"), &json!(0)));
    daemon.hear(GuestMessage::SnapshotEnd(Seq(3)));
    let rows = daemon.until(&server, |rows| rows[0]["unresolved"] == 10).await;
    let named: Vec<_> = (1..=8).map(|last| json!(format!("10.0.0.{last}%r1-core"))).collect();
    assert_eq!(rows[0]["unresolved_gateways"], json!(named));
    let first = written(&server);
    let page = server.ok("show router r1");
    assert!(
        page.contains("    gateways without a neighbor 10: 10.0.0.1 on r1-core, 10.0.0.2 on r1-core, ")
            && page.contains("10.0.0.8 on r1-core and 2 more\n"),
        "{page}"
    );
    let neighbors = judged(&server, "neighbors");
    assert!(
        neighbors.len() == 1 && neighbors[0].0 == "warn" && neighbors[0].1.contains(": 10 gateways of its"),
        "{neighbors:?}"
    );

    for _ in 0..10 {
        daemon.reporter.report(&daemon.core).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(written(&server), first, "nothing has changed");
    let found = |last| {
        let key = NeighborKey { ifindex: 2, addr: [10, 0, 0, last].into() };
        Change::Upsert(Object::Neighbor(Neighbor { key, mac: MacAddr([2, 0, 0, 0, 1, last]) }))
    };
    daemon.hear(GuestMessage::Changes { seq: Seq(4), changes: (1..=9).map(found).collect() });
    let rows = daemon.until(&server, |rows| rows[0]["unresolved"] == 1).await;
    assert_eq!(rows[0]["unresolved_gateways"], json!(["10.0.0.10%r1-core"]));
    daemon.hear(GuestMessage::Changes { seq: Seq(5), changes: vec![found(10)] });
    daemon.until(&server, |rows| rows[0]["unresolved"] == 0).await;
    assert_eq!(judged(&server, "neighbors")[0].0, "ok");
    assert!(!server.ok("show router r1").contains("gateways without"));
}

#[tokio::test]
async fn the_mtus_of_uplinks_and_guests_are_reported_and_compared() {
    let server = Server::ready();
    populate(&server);
    let mut daemon = Daemon::start(&server).await;
    let trunk = |mtu| SwitchPort {
        row: ovsdb::Uuid(7),
        name: "trunk0".to_owned(),
        number: 7,
        iface_id: None,
        attached_mac: None,
        is_up: true,
        was_home: false,
        mtu,
    };
    let vif = |name: &str, number: u32| SwitchPort {
        row: ovsdb::Uuid(number.into()),
        name: format!("port-{name}"),
        number,
        iface_id: Some(name.to_owned()),
        ..trunk(9000)
    };
    let ports = |mtu| {
        let ports = vec![vif("r1-core", 8), vif("r1-ctl", 9), trunk(mtu)];
        Event::Ports(SwitchPorts { ports, ..SwitchPorts::default() })
    };
    daemon.core.handle(ports(9000));
    begin(&mut daemon, 9000, 0..0);
    daemon.hear(GuestMessage::SnapshotEnd(Seq(3)));
    let mtu = || server.json("show node a")[0]["uplinks"][0]["mtu"].clone();
    let rows = daemon.until(&server, |rows| is_new(rows) && rows[0]["state"] == "up" && mtu() == 9000).await;
    assert_eq!(rows[0]["vif_mtus"], json!({"r1-core": 9000}));
    let well = "1 uplinks carry 9000 bytes, no router sends more";
    assert_eq!(judged(&server, "trunk-mtu"), [("ok".to_owned(), well.to_owned())]);

    daemon.core.handle(ports(1500));
    daemon.until(&server, |_| mtu() == 1500).await;
    let findings = judged(&server, "trunk-mtu");
    let seen = "router r1 on a sends packets of 9000 bytes by r1-core (segment red-core), and uplink trunk0 of node a";
    assert!(
        findings.len() == 1 && findings[0].0 == "warn" && findings[0].1.starts_with(seen),
        "{findings:?}"
    );
    // Another node's end of the trunk.
    server.write(&json!([{"op": "insert", "table": "Node_Status", "row": {
        "node": "b", "uplink_mtus": ["map", [["eno1", 9000]]], "datapath": "system"}}]));
    let findings = judged(&server, "trunk-mtu");
    assert!(findings.len() == 2 && findings[0].1.contains("9000 by eno1 of node b"), "{findings:?}");
}

#[tokio::test]
async fn what_uplinks_carry_and_who_shapes_them_is_reported() {
    let server = Server::ready();
    populate(&server);
    server.ok("uplink add a trunk1");
    let mut daemon = Daemon::start(&server).await;
    daemon.plug(&["r1-core"]);
    let link = |port: &str, capacity_bps, driver: &str, problem: Option<&str>| LinkReport {
        port: port.to_owned(),
        capacity_bps,
        driver: driver.to_owned(),
        problem: problem.map(str::to_owned),
        ..LinkReport::default()
    };
    daemon.shaped.links =
        vec![link("trunk0", 10_000_000_000, "tc", None), link("trunk1", 0, "none", Some("it has no speed"))];
    let uplinks = || server.json("show node a")[0]["uplinks"].clone();
    daemon.until(&server, |_| uplinks()[0]["shaping"] == "tc").await;
    let shown = |port: &str, capacity: Value, from: Value, shaping: &str| {
        json!({
            "port": port, "mtu": null, "capacity_bps": capacity, "capacity_from": from, "shaping": shaping,
            "counters": null,
        })
    };
    let trunk0 = shown("trunk0", json!(10_000_000_000_i64), json!("node"), "tc");
    let why = "none: it has no speed";
    assert_eq!(uplinks(), json!([trunk0, shown("trunk1", Value::Null, Value::Null, why)]));
    assert_eq!(server.json("show node a")[0]["status"]["address"], "10.0.0.1:6642");
    // What somebody says counts.
    server.ok("uplink set a trunk0 --capacity 1gbit");
    let page = server.ok("show node a");
    let lines =
        "\n  uplink trunk0, 1gbit (set), shaping tc\n  uplink trunk1, shaping none: it has no speed\n";
    assert!(page.ends_with(lines), "{page}");
    assert_eq!(uplinks()[0]["capacity_from"], "operator");
}
