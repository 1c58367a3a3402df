//! The conversations with Open vSwitch: OpenFlow with the bridge, OVSDB with the server, commands. I/O only; what is
//! said is decided elsewhere.

pub mod appctl;
pub mod database;
pub mod datapath;
pub mod restore;
pub mod switch;
