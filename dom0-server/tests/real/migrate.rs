//! `xenflow migrate`, `migrations` and `abort` against a real `ovsdb-server`; the nodes are played by hand, with the transactions that
//! daemons make.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use dom0_server::clock::now_ms;
use dom0_server::db::Migration;
use dom0_server::db::migration::{KEPT, Phase};
use dom0_server::migration::plan::PlanError;
use serde_json::{Value, json};

use crate::migration::Database;
use crate::refusals::rules;
use crate::support::{LIMIT, Runs, Server, populate, refused};

const MAC: &str = "52:54:00:00:00:01";

/// Seen by a clock that is ahead: however long the test takes, it is not silent.
fn seen_ms() -> u64 {
    now_ms() + 3_600_000
}

fn node(name: &str) -> Value {
    json!({"op": "insert", "table": "Node_Status", "row": {
        "node": name, "seen_ms": seen_ms(), "address": format!("10.0.0.{}:6642", name.as_bytes()[0] - b'a' + 1),
        "uplink_mtus": ["map", [["trunk0", 1500]]], "datapath": "system",
    }})
}

/// Router r1 on node a, with a session; node b, which it could go to; and node c, of which only uplinks are known.
fn site() -> Server {
    let server = Server::ready();
    populate(&server);
    for line in ["uplink add b trunk0", "uplink add c trunk0", "router add r2 --network red"] {
        server.ok(line);
    }
    server.write(&json!([
        node("a"),
        node("b"),
        {"op": "insert", "table": "Location", "row": {"segment": "red-core", "mac": MAC, "node": "a", "generation": 5}},
        {"op": "insert", "table": "Location", "row": {"segment": "red-core", "mac": MAC, "node": "b", "generation": 4}},
        {"op": "insert", "table": "Status", "row": {
            "node": "a", "router": "r1", "state": "up", "routes": 3, "vif_mtus": ["map", [["r1-core", 1500], ["r1-ctl", 9000]]]}},
    ]));
    server
}

fn dump(server: &Server) -> String {
    server.tool("ovsdb-client", &["dump", &server.db(), "XenFlow"])
}

fn update(table: &str, condition: [&str; 2], row: &Value) -> Value {
    let [column, is] = condition;
    json!([{"op": "update", "table": table, "where": [[column, "==", is]], "row": row}])
}

/// Rule, what is so, words, what is said, how it was.
fn refusals() -> Vec<(&'static str, Value, &'static str, &'static str, Value)> {
    let status = |node, before: Value, after: Value| {
        (update("Node_Status", ["node", node], &before), update("Node_Status", ["node", node], &after))
    };
    let ids = |word: &str| json!({"external_ids": ["map", [["toolstack", word]]]});
    let router = |row: &Value| update("Router", ["name", "r1"], row);
    let none = json!({"external_ids": ["map", []]});
    let named = |name: &str| json!({"external_ids": ["map", [["vm-name", name]]]});
    let migration = json!([{"op": "insert", "table": "Migration", "row": {
        "number": 3, "router": "r1", "from": "a", "to": "c", "via": "xl", "phase": "moving"}}]);
    let over = json!([{"op": "delete", "table": "Migration", "where": []}]);
    let silence = |node| status(node, json!({"seen_ms": now_ms() - 91_000}), json!({"seen_ms": seen_ms()}));
    let ((silent, seen), (source_silent, source_seen)) = (silence("b"), silence("a"));
    let (deaf, hears) = status("b", json!({"address": ""}), json!({"address": "10.0.0.2:6642"}));
    let mtu = |bytes: u32| json!({"uplink_mtus": ["map", [["trunk0", bytes]]]});
    let (cut, whole) = status("b", json!({"uplink_mtus": ["map", [["eth7", 1500]]]}), mtu(1500));
    let (narrow, wide) = status("b", mtu(1400), mtu(1500));
    let (tagged, plain) = status("b", json!({"datapath": "netdev"}), json!({"datapath": "system"}));
    let session = |state: &str| update("Status", ["router", "r1"], &json!({"state": state}));
    let here = |node: &str| json!([{"op": "update", "table": "Location", "where": [["generation", "==", 5]], "row": {"node": node, "generation": 5}}]);
    let gone = json!([{"op": "update", "table": "Location", "where": [], "row": {"segment": "elsewhere"}}]);
    let back = json!([{"op": "update", "table": "Location", "where": [], "row": {"segment": "red-core"}}]);
    let nothing = || json!([]);
    let moves = "migrate r1 b";
    vec![
        (
            "PlanError::Edit",
            nothing(),
            "migrate r9 b",
            "there is no router r9: 'xenflow router list' shows all",
            nothing(),
        ),
        (
            "PlanError::Edit",
            nothing(),
            "migrate r1 z",
            "there is no node z: 'xenflow node list' shows all",
            nothing(),
        ),
        (
            "PlanError::Create",
            migration,
            moves,
            "router r1 is on its way already: migration 3, from a to c, is moving; wait for it, or abort it",
            over,
        ),
        ("PlanError::Create", nothing(), "migrate r1 a", "router r1 is on a already", nothing()),
        (
            "PlanError::Toolstack",
            router(&ids("qemu")),
            moves,
            "router r1 has external_ids:toolstack=\"qemu\": guests move by xl, virsh or lab; 'xenflow router set r1 --external-id toolstack=xl' says so, --via for once",
            router(&none),
        ),
        (
            "PlanError::Toolstack",
            router(&ids("other")),
            moves,
            "router r1 has external_ids:toolstack=\"other\": guests move by xl, virsh or lab; 'xenflow router set r1 --external-id toolstack=xl' says so, --via for once",
            router(&none),
        ),
        (
            "PlanError::NotLive",
            router(&ids("lab")),
            "migrate r1 b --live",
            "nobody knows for how long the command of lab stops the guest of router r1: leave --live out, or move it --via xl or virsh, which do it live",
            router(&none),
        ),
        (
            "PlanError::Guest",
            router(&named("-x")),
            moves,
            "no toolstack can be told of router r1 by that name: 'xenflow router set r1 --external-id vm-name=NAME' says what its guest is called: \"-x\" is no guest's name: 1 to 63 letters, digits and . _ + : @ -, the first a letter or digit, and not digits alone, which toolstacks take for a number of their own",
            router(&none),
        ),
        (
            "PlanError::NoVif",
            nothing(),
            "migrate r2 b",
            "router r2 has no vif on a segment: there is nothing to move; 'xenflow vif add' makes one",
            nothing(),
        ),
        (
            "PlanError::Nowhere",
            gone,
            moves,
            "router r1 is on no node, as none of its addresses is (52:54:00:00:00:01 on red-core): start its guest, and see 'xenflow show router r1'",
            back,
        ),
        (
            "PlanError::NoReport",
            nothing(),
            "migrate r1 c",
            "node c has reported nothing: start xenflow-dom0 there",
            nothing(),
        ),
        (
            "PlanError::NoReport",
            here("d"),
            moves,
            "node d has reported nothing: start xenflow-dom0 there",
            here("a"),
        ),
        (
            "PlanError::Silent",
            silent,
            moves,
            "node b was last seen T s ago, and reports every 20 s: see that xenflow-dom0 runs there and reaches the database, and that the clocks agree",
            seen,
        ),
        (
            "PlanError::Silent",
            source_silent,
            moves,
            "node a was last seen T s ago, and reports every 20 s: see that xenflow-dom0 runs there and reaches the database, and that the clocks agree",
            source_seen,
        ),
        (
            "PlanError::NoAddress",
            deaf,
            moves,
            "node b takes no planned moves: set listen in [migration] of its dom0.toml",
            hears,
        ),
        (
            "PlanError::NoUplink",
            cut,
            moves,
            "node b has none of its uplinks (trunk0) on its bridge, by which it would reach the segments of router r1 (red-core): 'xenflow uplink add b PORT', and the port must be there",
            whole,
        ),
        (
            "PlanError::Mtu",
            narrow,
            moves,
            "vif r1-core of router r1 sends packets of up to 1500 bytes, and uplink trunk0 of node b carries 1400: have it carry as much, or lower the MTU of the guest's interface",
            wide,
        ),
        (
            "PlanError::Mtu",
            tagged,
            moves,
            "vif r1-core of router r1 sends packets of up to 1500 bytes, and uplink trunk0 of node b carries 1496: have it carry as much, or lower the MTU of the guest's interface",
            plain,
        ),
        (
            "PlanError::NoSession",
            session("syncing"),
            moves,
            "router r1 has no whole session on node a, it is syncing: its tables cannot be handed over; see that xenflow-guest runs in its guest ('xenflow show router r1' says since when)",
            session("up"),
        ),
    ]
}

/// With T for how long a node was silent: that goes on.
fn without_age(output: Output) -> Output {
    let said = String::from_utf8(output.stderr).unwrap();
    let aged =
        said.split_once("last seen ").and_then(|(head, tail)| Some((head, tail.split_once(" s ago")?)));
    let said = match aged {
        Some((head, (age, tail))) if age.parse::<u64>().is_ok_and(|age| age >= 90) => {
            format!("{head}last seen T s ago{tail}")
        }
        _ => said,
    };
    Output { stderr: said.into_bytes(), ..output }
}

#[test]
fn what_cannot_move_is_refused_and_nothing_is_written() {
    let server = site();
    let rules: BTreeSet<_> = rules!(PlanError: Edit, Create, Toolstack, NotLive, Guest, NoVif, Nowhere, NoReport, Silent, NoAddress,
        NoUplink, Mtu, NoSession)
    .into_iter()
    .collect();
    let mut seen = BTreeSet::new();
    for (rule, before, line, message, after) in refusals() {
        server.write(&before);
        let was = dump(&server);
        // A dry run refuses the same.
        for line in [line, &format!("{line} --dry-run")] {
            refused(line, &without_age(server.run(line)), 2, message);
        }
        assert_eq!(dump(&server), was, "{rule}");
        server.write(&after);
        seen.insert(rule);
    }
    assert_eq!(seen, rules);
    // The guest's larger packets did not get through before either: control, and the site is as it was.
    let jumbo = json!({"vif_mtus": ["map", [["r1-core", 9000]]]});
    server.write(&update("Status", ["router", "r1"], &jumbo));
    server.ok("migrate r1 b --dry-run");
    for (line, message) in [
        (
            "migrations show 9",
            "there is no migration 9: 'xenflow migrations --all' shows those that are kept",
        ),
        ("abort 9", "there is no migration 9: 'xenflow migrations --all' shows those that are kept"),
        ("abort r9", "there is no router r9: 'xenflow router list' shows all"),
        ("abort r1", "router r1 is not on its way: 'xenflow migrations' shows which are"),
    ] {
        server.refused(line, 2, message);
    }
}

#[test]
fn a_dry_run_says_what_would_be_done_and_touches_nothing() {
    let server = site();
    let before = dump(&server);
    let said = server.ok("migrate r1 b --dry-run");
    assert_eq!(
        said,
        "router r1 from a to b by xl, within 600 s (guest r1)
  52:54:00:00:00:01 on red-core: a has it since generation 5
  its tables (3 routes) go to b at 10.0.0.2:6642
nothing is in the way, and nothing was changed
"
    );
    let live = server.json("migrate r1 b --dry-run --live --via virsh --timeout 7200");
    assert_eq!(
        (&live["via"], &live["move_limit_s"], &live["dry_run"]),
        (&json!("virsh"), &json!(7200), &json!(true))
    );
    assert_eq!(dump(&server), before);
    server.ok("router set r1 --external-id toolstack=lab --external-id vm-name=guest-1");
    let lab = server.json("migrate r1 b --dry-run");
    assert_eq!((&lab["via"], &lab["guest"], &lab["routes"]), (&json!("lab"), &json!("guest-1"), &json!(3)));
    assert_eq!(lab["addresses"], json!([{"segment": "red-core", "mac": MAC, "generation": 5}]));
    // What is said with the command counts.
    assert_eq!(server.json("migrate r1 b --dry-run --via xl")["via"], "xl");
}

/// The command while it goes on, and its lines as they come.
struct Follows {
    child: Child,
    lines: Receiver<String>,
}

impl Follows {
    fn start(server: &Server, line: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow"));
        let command = command.env("XENFLOW_DB", server.db()).args(line.split(' '));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Self { child, lines }
    }

    /// The next line, its time apart.
    fn line(&self) -> String {
        self.lines.recv_timeout(LIMIT).unwrap().trim().to_owned()
    }

    /// "0.000 s  staging    b gets the tables" without its time.
    fn phase(&self) -> String {
        let line = self.line();
        let (time, rest) = line.split_once(" s  ").unwrap();
        assert!(time.parse::<f64>().is_ok(), "{line}");
        rest.to_owned()
    }

    fn ends(self, code: i32, message: &str) -> Vec<String> {
        let Output { status, stderr, .. } = self.child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert_eq!((status.code(), said.trim_end()), (Some(code), message));
        self.lines.iter().collect()
    }
}

impl Database {
    async fn until(&self, what: &str, is: impl Fn(&[Migration]) -> bool) -> Vec<Migration> {
        let end = Instant::now() + LIMIT;
        loop {
            let all = self.all().await;
            if is(&all) {
                return all;
            }
            assert!(Instant::now() < end, "no {what}: {all:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The newest row, once it is in that phase.
    async fn newest(&self, phase: Phase) -> Migration {
        let all = self.until(phase.as_str(), |all| all.last().is_some_and(|row| row.phase == phase)).await;
        all.last().unwrap().clone()
    }

    async fn advance(&self, from: Phase, to: Phase) {
        let row = self.newest(from).await;
        assert!(self.does(&row.advance(to, now_ms())).await);
    }
}

fn counters(pairs: &[(&str, i64)]) -> Value {
    let pairs: Vec<_> = pairs.iter().map(|(key, count)| json!([key, count])).collect();
    json!([{"op": "mutate", "table": "Migration", "where": [], "mutations": [["counters", "insert", ["map", pairs]]]}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_migration_is_followed_to_its_end_and_reported() {
    let server = site();
    let database = Database::of(&server).await;
    let begun = now_ms();
    let follows = Follows::start(&server, "migrate r1 b --timeout 120");
    assert_eq!(follows.line(), "migration 1: router r1 from a to b by xl");
    assert_eq!(follows.phase(), "staging    b gets the tables");
    let row = database.newest(Phase::Staging).await;
    assert_eq!((row.number, row.router.as_str(), row.from.as_str(), row.to.as_str()), (1, "r1", "a", "b"));
    assert_eq!((row.move_limit_s, row.generation, row.yielded, row.left), (120, 0, false, false));
    assert!((begun..=now_ms()).contains(&row.reached["staging"]), "{row:?}");
    // It is in the way of another one, and both are told of.
    server.refused(
        "migrate r1 b",
        2,
        "router r1 is on its way already: migration 1, from a to b, is staging; wait for it, or abort it",
    );
    let listed = server.ok("migrations");
    let words: Vec<_> = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(words[0], ["ROUTER", "NUMBER", "FROM", "TO", "VIA", "PHASE", "SINCE", "ERROR"]);
    assert_eq!(words[1][..6], ["r1", "1", "a", "b", "xl", "staging"]);
    let steps = [
        (Phase::Staged, "staged     b has the tables; a stops using the router's addresses"),
        (Phase::Moving, "moving     the guest leaves a by xl"),
        (Phase::Arrived, "arrived    the guest runs on b; a still forwards"),
        (Phase::Verified, "verified   b forwards as well"),
    ];
    let mut before = Phase::Staging;
    for (phase, line) in steps {
        database.advance(before, phase).await;
        assert_eq!(follows.phase(), line);
        before = phase;
    }
    let verified = database.newest(Phase::Verified).await;
    let place =
        dom0_server::db::location::Place { segment: "red-core".parse().unwrap(), mac: MAC.parse().unwrap() };
    assert!(database.does(&verified.announce([&place], 6, now_ms())).await);
    assert_eq!(follows.phase(), "announced  b has the router's addresses");
    database.advance(Phase::Announced, Phase::Draining).await;
    assert_eq!(follows.phase(), "draining   a takes in what still comes there");
    server.write(&counters(&[
        ("source/packets/red-core", 1000),
        ("destination/packets/red-core", 998),
        ("source/copied", 12),
        ("destination/late", 0),
        ("probe/sent", 5000),
        ("probe/lost", 0),
        ("of/another/kind", 7),
        ("alone", 1),
    ]));
    database.advance(Phase::Draining, Phase::Done).await;
    assert_eq!(follows.phase(), "done       the router is on b");
    assert_eq!(follows.ends(0, ""), Vec::<String>::new());

    let report = server.json("migrations show 1");
    let phases: Vec<_> =
        report["phases"].as_array().unwrap().iter().map(|step| step["phase"].as_str().unwrap()).collect();
    assert_eq!(
        phases,
        ["staging", "staged", "moving", "arrived", "verified", "announced", "draining", "done"]
    );
    assert_eq!((&report["phases"][0]["at_ms"], &report["phases"][7]["took_ms"]), (&json!(0), &Value::Null));
    assert_eq!(report["took_ms"], report["phases"][7]["at_ms"]);
    assert_eq!((&report["counters"]["of/another/kind"], &report["generation"]), (&json!(7), &json!(6)));
    let text = server.ok("migrations show 1");
    let tables = text.split("\n\n").skip(2).collect::<Vec<_>>().join("\n\n");
    assert_eq!(
        tables,
        "COUNTED           SOURCE  DESTINATION
copied                12            -
late                   -            0
packets red-core    1000          998

OF            COUNT
another kind      7

OTHER  COUNT
alone      1

PROBE  COUNT
lost       0
sent    5000
"
    );
    assert!(text.starts_with("migration 1: router r1 from a to b by xl, done\nbegan 2"), "{text}");
    assert!(text.contains("\naddresses are on b since generation 6\n\nPHASE "), "{text}");
    server.refused("abort 1", 2, "migration 1 of router r1 is done: there is nothing to abort");
    server.refused("migrate r1 b", 2, "router r1 is on b already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn it_is_aborted_until_the_guest_has_left() {
    let server = site();
    let database = Database::of(&server).await;
    let follows = Follows::start(&server, "migrate r1 b --json");
    database.advance(Phase::Staging, Phase::Staged).await;
    database.advance(Phase::Staged, Phase::Moving).await;
    let aborts = Follows::start(&server, "abort r1");
    assert_eq!(aborts.line(), "migration 1 of router r1 is to be aborted");
    assert_eq!(aborts.phase(), "aborting   it is to stay on a: by the operator");
    server.refused("abort 1", 2, "migration 1 of router r1 is aborting already");
    database.advance(Phase::Aborting, Phase::Aborted).await;
    assert_eq!(aborts.phase(), "aborted    the router is on a");
    assert_eq!(aborts.ends(0, ""), Vec::<String>::new());
    let report =
        follows.ends(3, "xenflow: migration 1 was aborted: by the operator; router r1 is on a").join("\n");
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["phase"], &report["phases"][3]["phase"]), (&json!("aborted"), &json!("aborting")));

    // Its guest has left: there is no way back.
    let follows = Follows::start(&server, "migrate r1 b --via virsh");
    database.newest(Phase::Staging).await;
    database.advance(Phase::Staging, Phase::Staged).await;
    database.advance(Phase::Staged, Phase::Moving).await;
    assert!(database.does(&database.newest(Phase::Moving).await.leaves()).await);
    let late = "migration 2 is moving: router r1 has left a and runs on b; migrate it back once this is done";
    server.refused("abort r1", 2, late);
    server.refused("abort 2", 2, late);
    for (from, to) in [
        (Phase::Moving, Phase::Arrived),
        (Phase::Arrived, Phase::Verified),
        (Phase::Verified, Phase::Announced),
        (Phase::Announced, Phase::Draining),
        (Phase::Draining, Phase::Done),
    ] {
        database.advance(from, to).await;
    }
    follows.ends(0, "");

    // Asked in time, but it arrives nevertheless.
    let follows = Follows::start(&server, "migrate r1 b");
    database.newest(Phase::Staging).await;
    let aborts = Follows::start(&server, "abort 3 --json");
    database.advance(Phase::Aborting, Phase::Arrived).await;
    database.advance(Phase::Arrived, Phase::Done).await;
    let message = "xenflow: migration 3 could not be aborted any more: router r1 is on b; 'xenflow migrate r1 a' moves it back";
    let report: Value = serde_json::from_str(&aborts.ends(3, message).join("\n")).unwrap();
    assert_eq!(report["phase"], "done");
    follows.ends(0, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_follows_no_further_leaves_it_alone() {
    let server = site();
    let database = Database::of(&server).await;
    let goes_on = "it goes on: 'xenflow migrations show 1' says how it is, 'xenflow abort 1' ends it";
    let follows = Follows::start(&server, "migrate r1 b --timeout 1");
    follows.line();
    assert_eq!(follows.phase(), "staging    b gets the tables");
    server.tool("sh", &["-c", "kill -INT $0", &follows.child.id().to_string()]);
    follows.ends(130, &format!("xenflow: migration 1 of router r1 is not followed any further; {goes_on}"));
    database.advance(Phase::Staging, Phase::Staged).await;
    database.advance(Phase::Staged, Phase::Moving).await;

    // Nobody ends a phase that may take a second: another one is followed, and given up.
    server.write(&update("Migration", ["router", "r1"], &json!({"router": "r9"})));
    let follows = Follows::start(&server, "migrate r1 b --timeout 1 --json");
    database.until("second", |all| all.len() == 2).await;
    database.advance(Phase::Staging, Phase::Staged).await;
    database.advance(Phase::Staged, Phase::Moving).await;
    let goes_on = goes_on.replace('1', "2");
    let message = format!(
        "xenflow: migration 2 of router r1 is not followed any further: it has been moving for 7 s; {goes_on}"
    );
    let report: Value = serde_json::from_str(&follows.ends(4, &message).join("\n")).unwrap();
    assert_eq!(report["phase"], "moving");
    let phases: Vec<_> = database.all().await.iter().map(|row| row.phase).collect();
    assert_eq!(phases, [Phase::Moving, Phase::Moving]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_has_ended_is_kept_but_not_for_ever() {
    let server = site();
    let database = Database::of(&server).await;
    let ended = |number: usize| {
        let phase = if number.is_multiple_of(2) { "done" } else { "aborted" };
        json!({"op": "insert", "table": "Migration", "row": {
            "number": number, "router": "r7", "from": "c", "to": "d", "via": "xl", "phase": phase, "error": "x"}})
    };
    let mut rows: Vec<_> = (2..=KEPT + 20).map(ended).collect();
    rows.push(json!({"op": "insert", "table": "Migration", "row": {
        "number": 1, "router": "r8", "from": "c", "to": "d", "via": "xl", "phase": "moving"}}));
    server.write(&Value::from(rows));
    // The newest ten lines, whatever is open among them.
    let numbers = |server: &Server, line: &str| -> Vec<usize> {
        let listed = server.json(line);
        listed
            .as_array()
            .unwrap()
            .iter()
            .map(|row| usize::try_from(row["number"].as_u64().unwrap()).unwrap())
            .collect()
    };
    assert_eq!(
        numbers(&server, "migrations"),
        [&[1][..], &(KEPT + 12..=KEPT + 20).collect::<Vec<_>>()].concat()
    );
    assert_eq!(numbers(&server, "migrations --all").len(), KEPT + 20);
    let follows = Follows::start(&server, "migrate r1 b");
    assert_eq!(follows.line(), format!("migration {}: router r1 from a to b by xl", KEPT + 21));
    let kept = [&[1][..], &(21..=KEPT + 21).collect::<Vec<_>>()].concat();
    assert_eq!(numbers(&server, "migrations --all"), kept);
    let aborts = Follows::start(&server, "abort r1");
    database.advance(Phase::Aborting, Phase::Aborted).await;
    aborts.ends(0, "");
    follows.ends(
        3,
        &format!("xenflow: migration {} was aborted: by the operator; router r1 is on a", KEPT + 21),
    );
    assert_eq!(numbers(&server, "migrations --all"), kept, "only who makes one removes any");
}
