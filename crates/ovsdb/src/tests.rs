use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio_util::codec::Decoder;

use crate::message::Message;
use crate::monitor::MonitorUpdate;
use crate::{
    Atom, AtomType, ColumnType, DatabaseSchema, Datum, FrameDecoder, FrameError, Monitor, MonitorReply,
    Remote, Replica, Row, RowChange, TableUpdates, Uuid,
};

fn frames(decoder: &mut FrameDecoder, buffer: &mut BytesMut) -> Result<Vec<Vec<u8>>, FrameError> {
    let mut found = Vec::new();
    while let Some(frame) = decoder.decode(buffer)? {
        found.push(frame.to_vec());
    }
    Ok(found)
}

#[test]
fn messages_split_at_every_byte_come_out_whole() {
    let messages = [r#"{"id":1,"a":"}{\"\\"}"#, r#"{"b":[{"c":"]"},[]]}"#, "{}", r#"{"ü":"\u0022}"}"#];
    let stream = messages.join(" \n");
    let stream = stream.as_bytes();
    for cut in 0..=stream.len() {
        let (mut decoder, mut buffer) = (FrameDecoder::new(1000), BytesMut::new());
        buffer.extend_from_slice(&stream[..cut]);
        let mut found = frames(&mut decoder, &mut buffer).unwrap();
        buffer.extend_from_slice(&stream[cut..]);
        found.extend(frames(&mut decoder, &mut buffer).unwrap());
        assert_eq!(found, messages.map(|m| m.as_bytes().to_vec()), "cut at {cut}");
    }
    let (mut decoder, mut buffer) = (FrameDecoder::new(1000), BytesMut::new());
    let mut found = Vec::new();
    for byte in stream {
        buffer.extend_from_slice(&[*byte]);
        found.extend(frames(&mut decoder, &mut buffer).unwrap());
    }
    assert_eq!(found.len(), 4, "byte by byte");
}

#[test]
fn streams_that_break_a_limit_are_refused() {
    let refuse = |text: &str| frames(&mut FrameDecoder::new(200), &mut BytesMut::from(text)).unwrap_err();
    assert!(matches!(refuse(&format!("{{\"{}", "x".repeat(300))), FrameError::TooLong { limit: 200 }));
    assert!(matches!(refuse(&format!("{{{}", "[".repeat(120))), FrameError::TooDeep));
    assert!(matches!(refuse("{}x"), FrameError::NoObject { byte: b'x' }));
    let end = FrameDecoder::new(200).decode_eof(&mut BytesMut::from("{\"a\""));
    assert!(matches!(end, Err(FrameError::Truncated { bytes: 4 })));
}

#[test]
fn remotes_are_read_and_written() {
    for text in ["unix:/run/db.sock", "tcp:10.0.0.1:6641", "ssl:[::1]:6640"] {
        assert_eq!(text.parse::<Remote>().unwrap().to_string(), text);
    }
    assert_eq!("tcp:::1".parse::<Remote>().unwrap().to_string(), "tcp:[::1]:6640");
    assert_eq!(Remote::parse_list("ssl:1.2.3.4, tcp:1.2.3.5:1").unwrap().len(), 2);
    for text in ["", "db.sock", "unix:", "tcp:host:1", "tcp:1.2.3.4:99999", ","] {
        assert!(Remote::parse_list(text).is_err(), "{text}");
    }
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid)
}

fn atom() -> impl Strategy<Value = Atom> {
    prop_oneof![
        any::<i64>().prop_map(Atom::Integer),
        (-1e9..1e9f64).prop_map(Atom::real),
        any::<bool>().prop_map(Atom::Boolean),
        any::<String>().prop_map(Atom::String),
        uuid().prop_map(Atom::Uuid),
        "[a-z_]{1,8}".prop_map(Atom::NamedUuid),
    ]
}

fn datum() -> impl Strategy<Value = Datum> {
    prop_oneof![
        atom().prop_map(Datum::Scalar),
        proptest::collection::btree_set(atom(), 0..5).prop_map(Datum::Set),
        proptest::collection::btree_map(atom(), atom(), 0..5).prop_map(Datum::Map),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let words =
        prop_oneof!["set", "map", "uuid", "named-uuid", "error", "columns", "initial", "modify", ".*"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(words.clone(), inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn schema() -> DatabaseSchema {
    let json = json!({"name": "D", "tables": {"T": {"columns": {
        "one": {"type": "integer"},
        "opt": {"type": {"key": "integer", "min": 0}},
        "set": {"type": {"key": "integer", "min": 0, "max": "unlimited"}},
        "map": {"type": {"key": "integer", "value": "integer", "min": 0, "max": "unlimited"}}
    }}}});
    DatabaseSchema::from_json(&json).unwrap()
}

type Plain = (i64, Option<i64>, BTreeSet<i64>, BTreeMap<i64, i64>);

fn plain_row() -> impl Strategy<Value = Plain> {
    let small = || 0..6i64;
    (
        small(),
        proptest::option::of(small()),
        proptest::collection::btree_set(small(), 0..5),
        proptest::collection::btree_map(small(), 0..3i64, 0..5),
    )
}

fn row(plain: &Plain) -> Row {
    [
        ("one", Datum::from(plain.0)),
        ("opt", Datum::set(plain.1)),
        ("set", Datum::set(plain.2.iter().copied())),
        ("map", Datum::map(plain.3.iter().map(|(k, v)| (*k, *v)))),
    ]
    .into_iter()
    .collect()
}

/// The server's side of `update2`, written from ovsdb-server(7).
fn delta(old: Option<&Plain>, new: Option<&Plain>) -> Option<Value> {
    let (old, new) = match (old, new) {
        (None, None) => return None,
        (Some(_), None) => return Some(json!({ "delete": null })),
        (None, Some(new)) => (None, new),
        (Some(old), Some(new)) if old == new => return None,
        (Some(old), Some(new)) => (Some(old), new),
    };
    let base = old.cloned().unwrap_or_default();
    let mut row = serde_json::Map::new();
    if base.0 != new.0 {
        row.insert("one".into(), json!(new.0));
    }
    if base.1 != new.1 {
        row.insert("opt".into(), new.1.map_or(json!(["set", []]), |v| json!(v)));
    }
    if base.2 != new.2 {
        row.insert("set".into(), json!(["set", base.2.symmetric_difference(&new.2).collect::<Vec<_>>()]));
    }
    if base.3 != new.3 {
        let gone = base.3.iter().filter(|(k, _)| !new.3.contains_key(k));
        let set = new.3.iter().filter(|(k, v)| base.3.get(k) != Some(v));
        row.insert("map".into(), json!(["map", gone.chain(set).collect::<Vec<_>>()]));
    }
    Some(if old.is_some() { json!({ "modify": row }) } else { json!({ "insert": row }) })
}

fn updates(rows: BTreeMap<String, Value>) -> TableUpdates {
    serde_json::from_value(json!({ "T": rows })).unwrap()
}

fn follow(mirror: &mut BTreeMap<Uuid, Row>, changes: Vec<RowChange>) {
    for change in changes {
        let old = match change.new {
            Some(row) => mirror.insert(change.uuid, Row::clone(&row)),
            None => mirror.remove(&change.uuid),
        };
        assert_eq!(old.as_ref(), change.old.as_deref());
    }
}

proptest! {
    #[test]
    fn values_survive_json(datum in datum()) {
        let text = serde_json::to_string(&datum).unwrap();
        prop_assert_eq!(Datum::from_json(&serde_json::from_str(&text).unwrap()), Ok(datum));
    }

    #[test]
    fn uuids_survive_text(uuid in uuid()) {
        prop_assert_eq!(uuid.to_string().parse(), Ok(uuid));
    }

    /// Deltas and reloads, in any order, leave the replica and whoever follows its changes with the table.
    #[test]
    fn a_replica_equals_the_table(
        steps in proptest::collection::vec((proptest::collection::btree_map(0..4u128, plain_row(), 0..4), any::<bool>()), 1..12)
    ) {
        let monitor = Monitor::new("D").table("T", &["one", "opt", "set", "map"]);
        let mut replica = Replica::new(&schema(), &monitor).unwrap();
        let mut table: BTreeMap<u128, Plain> = BTreeMap::new();
        let mut mirror = BTreeMap::new();
        for (next, reload) in steps {
            let changes = if reload {
                let rows = next.iter().filter_map(|(u, new)| {
                    let insert = delta(None, Some(new))?;
                    Some((Uuid(*u).to_string(), json!({ "initial": insert["insert"] })))
                });
                let updates = updates(rows.collect());
                replica.load(MonitorReply { found: false, last: Uuid(1), updates }).unwrap()
            } else {
                let keys: BTreeSet<_> = table.keys().chain(next.keys()).copied().collect();
                let rows = keys
                    .iter()
                    .filter_map(|u| Some((Uuid(*u).to_string(), delta(table.get(u), next.get(u))?)));
                replica.apply(updates(rows.collect()), Some(Uuid(2))).unwrap()
            };
            prop_assert!(changes.iter().all(|c| c.old != c.new), "only differences are reported");
            follow(&mut mirror, changes);
            table = next;
            let expected: BTreeMap<_, _> = table.iter().map(|(u, p)| (Uuid(*u), row(p))).collect();
            let found: BTreeMap<_, _> = replica.rows("T").map(|(u, r)| (u, Row::clone(r))).collect();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(&mirror, &expected);
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = frames(&mut FrameDecoder::new(100), &mut BytesMut::from(&bytes[..]));
        let _ = Message::parse(&bytes);
    }

    #[test]
    fn hostile_json_never_panics(json in any_json(), other in any_json()) {
        let _ = Datum::from_json(&json);
        let ty = ColumnType { key: AtomType::Real, value: Some(AtomType::Uuid), min: 0, max: None };
        let _ = ty.read(&json);
        let _ = DatabaseSchema::from_json(&json!({"name": "x", "tables": {"T": {"columns": {"c": {"type": json}}}}}));
        let params = |update: Value| serde_json::value::to_raw_value(&json!(["id", "0", {"T": {"u": update}}])).unwrap();
        let _ = MonitorUpdate::parse("update3", &params(json.clone()));
        let monitor = Monitor::new("D").table("T", &["one", "set", "map"]);
        let mut replica = Replica::new(&schema(), &monitor).unwrap();
        let row = json!({"one": json, "set": other});
        for kind in ["initial", "insert", "modify", "delete"] {
            let rows = BTreeMap::from([(Uuid(1).to_string(), json!({ kind: row }))]);
            let _ = replica.apply(updates(rows), None);
        }
        let text = serde_json::value::to_raw_value(&json!([json, other])).unwrap();
        let ops = [crate::Operation::select("T"), crate::Operation::insert("T")];
        let _ = crate::ops::read_results(&ops, Some(&text));
    }
}
