//! Frames in order, bounded; see [`super`].

use std::collections::VecDeque;
use std::time::Duration;

use xenflow_proto::node::{MAX_FRAME_BYTES, MIN_FRAME_BYTES, Punt};

use super::{Bounds, Cause, Counters, cost};

/// A frame that is kept.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    /// Of the stream, if it still counts for one.
    pub(super) number: Option<u64>,
    pub(super) at: Duration,
    pub(super) punt: Punt,
}

/// Frames in the order in which they came. The newest is refused if there is no room.
#[derive(Debug, Clone)]
pub struct Queue {
    bounds: Bounds,
    pub(super) frames: VecDeque<Kept>,
    bytes: usize,
    pub(super) counters: Counters,
}

impl Queue {
    /// An empty one.
    #[must_use]
    pub const fn new(bounds: Bounds) -> Self {
        let counters = Counters { came: 0, went: 0, lost: [0; Cause::ALL.len()] };
        Self { bounds, frames: VecDeque::new(), bytes: 0, counters }
    }

    /// Keeps a frame that came at `now`.
    ///
    /// # Errors
    /// [`Cause`], if it is not kept; that is counted.
    pub fn push(&mut self, punt: Punt, now: Duration) -> Result<(), Cause> {
        self.put(None, punt, now)
    }

    /// [`Queue::push`] of a frame that has a number.
    pub(super) fn put(&mut self, number: Option<u64>, punt: Punt, now: Duration) -> Result<(), Cause> {
        self.expire(now);
        self.counters.came += 1;
        let fits = match () {
            () if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&punt.frame.len()) => Err(Cause::Length),
            () if self.frames.len() >= self.bounds.frames => Err(Cause::Frames),
            () if self.bytes + cost(&punt) > self.bounds.bytes => Err(Cause::Bytes),
            () => Ok(()),
        };
        match fits {
            Ok(()) => {
                self.bytes += cost(&punt);
                self.frames.push_back(Kept { number, at: now, punt });
            }
            Err(cause) => self.counters.lose(cause),
        }
        fits
    }

    /// Takes the oldest frame, for whom it is for.
    pub fn pop(&mut self, now: Duration) -> Option<Punt> {
        self.expire(now);
        let kept = self.shift()?;
        self.counters.went += 1;
        Some(kept.punt)
    }

    /// Gives up what has grown too old.
    pub fn expire(&mut self, now: Duration) {
        while self.frames.front().is_some_and(|kept| now.saturating_sub(kept.at) > self.bounds.age) {
            self.shift();
            self.counters.lose(Cause::Age);
        }
    }

    /// Takes the oldest frame, which is counted by the caller.
    pub(super) fn shift(&mut self) -> Option<Kept> {
        let kept = self.frames.pop_front()?;
        self.bytes -= cost(&kept.punt);
        Some(kept)
    }

    /// How many frames there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// What they cost, in bytes as [`Bounds::bytes`] counts.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// What has become of frames.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }
}
