//! A router that has no buckets left for another group leaves those prefixes to the guest, forwards all others as it would
//! with any number, and uses what becomes free again.

use std::cell::Cell;
use std::collections::BTreeMap;

use openflow::{Action, Flow, Instruction};
use xenflow_flow_app::{App, Rejection, RouterId};

use super::answers::rejected;
use super::law;
use super::model::{Model, same};
use super::state::{History, Run, histories};
use super::world::{LIMIT, router_id};

fn group_of(flow: &Flow) -> Option<u32> {
    let actions = flow.instructions.iter().filter_map(|instruction| match instruction {
        Instruction::ApplyActions(actions) => Some(actions),
        _ => None,
    });
    actions.flatten().find_map(|action| if let Action::Group(id) = action { Some(*id) } else { None })
}

/// How many prefixes found no group.
fn short((plan, events, flap): History, max: usize) -> Result<usize, String> {
    let app = App::new(LIMIT).with_max_buckets(max);
    let mut run = Run::by(app, plan, Model::default());
    for event in events {
        run.step(event)?;
    }
    run.finish(flap)?;
    let (app, model, mut fresh) = run.end();
    same("installed", model, &Model::desired(app)?)?;
    let mut free = Model::default();
    free.settle(&mut fresh, 1000, |_| {});
    let mut used: BTreeMap<u32, usize> = BTreeMap::new();
    for (id, group) in &model.groups {
        *used.entry(id >> 16).or_default() += group.buckets.len();
    }
    if let Some((router, buckets)) = used.iter().find(|(_, buckets)| **buckets > max) {
        return Err(format!("{buckets} buckets of router {router}"));
    }
    let mut lacking = 0;
    let content = |model: &Model, id: u32| model.groups.get(&id).map(|group| group.buckets.clone());
    for (key, want) in &free.flows {
        let Some(got) = model.flows.get(key) else { return Err(format!("no {want:?}")) };
        match (group_of(want), group_of(got)) {
            (None, None) if got == want => {}
            (Some(a), Some(b)) if content(&free, a) == content(model, b) => {}
            (Some(a), None) => {
                lacking += 1;
                let buckets = content(&free, a).unwrap_or_default().len();
                let left = max - used.get(&(a >> 16)).copied().unwrap_or_default();
                if buckets <= left {
                    return Err(format!("{left} buckets are left, and it is not {want:?}"));
                }
            }
            _ => return Err(format!("{got:?}, not {want:?}")),
        }
    }
    if let Some((_, surplus)) = model.flows.iter().find(|(key, _)| !free.flows.contains_key(key)) {
        return Err(format!("{surplus:?} is too much"));
    }
    for id in (0..6).map(router_id) {
        answers(&run, id, app, &fresh)?;
    }
    Ok(lacking)
}

/// Routes without a group are rejected for that; of the others the guest is told the same.
fn answers(run: &Run, id: RouterId, app: &App, fresh: &App) -> Result<(), String> {
    let Some(told) = run.told(id) else { return Ok(()) };
    let (got, want) = (rejected(app, id), rejected(fresh, id));
    let others = got.iter().filter(|(_, why)| **why != Rejection::Groups);
    let others: BTreeMap<_, _> = others.map(|(key, why)| (*key, *why)).collect();
    if *told != got || others != want {
        return Err(format!("told {told:?}, rejected {got:?}, and without a bound {want:?}"));
    }
    Ok(())
}

#[test]
fn who_finds_no_group_left_is_punted_until_there_is_one() {
    let lacking = Cell::new(0);
    law(400, (histories(), 0..9_usize), |(history, max)| {
        lacking.set(lacking.get() + short(history, max)?);
        Ok(())
    });
    println!("{} prefixes without a group", lacking.get());
    assert!(lacking.get() > 300, "{}", lacking.get());
}
