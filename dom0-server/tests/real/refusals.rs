//! Every rule by which a command is refused, each with a wrong input: the message names the value, the rule and what to
//! do, and the exit code is 2. A rule without an input here does not pass.

use std::collections::BTreeSet;
use std::fs;

use dom0_server::config::ConfigError;
use dom0_server::db::admission::AdmissionError;
use dom0_server::db::apply::ApplyError;
use dom0_server::db::description::DescriptionError;
use dom0_server::db::edit::{EditError, Key, Snapshot};
use dom0_server::db::{Kind, RouterId, RowError, Rows, table};
use dom0_server::pki::PkiError;
use ovsdb::{ColumnError, Datum, RemoteParseError, Row, Uuid};
use serde_json::json;

use crate::support::{Server, populate};

/// Names of all variants but those behind the semicolon, which no input causes; a variant that is not listed does not
/// compile.
macro_rules! rules {
    ($ty:ident: $($variant:ident),* $(; $($other:ident),*)? $(,)?) => {{
        let _ = |error: &$ty| match error { $($ty::$variant { .. } => (),)* $($($ty::$other { .. } => ()),*)? };
        [$(concat!(stringify!($ty), "::", stringify!($variant))),*].to_vec()
    }};
}
pub(crate) use rules;

fn all_rules() -> BTreeSet<&'static str> {
    let all = [
        rules!(EditError: Exists, Differs, Nothing, Unknown, Invalid, Row, InUse, Alive, UplinkExists, NoUplink, Admission, Full),
        rules!(RowError: Column, Name, Vlan, Mac, MacUnusable, MacCase, Number, FastPath, MaxRoutes, PuntClass, PuntRate,
            PuntSyntax, PuntTwice, Rate, Contract, Range, Protocol, PortsWithoutProtocol, TooManyPorts, TooWide, ExternalId,
            VifKind, NoSegment, ControlSegment, Dangling, OtherNetwork, Taken, State, Scope, Word, Port, CapacityOfNoUplink),
        rules!(AdmissionError: Uplink, ClassAlone, ClassMinima, ClassMax),
        rules!(ApplyError: Foreign, Unknown, Invalid, Admission, Edit),
        rules!(DescriptionError: Long, Toml, Value, Twice),
        rules!(RemoteParseError: Method, Path, Address, Empty),
        rules!(ConfigError: Read, Syntax, Value),
        rules!(PkiError: CaExists, LeafExists, OtherIdentity, TooLong, Life, Reserved, Unknown, AllRevoked, Revoked, Rotating,
            NotRotating, OldInUse; File, CaCert, CaKey, Random, Make, Index, Write, TooMany, Malformed),
    ];
    all.concat().into_iter().collect()
}

const MAC: &str = "52:54:00:00:00:02";

/// Rule, words, what is said.
fn lines() -> Vec<(&'static str, String, &'static str)> {
    let ports: Vec<_> = (1..=65).map(|port| port.to_string()).collect();
    let fixed = [
        (
            "EditError::Exists",
            "network add red",
            "network red exists already: choose another name, or say --may-exist",
        ),
        (
            "EditError::Differs",
            "segment add red-core --network red --vlan 9 --may-exist",
            "segment red-core exists already with vlan 100, not 9: 'xenflow segment set' changes it",
        ),
        (
            "EditError::Nothing",
            "vif set r1-core",
            "nothing to set of vif r1-core: say --segment, --mac or --external-id",
        ),
        (
            "EditError::Unknown",
            "network remove green",
            "there is no network green: 'xenflow network list' shows all",
        ),
        (
            "EditError::InUse",
            "segment remove red-core",
            "segment red-core is in use by vif r1-core: remove those first",
        ),
        (
            "EditError::UplinkExists",
            "uplink add a trunk0",
            "port trunk0 is an uplink of node a already: say --may-exist if it may be",
        ),
        (
            "EditError::NoUplink",
            "uplink remove a nix",
            "port nix is no uplink of node a: 'xenflow uplink show a' has all",
        ),
        ("EditError::Row", "segment set red-core --vlan 0", "VLAN 0 is out of range: 1 to 4094 are usable"),
        (
            "RowError::Vlan",
            "segment set red-core --vlan 4095",
            "VLAN 4095 is out of range: 1 to 4094 are usable",
        ),
        (
            "RowError::Name",
            "router add R --network red",
            "\"R\" is not a name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit",
        ),
        (
            "RowError::Mac",
            "vif set r1-core --mac 1",
            "\"1\" is not a MAC address (six bytes in hexadecimal with colons, as 52:54:00:12:34:56)",
        ),
        (
            "RowError::MacUnusable",
            "vif set r1-core --mac 01:54:00:00:00:02",
            "MAC address 01:54:00:00:00:02 cannot be used: it is a multicast address",
        ),
        (
            "RowError::MaxRoutes",
            "router set r1 --max-routes 0",
            "max_routes 0 is out of range: 1 to 1000000000",
        ),
        (
            "RowError::PuntClass",
            "router set r1 --punt-rate arp=1",
            "punt rate of \"arp\": a class is one of routing, resolution, host, exception, transit",
        ),
        (
            "RowError::PuntRate",
            "router set r1 --punt-rate host=0",
            "punt rate of host 0 is out of range: 1 to 10000000 packets/s",
        ),
        (
            "RowError::PuntSyntax",
            "router set r1 --punt-rate host",
            "punt rate \"host\" is not CLASS=PPS or CLASS=default",
        ),
        (
            "RowError::PuntTwice",
            "router set r1 --punt-rate host=1 --punt-rate host=2",
            "punt rate of host is given twice",
        ),
        (
            "RowError::Rate",
            "sla set red --min 1",
            "rate \"1\" is not a whole number of bit, kbit, mbit, gbit or tbit from 8kbit to 1tbit",
        ),
        ("RowError::Contract", "sla set red --min 2mbit --max 1mbit", "max 1mbit is below min 2mbit"),
        ("RowError::Range", "class set red voice --priority 0", "priority 0 is out of range: 1 to 1000"),
        (
            "RowError::Protocol",
            "class set red voice --protocol tpc",
            "protocol \"tpc\" is neither a number from 0 to 255 nor one of tcp, udp, sctp, icmp, gre, esp, icmpv6, ospf",
        ),
        (
            "RowError::PortsWithoutProtocol",
            "class set red voice --port 80",
            "a class with ports needs protocol tcp, udp or sctp",
        ),
        (
            "RowError::ExternalId",
            "network set red --external-id =",
            "\"=\" is not KEY=VALUE, or KEY to take it away: a key is 1 to 63 printable characters without blanks and =",
        ),
        (
            "RowError::ControlSegment",
            "vif set r1-ctl --segment red-core",
            "a control vif is on no segment, this one is on red-core",
        ),
        (
            "RowError::OtherNetwork",
            "vif set r1-core --segment blue-core",
            "segment blue-core is of network blue, router r1 of network red",
        ),
        (
            "RowError::Taken",
            "segment set red-core --vlan 200",
            "VLAN 200 is taken by segment blue-core: choose another",
        ),
        (
            "RowError::Port",
            "uplink add a x/y",
            "\"x/y\" is not a port name: 1 to 63 printable characters without blanks and slashes",
        ),
        (
            "RowError::CapacityOfNoUplink",
            "uplink set a nix --capacity 1gbit",
            "capacity of \"nix\": the node has no such uplink",
        ),
        (
            "AdmissionError::Uplink",
            "sla set blue --min 7mbit",
            "networks are promised 11mbit in all, but uplink trunk0 of node a carries 10mbit (set): 1mbit too much; promise \
             less, or say what it carries if that is not so ('xenflow uplink set a trunk0 --capacity RATE')",
        ),
        (
            "EditError::Admission",
            "uplink set a trunk0 --capacity 3500kbit",
            "networks are promised 4mbit in all, but uplink trunk0 of node a carries 3500kbit (set): 500kbit too much; promise \
             less, or say what it carries if that is not so ('xenflow uplink set a trunk0 --capacity RATE')",
        ),
        (
            "AdmissionError::ClassAlone",
            "class add blue voice --priority 1 --min 1mbit",
            "class voice of network blue is promised 1mbit, but the network nothing: 'xenflow sla set blue --min RATE' comes \
             first",
        ),
        (
            "AdmissionError::ClassMinima",
            "class set red voice --min 5mbit",
            "classes of network red are promised 5mbit in all, but the network 4mbit: 1mbit too much",
        ),
        (
            "AdmissionError::ClassMax",
            "class set red voice --max 9mbit",
            "class voice of network red gets 9mbit at most, but the network 8mbit: 1mbit too much",
        ),
        (
            "RemoteParseError::Method",
            "--db=pipe:x show",
            "remote 'pipe:x' does not begin with unix:, tcp: or ssl:",
        ),
        ("RemoteParseError::Path", "--db=unix: show", "remote 'unix:' has no path"),
        (
            "RemoteParseError::Address",
            "--db=tcp:host show",
            "remote 'tcp:host' is not METHOD:IP[:PORT] with a numeric IP address (IPv6 in brackets)",
        ),
        ("RemoteParseError::Empty", "--db=, show", "the list of remotes is empty"),
    ];
    let mut lines: Vec<_> =
        fixed.into_iter().map(|(rule, line, said)| (rule, line.to_owned(), said)).collect();
    let many = format!("class set red voice --protocol udp --port {}", ports.join(","));
    lines.push(("RowError::TooManyPorts", many, "65 ports are too many: at most 64"));
    let wide = format!("class set red voice --protocol udp --dscp 1,2,3 --port {}", ports[..43].join(","));
    let said = "258 combinations of a code point, a port and its end are too many: at most 256";
    lines.push(("RowError::TooWide", wide, said));
    lines
}

/// Rule, description, part of what is said.
const DESCRIPTIONS: [(&str, &str, &str); 10] = [
    (
        "ApplyError::Foreign",
        "owner = \"o\"\nnetworks.red = {}",
        "network red is there already and belongs to nobody: say --adopt to take it over",
    ),
    (
        "ApplyError::Unknown",
        "owner = \"o\"\nnetworks.n.access.h = { segment = \"s\" }",
        "access port h refers to segment s, which neither the description nor the database has",
    ),
    (
        "ApplyError::Invalid",
        "owner = \"o\"\nnetworks.n.segments.a = { vlan = 100 }",
        "VLAN 100 is taken by segment a",
    ),
    (
        "ApplyError::Admission",
        "owner = \"o\"\nnetworks.n.min = \"7mbit\"",
        "networks are promised 11mbit in all, but uplink trunk0 of node a carries 10mbit (set): 1mbit too much",
    ),
    ("DescriptionError::Toml", "owner = 1", "invalid type: integer `1`, expected a string"),
    ("DescriptionError::Value", "owner = \"O\"", "owner: \"O\" is not a name: 1 to 63 of a-z"),
    (
        "DescriptionError::Twice",
        "owner = \"o\"\nnetworks.m.segments.s = { vlan = 7 }\nnetworks.n.segments.s = { vlan = 8 }",
        "networks.n.segments.s: the name of segment s is given twice",
    ),
    (
        "RowError::NoSegment",
        "owner = \"o\"\nnetworks.n.routers.r.vifs.v = { mac = \"52:54:00:00:00:02\" }",
        "a data vif needs a segment",
    ),
    (
        "RowError::FastPath",
        "owner = \"o\"\nnetworks.n.routers.r.fastpath = \"maybe\"",
        "networks.n.routers.r: fastpath \"maybe\" is none of auto, always, never",
    ),
    ("DescriptionError::Long", "", "bytes are too many: at most 16777216"),
];

/// What only rows can be that others wrote past the command, or a schema that is another one.
fn of_rows() -> Vec<(&'static str, RowError, &'static str)> {
    let missing = ColumnError::Missing { column: "vlan".into() };
    vec![
        ("RowError::Column", missing.into(), "the row has no column 'vlan'"),
        ("RowError::Number", RouterId::try_from(0).unwrap_err(), "router id 0 is out of range: 1 to 65535"),
        ("RowError::VifKind", RowError::VifKind("x".into()), "kind \"x\" is neither data nor control"),
        ("RowError::State", RowError::State("x".into()), "state \"x\" is none of down, syncing, up"),
        (
            "RowError::Scope",
            RowError::Scope("x".into()),
            "scope \"x\" is none of router, vif, access, uplink, segment, network, node",
        ),
        ("RowError::Word", RowError::Word { what: "phase", value: "x".into() }, "phase \"x\" is not known"),
    ]
}

/// A router whose numbers for vifs are all taken.
fn full() -> EditError {
    let mut rows = Rows::default();
    let row = |columns: Vec<(&'static str, Datum)>| columns.into_iter().collect::<Row>();
    let empty = || Datum::map::<&str, &str>([]);
    rows.insert(
        table::NETWORK,
        Uuid(1),
        row(vec![("name", "red".into()), ("min_bps", Datum::empty()), ("max_bps", Datum::empty())]),
    );
    rows.insert(
        table::ROUTER,
        Uuid(2),
        row(vec![
            ("name", "r1".into()),
            ("network", Uuid(1).into()),
            ("id", 1.into()),
            ("fastpath", Datum::empty()),
            ("max_routes", Datum::empty()),
            ("punt_rate", empty()),
        ]),
    );
    for number in 1..=4095_u16 {
        let columns = vec![("router", Uuid(2).into()), ("number", i64::from(number).into())];
        rows.insert(table::VIF, Uuid(1000 + u128::from(number)), row(columns));
    }
    let key = Key { kind: Kind::Vif, network: None, name: "v".into() };
    let router = dom0_server::db::description::Column::To(Kind::Router, "r1".parse().unwrap());
    Snapshot::from(rows).add(&key, false, |_| Ok(vec![("router", router.clone())])).unwrap_err()
}

/// An authority and what is done with it, in order: rule, words, what is said. Nothing is refused where there is no rule.
const AUTHORITY: [(&str, &str, &str); 16] = [
    ("", "init {ca}", ""),
    ("PkiError::CaExists", "init {ca}", "ca.pem exists already: an authority is never overwritten"),
    ("", "issue router r1", ""),
    (
        "PkiError::LeafExists",
        "issue router r1",
        "r1.pem exists already: 'xenflow pki renew' replaces the certificate of the same identity",
    ),
    (
        "PkiError::OtherIdentity",
        "renew node r1",
        "r1.pem is not a certificate of xenflow://node/r1, so it is not renewed",
    ),
    ("PkiError::Life", "issue router r2 --days 0", "0s is out of range: 1m to 3650d"),
    ("PkiError::TooLong", "issue router r2 --days 3650", "3650d is too long: the authority ends on "),
    (
        "PkiError::Reserved",
        "issue router ca",
        "\"ca\" is the authority's own file name: choose another name or directory",
    ),
    (
        "PkiError::Unknown",
        "revoke router r9",
        "no certificate of xenflow://router/r9 is known: revoke it by --serial",
    ),
    ("", "issue node a", ""),
    ("PkiError::NotRotating", "rotate --finish", "the authority is not being rotated"),
    ("", "rotate", ""),
    (
        "PkiError::Rotating",
        "rotate",
        "the authority is rotated already: 'xenflow pki rotate --finish' ends that",
    ),
    (
        "PkiError::OldInUse",
        "rotate --finish",
        "2 certificates of the old authority are in use, that of xenflow://",
    ),
    ("", "revoke router r1", ""),
    (
        "PkiError::AllRevoked",
        "revoke router r1",
        "every certificate of xenflow://router/r1 is revoked already",
    ),
];

fn of_the_authority(server: &Server) -> BTreeSet<&'static str> {
    let ca = server.dir.0.join("pki").display().to_string();
    let mut seen = BTreeSet::new();
    for (rule, words, message) in AUTHORITY {
        let line = match words.strip_suffix(" {ca}") {
            Some(words) => format!("pki {words} {ca}"),
            None => format!("pki {words} --ca {ca}"),
        };
        let output = server.run(&line);
        let said = String::from_utf8_lossy(&output.stderr);
        let wanted = if rule.is_empty() { Some(0) } else { Some(2) };
        assert!(said.contains(message) && output.status.code() == wanted, "{line}: {said}");
        seen.insert(rule);
    }
    let listed = server.json(&format!("pki list --ca {ca}"));
    let listed = listed.as_array().unwrap();
    let revoked = listed.iter().find(|row| row["state"] == "revoked").unwrap()["serial"].as_str().unwrap();
    let line = format!("pki revoke --serial {revoked} --ca {ca}");
    server.refused(&line, 2, &format!("certificate {revoked} was revoked"));
    seen.insert("PkiError::Revoked");
    seen
}

#[test]
fn every_rule_has_its_wrong_input() {
    let server = Server::ready();
    populate(&server);
    server.ok("class add red voice --priority 10");
    server.ok("uplink set a trunk0 --capacity 10mbit");
    server.ok("sla set red --min 4mbit --max 8mbit");
    let mut seen = BTreeSet::new();
    let before = server.json("show");
    for (rule, line, message) in lines() {
        server.refused(&line, 2, message);
        seen.insert(rule);
    }
    let file = server.dir.0.join("topology.toml");
    for (rule, text, message) in DESCRIPTIONS {
        let long = " ".repeat((16 << 20) + 1);
        fs::write(&file, if text.is_empty() { &long } else { text }).unwrap();
        let output = server.run(&format!("apply -f {}", file.display()));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(message) && said.lines().count() == 1, "{rule}: {said}");
        assert_eq!(output.status.code(), Some(2), "{rule}: {said}");
        seen.insert(rule);
    }
    let settings = server.dir.0.join("dom0.toml");
    for (rule, text, message) in [
        ("ConfigError::Syntax", "nod = 1", "unknown field `nod`"),
        (
            "ConfigError::Value",
            "node = \"A\"\nca = \"x\"\ncert = \"x\"\nkey = \"x\"",
            "node = \"A\": \"A\" is not a name: 1 to 63",
        ),
    ] {
        fs::write(&settings, text).unwrap();
        let output = server.run(&format!("init --unless {}", settings.display()));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(message) && said.contains(settings.to_str().unwrap()), "{rule}: {said}");
        assert_eq!(output.status.code(), Some(2), "{rule}: {said}");
        seen.insert(rule);
    }
    let dir = server.dir.0.display();
    server.refused(
        &format!("init --unless {dir}"),
        2,
        &format!("cannot read {dir}: Is a directory (os error 21)"),
    );
    seen.insert("ConfigError::Read");
    assert_eq!(server.json("show"), before, "a refusal changes nothing");

    for (rule, error, message) in of_rows() {
        assert_eq!(error.to_string(), message);
        seen.insert(rule);
    }
    assert_eq!(full().to_string(), "every vif number from 1 to 4095 is taken: remove one first");
    assert_eq!(ApplyError::from(full()).to_string(), full().to_string());
    seen.extend(["EditError::Full", "ApplyError::Edit"]);

    // Rows that somebody wrote past the rules.
    server.write(&json!([
        {"op": "insert", "table": "Network", "uuid-name": "n", "row": {"name": "Bad"}},
        {"op": "insert", "table": "Segment", "row": {"name": "lost", "network": ["named-uuid", "n"], "vlan": 9}},
        {"op": "update", "table": "Vif", "where": [["name", "==", "r1-core"]], "row": {"mac": "52:54:00:00:00:0B"}},
    ]));
    for (rules, line, message) in [
        (
            ["EditError::Invalid", "RowError::MacCase"],
            "vif show r1-core",
            "MAC address \"52:54:00:00:00:0B\" is not in lower case",
        ),
        (
            ["EditError::Invalid", "RowError::Dangling"],
            "segment show lost",
            "refers to a network that is not there or not valid",
        ),
    ] {
        let output = server.run(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(message), "{line}: {said}");
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        seen.extend(rules);
    }
    server.ok(&format!("vif set r1-core --mac {MAC}"));

    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    server.write(&json!([{"op": "insert", "table": "Node_Status", "row": {
        "node": "b", "seen_ms": u64::try_from(now).unwrap()}}]));
    let output = server.run("node remove b");
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("end its daemon and wait until it has been silent for 90 s")
    );
    assert_eq!(output.status.code(), Some(2));
    seen.insert("EditError::Alive");
    seen.extend(of_the_authority(&server));

    assert_eq!(
        all_rules().difference(&seen).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "rules without a wrong input"
    );
}
