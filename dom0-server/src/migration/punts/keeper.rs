//! What the destination has for its guest; see [`super`].

use std::time::Duration;

use xenflow_proto::node::Punt;

use super::{Bounds, Counters, Queue};

/// Frames that the source relays, in its order, and behind them those that came here: these wait for the source's end mark, or
/// until it is given up. Nothing is released by itself: [`Keeper::release`] is asked once the guest runs here.
#[derive(Debug, Clone)]
pub struct Keeper {
    relayed: Queue,
    own: Queue,
    /// The source's life that numbers are of.
    stream: Option<u64>,
    /// The number that is wanted next.
    next: u64,
    /// What is kept of the source's need not come before what came here any more.
    pub(super) is_whole: bool,
    twice: u64,
    missed: u64,
}

impl Keeper {
    /// An empty one, with so much room for either kind.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let (relayed, own) = (Queue::new(bounds), Queue::new(bounds));
        Self { relayed, own, stream: None, next: 1, is_whole: false, twice: 0, missed: 0 }
    }

    /// A connection begins: the number that is wanted next of this stream. What another one has brought stays, and comes first.
    pub fn connected(&mut self, stream: u64) -> u64 {
        if self.stream != Some(stream) {
            self.stream = Some(stream);
            self.next = 1;
            self.relayed.frames.iter_mut().for_each(|kept| kept.number = None);
        }
        self.next
    }

    /// The source has relayed a frame. One that came before is not kept again; what is missing before it was given up there.
    pub fn relayed(&mut self, number: u64, punt: Punt, now: Duration) {
        if number < self.next {
            self.twice += 1;
            return;
        }
        self.missed += number - self.next;
        self.next = number.saturating_add(1);
        // What is lost is counted.
        let _ = self.relayed.put(Some(number), punt, now);
    }

    /// A frame for the guest has come here.
    pub fn own(&mut self, punt: Punt, now: Duration) {
        let _ = self.own.push(punt, now);
    }

    /// Frames that this node has relayed are to come back: what comes here waits behind them, until the end mark is waited for no
    /// more.
    pub const fn wait_for_returned(&mut self) {
        self.is_whole = false;
    }

    /// One of them.
    pub fn returned(&mut self, punt: Punt, now: Duration) {
        let _ = self.relayed.put(None, punt, now);
    }

    /// The guest is not to come: its source has what it has relayed, and gives it. They went, as far as this node counts.
    pub fn leave_to_source(&mut self) {
        while self.relayed.shift().is_some() {
            self.relayed.counters.went += 1;
        }
    }

    /// The source has no more than up to this number.
    pub fn end_mark(&mut self, last: u64) {
        let next = last.saturating_add(1);
        self.missed += next.saturating_sub(self.next);
        self.next = self.next.max(next);
        self.is_whole = true;
    }

    /// What is kept belongs to another move now: its source begins at 1, and its end mark is waited for. What there is comes first.
    pub fn begin_again(&mut self) {
        (self.stream, self.next, self.is_whole) = (None, 1, false);
        self.relayed.frames.iter_mut().for_each(|kept| kept.number = None);
    }

    /// The end mark is waited for no more. What the source relays nevertheless is given when it comes.
    pub const fn go_without_end_mark(&mut self) {
        self.is_whole = true;
    }

    /// What may be given to the guest now, in order; at most so many.
    pub fn release(&mut self, most: usize, now: Duration) -> Vec<Punt> {
        let (relayed, own, is_whole) = (&mut self.relayed, &mut self.own, self.is_whole);
        let next = || relayed.pop(now).or_else(|| if is_whole { own.pop(now) } else { None });
        std::iter::from_fn(next).take(most).collect()
    }

    /// Gives up what has grown too old.
    pub fn expire(&mut self, now: Duration) {
        self.relayed.expire(now);
        self.own.expire(now);
    }

    /// All numbers of the stream up to this one were released or given up: what the source may be told, once what was released is
    /// known to have arrived.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.relayed.frames.iter().find_map(|kept| kept.number).unwrap_or(self.next) - 1
    }

    /// What came here is waiting for nothing but what is kept before it.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The source has said that no more comes, or it is not waited for, and the guest was given all of the source's.
    #[must_use]
    pub fn is_through(&self) -> bool {
        self.is_whole && self.relayed.is_empty()
    }

    /// What the source has relayed: how many are kept, and what they cost in bytes as [`Bounds::bytes`] counts; then the same of
    /// what came here.
    #[must_use]
    pub fn kept(&self) -> [(usize, usize); 2] {
        [&self.relayed, &self.own].map(|queue| (queue.len(), queue.bytes()))
    }

    /// What has become of frames that the source has relayed, without those that came twice.
    #[must_use]
    pub const fn relayed_counters(&self) -> Counters {
        self.relayed.counters()
    }

    /// What has become of frames that came here.
    #[must_use]
    pub const fn own_counters(&self) -> Counters {
        self.own.counters()
    }

    /// How many frames came again.
    #[must_use]
    pub const fn twice(&self) -> u64 {
        self.twice
    }

    /// How many numbers the source has left out: frames that it gave up, or that a former life of this daemon was done with.
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.missed
    }
}
