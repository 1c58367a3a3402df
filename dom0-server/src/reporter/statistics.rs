//! Keeps the rows of `Statistics`: reads what a former life of the daemon counted, then writes what changes.

use std::collections::BTreeMap;

use ovsdb::SessionHandle;
use tokio::task::JoinHandle;
use xenflow_proto::Name;

use crate::clock::now_ms;
use crate::counters::{Place, Totals};
use crate::db::statistics::{self, Statistics};
use crate::db::{self};

#[derive(Debug)]
enum Job {
    Read(JoinHandle<Option<Vec<Statistics>>>),
    Write(JoinHandle<bool>),
}

/// See the module.
#[derive(Debug)]
pub struct Keeper {
    node: Name,
    database: SessionHandle,
    /// What the database has; none: nobody knows.
    known: Option<BTreeMap<Place, Statistics>>,
    /// When each place began to be counted.
    since: BTreeMap<Place, u64>,
    is_remembered: bool,
    job: Option<Job>,
}

impl Keeper {
    /// One that knows nothing yet.
    #[must_use]
    pub fn new(node: Name, database: SessionHandle) -> Self {
        Self { node, database, known: None, since: BTreeMap::new(), is_remembered: false, job: None }
    }

    /// Goes on with reading or writing. What a former life counted comes back, once.
    pub async fn step(&mut self, totals: &Totals) -> Option<Totals> {
        match self.job.take() {
            Some(Job::Read(job)) if job.is_finished() => {
                let rows = job.await.ok().flatten()?;
                self.known = Some(rows.iter().map(|row| (row.place.clone(), row.clone())).collect());
                if !self.is_remembered {
                    self.is_remembered = true;
                    self.since.extend(rows.iter().map(|row| (row.place.clone(), row.since_ms)));
                    return Some(rows.into_iter().map(|row| (row.place, row.counters)).collect());
                }
            }
            Some(Job::Write(job)) if job.is_finished() => {
                if !job.await.unwrap_or(false) {
                    // Nobody knows what of it was written.
                    self.known = None;
                }
            }
            running => self.job = running,
        }
        if self.job.is_none() {
            self.start(totals);
        }
        None
    }

    fn start(&mut self, totals: &Totals) {
        let database = self.database.clone();
        let Some(known) = &mut self.known else {
            let select = [statistics::select(Some(&self.node))];
            self.job = Some(Job::Read(tokio::spawn(async move {
                let results = database.transact(db::DATABASE, &select).await.ok()?;
                let rows = results.first().map(|result| result.rows()).unwrap_or_default();
                Some(rows.iter().filter_map(|row| Statistics::parse(row).ok()).collect())
            })));
            return;
        };
        if totals.is_empty() {
            // Nothing was counted yet: what the database has may still be right.
            return;
        }
        let now = now_ms();
        let mut operations = Vec::new();
        for (place, counters) in totals {
            let before = known.get(place);
            if before.is_some_and(|row| row.counters == *counters) {
                continue;
            }
            let is_there = before.is_some();
            let since_ms = *self.since.entry(place.clone()).or_insert(now);
            let (node, place, counters) = (self.node.clone(), place.clone(), counters.clone());
            let row = Statistics { node, place, counters, since_ms, updated_ms: now };
            operations.push(if is_there { row.update() } else { row.insert() });
            known.insert(row.place.clone(), row);
        }
        let gone: Vec<Place> = known.keys().filter(|place| !totals.contains_key(*place)).cloned().collect();
        for place in gone {
            operations.push(statistics::remove(&self.node, &place));
            known.remove(&place);
            self.since.remove(&place);
        }
        if operations.is_empty() {
            return;
        }
        self.job = Some(Job::Write(tokio::spawn(async move {
            let written = database.transact(db::DATABASE, &operations).await;
            let written = written.inspect_err(|error| tracing::debug!(%error, "statistics not written"));
            // What is not as it was read was written by a transaction whose answer was lost: a member of a cluster that is behind
            // the others tells what was before.
            written.is_ok_and(|results| {
                let mut of = operations.iter().zip(&results);
                of.all(|(operation, result)| operation.name() != "update" || result.count() != Some(0))
            })
        })));
    }
}
