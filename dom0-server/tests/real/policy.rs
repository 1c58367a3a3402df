//! How routers are treated: `xenflow router add` and `set` against a real `ovsdb-server`, and the conversion of a
//! database that has no such columns.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Runs as _, Server, populate};

fn r1(server: &Server) -> Value {
    let routers = server.json("router list");
    routers.as_array().unwrap().iter().find(|router| router["name"] == "r1").unwrap().clone()
}

#[test]
fn a_router_is_added_and_set_and_what_is_not_said_stays() {
    let server = Server::ready();
    populate(&server);
    server.ok("router add r2 --network red --fastpath never --max-routes 10 --punt-rate host=5");
    let r2 = &server.json("router list")[1];
    assert_eq!((&r2["fastpath"], &r2["max_routes"]), (&json!("never"), &json!(10)));
    assert_eq!(r2["punt_rate"]["host"], 5);

    server.ok("router set r1 --fastpath always --punt-rate routing=100 --punt-rate transit=7");
    server.ok("router set r1 --max-routes 1000");
    for _ in 0..2 {
        server.ok("router set r1 --punt-rate transit=default --punt-rate host=1");
        let row = r1(&server);
        assert_eq!((&row["fastpath"], &row["max_routes"]), (&json!("always"), &json!(1000)));
        let rates =
            json!({"routing": 100, "resolution": 1000, "host": 1, "exception": 1000, "transit": 20000});
        assert_eq!(row["punt_rate"], rates);
    }
    server.ok("router set r1 --fastpath auto --max-routes default");
    let row = r1(&server);
    assert_eq!((&row["fastpath"], &row["max_routes"]), (&json!("auto"), &json!(1_000_000)));
}

#[test]
fn what_is_wrong_is_refused_in_these_words_and_changes_nothing() {
    let server = Server::ready();
    populate(&server);
    let before = server.json("show");
    let range = "out of range: 1 to 1000000000";
    let rate = "out of range: 1 to 10000000 packets/s";
    for (words, message) in [
        (
            "--fastpath maybe",
            "invalid value 'maybe' for '--fastpath <POLICY>' [possible values: auto, always, never]"
                .to_owned(),
        ),
        ("--max-routes 0", format!("max_routes 0 is {range}")),
        ("--max-routes many", format!("max_routes many is {range}")),
        ("--max-routes 1000000001", format!("max_routes 1000000001 is {range}")),
        ("--punt-rate host=0", format!("punt rate of host 0 is {rate}")),
        ("--punt-rate host=10000001", format!("punt rate of host 10000001 is {rate}")),
        ("--punt-rate host=", format!("punt rate of host  is {rate}").replace("  ", " ")),
        ("--punt-rate host", "punt rate \"host\" is not CLASS=PPS or CLASS=default".to_owned()),
        (
            "--punt-rate arp=1",
            "punt rate of \"arp\": a class is one of routing, resolution, host, exception, transit"
                .to_owned(),
        ),
        ("--punt-rate host=1 --punt-rate host=2", "punt rate of host is given twice".to_owned()),
    ] {
        server.refused(&format!("router set r1 {words}"), 2, &message);
        server.refused(&format!("router add r9 --network red {words}"), 2, &message);
    }
    let message = "nothing to set of router r1: say --fastpath, --max-routes, --punt-rate or --external-id";
    server.refused("router set r1", 2, message);
    server.refused(
        "router set r9 --fastpath auto",
        2,
        "there is no router r9: 'xenflow router list' shows all",
    );
    assert_eq!(server.json("show"), before);

    let router = |row: Value| json!([{"op": "update", "table": "Router", "where": [], "row": row}]);
    for row in [
        json!({"fastpath": "sometimes"}),
        json!({"max_routes": 0}),
        json!({"punt_rate": ["map", [["arp", 1]]]}),
        json!({"punt_rate": ["map", [["host", 0]]]}),
    ] {
        let said = server.transact(&router(row));
        assert!(said.contains("constraint violation"), "{said}");
    }
}

/// Two edits at once, each of another column of one row: neither undoes the other.
#[test]
fn edits_at_the_same_time_keep_each_other() {
    let server = Server::ready();
    populate(&server);
    let classes = ["routing", "resolution", "host", "exception", "transit"];
    let children: Vec<_> = classes
        .iter()
        .map(|class| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow"));
            let line = format!("router set r1 --punt-rate {class}=42 --timeout 60");
            command.env("XENFLOW_DB", server.db()).args(line.split(' ')).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let rates = r1(&server)["punt_rate"].clone();
    assert!(classes.iter().all(|class| rates[class] == 42), "{rates}");
}

#[test]
fn init_converts_a_database_of_the_first_schema() {
    converts("0.1.0");
}

#[test]
fn init_converts_a_database_of_the_second_schema() {
    converts("0.2.0");
}

#[test]
fn init_converts_a_database_of_the_third_schema() {
    let server = converts("0.3.0");
    assert_eq!(server.json("uplink show a")["uplink_capacity"], json!({}));
    server.ok("uplink set a trunk0 --capacity 10gbit");
    assert_eq!(server.json("uplink show a")["uplink_capacity"], json!({"trunk0": 10_000_000_000_i64}));
}

#[test]
fn init_converts_a_database_of_the_fourth_schema() {
    converts("0.4.0");
}

#[test]
fn init_converts_a_database_of_the_fifth_schema() {
    let server = converts("0.5.0");
    server.write(&json!([{"op": "insert", "table": "Node_Status", "row": {"node": "a"}}]));
    assert_eq!(server.json("show node a")[0]["status"]["address"], "");
    let row = json!({"address": "10.0.0.1:6642"});
    server.write(
        &json!([{"op": "update", "table": "Node_Status", "where": [["node", "==", "a"]], "row": row}]),
    );
    assert_eq!(server.json("show node a")[0]["status"]["address"], "10.0.0.1:6642");
    assert!(server.ok("show node a").contains("\n  takes planned moves at 10.0.0.1:6642\n"));
}

/// A database of an earlier schema, with contents, becomes one of this: nothing of it is lost.
fn converts(version: &str) -> Server {
    let server = Server::start();
    let file = server.path("xenflow.db").display().to_string();
    let old = format!("{}/tests/data/xenflow-{version}.ovsschema", env!("CARGO_MANIFEST_DIR"));
    server.tool("ovsdb-tool", &["create", "xenflow.db", &old]);
    let ctl = server.ctl().display().to_string();
    server.tool("ovs-appctl", &["-t", &ctl, "ovsdb-server/add-db", &file]);
    server.write(&json!([
        {"op": "insert", "table": "Network", "uuid-name": "n", "row": {"name": "red"}},
        {"op": "insert", "table": "Router", "row": {"name": "r1", "network": ["named-uuid", "n"], "id": 7}},
        {"op": "insert", "table": "Status", "row": {"node": "a", "router": "r1", "state": "up", "routes": 3}},
        {"op": "insert", "table": "XenFlow", "row": {}},
        {"op": "insert", "table": "Node", "row": {"name": "a", "uplinks": "trunk0"}},
    ]));
    let db = server.db();
    let message = format!(
        "database XenFlow has the schema {version}, this xenflow is for 0.6.0: run 'xenflow init' to convert it"
    );
    server.refused("show", 1, &message);

    let said = server.ok(&server.init());
    assert_eq!(said, format!("{db} serves XenFlow already\nconverted the schema from {version} to 0.6.0\n"));
    assert_eq!(server.ok(&server.init()), format!("{db} serves XenFlow already\nschema 0.6.0\n"));
    let row = r1(&server);
    assert_eq!(
        (&row["id"], &row["fastpath"], &row["max_routes"]),
        (&json!(7), &json!("auto"), &json!(1_000_000))
    );
    assert_eq!(server.json("show")["status"][0]["routes"], 3);
    server.ok("router set r1 --fastpath never");

    // The file itself is converted: a server that starts with it serves the new schema.
    assert_eq!(server.tool("ovsdb-tool", &["db-version", &file]), "0.6.0");
    server
}

#[test]
fn a_router_is_shown_with_what_its_node_reports() {
    let server = Server::ready();
    populate(&server);
    let idle = server.ok("show router");
    assert!(idle.ends_with("\n  no node reports about it\n"), "{idle}");
    server.write(&json!([{"op": "insert", "table": "Status", "row": {
        "node": "a", "router": "r1", "state": "up", "since_ms": 1_700_000_000_000_i64, "routes": 3,
        "neighbors": 2, "next_hops": 1, "acked_seq": 7, "up": "r1-core",
        "prefixes": ["map", [["forwarded", 250_000], ["punted", 1], ["absent", 0]]],
        "ports": ["map", [["r1-core", "vif1.0"], ["r1-ctl", "vif1.1"]]],
        "slow": ["set", ["r1-core ipv4: rp_filter is on (net.ipv4.conf.eth1.rp_filter = 2)", "ipv6: \u{1b}[2J"]],
    }}]));
    let shown = server.ok("show router r1");
    let age = shown.find(" (").unwrap()..shown.find("), acked").unwrap() + 1;
    let shown = shown.replace(&shown[age.clone()], "");
    assert_eq!(
        shown,
        "router r1\n  network red, id 1, fastpath auto\n  \
         vif 1 r1-core 52:54:00:00:00:01 segment red-core: port vif1.0 on a up\n  \
         vif 2 r1-ctl 52:54:00:00:00:0a control: port vif1.1 on a down\n  \
         node a: session up since 2023-11-14T22:13:20Z, acked 7\n    \
         routes 3, neighbors 2, next hops 1\n    \
         prefixes forwarded 250000 of at most 1000000 (25 %), punted 1, without a flow 0\n    \
         the guest forwards:\n      \
         ipv6: \u{fffd}[2J\n      r1-core ipv4: rp_filter is on (net.ipv4.conf.eth1.rp_filter = 2)\n"
    );
    assert_eq!(server.ok("show router").lines().next(), Some("router r1"));
    let json = &server.json("show router r1")[0];
    assert_eq!(json["vifs"][0]["ports"], json!([{"node": "a", "port": "vif1.0", "up": true}]));
    assert_eq!(json["nodes"][0]["prefixes"]["forwarded"], 250_000);
    assert_eq!(json["nodes"][0]["slow"].as_array().unwrap().len(), 2);
    assert_eq!(json["fastpath"], "auto");
    server.refused("show router r9", 2, "there is no router r9: 'xenflow router list' shows all");
    assert_eq!(server.json("show")["status"][0]["state"], "up");
}
