//! An operator who writes all the time, and keeps account of what was acknowledged.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use dom0_server::db::{DATABASE, table};
use ovsdb::{Monitor, Operation, Remote, Session, SessionConfig, SessionHandle};

use super::rows::{TABLE, block_on};
use crate::process::wait_for;

/// Between two rows.
const PERIOD: Duration = Duration::from_millis(80);
/// Between two tries of one row.
const RETRY: Duration = Duration::from_millis(20);
/// No transaction may be under way for so long: its outcome, or that nobody knows it, is to be told before.
const SILENCE: Duration = Duration::from_secs(20);

/// A row that the database has acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) name: String,
    begun: Instant,
    acked: Instant,
}

pub(super) struct Writer {
    stop: Arc<AtomicBool>,
    log: Arc<Mutex<Vec<Written>>>,
    /// Why it has given up.
    why: Arc<Mutex<String>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    /// Writes rows with new names by the first of these sockets whose member takes them.
    pub(super) fn start(sockets: Vec<PathBuf>) -> Self {
        let (stop, log) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (is_over, all) = (Arc::clone(&stop), Arc::clone(&log));
        let why = Arc::new(Mutex::new(String::new()));
        let reason = Arc::clone(&why);
        let thread = std::thread::spawn(move || {
            block_on(write(sockets, &is_over, &all))?.inspect_err(|error| {
                *reason.lock().unwrap_or_else(PoisonError::into_inner) = format!("{error:#}");
            })
        });
        Self { stop, log, why, thread: Some(thread) }
    }

    fn log(&self) -> Vec<Written> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a row is acknowledged that was begun after that, and says how long after that it was.
    pub(super) fn taken_after(&self, begun: Instant, limit: Duration) -> Result<Duration> {
        wait_for("a write to be taken", limit, || {
            self.check()?;
            let after = self.log().into_iter().rev().take_while(|row| row.begun > begun).last();
            Ok(after.map(|row| row.acked - begun))
        })
    }

    fn check(&self) -> Result<()> {
        let is_over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!is_over || self.stop.load(Ordering::Relaxed), "the writer has given up: {why}");
        Ok(())
    }

    /// Ends it; all that was acknowledged.
    pub(super) fn stop(mut self) -> Result<Vec<Written>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("the writer has ended already"))?;
        thread.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok(self.log())
    }
}

/// The longest time in which no row was acknowledged.
pub(super) fn longest_pause(rows: &[Written]) -> Duration {
    let pauses = rows.windows(2).filter_map(|pair| match pair {
        [first, second] => Some(second.acked - first.acked),
        _ => None,
    });
    pauses.max().unwrap_or_default()
}

async fn write(sockets: Vec<PathBuf>, is_over: &AtomicBool, log: &Mutex<Vec<Written>>) -> Result<()> {
    let remotes = sockets.into_iter().map(Remote::Unix).collect();
    // What it watches does not matter: that it watches lets it see whether a member is in contact.
    let monitor = Monitor::new(DATABASE).table(table::XENFLOW, &["external_ids"]);
    let mut config = SessionConfig::new(remotes).monitor(monitor);
    config.backoff_max = Duration::from_millis(200);
    let mut session = Session::start(config);
    let handle = session.handle();
    tokio::spawn(async move { while session.next().await.is_some() {} });
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        number += 1;
        let name = format!("w{number:05}");
        let begun = Instant::now();
        if insert(&handle, &name, is_over).await? {
            let row = Written { name, begun, acked: Instant::now() };
            log.lock().unwrap_or_else(PoisonError::into_inner).push(row);
        }
        tokio::time::sleep(PERIOD).await;
    }
    Ok(())
}

/// Writes one row; whether it was acknowledged before the writer was to end.
async fn insert(handle: &SessionHandle, name: &str, is_over: &AtomicBool) -> Result<bool> {
    while !is_over.load(Ordering::Relaxed) {
        let operation = [Operation::insert(TABLE).set("name", name)];
        let Ok(outcome) = tokio::time::timeout(SILENCE, handle.transact(DATABASE, &operation)).await else {
            bail!("row {name} is neither done nor refused within {} s", SILENCE.as_secs());
        };
        match outcome {
            Ok(_) => return Ok(true),
            // Names are unique: it was done, by an earlier try of ours or of the member's: one that loses its leader does a
            // transaction again by itself (ovsdb/trigger.c), whether the leader had done it or not.
            Err(error) if error.server_error() == Some("constraint violation") => return Ok(true),
            Err(error) if error.server_error().is_some() => {
                return Err(anyhow::Error::from(error).context(format!("row {name} is refused")));
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
    Ok(false)
}
