//! What travels after a session broke, in numbers, and what is known to be confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use xenflow_guest_client::mirror::{MAX_CHANGES, MAX_IN_FLIGHT, Mirror, Start};
use xenflow_guest_client::obstacles::Survey;
use xenflow_guest_client::session::{Acked, Event, Session};
use xenflow_guest_client::translate::{Event as KernelEvent, Place};
use xenflow_proto::digest::Digest;
use xenflow_proto::table::{Route, RouteKey, Settings};
use xenflow_proto::{Change, GuestMessage, HostMessage, Key, Object, Seq};

use crate::host::{Tables, digest};
use crate::kernel::route;
use crate::{BOOT, NOW, hello, welcome};

fn host_route(n: u32, hop: u32) -> Route {
    let dst = ipnet::Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + n), 32).unwrap().into();
    let route = route(1, hop);
    Route { key: RouteKey { dst, ..route.key }, ..route }
}

fn key(n: u32) -> Key {
    Key::Route(host_route(n, 1).key)
}

/// A mirror with this many routes and the settings.
fn mirror(routes: u32) -> Mirror {
    let mut mirror = Mirror::new(&BOOT);
    mirror.begin_dump();
    for n in 0..routes {
        mirror.apply_dumped(KernelEvent::Route(host_route(n, 1), Place::First), NOW);
    }
    assert!(mirror.end_dump(NOW));
    let survey = Survey { settings: Settings::default(), obstacles: Vec::new(), links: BTreeMap::new() };
    mirror.apply_survey(&survey, NOW);
    mirror
}

fn set(mirror: &mut Mirror, routes: impl IntoIterator<Item = u32>, hop: u32) {
    for n in routes {
        assert!(!mirror.apply(KernelEvent::Route(host_route(n, hop), Place::Replaced), NOW));
    }
}

fn session(mirror: &mut Mirror, max_changes: u32, held: Option<Digest>) -> Session {
    let mut session = Session::new(NOW, hello());
    assert!(matches!(session.poll_transmit(mirror), Some(GuestMessage::Hello(_))));
    session.handle_message(NOW, welcome(1 << 20, max_changes, 4096, held), mirror).unwrap();
    session
}

/// All that may be sent now.
fn sent(session: &mut Session, mirror: &mut Mirror) -> Vec<GuestMessage> {
    std::iter::from_fn(|| session.poll_transmit(mirror)).collect()
}

fn changes(messages: &[GuestMessage]) -> Vec<&Change> {
    let changes = messages.iter().filter_map(|message| {
        if let GuestMessage::Changes { changes, .. } = message { Some(changes) } else { None }
    });
    changes.flatten().collect()
}

fn take(tables: &mut Tables, messages: &[GuestMessage]) {
    for change in changes(messages) {
        match change {
            Change::Upsert(object) => drop(tables.insert(object.key(), object.clone())),
            Change::Remove(key) => drop(tables.remove(key)),
        }
    }
}

fn ack(session: &mut Session, mirror: &mut Mirror, seq: u64) -> Acked {
    let ack = HostMessage::Ack { seq: Seq(seq), rejected: Vec::new(), accepted: Vec::new() };
    match session.handle_message(NOW, ack, mirror).unwrap() {
        Some(Event::Acked(acked)) => acked,
        other => panic!("{other:?}"),
    }
}

/// Everything sent and acknowledged.
fn sync(session: &mut Session, mirror: &mut Mirror, tables: &mut Tables) {
    while !session.is_live() {
        take(tables, &sent(session, mirror));
        let seq = session.sent().0;
        ack(session, mirror, seq);
    }
}

fn same(mirror: &Mirror, tables: &Tables) -> bool {
    mirror.objects().map(|object| (object.key(), object.into_owned())).collect::<Tables>() == *tables
}

#[test]
fn only_what_changed_travels() {
    const ROUTES: u32 = 100_000;
    let (mut mirror, mut tables) = (mirror(ROUTES), Tables::new());
    let mut first = session(&mut mirror, 100, None);
    sync(&mut first, &mut mirror, &mut tables);
    assert_eq!(first.start(), Some(Start::Snapshot));
    assert!(same(&mirror, &tables));

    // Five messages, of which the host takes three, and tells of one.
    let before = first.sent().0;
    set(&mut mirror, 0..500, 2);
    let messages = sent(&mut first, &mut mirror);
    assert_eq!(messages.len(), 5);
    take(&mut tables, &messages[..3]);
    ack(&mut first, &mut mirror, before + 1);
    mirror.hang_up();

    // Some of them are changed again, one back; some come and go.
    set(&mut mirror, 400..1400, 3);
    set(&mut mirror, [499], 1);
    for n in 2000..2010 {
        assert!(!mirror.apply(KernelEvent::RouteGone(host_route(n, 1)), NOW));
    }
    for n in ROUTES..ROUTES + 1000 {
        assert!(!mirror.apply(KernelEvent::Route(host_route(n, 1), Place::Only), NOW));
        assert!(!mirror.apply(KernelEvent::RouteGone(host_route(n, 1)), NOW));
    }
    let differ: BTreeSet<Key> = (300..1400).filter(|n| *n != 499).chain(2000..2010).map(key).collect();
    assert_eq!(mirror.backlog(), 1000 + 10, "that 499 is right again is not known yet");

    let mut second = session(&mut mirror, 100, Some(digest(tables.values())));
    let messages = sent(&mut second, &mut mirror);
    assert_eq!(messages.first(), Some(&GuestMessage::Resume(Seq(1))));
    assert!(matches!(messages.last(), Some(GuestMessage::SnapshotEnd(_))));
    let told: Vec<Key> = changes(&messages).into_iter().map(Change::key).collect();
    assert_eq!(told.len(), differ.len());
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), differ);
    take(&mut tables, &messages);
    assert!(same(&mirror, &tables));
}

/// One of 1,000 keys differs; the host says so, or says what nobody can know.
#[test]
fn a_digest_of_other_tables_leads_to_a_snapshot() {
    let (mut mirror, mut tables) = (mirror(1000), Tables::new());
    sync(&mut session(&mut mirror, 100, None), &mut mirror, &mut tables);
    let right = digest(tables.values());
    let wrong = [
        Some(Digest { sum: right.sum.wrapping_add(1), ..right }),
        Some(Digest { objects: right.objects + 1, ..right }),
        Some(digest(tables.values().skip(1))),
        Some(Digest::default()),
        None,
    ];
    for held in wrong {
        let mut session = session(&mut mirror, 100, held);
        let messages = sent(&mut session, &mut mirror);
        assert_eq!(messages.first(), Some(&GuestMessage::SnapshotBegin(Seq(1))), "{held:?}");
        assert_eq!(changes(&messages).len(), 1001);
    }
    let mut session = session(&mut mirror, 100, Some(right));
    assert_eq!(
        sent(&mut session, &mut mirror),
        [GuestMessage::Resume(Seq(1)), GuestMessage::SnapshotEnd(Seq(2))]
    );
}

#[test]
fn a_snapshot_that_broke_goes_on() {
    let (mut mirror, mut tables) = (mirror(1000), Tables::new());
    let mut first = session(&mut mirror, 100, None);
    let messages: Vec<_> = (0..4).map(|_| first.poll_transmit(&mut mirror).unwrap()).collect();
    take(&mut tables, &messages);
    assert_eq!(tables.len(), 300);
    mirror.hang_up();
    // One that the host has, one that it has not, and nothing to remember of those it has not.
    set(&mut mirror, [7, 700], 2);
    assert_eq!(mirror.backlog(), 0);

    let mut second = session(&mut mirror, 100, Some(digest(tables.values())));
    let messages = sent(&mut second, &mut mirror);
    assert_eq!(second.start(), Some(Start::Resume));
    assert_eq!(changes(&messages).len(), 1001 - 300 + 1);
    take(&mut tables, &messages);
    assert!(same(&mirror, &tables));
}

/// All sent and acknowledged; how it began, and the keys that were told.
fn visit(mirror: &mut Mirror, tables: &mut Tables, max_changes: u32) -> (Start, BTreeSet<Key>) {
    let mut session = session(mirror, max_changes, Some(digest(tables.values())));
    let mut told = Vec::new();
    while !session.is_live() {
        let messages = sent(&mut session, mirror);
        told.extend(changes(&messages).into_iter().map(Change::key));
        take(tables, &messages);
        let seq = session.sent().0;
        ack(&mut session, mirror, seq);
    }
    mirror.hang_up();
    assert!(same(mirror, tables));
    let keys: BTreeSet<Key> = told.iter().cloned().collect();
    assert_eq!(keys.len(), told.len(), "a key is told once");
    (session.start().unwrap(), keys)
}

fn keys(routes: impl IntoIterator<Item = u32>) -> BTreeSet<Key> {
    routes.into_iter().map(key).collect()
}

fn none() -> BTreeSet<Key> {
    BTreeSet::new()
}

#[test]
fn a_host_that_was_left_earlier_is_told_what_changed_since() {
    let mut mirror = mirror(10_000);
    let (mut a, mut b) = (Tables::new(), Tables::new());
    assert_eq!(visit(&mut mirror, &mut b, 100).0, Start::Snapshot);
    set(&mut mirror, 0..10, 2);
    assert_eq!(visit(&mut mirror, &mut a, 100).0, Start::Snapshot);
    set(&mut mirror, 5..20, 3);
    assert_eq!(visit(&mut mirror, &mut a, 100), (Start::Resume, keys(5..20)));
    // There is back; one of them is again as it was, and one is gone.
    set(&mut mirror, [7], 1);
    assert!(!mirror.apply(KernelEvent::RouteGone(host_route(50, 1)), NOW));
    let expected = keys((0..20).filter(|n| *n != 7).chain([50]));
    assert_eq!(visit(&mut mirror, &mut b, 100), (Start::Resume, expected));
    // And there again: what the one has is as near as what the other has.
    assert_eq!(visit(&mut mirror, &mut a, 100), (Start::Resume, keys([7, 50])));
    for hop in 2..6 {
        set(&mut mirror, [100], hop);
        assert_eq!(visit(&mut mirror, &mut b, 100), (Start::Resume, keys([100])));
        set(&mut mirror, [200 + hop], 2);
        assert_eq!(visit(&mut mirror, &mut a, 100), (Start::Resume, keys([100, 200 + hop])));
        assert_eq!(visit(&mut mirror, &mut b, 100), (Start::Resume, keys([200 + hop])));
        assert_eq!(visit(&mut mirror, &mut b, 100), (Start::Resume, none()));
    }
}

/// In between, another host gets half a snapshot, and messages of it are on their way.
#[test]
fn a_snapshot_elsewhere_does_not_lose_what_a_host_has() {
    let mut mirror = mirror(1000);
    let mut a = Tables::new();
    visit(&mut mirror, &mut a, 100);
    let before = a.clone();
    // Told, and not acknowledged.
    let mut first = session(&mut mirror, 10, Some(digest(a.values())));
    set(&mut mirror, 0..35, 2);
    take(&mut a, &sent(&mut first, &mut mirror)[..4]);
    assert_eq!(a.values().filter(|object| !before.values().any(|it| it == *object)).count(), 30);
    mirror.hang_up();
    let mut half = session(&mut mirror, 100, None);
    for _ in 0..3 {
        half.poll_transmit(&mut mirror).unwrap();
    }
    set(&mut mirror, 500..510, 2);
    ack(&mut half, &mut mirror, 2);
    mirror.hang_up();
    set(&mut mirror, 900..910, 2);
    assert_eq!(
        visit(&mut mirror, &mut a, 100),
        (Start::Resume, keys((30..35).chain(500..510).chain(900..910)))
    );
    let mut older = before;
    let expected = keys((0..35).chain(500..510).chain(900..910));
    assert_eq!(visit(&mut mirror, &mut older, 100), (Start::Resume, expected));
}

/// How a host is brought up to date after so many changes that another was told.
fn after(steps: usize) -> (Start, BTreeSet<Key>) {
    let mut mirror = mirror(100);
    let mut a = Tables::new();
    visit(&mut mirror, &mut a, 100);
    let mut b = a.clone();
    let mut session = session(&mut mirror, 100, Some(digest(b.values())));
    for step in 0..u32::try_from(steps).unwrap() {
        set(&mut mirror, [step % 50], 2 + step % 7);
        take(&mut b, &sent(&mut session, &mut mirror));
        let seq = session.sent().0;
        ack(&mut session, &mut mirror, seq);
    }
    mirror.hang_up();
    assert!(same(&mirror, &b));
    visit(&mut mirror, &mut a, 100)
}

#[test]
fn how_far_back_is_bounded_by_changes() {
    assert_eq!(after(MAX_CHANGES), (Start::Resume, keys(0..50)));
    assert_eq!(after(MAX_CHANGES + 1).0, Start::Snapshot);
}

#[test]
fn what_is_in_flight_is_bounded() {
    let (mut mirror, mut tables) = (mirror(100_000), Tables::new());
    let mut session = session(&mut mirror, 4096, None);
    let messages = sent(&mut session, &mut mirror);
    assert_eq!(changes(&messages).len(), MAX_IN_FLIGHT);
    assert!(mirror.is_full() && !session.is_live());
    take(&mut tables, &messages);
    let seq = session.sent().0;
    ack(&mut session, &mut mirror, seq);
    sync(&mut session, &mut mirror, &mut tables);
    assert!(same(&mirror, &tables));
}

#[test]
fn confirmed_is_what_the_switch_has() {
    let mut mirror = mirror(3);
    let mut first = session(&mut mirror, 2, None);
    let messages = sent(&mut first, &mut mirror);
    assert_eq!(messages.len(), 4);
    // The host took them, and forwards by none of them yet.
    let taken = ack(&mut first, &mut mirror, 3);
    assert_eq!((taken.changes, taken.confirmed.len(), taken.whole), (4, 0, false));
    assert!(!mirror.is_confirmed(&key(0)));
    let end = ack(&mut first, &mut mirror, 4);
    assert!(end.whole && mirror.is_confirmed(&key(0)));

    set(&mut mirror, [0, 1], 2);
    assert!(!mirror.is_confirmed(&key(0)));
    sent(&mut first, &mut mirror);
    assert!(!mirror.is_confirmed(&key(0)));
    set(&mut mirror, [1], 3);
    let rejected = vec![(key(2), "too many".to_owned())];
    let message = HostMessage::Ack { seq: Seq(5), rejected, accepted: vec![key(1)] };
    let Ok(Some(Event::Acked(step))) = first.handle_message(NOW, message, &mut mirror) else { panic!() };
    assert_eq!((step.confirmed.as_slice(), step.whole), ([key(0), key(1)].as_slice(), false));
    assert_eq!((step.rejected.len(), step.accepted), (1, vec![key(1)]));
    assert!(mirror.is_confirmed(&key(0)));
    assert!(!mirror.is_confirmed(&key(1)), "it has another hop by now");

    // It may be another host now: its switch must confirm all this, too.
    let held: Vec<Object> = [host_route(0, 2), host_route(1, 2), host_route(2, 1)].map(Object::Route).into();
    let settings = mirror.object(Key::Settings).unwrap().into_owned();
    let mut second = session(&mut mirror, 2, Some(digest(held.iter().chain([&settings]))));
    assert_eq!(sent(&mut second, &mut mirror).len(), 3);
    assert_eq!(second.start(), Some(Start::Resume));
    assert!(!mirror.is_confirmed(&key(0)));
    let resumed = ack(&mut second, &mut mirror, 2);
    assert!(!resumed.whole && resumed.confirmed.is_empty() && !mirror.is_confirmed(&key(0)));
    let last = ack(&mut second, &mut mirror, 3);
    assert!(last.whole && mirror.is_confirmed(&key(0)) && mirror.is_confirmed(&key(1)));
}
