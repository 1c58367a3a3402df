//! One connection to a server: requests under way, their replies, notifications, and proof of life.
//!
//! A task owns the stream. It answers the server's `echo` at once, also while the owner of the notifications
//! is slow or a large request is being written. Owns no database contents (`monitor`) and never reconnects
//! (`session`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::codec::FramedRead;

use crate::codec::{FrameDecoder, FrameError};
use crate::message::{self, Message, MessageError, RpcError};
use crate::remote::{ConnectError, Io, Remote, Tls, open};

/// Limits and times of a connection.
#[derive(Clone, Debug)]
pub struct Options {
    /// For `ssl:` remotes.
    pub tls: Option<Tls>,
    /// Longest message accepted from the server, in bytes; 256 MiB by default. A monitor's first reply is one
    /// message with all rows.
    pub max_message: usize,
    /// Time to connect, with the TLS handshake; 5 s by default.
    pub connect_timeout: Duration,
    /// After so long without a byte from the server an echo is sent, and after as long again the server is
    /// dead; 10 s by default, `None` switches it off.
    pub probe_interval: Option<Duration>,
    /// Requests without reply at one time; more wait in [`Connection::request`]. 256 by default.
    pub max_in_flight: usize,
    /// Notifications that wait for their owner before the connection stops reading; 256 by default.
    pub max_notifications: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: None,
            max_message: 256 << 20,
            connect_timeout: Duration::from_secs(5),
            probe_interval: Some(Duration::from_secs(10)),
            max_in_flight: 256,
            max_notifications: 256,
        }
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloseReason {
    /// By [`Connection::close`], or every handle was dropped.
    #[error("closed by this client")]
    Local,
    /// The server closed the stream.
    #[error("closed by the server")]
    Remote,
    /// The server did not answer the echo.
    #[error("the server has been silent for {seconds} s")]
    Silent {
        /// Seconds since its last byte.
        seconds: f64,
    },
    /// The stream failed, or carried no messages.
    #[error("the stream is broken")]
    Stream(#[source] Arc<FrameError>),
    /// A message that is none.
    #[error("the server sent a malformed message")]
    Message(#[source] Arc<MessageError>),
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The server answered with an error.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The connection had ended before the request was sent.
    #[error("not sent: not connected")]
    NotSent(#[source] CloseReason),
    /// The session has no connection at the moment; nothing was sent.
    #[error("not sent: the session is disconnected")]
    Disconnected(#[source] crate::session::SessionError),
    /// The connection ended before the reply came: the server may or may not have done it.
    #[error("outcome unknown: the connection was lost before the reply")]
    OutcomeUnknown(#[source] CloseReason),
    /// The parameters cannot be written as JSON.
    #[error("the request cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// The result is not what the method returns.
    #[error("the reply to {method} is malformed")]
    Reply {
        /// The method.
        method: &'static str,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Something the server says unasked.
#[derive(Debug)]
pub struct Notification {
    /// Such as `update2`, `update3`, `locked` or `stolen`.
    pub method: String,
    /// The parameters, unparsed.
    pub params: Box<RawValue>,
}

type Outcome = Result<Option<Box<RawValue>>, RequestError>;

struct Command {
    id: u64,
    text: Vec<u8>,
    reply: oneshot::Sender<Outcome>,
}

/// Handle of a connection; clones share it, and it closes when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    commands: mpsc::Sender<Command>,
    next_id: Arc<std::sync::atomic::AtomicU64>,
    ending: Arc<Notify>,
    closed: watch::Receiver<Option<CloseReason>>,
}

impl Connection {
    /// Connects to one remote. Notifications come out of the receiver; dropping it discards them. Whoever
    /// keeps it must drain it, or replies stop too.
    pub async fn open(
        remote: &Remote,
        options: &Options,
    ) -> Result<(Self, mpsc::Receiver<Notification>), ConnectError> {
        let limit = options.connect_timeout;
        let stream = timeout(limit, open(remote, options.tls.as_ref()))
            .await
            .map_err(|_| ConnectError::Timeout { remote: remote.clone(), seconds: limit.as_secs_f64() })??;
        Ok(Self::start(stream, options))
    }

    /// Connects to the first of the remotes that accepts; the error is that of the last one tried.
    pub async fn open_any(
        remotes: &[Remote],
        options: &Options,
    ) -> Result<Option<(Self, mpsc::Receiver<Notification>)>, ConnectError> {
        let mut last = Ok(None);
        for remote in remotes {
            last = Self::open(remote, options).await.map(Some);
            if last.is_ok() {
                break;
            }
        }
        last
    }

    pub(crate) fn start(stream: Box<dyn Io>, options: &Options) -> (Self, mpsc::Receiver<Notification>) {
        let (commands, command_queue) = mpsc::channel(16);
        let (notify, notifications) = mpsc::channel(options.max_notifications.max(1));
        let (closing, closed) = watch::channel(None);
        let (read, write) = tokio::io::split(stream);
        let now = Instant::now();
        let ending = Arc::new(Notify::new());
        let driver = Driver {
            read: FramedRead::new(read, FrameDecoder::new(options.max_message)),
            write,
            out: BytesMut::new(),
            unflushed: false,
            commands: command_queue,
            ending: ending.clone(),
            pending: BTreeMap::new(),
            notify: Some(notify),
            stalled: None,
            probe: options.probe_interval,
            heard: now,
            probed: false,
            max_in_flight: options.max_in_flight.max(1),
        };
        tokio::spawn(driver.run(closing));
        (Self { commands, next_id: Arc::default(), ending, closed }, notifications)
    }

    /// Sends any request and waits for its result. Requests are sent in the order of the calls' first polls.
    pub async fn request(&self, method: &str, params: &impl Serialize) -> Outcome {
        let id = self.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let text = message::request(id, method, params).map_err(RequestError::Encode)?;
        let (reply, outcome) = oneshot::channel();
        if self.commands.send(Command { id, text, reply }).await.is_err() {
            return Err(RequestError::NotSent(self.closed().await));
        }
        match outcome.await {
            Ok(outcome) => outcome,
            Err(_) => Err(RequestError::OutcomeUnknown(self.closed().await)),
        }
    }

    /// Ends the connection for all who hold a clone of it. What is under way ends with
    /// [`RequestError::OutcomeUnknown`].
    pub fn close(&self) {
        self.ending.notify_one();
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> CloseReason {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(CloseReason::Local),
            Err(_) => CloseReason::Local,
        }
    }

    /// Why the connection has ended, if it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }
}

/// The client stops reading, and taking requests, while so many bytes wait to be written.
const OUT_HIGH: usize = 1 << 20;

const PROBE_ID: u64 = i64::MAX as u64;

enum Turn {
    Read(Option<Result<Bytes, FrameError>>),
    Written(std::io::Result<bool>),
    Command(Option<Command>),
    Unstalled(bool),
    Quiet,
}

struct Driver {
    read: FramedRead<ReadHalf<Box<dyn Io>>, FrameDecoder>,
    write: WriteHalf<Box<dyn Io>>,
    out: BytesMut,
    unflushed: bool,
    commands: mpsc::Receiver<Command>,
    ending: Arc<Notify>,
    pending: BTreeMap<u64, oneshot::Sender<Outcome>>,
    notify: Option<mpsc::Sender<Notification>>,
    stalled: Option<Notification>,
    probe: Option<Duration>,
    heard: Instant,
    probed: bool,
    max_in_flight: usize,
}

impl Driver {
    async fn run(mut self, closing: watch::Sender<Option<CloseReason>>) {
        let reason = self.serve().await;
        tracing::debug!(%reason, in_flight = self.pending.len(), "ovsdb connection ended");
        closing.send_replace(Some(reason.clone()));
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            // Nobody may wait any more; then there is nobody to tell.
            let _ = command.reply.send(Err(RequestError::NotSent(reason.clone())));
        }
        for (_, reply) in std::mem::take(&mut self.pending) {
            let _ = reply.send(Err(RequestError::OutcomeUnknown(reason.clone())));
        }
    }

    async fn serve(&mut self) -> CloseReason {
        loop {
            let writing = !self.out.is_empty() || self.unflushed;
            let room = self.out.len() < OUT_HIGH;
            let stalled = self.stalled.is_some();
            let reading = !stalled && room;
            let taking = room && self.pending.len() < self.max_in_flight;
            let deadline = self.probe.map(|probe| self.heard + if self.probed { probe * 2 } else { probe });
            let turn = tokio::select! {
                frame = self.read.next(), if reading => Turn::Read(frame),
                written = write_some(&mut self.write, &mut self.out), if writing => Turn::Written(written),
                command = self.commands.recv(), if taking => Turn::Command(command),
                () = self.ending.notified() => Turn::Command(None),
                open = unstall(self.notify.as_ref(), &mut self.stalled), if self.stalled.is_some() => {
                    Turn::Unstalled(open)
                }
                // The owner's slowness is not the server's silence: no probe while nothing is read.
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() && !stalled => {
                    Turn::Quiet
                }
            };
            match turn {
                Turn::Read(None) => return CloseReason::Remote,
                Turn::Read(Some(Err(error))) => return CloseReason::Stream(Arc::new(error)),
                Turn::Read(Some(Ok(text))) => {
                    self.heard = Instant::now();
                    self.probed = false;
                    if let Err(error) = self.receive(&text) {
                        return CloseReason::Message(Arc::new(error));
                    }
                }
                Turn::Written(Ok(flushed)) => {
                    self.unflushed = !flushed;
                    // While a long request keeps us from reading, that it is taken is the proof of life.
                    if !room {
                        self.heard = Instant::now();
                    }
                }
                Turn::Written(Err(error)) => return CloseReason::Stream(Arc::new(error.into())),
                Turn::Command(None) => return CloseReason::Local,
                Turn::Command(Some(Command { id, text, reply })) => {
                    self.pending.insert(id, reply);
                    self.queue(&text);
                }
                Turn::Unstalled(true) => {}
                Turn::Unstalled(false) => {
                    self.stalled = None;
                    self.notify = None;
                }
                Turn::Quiet if self.probed => {
                    return CloseReason::Silent { seconds: self.heard.elapsed().as_secs_f64() };
                }
                Turn::Quiet => {
                    self.probed = true;
                    if let Ok(text) = message::request(PROBE_ID, "echo", &[(); 0]) {
                        self.queue(&text);
                    }
                }
            }
            if self.stalled.is_some() {
                self.heard = Instant::now();
            }
        }
    }

    fn queue(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
        self.unflushed = true;
    }

    fn receive(&mut self, text: &[u8]) -> Result<(), MessageError> {
        tracing::trace!(bytes = text.len(), "ovsdb message");
        match Message::parse(text)? {
            Message::Response { id: PROBE_ID, .. } => {}
            Message::Response { id, outcome } => match self.pending.remove(&id) {
                // A caller that stopped waiting does not want to know.
                Some(reply) => drop(reply.send(outcome.map_err(RequestError::Rpc))),
                None => return Err(MessageError::Id { id: id.to_string() }),
            },
            Message::Request { method, params, id } => {
                let answer = match method.as_str() {
                    "echo" => message::response(&id, Some(params.as_deref().unwrap_or(RawValue::NULL)), None),
                    _ => message::response(&id, None, Some("unknown method")),
                };
                self.queue(&answer?);
            }
            Message::Notification { method, params } => {
                let params = params.unwrap_or_else(|| RawValue::NULL.to_owned());
                if let Some(notify) = &self.notify {
                    match notify.try_send(Notification { method, params }) {
                        Ok(()) => {}
                        Err(mpsc::error::TrySendError::Full(notification)) => {
                            self.stalled = Some(notification)
                        }
                        Err(mpsc::error::TrySendError::Closed(_)) => self.notify = None,
                    }
                }
            }
        }
        Ok(())
    }
}

/// Writes once, or flushes if there is nothing to write; true if everything is out. Loses nothing when
/// cancelled.
async fn write_some(write: &mut WriteHalf<Box<dyn Io>>, out: &mut BytesMut) -> std::io::Result<bool> {
    if out.is_empty() {
        write.flush().await?;
        return Ok(true);
    }
    match write.write_buf(out).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        _ => Ok(false),
    }
}

/// Hands over the notification that found no room, once there is room; false if nobody wants it any more.
async fn unstall(notify: Option<&mpsc::Sender<Notification>>, stalled: &mut Option<Notification>) -> bool {
    let Some(notify) = notify else { return false };
    let Ok(permit) = notify.reserve().await else { return false };
    if let Some(notification) = stalled.take() {
        permit.send(notification);
    }
    true
}

pub(crate) fn reply_error(
    method: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> RequestError {
    RequestError::Reply { method, source: source.into() }
}

pub(crate) fn parse_reply<T: serde::de::DeserializeOwned>(
    method: &'static str,
    result: Option<Box<RawValue>>,
) -> Result<T, RequestError> {
    serde_json::from_str(result.as_deref().map_or("null", RawValue::get)).map_err(|e| reply_error(method, e))
}
