//! Compiles routers' tables and the host's topology into OpenFlow flows.
//!
//! Pure: no sockets, no clock, no randomness. [`app::App`] is the door; [`pipeline`] declares the tables,
//! `table` makes their flows, [`rib`] mirrors a guest's kernel and [`fib`] decides what forwards. [`sim`] is what a
//! switch does with the flows: for tests, and for the question what becomes of a packet.

pub mod app;
pub mod fib;
pub mod flow;
pub mod pipeline;
pub mod rib;
mod router;
pub mod sim;
mod table;
pub mod topology;

pub use app::{App, Batch, RouterStatus, Scope};
pub use flow::{FlowChange, FlowKey};
pub use topology::{Attachment, PortNo, RouterId, Topology, Vif, VifId};
