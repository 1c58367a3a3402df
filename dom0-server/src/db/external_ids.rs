//! What other programs keep with a row: the column `external_ids` of every table of the desired state.

use std::collections::BTreeMap;

use ovsdb::{Datum, Row};

use super::RowError;
use super::policy::shown;

/// Longest key, in bytes.
const MAX_KEY: usize = 63;

/// The column after changes as the command line writes them: `KEY=VALUE` puts, `KEY` takes away.
///
/// # Errors
/// [`RowError::ExternalId`] names what is neither.
pub fn changed(before: &Row, changes: &[String]) -> Result<Datum, RowError> {
    let mut ids: BTreeMap<&str, &str> = before.map_str_str("external_ids")?;
    for text in changes {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (text.as_str(), None),
        };
        if !(1..=MAX_KEY).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(RowError::ExternalId(shown(text)));
        }
        match value {
            Some(value) => ids.insert(key, value),
            None => ids.remove(key),
        };
    }
    Ok(Datum::map(ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_put_and_taken_away() {
        let row: Row = [("external_ids", Datum::map([("a", "1"), ("b", "2")]))].into_iter().collect();
        let words =
            |words: &[&str]| changed(&row, &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["a", "c=x=y", "b="]), Ok(Datum::map([("b", ""), ("c", "x=y")])));
        let long = "k".repeat(64);
        for wrong in ["", "=x", "a b=c", long.as_str()] {
            assert_eq!(words(&[wrong]), Err(RowError::ExternalId(shown(wrong))));
        }
    }
}
