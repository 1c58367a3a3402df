//! `xenflow --wait` against a real `ovsdb-server`, with nodes that are played by hand, and what `xenflow show node` says
//! of them.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{LIMIT, Server, populate, refused};

/// A node that began and was seen long ago.
fn node(name: &str, cfg: i64) -> Value {
    json!({"op": "insert", "table": "Node_Status", "row": {
        "node": name, "version": "0.9.1", "ovs_version": "3.1.0", "datapath": "system",
        "started_ms": 1_700_000_000_000_i64, "seen_ms": 1_700_000_005_000_i64, "cfg": cfg,
    }})
}

/// A node reports that.
fn reports(server: &Server, name: &str, cfg: i64) {
    let update = json!({
        "op": "update", "table": "Node_Status", "where": [["node", "==", name]], "row": {"cfg": cfg},
    });
    server.write(&json!([update]));
}

fn next_cfg(server: &Server) -> i64 {
    let said =
        server.transact(&json!([{"op": "select", "table": "XenFlow", "where": [], "columns": ["next_cfg"]}]));
    let said: Value = serde_json::from_str(&said).unwrap();
    said[0]["rows"][0]["next_cfg"].as_i64().unwrap()
}

/// Waits until changes have got numbers up to this.
fn numbered(server: &Server, cfg: i64) {
    let end = Instant::now() + LIMIT;
    while next_cfg(server) < cfg {
        assert!(Instant::now() < end, "{} changes, not {cfg}", next_cfg(server));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_change_is_waited_for_until_every_node_has_it() {
    let server = Server::ready();
    populate(&server);
    assert_eq!(next_cfg(&server), 0, "who does not wait asks for nothing");
    server.write(&json!([node("a", 0), node("b", 0)]));
    let line = "vif add r1-lan --router r1 --segment red-lan1 --mac 52:54:00:00:00:02 --wait";
    let pause = Duration::from_millis(400);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            numbered(&server, 1);
            std::thread::sleep(pause / 2);
            reports(&server, "a", 1);
            std::thread::sleep(pause / 2);
            reports(&server, "b", 1);
            // Both have it, and have told where its address is: that is the second number.
            numbered(&server, 2);
            reports(&server, "a", 2);
            std::thread::sleep(pause / 2);
            reports(&server, "b", 2);
        });
        assert_eq!(server.ok(line), "");
        assert!(begun.elapsed() >= pause * 3 / 2, "{:?}", begun.elapsed());
    });
    assert_eq!(next_cfg(&server), 2);

    // What is there already: the state as it is.
    let again = "sla set red --min 20mbit --wait --timeout 1";
    refused(
        again,
        &strip_age(server.run(again)),
        1,
        "the change is made, but not in every switch within 1 s: a (has 2 of 3, last seen T ago), b (has 2 of 3, last seen T ago); 'xenflow node remove NODE' ends the waiting for one that is gone for good",
    );
    assert_eq!(server.json("network list")[1]["min_bps"], 20_000_000, "it is made");
    reports(&server, "a", 4);
    refused(
        again,
        &strip_age(server.run(again)),
        1,
        "the change is made, but not in every switch within 1 s: b (has 2 of 4, last seen T ago); 'xenflow node remove NODE' ends the waiting for one that is gone for good",
    );
    assert_eq!(next_cfg(&server), 4);
    // What cannot be is no change, and what only reads waits for nobody.
    let wrong = server.run("network add red --wait");
    assert_eq!(
        (wrong.status.code(), stderr(&wrong)),
        (Some(2), "xenflow: network red exists already: choose another name, or say --may-exist\n".into())
    );
    assert_eq!(server.ok("network list --wait"), server.ok("network list"));
    assert_eq!(next_cfg(&server), 4);
}

#[test]
fn a_node_that_is_gone_is_waited_for_no_more() {
    let server = Server::ready();
    server.ok("uplink add a eth0");
    server.write(&json!([
        node("a", 0),
        {"op": "insert", "table": "Status", "row": {"node": "a", "router": "r1", "state": "down"}},
        {"op": "insert", "table": "Location", "row": {"segment": "s", "mac": "52:54:00:00:00:01", "node": "a", "generation": 1}},
        {"op": "insert", "table": "Statistics", "row": {"node": "a", "scope": "node", "name": "a"}},
        {"op": "insert", "table": "Location", "row": {"segment": "s", "mac": "52:54:00:00:00:02", "node": "c", "generation": 1}},
    ]));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let mut row = node("b", 0);
    row["row"]["seen_ms"] = json!(u64::try_from(now).unwrap());
    server.write(&json!([row]));
    let listed = server.json("node list");
    assert_eq!((&listed[0]["node"], &listed[0]["uplinks"]), (&json!("a"), &json!(["eth0"])));
    assert_eq!((&listed[1]["is_behind"], &listed[1]["problems"]), (&json!(false), &json!(0)));
    assert_eq!(server.ok("node show a"), server.ok("show node a"));
    assert!(server.ok("node list").starts_with("NODE  VERSION  OVS_VERSION  DATAPATH  SEEN"));

    server.refused("node remove a", 2, "node a is in use by uplink eth0: remove those first");
    server.refused("node remove d", 2, "there is no node d: 'xenflow node list' shows all");
    server.ok("node remove d --if-exists");
    let alive = server.run("node remove b");
    let said = stderr(&alive);
    let rule = " s ago: end its daemon and wait until it has been silent for 90 s, or say --force\n";
    assert!(said.starts_with("xenflow: node b was seen ") && said.ends_with(rule), "{said}");
    assert_eq!(alive.status.code(), Some(2));
    server.ok("node remove b --force");
    server.ok("uplink remove a eth0");
    server.ok("node remove a");
    let left =
        |table| server.transact(&json!([{"op": "select", "table": table, "where": [], "columns": ["node"]}]));
    for table in ["Node_Status", "Status", "Statistics"] {
        assert_eq!(left(table).trim(), "[{\"rows\":[]}]", "{table}");
    }
    assert_eq!(left("Location").trim(), "[{\"rows\":[{\"node\":\"c\"}]}]");
    server.ok("node remove c");
    let said = stderr(&server.run("network add red --wait"));
    assert!(said.starts_with("xenflow: no node reports"), "{said}");
}

/// "12 d 3 h ago" as "T ago".
fn strip_age(mut output: Output) -> Output {
    let text = stderr(&output);
    let mut parts = text.split("last seen ");
    let mut whole = parts.next().unwrap().to_owned();
    for part in parts {
        let (age, rest) = part.split_once(" ago").unwrap();
        assert!(age.ends_with(['h', 'd']) || age.contains(" d "), "{age}");
        whole += &format!("last seen T ago{rest}");
    }
    output.stderr = whole.into_bytes();
    output
}

#[test]
fn without_a_node_there_is_nothing_to_wait_for() {
    let server = Server::ready();
    let output = server.run("network add red --wait");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        stderr(&output),
        "xenflow: no node reports to the database: the change is made, and in nobody's switch\n"
    );
    assert!(server.ok("network list").contains("red"));
}

#[test]
fn commands_at_once_have_numbers_of_their_own() {
    const MANY: i64 = 5;
    let server = Server::ready();
    server.write(&json!([node("a", 0)]));
    std::thread::scope(|scope| {
        for n in 0..MANY {
            let server = &server;
            scope.spawn(move || assert_eq!(server.ok(&format!("network add n{n} --wait")), ""));
        }
        scope.spawn(|| {
            numbered(&server, MANY);
            reports(&server, "a", MANY);
        });
    });
    assert_eq!(next_cfg(&server), MANY);
}

#[test]
fn a_node_is_shown_with_what_it_reports() {
    let server = Server::ready();
    populate(&server);
    let page = server.ok("show node a");
    assert_eq!(page, "node a\n  its daemon has reported nothing\n  uplink trunk0\n");
    let mut row = node("b", 4);
    row["row"]["problems"] = json!(["set", ["port p9 belongs to no vif\u{1b}"]]);
    server.write(&json!([row, {"op": "update", "table": "XenFlow", "where": [], "row": {"next_cfg": 4}}]));
    let page = server.ok("show node b");
    let lines: Vec<&str> = page.lines().collect();
    assert_eq!(lines.len(), 5, "{page}");
    assert_eq!(lines[1], "  xenflow 0.9.1, Open vSwitch 3.1.0, datapath system");
    assert!(
        lines[2].starts_with("  seen ") && lines[2].ends_with("ago, runs since 2023-11-14T22:13:20Z"),
        "{page}"
    );
    assert_eq!(lines[3], "  not behind: its switch has 4");
    assert_eq!(lines[4], "  problem: port p9 belongs to no vif\u{fffd}");
    server.write(&json!([{"op": "update", "table": "XenFlow", "where": [], "row": {"next_cfg": 7}}]));
    assert!(server.ok("show node b").contains("  behind: its switch has 4 of 7\n"));
    let all = server.json("show node");
    assert_eq!(all[0]["status"], Value::Null);
    let status = &all[1]["status"];
    assert_eq!(
        (&status["version"], &status["cfg"], &status["is_behind"]),
        (&json!("0.9.1"), &json!(4), &json!(true))
    );
    assert_eq!(status["problems"], json!(["port p9 belongs to no vif\u{1b}"]));
}
