//! What a guest client and the host daemon say to each other, and two host daemons while a router moves.
//!
//! Owns the vocabulary of a router's tables ([`table`]), the messages ([`message`]; between nodes: [`node`]) with their frozen
//! wire schemas (`schema/`), the frames around them ([`frame`]), the names and identities both ends
//! check ([`identity`]), the digests that both ends compare ([`digest`]), the form in which both keep routes ([`routes`]) and the
//! constants of the control network ([`control`]).
//!
//! Does no I/O and keeps no state: bytes become values here, once, or are refused here.

pub mod control;
pub mod digest;
pub mod frame;
pub mod fuzz;
pub mod identity;
pub mod message;
pub mod node;
pub mod routes;
pub mod table;
pub mod types;
mod wire;

pub use digest::Digest;
pub use frame::{FrameDecoder, FrameError};
pub use identity::{Identity, Name};
pub use message::{DecodeError, GuestMessage, HostMessage};
pub use table::{Change, Key, Object};
pub use types::{MacAddr, Seq, VlanId};
