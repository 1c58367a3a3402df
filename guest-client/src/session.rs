//! One session with a host, from `Hello` to its end: a state machine without I/O. Time is an argument.
//!
//! ```text
//!  Greeting ──Welcome──► Snapshot ──SnapshotEnd sent──► Live
//!     │                     │                            │
//!     └──── Refusal, a broken rule, silence: the session ends with a SessionError ────┘
//! ```
//! Sequenced messages go out only while fewer than the host's window are unacknowledged. Meanwhile changes
//! coalesce in the [`Mirror`], so nothing queues up here. Changes overtake the snapshot that is under way.

use std::collections::VecDeque;
use std::time::Duration;

use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::message::{Hello, MAX_CHANGES, RefusalReason, VERSION, Welcome};
use xenflow_proto::{GuestMessage, HostMessage, Key, Name, Seq};

use crate::mirror::{Batch, Limits, Mirror, Slot};

/// The host must answer `Hello` within this.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// A host not heard for so long is asked for a sign of life.
pub const PING_AFTER: Duration = Duration::from_secs(2);
/// A host not heard for so long after being asked is given up.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(4);
/// A host must take frames of at least this many bytes: the largest change fits.
pub const MIN_FRAME: usize = 16 << 10;
/// Most unacknowledged messages, whatever window the host offers: what is remembered of each is small.
pub const MAX_WINDOW: u32 = 4096;
/// Most answers to pings that wait to be sent; a host that asks faster than it reads gets no more.
const MAX_REPLIES: usize = 16;

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The host said no.
    #[error("refused by the host ({reason:?}): {detail}")]
    Refused {
        /// For programs.
        reason: RefusalReason,
        /// For people.
        detail: String,
    },
    /// The host speaks a version that was not offered.
    #[error("the host chose protocol version {0}, offered was {VERSION}")]
    Version(u32),
    /// The host takes too little at a time.
    #[error("the host takes frames of {0} bytes, at least {MIN_FRAME} are needed")]
    SmallFrames(u32),
    /// A message out of turn.
    #[error("unexpected {0} from the host")]
    Unexpected(&'static str),
    /// An acknowledgement of what was not sent, or one that goes backward.
    #[error("acknowledgement of {seq}, between {acked} and {sent} was expected")]
    Ack {
        /// What the host acknowledged.
        seq: Seq,
        /// What it had acknowledged before.
        acked: Seq,
        /// The last message sent.
        sent: Seq,
    },
    /// The host is silent.
    #[error("nothing heard from the host for {} ms", .0.as_millis())]
    Silent(Duration),
}

/// What happened that others want to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The host took the session.
    Up(Name),
    /// The host's switch confirmed messages.
    Acked(Acked),
}

/// A step forward of what the switch confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked {
    /// All up to this.
    pub seq: Seq,
    /// When the kernel told the oldest change in the messages of this step; none if all were of a snapshot.
    pub oldest: Option<Duration>,
    /// Changes in these messages.
    pub changes: usize,
    /// What stays with the guest.
    pub rejected: Vec<(Key, String)>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    seq: Seq,
    oldest: Option<Duration>,
    changes: usize,
}

#[derive(Debug)]
enum Phase {
    Greeting(Option<Hello>),
    Snapshot { begun: bool, listed: bool, cursor: Option<Slot> },
    Live,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    limits: Limits,
    window: usize,
    sent: Seq,
    acked: Seq,
    in_flight: VecDeque<Sent>,
    replies: VecDeque<u64>,
    heard: Duration,
    asked: Option<Duration>,
    ping: Option<u64>,
    pings: u64,
}

impl Session {
    /// Of a connection just made.
    #[must_use]
    pub fn new(now: Duration, hello: Hello) -> Self {
        Self {
            phase: Phase::Greeting(Some(hello)),
            limits: Limits { changes: 0, bytes: 0 },
            window: 0,
            sent: Seq(0),
            acked: Seq(0),
            in_flight: VecDeque::new(),
            replies: VecDeque::new(),
            heard: now,
            asked: None,
            ping: None,
            pings: 0,
        }
    }

    /// The snapshot was sent whole; the host may still be at it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// The last sequenced message sent.
    #[must_use]
    pub fn sent(&self) -> Seq {
        self.sent
    }

    /// The last one that the switch confirmed.
    #[must_use]
    pub fn acked(&self) -> Seq {
        self.acked
    }

    /// Takes in a message of the host. On `Welcome`, the mirror starts to remember what this host must be told.
    ///
    /// # Errors
    /// [`SessionError`]: the session is over.
    pub fn handle_message(
        &mut self,
        now: Duration,
        message: HostMessage,
        mirror: &mut Mirror,
    ) -> Result<Option<Event>, SessionError> {
        self.heard = now;
        self.asked = None;
        let greeting = matches!(self.phase, Phase::Greeting(_));
        match message {
            HostMessage::Refusal { reason, detail } => Err(SessionError::Refused { reason, detail }),
            HostMessage::Welcome(welcome) if greeting => {
                self.welcome(welcome).inspect(|_| mirror.start_stream()).map(Some)
            }
            HostMessage::Welcome(_) => Err(SessionError::Unexpected("Welcome")),
            HostMessage::Ack { .. } if greeting => Err(SessionError::Unexpected("Ack")),
            HostMessage::Ack { seq, rejected, accepted: _ } => self.ack(seq, rejected).map(Some),
            HostMessage::Ping(token) => {
                if self.replies.len() < MAX_REPLIES {
                    self.replies.push_back(token);
                }
                Ok(None)
            }
            HostMessage::Pong(_) | HostMessage::InUse(_) | HostMessage::Renewed(_) => Ok(None),
        }
    }

    fn welcome(&mut self, welcome: Welcome) -> Result<Event, SessionError> {
        let Welcome { version, node, max_frame_bytes, max_changes, window, held: _ } = welcome;
        if version != VERSION {
            return Err(SessionError::Version(version));
        }
        let frame = (max_frame_bytes as usize).min(MAX_FRAME);
        if frame < MIN_FRAME {
            return Err(SessionError::SmallFrames(max_frame_bytes));
        }
        // 64 bytes for what is around the changes.
        self.limits = Limits { changes: (max_changes as usize).clamp(1, MAX_CHANGES), bytes: frame - 64 };
        self.window = window.clamp(1, MAX_WINDOW) as usize;
        self.phase = Phase::Snapshot { begun: false, listed: false, cursor: None };
        Ok(Event::Up(node))
    }

    fn ack(&mut self, seq: Seq, rejected: Vec<(Key, String)>) -> Result<Event, SessionError> {
        if seq < self.acked || seq > self.sent {
            return Err(SessionError::Ack { seq, acked: self.acked, sent: self.sent });
        }
        self.acked = seq;
        let mut step = Acked { seq, oldest: None, changes: 0, rejected };
        while let Some(sent) = self.in_flight.front().filter(|sent| sent.seq <= seq) {
            step.oldest = step.oldest.into_iter().chain(sent.oldest).min();
            step.changes += sent.changes;
            self.in_flight.pop_front();
        }
        Ok(Event::Acked(step))
    }

    /// Asks for a sign of life at once: something tells that the host may be another now.
    pub fn probe(&mut self, now: Duration) {
        if self.asked.is_none() && !matches!(self.phase, Phase::Greeting(_)) {
            self.asked = Some(now);
            self.pings += 1;
            self.ping = Some(self.pings);
        }
    }

    /// To be called when [`Self::poll_timeout`] has passed.
    ///
    /// # Errors
    /// [`SessionError::Silent`]: the session is over.
    pub fn handle_timeout(&mut self, now: Duration) -> Result<(), SessionError> {
        let (deadline, _) = self.poll_timeout();
        if now < deadline {
            return Ok(());
        }
        if self.asked.is_some() || matches!(self.phase, Phase::Greeting(_)) {
            return Err(SessionError::Silent(now.saturating_sub(self.heard)));
        }
        self.probe(now);
        Ok(())
    }

    /// When [`Self::handle_timeout`] must be called, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> (Duration, &'static str) {
        match (&self.phase, self.asked) {
            (Phase::Greeting(_), _) => (self.heard + GREETING_TIMEOUT, "greeting"),
            (_, Some(asked)) => (asked + PONG_TIMEOUT, "pong"),
            (_, None) => (self.heard + PING_AFTER, "ping"),
        }
    }

    /// The next message to send, if one may go out now.
    pub fn poll_transmit(&mut self, mirror: &mut Mirror) -> Option<GuestMessage> {
        if let Phase::Greeting(hello) = &mut self.phase {
            return hello.take().map(GuestMessage::Hello);
        }
        if let Some(token) = self.replies.pop_front() {
            return Some(GuestMessage::Pong(token));
        }
        if let Some(token) = self.ping.take() {
            return Some(GuestMessage::Ping(token));
        }
        if self.in_flight.len() >= self.window {
            return None;
        }
        if let Phase::Snapshot { begun: begun @ false, .. } = &mut self.phase {
            // An end-of-RIB of half a table would withdraw the other half.
            if !mirror.is_trusted() {
                return None;
            }
            *begun = true;
            return Some(GuestMessage::SnapshotBegin(self.number(None, 0)));
        }
        if let Some(batch) = mirror.take_changes(self.limits) {
            return Some(self.changes(batch));
        }
        let Phase::Snapshot { listed, cursor, .. } = &mut self.phase else { return None };
        if !*listed {
            if let Some(batch) = mirror.take_snapshot(cursor, self.limits) {
                return Some(self.changes(batch));
            }
            *listed = true;
        }
        if !mirror.is_trusted() {
            return None;
        }
        self.phase = Phase::Live;
        Some(GuestMessage::SnapshotEnd(self.number(None, 0)))
    }

    fn changes(&mut self, batch: Batch) -> GuestMessage {
        let seq = self.number(batch.oldest, batch.changes.len());
        GuestMessage::Changes { seq, changes: batch.changes }
    }

    fn number(&mut self, oldest: Option<Duration>, changes: usize) -> Seq {
        self.sent = self.sent.next();
        self.in_flight.push_back(Sent { seq: self.sent, oldest, changes });
        self.sent
    }
}
