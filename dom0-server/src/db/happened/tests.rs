use std::sync::Arc;

use ovsdb::{Datum, Row, Uuid};

use super::*;

/// A row of a table, as it becomes; none: it goes.
fn change(table: &str, uuid: u128, columns: Option<&[(&str, Datum)]>) -> RowChange {
    let new = columns.map(|columns| Arc::new(columns.iter().cloned().collect::<Row>()));
    RowChange { table: Arc::from(table), uuid: Uuid(uuid), old: None, new }
}

fn told(happened: &[Happened]) -> Vec<String> {
    let told = happened.iter().map(|it| {
        let subject = it.subject.iter().map(|(what, name)| format!("{what} {name} ")).collect::<String>();
        let node = it.node.as_ref().map_or("-", Name::as_str);
        let time = it.time_ms.map_or("-".to_owned(), |ms| ms.to_string());
        format!("{time} {node} {} {subject}| {}", it.kind, it.text)
    });
    told.collect()
}

fn status(
    state: &str,
    since_ms: i64,
    message: &str,
    slow: &[&str],
    ports: &[(&str, &str)],
) -> Vec<(&'static str, Datum)> {
    vec![
        ("node", "a".into()),
        ("router", "r1".into()),
        ("state", state.into()),
        ("since_ms", since_ms.into()),
        ("routes", 3.into()),
        ("neighbors", 0.into()),
        ("next_hops", 0.into()),
        ("prefixes", Datum::map(Vec::<(&str, i64)>::new())),
        ("acked_seq", 9.into()),
        ("message", message.into()),
        ("slow", Datum::set(slow.iter().copied())),
        ("ports", Datum::map(ports.iter().copied())),
        ("up", Datum::empty()),
        ("vif_mtus", Datum::map(Vec::<(&str, i64)>::new())),
        ("unresolved", 0.into()),
        ("unresolved_gateways", Datum::empty()),
    ]
}

#[test]
fn a_session_s_way_is_told_and_a_row_written_anew_is_no_news() {
    let mut known = Known::default();
    let mut uuid = 0;
    // As a daemon writes: a new row in the place of the old one.
    let mut write = |row: Vec<(&str, Datum)>| {
        uuid += 1;
        let changes = [change(table::STATUS, uuid - 1, None), change(table::STATUS, uuid, Some(&row))];
        told(&known.take(&changes))
    };
    let ports = [("r1-lan", "vif1.1")];
    assert_eq!(
        write(status("syncing", 5, "", &[], &[])),
        ["5 a session-up router r1 | the guest tells its tables"]
    );
    assert_eq!(
        write(status("up", 6, "", &[], &ports)),
        [
            "6 a snapshot-complete router r1 | the guest has told its tables (routes 3)",
            "- a port-bound router r1 vif r1-lan port vif1.1 | the port is bound",
        ]
    );
    assert_eq!(write(status("up", 6, "", &[], &ports)), Vec::<String>::new());
    assert_eq!(
        write(status("up", 6, "8 prefixes of 10", &["all: fastpath is never"], &[])),
        [
            "- a problem router r1 | 8 prefixes of 10",
            "- a fastpath-off router r1 | the guest forwards itself: all: fastpath is never",
            "- a port-unbound router r1 vif r1-lan port vif1.1 | the port is not bound any more",
        ]
    );
    assert_eq!(
        write(status("up", 6, "9 prefixes of 10", &["all: fastpath is never"], &[])),
        Vec::<String>::new()
    );
    assert_eq!(
        write(status("down", 7, "", &[], &[])),
        [
            "7 a session-lost router r1 | the router has no session: its tables are held",
            "- a problem-gone router r1 | no more: 9 prefixes of 10",
            "- a fastpath-on router r1 | the host forwards for the router",
        ]
    );
    let gone = known.take(&[change(table::STATUS, uuid, None)]);
    assert_eq!(
        told(&gone),
        ["- a router-gone router r1 | the node has nothing to do with the router any more"]
    );
}

#[test]
fn nodes_addresses_migrations_and_the_desired_state_are_told() {
    let mut known = Known::default();
    let cfg = |cfg: i64| change(table::XENFLOW, 1, Some(&[("next_cfg", cfg.into())]));
    let node = |started_ms: i64, seen_ms: i64, cfg: i64, problems: &[&str]| {
        let columns = [
            ("node", "a".into()),
            ("version", "1.2.3".into()),
            ("ovs_version", "".into()),
            ("datapath", "".into()),
            ("started_ms", started_ms.into()),
            ("seen_ms", seen_ms.into()),
            ("cfg", cfg.into()),
            ("problems", Datum::set(problems.iter().copied())),
            ("uplink_mtus", Datum::map::<&str, i64>([])),
            ("uplink_capacity", Datum::map::<&str, i64>([])),
            ("shaping", Datum::map::<&str, &str>([])),
            ("address", "".into()),
        ];
        change(table::NODE_STATUS, 2, Some(&columns))
    };
    let first = known.take(&[cfg(4), node(1, 10, 3, &["dark"])]);
    assert_eq!(told(&first), ["1 a daemon-up | the daemon begins (version 1.2.3)", "10 a problem | dark"]);
    let next = known.take(&[cfg(5), node(1, 11, 5, &[])]);
    assert_eq!(
        told(&next),
        [
            "- - desired-changed | the desired state changed (generation 5)",
            "11 a desired-reached | the switch has the desired state (generation 5)",
            "11 a problem-gone | no more: dark",
        ]
    );
    assert_eq!(known.seen().map(|(_, seen)| seen).collect::<Vec<_>>(), [11]);
    assert_eq!(
        told(&known.take(&[node(12, 13, 5, &[])])),
        ["12 a daemon-up | the daemon begins (version 1.2.3)"]
    );

    let location = |uuid, node: &str, generation: i64| {
        let mac = "02:00:00:00:00:01";
        let columns = [
            ("segment", "lan".into()),
            ("mac", mac.into()),
            ("node", node.into()),
            ("generation", generation.into()),
        ];
        change(table::LOCATION, uuid, Some(&columns))
    };
    let place = "segment lan mac 02:00:00:00:00:01 |";
    assert_eq!(
        told(&known.take(&[location(1, "a", 1)])),
        [format!("- a location-taken {place} the address is here (generation 1)")]
    );
    assert_eq!(
        told(&known.take(&[location(2, "b", 2)])),
        [format!("- b location-taken {place} the address is here, and was on a (generation 2)")]
    );
    // The one that was passed over has nothing to give up.
    assert_eq!(told(&known.take(&[change(table::LOCATION, 1, None)])), Vec::<String>::new());
    assert_eq!(
        told(&known.take(&[change(table::LOCATION, 2, None)])),
        [format!("- b location-given-up {place} the address is not here any more")]
    );

    let migration = |phase: &str, error: &str| {
        let columns = [
            ("number", 7.into()),
            ("router", "r1".into()),
            ("from", "a".into()),
            ("to", "b".into()),
            ("via", "xl".into()),
            ("move_limit_s", 600.into()),
            ("phase", phase.into()),
            ("generation", if phase == "announced" { 2.into() } else { 0.into() }),
            ("yielded", true.into()),
            ("left", false.into()),
            ("error", error.into()),
            ("digest", "".into()),
            ("reached", Datum::map([(phase, 9)])),
            ("counters", Datum::map::<&str, i64>([])),
        ];
        change(table::MIGRATION, 1, Some(&columns))
    };
    assert_eq!(
        told(&known.take(&[migration("moving", "")])),
        ["- b migration router r1 migration 7 | from a to b: moving"]
    );
    assert_eq!(told(&known.take(&[migration("moving", "")])), Vec::<String>::new());
    assert_eq!(
        told(&known.take(&[migration("announced", "")])),
        ["- b migration router r1 migration 7 | from a to b: announced (generation 2)"]
    );
    assert_eq!(
        told(&known.take(&[migration("aborted", "no memory")])),
        ["- b migration router r1 migration 7 | from a to b: aborted: no memory"]
    );
    assert_eq!(told(&known.take(&[change(table::MIGRATION, 1, None)])), Vec::<String>::new(), "it was over");
    known.take(&[migration("moving", "")]);
    assert_eq!(
        told(&known.take(&[change(table::MIGRATION, 1, None)])),
        ["- b migration router r1 migration 7 | its row is gone"]
    );
}

#[test]
fn rows_that_do_not_parse_say_nothing() {
    let mut known = Known::default();
    let bad = [("node", Datum::from("A b")), ("router", "r1".into())];
    let tables = [table::XENFLOW, table::NODE_STATUS, table::STATUS, table::LOCATION, table::MIGRATION];
    let changes: Vec<RowChange> = tables.iter().map(|table| change(table, 1, Some(&bad))).collect();
    assert_eq!(known.take(&changes), []);
}
