//! `xenflow --wait`: a change is made with a number of its own (`XenFlow.next_cfg`), and the command ends when every
//! node has reported that its switch has confirmed the state with that number.
//!
//! A node reports that when others can know which addresses it has. So a change by which one may come to a port is followed
//! by a second number: with that, the others have their flows to it as well.

use std::cell::Cell;
use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use dom0_server::db::{DATABASE, NodeStatus, table};
use ovsdb::{
    Datum, Event, Monitor, Mutator, OpResult, Operation, Remote, RequestError, Row, RowChange, Session,
    SessionConfig, Tls, TransactError, Uuid,
};
use tokio::time::Instant;

use crate::view::ago;
use crate::{Failure, output};

/// What is watched from before the change on, so that its end is not missed.
pub(crate) struct Waiter {
    session: Session,
    deadline: Instant,
    seconds: u32,
    number: Cell<Option<i64>>,
    may_place: Cell<bool>,
}

impl Waiter {
    /// Begins to watch what nodes report, until `deadline`, which is `seconds` from when the command began.
    pub(crate) fn start(remotes: Vec<Remote>, tls: Option<Tls>, seconds: u32, deadline: Instant) -> Self {
        let monitor = Monitor::new(DATABASE).table(table::NODE_STATUS, &NodeStatus::WAITED_FOR);
        let mut config = SessionConfig::new(remotes).monitor(monitor);
        config.options.tls = tls;
        let session = Session::start(config);
        Self { session, deadline, seconds, number: Cell::new(None), may_place: Cell::new(false) }
    }

    /// Operations that give a change its number. Those of two commands come one after the other, however close, so each
    /// has its own.
    pub(crate) fn operations() -> [Operation; 2] {
        let next = Operation::mutate(table::XENFLOW).mutation("next_cfg", Mutator::Add, Datum::from(1));
        [next, Operation::select(table::XENFLOW).columns(&["next_cfg"])]
    }

    /// The results of a transaction with [`operations`](Self::operations). `may_place`: an address may have come to a port
    /// by it.
    pub(crate) fn numbered(&self, results: &[OpResult], may_place: bool) -> anyhow::Result<()> {
        self.number.set(Some(number(results)?));
        self.may_place.set(may_place);
        Ok(())
    }

    /// Ends when every node that reports has the change; at once if the command has made none.
    pub(crate) async fn wait(mut self) -> Result<(), Failure> {
        let Some(mut number) = self.number.get() else { return Ok(()) };
        let mut nodes = Nodes::default();
        loop {
            match tokio::time::timeout_at(self.deadline, self.session.next()).await {
                Ok(Some(Event::Snapshot { changes, .. } | Event::Update { changes, .. })) => {
                    nodes.apply(&changes)
                }
                Ok(Some(Event::Connected { .. } | Event::Disconnected { .. })) => continue,
                Ok(None) | Err(_) => return Err(self.late(nodes.late(number))),
            }
            if nodes.rows.is_empty() {
                output::error("no node reports to the database: the change is made, and in nobody's switch");
                return Ok(());
            }
            if nodes.late(number).is_some() {
                continue;
            }
            if !self.may_place.take() {
                return Ok(());
            }
            number = match tokio::time::timeout_at(self.deadline, self.again()).await {
                Ok(number) => number?,
                Err(_) => return Err(self.late(None)),
            };
        }
    }

    /// One more number, for what nodes have told each other until now. Asked for once more if a connection ends before
    /// it has come: one too many harms nobody.
    async fn again(&self) -> anyhow::Result<i64> {
        let handle = self.session.handle();
        loop {
            let connection = handle.connected().await?;
            match connection.transact(DATABASE, &Self::operations()).await {
                Ok(results) => return number(&results),
                Err(TransactError::Request(
                    RequestError::OutcomeUnknown(_) | RequestError::Disconnected(_),
                )) => {
                    connection.closed().await;
                }
                Err(error) => {
                    return Err(error).context("the change is made, but perhaps not in every switch");
                }
            }
        }
    }

    fn late(&self, who: Option<String>) -> Failure {
        let who = who.unwrap_or_else(|| "the database does not say in which".to_owned());
        anyhow!("the change is made, but not in every switch within {} s: {who}", self.seconds).into()
    }
}

/// The number of a transaction.
fn number(results: &[OpResult]) -> anyhow::Result<i64> {
    let row = results.iter().rev().find_map(|result| result.rows().first());
    let row = row.context("the change is made, but there is no number to wait for: run 'xenflow init'")?;
    Ok(row.int("next_cfg")?)
}

/// What nodes have reported.
#[derive(Default)]
struct Nodes {
    is_known: bool,
    rows: BTreeMap<Uuid, std::sync::Arc<Row>>,
}

impl Nodes {
    fn apply(&mut self, changes: &[RowChange]) {
        self.is_known = true;
        for change in changes {
            match &change.new {
                Some(row) => self.rows.insert(change.uuid, row.clone()),
                None => self.rows.remove(&change.uuid),
            };
        }
    }

    /// Those that have less than that, or nothing if nobody knows: "b (has 3 of 7, last seen 12 s ago), c (…)".
    fn late(&self, number: i64) -> Option<String> {
        let has = |row: &Row| row.int("cfg").unwrap_or_default();
        let mut late: Vec<String> = self
            .rows
            .values()
            .filter(|row| has(row) < number)
            .map(|row| {
                let seen = u64::try_from(row.int("seen_ms").unwrap_or_default()).unwrap_or_default();
                let node = row.str("node").unwrap_or("?").escape_debug();
                format!("{node} (has {} of {number}, last seen {})", has(row), ago(seen))
            })
            .collect();
        late.sort();
        let todo = "'xenflow node remove NODE' ends the waiting for one that is gone for good";
        (self.is_known && !late.is_empty()).then(|| format!("{}; {todo}", late.join(", ")))
    }
}
