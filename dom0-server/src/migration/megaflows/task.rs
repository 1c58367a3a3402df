//! Asks the switch what its datapath has, and has it make the rest, for as long as a move is open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use xenflow_proto::node::Megaflow;

use super::{Flow, Move, Moves, Received, from_router, ports, to_router, told};
use crate::chain::Chain;
use crate::core::Event;
use crate::migration::links::Order;
use crate::migration::sequencer::Role;
use crate::ovs::appctl::{self, AppctlError};
use crate::ovs::datapath;

/// From look to look: a flow that nothing comes by is kept for ten seconds (`max-idle`), and a look costs the switch some
/// milliseconds.
const EVERY: Duration = Duration::from_secs(4);
/// Between two looks at least, whatever happens.
const REST: Duration = Duration::from_millis(50);
/// For so long the source's word is waited for. One that has no such word does not say so.
const PATIENCE: Duration = Duration::from_secs(1);
/// And for the other nodes'. One whose daemon does not run says nothing.
const OTHERS: Duration = Duration::from_millis(250);

/// What the task needs.
#[derive(Debug)]
pub struct Setup {
    /// Where the switch's sockets are.
    pub rundir: PathBuf,
    /// What moves.
    pub moves: watch::Receiver<Arc<Moves>>,
    /// From sources, by the number of the migration.
    pub told: mpsc::Receiver<(u64, Vec<Megaflow>)>,
    /// To destinations.
    pub orders: mpsc::UnboundedSender<Order>,
    /// To the core: [`Event::Ahead`].
    pub events: mpsc::Sender<Event>,
    /// To other nodes: what this one is prepared for.
    pub prepared: watch::Sender<BTreeSet<u64>>,
}

struct Task {
    setup: Setup,
    /// The last that each source has told.
    told: BTreeMap<u64, Vec<Megaflow>>,
    /// Since when packets rehearse here.
    since: BTreeMap<u64, Instant>,
    /// For which nothing more can be done here.
    done: BTreeSet<u64>,
    /// As the core knows.
    ahead: BTreeSet<u64>,
}

/// Runs until the daemon's loop is gone.
pub async fn run(setup: Setup) {
    let (told, since, done, ahead) = Default::default();
    let mut task = Task { setup, told, since, done, ahead };
    let mut looked = Instant::now();
    let mut next = looked;
    loop {
        let is_open = !task.setup.moves.borrow().open.is_empty();
        tokio::select! {
            changed = task.setup.moves.changed() => {
                if changed.is_err() {
                    return;
                }
                next = task.next(looked);
                // The others may have been what was missing.
                let moves = task.setup.moves.borrow().clone();
                if task.say(&moves, Instant::now()).await.is_err() {
                    return;
                }
            }
            Some((number, flows)) = task.setup.told.recv() => {
                task.told.insert(number, flows);
                next = task.next(looked);
            }
            () = sleep_until(next), if is_open => {
                let moves = task.setup.moves.borrow().clone();
                let begun = Instant::now();
                match task.look(&moves).await {
                    Ok(frames) => tracing::debug!(frames, took = ?begun.elapsed(), "flows of the datapath are made ahead"),
                    Err(error) => tracing::debug!(error = %Chain(&error), "no flows are made ahead"),
                }
                looked = Instant::now();
                let Ok(waits) = task.report(&moves, begun).await else { return };
                next = waits.unwrap_or(looked + EVERY);
            }
        }
    }
}

impl Task {
    /// When to look, the last look having been then. A source's word that is waited for makes another look necessary, so there is none
    /// before; but where this node has to say something itself nobody may wait.
    fn next(&mut self, looked: Instant) -> Instant {
        let moves = self.setup.moves.borrow_and_update().clone();
        let is_asked = moves.open.values().any(|open| open.role == Some(Role::Source));
        let waits = self.waits(&moves, Instant::now());
        waits.filter(|_| !is_asked).unwrap_or(looked + REST)
    }

    /// Until when a source's word is waited for, or another node's, if any is.
    fn waits(&mut self, moves: &Moves, now: Instant) -> Option<Instant> {
        let is_awaited = |open: &Move| open.role == Some(Role::Destination) && open.is_ahead;
        self.since.retain(|number, _| moves.open.contains_key(number));
        for (number, _) in moves.open.iter().filter(|(_, open)| is_awaited(open)) {
            self.since.entry(*number).or_insert(now);
        }
        let until = |(number, since): (&u64, &Instant)| {
            let are_others = moves.open.get(number).is_some_and(|open| open.are_others);
            match (self.told.contains_key(number), are_others) {
                (false, _) => Some(*since + PATIENCE),
                (true, false) => Some(*since + OTHERS),
                (true, true) => None,
            }
        };
        self.since.iter().filter_map(until).filter(|until| *until > now).min()
    }

    /// Says for which moves all that can be is done, by what a look that began then has found: the core is gone, or until when
    /// any word is waited for.
    async fn report(&mut self, moves: &Moves, begun: Instant) -> Result<Option<Instant>, ()> {
        let prepared: BTreeSet<u64> = moves.open.keys().copied().collect();
        self.setup.prepared.send_if_modified(|known| {
            let is_other = *known != prepared;
            *known = prepared;
            is_other
        });
        let waits = self.waits(moves, begun);
        for (number, _) in moves.open.iter().filter(|(_, open)| is_to(open) && open.is_ahead) {
            let is_over = self.since.get(number).is_some_and(|since| *since + PATIENCE <= begun);
            if self.told.contains_key(number) || is_over {
                self.done.insert(*number);
            }
        }
        self.say(moves, begun).await.map(|()| waits)
    }

    /// Tells the core of moves for which all is done here, and by all others or they have had their time.
    async fn say(&mut self, moves: &Moves, now: Instant) -> Result<(), ()> {
        let is_open = |number: &u64| moves.open.get(number).is_some_and(is_to);
        self.done.retain(is_open);
        let mut ahead = self.ahead.clone();
        ahead.retain(is_open);
        ahead.extend(self.done.iter().filter(|number| {
            let are_others = moves.open.get(number).is_some_and(|open| open.are_others);
            are_others || self.since.get(number).is_none_or(|since| *since + OTHERS <= now)
        }));
        if self.ahead != ahead {
            self.ahead.clone_from(&ahead);
            self.setup.events.send(Event::Ahead(ahead)).await.map_err(|_| ())?;
        }
        Ok(())
    }

    /// How many frames were put into the datapath.
    async fn look(&mut self, moves: &Moves) -> Result<usize, AppctlError> {
        self.told.retain(|number, _| moves.open.contains_key(number));
        let flows = dumped(&self.setup.rundir, moves).await?;
        let host = &moves.host;
        let mut frames = Vec::new();
        for (number, open) in &moves.open {
            frames.extend(from_router(&flows, host, open, moves.node_mac));
            match open.role {
                Some(Role::Source) => {
                    let told = told(&flows, host, open);
                    let _ = self.setup.orders.send(Order::Megaflows(*number, told));
                }
                Some(Role::Destination) if open.is_ahead => {
                    let told = self.told.get(number).map(Vec::as_slice).unwrap_or_default();
                    frames.extend(to_router(told, &flows, host, open));
                }
                Some(Role::Destination) | None => {}
            }
        }
        let count = frames.len();
        if count > 0 {
            received(&self.setup.rundir, frames).await?;
        }
        Ok(count)
    }
}

/// This node is its destination.
fn is_to(open: &Move) -> bool {
    open.role == Some(Role::Destination)
}

async fn received(rundir: &Path, frames: Vec<Received>) -> Result<(), AppctlError> {
    let said = appctl::call(rundir, "dpif/show", &[]).await?;
    let Some((device, ports)) = ports(&said) else { return Ok(()) };
    let numbered = frames.into_iter().filter_map(|(port, frame)| Some((*ports.get(port.as_str())?, frame)));
    let (device, numbered): (String, Vec<_>) = (device.to_owned(), numbered.collect());
    let put = tokio::task::spawn_blocking(move || datapath::receive(&device, &numbered)).await;
    if let Ok(Err(error)) = put {
        tracing::debug!(%error, "the datapath takes no frames in");
    }
    Ok(())
}

/// Flows of the datapath that moves are about. Only those are written out: there may be many others.
async fn dumped(rundir: &Path, moves: &Moves) -> Result<Vec<Flow>, AppctlError> {
    let mut filters = BTreeSet::new();
    for open in moves.open.values() {
        let vifs = open.vifs.values();
        if open.role.is_some() {
            filters.extend(vifs.clone().map(|mac| format!("filter=dl_dst={mac}")));
        }
        // The source's own hosts get what it routes.
        if open.role != Some(Role::Source) {
            filters.extend(vifs.chain(&open.nodes).map(|mac| format!("filter=dl_src={mac}")));
        }
    }
    let mut flows = BTreeSet::new();
    for filter in filters {
        let said = appctl::call(rundir, "dpctl/dump-flows", &["--names", "-m", &filter]).await?;
        flows.extend(said.lines().filter_map(Flow::parse));
    }
    Ok(flows.into_iter().collect())
}
