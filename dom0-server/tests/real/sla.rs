//! Contracts: what is admitted, against a real `ovsdb-server`.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Server, populate};

/// What a node reports that its uplinks carry.
fn report(server: &Server, node: &str, capacities: &Value) {
    let capacities = json!(["map", capacities]);
    server.write(&json!([
        {"op": "delete", "table": "Node_Status", "where": [["node", "==", node]]},
        {"op": "insert", "table": "Node_Status", "row": {"node": node, "uplink_capacity": capacities}},
    ]));
}

/// A refusal, which changes nothing; the first words of it.
fn denied(server: &Server, line: &str, words: &str) {
    let before = server.json("show");
    let output = server.run(line);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with(&format!("xenflow: {words}")), "{line}: {said}");
    assert_eq!(output.status.code(), Some(2), "{line}: {said}");
    assert_eq!(server.json("show"), before, "{line}");
}

#[test]
fn no_uplink_of_any_node_is_promised_away_twice() {
    let server = Server::ready();
    populate(&server);
    server.ok("uplink add b trunk0");
    // Nobody knows what they carry.
    server.ok("sla set red --min 20mbit");
    server.ok("sla set blue --min 1tbit");
    server.ok("sla set blue --min 40mbit");
    report(&server, "a", &json!([["trunk0", 1_000_000_000], ["eth9", 8000]]));
    report(&server, "b", &json!([["trunk0", 100_000_000]]));
    server.ok("sla set red --min 60mbit");
    let by_node = "networks are promised 101mbit in all, but uplink trunk0 of node b carries 100mbit (as the node reports): 1mbit";
    denied(&server, "sla set red --min 61mbit", by_node);
    denied(&server, "network set red --min 61mbit", by_node);
    denied(&server, "network add green --min 1mbit", by_node);
    // By hand counts, whatever is reported; then it is that uplink that is full.
    server.ok("uplink set b trunk0 --capacity 200mbit");
    server.ok("sla set red --min 160mbit");
    let by_hand =
        "networks are promised 201mbit in all, but uplink trunk0 of node b carries 200mbit (set): 1mbit";
    denied(&server, "sla set red --min 161mbit", by_hand);
    let less = "networks are promised 200mbit in all, but uplink trunk0 of node b carries";
    denied(&server, "uplink set b trunk0 --capacity 199mbit", &format!("{less} 199mbit (set): 1mbit"));
    denied(
        &server,
        "uplink set b trunk0 --capacity none",
        &format!("{less} 100mbit (as the node reports): 100mbit"),
    );
    let other =
        "networks are promised 200mbit in all, but uplink eth1 of node c carries 10mbit (set): 190mbit";
    denied(&server, "uplink add c eth1 --capacity 10mbit", other);
    denied(
        &server,
        "uplink add a eth9",
        "networks are promised 200mbit in all, but uplink eth9 of node a carries 8kbit",
    );

    // A port came up with less. What has nothing to do with that goes on, and so does what makes it better.
    report(&server, "a", &json!([["trunk0", 100_000_000]]));
    server.ok("segment add red-new --network red --vlan 300");
    server.ok("network add green");
    server.ok("sla set red --min 150mbit");
    denied(
        &server,
        "sla set red --min 151mbit",
        "networks are promised 191mbit in all, but uplink trunk0 of node a",
    );
    server.ok("uplink remove a trunk0");
    server.ok("sla set red --min 151mbit");
}

#[test]
fn classes_are_promised_no_more_than_their_network() {
    let server = Server::ready();
    populate(&server);
    denied(
        &server,
        "class add red voice --priority 1 --min 1mbit",
        "class voice of network red is promised 1mbit",
    );
    server.ok("sla set red --min 20mbit --max 80mbit");
    server.ok("class add red voice --priority 1 --min 15mbit --max 80mbit");
    server.ok("class add red video --priority 2 --min 5mbit");
    let more = "classes of network red are promised 21mbit in all, but the network 20mbit: 1mbit too much";
    denied(&server, "class set red video --min 6mbit", more);
    denied(&server, "class add red bulk --priority 3 --min 1mbit", more);
    denied(
        &server,
        "sla set red --min 19mbit",
        "classes of network red are promised 20mbit in all, but the network 19mbit",
    );
    denied(
        &server,
        "sla set red --min none",
        "class video of network red is promised 5mbit, but the network nothing",
    );
    let bound = "class voice of network red gets 80mbit at most, but the network 79mbit: 1mbit";
    denied(&server, "sla set red --max 79mbit", bound);
    server.ok("sla set red --max none");
    server.ok("class set red voice --max 1gbit");

    // What an earlier program wrote stays, and may become better.
    server.write(&json!([{"op": "update", "table": "Traffic_Class", "where": [["name", "==", "video"]], "row": {"min_bps": 9_000_000}}]));
    server.ok("class set red voice --min 14mbit");
    server.ok("class set red video --min 8mbit");
    denied(&server, "class set red video --min 9mbit", "classes of network red are promised 23mbit");
}

/// Each is well by itself: together they are not, so that one at least is refused, whichever comes first.
#[test]
fn promises_made_at_the_same_time_are_seen_by_each_other() {
    let server = Server::ready();
    server.ok("uplink add a eth0 --capacity 100mbit");
    let names: Vec<_> = (0..6).map(|n| format!("n{n}")).collect();
    names.iter().for_each(|name| assert_eq!(server.ok(&format!("network add {name}")), ""));
    let begin = |name: &String| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow"));
        let line = format!("sla set {name} --min 30mbit --timeout 60");
        command.env("XENFLOW_DB", server.db()).args(line.split(' ')).stderr(Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = names.iter().map(begin).collect();
    let codes: Vec<_> = children.into_iter().map(|mut child| child.wait().unwrap().code()).collect();
    let done = codes.iter().filter(|code| **code == Some(0)).count();
    let refused = codes.iter().filter(|code| **code == Some(2)).count();
    assert_eq!((done, refused), (3, 3), "{codes:?}");
    let listed = server.json("sla list");
    let sum: i64 = listed.as_array().unwrap().iter().filter_map(|row| row["min_bps"].as_i64()).sum();
    assert_eq!(sum, 90_000_000);
}
