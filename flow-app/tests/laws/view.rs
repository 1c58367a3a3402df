//! What an operator is shown, page by page, is all there is: of routes and of flows, however small the pages.

use std::collections::{BTreeMap, BTreeSet};

use openflow::{Flow, Group};
use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_flow_app::{App, Fate, FlowKey, RouterId, Which, pipeline};
use xenflow_proto::table::{Route, RouteKey};

use super::world::{World, world};
use super::{finds, law};

/// Nothing is due any more.
fn at_rest(world: &World) -> Result<App, String> {
    let mut app = world.app();
    for _ in 0..20_000 {
        if app.begin_dump().is_some() {
            app.dump_end();
        }
        if app.next_batch(100).changes.is_empty() && app.is_idle() {
            return Ok(app);
        }
    }
    Err("it is never at rest".to_owned())
}

fn routes(app: &App, id: RouterId, which: Which, most: usize) -> Result<Vec<(Route, Fate)>, String> {
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..20_000 {
        let (page, next) = app.view_routes(id, which, after, most).ok_or("no such router")?;
        all.extend(page.into_iter().map(|view| (view.route.to_route(), view.fate)));
        match next {
            Some(next) if Some(next) <= after => return Err(format!("from {after:?} back to {next:?}")),
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
    Err("the pages have no end".to_owned())
}

fn flows(app: &App, id: RouterId, most: usize) -> Result<(Vec<Flow>, Vec<Group>), String> {
    let (mut flows, mut groups, mut after) = (Vec::new(), Vec::new(), None);
    for _ in 0..20_000 {
        let page = app.view_flows(id, after, most).ok_or("no such router")?;
        flows.extend(page.flows);
        groups.extend(page.groups);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok((flows, groups)),
        }
    }
    Err("the pages have no end".to_owned())
}

type Tables = (BTreeMap<FlowKey, Flow>, BTreeMap<u32, Group>);

/// All flows of routers and their groups; two flows with one key are an error.
fn all_flows(app: &App, most: usize) -> Result<Tables, String> {
    let (mut all, mut all_groups) = (BTreeMap::new(), BTreeMap::new());
    for id in app.topology().routers() {
        let (flows, groups) = flows(app, id, most)?;
        for flow in flows {
            if let Some(old) = all.insert(FlowKey::from(&flow), flow) {
                return Err(format!("twice: {old:?}"));
            }
        }
        all_groups.extend(groups.into_iter().map(|group| (group.id, group)));
    }
    Ok((all, all_groups))
}

fn flows_are_those_desired(app: &App, most: usize, leave_out: bool) -> Result<(), String> {
    let mut want = app.desired();
    let is_router = |flow: &Flow| pipeline::cookie::router_of(flow.cookie).is_some();
    want.flows.retain(is_router);
    if leave_out {
        want.flows.pop();
    }
    let want_flows: BTreeMap<FlowKey, Flow> =
        want.flows.into_iter().map(|flow| (FlowKey::from(&flow), flow)).collect();
    let want_groups: BTreeMap<u32, Group> = want.groups.into_iter().map(|group| (group.id, group)).collect();
    let (flows, groups) = all_flows(app, most)?;
    let got: BTreeSet<&Flow> = flows.values().collect();
    let want: BTreeSet<&Flow> = want_flows.values().collect();
    if got != want {
        let (surplus, missing) = (got.difference(&want), want.difference(&got));
        return Err(format!(
            "surplus {:?}, missing {:?}",
            surplus.collect::<Vec<_>>(),
            missing.collect::<Vec<_>>()
        ));
    }
    if groups != want_groups {
        return Err(format!("groups {groups:?}, not {want_groups:?}"));
    }
    Ok(())
}

#[test]
fn pages_of_flows_are_the_flows_that_are_desired() {
    law(100, (world(), 1..9usize), |(world, most)| flows_are_those_desired(&at_rest(&world)?, most, false));
}

#[test]
fn a_flow_too_many_is_noticed() {
    finds(20, world(), |world| flows_are_those_desired(&at_rest(&world)?, 5, true));
}

#[test]
fn pages_of_routes_are_all_routes_and_a_filter_leaves_out_the_others_only() {
    let bytes = (any::<u8>(), any::<u8>());
    law(100, (world(), 1..9usize, vec(bytes, 1..4)), |(world, most, picks)| {
        let app = at_rest(&world)?;
        for id in app.topology().routers() {
            let count = app.router(id).ok_or("no such router")?.rib.routes;
            let all = routes(&app, id, Which::All, 1000)?;
            if all.len() != count || routes(&app, id, Which::All, most)? != all {
                return Err(format!("{} routes, not {count}", all.len()));
            }
            let rejected: BTreeMap<RouteKey, _> = app.rejected(id).collect();
            for (route, fate) in &all {
                if matches!(fate, Fate::Rejected(why) if rejected.get(&route.key) == Some(why))
                    != rejected.contains_key(&route.key)
                {
                    return Err(format!("{fate:?} of {route:?}"));
                }
            }
            for (pick, shorter) in &picks {
                let Some((route, _)) = all.get(usize::from(*pick) % all.len().max(1)) else { continue };
                let mut within = route.key.dst;
                for _ in 0..shorter % 12 {
                    within = within.supernet().unwrap_or(within);
                }
                let want: Vec<_> =
                    all.iter().filter(|(route, _)| within.contains(&route.key.dst)).cloned().collect();
                let got = routes(&app, id, Which::Within(within), most)?;
                if got != want {
                    return Err(format!("within {within}: {got:?}, not {want:?}"));
                }
                let addr = route.key.dst.broadcast();
                let mut got = routes(&app, id, Which::Covering(addr), most)?;
                got.sort_by_key(|(route, _)| route.key);
                let covers = |(route, _): &&(Route, Fate)| route.key.dst.contains(&addr);
                let want: Vec<_> = all.iter().filter(covers).cloned().collect();
                if got != want {
                    return Err(format!("covering {addr}: {got:?}, not {want:?}"));
                }
            }
        }
        Ok(())
    });
}
