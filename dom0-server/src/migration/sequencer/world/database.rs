//! The database: the last migration, who has the router's addresses, and transactions on their way there.

use super::{Index, Phase, Write};

/// A row of `Migration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) number: u8,
    pub(super) from: Index,
    pub(super) phase: Phase,
    pub(super) yielded: bool,
    pub(super) left: bool,
    pub(super) driven: bool,
}

/// The database: the last migration, and each node's generation of the router's addresses, 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Database {
    pub(super) row: Option<Row>,
    pub(super) generations: [u8; 2],
}

impl Database {
    pub(super) fn open(&self) -> Option<Row> {
        self.row.filter(|row| !row.phase.is_over())
    }

    pub(super) fn owner(&self) -> Option<Index> {
        match self.generations {
            [0, 0] => None,
            [a, b] => Some(usize::from(b > a)),
        }
    }
}

/// A transaction under way: it knows the row and the owner's generation that its writer saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Transaction {
    pub(super) write: Write,
    pub(super) seen: Option<(u8, Phase)>,
    pub(super) generation: u8,
}

impl Database {
    /// Whether the conditions of a transaction hold now or may later.
    pub(super) fn may_commit(&self, transaction: &Transaction) -> bool {
        match transaction.write {
            Write::Create => self.generations.into_iter().max() == Some(transaction.generation),
            Write::Advance(_) | Write::Yield | Write::Left | Write::Announce | Write::Abort(_) => {
                self.row.map(|row| (row.number, row.phase)) == transaction.seen
            }
        }
    }

    /// Does a transaction, if its conditions hold.
    pub(super) fn commit(&mut self, n: Index, transaction: &Transaction) -> bool {
        if transaction.write == Write::Create {
            let generation = self.generations.into_iter().max().unwrap_or(0);
            let Some(owner) = self.owner().filter(|owner| *owner != n) else { return false };
            if self.open().is_some() || generation != transaction.generation {
                return false;
            }
            self.create(owner, Phase::Arrived, false);
            return true;
        }
        let generation = self.generations.into_iter().max().unwrap_or(0) + 1;
        let Some(row) = &mut self.row else { return false };
        if Some((row.number, row.phase)) != transaction.seen {
            return false;
        }
        match transaction.write {
            Write::Advance(to) => {
                row.yielded |= to == Phase::Moving;
                row.phase = to;
            }
            Write::Yield => row.yielded = true,
            Write::Left => row.left = true,
            Write::Announce => {
                row.phase = Phase::Announced;
                self.generations[n] = generation;
            }
            Write::Abort(_) => (row.phase, row.yielded, row.left) = (Phase::Aborting, false, false),
            Write::Create => return false,
        }
        true
    }

    pub(super) fn create(&mut self, from: Index, phase: Phase, driven: bool) {
        let number = self.row.map_or(0, |row| row.number) + 1;
        self.row = Some(Row { number, from, phase, yielded: false, left: false, driven });
    }
}
