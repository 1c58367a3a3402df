//! What a node has to do for a router.

use std::time::Duration;

use thiserror::Error;

use super::Stance;
use crate::db::migration::Phase;

/// Why a migration is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Reason {
    /// The guest is not at the source, or the source is not the one that counts.
    #[error("the router is not on this node")]
    NotHere,
    /// [`Facts::unable`]; the shell adds the words.
    #[error("this node cannot go on")]
    Unable,
    /// The toolstack has ended, and the guest runs where it was.
    #[error("the toolstack ended, and the guest is where it was")]
    Toolstack,
    /// It took too long.
    #[error("{0} took longer than its limit")]
    Expired(Phase),
}

/// A transaction that is due. All but [`Write::Create`] are done only if the row of this number is in the phase that this node has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Write {
    /// The row's phase. Into `moving`: with `yielded`. Into `arrived`: `yielded` stays what it is.
    Advance(Phase),
    /// The source emits nothing with the router's MACs.
    Yield,
    /// The guest is not at the source any more.
    Left,
    /// Phase `announced`, and in the same transaction this node's rows of `Location`, of a generation above all.
    Announce,
    /// Phase `aborting`, without `yielded` and `left`.
    Abort(Reason),
    /// A new row in phase `arrived`, from the owner to this node: the guest came unannounced. Only if the owner is still that of
    /// that generation, and the router has no open row.
    Create,
}

/// What is asked of the toolstack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Drive {
    /// Nothing: what runs goes on to its end.
    Leave,
    /// It runs, once for each migration.
    Start,
    /// It ends, if it has not passed its own point of no return.
    Stop,
}

/// When to look again, if nothing happens before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wake {
    /// From now.
    pub after: Duration,
    /// Why, for logs and people.
    pub why: &'static str,
}

/// What is to be done. The shell compares it with what it does, and changes what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// How the router stands in the switch.
    pub stance: Stance,
    /// Whether its addresses may be claimed here, and stay claimed; otherwise this node's rows go ([`crate::locations`]).
    pub claim: bool,
    /// Source: tables go to the destination, first all and then what changes.
    pub stream: bool,
    /// Source: what the toolstack has to do.
    pub drive: Drive,
    /// Source: no more punts come; said once everything before is with the destination.
    pub end_mark: bool,
    /// Destination: everybody has to know; see [`Facts::told`].
    pub tell: bool,
    /// A transaction.
    pub write: Option<Write>,
    /// The next deadline.
    pub wake: Option<Wake>,
    /// What waits beyond its limit, and is no reason to abort: worth waking somebody.
    pub overdue: Option<&'static str>,
}

impl Step {
    pub(super) const fn of(stance: Stance, claim: bool) -> Self {
        Self {
            stance,
            claim,
            stream: false,
            drive: Drive::Leave,
            end_mark: false,
            tell: false,
            write: None,
            wake: None,
            overdue: None,
        }
    }
}
