//! Bytes: a checked reader and the few writers that every structure shares. It knows no OpenFlow message.

use bytes::{BufMut, BytesMut};

/// Why bytes are not the structure they claim to be. Names the structure, what it said and the rule it broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end inside a structure.
    #[error("{what}: needs {need} bytes, {have} are left")]
    Truncated {
        /// The structure being read.
        what: &'static str,
        /// Bytes the next item needs.
        need: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// A length field that cannot be right.
    #[error("{what}: length {len} is not possible here")]
    BadLength {
        /// The structure being read.
        what: &'static str,
        /// The length it claims, in bytes.
        len: usize,
    },
    /// A value outside what the structure allows.
    #[error("{what}: value {value} is not allowed")]
    BadValue {
        /// The field being read.
        what: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The header's version is not OpenFlow 1.5.
    #[error("version {0:#04x} is not OpenFlow 1.5 (0x06)")]
    BadVersion(u8),
    /// Two constraints on one match field that no packet meets.
    #[error("{0:?} is matched twice with different values")]
    Conflict(crate::Field),
    /// Actions nested deeper than [`crate::action::MAX_DEPTH`].
    #[error("actions are nested deeper than {0} levels")]
    TooDeep(u8),
}

/// Why a value cannot be put on the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// An OpenFlow message holds at most 65,535 bytes.
    #[error("message of {0} bytes exceeds the 65,535 that the header's length field can say")]
    TooLong(usize),
    /// A message that only a switch sends; this crate reads it.
    #[error("messages of type {0} are sent by switches only")]
    SwitchOnly(u8),
}

/// Walks over a byte slice; every read is checked and nothing panics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    buf: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(buf: &'a [u8], what: &'static str) -> Self {
        Self { buf, what }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.buf
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        match self.buf.split_at_checked(n) {
            Some((head, tail)) => {
                self.buf = tail;
                Ok(head)
            }
            None => Err(DecodeError::Truncated { what: self.what, need: n, have: self.buf.len() }),
        }
    }

    pub(crate) fn skip(&mut self, n: usize) -> Result<(), DecodeError> {
        self.take(n).map(drop)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        match self.buf.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.buf = tail;
                Ok(*head)
            }
            None => Err(DecodeError::Truncated { what: self.what, need: N, have: self.buf.len() }),
        }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A big-endian number of `n` ≤ 16 bytes.
    pub(crate) fn uint(&mut self, n: usize) -> Result<u128, DecodeError> {
        Ok(self.take(n)?.iter().fold(0u128, |acc, &b| (acc << 8) | u128::from(b)))
    }

    /// The next `len` bytes as a reader of their own, for a structure called `what`.
    pub(crate) fn sub(&mut self, len: usize, what: &'static str) -> Result<Reader<'a>, DecodeError> {
        Ok(Reader::new(self.take(len)?, what))
    }

    /// An item whose length field counts `seen` bytes that were already read: the rest of it.
    pub(crate) fn body(
        &mut self,
        len: u16,
        seen: usize,
        what: &'static str,
    ) -> Result<Reader<'a>, DecodeError> {
        let len = usize::from(len);
        let rest = len.checked_sub(seen).ok_or(DecodeError::BadLength { what, len })?;
        self.sub(rest, what)
    }

    /// Skips the padding that brings an item of `len` bytes to a multiple of 8. A peer may leave out
    /// the padding after the very last item.
    pub(crate) fn skip_pad8(&mut self, len: usize) {
        let pad = pad8(len).min(self.buf.len());
        self.buf = self.buf.get(pad..).unwrap_or_default();
    }

    /// One property: its type and its payload; the padding is skipped.
    pub(crate) fn property(&mut self) -> Result<(u16, Reader<'a>), DecodeError> {
        let kind = self.u16()?;
        let len = self.u16()?;
        let body = self.body(len, 4, "property")?;
        self.skip_pad8(usize::from(len));
        Ok((kind, body))
    }
}

/// Bytes missing to the next multiple of 8.
pub(crate) fn pad8(len: usize) -> usize {
    len.wrapping_neg() & 7
}

/// Pads what was written since `start` to a multiple of 8.
pub(crate) fn put_pad8(out: &mut BytesMut, start: usize) {
    let pad = pad8(out.len().saturating_sub(start));
    out.put_bytes(0, pad);
}

/// Writes the 16-bit length of what stands since `start` at `start + offset`. A structure longer than 65,535 bytes
/// saturates here and is refused when its message is finished: a message is never shorter than its parts.
pub(crate) fn patch_len(out: &mut BytesMut, start: usize, offset: usize, len: usize) {
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    let at = start.saturating_add(offset);
    if let Some(slot) = out.get_mut(at..at.saturating_add(2)) {
        slot.copy_from_slice(&len.to_be_bytes());
    }
}

/// Sets the length at `start + 2` to everything since `start`, then pads to a multiple of 8 outside of that length.
pub(crate) fn end_property(out: &mut BytesMut, start: usize) {
    let len = out.len().saturating_sub(start);
    patch_len(out, start, 2, len);
    put_pad8(out, start);
}

/// Pads to a multiple of 8 and sets the length at `start + 2`, padding included.
pub(crate) fn end_padded(out: &mut BytesMut, start: usize) {
    put_pad8(out, start);
    let len = out.len().saturating_sub(start);
    patch_len(out, start, 2, len);
}

/// The low `n` bytes of `v`, big-endian; `n` ≤ 16.
pub(crate) fn put_uint(out: &mut BytesMut, v: u128, n: usize) {
    let bytes = v.to_be_bytes();
    out.put_slice(bytes.get(bytes.len().saturating_sub(n)..).unwrap_or_default());
}
