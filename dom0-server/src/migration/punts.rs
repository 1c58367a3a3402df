//! Frames for a guest that is on its way, kept until it has them. Pure: time is an argument, what becomes of frames is the
//! caller's.
//!
//! [`Ring`]: at the source, copies of the newest frames that the guest was given while it was about to leave; some of them sit in
//! a ring of its backend that nobody reads any more. [`Relay`]: at the source, what is for the destination, until that says that
//! the guest has it. [`Keeper`]: at the destination, what the source relays, and what comes here behind it. [`Queue`]: what a
//! guest that is mute says.
//!
//! Everything is bounded in frames, bytes and age, and what does not fit is the *newest*. What a protocol waits for is
//! what began first: a TCP session's segments (BGP) or a database exchange (OSPF) go on where they stopped if there is no hole in
//! what the guest gets, and the end that is missing looks like a loss at the end of the freeze, which the next hello or
//! retransmission repairs. If the oldest went, a flood that begins late would take from the guest what was kept long before; so it
//! takes only from itself. Relayed frames and the destination's own have room of their own, so neither takes the other's. What grows
//! older than its bound goes from the front: nobody waits for it any more. A [`Ring`] is the other way round, as the older a copy is,
//! the surer the guest has read it.

use std::time::Duration;

use xenflow_proto::node::{MAX_FRAME_BYTES, MIN_FRAME_BYTES, Punt};

mod keeper;
mod queue;
mod relay;
mod ring;

pub use keeper::Keeper;
pub use queue::Queue;
pub use relay::Relay;
pub use ring::Ring;

/// What a frame costs beside its bytes, at most: its place in a queue and what an allocator adds.
const OVERHEAD: usize = 128;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Frames.
    pub frames: usize,
    /// Bytes, with 128 for each frame beside its own.
    pub bytes: usize,
    /// How old they get.
    pub age: Duration,
}

impl Bounds {
    /// Of a [`Ring`]: more than a ring of a backend holds (256 frames) or the queue before it (1,000).
    pub const RING: Self = Self { frames: 2048, bytes: 4 << 20, age: Duration::from_secs(10) };
    /// Of one router's frames at either end, and again of the destination's own.
    pub const KEPT: Self = Self { frames: 16_384, bytes: 16 << 20, age: Duration::from_secs(120) };
}

/// Why a frame is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Cause {
    /// [`Bounds::frames`].
    #[error("there are as many frames as are kept")]
    Frames,
    /// [`Bounds::bytes`].
    #[error("there are as many bytes as are kept")]
    Bytes,
    /// [`Bounds::age`].
    #[error("it is too old")]
    Age,
    /// No frame that can be relayed.
    #[error("its length is not {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES} bytes")]
    Length,
    /// The end mark was said.
    #[error("it comes behind the end mark")]
    Ended,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Frames, Self::Bytes, Self::Age, Self::Length, Self::Ended];

    /// The name of its counter.
    #[must_use]
    pub const fn counter(self) -> &'static str {
        match self {
            Self::Frames => "punts_lost_frames",
            Self::Bytes => "punts_lost_bytes",
            Self::Age => "punts_lost_age",
            Self::Length => "punts_lost_length",
            Self::Ended => "punts_lost_ended",
        }
    }
}

/// What has become of frames: those that came are those that went, were lost, or are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// That came, whatever became of them.
    pub came: u64,
    /// That were handed on: to the guest, or from a [`Relay`], that the guest is known to have.
    pub went: u64,
    lost: [u64; Cause::ALL.len()],
}

impl Counters {
    /// How many were not kept, by cause.
    #[must_use]
    pub fn lost(&self, cause: Cause) -> u64 {
        Cause::ALL.iter().zip(self.lost).find(|(it, _)| **it == cause).map_or(0, |(_, count)| count)
    }

    /// How many were not kept.
    #[must_use]
    pub fn all_lost(&self) -> u64 {
        self.lost.iter().sum()
    }

    fn lose(&mut self, cause: Cause) {
        if let Some((_, count)) = Cause::ALL.iter().zip(&mut self.lost).find(|(it, _)| **it == cause) {
            *count += 1;
        }
    }
}

fn cost(punt: &Punt) -> usize {
    punt.frame.len() + OVERHEAD
}

#[cfg(test)]
mod tests;
