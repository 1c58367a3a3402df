//! Frames: 4 bytes of length (big endian), then one message. Knows nothing of what is inside.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest message that either end sends, in bytes.
pub const MAX_FRAME: usize = 1 << 20;

/// Longest message before the session is up: a `Hello` is smaller by far.
pub const MAX_HELLO: usize = 1 << 12;

const HEADER: usize = 4;

/// A frame that the peer may not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than the limit.
    #[error("frame of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// What the header says.
        len: usize,
        /// What is allowed now.
        limit: usize,
    },
    /// No message has no bytes.
    #[error("frame of 0 bytes")]
    Empty,
}

/// Splits a byte stream into frames. Holds at most one incomplete frame and what one read brought behind it.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    limit: usize,
}

impl FrameDecoder {
    /// A decoder that refuses frames longer than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// Changes the limit for frames not yet taken out.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Where the next bytes of the stream are to be read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next complete frame, without its header. After an error the stream is of no further use.
    ///
    /// # Errors
    /// [`FrameError`] as soon as a header says a forbidden length, before any of the body is stored.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let len = u32::from_be_bytes(*header) as usize;
        if len > self.limit {
            return Err(FrameError::TooLong { len, limit: self.limit });
        }
        if len == 0 {
            return Err(FrameError::Empty);
        }
        if self.buffer.len() < HEADER + len {
            self.buffer.reserve(HEADER + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// Bytes of an incomplete frame are left over: the stream ended in the middle of one.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// Appends a frame around what `write` appends.
pub(crate) fn put_frame(out: &mut BytesMut, len: usize, write: impl FnOnce(&mut BytesMut)) {
    out.reserve(HEADER + len);
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    let start = out.len();
    write(out);
    debug_assert_eq!(out.len() - start, len, "a message as long as it said");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_by_the_header_alone() {
        let mut decoder = FrameDecoder::new(10);
        decoder.buffer().put_u32(11);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { len: 11, limit: 10 }));
        let mut decoder = FrameDecoder::new(10);
        decoder.buffer().put_u32(0);
        assert_eq!(decoder.next_frame(), Err(FrameError::Empty));
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..20),
            cuts in prop::collection::vec(1usize..40, 1..40),
        ) {
            let mut stream = BytesMut::new();
            for body in &bodies {
                put_frame(&mut stream, body.len(), |out| out.put_slice(body));
            }
            let mut decoder = FrameDecoder::new(64);
            let mut seen = Vec::new();
            let mut cuts = cuts.iter().cycle();
            while stream.has_remaining() {
                let n = (*cuts.next().unwrap()).min(stream.len());
                decoder.buffer().put_slice(&stream.split_to(n));
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            prop_assert_eq!(seen, bodies);
            prop_assert!(!decoder.is_mid_frame());
        }
    }
}
