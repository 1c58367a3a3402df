//! The built `xenflow` against a real `ovsdb-server`: what it does, and the exact words of its refusals.

use std::fs;
use std::process::Command;

use dom0_server::db::happened;
use dom0_server::events::KINDS;
use serde_json::{Value, json};

use crate::support::{Dir, OTHER, Server, ok, populate, refused, run};

#[test]
fn init_does_only_what_is_not_done() {
    let server = Server::start();
    let (db, file) = (server.db(), server.dir.0.join("xenflow.db"));
    server.refused("network list", 1, &format!("{db} serves no database XenFlow: run 'xenflow init' first"));
    let said = server.ok(&server.init());
    let file = file.display();
    assert_eq!(said, format!("created {file}\nadded XenFlow to the server behind {db}\nschema 0.6.0\n"));
    assert_eq!(server.ok(&server.init()), format!("{db} serves XenFlow already\nschema 0.6.0\n"));
    server.ok("network add red");

    // A restarted ovsdb-server knows only the files that it was started with; the contents are still there.
    let mut remove = Command::new("ovs-appctl");
    remove.arg("-t").arg(server.ctl()).args(["ovsdb-server/remove-db", "XenFlow"]);
    assert!(remove.status().expect("ovs-appctl is needed").success());
    let said = server.ok(&format!("{} --ctl {}", server.init(), server.ctl().display()));
    assert_eq!(
        said,
        format!("{file} is there already\nadded XenFlow to the server behind {db}\nschema 0.6.0\n")
    );
    assert_eq!(server.ok("network list"), "NAME  MIN_BPS  MAX_BPS\nred   -        -\n");
    let rows = server
        .transact(&json!([{"op": "select", "table": "XenFlow", "where": [], "columns": ["external_ids"]}]));
    assert_eq!(rows.matches("created-by").count(), 1, "{rows}");
}

#[test]
fn init_refuses_another_schema_and_a_missing_server() {
    let server = Server::start();
    let other = server.dir.0.join("other.ovsschema");
    fs::write(&other, OTHER.replace("Other", "XenFlow").replace("1.0.0", "9.8.7")).unwrap();
    let file = server.dir.0.join("xenflow.db");
    let mut create = Command::new("ovsdb-tool");
    assert!(create.arg("create").args([&file, &other]).status().unwrap().success());
    let message = "database XenFlow has the schema \"9.8.7\", this xenflow is for 0.6.0";
    server.refused(&server.init(), 1, message);
    server.refused("show", 1, message);

    let dir = Dir::new();
    let db = format!("unix:{}/none.sock", dir.0.display());
    for line in ["init", "show"] {
        let message = format!("cannot connect to {db}: No such file or directory (os error 2)");
        refused(line, &run(&db, line), 1, &message);
    }
    refused("show", &run("pipe:x", "show"), 2, "remote 'pipe:x' does not begin with unix:, tcp: or ssl:");
}

#[test]
fn what_is_added_is_listed_and_shown() {
    let server = Server::ready();
    populate(&server);
    assert_eq!(
        server.ok("segment list"),
        "NAME       NETWORK  VLAN\nblue-core  blue     200\nred-core   red      100\nred-lan1   red      101\n"
    );
    assert_eq!(
        server.json("router list"),
        json!([{
            "name": "r1", "network": "red", "id": 1, "fastpath": "auto", "max_routes": 1_000_000,
            "punt_rate": {"routing": 5000, "resolution": 1000, "host": 2000, "exception": 1000, "transit": 20000},
        }])
    );
    assert_eq!(
        server.json("vif list"),
        json!([
            {"name": "r1-core", "router": "r1", "number": 1, "kind": "data", "segment": "red-core", "mac": "52:54:00:00:00:01"},
            {"name": "r1-ctl", "router": "r1", "number": 2, "kind": "control", "segment": null, "mac": "52:54:00:00:00:0a"},
        ])
    );
    assert_eq!(
        server.json("access list"),
        json!([{"name": "red-h1", "segment": "red-lan1", "macs": ["52:54:00:00:01:01"]}])
    );
    assert_eq!(
        server.json("uplink list"),
        json!([{"node": "a", "uplinks": ["trunk0"], "uplink_capacity": {}}])
    );
    server.write(&json!([{"op": "insert", "table": "Status", "row": {
        "node": "a", "router": "r1", "state": "up", "since_ms": 1_700_000_000_000_i64, "routes": 3,
        "acked_seq": 7, "message": "ip rule 100 is unknown"}}]));
    let shown = server.ok("show");
    let age = shown.find(" (").unwrap()..shown.find("), routes").unwrap() + 1;
    assert_eq!(
        shown.replace(&shown[age], ""),
        "network blue\n  segment blue-core vlan 200\n\
         network red\n  segment red-core vlan 100\n  segment red-lan1 vlan 101\n    access red-h1 52:54:00:00:01:01\n  \
         router r1 id 1\n    vif 1 r1-core 52:54:00:00:00:01 segment red-core\n    vif 2 r1-ctl 52:54:00:00:00:0a control\n    \
         on a: up since 2023-11-14T22:13:20Z, routes 3, acked 7: ip rule 100 is unknown\n\
         node a uplinks trunk0\n"
    );
    let page = server.json("show");
    assert_eq!(page["status"][0]["acked_seq"], 7);
    assert_eq!(page["networks"][1], json!({"name": "red", "min_bps": null, "max_bps": null}));
    assert_eq!(page["invalid"], json!([]));
}

#[test]
fn wrong_input_is_refused_in_these_words() {
    let server = Server::ready();
    populate(&server);
    let before = server.json("show");
    let vif = "vif add v --router r1 --segment red-core --mac";
    for (line, message) in [
        ("network add Red", "\"Red\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit"),
        ("network add red", "network red exists already: choose another name, or say --may-exist"),
        ("events --router R1", "\"R1\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit"),
        ("events --kind session-lost,no", &format!("\"no\" is no kind of event: {}", KINDS.join(", "))),
        ("events --kind migration", &format!("\"migration\" is no kind of event: {}", KINDS.join(", "))),
        (
            "events --all --kind migration,no",
            &format!("\"no\" is no kind of event: {}, {}", KINDS.join(", "), happened::KINDS.join(", ")),
        ),
        ("events --db nowhere", "remote 'nowhere' does not begin with unix:, tcp: or ssl:"),
        ("network remove green", "there is no network green: 'xenflow network list' shows all"),
        (
            "network remove red",
            "network red is in use by segment red-core, segment red-lan1, router r1: remove those first",
        ),
        ("network remove blue", "network blue is in use by segment blue-core: remove those first"),
        (
            "explain --from h1",
            "the following required arguments were not provided: <--dst <ADDRESS>|--frame <HEX>>",
        ),
        (
            "explain --from h1 --dst 10.0.0.7 --frame 00",
            "the argument '--dst <ADDRESS>' cannot be used with '--frame <HEX>'",
        ),
        (
            "explain --from h1 --frame 00 --ttl 9",
            "the argument '--frame <HEX>' cannot be used with '--ttl <TTL>'",
        ),
        ("explain --from h1 --frame 0102", "a frame has 14 to 9216 bytes, not 2"),
        ("explain --from h1 --frame 0x", "a frame is written in hexadecimal digits, two a byte, not \"0x\""),
        ("explain --from h1 --dst 10.0.0.7 --proto sctp", "\"sctp\" is not a protocol: udp, tcp or icmp"),
        (
            "explain --from h1 --dst 10.0.0.7 --src ::1",
            "source ::1 and destination 10.0.0.7 are of different families",
        ),
        ("explain --from h1 --dst 10.0.0.7 --host b", "--host b is not NODE=PATH, as b=/tmp/b.sock"),
        ("segment add s --network red --vlan 0", "VLAN 0 is out of range: 1 to 4094 are usable"),
        ("segment add s --network red --vlan 4095", "VLAN 4095 is out of range: 1 to 4094 are usable"),
        ("segment add s --network red --vlan -1", "VLAN -1 is out of range: 1 to 4094 are usable"),
        (
            "segment add s --network red --vlan x",
            "invalid value 'x' for '--vlan <VLAN>': invalid digit found in string",
        ),
        ("segment add s --network red --vlan 200", "VLAN 200 is taken by segment blue-core: choose another"),
        (
            "segment add s --network green --vlan 7",
            "there is no network green: 'xenflow network list' shows all",
        ),
        (
            "segment add red-core --network red --vlan 7",
            "segment red-core exists already: choose another name, or say --may-exist",
        ),
        ("segment add s --vlan 7", "the following required arguments were not provided: --network <NETWORK>"),
        ("segment remove red-core", "segment red-core is in use by vif r1-core: remove those first"),
        ("segment remove red-lan1", "segment red-lan1 is in use by access port red-h1: remove those first"),
        ("router add r1 --network blue", "router r1 exists already: choose another name, or say --may-exist"),
        ("router add r2 --network green", "there is no network green: 'xenflow network list' shows all"),
        ("router remove r1", "router r1 is in use by vif r1-core, vif r1-ctl: remove those first"),
        (
            "vif add r1-core --router r1 --segment red-core --mac 52:54:00:00:00:02",
            "vif r1-core exists already: choose another name, or say --may-exist",
        ),
        (
            "vif add v --router r9 --segment red-core --mac 52:54:00:00:00:02",
            "there is no router r9: 'xenflow router list' shows all",
        ),
        (
            "vif add v --router r1 --segment nix --mac 52:54:00:00:00:02",
            "there is no segment nix: 'xenflow segment list' shows all",
        ),
        (
            "vif add v --router r1 --segment blue-core --mac 52:54:00:00:00:02",
            "segment blue-core is of network blue, router r1 of network red",
        ),
        (
            "vif add v --router r1 --control --mac 52:54:00:00:00:02",
            "the place of the control vif of router r1 is taken by vif r1-ctl: choose another",
        ),
        (
            "vif add red-h1 --router r1 --segment red-core --mac 52:54:00:00:00:02",
            "name red-h1 is taken by access port red-h1: choose another",
        ),
        (
            "vif add v --router r1 --segment red-core --control --mac 52:54:00:00:00:02",
            "the argument '--segment <SEGMENT>' cannot be used with '--control'",
        ),
        (
            "vif add v --router r1 --mac 52:54:00:00:00:02",
            "the following required arguments were not provided: <--segment <SEGMENT>|--control>",
        ),
        (
            &format!("{vif} 52:54:00:00:00"),
            "\"52:54:00:00:00\" is not a MAC address (six bytes in hexadecimal with colons, as 52:54:00:12:34:56)",
        ),
        (
            &format!("{vif} 01:54:00:00:00:02"),
            "MAC address 01:54:00:00:00:02 cannot be used: it is a multicast address",
        ),
        (&format!("{vif} 00:00:00:00:00:00"), "MAC address 00:00:00:00:00:00 cannot be used: it is all zero"),
        (
            &format!("{vif} 0e:58:46:00:00:01"),
            "MAC address 0e:58:46:00:00:01 cannot be used: it is the host's on the control network",
        ),
        (
            &format!("{vif} 52:54:00:00:00:0A"),
            "MAC address 52:54:00:00:00:0a is taken by vif r1-ctl: choose another",
        ),
        (
            &format!("{vif} 52:54:00:00:01:01"),
            "MAC address 52:54:00:00:01:01 is taken by access port red-h1: choose another",
        ),
        ("vif remove nix", "there is no vif nix: 'xenflow vif list' shows all"),
        ("access add r1-core --segment red-core", "name r1-core is taken by vif r1-core: choose another"),
        ("access add h --segment nix", "there is no segment nix: 'xenflow segment list' shows all"),
        (
            "access add h --segment red-core --mac 52:54:00:00:00:01",
            "MAC address 52:54:00:00:00:01 is taken by vif r1-core: choose another",
        ),
        (
            "access add h --segment red-core --mac ff:ff:ff:ff:ff:ff",
            "MAC address ff:ff:ff:ff:ff:ff cannot be used: it is a multicast address",
        ),
        ("uplink add a trunk0", "port trunk0 is an uplink of node a already: say --may-exist if it may be"),
        (
            "uplink add a x/y",
            "\"x/y\" is not a port name: 1 to 63 printable characters without blanks and slashes",
        ),
        ("uplink remove a nix", "port nix is no uplink of node a: 'xenflow uplink show a' has all"),
        ("uplink remove b trunk0", "there is no node b: 'xenflow node list' shows all"),
        ("nix", "unrecognized subcommand 'nix'"),
        ("show --timeout 0", "invalid value '0' for '--timeout <SECONDS>': 0 is not in 1..=3600"),
    ] {
        server.refused(line, 2, message);
    }
    assert_eq!(server.json("show"), before, "a refusal changes nothing");
}

#[test]
fn the_database_refuses_what_no_index_or_reference_allows() {
    let server = Server::ready();
    populate(&server);
    let everything = |table, row: Value| json!([{"op": "update", "table": table, "where": [], "row": row}]);
    for (operations, rule) in [
        (everything("Router", json!({"id": 9})), "constraint violation"),
        (everything("Vif", json!({"number": 9})), "constraint violation"),
        (everything("Segment", json!({"vlan": 300})), "constraint violation"),
        (everything("Segment", json!({"vlan": 4095})), "constraint violation"),
        (everything("Vif", json!({"kind": "other"})), "constraint violation"),
        (everything("Vif", json!({"mac": "x"})), "constraint violation"),
        (json!([{"op": "insert", "table": "Network", "row": {"name": ""}}]), "constraint violation"),
        (json!([{"op": "insert", "table": "Network", "row": {"name": "red"}}]), "constraint violation"),
        (json!([{"op": "insert", "table": "XenFlow", "row": {}}]), "constraint violation"),
        (
            json!([{"op": "delete", "table": "Network", "where": [["name", "==", "red"]]}]),
            "referential integrity violation",
        ),
        (json!([{"op": "delete", "table": "Router", "where": []}]), "referential integrity violation"),
    ] {
        let said = server.transact(&operations);
        assert!(said.contains(&format!("\"error\":\"{rule}\"")), "{operations}: {said}");
    }
}

#[test]
fn an_invalid_row_is_named_and_can_be_removed() {
    let server = Server::ready();
    populate(&server);
    server.write(&json!([{"op": "insert", "table": "Network", "row": {"name": "Bad"}}]));
    server.write(&json!([{"op": "update", "table": "Vif", "where": [["name", "==", "r1-core"]], "row": {"mac": "52-54-00-00-00-01"}}]));
    let invalid = server.json("show")["invalid"].to_string();
    assert!(invalid.contains("\\\"Bad\\\" is not a name"), "{invalid}");
    assert!(invalid.contains("\\\"52-54-00-00-00-01\\\" is not a MAC address"), "{invalid}");
    assert_eq!(server.json("network list").as_array().unwrap().len(), 2);
    server.ok("network remove Bad");
    server.ok("vif remove r1-core");
    assert_eq!(server.json("show")["invalid"], json!([]));
}

#[test]
fn numbers_are_the_lowest_free_and_removal_goes_from_the_leaves() {
    let server = Server::ready();
    populate(&server);
    for name in ["r2", "r3"] {
        server.ok(&format!("router add {name} --network red"));
    }
    server.ok("router remove r2");
    server.ok("router add r4 --network blue");
    let ids: Vec<_> = server
        .json("router list")
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["name"].clone(), r["id"].clone()))
        .collect();
    assert_eq!(ids, [(json!("r1"), json!(1)), (json!("r3"), json!(3)), (json!("r4"), json!(2))]);
    server.ok("vif add r3-core --router r3 --segment red-core --mac 52:54:00:00:00:03");
    assert_eq!(server.json("vif list")[2]["number"], 1, "numbers are within the router");

    server.write(
        &json!([{"op": "insert", "table": "Status", "row": {"node": "a", "router": "r1", "state": "down"}}]),
    );
    server.ok("uplink add a trunk1");
    for line in [
        "vif remove r1-core",
        "vif remove r1-ctl",
        "vif remove r3-core",
        "router remove r1",
        "router remove r3",
        "router remove r4",
        "access remove red-h1",
        "segment remove red-core",
        "segment remove red-lan1",
        "segment remove blue-core",
        "network remove red",
        "network remove blue",
        "uplink remove a trunk0",
    ] {
        server.ok(line);
    }
    assert_eq!(
        server.json("uplink list"),
        json!([{"node": "a", "uplinks": ["trunk1"], "uplink_capacity": {}}])
    );
    server.ok("uplink remove a trunk1");
    for (part, rows) in server.json("show").as_object().unwrap() {
        assert_eq!(rows, &json!([]), "{part}");
    }
}

/// The unique index lets one of two through; the other reads again and takes the next number.
#[test]
fn routers_added_at_the_same_time_all_get_numbers_of_their_own() {
    let server = Server::ready();
    server.ok("network add red");
    let children: Vec<_> = (0..8)
        .map(|n| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow"));
            let line = format!("router add r{n} --network red --timeout 60");
            command.env("XENFLOW_DB", server.db()).args(line.split(' ')).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let routers = server.json("router list");
    let mut ids: Vec<_> = routers.as_array().unwrap().iter().map(|r| r["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=8).collect::<Vec<_>>());
}

#[test]
fn help_version_and_completions_go_to_stdout() {
    let call = |line: &str| ok(line, run("unix:/nowhere", line));
    assert!(call("--help").contains("Usage: xenflow"));
    assert!(call("--version").starts_with("xenflow 0."));
    for shell in ["bash", "zsh", "fish"] {
        let script = call(&format!("completions {shell}"));
        assert!(
            ["xenflow", "migrate", "migrations", "abort", "virsh"].iter().all(|word| script.contains(word))
        );
    }
    let help = call("migrate --help");
    assert!(
        help.contains("Exit codes: 0") && help.contains("Examples:") && help.contains("[default: 600]"),
        "{help}"
    );
}

#[test]
fn a_server_that_says_nothing_leaves_time_for_the_next() {
    let server = Server::ready();
    let path = server.dir.0.join("silent.sock");
    // It takes connections, and never reads.
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let both = format!("unix:{},{}", path.display(), server.db());
    ok("network add", run(&both, "network add red --timeout 4"));
    assert_eq!(server.ok("network list"), "NAME  MIN_BPS  MAX_BPS\nred   -        -\n");
}
