//! Two nodes, a database, a link, a toolstack and a guest, as far as a move is concerned; and all that may happen next.
//!
//! What a daemon asks for comes about part by part, in any order and at any time later, or never. What a daemon reads may be old.
//! Its transactions are done late, twice, after its death, or not at all. A deadline may pass at any time.

mod around;
mod database;

use std::time::Duration;

use super::*;

use around::Tool;
use database::{Database, Transaction};

/// One of the two nodes.
pub(super) type Index = usize;

/// The variant of the sequencer that is tried.
pub(super) type Sequencer = fn(Option<&Open>, &Facts, &Limits) -> Step;

/// A host: its daemon, its switch, and what is there of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    /// Its daemon runs.
    alive: bool,
    /// The host is gone for good.
    dead: bool,
    /// What its daemon has read of the database.
    view: Database,
    /// What is there of the guest, and what the daemon has found.
    guest: Guest,
    found: Guest,
    /// Its ports came after it had the addresses last.
    anew: bool,
    /// What its switch has.
    stance: Stance,
    staged: bool,
    end_mark: bool,
    told: bool,
    still: bool,
    unable: bool,
    expired: bool,
    under_way: [Option<Transaction>; 2],
}

/// What may still go wrong, or be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Budget {
    /// Migrations that somebody asks for.
    pub(super) planned: u8,
    /// Moves that somebody makes without a word.
    pub(super) by_hand: u8,
    /// Deaths of daemons.
    pub(super) crashes: u8,
    /// Aborts by an operator.
    pub(super) aborts: u8,
    /// Failures of the toolstack.
    pub(super) failures: u8,
    /// Cuts of the link between the nodes.
    pub(super) cuts: u8,
    /// Nodes that find themselves unable.
    pub(super) unable: u8,
    /// Transactions that are done, and are done again.
    pub(super) repeats: u8,
    /// Deadlines that pass while what they wait for could still come: all but that of a source that is taken for dead.
    pub(super) deadlines: u8,
    /// Deadlines of a source that is taken for dead.
    pub(super) presumed_dead: u8,
    /// Hosts that die once the guest has left them.
    pub(super) deaths: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct World {
    database: Database,
    nodes: [Node; 2],
    tool: Tool,
    tool_from: Index,
    /// Number of the last row that the toolstack has run for.
    tool_of: u8,
    link: bool,
    /// The node to which the switches between send frames for the router.
    path: Index,
    /// Some are still under way to the node where it was before.
    flying: Option<Index>,
    /// A destination has taken its source for dead.
    presumed: bool,
    /// Each node keeps the router's tables where it is not.
    standby: bool,
    budget: Budget,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Read(Index),
    Found(Index),
    Switch(Index, &'static str),
    Asked(Index, Write),
    Done(Index, Write, bool),
    Lost(Index, Write),
    Withdrawn(Index),
    Expired(Index),
    Crash(Index),
    Restart(Index),
    Death(Index),
    Unable(Index),
    Staged(Index),
    EndMark(Index),
    Told(Index),
    Still(Index),
    Path(Index),
    Landed,
    Tool(Tool),
    Failed(Tool),
    Plugged(Index),
    Repaired,
    Cut,
    Healed,
    OperatorAborts,
    OperatorMigrates,
    MovedByHand,
}

impl Event {
    /// Whether it happens sooner or later, if nothing else does: it is no fault and no wish.
    pub(super) const fn is_fair(self) -> bool {
        !matches!(
            self,
            Self::Done(_, _, true)
                | Self::Lost(..)
                | Self::Crash(_)
                | Self::Death(_)
                | Self::Unable(_)
                | Self::Failed(_)
                | Self::Cut
                | Self::OperatorAborts
                | Self::OperatorMigrates
                | Self::MovedByHand
        )
    }
}

impl World {
    /// The router is on node 0, and nothing has ever happened.
    pub(super) fn new(budget: Budget) -> Self {
        let database = Database { row: None, generations: [1, 0] };
        let node = |stance, guest| Node {
            alive: true,
            dead: false,
            view: database,
            guest,
            found: guest,
            anew: false,
            stance,
            staged: false,
            end_mark: false,
            told: false,
            still: false,
            unable: false,
            expired: false,
            under_way: [None; 2],
        };
        Self {
            database,
            nodes: [node(Stance::HOME, Guest::Running), node(Stance::NONE, Guest::Gone)],
            tool: Tool::Idle,
            tool_of: 0,
            tool_from: 0,
            link: true,
            path: 0,
            flying: None,
            presumed: false,
            standby: false,
            budget,
        }
    }

    /// The same, where the other node is the router's standby, whichever that is.
    pub(super) fn with_standby(mut self) -> Self {
        self.standby = true;
        self.nodes[1].stance = Stance::STANDBY;
        self
    }

    fn seen_open(&self, n: Index) -> Option<Open> {
        let row = self.nodes[n].view.open()?;
        Some(Open {
            role: if row.from == n { Role::Source } else { Role::Destination },
            phase: row.phase,
            yielded: row.yielded,
            left: row.left,
            driven: row.driven,
            move_limit: Duration::from_secs(600),
        })
    }

    fn facts(&self, n: Index) -> Facts {
        let node = &self.nodes[n];
        let owner = match node.view.owner() {
            None => Owner::Nobody,
            Some(owner) if owner == n => Owner::Here,
            Some(_) => Owner::Other,
        };
        let is_its_tool = node.view.open().is_some_and(|row| row.number <= self.tool_of);
        let run = match () {
            () if self.tool.runs() => Run::Running,
            () if is_its_tool => Run::Ended,
            () => Run::None,
        };
        Facts {
            guest: node.found,
            stayed: node.found != Guest::Gone && !node.anew,
            gone_for: Duration::ZERO,
            owner,
            stance: node.stance,
            standby: self.standby,
            run,
            staged: node.staged,
            end_mark: node.end_mark,
            told: node.told,
            still: node.still,
            unable: node.unable,
            in_phase: if node.expired { Duration::MAX } else { Duration::ZERO },
        }
    }

    fn step(&self, n: Index, sequencer: Sequencer) -> Step {
        sequencer(self.seen_open(n).as_ref(), &self.facts(n), &Limits::default())
    }

    /// Whether a node sends frames with the router's MACs: its own or its guest's.
    fn emits(&self, n: Index) -> bool {
        let Node { stance, guest, .. } = &self.nodes[n];
        let routes = stance.tables && stance.gate != Gate::Closed && stance.emission == Emission::Router;
        routes || (*guest == Guest::Running && !stance.mute)
    }

    /// Whether what comes to a node by an uplink is forwarded there.
    fn forwards(&self, n: Index) -> bool {
        self.nodes[n].stance.tables && self.nodes[n].stance.gate != Gate::Closed
    }

    /// Whether the hosts on a node that is to stand so have an answer when they ask for the router, as far as the node knows: where it
    /// forwards for them, nobody else hears them.
    fn is_heard(&self, n: Index, stance: &Stance) -> bool {
        let hears = matches!(stance.punts, Punts::Guest | Punts::Copied);
        let by_guest = self.nodes[n].found != Guest::Gone && hears && !stance.mute;
        stance.gate != Gate::Open || stance.answers || by_guest
    }

    /// Law 5 of the design, and what follows from it for packets.
    pub(super) fn check(&self, sequencer: Sequencer) -> Result<(), String> {
        let Some(owner) = self.database.owner() else { return Err("nobody owns the router".into()) };
        if let Some(row) = self.database.open() {
            let is_known = matches!(row.phase, Phase::Announced | Phase::Draining);
            let rightful = if is_known { 1 - row.from } else { row.from };
            if owner != rightful {
                return Err(format!("node {owner} owns the router in phase {}", row.phase));
            }
            let remembers = matches!(self.nodes[row.from].stance.punts, Punts::Copied | Punts::Relayed);
            if row.phase == Phase::Moving && !remembers && !self.nodes[row.from].dead {
                return Err("punts of the guest that moves are lost".into());
            }
        }
        for n in [0, 1] {
            if self.emits(n) && n != owner && !self.presumed {
                return Err(format!("node {n} emits with the router's MACs, and node {owner} owns it"));
            }
            let Node { stance, view, dead, .. } = &self.nodes[n];
            let at_gate = stance.tables && stance.gate == Gate::Open;
            // A switch sends nothing back to where it comes from. One that is wrongly taken for dead may have it look there.
            let comes_back = self.path == n && !self.presumed;
            let by_l2 = view.owner().is_some_and(|to| to != n && !comes_back && self.forwards(to));
            let lost_with_host = view.owner().is_some_and(|to| self.nodes[to].dead);
            if !at_gate && !by_l2 && !dead && !lost_with_host {
                return Err(format!("nobody forwards for the hosts on node {n}"));
            }
            if self.nodes[n].alive && !self.is_heard(n, &self.step(n, sequencer).stance) {
                return Err(format!("nobody answers the hosts on node {n}"));
            }
        }
        for n in [self.path].into_iter().chain(self.flying) {
            if !self.forwards(n) && !self.nodes[n].dead {
                return Err(format!("nobody forwards what others send to node {n}"));
            }
        }
        Ok(())
    }

    /// Of the last migration.
    pub(super) fn phase(&self) -> Option<Phase> {
        self.database.row.map(|row| row.phase)
    }

    /// The guest runs at one place, everything is there, and nothing is left over elsewhere.
    pub(super) fn is_clean(&self) -> bool {
        let Some(here) = self.database.owner() else { return false };
        let (home, other) = (&self.nodes[here], &self.nodes[1 - here]);
        let is_home = home.alive && home.guest == Guest::Running && home.stance == Stance::HOME;
        let elsewhere = if self.standby { Stance::STANDBY } else { Stance::NONE };
        let is_gone = other.alive && other.guest == Guest::Gone && other.stance == elsewhere;
        let is_gone = is_gone && self.database.generations[1 - here] == 0;
        is_home && (is_gone || other.dead) && self.path == here && self.database.open().is_none()
    }

    /// All that may happen next.
    pub(super) fn next(&self, sequencer: Sequencer) -> Vec<(Event, Self)> {
        let mut all = self.all(sequencer);
        all.iter_mut().for_each(|(_, next)| next.forget_what_is_void());
        all
    }

    /// Transactions that can never be done any more, as no phase and no generation comes twice, make no difference.
    fn forget_what_is_void(&mut self) {
        let database = self.database;
        for node in &mut self.nodes {
            for place in &mut node.under_way {
                *place = place.filter(|transaction| database.may_commit(transaction));
            }
            if node.under_way[0].is_none() || node.under_way[0] == node.under_way[1] {
                node.under_way = [node.under_way[1], None];
            }
        }
    }

    fn all(&self, sequencer: Sequencer) -> Vec<(Event, Self)> {
        let mut all = Vec::new();
        let steps = [0, 1].map(|n| self.nodes[n].alive.then(|| self.step(n, sequencer)));
        for n in [0, 1] {
            self.of_transactions(n, &mut all);
            match &steps[n] {
                Some(step) => self.of_daemon(n, step, steps[1 - n].as_ref(), &mut all),
                None if !self.nodes[n].dead => all.push((Event::Restart(n), self.restarted(n))),
                None => {}
            }
            let tells = steps[n].as_ref().is_some_and(|step| step.tell);
            if self.path != n && (tells || self.emits(n)) {
                all.push((Event::Path(n), self.sent_to(n)));
            }
        }
        if self.flying.is_some() {
            all.push((Event::Landed, Self { flying: None, ..*self }));
        }
        self.of_toolstack(&steps, &mut all);
        self.of_operator(&mut all);
        all
    }

    fn with(&self, n: Index, change: impl FnOnce(&mut Node)) -> Self {
        let mut next = *self;
        change(&mut next.nodes[n]);
        next
    }

    /// The switches between send frames for the router there from now on.
    fn sent_to(&self, n: Index) -> Self {
        let flying = if self.path == n { self.flying } else { Some(self.path) };
        Self { path: n, flying, ..*self }.with(n, |node| node.still = false)
    }

    fn restarted(&self, n: Index) -> Self {
        let database = self.database;
        self.with(n, |node| {
            (node.alive, node.view, node.found) = (true, database, node.guest);
        })
    }

    fn of_daemon(&self, n: Index, step: &Step, peer: Option<&Step>, all: &mut Vec<(Event, Self)>) {
        let node = &self.nodes[n];
        let Budget { crashes, unable, deadlines, presumed_dead, deaths, .. } = self.budget;
        if node.view != self.database {
            let read = self.database;
            all.push((Event::Read(n), self.with(n, |node| node.read(read))));
        }
        if node.found != node.guest {
            all.push((Event::Found(n), self.with(n, |node| node.found = node.guest)));
        }
        self.of_switch(n, &step.stance, all);
        if let Some(write) = step.write {
            let view = &node.view;
            let generation = view.generations.into_iter().max().unwrap_or(0);
            let seen = view.open().map(|row| (row.number, row.phase));
            let transaction = Transaction { write, seen, generation };
            let free = node.under_way.iter().position(Option::is_none);
            if let Some(free) = free.filter(|_| !node.under_way.contains(&Some(transaction))) {
                let asked = self.with(n, |node| node.under_way[free] = Some(transaction));
                all.push((Event::Asked(n, write), asked));
            }
        }
        let own = node.view.generations[n];
        if !step.claim && own > 0 && self.database.generations[n] == own {
            let mut next = *self;
            next.database.generations[n] = 0;
            all.push((Event::Withdrawn(n), next));
        }
        if !node.expired && step.wake.is_some() {
            let is_presumption =
                node.view.open().is_some_and(|row| row.phase == Phase::Verified && row.from != n);
            let mut next = self.with(n, |node| node.expired = true);
            next.presumed |= is_presumption;
            let left =
                if is_presumption { &mut next.budget.presumed_dead } else { &mut next.budget.deadlines };
            let is_due = self.waits_in_vain();
            if is_due || (if is_presumption { presumed_dead } else { deadlines }) > 0 {
                *left -= u8::from(!is_due);
                all.push((Event::Expired(n), next));
            }
        }
        let can_send = self.link && peer.is_some();
        let is_same = self.nodes[1 - n].view.row.map(|row| row.number) == node.view.row.map(|row| row.number);
        if can_send && is_same && peer.is_some_and(|peer| peer.stream) && node.stance.tables && !node.staged {
            all.push((Event::Staged(n), self.with(n, |node| node.staged = true)));
        }
        if can_send && is_same && peer.is_some_and(|peer| peer.end_mark) && !node.end_mark {
            all.push((Event::EndMark(n), self.with(n, |node| node.end_mark = true)));
        }
        if step.tell && !node.told {
            all.push((Event::Told(n), self.sent_to(n).with(n, |node| node.told = true)));
        }
        let other = &self.nodes[1 - n];
        let is_on_the_way = self.path == n || self.flying == Some(n);
        let gets_none = !is_on_the_way && (other.stance.gate == Gate::Open || other.view.owner() != Some(n));
        if node.stance.gate == Gate::Late && gets_none && !node.still {
            all.push((Event::Still(n), self.with(n, |node| node.still = true)));
        }
        if crashes > 0 {
            let mut next = self.with(n, Node::crash);
            next.budget.crashes -= 1;
            all.push((Event::Crash(n), next));
        }
        if unable > 0 && !node.unable {
            let mut next = self.with(n, |node| node.unable = true);
            next.budget.unable -= 1;
            all.push((Event::Unable(n), next));
        }
        if deaths > 0 && self.tool == Tool::Removed && self.tool_from == n {
            let mut next = self.with(n, |node| {
                node.crash();
                (node.dead, node.stance) = (true, Stance::NONE);
            });
            (next.budget.deaths, next.tool) = (deaths - 1, Tool::Ended);
            all.push((Event::Death(n), next));
        }
    }

    /// Nothing but a deadline can end what goes on: a host is gone, or the toolstack has left a guest suspended.
    fn waits_in_vain(&self) -> bool {
        self.nodes.iter().any(|node| node.dead)
    }

    fn of_switch(&self, n: Index, wanted: &Stance, all: &mut Vec<(Event, Self)>) {
        let stance = &self.nodes[n].stance;
        let mut part = |name, differs: bool, change: fn(&mut Stance, &Stance)| {
            if differs {
                let next = self.with(n, |node| {
                    change(&mut node.stance, wanted);
                    node.still &= node.stance.gate == Gate::Late;
                });
                all.push((Event::Switch(n, name), next));
            }
        };
        part("tables", stance.tables != wanted.tables, |now, wanted| now.tables = wanted.tables);
        let can_open = stance.tables || wanted.gate == Gate::Closed;
        part("gate", stance.gate != wanted.gate && can_open, |now, wanted| now.gate = wanted.gate);
        part("emission", stance.emission != wanted.emission, |now, wanted| now.emission = wanted.emission);
        let punts = |stance: &Stance| (stance.punts, stance.answers);
        part("punts", punts(stance) != punts(wanted), |now, wanted| {
            (now.punts, now.answers) = (wanted.punts, wanted.answers);
        });
        part("mute", stance.mute != wanted.mute, |now, wanted| now.mute = wanted.mute);
    }

    fn of_transactions(&self, n: Index, all: &mut Vec<(Event, Self)>) {
        for (place, transaction) in self.nodes[n].under_way.iter().enumerate() {
            let Some(transaction) = transaction else { continue };
            let write = transaction.write;
            let mut next = self.with(n, |node| node.under_way[place] = None);
            all.push((Event::Lost(n, write), next));
            if next.database.commit(n, transaction) {
                if write == Write::Announce {
                    next.nodes[n].anew = false;
                }
                all.push((Event::Done(n, write, false), next));
                if self.budget.repeats > 0 {
                    next.nodes[n].under_way[place] = Some(*transaction);
                    next.budget.repeats -= 1;
                    all.push((Event::Done(n, write, true), next));
                }
            }
        }
    }
}

impl Node {
    fn read(&mut self, database: Database) {
        let of = |database: &Database| database.row.map(|row| (row.number, row.phase));
        self.expired &= of(&self.view) == of(&database);
        if of(&self.view).map(|of| of.0) != of(&database).map(|of| of.0) {
            self.forget();
        }
        self.view = database;
    }

    fn forget(&mut self) {
        (self.staged, self.end_mark, self.told, self.unable, self.expired) = Default::default();
    }

    fn crash(&mut self) {
        self.forget();
        (self.alive, self.still) = (false, false);
    }
}
