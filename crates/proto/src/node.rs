//! What two nodes say to each other while a router moves, version 1, as closed types; `node/wire.rs` converts them.
//!
//! The source, which the guest leaves, connects and says `Hello`, which names the migration; the destination answers
//! `Welcome` or `Refusal`. Then the source sends the router's tables in the words of the guest's own session, numbered: a
//! snapshot (`SnapshotBegin`, `Changes` …, `SnapshotEnd`) or, where the destination holds the same, `Resume` and
//! `SnapshotEnd`; then `Changes` as they happen. No more than [`Welcome::window`] of them are unacknowledged. Frames for the
//! guest (`Punts`) have numbers of their own, and `EndMark` says that no more come. `Ack` is what the destination's switch has
//! confirmed, `Staged` that the tables are whole, `Given` which punts the source need not keep any more.
//!
//! Numbers are those of a *stream*, which outlives connections: `Welcome` says what the destination wants next of it. A
//! source that has forgotten what it sent begins another stream, and a destination that has wants everything from 1 on.

use bytes::{Bytes, BytesMut};
use prost::Message as _;

use crate::digest::Digest;
use crate::identity::Name;
use crate::message::put;
use crate::table::Change;
use crate::types::{MacAddr, Seq, VlanId};

mod wire;

pub use crate::wire::DecodeError;

/// The protocol version of this crate.
pub const VERSION: u32 = 1;
/// Shortest frame that is relayed, in bytes: an Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;
/// Longest, without its check sequence: what switches with jumbo frames pass on.
pub const MAX_FRAME_BYTES: usize = 9216;
/// Most punts in one message; all of the longest are well below [`crate::frame::MAX_FRAME`].
pub const MAX_PUNTS: usize = 64;
/// Most megaflows in one message.
pub const MAX_MEGAFLOWS: usize = 256;
/// Greatest number of a vif.
pub const MAX_VIF: u16 = 4095;

/// What the source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceMessage {
    /// The first message.
    Hello(Hello),
    /// The whole of the tables follows.
    SnapshotBegin {
        /// Number of this message.
        seq: Seq,
        /// Of the boot of the guest whose tables they are.
        boot_id: [u8; 16],
    },
    /// What [`Welcome::held`] says stands; what changed since follows.
    Resume(Seq),
    /// Changes, in order.
    Changes {
        /// Number of this message.
        seq: Seq,
        /// At most [`crate::message::MAX_CHANGES`].
        changes: Vec<Change>,
    },
    /// The tables are whole.
    SnapshotEnd {
        /// Number of this message.
        seq: Seq,
        /// Of the tables as they are then.
        digest: Digest,
    },
    /// Frames for the guest, in order.
    Punts {
        /// Number of the first, from 1; one more for each behind it.
        first: u64,
        /// 1 to [`MAX_PUNTS`].
        punts: Vec<Punt>,
    },
    /// No more punts come; the number of the last, or 0.
    EndMark(u64),
    /// What packets that the router forwards have in the source's datapath: at most [`MAX_MEGAFLOWS`]. Only for who takes them
    /// ([`Welcome::megaflows`]).
    Megaflows(Vec<Megaflow>),
    /// Asks for a [`DestinationMessage::Pong`].
    Ping(u64),
    /// Answers a [`DestinationMessage::Ping`].
    Pong(u64),
}

/// What the destination says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationMessage {
    /// The connection is up.
    Welcome(Welcome),
    /// The switch has confirmed all messages of tables up to this one.
    Ack(Seq),
    /// The tables of a [`SourceMessage::SnapshotEnd`] are in the switch.
    Staged {
        /// Of that message.
        seq: Seq,
        /// Of the tables, as the destination has found it.
        digest: Digest,
    },
    /// The guest has all punts up to this number, or has to do without.
    Given(u64),
    /// The connection ends.
    Refusal {
        /// For programs.
        reason: RefusalReason,
        /// For people.
        detail: String,
    },
    /// Asks for a [`SourceMessage::Pong`].
    Ping(u64),
    /// Answers a [`SourceMessage::Ping`].
    Pong(u64),
}

/// How a source introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Protocol versions it speaks, at most 16.
    pub versions: Vec<u32>,
    /// The node it is.
    pub node: Name,
    /// Number of the migration.
    pub migration: u64,
    /// The router that moves.
    pub router: Name,
    /// What its numbers are counted in.
    pub stream: u64,
    /// Program and version, for the log.
    pub agent: String,
}

/// How the destination answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version chosen.
    pub version: u32,
    /// The destination.
    pub node: Name,
    /// Largest frame of the protocol it takes, in bytes.
    pub max_frame_bytes: u32,
    /// Most changes it takes in a message.
    pub max_changes: u32,
    /// Most messages of tables it leaves unacknowledged.
    pub window: u32,
    /// The message of tables that it wants next of this stream, from 1.
    pub next_seq: Seq,
    /// The punt that it wants next of this stream, from 1.
    pub next_punt: u64,
    /// The router's tables, as it holds them.
    pub held: Option<Held>,
    /// It takes [`SourceMessage::Megaflows`].
    pub megaflows: bool,
}

/// Packets to the router that one flow of a datapath stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Megaflow {
    /// Of the segment that they come from.
    pub vlan: VlanId,
    /// Of who sends them.
    pub src: MacAddr,
    /// Of the router's vif there.
    pub dst: MacAddr,
    /// The rest of what they have in common.
    pub fields: MegaflowFields,
}

/// Fields of packets from the Ethernet type on, with masks, as `ovs-dpctl(8)` writes them. 1 to 512 bytes of its characters;
/// whether they are fields is for Open vSwitch to say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MegaflowFields(String);

impl MegaflowFields {
    /// Longest, in bytes.
    pub const MAX: usize = 512;

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is no [`MegaflowFields`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} are no fields of a megaflow: 1 to 512 of a-z 0-9 and (),=/.:_-+")]
pub struct MegaflowFieldsError(pub String);

impl std::str::FromStr for MegaflowFields {
    type Err = MegaflowFieldsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_of_it =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"(),=/.:_-+".contains(&byte);
        if (1..=Self::MAX).contains(&text.len()) && text.bytes().all(is_of_it) {
            return Ok(Self(text.to_owned()));
        }
        // No more than can be read in a log.
        Err(MegaflowFieldsError(text.chars().take(80).collect()))
    }
}

/// Tables that a destination holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Of the boot of the guest whose they are.
    pub boot_id: [u8; 16],
    /// Of all objects.
    pub digest: Digest,
}

/// A frame for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Punt {
    /// Number of the vif that it is for, 1 to [`MAX_VIF`].
    pub vif: u16,
    /// How it came to be relayed.
    pub kind: PuntKind,
    /// The Ethernet frame, untagged, of [`MIN_FRAME_BYTES`] to [`MAX_FRAME_BYTES`].
    pub frame: Bytes,
}

/// How a frame came to be relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PuntKind {
    /// It was given to the guest as well, shortly before that left.
    Copy,
    /// It came while the guest was not there.
    Punt,
    /// It came after the guest was known to run at the destination.
    Late,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// Not said, or not known to this version.
    Other,
    /// No common protocol version.
    Version,
    /// The peer is not a node, not the one it says, or not the one that the guest leaves.
    Identity,
    /// The migration is not one that this node takes part in, or over.
    UnknownMigration,
    /// A message broke the rules.
    Protocol,
    /// A limit was passed.
    Limit,
    /// A newer connection about the same migration took over.
    Replaced,
    /// The daemon stops.
    Shutdown,
}

impl SourceMessage {
    /// Parses the contents of a frame.
    ///
    /// # Errors
    /// [`DecodeError`] names the field and what is wrong with it.
    pub fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        wire::source_message(wire::pb::SourceMessage::decode(frame)?)
    }

    /// Appends the message in its frame.
    pub fn encode(&self, out: &mut BytesMut) {
        put(&wire::source_message_to_wire(self), out);
    }
}

impl DestinationMessage {
    /// Parses the contents of a frame.
    ///
    /// # Errors
    /// [`DecodeError`] names the field and what is wrong with it.
    pub fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        wire::destination_message(wire::pb::DestinationMessage::decode(frame)?)
    }

    /// Appends the message in its frame.
    pub fn encode(&self, out: &mut BytesMut) {
        put(&wire::destination_message_to_wire(self), out);
    }
}
