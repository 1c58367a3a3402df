//! What a daemon remembers of routers between two looks: what [`Facts`] need and no row says.
//!
//! Pure: clocks, ports, sessions and rows are arguments. Nothing here survives a restart but what a port's row in Open
//! vSwitch's database says ([`Look::was_home`]); after one, deadlines begin anew and what the switch holds is taken for the
//! most that it can be, until it is proven otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ovsdb::Uuid;
use xenflow_flow_app::RouterId;

use super::sequencer::{Facts, Gate, Guest, Owner, Run, Stance};
use crate::db::migration::Phase;

/// What can be seen of a router on this node at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Since the daemon began.
    pub now: Duration,
    /// Rows of its interfaces that are plugged in here and have a link, the control vif's among them: a port that comes
    /// anew has another row, whatever it is called.
    pub ports: BTreeSet<Uuid>,
    /// A guest has a session over the control vif's port that is plugged in now.
    pub session: bool,
    /// One of the ports is marked as one that was here when this node had the router's addresses.
    pub was_home: bool,
    /// Who has its addresses.
    pub owner: Owner,
    /// Its open migration that this node takes part in: number and phase.
    pub open: Option<(u64, Phase)>,
    /// Frames that have been let in for the router, as counted at that time; none: not counted yet.
    pub late: Option<(u64, Duration)>,
}

/// Of one router.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// The ports that it has been seen with while this node had the addresses.
    home: BTreeSet<Uuid>,
    /// It has had a session since its ports came.
    ran: bool,
    /// It had ports, and they went then.
    gone: Option<Duration>,
    /// One of its ports went last then, and others stayed.
    thinned: Option<Duration>,
    ports: BTreeSet<Uuid>,
    /// When its open row was first read in its phase.
    phase: Option<(u64, Phase, Duration)>,
    /// The count of late frames, since when it has been that, and when it was last.
    late: Option<(u64, Duration, Duration)>,
    asked: Stance,
    asked_at: Duration,
    proven: Stance,
    /// What is asked is proven with this proof.
    with: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Memory {
    routers: BTreeMap<RouterId, Known>,
    /// The last proof that was asked for.
    last: u64,
}

/// What a router is taken to stand as that a daemon finds when it starts, on its way from here: its gate may be open for
/// late frames.
const FOUND: Stance = Stance { gate: Gate::Late, ..Stance::NONE };

impl Memory {
    /// A look at a router; what the shell alone knows ([`Facts::run`] and what follows it) is as if there were nothing.
    pub fn look(&mut self, router: RouterId, look: &Look, still: Duration) -> Facts {
        let known = self.routers.entry(router).or_insert_with(|| {
            let stance = if look.open.is_some() { FOUND } else { Stance::NONE };
            Known {
                home: BTreeSet::new(),
                ran: false,
                gone: None,
                thinned: None,
                ports: BTreeSet::new(),
                phase: None,
                late: None,
                asked: stance,
                asked_at: look.now,
                proven: stance,
                with: 0,
            }
        });
        let is_here = !look.ports.is_empty();
        match (!known.ports.is_empty(), is_here) {
            (true, false) => (known.gone, known.thinned) = (Some(look.now), None),
            (_, true) => known.gone = None,
            (false, false) => {}
        }
        if is_here && !known.ports.is_subset(&look.ports) {
            known.thinned = Some(look.now);
        }
        known.ports.clone_from(&look.ports);
        known.ran = is_here && (known.ran || look.session);
        known.home.retain(|port| look.ports.contains(port));
        if look.owner == Owner::Here {
            known.home.extend(&look.ports);
        }
        known.phase = look.open.map(|(number, phase)| match known.phase {
            Some(since @ (of, was, _)) if (of, was) == (number, phase) => since,
            _ => (number, phase, look.now),
        });
        if let Some((count, at)) = look.late.filter(|(_, at)| *at >= known.asked_at) {
            let since = known.late.filter(|(was, ..)| *was == count).map_or(at, |(_, since, _)| since);
            known.late = Some((count, since, at));
        }
        Facts {
            guest: match () {
                () if !is_here => Guest::Gone,
                () if known.ran => Guest::Running,
                () => Guest::Plugged,
            },
            stayed: is_here && (look.was_home || !known.home.is_empty()),
            gone_for: known.gone.map_or(Duration::MAX, |since| look.now.saturating_sub(since)),
            owner: look.owner,
            stance: known.proven,
            standby: false,
            run: Run::None,
            staged: false,
            end_mark: false,
            told: false,
            still: known.late.is_some_and(|(_, since, at)| at.saturating_sub(since) >= still),
            unable: false,
            in_phase: known.phase.map_or(Duration::ZERO, |(.., since)| look.now.saturating_sub(since)),
        }
    }

    /// For how long a router's ports are fewer than they were, or others: some went, some stayed. None: not since they came.
    #[must_use]
    pub fn thinned_for(&self, router: RouterId, now: Duration) -> Option<Duration> {
        Some(now.saturating_sub(self.routers.get(&router)?.thinned?))
    }

    /// A router is to stand so from now on. True: it was to stand otherwise.
    pub fn ask(&mut self, router: RouterId, stance: Stance, now: Duration) -> bool {
        let Some(known) = self.routers.get_mut(&router) else { return false };
        if known.asked == stance {
            return false;
        }
        if stance.gate != known.asked.gate {
            // What came before does not count.
            (known.late, known.asked_at) = (None, now);
        }
        known.asked = stance;
        self.last += 1;
        known.with = self.last;
        true
    }

    /// The proof with which all that is asked now is proven; none: it is.
    #[must_use]
    pub fn wanted(&self) -> Option<u64> {
        let open = self.routers.values().filter(|known| known.proven != known.asked);
        open.map(|known| known.with).max()
    }

    /// What was asked before this proof was asked for holds, in the switch and in its datapath. True: something new is
    /// known.
    pub fn prove(&mut self, proof: u64) -> bool {
        let mut is_new = false;
        for known in self.routers.values_mut().filter(|known| known.with <= proof) {
            is_new |= known.proven != known.asked;
            known.proven = known.asked;
        }
        is_new
    }

    /// Ports that are to be marked ([`Look::was_home`]).
    #[must_use]
    pub fn home(&self) -> BTreeSet<Uuid> {
        self.routers.values().flat_map(|known| &known.home).copied().collect()
    }

    /// Some router's late frames are waited for: they are to be counted every second.
    #[must_use]
    pub fn wants_counts(&self) -> bool {
        self.routers.values().any(|known| known.asked.gate == Gate::Late)
    }

    /// Only these are configured.
    pub fn retain(&mut self, routers: &BTreeSet<RouterId>) {
        self.routers.retain(|router, _| routers.contains(router));
    }
}

#[cfg(test)]
mod tests;
