//! Routers that move: what this node finds of each, and what follows from the sequencer's word.
//!
//! Looked at anew whenever anything of it may have changed; what comes of it are stances of the topology, addresses that may be
//! claimed here, transactions that are due, and what others are to do: carry frames, stream tables, run toolstacks. Nothing is
//! asked of a router of which the rows are not known yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ovsdb::Uuid;
use xenflow_flow_app::{Gate, PortNo, RouterId, Stance, Topology, pipeline};
use xenflow_proto::control::node_mac;
use xenflow_proto::{Name, VlanId};

use super::entries::Counted;
use super::sight::Sight;
use super::standbys::Standby;
use super::{Core, Effect};
use crate::counters::Poll;
use crate::db::location::Place;
use crate::db::migration::{Migration, Phase, Via};
use crate::locations::Whereabouts;
use crate::migration::announce;
use crate::migration::carrier::{Carried, Post, Posts};
use crate::migration::megaflows;
use crate::migration::memory::{Look, Memory};
use crate::migration::sequencer::{self, Drive, Facts, Guest, Limits, Open, Owner, Role, Run, Step, Wake};
use crate::migration::standby;

/// A transaction that a router waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The open row as it was read; none: there was none.
    pub row: Option<Migration>,
    /// What is to be written.
    pub write: sequencer::Write,
    /// The router's addresses on segments.
    pub places: BTreeSet<Place>,
    /// More words for why it is aborted.
    pub why: Option<String>,
    /// For the report, with what ends this node's part.
    pub tally: BTreeMap<String, u64>,
}

/// A connection that there is to be to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Of the migration, or [of the standby](standby::number).
    pub number: u64,
    /// Whose.
    pub router: Name,
    /// The destination, or the standby.
    pub to: Name,
    /// Where that listens.
    pub address: SocketAddr,
    /// Which one this is that tells the router's tables: each begins with a connection of its own.
    pub feed: u64,
}

/// What a toolstack has to do for a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// The row.
    pub row: Migration,
    /// What the router's row says that its guest is called.
    pub guest: Option<String>,
    /// What is to be done.
    pub drive: Drive,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Moves {
    limits: Limits,
    memory: Memory,
    /// The last word on each router.
    pub(super) steps: BTreeMap<RouterId, Step>,
    /// When frames were last counted, and how many each router's gates had let in; of others none.
    let_in: Option<(Duration, BTreeMap<RouterId, u64>)>,
    /// The last proof that was asked for.
    proving: Option<u64>,
    /// It could not be had.
    is_unproven: bool,
    /// Transactions that are due, by router.
    due: Arc<BTreeMap<Name, Due>>,
    /// See [`Core::home`].
    home: Arc<BTreeSet<Uuid>>,
    /// Migrations whose tables are here, by their routers.
    pub(super) staged: BTreeMap<RouterId, u64>,
    /// Routers whose standby this node is, and who has them.
    pub(super) standbys: BTreeMap<RouterId, Name>,
    /// Of routers with an open migration or a standby here those whose tables the switch has had in full since it is in step.
    whole: BTreeSet<RouterId>,
    /// How the toolstack is, by migration, and what keeps it from running.
    runs: BTreeMap<u64, (Run, Option<String>)>,
    carried: BTreeMap<RouterId, Carried>,
    /// By router, of the migration of this number.
    tallies: BTreeMap<RouterId, (u64, BTreeMap<String, u64>)>,
    entries: Counted,
    /// The datapath has flows for these.
    ahead: BTreeSet<u64>,
    streams: Arc<BTreeMap<RouterId, Stream>>,
    errands: Arc<BTreeMap<u64, Errand>>,
    posts: Arc<Posts>,
    megaflows: Arc<megaflows::Moves>,
}

impl Core {
    /// Takes a step for each router: how it stands in `topology`, and what of `here` may be claimed.
    pub(super) fn step_routers(&mut self, topology: &mut Topology, here: &mut BTreeSet<Place>) {
        let (Some(desired), Some(whereabouts)) = (&self.desired, &self.whereabouts) else { return };
        let sight = Sight::of(desired, self.ports.as_ref(), &self.sessions);
        let let_in = self.moves.let_in.take();
        let mut due = BTreeMap::new();
        let mut steps = BTreeMap::new();
        let mut streams = BTreeMap::new();
        let mut errands = BTreeMap::new();
        let mut feeds = BTreeMap::new();
        let mut standbys = BTreeMap::new();
        let mut megaflows = self.datapath(topology);
        let mut posts = Posts { uplinks: topology.uplinks.clone(), ..Posts::default() };
        posts.node_mac = topology.node_mac;
        for (name, router) in &desired.routers {
            let id = RouterId(router.id.get());
            let seen = sight.seen(id, topology);
            let row = whereabouts.moves.get(name);
            let look = Look {
                now: self.now,
                session: sight.guests.contains(&id),
                was_home: seen.was_home,
                ports: seen.ports,
                owner: owner(&seen.places, whereabouts),
                open: row.map(|row| (row.number, row.phase)),
                late: let_in.as_ref().map(|(at, all)| (all.get(&id).copied().unwrap_or(0), *at)),
            };
            let facts = self.moves.memory.look(id, &look, self.moves.limits.still);
            let (mut facts, why) = self.moves.with_others(id, row, facts);
            let standby = Standby::find(name, (&self.node, facts.owner), &seen.places, whereabouts);
            facts.standby = matches!(standby, Some(Standby::Of(_)));
            let is_whole = self.moves.whole.contains(&id);
            if row.is_some_and(|row| row.to == self.node) && facts.stance.gate == Gate::Open && !is_whole {
                // To nothing any more, or not to all.
                facts.stance.gate = Gate::Closed;
            }
            let is_told = facts.staged || (facts.standby && self.app.is_synced(id));
            // What is told of them later comes as well. Flows of the datapath are the last before others may have the source yield.
            facts.staged &=
                sight.sources.contains(&id) && row.is_some_and(|row| self.moves.ahead.contains(&row.number));
            let open = row.map(|row| open(row, &self.node));
            let mut step = sequencer::step(open.as_ref(), &facts, &self.moves.limits);
            if row.is_some_and(|row| row.to == self.node && row.phase < Phase::Announced)
                && step.stance.gate == Gate::Open
                && !is_whole
            {
                // The guest would get what it cannot hand on yet.
                let is_late = facts.stance.gate == Gate::Late;
                step.stance.gate = if is_late { Gate::Late } else { Gate::Closed };
            }
            self.moves.memory.ask(id, step.stance, self.now);
            let grace = self.moves.grace(id, seen.is_whole, self.now).filter(|_| step.stance == Stance::HOME);
            step.wake = step.wake.or(grace);
            let is_as_ever = match step.stance {
                Stance::HOME => seen.is_plugged && grace.is_none(),
                // Flows of a former life of the daemon, with no tables to compare them with, have to be taken away first.
                Stance::NONE => !seen.is_plugged && (facts.stance == Stance::NONE || self.app.is_synced(id)),
                _ => false,
            };
            if !is_as_ever {
                topology.stances.insert(id, step.stance);
            }
            let is_rehearsed = is_told && is_whole && step.stance.gate == Gate::Closed && step.stance.tables;
            if is_rehearsed {
                topology.rehearsed.insert(id);
            }
            // Nobody sends by an open gate either while the guest is on its way, and what nothing comes by is gone after ten seconds.
            let is_awaited = is_told && row.is_some_and(|row| row.phase < Phase::Announced);
            let is_ahead = is_rehearsed || (is_awaited && step.stance.gate == Gate::Open);
            claim(&step, &seen.places, whereabouts, here);
            let parties = row.map(|row| (row.number, &row.from, &row.to));
            let parties = parties
                .or_else(|| whereabouts.others.get(name).map(|(number, from, to)| (*number, from, to)));
            if let Some((number, from, to)) = parties {
                let role = match &self.node {
                    node if node == from => Some(Role::Source),
                    node if node == to => Some(Role::Destination),
                    _ => None,
                };
                let vifs = topology.vifs_of(id).filter_map(|(_, vif)| Some((vif.vlan()?, vif.mac)));
                let nodes = [node_mac(from), node_mac(to)];
                let are_others = !whereabouts.unprepared.contains(&number);
                let open = megaflows::Move { role, is_ahead, are_others, vifs: vifs.collect(), nodes };
                megaflows.open.insert(number, open);
            }
            if let Some(Standby::Of(host)) = standby {
                standbys.insert(id, host.clone());
            }
            // Where its tables are told, or its frames; a move comes first.
            let told = match (row, standby) {
                (Some(row), _) => (row.from == self.node).then_some((row.number, &row.to, step.stream)),
                (None, Some(Standby::At(to))) => Some((standby::number(id), to, true)),
                (None, Some(Standby::Of(_)) | None) => None,
            };
            if let Some((number, to, has_tables)) = told {
                if let Some(address) = whereabouts.addresses.get(to).copied() {
                    let (router, to) = (name.clone(), to.clone());
                    streams.insert(id, Stream { number, router, to, address, feed: 0 });
                }
                if has_tables {
                    feeds.insert(id, number);
                }
            }
            if let Some(row) = row {
                let role = if row.from == self.node { Role::Source } else { Role::Destination };
                posts.roles.insert(id, (row.number, role));
                if row.from == self.node && row.via != Via::Other {
                    let guest = whereabouts.guests.get(name).cloned();
                    errands.insert(row.number, Errand { row: row.clone(), guest, drive: step.drive });
                }
            }
            if row.is_some() || !is_as_ever || facts.stance != step.stance {
                let vifs = self.posted_vifs(id, topology, &step);
                posts.routers.insert(
                    id,
                    Post {
                        migration: row.map(|row| row.number),
                        asked: step.stance,
                        proven: facts.stance,
                        is_here: facts.guest != Guest::Gone,
                        tell: step.tell,
                        end_mark: step.end_mark,
                        vifs,
                    },
                );
            }
            if let Some(write) = step.write {
                let role = posts.roles.get(&id).map(|(_, role)| *role);
                let tally = self.moves.tally(id, role, row, write, &sight.segments);
                due.insert(name.clone(), Due { row: row.cloned(), write, places: seen.places, why, tally });
            }
            steps.insert(id, step);
        }
        self.moves.memory.retain(&steps.keys().copied().collect());
        self.moves.standbys = standbys;
        self.moves.forget_others(&whereabouts.moves);
        self.log_steps(&steps);
        self.moves.steps = steps;
        self.moves.let_in = let_in;
        let home = self.moves.memory.home();
        renew(&mut self.moves.due, due);
        renew(&mut self.moves.home, home);
        self.set_feeds(&feeds);
        for (id, stream) in &mut streams {
            // One that tells tables no more goes on as it is.
            let before = self.moves.streams.get(id).filter(|before| before.number == stream.number);
            stream.feed = self.feeds.of(*id).or_else(|| Some(before?.feed)).unwrap_or_default();
        }
        renew(&mut self.moves.streams, streams);
        renew(&mut self.moves.errands, errands);
        renew(&mut self.moves.posts, posts);
        renew(&mut self.moves.megaflows, megaflows);
    }

    /// The vifs of a router on segments; with their addresses, where anything is said for it.
    fn posted_vifs(
        &self,
        id: RouterId,
        topology: &Topology,
        step: &Step,
    ) -> BTreeMap<u16, (Option<PortNo>, announce::Vif)> {
        let addresses =
            if step.stance.answers || step.tell { self.app.addresses_of(id) } else { BTreeMap::new() };
        let vifs = topology.vifs_of(id).filter_map(|(vif, place)| {
            let addresses = addresses.get(&vif).into_iter().flatten().copied();
            Some((vif.number, (place.port, announce::Vif::new(place.vlan()?, place.mac, addresses))))
        });
        vifs.collect()
    }

    /// Connections that there are to be to destinations. Another one when they change, as the following.
    #[must_use]
    pub fn streams(&self) -> &Arc<BTreeMap<RouterId, Stream>> {
        &self.moves.streams
    }

    /// Open moves from this node or to it, by router.
    #[must_use]
    pub fn open_moves(&self) -> Option<&BTreeMap<Name, Migration>> {
        self.whereabouts.as_ref().map(|whereabouts| &whereabouts.moves)
    }

    /// What toolstacks have to do, by migration.
    #[must_use]
    pub fn errands(&self) -> &Arc<BTreeMap<u64, Errand>> {
        &self.moves.errands
    }

    /// What is to become of frames of routers.
    #[must_use]
    pub fn posts(&self) -> &Arc<Posts> {
        &self.moves.posts
    }

    /// For which moves flows of the datapath are made ahead. Another one when it changes.
    #[must_use]
    pub fn megaflows(&self) -> &Arc<megaflows::Moves> {
        &self.moves.megaflows
    }

    /// Where this host's frames come in.
    fn datapath(&self, topology: &Topology) -> megaflows::Moves {
        let ports = self.ports.iter().flat_map(|ports| &ports.ports);
        let mut host = megaflows::Host::default();
        for port in ports {
            if topology.uplinks.contains(&port.number) {
                host.uplinks.insert(port.name.clone());
            } else if let Some(vlan) = topology.access.get(&port.number) {
                host.access.insert(port.name.clone(), *vlan);
            }
        }
        megaflows::Moves { host, node_mac: topology.node_mac, open: BTreeMap::new() }
    }

    /// A router has a row that says where it goes: it is nobody's lone one.
    pub(super) fn is_on_its_way(&self, id: RouterId) -> bool {
        self.moves.posts.routers.get(&id).is_some_and(|post| post.migration.is_some())
    }

    /// How the toolstack is.
    pub(super) fn ran(&mut self, number: u64, run: Run, why_not: Option<String>) {
        if self.moves.runs.insert(number, (run, why_not.clone())) != Some((run, why_not)) {
            self.set_topology();
        }
    }

    /// For the report.
    pub(super) fn tallied(&mut self, router: RouterId, number: u64, tally: BTreeMap<String, u64>) {
        self.moves.tallies.insert(router, (number, tally));
    }

    /// What has become of a router's frames.
    pub(super) fn carried(&mut self, router: RouterId, carried: Carried) {
        if self.moves.carried.insert(router, carried) != Some(carried) {
            self.set_topology();
        }
    }

    /// Finds the routers whose tables are in the switch by now, or not any more. However much is changed after that, the gate
    /// leads to all of them.
    pub(super) fn find_whole(&mut self) {
        let is_whole = |id: RouterId| {
            let is_under_way = || self.in_flight.values().any(|batch| batch.routers.contains(&id));
            let was_whole = self.moves.whole.contains(&id);
            self.app.is_in_step(id) && (was_whole || (self.app.backlog(id) == 0 && !is_under_way()))
        };
        let behind_gates = self.moves.posts.roles.keys().chain(self.moves.standbys.keys());
        let whole: BTreeSet<RouterId> = behind_gates.copied().filter(|id| is_whole(*id)).collect();
        if whole != self.moves.whole {
            self.moves.whole = whole;
            self.set_topology();
        }
    }

    /// For which moves flows of the datapath have been made.
    pub(super) fn ahead(&mut self, numbers: BTreeSet<u64>) {
        if self.moves.ahead != numbers {
            self.moves.ahead = numbers;
            self.set_topology();
        }
    }

    /// Transactions that are due, by router; another one when they change.
    #[must_use]
    pub fn due(&self) -> &Arc<BTreeMap<Name, Due>> {
        &self.moves.due
    }

    /// Interfaces that were here when this node had their router's addresses: their rows are to say so. Another one when
    /// they change.
    #[must_use]
    pub fn home(&self) -> &Arc<BTreeSet<Uuid>> {
        &self.moves.home
    }

    /// Something may be due because time has passed.
    pub(super) fn wait_for_routers(&mut self) {
        if std::mem::take(&mut self.moves.is_unproven) {
            self.moves.proving = None;
        }
        let waits = |step: &Step| step.wake.is_some() || step.write.is_some();
        if self.moves.memory.wants_counts() || self.moves.steps.values().any(waits) {
            self.set_topology();
        }
    }

    /// A router's guest has begun a session.
    pub(super) fn has_spoken(&mut self, router: RouterId) {
        if self.moves.steps.get(&router).is_some_and(|step| step.stance != Stance::HOME) {
            self.set_topology();
        }
    }

    fn log_steps(&self, steps: &BTreeMap<RouterId, Step>) {
        for (id, step) in steps {
            let before = self.moves.steps.get(id);
            if before.map(|before| before.stance) != Some(step.stance) {
                let router = self.router_name(*id);
                tracing::debug!(name: "router-stance", router, stance = ?step.stance, "how the router is to stand");
            }
            if let Some(overdue) = step.overdue
                && before.and_then(|before| before.overdue) != Some(overdue)
            {
                let router = self.router_name(*id);
                tracing::warn!(name: "move-overdue", router, "{overdue}");
            }
        }
    }

    /// Counts what gates have let in, and what has entered routers that move.
    pub(super) fn count_let_in(&mut self, poll: &Poll) {
        let mut all: BTreeMap<RouterId, u64> = BTreeMap::new();
        for described in &poll.flows {
            if let Some(router) = pipeline::counted_late(&described.flow) {
                *all.entry(router).or_default() += described.counters.packets.unwrap_or_default();
            }
        }
        self.moves.let_in = Some((self.now, all));
        let open = self.moves.posts.roles.iter().map(|(id, (number, _))| (*id, *number)).collect();
        self.moves.entries.take(&open, poll);
    }

    /// Asks for the proof of what routers are to stand as, once the switch has confirmed all that it takes.
    pub(super) fn prove_stances(&mut self) {
        let Some(wanted) = self.moves.memory.wanted() else { return };
        let is_there = self.switch_up && self.in_flight.is_empty() && self.app.is_topology_sent();
        if is_there && self.moves.proving < Some(wanted) {
            self.moves.proving = Some(wanted);
            self.effects.push(Effect::Prove(wanted));
        }
    }

    /// The datapath has forgotten what was so before this proof was asked for.
    pub(super) fn proven(&mut self, proof: u64) {
        if self.moves.memory.prove(proof) {
            self.set_topology();
        }
    }

    /// The proof could not be had: it is asked for again with the next [`super::Event::Tick`].
    pub(super) fn unproven(&mut self) {
        self.moves.is_unproven = true;
    }

    /// A router moves, or late frames are waited for: frames are to be counted every second.
    #[must_use]
    pub fn wants_counts(&self) -> bool {
        self.moves.memory.wants_counts() || !self.moves.posts.roles.is_empty()
    }
}

impl Moves {
    /// With what others than the switch and the rows say; and words for why this node cannot go on.
    fn with_others(&self, id: RouterId, row: Option<&Migration>, facts: Facts) -> (Facts, Option<String>) {
        let Some(row) = row else { return (facts, None) };
        let (run, why) = self.runs.get(&row.number).cloned().unwrap_or((Run::None, None));
        let carried = self.carried.get(&id).filter(|carried| carried.migration == Some(row.number));
        let facts = Facts {
            run,
            staged: self.staged.get(&id) == Some(&row.number),
            end_mark: carried.is_some_and(|carried| carried.end_mark),
            told: carried.is_some_and(|carried| carried.told),
            unable: why.is_some() && run == Run::None,
            ..facts
        };
        (facts, why)
    }

    /// How long a guest's routes are kept that go by ports which have gone, where others stayed: toolstacks take them away one by one, and
    /// it may be on its way. None: all are here, or for too long were not.
    fn grace(&self, id: RouterId, is_whole: bool, now: Duration) -> Option<Wake> {
        let since = self.memory.thinned_for(id, now).filter(|_| !is_whole)?;
        let after = self.limits.gone.checked_sub(since).filter(|left| !left.is_zero())?;
        Some(Wake { after, why: "the rest of the guest's ports may follow" })
    }

    /// What is to be reported with this write: the last of the node's own.
    fn tally(
        &self,
        id: RouterId,
        role: Option<Role>,
        row: Option<&Migration>,
        write: sequencer::Write,
        segments: &BTreeMap<VlanId, &Name>,
    ) -> BTreeMap<String, u64> {
        let is_last = matches!(write, sequencer::Write::Advance(phase) if phase >= Phase::Draining);
        let (Some(role), true) = (role, is_last) else { return BTreeMap::new() };
        let known = self.tallies.get(&id).filter(|(number, _)| row.is_some_and(|row| row.number == *number));
        let carried = known.map(|(_, tally)| tally.clone()).unwrap_or_default();
        carried.into_iter().chain(self.entries.tally(id, role, segments)).collect()
    }

    /// Only these migrations are open.
    fn forget_others(&mut self, open: &BTreeMap<Name, Migration>) {
        let numbers: BTreeSet<u64> = open.values().map(|row| row.number).collect();
        self.runs.retain(|number, _| numbers.contains(number));
        self.staged.retain(|id, number| numbers.contains(number) || self.standbys.contains_key(id));
        self.ahead.retain(|number| numbers.contains(number));
        self.tallies.retain(|_, (number, _)| numbers.contains(number));
        self.carried.retain(|_, it| it.migration.is_some_and(|number| numbers.contains(&number)));
    }
}

/// Another one, if it is not the same.
fn renew<T: PartialEq>(known: &mut Arc<T>, now: T) {
    if **known != now {
        *known = Arc::new(now);
    }
}

fn open(row: &Migration, node: &Name) -> Open {
    Open {
        role: if row.from == *node { Role::Source } else { Role::Destination },
        phase: row.phase,
        yielded: row.yielded,
        left: row.left,
        driven: row.via != Via::Other,
        move_limit: Duration::from_secs(row.move_limit_s),
    }
}

/// Who has most of a router's addresses: some may have a row of an earlier time.
fn owner(places: &BTreeSet<Place>, whereabouts: &Whereabouts) -> Owner {
    let count = |of: &BTreeSet<Place>| places.iter().filter(|place| of.contains(place)).count();
    match (count(&whereabouts.own), count(&whereabouts.elsewhere)) {
        (0, 0) => Owner::Nobody,
        (own, other) if own >= other => Owner::Here,
        _ => Owner::Other,
    }
}

/// Keeps in `here` what a router's step lets this node claim: what has come by ports, and what this node has. Ports go one by one, and
/// nobody need have planned it.
fn claim(step: &Step, places: &BTreeSet<Place>, whereabouts: &Whereabouts, here: &mut BTreeSet<Place>) {
    if step.claim {
        here.extend(places.intersection(&whereabouts.own).cloned());
    } else {
        here.retain(|place| !places.contains(place));
    }
}
