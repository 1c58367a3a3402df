//! What a move's transactions are: a pure function of what is due and of the rows as they are now.

use std::collections::BTreeMap;

use ovsdb::Operation;
use xenflow_proto::Name;

use super::sequencer::Write;
use crate::core::Due;
use crate::db::Rows;
use crate::db::location::Located;
use crate::db::migration::{CreateError, Migration, Phase, Via, Wanted};

/// What to send for a router's step; none if the rows are others by now than those that it was decided on.
///
/// # Errors
/// [`CreateError`]: a move by hand that cannot be written down.
pub fn operations(
    router: &Name,
    due: &Due,
    (rows, located): (&Rows, &Located),
    node: &Name,
    at_ms: u64,
) -> Result<Option<Vec<Operation>>, CreateError> {
    let all = Migration::read(rows);
    let open = all.iter().find(|row| row.router == *router && !row.phase.is_over());
    if open != due.row.as_ref() {
        return Ok(None);
    }
    let Some(row) = open else {
        return match due.write {
            Write::Create => create(router, due, &all, located, node, at_ms),
            Write::Advance(_) | Write::Yield | Write::Left | Write::Announce | Write::Abort(_) => Ok(None),
        };
    };
    Ok(match &due.write {
        Write::Advance(phase) => {
            let tally = (!due.tally.is_empty()).then(|| row.tell(&due.tally));
            Some(row.advance(*phase, at_ms).into_iter().chain(tally).collect())
        }
        Write::Yield => Some(row.yields()),
        Write::Left => Some(row.leaves()),
        Write::Announce => {
            let claims = due.places.iter().filter_map(|place| located.claims(place));
            let greatest = claims.flat_map(BTreeMap::values).copied().max().unwrap_or(0);
            Some(row.announce(&due.places, greatest.saturating_add(1), at_ms))
        }
        Write::Abort(reason) => {
            let why = due.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            Some(row.abort(&format!("{reason}{why}"), at_ms))
        }
        Write::Create => None,
    })
}

/// From the node that has most of the addresses.
fn create(
    router: &Name,
    due: &Due,
    all: &[Migration],
    located: &Located,
    node: &Name,
    at_ms: u64,
) -> Result<Option<Vec<Operation>>, CreateError> {
    let mut held: BTreeMap<&Name, Vec<_>> = BTreeMap::new();
    for place in &due.places {
        let winner = located.winner(place).filter(|winner| *winner != node);
        let generation = winner.and_then(|winner| located.claims(place)?.get(winner).copied());
        if let (Some(winner), Some(generation)) = (winner, generation) {
            held.entry(winner).or_default().push((place.clone(), generation));
        }
    }
    let Some((from, held)) = held.into_iter().max_by_key(|(_, places)| places.len()) else {
        return Ok(None);
    };
    let wanted = Wanted {
        router: router.clone(),
        from: from.clone(),
        to: node.clone(),
        via: Via::Other,
        move_limit_s: 0,
        phase: Phase::Arrived,
    };
    wanted.create(all, &held, at_ms).map(Some)
}
