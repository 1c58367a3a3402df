//! Routers on their way from one node to another: rows of `Migration`, the journal of each move.
//!
//! Owns reading the rows and the transactions that change them. Each is done only if the row is in the phase that the
//! writer has seen, so one that comes late or twice does nothing. Who writes what, and when, is the business of
//! [`crate::migration::sequencer`].

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ovsdb::{Condition, Datum, Function, Mutator, Operation, Row, Until};
use serde::{Serialize, Serializer};
use xenflow_proto::Name;

use super::location::{self, Place};
use super::status::MESSAGE_MAX;
use super::{RowError, Rows, table};

/// So many rows that have ended are kept, the newest, for who asks what became of them.
pub const KEPT: usize = 100;

/// Keys of [`Migration::counters`], and characters of one: the schema's limits.
const COUNTERS_MAX: usize = 64;
const COUNTER_MAX: usize = 63;

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The destination gets the tables.
    Staging,
    /// It has them.
    Staged,
    /// The guest may leave.
    Moving,
    /// It runs at the destination.
    Arrived,
    /// The destination forwards.
    Verified,
    /// The destination has the router's addresses.
    Announced,
    /// Late frames still come to the source.
    Draining,
    /// The end.
    Done,
    /// The guest is to go on at the source.
    Aborting,
    /// It does; the other end.
    Aborted,
}

impl Phase {
    /// All, with their words.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Staging, "staging"),
        (Self::Staged, "staged"),
        (Self::Moving, "moving"),
        (Self::Arrived, "arrived"),
        (Self::Verified, "verified"),
        (Self::Announced, "announced"),
        (Self::Draining, "draining"),
        (Self::Done, "done"),
        (Self::Aborting, "aborting"),
        (Self::Aborted, "aborted"),
    ];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.into_iter().find(|(phase, _)| *phase == self).map_or("", |(_, word)| word)
    }

    /// Whether nobody has anything to do any more.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What moves the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// `xl migrate`.
    Xl,
    /// `virsh migrate`.
    Virsh,
    /// The laboratory's own.
    Lab,
    /// Somebody else, whom no daemon has told to.
    Other,
}

impl Via {
    /// All, with their words.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::Xl, "xl"), (Self::Virsh, "virsh"), (Self::Lab, "lab"), (Self::Other, "other")];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.into_iter().find(|(via, _)| *via == self).map_or("", |(_, word)| word)
    }
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Migration {
    /// Which one, counted over all routers.
    pub number: u64,
    /// The router.
    #[serde(serialize_with = "text")]
    pub router: Name,
    /// The node that it leaves.
    #[serde(serialize_with = "text")]
    pub from: Name,
    /// The node that it goes to.
    #[serde(serialize_with = "text")]
    pub to: Name,
    /// What moves it.
    pub via: Via,
    /// How long the move itself may take.
    pub move_limit_s: u64,
    /// How far it has come.
    pub phase: Phase,
    /// Of its locations once it has been announced; 0 before.
    pub generation: u64,
    /// The source emits nothing with the router's MACs.
    pub yielded: bool,
    /// The guest is not at the source any more.
    pub left: bool,
    /// Why it was aborted; empty if it was not.
    pub error: String,
    /// Of the tables that the destination had when it was staged; empty: it had none.
    pub digest: String,
    /// When each phase was reached, by the clock of the node that wrote it: milliseconds since the Unix epoch.
    pub reached: BTreeMap<String, u64>,
    /// For the report: packets held, released, late…
    pub counters: BTreeMap<String, u64>,
}

impl Migration {
    /// The columns of a row.
    pub const COLUMNS: [&'static str; 14] = [
        "number",
        "router",
        "from",
        "to",
        "via",
        "move_limit_s",
        "phase",
        "generation",
        "yielded",
        "left",
        "error",
        "digest",
        "reached",
        "counters",
    ];
    /// Those that do not change.
    pub const FIXED: usize = 6;

    /// The rows of a monitor by number; those that do not parse are left out.
    #[must_use]
    pub fn read(rows: &Rows) -> Vec<Self> {
        let mut all: Vec<_> =
            rows.of(table::MIGRATION).filter_map(|(_, row)| Self::parse(row).ok()).collect();
        all.sort_by_key(|row| row.number);
        all
    }

    /// Reads a row.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn parse(row: &Row) -> Result<Self, RowError> {
        let count = |column: &str| Ok::<_, RowError>(u64::try_from(row.int(column)?).unwrap_or_default());
        let counts = |column: &str| {
            let map = row.map_str_int(column)?.into_iter();
            Ok::<_, RowError>(
                map.map(|(key, value)| (key.to_owned(), u64::try_from(value).unwrap_or_default())).collect(),
            )
        };
        Ok(Self {
            number: count("number")?,
            router: row.str("router")?.parse()?,
            from: row.str("from")?.parse()?,
            to: row.str("to")?.parse()?,
            via: word(&Via::ALL, row.str("via")?, "via")?,
            move_limit_s: count("move_limit_s")?,
            phase: word(&Phase::ALL, row.str("phase")?, "phase")?,
            generation: count("generation")?,
            yielded: row.bool("yielded")?,
            left: row.bool("left")?,
            error: row.str("error")?.to_owned(),
            digest: row.str("digest")?.to_owned(),
            reached: counts("reached")?,
            counters: counts("counters")?,
        })
    }

    /// Into a phase, from the one that is here; what else becomes so with it stands behind.
    #[must_use]
    pub fn advance(&self, to: Phase, at_ms: u64) -> Vec<Operation> {
        let yields = to == Phase::Moving;
        let update = self.of(Operation::update(table::MIGRATION)).set("phase", to.as_str());
        let update = if yields { update.set("yielded", true) } else { update };
        vec![self.is_as_seen(), update, self.reach(to, at_ms)]
    }

    /// Counts for the report, beside those that are there; so many that the row takes them, each only once.
    #[must_use]
    pub fn tell(&self, tally: &BTreeMap<String, u64>) -> Operation {
        let room = COUNTERS_MAX.saturating_sub(self.counters.len());
        let new =
            tally.iter().filter(|(key, _)| key.len() <= COUNTER_MAX && !self.counters.contains_key(*key));
        let all = new.take(room).map(|(key, count)| (key.as_str(), number(*count)));
        self.of(Operation::mutate(table::MIGRATION)).mutation("counters", Mutator::Insert, Datum::map(all))
    }

    /// The source has yielded.
    #[must_use]
    pub fn yields(&self) -> Vec<Operation> {
        vec![self.is_as_seen(), self.of(Operation::update(table::MIGRATION)).set("yielded", true)]
    }

    /// The guest has left the source.
    #[must_use]
    pub fn leaves(&self) -> Vec<Operation> {
        vec![self.is_as_seen(), self.of(Operation::update(table::MIGRATION)).set("left", true)]
    }

    /// The destination has these addresses from now on.
    #[must_use]
    pub fn announce<'a>(
        &self,
        places: impl IntoIterator<Item = &'a Place>,
        generation: u64,
        at_ms: u64,
    ) -> Vec<Operation> {
        let phase = Phase::Announced;
        let update = self.of(Operation::update(table::MIGRATION)).set("phase", phase.as_str());
        let mut operations = vec![self.is_as_seen(), update.set("generation", number(generation))];
        operations.push(self.reach(phase, at_ms));
        operations.extend(places.into_iter().flat_map(|place| location::claim(place, &self.to, generation)));
        operations
    }

    /// Back to the source, because of that.
    #[must_use]
    pub fn abort(&self, why: &str, at_ms: u64) -> Vec<Operation> {
        let phase = Phase::Aborting;
        let update = self.of(Operation::update(table::MIGRATION)).set("phase", phase.as_str());
        let update = update
            .set("yielded", false)
            .set("left", false)
            .set("error", why.chars().take(MESSAGE_MAX).collect::<String>());
        vec![self.is_as_seen(), update, self.reach(phase, at_ms)]
    }

    /// As [`abort`](Self::abort), for an operator: done only while the guest has not left.
    ///
    /// # Errors
    /// [`AbortError`] says why it is too late.
    pub fn abort_by_hand(&self, at_ms: u64) -> Result<Vec<Operation>, AbortError> {
        let &Self { number, phase, left, .. } = self;
        let (router, from, to) = (self.router.clone(), self.from.clone(), self.to.clone());
        match phase {
            Phase::Staging | Phase::Staged | Phase::Moving if !left => {
                let stays = self.is_as_seen().filter(Condition::eq("left", false));
                Ok([vec![stays], self.abort("by the operator", at_ms)].concat())
            }
            Phase::Done | Phase::Aborted => Err(AbortError::Over { number, router, phase }),
            Phase::Aborting => Err(AbortError::Aborting { number, router }),
            Phase::Staging
            | Phase::Staged
            | Phase::Moving
            | Phase::Arrived
            | Phase::Verified
            | Phase::Announced
            | Phase::Draining => Err(AbortError::Left { number, router, from, to, phase }),
        }
    }

    /// The row must be in this phase, or the transaction fails.
    fn is_as_seen(&self) -> Operation {
        let row: Row = [("phase", Datum::from(self.phase.as_str()))].into_iter().collect();
        self.of(Operation::wait(table::MIGRATION, &["phase"], Until::Equal, [row], Duration::ZERO))
    }

    fn of(&self, operation: Operation) -> Operation {
        operation.filter(Condition::eq("number", number(self.number)))
    }

    fn reach(&self, phase: Phase, at_ms: u64) -> Operation {
        let at = Datum::map([(phase.as_str(), number(at_ms))]);
        self.of(Operation::mutate(table::MIGRATION)).mutation("reached", Mutator::Insert, at)
    }
}

/// A migration that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The router.
    pub router: Name,
    /// Where it is.
    pub from: Name,
    /// Where it goes.
    pub to: Name,
    /// What moves it.
    pub via: Via,
    /// How long the move itself may take.
    pub move_limit_s: u64,
    /// [`Phase::Staging`], or [`Phase::Arrived`] if it was moved already.
    pub phase: Phase,
}

impl Wanted {
    /// A new row, above those of `all`. The transaction fails if the router has an open row, or if one was made meanwhile. `held` are
    /// addresses of the router with the generation that `from` has them of: it fails, too, if it has not any more.
    ///
    /// # Errors
    /// [`CreateError`] names what is in the way.
    pub fn create(
        &self,
        all: &[Migration],
        held: &[(Place, u64)],
        at_ms: u64,
    ) -> Result<Vec<Operation>, CreateError> {
        self.is_possible(all)?;
        let none = Operation::wait(table::MIGRATION, &["phase"], Until::Equal, [], Duration::ZERO);
        let none = none.filter(Condition::eq("router", self.router.as_str()));
        let over = |phase: Phase| Condition::ne("phase", phase.as_str());
        let mut operations = vec![none.filter(over(Phase::Done)).filter(over(Phase::Aborted))];
        operations.extend(held.iter().flat_map(|(place, from)| location::is_held(place, &self.from, *from)));
        operations.push(
            Operation::insert(table::MIGRATION)
                .set("number", number(next_number(all)))
                .set("router", self.router.as_str())
                .set("from", self.from.as_str())
                .set("to", self.to.as_str())
                .set("via", self.via.as_str())
                .set("move_limit_s", number(self.move_limit_s))
                .set("phase", self.phase.as_str())
                .set("reached", Datum::map([(self.phase.as_str(), number(at_ms))])),
        );
        // Then the writer is the node that the router has come to. An operator may remove more: see `forget`.
        if self.phase == Phase::Arrived {
            operations.extend(forget(all, Some(&self.to)));
        }
        Ok(operations)
    }

    /// Whether there may be such a row beside those of `all`.
    ///
    /// # Errors
    /// [`CreateError`] names what is in the way.
    pub fn is_possible(&self, all: &[Migration]) -> Result<(), CreateError> {
        if self.from == self.to {
            return Err(CreateError::Same { router: self.router.clone(), node: self.to.clone() });
        }
        match all.iter().find(|row| row.router == self.router && !row.phase.is_over()).cloned() {
            None => Ok(()),
            Some(Migration { number, router, from, to, phase, .. }) => {
                Err(CreateError::Open { number, router, from, to, phase })
            }
        }
    }
}

/// The number of a row that is made beside these.
#[must_use]
pub fn next_number(all: &[Migration]) -> u64 {
    all.iter().map(|row| row.number).max().unwrap_or(0).saturating_add(1)
}

/// Removes the rows that have ended but the newest [`KEPT`] of them; with `by` only those of that node, which a server may let it
/// remove. Whoever makes a row does this, so there are never many more.
#[must_use]
pub fn forget(all: &[Migration], by: Option<&Name>) -> Vec<Operation> {
    let mut ended: Vec<_> = all.iter().filter(|row| row.phase.is_over()).map(|row| row.number).collect();
    ended.sort_unstable();
    let surplus = ended.len().saturating_sub(KEPT);
    let Some(oldest) = ended.get(surplus).copied().filter(|_| surplus > 0) else { return Vec::new() };
    let delete = |phase: Phase| {
        Operation::delete(table::MIGRATION)
            .filter(Condition::eq("phase", phase.as_str()))
            .filter(Condition::new("number", Function::Less, number(oldest)))
    };
    let both = [Phase::Done, Phase::Aborted].map(delete);
    match by {
        None => both.to_vec(),
        Some(node) => ["from", "to"]
            .iter()
            .flat_map(|side| both.clone().map(|delete| delete.filter(Condition::eq(*side, node.as_str()))))
            .collect(),
    }
}

/// Why there is no new migration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// There is one.
    #[error(
        "router {router} is on its way already: migration {number}, from {from} to {to}, is {phase}; wait for it, or abort it"
    )]
    Open {
        /// Which.
        number: u64,
        /// Whose.
        router: Name,
        /// From where.
        from: Name,
        /// To where.
        to: Name,
        /// How far.
        phase: Phase,
    },
    /// It is there.
    #[error("router {router} is on {node} already")]
    Same {
        /// Which router.
        router: Name,
        /// Where.
        node: Name,
    },
}

/// Why an operator cannot abort.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AbortError {
    /// Too late.
    #[error(
        "migration {number} is {phase}: router {router} has left {from} and runs on {to}; migrate it back once this is done"
    )]
    Left {
        /// Which.
        number: u64,
        /// Whose.
        router: Name,
        /// From where.
        from: Name,
        /// To where.
        to: Name,
        /// How far.
        phase: Phase,
    },
    /// It is.
    #[error("migration {number} of router {router} is aborting already")]
    Aborting {
        /// Which.
        number: u64,
        /// Whose.
        router: Name,
    },
    /// It has ended.
    #[error("migration {number} of router {router} is {phase}: there is nothing to abort")]
    Over {
        /// Which.
        number: u64,
        /// Whose.
        router: Name,
        /// How.
        phase: Phase,
    },
}

fn text<S: Serializer>(name: &Name, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn word<T: Copy>(all: &[(T, &str)], text: &str, what: &'static str) -> Result<T, RowError> {
    let found = all.iter().find(|(_, word)| *word == text).map(|(value, _)| *value);
    found.ok_or_else(|| RowError::Word { what, value: text.chars().take(40).collect() })
}
