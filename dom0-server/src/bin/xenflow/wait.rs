//! `xenflow --wait`: a change is made with a number of its own (`XenFlow.next_cfg`), and the command ends when every
//! node has reported that its switch has confirmed the state with that number.
//!
//! A node reports that when others can know which addresses it has. So a change by which one may come to a port is followed
//! by a second number: with that, the others have their flows to it as well.
//!
//! The waiting is the server's (RFC 7047 section 5.2.6, `wait`): what nodes report stays, so nothing can be missed, and
//! the command wakes up once for each number.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, anyhow};
use dom0_server::db::{DATABASE, NodeStatus, table};
use ovsdb::{
    Condition, Connection, Datum, Function, Mutator, OpResult, Operation, RequestError, Row, TransactError,
    Until,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::args::Target;
use crate::client::connect;
use crate::view::ago;
use crate::{Failure, output};

/// For the question who is late, when the time is over.
const WHO_IS_LATE: Duration = Duration::from_secs(1);
/// From one search for a server that is in contact with its cluster to the next.
const PAUSE: Duration = Duration::from_millis(200);

/// What a command waits for.
pub(crate) struct Waiter {
    db: Target,
    deadline: Instant,
    seconds: u32,
    number: Cell<Option<i64>>,
    may_place: Cell<bool>,
}

impl Waiter {
    /// The time begins.
    pub(crate) fn new(db: Target, seconds: u32) -> Self {
        let deadline = Instant::now() + Duration::from_secs(seconds.into());
        Self { db, deadline, seconds, number: Cell::new(None), may_place: Cell::new(false) }
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
    pub(crate) async fn wait(&self, mut connection: Connection) -> Result<(), Failure> {
        let Some(number) = self.number.get() else { return Ok(()) };
        match timeout_at(self.deadline, self.confirmed(&mut connection, number)).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => {
                output::error("no node reports to the database: the change is made, and in nobody's switch");
                Ok(())
            }
            Ok(Err(error)) if !is_timed_out(&error) => {
                Err(error.context("the change is made, but perhaps not in every switch").into())
            }
            Ok(Err(_)) | Err(_) => Err(self.late(&connection).await),
        }
    }

    /// True when all nodes have the number and, if that may have placed an address, what they told each other by then;
    /// false if there is no node.
    async fn confirmed(&self, connection: &mut Connection, mut last: i64) -> anyhow::Result<bool> {
        if self.may_place.get() {
            last = number(&self.once_all_have(connection, last, Self::operations()).await?)?;
            self.number.set(Some(last));
        }
        let nodes = Operation::select(table::NODE_STATUS).columns(&["node"]);
        let results = self.once_all_have(connection, last, [nodes]).await?;
        Ok(results.last().is_some_and(|nodes| !nodes.rows().is_empty()))
    }

    /// Does the operations when no node has less than the number. Asked once more, of another server, if a connection
    /// ends before the answer or its server loses the cluster: one number too many harms nobody.
    async fn once_all_have(
        &self,
        connection: &mut Connection,
        number: i64,
        operations: impl IntoIterator<Item = Operation>,
    ) -> Result<Vec<OpResult>, TransactError> {
        let is_late = Condition::new("cfg", Function::Less, number);
        let none = self.server_waits(table::NODE_STATUS, "cfg", Until::Equal, Vec::new()).filter(is_late);
        let all: Vec<_> = [none].into_iter().chain(operations).collect();
        loop {
            let asked = tokio::select! {
                asked = connection.transact(DATABASE, &all) => Some(asked),
                () = self.out_of_contact(connection) => None,
            };
            match asked {
                Some(Err(TransactError::Request(
                    RequestError::OutcomeUnknown(_)
                    | RequestError::NotSent(_)
                    | RequestError::Disconnected(_),
                )))
                | None => *connection = self.connect_again().await,
                Some(asked) => return asked,
            }
        }
    }

    /// Ends when the server has lost the cluster.
    async fn out_of_contact(&self, connection: &Connection) {
        let connected = Row::from_iter([("connected", true)]);
        let lost = self.server_waits("Database", "connected", Until::NotEqual, vec![connected]);
        let lost = lost.filter(Condition::eq("name", DATABASE));
        if connection.transact("_Server", &[lost]).await.is_err() {
            // It ends without an answer: the other question has one.
            std::future::pending::<()>().await;
        }
    }

    fn server_waits(&self, table: &str, column: &str, until: Until, rows: Vec<Row>) -> Operation {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Operation::wait(table, &[column], until, rows, left)
    }

    async fn connect_again(&self) -> Connection {
        loop {
            match connect(&self.db, self.seconds).await {
                Ok(connection) => return connection,
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn late(&self, connection: &Connection) -> Failure {
        let select = Operation::select(table::NODE_STATUS).columns(&NodeStatus::WAITED_FOR);
        let who = match timeout(WHO_IS_LATE, connection.transact(DATABASE, &[select])).await {
            Ok(Ok(results)) => results.first().and_then(|nodes| late(nodes.rows(), self.number.get()?)),
            Ok(Err(_)) | Err(_) => None,
        };
        let who = who.unwrap_or_else(|| "the database does not say in which".to_owned());
        anyhow!("the change is made, but not in every switch within {} s: {who}", self.seconds).into()
    }
}

/// Whether the server has waited in vain.
fn is_timed_out(error: &anyhow::Error) -> bool {
    let of_server = error.downcast_ref::<TransactError>().and_then(TransactError::server_error);
    of_server == Some("timed out")
}

/// The number of a transaction.
fn number(results: &[OpResult]) -> anyhow::Result<i64> {
    let row = results.iter().rev().find_map(|result| result.rows().first());
    let row = row.context("the change is made, but there is no number to wait for: run 'xenflow init'")?;
    Ok(row.int("next_cfg")?)
}

/// The nodes that have less than that: "b (has 3 of 7, last seen 12 s ago), c (…)".
fn late(nodes: &[Row], number: i64) -> Option<String> {
    let has = |row: &Row| row.int("cfg").unwrap_or_default();
    let mut late: Vec<String> = nodes
        .iter()
        .filter(|row| has(row) < number)
        .map(|row| {
            let seen = u64::try_from(row.int("seen_ms").unwrap_or_default()).unwrap_or_default();
            let node = row.str("node").unwrap_or("?").escape_debug();
            format!("{node} (has {} of {number}, last seen {})", has(row), ago(seen))
        })
        .collect();
    late.sort();
    let todo = "'xenflow node remove NODE' ends the waiting for one that is gone for good";
    (!late.is_empty()).then(|| format!("{}; {todo}", late.join(", ")))
}
