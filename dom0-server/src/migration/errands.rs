//! What toolstacks have to do, and how far they are: the shell around [`Toolstacks`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::sequencer::{Drive, Run};
use super::toolstack::run::{State, Stopped};
use super::toolstack::{GUEST_KEY, Guest, Order, Toolstacks};
use crate::chain::Chain;
use crate::core::{Errand, Event};
use crate::db::migration::Phase;

/// Between two looks at a move that may run: files of this host.
const LOOK: Duration = Duration::from_millis(20);
/// Before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of one.
#[derive(Debug, Default)]
struct Known {
    told: Option<(Run, Option<String>)>,
    stopped: Option<Stopped>,
    again: Option<Instant>,
}

/// Runs until the core is gone.
pub async fn run(
    toolstacks: Toolstacks,
    mut errands: watch::Receiver<Arc<BTreeMap<u64, Errand>>>,
    events: mpsc::Sender<Event>,
) {
    let mut all: BTreeMap<u64, Known> = BTreeMap::new();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wanted = errands.borrow_and_update().clone();
        let may_run = |errand: &Errand| errand.drive != Drive::Leave || errand.row.phase >= Phase::Moving;
        let is_busy = wanted.values().any(may_run);
        tokio::select! {
            changed = errands.changed() => if changed.is_err() {
                return;
            },
            _ = look.tick(), if is_busy => {}
        }
        let wanted = errands.borrow_and_update().clone();
        let over: Vec<u64> = all.keys().filter(|number| !wanted.contains_key(number)).copied().collect();
        for number in over {
            all.remove(&number);
            if let Err(error) = toolstacks.forget(number) {
                tracing::warn!(migration = number, error = %Chain(&error), "what was kept of the move stays");
            }
        }
        for (number, errand) in wanted.iter().filter(|(_, errand)| may_run(errand)) {
            let known = all.entry(*number).or_default();
            let now = step(&toolstacks, errand, known).await;
            if known.told.as_ref() != Some(&now) {
                if let (Run::Ended, Some(words)) = (now.0, &now.1) {
                    tracing::warn!(migration = number, router = %errand.row.router, "the toolstack has not moved the guest: {words}");
                }
                known.told = Some(now.clone());
                if events.send(Event::Ran(*number, now.0, now.1)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Does what is due for one move, and says how it is.
async fn step(toolstacks: &Toolstacks, errand: &Errand, known: &mut Known) -> (Run, Option<String>) {
    let row = &errand.row;
    let ids = errand.guest.as_deref().map(|guest| (GUEST_KEY, guest));
    let guest = match Guest::of(&row.router, ids) {
        Ok(guest) => guest,
        Err(error) => return (Run::None, Some(error.to_string())),
    };
    let order = Order { number: row.number, guest, from: row.from.clone(), to: row.to.clone() };
    let state = match toolstacks.state(&order) {
        Ok(state) => state,
        Err(error) => return (Run::None, Some(Chain(&error).to_string())),
    };
    let may_try = known.again.is_none_or(|at| Instant::now() >= at);
    match errand.drive {
        Drive::Start if state == State::None && may_try => {
            known.again = Some(Instant::now() + RETRY);
            match toolstacks.start(row.via, &order).await {
                Ok(()) => {
                    tracing::info!(migration = row.number, router = %row.router, "the toolstack moves the guest")
                }
                Err(error) => return (Run::None, Some(Chain(&error).to_string())),
            }
        }
        // Until it has ended: one that is about to begin cannot be told yet.
        Drive::Stop if may_try && !matches!(state, State::Ended(_)) => {
            known.again = Some(Instant::now() + RETRY);
            match toolstacks.stop(row.via, &order).await {
                Ok(stopped) => {
                    if known.stopped.replace(stopped) != Some(stopped) {
                        tracing::info!(migration = row.number, router = %row.router, ?stopped, "the toolstack is told to stop");
                    }
                }
                Err(error) => {
                    tracing::warn!(migration = row.number, error = %Chain(&error), "the toolstack is not stopped");
                }
            }
        }
        Drive::Start | Drive::Stop | Drive::Leave => {}
    }
    let words = match &state {
        State::Ended(ending) if ending.code != Some(0) => Some(ending.to_string()),
        State::None | State::Running | State::Ended(_) => None,
    };
    (Run::from(&state), words)
}

/// Says of every move that this node cannot run it, and why.
pub async fn refuse(
    mut errands: watch::Receiver<Arc<BTreeMap<u64, Errand>>>,
    events: mpsc::Sender<Event>,
    why: &'static str,
) {
    let mut told = BTreeSet::new();
    while errands.changed().await.is_ok() {
        let wanted = errands.borrow_and_update().clone();
        told.retain(|number| wanted.contains_key(number));
        for number in wanted.keys().filter(|number| told.insert(**number)) {
            if events.send(Event::Ran(*number, Run::None, Some(why.to_owned()))).await.is_err() {
                return;
            }
        }
    }
}

/// Removes what was kept of moves that no row is open of: a former life of the daemon may have ended before.
pub fn forget_others(toolstacks: &Toolstacks, open: &BTreeSet<u64>) {
    let kept = toolstacks.kept().unwrap_or_default();
    for number in kept.into_iter().filter(|number| !open.contains(number)) {
        if let Err(error) = toolstacks.forget(number) {
            tracing::warn!(migration = number, error = %Chain(&error), "what was kept of the move stays");
        }
    }
}
