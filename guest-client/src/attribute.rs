//! Netlink messages and their attributes (`linux/netlink.h`): cuts bytes apart, knows none of their meanings.
//!
//! Only the few attributes that [`crate::translate`] asks for are looked at, so that one of an unknown form
//! costs nothing else of the message.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A message of the kernel that ends too early or contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// Fewer bytes than the header needs, or says.
    #[error("{what} of {len} bytes, shorter than {want}")]
    Short {
        /// Which structure.
        what: &'static str,
        /// Bytes there.
        len: usize,
        /// Bytes needed.
        want: usize,
    },
    /// An attribute whose contents are of the wrong length.
    #[error("attribute {kind} has {len} bytes, not {want}")]
    Length {
        /// Its type number.
        kind: u16,
        /// Bytes there.
        len: usize,
        /// Bytes it should have.
        want: &'static str,
    },
    /// An attribute that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number out of its range.
    #[error("{what} is {value}, which is out of range")]
    Range {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u32,
    },
}

/// Bytes of `struct nlmsghdr`.
pub const MESSAGE_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// Bits of the type that are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const TYPE_MASK: u16 = 0x3fff;

/// One message of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request it answers.
    pub sequence: u32,
    /// `nlmsg_pid`: who asked, 0 for an event.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages of one datagram.
#[derive(Debug, Clone, Copy)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Of these bytes.
    #[must_use]
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, NetlinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let short = |want| NetlinkError::Short { what: "message", len: bytes.len(), want };
        let Some(length) = u32_at(bytes, 0) else { return Some(Err(short(MESSAGE_HEADER))) };
        let length = length as usize;
        if length < MESSAGE_HEADER {
            return Some(Err(NetlinkError::Short { what: "message", len: length, want: MESSAGE_HEADER }));
        }
        let (Some(kind), Some(flags), Some(sequence), Some(port), Some(payload)) = (
            u16_at(bytes, 4),
            u16_at(bytes, 6),
            u32_at(bytes, 8),
            u32_at(bytes, 12),
            bytes.get(MESSAGE_HEADER..length),
        ) else {
            return Some(Err(short(length)));
        };
        self.0 = bytes.get(align(length)..).unwrap_or_default();
        Some(Ok(Message { kind, flags, sequence, port, payload }))
    }
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type, without flags.
    pub kind: u16,
    /// Its contents.
    pub value: &'a [u8],
}

/// The attributes in some bytes. Ends at the first that does not fit, as the kernel's `nla_for_each_attr` does.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Of these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        self.0 = bytes.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

impl<'a> Attribute<'a> {
    fn length(&self, want: &'static str) -> NetlinkError {
        NetlinkError::Length { kind: self.kind, len: self.value.len(), want }
    }

    /// A number of 32 bits.
    ///
    /// # Errors
    /// [`NetlinkError::Length`] if it is shorter.
    pub fn u32(&self) -> Result<u32, NetlinkError> {
        u32_at(self.value, 0).ok_or_else(|| self.length("4"))
    }

    /// An address of either family, by its length.
    ///
    /// # Errors
    /// [`NetlinkError::Length`] if it has neither 4 nor 16 bytes.
    pub fn address(&self) -> Result<IpAddr, NetlinkError> {
        address(self.value).ok_or_else(|| self.length("4 or 16"))
    }

    /// Text up to the first zero byte, of printable ASCII only (others become `?`), at most `max` bytes.
    #[must_use]
    pub fn text(&self, max: usize) -> String {
        let bytes = self.value.iter().take_while(|&&byte| byte != 0).take(max);
        bytes.map(|&b| if b.is_ascii_graphic() { char::from(b) } else { '?' }).collect()
    }

    /// The attributes inside.
    #[must_use]
    pub fn nested(&self) -> Attributes<'a> {
        Attributes(self.value)
    }
}

/// An address in network byte order, by its length.
#[must_use]
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Some(Ipv4Addr::from(v4).into())
    } else {
        <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).into())
    }
}

/// A number in the byte order of this machine.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|raw| u16::from_ne_bytes(*raw))
}

/// A number in the byte order of this machine.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|raw| u32::from_ne_bytes(*raw))
}

/// Messages and attributes start at multiples of 4 (`NLMSG_ALIGN`, `NLA_ALIGN`).
#[must_use]
pub const fn align(length: usize) -> usize {
    (length + 3) & !3
}
