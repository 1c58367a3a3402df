//! The sole owner of the daemon's state: events in, effects out. No I/O and no clock.
//!
//! Three sources feed it: the databases (what is wanted, which ports there are), the switch, and the guests'
//! sessions. It holds back everything for the switch until both databases have spoken once, so that a restart
//! never takes an empty configuration for the wanted one; and for a moment until it is known what other nodes have.

mod acks;
pub mod arrival;
mod entries;
mod event;
mod fed;
mod feeds;
mod lone;
mod meters;
mod moves;
mod plan;
mod progress;
mod refused;
mod report;
mod sessions;
mod sight;
mod standbys;
mod switch;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use xenflow_flow_app::{Answer, App, Attachment, FlowChange, PortNo, RouterId};
use xenflow_proto::message::{HostMessage, RefusalReason};
use xenflow_proto::table::{NeighborKey, RouteKey};
use xenflow_proto::{Change, Name, Seq};

pub use crate::core::event::{Effect, Event, Kept, MeterError, ToPeer};
pub use crate::core::feeds::Fed;
use crate::core::meters::Lacking;
pub use crate::core::moves::{Due, Errand, Stream};
use crate::core::progress::{Goal, Progress};
use crate::core::refused::Retry;
pub use crate::core::report::{Report, Standing, kept_words};
use crate::counters::{Counters, Names, Scope, Totals};
use crate::db::Desired;
use crate::db::location::Place;
use crate::guest::limits::Hits;
use crate::locations::Whereabouts;
use crate::ports::{self, Bound, PortProblem, SwitchBuild, SwitchPorts, bind, elsewhere, here};

/// How long a start waits for what other nodes have: it comes by a connection of its own, just after what is wanted.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// A guest's connection, numbered as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A batch of flow changes under way to the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// Sequenced messages that a guest may leave unacknowledged.
const WINDOW: u32 = 256;
/// Changes of one message that are taken in before it is another session's turn.
const SLICE: usize = 64;
/// Objects of a router being swept that are looked at in its turn.
const SWEEP: usize = 4 * SLICE;
/// Things due for a router with which its session's next message waits, so that a guest cannot say more than its share
/// of the switch takes, but in its own connection's buffers.
const BACKLOG: usize = 1024;

/// A session that was welcomed.
#[derive(Debug)]
struct Session {
    router: RouterId,
    boot_id: [u8; 16],
    last: Seq,
    /// The switch has confirmed it.
    confirmed: Seq,
    /// The guest was told so.
    acked: Seq,
    /// What the guest is still to be told of its routes.
    answers: BTreeMap<RouteKey, Answer>,
    /// Answers are on their way to the guest: more wait for [`Event::Told`].
    is_telling: bool,
    /// The neighbors that it was last told to keep fresh.
    in_use: Vec<NeighborKey>,
    stage: Stage,
    /// What is left of its last message.
    rest: std::vec::IntoIter<Change>,
    /// Its last message was end-of-RIB, and something may be left of the sweep.
    is_sweeping: bool,
    /// Its last message was end-of-RIB, and has not been taken in whole.
    is_ending_snapshot: bool,
    /// It last said something of its tables; as precise as [`Event::Tick`].
    spoke: Duration,
    /// Another node speaks in it, which the router is leaving.
    source: Option<fed::Source>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Welcomed {
        /// It was told what is held, and may go on from there.
        may_resume: bool,
    },
    Snapshot,
    /// What changed since the session before is being told.
    Resumed {
        /// The switch confirms it; otherwise it has nothing of the router yet.
        is_synced: bool,
    },
    Live,
}

#[derive(Debug)]
struct InFlight {
    changes: Vec<FlowChange>,
    reached: Vec<(RouterId, u64)>,
    /// Whose changes are among them.
    routers: Vec<RouterId>,
    /// When it is confirmed, all that this asks of the topology is.
    goal: Option<Goal>,
}

/// How far locations are known here, and told.
#[derive(Debug)]
enum Located {
    /// Nobody follows them.
    Ignored,
    /// Not read yet.
    Unknown,
    /// See [`Event::Located`].
    UpTo(i64, Option<Arc<BTreeSet<Place>>>),
}

/// A router without a session.
#[derive(Debug, Clone, Copy)]
struct Lone {
    /// Since then; as precise as [`Event::Tick`].
    since: Duration,
    /// Its tables were held long enough.
    is_over: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    node: Name,
    /// How long a router's tables outlive its session; none: for ever.
    hold: Option<Duration>,
    slice: usize,
    app: App,
    desired: Option<Desired>,
    /// It is what a former life was told, at that time: milliseconds since the Unix epoch.
    kept_ms: Option<u64>,
    ports: Option<SwitchPorts>,
    build: SwitchBuild,
    progress: Progress,
    problems: BTreeSet<PortProblem>,
    queues: plan::Queues,
    /// None: not known yet.
    bound: Option<Bound>,
    /// None: nobody has said.
    whereabouts: Option<Whereabouts>,
    /// Until then nothing goes to the switch while nobody has said it; none: that is not waited for.
    patience: Option<Duration>,
    here: Option<Arc<BTreeSet<Place>>>,
    moves: moves::Moves,
    feeds: feeds::Feeds,
    located: Located,
    switch_up: bool,
    dumping: bool,
    in_flight: BTreeMap<BatchId, InFlight>,
    /// What this switch will not have, and nothing stands in for.
    refused: Vec<FlowChange>,
    /// When it is asked again.
    retry: Retry,
    /// Changes sent since the switch said what it holds; none: it has had what it lacked.
    repaired: Option<usize>,
    /// Meters that this switch will not have.
    lacking: Lacking,
    /// Nothing goes to the switch until [`Event::Waited`].
    waiting: bool,
    /// Pauses since everything was in step.
    failures: u32,
    /// As of the last [`Event::Tick`].
    now: Duration,
    next_batch: BatchId,
    sessions: BTreeMap<SessionId, Session>,
    /// Sessions of which a message has not been taken in whole, in the order of their turns.
    turns: VecDeque<SessionId>,
    /// Routers that are swept without a session, in the order of their turns.
    sweeps: VecDeque<RouterId>,
    /// Sessions whose last message was taken in, but for whose routers too much is due.
    held_back: BTreeSet<SessionId>,
    /// The search for what is due was left off, for others to have their turn.
    is_searching: bool,
    backlog: usize,
    lone: BTreeMap<RouterId, Lone>,
    /// Ports of control vifs that are plugged in, and whether they have a link.
    plugged: BTreeMap<RouterId, (PortNo, bool)>,
    /// What a mark of the flow app stands for.
    marks: HashMap<u64, (SessionId, Seq)>,
    next_mark: u64,
    counters: Counters,
    effects: Vec<Effect>,
}

impl Core {
    /// A core that knows nothing yet.
    #[must_use]
    pub fn new(node: Name, max_objects_per_router: usize) -> Self {
        Self {
            node,
            hold: None,
            slice: SLICE,
            app: App::new(max_objects_per_router).with_aggregation(false),
            desired: None,
            kept_ms: None,
            ports: None,
            build: SwitchBuild::default(),
            progress: Progress::default(),
            problems: BTreeSet::new(),
            queues: plan::Queues::default(),
            bound: None,
            whereabouts: None,
            patience: None,
            here: None,
            moves: moves::Moves::default(),
            feeds: feeds::Feeds::default(),
            located: Located::Ignored,
            switch_up: false,
            dumping: false,
            in_flight: BTreeMap::new(),
            refused: Vec::new(),
            retry: Retry::default(),
            repaired: None,
            lacking: Lacking::default(),
            waiting: false,
            failures: 0,
            now: Duration::ZERO,
            next_batch: BatchId(1),
            sessions: BTreeMap::new(),
            turns: VecDeque::new(),
            sweeps: VecDeque::new(),
            held_back: BTreeSet::new(),
            is_searching: false,
            backlog: BACKLOG,
            lone: BTreeMap::new(),
            plugged: BTreeMap::new(),
            marks: HashMap::new(),
            next_mark: 1,
            counters: Counters::default(),
            effects: Vec::new(),
        }
    }

    /// Holds a router's tables no longer than this after its session was lost; without this: for ever.
    #[must_use]
    pub fn with_hold_time(self, hold: Duration) -> Self {
        Self { hold: Some(hold), ..self }
    }

    /// A core that confirms no state before [`Event::Located`] has come for it, and begins with what other nodes have,
    /// if somebody says it within [`PATIENCE`] of what is wanted: to compare the switch without it would take away what
    /// it has of that, for a moment.
    #[must_use]
    pub fn with_locations(self) -> Self {
        Self { located: Located::Unknown, patience: Some(Duration::MAX), ..self }
    }

    /// A core that keeps no more bytes of one router's tables than that ([`xenflow_flow_app::rib::Quota::bytes`]).
    #[must_use]
    pub fn with_max_bytes(self, bytes: usize) -> Self {
        Self { app: self.app.with_max_bytes(bytes), ..self }
    }

    /// A core that forwards by a flow for each prefix, as by default, or by fewer that forward the same.
    #[must_use]
    pub fn with_aggregation(self, is_aggregated: bool) -> Self {
        Self { app: self.app.with_aggregation(is_aggregated), ..self }
    }

    /// Takes in an event; what is to be done for it comes back, in order.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Desired(desired) => {
                let cfg = desired.cfg;
                tracing::debug!(name: "desired-changed", generation = cfg, "the desired state changed");
                self.kept_ms = None;
                self.want(desired);
            }
            Event::Kept(kept) if self.desired.is_none() => {
                self.kept_ms = Some(kept.saved_ms);
                let kept_elsewhere = Whereabouts { elsewhere: kept.elsewhere, ..Whereabouts::default() };
                self.whereabouts.get_or_insert(kept_elsewhere);
                self.want(kept.desired);
            }
            // The database was faster.
            Event::Kept(_) => {}
            Event::Ports(ports) => {
                self.ports = Some(ports);
                self.set_topology();
            }
            Event::Build(build) => {
                self.build = build;
                self.set_topology();
            }
            Event::Whereabouts(whereabouts) => {
                let told = self.whereabouts.iter().flat_map(|told| &told.problems).collect::<BTreeSet<_>>();
                for problem in whereabouts.problems.iter().filter(|problem| !told.contains(problem)) {
                    tracing::warn!(name: "problem", "{problem}");
                }
                self.whereabouts = Some(whereabouts);
                self.set_topology();
            }
            Event::Located(cfg, here) => {
                self.located = Located::UpTo(cfg, here);
                self.pursue_state();
            }
            Event::SwitchUp { has_meters } => {
                self.forget_switch();
                self.refused.clear();
                self.retry = Retry::default();
                self.app.forgive();
                self.lacking = Lacking::of(has_meters);
                if !has_meters {
                    tracing::warn!(name: "problem", "the switch has no meters: what guests get is not policed");
                }
                self.switch_up = true;
            }
            Event::SwitchDown => self.forget_switch(),
            Event::Dumped(flows) => flows.into_iter().for_each(|flow| self.app.dumped(flow)),
            Event::DumpedGroups(groups) => groups.into_iter().for_each(|it| self.app.dumped_group(it)),
            Event::DumpedMeters(meters) => meters.into_iter().for_each(|it| self.app.dumped_meter(it)),
            Event::DumpEnd => {
                self.dumping = false;
                self.app.dump_end();
                self.repaired = Some(0);
            }
            Event::DumpFailed(reason) => {
                tracing::error!(name: "problem", %reason, "the switch does not say what it holds: starting over");
                self.dumping = false;
                self.retry_later();
            }
            Event::MeterRefused(change, error) => self.meter_refused(&change, &error),
            Event::Counted(poll) => {
                self.count_routes();
                if let (Some(desired), Some(ports)) = (&self.desired, &self.ports) {
                    let names = Names::new(&self.node, desired, self.app.topology(), ports);
                    self.counters.take(&poll, &names);
                    self.tell_in_use();
                }
                self.count_let_in(&poll);
            }
            Event::Remembered(totals) => self.counters.remember(totals),
            Event::Waited => self.waiting = false,
            Event::Tick(now) => {
                self.now = now;
                self.sweep_lone(now);
                self.retry_refused(now);
                self.wait_for_routers();
            }
            Event::Turn => self.turn(),
            Event::Limited(hits) => self.count(hits),
            Event::Confirmed(id, took) => {
                if let Some(batch) = self.in_flight.remove(&id) {
                    self.progress.topology_confirmed(batch.goal);
                    self.acknowledge(batch.reached);
                    self.rest_after(&batch.routers, took);
                }
            }
            Event::Rested => self.app.rest(false),
            Event::Proven(proof, true) => self.proven(proof),
            Event::Proven(_, false) => self.unproven(),
            Event::Refused(id, culprits) => self.refused(id, &culprits),
            Event::Opened(id, identity, peer, hello) => self.open(id, identity, peer, &hello),
            Event::Said(id, message) => self.said(id, message),
            Event::Told(id) => self.told(id),
            Event::Silent(id) => self.effects.push(Effect::Tell(id, HostMessage::Ping(id.0))),
            Event::Closed(id) => self.close(id),
            Event::SourceOpened(id, router, number) => self.open_source(id, &router, number),
            Event::StandbyOpened(id, router, node) => self.open_standby(id, &router, &node),
            Event::SourceSaid(id, message) => self.source_said(id, message),
            Event::Feed(number, fed) => self.feed_said(number, fed),
            Event::Ran(number, run, why_not) => self.ran(number, run, why_not),
            Event::Carried(router, carried) => self.carried(router, carried),
            Event::Ahead(numbers) => self.ahead(numbers),
            Event::Tallied(router, number, tally) => self.tallied(router, number, tally),
        }
        self.find_whole();
        self.pump();
        self.feed();
        self.prove_stances();
        std::mem::take(&mut self.effects)
    }

    /// What was counted of all that is here.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        self.counters.totals()
    }

    /// There is a switch.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.switch_up
    }

    /// The switch holds all that is known to belong there.
    #[must_use]
    pub fn is_in_step(&self) -> bool {
        let is_idle = self.in_flight.is_empty() && !self.dumping && !self.waiting;
        self.switch_up && self.desired.is_some() && self.ports.is_some() && is_idle && self.app.is_idle()
    }

    /// Something is left of long work: [`Event::Turn`] is to come.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        let may_search = self.is_searching && self.in_flight.len() < self.most_in_flight();
        may_search || !self.turns.is_empty() || !self.sweeps.is_empty()
    }

    /// The session of that router's guest.
    #[must_use]
    pub fn session_of(&self, router: RouterId) -> Option<SessionId> {
        let is_its = |session: &Session| session.router == router && session.source.is_none();
        self.sessions.iter().find(|(_, session)| is_its(session)).map(|(id, _)| *id)
    }

    fn has_session(&self, router: RouterId) -> bool {
        self.session_of(router).is_some()
    }

    /// Every guest that is plugged in here has told its tables.
    #[must_use]
    pub fn has_heard_all(&self) -> bool {
        let topology = self.app.topology();
        let plugged =
            |vif: &xenflow_flow_app::Vif| vif.attachment == Attachment::Control && vif.port.is_some();
        let mut routers = topology.vifs.iter().filter(|(_, vif)| plugged(vif)).map(|(id, _)| id.router);
        routers.all(|id| self.app.is_synced(id))
    }

    /// Ports that are not used, and why.
    #[must_use]
    pub fn problems(&self) -> &BTreeSet<PortProblem> {
        &self.problems
    }

    /// Addresses that this node claims: by ports that are here and have a link, or as its router step says. Another one when they change,
    /// none before they are known.
    #[must_use]
    pub fn here(&self) -> Option<&Arc<BTreeSet<Place>>> {
        self.here.as_ref()
    }

    fn want(&mut self, desired: Desired) {
        self.desired = Some(desired);
        self.patience = self.patience.map(|until| until.min(self.now + PATIENCE));
        self.set_topology();
    }

    /// With the state that it is of, which is pursued then and not before: without the ports nothing can be sent.
    fn set_topology(&mut self) {
        self.number_queues();
        let (Some(desired), Some(ports)) = (&self.desired, &self.ports) else { return };
        let (mut topology, problems) = bind(&self.node, desired, ports, &self.queues.numbers);
        self.limit(desired, &mut topology);
        self.problems = problems;
        let bound = ports::bound(desired, &topology, ports);
        ports::log(self.bound.as_ref(), &bound);
        self.bound = Some(bound);
        topology.elsewhere =
            self.whereabouts.as_ref().map(|it| elsewhere(desired, &it.elsewhere)).unwrap_or_default();
        let mut here = here(desired, &topology, ports);
        self.step_routers(&mut topology, &mut here);
        if self.here.as_deref() != Some(&here) {
            self.here = Some(Arc::new(here));
        }
        if topology != *self.app.topology() {
            let changed = progress::changed_routers(self.app.topology(), &topology);
            self.app.set_topology(topology);
            self.mark_changed(changed);
        }
        self.pursue_state();
        self.nudge_plugged();
        let Some(desired) = &self.desired else { return };
        let routers: BTreeSet<RouterId> =
            desired.routers.values().map(|router| RouterId(router.id.get())).collect();
        // A router without any vif is forgotten with its tables; its guest must begin anew when it has one again. One whose control vif
        // was unplugged is elsewhere, or about to be: nobody speaks in its session any more.
        let orphan = |session: &Session| {
            if !routers.contains(&session.router) {
                Some("the router was removed")
            } else if self.app.router(session.router).is_none() {
                Some("the router has no vif any more")
            } else if session.source.is_none() && !self.plugged.contains_key(&session.router) {
                Some("its control vif was unplugged")
            } else {
                None
            }
        };
        let orphans: Vec<(SessionId, &str)> =
            self.sessions.iter().filter_map(|(id, session)| Some((*id, orphan(session)?))).collect();
        for (id, detail) in orphans {
            self.refuse(id, RefusalReason::UnknownRouter, detail.into());
        }
    }

    fn refuse(&mut self, id: SessionId, reason: RefusalReason, detail: String) {
        self.close(id);
        self.effects.push(Effect::Refuse(id, reason, detail));
    }

    /// A session is over, and no other takes its place.
    fn close(&mut self, id: SessionId) {
        let guests = self.sessions.get(&id).filter(|session| session.source.is_none());
        if let Some(router) = guests.map(|session| session.router)
            && self.app.router(router).is_some()
        {
            let router = self.router_name(router);
            tracing::info!(name: "router-stale", router, "the router has no session: its tables are held as they were");
        }
        self.end(id);
    }

    fn end(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(&id) {
            self.finish(session);
        }
        self.turns.retain(|turn| *turn != id);
        self.held_back.remove(&id);
        self.marks.retain(|_, (session, _)| *session != id);
    }

    /// Counts routes that came, changed or went.
    fn count_routes(&mut self) {
        let changed: Vec<_> = self.app.take_routes_changed().filter(|(_, times)| *times > 0).collect();
        for (router, times) in changed {
            let place = (Scope::Router, self.router_name(router).to_owned());
            self.counters.add(place, "routes_changed".to_owned(), times);
        }
    }

    /// Counts limits that guests ran into: for their routers, where these are known, or for the node.
    fn count(&mut self, hits: Hits) {
        let routers = self.desired.as_ref().map(|desired| &desired.routers);
        for ((router, limit), times) in hits {
            let router = router.filter(|name| routers.is_some_and(|all| all.contains_key(name)));
            let place = match router {
                Some(name) => (Scope::Router, name.to_string()),
                None => (Scope::Node, self.node.to_string()),
            };
            self.counters.add(place, limit.counter().to_owned(), times);
        }
    }
}

#[cfg(test)]
mod tests;
