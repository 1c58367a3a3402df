//! Compiles routers' tables and the host's topology into OpenFlow flows.
//!
//! Pure: no sockets, no clock, no randomness. [`app::App`] is the door; [`pipeline`] declares the tables,
//! `table` makes their flows, [`rib`] mirrors a guest's kernel and [`fib`] decides what forwards. [`sim`] is what a
//! switch does with the flows: for tests, and for the question what becomes of a packet.

mod aggregate;
pub mod answer;
pub mod app;
mod explain;
pub mod fast_path;
pub mod fib;
pub mod flow;
mod group;
pub mod heard;
pub mod limit;
pub mod pipeline;
pub mod punt;
pub mod queue;
pub mod refusal;
pub mod rib;
mod router;
pub mod sim;
pub mod stance;
mod table;
pub mod topology;

pub use answer::{Answer, Rejection};
pub use app::{App, Batch, Desired, Dump};
pub use explain::{Explained, Hints, OnSegment, next_hop_in};
pub use fast_path::{Slow, SlowReason};
pub use flow::{FlowChange, FlowKey, MeterChange};
pub use heard::{Heard, HeardKind};
pub use openflow::ErrorCode;
pub use punt::{PuntClass, PuntRates};
pub use queue::{MAX_QUEUE, QueueClass};
pub use refusal::Refusal;
pub use router::status::{RouteCounts, RouterStatus, Unresolved};
pub use router::view::{Fate, FlowCursor, FlowPage, RouteView, Which};
pub use stance::{Emission, Gate, Punts, Stance};
pub use topology::{Attachment, FastPath, Policy, PortNo, RouterId, Topology, Vif, VifId};
