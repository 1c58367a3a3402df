//! Values of RFC 7047 section 5.1: UUIDs, atoms, and the scalar, set or map that one column holds.
//!
//! Owns the JSON notation of values. Does not know columns or their types (`schema`) nor rows (`row`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::ser::{Serialize, SerializeTuple, Serializer};
use serde_json::Value;

/// A row's identity: 128 bits, written as 8-4-4-4-12 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub u128);

impl Uuid {
    /// The UUID of all zero bits: the default of a UUID column, and "no transaction" for monitors.
    pub const ZERO: Self = Self(0);
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            v >> 96,
            (v >> 80) & 0xffff,
            (v >> 64) & 0xffff,
            (v >> 48) & 0xffff,
            v & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::Uuid { text: shorten(text) };
        if text.len() != 36 {
            return Err(bad());
        }
        let mut value = 0u128;
        for (at, c) in text.chars().enumerate() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if c != '-' {
                    return Err(bad());
                }
            } else {
                value = value << 4 | u128::from(c.to_digit(16).ok_or_else(bad)?);
            }
        }
        Ok(Self(value))
    }
}

/// Why a JSON text is not a value of OVSDB.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not 8-4-4-4-12 hexadecimal digits.
    #[error("'{text}' is not a UUID (8-4-4-4-12 hexadecimal digits)")]
    Uuid {
        /// The text, shortened.
        text: String,
    },
    /// JSON that is no atom.
    #[error("{json} is not an atom (number, boolean, string, [\"uuid\", …] or [\"named-uuid\", …])")]
    Atom {
        /// The JSON, shortened.
        json: String,
    },
    /// An element of a map that is no pair.
    #[error("{json} is not a pair of a map's key and value")]
    Pair {
        /// The JSON, shortened.
        json: String,
    },
    /// An atom of another type than the column's.
    #[error("{json} is not of type {expected}")]
    Type {
        /// The JSON, shortened.
        json: String,
        /// The type that the column has.
        expected: &'static str,
    },
    /// More or fewer elements than the column may hold.
    #[error("{count} elements where the column takes one")]
    Count {
        /// Elements found.
        count: usize,
    },
}

pub(crate) fn shorten(text: &str) -> String {
    const LIMIT: usize = 80;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// One atomic value (RFC 7047 section 5.1, `<atom>`).
#[derive(Clone, Debug)]
pub enum Atom {
    /// 64-bit signed integer.
    Integer(i64),
    /// Finite floating-point number.
    Real(f64),
    /// True or false.
    Boolean(bool),
    /// Unicode text.
    String(String),
    /// A reference to a row.
    Uuid(Uuid),
    /// A reference to a row that an `insert` of the same transaction names.
    NamedUuid(String),
}

impl Atom {
    /// Reads the JSON notation without knowing the column's type: a number without fraction is an integer.
    pub fn from_json(json: &Value) -> Result<Self, ValueError> {
        let bad = || ValueError::Atom { json: shorten(&json.to_string()) };
        match json {
            Value::Bool(b) => Ok(Self::Boolean(*b)),
            Value::String(s) => Ok(Self::String(s.clone())),
            Value::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(i), _) => Ok(Self::Integer(i)),
                (None, Some(r)) if r.is_finite() => Ok(Self::real(r)),
                _ => Err(bad()),
            },
            Value::Array(items) => match items.as_slice() {
                [Value::String(kind), Value::String(text)] if kind == "uuid" => Ok(Self::Uuid(text.parse()?)),
                [Value::String(kind), Value::String(text)] if kind == "named-uuid" => {
                    Ok(Self::NamedUuid(text.clone()))
                }
                _ => Err(bad()),
            },
            Value::Null | Value::Object(_) => Err(bad()),
        }
    }

    /// A real with one zero: OVSDB does not tell -0 from 0.
    pub fn real(r: f64) -> Self {
        Self::Real(if r == 0.0 { 0.0 } else { r })
    }

    /// The name of the atom's type, as a schema writes it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Integer(_) => "integer",
            Self::Real(_) => "real",
            Self::Boolean(_) => "boolean",
            Self::String(_) => "string",
            Self::Uuid(_) => "uuid",
            Self::NamedUuid(_) => "named-uuid",
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Integer(_) => 0,
            Self::Real(_) => 1,
            Self::Boolean(_) => 2,
            Self::String(_) => 3,
            Self::Uuid(_) => 4,
            Self::NamedUuid(_) => 5,
        }
    }
}

impl Ord for Atom {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Real(a), Self::Real(b)) => a.total_cmp(b),
            (Self::Boolean(a), Self::Boolean(b)) => a.cmp(b),
            (Self::String(a), Self::String(b)) | (Self::NamedUuid(a), Self::NamedUuid(b)) => a.cmp(b),
            (Self::Uuid(a), Self::Uuid(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Atom {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Atom {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Atom {}

impl Serialize for Atom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Integer(i) => serializer.serialize_i64(*i),
            Self::Real(r) => serializer.serialize_f64(*r),
            Self::Boolean(b) => serializer.serialize_bool(*b),
            Self::String(s) => serializer.serialize_str(s),
            Self::Uuid(u) => tagged(serializer, "uuid", &u.to_string()),
            Self::NamedUuid(name) => tagged(serializer, "named-uuid", name),
        }
    }
}

fn tagged<S: Serializer, T: Serialize + ?Sized>(s: S, tag: &str, value: &T) -> Result<S::Ok, S::Error> {
    let mut pair = s.serialize_tuple(2)?;
    pair.serialize_element(tag)?;
    pair.serialize_element(value)?;
    pair.end()
}

/// What one column of one row holds (RFC 7047 section 5.1, `<value>`).
///
/// The notation writes a set of one element as the bare atom, so a `Datum` read without its column's type
/// is `Scalar` there; rows of a [`Replica`](crate::Replica) are read with the type and hold a `Set`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Datum {
    /// Exactly one atom.
    Scalar(Atom),
    /// Any number of distinct atoms; an optional column is a set of none or one.
    Set(BTreeSet<Atom>),
    /// Distinct keys with one value each.
    Map(BTreeMap<Atom, Atom>),
}

impl Datum {
    /// The empty set: clears an optional column.
    pub fn empty() -> Self {
        Self::Set(BTreeSet::new())
    }

    /// A set of atoms.
    pub fn set<A: Into<Atom>>(items: impl IntoIterator<Item = A>) -> Self {
        Self::Set(items.into_iter().map(Into::into).collect())
    }

    /// A map of atoms.
    pub fn map<K: Into<Atom>, V: Into<Atom>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::Map(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    /// A reference to the row that an insert of the same transaction names.
    pub fn named_uuid(name: impl Into<String>) -> Self {
        Self::Scalar(Atom::NamedUuid(name.into()))
    }

    /// Reads the JSON notation without knowing the column's type.
    pub fn from_json(json: &Value) -> Result<Self, ValueError> {
        if let Value::Array(items) = json
            && let [Value::String(kind), Value::Array(elements)] = items.as_slice()
        {
            if kind == "set" {
                return Ok(Self::Set(elements.iter().map(Atom::from_json).collect::<Result<_, _>>()?));
            }
            if kind == "map" {
                let pair = |json: &Value| match json.as_array().map(Vec::as_slice) {
                    Some([k, v]) => Ok((Atom::from_json(k)?, Atom::from_json(v)?)),
                    _ => Err(ValueError::Pair { json: shorten(&json.to_string()) }),
                };
                return Ok(Self::Map(elements.iter().map(pair).collect::<Result<_, _>>()?));
            }
        }
        Ok(Self::Scalar(Atom::from_json(json)?))
    }
}

impl Serialize for Datum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Scalar(atom) => atom.serialize(serializer),
            Self::Set(atoms) => tagged(serializer, "set", atoms),
            Self::Map(pairs) => tagged(serializer, "map", &pairs.iter().collect::<Vec<_>>()),
        }
    }
}

impl From<i64> for Atom {
    fn from(v: i64) -> Self {
        Self::Integer(v)
    }
}
impl From<f64> for Atom {
    fn from(v: f64) -> Self {
        Self::real(v)
    }
}
impl From<bool> for Atom {
    fn from(v: bool) -> Self {
        Self::Boolean(v)
    }
}
impl From<&str> for Atom {
    fn from(v: &str) -> Self {
        Self::String(v.to_owned())
    }
}
impl From<String> for Atom {
    fn from(v: String) -> Self {
        Self::String(v)
    }
}
impl From<&String> for Atom {
    fn from(v: &String) -> Self {
        Self::String(v.clone())
    }
}
impl From<Uuid> for Atom {
    fn from(v: Uuid) -> Self {
        Self::Uuid(v)
    }
}
impl<T: Into<Atom>> From<T> for Datum {
    fn from(v: T) -> Self {
        Self::Scalar(v.into())
    }
}
impl<T: Into<Atom>> From<Option<T>> for Datum {
    fn from(v: Option<T>) -> Self {
        v.map_or_else(Self::empty, |v| Self::Scalar(v.into()))
    }
}
impl From<BTreeMap<String, String>> for Datum {
    fn from(v: BTreeMap<String, String>) -> Self {
        Self::map(v)
    }
}
impl From<&BTreeMap<String, String>> for Datum {
    fn from(v: &BTreeMap<String, String>) -> Self {
        Self::map(v)
    }
}
