//! `xenflow doctor` on a real database server: what it sees, what it says to do, and its exit code.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{Runs as _, Server, populate};

/// Serves `Open_vSwitch` too, with a bridge `br-xf` of these interfaces: name and `iface-id`.
fn with_switch(server: &Server, interfaces: &[(&str, Option<&str>)]) {
    server.tool("ovsdb-tool", &["create", "conf.db", "/usr/share/openvswitch/vswitch.ovsschema"]);
    let ctl = server.ctl();
    let conf = server.dir.0.join("conf.db");
    let (ctl, conf) = (ctl.to_str().unwrap(), conf.to_str().unwrap());
    server.tool("ovs-appctl", &["-t", ctl, "ovsdb-server/add-db", conf]);
    let mut all = vec![json!("Open_vSwitch")];
    let mut ports = Vec::new();
    for (name, iface_id) in interfaces {
        let row = name.replace('-', "_");
        let ids: Vec<_> = iface_id.iter().map(|id| json!(["iface-id", id])).collect();
        all.push(json!({"op": "insert", "table": "Interface", "uuid-name": format!("i_{row}"), "row": {
            "name": name, "external_ids": ["map", ids], "mtu": 1500, "link_state": "up",
        }}));
        all.push(json!({"op": "insert", "table": "Port", "uuid-name": format!("p_{row}"), "row": {
            "name": name, "interfaces": ["named-uuid", format!("i_{row}")],
        }}));
        ports.push(json!(["named-uuid", format!("p_{row}")]));
    }
    all.push(json!({"op": "insert", "table": "Bridge", "uuid-name": "b", "row": {
        "name": "br-xf", "datapath_type": "netdev", "fail_mode": "secure", "ports": ["set", ports],
    }}));
    all.push(json!({"op": "insert", "table": "Open_vSwitch", "row": {
        "bridges": ["named-uuid", "b"], "ovs_version": "3.1.0",
    }}));
    let said = server.tool("ovsdb-client", &["transact", &server.db(), &Value::from(all).to_string()]);
    assert!(!said.contains("error"), "{said}");
}

/// Runs it; the findings by check and level, and the exit code.
fn doctor(server: &Server, more: &str) -> (Vec<Value>, Option<i32>) {
    let config = server.dir.0.join("dom0.toml");
    let ran = server.run(&format!("doctor --json --config {}{more}", config.display()));
    let said: Value = serde_json::from_slice(&ran.stdout).unwrap();
    (said["findings"].as_array().unwrap().clone(), ran.status.code())
}

fn of<'a>(findings: &'a [Value], check: &str) -> Vec<(&'a str, &'a str)> {
    let these = findings.iter().filter(|finding| finding["check"] == check);
    these.map(|finding| (finding["level"].as_str().unwrap(), finding["seen"].as_str().unwrap())).collect()
}

#[test]
fn a_host_is_compared_with_the_database() {
    let server = Server::ready();
    populate(&server);
    with_switch(
        &server,
        &[
            ("br-xf", None),
            ("tap1", Some("r1-core")),
            ("tap2", Some("red-h1")),
            ("tap3", Some("nobody")),
            ("trunk0", None),
        ],
    );
    let (findings, code) = doctor(&server, "");
    for (check, level) in [
        ("settings", "warn"),
        ("switch-version", "ok"),
        ("bridge", "ok"),
        ("datapath", "warn"),
        ("flow-restore-wait", "ok"),
        ("ports", "ok"),
        ("uplinks", "ok"),
        ("dark-ports", "warn"),
        ("mtu", "fail"),
        ("shaping", "ok"),
        ("cluster", "ok"),
        ("database", "ok"),
        ("rows", "ok"),
        ("nodes", "warn"),
        ("sessions", "warn"),
        // Nobody listens: there is no ovs-vswitchd.
        ("flows", "fail"),
    ] {
        let seen = of(&findings, check);
        assert!(seen.len() == 1 && seen[0].0 == level, "{check} {level}: {seen:?}");
    }
    assert!(of(&findings, "dark-ports")[0].1.contains("tap3"));
    assert_eq!(code, Some(1));
    for finding in &findings {
        assert_eq!(finding["level"] != "ok", finding["todo"].is_string(), "{finding}");
    }
    let text = server.run(&format!("doctor --config {}", server.dir.0.join("dom0.toml").display()));
    let page = String::from_utf8(text.stdout).unwrap();
    assert!(page.contains("\nWARN  dark-ports") && page.contains(" -> xenflow vif add nobody"), "{page}");
    let stderr = String::from_utf8(text.stderr).unwrap();
    assert!(stderr.ends_with(" checks failed\n") && stderr.lines().count() == 1, "{stderr}");

    let (host_only, _) = doctor(&server, " --host-only");
    assert_eq!((of(&host_only, "database"), of(&host_only, "dark-ports")), (vec![], vec![]));
    assert_eq!(of(&host_only, "bridge").len(), 1);
}

/// A counter that stands is told as a sum, at once; one that grows while the doctor looks is a warning.
#[test]
fn meters_are_looked_at_twice_where_they_may_be_dropping() {
    let server = Server::ready();
    populate(&server);
    let now_ms = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let counters = |packets: u64| json!(["map", [["policed_host_packets", packets]]]);
    server.write(&json!([{"op": "insert", "table": "Statistics", "row": {
        "node": "a", "scope": "router", "name": "r1", "counters": counters(5), "updated_ms": now_ms() - 60_000,
    }}]));
    let (findings, _) = doctor(&server, "");
    let well = "no packet for a guest is too many now; 5 were since counting began";
    assert_eq!(of(&findings, "policed"), [("ok", well)]);

    let grow = |packets| {
        let row = json!({"counters": counters(packets), "updated_ms": now_ms()});
        server.write(&json!([{"op": "update", "table": "Statistics", "where": [], "row": row}]));
    };
    grow(6);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| doctor(&server, ""));
        for packets in 7.. {
            if looking.is_finished() {
                break;
            }
            grow(packets);
            std::thread::sleep(Duration::from_millis(200));
        }
        let (findings, _) = looking.join().unwrap();
        let seen = of(&findings, "policed");
        assert!(
            seen.len() == 1 && seen[0].0 == "warn" && seen[0].1.contains("class host were too many"),
            "{seen:?}"
        );
    });
}

#[test]
fn certificates_are_read_by_the_daemons_settings() {
    let server = Server::ready();
    let dir = server.dir.0.display();
    server.ok(&format!("pki init {dir}"));
    server.ok(&format!("pki issue node a --ca {dir}"));
    let settings = |node: &str| {
        let text = format!(
            "node = \"{node}\"\nca = \"{dir}/ca.pem\"\ncert = \"{dir}/{node}.pem\"\n\
             key = \"{dir}/{node}.key\"\novs_db = \"{}\"\n",
            server.db()
        );
        fs::write(server.dir.0.join("dom0.toml"), text).unwrap();
    };
    settings("a");
    let (findings, _) = doctor(&server, " --host-only");
    for check in ["settings", "certificate", "authorities", "revoked"] {
        let seen = of(&findings, check);
        assert!(seen.len() == 1 && seen[0].0 == "ok", "{check}: {seen:?}");
    }
    // The switch's database is not there.
    assert_eq!(of(&findings, "switch")[0].0, "fail");
    // Of its life of 7 minutes, 5 of them past, less than a third is left.
    server.ok(&format!("pki issue node b --minutes 2 --ca {dir}"));
    settings("b");
    let (findings, _) = doctor(&server, " --host-only");
    let seen = of(&findings, "certificate");
    assert!(seen.len() == 1 && seen[0].0 == "warn" && seen[0].1.contains(" ends in "), "{seen:?}");
    let todo = findings.iter().find(|finding| finding["check"] == "certificate").unwrap()["todo"].clone();
    assert!(todo.as_str().unwrap().starts_with("xenflow pki renew node NAME"), "{todo}");
    // As it says: for 5 minutes more, of 10.
    server.ok(&format!("pki renew node b --ca {dir}"));
    let (findings, _) = doctor(&server, " --host-only");
    assert_eq!(of(&findings, "certificate")[0].0, "ok", "{findings:?}");
    settings("c");
    let (findings, code) = doctor(&server, " --host-only");
    assert_eq!((of(&findings, "certificate")[0].0, code), ("fail", Some(1)));
    fs::write(server.dir.0.join("dom0.toml"), "nod = 1\n").unwrap();
    let (findings, _) = doctor(&server, " --host-only");
    assert_eq!(of(&findings, "settings")[0].0, "fail");
}

#[test]
fn what_cannot_be_reached_is_a_finding() {
    let server = Server::start();
    let (findings, code) = doctor(&server, "");
    assert_eq!(
        (of(&findings, "database")[0].0, of(&findings, "cluster")[0].0, code),
        ("fail", "fail", Some(1))
    );
    assert!(of(&findings, "cluster")[0].1.contains("xenflow init"), "{findings:?}");
    server.refused("doctor --db udp:1", 2, &{
        let ran = server.run("doctor --db udp:1");
        let said = String::from_utf8(ran.stderr).unwrap();
        assert!(said.contains("udp:1"), "{said}");
        said.trim_start_matches("xenflow: ").trim_end().to_owned()
    });
}
