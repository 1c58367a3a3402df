//! `xenflow apply` against a real `ovsdb-server`: what it prints, what it writes, and what it leaves alone.

use std::fs;

use crate::support::Server;
use serde_json::{Value, json};

const CAMPUS: &str = r#"
owner = "campus"

[nodes.a]
uplinks = ["trunk0"]
capacity = { trunk0 = "1gbit" }

[networks.red]
min = "20mbit"
max = 80_000_000

[networks.red.segments]
core = { vlan = 100 }
edge = { vlan = 101 }

[networks.red.routers.r1]
fastpath = "never"
punt_rate = { transit = 500 }
vifs.r1-core = { segment = "core", mac = "52:54:00:00:00:01" }
vifs.r1-edge = { segment = "edge", mac = "52:54:00:00:00:02" }
vifs.r1-ctl = { control = true, mac = "52:54:00:00:00:03" }

[networks.red.access]
h1 = { segment = "core", macs = ["52:54:00:00:01:01"] }

[networks.red.classes]
voice = { priority = 10, dscp = [46], protocol = "udp", ports = [5060], min = "5mbit" }

[networks.blue.segments]
sky = { vlan = 200 }
"#;

/// Applies a description, and what is printed comes back.
fn apply(server: &Server, text: &str, options: &str) -> String {
    server.ok(&format!("apply{options} -f {}", written(server, text)))
}

fn written(server: &Server, text: &str) -> String {
    let file = server.dir.0.join("topology.toml");
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

/// Bytes of the database's file: each transaction that changes something appends to it.
fn size(server: &Server) -> u64 {
    fs::metadata(server.dir.0.join("xenflow.db")).unwrap().len()
}

#[test]
fn a_description_becomes_the_database_and_a_second_time_nothing() {
    let server = Server::ready();
    let before = size(&server);
    let dry = apply(&server, CAMPUS, " --dry-run");
    assert_eq!(size(&server), before, "a dry run writes nothing");
    let said = apply(&server, CAMPUS, "");
    assert_eq!(said, dry);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "+ node a uplinks=trunk0 uplink_capacity=trunk0:1000000000");
    assert!(lines.contains(&"+ network red min_bps=20000000 max_bps=80000000"), "{said}");
    assert!(lines.contains(
        &"+ class red/voice network=red priority=10 dscp=46 protocol=17 ports=5060 min_bps=5000000"
    ));
    assert!(
        lines.contains(&"+ vif r1-core router=r1 kind=data segment=core mac=52:54:00:00:00:01"),
        "{said}"
    );
    assert_eq!(lines.last(), Some(&"12 added, 0 set, 0 replaced, 0 removed"));

    let after = size(&server);
    assert!(after > before);
    assert_eq!(apply(&server, CAMPUS, ""), "nothing differs\n");
    assert_eq!(size(&server), after, "the second time writes nothing");

    let page = server.ok("show");
    assert!(page.contains("network red min 20mbit max 80mbit\n  class voice priority 10 dscp 46 protocol udp ports 5060 min 5mbit\n"), "{page}");
    assert_eq!(server.json("vif list").as_array().unwrap().len(), 3);
    assert_eq!(server.json("router list")[0]["punt_rate"]["transit"], 500);
    assert_eq!(server.json("show")["invalid"], json!([]));
}

#[test]
fn the_description_in_the_readme_is_one() {
    let server = Server::ready();
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let from = readme.find("# topology.toml").unwrap();
    let text = &readme[from..from + readme[from..].find("```").unwrap()];
    let said = apply(&server, text, "");
    assert!(said.ends_with("\n10 added, 0 set, 0 replaced, 0 removed\n"), "{said}");
}

#[test]
fn only_what_differs_is_changed_and_only_what_it_owns_is_removed() {
    let server = Server::ready();
    server.ok("network add green");
    server.ok("segment add meadow --network green --vlan 300");
    apply(&server, CAMPUS, "");
    let id = server.json("router list")[0]["id"].clone();
    let changed = CAMPUS
        .replace("vlan = 101", "vlan = 111")
        .replace("fastpath = \"never\"\n", "")
        .replace("vifs.r1-edge = { segment = \"edge\", mac = \"52:54:00:00:00:02\" }\n", "")
        .replace("[networks.blue.segments]\nsky = { vlan = 200 }\n", "");
    let said = apply(&server, &changed, "");
    assert_eq!(
        said,
        "~ segment edge vlan=101 -> 111\n~ router r1 fastpath=never -> none\n- vif r1-edge\n- segment sky\n\
         - network blue\n0 added, 2 set, 0 replaced, 3 removed\n"
    );
    assert_eq!(server.json("router list")[0]["id"], id);
    let names = |what: &str| {
        let rows = server.json(&format!("{what} list"));
        rows.as_array()
            .unwrap()
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("network"), ["green", "red"], "what is not its own stays");
    assert_eq!(names("segment"), ["core", "edge", "meadow"]);

    // What cannot be changed is replaced, with all that refers to it, and keeps its number.
    let moved = changed.replace("[networks.red.routers.r1]", "[networks.blue.routers.r1]").replace(
        "[networks.red.access]",
        "[networks.blue.segments]\nsky = { vlan = 200 }\n\n[networks.red.access]",
    );
    let moved = moved.replace("segment = \"core\", mac =", "segment = \"sky\", mac =");
    let said = apply(&server, &moved, " --json");
    let said: Value = serde_json::from_str(&said).unwrap();
    let verbs: Vec<_> =
        said["differences"].as_array().unwrap().iter().map(|it| (&it["verb"], &it["name"])).collect();
    let (add, replace) = (json!("add"), json!("replace"));
    let (blue, sky, r1, core, ctl) =
        (json!("blue"), json!("sky"), json!("r1"), json!("r1-core"), json!("r1-ctl"));
    assert_eq!(verbs, [(&add, &blue), (&add, &sky), (&replace, &r1), (&replace, &core), (&replace, &ctl)]);
    assert_eq!(server.json("router list")[0]["id"], id);
    assert_eq!(server.json("router list")[0]["network"], "blue");
    assert_eq!(server.json("show")["invalid"], json!([]));
    assert_eq!(apply(&server, "owner = \"campus\"", ""), {
        "- class red/voice\n- access port h1\n- vif r1-core\n- vif r1-ctl\n- router r1\n- segment core\n- segment edge\n\
         - segment sky\n- network blue\n- network red\n- node a\n0 added, 0 set, 0 replaced, 11 removed\n"
    });
    assert_eq!(names("network"), ["green"]);
}

#[test]
fn what_is_somebody_elses_is_taken_over_only_when_asked() {
    let server = Server::ready();
    server.ok("network add red");
    let small = "owner = \"campus\"\n[networks.red]\nmin = \"1mbit\"";
    let line = format!("apply -f {}", written(&server, small));
    server.refused(
        &line,
        2,
        "network red is there already and belongs to nobody: say --adopt to take it over",
    );
    let said = apply(&server, small, " --adopt");
    assert_eq!(
        said,
        "~ network red min_bps=none -> 1000000 owner=nobody -> campus\n0 added, 1 set, 0 replaced, 0 removed\n"
    );
    assert_eq!(apply(&server, small, ""), "nothing differs\n");
    let line = format!("apply -f {}", written(&server, &small.replace("campus", "lab")));
    server.refused(
        &line,
        2,
        "network red is there already and belongs to \"campus\": say --adopt to take it over",
    );
}

/// Each rule with an input that breaks it; nothing of such a description is written.
#[test]
fn a_description_that_breaks_a_rule_is_refused_whole() {
    let server = Server::ready();
    server.ok("network add green");
    server.ok("segment add meadow --network green --vlan 300");
    let before = size(&server);
    for (from, to, message) in [
        ("owner = \"campus\"", "owner = \"\"", "owner: \"\" is not a name"),
        ("vlan = 101", "vlan = 4095", "networks.red.segments.edge: VLAN 4095"),
        ("vlan = 101", "vlan = 100", "segment edge: VLAN 100 is taken by segment core: choose another"),
        ("vlan = 101", "vlan = 300", "segment meadow: VLAN 300 is taken by segment edge: choose another"),
        ("vlan = 101", "vlam = 101", "unknown field `vlam`"),
        ("min = \"20mbit\"", "min = \"90mbit\"", "networks.red: max 80mbit is below min 90mbit"),
        (
            "min = \"20mbit\"",
            "min = \"20mb\"",
            "networks.red: rate \"20mb\" is not a whole number of bit, kbit",
        ),
        (
            "\"never\"",
            "\"maybe\"",
            "networks.red.routers.r1: fastpath \"maybe\" is none of auto, always, never",
        ),
        ("transit = 500", "transit = 0", "networks.red.routers.r1: punt rate of transit 0 is out of range"),
        ("\"52:54:00:00:00:02\"", "\"52:54:00:00:00:01\"", "MAC address 52:54:00:00:00:01 is taken by vif"),
        (
            "\"52:54:00:00:00:02\"",
            "\"53:54:00:00:00:02\"",
            "r1-edge: MAC address 53:54:00:00:00:02 cannot be used",
        ),
        ("control = true", "control = false", "r1-ctl: a data vif needs a segment"),
        (
            "{ control = true",
            "{ control = true, segment = \"core\"",
            "r1-ctl: a control vif is on no segment",
        ),
        (
            "segment = \"edge\"",
            "segment = \"sky\"",
            "segment sky is of network blue, router r1 of network red",
        ),
        ("segment = \"edge\"", "segment = \"sea\"", "vif r1-edge refers to segment sea, which neither"),
        (
            "{ segment = \"core\", macs",
            "{ segment = \"c\", macs",
            "access port h1 refers to segment c, which",
        ),
        ("dscp = [46]", "dscp = [64]", "networks.red.classes.voice: DSCP 64 is out of range: 0 to 63"),
        ("protocol = \"udp\", ", "", "networks.red.classes.voice: a class with ports needs protocol tcp"),
        (
            "priority = 10",
            "priority = 0",
            "networks.red.classes.voice: priority 0 is out of range: 1 to 1000",
        ),
        ("sky = {", "core = {", "the name of segment core is given twice"),
        ("uplinks = [\"trunk0\"]", "uplinks = [\"a b\"]", "nodes.a: \"a b\" is not a port name"),
        ("{ trunk0 =", "{ trunk1 =", "nodes.a: capacity of \"trunk1\": the node has no such uplink"),
        ("1gbit", "1gb", "nodes.a: rate \"1gb\" is not a whole number of bit, kbit, mbit"),
    ] {
        let text = CAMPUS.replacen(from, to, 1);
        assert_ne!(text, CAMPUS, "{from}");
        let line = format!("apply -f {}", written(&server, &text));
        let output = server.run(&line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(message) && said.lines().count() == 1, "{to}: {said}");
        assert_eq!(output.status.code(), Some(2), "{to}: {said}");
    }
    assert_eq!(size(&server), before);
    let missing = server.run("apply -f /nowhere/topology.toml");
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn contracts_and_classes_are_set_by_hand_too() {
    let server = Server::ready();
    server.ok("network add red");
    server.ok("sla set red --min 20mbit --max 80mbit");
    assert_eq!(server.json("sla list")[0]["min_bps"], 20_000_000);
    server.ok("sla set red --max none");
    assert_eq!(
        server.json("network list")[0],
        json!({"name": "red", "min_bps": 20_000_000, "max_bps": null})
    );
    server.refused("sla set red --max 1mbit", 2, "max 1mbit is below min 20mbit");
    server.refused("sla set red", 2, "nothing to set of network red: say --min or --max");
    server.refused(
        "sla set blue --min 1mbit",
        2,
        "there is no network blue: 'xenflow network list' shows all",
    );
    server.ok("class add red voice --priority 10 --dscp 46,34 --protocol udp --port 5060 --min 5mbit");
    server.ok("class add red rest --priority 1");
    server.refused(
        "class add red rest --priority 2",
        2,
        "class rest exists already: choose another name, or say --may-exist",
    );
    server.refused("class add red more --priority 1", 2, "priority 1 is taken by class rest: choose another");
    server.refused(
        "class add blue more --priority 1",
        2,
        "there is no network blue: 'xenflow network list' shows all",
    );
    server.ok("class set red rest --max 10mbit");
    server.refused(
        "class set red none --max 10mbit",
        2,
        "there is no class none: 'xenflow class list' shows all",
    );
    let list = server.json("class list");
    assert_eq!((&list[0]["name"], &list[0]["max_bps"]), (&json!("rest"), &json!(10_000_000)));
    assert_eq!(
        (&list[1]["dscp"], &list[1]["protocol"], &list[1]["ports"]),
        (&json!([34, 46]), &json!("udp"), &json!([5060]))
    );
    server.refused(
        "network remove red",
        2,
        "network red is in use by class rest, class voice: remove those first",
    );
    server.ok("class remove red voice");
    server.ok("class remove red rest");
    server.ok("network remove red");
}
