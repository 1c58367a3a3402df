//! Rates, pages and keys, without a database and a terminal.

use std::collections::BTreeMap;

use dom0_server::counters::Scope;
use dom0_server::db::migration::{Phase, Via};
use dom0_server::db::{Migration, SessionState};
use dom0_server::shaper::report::{LinkReport, QueueReport};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Model, View};
use super::sample::{Counted, Network, Node, Report, Sample};
use super::screen::{self, Screen, Then};
use super::table::{Cell, Page, Table};

const T0: u64 = 1_800_000_000_000;

/// A look `at_s` seconds after the first, at what node a wrote at `written_s`.
fn look(at_s: u64, written_s: u64, bytes: u64, punts: u64) -> Sample {
    let counted = |counters: &[(&str, u64)]| Counted {
        since_ms: T0 - 1_000_000,
        updated_ms: T0 + written_s * 1000,
        counters: counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
    };
    let key = |scope, name: &str| ("a".to_owned(), scope, name.to_owned());
    let report = Report { node: "a".into(), state: SessionState::Up, since_ms: T0 - 60_000, routes: 1000 };
    Sample {
        at_ms: T0 + at_s * 1000,
        counted: BTreeMap::from([
            (key(Scope::Network, "red"), counted(&[("out_bytes", bytes), ("out_packets", bytes / 100)])),
            (
                key(Scope::Router, "r1"),
                counted(&[
                    ("forwarded_bytes", bytes),
                    ("forwarded_packets", bytes / 100),
                    ("punted_host_packets", punts),
                    ("policed_host_packets", punts / 2),
                    ("routes_changed", written_s * 200),
                ]),
            ),
        ]),
        networks: BTreeMap::from([
            ("red".to_owned(), Network { min_bps: Some(20_000_000), max_bps: None }),
            ("blue".to_owned(), Network::default()),
        ]),
        routers: BTreeMap::from([("r1".to_owned(), "red".to_owned()), ("r2".to_owned(), "blue".to_owned())]),
        reports: BTreeMap::from([("r1".to_owned(), report)]),
        migrations: vec![Migration {
            number: 3,
            router: "r1".parse().unwrap(),
            from: "a".parse().unwrap(),
            to: "b".parse().unwrap(),
            via: Via::Xl,
            move_limit_s: 600,
            phase: Phase::Staging,
            generation: 0,
            yielded: false,
            left: false,
            error: String::new(),
            digest: String::new(),
            reached: BTreeMap::new(),
            counters: BTreeMap::new(),
        }],
        nodes: BTreeMap::from([(
            "a".to_owned(),
            Node { seen_ms: Some(T0 + at_s * 1000 - 4000), ..Node::default() },
        )]),
        links: vec![LinkReport {
            port: "eth0".into(),
            queues: vec![QueueReport {
                network: "red".into(),
                class: Some("voice".into()),
                min_bps: 20_000_000,
                obtained_bps: 19_000_000,
                expected_bps: 20_000_000,
                fitness: Some(0.95),
                state: "met".into(),
                ..QueueReport::default()
            }],
            ..LinkReport::default()
        }],
    }
}

fn after(looks: impl IntoIterator<Item = Sample>) -> View {
    let mut model = Model::default();
    looks.into_iter().for_each(|sample| model.look(sample));
    model.view()
}

fn out_bps(view: &View) -> f64 {
    view.networks.iter().find(|row| row.name == "red").unwrap().out_bps
}

#[test]
fn a_rate_is_over_the_time_between_two_writes() {
    // 5 s between the writes, whatever is between the looks.
    for at_s in [3, 5, 7] {
        let view = after([look(0, 0, 0, 0), look(at_s, 5, 12_500_000, 100)]);
        assert_eq!(out_bps(&view), 20_000_000.0, "{at_s}");
        let r1 = &view.routers[0];
        assert_eq!((r1.forwarded_bps, r1.forwarded_pps), (20_000_000.0, 25_000.0));
        assert_eq!((r1.punted_pps["host"], r1.punted_pps["transit"], r1.policed_pps), (20.0, 0.0, 10.0));
        // As many came as went.
        assert_eq!((r1.routes, r1.routes_per_s, r1.session, r1.age_s), (1000, 200.0, "up", 60 + at_s));
    }
    let first = out_bps(&after([look(0, 0, 7, 0)]));
    assert!(first == 0.0 && first.is_sign_positive(), "{first}");
}

#[test]
fn a_rate_stays_between_writes_and_ends_when_nothing_is_written() {
    let moved = || [look(0, 0, 0, 0), look(5, 5, 5_000_000, 0)];
    let mut again: Vec<_> = moved().into();
    again.push(look(7, 5, 5_000_000, 0));
    assert_eq!(out_bps(&after(again)), 8_000_000.0);
    let mut quiet: Vec<_> = moved().into();
    quiet.push(look(21, 5, 5_000_000, 0));
    assert_eq!(out_bps(&after(quiet)), 0.0);
}

#[test]
fn what_was_not_written_at_the_last_write_has_not_moved() {
    let mut last = look(10, 10, 5_000_000, 10);
    last.counted.get_mut(&("a".into(), Scope::Network, "red".into())).unwrap().updated_ms = T0 + 5000;
    let view = after([look(0, 0, 0, 0), look(5, 5, 5_000_000, 0), last]);
    assert_eq!((out_bps(&view), view.routers[0].punted_pps["host"]), (0.0, 2.0));
}

#[test]
fn a_node_that_was_idle_for_long_has_counted_since_its_last_turn() {
    let view = after([look(3600, 0, 0, 0), look(3605, 3604, 12_500_000, 0)]);
    assert_eq!(out_bps(&view), 10_000_000.0);
}

#[test]
fn counters_that_begin_anew_count_from_zero() {
    let began = |sample: &mut Sample| {
        sample.counted.values_mut().for_each(|counted| counted.since_ms = T0);
    };
    let mut anew = look(5, 5, 5_000_000, 0);
    began(&mut anew);
    assert_eq!(out_bps(&after([look(0, 0, 1_000_000, 0), anew])), 8_000_000.0);
    assert_eq!(out_bps(&after([look(0, 0, 9_000_000, 0), look(5, 5, 5_000_000, 0)])), 8_000_000.0);
    // What appears may have counted for years.
    let mut before = look(0, 0, 0, 0);
    before.counted.remove(&("a".into(), Scope::Network, "red".into()));
    assert_eq!(out_bps(&after([before, look(5, 5, 5_000_000, 0)])), 0.0);
    // What has gone counts nothing.
    let mut gone = look(10, 10, 5_000_000, 0);
    gone.counted.remove(&("a".into(), Scope::Network, "red".into()));
    assert_eq!(out_bps(&after([look(0, 0, 0, 0), look(5, 5, 5_000_000, 0), gone])), 0.0);
}

#[test]
fn a_router_that_moved_has_no_churn_by_what_its_new_node_had_counted() {
    let mut moved = look(5, 5, 0, 0);
    moved.reports.get_mut("r1").unwrap().node = "b".into();
    let counted = moved.counted.remove(&("a".into(), Scope::Router, "r1".into())).unwrap();
    moved.counted.insert(("b".into(), Scope::Router, "r1".into()), counted);
    assert_eq!(after([look(0, 0, 0, 0), moved]).routers[0].routes_per_s, 0.0);
}

#[test]
fn numbers_have_three_digits_at_most() {
    for (value, text) in [
        (0.0, "0"),
        (0.4, "0"),
        (-0.0, "0"),
        (-0.2, "0"),
        (999.4, "999"),
        (999.6, "1.0k"),
        (1_500.0, "1.5k"),
        (-1_500.0, "-1.5k"),
        (99_960.0, "100k"),
        (20_000_000.0, "20.0M"),
        (999_600_000.0, "1.0G"),
        (5e12, "5.0T"),
    ] {
        assert_eq!(Cell::Number(Some(value)).show(), text, "{value}");
    }
    assert_eq!(Cell::Rate(None).show(), "-");
    assert_eq!(Cell::Age(None).show(), "never");
    assert_eq!(Cell::Text("a\u{1b}[31m".into()).show(), "a\u{fffd}[31m");
}

#[test]
fn rows_are_ordered_and_filtered() {
    let view = after([look(0, 0, 0, 0), look(5, 5, 12_500_000, 0)]);
    let mut table = Table::of(&view, Page::Networks);
    let names = |table: &Table| table.rows.iter().map(|row| row[0].show()).collect::<Vec<_>>();
    assert_eq!(names(&table), ["blue", "red"]);
    table.order(Page::Networks.first_order(), false);
    assert_eq!(names(&table), ["red", "blue"]);
    table.order(0, true);
    assert_eq!(names(&table), ["red", "blue"]);
    table.filter("BL");
    assert_eq!(names(&table), ["blue"]);
    for page in Page::ALL {
        let table = Table::of(&view, page);
        assert!(page.first_order() < table.heads.len());
        assert!(table.rows.iter().all(|row| row.len() == table.heads.len()), "{page:?}");
    }
}

fn draw(screen: &mut Screen, view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame, view)).unwrap();
    let text = terminal.backend().to_string();
    text.lines().map(|line| line.trim_matches('"').trim_end().to_owned() + "\n").collect()
}

fn press(screen: &mut Screen, keys: &[KeyCode]) {
    for key in keys {
        assert_eq!(screen.key(KeyEvent::new(*key, KeyModifiers::NONE)), Then::GoOn, "{key:?}");
    }
}

#[test]
fn the_first_page() {
    let view = after([look(0, 0, 0, 0), look(5, 5, 12_500_000, 0)]);
    let expected = " Networks   Routers   Punts   Nodes   Migrations   Uplinks
NETWORK  IN  IN/S   OUTv  OUT/S    MIN  MAX
red       0     0  20.0M  25.0k  20.0M    -
blue      0     0      0      0      -    -
2 of 2; MIN and MAX: promised of each uplink; IN and OUT: al
q quit  Tab page  <- -> order  r reverse  up/down scroll  /
";
    let mut screen = Screen::new(false);
    assert_eq!(draw(&mut screen, &view, 60, 6), expected);
    press(&mut screen, &[KeyCode::Char('/'), KeyCode::Char('B'), KeyCode::Char('l')]);
    let filtered = draw(&mut screen, &view, 60, 6);
    assert!(filtered.contains("\n1 of 2;") && filtered.ends_with("\n/Bl_\n") && !filtered.contains("red"));
    press(&mut screen, &[KeyCode::Enter, KeyCode::Esc, KeyCode::Left, KeyCode::Left, KeyCode::Left]);
    assert!(draw(&mut screen, &view, 60, 6).contains("NETWORKv"));
    screen.trouble = "no database: gone".into();
    assert!(draw(&mut screen, &view, 60, 6).ends_with("\nno database: gone\n"));
}

#[test]
fn keys_turn_pages_order_scroll_and_end() {
    let view = after([look(0, 0, 0, 0), look(5, 5, 12_500_000, 100)]);
    let mut screen = Screen::new(true);
    for (heading, row) in [
        ("ROUTER", "r1      a     up       65s"),
        ("ROUTING", "r1            0           0    20"),
        ("NODE", "a        4s"),
        ("PHASE", "r1            3  a     b   staging  -"),
        ("UPLINK", "eth0    red      voice  20.0M    -      19.0M     20.0M        95  met"),
    ] {
        press(&mut screen, &[KeyCode::Tab]);
        let text = draw(&mut screen, &view, 110, 8);
        assert!(text.contains(heading) && text.contains(row), "{heading} {row}: {text}");
    }
    press(&mut screen, &[KeyCode::Tab, KeyCode::BackTab, KeyCode::BackTab, KeyCode::BackTab]);
    assert!(draw(&mut screen, &view, 110, 8).contains("SEEN"));
    press(&mut screen, &[KeyCode::BackTab, KeyCode::BackTab, KeyCode::Char('r'), KeyCode::Down]);
    // One row of two fits, and no scrolling goes beyond the last.
    press(&mut screen, &[KeyCode::PageDown]);
    let text = draw(&mut screen, &view, 110, 5);
    assert!(text.contains("FORWARDED^") && text.contains("\nr1 ") && !text.contains("\nr2 "), "{text}");
    for (code, modifiers) in
        [(KeyCode::Char('q'), KeyModifiers::NONE), (KeyCode::Char('c'), KeyModifiers::CONTROL)]
    {
        assert_eq!(screen.key(KeyEvent::new(code, modifiers)), Then::Quit);
    }
    // A q in a filter is a letter.
    press(&mut screen, &[KeyCode::Char('/'), KeyCode::Char('q')]);
    for (width, height) in [(1, 1), (10, 3), (300, 100)] {
        assert_eq!(draw(&mut screen, &view, width, height).lines().count(), usize::from(height));
    }
}

#[test]
fn one_sample_as_text_has_every_page() {
    let text = screen::text(&after([look(0, 0, 0, 0), look(5, 5, 12_500_000, 0)]));
    for page in Page::ALL {
        assert!(text.contains(page.title()), "{text}");
    }
    assert!(text.contains("\n  red "), "{text}");
}
