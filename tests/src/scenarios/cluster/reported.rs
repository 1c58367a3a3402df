//! What a node writes into the database, as another member tells it; and which of it was there already.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dom0_server::db::{DATABASE, NodeStatus, Statistics, Status, location, table};
use ovsdb::{Datum, Event, Monitor, Remote, Row, RowChange, Session, SessionConfig};

use super::rows::block_on;

/// What daemons write, with all columns.
fn monitor() -> Monitor {
    Monitor::new(DATABASE)
        .table(table::NODE_STATUS, &NodeStatus::COLUMNS)
        .table(table::STATUS, &Status::COLUMNS)
        .table(table::STATISTICS, &Statistics::COLUMNS)
        .table(table::LOCATION, &location::COLUMNS)
}

/// When a row was written, or seen to be true, is no part of what it says.
const STAMPS: [&str; 2] = ["seen_ms", "updated_ms"];

/// Changes of what is reported, from when it was made on.
pub(super) struct Reported(Receiver<Vec<RowChange>>);

impl Reported {
    /// Follows what that member tells; what is there already is known when this returns.
    pub(super) fn follow(socket: PathBuf, limit: Duration) -> Result<Self> {
        let (tell, told) = channel();
        std::thread::spawn(move || {
            block_on(async {
                let config = SessionConfig::new(vec![Remote::Unix(socket)]).monitor(monitor());
                let mut session = Session::start(config);
                while let Some(event) = session.next().await {
                    if let Event::Snapshot { changes, .. } | Event::Update { changes, .. } = event
                        && tell.send(changes).is_err()
                    {
                        return;
                    }
                }
            })
        });
        told.recv_timeout(limit).context("the rows that nodes report do not come")?;
        Ok(Self(told))
    }

    /// Everything that those nodes have changed until there is a change that is wanted, and for `settle` from then on.
    pub(super) fn changes(
        &self,
        nodes: &[&str],
        (what, limit): (&str, Duration),
        is_wanted: impl Fn(&RowChange) -> bool,
        settle: Duration,
    ) -> Result<Vec<RowChange>> {
        let (mut all, mut end, mut has_come) = (Vec::new(), Instant::now() + limit, false);
        loop {
            match self.0.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(changes) => all.extend(changes.into_iter().filter(|change| is_of(change, nodes))),
                Err(_) if has_come => return Ok(all),
                Err(error) => return Err(error).with_context(|| format!("{what} does not come")),
            }
            if !has_come && all.iter().any(&is_wanted) {
                (has_come, end) = (true, Instant::now() + settle);
            }
        }
    }
}

fn is_of(change: &RowChange, nodes: &[&str]) -> bool {
    let row = change.new.as_ref().or(change.old.as_ref());
    row.is_some_and(|row| row.str("node").is_ok_and(|node| nodes.contains(&node)))
}

/// A row without stamps.
fn meaning(row: &Row) -> BTreeMap<String, Datum> {
    let columns = row.columns().filter(|(name, _)| !STAMPS.contains(name));
    columns.map(|(name, datum)| (name.to_owned(), datum.clone())).collect()
}

/// How many of these changes put something where it was already: a row that goes and comes again as it was, or that
/// gets another stamp only. A node that says that it lives does not count: that is what its stamp is for.
pub(super) fn rewritten(changes: &[RowChange]) -> usize {
    let same = |a: &Arc<Row>, b: &Arc<Row>| meaning(a) == meaning(b);
    let mut gone: Vec<(&Arc<str>, &Arc<Row>)> = changes
        .iter()
        .filter(|change| change.new.is_none())
        .filter_map(|change| Some((&change.table, change.old.as_ref()?)))
        .collect();
    let mut count = 0;
    for change in changes {
        match (&change.old, &change.new) {
            (Some(old), Some(new)) => {
                count += usize::from(&*change.table != table::NODE_STATUS && same(old, new))
            }
            (None, Some(new)) => {
                let place = gone.iter().position(|(table, old)| **table == change.table && same(old, new));
                if let Some(place) = place {
                    gone.remove(place);
                    count += 1;
                }
            }
            (_, None) => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use ovsdb::Uuid;
    use serde_json::json;

    use super::*;

    fn row(router: &str, routes: u32, updated_ms: u64) -> Arc<Row> {
        let json = json!({"node": "b", "router": router, "routes": routes, "updated_ms": updated_ms});
        Arc::new(Row::from_json(json.as_object().unwrap()).unwrap())
    }

    fn change(table: &str, old: Option<Arc<Row>>, new: Option<Arc<Row>>) -> RowChange {
        RowChange { table: table.into(), uuid: Uuid::ZERO, old, new }
    }

    #[test]
    fn what_was_there_already_is_told_from_what_is_new() {
        let (one, again, other) = (row("r1", 1, 7), row("r1", 1, 8), row("r1", 2, 8));
        let gone = |row: &Arc<Row>| change("Status", Some(row.clone()), None);
        let come = |row: &Arc<Row>| change("Status", None, Some(row.clone()));
        let turn =
            |table, old: &Arc<Row>, new: &Arc<Row>| change(table, Some(old.clone()), Some(new.clone()));
        assert_eq!(rewritten(&[gone(&one), come(&other), turn("Status", &one, &other)]), 0);
        assert_eq!(rewritten(&[gone(&one), come(&again)]), 1);
        assert_eq!(rewritten(&[come(&again), gone(&one), come(&again)]), 1, "one went");
        assert_eq!(rewritten(&[turn("Statistics", &one, &again)]), 1);
        assert_eq!(rewritten(&[turn("Node_Status", &one, &again)]), 0, "it lives");
        assert_eq!(rewritten(&[gone(&one), change("Statistics", None, Some(again))]), 0, "another table");
    }
}
