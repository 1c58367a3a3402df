//! Tells the database how the routers stand, and the log why a guest forwards itself.

pub mod node;
pub mod statistics;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ovsdb::SessionHandle;
use tokio::task::JoinHandle;
use xenflow_proto::Name;

use crate::core::{Core, Report};
use crate::db::{self, Counts, SessionState, Status, status};

/// Reasons that one line of the log names.
const LOGGED: usize = 4;
/// Between two tries to read what was reported before.
const RETRY: Duration = Duration::from_millis(200);

/// How a router's session stands, and since when: milliseconds since the Unix epoch.
type Since = (SessionState, u64);

#[derive(Debug)]
enum Job {
    Read(JoinHandle<BTreeMap<Name, Since>>),
    Write(JoinHandle<bool>),
}

/// Writes what changed, off the main loop.
#[derive(Debug)]
pub struct Reporter {
    node: Name,
    database: SessionHandle,
    /// What the database has, as far as somebody knows.
    known: BTreeMap<Name, Status>,
    /// Of every router, longer than its row is known; before its first report: as a former life of the daemon
    /// reported it. None: that was not read yet.
    since: Option<BTreeMap<Name, Since>>,
    slow: BTreeMap<Name, BTreeSet<String>>,
    cleared: bool,
    job: Option<Job>,
}

impl Reporter {
    /// One that has written nothing yet.
    #[must_use]
    pub fn new(node: Name, database: SessionHandle) -> Self {
        let (known, slow) = (BTreeMap::new(), BTreeMap::new());
        Self { node, database, known, since: None, slow, cleared: false, job: None }
    }

    /// Writes what has changed since the last call, unless that is still being written. Nothing is written, so also
    /// nothing forgotten, before it was read since when sessions stand as they do.
    pub async fn report(&mut self, core: &Core) {
        match self.job.take() {
            Some(Job::Read(job)) if job.is_finished() => self.since = job.await.ok(),
            Some(Job::Write(job)) if job.is_finished() => {
                if !job.await.unwrap_or(false) {
                    // Nobody knows what of it was written: all of it is due again.
                    self.known.clear();
                    self.cleared = false;
                }
            }
            running => self.job = running,
        }
        if self.job.is_some() {
            return;
        }
        let Some(since) = &mut self.since else {
            self.job = Some(Job::Read(tokio::spawn(read(self.node.clone(), self.database.clone()))));
            return;
        };
        if !core.knows_its_routers() {
            return;
        }
        let mut operations = Vec::new();
        if !self.cleared {
            operations.push(status::clear_node(&self.node));
        }
        let now_ms = now_ms();
        let mut current = BTreeMap::new();
        let mut slow = BTreeMap::new();
        for (router, report) in core.reports() {
            let before = self.known.get(router);
            log_slow(router, self.slow.get(router), &report.slow);
            slow.insert(router.clone(), report.slow.clone());
            let status = status_of(&self.node, router, report, since.get(router).copied(), now_ms);
            since.insert(router.clone(), (status.state, status.since_ms));
            let was_well = before.is_none_or(|before| before.message.is_empty());
            if was_well && !status.message.is_empty() {
                tracing::warn!(%router, "{}", status.message);
            }
            if before != Some(&status) {
                operations.extend(status.upsert());
            }
            current.insert(router.clone(), status);
        }
        self.slow = slow;
        for router in self.known.keys().filter(|router| !current.contains_key(*router)) {
            since.remove(router);
            operations.push(status::clear_router(&self.node, router));
        }
        if operations.is_empty() {
            return;
        }
        self.known = current;
        self.cleared = true;
        let database = self.database.clone();
        self.job = Some(Job::Write(tokio::spawn(async move {
            match database.transact(db::DATABASE, &operations).await {
                Ok(_) => true,
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "status not written");
                    false
                }
            }
        })));
    }
}

/// What a former life of the daemon reported last, as soon as the database tells it. Rows that do not parse are left
/// out.
async fn read(node: Name, database: SessionHandle) -> BTreeMap<Name, Since> {
    let select = [status::select(&node)];
    loop {
        match database.transact(db::DATABASE, &select).await {
            Ok(results) => {
                let rows = results.first().map(|result| result.rows()).unwrap_or_default();
                let rows = rows.iter().filter_map(|row| Status::parse(row).ok());
                return rows.map(|row| (row.router, (row.state, row.since_ms))).collect();
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "status not read");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX))
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
        tracing::info!(%router, "the host forwards for the router");
        return;
    }
    let some: Vec<&str> = now.iter().take(LOGGED).map(String::as_str).collect();
    let more = now.len().saturating_sub(LOGGED);
    let reasons = some.join("; ");
    tracing::info!(%router, reasons, more, "the guest forwards itself");
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
        let status = RouterStatus { rib: Default::default(), synced: true, slow: Vec::new(), routes };
        let (slow, ports, up) = ([].into(), [].into(), [].into());
        let report = Report { status, session, is_over, slow, ports, up };
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
