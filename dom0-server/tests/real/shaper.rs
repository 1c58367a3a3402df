//! Rows of queues in a real `Open_vSwitch` database.

use crate::common;
use std::time::{Duration, Instant};

use dom0_server::db::Rows;
use dom0_server::shaper::division::{Branch, Division, Leaf};
use dom0_server::shaper::plan::QueueOf;
use dom0_server::shaper::rows::{self, Kind};
use ovsdb::{Event as Said, Session, SessionConfig};
use xenflow_qos::law::{Contract, Setting};

const LIMIT: Duration = Duration::from_secs(20);

/// The database, and a copy of its rows.
struct Database {
    runtime: tokio::runtime::Runtime,
    session: Session,
    rows: Rows,
}

impl Database {
    fn open(switch: &common::Switch) -> Self {
        let dir = switch.run("pwd", &[]);
        let remotes = ovsdb::Remote::parse_list(&format!("unix:{}/db.sock", dir.trim())).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let session =
            runtime.block_on(async { Session::start(SessionConfig::new(remotes).monitor(rows::monitor())) });
        Self { runtime, session, rows: Rows::default() }
    }

    /// Once the copy is good.
    fn follow(&mut self, what: &str, good: impl Fn(&Rows) -> bool) {
        let end = Instant::now() + LIMIT;
        while !good(&self.rows) {
            assert!(Instant::now() < end, "{what}");
            let session = &mut self.session;
            let said = self
                .runtime
                .block_on(async { tokio::time::timeout(Duration::from_millis(200), session.next()).await });
            if let Ok(Some(Said::Snapshot { changes, .. } | Said::Update { changes, .. })) = said {
                self.rows.apply(&changes);
            }
        }
    }

    fn port(&self, name: &str) -> rows::Port {
        rows::ports(&self.rows, "br0").remove(name).unwrap()
    }

    /// Makes the port's rows so; how many operations that takes.
    fn set(&mut self, kind: Kind, division: &Division) -> usize {
        let operations = rows::operations(&self.rows, &self.port("p1"), kind, division);
        let handle = self.session.handle();
        self.runtime.block_on(handle.transact(rows::OPEN_VSWITCH, &operations)).unwrap();
        operations.len()
    }
}

fn vsctl(switch: &common::Switch, args: &[&str]) -> String {
    switch.run("ovs-vsctl", &[&["--db=unix:db.sock", "--timeout=20"], args].concat()).trim().to_owned()
}

fn division(rates: &[(u32, u64)]) -> Division {
    let leaf = |&(number, rate): &(u32, u64)| {
        let class = (number > 1).then(|| "voice".parse().unwrap());
        let setting = Setting { rate, ceil: 100_000_000, quantum: None };
        Leaf { number, of: QueueOf { network: "red".parse().unwrap(), class }, setting }
    };
    let leaves = rates.iter().map(leaf).collect();
    let contract = Contract { min: 20_000_000, max: None };
    Division { capacity: 100_000_000, branches: vec![Branch { contract, leaves }] }
}

#[test]
fn only_what_differs_is_written_and_all_of_it_taken_back() {
    let switch = common::Switch::start("shaper-rows");
    vsctl(&switch, &["set", "Port", "p2", "qos=@q", "--", "--id=@q", "create", "QoS", "type=linux-htb"]);
    let mut database = Database::open(&switch);
    database.follow("the ports", |rows| {
        rows::ports(rows, "br0").get("p2").is_some_and(|port| port.is_foreign)
            && rows::ports(rows, "br0").contains_key("p1")
    });
    let wanted = division(&[(1, 12_000_000), (2, 8_000_000)]);
    assert!(database.set(Kind::Htb, &wanted) > 0);
    database.follow("the queues", |rows| rows::told(rows, &rows::ports(rows, "br0")["p1"]).len() == 3);
    assert!(database.port("p1").is_ours);
    assert_eq!(database.set(Kind::Htb, &wanted), 0, "written once");
    let told = rows::told(&database.rows, &database.port("p1"));
    assert_eq!((told[&1].rate, told[&2].ceil), (12_000_000, 100_000_000));
    let qos = vsctl(&switch, &["get", "Port", "p1", "qos"]);
    assert_eq!(
        vsctl(&switch, &["get", "QoS", &qos, "type", "other_config"]),
        "linux-htb\n{max-rate=\"100000000\"}"
    );
    let voice = vsctl(&switch, &["get", "QoS", &qos, "queues:2"]);
    assert_eq!(
        vsctl(&switch, &["get", "Queue", &voice, "other_config", "external_ids"]),
        "{max-rate=\"100000000\", min-rate=\"8000000\"}\n{created-by=xenflow, xenflow-class=voice, xenflow-network=red}"
    );

    // One rate differs: one row is written. One queue goes: it and the row that referred to it.
    assert_eq!(database.set(Kind::Htb, &division(&[(1, 13_000_000), (2, 8_000_000)])), 1);
    database
        .follow("the rate", |rows| rows::told(rows, &rows::ports(rows, "br0")["p1"])[&1].rate == 13_000_000);
    assert_eq!(database.set(Kind::Htb, &division(&[(1, 13_000_000)])), 2);
    database.follow("the queue to go", |rows| rows::told(rows, &rows::ports(rows, "br0")["p1"]).len() == 2);

    // Rates are nobody's business where Open vSwitch does not shape; names stay for the numbers.
    assert!(database.set(Kind::Noop, &division(&[(1, 13_000_000)])) > 0);
    database.follow("no rates", |rows| rows::told(rows, &rows::ports(rows, "br0")["p1"]).is_empty());
    assert_eq!(vsctl(&switch, &["get", "QoS", &qos, "type"]), "linux-noop");

    let operations = rows::clear(&database.rows, &database.port("p1"));
    let handle = database.session.handle();
    database.runtime.block_on(handle.transact(rows::OPEN_VSWITCH, &operations)).unwrap();
    database.follow("nothing", |rows| !rows::ports(rows, "br0")["p1"].is_ours);
    assert_eq!(vsctl(&switch, &["--format=csv", "--no-headings", "--columns=_uuid", "list", "Queue"]), "");
    let left = vsctl(&switch, &["--format=csv", "--no-headings", "--columns=type", "list", "QoS"]);
    assert_eq!(left, "linux-htb", "somebody else's stays");
    assert!(rows::clear(&database.rows, &database.port("p2")).is_empty());
}
