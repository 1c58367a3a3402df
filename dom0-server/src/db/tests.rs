//! Rows in, state out: every rule of a row and between rows, by the words that are logged.

use ovsdb::{Datum, Row, Uuid};
use xenflow_proto::Name;

use super::*;

const RED: Uuid = Uuid(1);
const BLUE: Uuid = Uuid(2);
const CORE: Uuid = Uuid(11);
const SKY: Uuid = Uuid(12);
const R1: Uuid = Uuid(21);

fn row<const N: usize>(columns: [(&str, Datum); N]) -> Row {
    columns.into_iter().collect()
}

fn network(name: &str) -> Row {
    row([("name", name.into()), ("min_bps", Datum::empty()), ("max_bps", Datum::empty())])
}

fn segment(name: &str, network: Uuid, vlan: i64) -> Row {
    row([("name", name.into()), ("network", network.into()), ("vlan", vlan.into())])
}

fn router(name: &str, network: Uuid, id: i64) -> Row {
    treated(name, network, id, None, None, &[])
}

fn treated(
    name: &str,
    network: Uuid,
    id: i64,
    fast_path: Option<&str>,
    max_routes: Option<i64>,
    rates: &[(&str, i64)],
) -> Row {
    row([
        ("name", name.into()),
        ("network", network.into()),
        ("id", id.into()),
        ("fastpath", Datum::set(fast_path)),
        ("max_routes", Datum::set(max_routes)),
        ("punt_rate", Datum::map(rates.iter().copied())),
    ])
}

fn vif(name: &str, number: i64, kind: &str, segment: Option<Uuid>, mac: &str) -> Row {
    row([
        ("name", name.into()),
        ("router", R1.into()),
        ("number", number.into()),
        ("kind", kind.into()),
        ("segment", segment.into()),
        ("mac", mac.into()),
    ])
}

fn access(name: &str, segment: Uuid, macs: &[&str]) -> Row {
    row([("name", name.into()), ("segment", segment.into()), ("macs", Datum::set(macs.iter().copied()))])
}

/// Networks red and blue with a segment each, router r1 of red with a data and a control vif.
fn rows() -> Rows {
    let mut rows = Rows::default();
    let carries = Datum::map([("trunk0", 1_000_000_000), ("gone", 8_000)]);
    rows.insert(
        table::NODE,
        Uuid(31),
        row([("name", "a".into()), ("uplinks", Datum::set(["trunk0"])), ("uplink_capacity", carries)]),
    );
    rows.insert(table::NETWORK, RED, network("red"));
    rows.insert(table::NETWORK, BLUE, network("blue"));
    rows.insert(table::SEGMENT, CORE, segment("core", RED, 100));
    rows.insert(table::SEGMENT, SKY, segment("sky", BLUE, 200));
    rows.insert(table::ROUTER, R1, router("r1", RED, 1));
    rows.insert(table::VIF, Uuid(41), vif("r1-core", 1, "data", Some(CORE), "52:54:00:00:00:01"));
    rows.insert(table::VIF, Uuid(42), vif("r1-ctl", 2, "control", None, "52:54:00:00:00:02"));
    rows.insert(table::ACCESS, Uuid(51), access("h1", CORE, &["52:54:00:00:01:01"]));
    rows
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[test]
fn valid_rows_are_the_state() {
    let (desired, invalid) = Desired::assemble(&rows());
    assert_eq!(invalid, []);
    assert_eq!(desired.networks.len(), 2);
    assert_eq!(desired.segments[&name("core")].vlan.get(), 100);
    assert_eq!(desired.routers[&name("r1")].id.get(), 1);
    let numbers: Vec<_> = desired.vifs_of(&name("r1")).iter().map(|vif| vif.number.get()).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(desired.vifs[&name("r1-core")].attachment, Attachment::Segment(name("core")));
    assert_eq!(desired.control_vif(&name("r1")).unwrap().name, name("r1-ctl"));
    assert_eq!(desired.access[&name("h1")].segment, name("core"));
    assert_eq!(desired.uplinks_of(&name("a")).into_iter().collect::<Vec<_>>(), ["trunk0"]);
    assert!(desired.uplinks_of(&name("b")).is_empty());
    let carries = |node, port| desired.capacity_of(&name(node), port).map(|rate| rate.to_string());
    assert_eq!(carries("a", "trunk0").as_deref(), Some("1gbit"));
    assert_eq!((carries("a", "gone"), carries("b", "trunk0")), (None, None), "of uplinks only");
}

#[test]
fn a_row_that_breaks_a_rule_is_left_out_with_its_reason_and_nothing_else_is() {
    let (whole, _) = Desired::assemble(&rows());
    let mac = "52:54:00:00:00:09";
    let data = |segment| vif("x", 3, "data", segment, mac);
    for (table, bad, reason) in [
        (
            table::NETWORK,
            network("Red"),
            "\"Red\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit",
        ),
        (table::NETWORK, row([]), "the row has no column 'name'"),
        (table::SEGMENT, segment("x", RED, 4095), "VLAN 4095 is out of range: 1 to 4094 are usable"),
        (table::SEGMENT, segment("x", RED, 100), "VLAN 100 is taken by segment core: choose another"),
        (table::SEGMENT, segment("x", R1, 7), "refers to a network that is not there or not valid"),
        (table::ROUTER, router("x", RED, 0), "router id 0 is out of range: 1 to 65535"),
        (table::ROUTER, router("x", RED, 65536), "router id 65536 is out of range: 1 to 65535"),
        (table::ROUTER, router("x", BLUE, 1), "router id 1 is taken by router r1: choose another"),
        (
            table::ROUTER,
            treated("x", RED, 7, Some("sometimes"), None, &[]),
            "fastpath \"sometimes\" is none of auto, always, never",
        ),
        (
            table::ROUTER,
            treated("x", RED, 7, None, Some(0), &[]),
            "max_routes 0 is out of range: 1 to 1000000000",
        ),
        (
            table::ROUTER,
            treated("x", RED, 7, None, None, &[("arp", 1)]),
            "punt rate of \"arp\": a class is one of routing, resolution, host, exception, transit",
        ),
        (
            table::ROUTER,
            treated("x", RED, 7, None, None, &[("host", 10_000_001)]),
            "punt rate of host 10000001 is out of range: 1 to 10000000 packets/s",
        ),
        (table::VIF, data(None), "a data vif needs a segment"),
        (table::VIF, data(Some(SKY)), "segment sky is of network blue, router r1 of network red"),
        (table::VIF, data(Some(R1)), "refers to a segment that is not there or not valid"),
        (
            table::VIF,
            vif("x", 3, "control", Some(CORE), mac),
            "a control vif is on no segment, this one is on core",
        ),
        (
            table::VIF,
            vif("x", 3, "control", None, mac),
            "the place of the control vif of router r1 is taken by vif r1-ctl: choose another",
        ),
        (table::VIF, vif("x", 3, "tunnel", None, mac), "kind \"tunnel\" is neither data nor control"),
        (
            table::VIF,
            vif("x", 1, "data", Some(CORE), mac),
            "vif number 1 is taken by vif r1-core: choose another",
        ),
        (table::VIF, vif("x", 4096, "data", Some(CORE), mac), "vif number 4096 is out of range: 1 to 4095"),
        (
            table::VIF,
            vif("x", 3, "data", Some(CORE), "52:54:00:00:00:01"),
            "MAC address 52:54:00:00:00:01 is taken by vif r1-core: choose another",
        ),
        (
            table::VIF,
            vif("x", 3, "data", Some(CORE), "52:54:00:00:00:AB"),
            "MAC address \"52:54:00:00:00:AB\" is not in lower case",
        ),
        (
            table::VIF,
            vif("x", 3, "data", Some(CORE), "03:00:00:00:00:01"),
            "MAC address 03:00:00:00:00:01 cannot be used: it is a multicast address",
        ),
        (
            table::ACCESS,
            access("x", SKY, &["52:54:00:00:00:02"]),
            "MAC address 52:54:00:00:00:02 is taken by vif r1-ctl: choose another",
        ),
        (table::ACCESS, access("r1-core", SKY, &[]), "name r1-core is taken by vif r1-core: choose another"),
        (table::ACCESS, access("x", RED, &[]), "refers to a segment that is not there or not valid"),
        (
            table::NODE,
            row([
                ("name", "x".into()),
                ("uplinks", Datum::set(["a b"])),
                ("uplink_capacity", Datum::map::<&str, i64>([])),
            ]),
            "\"a b\" is not a port name: 1 to 63 printable characters without blanks and slashes",
        ),
    ] {
        let mut rows = rows();
        rows.insert(table, Uuid(99), bad);
        let (desired, invalid) = Desired::assemble(&rows);
        let reasons: Vec<_> = invalid.iter().map(|row| (row.kind.table(), row.reason.to_string())).collect();
        assert_eq!(reasons, [(table, reason.to_owned())]);
        assert_eq!(desired.left_out.len(), 1, "{reason}");
        assert_eq!(Desired { left_out: whole.left_out.clone(), ..desired }, whole, "{reason}");
    }
}

#[test]
fn what_a_row_does_not_say_of_a_router_is_the_default() {
    let policy = |row| {
        let mut rows = rows();
        rows.insert(table::ROUTER, R1, row);
        Desired::assemble(&rows).0.routers[&name("r1")].policy.effective()
    };
    let default = xenflow_flow_app::Policy::default();
    assert_eq!(policy(router("r1", RED, 1)), default);
    assert_eq!(policy(treated("r1", RED, 1, Some("auto"), None, &[])), default);
    let said = policy(treated("r1", RED, 1, Some("never"), Some(7), &[("host", 3), ("transit", 4)]));
    assert_eq!((said.fast_path, said.max_routes), (policy::FastPath::Never, 7));
    assert_eq!((said.punt_rates.host, said.punt_rates.transit), (3, 4));
    assert_eq!(said.punt_rates.routing, default.punt_rates.routing);
}

/// What refers to a row that is left out is left out too: no name in the state leads nowhere.
#[test]
fn references_to_invalid_rows_do_not_survive() {
    let mut rows = rows();
    rows.insert(table::NETWORK, RED, network("RED"));
    let (desired, invalid) = Desired::assemble(&rows);
    let left_out: Vec<_> = invalid.iter().map(|row| (row.kind, row.name.as_str())).collect();
    assert_eq!(
        left_out,
        [
            (Kind::Network, "RED"),
            (Kind::Segment, "core"),
            (Kind::Router, "r1"),
            (Kind::Vif, "r1-core"),
            (Kind::Vif, "r1-ctl"),
            (Kind::Access, "h1"),
        ]
    );
    assert_eq!(desired.segments.keys().collect::<Vec<_>>(), [&name("sky")]);
}

#[test]
fn a_message_is_cut_to_what_the_schema_takes() {
    let status = Status {
        node: name("a"),
        router: name("r1"),
        state: SessionState::Up,
        since_ms: 1,
        counts: Counts::default(),
        acked_seq: 3,
        message: "ä".repeat(600),
        slow: status::bounded((0..100).map(|n| format!("{n:03}{}", "ö".repeat(600)))),
        ports: [].into(),
        up: [].into(),
        vif_mtus: [].into(),
        unresolved: Default::default(),
    };
    let operations = format!("{:?}", status.upsert());
    assert_eq!(operations.matches('ä').count(), 512);
    assert_eq!(operations.matches('ö').count(), 63 * 509);
    assert_eq!(status.slow.last().map(String::as_str), Some("~ and 37 more"));
    assert_eq!(
        status::bounded(["b".to_owned(), String::new(), "a".to_owned()]),
        ["a".into(), "b".into()].into()
    );
}

/// The monitor asks for columns that the schema has: the daemon's replica is made of both.
#[test]
fn the_monitor_fits_the_schema() {
    let schema = serde_json::from_str(schema()).unwrap();
    let schema = ovsdb::DatabaseSchema::from_json(&schema).unwrap();
    assert_eq!((schema.name.as_str(), schema.version.as_str()), (DATABASE, VERSION));
    ovsdb::Replica::new(&schema, &monitor()).unwrap();
}

#[test]
fn what_daemons_write_has_the_columns_of_the_schema() {
    let schema: serde_json::Value = serde_json::from_str(schema()).unwrap();
    for (table, columns) in [
        (table::STATUS, &Status::COLUMNS[..]),
        (table::STATISTICS, &Statistics::COLUMNS),
        (table::NODE_STATUS, &NodeStatus::COLUMNS),
        (table::LOCATION, &location::COLUMNS),
        (table::MIGRATION, &Migration::COLUMNS),
    ] {
        let of_schema: std::collections::BTreeSet<_> =
            schema["tables"][table]["columns"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(columns.iter().copied().collect::<std::collections::BTreeSet<_>>(), of_schema, "{table}");
        let names_its_node = ![table::LOCATION, table::MIGRATION].contains(&table);
        assert_eq!(columns[0] == "node", names_its_node, "{table}");
    }
}
