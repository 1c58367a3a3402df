//! What queues get of a link: pure functions from contracts and loads to what HTB is told.
//!
//! Owns the law ([`law`]), the weighted max-min share that it aims at ([`share`]), how counters become loads ([`rates`]), what
//! is worth writing ([`control`]) and what is remembered ([`history`]). Knows no switch, no database and no clock: rates
//! are in bit/s, times in ms, and both are arguments.

pub mod control;
pub mod history;
pub mod law;
pub mod rates;
pub mod share;

/// Bits of Ethernet frames a second.
pub type Bps = u64;
