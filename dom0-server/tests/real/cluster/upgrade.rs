//! What an earlier schema held is there under this one: a database that becomes a cluster, and a cluster that runs.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::{Hosts, eventually, insert, location, support};

/// A database file of an earlier schema, with contents.
fn older(hosts: &Hosts) -> String {
    let file = hosts.path("older.db");
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/xenflow-0.2.0.ovsschema");
    tool(&["create", &file, schema]);
    let rows = json!([
        "XenFlow",
        insert("XenFlow", &json!({"external_ids": ["map", [["owner", "ann"]]]})),
        {"op": "insert", "table": "Network", "uuid-name": "n", "row": {"name": "red"}},
        insert("Router", &json!({"name": "r1", "network": ["named-uuid", "n"], "id": 7})),
        insert("Status", &json!({"node": "a", "router": "r1", "state": "up", "routes": 3})),
    ]);
    let said = tool(&["transact", &file, &rows.to_string()]);
    assert!(!said.contains("error"), "{said}");
    file
}

fn tool(args: &[&str]) -> String {
    let ran = Command::new("ovsdb-tool").args(args).output().expect("ovsdb-tool is needed");
    support::ok(&args.join(" "), ran)
}

/// Asserts that the contents of [`older`] are there, at a member's own socket.
fn is_kept(hosts: &Hosts, host: usize) {
    let rows = eventually("the member has the new schema", || {
        let shown = hosts.run(&["--db", &hosts.local(host), "show", "--json"]);
        serde_json::from_slice::<Value>(&shown.stdout).ok()
    });
    assert_eq!(
        (&rows["status"][0]["node"], &rows["status"][0]["routes"]),
        (&json!("a"), &json!(3)),
        "{rows}"
    );
    let routers: Value =
        serde_json::from_str(&hosts.ok(&["--db", &hosts.local(host), "router", "list", "--json"])).unwrap();
    let router = &routers[0];
    assert_eq!(
        (&router["name"], &router["id"], &router["network"], &router["fastpath"]),
        (&json!("r1"), &json!(7), &json!("red"), &json!("auto")),
    );
}

/// Asserts that members listen, and who may write what.
fn has_roles(hosts: &Hosts) {
    eventually("a member listens", || std::net::TcpStream::connect(("127.0.0.1", hosts.port)).ok());
    assert_eq!(hosts.write("a", &location("a")), None);
    hosts.denied("a", &location("b"));
    let row = &hosts.transact("a", &[json!({"op": "select", "table": "XenFlow", "where": []})])[0]["rows"][0];
    assert_eq!(row["external_ids"], json!(["map", [["owner", "ann"]]]));
}

#[test]
fn an_embedded_database_of_an_earlier_schema_becomes_a_cluster() {
    let mut hosts = Hosts::new();
    let from = older(&hosts);
    let more = ["--from", &from, "--db", "unix:/nonexistent"];
    let said = hosts.init(&more);
    assert!(said.contains(&format!("took its contents from {from}, now {from}.before-cluster\n")), "{said}");
    // What it was stays as it was.
    assert_eq!(tool(&["db-version", &format!("{from}.before-cluster")]), "0.2.0\n");
    hosts.up(0);
    let again = hosts.init(&more);
    let file = hosts.path("0/cluster.db");
    assert!(
        again.starts_with(&format!("{file} is there already\nclients have the role xenflow-node\n")),
        "{again}"
    );
    is_kept(&hosts, 0);
    has_roles(&hosts);
}

/// Where a cluster says who listens; the earlier schema has no such column, and no server starts with it then.
const LISTENS: &str = "--remote=db:XenFlow,XenFlow,connections";

/// A cluster of two members with an earlier schema, made by hand: it serves its own sockets only.
fn older_cluster() -> Hosts {
    let mut hosts = Hosts::new();
    let (from, file) = (older(&hosts), hosts.path("0/cluster.db"));
    tool(&["create-cluster", &file, &from, &format!("ssl:{}:6661", hosts.ip(0))]);
    fs::remove_file(&from).unwrap();
    assert!(hosts.init(&[]).starts_with(&format!("{file} is there already\n")));
    hosts.up_but(0, Some(LISTENS));
    let peer = hosts.ip(0);
    hosts.made(1, "join", &["--peer", &peer]);
    hosts.up_but(1, Some(LISTENS));
    // Joining converts nothing: an earlier program may still be at work.
    hosts.made(1, "join", &["--peer", &peer]);
    for host in 0..2 {
        let message = "database XenFlow has the schema 0.2.0, this xenflow is for 0.6.0: run 'xenflow init' to convert it";
        support::refused("show", &hosts.run(&["--db", &hosts.local(host), "show"]), 1, message);
    }
    hosts
}

/// Asserts that a converted cluster serves clients, and that a member starts with its settings as they are.
fn is_whole(hosts: &mut Hosts) {
    let ctl = hosts.path("0/ovsdb.ctl");
    let mut add = Command::new("ovs-appctl");
    add.args(["-t", &ctl, "ovsdb-server/add-remote", LISTENS.trim_start_matches("--remote=")]);
    assert!(add.status().expect("ovs-appctl is needed").success());
    has_roles(hosts);
    hosts.kill(1);
    hosts.up(1);
    is_kept(hosts, 1);
}

#[test]
fn cluster_init_converts_a_running_cluster() {
    let mut hosts = older_cluster();
    let file = hosts.path("0/cluster.db");
    let (converted, roles) =
        ("converted the schema from 0.2.0 to 0.6.0", "clients have the role xenflow-node from now on");
    let said = hosts.init(&[]);
    assert!(said.starts_with(&format!("{file} is there already\n{converted}\n{roles}\n")), "{said}");
    for host in 0..2 {
        is_kept(&hosts, host);
    }
    is_whole(&mut hosts);
    let again = hosts.init(&[]);
    assert!(
        again.starts_with(&format!("{file} is there already\nclients have the role xenflow-node\n")),
        "{again}"
    );
}

#[test]
fn init_converts_a_running_cluster_by_a_member_that_follows() {
    let mut hosts = older_cluster();
    let local = hosts.local(hosts.having("follower", &[1, 0]));
    let said = hosts.ok(&["--db", &local, "init"]);
    assert_eq!(said, format!("{local} serves XenFlow already\nconverted the schema from 0.2.0 to 0.6.0\n"));
    assert_eq!(
        hosts.ok(&["--db", &local, "init"]),
        format!("{local} serves XenFlow already\nschema 0.6.0\n")
    );
    for host in 0..2 {
        is_kept(&hosts, host);
    }
    // It was not a cluster with roles; now it is one.
    let said = hosts.init(&[]);
    assert!(said.contains("\nclients have the role xenflow-node from now on\n"), "{said}");
    is_whole(&mut hosts);
}

/// What a daemon of this version reports has columns that the role of an earlier program does not permit.
#[test]
fn init_renews_the_role_of_an_earlier_program() {
    let mut hosts = Hosts::new();
    hosts.init(&[]);
    hosts.up(0);
    eventually("a member listens", || std::net::TcpStream::connect(("127.0.0.1", hosts.port)).ok());
    let local = hosts.local(0);
    let permission = |operations: &[Value]| {
        let all = [&[json!("XenFlow")], operations].concat();
        let said = support::ok(
            "transact",
            Command::new("ovsdb-client")
                .args(["transact", &local, &Value::from(all).to_string()])
                .output()
                .unwrap(),
        );
        assert!(!said.contains("error"), "{said}");
    };
    let new = json!(["update", "delete", ["set", ["uplink_capacity", "shaping"]]]);
    let of = json!([["table", "==", "Node_Status"]]);
    permission(&[json!({"op": "mutate", "table": "RBAC_Permission", "where": of, "mutations": [new]})]);
    assert_eq!(hosts.write("a", &insert("Node_Status", &json!({"node": "a"}))), None);
    let shaped = super::update("Node_Status", ["node", "a"], &json!({"shaping": ["map", [["eth0", "tc"]]]}));
    hosts.denied("a", &shaped);
    let said = hosts.ok(&["--db", &local, "init"]);
    assert!(said.ends_with("\nclients have the role xenflow-node from now on\n"), "{said}");
    assert_eq!(hosts.write("a", &shaped), None);
    let again = hosts.ok(&["--db", &local, "init"]);
    assert!(again.ends_with("\nschema 0.6.0\n"), "{again}");
}
