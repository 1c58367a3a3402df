//! Contracts: what is admitted, against a real `ovsdb-server`, and what is shown of how they are kept, by a real control
//! socket; what the bandwidth loop tells is made up here.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use dom0_server::events::Events;
use dom0_server::inspect::socket::open;
use dom0_server::shaper::handle::{Writer, channel};
use dom0_server::shaper::report::{LinkReport, QueueReport, Report};
use serde_json::{Value, json};

use crate::support::{Dir, Server, ok, populate, refused};

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

/// A command that asks the daemon at a socket; the database is out of reach.
fn asked(socket: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow"));
    command.env("XENFLOW_DB", "unix:/nonexistent").env("XENFLOW_SOCKET", socket).args(line.split(' '));
    command.output().unwrap()
}

/// Red and blue on two uplinks, and so many networks more on the first.
fn shared(more: usize) -> Report {
    let queue = |network: &str, queue: u32, min_bps, obtained_bps| QueueReport {
        network: network.to_owned(),
        queue,
        min_bps,
        obtained_bps,
        expected_bps: obtained_bps,
        wants_more: true,
        fitness: Some(1.0),
        since_ms: 1_700_000_000_000,
        state: "met".to_owned(),
        ..QueueReport::default()
    };
    let queues = vec![queue("blue", 1, 40_000_000, 66_000_000), queue("red", 2, 20_000_000, 33_000_000)];
    let link = |port: &str, queues| LinkReport {
        port: port.to_owned(),
        capacity_bps: 100_000_000,
        capacity_from: "operator".to_owned(),
        driver: "tc".to_owned(),
        carried_bps: 99_000_000,
        queues,
        ..LinkReport::default()
    };
    let others = (0..more).map(|n| queue(&format!("n{n:04}"), u32::try_from(n).unwrap() + 3, 0, 0));
    let many = queues.clone().into_iter().chain(others).collect();
    Report {
        policy: "fair".to_owned(),
        period_ms: 1000,
        links: vec![link("eth0", many), link("eth1", queues)],
    }
}

/// Seven seconds' worth, so that there is one whole point.
fn tell(writer: &Writer, report: &Report) {
    for second in 0..7 {
        writer.tell(1_700_000_000_000 + second * 1000, 1000, report.clone());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_uplinks_are_shared_is_shown_explained_and_drawn() {
    let dir = Dir::new();
    let socket = dir.0.join("xf.sock");
    let (writer, handle) = channel();
    let (_control, _asks) = open(&socket, &Events::default(), &handle).await.unwrap();
    let say = |line: &str| ok(line, asked(&socket, line));
    let none = "this node shares no uplink: it has none, its daemon does not shape, or has not begun to";
    assert_eq!(say("sla show"), format!("{none}\n"));
    assert_eq!(say("sla plot --json"), "[]\n");
    refused("sla plot", &asked(&socket, "sla plot"), 1, none);
    refused("explain sla red", &asked(&socket, "explain sla red"), 1, none);

    tell(&writer, &shared(0));
    let page = say("sla show");
    let head = "policy fair, looked at every 1 s\nuplink eth0: carries 99.0 Mbit/s of 100mbit (set), 99 %; shaped by tc\n";
    assert!(
        page.starts_with(head) && page.contains("\n  blue     -      40mbit  -    66.0 Mbit/s"),
        "{page}"
    );
    assert!(!say("sla show red").contains("blue"));
    let json: Report = serde_json::from_str(&say("sla show --json")).unwrap();
    assert_eq!(json, shared(0));
    let why = say("explain sla red");
    assert!(
        why.starts_with("network red on uplink eth0:\n  the uplink is full: it carries 99.0 Mbit/s"),
        "{why}"
    );
    assert!(
        why.contains("\nnetwork red on uplink eth1:\n") && why.contains("beside it blue has 66.0 Mbit/s"),
        "{why}"
    );
    let why: Value = serde_json::from_str(&say("explain sla red --json")).unwrap();
    assert_eq!((&why["network"], &why["links"][1]["port"]), (&json!("red"), &json!("eth1")));

    let points: Value = serde_json::from_str(&say("sla plot red --json")).unwrap();
    let point =
        json!([{"at_ms": 1_700_000_000_000_u64, "obtained_bps": 33_000_000, "expected_bps": 33_000_000}]);
    assert_eq!((points.as_array().unwrap().len(), &points[1]["points"]), (2, &point));
    assert_eq!(points[0]["min_bps"], 20_000_000);
    let svg = say("sla plot");
    assert!(svg.starts_with("<svg ") && svg.matches("<polyline ").count() == 4, "{svg}");
    let file = dir.0.join("red.svg");
    assert_eq!(say(&format!("sla plot red --svg {}", file.display())), "");
    assert_eq!(std::fs::read_to_string(&file).unwrap().matches("<polyline ").count(), 2);

    // As many networks as there can be come in pages.
    let all = shared(4_092);
    writer.tell(1_700_000_010_000, 1000, all.clone());
    let json: Report = serde_json::from_str(&say("sla show --json")).unwrap();
    assert_eq!(json, all);
    let crowd = "4094 networks are too many for one figure: name at most 8, which can be told apart";
    refused("sla plot", &asked(&socket, "sla plot"), 2, crowd);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shown_is_refused() {
    let dir = Dir::new();
    let socket = dir.0.join("xf.sock");
    let away = format!(
        "no daemon answers at {}: start xenflow-dom0 (systemctl start xenflow-dom0), or say --socket PATH if its \
         control_socket is another one",
        socket.display()
    );
    for line in ["sla show", "sla plot", "explain sla red"] {
        refused(line, &asked(&socket, line), 1, &away);
    }
    let (writer, handle) = channel();
    let (_control, _asks) = open(&socket, &Events::default(), &handle).await.unwrap();
    tell(&writer, &shared(0));
    let name = "\"Red\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit";
    let unknown = "network green has no queue on an uplink of this node";
    for (line, code, message) in [
        ("sla show Red", 2, name),
        ("sla plot Red", 2, name),
        ("explain sla Red", 2, name),
        ("sla show green", 1, unknown),
        ("explain sla green", 1, unknown),
        ("sla plot green", 1, "nothing is known of network green on an uplink of this node"),
        ("explain sla", 2, "the following required arguments were not provided: <NETWORK>"),
        ("explain --from h1 --dst 10.0.0.1 sla red", 2, "a packet and 'sla red' are two questions: ask one"),
        // Of a packet all is as it was.
        (
            "explain",
            2,
            "the following required arguments were not provided: --from <NAME> <--dst <ADDRESS>|--frame <HEX>>",
        ),
    ] {
        refused(line, &asked(&socket, line), code, message);
    }
}

/// What the rows say of all nodes, and what the daemon says of this one.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_and_top_see_how_contracts_are_kept() {
    let server = Server::ready();
    populate(&server);
    let socket = server.dir.0.join("xf.sock");
    let config = server.dir.0.join("dom0.toml");
    let settings = format!(
        "node = \"a\"\nca = \"x\"\ncert = \"x\"\nkey = \"x\"\ncontrol_socket = \"{}\"\n",
        socket.display()
    );
    std::fs::write(&config, settings).unwrap();
    let findings = |check: &str| {
        let ran = server.run(&format!("doctor --json --config {}", config.display()));
        let said: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let of = said["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == check);
        of.map(|finding| {
            format!("{} {}", finding["level"].as_str().unwrap(), finding["seen"].as_str().unwrap())
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(findings("shaping"), ["ok no network has a contract"]);
    let silent = findings("contracts");
    assert!(
        silent[0].starts_with("warn how they are kept here is not known: no daemon answers at"),
        "{silent:?}"
    );
    server.ok("sla set red --min 20mbit");
    report(&server, "a", &json!([]));
    assert_eq!(
        findings("capacity"),
        ["warn the capacity of trunk0 of node a is not known: contracts cannot be kept there"]
    );
    server.ok("uplink set a trunk0 --capacity 100mbit");
    assert_eq!(findings("capacity"), [""; 0]);
    let bare = "warn trunk0 of node a: shaped by none: its daemon says nothing of it; contracts of red";
    assert_eq!(findings("shaping"), [bare]);
    let row = json!({"shaping": ["map", [["trunk0", "tc"]]]});
    server.write(&json!([{"op": "update", "table": "Node_Status", "where": [], "row": row}]));
    assert_eq!(findings("shaping"), ["ok contracts of red; every uplink is shaped"]);

    let (writer, handle) = channel();
    let (_control, _asks) = open(&socket, &Events::default(), &handle).await.unwrap();
    writer.tell(1_700_000_000_000, 1000, shared(0));
    assert_eq!(findings("contracts"), ["ok 4 queues on 2 uplinks here, none short for long"]);
    let line = format!("top --once --json --interval 1 --socket {}", socket.display());
    let top: Value = serde_json::from_str(&server.ok(&line)).unwrap();
    assert_eq!(top["uplinks"].as_array().unwrap().len(), 4);
    assert_eq!(
        (&top["uplinks"][1]["network"], &top["uplinks"][1]["obtained_bps"]),
        (&json!("red"), &json!(33_000_000))
    );
    let mut short = shared(0);
    short.links[0].queues[1].state = "short".to_owned();
    writer.tell(1_700_000_001_000, 1000, short);
    let seen = findings("contracts");
    assert!(
        seen[0].starts_with("warn network red has had less than its part of uplink eth0 for "),
        "{seen:?}"
    );
}
