//! Framing: a stream of bytes cut into whole messages. It does not read the messages.

use crate::message::HEADER_LEN;
use crate::wire::DecodeError;
use bytes::{Bytes, BytesMut};

/// Cuts a byte stream into messages. It holds one incomplete message at most, so never more than 65,535 bytes besides what
/// was pushed and not yet taken.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Appends bytes from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The buffer, to read into directly.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buf
    }

    /// The next whole message, header included. After an error the stream cannot be followed any further.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, DecodeError> {
        let Some(&[_, _, l1, l2]) = self.buf.first_chunk::<4>() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes([l1, l2]));
        if len < HEADER_LEN {
            return Err(DecodeError::BadLength { what: "message", len });
        }
        if self.buf.len() < len {
            return Ok(None);
        }
        Ok(Some(self.buf.split_to(len).freeze()))
    }
}
