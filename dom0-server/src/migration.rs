//! Moves routers from node to node without losing a packet.
//!
//! [`sequencer`] decides and is pure. The row of `Migration` is the journal ([`crate::db::migration`]): each phase is reached by
//! one transaction that one of the two nodes makes, and what a daemon has to do follows from the row and from what it finds on
//! its own host, whatever it, its peer or the database did before. [`punts`] keeps frames for a guest that is on its way, and is
//! pure as well; [`peer`] is the link over which the two nodes pass on tables and frames; [`announce`] has the frames that a node
//! says for a router, [`toolstack`] what moves the guest, [`plan`] what an operator may ask for, and [`standby`] where tables are
//! before anybody asks.

pub mod announce;
pub mod carrier;
pub mod errands;
pub mod journal;
pub mod links;
pub mod megaflows;
pub mod memory;
pub mod peer;
pub mod plan;
pub mod punts;
pub mod sequencer;
pub mod shell;
pub mod standby;
pub mod toolstack;
