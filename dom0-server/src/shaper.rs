//! The bandwidth loop: keeps every network's contract on every uplink of this node, and says how it goes.
//!
//! It has its own connections to the switch and its database and owns nothing else; packets are forwarded, and shaped as
//! they last were, without it.

pub mod counters;
pub mod division;
pub mod handle;
pub mod kernel;
pub mod plan;
pub mod report;
pub mod rows;
pub mod task;
pub mod tc;
