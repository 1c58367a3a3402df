//! Real connections over the loopback interface, with what drives both ends played by hand. Who is refused, and why, is in
//! `refusals`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use xenflow_proto::node::{Held, Punt, PuntKind, RefusalReason, SourceMessage};
use xenflow_proto::{Change, Digest, Key, Seq};

use super::incoming::{self, Answer, Answers, ConnectionId, Opened, Standing};
use super::outgoing::{Confirmed, Dial, Event, Outgoing, Relayed, Said, Tables};
use super::*;
use crate::migration::punts::{Bounds, Keeper};
use crate::tls;

mod refusals;

const LONG: Duration = Duration::from_secs(30);
const DIGEST: Digest = Digest { objects: 3, sum: 7 };

/// An authority with certificates.
struct Authority {
    dir: PathBuf,
}

impl Authority {
    fn new(test: &str, identities: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!("xenflow-peer-{test}-{}", std::process::id()));
        let now = OffsetDateTime::now_utc();
        crate::pki::init(&dir, now).unwrap();
        let mut store = crate::pki::Store::open(&dir).unwrap();
        for uri in identities {
            let uri = format!("xenflow://{uri}").parse().unwrap();
            store.issue(&dir, &uri, time::Duration::DAY, now, false).unwrap();
        }
        Self { dir }
    }

    fn access(&self, name: &str) -> tls::Access {
        let at = |name: String| self.dir.join(name);
        let (ca, cert, key) = (at("ca.pem".into()), at(format!("{name}.pem")), at(format!("{name}.key")));
        let files = tls::Files { ca, cert, key, crl: None };
        let server = files.load().unwrap();
        tls::Access::new(tls::follow(files, server, None), None)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// Node b, which listens.
struct Destination {
    address: SocketAddr,
    events: mpsc::Receiver<incoming::Event>,
    task: JoinHandle<()>,
}

impl Destination {
    async fn start(authority: &Authority) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, events) = mpsc::channel(16);
        let access = authority.access("b");
        let task = tokio::spawn(async move {
            match incoming::serve(listener, "b".parse().unwrap(), access, sender).await {}
        });
        Self { address, events, task }
    }

    async fn next(&mut self) -> incoming::Event {
        timeout(LONG, self.events.recv()).await.expect("an event").unwrap()
    }

    async fn opened(&mut self) -> Opened {
        let event = self.next().await;
        let incoming::Event::Opened(opened) = event else { panic!("{event:?}") };
        opened
    }

    async fn said(&mut self) -> SourceMessage {
        let event = self.next().await;
        let incoming::Event::Said(_, message, _) = event else { panic!("{event:?}") };
        message
    }

    async fn closed(&mut self) -> ConnectionId {
        let event = self.next().await;
        let incoming::Event::Closed(id) = event else { panic!("{event:?}") };
        id
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn dial(node: &str, address: SocketAddr) -> Dial {
    let name = |text: &str| text.parse().unwrap();
    Dial { own: name("a"), node: name(node), address, migration: 7, router: name("r1") }
}

async fn event(outgoing: &mut Outgoing) -> Event {
    timeout(LONG, outgoing.events.recv()).await.expect("an event").unwrap()
}

async fn confirmed(outgoing: &mut Outgoing) -> Confirmed {
    let event = event(outgoing).await;
    let Event::Confirmed(confirmed) = event else { panic!("{event:?}") };
    confirmed
}

/// A connection, with all that was confirmed before it left out.
async fn connected(outgoing: &mut Outgoing) -> (Option<Held>, bool) {
    loop {
        if let Event::Connected { held, goes_on } = event(outgoing).await {
            return (held, goes_on);
        }
    }
}

fn change(id: u32) -> Change {
    Change::Remove(Key::NextHop(id))
}

fn frame(id: u32) -> Punt {
    let mut bytes = vec![0xa5; 60];
    bytes[..4].copy_from_slice(&id.to_be_bytes());
    Punt { vif: 3, kind: PuntKind::Punt, frame: bytes.into() }
}

fn id(punt: &Punt) -> u32 {
    u32::from_be_bytes(punt.frame[..4].try_into().unwrap())
}

async fn say(outgoing: &Outgoing, mark: u64, tables: Tables) {
    timeout(LONG, outgoing.tables.send(Said { mark, tables })).await.expect("room").unwrap();
}

async fn relay(outgoing: &Outgoing, relayed: Relayed) {
    timeout(LONG, outgoing.punts.send(relayed)).await.expect("room").unwrap();
}

#[tokio::test]
async fn a_whole_conversation() {
    let authority = Authority::new("whole", &["node/a", "node/b"]);
    let mut b = Destination::start(&authority).await;
    let mut a = Outgoing::start(dial("b", b.address), authority.access("a")).unwrap();
    let Opened { id: connection, node, hello, mut answers } = b.opened().await;
    assert_eq!((node.as_str(), hello.node.as_str()), ("a", "a"));
    assert_eq!((hello.migration, hello.router.as_str()), (7, "r1"));
    let held = Some(Held { boot_id: [1; 16], digest: DIGEST });
    answers.say(Answer::Welcome(Standing { held, ..Standing::NEW }));
    assert_eq!(connected(&mut a).await, (held, false));

    say(&a, 1, Tables::Snapshot([2; 16])).await;
    say(&a, 2, Tables::Changes(vec![change(1), change(2)])).await;
    say(&a, 3, Tables::End(DIGEST)).await;
    assert_eq!(b.said().await, SourceMessage::SnapshotBegin { seq: Seq(1), boot_id: [2; 16] });
    let changes = SourceMessage::Changes { seq: Seq(2), changes: vec![change(1), change(2)] };
    assert_eq!(b.said().await, changes);
    assert_eq!(b.said().await, SourceMessage::SnapshotEnd { seq: Seq(3), digest: DIGEST });
    answers.say(Answer::Ack(Seq(3)));
    assert_eq!(confirmed(&mut a).await, Confirmed::Tables { mark: 3 });
    answers.say(Answer::Staged { seq: Seq(3), digest: DIGEST });
    assert_eq!(confirmed(&mut a).await, Confirmed::Staged { digest: DIGEST });

    for number in 1..=3 {
        relay(&a, Relayed::Frame(frame(number))).await;
    }
    relay(&a, Relayed::EndMark).await;
    let mut got = Vec::new();
    let last = loop {
        match b.said().await {
            SourceMessage::Punts { first, punts } => {
                assert_eq!(first, got.len() as u64 + 1);
                got.extend(punts);
            }
            SourceMessage::EndMark(last) => break last,
            SourceMessage::Hello(_)
            | SourceMessage::SnapshotBegin { .. }
            | SourceMessage::Resume(_)
            | SourceMessage::Changes { .. }
            | SourceMessage::SnapshotEnd { .. }
            | SourceMessage::Ping(_)
            | SourceMessage::Megaflows(_)
            | SourceMessage::Pong(_) => panic!("of tables nothing was said"),
        }
    };
    assert_eq!((last, got), (3, (1..=3).map(frame).collect()));
    answers.say(Answer::Given(2));
    assert_eq!(confirmed(&mut a).await, Confirmed::Punts { up_to: 2 });
    let (reply, back) = oneshot::channel();
    relay(&a, Relayed::TakeBack(reply)).await;
    assert_eq!(timeout(LONG, back).await.unwrap().unwrap(), [frame(3)]);
    assert_eq!((a.counters.borrow().came, a.counters.borrow().went), (3, 2));
    drop(a);
    assert_eq!(b.closed().await, connection);
}

#[tokio::test]
async fn a_source_is_refused_with_a_reason_and_asks_again() {
    let authority = Authority::new("again", &["node/a", "node/b"]);
    let mut b = Destination::start(&authority).await;
    let mut a = Outgoing::start(dial("b", b.address), authority.access("a")).unwrap();
    let mut opened = b.opened().await;
    let detail = "there is no migration 7".to_owned();
    opened.answers.say(Answer::Refuse(RefusalReason::UnknownMigration, detail));
    let refused = event(&mut a).await;
    assert!(
        matches!(&refused, Event::Refused { reason: RefusalReason::UnknownMigration, detail } if detail == "there is no migration 7"),
        "{refused:?}"
    );
    assert_eq!(b.closed().await, opened.id);
    b.opened().await.answers.say(Answer::Refuse(RefusalReason::Other, String::new()));
    assert!(matches!(event(&mut a).await, Event::Refused { reason: RefusalReason::Other, .. }));
}

#[tokio::test]
async fn a_destination_that_has_forgotten_everything_gets_it_again() {
    let authority = Authority::new("forgotten", &["node/a", "node/b"]);
    let mut b = Destination::start(&authority).await;
    let mut a = Outgoing::start(dial("b", b.address), authority.access("a")).unwrap();
    let mut first = b.opened().await;
    first.answers.say(Answer::Welcome(Standing::NEW));
    assert_eq!(connected(&mut a).await, (None, false));
    say(&a, 1, Tables::Snapshot([2; 16])).await;
    say(&a, 2, Tables::Changes(vec![change(1)])).await;
    b.said().await;
    b.said().await;
    first.answers.say(Answer::Ack(Seq(2)));
    assert_eq!(confirmed(&mut a).await, Confirmed::Tables { mark: 2 });
    for number in 1..=3 {
        relay(&a, Relayed::Frame(frame(number))).await;
    }
    let mut count = 0;
    while count < 3 {
        let message = b.said().await;
        let SourceMessage::Punts { punts, .. } = message else { panic!("{message:?}") };
        count += punts.len();
    }
    first.answers.say(Answer::Given(1));
    assert_eq!(confirmed(&mut a).await, Confirmed::Punts { up_to: 1 });
    // Another daemon: it knows nothing of the stream.
    drop(first);
    b.closed().await;
    let mut second = b.opened().await;
    second.answers.say(Answer::Welcome(Standing::NEW));
    assert_eq!(connected(&mut a).await, (None, false));
    let message = b.said().await;
    let SourceMessage::Punts { first: number, punts } = message else { panic!("{message:?}") };
    assert_eq!((number, punts), (2, vec![frame(2), frame(3)]));
    say(&a, 3, Tables::Changes(vec![change(2)])).await;
    say(&a, 4, Tables::Snapshot([2; 16])).await;
    assert_eq!(b.said().await, SourceMessage::SnapshotBegin { seq: Seq(1), boot_id: [2; 16] });
}

/// Passes bytes on until it is cut; then it waits for the next connection.
async fn cable(listener: TcpListener, to: SocketAddr, cut: Arc<Notify>) {
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(to).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            () = cut.notified() => {}
        }
    }
}

/// The destination's core, as far as a stream needs one.
struct Taker {
    b: Destination,
    keeper: Keeper,
    current: Option<(ConnectionId, Answers)>,
    next_seq: u64,
    connections: usize,
    changes: Vec<u32>,
    given: Vec<u32>,
}

impl Taker {
    /// Until everything has come; the link is cut whenever so many changes more have.
    async fn run(mut self, count: u32, every: usize, cut: Arc<Notify>) -> Self {
        while self.changes.len() < count as usize || !self.keeper.is_through() {
            match self.b.next().await {
                incoming::Event::Opened(Opened { id, hello, mut answers, .. }) => {
                    self.connections += 1;
                    let next_punt = self.keeper.connected(hello.stream);
                    let standing = Standing { next_seq: Seq(self.next_seq), next_punt, held: None };
                    answers.say(Answer::Welcome(standing));
                    // Who was there before is not heard any more.
                    self.current = Some((id, answers));
                }
                incoming::Event::Said(id, message, _taken) => {
                    if self.take(id, message) && self.changes.len().is_multiple_of(every) {
                        cut.notify_waiters();
                    }
                }
                incoming::Event::Closed(_) => {}
            }
        }
        self
    }

    /// Whether a change came.
    fn take(&mut self, from: ConnectionId, message: SourceMessage) -> bool {
        let Some((_, answers)) = self.current.as_mut().filter(|(id, _)| *id == from) else { return false };
        match message {
            SourceMessage::Changes { seq, changes } => {
                assert_eq!(seq.0, self.next_seq);
                self.changes.extend(changes.iter().map(|change| {
                    let Key::NextHop(id) = change.key() else { panic!("{change:?}") };
                    id
                }));
                self.next_seq += 1;
                answers.say(Answer::Ack(seq));
                return true;
            }
            SourceMessage::SnapshotBegin { .. } => self.next_seq += 1,
            SourceMessage::Punts { first, punts } => {
                for (number, punt) in (first..).zip(punts) {
                    self.keeper.relayed(number, punt, Duration::ZERO);
                }
                self.given.extend(self.keeper.release(usize::MAX, Duration::ZERO).iter().map(id));
                answers.say(Answer::Given(self.keeper.settled()));
            }
            SourceMessage::EndMark(last) => self.keeper.end_mark(last),
            SourceMessage::Hello(_)
            | SourceMessage::Resume(_)
            | SourceMessage::SnapshotEnd { .. }
            | SourceMessage::Ping(_)
            | SourceMessage::Megaflows(_)
            | SourceMessage::Pong(_) => panic!("{message:?}"),
        }
        false
    }
}

#[tokio::test]
async fn a_link_that_breaks_loses_nothing_and_says_nothing_twice() {
    const COUNT: u32 = 200;
    let authority = Authority::new("broken", &["node/a", "node/b"]);
    let b = Destination::start(&authority).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (by, cut) = (listener.local_addr().unwrap(), Arc::<Notify>::default());
    let cable = tokio::spawn(cable(listener, b.address, cut.clone()));
    let taker = Taker {
        b,
        keeper: Keeper::new(Bounds::KEPT),
        current: None,
        next_seq: 1,
        connections: 0,
        changes: Vec::new(),
        given: Vec::new(),
    };
    let taking = tokio::spawn(taker.run(COUNT, 50, cut));
    let mut a = Outgoing::start(dial("b", by), authority.access("a")).unwrap();
    say(&a, 0, Tables::Snapshot([2; 16])).await;
    for number in 1..=COUNT {
        say(&a, number.into(), Tables::Changes(vec![change(number)])).await;
        relay(&a, Relayed::Frame(frame(number))).await;
        while a.events.try_recv().is_ok() {}
    }
    relay(&a, Relayed::EndMark).await;
    let taken = timeout(LONG, taking).await.expect("everything comes").unwrap();
    assert!(taken.connections > 3, "the control: it was cut {} times", taken.connections - 1);
    assert_eq!(taken.changes, (1..=COUNT).collect::<Vec<_>>());
    assert_eq!(taken.given, (1..=COUNT).collect::<Vec<_>>());
    assert_eq!((taken.keeper.twice(), taken.keeper.missed()), (0, 0));
    let counters = *a.counters.borrow();
    assert_eq!((counters.came, counters.all_lost()), (COUNT.into(), 0));
    cable.abort();
}
