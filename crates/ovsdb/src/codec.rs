//! Framing of JSON-RPC 1.0 over a byte stream: one JSON object after another, without delimiter.
//!
//! Owns finding where a message ends. Every byte is looked at once, however the stream is cut into reads.
//! What the message says is the business of `message`.

use bytes::{Buf, Bytes, BytesMut};
use tokio_util::codec::Decoder;

/// Deepest nesting of arrays and objects that a message may have. OVSDB's own values need less than 20.
pub const MAX_DEPTH: u32 = 100;

/// Why a stream cannot be cut into messages.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// More than the allowed bytes without an end.
    #[error("message exceeds the limit of {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// Nested more than [`MAX_DEPTH`].
    #[error("message is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Something else than an object where a message begins.
    #[error("byte {byte:#04x} where a message must begin with '{{'")]
    NoObject {
        /// The byte.
        byte: u8,
    },
    /// The stream ended inside a message.
    #[error("the stream ended {bytes} bytes into a message")]
    Truncated {
        /// Bytes of the unfinished message.
        bytes: usize,
    },
    /// The stream failed.
    #[error("the stream failed")]
    Io(#[from] std::io::Error),
}

/// Cuts a byte stream into JSON objects.
#[derive(Debug)]
pub struct FrameDecoder {
    limit: usize,
    scanned: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl FrameDecoder {
    /// A decoder that refuses messages of more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, scanned: 0, depth: 0, in_string: false, escaped: false }
    }
}

impl Decoder for FrameDecoder {
    type Item = Bytes;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        if self.scanned == 0 {
            let blank = src.iter().take_while(|b| b.is_ascii_whitespace()).count();
            src.advance(blank);
            match src.first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(&byte) => return Err(FrameError::NoObject { byte }),
            }
        }
        for &byte in src.get(self.scanned..).unwrap_or_default() {
            self.scanned += 1;
            if self.scanned > self.limit {
                return Err(FrameError::TooLong { limit: self.limit });
            }
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(FrameError::TooDeep);
                    }
                }
                b'}' | b']' => {
                    // A message begins with '{', so the depth is at least 1 here.
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        let message = src.split_to(self.scanned).freeze();
                        self.scanned = 0;
                        return Ok(Some(message));
                    }
                }
                _ => {}
            }
        }
        // Doubling keeps the copying of a growing buffer linear; the floor avoids reads of a few bytes.
        src.reserve(src.len().clamp(16 << 10, 4 << 20));
        Ok(None)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        match self.decode(src)? {
            Some(message) => Ok(Some(message)),
            None if src.is_empty() => Ok(None),
            None => Err(FrameError::Truncated { bytes: src.len() }),
        }
    }
}
