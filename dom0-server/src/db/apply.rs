//! Applying a description: what differs between it and the database, and the one transaction that makes it so.
//!
//! A row belongs to the description that its `external_ids:owner` names. Only such rows are changed or removed; one of
//! the same name that belongs to nobody, or to another description, is refused unless it is to be taken over. What would
//! come out is put together before anything is written, by the rules that daemons keep ([`Desired::assemble`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use ovsdb::{Atom, Condition, Datum, Operation, Row, Until, Uuid};
use xenflow_proto::Name;

use super::admission::{self, AdmissionError, Ledger};
use super::description::{Column, Description, ORDER, Wanted};
use super::edit::{EditError, Snapshot, lowest_free};
use super::row::{Kind, RouterId, RowError, VifNumber};
use super::words::{same, words};
use super::{Desired, InvalidRow, Rows, columns_of, table};

/// The key in `external_ids`.
const OWNER: &str = "owner";

/// Why a description is not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A row of that name is somebody else's.
    #[error("{kind} {name} is there already and belongs to {owner}: say --adopt to take it over")]
    Foreign {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: Name,
        /// Whose it is.
        owner: String,
    },
    /// It refers to something that neither it nor the database has.
    #[error("{kind} {name} refers to {to} {target}, which neither the description nor the database has")]
    Unknown {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: Name,
        /// Of which kind that is.
        to: Kind,
        /// Its name.
        target: Name,
    },
    /// What would come out breaks a rule.
    #[error("{kind} {name}: {reason}")]
    Invalid {
        /// Of which kind the row is that would be left out.
        kind: Kind,
        /// Its name.
        name: String,
        /// The value and the rule.
        reason: RowError,
    },
    /// More would be promised than there is.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// No number is free.
    #[error(transparent)]
    Edit(#[from] EditError),
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// It is new.
    Add,
    /// Columns of it change.
    Set,
    /// What cannot be changed differs: it goes, and another comes.
    Replace,
    /// It goes.
    Remove,
}

impl Verb {
    /// One character, as of a diff.
    #[must_use]
    pub const fn sign(self) -> char {
        match self {
            Self::Add => '+',
            Self::Set => '~',
            Self::Replace => '!',
            Self::Remove => '-',
        }
    }

    /// A word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Set => "set",
            Self::Replace => "replace",
            Self::Remove => "remove",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What becomes of it.
    pub verb: Verb,
    /// Its kind.
    pub kind: Kind,
    /// Its name; of a class `NETWORK/NAME`.
    pub name: String,
    /// What changes: column, before, after, in words.
    pub columns: Vec<(&'static str, String, String)>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.verb.sign(), self.kind, self.name)?;
        for (column, before, after) in &self.columns {
            match self.verb {
                Verb::Add | Verb::Remove => write!(f, " {column}={after}")?,
                Verb::Set | Verb::Replace => write!(f, " {column}={before} -> {after}")?,
            }
        }
        Ok(())
    }
}

/// What is to be done.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The differences; none: nothing is to be done.
    pub differences: Vec<Difference>,
    /// The transaction that makes them; none if there are no differences.
    pub operations: Vec<Operation>,
}

/// Compares a description with the database.
///
/// # Errors
/// [`ApplyError`] names the row and the rule; nothing is to be written then.
pub fn plan(now: &Snapshot, description: &Description, adopt: bool) -> Result<Plan, ApplyError> {
    let mut work = Work::new(now, description);
    for wanted in &description.wanted {
        work.want(wanted, adopt)?;
    }
    work.remove_others();
    work.check()?;
    Ok(work.finish())
}

/// A name's place: classes are named within their networks.
type Key<'a> = (Kind, Option<&'a str>, &'a str);

struct Work<'a> {
    now: &'a Snapshot,
    owner: &'a Name,
    /// Rows as they are, by name.
    known: BTreeMap<Key<'a>, (Uuid, &'a Row)>,
    /// UUIDs of what the description wants and is there or is to come, by kind and name.
    places: BTreeMap<(Kind, Name), Uuid>,
    /// Rows to come have a made-up UUID until the server gives them one.
    made_up: BTreeMap<Uuid, String>,
    kept: BTreeSet<Uuid>,
    /// What will be there.
    after: Rows,
    numbers: Numbers,
    deletes: Vec<Operation>,
    inserts: Vec<Operation>,
    updates: Vec<Operation>,
    differences: Vec<Difference>,
}

/// Numbers that are not taken.
#[derive(Default)]
struct Numbers {
    routers: BTreeSet<i64>,
    vifs: BTreeMap<Uuid, BTreeSet<i64>>,
}

impl Numbers {
    fn of(rows: &Rows) -> Self {
        let mut numbers = Self::default();
        numbers.routers.extend(rows.of(table::ROUTER).filter_map(|(_, row)| row.int("id").ok()));
        for (_, row) in rows.of(table::VIF) {
            if let (Ok(router), Ok(number)) = (row.uuid("router"), row.int("number")) {
                numbers.vifs.entry(router).or_default().insert(number);
            }
        }
        numbers
    }

    /// The lowest that is free, from now on taken.
    fn take(used: &mut BTreeSet<i64>) -> i64 {
        let number = lowest_free(used);
        used.insert(number);
        number
    }
}

impl<'a> Work<'a> {
    fn new(now: &'a Snapshot, description: &'a Description) -> Self {
        let mut known = BTreeMap::new();
        for kind in ORDER {
            for (uuid, row) in now.rows.of(kind.table()) {
                let network =
                    || row.uuid("network").ok().and_then(|uuid| now.rows.name_of(table::NETWORK, uuid));
                let scope = if kind == Kind::Class { network() } else { None };
                known.insert((kind, scope, row.str("name").unwrap_or_default()), (uuid, row));
            }
        }
        Self {
            now,
            owner: &description.owner,
            known,
            places: BTreeMap::new(),
            made_up: BTreeMap::new(),
            kept: BTreeSet::new(),
            after: now.rows.clone(),
            numbers: Numbers::of(&now.rows),
            deletes: Vec::new(),
            inserts: Vec::new(),
            updates: Vec::new(),
            differences: Vec::new(),
        }
    }

    fn owns(&self, row: &Row) -> bool {
        row.map_get("external_ids", OWNER) == Ok(Some(self.owner.as_str()))
    }

    /// The columns with what they refer to.
    fn resolve(
        &self,
        wanted: &Wanted,
        columns: &[(&'static str, Column)],
    ) -> Result<Vec<(&'static str, Datum)>, ApplyError> {
        let resolve = |(name, column): &(&'static str, Column)| match column {
            Column::Is(datum) => Ok((*name, datum.clone())),
            Column::To(to, target) => {
                let planned = self.places.get(&(*to, target.clone())).copied();
                let known = || self.known.get(&(*to, None, target.as_str())).map(|(uuid, _)| *uuid);
                let (kind, by, to, target) = (wanted.kind, wanted.name.clone(), *to, target.clone());
                let uuid = planned.or_else(known);
                let uuid = uuid.ok_or(ApplyError::Unknown { kind, name: by, to, target })?;
                Ok((*name, Datum::from(uuid)))
            }
        };
        columns.iter().map(resolve).collect()
    }

    fn want(&mut self, wanted: &Wanted, adopt: bool) -> Result<(), ApplyError> {
        let fixed = self.resolve(wanted, &wanted.fixed)?;
        let open = self.resolve(wanted, &wanted.open)?;
        let key = (wanted.kind, wanted.scope.as_ref().map(Name::as_str), wanted.name.as_str());
        let Some(&(uuid, row)) = self.known.get(&key) else {
            self.add(wanted, &fixed, &open, None)?;
            let columns = [fixed, open].concat();
            let is_said = |datum: &Datum| ![Datum::empty(), Datum::map::<&str, &str>([])].contains(datum);
            let columns = columns.iter().filter(|(_, datum)| is_said(datum));
            let columns = columns.map(|(name, datum)| (*name, String::new(), self.words(datum))).collect();
            self.differ(Verb::Add, wanted, columns);
            return Ok(());
        };
        let is_own = self.owns(row);
        if !is_own && !adopt {
            let owner = row.map_get("external_ids", OWNER).ok().flatten();
            let owner = owner.map_or("nobody".to_owned(), |owner| format!("\"{}\"", owner.escape_debug()));
            return Err(ApplyError::Foreign { kind: wanted.kind, name: wanted.name.clone(), owner });
        }
        self.kept.insert(uuid);
        let other = |columns: &[(&'static str, Datum)]| {
            let other = columns.iter().filter(|(name, datum)| !same(row.get(name), datum));
            other.cloned().collect::<Vec<_>>()
        };
        let (must, may) = (other(&fixed), other(&open));
        let words = |work: &Self, columns: &[(&'static str, Datum)]| {
            let before = |name| row.get(name).map_or(String::new(), |datum| work.words(datum));
            columns.iter().map(|(name, after)| (*name, before(name), work.words(after))).collect()
        };
        if !must.is_empty() {
            self.delete(wanted.kind, uuid);
            let columns = words(self, &[must, may].concat());
            self.add(wanted, &fixed, &open, Some(row))?;
            self.differ(Verb::Replace, wanted, columns);
            return Ok(());
        }
        self.places.insert((wanted.kind, wanted.name.clone()), uuid);
        if may.is_empty() && is_own {
            return Ok(());
        }
        let mut columns: Vec<_> = words(self, &may);
        let mut after: BTreeMap<String, Datum> =
            row.columns().map(|(name, datum)| (name.to_owned(), datum.clone())).collect();
        let mut update = Operation::update(wanted.kind.table()).filter(Condition::uuid(uuid));
        let mut changes = may;
        if !is_own {
            let mut ids = row.map_str_str("external_ids").unwrap_or_default();
            columns.push((
                "owner",
                ids.get(OWNER).copied().unwrap_or("nobody").to_owned(),
                self.owner.to_string(),
            ));
            ids.insert(OWNER, self.owner.as_str());
            changes.push(("external_ids", Datum::map(ids)));
        }
        for (name, datum) in changes {
            after.insert(name.to_owned(), datum.clone());
            update = update.set(name, self.named(datum));
        }
        self.after.insert(wanted.kind.table(), uuid, after.into_iter().collect());
        self.updates.push(update);
        self.differ(Verb::Set, wanted, columns);
        Ok(())
    }

    /// A new row, with the number of the one in whose place it comes.
    fn add(
        &mut self,
        wanted: &Wanted,
        fixed: &[(&'static str, Datum)],
        open: &[(&'static str, Datum)],
        before: Option<&Row>,
    ) -> Result<(), ApplyError> {
        let made_up = Uuid(u128::MAX - self.made_up.len() as u128);
        let label = format!("row_{}", self.made_up.len());
        let mut row: Vec<(&'static str, Datum)> = vec![("name", wanted.name.as_str().into())];
        row.extend(fixed.iter().chain(open).cloned());
        row.push(("external_ids", Datum::map([(OWNER, self.owner.as_str())])));
        let kept = |column| before.and_then(|row| row.int(column).ok());
        if wanted.kind == Kind::Router {
            let id = kept("id").unwrap_or_else(|| Numbers::take(&mut self.numbers.routers));
            RouterId::try_from(id).map_err(|_| EditError::Full { what: "router id", max: RouterId::MAX })?;
            row.push(("id", id.into()));
        }
        if wanted.kind == Kind::Vif {
            // Of a router that stays or not: the numbers of the old one are not those of the new one.
            let router = fixed.iter().find(|(name, _)| *name == "router").map(|(_, datum)| datum);
            // Without a router it breaks a rule, which is found when all is put together.
            if let Some(Datum::Scalar(Atom::Uuid(router))) = router {
                let number = Numbers::take(self.numbers.vifs.entry(*router).or_default());
                VifNumber::try_from(number)
                    .map_err(|_| EditError::Full { what: "vif number", max: VifNumber::MAX })?;
                row.push(("number", number.into()));
            }
        }
        let insert = Operation::insert(wanted.kind.table()).uuid_name(label.clone());
        let insert =
            row.iter().fold(insert, |insert, (name, datum)| insert.set(*name, self.named(datum.clone())));
        self.inserts.push(insert);
        self.made_up.insert(made_up, label);
        self.places.insert((wanted.kind, wanted.name.clone()), made_up);
        self.after.insert(wanted.kind.table(), made_up, row.into_iter().collect());
        Ok(())
    }

    fn delete(&mut self, kind: Kind, uuid: Uuid) {
        self.deletes.push(Operation::delete(kind.table()).filter(Condition::uuid(uuid)));
        self.after.remove(kind.table(), uuid);
    }

    /// What belongs to the description and is not in it any more; users first, as people would.
    fn remove_others(&mut self) {
        for kind in ORDER.into_iter().rev() {
            let of_kind = self.known.iter().filter(|((of, ..), _)| *of == kind);
            let gone: Vec<_> = of_kind
                .filter(|(_, (uuid, row))| self.owns(row) && !self.kept.contains(uuid))
                .map(|((_, scope, name), (uuid, _))| (scope.map(str::to_owned), (*name).to_owned(), *uuid))
                .collect();
            for (scope, name, uuid) in gone {
                self.delete(kind, uuid);
                if kind == Kind::Router {
                    let reports = Operation::delete(table::STATUS);
                    self.deletes.push(reports.filter(Condition::eq("router", name.as_str())));
                }
                let name = scope.map_or(name.clone(), |scope| format!("{scope}/{name}"));
                self.differences.push(Difference { verb: Verb::Remove, kind, name, columns: Vec::new() });
            }
        }
    }

    /// Nothing that will be there may break a rule that is not broken now.
    fn check(&self) -> Result<(), ApplyError> {
        let broken: BTreeSet<Uuid> = self.now.invalid.iter().map(|row| row.uuid).collect();
        let (desired, invalid) = Desired::assemble(&self.after);
        if let Some(row) = invalid.into_iter().find(|row| !broken.contains(&row.uuid)) {
            let InvalidRow { kind, name, reason, .. } = row;
            return Err(ApplyError::Invalid { kind, name, reason });
        }
        let nodes = self.now.nodes();
        Ok(Ledger::of(&self.now.desired, &nodes).admits(&Ledger::of(&desired, &nodes))?)
    }

    fn finish(self) -> Plan {
        let Self { now, deletes, inserts, updates, differences, .. } = self;
        let mut operations = Vec::new();
        if !differences.is_empty() {
            operations.extend(ORDER.into_iter().map(|kind| unchanged(&now.rows, kind)));
            operations.push(admission::reports_unchanged(&now.rows));
            operations.extend(deletes.into_iter().chain(inserts).chain(updates));
        }
        Plan { differences, operations }
    }

    /// With the names of rows to come in the place of their made-up UUIDs.
    fn named(&self, datum: Datum) -> Datum {
        let label = match &datum {
            Datum::Scalar(Atom::Uuid(uuid)) => self.made_up.get(uuid),
            Datum::Scalar(_) | Datum::Set(_) | Datum::Map(_) => None,
        };
        label.map_or_else(|| datum.clone(), |label| Datum::named_uuid(label.clone()))
    }

    fn differ(&mut self, verb: Verb, wanted: &Wanted, columns: Vec<(&'static str, String, String)>) {
        let name = match &wanted.scope {
            Some(scope) => format!("{scope}/{}", wanted.name),
            None => wanted.name.to_string(),
        };
        self.differences.push(Difference { verb, kind: wanted.kind, name, columns });
    }

    /// A value as people write it: references by name.
    fn words(&self, datum: &Datum) -> String {
        let name_of = |uuid: Uuid| {
            let known = ORDER.iter().find_map(|kind| self.after.name_of(kind.table(), uuid));
            let gone = || ORDER.iter().find_map(|kind| self.now.rows.name_of(kind.table(), uuid));
            known.or_else(gone).unwrap_or("?").to_owned()
        };
        words(datum, name_of)
    }
}

/// Fails the transaction if somebody else was faster.
fn unchanged(rows: &Rows, kind: Kind) -> Operation {
    let columns: Vec<&str> = columns_of(kind.table()).iter().copied().chain(["external_ids"]).collect();
    let as_is = rows.of(kind.table()).map(|(_, row)| {
        let columns = columns.iter().filter_map(|name| Some((*name, row.get(name)?.clone())));
        columns.collect::<Row>()
    });
    Operation::wait(kind.table(), &columns, Until::Equal, as_is, Duration::ZERO)
}
