//! What the daemons count and how old it is that a session was lost, as `xenflow show` prints it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{Server, populate};

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
            "node a\n  its daemon has reported nothing\n  counted {since}: dropped_unknown_port 1 packets 60 bytes\n  \
             uplink trunk0\n    counted {since}: dropped_no_tag 2 packets 120 bytes\n"
        )
    );
    let json = &server.json("show node a")[0];
    assert_eq!(json["uplinks"][0]["counters"]["dropped_no_tag_packets"], 2);
    server.refused("show node nix", 2, "there is no node nix: 'xenflow node list' shows all");
    server.refused("show segment nix", 2, "there is no segment nix: 'xenflow segment list' shows all");
    server.refused("show network nix", 2, "there is no network nix: 'xenflow network list' shows all");
}

/// The operator sees since when a session is lost, and how long that is: on every page, for people and for programs.
#[test]
fn a_lost_session_is_shown_with_its_age() {
    let server = Server::ready();
    populate(&server);
    let over = "no session for the hold time: nothing is forwarded for it";
    let lost = |ago: Duration, message: &str| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - ago;
        server.write(&json!([
            {"op": "delete", "table": "Status", "where": []},
            {"op": "insert", "table": "Status", "row": {
                "node": "a", "router": "r1", "state": "down", "since_ms": since.as_millis() as u64, "routes": 3,
                "message": message}},
        ]));
        since.as_millis() as u64
    };
    // Half a unit more than is shown, so that it does not matter how long the test takes.
    for (ago_s, text) in [(90 * 60, "1 h 30 min ago"), (26 * 3600 + 1800, "1 d 2 h ago")] {
        for message in ["", over] {
            let since_ms = lost(Duration::from_secs(ago_s), message);
            let since = (since_ms / 1000).to_string();
            let since = std::process::Command::new("date")
                .args(["--utc", "--date", &format!("@{since}"), "+%Y-%m-%dT%H:%M:%SZ"])
                .output()
                .unwrap();
            let since = String::from_utf8(since.stdout).unwrap();
            let since = since.trim();

            let block = server.ok("show router r1");
            let line = format!("  node a: session down since {since} ({text}), acked 0\n");
            assert!(block.contains(&line), "{line}: {block}");
            assert_eq!(block.contains(&format!("{line}    {over}\n")), !message.is_empty(), "{block}");
            let page = server.ok("show");
            let why = if message.is_empty() { String::new() } else { format!(": {over}") };
            let line = format!("    on a: down since {since} ({text}), routes 3, acked 0{why}\n");
            assert!(page.contains(&line), "{line}: {page}");

            for row in [&server.json("show router r1")[0]["nodes"][0], &server.json("show")["status"][0]] {
                assert_eq!((&row["state"], &row["since_ms"]), (&json!("down"), &json!(since_ms)));
                assert_eq!(row["message"], message);
                let age_s = row["age_s"].as_u64().unwrap();
                assert!((ago_s..ago_s + 60).contains(&age_s), "{age_s} s, not {ago_s}");
            }
        }
    }
    // One that was lost just now is not old.
    lost(Duration::from_secs(2), "");
    assert!(server.json("show")["status"][0]["age_s"].as_u64().unwrap() < 60);
    assert!(server.ok("show").contains(" s ago), routes 3"), "{}", server.ok("show"));
}
