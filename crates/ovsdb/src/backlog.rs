//! Events that their owner has not fetched yet.
//!
//! Owns merging: updates of one database become one, of which every row appears once, from the oldest `old`
//! to the newest `new`. So the backlog is bounded by the contents, however slow the owner is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::monitor::RowChange;
use crate::row::Row;
use crate::session::Event;
use crate::value::Uuid;

/// More waiting events than this are merged to at most one per database and one of the connection.
const LIMIT: usize = 32;

type Changes = BTreeMap<(Arc<str>, Uuid), (Option<Arc<Row>>, Option<Arc<Row>>)>;

#[derive(Debug)]
enum Entry {
    Link(Event),
    Changes { database: Arc<str>, snapshot: bool, changes: Changes },
}

/// What waits, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Backlog(VecDeque<Entry>);

impl Backlog {
    pub(crate) fn push(&mut self, event: Event) {
        match event {
            Event::Connected { .. } | Event::Disconnected { .. } => self.0.push_back(Entry::Link(event)),
            Event::Snapshot { database, changes } => self.change(database, true, changes),
            Event::Update { database, changes } => self.change(database, false, changes),
        }
        if self.0.len() > LIMIT {
            self.compact();
        }
    }

    pub(crate) fn extend(&mut self, events: Vec<Event>) {
        events.into_iter().for_each(|event| self.push(event));
    }

    fn change(&mut self, database: Arc<str>, snapshot: bool, rows: Vec<RowChange>) {
        let rows = rows.into_iter().map(|c| ((c.table, c.uuid), (c.old, c.new)));
        match self.0.back_mut() {
            Some(Entry::Changes { database: last, snapshot: was, changes }) if *last == database => {
                *was |= snapshot;
                merge(changes, rows);
            }
            _ => self.0.push_back(Entry::Changes { database, snapshot, changes: rows.collect() }),
        }
    }

    /// One entry per database and the last of the connection: first if it connected, as the snapshots come
    /// after it, and else last.
    fn compact(&mut self) {
        let mut link = None;
        let mut merged: BTreeMap<Arc<str>, (bool, Changes)> = BTreeMap::new();
        for entry in self.0.drain(..) {
            match entry {
                Entry::Link(event) => link = Some(event),
                Entry::Changes { database, snapshot, changes } => {
                    let (was, all) = merged.entry(database).or_default();
                    *was |= snapshot;
                    merge(all, changes);
                }
            }
        }
        for (database, (snapshot, changes)) in merged {
            self.0.push_back(Entry::Changes { database, snapshot, changes });
        }
        match link {
            Some(event @ Event::Connected { .. }) => self.0.push_front(Entry::Link(event)),
            Some(event) => self.0.push_back(Entry::Link(event)),
            None => {}
        }
    }

    fn pop(&mut self) -> Option<Event> {
        Some(match self.0.pop_front()? {
            Entry::Link(event) => event,
            Entry::Changes { database, snapshot, changes } => {
                let changes = changes
                    .into_iter()
                    .map(|((table, uuid), (old, new))| RowChange { table, uuid, old, new })
                    .collect();
                if snapshot {
                    Event::Snapshot { database, changes }
                } else {
                    Event::Update { database, changes }
                }
            }
        })
    }

    /// Waits for room and sends one event; never ends if nothing waits. Loses nothing when cancelled.
    pub(crate) async fn deliver(&mut self, events: &mpsc::Sender<Event>) {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        // A closed channel ends the session elsewhere.
        match events.reserve().await {
            Ok(permit) => {
                if let Some(event) = self.pop() {
                    permit.send(event);
                }
            }
            Err(_) => std::future::pending().await,
        }
    }
}

fn merge(
    into: &mut Changes,
    changes: impl IntoIterator<Item = ((Arc<str>, Uuid), (Option<Arc<Row>>, Option<Arc<Row>>))>,
) {
    for (key, (old, new)) in changes {
        let old = into.remove(&key).map_or(old, |(first, _)| first);
        // A row that is again what it was did not change for the owner.
        if old != new {
            into.insert(key, (old, new));
        }
    }
}
