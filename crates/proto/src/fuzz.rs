//! Bodies of fuzz targets: any bytes may come in, nothing may panic, and what is accepted must survive a round
//! trip. The corpus in `corpus/` runs through them as an ordinary test.

use bytes::{Bytes, BytesMut};

use crate::frame::FrameDecoder;
use crate::message::{DecodeError, GuestMessage, HostMessage};
use crate::node::{DestinationMessage, SourceMessage};

/// Bytes from a guest, split into frames and decoded until the stream ends or is refused. Returns how many
/// messages were accepted.
pub fn guest_stream(data: &[u8]) -> usize {
    stream(data, GuestMessage::decode, GuestMessage::encode)
}

/// Bytes from a host; see [`guest_stream`].
pub fn host_stream(data: &[u8]) -> usize {
    stream(data, HostMessage::decode, HostMessage::encode)
}

/// Bytes from the source of a move; see [`guest_stream`].
pub fn source_stream(data: &[u8]) -> usize {
    stream(data, SourceMessage::decode, SourceMessage::encode)
}

/// Bytes from the destination of a move; see [`guest_stream`].
pub fn destination_stream(data: &[u8]) -> usize {
    stream(data, DestinationMessage::decode, DestinationMessage::encode)
}

fn stream<M: PartialEq + std::fmt::Debug>(
    data: &[u8],
    decode: fn(Bytes) -> Result<M, DecodeError>,
    encode: fn(&M, &mut BytesMut),
) -> usize {
    let mut decoder = FrameDecoder::new(1 << 16);
    decoder.buffer().extend_from_slice(data);
    let mut accepted = 0;
    while let Ok(Some(frame)) = decoder.next_frame() {
        let Ok(message) = decode(frame) else { break };
        let mut again = FrameDecoder::new(usize::MAX);
        encode(&message, again.buffer());
        let frame = again.next_frame().ok().flatten();
        let back = frame.map(decode);
        assert_eq!(back, Some(Ok(message)), "what was accepted is encoded and accepted again");
        accepted += 1;
    }
    accepted
}
