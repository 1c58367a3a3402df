//! `xenflow top --once` on a real database server, while somebody counts.

use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{Server, populate};

#[test]
fn one_sample_has_rates() {
    let server = Server::ready();
    populate(&server);
    server.ok("sla set red --min 20mbit");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    // 20 Mbit/s by the times that the node writes, whenever it writes.
    let counted = |step: u64| {
        let bytes = 1_000_000 + step * 2_500_000;
        let counters = json!(["map", [["out_bytes", bytes], ["out_packets", bytes / 100]]]);
        json!({"counters": counters, "updated_ms": now + step * 1000})
    };
    let mut first = counted(0);
    for (column, value) in [("node", "a"), ("scope", "network"), ("name", "red")] {
        first[column] = value.into();
    }
    first["since_ms"] = (now - 1000).into();
    server.write(&json!([{"op": "insert", "table": "Statistics", "row": first}]));
    let mut top = Command::new(env!("CARGO_BIN_EXE_xenflow"))
        .env("XENFLOW_DB", server.db())
        .args(["top", "--once", "--json", "--interval", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for step in 1.. {
        std::thread::sleep(Duration::from_millis(400));
        if top.try_wait().unwrap().is_some() {
            break;
        }
        server.write(&json!([{"op": "update", "table": "Statistics", "where": [], "row": counted(step)}]));
    }
    let ended = top.wait_with_output().unwrap();
    assert!(ended.status.success());
    let said: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let red = said["networks"].as_array().unwrap().iter().find(|row| row["name"] == "red").unwrap();
    assert_eq!(red["out_bps"], json!(20_000_000.0), "{said}");
    assert_eq!(red["out_pps"], json!(25_000.0));
    assert_eq!((&red["min_bps"], &red["max_bps"]), (&json!(20_000_000), &Value::Null));
    assert_eq!(said["routers"][0]["session"], "-");
    assert_eq!(said["nodes"][0]["seen_s"], Value::Null);
    assert_eq!(said["migrations"], json!([]));
}

#[test]
fn what_it_cannot_do_it_says() {
    let server = Server::start();
    server.refused("top --json", 2, "--json prints one sample: say --once too");
    server.refused("top", 2, "stdout is no terminal: say --once for one sample");
    let ran = server.run("top --once --timeout 1");
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.code() == Some(1) && said.contains("no database XenFlow"), "{said}");
}
