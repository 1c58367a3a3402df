//! The connection: watches the rows, tells the core what other nodes have, and writes what this node claims.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ovsdb::{Event as Said, Remote, Session, SessionConfig, SessionHandle, Tls};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use xenflow_proto::Name;

use super::{Claims, Write};
use crate::core::Event;
use crate::db::location::{self, Located, Place};
use crate::db::{self, Rows};

/// What is bound here and has a link; none: not known yet.
pub type Here = Option<Arc<BTreeSet<Place>>>;

/// Writes in one transaction.
const TOGETHER: usize = 64;
/// After writing, for the rows to show it.
const SETTLE: Duration = Duration::from_millis(200);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// A server that says nothing.
const SILENCE: Duration = Duration::from_secs(10);

/// Follows the rows until the core is gone. Nothing waits for it: what no row tells is learned, as ever.
pub async fn run(
    remotes: Vec<Remote>,
    tls: Option<Tls>,
    node: Name,
    mut here: watch::Receiver<Here>,
    events: mpsc::Sender<Event>,
) {
    let mut config = SessionConfig::new(remotes).monitor(location::monitor());
    config.options.tls = tls;
    let mut session = Session::start(config);
    let handle = session.handle();
    let mut claims = Claims::new(node.clone());
    let mut rows = Rows::default();
    let mut located: Option<Located> = None;
    let mut told = BTreeSet::new();
    let mut writing: Option<JoinHandle<bool>> = None;
    let mut again: Option<Instant> = None;
    loop {
        tokio::select! {
            said = session.next() => match said {
                None => return,
                Some(Said::Snapshot { changes, .. } | Said::Update { changes, .. }) => {
                    rows.apply(&changes);
                    let now = Located::read(&rows);
                    let elsewhere = now.elsewhere(&node);
                    located = Some(now);
                    if elsewhere != told {
                        told.clone_from(&elsewhere);
                        if events.send(Event::Elsewhere(elsewhere)).await.is_err() {
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
                if let Some(places) = &*here.borrow_and_update() {
                    claims.follow(places);
                }
            }
            wrote = done(&mut writing) => {
                writing = None;
                again = Some(Instant::now() + if wrote { SETTLE } else { RETRY });
                continue;
            }
            () = until(again) => again = None,
        }
        if let (Some(located), None) = (&located, &writing) {
            let due = claims.due(located);
            if !due.is_empty() {
                writing = Some(tokio::spawn(write(handle.clone(), node.clone(), due)));
            }
        }
    }
}

async fn done(writing: &mut Option<JoinHandle<bool>>) -> bool {
    match writing {
        Some(job) => job.await.unwrap_or(false),
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Many at once, or one by one where one of them is refused. True: all of it was done.
async fn write(database: SessionHandle, node: Name, due: Vec<Write>) -> bool {
    let mut is_done = true;
    for together in due.chunks(TOGETHER) {
        match transact(&database, &node, together).await {
            Wrote::Done => {}
            Wrote::Lost => return false,
            Wrote::Refused if together.len() == 1 => is_done = false,
            Wrote::Refused => {
                for write in together {
                    match transact(&database, &node, std::slice::from_ref(write)).await {
                        Wrote::Done => {}
                        Wrote::Refused => is_done = false,
                        Wrote::Lost => return false,
                    }
                }
            }
        }
    }
    is_done
}

enum Wrote {
    Done,
    /// The rows are not as they were known.
    Refused,
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
            if error.server_error().is_some() { Wrote::Refused } else { Wrote::Lost }
        }
        Err(_) => {
            tracing::debug!("locations not written: the database does not answer");
            Wrote::Lost
        }
    }
}

fn log(write: &Write) {
    match write {
        Write::Claim(Place { segment, mac }, generation) => {
            tracing::info!(%segment, %mac, generation, "the address is here");
        }
        Write::Restore(Place { segment, mac }, generation) => {
            tracing::warn!(%segment, %mac, generation, "the address is here, but its row was gone");
        }
        Write::Withdraw(Place { segment, mac }, _) => {
            tracing::info!(%segment, %mac, "the address is not here any more");
        }
    }
}
