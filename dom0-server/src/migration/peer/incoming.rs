//! The destination's end: accepts sources, does the handshakes, and turns frames into messages for whoever drives it, and back.
//! What is allowed is decided there: [`Opened`] says who wants what, and is answered by a welcome or a refusal.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use xenflow_proto::frame::{FrameError, MAX_FRAME, MAX_HELLO};
use xenflow_proto::message::MAX_CHANGES;
use xenflow_proto::node::{DestinationMessage, Held, Hello, RefusalReason, SourceMessage, VERSION, Welcome};
use xenflow_proto::{Digest, FrameDecoder, Identity, Name, Seq};

use super::order::Order;
use super::{Broken, HANDSHAKE, HEARTBEAT, Lost, SILENCE, WINDOW, next, write};
use crate::chain::Chain;
use crate::guest::limits::{HANDSHAKES, HANDSHAKES_RATE, Handshake, Limit, Limits};
use crate::tls;

/// Messages of one connection that whoever drives this has not dealt with: the next waits in its connection.
const AHEAD: usize = 2;
/// Answers that wait for a source which does not read; one more ends its connection.
const ANSWERS: usize = 256;

/// A connection, for as long as the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What happens with connections. All of one connection come in order.
#[derive(Debug)]
pub enum Event {
    /// A source has introduced itself, and waits for its answer.
    Opened(Opened),
    /// It has said something that keeps the rules.
    Said(ConnectionId, SourceMessage, Taken),
    /// A connection that was opened has ended.
    Closed(ConnectionId),
}

/// A source that has introduced itself.
#[derive(Debug)]
pub struct Opened {
    /// Its connection.
    pub id: ConnectionId,
    /// The node that its certificate is of, and that it says it is.
    pub node: Name,
    /// What it wants.
    pub hello: Hello,
    /// The way to answer. The connection ends when this is dropped.
    pub answers: Answers,
}

/// Held for as long as a message is being dealt with; then the connection may bring another one.
#[derive(Debug)]
pub struct Taken {
    _place: OwnedSemaphorePermit,
}

/// What is said to a source: [`Answer::Welcome`] or [`Answer::Refuse`] first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may speak.
    Welcome(Standing),
    /// See [`DestinationMessage::Ack`].
    Ack(Seq),
    /// See [`DestinationMessage::Staged`].
    Staged {
        /// Of the `SnapshotEnd`.
        seq: Seq,
        /// Of the tables.
        digest: Digest,
    },
    /// See [`DestinationMessage::Given`].
    Given(u64),
    /// The last thing said.
    Refuse(RefusalReason, String),
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The message of tables that is wanted next, from 1.
    pub next_seq: Seq,
    /// The punt that is wanted next, from 1: as [`crate::migration::punts::Keeper::connected`] says.
    pub next_punt: u64,
    /// The router's tables that are held.
    pub held: Option<Held>,
}

impl Standing {
    /// Of a stream that nothing is known of.
    pub const NEW: Self = Self { next_seq: Seq(1), next_punt: 1, held: None };
}

impl From<Standing> for Order {
    fn from(Standing { next_seq, next_punt, held: _ }: Standing) -> Self {
        Self { next_seq: next_seq.0.max(1), next_punt: next_punt.max(1), has_ended: false }
    }
}

/// The way to answer one source.
#[derive(Debug)]
pub struct Answers(Option<mpsc::Sender<Answer>>);

impl Answers {
    /// Says something. A source that does not read what it was told loses its connection.
    pub fn say(&mut self, answer: Answer) {
        let is_last = matches!(answer, Answer::Refuse(..));
        let is_taken = self.0.as_ref().is_some_and(|answers| answers.try_send(answer).is_ok());
        if is_last || !is_taken {
            self.0 = None;
        }
    }
}

/// Accepts sources until the task is aborted; `node` is this one.
pub async fn serve(
    listener: TcpListener,
    node: Name,
    access: tls::Access,
    events: mpsc::Sender<Event>,
) -> Infallible {
    let door = Door { node, access, events, limits: Limits::default(), last: Arc::default() };
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: asking again at once would only burn the processor.
                tracing::warn!(%error, "a connection of a node could not be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handshake = match door.limits.knock(peer.ip(), Instant::now()) {
            Ok(handshake) => handshake,
            Err(limit) => {
                let end = if limit == Limit::Hasty { End::Hasty } else { End::Crowded };
                end.log(peer, None, &door.limits);
                continue;
            }
        };
        let door = door.clone();
        tokio::spawn(async move {
            let mut who = None;
            let (end, stream) = door.connection(stream, peer, handshake, &mut who).await;
            end.log(peer, who.as_ref(), &door.limits);
            let Some((reason, detail)) = end.refusal() else { return };
            if let (Some(who), RefusalReason::Protocol | RefusalReason::Limit) = (&who, reason) {
                door.limits.broke(who, Instant::now());
            }
            if let Some(mut stream) = stream {
                say_why(&mut stream, reason, detail).await;
            }
        });
    }
}

/// Why a connection ended; who it was stands beside it.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Tls(#[from] tls::AcceptError),
    #[error(transparent)]
    Distrusted(#[from] tls::Distrusted),
    #[error("{0} is no node")]
    NotNode(Identity),
    #[error("no hello within {} s", HANDSHAKE.as_secs())]
    NoHello,
    #[error("the first message is no hello")]
    NotHello,
    #[error("it says it is node {said}, but its certificate is of node {node}")]
    OtherNode { said: Name, node: Name },
    #[error("it speaks versions {0:?}, not {VERSION}")]
    Version(Vec<u32>),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("refused ({reason:?}): {detail}")]
    Refused { reason: RefusalReason, detail: String },
    #[error("{HANDSHAKES} connections of this address have not introduced themselves, and no more may")]
    Crowded,
    #[error("more than {HANDSHAKES_RATE} connections a second of this address")]
    Hasty,
    #[error("this daemon has not answered within {} s", HANDSHAKE.as_secs())]
    Unanswered,
    #[error("this daemon is done with it")]
    Done,
}

impl End {
    /// The one line that a connection leaves, unless its address leaves too many.
    fn log(&self, peer: SocketAddr, who: Option<&Identity>, limits: &Limits) {
        let Some(unlogged) = limits.line(peer.ip(), Instant::now()) else { return };
        if unlogged > 0 {
            tracing::warn!(%peer, unlogged, "more connections of nodes ended than lines were written");
        }
        let (who, reason) = (who.map(tracing::field::display), Chain(self));
        match self {
            Self::Lost(Lost::Closed) | Self::Done => {
                tracing::info!(%peer, who, %reason, "connection of a node ended");
            }
            Self::Tls(_)
            | Self::Distrusted(_)
            | Self::NotNode(_)
            | Self::NoHello
            | Self::NotHello
            | Self::OtherNode { .. }
            | Self::Version(_)
            | Self::Lost(_)
            | Self::Broken(_)
            | Self::Refused { .. }
            | Self::Crowded
            | Self::Hasty
            | Self::Unanswered => tracing::warn!(%peer, who, %reason, "connection of a node ended"),
        }
    }

    /// What the peer is told.
    fn refusal(&self) -> Option<(RefusalReason, String)> {
        let reason = match self {
            Self::Refused { reason, detail } => return Some((*reason, detail.clone())),
            Self::Distrusted(_) | Self::NotNode(_) | Self::OtherNode { .. } => RefusalReason::Identity,
            Self::Version(_) => RefusalReason::Version,
            Self::Lost(Lost::Frame(FrameError::TooLong { .. })) | Self::Broken(Broken::Window { .. }) => {
                RefusalReason::Limit
            }
            Self::NotHello | Self::Lost(Lost::Frame(_) | Lost::Message(_)) | Self::Broken(_) => {
                RefusalReason::Protocol
            }
            Self::Unanswered => RefusalReason::Other,
            Self::Done => RefusalReason::Shutdown,
            Self::Tls(_)
            | Self::NoHello
            | Self::Crowded
            | Self::Hasty
            | Self::Lost(Lost::Closed | Lost::Truncated | Lost::Io(_) | Lost::Silent | Lost::Slow) => {
                return None;
            }
        };
        Some((reason, Chain(self).to_string()))
    }
}

/// What all connections share.
#[derive(Debug, Clone)]
struct Door {
    node: Name,
    access: tls::Access,
    events: mpsc::Sender<Event>,
    limits: Limits,
    last: Arc<AtomicU64>,
}

impl Door {
    /// A connection, from the first byte to its end. The stream comes back if the peer may still be told something.
    async fn connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        handshake: Handshake,
        who: &mut Option<Identity>,
    ) -> (End, Option<TlsStream<TcpStream>>) {
        let _ = stream.set_nodelay(true);
        let current = self.access.clone().now();
        let (mut stream, identity) = match tls::accept(current.config(), stream, peer, HANDSHAKE).await {
            Ok(accepted) => accepted,
            Err(error) => return (error.into(), None),
        };
        *who = Some(identity.clone());
        let trust = current.peer(stream.get_ref().1.peer_certificates());
        let end = match self.introduced(&mut stream, &identity, handshake).await {
            Ok((node, hello, decoder)) => {
                self.converse(&mut stream, decoder, node, hello, &identity, trust).await
            }
            Err(end) => end,
        };
        (end, Some(stream))
    }

    /// Who it is, and what it wants.
    async fn introduced(
        &self,
        stream: &mut TlsStream<TcpStream>,
        identity: &Identity,
        handshake: Handshake,
    ) -> Result<(Name, Hello, FrameDecoder), End> {
        let Identity::Node(node) = identity else { return Err(End::NotNode(identity.clone())) };
        let mut decoder = FrameDecoder::new(MAX_HELLO);
        let first = timeout(HANDSHAKE, next(stream, &mut decoder, SourceMessage::decode)).await;
        // Whoever broke a rule waits, and takes up one of its address's places meanwhile.
        sleep(self.limits.pause(identity, Instant::now())).await;
        drop(handshake);
        let SourceMessage::Hello(hello) = first.map_err(|_| End::NoHello)?? else {
            return Err(End::NotHello);
        };
        if hello.node != *node {
            return Err(End::OtherNode { said: hello.node, node: node.clone() });
        }
        if !hello.versions.contains(&VERSION) {
            return Err(End::Version(hello.versions));
        }
        decoder.set_limit(MAX_FRAME);
        Ok((node.clone(), hello, decoder))
    }

    async fn converse(
        &self,
        stream: &mut TlsStream<TcpStream>,
        decoder: FrameDecoder,
        node: Name,
        hello: Hello,
        identity: &Identity,
        trust: tls::Peer,
    ) -> End {
        let id = ConnectionId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, answers) = mpsc::channel(ANSWERS);
        let (migration, router, agent) = (hello.migration, hello.router.clone(), hello.agent.clone());
        tracing::info!(%node, migration, %router, agent, "a node has connected");
        let opened = Opened { id, node, hello, answers: Answers(Some(sender)) };
        if self.events.send(Event::Opened(opened)).await.is_err() {
            return End::Done;
        }
        let end = self.answered(stream, decoder, id, answers, identity, trust).await;
        let _ = self.events.send(Event::Closed(id)).await;
        match end {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn answered(
        &self,
        stream: &mut TlsStream<TcpStream>,
        decoder: FrameDecoder,
        id: ConnectionId,
        mut answers: mpsc::Receiver<Answer>,
        identity: &Identity,
        mut trust: tls::Peer,
    ) -> Result<Infallible, End> {
        let standing = match timeout(HANDSHAKE, answers.recv()).await.map_err(|_| End::Unanswered)? {
            Some(Answer::Welcome(standing)) => standing,
            Some(Answer::Refuse(reason, detail)) => return Err(End::Refused { reason, detail }),
            Some(Answer::Ack(_) | Answer::Staged { .. } | Answer::Given(_)) => return Err(End::Unanswered),
            None => return Err(End::Done),
        };
        let mut out = BytesMut::new();
        self.welcome(standing).encode(&mut out);
        write(stream, &mut out).await?;
        // A stream that goes on may still be owed acknowledgements; it is let have a window more.
        let order = Order::from(standing);
        let acked = AtomicU64::new(order.next_seq - 1);
        let (reader, writer) = tokio::io::split(stream);
        let (pongs, asked) = mpsc::channel(16);
        // Reading and writing go on side by side: a source that does not read must not stop being read.
        tokio::select! {
            end = self.hear(reader, decoder, id, order, &acked, pongs) => end,
            end = speak(writer, answers, &acked, asked) => end,
            gone = trust.distrusted(identity) => Err(gone.into()),
        }
    }

    /// Passes on what keeps the rules.
    async fn hear(
        &self,
        mut reader: impl AsyncRead + Unpin,
        mut decoder: FrameDecoder,
        id: ConnectionId,
        mut order: Order,
        acked: &AtomicU64,
        pongs: mpsc::Sender<u64>,
    ) -> Result<Infallible, End> {
        let places = Arc::new(Semaphore::new(AHEAD));
        loop {
            let message = timeout(SILENCE, next(&mut reader, &mut decoder, SourceMessage::decode)).await;
            let message = message.map_err(|_| Lost::Silent)??;
            order.take(&message, acked.load(Ordering::Relaxed))?;
            match message {
                SourceMessage::Ping(token) => _ = pongs.try_send(token),
                SourceMessage::Pong(_) => {}
                SourceMessage::Hello(_)
                | SourceMessage::SnapshotBegin { .. }
                | SourceMessage::Resume(_)
                | SourceMessage::Changes { .. }
                | SourceMessage::SnapshotEnd { .. }
                | SourceMessage::Punts { .. }
                | SourceMessage::EndMark(_)
                | SourceMessage::Megaflows(_) => {
                    let place = places.clone().acquire_owned().await.map_err(|_| End::Done)?;
                    let said = Event::Said(id, message, Taken { _place: place });
                    self.events.send(said).await.map_err(|_| End::Done)?;
                }
            }
        }
    }

    fn welcome(&self, standing: Standing) -> DestinationMessage {
        let Standing { next_seq, next_punt, held } = standing;
        DestinationMessage::Welcome(Welcome {
            version: VERSION,
            node: self.node.clone(),
            max_frame_bytes: u32::try_from(MAX_FRAME).unwrap_or(u32::MAX),
            max_changes: u32::try_from(MAX_CHANGES).unwrap_or(u32::MAX),
            window: WINDOW,
            next_seq,
            next_punt,
            held,
            megaflows: true,
        })
    }
}

/// Says what there is to say, and that this end is there.
async fn speak(
    mut writer: impl AsyncWrite + Unpin,
    mut answers: mpsc::Receiver<Answer>,
    acked: &AtomicU64,
    mut asked: mpsc::Receiver<u64>,
) -> Result<Infallible, End> {
    let mut out = BytesMut::new();
    loop {
        let message = tokio::select! {
            answer = answers.recv() => match answer.ok_or(End::Done)? {
                Answer::Ack(seq) => {
                    acked.fetch_max(seq.0, Ordering::Relaxed);
                    DestinationMessage::Ack(seq)
                }
                Answer::Staged { seq, digest } => DestinationMessage::Staged { seq, digest },
                Answer::Given(punt) => DestinationMessage::Given(punt),
                Answer::Refuse(reason, detail) => return Err(End::Refused { reason, detail }),
                // It was said.
                Answer::Welcome(_) => continue,
            },
            Some(token) = asked.recv() => DestinationMessage::Pong(token),
            () = sleep(HEARTBEAT) => DestinationMessage::Ping(0),
        };
        message.encode(&mut out);
        write(&mut writer, &mut out).await?;
    }
}

/// Tells the peer why its connection ends.
async fn say_why(stream: &mut TlsStream<TcpStream>, reason: RefusalReason, detail: String) {
    let mut out = BytesMut::new();
    DestinationMessage::Refusal { reason, detail }.encode(&mut out);
    // One that does not read gets nothing; the connection is over either way.
    let _ = timeout(Duration::from_secs(1), async {
        write(stream, &mut out).await?;
        stream.shutdown().await.map_err(Lost::Io)?;
        // Closing with something unread resets the connection, and the peer might not see what it was told.
        let mut rest = [0; 4096];
        while stream.get_mut().0.read(&mut rest).await.map_err(Lost::Io)? > 0 {}
        Ok::<_, Lost>(())
    })
    .await;
}
