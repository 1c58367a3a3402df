//! Values of columns without their types: compared, and in words.

use std::collections::BTreeSet;

use ovsdb::{Atom, Datum, Uuid};

/// A set of one atom and the atom are the same: the server writes such a set as the atom alone (RFC 7047 §5.1).
pub(super) fn same(a: Option<&Datum>, b: &Datum) -> bool {
    let atoms = |datum: &Datum| match datum {
        Datum::Scalar(atom) => Some(BTreeSet::from([atom.clone()])),
        Datum::Set(atoms) => Some(atoms.clone()),
        Datum::Map(_) => None,
    };
    a.is_some_and(|a| a == b || atoms(a).is_some_and(|a| Some(a) == atoms(b)))
}

/// As people write it: references by the name that `name_of` knows.
pub(super) fn words(datum: &Datum, name_of: impl Fn(Uuid) -> String) -> String {
    let atom = |atom: &Atom| match atom {
        Atom::String(text) => text.to_string(),
        Atom::Integer(number) => number.to_string(),
        Atom::Uuid(uuid) => name_of(*uuid),
        Atom::Real(_) | Atom::Boolean(_) | Atom::NamedUuid(_) => format!("{atom:?}"),
    };
    match datum {
        Datum::Scalar(one) => atom(one),
        Datum::Set(atoms) if atoms.is_empty() => "none".to_owned(),
        Datum::Set(atoms) => atoms.iter().map(atom).collect::<Vec<_>>().join(","),
        Datum::Map(pairs) => {
            let pairs = pairs.iter().map(|(key, value)| format!("{}:{}", atom(key), atom(value)));
            pairs.collect::<Vec<_>>().join(",")
        }
    }
}
