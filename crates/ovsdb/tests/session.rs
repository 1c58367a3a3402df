//! The supervised session against a real `ovsdb-server` that dies and comes back.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use ovsdb::{
    Condition, Event, Monitor, Operation, Remote, RequestError, Row, RowChange, Session, SessionConfig,
    SessionError, TransactError,
};
use support::{LIMIT, Server};
use tokio::time::timeout;

async fn next(session: &mut Session) -> Event {
    timeout(LIMIT, session.next()).await.expect("an event").expect("a live session")
}

async fn snapshot(session: &mut Session, of: &str) -> Vec<RowChange> {
    match next(session).await {
        Event::Snapshot { database, changes } if *database == *of => changes,
        other => panic!("{other:?}"),
    }
}

fn config(server: &Server) -> SessionConfig {
    SessionConfig::new(vec![server.remote()])
        .monitor(Monitor::new("Test").table("Thing", &["name", "size"]))
        .monitor(Monitor::new("Other").table("Item", &["key", "value"]))
}

fn names(changes: &[RowChange]) -> Vec<(Option<&str>, Option<&str>)> {
    let mut names: Vec<_> = changes
        .iter()
        .map(|c| {
            (c.old.as_ref().map(|r| r.str("name").unwrap()), c.new.as_ref().map(|r| r.str("name").unwrap()))
        })
        .collect();
    names.sort();
    names
}

fn thing(name: &str, size: i64) -> Operation {
    Operation::insert("Thing").set("name", name).set("size", size)
}

#[tokio::test]
async fn after_kill_and_restart_only_differences_are_reported() {
    let mut server = Server::start();
    let other = server.connect().await;
    let many: Vec<_> = (0..100).map(|n| thing(&format!("t{n}"), n)).collect();
    other.transact("Test", &many).await.unwrap();
    drop(other);

    let mut session = Session::start(config(&server));
    assert!(matches!(next(&mut session).await, Event::Connected { .. }));
    assert_eq!(snapshot(&mut session, "Test").await.len(), 100);
    assert_eq!(snapshot(&mut session, "Other").await.len(), 0);
    let handle = session.handle();
    handle.transact("Other", &[Operation::insert("Item").set("key", "k").set("value", "v")]).await.unwrap();
    match next(&mut session).await {
        Event::Update { database, changes } => assert_eq!((&*database, changes.len()), ("Other", 1)),
        other => panic!("{other:?}"),
    }

    server.kill();
    match next(&mut session).await {
        Event::Disconnected { reason: SessionError::Closed(_) } => {}
        other => panic!("{other:?}"),
    }
    let error = handle.transact("Test", &[]).await.unwrap_err();
    assert!(matches!(error, TransactError::Request(RequestError::Disconnected(_))), "{error:?}");
    assert!(!error.is_outcome_unknown());

    // While away: one row changes, one goes, one comes.
    server.offline(
        "test",
        r#"["Test",
            {"op":"update","table":"Thing","where":[["name","==","t1"]],"row":{"size":77}},
            {"op":"delete","table":"Thing","where":[["name","==","t2"]]},
            {"op":"insert","table":"Thing","row":{"name":"new"}}]"#,
    );
    server.up();
    assert!(matches!(next(&mut session).await, Event::Connected { .. }));
    let changes = snapshot(&mut session, "Test").await;
    assert_eq!(names(&changes), [(None, Some("new")), (Some("t1"), Some("t1")), (Some("t2"), None)]);
    let changed = changes.iter().find(|c| c.old.is_some() && c.new.is_some()).unwrap();
    assert_eq!(
        (changed.old.as_ref().unwrap().int("size"), changed.new.as_ref().unwrap().int("size")),
        (Ok(1), Ok(77))
    );
    assert_eq!(snapshot(&mut session, "Other").await, []);
    timeout(LIMIT, handle.connected()).await.unwrap().unwrap();
    handle
        .transact("Test", &[Operation::delete("Thing").filter(Condition::eq("name", "new"))])
        .await
        .unwrap();
    match next(&mut session).await {
        Event::Update { changes, .. } => assert_eq!(names(&changes), [(Some("new"), None)]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_slow_owner_gets_merged_changes_and_blocks_nobody() {
    let server = Server::start();
    let mut config = config(&server);
    config.event_capacity = 1;
    config.options.max_notifications = 1;
    let mut session = Session::start(config);
    let handle = session.handle();
    let connection = timeout(LIMIT, handle.connected()).await.unwrap().unwrap();
    connection.transact("Test", &[thing("a", 0)]).await.unwrap();
    // Nobody fetches events, yet every transaction is answered.
    for size in 1..=500 {
        let ops = [Operation::update("Thing").set("size", size)];
        timeout(LIMIT, handle.transact("Test", &ops)).await.unwrap().unwrap();
    }
    connection.transact("Test", &[thing("b", 1)]).await.unwrap();
    connection
        .transact("Test", &[Operation::delete("Thing").filter(Condition::eq("name", "b"))])
        .await
        .unwrap();
    connection.transact("Other", &[Operation::insert("Item").set("key", "end")]).await.unwrap();
    let mut mirror: BTreeMap<_, std::sync::Arc<Row>> = BTreeMap::new();
    let mut events = 0;
    'all: loop {
        let (database, changes) = match next(&mut session).await {
            Event::Snapshot { database, changes } | Event::Update { database, changes } => {
                (database, changes)
            }
            Event::Connected { .. } => continue,
            Event::Disconnected { reason } => panic!("{reason:?}"),
        };
        events += 1;
        for change in changes {
            if &*database == "Other" {
                break 'all;
            }
            assert_eq!(mirror.get(&change.uuid), change.old.as_ref(), "old is what was reported before");
            match change.new {
                Some(row) => drop(mirror.insert(change.uuid, row)),
                None => drop(mirror.remove(&change.uuid)),
            }
        }
    }
    assert!(events < 50, "{events} events");
    let rows: Vec<_> = mirror.values().map(|r| (r.str("name").unwrap(), r.int("size").unwrap())).collect();
    assert_eq!(rows, [("a", 500)]);
}

#[tokio::test]
async fn the_second_remote_serves_when_the_first_does_not() {
    let server = Server::start();
    let mut config = config(&server);
    config.remotes.insert(0, Remote::Unix(server.dir.join("nobody.sock")));
    config.leader_only = true;
    let mut session = Session::start(config);
    match next(&mut session).await {
        Event::Connected { remote } => assert_eq!(remote, server.remote()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_cannot_be_watched_is_said_once() {
    let server = Server::start();
    for (monitor, text) in [
        (Monitor::new("Nix"), "the server has no database Nix"),
        (Monitor::new("Test").table("Nix", &[]), "database Test (schema 1.2.3) has no table 'Nix'"),
        (
            Monitor::new("Test").table("Thing", &["nix"]),
            "table 'Thing' of database Test (schema 1.2.3) has no column 'nix'",
        ),
    ] {
        let mut session = Session::start(SessionConfig::new(vec![server.remote()]).monitor(monitor));
        match next(&mut session).await {
            Event::Disconnected { reason } => assert_eq!(reason.to_string(), text),
            other => panic!("{other:?}"),
        }
        assert!(timeout(Duration::from_millis(400), session.next()).await.is_err(), "said once");
    }
}

/// Without somebody to take them, notifications of the first database would stop the replies of the second.
#[tokio::test]
async fn a_database_that_changes_while_another_is_loaded_stalls_nothing() {
    let server = Server::start();
    let writer = server.connect().await;
    let many: Vec<_> = (0..20_000)
        .map(|n| Operation::insert("Item").set("key", format!("k{n}")).set("value", "x".repeat(200)))
        .collect();
    writer.transact("Other", &many).await.unwrap();
    // Sixteen transactions under way at any time.
    let mut writing = tokio::task::JoinSet::new();
    for first in 0..16 {
        let writer = writer.clone();
        writing.spawn(async move {
            for n in (first..).step_by(16) {
                if writer.transact("Test", &[thing(&format!("t{n}"), n)]).await.is_err() {
                    return;
                }
            }
        });
    }
    let mut config = config(&server);
    config.options.max_notifications = 1;
    let mut session = Session::start(config);
    assert!(matches!(next(&mut session).await, Event::Connected { .. }));
    let before = snapshot(&mut session, "Test").await.len();
    assert_eq!(snapshot(&mut session, "Other").await.len(), 20_000);
    match next(&mut session).await {
        Event::Update { database, changes } => {
            assert_eq!(&*database, "Test");
            assert!(!changes.is_empty() && changes.iter().all(|c| c.old.is_none()), "after {before}");
        }
        other => panic!("{other:?}"),
    }
}
