//! Edits of the desired state, as transactions for the command line.
//!
//! Each function checks a [`Snapshot`] and returns the operations of one transaction. Whether a row may be so is asked of
//! the rules that daemons keep: the state is assembled as it would be ([`Desired::assemble`]). What the snapshot cannot
//! promise (somebody else edits too) the transaction guards itself: by the schema's indexes and references, and by `wait`
//! operations. A transaction that fails so ([`is_lost_race`]) is built again on a new snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ovsdb::{Atom, Condition, Datum, OpResult, Operation, Row, TransactError, Until, Uuid};
use xenflow_proto::Name;

use super::admission::{self, AdmissionError, Ledger};
use super::capacity;
use super::description::Column;
use super::row::{Kind, RouterId, RowError, VifNumber};
use super::words::{same, words};
use super::{Desired, InvalidRow, NodeStatus, Rows, Status, columns_of, table};

/// Why an edit is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The name is taken.
    #[error("{kind} {name} exists already: choose another name, or say --may-exist")]
    Exists {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: Name,
    },
    /// No such thing.
    #[error("there is no {kind} {name}: 'xenflow {} list' shows all", .kind.noun())]
    Unknown {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// It is there, but not as it may be.
    #[error("{kind} {name} exists already with {column} {is}, not {asked}: {todo}")]
    Differs {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: String,
        /// What differs.
        column: &'static str,
        /// What stands there.
        is: String,
        /// What was asked for.
        asked: String,
        /// What to do.
        todo: String,
    },
    /// A change that changes nothing.
    #[error("nothing to set of {kind} {name}")]
    Nothing {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// There is such a row, but it breaks a rule.
    #[error("{0}")]
    Invalid(Box<InvalidRow>),
    /// The new row would break a rule.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Something else refers to it.
    #[error("{kind} {name} is in use by {users}: remove those first")]
    InUse {
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: String,
        /// By what: kinds and names.
        users: String,
    },
    /// The node's daemon may be at work.
    #[error(
        "node {node} was seen {seconds} s ago: end its daemon and wait until it has been silent for {} s, or say --force",
        super::retire::SILENT_MS / 1000
    )]
    Alive {
        /// The node.
        node: String,
        /// How long ago, in seconds.
        seconds: u64,
    },
    /// The port is an uplink of the node already.
    #[error("port {port} is an uplink of node {node} already: say --may-exist if it may be")]
    UplinkExists {
        /// The node.
        node: Name,
        /// The port.
        port: String,
    },
    /// The port is no uplink of the node.
    #[error("port {port} is no uplink of node {node}: 'xenflow uplink show {node}' has all")]
    NoUplink {
        /// The node.
        node: String,
        /// The port.
        port: String,
    },
    /// More would be promised than there is.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// No number is free.
    #[error("every {what} from 1 to {max} is taken: remove one first")]
    Full {
        /// `router id` or `vif number`.
        what: &'static str,
        /// The greatest.
        max: u16,
    },
}

/// True if the transaction failed on what somebody else did at the same time: read again and try again.
#[must_use]
pub fn is_lost_race(error: &TransactError) -> bool {
    const GUARDS: [&str; 3] = ["constraint violation", "referential integrity violation", "timed out"];
    error.server_error().is_some_and(|error| GUARDS.contains(&error))
}

/// The database at one instant.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every row.
    pub rows: Rows,
    /// What they mean.
    pub desired: Desired,
    /// Rows that mean nothing.
    pub invalid: Vec<InvalidRow>,
}

impl From<Rows> for Snapshot {
    fn from(rows: Rows) -> Self {
        let (desired, invalid) = Desired::assemble(&rows);
        Self { rows, desired, invalid }
    }
}

/// No row of the table meets the condition, or the transaction fails.
pub(super) fn none(table: &str, conditions: impl IntoIterator<Item = Condition>) -> Operation {
    let wait = Operation::wait(table, &["_uuid"], Until::Equal, [], Duration::ZERO);
    conditions.into_iter().fold(wait, Operation::filter)
}

/// Fails the transaction unless these columns of the row are still so.
pub(super) fn unchanged(table: &str, uuid: Uuid, before: &Row, columns: &[&str]) -> Operation {
    let row: Row = columns.iter().filter_map(|name| Some((*name, before.get(name)?.clone()))).collect();
    Operation::wait(table, columns, Until::Equal, [row], Duration::ZERO).filter(Rows::is(uuid))
}

/// A row of which nothing is said.
fn blank(kind: Kind) -> Row {
    let empty = |name: &'static str| match name {
        "punt_rate" | capacity::COLUMN | "external_ids" => (name, Datum::map::<&str, &str>([])),
        _ => (name, Datum::empty()),
    };
    columns_of(kind.table()).iter().copied().chain(["external_ids"]).map(empty).collect()
}

/// One row, by its name as it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its table.
    pub kind: Kind,
    /// The network within which the name is unique: of a class.
    pub network: Option<String>,
    /// The name.
    pub name: String,
}

/// What columns are to hold.
pub type Columns = Vec<(&'static str, Column)>;

/// The lowest number from 1 that is not used.
pub(super) fn lowest_free(used: &BTreeSet<i64>) -> i64 {
    let used_to_there = (1..).zip(used.range(1..)).take_while(|(number, used)| number == *used).count();
    i64::try_from(used_to_there).unwrap_or(i64::MAX - 1) + 1
}

impl Snapshot {
    /// The results of [`super::select_all`].
    #[must_use]
    pub fn from_select(results: &[OpResult]) -> Self {
        Rows::from_select(results).into()
    }

    /// What daemons report, by node and router. Rows that do not parse are left out.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let mut all: Vec<_> =
            self.rows.of(table::STATUS).filter_map(|(_, row)| Status::parse(row).ok()).collect();
        all.sort_by(|a, b| (&a.router, &a.node).cmp(&(&b.router, &b.node)));
        all
    }

    /// What daemons report of their nodes. Rows that do not parse are left out.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.rows.of(table::NODE_STATUS).filter_map(|(_, row)| NodeStatus::parse(row).ok()).collect()
    }

    fn unknown(key: &Key) -> EditError {
        EditError::Unknown { kind: key.kind, name: key.name.clone() }
    }

    /// The row of that name that means something.
    fn reference(&self, kind: Kind, name: &str) -> Result<Uuid, EditError> {
        let found = self.rows.named(kind.table(), name);
        let (uuid, _) = found.ok_or_else(|| EditError::Unknown { kind, name: name.to_owned() })?;
        self.means_something(uuid)?;
        Ok(uuid)
    }

    fn means_something(&self, uuid: Uuid) -> Result<(), EditError> {
        let invalid = self.invalid.iter().find(|row| row.uuid == uuid);
        invalid.map_or(Ok(()), |row| Err(EditError::Invalid(Box::new(row.clone()))))
    }

    /// A row, valid or not.
    fn find(&self, key: &Key) -> Result<Option<(Uuid, &Row)>, EditError> {
        let network = key.network.as_ref().map(|name| self.reference(Kind::Network, name)).transpose()?;
        let is_it = |row: &Row| {
            row.str("name") == Ok(&key.name) && network.is_none_or(|uuid| row.uuid("network") == Ok(uuid))
        };
        Ok(self.rows.of(key.kind.table()).find(|(_, row)| is_it(row)))
    }

    /// A row that is there and means something.
    ///
    /// # Errors
    /// [`EditError::Unknown`], or [`EditError::Invalid`] with the rule that the row breaks.
    pub fn row(&self, key: &Key) -> Result<&Row, EditError> {
        let (uuid, row) = self.find(key)?.ok_or_else(|| Self::unknown(key))?;
        self.means_something(uuid)?;
        Ok(row)
    }

    fn resolve(&self, columns: &Columns) -> Result<Vec<(&'static str, Datum)>, EditError> {
        let resolve = |(name, column): &(&'static str, Column)| match column {
            Column::Is(datum) => Ok((*name, datum.clone())),
            Column::To(kind, target) => Ok((*name, self.reference(*kind, target.as_str())?.into())),
        };
        columns.iter().map(resolve).collect()
    }

    /// The row is to be so: refused if it would mean nothing then, or another one that means something now, or more would
    /// be promised than there is. What comes back fails the transaction if that has changed meanwhile.
    fn check(
        &self,
        kind: Kind,
        uuid: Uuid,
        row: BTreeMap<String, Datum>,
    ) -> Result<Vec<Operation>, EditError> {
        let mut after = self.rows.clone();
        after.insert(kind.table(), uuid, row.into_iter().collect());
        let broken: BTreeSet<Uuid> = self.invalid.iter().map(|row| row.uuid).collect();
        let (desired, invalid) = Desired::assemble(&after);
        if let Some(own) = invalid.iter().find(|row| row.uuid == uuid) {
            return Err(own.reason.clone().into());
        }
        let Some(other) = invalid.into_iter().find(|row| !broken.contains(&row.uuid)) else {
            return Ok(self.admit(&desired)?);
        };
        // Of two that exclude each other the later one by name is left out, but it was there first.
        match (other.reason.clone(), other.name.parse()) {
            (RowError::Taken { what, value, .. }, Ok(by)) => {
                Err(RowError::Taken { what, value, kind: other.kind, by }.into())
            }
            _ => Err(EditError::Invalid(Box::new(other))),
        }
    }

    /// Refuses a state in which more is promised than there is. What comes back guards the figures that it was judged by.
    pub(super) fn admit(&self, after: &Desired) -> Result<Vec<Operation>, AdmissionError> {
        let nodes = self.nodes();
        let (before, after) = (Ledger::of(&self.desired, &nodes), Ledger::of(after, &nodes));
        if before == after {
            return Ok(Vec::new());
        }
        before.admits(&after)?;
        Ok(admission::unchanged(&self.rows))
    }

    /// A new row. `change` says what of a row is to be how, given what is there: first nothing. With `may_exist` one that
    /// is there already is left alone, if `change` changes nothing of it.
    ///
    /// # Errors
    /// [`EditError`] names the value and the rule.
    pub fn add(
        &self,
        key: &Key,
        may_exist: bool,
        change: impl Fn(&Row) -> Result<Columns, RowError>,
    ) -> Result<Vec<Operation>, EditError> {
        let name: Name = key.name.parse().map_err(RowError::from)?;
        let kind = key.kind;
        if let Some((_, row)) = self.find(key)? {
            return match may_exist {
                true => self.is_so(key, row, &self.resolve(&change(row)?)?).map(|()| Vec::new()),
                false => Err(EditError::Exists { kind, name }),
            };
        }
        let blank = blank(kind);
        let mut columns = vec![("name", Datum::from(name.as_str()))];
        if let Some(network) = &key.network {
            columns.push(("network", self.reference(Kind::Network, network)?.into()));
        }
        columns.extend(self.resolve(&change(&blank)?)?);
        columns.extend(self.number(kind, &columns)?);
        let mut row: BTreeMap<String, Datum> =
            blank.columns().map(|(name, datum)| (name.to_owned(), datum.clone())).collect();
        row.extend(columns.iter().map(|(name, datum)| ((*name).to_owned(), datum.clone())));
        let mut operations = self.check(kind, Uuid(u128::MAX), row)?;
        operations.extend(guards(kind, &columns));
        let insert = Operation::insert(kind.table());
        operations.push(columns.into_iter().fold(insert, |row, (name, datum)| row.set(name, datum)));
        Ok(operations)
    }

    /// The lowest free number, where there is one.
    fn number(
        &self,
        kind: Kind,
        columns: &[(&'static str, Datum)],
    ) -> Result<Option<(&'static str, Datum)>, EditError> {
        match kind {
            Kind::Router => {
                let used = self.rows.of(table::ROUTER).filter_map(|(_, row)| row.int("id").ok()).collect();
                let id = RouterId::try_from(lowest_free(&used))
                    .map_err(|_| EditError::Full { what: "router id", max: RouterId::MAX })?;
                Ok(Some(("id", i64::from(id.get()).into())))
            }
            Kind::Vif => {
                let router = columns.iter().find(|(name, _)| *name == "router").map(|(_, datum)| datum);
                let used = self.rows.of(table::VIF).filter(|(_, row)| row.get("router") == router);
                let used = used.filter_map(|(_, row)| row.int("number").ok()).collect();
                let number = VifNumber::try_from(lowest_free(&used))
                    .map_err(|_| EditError::Full { what: "vif number", max: VifNumber::MAX })?;
                Ok(Some(("number", i64::from(number.get()).into())))
            }
            Kind::Node | Kind::Network | Kind::Segment | Kind::Access | Kind::Class => Ok(None),
        }
    }

    /// Refuses what is there, but not as asked.
    fn is_so(&self, key: &Key, row: &Row, asked: &[(&'static str, Datum)]) -> Result<(), EditError> {
        let Some((column, asked)) = asked.iter().find(|(name, datum)| !same(row.get(name), datum)) else {
            return Ok(());
        };
        let words = |datum| words(datum, |uuid| self.name_of(uuid));
        let (kind, noun) = (key.kind, key.kind.noun());
        let todo = match FIXED.contains(&(kind, column)) {
            true => format!("that cannot be changed, remove it first ('xenflow {noun} remove')"),
            false => format!("'xenflow {noun} set' changes it"),
        };
        let (name, is) = (key.name.clone(), row.get(column).map_or_else(String::new, words));
        Err(EditError::Differs { kind, name, column, is, asked: words(asked), todo })
    }

    /// The name of what a row refers to.
    fn name_of(&self, uuid: Uuid) -> String {
        let kinds = [Kind::Network, Kind::Segment, Kind::Router];
        let name = kinds.iter().find_map(|kind| self.rows.name_of(kind.table(), uuid));
        name.map_or_else(|| uuid.to_string(), str::to_owned)
    }

    /// Changes a row; nothing, if it is so already. An invalid one too, if it is valid then.
    ///
    /// # Errors
    /// [`EditError`] names the value and the rule.
    pub fn set(
        &self,
        key: &Key,
        change: impl Fn(&Row) -> Result<Columns, RowError>,
    ) -> Result<Vec<Operation>, EditError> {
        let (uuid, row) = self.find(key)?.ok_or_else(|| Self::unknown(key))?;
        let columns = self.resolve(&change(row)?)?;
        if columns.is_empty() {
            return Err(EditError::Nothing { kind: key.kind, name: key.name.clone() });
        }
        if columns.iter().all(|(name, datum)| same(row.get(name), datum)) {
            return Ok(Vec::new());
        }
        let mut after: BTreeMap<String, Datum> =
            row.columns().map(|(name, datum)| (name.to_owned(), datum.clone())).collect();
        after.extend(columns.iter().map(|(name, datum)| ((*name).to_owned(), datum.clone())));
        let mut operations = self.check(key.kind, uuid, after)?;
        // What the change leaves out must still be what it was.
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        operations.push(unchanged(key.kind.table(), uuid, row, &names));
        operations.extend(guards(key.kind, &columns));
        let update = Operation::update(key.kind.table()).filter(Rows::is(uuid));
        operations.push(columns.into_iter().fold(update, |row, (name, datum)| row.set(name, datum)));
        Ok(operations)
    }

    /// Removes a thing that nothing refers to; an invalid row too, by the name that stands there. With `if_exists` one that
    /// is not there is as good.
    ///
    /// # Errors
    /// [`EditError::Unknown`] or [`EditError::InUse`].
    pub fn remove(&self, key: &Key, if_exists: bool) -> Result<Vec<Operation>, EditError> {
        let Some((uuid, _)) = self.find(key)? else {
            return if if_exists { Ok(Vec::new()) } else { Err(Self::unknown(key)) };
        };
        let Key { kind, name, .. } = key;
        let users = self.users(*kind, uuid);
        if !users.is_empty() {
            return Err(EditError::InUse { kind: *kind, name: name.clone(), users: users.join(", ") });
        }
        let mut operations = vec![Operation::delete(kind.table()).filter(Rows::is(uuid))];
        if *kind == Kind::Router {
            operations.push(Operation::delete(table::STATUS).filter(Condition::eq("router", name.as_str())));
        }
        Ok(operations)
    }

    /// Kinds and names of what refers to a row, in order.
    fn users(&self, kind: Kind, uuid: Uuid) -> Vec<String> {
        let columns: &[(Kind, &str)] = match kind {
            Kind::Network => {
                &[(Kind::Segment, "network"), (Kind::Router, "network"), (Kind::Class, "network")]
            }
            Kind::Segment => &[(Kind::Vif, "segment"), (Kind::Access, "segment")],
            Kind::Router => &[(Kind::Vif, "router")],
            Kind::Node | Kind::Vif | Kind::Access | Kind::Class => &[],
        };
        let mut users = Vec::new();
        for (user, column) in columns {
            let refers = |row: &ovsdb::Row| row.set_uuid(column).is_ok_and(|refs| refs.contains(&uuid));
            let rows = self.rows.of(user.table()).filter(|(_, row)| refers(row));
            let mut names: Vec<_> =
                rows.map(|(_, row)| format!("{user} {}", row.str("name").unwrap_or("?"))).collect();
            names.sort();
            users.append(&mut names);
        }
        users
    }
}

/// Columns that are as they were when the row came.
const FIXED: [(Kind, &str); 5] = [
    (Kind::Segment, "network"),
    (Kind::Router, "network"),
    (Kind::Vif, "router"),
    (Kind::Vif, "kind"),
    (Kind::Class, "network"),
];

/// Fails the transaction if somebody else breaks a rule between tables at the same time, which no index keeps.
fn guards(kind: Kind, columns: &[(&'static str, Datum)]) -> Vec<Operation> {
    let mut guards = Vec::new();
    let column = |name: &str| columns.iter().find(|(known, _)| *known == name).map(|(_, datum)| datum);
    match kind {
        Kind::Vif => {
            guards.extend(
                column("name").map(|name| none(table::ACCESS, [Condition::eq("name", name.clone())])),
            );
            let mac = column("mac");
            guards.extend(mac.map(|mac| none(table::ACCESS, [Condition::includes("macs", mac.clone())])));
            if let (Some(router), Some(kind)) = (column("router"), column("kind"))
                && *kind == Datum::from("control")
            {
                let same = [Condition::eq("router", router.clone()), Condition::eq("kind", kind.clone())];
                guards.push(none(table::VIF, same));
            }
        }
        Kind::Access => {
            guards.extend(column("name").map(|name| none(table::VIF, [Condition::eq("name", name.clone())])));
            if let Some(Datum::Set(macs)) = column("macs") {
                let of = |mac: &Atom| none(table::VIF, [Condition::eq("mac", mac.clone())]);
                guards.extend(macs.iter().map(of));
            }
        }
        Kind::Node | Kind::Network | Kind::Segment | Kind::Router | Kind::Class => {}
    }
    guards
}

/// The one row of settings, for a database that was just created.
#[must_use]
pub fn first_row() -> Vec<Operation> {
    vec![Operation::insert(table::XENFLOW).set("external_ids", Datum::map([("created-by", "xenflow")]))]
}
