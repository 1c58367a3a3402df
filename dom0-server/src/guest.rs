//! Guests' connections: accepts them on the control network, does the handshakes, turns frames into messages for
//! the core and back. I/O only; what a guest may do is decided in `core`, what it may cost in `limits`.

pub mod limits;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use xenflow_proto::control::{HOST_IPV4, HOST_IPV6, HOST_PORT_NAME, PORT};
use xenflow_proto::frame::{FrameError, MAX_FRAME, MAX_HELLO};
use xenflow_proto::message::{DecodeError, Hello, RefusalReason};
use xenflow_proto::{FrameDecoder, GuestMessage, HostMessage, Identity};

use crate::chain::Chain;
use crate::core::{Event, SessionId};
use crate::guest::limits::{HANDSHAKES, HANDSHAKES_RATE, Handshake, Hits, Limit, Limits};
use crate::tls;

/// Time for the handshake, and again for the first message.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// While a guest's next message is not read, it hears so often that the host is there: it would look for another.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// After so long a silence the host asks whether the guest is there; after as much again it is not.
const SILENCE: Duration = Duration::from_secs(15);
/// Messages that wait for a guest which does not read; one more ends its session.
const QUEUE: usize = 1024;
/// Keys in all of these messages together, of some hundred bytes each.
const QUEUED_KEYS: usize = 1 << 16;

/// So many bytes are written at a time.
const BLOCK: usize = 1 << 16;

/// What the driver sends to a session's task.
#[derive(Debug)]
pub enum Tell {
    /// A message.
    Message(HostMessage),
    /// A last message; then the connection is closed.
    Refuse(RefusalReason, String),
}

impl Tell {
    /// The core is to know when it is out.
    fn has_answers(&self) -> bool {
        matches!(self, Self::Message(HostMessage::Ack { .. })) && self.keys() > 0
    }

    /// How many keys it carries.
    fn keys(&self) -> usize {
        match self {
            Self::Message(HostMessage::Ack { rejected, accepted, .. }) => rejected.len() + accepted.len(),
            Self::Message(HostMessage::InUse(neighbors)) => neighbors.len(),
            Self::Message(_) | Self::Refuse(..) => 0,
        }
    }
}

/// What the driver and a session's task share.
#[derive(Debug, Default)]
struct Shared {
    /// Keys in messages that wait.
    queued_keys: AtomicUsize,
    /// The core is done with the session's last message.
    taken: Notify,
}

/// The way to a session's task.
type Door = (mpsc::Sender<Tell>, Arc<Shared>);

/// The sessions that live.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    open: Arc<Mutex<HashMap<SessionId, Door>>>,
    last: Arc<AtomicU64>,
    limits: Limits,
}

impl Sessions {
    /// None yet; `change_rate` is how many changes a second each router may send, 0: as many as it likes.
    #[must_use]
    pub fn new(change_rate: u32) -> Self {
        Self { limits: Limits::new(change_rate), ..Self::default() }
    }

    /// Passes something on to a session. One that does not take it is ended.
    pub fn tell(&self, id: SessionId, what: Tell) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = matches!(what, Tell::Refuse(..));
        if let Some((sender, shared)) = open.get(&id) {
            let keys = what.keys();
            let waiting = shared.queued_keys.fetch_add(keys, Ordering::Relaxed);
            let fits = waiting == 0 || waiting + keys <= QUEUED_KEYS;
            if !fits || sender.try_send(what).is_err() || ends {
                // Its task ends when the channel does.
                open.remove(&id);
            }
        }
    }

    /// The core is done with a session's last message: it may send the next.
    pub fn taken(&self, id: SessionId) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, shared)) = open.get(&id) {
            shared.taken.notify_one();
        }
    }

    /// The limits that guests ran into since the last call.
    #[must_use]
    pub fn take_hits(&self) -> Hits {
        self.limits.take_hits()
    }

    fn open(&self) -> Opened {
        let id = SessionId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, tells) = mpsc::channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(id, (sender, shared.clone()));
        Opened { id, tells, shared }
    }

    fn forget(&self, id: SessionId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn are_several(&self) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len() > 1
    }
}

/// A session's own end.
struct Opened {
    id: SessionId,
    tells: mpsc::Receiver<Tell>,
    shared: Arc<Shared>,
}

/// Listens on the control port of that number until the task is aborted.
///
/// # Errors
/// If an address cannot be bound.
pub async fn listen(
    ifindex: u32,
    server: tls::Access,
    sessions: Sessions,
    events: mpsc::Sender<Event>,
) -> io::Result<std::convert::Infallible> {
    let v6 = bind(SocketAddrV6::new(HOST_IPV6, PORT, 0, ifindex).into())?;
    let v4 = bind((HOST_IPV4, PORT).into())?;
    tracing::info!(ifindex, port = PORT, "listening for guests on {HOST_PORT_NAME}");
    Ok(serve_all(&v6, &v4, server, sessions, events).await)
}

/// Serves who comes to either of two doors, until the task is aborted.
pub(crate) async fn serve_all(
    v6: &TcpListener,
    v4: &TcpListener,
    server: tls::Access,
    sessions: Sessions,
    events: mpsc::Sender<Event>,
) -> std::convert::Infallible {
    loop {
        let accepted = tokio::select! {
            accepted = v6.accept() => accepted,
            accepted = v4.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: asking again at once would only burn the processor.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handshake = match sessions.limits.knock(peer.ip(), Instant::now()) {
            Ok(handshake) => handshake,
            Err(limit) => {
                let end = if limit == Limit::Hasty { End::Hasty } else { End::Crowded };
                end.log(peer, None, &sessions.limits);
                continue;
            }
        };
        let (server, sessions, events) = (server.clone(), sessions.clone(), events.clone());
        tokio::spawn(async move {
            let mut id = None;
            let (end, stream) = session(stream, peer, server, handshake, &sessions, &events, &mut id).await;
            end.count(&sessions.limits);
            end.log(peer, id, &sessions.limits);
            if let (Some(mut stream), Some((_, reason, detail))) = (stream, end.refusal()) {
                say_why(&mut stream, reason, detail).await;
            }
        });
    }
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // The addresses are link-local: whoever comes by another interface is no guest.
    socket.bind_device(Some(HOST_PORT_NAME.as_bytes()))?;
    socket.bind(addr)?;
    socket.listen(128)
}

/// Why a session ended; the router or the peer is named beside it.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Tls(#[from] tls::AcceptError),
    #[error(transparent)]
    Distrusted(#[from] tls::Distrusted),
    #[error("{router}: no hello within {} s", HANDSHAKE.as_secs())]
    NoHello { router: Identity },
    #[error("{router}: the connection broke")]
    Io {
        router: Identity,
        #[source]
        source: io::Error,
    },
    #[error("{router}: the guest closed the connection")]
    Closed { router: Identity },
    #[error("{router}: the guest closed the connection in the middle of a message")]
    Truncated { router: Identity },
    #[error("{router}: refused frame")]
    Frame {
        router: Identity,
        #[source]
        source: FrameError,
    },
    #[error("{router}: refused message")]
    Message {
        router: Identity,
        #[source]
        source: DecodeError,
    },
    #[error("{router}: the first message is no hello")]
    NotHello { router: Identity },
    #[error("{router}: silent for {} s", 2 * SILENCE.as_secs())]
    Silent { router: Identity },
    #[error("{router}: does not read what it is told")]
    Slow { router: Identity },
    #[error("{router}: refused ({reason:?}): {detail}")]
    Refused { router: Identity, reason: RefusalReason, detail: String },
    #[error("{HANDSHAKES} connections of this address have no session yet, and no more may")]
    Crowded,
    #[error("more than {HANDSHAKES_RATE} connections a second of this address")]
    Hasty,
    #[error("the daemon stops")]
    Stopped,
}

impl End {
    /// The one line that a connection leaves, unless its address leaves too many. That a guest leaves is nothing to
    /// look after.
    fn log(&self, peer: SocketAddr, id: Option<SessionId>, limits: &Limits) {
        let Some(unlogged) = limits.line(peer.ip(), Instant::now()) else { return };
        if unlogged > 0 {
            tracing::warn!(%peer, unlogged, "more connections ended than lines were written");
        }
        let reason = Chain(self);
        let (session, router) = (id.map(|id| id.0), self.router().map(tracing::field::display));
        match (id, self) {
            (Some(_), Self::Closed { .. } | Self::Stopped) => {
                tracing::info!(name: "session-lost", session, router, %peer, %reason, "session ended");
            }
            (Some(_), _) => {
                tracing::warn!(name: "session-lost", session, router, %peer, %reason, "session ended");
            }
            (None, Self::Closed { .. } | Self::Stopped) => {
                tracing::info!(router, %peer, %reason, "session ended");
            }
            (None, _) => {
                tracing::warn!(name: "guest-refused", router, %peer, %reason, "session ended");
            }
        }
    }

    /// Whose session it was, if that was known.
    fn router(&self) -> Option<&Identity> {
        match self {
            Self::NoHello { router }
            | Self::Io { router, .. }
            | Self::Closed { router }
            | Self::Truncated { router }
            | Self::Frame { router, .. }
            | Self::Message { router, .. }
            | Self::NotHello { router }
            | Self::Silent { router }
            | Self::Slow { router }
            | Self::Refused { router, .. } => Some(router),
            Self::Distrusted(gone) => Some(&gone.identity),
            Self::Tls(_) | Self::Crowded | Self::Hasty | Self::Stopped => None,
        }
    }

    /// A broken rule keeps the router waiting; that and other limits are counted.
    fn count(&self, limits: &Limits) {
        if let Self::Slow { router } = self {
            limits.hit(Some(router), Limit::Slow);
        }
        if let Some((router, RefusalReason::Protocol | RefusalReason::Limit, _)) = self.refusal() {
            limits.broke(router, Instant::now());
        }
    }

    /// What the guest is told, if the session ended because of what the guest did or is.
    fn refusal(&self) -> Option<(&Identity, RefusalReason, String)> {
        Some(match self {
            Self::Refused { router, reason, detail } => (router, *reason, detail.clone()),
            Self::Frame { router, source: error @ FrameError::TooLong { .. } } => {
                (router, RefusalReason::Limit, error.to_string())
            }
            Self::Frame { router, source: error @ FrameError::Empty } => {
                (router, RefusalReason::Protocol, error.to_string())
            }
            Self::Message { router, source } => (router, RefusalReason::Protocol, source.to_string()),
            Self::NotHello { router } => {
                (router, RefusalReason::Protocol, "the first message must be hello".to_owned())
            }
            Self::Distrusted(gone) => (&gone.identity, RefusalReason::Identity, Chain(gone).to_string()),
            Self::Tls(_)
            | Self::NoHello { .. }
            | Self::Io { .. }
            | Self::Closed { .. }
            | Self::Truncated { .. }
            | Self::Silent { .. }
            | Self::Slow { .. }
            | Self::Crowded
            | Self::Hasty
            | Self::Stopped => return None,
        })
    }
}

/// A connection, from the first byte to its end; `opened` is the session that came of it. The stream comes back if the guest may still be told something.
async fn session(
    stream: TcpStream,
    peer: SocketAddr,
    server: tls::Access,
    handshake: Handshake,
    sessions: &Sessions,
    events: &mpsc::Sender<Event>,
    opened: &mut Option<SessionId>,
) -> (End, Option<TlsStream<TcpStream>>) {
    let _ = stream.set_nodelay(true);
    let current = server.now();
    let (mut stream, identity) = match tls::accept(current.config(), stream, peer, HANDSHAKE).await {
        Ok(accepted) => accepted,
        Err(error) => return (error.into(), None),
    };
    let trust = current.peer(stream.get_ref().1.peer_certificates());
    let mut decoder = FrameDecoder::new(MAX_HELLO);
    let first = timeout(HANDSHAKE, next_message(&mut stream, &mut decoder, &identity)).await;
    // Whoever broke a rule waits, and takes up one of its address's places meanwhile.
    tokio::time::sleep(sessions.limits.pause(&identity, Instant::now())).await;
    drop(handshake);
    let end = match first {
        Ok(Ok(GuestMessage::Hello(hello))) => {
            decoder.set_limit(MAX_FRAME);
            let guest = Guest { identity, peer: peer.ip(), hello, trust };
            serve(&mut stream, decoder, guest, sessions, events, opened).await
        }
        Ok(Ok(_)) => End::NotHello { router: identity },
        Ok(Err(end)) => end,
        Err(_) => End::NoHello { router: identity },
    };
    (end, Some(stream))
}

/// Reads on until a message is there. Cancel safe: what was read stays in the decoder.
async fn next_message(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
    router: &Identity,
) -> Result<GuestMessage, End> {
    loop {
        let frame = decoder.next_frame().map_err(|source| End::Frame { router: router.clone(), source })?;
        if let Some(frame) = frame {
            let message = GuestMessage::decode(frame);
            return message.map_err(|source| End::Message { router: router.clone(), source });
        }
        match stream.read_buf(decoder.buffer()).await {
            Ok(0) if decoder.is_mid_frame() => return Err(End::Truncated { router: router.clone() }),
            Ok(0) => return Err(End::Closed { router: router.clone() }),
            Ok(_) => {}
            // A guest that is stopped closes without a word of TLS.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let router = router.clone();
                return Err(if decoder.is_mid_frame() {
                    End::Truncated { router }
                } else {
                    End::Closed { router }
                });
            }
            Err(source) => return Err(End::Io { router: router.clone(), source }),
        }
    }
}

/// Whom a session is with.
struct Guest {
    identity: Identity,
    peer: IpAddr,
    hello: Hello,
    trust: tls::Peer,
}

/// One session, from its hello to its end.
async fn serve(
    stream: &mut TlsStream<TcpStream>,
    decoder: FrameDecoder,
    guest: Guest,
    sessions: &Sessions,
    events: &mpsc::Sender<Event>,
    number: &mut Option<SessionId>,
) -> End {
    let Guest { identity, peer, hello, trust } = guest;
    let mut opened = sessions.open();
    let id = opened.id;
    *number = Some(id);
    tracing::info!(name: "session-up", session = id.0, router = %identity, %peer, agent = %hello.agent, "session opened");
    let end = match events.send(Event::Opened(id, identity.clone(), peer, hello)).await {
        Ok(()) => converse(stream, decoder, &mut opened, &identity, trust, sessions, events).await,
        Err(_) => End::Stopped,
    };
    sessions.forget(id);
    let _ = events.send(Event::Closed(id)).await;
    end
}

async fn converse(
    stream: &mut TlsStream<TcpStream>,
    mut decoder: FrameDecoder,
    opened: &mut Opened,
    router: &Identity,
    mut trust: tls::Peer,
    sessions: &Sessions,
    events: &mpsc::Sender<Event>,
) -> End {
    let Opened { id, tells, shared } = opened;
    let (mut reader, mut writer) = tokio::io::split(stream);
    // Reading and writing go on side by side: a guest that does not read must not stop being read.
    let mut renewals = tls::Renewals::new(trust.clone());
    let reading = async {
        let mut asked = false;
        loop {
            match timeout(SILENCE, next_message(&mut reader, &mut decoder, router)).await {
                Ok(Ok(GuestMessage::Renew)) => {
                    asked = false;
                    if let Some(renewed) = renewals.answer(router).await {
                        sessions.tell(*id, Tell::Message(HostMessage::Renewed(renewed)));
                    }
                }
                Ok(Ok(message)) => {
                    asked = false;
                    let changes =
                        if let GuestMessage::Changes { changes, .. } = &message { changes.len() } else { 0 };
                    if events.send(Event::Said(*id, message)).await.is_err() {
                        return End::Stopped;
                    }
                    // One message of each session at a time: who says more waits in its own connection.
                    let held_back = async {
                        shared.taken.notified().await;
                        let others = sessions.are_several();
                        let wait = sessions.limits.charge(router, changes, others, Instant::now());
                        if !wait.is_zero() {
                            tokio::time::sleep(wait).await;
                        }
                    };
                    tokio::pin!(held_back);
                    while timeout(SIGN_OF_LIFE, &mut held_back).await.is_err() {
                        sessions.tell(*id, Tell::Message(HostMessage::Ping(id.0)));
                    }
                }
                Ok(Err(end)) => return end,
                Err(_) if asked => return End::Silent { router: router.clone() },
                Err(_) => {
                    asked = true;
                    if events.send(Event::Silent(*id)).await.is_err() {
                        return End::Stopped;
                    }
                }
            }
        }
    };
    let writing = async {
        let mut out = BytesMut::new();
        loop {
            let mut has_answers = false;
            let Some(tell) = tells.recv().await else { return End::Slow { router: router.clone() } };
            let mut next = Some(tell);
            while let Some(tell) = next {
                shared.queued_keys.fetch_sub(tell.keys(), Ordering::Relaxed);
                has_answers |= tell.has_answers();
                match tell {
                    Tell::Message(message) => message.encode(&mut out),
                    Tell::Refuse(reason, detail) => {
                        return End::Refused { router: router.clone(), reason, detail };
                    }
                }
                // A block at a time: what is encoded is not counted any more.
                next = if out.len() < BLOCK { tells.try_recv().ok() } else { None };
            }
            match timeout(SILENCE, write(&mut writer, &mut out)).await {
                Ok(Ok(())) if has_answers => {
                    if events.send(Event::Told(*id)).await.is_err() {
                        return End::Stopped;
                    }
                }
                Ok(Ok(())) => {}
                Ok(Err(source)) => return End::Io { router: router.clone(), source },
                Err(_) => return End::Slow { router: router.clone() },
            }
        }
    };
    tokio::select! {
        end = reading => end,
        end = writing => end,
        gone = trust.distrusted(router) => gone.into(),
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), out: &mut BytesMut) -> io::Result<()> {
    writer.write_all(out).await?;
    out.clear();
    writer.flush().await
}

/// Tells the guest what it did wrong.
async fn say_why(stream: &mut TlsStream<TcpStream>, reason: RefusalReason, detail: String) {
    let mut out = BytesMut::new();
    HostMessage::Refusal { reason, detail }.encode(&mut out);
    // A guest that does not read gets nothing; the session is over either way.
    let _ = timeout(Duration::from_secs(1), async {
        write(stream, &mut out).await?;
        stream.shutdown().await?;
        // Closing with something unread resets the connection, and the guest might not see what it was told.
        let mut rest = [0; 4096];
        while stream.get_mut().0.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests;
