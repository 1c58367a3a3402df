//! OVSDB (RFC 7047 and the extensions of Open vSwitch, ovsdb-server(7)) client: transactions and monitors.
//!
//! * [`Connection`]: one connection; requests of any number under way at once, notifications.
//! * [`Operation`], [`Condition`]: what a transaction does; [`OpResult`], [`Row`]: what comes back.
//! * [`Monitor`], [`Replica`]: what to watch, and a copy of it in memory.
//! * [`Session`]: keeps a connection to one of several servers, watches databases, reports differences.
//!
//! Owns the protocol and nothing of any schema. Every buffer and queue has a limit.

mod backlog;
mod client;
mod codec;
mod connection;
mod message;
mod monitor;
mod ops;
mod remote;
mod row;
mod schema;
mod session;
#[cfg(test)]
mod tests;
mod value;

pub use client::TransactError;
pub use codec::{FrameDecoder, FrameError, MAX_DEPTH};
pub use connection::{CloseReason, Connection, Notification, Options, RequestError};
pub use message::{MessageError, RpcError};
pub use monitor::{
    Monitor, MonitorError, MonitorReply, MonitorUpdate, Replica, RowChange, RowUpdate, TableUpdates,
    UpdateError,
};
pub use ops::{Condition, Function, Mutator, OpResult, Operation, OperationError, Place, ResultError, Until};
pub use remote::{ConnectError, DEFAULT_PORT, Remote, RemoteParseError, Tls};
pub use row::{ColumnError, Row};
pub use schema::{AtomType, ColumnType, DatabaseSchema, SchemaError, TableSchema};
pub use session::{Event, Session, SessionConfig, SessionError, SessionHandle};
pub use value::{Atom, Datum, Uuid, ValueError};
