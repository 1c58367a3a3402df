//! The links of all moves of this node: keeps those to destinations, lets in those of sources, and passes on what is said. Tables are
//! the core's, frames the [`carrier`](super::carrier)'s.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use xenflow_flow_app::RouterId;
use xenflow_proto::node::{Megaflow, RefusalReason, SourceMessage};
use xenflow_proto::{Name, Seq, message};

use super::carrier::task::{Given, Linked};
use super::peer::admission::{Unwelcome, admit};
use super::peer::incoming::{self, Answer, Answers, ConnectionId, Opened, Standing, Taken};
use super::peer::outgoing::{Dial, Event as Said, Outgoing, Relayed, Said as Tables};
use crate::clock::until;
use crate::core::{Event, Fed, SessionId, Stream};
use crate::db::migration::Migration;
use crate::migration::standby;
use crate::tls;

/// Sessions of nodes are numbered apart from guests'.
const SOURCES: u64 = 1 << 63;
/// After the address could not be listened at.
const RETRY: Duration = Duration::from_secs(1);
/// What sources say that waits.
const SAID: usize = 64;
/// A source that has read its row first waits for this node to have read it, for so long; and so many may.
const UNREAD: Duration = Duration::from_secs(2);
const MAX_UNREAD: usize = 64;

/// What the core says.
#[derive(Debug)]
pub enum Order {
    /// To the destination of the migration of this number.
    Feed(u64, Tables),
    /// To a source.
    Answer(SessionId, Answer),
    /// A source is welcome; what is held.
    Welcome(SessionId, Option<xenflow_proto::node::Held>),
    /// A source's last message of tables was taken in.
    Taken(SessionId),
    /// What the router's packets have in the datapath, to the destination of the migration of this number. Lost where there is no
    /// connection, or the last still waits.
    Megaflows(u64, Vec<Megaflow>),
}

/// The session is another node's.
#[must_use]
pub const fn is_source(id: SessionId) -> bool {
    id.0 >= SOURCES
}

/// A refusal in the words of nodes.
#[must_use]
pub const fn reason(reason: message::RefusalReason) -> RefusalReason {
    match reason {
        message::RefusalReason::Version => RefusalReason::Version,
        message::RefusalReason::Identity => RefusalReason::Identity,
        message::RefusalReason::UnknownRouter => RefusalReason::UnknownMigration,
        message::RefusalReason::Protocol => RefusalReason::Protocol,
        message::RefusalReason::Limit => RefusalReason::Limit,
        message::RefusalReason::Replaced => RefusalReason::Replaced,
        message::RefusalReason::Shutdown => RefusalReason::Shutdown,
        _ => RefusalReason::Other,
    }
}

/// What the task needs.
#[derive(Debug)]
pub struct Setup {
    /// This node.
    pub node: Name,
    /// Where it takes moves, if it does.
    pub listen: Option<SocketAddr>,
    /// Its certificate.
    pub access: tls::Access,
    /// Connections that there are to be.
    pub streams: watch::Receiver<Arc<BTreeMap<RouterId, Stream>>>,
    /// Open moves of this node.
    pub rows: watch::Receiver<Arc<BTreeMap<Name, Migration>>>,
    /// From the core.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// To the core.
    pub events: mpsc::Sender<Event>,
    /// To the carrier.
    pub linked: mpsc::Sender<Linked>,
    /// From the carrier.
    pub given: mpsc::UnboundedReceiver<Given>,
    /// To [`megaflows`](super::megaflows).
    pub megaflows: mpsc::Sender<(u64, Vec<Megaflow>)>,
}

/// A source that is connected.
struct Source {
    migration: u64,
    answers: Answers,
    next_punt: u64,
    /// Messages of tables that the core has not had, and what holds the last that it had.
    waiting: VecDeque<(SourceMessage, Taken)>,
    taken: Option<Taken>,
}

/// A connection to a destination.
struct Link {
    stream: Stream,
    tables: mpsc::Sender<Tables>,
    megaflows: mpsc::Sender<Vec<Megaflow>>,
    /// Of a standby's: the stream lives as long as this. No frames go there, since the guest is here, so the carrier has none.
    punts: Option<mpsc::Sender<Relayed>>,
    task: JoinHandle<()>,
}

struct Links {
    setup: Setup,
    out: BTreeMap<RouterId, Link>,
    sources: HashMap<SessionId, Source>,
    /// Sources of moves that no row is known of yet, and until when they wait.
    unread: VecDeque<(Instant, Opened)>,
}

/// Runs until the core is gone.
pub async fn run(setup: Setup) {
    let (said, mut incoming) = mpsc::channel(SAID);
    let listener = setup
        .listen
        .map(|address| tokio::spawn(listen(address, setup.node.clone(), setup.access.clone(), said)));
    let mut links = Links { setup, out: BTreeMap::new(), sources: HashMap::new(), unread: VecDeque::new() };
    loop {
        let unread_until = links.unread.front().map(|(until, _)| *until);
        let goes_on = tokio::select! {
            changed = links.setup.streams.changed() => {
                let is_there = changed.is_ok();
                if is_there {
                    links.keep().await;
                }
                is_there
            }
            order = links.setup.orders.recv() => match order {
                Some(order) => links.order(order).await,
                None => false,
            },
            Some((migration, number)) = links.setup.given.recv() => {
                for source in links.sources.values_mut().filter(|source| source.migration == migration) {
                    source.answers.say(Answer::Given(number));
                }
                true
            }
            Some(said) = incoming.recv() => links.heard(said).await,
            changed = links.setup.rows.changed() => changed.is_ok() && links.read().await,
            () = until(unread_until) => links.read().await,
        };
        if !goes_on {
            break;
        }
    }
    for task in links.out.into_values().map(|link| link.task).chain(listener) {
        task.abort();
    }
}

/// Listens at the address, again and again: it may not be there yet.
async fn listen(address: SocketAddr, node: Name, access: tls::Access, said: mpsc::Sender<incoming::Event>) {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "other nodes' routers can come");
                match incoming::serve(listener, node.clone(), access.clone(), said.clone()).await {}
            }
            Err(error) if !told => {
                tracing::warn!(%address, %error, "nobody can listen there for other nodes; it is tried again");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

impl Links {
    /// Begins and ends connections to destinations.
    async fn keep(&mut self) {
        let wanted = self.setup.streams.borrow_and_update().clone();
        let is_over = |id: &RouterId, link: &mut Link| wanted.get(id) != Some(&link.stream);
        let over: Vec<_> = self.out.extract_if(.., is_over).collect();
        for (id, link) in over {
            // Its task goes on until the carrier has taken back what the guest may not have.
            if link.punts.is_none() {
                let _ = self.setup.linked.send(Linked::Stream(id, None)).await;
            }
        }
        for (id, stream) in wanted.iter() {
            if self.out.contains_key(id) {
                continue;
            }
            let Stream { number, router, to, address, feed: _ } = stream.clone();
            let dial = Dial { own: self.setup.node.clone(), node: to, address, migration: number, router };
            match Outgoing::start(dial, self.setup.access.clone()) {
                Ok(outgoing) => {
                    let (punts, megaflows) = (outgoing.punts.clone(), outgoing.megaflows.clone());
                    let (tables, said) = mpsc::channel(1);
                    let task = tokio::spawn(follow(number, outgoing, said, self.setup.events.clone()));
                    let (stream, is_standby) = (stream.clone(), standby::is_standby(number));
                    let (own, carriers) = if is_standby { (Some(punts), None) } else { (None, Some(punts)) };
                    self.out.insert(*id, Link { stream, tables, megaflows, punts: own, task });
                    if carriers.is_some() {
                        let _ = self.setup.linked.send(Linked::Stream(*id, carriers)).await;
                    }
                }
                Err(error) => tracing::error!(%error, "no stream to the destination can begin"),
            }
        }
    }

    async fn order(&mut self, order: Order) -> bool {
        match order {
            Order::Feed(number, said) => {
                let link = self.out.values().find(|link| link.stream.number == number);
                // Its task has asked for it, and waits.
                if let Some(link) = link {
                    let _ = link.tables.send(said).await;
                }
            }
            Order::Megaflows(number, flows) => {
                let mut links = self.out.values();
                if let Some(link) = links.find(|link| link.stream.number == number) {
                    let _ = link.megaflows.try_send(flows);
                }
            }
            Order::Answer(id, answer) => {
                let is_last = matches!(answer, Answer::Refuse(..));
                if let Some(source) = self.sources.get_mut(&id) {
                    source.answers.say(answer);
                }
                if is_last {
                    self.sources.remove(&id);
                }
            }
            Order::Welcome(id, held) => {
                if let Some(source) = self.sources.get_mut(&id) {
                    let standing = Standing { next_seq: Seq(1), next_punt: source.next_punt, held };
                    source.answers.say(Answer::Welcome(standing));
                }
            }
            Order::Taken(id) => {
                if let Some(source) = self.sources.get_mut(&id) {
                    source.taken = None;
                }
                return self.pass_on(id).await;
            }
        }
        true
    }

    /// The next message of tables to the core, once it is done with the last.
    async fn pass_on(&mut self, id: SessionId) -> bool {
        let Some(source) = self.sources.get_mut(&id).filter(|source| source.taken.is_none()) else {
            return true;
        };
        let Some((message, taken)) = source.waiting.pop_front() else { return true };
        source.taken = Some(taken);
        self.setup.events.send(Event::SourceSaid(id, message)).await.is_ok()
    }

    async fn heard(&mut self, said: incoming::Event) -> bool {
        match said {
            incoming::Event::Opened(opened) => self.opened(opened, true).await,
            incoming::Event::Said(connection, message, taken) => {
                let id = session(connection);
                let Some(source) = self.sources.get_mut(&id) else { return true };
                let migration = source.migration;
                match message {
                    SourceMessage::Punts { first, punts } => {
                        let relayed = Linked::Relayed(migration, first, punts);
                        self.setup.linked.send(relayed).await.is_ok()
                    }
                    SourceMessage::EndMark(last) => {
                        self.setup.linked.send(Linked::EndMark(migration, last)).await.is_ok()
                    }
                    // Those that are told next are as good.
                    SourceMessage::Megaflows(flows) => {
                        let _ = self.setup.megaflows.try_send((migration, flows));
                        true
                    }
                    SourceMessage::Hello(_)
                    | SourceMessage::SnapshotBegin { .. }
                    | SourceMessage::Resume(_)
                    | SourceMessage::Changes { .. }
                    | SourceMessage::SnapshotEnd { .. }
                    | SourceMessage::Ping(_)
                    | SourceMessage::Pong(_) => {
                        source.waiting.push_back((message, taken));
                        self.pass_on(id).await
                    }
                }
            }
            incoming::Event::Closed(connection) => {
                self.unread.retain(|(_, opened)| opened.id != connection);
                let id = session(connection);
                self.sources.remove(&id).is_none() || self.setup.events.send(Event::Closed(id)).await.is_ok()
            }
        }
    }

    /// Whether a source may speak is what the rows say; of a standby's, what the core does.
    async fn opened(&mut self, opened: Opened, may_wait: bool) -> bool {
        let Opened { id, node, hello, mut answers } = opened;
        if standby::is_standby(hello.migration) {
            let id = self.insert(id, hello.migration, answers, 1);
            return self.setup.events.send(Event::StandbyOpened(id, hello.router, node)).await.is_ok();
        }
        let rows = self.setup.rows.borrow_and_update().clone();
        let row = match admit(rows.values(), &self.setup.node, &node, &hello) {
            Ok(row) => row,
            Err(Unwelcome::Unknown { .. }) if may_wait && self.unread.len() < MAX_UNREAD => {
                self.unread.push_back((Instant::now() + UNREAD, Opened { id, node, hello, answers }));
                return true;
            }
            Err(unwelcome) => {
                answers.say(Answer::Refuse(unwelcome.reason(), unwelcome.to_string()));
                return true;
            }
        };
        let (reply, answer) = oneshot::channel();
        let connected = Linked::Connected(row.number, hello.stream, reply);
        if self.setup.linked.send(connected).await.is_err() {
            return false;
        }
        let next_punt = answer.await.unwrap_or(1);
        let id = self.insert(id, row.number, answers, next_punt);
        self.setup.events.send(Event::SourceOpened(id, row.router.clone(), row.number)).await.is_ok()
    }

    /// Those that have waited for rows look again.
    async fn read(&mut self) -> bool {
        let (now, rows) = (Instant::now(), self.setup.rows.borrow().clone());
        for (until, opened) in std::mem::take(&mut self.unread) {
            let is_over = until <= now;
            if !is_over && !rows.values().any(|row| row.number == opened.hello.migration) {
                self.unread.push_back((until, opened));
            } else if !self.opened(opened, false).await {
                return false;
            }
        }
        true
    }

    fn insert(&mut self, id: ConnectionId, migration: u64, answers: Answers, next_punt: u64) -> SessionId {
        let (id, waiting, taken) = (session(id), VecDeque::new(), None);
        self.sources.insert(id, Source { migration, answers, next_punt, waiting, taken });
        id
    }
}

const fn session(ConnectionId(id): ConnectionId) -> SessionId {
    SessionId(SOURCES | id)
}

/// Tells the core how a connection is, and asks it for tables while there is room for them.
async fn follow(
    number: u64,
    outgoing: Outgoing,
    mut said: mpsc::Receiver<Tables>,
    events: mpsc::Sender<Event>,
) {
    let Outgoing { tables: sender, punts, events: mut happens, megaflows: _, counters: _ } = outgoing;
    // The carrier has the other, or the link: once that is gone, so is the stream.
    drop(punts);
    let (mut is_begun, mut is_over) = (false, false);
    let mut room = None;
    loop {
        let tables = sender.clone();
        tokio::select! {
            event = happens.recv() => match event {
                // Nobody wants tables of it any more.
                Some(_) if is_over => {}
                Some(Said::Connected { held, goes_on }) => {
                    is_begun = true;
                    let connected = Fed::Connected { held, goes_on };
                    if events.send(Event::Feed(number, connected)).await.is_err() {
                        return;
                    }
                }
                // The stream has told the log.
                Some(Said::Confirmed(_) | Said::Refused { .. } | Said::Broken(_)) => {}
                None => return,
            },
            permit = tables.reserve_owned(), if is_begun && !is_over && room.is_none() => {
                let Ok(permit) = permit else { return };
                room = Some(permit);
                if events.send(Event::Feed(number, Fed::Room)).await.is_err() {
                    return;
                }
            }
            tables = said.recv(), if !is_over => match (tables, room.take()) {
                (Some(tables), Some(permit)) => _ = permit.send(tables),
                (Some(_), None) => {}
                (None, _) => is_over = true,
            },
        }
    }
}
