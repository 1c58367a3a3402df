//! The link between the two nodes of a move: over TLS 1.3 with the certificates of both, in the words of
//! [`xenflow_proto::node`].
//!
//! [`outgoing`] is the source's end: it connects, and connects again for as long as somebody holds it. [`incoming`] is the
//! destination's: it listens. There is one connection for each move, not one for each pair of nodes: who may speak is decided once,
//! by the row that the first message names; a router's million routes hold up no other's punts; and what breaks a rule ends
//! one move's connection. Moves are rare enough for the handshakes.
//!
//! I/O and its limits only. What a node does is decided by [`super::sequencer`]; what is kept for the guest, by
//! [`super::punts`].

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use xenflow_proto::FrameDecoder;
use xenflow_proto::frame::FrameError;
use xenflow_proto::node::DecodeError;

pub mod admission;
pub mod incoming;
mod order;
mod outbox;
pub mod outgoing;

pub use order::Broken;

/// Messages of tables that a source may have unacknowledged.
pub const WINDOW: u32 = 16;

/// Time for the handshake, and again for the first message and its answer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// An end that has nothing to say says so this often.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// After so long a silence the other end is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// About so many bytes are written at a time.
const BLOCK: usize = 1 << 16;

/// Why a connection is no more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The other end closed it.
    #[error("it closed the connection")]
    Closed,
    /// … in the middle of a message.
    #[error("it closed the connection in the middle of a message")]
    Truncated,
    /// It broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// A frame of a forbidden length.
    #[error("refused frame")]
    Frame(#[source] FrameError),
    /// A message that is none.
    #[error("refused message")]
    Message(#[source] DecodeError),
    /// Nothing more came.
    #[error("it was silent for {} s", SILENCE.as_secs())]
    Silent,
    /// It does not read.
    #[error("it does not read what it is told")]
    Slow,
}

/// Reads on until a message is there. Cancel safe: what was read stays in the decoder.
async fn next<M>(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
    decode: fn(Bytes) -> Result<M, DecodeError>,
) -> Result<M, Lost> {
    loop {
        if let Some(frame) = decoder.next_frame().map_err(Lost::Frame)? {
            return decode(frame).map_err(Lost::Message);
        }
        let end =
            |decoder: &FrameDecoder| if decoder.is_mid_frame() { Lost::Truncated } else { Lost::Closed };
        match stream.read_buf(decoder.buffer()).await {
            Ok(0) => return Err(end(decoder)),
            Ok(_) => {}
            // A daemon that is killed closes without a word of TLS.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(end(decoder)),
            Err(error) => return Err(Lost::Io(error)),
        }
    }
}

/// Writes everything, unless the other end does not read for too long.
async fn write(writer: &mut (impl AsyncWrite + Unpin), out: &mut BytesMut) -> Result<(), Lost> {
    let all = async {
        writer.write_all(out).await?;
        writer.flush().await
    };
    tokio::time::timeout(SILENCE, all).await.map_err(|_| Lost::Slow)?.map_err(Lost::Io)?;
    out.clear();
    Ok(())
}

#[cfg(test)]
mod tests;
