//! Keeps the file up to date: soon after a change, but not often, and when the daemon ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ovsdb::RowChange;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::chain::Chain;
use crate::clock::now_ms;
use crate::db::Rows;

/// The file is not written more often.
const PERIOD: Duration = Duration::from_secs(3);

/// Who tells rows: each one of some tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// What operators ask for.
    Desired,
    /// What is where.
    Locations,
}

impl Source {
    const ALL: [Self; 2] = [Self::Desired, Self::Locations];
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// How many times rows have changed.
    changes: u64,
    is_ending: bool,
}

/// The rows as the database says them, on their way to the file. Clones share them.
#[derive(Debug, Clone)]
pub struct Keeper {
    path: Arc<PathBuf>,
    rows: Arc<Mutex<BTreeMap<Source, Rows>>>,
    told: watch::Sender<Told>,
}

impl Keeper {
    /// Of this file, with the task that writes it; it ends after [`Keeper::end`].
    #[must_use]
    pub fn start(path: PathBuf) -> (Self, JoinHandle<()>) {
        let (told, hears) = watch::channel(Told::default());
        let keeper = Self { path: Arc::new(path), rows: Arc::default(), told };
        let task = tokio::spawn(keeper.clone().write(hears));
        (keeper, task)
    }

    /// The database has said this. Nothing is written before all sources have said something.
    pub fn apply(&self, source: Source, changes: &[RowChange]) {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).entry(source).or_default().apply(changes);
        self.told.send_modify(|told| told.changes += 1);
    }

    /// What is not written yet is written now.
    pub fn end(&self) {
        self.told.send_modify(|told| told.is_ending = true);
    }

    /// What was kept last, by this life of the daemon or a former one, and when; none if that cannot be used, which is
    /// logged.
    pub async fn last(&self) -> Option<(Rows, u64)> {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || super::load(&path)).await.ok()?;
        loaded.unwrap_or_else(|error| {
            let (path, error) = (self.path.display(), Chain(&error));
            tracing::warn!(name: "problem", %path, %error, "the desired state that was kept is not used");
            None
        })
    }

    /// All of them, once all sources have spoken.
    fn rows(&self) -> Option<Rows> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Option<Vec<Rows>> = Source::ALL.iter().map(|source| rows.get(source).cloned()).collect();
        all.map(|all| all.into_iter().fold(Rows::default(), Rows::with))
    }

    async fn write(self, mut hears: watch::Receiver<Told>) {
        let (mut written, mut is_refused) = (0, false);
        // `self` holds the other end: there is always one.
        while let Ok(told) =
            hears.wait_for(|told| told.is_ending || told.changes != written).await.map(|told| *told)
        {
            if told.changes != written
                && let Some(rows) = self.rows()
            {
                let path = self.path.clone();
                let saved = tokio::task::spawn_blocking(move || super::save(&path, &rows, now_ms())).await;
                if let Ok(Err(error)) = &saved
                    && !is_refused
                {
                    let (path, error) = (self.path.display(), Chain(error));
                    tracing::warn!(name: "problem", %path, %error, "the desired state is not kept: a start will need the database");
                }
                is_refused = !matches!(saved, Ok(Ok(())));
            }
            if told.is_ending {
                return;
            }
            written = told.changes;
            let _ = tokio::time::timeout(PERIOD, hears.wait_for(|told| told.is_ending)).await;
        }
    }
}
