//! The learn action: a flow made from a packet (`NXAST_LEARN`, `NXAST_LEARN2`).

use crate::action::put_nx;
use crate::field::{Field, Header, SubField};
use crate::wire::{DecodeError, Reader, put_uint};
use bytes::{BufMut, BytesMut};

/// Flags of [`Learn`] (`NX_LEARN_F_*`).
pub mod learn_flags {
    /// The learned flow reports its removal.
    pub const SEND_FLOW_REM: u16 = 1;
    /// The learned flows go with this action.
    pub const DELETE_LEARNED: u16 = 2;
}

/// What to learn. With `limit` 0 it is sent as `NXAST_LEARN`, otherwise as `NXAST_LEARN2`; Open vSwitch gives it back alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Learn {
    /// Seconds without packets until the learned flow goes; 0 never.
    pub idle_timeout: u16,
    /// Seconds until the learned flow goes; 0 never.
    pub hard_timeout: u16,
    /// Priority of the learned flow.
    pub priority: u16,
    /// Cookie of the learned flow.
    pub cookie: u64,
    /// See [`learn_flags`].
    pub flags: u16,
    /// Table of the learned flow, not 255.
    pub table: u8,
    /// Idle timeout after a TCP FIN or RST; 0 for no change.
    pub fin_idle_timeout: u16,
    /// Hard timeout after a TCP FIN or RST; 0 for no change.
    pub fin_hard_timeout: u16,
    /// Flows with this cookie in this table at most; 0 for no limit.
    pub limit: u32,
    /// How the flow is made.
    pub specs: Vec<LearnSpec>,
}

/// Where a [`LearnSpec`] takes bits from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LearnSrc {
    /// From the packet.
    Field(SubField),
    /// A number.
    Value(crate::action::Value, u16),
}

/// One part of the learned flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LearnSpec {
    /// The flow matches these bits at `(field, first bit)`.
    Match(LearnSrc, (Field, u16)),
    /// The flow writes these bits to `(field, first bit)`.
    Load(LearnSrc, (Field, u16)),
    /// The flow sends to the port that this part of the packet names.
    Output(SubField),
}

const DST_MATCH: u16 = 0;
const DST_LOAD: u16 = 1 << 11;
const DST_OUTPUT: u16 = 2 << 11;
const DST_MASK: u16 = 3 << 11;
const SRC_IMMEDIATE: u16 = 1 << 13;
const N_BITS_MASK: u16 = 0x3ff;

impl LearnSrc {
    /// A number of `n_bits` ≤ 128 bits.
    pub fn value(value: u128, n_bits: u16) -> LearnSrc {
        let ones = u128::MAX.checked_shr(128u32.saturating_sub(u32::from(n_bits))).unwrap_or(0);
        LearnSrc::Value((value & ones).into(), n_bits)
    }

    fn n_bits(self) -> u16 {
        match self {
            LearnSrc::Field(s) => s.n_bits,
            LearnSrc::Value(_, n) => n,
        }
    }
}

impl LearnSpec {
    /// The flow matches the same field as in the packet.
    pub const fn same(field: Field) -> LearnSpec {
        LearnSpec::Match(LearnSrc::Field(field.whole()), (field, 0))
    }

    fn encode(&self, out: &mut BytesMut) {
        let (src, kind, dst) = match *self {
            LearnSpec::Match(src, dst) => (src, DST_MATCH, Some(dst)),
            LearnSpec::Load(src, dst) => (src, DST_LOAD, Some(dst)),
            LearnSpec::Output(src) => (LearnSrc::Field(src), DST_OUTPUT, None),
        };
        let n_bits = src.n_bits() & N_BITS_MASK;
        match src {
            LearnSrc::Field(s) => {
                out.put_u16(n_bits | kind);
                out.put_u32(s.field.nxm_header());
                out.put_u16(s.start);
            }
            LearnSrc::Value(v, _) => {
                out.put_u16(n_bits | kind | SRC_IMMEDIATE);
                put_uint(out, v.get(), 2 * usize::from(n_bits.div_ceil(16)));
            }
        }
        if let Some((field, start)) = dst {
            out.put_u32(field.nxm_header());
            out.put_u16(start);
        }
    }

    /// `None` for a form this crate does not know: the whole action is then kept raw.
    fn decode(head: u16, r: &mut Reader<'_>) -> Result<Option<LearnSpec>, DecodeError> {
        let n_bits = head & N_BITS_MASK;
        let src = if head & SRC_IMMEDIATE != 0 {
            let bytes = 2 * usize::from(n_bits.div_ceil(16));
            if bytes > 16 {
                return Ok(None);
            }
            LearnSrc::value(r.uint(bytes)?, n_bits)
        } else {
            let Some(field) = Header::read_field(r)? else { return Ok(None) };
            LearnSrc::Field(field.slice(r.u16()?, n_bits))
        };
        let kind = head & DST_MASK;
        if kind == DST_OUTPUT {
            return Ok(match src {
                LearnSrc::Field(s) => Some(LearnSpec::Output(s)),
                LearnSrc::Value(..) => None,
            });
        }
        let Some(field) = Header::read_field(r)? else { return Ok(None) };
        let dst = (field, r.u16()?);
        Ok(match kind {
            DST_MATCH => Some(LearnSpec::Match(src, dst)),
            DST_LOAD => Some(LearnSpec::Load(src, dst)),
            _ => None,
        })
    }
}

impl Learn {
    /// Header and body without the final padding and length.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        put_nx(out, if self.limit == 0 { 16 } else { 45 });
        out.put_u16(self.idle_timeout);
        out.put_u16(self.hard_timeout);
        out.put_u16(self.priority);
        out.put_u64(self.cookie);
        out.put_u16(self.flags);
        out.put_u8(self.table);
        out.put_u8(0);
        out.put_u16(self.fin_idle_timeout);
        out.put_u16(self.fin_hard_timeout);
        if self.limit != 0 {
            out.put_u32(self.limit);
            out.put_u32(0);
        }
        for spec in &self.specs {
            spec.encode(out);
        }
    }

    /// After the subtype. `None` keeps the action raw.
    pub(crate) fn decode(mut r: Reader<'_>, second: bool) -> Result<Option<Learn>, DecodeError> {
        let mut learn = Learn {
            idle_timeout: r.u16()?,
            hard_timeout: r.u16()?,
            priority: r.u16()?,
            cookie: r.u64()?,
            flags: r.u16()?,
            table: r.u8()?,
            ..Learn::default()
        };
        r.skip(1)?;
        learn.fin_idle_timeout = r.u16()?;
        learn.fin_hard_timeout = r.u16()?;
        if second {
            learn.limit = r.u32()?;
            r.skip(4)?;
        }
        if learn.flags & !(learn_flags::SEND_FLOW_REM | learn_flags::DELETE_LEARNED) != 0 {
            return Ok(None);
        }
        while r.len() >= 2 {
            let head = r.u16()?;
            // A zero header is the padding.
            if head == 0 {
                break;
            }
            let Some(spec) = LearnSpec::decode(head, &mut r)? else { return Ok(None) };
            learn.specs.push(spec);
        }
        Ok(Some(learn))
    }
}
