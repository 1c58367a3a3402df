//! Every kind of things with every verb, against a real `ovsdb-server`.

use serde_json::json;

use crate::support::{Server, populate};

const MAC: &str = "52:54:00:00:00:02";

/// Line, what `show` says of it afterwards.
#[test]
fn every_kind_is_set_and_shown() {
    let server = Server::ready();
    populate(&server);
    server.ok("segment add red-lan2 --network red --vlan 102");
    server.ok("sla set red --min 10mbit");
    server.ok("class add red voice --priority 10 --dscp 46,34 --min 5mbit");
    for (set, show, shown) in [
        (
            "network set red --max 80mbit --external-id owner=me --external-id tag=a=b",
            "network show red",
            json!({"name": "red", "min_bps": 10_000_000, "max_bps": 80_000_000, "external_ids": {"owner": "me", "tag": "a=b"}}),
        ),
        (
            "segment set red-lan2 --vlan 103",
            "segment show red-lan2",
            json!({"name": "red-lan2", "network": "red", "vlan": 103, "external_ids": {}}),
        ),
        (
            "vif set r1-core --segment red-lan2 --mac 52:54:00:00:00:02",
            "vif show r1-core",
            json!({
                "name": "r1-core", "router": "r1", "number": 1, "kind": "data", "segment": "red-lan2", "mac": MAC,
                "external_ids": {},
            }),
        ),
        (
            "access set red-h1 --segment blue-core --mac 52:54:00:00:01:02 --mac 52:54:00:00:01:03",
            "access show red-h1",
            json!({
                "name": "red-h1", "segment": "blue-core", "macs": ["52:54:00:00:01:02", "52:54:00:00:01:03"],
                "external_ids": {},
            }),
        ),
        (
            "access set red-h1 --any-mac --external-id x=1",
            "access show red-h1",
            json!({"name": "red-h1", "segment": "blue-core", "macs": [], "external_ids": {"x": "1"}}),
        ),
        (
            "uplink set a --port trunk1 --port trunk2",
            "uplink show a",
            json!({"node": "a", "uplinks": ["trunk1", "trunk2"], "uplink_capacity": {}, "external_ids": {}}),
        ),
        (
            "uplink set a trunk1 --capacity 10gbit",
            "uplink show a",
            json!({
                "node": "a", "uplinks": ["trunk1", "trunk2"], "uplink_capacity": {"trunk1": 10_000_000_000_i64},
                "external_ids": {},
            }),
        ),
        (
            "uplink set a trunk3 --capacity 1gbit --port trunk2 --port trunk3",
            "uplink show a",
            json!({
                "node": "a", "uplinks": ["trunk2", "trunk3"], "uplink_capacity": {"trunk3": 1_000_000_000},
                "external_ids": {},
            }),
        ),
        (
            "uplink set a trunk3 --capacity none",
            "uplink show a",
            json!({"node": "a", "uplinks": ["trunk2", "trunk3"], "uplink_capacity": {}, "external_ids": {}}),
        ),
        (
            "class set red voice --dscp none --protocol udp --port 5060,5061 --priority 11",
            "class show red voice",
            json!({
                "name": "voice", "network": "red", "priority": 11, "dscp": [], "protocol": "udp", "ports": [5060, 5061],
                "min_bps": 5_000_000, "max_bps": null, "external_ids": {},
            }),
        ),
        (
            "class set red voice --port none --max 9mbit",
            "class show red voice",
            json!({
                "name": "voice", "network": "red", "priority": 11, "dscp": [], "protocol": "udp", "ports": [],
                "min_bps": 5_000_000, "max_bps": 9_000_000, "external_ids": {},
            }),
        ),
    ] {
        for _ in 0..2 {
            server.ok(set);
            assert_eq!(server.json(show), shown, "{set}");
        }
    }
    server.ok("router set r1 --fastpath never --external-id rack=7");
    let r1 = server.json("router show r1");
    assert_eq!((&r1["fastpath"], &r1["external_ids"]), (&json!("never"), &json!({"rack": "7"})));
    server.ok("router set r1 --external-id rack");
    assert_eq!(server.json("router show r1")["external_ids"], json!({}));
    assert_eq!(
        server.ok("segment show red-lan2"),
        "name          red-lan2\nnetwork       red\nvlan          103\nexternal_ids  -\n"
    );
    assert_eq!(server.ok("network show red").lines().last(), Some("external_ids  owner=me,tag=a=b"));
    assert_eq!(server.json("show")["invalid"], json!([]));
}

#[test]
fn what_may_exist_is_left_alone_if_it_is_as_asked() {
    let server = Server::ready();
    populate(&server);
    let before = server.json("show");
    for line in [
        "network add red",
        "segment add red-core --network red --vlan 100",
        "router add r1 --network red",
        "vif add r1-core --router r1 --segment red-core --mac 52:54:00:00:00:01",
        "vif add r1-ctl --router r1 --control --mac 52:54:00:00:00:0a",
        "access add red-h1 --segment red-lan1 --mac 52:54:00:00:01:01",
        "uplink add a trunk0",
    ] {
        server.ok(&format!("{line} --may-exist"));
    }
    for line in [
        "network remove green",
        "segment remove s",
        "router remove r9",
        "vif remove v",
        "access remove h",
        "uplink remove a nix",
        "uplink remove b trunk0",
        "class remove red c",
    ] {
        server.ok(&format!("{line} --if-exists"));
    }
    assert_eq!(server.json("show"), before);
    for (line, message) in [
        (
            "network add red --min 1mbit",
            "network red exists already with min_bps none, not 1000000: 'xenflow network set' changes it",
        ),
        (
            "segment add red-core --network blue --vlan 100",
            "segment red-core exists already with network red, not blue: that cannot be changed, remove it first \
             ('xenflow segment remove')",
        ),
        (
            "vif add r1-core --router r1 --segment red-lan1 --mac 52:54:00:00:00:01",
            "vif r1-core exists already with segment red-core, not red-lan1: 'xenflow vif set' changes it",
        ),
    ] {
        server.refused(&format!("{line} --may-exist"), 2, message);
    }
    server.refused(
        "network remove red --if-exists",
        2,
        "network red is in use by segment red-core, segment red-lan1, router r1: remove those first",
    );
    assert_eq!(server.json("show"), before);
    server.ok("network add green --may-exist");
    server.ok("network remove green --if-exists");
}

#[test]
fn what_cannot_be_set_is_refused_in_these_words() {
    let server = Server::ready();
    populate(&server);
    server.ok("class add red voice --priority 10 --protocol udp --port 5060");
    server.ok("class add red video --priority 9");
    let before = server.json("show");
    for (line, message) in [
        ("network set red", "nothing to set of network red: say --min, --max or --external-id"),
        ("network set nix --min 1mbit", "there is no network nix: 'xenflow network list' shows all"),
        (
            "network set red --external-id =x",
            "\"=x\" is not KEY=VALUE, or KEY to take it away: a key is 1 to 63 printable characters without blanks and =",
        ),
        ("segment set red-core --vlan 101", "VLAN 101 is taken by segment red-lan1: choose another"),
        ("segment set red-lan1 --vlan 100", "VLAN 100 is taken by segment red-core: choose another"),
        ("segment set red-core", "nothing to set of segment red-core: say --vlan or --external-id"),
        ("vif set r1-ctl --segment red-core", "a control vif is on no segment, this one is on red-core"),
        ("vif set r1-core --segment nix", "there is no segment nix: 'xenflow segment list' shows all"),
        (
            "vif set r1-core --segment blue-core",
            "segment blue-core is of network blue, router r1 of network red",
        ),
        (
            "vif set r1-core --mac 52:54:00:00:00:0a",
            "MAC address 52:54:00:00:00:0a is taken by vif r1-ctl: choose another",
        ),
        (
            "vif set r1-core --mac 52:54:00:00:01:01",
            "MAC address 52:54:00:00:01:01 is taken by access port red-h1: choose another",
        ),
        (
            "access set red-h1 --mac 52:54:00:00:00:01",
            "MAC address 52:54:00:00:00:01 is taken by vif r1-core: choose another",
        ),
        ("access set red-h1 --any-mac --mac x", "the argument '--any-mac' cannot be used with '--mac <MAC>'"),
        (
            "uplink set a --port x/y",
            "\"x/y\" is not a port name: 1 to 63 printable characters without blanks and slashes",
        ),
        ("uplink set a nix --capacity 1gbit", "capacity of \"nix\": the node has no such uplink"),
        ("uplink set a nix --capacity none", "capacity of \"nix\": the node has no such uplink"),
        ("uplink set a", "nothing to set of node a: say --capacity, --port or --external-id"),
        ("uplink set b --port x", "there is no node b: 'xenflow node list' shows all"),
        ("class set red voice --priority 9", "priority 9 is taken by class video: choose another"),
        ("class set red voice --protocol icmp", "a class with ports needs protocol tcp, udp or sctp"),
        ("class set red voice --dscp 64", "DSCP 64 is out of range: 0 to 63"),
        ("class set red voice --dscp x", "DSCP x is out of range: 0 to 63"),
        ("class set red voice --port 0", "port 0 is out of range: 1 to 65535"),
        ("class set red nix --dscp 1", "there is no class nix: 'xenflow class list' shows all"),
        ("class show nix voice", "there is no network nix: 'xenflow network list' shows all"),
        ("router show r9", "there is no router r9: 'xenflow router list' shows all"),
    ] {
        server.refused(line, 2, message);
    }
    assert_eq!(server.json("show"), before, "a refusal changes nothing");
}

/// With its capacity an uplink comes and goes: one that comes again has none, and what is left of one means nothing.
#[test]
fn an_uplink_has_a_capacity_as_long_as_it_is_one() {
    let server = Server::ready();
    let is = |ports: &[&str], capacities: serde_json::Value| {
        let listed = &server.json("uplink list")[0];
        assert_eq!((&listed["uplinks"], &listed["uplink_capacity"]), (&json!(ports), &capacities));
    };
    server.ok("uplink add a eth0 --capacity 1gbit");
    server.ok("uplink add a eth1 --capacity 25gbit");
    server.ok("uplink add a eth1 --capacity 25gbit --may-exist");
    server.ok("uplink add a eth1 --may-exist");
    server.refused(
        "uplink add a eth1 --capacity 10gbit --may-exist",
        2,
        "node a exists already with uplink_capacity eth1:25gbit, not eth1:10gbit: 'xenflow uplink set' changes it",
    );
    is(&["eth0", "eth1"], json!({"eth0": 1_000_000_000, "eth1": 25_000_000_000_i64}));
    assert_eq!(server.ok("show"), "node a uplinks eth0 (1gbit) eth1 (25gbit)\n");
    assert_eq!(
        server.ok("uplink list"),
        "NODE  UPLINKS    UPLINK_CAPACITY\na     eth0,eth1  eth0=1000000000,eth1=25000000000\n"
    );
    server.ok("uplink remove a eth1");
    is(&["eth0"], json!({"eth0": 1_000_000_000}));
    let left = json!(["map", [["eth0", 8000], ["eth1", 8000], ["eth2", 8000]]]);
    server.write(&json!([{"op": "update", "table": "Node", "where": [], "row": {"uplink_capacity": left}}]));
    is(&["eth0"], json!({"eth0": 8000}));
    server.ok("uplink add a eth1");
    server.ok("uplink add a eth2 --capacity 2gbit");
    is(&["eth0", "eth1", "eth2"], json!({"eth0": 8000, "eth2": 2_000_000_000_i64}));
    for port in ["eth0", "eth1", "eth2"] {
        server.ok(&format!("uplink remove a {port}"));
    }
    assert_eq!(server.json("uplink list"), json!([]));
}

/// A row that somebody wrote past the rules is made right by the words that name it.
#[test]
fn an_invalid_row_is_set_right() {
    let server = Server::ready();
    populate(&server);
    server.write(&json!([{"op": "update", "table": "Vif", "where": [["name", "==", "r1-core"]], "row": {"mac": "52-54-00-00-00-01"}}]));
    let shown = server.run("vif show r1-core");
    assert_eq!(shown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&shown.stderr).contains("\"52-54-00-00-00-01\" is not a MAC address"));
    server.ok(&format!("vif set r1-core --mac {MAC}"));
    assert_eq!(server.json("vif show r1-core")["mac"], MAC);
}
