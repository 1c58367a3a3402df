//! The two conversations with Open vSwitch: OpenFlow with the bridge, OVSDB with the server. I/O only; what is
//! said is decided elsewhere.

pub mod database;
pub mod restore;
pub mod switch;
