//! The connection: watches the rows, tells the core what other nodes have, and writes what this node claims.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ovsdb::{Event as Said, Operation, Remote, RowChange, Session, SessionConfig, SessionHandle, Tls};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use xenflow_proto::Name;

use super::{Claims, Whereabouts, Write};
use crate::clock::{now_ms, until};
use crate::core::{Due, Event};
use crate::db::edit::is_lost_race;
use crate::db::location::{self, Located, Place};
use crate::db::{self, Rows};
use crate::kept::keeper::{Keeper, Source};
use crate::migration::{journal, sequencer};

/// What this node may claim; none: not known yet.
pub type Here = Option<Arc<BTreeSet<Place>>>;
/// Transactions that routers on their way wait for.
pub type Moves = Arc<BTreeMap<Name, Due>>;

/// Writes in one transaction.
const TOGETHER: usize = 64;
/// After writing, for the rows to show it.
const SETTLE: Duration = Duration::from_millis(200);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// A server that says nothing.
const SILENCE: Duration = Duration::from_secs(10);

/// Follows the rows, and keeps them, until the core is gone. No packet waits for it: what no row tells is learned, as
/// ever. What waits is the word that a state is confirmed; but not for what the database refuses.
pub async fn run(
    remotes: Vec<Remote>,
    tls: Option<Tls>,
    node: Name,
    kept: Option<Keeper>,
    mut here: watch::Receiver<Here>,
    mut moves: watch::Receiver<Moves>,
    events: mpsc::Sender<Event>,
) {
    let mut config = SessionConfig::new(remotes).monitor(location::monitor());
    config.options.tls = tls;
    let mut session = Session::start(config);
    let handle = session.handle();
    let mut claims = Claims::new(node.clone());
    let mut rows = Rows::default();
    let mut located: Option<Located> = None;
    let mut fenced = BTreeSet::new();
    let mut told = None;
    let mut writing: Option<JoinHandle<Wrote>> = None;
    let mut again: Option<Instant> = None;
    let mut journal =
        Journal { node: node.clone(), handle: handle.clone(), under_way: None, tried: BTreeMap::new() };
    // What the core knows to be settled, and what was taken from `here` last.
    let mut settled: Option<(i64, Here)> = None;
    let mut places: Here = None;
    let mut was_refused = false;
    loop {
        let mut may_write = true;
        let retry = journal.again();
        tokio::select! {
            said = session.next() => match said {
                None => return,
                Some(Said::Snapshot { changes, .. } | Said::Update { changes, .. }) => {
                    rows.apply(&changes);
                    if let Some(kept) = &kept {
                        let of_table = |change: &&RowChange| &*change.table == db::table::LOCATION;
                        let locations: Vec<_> = changes.iter().filter(of_table).cloned().collect();
                        kept.apply(Source::Locations, &locations);
                    }
                    let now = Located::read(&rows);
                    let whereabouts = Whereabouts::read(&rows, &now, &node);
                    located = Some(now);
                    // The first one takes the place of what was kept, also if it says nothing.
                    if told.as_ref() != Some(&whereabouts) {
                        told = Some(whereabouts.clone());
                        if events.send(Event::Whereabouts(whereabouts)).await.is_err() {
                            return;
                        }
                    }
                }
                Some(Said::Connected { .. }) => continue,
                // The other connection to the database has said so.
                Some(Said::Disconnected { reason }) => {
                    tracing::debug!(%reason, "locations are not followed");
                    continue;
                }
            },
            changed = here.changed() => {
                if changed.is_err() {
                    return;
                }
                places.clone_from(&here.borrow_and_update());
                if let Some(places) = &places {
                    claims.follow(places);
                }
                was_refused = false;
            }
            changed = moves.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = journal.done() => {}
            () = until(retry) => journal.tried.clear(),
            wrote = done(&mut writing) => {
                writing = None;
                again = Some(Instant::now() + if wrote == Wrote::Done { SETTLE } else { RETRY });
                was_refused = wrote == Wrote::Refused;
                may_write = false;
            }
            () = until(again) => again = None,
        }
        let Some(located) = &located else { continue };
        let announced = journal.turn(&moves.borrow_and_update().clone(), (&rows, located));
        claims.announce(&announced);
        let mut is_idle = false;
        if writing.is_none() && may_write {
            let due = claims.due(located);
            fenced = log_fenced(&fenced, claims.passed_over(located), located);
            is_idle = due.is_empty();
            if !is_idle {
                writing = Some(tokio::spawn(write(handle.clone(), node.clone(), due)));
            }
        }
        let now = (location::cfg(&rows), places.clone());
        if (is_idle || was_refused || claims.are_written(located)) && settled.as_ref() != Some(&now) {
            settled = Some(now.clone());
            if events.send(Event::Located(now.0, now.1)).await.is_err() {
                return;
            }
        }
    }
}

/// Writes what routers on their way wait for, one transaction after the other.
struct Journal {
    node: Name,
    handle: SessionHandle,
    under_way: Option<JoinHandle<()>>,
    /// What was tried on the rows as they are, and when.
    tried: BTreeMap<Name, (Due, Instant)>,
}

impl Journal {
    async fn done(&mut self) {
        match &mut self.under_way {
            Some(job) => {
                let _ = job.await;
                self.under_way = None;
            }
            None => std::future::pending().await,
        }
    }

    /// When what was tried and is still due is tried again.
    fn again(&self) -> Option<Instant> {
        self.tried.values().map(|(_, at)| *at + RETRY).max().filter(|_| self.under_way.is_none())
    }

    /// What is announced with it comes back.
    fn turn(&mut self, moves: &BTreeMap<Name, Due>, rows: (&Rows, &Located)) -> BTreeSet<Place> {
        self.tried.retain(|router, (due, _)| moves.get(router) == Some(due));
        if self.under_way.is_some() {
            return BTreeSet::new();
        }
        for (router, due) in moves {
            if self.tried.contains_key(router) {
                continue;
            }
            self.tried.insert(router.clone(), (due.clone(), Instant::now()));
            match journal::operations(router, due, rows, &self.node, now_ms()) {
                Ok(Some(operations)) => {
                    let (handle, router, write) = (self.handle.clone(), router.clone(), due.write);
                    self.under_way = Some(tokio::spawn(enter(handle, router, write, operations)));
                    let is_announced = write == sequencer::Write::Announce;
                    return if is_announced { due.places.clone() } else { BTreeSet::new() };
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%router, %error, "the move is not written down"),
            }
        }
        BTreeSet::new()
    }
}

/// What it changed comes by the rows; so does that another was faster.
async fn enter(handle: SessionHandle, router: Name, write: sequencer::Write, operations: Vec<Operation>) {
    match tokio::time::timeout(SILENCE, handle.transact(db::DATABASE, &operations)).await {
        Ok(Ok(_)) => tracing::info!(name: "move-step", %router, step = ?write, "the router's move goes on"),
        Ok(Err(error)) => {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(%router, step = ?write, error, "a step of the router's move is not written");
        }
        Err(_) => tracing::debug!(%router, step = ?write, "the database does not answer"),
    }
}

async fn done(writing: &mut Option<JoinHandle<Wrote>>) -> Wrote {
    match writing {
        Some(job) => job.await.unwrap_or(Wrote::Lost),
        None => std::future::pending().await,
    }
}

/// Many at once, or one by one where one of them fails. What became of the one that fared worst; the first that is lost is
/// the last that is tried.
async fn write(database: SessionHandle, node: Name, due: Vec<Write>) -> Wrote {
    let mut worst = Wrote::Done;
    for together in due.chunks(TOGETHER) {
        match transact(&database, &node, together).await {
            Wrote::Done => {}
            Wrote::Lost => return Wrote::Lost,
            wrote if together.len() == 1 => worst = worst.max(wrote),
            Wrote::Refused | Wrote::Raced => {
                for write in together {
                    match transact(&database, &node, std::slice::from_ref(write)).await {
                        Wrote::Lost => return Wrote::Lost,
                        wrote @ (Wrote::Done | Wrote::Refused | Wrote::Raced) => worst = worst.max(wrote),
                    }
                }
            }
        }
    }
    worst
}

/// From the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wrote {
    Done,
    /// The database never takes it.
    Refused,
    /// The rows are not as they were known.
    Raced,
    /// The database does not answer; nobody knows whether it was done.
    Lost,
}

async fn transact(database: &SessionHandle, node: &Name, writes: &[Write]) -> Wrote {
    let operations: Vec<_> = writes.iter().flat_map(|write| write.operations(node)).collect();
    match tokio::time::timeout(SILENCE, database.transact(db::DATABASE, &operations)).await {
        Ok(Ok(_)) => {
            writes.iter().for_each(log);
            Wrote::Done
        }
        Ok(Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "locations not written");
            match error.server_error() {
                Some(_) if is_lost_race(&error) => Wrote::Raced,
                Some(_) => Wrote::Refused,
                None => Wrote::Lost,
            }
        }
        Err(_) => {
            tracing::debug!("locations not written: the database does not answer");
            Wrote::Lost
        }
    }
}

/// Says which addresses are fenced now and were not, and the other way round.
fn log_fenced(before: &BTreeSet<Place>, now: BTreeSet<Place>, located: &Located) -> BTreeSet<Place> {
    for place @ Place { segment, mac } in now.difference(before) {
        let owner = located.winner(place).map(tracing::field::display);
        tracing::warn!(
            name: "vif-fenced",
            %segment,
            %mac,
            owner,
            "another node has the address since: what the port here says is dropped"
        );
    }
    for Place { segment, mac } in before.difference(&now) {
        tracing::info!(name: "vif-unfenced", %segment, %mac, "the address is not fenced here any more");
    }
    now
}

fn log(write: &Write) {
    match write {
        Write::Claim(Place { segment, mac }, generation) => {
            tracing::info!(name: "location-taken", %segment, %mac, generation, "the address is here");
        }
        Write::Restore(Place { segment, mac }, generation) => {
            tracing::warn!(name: "location-taken", %segment, %mac, generation, "the address is here, but its row was gone");
        }
        Write::Withdraw(Place { segment, mac }, _) => {
            tracing::info!(name: "location-given-up", %segment, %mac, "the address is not here any more");
        }
    }
}
