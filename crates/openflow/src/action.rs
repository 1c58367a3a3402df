//! Actions: what a flow or a bucket does with a packet. Learning is in `learn.rs`.

use crate::field::{Field, Header, SubField, put_entry};
use crate::learn::Learn;
use crate::wire::{DecodeError, Reader, end_padded, patch_len, put_pad8};
use bytes::{BufMut, BytesMut};

/// Nesting of [`Action::Clone`] that is decoded.
pub const MAX_DEPTH: u8 = 16;

/// Nicira's experimenter id.
pub(crate) const NX: u32 = 0x0000_2320;

/// Reserved port numbers (`enum ofp_port_no`). Ordinary ports are 1..=0xfeff in Open vSwitch.
pub mod port {
    /// Back where the packet came from.
    pub const IN_PORT: u32 = 0xffff_fff8;
    /// Through the flow tables (packet-out only).
    pub const TABLE: u32 = 0xffff_fff9;
    /// Ordinary L2 switching.
    pub const NORMAL: u32 = 0xffff_fffa;
    /// All ports but the input port and those that do not flood.
    pub const FLOOD: u32 = 0xffff_fffb;
    /// All ports but the input port.
    pub const ALL: u32 = 0xffff_fffc;
    /// To the controller.
    pub const CONTROLLER: u32 = 0xffff_fffd;
    /// The bridge's own port.
    pub const LOCAL: u32 = 0xffff_fffe;
    /// No port, or no restriction.
    pub const ANY: u32 = 0xffff_ffff;
    /// [`TABLE`] in the 16 bits of OpenFlow 1.0, as in [`super::Action::OutputTrunc`].
    pub const TABLE_16: u16 = 0xfff9;
}

/// `max_len` that asks for the whole packet.
pub const NO_BUFFER: u16 = 0xffff;

/// A 128-bit value without 16-byte alignment, so that [`Action`] stays small.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value([u64; 2]);

impl Value {
    /// The number.
    pub const fn get(self) -> u128 {
        ((self.0[0] as u128) << 64) | self.0[1] as u128
    }
}

impl From<u128> for Value {
    #[allow(clippy::cast_possible_truncation, reason = "splits into two halves")]
    fn from(v: u128) -> Self {
        Value([(v >> 64) as u64, v as u64])
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.get())
    }
}

/// One action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Send to a port.
    Output {
        /// See [`port`].
        port: u32,
        /// Bytes for the controller; 0 for other ports.
        max_len: u16,
    },
    /// Send to the port whose number stands in a field.
    OutputReg {
        /// Where the number stands.
        src: SubField,
        /// Bytes for the controller.
        max_len: u16,
    },
    /// Send no more than the first bytes to a port (`NXAST_OUTPUT_TRUNC`).
    OutputTrunc {
        /// The port, 16 bits. To `TABLE`, `NORMAL`, `FLOOD`, `ALL` and `CONTROLLER` nothing is sent.
        port: u16,
        /// Bytes, at least 14.
        max_len: u32,
    },
    /// Send to the controller with data (`NXAST_CONTROLLER2`).
    Controller(Box<Controller>),
    /// Through a group.
    Group(u32),
    /// Choose the queue for the following outputs.
    SetQueue(u32),
    /// The following outputs use the queue that the packet came with (`NXAST_POP_QUEUE`).
    PopQueue,
    /// Through a meter; must be a flow's first action.
    Meter(u32),
    /// Push a VLAN tag with this Ethernet type (0x8100 or 0x88a8).
    PushVlan(u16),
    /// Pop the outer VLAN tag.
    PopVlan,
    /// Decrement the TTL; at 0 the packet is dropped or sent to the controller.
    DecTtl,
    /// Set bits of a field. Make it with [`Action::set_field`] or [`Action::set_masked`].
    SetField {
        /// The field.
        field: Field,
        /// New bits, 0 outside of `mask`.
        value: Value,
        /// Bits to set.
        mask: Value,
    },
    /// Copy bits between fields; both parts have the same width.
    CopyField {
        /// From.
        src: SubField,
        /// Lowest bit to write: `(field, bit)`.
        dst: (Field, u16),
    },
    /// Look up again (`NXAST_RESUBMIT`, `NXAST_RESUBMIT_TABLE`).
    Resubmit {
        /// Input port for that lookup, 16 bits; `None` keeps the current one.
        in_port: Option<u16>,
        /// The table; `None` is the current one.
        table: Option<u8>,
    },
    /// Make a flow from this packet.
    Learn(Box<Learn>),
    /// Run actions on a copy.
    Clone(Box<[Action]>),
    /// Set one bit to whether the packet is larger than `len` bytes (Ethernet header included).
    CheckPktLarger {
        /// Bytes.
        len: u16,
        /// The field and the bit that gets the answer.
        dst: (Field, u16),
    },
    /// An action this crate does not know, header included.
    Other(Box<[u8]>),
}

/// What `NXAST_CONTROLLER2` says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Controller {
    /// Bytes of the packet to send; [`NO_BUFFER`] for all.
    pub max_len: u16,
    /// The connection that gets it (set there by `NXT_SET_CONTROLLER_ID`); 0 is the default.
    pub controller_id: u16,
    /// Reason in the packet-in; 1 (action) is the default.
    pub reason: u8,
    /// Comes back in the packet-in ([`crate::PacketIn::userdata`]), if that is in `NXT_PACKET_IN2` form.
    pub userdata: Box<[u8]>,
    /// Meter to pass first.
    pub meter: Option<u32>,
    /// Stop here and let the controller resume.
    pub pause: bool,
}

impl Default for Controller {
    fn default() -> Self {
        Controller {
            max_len: NO_BUFFER,
            controller_id: 0,
            reason: 1,
            userdata: Box::default(),
            meter: None,
            pause: false,
        }
    }
}

impl Action {
    /// Sends to a port.
    pub const fn output(port: u32) -> Action {
        Action::Output { port, max_len: 0 }
    }

    /// Sets a whole field. Bits beyond its width are dropped.
    pub fn set_field(field: Field, value: u128) -> Action {
        Action::set_masked(field, value, field.all_ones())
    }

    /// Sets the bits of `mask`.
    pub fn set_masked(field: Field, value: u128, mask: u128) -> Action {
        let mask = mask & field.all_ones();
        Action::SetField { field, value: (value & mask).into(), mask: mask.into() }
    }

    /// Sets the bits of a part to a number.
    pub fn load(dst: SubField, value: u128) -> Action {
        let ones = u128::MAX.checked_shr(128u32.saturating_sub(u32::from(dst.n_bits))).unwrap_or(0);
        let shift = |v: u128| v.checked_shl(u32::from(dst.start)).unwrap_or(0);
        Action::set_masked(dst.field, shift(value & ones), shift(ones))
    }

    /// Looks up in a table with the same input port.
    pub const fn resubmit(table: u8) -> Action {
        Action::Resubmit { in_port: None, table: Some(table) }
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        match self {
            Action::Output { port, max_len } => {
                out.put_u32(0x0000_0010);
                out.put_u32(*port);
                out.put_u16(*max_len);
                out.put_bytes(0, 6);
            }
            Action::Group(id) => put_u32_action(out, 22, *id),
            Action::SetQueue(id) => put_u32_action(out, 21, *id),
            Action::PopQueue => {
                put_nx(out, 5);
                end_padded(out, start);
            }
            Action::Meter(id) => put_u32_action(out, 29, *id),
            Action::PushVlan(ethertype) => put_u32_action(out, 17, u32::from(*ethertype) << 16),
            Action::PopVlan => put_u32_action(out, 18, 0),
            Action::DecTtl => put_u32_action(out, 24, 0),
            Action::SetField { field, value, mask } => {
                out.put_u32(25 << 16);
                put_entry(out, *field, value.get(), mask.get());
                end_padded(out, start);
            }
            Action::CopyField { src, dst } => {
                out.put_u32(28 << 16);
                out.put_u16(src.n_bits);
                out.put_u16(src.start);
                out.put_u16(dst.1);
                out.put_u16(0);
                out.put_u32(src.field.oxm_header(false));
                out.put_u32(dst.0.oxm_header(false));
                end_padded(out, start);
            }
            Action::OutputReg { src, max_len } => {
                let header = src.field.nxm_header();
                put_nx(out, if header >> 16 <= 1 { 15 } else { 32 });
                out.put_u16(ofs_nbits(*src));
                if header >> 16 <= 1 {
                    out.put_u32(header);
                    out.put_u16(*max_len);
                    out.put_bytes(0, 6);
                } else {
                    out.put_u16(*max_len);
                    out.put_u32(header);
                    out.put_bytes(0, 6);
                }
                end_padded(out, start);
            }
            Action::Resubmit { in_port, table: None } => {
                put_nx(out, 1);
                out.put_u16(in_port.unwrap_or(0xfff8));
                end_padded(out, start);
            }
            Action::Resubmit { in_port, table: Some(table) } => {
                put_nx(out, 14);
                out.put_u16(in_port.unwrap_or(0xfff8));
                out.put_u8(*table);
                end_padded(out, start);
            }
            Action::OutputTrunc { port, max_len } => {
                put_nx(out, 39);
                out.put_u16(*port);
                out.put_u32(*max_len);
                end_padded(out, start);
            }
            Action::CheckPktLarger { len, dst } => {
                put_nx(out, 49);
                out.put_u16(*len);
                out.put_u16(dst.1);
                out.put_u32(dst.0.nxm_header());
                out.put_bytes(0, 6);
                end_padded(out, start);
            }
            Action::Clone(actions) => {
                put_nx(out, 42);
                out.put_bytes(0, 6);
                encode_actions(actions, out);
                end_padded(out, start);
            }
            Action::Learn(learn) => {
                learn.encode(out);
                end_padded(out, start);
            }
            Action::Controller(c) => {
                put_nx(out, 37);
                out.put_bytes(0, 6);
                c.encode(out);
                end_padded(out, start);
            }
            Action::Other(raw) => out.put_slice(raw),
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>, depth: u8) -> Result<Action, DecodeError> {
        let whole = *r;
        let kind = r.u16()?;
        let len = r.u16()?;
        if len < 8 || len % 8 != 0 {
            return Err(DecodeError::BadLength { what: "action", len: usize::from(len) });
        }
        let body = r.body(len, 4, "action")?;
        let known = match kind {
            0xffff => decode_experimenter(body, depth)?,
            _ => decode_standard(kind, body)?,
        };
        match known {
            Some(action) => Ok(action),
            None => {
                let mut whole = whole;
                Ok(Action::Other(whole.take(usize::from(len))?.into()))
            }
        }
    }
}

impl Controller {
    fn encode(&self, out: &mut BytesMut) {
        // struct ofp_prop_header of a 2- or 1-byte value stands alone in 8 bytes.
        let mut small = |kind: u16, len: u16, value: u32| {
            out.put_u16(kind);
            out.put_u16(len);
            out.put_u32(value);
        };
        if self.max_len != NO_BUFFER {
            small(0, 6, u32::from(self.max_len) << 16);
        }
        if self.controller_id != 0 {
            small(1, 6, u32::from(self.controller_id) << 16);
        }
        if self.reason != 1 {
            small(2, 5, u32::from(self.reason) << 24);
        }
        if !self.userdata.is_empty() {
            let start = out.len();
            out.put_u32(3 << 16);
            out.put_slice(&self.userdata);
            let len = out.len().saturating_sub(start);
            patch_len(out, start, 2, len);
            put_pad8(out, start);
        }
        if self.pause {
            out.put_u16(4);
            out.put_u16(4);
            out.put_u32(0);
        }
        if let Some(meter) = self.meter {
            out.put_u16(5);
            out.put_u16(8);
            out.put_u32(meter);
        }
    }

    fn decode(mut r: Reader<'_>) -> Result<Option<Controller>, DecodeError> {
        let mut c = Controller::default();
        while !r.is_empty() {
            let (kind, mut p) = r.property()?;
            match kind {
                0 => c.max_len = p.u16()?,
                1 => c.controller_id = p.u16()?,
                2 => c.reason = p.u8()?,
                3 => c.userdata = p.rest().into(),
                4 => c.pause = true,
                5 => c.meter = Some(p.u32()?).filter(|&m| m != 0),
                _ => return Ok(None),
            }
        }
        Ok(Some(c))
    }
}

fn decode_standard(kind: u16, mut b: Reader<'_>) -> Result<Option<Action>, DecodeError> {
    Ok(Some(match kind {
        0 => Action::Output { port: b.u32()?, max_len: b.u16()? },
        17 => Action::PushVlan(b.u16()?),
        18 => Action::PopVlan,
        21 => Action::SetQueue(b.u32()?),
        22 => Action::Group(b.u32()?),
        24 => Action::DecTtl,
        29 => Action::Meter(b.u32()?),
        25 => {
            let h = Header::read(&mut b)?;
            let Some(field) = h.field else { return Ok(None) };
            let value = b.uint(field.bytes())?;
            let mask = if h.masked { b.uint(field.bytes())? } else { field.all_ones() };
            Action::set_masked(field, value, mask)
        }
        28 => {
            let n_bits = b.u16()?;
            let start = b.u16()?;
            let dst_start = b.u16()?;
            b.skip(2)?;
            match (Header::read_field(&mut b)?, Header::read_field(&mut b)?) {
                (Some(src), Some(dst)) => {
                    Action::CopyField { src: src.slice(start, n_bits), dst: (dst, dst_start) }
                }
                _ => return Ok(None),
            }
        }
        _ => return Ok(None),
    }))
}

fn decode_experimenter(mut b: Reader<'_>, depth: u8) -> Result<Option<Action>, DecodeError> {
    if b.u32()? != NX || b.len() < 2 {
        return Ok(None);
    }
    Ok(Some(match b.u16()? {
        1 => Action::Resubmit { in_port: resubmit_port(b.u16()?), table: None },
        5 => Action::PopQueue,
        14 => {
            let in_port = resubmit_port(b.u16()?);
            Action::Resubmit { in_port, table: Some(b.u8()?).filter(|&t| t != 0xff) }
        }
        15 => {
            let bits = b.u16()?;
            let Some(field) = Header::read_field(&mut b)? else { return Ok(None) };
            Action::OutputReg { src: sub_field(field, bits), max_len: b.u16()? }
        }
        32 => {
            let bits = b.u16()?;
            let max_len = b.u16()?;
            let Some(field) = Header::read_field(&mut b)? else { return Ok(None) };
            Action::OutputReg { src: sub_field(field, bits), max_len }
        }
        16 => match Learn::decode(b, false)? {
            Some(learn) => Action::Learn(Box::new(learn)),
            None => return Ok(None),
        },
        45 => match Learn::decode(b, true)? {
            Some(learn) => Action::Learn(Box::new(learn)),
            None => return Ok(None),
        },
        37 => {
            b.skip(6)?;
            match Controller::decode(b)? {
                Some(c) => Action::Controller(Box::new(c)),
                None => return Ok(None),
            }
        }
        39 => Action::OutputTrunc { port: b.u16()?, max_len: b.u32()? },
        42 => {
            b.skip(6)?;
            let depth =
                depth.checked_add(1).filter(|&d| d <= MAX_DEPTH).ok_or(DecodeError::TooDeep(MAX_DEPTH))?;
            Action::Clone(decode_actions(b, depth)?.into())
        }
        49 => {
            let len = b.u16()?;
            let offset = b.u16()?;
            let Some(field) = Header::read_field(&mut b)? else { return Ok(None) };
            Action::CheckPktLarger { len, dst: (field, offset) }
        }
        _ => return Ok(None),
    }))
}

fn resubmit_port(port: u16) -> Option<u16> {
    (port != 0xfff8).then_some(port)
}

/// `(ofs << 6) | (n_bits - 1)`, as the older actions pack a part of at most 64 bits.
fn ofs_nbits(s: SubField) -> u16 {
    (s.start << 6) | (s.n_bits.wrapping_sub(1) & 0x3f)
}

fn sub_field(field: Field, packed: u16) -> SubField {
    field.slice(packed >> 6, (packed & 0x3f) + 1)
}

fn put_u32_action(out: &mut BytesMut, kind: u16, value: u32) {
    out.put_u16(kind);
    out.put_u16(8);
    out.put_u32(value);
}

/// The header of a Nicira action; its length is set by [`end_padded`].
pub(crate) fn put_nx(out: &mut BytesMut, subtype: u16) {
    out.put_u32(0xffff_0000);
    out.put_u32(NX);
    out.put_u16(subtype);
}

pub(crate) fn encode_actions(actions: &[Action], out: &mut BytesMut) {
    for action in actions {
        action.encode(out);
    }
}

pub(crate) fn decode_actions(mut r: Reader<'_>, depth: u8) -> Result<Vec<Action>, DecodeError> {
    let mut actions = Vec::new();
    while !r.is_empty() {
        actions.push(Action::decode(&mut r, depth)?);
    }
    Ok(actions)
}
