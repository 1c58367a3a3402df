//! What the source has for the destination; see [`super`].

use std::time::Duration;

use xenflow_proto::node::{MAX_PUNTS, Punt};

use super::{Bounds, Cause, Counters, Queue};

/// Frames with numbers, kept until the guest is known to have them, or to have to do without; sent again over a new
/// connection from where the destination says. Those that are kept have numbers without a gap: only what is too old goes, and
/// that from the front.
#[derive(Debug, Clone)]
pub struct Relay {
    queue: Queue,
    /// Number of the next frame that comes.
    next: u64,
    /// Number of the next frame to send.
    unsent: u64,
    /// No more come.
    has_ended: bool,
    /// That was sent over this connection.
    has_said_so: bool,
    returned: u64,
}

impl Relay {
    /// An empty one.
    #[must_use]
    pub const fn new(bounds: Bounds) -> Self {
        let queue = Queue::new(bounds);
        Self { queue, next: 1, unsent: 1, has_ended: false, has_said_so: false, returned: 0 }
    }

    /// Keeps a frame; its number.
    ///
    /// # Errors
    /// [`Cause`], if it is not kept; that is counted, and it has no number.
    pub fn push(&mut self, punt: Punt, now: Duration) -> Result<u64, Cause> {
        if self.has_ended {
            self.queue.counters.came += 1;
            self.queue.counters.lose(Cause::Ended);
            return Err(Cause::Ended);
        }
        let number = self.next;
        self.queue.put(Some(number), punt, now)?;
        self.next += 1;
        Ok(number)
    }

    /// No more come.
    pub const fn end(&mut self) {
        self.has_ended = true;
    }

    /// A connection is up, and the destination wants this number next: everything from there on is to be sent.
    pub fn connected(&mut self, wanted: u64) {
        self.unsent = wanted.clamp(1, self.next);
        self.has_said_so = false;
    }

    /// What is to be sent now, at most [`MAX_PUNTS`]: the number of the first, and all.
    pub fn batch(&mut self, now: Duration) -> Option<(u64, Vec<Punt>)> {
        self.queue.expire(now);
        let first = self.queue.frames.front()?.number?.max(self.unsent);
        let skip = usize::try_from(first - self.queue.frames.front()?.number?).ok()?;
        let frames = self.queue.frames.range(skip.min(self.queue.len())..).take(MAX_PUNTS);
        let batch: Vec<Punt> = frames.map(|kept| kept.punt.clone()).collect();
        if batch.is_empty() {
            return None;
        }
        self.unsent = first + batch.len() as u64;
        Some((first, batch))
    }

    /// The end mark, behind everything and once over each connection: the number of the last frame.
    pub fn end_mark(&mut self) -> Option<u64> {
        let is_due = self.has_ended && !self.has_said_so && !self.has_unsent();
        self.has_said_so |= is_due;
        is_due.then_some(self.next - 1)
    }

    fn has_unsent(&self) -> bool {
        let last = self.queue.frames.back().and_then(|kept| kept.number);
        last.is_some_and(|last| last >= self.unsent)
    }

    /// The guest has all up to this number, or has to do without: they are forgotten. Whoever says so of a frame that was
    /// not sent over this connection is wrong about it: the number that counts.
    pub fn given(&mut self, number: u64) -> u64 {
        let number = number.min(self.unsent - 1);
        while self.queue.frames.front().is_some_and(|kept| kept.number <= Some(number)) {
            self.queue.shift();
            self.queue.counters.went += 1;
        }
        number
    }

    /// Takes everything that the guest is not known to have, in order: it is at the source again.
    pub fn take_back(&mut self, now: Duration) -> Vec<Punt> {
        self.queue.expire(now);
        let all: Vec<_> = std::iter::from_fn(|| self.queue.shift()).map(|kept| kept.punt).collect();
        self.returned += all.len() as u64;
        self.unsent = self.next;
        all
    }

    /// Gives up what has grown too old.
    pub fn expire(&mut self, now: Duration) {
        self.queue.expire(now);
    }

    /// Whether nothing is kept, nor comes.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.has_ended && self.queue.is_empty()
    }

    /// How many are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What they cost, in bytes as [`Bounds::bytes`] counts.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// What has become of frames.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.queue.counters()
    }

    /// How many were taken back.
    #[must_use]
    pub const fn returned(&self) -> u64 {
        self.returned
    }
}
