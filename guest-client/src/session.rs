//! One session with a host, from `Hello` to its end: a state machine without I/O. Time is an argument.
//!
//! ```text
//!  Greeting ──Welcome──► Welcomed ──SnapshotBegin or Resume sent──► Syncing ──SnapshotEnd sent──► Live
//!     │                     │                                         │                          │
//!     └─────────── Refusal, a broken rule, silence: the session ends with a SessionError ────────┘
//! ```
//! `Welcome` says which tables the host holds. The [`Mirror`] knows whether they are such that the difference
//! suffices (`Resume`), or whether a snapshot is due. Neither begins nor ends before the mirror is to be trusted.
//! Sequenced messages go out only while fewer than the host's window are unacknowledged. Meanwhile changes
//! coalesce in the mirror, so nothing queues up here. Changes overtake the snapshot that is under way.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use xenflow_proto::digest::Digest;
use xenflow_proto::frame::MAX_FRAME;
use xenflow_proto::message::{Hello, RefusalReason, Renewed, VERSION, Welcome};
use xenflow_proto::table::NeighborKey;
use xenflow_proto::{GuestMessage, HostMessage, Key, Name, Seq};

use crate::mirror::{Confirmed, Limits, Mirror, Start};

/// The host must answer `Hello` within this.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// A host not heard for so long is asked for a sign of life.
pub const PING_AFTER: Duration = Duration::from_secs(2);
/// A host not heard for so long after being asked is given up.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(4);
/// A host must take frames of at least this many bytes: the largest change fits.
pub const MIN_FRAME: usize = 16 << 10;
/// Most unacknowledged messages, whatever window the host offers; [`crate::mirror::MAX_IN_FLIGHT`] limits what is in them.
pub const MAX_WINDOW: u32 = 4096;
/// Most changes in a message, whatever the host takes: the rest of a long one keeps it from hearing of what is urgent.
const MAX_CHANGES: usize = 512;
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
    /// The neighbors that the host sends to, all of them: to be kept fresh.
    InUse(Vec<NeighborKey>),
    /// The certificate that [`Session::renew`] asked for.
    Renewed(Renewed),
}

/// A step forward of what the host acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked {
    /// All up to this.
    pub seq: Seq,
    /// When the kernel told the oldest change in the messages of this step; none if all were of a snapshot.
    pub oldest: Option<Duration>,
    /// Changes in these messages.
    pub changes: usize,
    /// Keys in these messages that the host's switch now has as they were told: objects upserted, or gone if they
    /// were removed. Those in `rejected` are left out. Later values may be under way:
    /// [`Mirror::is_confirmed`] asks for the present one. Empty before the end of a snapshot or resume, of which the
    /// host may acknowledge the parts before its switch has them.
    pub confirmed: Vec<Key>,
    /// The end of a snapshot or resume got through: the switch has all that was told up to `seq`, also what `confirmed`
    /// does not name. Whoever waits for a key asks [`Mirror::is_confirmed`] now.
    pub whole: bool,
    /// What stays with the guest, and why.
    pub rejected: Vec<(Key, String)>,
    /// What was rejected earlier, and is forwarded by the host from now on.
    pub accepted: Vec<Key>,
}

#[derive(Debug)]
enum Phase {
    Greeting(Option<Hello>),
    Welcomed(Option<Digest>),
    Syncing,
    Live,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    limits: Limits,
    window: u64,
    sent: Seq,
    acked: Seq,
    start: Option<Start>,
    changes: u64,
    renew: bool,
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
            start: None,
            changes: 0,
            renew: false,
            replies: VecDeque::new(),
            heard: now,
            asked: None,
            ping: None,
            pings: 0,
        }
    }

    /// The host was sent all there is; it may still be at it.
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

    /// How the host is brought up to date, once that has begun.
    #[must_use]
    pub fn start(&self) -> Option<Start> {
        self.start
    }

    /// Changes sent.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Takes in a message of the host.
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
            HostMessage::Welcome(welcome) if greeting => self.welcome(welcome).map(Some),
            HostMessage::Welcome(_) => Err(SessionError::Unexpected("Welcome")),
            HostMessage::Ack { .. } if greeting => Err(SessionError::Unexpected("Ack")),
            HostMessage::Ack { seq, rejected, accepted } => {
                self.ack(seq, rejected, accepted, mirror).map(Some)
            }
            HostMessage::InUse(_) if greeting => Err(SessionError::Unexpected("InUse")),
            HostMessage::InUse(neighbors) => Ok(Some(Event::InUse(neighbors))),
            HostMessage::Renewed(_) if greeting => Err(SessionError::Unexpected("Renewed")),
            HostMessage::Renewed(renewed) => Ok(Some(Event::Renewed(renewed))),
            HostMessage::Ping(token) => {
                if self.replies.len() < MAX_REPLIES {
                    self.replies.push_back(token);
                }
                Ok(None)
            }
            HostMessage::Pong(_) => Ok(None),
        }
    }

    fn welcome(&mut self, welcome: Welcome) -> Result<Event, SessionError> {
        let Welcome { version, node, max_frame_bytes, max_changes, window, held } = welcome;
        if version != VERSION {
            return Err(SessionError::Version(version));
        }
        let frame = (max_frame_bytes as usize).min(MAX_FRAME);
        if frame < MIN_FRAME {
            return Err(SessionError::SmallFrames(max_frame_bytes));
        }
        // 64 bytes for what is around the changes.
        self.limits = Limits { changes: (max_changes as usize).clamp(1, MAX_CHANGES), bytes: frame - 64 };
        self.window = window.clamp(1, MAX_WINDOW).into();
        self.phase = Phase::Welcomed(held);
        Ok(Event::Up(node))
    }

    fn ack(
        &mut self,
        seq: Seq,
        rejected: Vec<(Key, String)>,
        accepted: Vec<Key>,
        mirror: &mut Mirror,
    ) -> Result<Event, SessionError> {
        if seq < self.acked || seq > self.sent {
            return Err(SessionError::Ack { seq, acked: self.acked, sent: self.sent });
        }
        let Confirmed { oldest, changes, mut keys, whole } = mirror.acknowledge(seq.0 - self.acked.0);
        self.acked = seq;
        let refused: BTreeSet<&Key> = rejected.iter().map(|(key, _)| key).collect();
        keys.retain(|key| !refused.contains(key));
        Ok(Event::Acked(Acked { seq, oldest, changes, confirmed: keys, whole, rejected, accepted }))
    }

    /// Asks for another certificate, as soon as the host took the session.
    pub fn renew(&mut self) {
        self.renew = true;
    }

    /// Asks for a sign of life at once: something tells that the host may be another now.
    pub fn probe(&mut self, now: Duration) {
        if self.asked.is_none() && !matches!(self.phase, Phase::Greeting(_)) {
            self.asked = Some(now);
            self.pings += 1;
            self.ping = Some(self.pings);
        }
    }

    /// Since when an answer to a ping is awaited.
    #[must_use]
    pub fn asked(&self) -> Option<Duration> {
        self.asked
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
        if std::mem::take(&mut self.renew) {
            return Some(GuestMessage::Renew);
        }
        if let Phase::Welcomed(held) = self.phase {
            // An end-of-RIB of half a table would withdraw the other half.
            if !mirror.is_trusted() {
                return None;
            }
            let start = mirror.begin(held, self.heard);
            (self.phase, self.start) = (Phase::Syncing, Some(start));
            return Some(match start {
                Start::Snapshot => GuestMessage::SnapshotBegin(self.number()),
                Start::Resume => GuestMessage::Resume(self.number()),
            });
        }
        if self.sent.0 - self.acked.0 >= self.window || mirror.is_full() {
            return None;
        }
        if let Some(batch) = mirror.take(self.limits) {
            self.changes += batch.changes.len() as u64;
            return Some(GuestMessage::Changes { seq: self.number(), changes: batch.changes });
        }
        if !matches!(self.phase, Phase::Syncing) || !mirror.is_trusted() {
            return None;
        }
        mirror.end();
        self.phase = Phase::Live;
        Some(GuestMessage::SnapshotEnd(self.number()))
    }

    fn number(&mut self) -> Seq {
        self.sent = self.sent.next();
        self.sent
    }
}
