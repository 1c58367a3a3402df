//! A router that has no buckets left for another group leaves those prefixes to the guest, forwards all others as it would
//! with any number, and uses what becomes free again.

use std::cell::Cell;
use std::collections::BTreeMap;

use openflow::{Action, Flow, Instruction};
use proptest::collection::vec;
use xenflow_flow_app::{App, Rejection, RouterId};
use xenflow_proto::table::{Hop, HopFlags, Route, RouteKey, RouteKind, RouteTarget, TABLE_MAIN};
use xenflow_proto::{Change, Key, Object};

use super::answers::rejected;
use super::law;
use super::model::{Model, same};
use super::state::{History, Run, histories};
use super::world::{Family, LIMIT, chain_of, router_id};

fn group_of(flow: &Flow) -> Option<u32> {
    let actions = flow.instructions.iter().filter_map(|instruction| match instruction {
        Instruction::ApplyActions(actions) => Some(actions),
        _ => None,
    });
    actions.flatten().find_map(|action| if let Action::Group(id) = action { Some(*id) } else { None })
}

/// How many prefixes found no group.
fn short((plan, events, flap): History, max: usize) -> Result<usize, String> {
    let app = App::new(LIMIT).with_max_buckets(max).with_aggregation(false);
    let mut run = Run::by(app, plan, Model::default());
    for event in events {
        run.step(event)?;
    }
    run.finish(flap)?;
    let (app, model, mut fresh) = run.end_of(App::new(LIMIT).with_aggregation(false));
    let lacking = compare(app, model, &mut fresh, max)?;
    for id in (0..6).map(router_id) {
        answers(&run, id, app, &fresh)?;
    }
    Ok(lacking)
}

/// With an app that has any number of buckets.
fn compare(app: &App, model: &Model, fresh: &mut App, max: usize) -> Result<usize, String> {
    same("installed", model, &Model::desired(app)?)?;
    let mut free = Model::default();
    free.settle(fresh, 1000, |_| {});
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

/// Without a dump, which decides everything anew.
#[test]
fn what_becomes_free_is_asked_for_again_step_by_step() {
    let (lacking, asked) = (Cell::new(0), Cell::new(0));
    let step = (0..12_u8, vec((2..8_u8, 1..4_u32), 0..4));
    law(400, (vec(step, 1..60), 4..16_usize, 1..6_usize), |(steps, max, pause)| {
        let plain = || App::new(LIMIT).with_aggregation(false);
        let mut app = chain_of(plain().with_max_buckets(max), 1, Family::V4, Family::V4);
        let mut fresh = chain_of(plain(), 1, Family::V4, Family::V4);
        let (mut model, id) = (Model::default(), router_id(0));
        model.settle(&mut app, 1000, |_| {});
        let mut end = BTreeMap::new();
        for (at, (net, hops)) in steps.into_iter().enumerate() {
            let change = multipath(net, &hops);
            app.apply(id, change.clone()).unwrap();
            end.insert(net, change);
            if at % pause == 0 {
                let before = rejected(&app, id).len();
                model.settle(&mut app, 3, |_| {});
                asked.set(asked.get() + usize::from(rejected(&app, id).len() < before));
            }
        }
        model.settle(&mut app, 3, |_| {});
        end.into_values().for_each(|change| fresh.apply(id, change).unwrap());
        lacking.set(lacking.get() + compare(&app, &model, &mut fresh, max)?);
        Ok(())
    });
    assert!(lacking.get() > 300 && asked.get() > 150, "{} lack, {} asked again", lacking.get(), asked.get());
}

/// The route of a prefix by these gateways with their weights; by none: it is gone.
fn multipath(net: u8, hops: &[(u8, u32)]) -> Change {
    let dst = format!("172.16.{net}.0/24").parse().unwrap();
    let key = RouteKey { table: TABLE_MAIN, dst, tos: 0, metric: 0 };
    if hops.is_empty() {
        return Change::Remove(Key::Route(key));
    }
    let hop = |(last, weight): &(u8, u32)| {
        let gateway = Some([10, 0, 0, *last].into());
        Hop { gateway, oif: Some(1), weight: *weight, flags: HopFlags(0), encap: false }
    };
    let target = RouteTarget::Hops(hops.iter().map(hop).collect());
    let (kind, mtu) = (RouteKind::Unicast, None);
    Change::Upsert(Object::Route(Route { key, kind, protocol: 4, scope: 0, target, mtu }))
}
