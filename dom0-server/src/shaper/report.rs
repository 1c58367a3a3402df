//! How the division of the links goes, as operators see it.

use serde::{Deserialize, Serialize};

/// All uplinks of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How links are divided: `static`, `paper`, `weights`, `fair`; or `off`.
    pub policy: String,
    /// Milliseconds between two looks.
    pub period_ms: u64,
    /// By name of the port.
    pub links: Vec<LinkReport>,
}

/// An uplink.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Name of the OVS port.
    pub port: String,
    /// What it carries, in bit/s of Ethernet frames; 0 where nobody knows.
    pub capacity_bps: u64,
    /// Who says so: `operator`, `port`, or `unknown`.
    pub capacity_from: String,
    /// Who shapes it: `tc`, `ovs`, `meter` (maxima only) or `none`.
    pub driver: String,
    /// Why it is not shaped, or not as it was promised.
    pub problem: Option<String>,
    /// What it carried in the last period.
    pub carried_bps: u64,
    /// By number.
    pub queues: Vec<QueueReport>,
}

/// A network's part of an uplink, or a class's of that.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueReport {
    /// The network.
    pub network: String,
    /// The class; none: what is in no class.
    pub class: Option<String>,
    /// Its number, as `set_queue` has it.
    pub queue: u32,
    /// What it was promised; 0: nothing.
    pub min_bps: u64,
    /// What it gets at most; none: all there is.
    pub max_bps: Option<u64>,
    /// What it carried, mean over the last few periods.
    pub obtained_bps: u64,
    /// What the law gives it of what the link carried.
    pub expected_bps: u64,
    /// It wants more than it gets: packets wait, or were dropped.
    pub wants_more: bool,
    /// Bytes that wait; none where the driver does not say.
    pub backlog_bytes: Option<u64>,
    /// Packets that were dropped since the queue was made.
    pub dropped_packets: u64,
    /// 1 − |1 − obtained/expected|; none while nothing is expected.
    pub fitness: Option<f64>,
    /// What it gets whenever it wants it, as the kernel was told; none where nobody was.
    pub rate_bps: Option<u64>,
    /// Up to what it may borrow, as the kernel was told.
    pub ceil_bps: Option<u64>,
    /// Since when it is as it is (`idle`, `met` or `short`): milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// `idle`: it carries nothing. `met`: it has all that it wants, or at least its part. `short`: it wants more and has
    /// less than its part, by more than a twentieth.
    pub state: String,
}
