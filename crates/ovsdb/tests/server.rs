//! One connection against a real `ovsdb-server`.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod support;

use std::time::{Duration, Instant};

use ovsdb::{
    CloseReason, Condition, Connection, Datum, Function, Monitor, MonitorUpdate, Mutator, OpResult,
    Operation, Options, Place, Remote, Replica, RequestError, Row, TransactError, Until, Uuid,
};
use serde_json::json;
use support::{LIMIT, Server};

async fn find(connection: &Connection, name: &str) -> Row {
    let select = Operation::select("Thing").filter(Condition::eq("name", name));
    let results = connection.transact("Test", &[select]).await.unwrap();
    assert_eq!(results[0].rows().len(), 1, "one row named {name}");
    results[0].rows()[0].clone()
}

#[tokio::test]
async fn every_operation_does_what_it_says() {
    let server = Server::start();
    let connection = server.connect().await;
    assert_eq!(connection.list_dbs().await.unwrap(), ["Other", "Test", "_Server"]);
    let schema = connection.get_schema("Test").await.unwrap();
    assert_eq!((schema.name.as_str(), schema.version.as_str(), schema.tables.len()), ("Test", "1.2.3", 4));

    let results = connection
        .transact(
            "Test",
            &[
                Operation::comment("first"),
                Operation::insert("Part").set("label", "p1").uuid_name("p1"),
                Operation::insert("Thing")
                    .set("name", "a")
                    .set("size", 7)
                    .set("ratio", 0.5)
                    .set("on", true)
                    .set("note", Some("hello"))
                    .set("numbers", Datum::set([3, 1, 2]))
                    .set("ids", Datum::map([("k", "v"), ("l", "w")]))
                    .set("parts", Datum::named_uuid("p1")),
                Operation::commit(true),
            ],
        )
        .await
        .unwrap();
    let part = results[1].inserted().unwrap();
    assert_eq!((&results[0], &results[3]), (&OpResult::Done, &OpResult::Done));

    let row = find(&connection, "a").await;
    assert_eq!(row.str("name"), Ok("a"));
    assert_eq!(row.int("size"), Ok(7));
    assert_eq!(row.real("ratio"), Ok(0.5));
    assert_eq!(row.bool("on"), Ok(true));
    assert_eq!(row.opt_str("note"), Ok(Some("hello")));
    assert_eq!(row.set_int("numbers").unwrap().into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(row.map_get("ids", "l"), Ok(Some("w")));
    assert_eq!(row.set_uuid("parts").unwrap().into_iter().collect::<Vec<_>>(), [part]);
    assert_eq!(row.uuid("_uuid").ok(), results[2].inserted());
    assert_eq!(row.int("name").unwrap_err().to_string(), "column 'name' holds one string, not integer");
    assert_eq!(row.int("nix").unwrap_err().to_string(), "the row has no column 'nix'");

    let by_name = || Condition::eq("name", "a");
    let results = connection
        .transact(
            "Test",
            &[
                Operation::update("Thing").filter(by_name()).set("size", 9).set("note", Datum::empty()),
                Operation::mutate("Thing")
                    .filter(by_name())
                    .mutation("numbers", Mutator::Delete, 2)
                    .mutation("ids", Mutator::Insert, Datum::map([("m", "x")]))
                    .mutation("size", Mutator::Add, 1),
                Operation::select("Thing").columns(&["size", "note"]).filter(Condition::new(
                    "size",
                    Function::GreaterOrEqual,
                    10,
                )),
                Operation::delete("Thing").filter(Condition::eq("name", "nobody")),
            ],
        )
        .await
        .unwrap();
    assert_eq!(results[0].count(), Some(1));
    assert_eq!(results[1].count(), Some(1));
    let expected: Row = [("size", Datum::from(10)), ("note", Datum::empty())].into_iter().collect();
    assert_eq!(results[2].rows(), [expected]);
    assert_eq!(results[3].count(), Some(0));
}

#[tokio::test]
async fn errors_name_the_operation_or_the_commit() {
    let server = Server::start();
    let connection = server.connect().await;
    let thing = |name: &str| Operation::insert("Thing").set("name", name);
    let failed = async |ops: &[Operation]| match connection.transact("Test", ops).await {
        Err(TransactError::Operation(error)) => error,
        other => panic!("{other:?}"),
    };

    let error = failed(&[thing("a"), thing("b").set("size", 4096)]).await;
    assert_eq!(error.place, Place::Operation { index: 1, name: "insert" });
    assert_eq!(error.error, "constraint violation");
    assert!(error.details.as_ref().unwrap().contains("4096"), "{error}");

    // A duplicate index shows only at commit, after the results of all operations.
    let error = failed(&[thing("a"), thing("a")]).await;
    assert_eq!((error.place, error.error.as_str()), (Place::Commit, "constraint violation"));
    assert!(error.to_string().starts_with("the commit failed: constraint violation: "), "{error}");
    let error = failed(&[thing("a").set("parts", Uuid(5))]).await;
    assert_eq!((error.place, error.error.as_str()), (Place::Commit, "referential integrity violation"));

    connection.transact("Test", &[thing("a").set("size", 1)]).await.unwrap();
    let expect = |size: i64| {
        let row: Row = [("size", Datum::from(size))].into_iter().collect();
        Operation::wait("Thing", &["size"], Until::Equal, [row], Duration::ZERO)
            .filter(Condition::eq("name", "a"))
    };
    let set = |size: i64| Operation::update("Thing").filter(Condition::eq("name", "a")).set("size", size);
    connection.transact("Test", &[expect(1), set(2)]).await.unwrap();
    let error = failed(&[expect(1), set(3)]).await;
    assert_eq!(
        (error.place, error.error.as_str()),
        (Place::Operation { index: 0, name: "wait" }, "timed out")
    );
    assert_eq!(find(&connection, "a").await.int("size"), Ok(2));
    assert_eq!(failed(&[set(5), Operation::abort()]).await.error, "aborted");
    assert_eq!(failed(&[Operation::assert("mine")]).await.error, "not owner");

    match connection.transact("Nix", &[]).await {
        Err(TransactError::Request(RequestError::Rpc(error))) => assert_eq!(error.error, "unknown database"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn pipelined_transactions_are_done_in_order() {
    let server = Server::start();
    let connection = server.connect().await;
    connection.transact("Test", &[Operation::insert("Thing").set("name", "n")]).await.unwrap();
    let ops = [
        Operation::mutate("Thing").filter(Condition::eq("name", "n")).mutation("size", Mutator::Add, 1),
        Operation::select("Thing").columns(&["size"]),
    ];
    // More at once than may be in flight: the rest waits.
    let all = futures_util::future::join_all((0..1000).map(|_| connection.transact("Test", &ops))).await;
    for (n, results) in all.into_iter().enumerate() {
        assert_eq!(results.unwrap()[1].rows()[0].int("size"), Ok(n as i64 + 1));
    }

    // A transaction that waits in the server does not hold up the others.
    let row: Row = [("size", Datum::from(2000))].into_iter().collect();
    let slow = [Operation::wait("Thing", &["size"], Until::Equal, [row], Duration::from_secs(20))];
    let slow = connection.transact("Test", &slow);
    let fast = async {
        let set = Operation::update("Thing").set("size", 2000);
        connection.transact("Test", &[set]).await
    };
    let (slow, fast) = tokio::join!(slow, fast);
    assert_eq!((slow.unwrap().len(), fast.unwrap()[0].count()), (1, Some(1)));
}

#[tokio::test]
async fn locks_pass_from_one_client_to_the_other() {
    let server = Server::start();
    let (first, mut first_said) = Connection::open(&server.remote(), &Options::default()).await.unwrap();
    let (second, mut second_said) = Connection::open(&server.remote(), &Options::default()).await.unwrap();
    assert!(first.lock("mine").await.unwrap());
    first.transact("Test", &[Operation::assert("mine")]).await.unwrap();
    assert!(!second.lock("mine").await.unwrap());
    first.unlock("mine").await.unwrap();
    assert_eq!(second_said.recv().await.unwrap().method, "locked");
    assert!(first.steal("mine").await.unwrap());
    assert_eq!(second_said.recv().await.unwrap().method, "stolen");
    drop(second);
    assert!(first_said.try_recv().is_err());
}

#[tokio::test]
async fn a_monitor_follows_conditions_and_columns() {
    let server = Server::start();
    let (connection, mut said) = Connection::open(&server.remote(), &Options::default()).await.unwrap();
    let thing = |name: &str, size: i64| Operation::insert("Thing").set("name", name).set("size", size);
    connection.transact("Test", &[thing("small", 1), thing("big", 100), thing("huge", 1000)]).await.unwrap();
    let monitor = Monitor::new("Test").table_where(
        "Thing",
        &["name", "numbers", "ids", "note"],
        [Condition::new("size", Function::Greater, 500), Condition::eq("name", "big")],
    );
    let schema = connection.get_schema("Test").await.unwrap();
    let mut replica = Replica::new(&schema, &monitor).unwrap();
    let reply = connection.monitor(&json!("m"), &monitor, Uuid::ZERO).await.unwrap();
    assert!(!reply.found);
    assert_eq!(replica.load(reply).unwrap().len(), 2);
    assert_eq!(replica.last_transaction(), Uuid::ZERO, "a standalone server keeps no history");
    let mut follow = async |replica: &mut Replica| {
        let said = said.recv().await.unwrap();
        let update = MonitorUpdate::parse(&said.method, &said.params).unwrap().unwrap();
        assert_eq!(update.id, json!("m"));
        replica.apply(update.updates, update.last).unwrap()
    };

    let big = || Condition::eq("name", "big");
    let set = |op: Operation| op.filter(big());
    let first = set(Operation::update("Thing"))
        .set("numbers", Datum::set([1, 2]))
        .set("ids", Datum::map([("a", "1"), ("b", "2")]))
        .set("note", "n");
    connection.transact("Test", &[first]).await.unwrap();
    let changes = follow(&mut replica).await;
    assert_eq!(changes.len(), 1);
    let row = changes[0].new.as_ref().unwrap();
    assert_eq!(row.get("numbers"), Some(&Datum::set([1, 2])));
    assert_eq!(row.get("size"), None, "not selected");

    // Deltas: an element out, one in, a pair out, one changed, the optional column cleared.
    let second = set(Operation::update("Thing"))
        .set("numbers", Datum::set([2, 3]))
        .set("ids", Datum::map([("b", "3")]))
        .set("note", Datum::empty());
    connection.transact("Test", &[second]).await.unwrap();
    let changes = follow(&mut replica).await;
    let row = changes[0].new.as_ref().unwrap();
    assert_eq!(row.get("numbers"), Some(&Datum::set([2, 3])));
    assert_eq!(row.get("ids"), Some(&Datum::map([("b", "3")])));
    assert_eq!(row.get("note"), Some(&Datum::empty()));

    // A row comes into the condition, another leaves it.
    let grow = Operation::update("Thing").filter(Condition::eq("name", "small")).set("size", 501);
    let shrink = Operation::update("Thing").filter(Condition::eq("name", "huge")).set("size", 5);
    connection.transact("Test", &[grow, shrink]).await.unwrap();
    let mut names: Vec<_> = follow(&mut replica)
        .await
        .iter()
        .map(|c| {
            let name =
                |r: &Option<_>| r.as_ref().map(|r: &std::sync::Arc<Row>| r.str("name").unwrap().to_owned());
            (name(&c.old), name(&c.new))
        })
        .collect();
    names.sort();
    assert_eq!(names, [(None, Some("small".to_owned())), (Some("huge".to_owned()), None)]);
    connection.monitor_cancel(&json!("m")).await.unwrap();
}

#[tokio::test]
async fn the_server_hears_its_echo_answered() {
    // Only remotes that are rows have a probe interval that can be set; the server's least is 1 s.
    let server = Server::with(&["--remote=db:Test,Global,managers"]);
    let local = server.connect().await;
    let manager =
        Operation::insert("Manager").set("target", "ptcp:0:127.0.0.1").set("inactivity_probe", 1000);
    let global = Operation::insert("Global").set("managers", Datum::named_uuid("m"));
    local.transact("Test", &[manager.uuid_name("m"), global]).await.unwrap();
    let deadline = Instant::now() + LIMIT;
    let port = loop {
        assert!(Instant::now() < deadline, "the server says no port");
        let select = Operation::select("Manager").columns(&["status"]);
        let results = local.transact("Test", &[select]).await.unwrap();
        if let Some(port) = results[0].rows()[0].map_get("status", "bound_port").unwrap() {
            break port.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let remote: Remote = format!("tcp:127.0.0.1:{port}").parse().unwrap();
    let options = Options { probe_interval: None, ..Options::default() };
    // Unread notifications must not keep the connection from answering, here there are none to read.
    let (connection, _said) = Connection::open(&remote, &options).await.unwrap();
    connection.list_dbs().await.unwrap();
    let silent = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!(connection.close_reason().is_none(), "still connected");
    connection.list_dbs().await.unwrap();
    // The proof that the server did ask: one that never answers is gone.
    let mut buffer = vec![0; 4096];
    let end = loop {
        tokio::time::timeout(LIMIT, silent.readable()).await.expect("the end").unwrap();
        match silent.try_read(&mut buffer) {
            Ok(0) => break "closed",
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break "reset",
        }
    };
    assert!(!end.is_empty());
}

#[tokio::test]
async fn a_dead_server_is_noticed_and_the_outcome_is_unknown() {
    let dir = std::env::temp_dir().join(format!("ovsdb-silent-{}", std::process::id()));
    // Of a process of this number that was killed.
    let _ = std::fs::remove_file(&dir);
    let listener = tokio::net::UnixListener::bind(&dir).unwrap();
    let options = Options { probe_interval: Some(Duration::from_millis(50)), ..Options::default() };
    let (connection, _said) = Connection::open(&Remote::Unix(dir.clone()), &options).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let error = connection.transact("Test", &[]).await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error}");
    assert!(matches!(connection.closed().await, CloseReason::Silent { seconds } if seconds >= 0.1));
    let error = connection.transact("Test", &[]).await.unwrap_err();
    assert!(matches!(error, TransactError::Request(RequestError::NotSent(_))), "{error}");
    drop(stream);
    std::fs::remove_file(dir).unwrap();
}

#[tokio::test]
async fn thirty_two_thousand_rows_load_at_once() {
    let server = Server::start();
    let connection = server.connect().await;
    for chunk in 0..32i64 {
        let row = |n: i64| {
            let ids =
                Datum::map([("iface-id", format!("vif-{n}")), ("attached-mac", format!("02:00:{n:08x}"))]);
            Operation::insert("Thing").set("name", format!("thing-{n}")).set("size", n % 4096).set("ids", ids)
        };
        let ops: Vec<_> = (chunk * 1000..(chunk + 1) * 1000).map(row).collect();
        connection.transact("Test", &ops).await.unwrap();
    }
    let schema = connection.get_schema("Test").await.unwrap();
    let monitor = Monitor::new("Test").table("Thing", &["name", "size", "ids", "numbers"]);
    let reply = connection.monitor(&json!("m"), &monitor, Uuid::ZERO).await.unwrap();
    let mut replica = Replica::new(&schema, &monitor).unwrap();
    assert_eq!(replica.load(reply).unwrap().len(), 32_000);
}
