//! A model of a host: the tables it holds, in what order it may be spoken to, and what its switch has.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use xenflow_proto::digest::{Digest, Keyed};
use xenflow_proto::{Change, GuestMessage, Key, Object, Seq};

use crate::BOOT;

pub(crate) type Tables = BTreeMap<Key, Object>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Welcomed,
    Snapshot,
    Resume,
    Live,
}

#[derive(Default)]
pub(crate) struct Host {
    pub(crate) tables: Tables,
    stale: BTreeSet<Key>,
    pub(crate) window: u64,
    pub(crate) heard: u64,
    pub(crate) acked: u64,
    stage: Stage,
    /// It holds nothing but what it heard: no change may be one that it has already.
    exact: bool,
    /// After each message the tables, and whether an acknowledgement of it says that the switch has them.
    log: Vec<(Tables, bool)>,
    /// What the switch is known to have.
    pub(crate) switch: Option<Tables>,
    /// Changes heard in this session.
    pub(crate) changes: usize,
}

impl Host {
    /// Before a session, with these tables.
    pub(crate) fn new(tables: Tables, window: u32) -> Self {
        Self { tables, window: window.into(), ..Self::default() }
    }

    pub(crate) fn ended(&self) -> bool {
        self.stage == Stage::Live
    }

    pub(crate) fn hear(&mut self, message: &GuestMessage) {
        let seq = match message {
            GuestMessage::SnapshotBegin(seq) => {
                self.step(&[Stage::Welcomed], Stage::Snapshot);
                self.stale = self.tables.keys().cloned().collect();
                self.exact = self.tables.is_empty();
                *seq
            }
            GuestMessage::Resume(seq) => {
                self.step(&[Stage::Welcomed], Stage::Resume);
                self.exact = true;
                *seq
            }
            GuestMessage::Changes { seq, changes } => {
                assert_ne!(self.stage, Stage::Welcomed, "changes of what?");
                let keys: BTreeSet<Key> = changes.iter().map(Change::key).collect();
                assert_eq!(keys.len(), changes.len(), "one change per key: {changes:?}");
                self.changes += changes.len();
                changes.iter().for_each(|change| self.change(change));
                *seq
            }
            GuestMessage::SnapshotEnd(seq) => {
                self.step(&[Stage::Snapshot, Stage::Resume], Stage::Live);
                let stale = std::mem::take(&mut self.stale);
                self.tables.retain(|key, _| !stale.contains(key));
                self.exact = true;
                *seq
            }
            other @ (GuestMessage::Hello(_)
            | GuestMessage::Ping(_)
            | GuestMessage::Pong(_)
            | GuestMessage::Renew) => panic!("{other:?}"),
        };
        self.heard += 1;
        self.log.push((self.tables.clone(), self.stage == Stage::Live));
        assert_eq!(seq, Seq(self.heard));
        assert!(self.heard - self.acked <= self.window, "the window of {} is overrun", self.window);
    }

    fn step(&mut self, from: &[Stage], to: Stage) {
        assert!(from.contains(&self.stage), "from {:?} to {to:?}", self.stage);
        self.stage = to;
    }

    fn change(&mut self, change: &Change) {
        self.stale.remove(&change.key());
        let before = self.tables.get(&change.key()).cloned();
        let after = match change {
            Change::Upsert(object) => {
                self.tables.insert(object.key(), object.clone());
                Some(object)
            }
            Change::Remove(key) => {
                self.tables.remove(key);
                None
            }
        };
        assert!(!self.exact || before.as_ref() != after, "the host has that already: {change:?}");
    }

    /// Acknowledges so many messages, or all it has heard.
    pub(crate) fn acknowledge(&mut self, messages: u64) -> Seq {
        self.acked = (self.acked + messages).min(self.heard);
        let last = usize::try_from(self.acked).unwrap().checked_sub(1);
        if let Some((tables, true)) = last.and_then(|last| self.log.get(last)) {
            self.switch = Some(tables.clone());
        }
        Seq(self.acked)
    }
}

pub(crate) fn digest<T: Borrow<Object>>(objects: impl IntoIterator<Item = T>) -> Digest {
    let mut keyed = Keyed::new(&BOOT);
    let mut digest = Digest::default();
    objects.into_iter().for_each(|object| digest.add(keyed.hash(object.borrow())));
    digest
}
