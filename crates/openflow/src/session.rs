//! A conversation with a switch, without I/O: bytes and times go in, bytes and events come out.
//!
//! It owns the handshake, echo, request numbers, bundles and keep-alive. It owns no socket and no clock, never reconnects (make a new
//! one) and does not know what flows are for.

use crate::decoder::Decoder;
use crate::error::{Error, ErrorCode};
use crate::flow::{FlowDesc, FlowFilter};
use crate::message::{
    AsyncConfig, BundleCtrl, BundleCtrlType, Features, Hello, Message, MultipartReply, MultipartRequest,
    bundle_flags, encode_bundle_add,
};
use crate::packet::PacketIn;
use crate::switch_port::PortStatus;
use crate::wire::{DecodeError, EncodeError};
use bytes::{Bytes, BytesMut};
use std::borrow::Borrow;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// What a session does by itself.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bytes of a packet that go to the controller on a table miss. A service connection of Open vSwitch (`<bridge>.mgmt`) sends no
    /// asynchronous message while this is 0.
    pub miss_send_len: u16,
    /// Ask for packet-ins as `NXT_PACKET_IN2`, which carry userdata.
    pub packet_in2: bool,
    /// Sent after the handshake, if any of it is set.
    pub async_config: AsyncConfig,
    /// An echo request goes out after so long a silence, and after as much again the session is dead. A switch that works on a big
    /// bundle is silent meanwhile: choose with that in mind.
    pub probe_interval: Duration,
    /// How long the switch may take to say what it is.
    pub handshake_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            miss_send_len: 128,
            packet_in2: true,
            async_config: AsyncConfig::default(),
            probe_interval: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// A bundle of this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId(pub u32);

/// What happened. Replies carry the xid that the request's call returned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The handshake is done.
    Up(Features),
    /// A bundle is in force: its commit and the barrier after it were answered.
    BundleCommitted {
        /// The bundle.
        id: BundleId,
    },
    /// A bundle is not in force; nothing of it is.
    BundleFailed {
        /// The bundle.
        id: BundleId,
        /// Which messages failed, by their index in the bundle; `None` for the bundle's own control messages. After a failure at the
        /// commit there are two: the message's and [`ErrorCode::BUNDLE_MSG_FAILED`].
        errors: Vec<(Option<usize>, Error)>,
    },
    /// Everything before this barrier is done.
    BarrierReply {
        /// Of the request.
        xid: u32,
    },
    /// Some of the flows that were asked for.
    Flows {
        /// Of the request.
        xid: u32,
        /// This part of them.
        flows: Vec<FlowDesc>,
        /// More parts follow.
        more: bool,
    },
    /// A part of the answer to another multipart request.
    Multipart {
        /// Of the request.
        xid: u32,
        /// This part.
        body: MultipartReply,
        /// More parts follow.
        more: bool,
    },
    /// A packet for the controller.
    PacketIn(PacketIn),
    /// A port came, went or changed.
    PortStatus(PortStatus),
    /// A flow went.
    FlowRemoved(crate::flow::FlowRemoved),
    /// A request failed.
    Error {
        /// Of the request.
        xid: u32,
        /// Why.
        error: Error,
    },
    /// Another message of the switch.
    Message {
        /// Its xid.
        xid: u32,
        /// The message.
        message: Message,
    },
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The switch sent bytes that are no OpenFlow 1.5.
    #[error("the switch sent a message that cannot be read")]
    Decode(#[from] DecodeError),
    /// No common version.
    #[error("the switch speaks version {:#04x} (bitmap {:?}), not openflow 1.5", .0.version, .0.bitmap)]
    Version(Hello),
    /// The switch refused the handshake.
    #[error("the switch refused the handshake")]
    Refused(#[source] Error),
    /// The switch said something before hello.
    #[error("message type {0} came before hello")]
    NoHello(u8),
    /// The switch did not say what it is in time.
    #[error("no answer to the handshake")]
    HandshakeTimeout,
    /// The switch is silent.
    #[error("no answer to an echo request")]
    ProbeTimeout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitHello,
    AwaitFeatures,
    Up,
}

#[derive(Debug)]
struct Bundle {
    id: BundleId,
    /// Of the open request, if there is one.
    begin_xid: u32,
    /// Of its first message; the close request has the xid after the last one's, and the commit the next.
    first_xid: u32,
    count: u32,
    barrier_xid: u32,
    /// The switch has seen every message of it: the errors so far decide between commit and discard.
    closed: bool,
    committed: bool,
    errors: Vec<(Option<usize>, Error)>,
}

impl Bundle {
    /// Which message of the bundle has this xid: `Some(None)` is a control message.
    fn place(&self, xid: u32) -> Option<Option<usize>> {
        let offset = |from: u32| xid.wrapping_sub(from);
        if offset(self.begin_xid) > self.barrier_xid.wrapping_sub(self.begin_xid) {
            return None;
        }
        let index = Some(offset(self.first_xid)).filter(|index| *index < self.count);
        Some(index.and_then(|index| usize::try_from(index).ok()))
    }

    /// Commit or discard, and the barrier; `None` while the switch has not answered the close.
    fn decision(&self) -> Option<BytesMut> {
        if !self.closed {
            return None;
        }
        let kind = if self.errors.is_empty() {
            BundleCtrlType::CommitRequest
        } else {
            BundleCtrlType::DiscardRequest
        };
        let mut out = BytesMut::new();
        // Messages of 16 and 8 bytes always fit.
        let _ = control(self.id, kind).encode(self.commit_xid(), &mut out);
        let _ = Message::BarrierRequest.encode(self.barrier_xid, &mut out);
        Some(out)
    }

    fn close_xid(&self) -> u32 {
        self.first_xid.wrapping_add(self.count)
    }

    fn commit_xid(&self) -> u32 {
        self.close_xid().wrapping_add(1)
    }
}

/// Output in the order it was asked for.
#[derive(Debug)]
enum Queued {
    /// Whole messages.
    Messages(BytesMut),
    /// The end of the bundle with this barrier: commit or discard it here, once the switch has answered its close. Until then nothing
    /// after it goes out, so that the order of what is asked for stays the order of what is done.
    Decide(u32),
}

/// Bulk output goes out in pieces of about this many bytes, so that an echo reply waits for one piece at most.
const PIECE: usize = 16 * 1024;

/// A conversation with a switch. See the module's documentation.
#[derive(Debug)]
pub struct Session {
    config: Config,
    state: State,
    decoder: Decoder,
    /// Goes out before anything in `bulk`.
    urgent: BytesMut,
    bulk: VecDeque<Queued>,
    events: VecDeque<Event>,
    next_xid: u32,
    next_bundle: u32,
    /// By the xid of their barrier.
    bundles: BTreeMap<u32, Bundle>,
    started: Instant,
    last_input: Instant,
    probe_sent: Option<Instant>,
}

impl Session {
    /// A session on a fresh connection; its greeting waits to be sent.
    pub fn new(config: Config, now: Instant) -> Session {
        let mut session = Session {
            config,
            state: State::AwaitHello,
            decoder: Decoder::new(),
            urgent: BytesMut::new(),
            bulk: VecDeque::new(),
            events: VecDeque::new(),
            next_xid: 1,
            next_bundle: 1,
            bundles: BTreeMap::new(),
            started: now,
            last_input: now,
            probe_sent: None,
        };
        session.urge(&Message::Hello(Hello::V15));
        session
    }

    /// The handshake is done.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Bytes from the switch. After an error the connection is of no more use.
    pub fn handle_input(&mut self, bytes: &[u8], now: Instant) -> Result<(), SessionError> {
        self.last_input = now;
        self.probe_sent = None;
        self.decoder.push(bytes);
        while let Some(frame) = self.decoder.next_frame()? {
            let (xid, message) = Message::decode(&frame)?;
            self.handle_message(xid, message)?;
        }
        Ok(())
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next bytes for the switch: whole messages, echo replies first. Write all of them before asking again.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        if !self.urgent.is_empty() {
            return Some(self.urgent.split().freeze());
        }
        if self.state != State::Up {
            return None;
        }
        loop {
            match self.bulk.front_mut()? {
                Queued::Messages(bytes) => {
                    let mut end = 0usize;
                    while end < PIECE {
                        let Some(&[_, _, l1, l2]) = bytes.get(end..).and_then(|b| b.first_chunk::<4>())
                        else {
                            break;
                        };
                        end = end.saturating_add(usize::from(u16::from_be_bytes([l1, l2])));
                    }
                    if end == 0 {
                        self.bulk.pop_front();
                        continue;
                    }
                    return Some(bytes.split_to(end.min(bytes.len())).freeze());
                }
                Queued::Decide(xid) => {
                    let xid = *xid;
                    let decision = self.bundles.get(&xid).map(Bundle::decision);
                    match decision {
                        Some(None) => return None,
                        Some(Some(bytes)) => {
                            self.bulk.pop_front();
                            return Some(bytes.freeze());
                        }
                        None => {
                            self.bulk.pop_front();
                        }
                    }
                }
            }
        }
    }

    /// Bytes that wait to be sent: hold back new requests while it is large.
    pub fn pending_output(&self) -> usize {
        let bulk = self.bulk.iter().map(|q| match q {
            Queued::Messages(bytes) => bytes.len(),
            Queued::Decide(_) => 0,
        });
        self.urgent.len().saturating_add(bulk.sum())
    }

    /// Bundles sent and not yet answered.
    pub fn pending_bundles(&self) -> usize {
        self.bundles.len()
    }

    /// When to call [`Session::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        Some(match (self.state, self.probe_sent) {
            (State::Up, None) => (self.last_input + self.config.probe_interval, "probe"),
            (State::Up, Some(sent)) => (sent + self.config.probe_interval, "probe answer"),
            _ => (self.started + self.config.handshake_timeout, "handshake"),
        })
    }

    /// The time of [`Session::poll_timeout`] has come. Harmless when early.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        match self.poll_timeout() {
            Some((at, _)) if at <= now => {}
            _ => return Ok(()),
        }
        match (self.state, self.probe_sent) {
            (State::Up, None) => {
                self.probe_sent = Some(now);
                self.urge(&Message::EchoRequest(Bytes::new()));
                Ok(())
            }
            (State::Up, Some(_)) => Err(SessionError::ProbeTimeout),
            _ => Err(SessionError::HandshakeTimeout),
        }
    }

    /// Queues a message; gives the xid of its replies and errors. Nothing goes out before the handshake is done.
    pub fn send(&mut self, message: &Message) -> Result<u32, EncodeError> {
        let xid = self.next_xid;
        message.encode(xid, self.tail())?;
        Ok(self.take_xid())
    }

    /// Asks for flows: [`Event::Flows`] until `more` is false.
    pub fn request_flows(&mut self, filter: FlowFilter) -> Result<u32, EncodeError> {
        self.send(&Message::MultipartRequest(MultipartRequest::Flows(filter)))
    }

    /// Queues a barrier: [`Event::BarrierReply`] with this xid.
    pub fn send_barrier(&mut self) -> u32 {
        // A message of 8 bytes always fits.
        self.send(&Message::BarrierRequest).unwrap_or_default()
    }

    /// Queues an atomic, ordered bundle with a barrier after it. The answer is one [`Event::BundleCommitted`] or
    /// [`Event::BundleFailed`]. If a message cannot be encoded, nothing is queued.
    ///
    /// Open vSwitch refuses a bad message when it is added and then commits the rest of the bundle. So the commit waits for the
    /// answer to the close, which comes after every such error, and becomes a discard if there was one; what is queued later waits too.
    /// A single message is a bundle by itself: it goes out with its barrier at once.
    pub fn send_bundle<M: Borrow<Message>>(
        &mut self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<BundleId, EncodeError> {
        let mut messages = messages.into_iter();
        match (messages.next(), messages.next()) {
            (Some(only), None) => self.send_alone(only.borrow()),
            (first, second) => self.send_all(first.into_iter().chain(second).chain(messages)),
        }
    }

    fn send_alone(&mut self, message: &Message) -> Result<BundleId, EncodeError> {
        let first_xid = self.next_xid;
        let barrier_xid = first_xid.wrapping_add(1);
        let out = self.tail();
        message.encode(first_xid, out)?;
        Message::BarrierRequest.encode(barrier_xid, out)?;
        Ok(self.expect(Bundle {
            closed: true,
            committed: true,
            ..self.bundle([first_xid, first_xid], 1, barrier_xid)
        }))
    }

    fn send_all<M: Borrow<Message>>(
        &mut self,
        messages: impl Iterator<Item = M>,
    ) -> Result<BundleId, EncodeError> {
        let open_xid = self.next_xid;
        let first_xid = open_xid.wrapping_add(1);
        let id = BundleId(self.next_bundle);
        let mut count = 0_u32;
        let out = self.tail();
        let start = out.len();
        let write = || {
            control(id, BundleCtrlType::OpenRequest).encode(open_xid, out)?;
            for message in messages {
                encode_bundle_add(id.0, BUNDLE_FLAGS, message.borrow(), first_xid.wrapping_add(count), out)?;
                count = count.wrapping_add(1);
            }
            control(id, BundleCtrlType::CloseRequest).encode(first_xid.wrapping_add(count), out)
        };
        if let Err(e) = write() {
            out.truncate(start);
            return Err(e);
        }
        let barrier_xid = first_xid.wrapping_add(count).wrapping_add(2);
        self.bulk.push_back(Queued::Decide(barrier_xid));
        Ok(self.expect(self.bundle([open_xid, first_xid], count, barrier_xid)))
    }

    fn bundle(&self, [begin_xid, first_xid]: [u32; 2], count: u32, barrier_xid: u32) -> Bundle {
        Bundle {
            id: BundleId(self.next_bundle),
            begin_xid,
            first_xid,
            count,
            barrier_xid,
            closed: false,
            committed: false,
            errors: Vec::new(),
        }
    }

    /// The bundle was queued.
    fn expect(&mut self, bundle: Bundle) -> BundleId {
        let id = bundle.id;
        self.next_xid = bundle.barrier_xid.wrapping_add(1);
        self.next_bundle = self.next_bundle.wrapping_add(1);
        self.bundles.insert(bundle.barrier_xid, bundle);
        id
    }

    /// Where the next message of the bulk goes.
    fn tail(&mut self) -> &mut BytesMut {
        if !matches!(self.bulk.back(), Some(Queued::Messages(_))) {
            self.bulk.push_back(Queued::Messages(BytesMut::new()));
        }
        match self.bulk.back_mut() {
            Some(Queued::Messages(bytes)) => bytes,
            // Not reached: the line above put it there.
            Some(Queued::Decide(_)) | None => &mut self.urgent,
        }
    }

    fn take_xid(&mut self) -> u32 {
        let xid = self.next_xid;
        self.next_xid = self.next_xid.wrapping_add(1);
        xid
    }

    /// Queues a short message before all bulk.
    fn urge(&mut self, message: &Message) {
        let xid = self.take_xid();
        self.urge_as(xid, message);
    }

    fn urge_as(&mut self, xid: u32, message: &Message) {
        // These messages are short, or came in by a header that could say their length.
        let _ = message.encode(xid, &mut self.urgent);
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "what the session does not need is handed on")]
    fn handle_message(&mut self, xid: u32, message: Message) -> Result<(), SessionError> {
        match self.state {
            State::AwaitHello => self.handle_hello(message),
            State::AwaitFeatures => match message {
                Message::EchoRequest(data) => {
                    self.urge_as(xid, &Message::EchoReply(data));
                    Ok(())
                }
                Message::FeaturesReply(features) => {
                    self.state = State::Up;
                    self.events.push_back(Event::Up(features));
                    Ok(())
                }
                Message::Error(error) => Err(SessionError::Refused(error)),
                // Asynchronous messages may overtake the answer.
                message => {
                    self.handle_up(xid, message);
                    Ok(())
                }
            },
            State::Up => {
                self.handle_up(xid, message);
                Ok(())
            }
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "what the session does not need is handed on")]
    fn handle_hello(&mut self, message: Message) -> Result<(), SessionError> {
        match message {
            Message::Hello(hello) if hello.speaks_v15() => {
                self.state = State::AwaitFeatures;
                self.urge(&Message::FeaturesRequest);
                if self.config.packet_in2 {
                    self.urge(&Message::SetPacketInFormat(true));
                }
                if self.config.async_config != AsyncConfig::default() {
                    self.urge(&Message::SetAsync(self.config.async_config));
                }
                self.urge(&Message::SetConfig { flags: 0, miss_send_len: self.config.miss_send_len });
                Ok(())
            }
            Message::Hello(hello) => {
                let data = Bytes::from_static(b"only OpenFlow 1.5 is spoken here");
                self.urge(&Message::Error(Error { code: ErrorCode::HELLO_INCOMPATIBLE, data }));
                Err(SessionError::Version(hello))
            }
            Message::Error(error) => Err(SessionError::Refused(error)),
            other => Err(SessionError::NoHello(other.kind())),
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "what the session does not need is handed on")]
    fn handle_up(&mut self, xid: u32, message: Message) {
        let event = match message {
            Message::EchoRequest(data) => return self.urge_as(xid, &Message::EchoReply(data)),
            Message::EchoReply(_) => return,
            Message::BarrierReply => match self.bundles.remove(&xid) {
                None => Event::BarrierReply { xid },
                Some(b) if b.committed && b.errors.is_empty() => Event::BundleCommitted { id: b.id },
                Some(b) => Event::BundleFailed { id: b.id, errors: b.errors },
            },
            Message::BundleCtrl(ctrl) => {
                if let Some(b) = self.bundles.values_mut().find(|b| b.id.0 == ctrl.id) {
                    b.closed |= xid == b.close_xid();
                    b.committed |= ctrl.kind == BundleCtrlType::CommitReply && xid == b.commit_xid();
                    return;
                }
                Event::Message { xid, message: Message::BundleCtrl(ctrl) }
            }
            Message::Error(error) => {
                for b in self.bundles.values_mut() {
                    if let Some(index) = b.place(xid) {
                        b.closed |= xid == b.close_xid();
                        b.errors.push((index, error));
                        return;
                    }
                }
                Event::Error { xid, error }
            }
            Message::MultipartReply { more, body: MultipartReply::Flows(flows) } => {
                Event::Flows { xid, flows, more }
            }
            Message::MultipartReply { more, body } => Event::Multipart { xid, body, more },
            Message::PacketIn(p) => Event::PacketIn(p),
            Message::PortStatus(p) => Event::PortStatus(p),
            Message::FlowRemoved(f) => Event::FlowRemoved(f),
            message => Event::Message { xid, message },
        };
        self.events.push_back(event);
    }
}

const BUNDLE_FLAGS: u16 = bundle_flags::ATOMIC | bundle_flags::ORDERED;

fn control(id: BundleId, kind: BundleCtrlType) -> Message {
    Message::BundleCtrl(BundleCtrl { id: id.0, kind, flags: BUNDLE_FLAGS })
}
