//! What a daemon reports about the routers it serves: rows of `Status`.

use std::fmt;

use ovsdb::{Condition, Operation, Row};
use xenflow_proto::Name;

use super::{RowError, table};

/// Longest message kept, in characters; the schema's limit.
const MESSAGE_MAX: usize = 512;

/// How a router's session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionState {
    /// No session; the host forwards with what it knows.
    Down,
    /// A session that has not reached end-of-RIB.
    Syncing,
    /// A session past end-of-RIB.
    Up,
}

impl SessionState {
    const ALL: [Self; 3] = [Self::Down, Self::Syncing, Self::Up];

    /// As the database writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Syncing => "syncing",
            Self::Up => "up",
        }
    }
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One router on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The node that reports.
    pub node: Name,
    /// The router.
    pub router: Name,
    /// Its session.
    pub state: SessionState,
    /// When `state` began: milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Routes in the router's FIB.
    pub routes: u64,
    /// The last sequence number acknowledged to the guest.
    pub acked_seq: u64,
    /// Why it is not as it should be; empty if it is. Cut at 512 characters.
    pub message: String,
}

impl Status {
    /// Reads a row of `Status`.
    pub fn parse(row: &Row) -> Result<Self, RowError> {
        let count = |column: &str| Ok::<_, RowError>(u64::try_from(row.int(column)?).unwrap_or_default());
        let state = row.str("state")?;
        Ok(Self {
            node: row.str("node")?.parse()?,
            router: row.str("router")?.parse()?,
            state: SessionState::ALL
                .into_iter()
                .find(|known| known.as_str() == state)
                .ok_or_else(|| RowError::State(state.chars().take(40).collect()))?,
            since_ms: count("since_ms")?,
            routes: count("routes")?,
            acked_seq: count("acked_seq")?,
            message: row.str("message")?.to_owned(),
        })
    }

    /// Operations that put this report in the place of the one before.
    #[must_use]
    pub fn upsert(&self) -> Vec<Operation> {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let delete = Operation::delete(table::STATUS)
            .filter(Condition::eq("node", self.node.as_str()))
            .filter(Condition::eq("router", self.router.as_str()));
        let insert = Operation::insert(table::STATUS)
            .set("node", self.node.as_str())
            .set("router", self.router.as_str())
            .set("state", self.state.as_str())
            .set("since_ms", number(self.since_ms))
            .set("routes", number(self.routes))
            .set("acked_seq", number(self.acked_seq))
            .set("message", self.message.chars().take(MESSAGE_MAX).collect::<String>());
        vec![delete, insert]
    }
}

/// Forgets every report of a node: for a daemon that starts.
#[must_use]
pub fn clear_node(node: &Name) -> Operation {
    Operation::delete(table::STATUS).filter(Condition::eq("node", node.as_str()))
}

/// Forgets a node's report about one router that it no longer serves.
#[must_use]
pub fn clear_router(node: &Name, router: &Name) -> Operation {
    clear_node(node).filter(Condition::eq("router", router.as_str()))
}
