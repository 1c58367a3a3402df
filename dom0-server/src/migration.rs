//! Moves routers from node to node without losing a packet.
//!
//! [`sequencer`] decides and is pure. The row of `Migration` is the journal ([`crate::db::migration`]): each phase is reached by
//! one transaction that one of the two nodes makes, and what a daemon has to do follows from the row and from what it finds on
//! its own host, whatever it, its peer or the database did before. [`punts`] keeps frames for a guest that is on its way, and is
//! pure as well.

pub mod punts;
pub mod sequencer;
