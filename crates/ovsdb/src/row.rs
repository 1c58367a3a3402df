//! A row, and typed access to its columns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::value::{Atom, Datum, Uuid, ValueError};

/// Why a column cannot be read as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// The row was selected or monitored without this column.
    #[error("the row has no column '{column}'")]
    Missing {
        /// Name of the column.
        column: String,
    },
    /// Another type than asked for.
    #[error("column '{column}' holds {found}, not {expected}")]
    Type {
        /// Name of the column.
        column: String,
        /// What was asked for.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The column has a value that does not parse.
    #[error("column '{column}' is malformed")]
    Value {
        /// Name of the column.
        column: String,
        /// What is wrong with it.
        #[source]
        source: ValueError,
    },
}

/// Columns by name. Names are shared between the rows of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row(pub(crate) BTreeMap<Arc<str>, Datum>);

macro_rules! readers {
    ($($what:literal, $variant:ident, $ty:ty, $one:ident, $opt:ident, $set:ident, $conv:expr;)*) => {$(
        #[doc = concat!("The column's one ", $what, ".")]
        pub fn $one<'a>(&'a self, column: &str) -> Result<$ty, ColumnError> {
            self.$opt(column)?.ok_or_else(|| self.mismatch(column, $what))
        }

        #[doc = concat!("The column's ", $what, ", or `None` if it is an empty set.")]
        pub fn $opt<'a>(&'a self, column: &str) -> Result<Option<$ty>, ColumnError> {
            match self.at_most_one(column, $what)? {
                None => Ok(None),
                Some(Atom::$variant(v)) => Ok(Some($conv(v))),
                Some(_) => Err(self.mismatch(column, $what)),
            }
        }

        #[doc = concat!("Every ", $what, " of the column, in ascending order.")]
        pub fn $set<'a>(&'a self, column: &str) -> Result<BTreeSet<$ty>, ColumnError> {
            let read = |atom: &'a Atom| match atom {
                Atom::$variant(v) => Ok($conv(v)),
                _ => Err(self.mismatch(column, concat!("set of ", $what))),
            };
            match self.datum(column)? {
                Datum::Scalar(atom) => Ok(BTreeSet::from([read(atom)?])),
                Datum::Set(atoms) => atoms.iter().map(read).collect(),
                Datum::Map(_) => Err(self.mismatch(column, concat!("set of ", $what))),
            }
        }
    )*};
}

fn text(s: &str) -> &str {
    s
}

fn copy<T: Copy>(v: &T) -> T {
    *v
}

// The macro serves types with and without a lifetime.
#[allow(clippy::needless_lifetimes)]
impl Row {
    /// Reads a `<row>` (RFC 7047 section 5.1) without its schema, as `select` returns it.
    pub fn from_json(json: &Map<String, Value>) -> Result<Self, ColumnError> {
        let read = |(name, json): (&String, &Value)| match Datum::from_json(json) {
            Ok(datum) => Ok((Arc::from(name.as_str()), datum)),
            Err(source) => Err(ColumnError::Value { column: name.clone(), source }),
        };
        Ok(Self(json.iter().map(read).collect::<Result<_, _>>()?))
    }

    /// All columns, by name.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &Datum)> {
        self.0.iter().map(|(name, datum)| (&**name, datum))
    }

    /// The column as it is, if the row has it.
    pub fn get(&self, column: &str) -> Option<&Datum> {
        self.0.get(column)
    }

    /// The column as it is.
    pub fn datum(&self, column: &str) -> Result<&Datum, ColumnError> {
        self.get(column).ok_or_else(|| ColumnError::Missing { column: column.to_owned() })
    }

    readers! {
        "string", String, &'a str, str, opt_str, set_str, text;
        "integer", Integer, i64, int, opt_int, set_int, copy;
        "boolean", Boolean, bool, bool, opt_bool, set_bool, copy;
        "uuid", Uuid, Uuid, uuid, opt_uuid, set_uuid, copy;
    }

    /// The column's one real.
    pub fn real(&self, column: &str) -> Result<f64, ColumnError> {
        self.opt_real(column)?.ok_or_else(|| self.mismatch(column, "real"))
    }

    /// The column's real, or `None` if it is an empty set. A whole number read without schema counts.
    pub fn opt_real(&self, column: &str) -> Result<Option<f64>, ColumnError> {
        match self.at_most_one(column, "real")? {
            None => Ok(None),
            Some(Atom::Real(v)) => Ok(Some(*v)),
            Some(Atom::Integer(v)) => Ok(Some(*v as f64)),
            Some(_) => Err(self.mismatch(column, "real")),
        }
    }

    /// The column as a map of any atoms.
    pub fn map(&self, column: &str) -> Result<&BTreeMap<Atom, Atom>, ColumnError> {
        match self.datum(column)? {
            Datum::Map(pairs) => Ok(pairs),
            Datum::Scalar(_) | Datum::Set(_) => Err(self.mismatch(column, "map")),
        }
    }

    /// The column as a map of strings to strings.
    pub fn map_str_str<'a>(&'a self, column: &str) -> Result<BTreeMap<&'a str, &'a str>, ColumnError> {
        let pair = |pair: (&'a Atom, &'a Atom)| match pair {
            (Atom::String(k), Atom::String(v)) => Ok((k.as_str(), v.as_str())),
            _ => Err(self.mismatch(column, "map of string to string")),
        };
        self.map(column)?.iter().map(pair).collect()
    }

    /// The value of one key in a column that is a map of strings to strings.
    pub fn map_get(&self, column: &str, key: &str) -> Result<Option<&str>, ColumnError> {
        match self.map(column)?.get(&Atom::from(key)) {
            None => Ok(None),
            Some(Atom::String(v)) => Ok(Some(v)),
            Some(_) => Err(self.mismatch(column, "map of string to string")),
        }
    }

    /// The column as a map of strings to integers.
    pub fn map_str_int<'a>(&'a self, column: &str) -> Result<BTreeMap<&'a str, i64>, ColumnError> {
        let pair = |pair: (&'a Atom, &'a Atom)| match pair {
            (Atom::String(k), Atom::Integer(v)) => Ok((k.as_str(), *v)),
            _ => Err(self.mismatch(column, "map of string to integer")),
        };
        self.map(column)?.iter().map(pair).collect()
    }

    /// The column as a map of integers to row references.
    pub fn map_int_uuid<'a>(&'a self, column: &str) -> Result<BTreeMap<i64, Uuid>, ColumnError> {
        let pair = |pair: (&'a Atom, &'a Atom)| match pair {
            (Atom::Integer(k), Atom::Uuid(v)) => Ok((*k, *v)),
            _ => Err(self.mismatch(column, "map of integer to uuid")),
        };
        self.map(column)?.iter().map(pair).collect()
    }

    fn at_most_one(&self, column: &str, expected: &'static str) -> Result<Option<&Atom>, ColumnError> {
        match self.datum(column)? {
            Datum::Scalar(atom) => Ok(Some(atom)),
            Datum::Set(atoms) if atoms.len() <= 1 => Ok(atoms.first()),
            Datum::Set(_) | Datum::Map(_) => Err(self.mismatch(column, expected)),
        }
    }

    fn mismatch(&self, column: &str, expected: &'static str) -> ColumnError {
        let found = match self.get(column) {
            None => "nothing".to_owned(),
            Some(Datum::Scalar(atom)) => format!("one {}", atom.type_name()),
            Some(Datum::Set(atoms)) => match atoms.first() {
                Some(atom) => format!("a set of {} {}", atoms.len(), atom.type_name()),
                None => "an empty set".to_owned(),
            },
            Some(Datum::Map(pairs)) => format!("a map of {}", pairs.len()),
        };
        ColumnError::Type { column: column.to_owned(), expected, found }
    }
}

impl<N: Into<Arc<str>>, D: Into<Datum>> FromIterator<(N, D)> for Row {
    fn from_iter<I: IntoIterator<Item = (N, D)>>(columns: I) -> Self {
        Self(columns.into_iter().map(|(name, datum)| (name.into(), datum.into())).collect())
    }
}
