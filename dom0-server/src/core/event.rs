//! What goes into the core, and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use openflow::{ErrorCode, Flow, Group, Meter};
use xenflow_flow_app::{Dump, FlowChange, MeterChange, RouterId};
use xenflow_proto::message::{GuestMessage, Hello, HostMessage, RefusalReason};
use xenflow_proto::node::{Held, SourceMessage};
use xenflow_proto::{Digest, Identity, MacAddr, Name, Seq};

#[cfg(doc)]
use super::Core;
use super::feeds::Fed;
use super::{BatchId, SessionId};
use crate::counters::{Poll, Totals};
use crate::db::Desired;
use crate::db::location::Place;
use crate::guest::limits::Hits;
use crate::locations::Whereabouts;
use crate::migration::carrier::Carried;
use crate::migration::peer::outgoing::Said;
use crate::migration::sequencer::Run;
use crate::ports::{SwitchBuild, SwitchPorts};

/// Something that happened outside.
#[derive(Debug)]
pub enum Event {
    /// The XenFlow database says this now.
    Desired(Desired),
    /// The XenFlow database has said nothing since the daemon began.
    Kept(Kept),
    /// Addresses and routers on their way are here and there now.
    Whereabouts(Whereabouts),
    /// [`Event::Whereabouts`] has said all that was written before [`Desired::cfg`] became this, and other nodes can know
    /// that these addresses are here.
    Located(i64, Option<Arc<BTreeSet<Place>>>),
    /// The integration bridge has these ports now.
    Ports(SwitchPorts),
    /// The switch is this.
    Build(SwitchBuild),
    /// The switch is connected, and can have meters or not.
    SwitchUp {
        /// Its datapath supports them.
        has_meters: bool,
    },
    /// The switch is not connected any more; everything under way is lost.
    SwitchDown,
    /// Some of the flows that [`Effect::Dump`] asked for.
    Dumped(Vec<Flow>),
    /// Some of its groups.
    DumpedGroups(Vec<Group>),
    /// Some of its meters.
    DumpedMeters(Vec<Meter>),
    /// All of them were given.
    DumpEnd,
    /// The switch does not answer what [`Effect::Dump`] asked for, with its reason.
    DumpFailed(String),
    /// The switch refused a change of a meter.
    MeterRefused(MeterChange, MeterError),
    /// What the switch has counted.
    Counted(Poll),
    /// What a former life of the daemon had counted.
    Remembered(Totals),
    /// What [`Effect::Wait`] asked for is over.
    Waited,
    /// Some time has passed; it says how much since the daemon began. To come about every second.
    Tick(Duration),
    /// Nothing else has happened: go on with what is left of long work. To come while [`Core::is_behind`].
    Turn,
    /// Guests ran into limits.
    Limited(Hits),
    /// The switch has confirmed a batch, so long after the core was asked for it: the time includes the search for what
    /// is due.
    Confirmed(BatchId, Duration),
    /// What [`Effect::Rest`] asked for is over.
    Rested,
    /// What [`Effect::Prove`] asked for: it is so, or nobody knows.
    Proven(u64, bool),
    /// The switch refused a batch, because of these changes (by index, with its reason).
    Refused(BatchId, Vec<(usize, ErrorCode)>),
    /// A guest with a valid certificate has said hello.
    Opened(SessionId, Identity, IpAddr, Hello),
    /// A guest says something. Its next message comes after [`Effect::Taken`].
    Said(SessionId, GuestMessage),
    /// An acknowledgement with answers about routes has gone out to a guest.
    Told(SessionId),
    /// A guest has said nothing for a while.
    Silent(SessionId),
    /// A guest's connection is gone, or a node's.
    Closed(SessionId),
    /// The node that a router leaves is connected, and may speak for it: the router, and the number of the migration.
    SourceOpened(SessionId, Name, u64),
    /// A node is connected that says it has this router, whose tables this node is to keep: the router, and that node.
    StandbyOpened(SessionId, Name, Name),
    /// It says something of the router's tables. Its next message of them comes after [`Effect::Taken`].
    SourceSaid(SessionId, SourceMessage),
    /// A stream of this number to a destination.
    Feed(u64, Fed),
    /// The toolstack's run for the migration of this number; and what keeps it from running, if something does.
    Ran(u64, Run, Option<String>),
    /// What has become of a router's frames.
    Carried(RouterId, Carried),
    /// The open moves to this node, by number, for which the datapath has flows already.
    Ahead(BTreeSet<u64>),
    /// How many of them, by what became of them; for the report of the migration of this number.
    Tallied(RouterId, u64, BTreeMap<String, u64>),
}

/// What the XenFlow database said to a former life of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// What was wanted.
    pub desired: Desired,
    /// Which addresses other nodes had.
    pub elsewhere: BTreeSet<Place>,
    /// When it was so: milliseconds since the Unix epoch.
    pub saved_ms: u64,
}

/// Why a change of a meter was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterError {
    /// The meter was there already, or was not there: the switch is not as it was said to be.
    pub is_drift: bool,
    /// In the switch's words.
    pub reason: String,
}

/// Something to do outside.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send these changes of meters each by itself, then the others as one bundle.
    Send(BatchId, Vec<MeterChange>, Vec<FlowChange>),
    /// Ask for this, behind everything sent so far.
    Dump(Dump),
    /// Come back with [`Event::Waited`] after so long; it takes the place of an earlier one.
    Wait(Duration),
    /// Come back with [`Event::Rested`] after so long; not asked for again before that.
    Rest(Duration),
    /// Wait until the datapath has nothing left of what was so before, and come back with [`Event::Proven`].
    Prove(u64),
    /// Tell a guest.
    Tell(SessionId, HostMessage),
    /// Tell a guest why and close its connection; the reason is for the log too.
    Refuse(SessionId, RefusalReason, String),
    /// A session's last message has been taken in: it may send the next.
    Taken(SessionId),
    /// Say something to another node.
    Peer(ToPeer),
    /// Nudge the guest of a router, by the address of its control vif, until it has a session: that vif has come up.
    Nudge(RouterId, MacAddr),
}

/// Something to say to the other node of a move.
#[derive(Debug, PartialEq, Eq)]
pub enum ToPeer {
    /// To a source: it may speak for a router, of which this is held.
    Welcome(SessionId, Option<Held>),
    /// To a source: the tables up to there are in the switch, and the same as its own.
    Staged(SessionId, Seq, Digest),
    /// To the destination of the migration of this number; the next comes after [`Fed::Room`].
    Feed(u64, Said),
}
