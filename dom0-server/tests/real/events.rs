//! `xenflow events` and the control socket, with events that are made up here; the real ones are in `daemon.rs`.

use std::future::poll_fn;
use std::io::{BufRead, BufReader as Lines};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dom0_server::events::{Events, MAX_EVENTS, MAX_WAITING};
use dom0_server::inspect::socket::open;
use dom0_server::shaper::handle::Handle;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::subscriber::{DefaultGuard, set_default};
use tracing_subscriber::prelude::*;

use crate::support::{Dir, LIMIT, Runs as _, Server, refused};

/// What is logged on this thread is kept, while the guard is.
fn keeping() -> (Events, DefaultGuard) {
    let events = Events::default();
    events.at(&"a".parse().unwrap());
    let guard = set_default(tracing_subscriber::registry().with(events.layer()));
    (events, guard)
}

fn happen(router: &str, number: usize) {
    tracing::info!(name: "fastpath-on", router, number, "the host forwards for the router");
}

struct Client(BufReader<UnixStream>);

impl Client {
    async fn connect(path: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(path).await.unwrap()))
    }

    async fn say(&mut self, request: &Value) {
        self.0.write_all(format!("{request}\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        timeout(LIMIT, self.0.read_line(&mut line)).await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"))
    }

    async fn ask(&mut self, request: &Value) -> Value {
        self.say(request).await;
        self.hear().await
    }
}

/// `xenflow events --follow`, until it is dropped.
struct Follower {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    errors: mpsc::UnboundedReceiver<String>,
}

fn lines(from: impl std::io::Read + Send + 'static) -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        Lines::new(from).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    receiver
}

impl Follower {
    fn start(path: &Path) -> Self {
        Self::with(&["--socket", path.to_str().unwrap()])
    }

    fn with(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenflow"));
        command.args(["events", "--follow", "--json"]).args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, lines: lines(out), errors: lines(err) }
    }

    async fn next(&mut self) -> Value {
        serde_json::from_str(&timeout(LIMIT, self.lines.recv()).await.unwrap().unwrap()).unwrap()
    }

    /// As an operator stops it.
    async fn interrupt(mut self) {
        let mut kill = Command::new("kill");
        assert!(kill.args(["-INT", &self.child.id().to_string()]).status().unwrap().success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        assert_eq!(self.errors.recv().await, None);
    }

    async fn error(&mut self) -> String {
        timeout(LIMIT, self.errors.recv()).await.unwrap().unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is behind the socket but for events.
async fn served(events: &Events) -> (Dir, PathBuf, impl Sized + use<>) {
    let dir = Dir::new();
    let path = dir.0.join("xf.sock");
    let control = open(&path, events, &Handle::default()).await.unwrap();
    (dir, path, control)
}

#[tokio::test]
async fn answers_wait_for_what_is_wanted() {
    let (events, _keeping) = keeping();
    let (_dir, path, _control) = served(&events).await;
    let mut client = Client::connect(&path).await;
    let none = client.ask(&json!({"request": "events", "router": "r1"})).await;
    assert_eq!((&none["ok"]["events"], &none["ok"]["more"]), (&json!([]), &json!(false)));
    let next = &none["ok"]["next"];
    client.say(&json!({"request": "events", "after": next, "router": "r1", "wait_ms": 30_000})).await;
    tokio::task::yield_now().await;
    happen("r2", 1);
    tracing::warn!(name: "session-lost", router = "r1", session = 7, "session ended");
    let some = client.hear().await;
    let events = some["ok"]["events"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["number"], &events[0]["session"]), (&json!(2), &json!("7")));
    let next = &some["ok"]["next"];
    let short = json!({"request": "events", "after": next, "kinds": ["session-lost"], "wait_ms": 1});
    assert_eq!(client.ask(&short).await["ok"]["events"], json!([]), "it was told");

    // A number of another life of the daemon says nothing of this one.
    let other = client.ask(&json!({"request": "events", "after": "1 2", "wait_ms": 30_000})).await;
    let told =
        (&other["ok"]["restarted"], other["ok"]["events"].as_array().unwrap().len(), &other["ok"]["missed"]);
    assert_eq!(told, (&json!(true), 2, &json!(0)));
}

#[tokio::test]
async fn who_waits_takes_no_place_from_who_asks() {
    let (events, _keeping) = keeping();
    let (_dir, path, _control) = served(&events).await;
    let wait = json!({"request": "events", "wait_ms": 30_000});
    // One more than may wait: nothing happens, so whoever is answered is the one.
    let mut waiting = Vec::new();
    for _ in 0..=MAX_WAITING {
        let mut client = Client::connect(&path).await;
        client.say(&wait).await;
        waiting.push(client);
    }
    let answered = poll_fn(|context| {
        let mut clients = waiting.iter_mut();
        let place = clients.position(|client| Pin::new(&mut client.0).poll_fill_buf(context).is_ready());
        place.map_or(Poll::Pending, Poll::Ready)
    });
    let place = timeout(LIMIT, answered).await.unwrap();
    let told = waiting.remove(place).hear().await;
    assert_eq!(told, json!({"error": "8 clients follow the events already: end one of them"}));
    let mut asks = Client::connect(&path).await;
    assert!(asks.ask(&json!({"request": "events"})).await["ok"].is_object());
    // One that goes leaves its place at once, although nothing happens.
    waiting.pop();
    let mut again = Client::connect(&path).await;
    loop {
        again.say(&wait).await;
        tokio::task::yield_now().await;
        happen("r1", 1);
        if again.hear().await["ok"].is_object() {
            break;
        }
    }
    assert!(waiting[0].hear().await["ok"]["events"][0].is_object());
}

#[tokio::test]
async fn one_that_reads_nothing_is_dropped_and_others_are_told_so() {
    let (events, _keeping) = keeping();
    let (_dir, path, _control) = served(&events).await;
    for number in 0..MAX_EVENTS {
        happen("r1", number);
    }
    let mut deaf = Client::connect(&path).await;
    for _ in 0..100 {
        deaf.say(&json!({"request": "events"})).await;
    }
    let mut client = Client::connect(&path).await;
    let dropped = json!({"request": "events", "kinds": ["client-dropped"], "wait_ms": 30_000});
    let told = client.ask(&dropped).await;
    assert_eq!(
        told["ok"]["events"][0]["text"],
        "a client of the control socket is dropped: it does not read what it asked for (dropped 1)"
    );
}

#[tokio::test]
async fn a_follower_says_what_it_missed_and_outlives_the_daemon() {
    let (events, _keeping) = keeping();
    let (_dir, path, control) = served(&events).await;
    happen("r1", 0);
    let mut follower = Follower::start(&path);
    assert_eq!(follower.next().await["number"], 1);
    // Faster than it could ask.
    for number in 0..MAX_EVENTS + 17 {
        happen("r1", number);
    }
    let missed = follower.next().await;
    assert_eq!((&missed["kind"], &missed["missed"]), (&json!("missed"), &json!(17)));
    assert_eq!(missed["text"], "17 events missed: the daemon keeps the last 4096");
    for number in 0..MAX_EVENTS as u64 {
        assert_eq!(follower.next().await["number"], number + 19);
    }

    // The socket goes, and comes back with the same numbers: none is told twice.
    drop(control);
    let gone = follower.error().await;
    assert!(gone.contains("is gone") && gone.ends_with("waiting for it to come back"), "{gone}");
    let control = open(&path, &events, &Handle::default()).await.unwrap();
    happen("r2", 1);
    assert_eq!(follower.next().await["router"], "r2");
    assert_eq!(follower.error().await, "xenflow: the daemon answers again");

    // And with those of a new daemon.
    drop((control, events, _keeping));
    follower.error().await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let (events, _keeping) = keeping();
    happen("r3", 1);
    let _control = open(&path, &events, &Handle::default()).await.unwrap();
    let first = follower.next().await;
    assert_eq!((&first["router"], &first["number"]), (&json!("r3"), &json!(1)));
    assert_eq!(follower.error().await, "xenflow: the daemon was started again");

    follower.interrupt().await;
}

#[tokio::test]
async fn of_all_nodes_is_told_what_changes_in_the_database() {
    let server = Server::ready();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let node = |name: &str, age_s: u64| {
        let seen = now - age_s * 1000;
        json!({"op": "insert", "table": "Node_Status", "row": {"node": name, "version": "1.2.3", "started_ms": 1000, "seen_ms": seen}})
    };
    let status = |state: &str, since_ms: u64| {
        let of = json!([["node", "==", "a"]]);
        let row = json!({"node": "a", "router": "r1", "state": state, "since_ms": since_ms});
        [
            json!({"op": "delete", "table": "Status", "where": of}),
            json!({"op": "insert", "table": "Status", "row": row}),
        ]
    };
    let [_, up] = status("up", 2_000);
    server.write(&json!([node("a", 0), node("b", 100), up]));
    let kinds = |page: &str| -> Vec<String> {
        page.lines()
            .map(|line| line.split_whitespace().skip(1).take(2).collect::<Vec<_>>().join(" "))
            .collect()
    };
    let page = server.ok("events --all");
    assert_eq!(
        kinds(&page),
        ["a daemon-up", "b daemon-up", "a snapshot-complete", "b node-silent"],
        "{page}"
    );
    assert!(
        page.contains("1970-01-01T00:00:02.000Z a snapshot-complete   router r1: the guest has told"),
        "{page}"
    );
    let named = server.ok(&format!("events --router r1 --db {}", server.db()));
    assert_eq!(kinds(&named), ["a snapshot-complete"], "--db alone is enough");
    assert_eq!(named, server.ok(&format!("--db {} events --kind snapshot-complete", server.db())));

    let mut follower = Follower::with(&["--all", "--db", &server.db()]);
    for kind in ["daemon-up", "daemon-up", "snapshot-complete", "node-silent"] {
        assert_eq!(follower.next().await["kind"], kind);
    }
    server.write(&json!(status("up", 2_000)));
    server.write(&json!(status("down", now)));
    let lost = follower.next().await;
    let told = (&lost["kind"], &lost["node"], &lost["router"], &lost["time_ms"], &lost["severity"]);
    assert_eq!(told, (&json!("session-lost"), &json!("a"), &json!("r1"), &json!(now), &json!("warning")));
    server.write(&json!([{"op": "update", "table": "Node_Status", "where": [["node", "==", "b"]], "row": {"seen_ms": now}}]));
    assert_eq!(follower.next().await["kind"], "node-back");
    server.write(&json!([{"op": "insert", "table": "Migration", "row": {
        "number": 1, "router": "r1", "from": "a", "to": "b", "via": "xl", "phase": "staging"}}]));
    let migration = follower.next().await;
    assert_eq!(migration["text"], "from a to b: staging");
    assert!(migration["time_ms"].as_u64().unwrap() >= now);

    // Away and back: what changed meanwhile is told then.
    let ctl = server.ctl().display().to_string();
    let appctl = |arguments: &[&str]| drop(server.tool("ovs-appctl", &[&["-t", &ctl], arguments].concat()));
    let other = server.dir.0.join("other.sock");
    appctl(&["ovsdb-server/add-remote", &format!("punix:{}", other.display())]);
    appctl(&["ovsdb-server/remove-remote", "punix:db.sock"]);
    let away = follower.error().await;
    assert!(away.contains(": waiting for it to come back"), "{away}");
    let operations = json!(["XenFlow", {"op": "update", "table": "Status", "where": [], "row": {"state": "syncing", "since_ms": now + 1}}]);
    let said = server.tool("ovsdb-client", &["transact", "unix:other.sock", &operations.to_string()]);
    assert!(!said.contains("error"), "{said}");
    appctl(&["ovsdb-server/add-remote", "punix:db.sock"]);
    assert_eq!(follower.next().await["kind"], "session-up");
    assert_eq!(follower.error().await, "xenflow: the database answers again");
    follower.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_ends_with_its_reader_and_says_what_is_the_matter() {
    let (events, _keeping) = keeping();
    let (dir, path, _control) = served(&events).await;
    happen("r1", 1);
    let line =
        format!("{} events --follow --socket {} | head -n 1", env!("CARGO_BIN_EXE_xenflow"), path.display());
    let piped = Command::new("bash").args(["-c", &format!("set -o pipefail; {line}")]).output().unwrap();
    let said = String::from_utf8(piped.stdout).unwrap();
    assert!(
        said.ends_with("Z a fastpath-on         router r1: the host forwards for the router (number 1)\n"),
        "{said}"
    );
    assert!(piped.status.success() && piped.stderr.is_empty());

    let none = dir.0.join("none.sock");
    let output = Command::new(env!("CARGO_BIN_EXE_xenflow"))
        .args(["events", "--follow", "--socket"])
        .arg(&none)
        .output()
        .unwrap();
    let away = format!(
        "no daemon answers at {}: start xenflow-dom0 (systemctl start xenflow-dom0), or say --socket PATH if its \
         control_socket is another one",
        none.display()
    );
    refused("events --follow", &output, 1, &away);
}
