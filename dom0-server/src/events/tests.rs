use std::collections::BTreeSet;
use std::path::Path;

use tracing_subscriber::prelude::*;

use super::*;

fn event(text: &str) -> Event {
    let (subject, text) = (vec![("router", "r1".to_owned())], text.to_owned());
    Event { number: 0, time_ms: 1, kind: "problem", severity: "info", subject, text }
}

fn numbers(page: &Page) -> Vec<u64> {
    page.events.iter().map(|event| event.number).collect()
}

#[test]
fn a_ring_that_ran_over_says_how_much_is_gone() {
    let mut ring = Ring::default();
    assert_eq!(ring.page(0, 10, |_| true), Page { missed: 0, events: vec![], upto: 0 });
    for _ in 0..MAX_EVENTS + 17 {
        ring.push(event("x"));
    }
    assert_eq!(ring.events.len(), MAX_EVENTS);
    let page = ring.page(0, 3, |_| true);
    assert_eq!((page.missed, numbers(&page), page.upto), (17, vec![18, 19, 20], 20));
    let page = ring.page(20, usize::MAX, |_| true);
    assert_eq!((page.missed, page.events.len(), page.upto), (0, MAX_EVENTS - 3, MAX_EVENTS as u64 + 17));
    assert_eq!(ring.page(page.upto, 3, |_| true), Page { missed: 0, events: vec![], upto: page.upto });
    // One of a number that was never given, as of another life.
    assert_eq!(ring.page(u64::MAX - 1, 3, |_| true).events, []);

    // What is not wanted is passed over, but not forgotten.
    let page = ring.page(30, 2, |event| event.number % 10 == 0);
    assert_eq!((numbers(&page), page.upto), (vec![40, 50], 50));
    let page = ring.page(30, 2, |_| false);
    assert_eq!((numbers(&page), page.upto), (vec![], MAX_EVENTS as u64 + 17));
}

#[test]
fn a_ring_is_bounded_in_bytes_too() {
    let mut ring = Ring::default();
    let long = "x".repeat(MAX_TEXT);
    for _ in 0..MAX_EVENTS {
        ring.push(event(&long));
        assert!(ring.bytes <= MAX_BYTES);
    }
    let kept: usize = ring.events.iter().map(|event| event.bytes()).sum();
    assert_eq!(ring.bytes, kept);
    assert!((1000..MAX_EVENTS).contains(&ring.events.len()), "{}", ring.events.len());
    assert_eq!(ring.page(0, 1, |_| true).missed, (MAX_EVENTS - ring.events.len()) as u64);
}

#[test]
fn a_line_of_the_log_is_an_event_if_its_name_is_a_kind() {
    let events = Events::default();
    let mut newest = events.newest();
    events.at(&"a".parse().unwrap());
    let registry = tracing_subscriber::registry().with(events.layer());
    let guard = tracing::subscriber::set_default(registry);
    tracing::error!("no event");
    tracing::error!(name: "no-kind", "none either");
    let router = "xenflow://router/r1";
    let reason = "xenflow://router/r1: it said\n\u{1b}[31m".to_owned() + &"ä".repeat(MAX_TEXT);
    let (none, peer) = (None::<u64>, 7);
    tracing::warn!(name: "session-lost", session = 3, vif = none, %router, peer, "session ended");
    tracing::debug!(name: "switch-lost", %reason, "gone");
    drop(guard);
    assert!(newest.has_changed().unwrap());
    assert_eq!(*newest.borrow_and_update(), 2);
    let page = events.page(0, 10, |_| true);
    let mut first = page.events[0].json(events.node());
    assert!(first["time_ms"].take().as_u64().unwrap() >= events.life());
    assert_eq!(
        first,
        serde_json::json!({
            "number": 1, "time_ms": null, "node": "a", "kind": "session-lost", "severity": "warning", "router": "r1",
            "session": "3", "text": "session ended (peer 7)",
        })
    );
    assert_eq!((page.events[0].about("router"), page.events[0].about("vif")), (Some("r1"), None));
    let second = &page.events[1];
    assert!(second.text.starts_with("gone: r1: it said  [31mää"), "{}", second.text);
    assert_eq!((second.text.len(), second.severity), (MAX_TEXT - 1, "debug"));
}

/// Names of lines in the sources under a directory.
fn named(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            named(&path, found);
        } else if !path.ends_with("events/tests.rs") && path.extension().is_some_and(|it| it == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.split("tracing::").skip(1).filter_map(|rest| Some(rest.split_once("!(")?.1));
            let names =
                lines.filter_map(|line| line.trim_start().strip_prefix("name: \"")?.split('"').next());
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn every_name_in_the_sources_is_a_kind_and_every_kind_is_there() {
    let mut found = BTreeSet::new();
    named(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let kinds: BTreeSet<String> = KINDS.iter().map(|kind| (*kind).to_owned()).collect();
    assert_eq!(found, kinds);
    assert!(KINDS.is_sorted());
}
