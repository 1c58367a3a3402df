//! Routers that press and rest get all that is due for them, in its order.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::{App, FlowChange, RouterId};

use super::law;
use super::world::world;

/// What is sent to an empty switch for each router, change by change. After each, those that press rest or not, as the
/// next of `rests` says. With it, how often a router was left out.
type Sent = (BTreeMap<Option<RouterId>, Vec<FlowChange>>, usize);

fn sent(mut app: App, rests: &[bool]) -> Result<Sent, String> {
    let mut all: BTreeMap<_, Vec<FlowChange>> = BTreeMap::new();
    let mut left_out = 0;
    for is_resting in rests.iter().cycle().take(20_000) {
        if app.begin_dump().is_some() {
            app.dump_end();
        }
        let batch = app.next_batch(1);
        if batch.changes.is_empty() && app.is_idle() {
            return Ok((all, left_out));
        }
        all.entry(batch.routers.first().copied()).or_default().extend(batch.changes);
        left_out += usize::from(app.press(&batch.routers) && *is_resting);
        app.rest(*is_resting);
    }
    Err("a router never gets what is due for it".to_owned())
}

#[test]
fn a_rest_changes_neither_what_a_router_gets_nor_its_order() {
    let left_out = Cell::new(0);
    law(100, (world(), vec(any::<bool>(), 1..12)), |(world, mut rests)| {
        // No rest is for ever.
        rests.push(false);
        let (plain, _) = sent(world.app(), &[false])?;
        let (rested, times) = sent(world.app(), &rests)?;
        left_out.set(left_out.get() + times);
        if plain == rested { Ok(()) } else { Err(format!("{plain:?}, but with rests {rested:?}")) }
    });
    assert!(left_out.get() > 100, "hardly any router was ever left out");
}

/// The rest is what leaves a router out: without an end to it, the law would see that.
#[test]
fn a_rest_without_an_end_is_noticed() {
    super::finds(20, world(), |world| sent(world.app(), &[true]).map(|_| ()));
}
