//! The part of a database schema (RFC 7047 section 3.2) that a client needs: tables, columns and their types.
//!
//! Owns reading values by type, defaults, and the difference notation of `update2` (ovsdb-server(7)), which
//! all depend on the column's type. Constraints on values are the server's business.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::value::{Atom, Datum, Uuid, ValueError, shorten};

/// The type of an atom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomType {
    /// 64-bit signed integer.
    Integer,
    /// Floating-point number.
    Real,
    /// True or false.
    Boolean,
    /// Unicode text.
    String,
    /// Reference to a row.
    Uuid,
}

impl AtomType {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "integer" => Self::Integer,
            "real" => Self::Real,
            "boolean" => Self::Boolean,
            "string" => Self::String,
            "uuid" => Self::Uuid,
            _ => return None,
        })
    }

    /// The name, as a schema writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Real => "real",
            Self::Boolean => "boolean",
            Self::String => "string",
            Self::Uuid => "uuid",
        }
    }

    /// What a column of this type holds if nobody set it.
    pub fn default_atom(self) -> Atom {
        match self {
            Self::Integer => Atom::Integer(0),
            Self::Real => Atom::Real(0.0),
            Self::Boolean => Atom::Boolean(false),
            Self::String => Atom::String(String::new()),
            Self::Uuid => Atom::Uuid(Uuid::ZERO),
        }
    }

    fn read(self, json: &Value) -> Result<Atom, ValueError> {
        let atom = Atom::from_json(json)?;
        match (self, atom) {
            // A whole number needs no fraction in JSON. Reals of that size are exact or were never precise.
            (Self::Real, Atom::Integer(i)) => Ok(Atom::real(i as f64)),
            (ty, atom) if atom.type_name() == ty.name() => Ok(atom),
            (ty, _) => Err(ValueError::Type { json: shorten(&json.to_string()), expected: ty.name() }),
        }
    }
}

/// How many elements a column holds, and of which types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// Type of the elements, or of the keys of a map.
    pub key: AtomType,
    /// Type of a map's values; `None` for scalars and sets.
    pub value: Option<AtomType>,
    /// Least number of elements: 0 or 1.
    pub min: u8,
    /// Greatest number of elements; `None` is unlimited.
    pub max: Option<u64>,
}

impl ColumnType {
    fn is_scalar(&self) -> bool {
        self.value.is_none() && self.min == 1 && self.max == Some(1)
    }

    /// More than one element possible: `update2` then sends a difference, and otherwise the new value.
    fn is_composite(&self) -> bool {
        self.max != Some(1)
    }

    /// What the column holds if nobody set it (RFC 7047 section 5.2.1).
    pub fn default_datum(&self) -> Datum {
        match self.value {
            None if self.is_scalar() => Datum::Scalar(self.key.default_atom()),
            None if self.min == 0 => Datum::empty(),
            None => Datum::Set(BTreeSet::from([self.key.default_atom()])),
            Some(_) if self.min == 0 => Datum::Map(BTreeMap::new()),
            Some(value) => Datum::Map(BTreeMap::from([(self.key.default_atom(), value.default_atom())])),
        }
    }

    /// Reads the JSON notation of a value of this type: always `Scalar` for scalar columns, `Set` for sets
    /// (also of one element) and `Map` for maps.
    pub fn read(&self, json: &Value) -> Result<Datum, ValueError> {
        let tagged = match json.as_array().map(Vec::as_slice) {
            Some([Value::String(kind), Value::Array(elements)]) => Some((kind.as_str(), elements.as_slice())),
            _ => None,
        };
        match (self.value, tagged) {
            (Some(value), Some(("map", pairs))) => pairs
                .iter()
                .map(|json| match json.as_array().map(Vec::as_slice) {
                    Some([k, v]) => Ok((self.key.read(k)?, value.read(v)?)),
                    _ => Err(ValueError::Pair { json: shorten(&json.to_string()) }),
                })
                .collect::<Result<_, _>>()
                .map(Datum::Map),
            // An empty map may also be written as an empty set.
            (Some(_), Some(("set", []))) => Ok(Datum::Map(BTreeMap::new())),
            (Some(_), _) => Err(ValueError::Type { json: shorten(&json.to_string()), expected: "map" }),
            (None, Some(("set", [one]))) if self.is_scalar() => Ok(Datum::Scalar(self.key.read(one)?)),
            (None, Some(("set", many))) if self.is_scalar() => Err(ValueError::Count { count: many.len() }),
            (None, Some(("set", many))) => {
                Ok(Datum::Set(many.iter().map(|a| self.key.read(a)).collect::<Result<_, _>>()?))
            }
            (None, _) if self.is_scalar() => Ok(Datum::Scalar(self.key.read(json)?)),
            (None, _) => Ok(Datum::Set(BTreeSet::from([self.key.read(json)?]))),
        }
    }

    /// Applies the `modify` member of an `update2` to a column (ovsdb-server(7), "Update2 Notification").
    ///
    /// A set that may hold several elements changes by symmetric difference. In such a map a key that is
    /// absent is added, one present with the same value is removed, one present with another value takes the
    /// new value. Every other column takes `delta` as it is.
    pub fn apply(&self, current: &mut Datum, delta: Datum) {
        match (self.is_composite(), &mut *current, delta) {
            (true, Datum::Set(elements), Datum::Set(delta)) => {
                for atom in delta {
                    if !elements.remove(&atom) {
                        elements.insert(atom);
                    }
                }
            }
            (true, Datum::Map(pairs), Datum::Map(delta)) => {
                for (key, value) in delta {
                    if pairs.get(&key) == Some(&value) {
                        pairs.remove(&key);
                    } else {
                        pairs.insert(key, value);
                    }
                }
            }
            (_, current, delta) => *current = delta,
        }
    }

    fn parse(json: &Value) -> Option<Self> {
        if let Value::String(name) = json {
            return Some(Self { key: AtomType::parse(name)?, value: None, min: 1, max: Some(1) });
        }
        let base = |json: &Value| AtomType::parse(json.as_str().or_else(|| json.get("type")?.as_str())?);
        let min = match json.get("min") {
            None => 1,
            Some(min) => u8::try_from(min.as_u64()?).ok().filter(|m| *m <= 1)?,
        };
        let max = match json.get("max") {
            None => Some(1),
            Some(Value::String(s)) if s == "unlimited" => None,
            Some(max) => Some(max.as_u64().filter(|m| *m >= 1)?),
        };
        let value = match json.get("value") {
            None => None,
            Some(value) => Some(base(value)?),
        };
        Some(Self { key: base(json.get("key")?)?, value, min, max })
    }
}

/// The columns of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSchema {
    /// Column name to type, without `_uuid` and `_version`.
    pub columns: BTreeMap<Arc<str>, ColumnType>,
}

/// A database schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseSchema {
    /// Name of the database.
    pub name: String,
    /// Version of the schema, `x.y.z`; empty if the schema has none.
    pub version: String,
    /// Table name to table.
    pub tables: BTreeMap<Arc<str>, TableSchema>,
}

/// Why a JSON text is not a schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The schema has no such member, or one of another type.
    #[error("the schema has no usable '{member}'")]
    Member {
        /// Name of the member.
        member: &'static str,
    },
    /// A table without columns object.
    #[error("table '{table}' has no columns object")]
    Table {
        /// Name of the table.
        table: String,
    },
    /// A column whose type cannot be read.
    #[error("column '{column}' of table '{table}' has no usable type")]
    Column {
        /// Name of the table.
        table: String,
        /// Name of the column.
        column: String,
    },
}

impl DatabaseSchema {
    /// Reads a `<database-schema>` (RFC 7047 section 3.2).
    pub fn from_json(json: &Value) -> Result<Self, SchemaError> {
        let name = json.get("name").and_then(Value::as_str).ok_or(SchemaError::Member { member: "name" })?;
        let tables =
            json.get("tables").and_then(Value::as_object).ok_or(SchemaError::Member { member: "tables" })?;
        let tables = tables.iter().map(|(table, json)| {
            let columns = json
                .get("columns")
                .and_then(Value::as_object)
                .ok_or_else(|| SchemaError::Table { table: table.clone() })?;
            let columns = columns.iter().map(|(column, json)| {
                let ty = json
                    .get("type")
                    .and_then(ColumnType::parse)
                    .ok_or_else(|| SchemaError::Column { table: table.clone(), column: column.clone() })?;
                Ok((Arc::from(column.as_str()), ty))
            });
            Ok((Arc::from(table.as_str()), TableSchema { columns: columns.collect::<Result<_, _>>()? }))
        });
        Ok(Self {
            name: name.to_owned(),
            version: json.get("version").and_then(Value::as_str).unwrap_or_default().to_owned(),
            tables: tables.collect::<Result<_, _>>()?,
        })
    }
}
