//! The session against a real RAFT cluster whose members die and come back, over TLS.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod raft;

use std::time::{Duration, Instant};

use ovsdb::{
    CloseReason, ConnectError, Connection, Event, Monitor, Operation, Options, Remote, RowChange, Session,
    SessionConfig, SessionError,
};
use raft::{Authority, Cluster};
use tokio::time::timeout;

/// So long a test waits for what will be, however slow the machine.
const LIMIT: Duration = Duration::from_secs(60);

async fn next(session: &mut Session) -> Event {
    timeout(LIMIT, session.next()).await.expect("an event in time").expect("a live session")
}

fn config(cluster: &Cluster) -> SessionConfig {
    let mut config =
        SessionConfig::new(cluster.remotes()).monitor(Monitor::new("Test").table("Thing", &["name", "size"]));
    config.options = cluster.options();
    config.leader_only = true;
    config.backoff_max = Duration::from_millis(500);
    config
}

fn thing(name: &str) -> Operation {
    Operation::insert("Thing").set("name", name).set("size", 1)
}

fn names(changes: &[RowChange]) -> Vec<&str> {
    let mut names: Vec<_> = changes.iter().map(|it| it.new.as_ref().unwrap().str("name").unwrap()).collect();
    names.sort_unstable();
    names
}

/// The next connection, and what differs there.
async fn connected(session: &mut Session) -> (Remote, Vec<RowChange>) {
    let remote = loop {
        match next(session).await {
            Event::Connected { remote } => break remote,
            Event::Disconnected { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    match next(session).await {
        Event::Snapshot { changes, .. } => (remote, changes),
        other => panic!("{other:?}"),
    }
}

async fn updated(session: &mut Session) -> Vec<RowChange> {
    match next(session).await {
        Event::Update { changes, .. } => changes,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_leader_dies_and_only_what_was_missed_is_told() {
    let mut cluster = Cluster::start(3);
    let mut session = Session::start(config(&cluster));
    let handle = session.handle();
    let (leader, changes) = connected(&mut session).await;
    assert!(changes.is_empty());
    let many: Vec<_> = (0..500).map(|n| thing(&format!("t{n}"))).collect();
    timeout(LIMIT, handle.transact("Test", &many)).await.unwrap().unwrap();
    assert_eq!(updated(&mut session).await.len(), 500);

    cluster.at(&leader).kill();
    let (second, changes) = connected(&mut session).await;
    assert_ne!(second, leader);
    assert_eq!(names(&changes), [""; 0], "the new leader knows where the session was");
    timeout(LIMIT, handle.transact("Test", &[thing("while one is down")])).await.unwrap().unwrap();
    assert_eq!(names(&updated(&mut session).await), ["while one is down"]);

    // Without a majority nobody leads, and the session says so instead of reading what may be old.
    let third = cluster.remotes().into_iter().find(|it| *it != leader && *it != second).unwrap();
    cluster.at(&third).kill();
    let reason = match next(&mut session).await {
        Event::Disconnected { reason } => reason,
        other => panic!("{other:?}"),
    };
    assert!(
        matches!(reason, SessionError::NotLeader { .. } | SessionError::NotInCluster { .. }),
        "{reason:?}"
    );
    assert!(handle.transact("Test", &[thing("nobody hears this")]).await.is_err());

    // All come back: what was missed is told, once.
    cluster.at(&third).up();
    cluster.at(&leader).up();
    let (_, changes) = connected(&mut session).await;
    assert_eq!(names(&changes), [""; 0]);
    timeout(LIMIT, handle.transact("Test", &[thing("all are back")])).await.unwrap().unwrap();
    assert_eq!(names(&updated(&mut session).await), ["all are back"]);
}

#[tokio::test]
async fn what_happened_while_it_was_away_is_told_and_nothing_else() {
    let mut cluster = Cluster::start(3);
    let mut config = config(&cluster);
    // One that follows a member, whoever leads.
    config.leader_only = false;
    config.remotes.truncate(1);
    let mut session = Session::start(config);
    connected(&mut session).await;
    let other = cluster.connect(1).await;
    other.transact("Test", &[thing("before")]).await.unwrap();
    assert_eq!(names(&updated(&mut session).await), ["before"]);
    cluster.members[0].kill();
    let many: Vec<_> = (0..100).map(|n| thing(&format!("t{n}"))).collect();
    let began = Instant::now();
    // A cluster that has just lost its leader takes nothing until it has another.
    while let Err(error) = timeout(LIMIT, other.transact("Test", &many)).await.unwrap() {
        assert!(began.elapsed() < LIMIT, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.members[0].up();
    let (_, changes) = connected(&mut session).await;
    let mut told: Vec<String> = names(&changes).into_iter().map(str::to_owned).collect();
    // What the member catches up on after it is in contact again comes as updates.
    while told.len() < 100 {
        told.extend(names(&updated(&mut session).await).into_iter().map(str::to_owned));
    }
    told.sort();
    let mut all: Vec<_> = (0..100).map(|n| format!("t{n}")).collect();
    all.sort();
    assert_eq!(told, all);
}

#[tokio::test]
async fn nobody_waits_for_a_server_that_has_lost_its_cluster() {
    let mut cluster = Cluster::start(3);
    let mut config = config(&cluster);
    config.leader_only = false;
    config.remotes.truncate(1);
    let mut session = Session::start(config);
    let handle = session.handle();
    connected(&mut session).await;
    let kept = handle.connection().unwrap();
    cluster.members[1].kill();
    cluster.members[2].kill();
    // Asked before the server notices; it lives on, and would do it once it has its cluster again.
    let ended = timeout(LIMIT, handle.transact("Test", &[thing("held back")])).await;
    let error = ended.expect("an end in time").unwrap_err();
    assert!(error.is_outcome_unknown(), "{error:?}");
    assert!(matches!(kept.closed().await, CloseReason::Local));
    assert!(matches!(next(&mut session).await, Event::Disconnected { .. }));
    cluster.members[1].up();
    connected(&mut session).await;
    let found = cluster.connect(0).await.transact("Test", &[Operation::select("Thing")]).await.unwrap();
    assert!(found[0].rows().len() <= 1, "done once or not at all: {found:?}");
}

#[tokio::test]
async fn certificates_decide_who_talks() {
    let cluster = Cluster::start(1);
    let foreign = Authority::new();
    let remote = Remote::Ssl(cluster.members[0].address);
    let ask = async |tls| {
        let options = Options { tls, ..Options::default() };
        let (connection, _notifications) =
            Connection::open(&remote, &options).await.map_err(|e| match e {
                ConnectError::Io { source, .. } => source.to_string(),
                other => other.to_string(),
            })?;
        connection.list_dbs().await.map_err(|error| error.to_string())
    };
    let own = &cluster.authority;
    assert!(ask(Some(own.client(Some(own)))).await.unwrap().contains(&"Test".to_owned()));
    assert!(ask(None).await.unwrap_err().contains("needs a TLS configuration"));
    let untrusted = ask(Some(foreign.client(Some(own)))).await.unwrap_err();
    assert!(untrusted.contains("invalid peer certificate"), "{untrusted}");
    // What the server refuses shows with the first answer that does not come: TLS 1.3 has no more of a handshake.
    assert!(ask(Some(own.client(None))).await.is_err());
    assert!(ask(Some(own.client(Some(&foreign)))).await.is_err());
}
