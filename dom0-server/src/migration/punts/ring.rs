//! Copies of what the guest was given last; see [`super`].

use std::time::Duration;

use xenflow_proto::node::{Punt, PuntKind};

use super::{Bounds, Queue, cost};

/// The newest frames, each of which the guest was given as well.
#[derive(Debug, Clone)]
pub struct Ring {
    bounds: Bounds,
    queue: Queue,
}

impl Ring {
    /// An empty one.
    #[must_use]
    pub const fn new(bounds: Bounds) -> Self {
        Self { bounds, queue: Queue::new(bounds) }
    }

    /// Keeps a frame instead of the oldest ones, if need be. None that could not be relayed, or is alone too long.
    pub fn push(&mut self, punt: Punt, now: Duration) {
        self.queue.expire(now);
        let punt = Punt { kind: PuntKind::Copy, ..punt };
        while self.queue.len() >= self.bounds.frames || self.queue.bytes() + cost(&punt) > self.bounds.bytes {
            if self.queue.shift().is_none() {
                return;
            }
        }
        let _ = self.queue.push(punt, now);
    }

    /// Takes all that are not too old, the oldest first: once the guest is gone.
    pub fn take(&mut self, now: Duration) -> Vec<Punt> {
        std::iter::from_fn(|| self.queue.pop(now)).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What they cost, in bytes as [`Bounds::bytes`] counts.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.queue.bytes()
    }
}
