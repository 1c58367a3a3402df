//! Nodes that find each other's addresses, by a real `ovsdb-server`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dom0_server::core::Event;
use dom0_server::db::location::Place;
use dom0_server::locations::watch::{self, Here, Moves};
use ovsdb::Remote;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::sync::watch as state;
use tokio::task::JoinHandle;

use crate::support::{LIMIT, Server};

fn places(last: &[u8]) -> BTreeSet<Place> {
    let place = |n: &u8| Place {
        segment: "s1".parse().unwrap(),
        mac: format!("02:00:00:00:00:{n:02x}").parse().unwrap(),
    };
    last.iter().map(place).collect()
}

/// One node's part.
struct Node {
    here: state::Sender<Here>,
    _moves: state::Sender<Moves>,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Node {
    fn start(server: &Server, name: &str) -> Self {
        let (here, watched) = state::channel(None);
        let (moves, due) = state::channel(Moves::default());
        let (sender, events) = mpsc::channel(16);
        let remotes = Remote::parse_list(&server.db()).unwrap();
        let task = tokio::spawn(watch::run(remotes, None, name.parse().unwrap(), None, watched, due, sender));
        Self { here, _moves: moves, events, task }
    }

    fn has(&self, last: &[u8]) {
        self.here.send_replace(Some(Arc::new(places(last))));
    }

    /// Waits until it knows that others have these.
    async fn knows(&mut self, last: &[u8]) {
        let wanted = places(last);
        loop {
            let event = tokio::time::timeout(LIMIT, self.events.recv()).await.unwrap().unwrap();
            if matches!(event, Event::Whereabouts(it) if it.elsewhere == wanted) {
                return;
            }
        }
    }

    /// Waits until it says so of that number, and gives back what is here then.
    async fn settled(&mut self, number: i64) -> Here {
        loop {
            let event = tokio::time::timeout(LIMIT, self.events.recv()).await.unwrap().unwrap();
            if let Event::Located(cfg, here) = event
                && cfg == number
            {
                return here;
            }
        }
    }
}

/// What is here counts as told when others can read it, and nothing else is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_comes_when_what_is_here_is_written() {
    let server = Server::ready();
    let mut a = Node::start(&server, "a");
    let mut b = Node::start(&server, "b");
    assert_eq!(a.settled(0).await, None);
    b.settled(0).await;
    a.has(&[1]);
    let here = a.settled(0).await;
    assert_eq!(here.as_deref(), Some(&places(&[1])));
    assert_eq!(rows(&server), [("a".to_owned(), "01".to_owned(), 1)].into());
    server.write(&json!([{"op": "update", "table": "XenFlow", "where": [], "row": {"next_cfg": 7}}]));
    a.settled(7).await;
    // In the order in which it was written.
    b.knows(&[1]).await;
    b.settled(7).await;
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Node, last byte of the address and generation of every row.
fn rows(server: &Server) -> BTreeSet<(String, String, i64)> {
    let said = server.transact(&json!([{"op": "select", "table": "Location", "where": []}]));
    let said: Value = serde_json::from_str(&said).unwrap();
    let rows = said[0]["rows"].as_array().unwrap().iter();
    let text = |row: &Value, column: &str| row[column].as_str().unwrap().to_owned();
    rows.map(|row| (text(row, "node"), text(row, "mac").split_off(15), row["generation"].as_i64().unwrap()))
        .collect()
}

async fn until(server: &Server, wanted: &[(&str, &str, i64)]) {
    let wanted: BTreeSet<_> = wanted.iter().map(|(a, b, n)| ((*a).to_owned(), (*b).to_owned(), *n)).collect();
    let end = Instant::now() + LIMIT;
    loop {
        let rows = rows(server);
        if rows == wanted {
            return;
        }
        assert!(Instant::now() < end, "{rows:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_claim_what_comes_and_know_what_others_have() {
    let server = Server::ready();
    let mut a = Node::start(&server, "a");
    let mut b = Node::start(&server, "b");
    a.has(&[1, 2]);
    b.has(&[3]);
    until(&server, &[("a", "01", 1), ("a", "02", 1), ("b", "03", 1)]).await;
    a.knows(&[3]).await;
    b.knows(&[1, 2]).await;
    // One moves: it is the other's as soon as it is there, whether or not it has left.
    b.has(&[1, 3]);
    until(&server, &[("a", "01", 1), ("a", "02", 1), ("b", "01", 2), ("b", "03", 1)]).await;
    a.knows(&[1, 3]).await;
    b.knows(&[2]).await;
    // A daemon that starts anew with its port still there is not fooled, and one that finds nothing there tidies up.
    drop(a);
    let mut a = Node::start(&server, "a");
    a.has(&[1]);
    a.knows(&[1, 3]).await;
    until(&server, &[("a", "01", 1), ("b", "01", 2), ("b", "03", 1)]).await;
    // The move is taken back.
    b.has(&[3]);
    a.knows(&[3]).await;
    until(&server, &[("a", "01", 1), ("b", "03", 1)]).await;
    // What somebody removes comes back as it was.
    server.write(&json!([{"op": "delete", "table": "Location", "where": []}]));
    until(&server, &[("a", "01", 1), ("b", "03", 1)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nodes_at_once_get_numbers_of_their_own() {
    let server = Server::ready();
    let all: Vec<u8> = (0..100).collect();
    let nodes: Vec<Node> = ["a", "b", "c"].iter().map(|name| Node::start(&server, name)).collect();
    nodes.iter().for_each(|node| node.has(&all));
    let end = Instant::now() + LIMIT;
    loop {
        let rows = rows(&server);
        let numbers: BTreeSet<(String, i64)> = rows.iter().map(|(_, mac, n)| (mac.clone(), *n)).collect();
        assert_eq!(numbers.len(), rows.len(), "a number twice: {rows:?}");
        if rows.len() == 3 * all.len() {
            return;
        }
        assert!(Instant::now() < end, "{} rows", rows.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
