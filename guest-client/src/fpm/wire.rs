//! The bytes between zebra's `dplane_fpm_nl` and us: netlink messages in frames on a stream.
//!
//! Format (FRR's `fpm/fpm.h` and `zebra/dplane_fpm_nl.c`): version 1, type 1 (netlink), the frame's length with
//! these four bytes as a big-endian number of 16 bits, then one netlink message or several, in this machine's byte order. Any
//! local process may connect, so nothing of what comes is trusted further than to be answered.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ipnet::IpNet;
use xenflow_proto::table::{Route, RouteKey};

use crate::attribute::{MESSAGE_HEADER, Message, Messages, NetlinkError};
use crate::translate::{AF_INET, AF_INET6, Event, rtm, translate};

/// Bytes of the header of a frame.
const FRAME_HEADER: usize = 4;
const VERSION: u8 = 1;
const NETLINK: u8 = 1;
/// `struct rtmsg`.
const ROUTE_HEADER: usize = 12;

const RT_TABLE_UNSPEC: u32 = 0;
const RT_TABLE_MAIN: u32 = 254;
const RTPROT_KERNEL: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
const NLM_F_REQUEST: u16 = 1;
/// `linux/rtnetlink.h`.
const RTM_F_OFFLOAD: u32 = 0x4000;
const RTM_F_OFFLOAD_FAILED: u32 = 0x2000_0000;

/// Bytes that zebra does not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Another version.
    #[error("FPM version {0}, not {VERSION}")]
    Version(u8),
    /// Another encoding, as protobuf (2).
    #[error("FPM message of type {0}, not netlink ({NETLINK})")]
    Kind(u8),
    /// Shorter than its header.
    #[error("FPM frame of {0} bytes, shorter than its header")]
    Length(u16),
    /// What is in a frame is no netlink.
    #[error("FPM frame")]
    Message(#[from] NetlinkError),
    /// More routes than a guest may have.
    #[error("zebra tells of more than {0} prefixes")]
    TooMany(usize),
}

/// Cuts a stream into frames. A frame has fewer than 64 KiB, so there is no more of one here.
#[derive(Debug, Default)]
pub struct Decoder(BytesMut);

impl Decoder {
    /// Where bytes that were received are to be appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.0
    }

    /// Takes out the contents of the next frame, once it is whole.
    ///
    /// # Errors
    /// [`WireError`]: the stream cannot be read any further.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some(&[version, kind, high, low]) = self.0.first_chunk::<FRAME_HEADER>() else { return Ok(None) };
        let length = u16::from_be_bytes([high, low]);
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        if kind != NETLINK {
            return Err(WireError::Kind(kind));
        }
        if usize::from(length) < FRAME_HEADER {
            return Err(WireError::Length(length));
        }
        if self.0.len() < usize::from(length) {
            return Ok(None);
        }
        let mut frame = self.0.split_to(length.into()).freeze();
        frame.advance(FRAME_HEADER);
        Ok(Some(frame))
    }
}

/// What zebra says of a prefix of a table: it has one route there, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It put this one into the kernel, in place of what it had there before.
    Put(Asked),
    /// It took away what it had there.
    Gone(Prefix),
}

/// A prefix of a routing table, by the kernel's number.
pub type Prefix = (u32, IpNet);

/// A route of zebra's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// As the kernel knows it.
    pub key: RouteKey,
    /// `rtm_protocol`: by this zebra knows whose it is.
    pub protocol: u8,
    /// `rtm_type`.
    pub kind: u8,
}

impl Asked {
    /// Where it is.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        (self.key.table, self.key.dst)
    }
}

/// The words of a frame. Others than those of routes that zebra itself put into the kernel are left out.
///
/// # Errors
/// [`WireError::Message`]: messages do not fit, or a route makes no sense.
pub fn words(frame: &[u8]) -> impl Iterator<Item = Result<Word, WireError>> {
    Messages::new(frame).filter_map(|message| message.and_then(|message| word(&message)).transpose()).map(
        |word| match word {
            Ok(word) => Ok(word),
            Err(error) => Err(error.into()),
        },
    )
}

fn word(message: &Message<'_>) -> Result<Option<Word>, NetlinkError> {
    if !matches!(message.kind, rtm::NEWROUTE | rtm::DELROUTE) {
        return Ok(None);
    }
    let source_specific = message.payload.get(2).is_some_and(|&length| length != 0);
    let (route, gone) = match translate(message)? {
        Some(Event::Route(route, _)) => (route, false),
        Some(Event::RouteGone(route)) => (route, true),
        Some(Event::Upsert(_) | Event::Remove(_)) | None => return Ok(None),
    };
    // Of one prefix there may be several such, and no key of ours tells them apart: they stay unanswered.
    if source_specific {
        return Ok(None);
    }
    let Route { mut key, kind, protocol, .. } = route;
    // A zebra that was started with --routing-table=0 so says "main", as the kernel does with it.
    if key.table == RT_TABLE_UNSPEC {
        key.table = RT_TABLE_MAIN;
    }
    let asked = Asked { key, protocol, kind: kind.into() };
    Ok(match (gone, protocol) {
        (true, _) => Some(Word::Gone(asked.prefix())),
        // What zebra heard from the kernel (connected routes above all) nobody waits for.
        (false, 0..=RTPROT_KERNEL) => None,
        (false, _) => Some(Word::Put(asked)),
    })
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Of which route.
    pub asked: Asked,
    /// By which number zebra knows the VRF: its interface's, 0 for none. Zebra *tells* the table, but *reads* this.
    pub vrf: u32,
    /// The host forwards by it.
    pub offloaded: bool,
}

impl Answer {
    /// Appends it in its frame. Zebra looks at prefix, protocol and flags, and at no next hop.
    pub fn encode(&self, out: &mut BytesMut) {
        let Asked { key, protocol, kind } = self.asked;
        let mut message = Vec::with_capacity(MESSAGE_HEADER + ROUTE_HEADER + 40);
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&rtm::NEWROUTE.to_ne_bytes());
        // Zebra skips what has no such flag.
        message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        let (family, address) = match key.dst {
            IpNet::V4(net) => (AF_INET, net.addr().octets().to_vec()),
            IpNet::V6(net) => (AF_INET6, net.addr().octets().to_vec()),
        };
        let small = u8::try_from(self.vrf).unwrap_or_default();
        message.extend_from_slice(&[family, key.dst.prefix_len(), 0, key.tos, small, protocol, 0, kind]);
        let flags = if self.offloaded { RTM_F_OFFLOAD } else { RTM_F_OFFLOAD_FAILED };
        message.extend_from_slice(&flags.to_ne_bytes());
        attribute(&mut message, RTA_DST, &address);
        attribute(&mut message, RTA_PRIORITY, &key.metric.to_ne_bytes());
        if u32::from(small) != self.vrf {
            attribute(&mut message, RTA_TABLE, &self.vrf.to_ne_bytes());
        }
        // All of it is below 100 bytes.
        let length = u16::try_from(message.len()).unwrap_or_default();
        message.splice(..4, u32::from(length).to_ne_bytes());
        out.put_slice(&[VERSION, NETLINK]);
        out.put_u16(length + FRAME_HEADER as u16);
        out.put_slice(&message);
    }
}

/// Contents are multiples of 4 bytes, so there is nothing to pad.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
}
