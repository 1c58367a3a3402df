//! Standbys: nodes that keep the tables of a router which is elsewhere, so that a move there has nothing to install.
//!
//! A router's `external_ids` name them ([`KEY`]). The node that has the router streams its tables to the first of these that is
//! not itself, as it would in a move, but under a number that no move has; the other one keeps them behind a closed gate. So of two
//! that are named either is the other's standby, wherever the router is.

use std::collections::BTreeMap;

use xenflow_flow_app::RouterId;
use xenflow_proto::Name;

use crate::db::{Rows, table};

/// The key of a router's `external_ids` that names its standbys: names of nodes, with commas or spaces between.
pub const KEY: &str = "standby";
/// Nodes that one router may name.
pub const MAX: usize = 8;
/// Streams to standbys have numbers from here on; migrations have lower ones, since OVSDB's integers end here.
const NUMBERS: u64 = 1 << 63;

/// The number of the stream to a router's standby.
#[must_use]
pub fn number(router: RouterId) -> u64 {
    NUMBERS | u64::from(router.0)
}

/// The number is of a stream to a standby, not of a migration.
#[must_use]
pub const fn is_standby(number: u64) -> bool {
    number >= NUMBERS
}

/// Of the nodes that a router names, the one that keeps its tables while that node has the router.
#[must_use]
pub fn of<'a>(named: &'a [Name], owner: &Name) -> Option<&'a Name> {
    named.iter().find(|node| *node != owner)
}

/// What routers name, and for people what is no list of nodes.
#[must_use]
pub fn read(rows: &Rows) -> (BTreeMap<Name, Vec<Name>>, Vec<String>) {
    let (mut named, mut problems) = (BTreeMap::new(), Vec::new());
    for (_, row) in rows.of(table::ROUTER) {
        let Ok(Some(text)) = row.map_get("external_ids", KEY) else { continue };
        let Some(router) = row.str("name").ok().and_then(|name| name.parse::<Name>().ok()) else { continue };
        match parse(text) {
            Ok(nodes) => _ = named.insert(router, nodes),
            Err(why) => problems.push(format!("router {router}: external_ids:{KEY} names no nodes: {why}")),
        }
    }
    (named, problems)
}

fn parse(text: &str) -> Result<Vec<Name>, String> {
    let words = text.split([',', ' ']).filter(|word| !word.is_empty());
    let nodes = words.map(|word| word.parse::<Name>().map_err(|error| error.to_string()));
    let nodes = nodes.take(MAX + 1).collect::<Result<Vec<Name>, _>>()?;
    if nodes.len() > MAX { Err(format!("more than {MAX}")) } else { Ok(nodes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<Name> {
        parse(text).unwrap()
    }

    #[test]
    fn either_of_two_is_the_others() {
        let named = names("a, b");
        let [a, b] = [&named[0], &named[1]];
        assert_eq!(of(&named, a), Some(b));
        assert_eq!(of(&named, b), Some(a));
        assert_eq!(of(&named, &names("c")[0]), Some(a));
        assert_eq!(of(&names("a"), a), None);
    }

    #[test]
    fn what_is_no_list_of_nodes_is_refused() {
        assert_eq!(names(""), []);
        assert!(parse("a b/c").unwrap_err().contains("b/c"), "{:?}", parse("a b/c"));
        let many = |count| vec!["n"; count].join(",");
        assert_eq!(names(&many(MAX)).len(), MAX);
        assert_eq!(parse(&many(MAX + 1)), Err("more than 8".to_owned()));
    }

    #[test]
    fn no_migration_has_the_number_of_a_standby() {
        assert!(is_standby(number(RouterId(1))));
        assert_ne!(number(RouterId(1)), number(RouterId(2)));
        assert!(!is_standby(u64::try_from(i64::MAX).unwrap()));
    }
}
