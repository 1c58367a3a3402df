//! Tells the database how the routers stand, and the log why a guest forwards itself.

pub mod node;
pub mod statistics;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ovsdb::{Connection, Operation, SessionHandle};
use tokio::task::JoinHandle;
use xenflow_proto::Name;

use crate::clock::now_ms;
use crate::core::{Core, Report};
use crate::db::{self, Counts, SessionState, Status, status};

/// Reasons that one line of the log names.
const LOGGED: usize = 4;
/// Between two tries to read what was reported before.
const RETRY: Duration = Duration::from_millis(200);

/// How a router's session stands, and since when: milliseconds since the Unix epoch.
type Since = (SessionState, u64);

/// The rows of a node, as one connection tells them.
#[derive(Debug)]
struct Found {
    connection: Connection,
    rows: BTreeMap<Name, Status>,
    /// Whether all of them could be read.
    is_whole: bool,
}

/// What became of a transaction.
#[derive(Debug)]
enum Wrote {
    Done,
    /// All was done, but a row that was to be changed was not there.
    Missing,
    /// Nobody knows, or nothing was done.
    Unknown,
}

#[derive(Debug)]
enum Job {
    Read(JoinHandle<Found>),
    Write {
        job: JoinHandle<Wrote>,
        /// What is known if nobody knows what became of it.
        doubt: BTreeMap<Name, Option<Status>>,
    },
}

/// Writes what changed, off the main loop. What the database has is read anew at every connection, so that also then
/// nothing is written that is there.
#[derive(Debug)]
pub struct Reporter {
    node: Name,
    database: SessionHandle,
    /// Where `known` was read.
    connection: Option<Connection>,
    /// The rows that the database has, as far as somebody knows; none: one is there, but what it says is not known.
    known: BTreeMap<Name, Option<Status>>,
    /// Of every router, longer than its row is known; before its first report: as a former life of the daemon
    /// reported it. None: that was not read yet.
    since: Option<BTreeMap<Name, Since>>,
    slow: BTreeMap<Name, BTreeSet<String>>,
    /// There may be rows beside those that are known.
    is_unclear: bool,
    job: Option<Job>,
}

impl Reporter {
    /// One that has written nothing yet.
    #[must_use]
    pub fn new(node: Name, database: SessionHandle) -> Self {
        let (known, slow) = (BTreeMap::new(), BTreeMap::new());
        Self { node, database, connection: None, known, since: None, slow, is_unclear: false, job: None }
    }

    /// Writes what has changed since the last call, unless that is still being written. Nothing is written, so also
    /// nothing forgotten, before it was read since when sessions stand as they do.
    pub async fn report(&mut self, core: &Core) {
        match self.job.take() {
            Some(Job::Read(job)) if job.is_finished() => {
                if let Ok(found) = job.await {
                    self.take(found);
                }
            }
            Some(Job::Write { job, doubt }) if job.is_finished() => {
                match job.await.unwrap_or(Wrote::Unknown) {
                    Wrote::Done => {}
                    Wrote::Missing => self.connection = None,
                    Wrote::Unknown => (self.connection, self.known) = (None, doubt),
                }
            }
            running => self.job = running,
        }
        if self.job.is_some() {
            return;
        }
        let connection = self.connection.as_ref().filter(|connection| connection.close_reason().is_none());
        let (Some(connection), Some(since)) = (connection, &mut self.since) else {
            self.job = Some(Job::Read(tokio::spawn(read(self.node.clone(), self.database.clone()))));
            return;
        };
        if !core.knows_its_routers() {
            return;
        }
        let mut operations = Vec::new();
        if self.is_unclear {
            operations.push(status::clear_node(&self.node));
            self.known.clear();
        }
        let now_ms = now_ms();
        // Whose row is written to, or taken away.
        let mut touched = Vec::new();
        let mut current = BTreeMap::new();
        let mut slow = BTreeMap::new();
        for (router, report) in core.reports() {
            let before = self.known.get(router);
            log_slow(router, self.slow.get(router), &report.slow);
            slow.insert(router.clone(), report.slow.clone());
            let status = status_of(&self.node, router, report, since.get(router).copied(), now_ms);
            since.insert(router.clone(), (status.state, status.since_ms));
            let was_well = before.and_then(Option::as_ref).is_none_or(|before| before.message.is_empty());
            if was_well && !status.message.is_empty() {
                tracing::warn!(name: "limit-reached", %router, "{}", status.message);
            }
            match before {
                Some(Some(before)) if *before == status => {}
                Some(_) => {
                    operations.push(status.update());
                    touched.push(router.clone());
                }
                None => operations.extend(status.upsert()),
            }
            current.insert(router.clone(), Some(status));
        }
        self.slow = slow;
        for router in self.known.keys().filter(|router| !current.contains_key(*router)) {
            since.remove(router);
            operations.push(status::clear_router(&self.node, router));
            touched.push(router.clone());
        }
        if operations.is_empty() {
            return;
        }
        let mut doubt = std::mem::replace(&mut self.known, current);
        doubt.extend(touched.into_iter().map(|router| (router, None)));
        self.is_unclear = false;
        let job = tokio::spawn(write(connection.clone(), operations));
        self.job = Some(Job::Write { job, doubt });
    }

    /// What a connection tells is compared with what is to be there from now on. What is in doubt stays so: a server of
    /// a cluster may not have it yet.
    fn take(&mut self, found: Found) {
        let Found { connection, rows, is_whole } = found;
        self.since.get_or_insert_with(|| {
            rows.iter().map(|(router, row)| (router.clone(), (row.state, row.since_ms))).collect()
        });
        let doubt = std::mem::take(&mut self.known).into_iter().filter(|(_, row)| row.is_none());
        self.known = rows.into_iter().map(|(router, row)| (router, Some(row))).collect();
        self.known.extend(doubt);
        self.is_unclear = !is_whole;
        self.connection = Some(connection);
    }
}

/// What was reported before, by this life of the daemon or a former one, as soon as the database tells it.
async fn read(node: Name, database: SessionHandle) -> Found {
    let select = [status::select(&node)];
    loop {
        if let Ok(connection) = database.connected().await {
            match connection.transact(db::DATABASE, &select).await {
                Ok(results) => {
                    let found = results.first().map(|result| result.rows()).unwrap_or_default();
                    let rows: BTreeMap<_, _> = found
                        .iter()
                        .filter_map(|row| Status::parse(row).ok())
                        .map(|row| (row.router.clone(), row))
                        .collect();
                    let is_whole = rows.len() == found.len();
                    return Found { connection, rows, is_whole };
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "status not read");
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn write(connection: Connection, operations: Vec<Operation>) -> Wrote {
    match connection.transact(db::DATABASE, &operations).await {
        Ok(results) => {
            let mut of = operations.iter().zip(&results);
            match of.any(|(operation, result)| operation.name() == "update" && result.count() == Some(0)) {
                true => Wrote::Missing,
                false => Wrote::Done,
            }
        }
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "status not written");
            Wrote::Unknown
        }
    }
}

fn status_of(node: &Name, router: &Name, report: Report, before: Option<Since>, now_ms: u64) -> Status {
    let state = match report.session {
        None => SessionState::Down,
        Some((_, false)) => SessionState::Syncing,
        Some((_, true)) => SessionState::Up,
    };
    let rib = report.status.rib;
    Status {
        node: node.clone(),
        router: router.clone(),
        state,
        since_ms: before.filter(|(old, _)| *old == state).map_or(now_ms, |(_, since_ms)| since_ms),
        counts: Counts {
            routes: rib.routes as u64,
            neighbors: rib.neighbors as u64,
            next_hops: rib.next_hops as u64,
            prefixes: [
                ("forwarded", report.status.routes.forwarded),
                ("punted", report.status.routes.punted),
                ("absent", report.status.routes.absent),
            ]
            .map(|(kind, n)| (kind.to_owned(), n as u64))
            .into(),
        },
        acked_seq: report.session.map_or(0, |(seq, _)| seq.0),
        message: match report.is_over {
            true => "no session for the hold time: nothing is forwarded for it".to_owned(),
            false => near_limit(&report),
        },
        slow: report.slow,
        ports: report.ports,
        up: report.up,
        vif_mtus: report.vif_mtus,
        unresolved: report.unresolved,
    }
}

/// The alarm before prefixes are left to the guest.
fn near_limit(report: &Report) -> String {
    let routes = report.status.routes;
    match (routes.is_near, routes.punted + routes.absent) {
        (false, _) => String::new(),
        (true, 0) => format!("{} prefixes of at most {} are forwarded", routes.forwarded, routes.max),
        (true, left) => format!("{left} prefixes above the limit of {} are left to the guest", routes.max),
    }
}

/// One line when the reasons of a router are other ones.
fn log_slow(router: &Name, before: Option<&BTreeSet<String>>, now: &BTreeSet<String>) {
    let empty = BTreeSet::new();
    if before.unwrap_or(&empty) == now {
        return;
    }
    if now.is_empty() {
        tracing::info!(name: "fastpath-on", %router, "the host forwards for the router");
        return;
    }
    let some: Vec<&str> = now.iter().take(LOGGED).map(String::as_str).collect();
    let more = now.len().saturating_sub(LOGGED);
    let reasons = some.join("; ");
    tracing::info!(name: "fastpath-off", %router, reasons, more, "the guest forwards itself");
}

#[cfg(test)]
mod tests {
    use xenflow_flow_app::RouterStatus;
    use xenflow_proto::Seq;

    use super::*;

    /// What is shown of a router at 7 ms.
    fn shown(
        routes: xenflow_flow_app::RouteCounts,
        session: Option<(Seq, bool)>,
        is_over: bool,
        before: Option<Since>,
    ) -> Status {
        let status = RouterStatus {
            rib: Default::default(),
            synced: true,
            slow: Vec::new(),
            routes,
            unresolved: Default::default(),
            mtus: [].into(),
        };
        let (slow, ports, up, vif_mtus) = ([].into(), [].into(), [].into(), [].into());
        let unresolved = Default::default();
        let report = Report { status, session, is_over, slow, ports, up, vif_mtus, unresolved };
        status_of(&"a".parse().unwrap(), &"r1".parse().unwrap(), report, before, 7)
    }

    fn routes(
        forwarded: usize,
        punted: usize,
        absent: usize,
        is_near: bool,
    ) -> xenflow_flow_app::RouteCounts {
        xenflow_flow_app::RouteCounts { max: 10, forwarded, punted, absent, is_near }
    }

    #[test]
    fn a_state_keeps_its_beginning_and_a_limit_in_sight_is_told() {
        let first = shown(routes(7, 0, 0, false), Some((Seq(3), true)), false, None);
        assert_eq!((first.state, first.since_ms, first.acked_seq), (SessionState::Up, 7, 3));
        assert_eq!(first.message, "");
        assert_eq!(first.counts.prefixes["forwarded"], 7);
        let up = Some((SessionState::Up, 1));
        let next = shown(routes(8, 0, 0, true), Some((Seq(4), true)), false, up);
        assert_eq!(next.since_ms, 1, "the same state");
        assert_eq!(next.message, "8 prefixes of at most 10 are forwarded");
        let next = shown(routes(10, 10, 5, true), None, false, up);
        assert_eq!((next.state, next.since_ms), (SessionState::Down, 7));
        assert_eq!(next.message, "15 prefixes above the limit of 10 are left to the guest");
    }

    #[test]
    fn a_router_that_is_over_says_so_and_keeps_the_age_of_its_loss() {
        let lost = shown(routes(8, 0, 0, true), None, false, Some((SessionState::Up, 1)));
        assert_eq!(lost.message, "8 prefixes of at most 10 are forwarded", "as long as they are held");
        let over = shown(routes(0, 0, 0, false), None, true, Some((SessionState::Down, 3)));
        assert_eq!((over.state, over.since_ms, over.acked_seq), (SessionState::Down, 3, 0));
        assert_eq!(over.message, "no session for the hold time: nothing is forwarded for it");
        // That is what matters of such a router, also while its tables are still being swept.
        let over = shown(routes(8, 0, 0, true), None, true, Some((SessionState::Down, 3)));
        assert_eq!(over.message, "no session for the hold time: nothing is forwarded for it");
    }
}
