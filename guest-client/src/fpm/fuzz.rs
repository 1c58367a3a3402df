//! Body of a fuzz target: any local process may connect in zebra's place; nothing may panic, and what is understood
//! must come back as it came.

use bytes::BytesMut;

use super::table::Table;
use super::wire::{Answer, Decoder, Word, words};

/// A stream, as it comes and in pieces. Returns how many routes were put and taken away before it ended or went wrong.
pub fn stream(data: &[u8]) -> usize {
    let mut decoder = Decoder::default();
    let mut understood = Vec::new();
    decoder.buffer().extend_from_slice(data);
    while let Ok(Some(frame)) = decoder.next_frame() {
        understood.extend(words(&frame).map_while(Result::ok));
    }
    for word in &understood {
        let Word::Put(asked) = *word else { continue };
        for (vrf, offloaded) in [(0, true), (7, false), (70_000, true)] {
            let mut back = BytesMut::new();
            Answer { asked, vrf, offloaded }.encode(&mut back);
            let mut decoder = Decoder::default();
            *decoder.buffer() = back;
            let frame = decoder.next_frame();
            assert!(
                matches!(&frame, Ok(Some(_))) && decoder.buffer().is_empty(),
                "one frame for each answer"
            );
            let back: Vec<_> = frame.ok().flatten().iter().flat_map(|frame| words(frame)).collect();
            assert!(
                matches!(back.as_slice(), [Ok(Word::Put(same))]
                    if (same.key.dst, same.key.metric, same.protocol, same.kind)
                        == (asked.key.dst, asked.key.metric, asked.protocol, asked.kind)),
                "{asked:?} came back as {back:?}"
            );
        }
    }
    let mut table = Table::default();
    let mut decoder = Decoder::default();
    for piece in data.chunks(7) {
        decoder.buffer().extend_from_slice(piece);
        if table.hear(&mut decoder).is_err() {
            break;
        }
    }
    understood.len()
}
