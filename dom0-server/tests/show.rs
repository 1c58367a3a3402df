//! What the daemons count, as `xenflow show` prints it.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};

use support::{Server, populate};

fn counted(node: &str, scope: &str, name: &str, counters: Value) -> Value {
    json!({"op": "insert", "table": "Statistics", "row": {
        "node": node, "scope": scope, "name": name, "since_ms": 1_700_000_000_000_i64,
        "updated_ms": 1_700_000_005_000_i64, "counters": ["map", counters],
    }})
}

#[test]
fn counters_stand_with_what_they_count() {
    let server = Server::ready();
    populate(&server);
    server.write(&json!([
        counted(
            "a",
            "router",
            "r1",
            json!([["forwarded_packets", 5], ["forwarded_bytes", 500], ["policed_host_packets", 2]])
        ),
        counted("b", "router", "r1", json!([["forwarded_packets", 0], ["forwarded_bytes", 0]])),
        counted("a", "vif", "r1-core", json!([["in_packets", 1], ["in_bytes", 60], ["link_rx_dropped", 3]])),
        counted("a", "segment", "red-core", json!([["out_packets", 4], ["out_bytes", 240]])),
        counted(
            "a",
            "access",
            "red-h1",
            json!([["dropped_foreign_tag_packets", 7], ["dropped_foreign_tag_bytes", 420]])
        ),
        counted(
            "a",
            "uplink",
            "trunk0",
            json!([["dropped_no_tag_packets", 2], ["dropped_no_tag_bytes", 120]])
        ),
        counted(
            "a",
            "node",
            "a",
            json!([["dropped_unknown_port_packets", 1], ["dropped_unknown_port_bytes", 60]])
        ),
        counted("a", "network", "red", json!([["in_packets", 8], ["in_bytes", 480]])),
    ]));
    let since = "since 2023-11-14T22:13:20Z";
    let router = server.ok("show router r1");
    for line in [
        format!("  counted on a {since}: forwarded 5 packets 500 bytes, policed_host 2 packets\n"),
        format!("  counted on b {since}: nothing\n"),
        format!("    counted on a {since}: in 1 packets 60 bytes, link_rx_dropped 3\n"),
    ] {
        assert!(router.contains(&line), "{line}: {router}");
    }
    assert_eq!(
        server.ok("show segment red-core"),
        format!(
            "segment red-core\n  network red, vlan 100\n  counted on a {since}: out 4 packets 240 bytes\n  \
             vif r1-core\n    counted on a {since}: in 1 packets 60 bytes, link_rx_dropped 3\n"
        )
    );
    let lan = server.ok("show segment red-lan1");
    assert!(lan.ends_with("dropped_foreign_tag 7 packets 420 bytes\n"), "{lan}");
    assert_eq!(server.ok("show segment").matches("segment ").count(), 3);
    let network = server.ok("show network red");
    assert!(
        network.starts_with(&format!("network red\n  counted on a {since}: in 8 packets 480 bytes\n")),
        "{network}"
    );

    let json = &server.json("show router r1")[0];
    assert_eq!(json["statistics"]["a"]["counters"]["forwarded_packets"], 5);
    assert_eq!(json["vifs"][0]["statistics"]["a"]["counters"]["link_rx_dropped"], 3);
    let json = &server.json("show segment red-core")[0];
    assert_eq!((&json["vlan"], &json["vifs"]), (&json!(100), &json!(["r1-core"])));
    assert_eq!(json["statistics"]["a"]["updated_ms"], 1_700_000_005_000_i64);
    let json = &server.json("show network red")[0];
    assert_eq!((&json["segments"], &json["routers"]), (&json!(["red-core", "red-lan1"]), &json!(["r1"])));
    assert!(server.ok("show node").starts_with("node a\n"));
    assert_eq!(
        server.ok("show node a"),
        format!(
            "node a\n  counted {since}: dropped_unknown_port 1 packets 60 bytes\n  uplink trunk0\n    \
             counted {since}: dropped_no_tag 2 packets 120 bytes\n"
        )
    );
    let json = &server.json("show node a")[0];
    assert_eq!(json["uplinks"][0]["counters"]["dropped_no_tag_packets"], 2);
    server.refused("show node nix", 2, "there is no node nix");
    server.refused("show segment nix", 2, "there is no segment nix");
    server.refused("show network nix", 2, "there is no network nix");
}
