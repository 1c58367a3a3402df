//! What a node knows of a router that moves or may move: what is read, and what is found.

use std::time::Duration;

use super::Stance;
use crate::db::migration::Phase;

/// What this node is in an open migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The guest leaves it.
    Source,
    /// The guest comes to it.
    Destination,
}

/// The open row of a router, as one of its two nodes reads it. A row that is done or aborted is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Open {
    /// Of this node.
    pub role: Role,
    /// How far it is.
    pub phase: Phase,
    /// The source has said that it emits nothing with the router's MACs.
    pub yielded: bool,
    /// The source has said that the guest is not there any more.
    pub left: bool,
    /// The source's daemon runs the toolstack; otherwise somebody else moves the guest.
    pub driven: bool,
    /// How long the move itself may take.
    pub move_limit: Duration,
}

/// The guest, as far as this node can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guest {
    /// None of its ports is here.
    Gone,
    /// Its ports are here, but nothing says that it runs: a copy that waits, or one that is suspended.
    Plugged,
    /// It runs here: it has a session over this node's control vif that began after these ports came, or the toolstack says so.
    /// That a session was lost since does not mean that it stopped: the toolstack says that, or its ports go.
    Running,
}

/// Who has the router's addresses, by the rows of `Location`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// No row.
    Nobody,
    /// This node.
    Here,
    /// Another node.
    Other,
}

/// The toolstack's run for this migration, by its number. It outlives the daemon, and is read after the guest was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Run {
    /// Not begun.
    None,
    /// Begun, and not ended.
    Running,
    /// Ended, well or not: where the guest is now says which.
    Ended,
}

/// What the node finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Where the guest is.
    pub guest: Guest,
    /// Its ports are here and were when this node had the addresses: they have stayed while those went. A port that came anew since
    /// is another one, whatever it is called; also if the daemon did not run then.
    pub stayed: bool,
    /// How long it has been gone, if it is and the daemon has seen it go.
    pub gone_for: Duration,
    /// Who has its addresses, as of the same instant of the database as the row.
    pub owner: Owner,
    /// What the switch has, as proven: by barrier, and by the datapath where a packet could take the older way.
    pub stance: Stance,
    /// The router's tables stay, or come, where it is not: this node is its standby.
    pub standby: bool,
    /// Source: how the toolstack is.
    pub run: Run,
    /// Destination: all that the source has told is installed and confirmed, and their digests are equal.
    pub staged: bool,
    /// Destination: the source has relayed its last punt, and the guest has all of them.
    pub end_mark: bool,
    /// Destination: others were told, at least once on each segment.
    pub told: bool,
    /// Nothing has come through the late gate for [`Limits::still`].
    pub still: bool,
    /// Something is in the way, which only words can say: the move must not begin, or must not go on before the guest has left.
    pub unable: bool,
    /// How long this daemon has seen the row in its phase, by its own clock: nobody's clocks are compared.
    pub in_phase: Duration,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For tables to be installed at the destination; then the migration is aborted.
    pub staging: Duration,
    /// For the source to yield; then the migration is aborted.
    pub staged: Duration,
    /// For the destination's gate; then somebody is told.
    pub arrived: Duration,
    /// For a source that has not yielded; then it is taken for dead, and the destination announces.
    pub verified: Duration,
    /// For the source's end mark; then punts are given without it.
    pub announced: Duration,
    /// For late frames to end; then somebody is told, and the destination closes the row.
    pub draining: Duration,
    /// For the guest to be somewhere; then the row is closed, and who has the guest goes on without it.
    pub aborting: Duration,
    /// For a guest that has vanished to come up somewhere; then its addresses are given up.
    pub gone: Duration,
    /// Without a late frame: longer than any switch takes to hear of the move.
    pub still: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            staging: s(300),
            staged: s(30),
            arrived: s(10),
            verified: s(5),
            announced: s(2),
            draining: s(120),
            aborting: s(60),
            gone: s(60),
            still: s(3),
        }
    }
}
