//! What one node does for one router that moves, or may move: a function of the open row, if there is one, and of what the
//! node finds. Level-triggered: nothing is remembered between two calls, so a restart is a call like any other.
//!
//! Owns the order of a migration and its deadlines. Who does what is asked for ([`Step`]) is the shell's: flows, streams
//! between nodes, toolstacks, announcements, transactions, clocks.
//!
//! ```text
//! phase     who ends it, and when                   source                              destination
//! staging   destination: it has the tables          sends the tables                    installs them behind a closed gate
//! staged    source: it has yielded                  yields the MACs; copies punts,      "
//!                                                   and answers ARP/NS as the guest does
//! moving    destination: the guest runs there       runs the toolstack; guest gone:     keeps punts in order; once the
//!                                                   relays punts                        port is there: opens the gate
//! arrived   destination: its gate is proven         as with the guest gone, mute        opens the gate, gives relayed punts
//! verified  destination: the source has yielded,    "                                   tells everybody
//!           and switches were told
//! announced destination: punts are in order         takes what comes by uplinks only    emits as the router, "
//! draining  source: nothing came for a while        "; then removes everything, or      as any router
//!                                                   all but the tables of a standby
//! done
//! aborting  source: the guest is back, as before    as before, or as in moving          as before
//! aborted
//! ```
//!
//! The source *yields* (routed frames carry the node's own MAC instead of the router's) before the guest can leave, and the
//! destination emits nothing as the router before that. So no moment needs the two to agree: between the last frame of the guest
//! at the source and the first that tells of it at the destination nobody uses the router's MACs, and switches keep what they have
//! learned. They are told before the database is: the source, once it knows, switches what begins at its own ports to where the
//! router is, and a switch between that still believed the router to be at the source would send that nowhere.
//!
//! No phase is entered twice, so a transaction that is done late or twice finds another phase than it waits for. `aborting` is
//! no point of no return: a guest that runs at the destination has arrived. After that there is no way back but another migration.

mod facts;
mod todo;

use std::time::Duration;

use crate::db::migration::Phase;

pub use facts::{Facts, Guest, Limits, Open, Owner, Role, Run};
pub use todo::{Drive, Reason, Step, Wake, Write};
pub use xenflow_flow_app::stance::{Emission, Gate, Punts, Stance};

#[cfg(test)]
mod explore;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

/// What this node has to do for the router now; `open` is its open row, if this node takes part in it.
#[must_use]
pub fn step(open: Option<&Open>, facts: &Facts, limits: &Limits) -> Step {
    match open {
        None => alone(facts, limits),
        Some(open) => match open.role {
            Role::Source => source(open, facts, limits),
            Role::Destination => destination(open, facts, limits),
        },
    }
}

/// Without a migration: forwards for guests that are here, and for one that has vanished until another node takes over. A guest
/// that comes here while another node has its addresses has been moved by somebody.
fn alone(facts: &Facts, limits: &Limits) -> Step {
    match (facts.owner, facts.guest) {
        (Owner::Nobody | Owner::Here, Guest::Plugged | Guest::Running) => Step::of(Stance::HOME, true),
        (Owner::Here, Guest::Gone) if facts.gone_for < limits.gone => {
            let wake = Wake { after: limits.gone - facts.gone_for, why: "the guest may come up elsewhere" };
            Step { wake: Some(wake), ..Step::of(Stance { mute: true, ..Stance::AWAY }, true) }
        }
        (Owner::Nobody | Owner::Here, Guest::Gone) => Step::of(closed(facts), false),
        (Owner::Other, Guest::Gone) => Step::of(until_still(facts), false),
        (Owner::Other, _) if facts.stayed => Step::of(until_still(facts), true),
        (Owner::Other, Guest::Plugged) => Step::of(awaited(facts), false),
        (Owner::Other, Guest::Running) => {
            Step { write: Some(Write::Create), ..Step::of(awaited(facts), false) }
        }
    }
}

/// The gate first, what is behind it then: whatever order the switch takes, nobody is let in to nothing.
fn closed(facts: &Facts) -> Stance {
    if facts.stance.gate == Gate::Closed { elsewhere(facts) } else { Stance::STANDBY }
}

/// Of a router that has nothing to do with this node, or nothing but its tables.
fn elsewhere(facts: &Facts) -> Stance {
    if facts.standby { Stance::STANDBY } else { Stance::NONE }
}

/// Forwards what comes late, for as long as any comes. While this node says anything as the router, more may come at any time.
fn until_still(facts: &Facts) -> Stance {
    let is_silent = facts.stance.emission == Emission::Node && facts.stance.mute;
    match facts.stance.gate {
        Gate::Closed => closed(facts),
        Gate::Late if facts.still && is_silent => closed(facts),
        Gate::Late | Gate::Open => Stance::LATE,
    }
}

/// As the destination of a guest that may come; it may be the source of an earlier move, and not be done with that.
fn awaited(facts: &Facts) -> Stance {
    Stance { gate: until_still(facts).gate, ..Stance::AWAITED }
}

fn source(open: &Open, facts: &Facts, limits: &Limits) -> Step {
    let is_here = facts.owner == Owner::Here && facts.guest != Guest::Gone;
    let runs = facts.guest == Guest::Running;
    // A guest that has come back by another port may have been elsewhere: the row must say so first.
    let mute = !facts.stayed;
    let leaving = Stance { mute, ..if runs { Stance::YIELDED } else { Stance::AWAY } };
    let yielded = facts.stance.emission == Emission::Node;
    let timer = Timer::of(open, facts, limits);
    let step = match open.phase {
        Phase::Staging => {
            let write = match () {
                () if !is_here => Some(Write::Abort(Reason::NotHere)),
                () if facts.unable => Some(Write::Abort(Reason::Unable)),
                () => timer.abort(),
            };
            Step { stream: is_here, write, ..alone(facts, limits) }
        }
        // What was yielded stays yielded also when it goes on to be aborted: a transaction that says it may be done yet.
        Phase::Staged => {
            let write = match () {
                () if !is_here => Some(Write::Abort(Reason::NotHere)),
                () if facts.unable => Some(Write::Abort(Reason::Unable)),
                () if yielded && facts.stance.punts == Punts::Copied => Some(Write::Advance(Phase::Moving)),
                () => timer.abort(),
            };
            let step = match facts.owner {
                Owner::Nobody | Owner::Here => Step::of(leaving, true),
                Owner::Other => alone(facts, limits),
            };
            Step { stream: is_here, write, ..step }
        }
        Phase::Moving => {
            let is_over = facts.run == Run::Ended;
            let is_ready = yielded && facts.stance.punts != Punts::Guest;
            let write = match facts.guest {
                Guest::Running if is_over => Some(Write::Abort(Reason::Toolstack)),
                Guest::Running if facts.unable => Some(Write::Abort(Reason::Unable)),
                Guest::Running => timer.abort(),
                Guest::Gone if facts.run != Run::Running && !open.left => Some(Write::Left),
                Guest::Gone | Guest::Plugged => None,
            };
            let drive = if open.driven && is_ready && !is_over { Drive::Start } else { Drive::Leave };
            Step { stream: true, drive, write, ..Step::of(leaving, true) }
        }
        Phase::Arrived | Phase::Verified => {
            let stance = Stance { mute: true, ..Stance::AWAY };
            let has_yielded = yielded && facts.stance.mute && !open.yielded;
            Step { stream: true, write: has_yielded.then_some(Write::Yield), ..Step::of(stance, true) }
        }
        Phase::Announced | Phase::Draining => {
            let is_draining = open.phase == Phase::Draining;
            let still = Facts { still: facts.still && is_draining, ..*facts };
            let is_done = is_draining && facts.stance == elsewhere(facts);
            Step {
                end_mark: facts.stance.punts == Punts::Elsewhere,
                write: is_done.then_some(Write::Advance(Phase::Done)),
                ..Step::of(until_still(&still), facts.guest != Guest::Gone)
            }
        }
        Phase::Aborting => {
            let drive = if open.driven { Drive::Stop } else { Drive::Leave };
            let is_back = runs && facts.run != Run::Running;
            let step = match () {
                () if is_back && facts.stayed => alone(facts, limits),
                () => Step { stream: !runs, ..Step::of(leaving, true) },
            };
            let is_back = is_back && facts.stance == step.stance;
            let write = (is_back || timer.is_over).then_some(Write::Advance(Phase::Aborted));
            Step { drive, write, ..step }
        }
        Phase::Done | Phase::Aborted => alone(facts, limits),
    };
    timer.put(step)
}

fn destination(open: &Open, facts: &Facts, limits: &Limits) -> Step {
    let is_open = facts.stance.gate == Gate::Open;
    let timer = Timer::of(open, facts, limits);
    let step = match open.phase {
        Phase::Staging | Phase::Staged | Phase::Moving | Phase::Aborting => {
            // One that was here before does not come.
            let has_come = match facts.guest {
                _ if facts.stayed => false,
                Guest::Running => true,
                Guest::Plugged => open.left,
                Guest::Gone => false,
            };
            let is_staging = open.phase == Phase::Staging;
            let write = match () {
                () if has_come => Some(Write::Advance(Phase::Arrived)),
                () if open.phase == Phase::Aborting => {
                    timer.is_over.then_some(Write::Advance(Phase::Aborted))
                }
                () if facts.unable && !open.left => Some(Write::Abort(Reason::Unable)),
                () if is_staging && facts.staged && facts.stance == Stance::AWAITED => {
                    Some(Write::Advance(Phase::Staged))
                }
                () if is_staging => timer.abort(),
                () => None,
            };
            // What comes between its port and its first word is time to prove the gate. Its tables stay as they are: it is suspended,
            // or they are told here.
            let is_next = open.phase == Phase::Moving && facts.guest != Guest::Gone && !facts.stayed;
            let stance = if is_next && facts.staged { Stance::EXPECTED } else { awaited(facts) };
            Step { write, ..Step::of(stance, false) }
        }
        Phase::Arrived => {
            let write = is_open.then_some(Write::Advance(Phase::Verified));
            Step { write, ..Step::of(Stance::ARRIVED, false) }
        }
        Phase::Verified => {
            // The switches between first: what the source sends them from then on is for here.
            let tell = is_open && (open.yielded || timer.is_over);
            let write = (tell && facts.told).then_some(Write::Announce);
            Step { tell, write, ..Step::of(Stance::ARRIVED, false) }
        }
        Phase::Announced => {
            let has_all = facts.end_mark || timer.is_over;
            let stance = match facts.guest {
                Guest::Gone => Stance { mute: true, ..Stance::AWAY },
                Guest::Plugged | Guest::Running if has_all => Stance::HOME,
                // What it is asked waits with all else.
                Guest::Plugged | Guest::Running => {
                    Stance { punts: Punts::Ordered, answers: true, ..Stance::HOME }
                }
            };
            let is_known = facts.told && facts.stance == stance && stance.punts != Punts::Ordered;
            let write = is_known.then_some(Write::Advance(Phase::Draining));
            Step { tell: true, write, ..Step::of(stance, true) }
        }
        Phase::Draining => {
            let write = timer.is_over.then_some(Write::Advance(Phase::Done));
            Step { tell: true, write, ..alone(facts, limits) }
        }
        Phase::Done | Phase::Aborted => alone(facts, limits),
    };
    timer.put(step)
}

/// The deadline of a phase, for one role.
struct Timer {
    phase: Phase,
    is_over: bool,
    wake: Option<Wake>,
    /// What to say when it is over, if it goes on nevertheless.
    overdue: Option<&'static str>,
}

impl Timer {
    fn of(open: &Open, facts: &Facts, limits: &Limits) -> Self {
        let (limit, why, overdue) = match (open.phase, open.role) {
            (Phase::Staging, _) => (limits.staging, "the destination installs the tables", None),
            (Phase::Staged, Role::Source) => (limits.staged, "this node yields the router's addresses", None),
            (Phase::Moving, Role::Source) => (
                open.move_limit,
                "the toolstack moves the guest",
                (facts.guest != Guest::Running).then_some("the guest has left, and does not arrive"),
            ),
            (Phase::Arrived, Role::Destination) => (
                limits.arrived,
                "the gate opens once the guest's tables are complete",
                Some("the guest is here, but its gate does not open: the other node forwards for it"),
            ),
            (Phase::Verified, Role::Destination) => (
                limits.verified,
                "the source yields the router's addresses",
                Some("the source has not yielded the router's addresses: it is taken for dead"),
            ),
            (Phase::Announced, Role::Destination) => (
                limits.announced,
                "the source's last punts come first",
                (!facts.end_mark).then_some("the source's end mark is missing: punts are given without it"),
            ),
            (Phase::Draining, Role::Source) => {
                (limits.draining, "late frames", Some("frames for the router still come here"))
            }
            (Phase::Draining, Role::Destination) => {
                (limits.draining, "the source drains", Some("the source does not end the migration"))
            }
            (Phase::Aborting, _) => {
                (limits.aborting, "the guest goes on at the source", Some("the guest runs at neither end"))
            }
            _ => (Duration::MAX, "", None),
        };
        let left = limit.saturating_sub(facts.in_phase);
        let is_over = left.is_zero();
        let is_timed = limit != Duration::MAX && !is_over;
        Self {
            phase: open.phase,
            is_over,
            wake: is_timed.then_some(Wake { after: left, why }),
            overdue: overdue.filter(|_| is_over),
        }
    }

    fn abort(&self) -> Option<Write> {
        self.is_over.then_some(Write::Abort(Reason::Expired(self.phase)))
    }

    fn put(self, step: Step) -> Step {
        let wake = [step.wake, self.wake].into_iter().flatten().min_by_key(|wake| wake.after);
        Step { wake, overdue: self.overdue, ..step }
    }
}
