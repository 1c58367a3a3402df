//! The source's end: connects to the destination, and again for as long as somebody holds the [`Outgoing`].
//!
//! A task owns the connection, and what the destination has not confirmed. Whoever drives it says tables, which wait in their channel
//! while a window of them is unacknowledged or there is no connection, and frames for the guest, which are always taken and kept
//! within [`Bounds::KEPT`]. Nothing waits for who takes no events: of these only the newest of each kind do.

use std::collections::VecDeque;
use std::io;
use std::mem::discriminant;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::client::TlsStream;
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::node::{
    DestinationMessage, Held, Hello, Megaflow, Punt, RefusalReason, SourceMessage, VERSION, Welcome,
};
use xenflow_proto::{Change, Digest, FrameDecoder, Identity, Name};

use super::outbox::Outbox;
use super::{BLOCK, Broken, HANDSHAKE, HEARTBEAT, Lost, SILENCE, next, write};
use crate::chain::Chain;
use crate::migration::punts::{Bounds, Counters, Relay};
use crate::tls;

/// Messages of tables that wait behind the window.
const TABLES: usize = 4;
/// Frames that wait for the task; it takes them at once.
const PUNTS: usize = 256;
const EVENTS: usize = 16;
/// Between two tries: the first pause, doubled up to the last.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// What is connected, and why.
#[derive(Debug, Clone)]
pub struct Dial {
    /// This node.
    pub own: Name,
    /// The destination.
    pub node: Name,
    /// Where it listens, as its row of `Node_Status` says.
    pub address: SocketAddr,
    /// Number of the migration.
    pub migration: u64,
    /// The router that moves.
    pub router: Name,
}

/// Something of the router's tables to say, with a mark that comes back once the destination has confirmed it.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// The caller's; greater ones for what is said later.
    pub mark: u64,
    /// What.
    pub tables: Tables,
}

/// See [`SourceMessage`].
#[derive(Debug, PartialEq, Eq)]
pub enum Tables {
    /// The tables of this boot of the guest follow, whole.
    Snapshot([u8; 16]),
    /// Those stand that the destination has said it holds.
    Resume,
    /// Changes, in order, as many as there are.
    Changes(Vec<Change>),
    /// The tables are whole; their digest.
    End(Digest),
}

/// Something about frames for the guest.
#[derive(Debug)]
pub enum Relayed {
    /// One of them.
    Frame(Punt),
    /// No more come.
    EndMark,
    /// The guest is here again: those that it is not known to have come back, in order.
    TakeBack(oneshot::Sender<Vec<Punt>>),
}

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// A connection is up.
    Connected {
        /// The tables that the destination holds, whoever told them.
        held: Option<Held>,
        /// What was said of tables goes on where it was; otherwise they are to be begun again.
        goes_on: bool,
    },
    /// The destination has done something.
    Confirmed(Confirmed),
    /// The destination refuses the connection. It is tried again.
    Refused {
        /// For programs.
        reason: RefusalReason,
        /// For people.
        detail: String,
    },
    /// There is no connection, or none any more. It is tried again.
    Broken(Failure),
}

/// What the destination has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// Its switch has all tables that were said up to this mark.
    Tables {
        /// See [`Said::mark`].
        mark: u64,
    },
    /// It has the whole of the tables.
    Staged {
        /// Of them.
        digest: Digest,
    },
    /// The guest has, or has to do without, the frames up to this number.
    Punts {
        /// From 1, in the order in which they were said.
        up_to: u64,
    },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// TCP.
    #[error("node {node} cannot be reached at {address}")]
    Unreachable {
        /// The destination.
        node: Name,
        /// Where it should be.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS, or somebody else is there.
    #[error(transparent)]
    Dial(#[from] tls::DialError),
    /// The first message is another one.
    #[error("node {0} does not begin with a welcome")]
    NotWelcome(Name),
    /// The first message says something else than was agreed.
    #[error("the welcome is of node {node} for version {version}, not of {wanted} for {VERSION}")]
    Welcome {
        /// Who it says it is.
        node: Name,
        /// The version it has chosen.
        version: u32,
        /// Who it should be.
        wanted: Name,
    },
    /// It refuses.
    #[error("it refuses ({reason:?}): {detail}")]
    Refused {
        /// For programs.
        reason: RefusalReason,
        /// For people.
        detail: String,
    },
    /// It broke a rule.
    #[error("it breaks a rule")]
    Rule(#[from] Broken),
    /// Its certificate counts no more.
    #[error(transparent)]
    Distrusted(#[from] tls::Distrusted),
    /// The connection.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// The caller's end. The task ends when it is dropped.
#[derive(Debug)]
pub struct Outgoing {
    /// What is to be said of tables.
    pub tables: mpsc::Sender<Said>,
    /// Frames for the guest.
    pub punts: mpsc::Sender<Relayed>,
    /// What its packets have in the datapath: not kept for another connection, nor for who takes none.
    pub megaflows: mpsc::Sender<Vec<Megaflow>>,
    /// What happens.
    pub events: mpsc::Receiver<Event>,
    /// What has become of frames for the guest.
    pub counters: watch::Receiver<Counters>,
}

impl Outgoing {
    /// Begins a stream about one migration.
    ///
    /// # Errors
    /// If the host has no random numbers.
    pub fn start(dial: Dial, access: tls::Access) -> Result<Self, rustls::Error> {
        let mut stream = [0; 8];
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut stream)
            .map_err(rustls::Error::from)?;
        let (tables, tables_said) = mpsc::channel(TABLES);
        let (punts, punts_said) = mpsc::channel(PUNTS);
        let (megaflows, flows_said) = mpsc::channel(1);
        let (told, events) = mpsc::channel(EVENTS);
        let (counted, counters) = watch::channel(Counters::default());
        let link = Link {
            outbox: Outbox::new(Relay::new(Bounds::KEPT)),
            tables: tables_said,
            punts: punts_said,
            megaflows: flows_said,
            takes_megaflows: false,
            events: told,
            pending: VecDeque::new(),
            counted,
            begin: Instant::now(),
        };
        let span =
            tracing::info_span!("stream", migration = dial.migration, router = %dial.router, to = %dial.node);
        let task = run(link, dial, u64::from_be_bytes(stream), access);
        tokio::spawn(tracing::Instrument::instrument(task, span));
        Ok(Self { tables, punts, megaflows, events, counters })
    }
}

/// Nobody holds the other end any more.
struct Dropped;

/// Why a connection ended.
enum End {
    Dropped,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Lost> for End {
    fn from(lost: Lost) -> Self {
        Self::Failed(lost.into())
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        Self::Failed(broken.into())
    }
}

/// The task's end of everything.
struct Link {
    outbox: Outbox,
    tables: mpsc::Receiver<Said>,
    punts: mpsc::Receiver<Relayed>,
    megaflows: mpsc::Receiver<Vec<Megaflow>>,
    /// The destination does.
    takes_megaflows: bool,
    events: mpsc::Sender<Event>,
    /// Events that nobody has taken yet: four at most.
    pending: VecDeque<Event>,
    counted: watch::Sender<Counters>,
    begin: Instant,
}

/// A connection whose destination has said welcome.
struct Connected {
    stream: TlsStream<TcpStream>,
    decoder: FrameDecoder,
    welcome: Welcome,
    peer: tls::Peer,
}

async fn run(mut link: Link, dial: Dial, stream: u64, access: tls::Access) {
    let mut pause = Duration::ZERO;
    let mut told = String::new();
    loop {
        let connecting = async {
            sleep(pause).await;
            connect(&dial, stream, &access).await
        };
        let end = match link.wait(connecting).await {
            Err(Dropped) => End::Dropped,
            Ok(Err(failure)) => End::Failed(failure),
            Ok(Ok(connected)) => {
                (pause, told) = (Duration::ZERO, String::new());
                tracing::info!(address = %dial.address, "connected");
                link.serve(connected, &Identity::Node(dial.node.clone())).await
            }
        };
        let End::Failed(failure) = end else { return };
        let words = Chain(&failure).to_string();
        // One line for each reason, not for each try.
        if words != told {
            tracing::warn!(reason = words, "no connection to the destination; it is tried again");
            told = words;
        }
        link.put(match failure {
            Failure::Refused { reason, detail } => Event::Refused { reason, detail },
            Failure::Unreachable { .. }
            | Failure::Dial(_)
            | Failure::NotWelcome(_)
            | Failure::Welcome { .. }
            | Failure::Rule(_)
            | Failure::Distrusted(_)
            | Failure::Lost(_) => Event::Broken(failure),
        });
        pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
    }
}

/// A connection, its handshake, and the introduction.
async fn connect(dial: &Dial, stream: u64, access: &tls::Access) -> Result<Connected, Failure> {
    let Dial { own, node, address, migration, router } = dial.clone();
    let unreachable = |source| Failure::Unreachable { node: node.clone(), address, source };
    let tcp = timeout(HANDSHAKE, TcpStream::connect(address)).await;
    let tcp = tcp.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unreachable)?;
    let _ = tcp.set_nodelay(true);
    let (mut tls, peer) = tls::dial(access.clone().now(), tcp, &node, HANDSHAKE).await?;
    let agent = concat!("xenflow-dom0 ", env!("CARGO_PKG_VERSION")).to_owned();
    let hello = Hello { versions: vec![VERSION], node: own, migration, router, stream, agent };
    let mut out = BytesMut::new();
    SourceMessage::Hello(hello).encode(&mut out);
    write(&mut tls, &mut out).await?;
    let mut decoder = FrameDecoder::new(MAX_FRAME);
    let first = async {
        loop {
            // What says that the other end is there is no answer yet.
            let message = next(&mut tls, &mut decoder, DestinationMessage::decode).await?;
            if !matches!(message, DestinationMessage::Ping(_) | DestinationMessage::Pong(_)) {
                return Ok::<_, Lost>(message);
            }
        }
    };
    let welcome = match timeout(2 * HANDSHAKE, first).await.map_err(|_| Lost::Silent)?? {
        DestinationMessage::Welcome(welcome) => welcome,
        DestinationMessage::Refusal { reason, detail } => return Err(Failure::Refused { reason, detail }),
        DestinationMessage::Ack(_)
        | DestinationMessage::Staged { .. }
        | DestinationMessage::Given(_)
        | DestinationMessage::Ping(_)
        | DestinationMessage::Pong(_) => return Err(Failure::NotWelcome(node)),
    };
    if welcome.node != node || welcome.version != VERSION {
        return Err(Failure::Welcome { node: welcome.node, version: welcome.version, wanted: node });
    }
    Ok(Connected { stream: tls, decoder, welcome, peer })
}

impl Link {
    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Of how the connection is, and of each thing that is confirmed, only the newest waits.
    fn put(&mut self, event: Event) {
        let is_older = |old: &Event| match (old, &event) {
            (Event::Confirmed(old), Event::Confirmed(new)) => discriminant(old) == discriminant(new),
            (Event::Confirmed(_), _) | (_, Event::Confirmed(_)) => false,
            _ => true,
        };
        self.pending.retain(|old| !is_older(old));
        self.pending.push_back(event);
    }

    fn take(&mut self, said: Option<Relayed>) -> Result<(), Dropped> {
        let now = self.now();
        match said.ok_or(Dropped)? {
            // What is lost is counted.
            Relayed::Frame(punt) => _ = self.outbox.relay.push(punt, now),
            Relayed::EndMark => self.outbox.relay.end(),
            Relayed::TakeBack(reply) => _ = reply.send(self.outbox.relay.take_back(now)),
        }
        self.count();
        Ok(())
    }

    fn count(&self) {
        let now = self.outbox.relay.counters();
        self.counted.send_if_modified(|before| std::mem::replace(before, now) != now);
    }

    /// Waits for something. Frames for the guest are taken meanwhile, and what has happened is told.
    async fn wait<T>(&mut self, something: impl Future<Output = T>) -> Result<T, Dropped> {
        tokio::pin!(something);
        let events = self.events.clone();
        loop {
            tokio::select! {
                done = &mut something => return Ok(done),
                said = self.punts.recv() => self.take(said)?,
                room = events.reserve(), if !self.pending.is_empty() => {
                    let Some(event) = self.pending.pop_front() else { continue };
                    room.map_err(|_| Dropped)?.send(event);
                }
                () = events.closed() => return Err(Dropped),
            }
        }
    }

    async fn serve(&mut self, connected: Connected, node: &Identity) -> End {
        let Connected { mut stream, decoder, welcome, peer } = connected;
        let goes_on = match self.outbox.connected(&welcome) {
            Ok(goes_on) => goes_on,
            Err(broken) => return broken.into(),
        };
        self.takes_megaflows = welcome.megaflows;
        self.put(Event::Connected { held: welcome.held, goes_on });
        let end = match self.converse(&mut stream, decoder, peer, node).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let _ = timeout(Duration::from_secs(1), stream.shutdown()).await;
        end
    }

    /// Reading and writing go on side by side, and frames for the guest are taken whatever either does.
    async fn converse(
        &mut self,
        stream: &mut TlsStream<TcpStream>,
        mut decoder: FrameDecoder,
        mut peer: tls::Peer,
        node: &Identity,
    ) -> Result<std::convert::Infallible, End> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut out = BytesMut::with_capacity(2 * BLOCK);
        let mut is_flushed = true;
        let (mut heard, mut wrote) = (Instant::now(), Instant::now());
        let distrusted = peer.host_distrusted(node);
        tokio::pin!(distrusted);
        let events = self.events.clone();
        loop {
            let now = self.now();
            self.outbox.fill(&mut out, now);
            self.count();
            tokio::select! {
                message = next(&mut reader, &mut decoder, DestinationMessage::decode) => {
                    heard = Instant::now();
                    let message = message?;
                    // One that does not read gets no answers either: they would pile up.
                    if let DestinationMessage::Ping(token) = &message
                        && out.len() < BLOCK
                    {
                        SourceMessage::Pong(*token).encode(&mut out);
                    }
                    if let Some(confirmed) = self.outbox.hear(&message)? {
                        self.put(Event::Confirmed(confirmed));
                    }
                    if let DestinationMessage::Refusal { reason, detail } = message {
                        return Err(Failure::Refused { reason, detail }.into());
                    }
                }
                done = advance(&mut writer, &mut out), if !out.is_empty() || !is_flushed => {
                    is_flushed = done.map_err(Lost::Io)?;
                    wrote = Instant::now();
                }
                () = sleep_until(wrote + HEARTBEAT), if out.is_empty() => {
                    SourceMessage::Ping(0).encode(&mut out);
                }
                () = sleep_until(heard + SILENCE) => return Err(Lost::Silent.into()),
                said = self.tables.recv(), if self.outbox.has_room() => {
                    let Some(Said { mark, tables }) = said else { return Err(End::Dropped) };
                    self.outbox.say(mark, tables);
                }
                said = self.punts.recv() => self.take(said).map_err(|Dropped| End::Dropped)?,
                Some(flows) = self.megaflows.recv(), if out.len() < BLOCK => {
                    if self.takes_megaflows {
                        SourceMessage::Megaflows(flows).encode(&mut out);
                    }
                }
                room = events.reserve(), if !self.pending.is_empty() => {
                    let Some(event) = self.pending.pop_front() else { continue };
                    room.map_err(|_| End::Dropped)?.send(event);
                }
                gone = &mut distrusted => return Err(Failure::from(gone).into()),
            }
        }
    }
}

/// Writes some of what there is, or sees to it that all that was written is on its way: then `true`. Cancel safe.
async fn advance(writer: &mut (impl AsyncWrite + Unpin), out: &mut BytesMut) -> io::Result<bool> {
    if out.is_empty() {
        writer.flush().await?;
        return Ok(true);
    }
    writer.write_buf(out).await?;
    Ok(false)
}
