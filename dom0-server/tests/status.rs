//! What the daemon reports of its routers, written to a real `ovsdb-server`: how old it is that a session was lost.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dom0_server::core::{Core, Event};
use dom0_server::ovs::database;
use dom0_server::ports::{SwitchPort, SwitchPorts};
use dom0_server::reporter::Reporter;
use ovsdb::Remote;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use xenflow_flow_app::PortNo;

use support::{LIMIT, Server, populate};

/// Long ago.
const OLD: u64 = 1_700_000_000_000;

/// What of a daemon reports: a life of it begins when this is made, and ends when it is dropped.
struct Daemon {
    core: Core,
    reporter: Reporter,
    events: mpsc::Receiver<Event>,
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
        let reporter = Reporter::new("a".parse().unwrap(), database);
        Self { core, reporter, events }
    }

    /// The switch has these vifs.
    fn plug(&mut self, vifs: &[&str]) {
        let port = |(vif, number): (&&str, PortNo)| SwitchPort {
            name: format!("port-{vif}"),
            number,
            iface_id: Some((*vif).to_owned()),
            attached_mac: None,
            is_up: true,
            mtu: 1500,
        };
        let ports = vifs.iter().zip(1..).map(port).collect();
        self.core.handle(Event::Ports(SwitchPorts { ports, control: None }));
    }

    /// Reports until what the database then has is as wanted.
    async fn until(&mut self, server: &Server, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let end = Instant::now() + LIMIT;
        loop {
            while let Ok(event) = self.events.try_recv() {
                self.core.handle(event);
            }
            self.reporter.report(&self.core).await;
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
