//! The messages of a session, version 1, as closed types; [`crate::wire`] converts them.
//!
//! A session: the guest sends `Hello`, the host answers `Welcome` or `Refusal`. Then the guest sends sequenced
//! messages: a snapshot (`SnapshotBegin`, `Changes` …, `SnapshotEnd`), or, where it knows what the host holds already,
//! what changed since (`Resume`, `Changes` …, `SnapshotEnd`); then `Changes` as they happen. The host answers `Ack` with the highest sequence number that its switch has confirmed; the guest keeps no more than
//! `Welcome::window` sequenced messages unacknowledged. Either end may `Ping` at any time.

use bytes::{Bytes, BytesMut};
use prost::Message as _;

use crate::digest::Digest;
use crate::frame::put_frame;
use crate::identity::Name;
use crate::table::{Change, Key, NeighborKey};
use crate::types::Seq;
use crate::wire::{self, pb};

pub use crate::wire::DecodeError;

/// The protocol version of this crate.
pub const VERSION: u32 = 1;
/// Most changes in one message.
pub const MAX_CHANGES: usize = 4096;
/// Most rejected keys in one acknowledgement, and as many accepted ones.
pub const MAX_REJECTED: usize = 4096;
/// Most neighbors that a host asks its guest to keep fresh.
pub const MAX_IN_USE: usize = 1024;
/// Most certificates of a chain, and most authorities.
pub const MAX_CERTIFICATES: usize = 8;
/// Longest certificate, in bytes of DER.
pub const MAX_CERTIFICATE: usize = 8 << 10;
/// Most bytes of a text for people (agent, reason); longer ones are cut.
pub const MAX_TEXT: usize = 256;

/// What a guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestMessage {
    /// The first message.
    Hello(Hello),
    /// The whole of the tables follows.
    SnapshotBegin(Seq),
    /// Changes, in order.
    Changes {
        /// Number of this message.
        seq: Seq,
        /// At most [`MAX_CHANGES`].
        changes: Vec<Change>,
    },
    /// What [`Welcome::held`] says stands; what changed since follows.
    Resume(Seq),
    /// End-of-RIB: what was not upserted since the beginning of the snapshot is gone. Behind a `Resume`, nothing is.
    SnapshotEnd(Seq),
    /// Asks for a certificate in place of the one that ends soon, for the same key.
    Renew,
    /// Asks for a [`HostMessage::Pong`].
    Ping(u64),
    /// Answers a [`HostMessage::Ping`].
    Pong(u64),
}

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostMessage {
    /// The session is up.
    Welcome(Welcome),
    /// The switch confirmed everything up to `seq`.
    Ack {
        /// Of a sequenced message of this session.
        seq: Seq,
        /// What cannot be forwarded by the host and stays with the guest. At most [`MAX_REJECTED`].
        rejected: Vec<(Key, String)>,
        /// What was rejected earlier and is forwarded by the host from now on. At most [`MAX_REJECTED`].
        accepted: Vec<Key>,
    },
    /// Neighbors that the host sends to, for the guest to keep fresh; all of them. At most [`MAX_IN_USE`].
    InUse(Vec<NeighborKey>),
    /// Answers a [`GuestMessage::Renew`].
    Renewed(Renewed),
    /// The session ends.
    Refusal {
        /// For programs.
        reason: RefusalReason,
        /// For people.
        detail: String,
    },
    /// Asks for a [`GuestMessage::Pong`].
    Ping(u64),
    /// Answers a [`GuestMessage::Ping`].
    Pong(u64),
}

/// How a guest introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Protocol versions it speaks, at most 16.
    pub versions: Vec<u32>,
    /// The router it speaks for.
    pub router: Name,
    /// New at each boot of its kernel.
    pub boot_id: [u8; 16],
    /// Program and version, for the log.
    pub agent: String,
}

/// How the host answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version chosen.
    pub version: u32,
    /// The host.
    pub node: Name,
    /// Largest frame it takes, in bytes.
    pub max_frame_bytes: u32,
    /// Most changes it takes in a message.
    pub max_changes: u32,
    /// Most sequenced messages it leaves unacknowledged.
    pub window: u32,
    /// Of the tables that it holds of this boot of the guest, if it holds any.
    pub held: Option<Digest>,
}

/// A certificate for the key that the guest has, and whom to trust, each in DER of at most [`MAX_CERTIFICATE`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// The certificate, then those between it and an authority. 1 to [`MAX_CERTIFICATES`].
    pub chain: Vec<Vec<u8>>,
    /// The authorities. 1 to [`MAX_CERTIFICATES`].
    pub anchors: Vec<Vec<u8>>,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// Not said, or not known to this version.
    Other,
    /// No common protocol version.
    Version,
    /// The router is not the certificate's.
    Identity,
    /// The router is not configured on this node.
    UnknownRouter,
    /// A message broke the rules.
    Protocol,
    /// A limit was passed.
    Limit,
    /// A newer session of the same router took over.
    Replaced,
    /// The daemon stops.
    Shutdown,
}

impl GuestMessage {
    /// Parses the contents of a frame.
    ///
    /// # Errors
    /// [`DecodeError`] names the field and what is wrong with it.
    pub fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        wire::guest_message(pb::GuestMessage::decode(frame)?)
    }

    /// Appends the message in its frame.
    pub fn encode(&self, out: &mut BytesMut) {
        put(&wire::guest_message_to_wire(self), out);
    }
}

impl HostMessage {
    /// Parses the contents of a frame.
    ///
    /// # Errors
    /// [`DecodeError`] names the field and what is wrong with it.
    pub fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        wire::host_message(pb::HostMessage::decode(frame)?)
    }

    /// Appends the message in its frame.
    pub fn encode(&self, out: &mut BytesMut) {
        put(&wire::host_message_to_wire(self), out);
    }
}

pub(crate) fn put(message: &impl prost::Message, out: &mut BytesMut) {
    put_frame(out, message.encoded_len(), |out| {
        let encoded = message.encode(out);
        debug_assert!(encoded.is_ok(), "BytesMut grows");
    });
}
