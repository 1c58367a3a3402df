//! Packets to and from the controller.

use crate::action::{Action, decode_actions, encode_actions};
use crate::field::Field;
use crate::matching::Match;
use crate::wire::{DecodeError, Reader, patch_len};
use bytes::{BufMut, Bytes, BytesMut};

/// A packet from the switch (`OFPT_PACKET_IN` or `NXT_PACKET_IN2`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketIn {
    /// 0 table miss, 1 apply-action, 2 invalid TTL, 3 action set, 4 group, 5 packet-out.
    pub reason: u8,
    /// Table of the flow.
    pub table: u8,
    /// Cookie of the flow; all ones if there was none.
    pub cookie: u64,
    /// Length of the whole packet; `data` may be shorter.
    pub total_len: u32,
    /// Pipeline fields: `in_port`, metadata, registers, tunnel.
    pub metadata: Match,
    /// Userdata of [`crate::action::Controller`] (`NXT_PACKET_IN2` only).
    pub userdata: Bytes,
    /// Continuation of a paused pipeline (`NXT_PACKET_IN2` only).
    pub continuation: Option<Bytes>,
    /// The packet, from the Ethernet header on.
    pub data: Bytes,
}

impl PacketIn {
    /// The port the packet came in by.
    pub fn in_port(&self) -> Option<u32> {
        self.metadata.field(Field::InPort).and_then(|f| u32::try_from(f.value).ok())
    }

    pub(crate) fn decode(mut r: Reader<'_>) -> Result<PacketIn, DecodeError> {
        r.skip(4)?;
        let total_len = u32::from(r.u16()?);
        let reason = r.u8()?;
        let table = r.u8()?;
        let cookie = r.u64()?;
        let metadata = Match::decode(&mut r)?;
        r.skip(2)?;
        let data = Bytes::copy_from_slice(r.rest());
        Ok(PacketIn { reason, table, cookie, total_len, metadata, data, ..PacketIn::default() })
    }

    pub(crate) fn decode_nxt2(mut r: Reader<'_>) -> Result<PacketIn, DecodeError> {
        let mut p = PacketIn { cookie: u64::MAX, ..PacketIn::default() };
        while !r.is_empty() {
            let (kind, mut v) = r.property()?;
            match kind {
                0 => p.data = Bytes::copy_from_slice(v.rest()),
                1 => p.total_len = v.u32()?,
                3 => p.table = v.u8()?,
                4 => {
                    // A be64 property is padded to 8 bytes after its header.
                    v.skip(4)?;
                    p.cookie = v.u64()?;
                }
                5 => p.reason = v.u8()?,
                6 => p.metadata = Match::from_oxm(v)?,
                7 => p.userdata = Bytes::copy_from_slice(v.rest()),
                8 => p.continuation = Some(Bytes::copy_from_slice(v.rest())),
                _ => {}
            }
        }
        if p.total_len == 0 {
            p.total_len = u32::try_from(p.data.len()).unwrap_or(u32::MAX);
        }
        Ok(p)
    }
}

/// A packet for the switch (`struct ofp15_packet_out`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketOut {
    /// Pipeline fields; `in_port` is required (use [`crate::action::port::CONTROLLER`] for none).
    pub metadata: Match,
    /// What to do with it.
    pub actions: Vec<Action>,
    /// The packet, from the Ethernet header on.
    pub data: Bytes,
}

impl PacketOut {
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(u32::MAX);
        out.put_u32(0);
        self.metadata.encode(out);
        let at = out.len();
        encode_actions(&self.actions, out);
        let len = out.len().saturating_sub(at);
        patch_len(out, start, 4, len);
        out.put_slice(&self.data);
    }

    pub(crate) fn decode(mut r: Reader<'_>) -> Result<PacketOut, DecodeError> {
        r.skip(4)?;
        let len = r.u16()?;
        r.skip(2)?;
        let metadata = Match::decode(&mut r)?;
        let actions = decode_actions(r.sub(usize::from(len), "packet-out actions")?, 0)?;
        Ok(PacketOut { metadata, actions, data: Bytes::copy_from_slice(r.rest()) })
    }
}
