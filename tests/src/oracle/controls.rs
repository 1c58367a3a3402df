//! The comparison's own controls: flows and groups are broken on purpose, and it must see that.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bench::Bench;
use super::dump::Opinion;
use super::plan::{TABLE_MAIN, TABLE_RED};
use super::questions::{Destinations, Question};
use super::tally::Tally;
use super::verdict::Shares;
use super::{Family, Prefix};
use crate::node::BRIDGE;
use crate::scenario::Lab;

/// The product's tables.
const ROUTER: &str = "table=1";
const ROUTE: &str = "table=3";
const NEXT_HOP: &str = "table=4";
/// Cookie of flows that follow from what a guest says.
const OF_ROUTERS: &str = "cookie=0x5846020000000000/0xffffff0000000000";
/// The register that names a routing table; without it, it is the main one.
const TABLE_REGISTER: &str = "reg5";

fn inside(bench: &mut Bench<'_>, prefix: Prefix) -> Result<Tally> {
    let questions: Vec<Question> = (0..40).map(|_| bench.asker.inside(prefix)).collect();
    bench.compare(&questions)
}

fn ofctl(bench: &Bench<'_>, args: &[&str]) -> Result<String> {
    bench.node.host().ofctl(args)
}

fn add_flow(bench: &Bench<'_>, flow: &str) -> Result<()> {
    ofctl(bench, &["add-flow", BRIDGE, flow]).map(drop)
}

fn delete_flow(bench: &Bench<'_>, flow: &str) -> Result<()> {
    ofctl(bench, &["--strict", "del-flows", BRIDGE, flow]).map(drop)
}

/// A flow of the route table.
#[derive(Debug, Clone)]
struct RouteFlow {
    line: String,
    matching: String,
    actions: String,
}

/// The IPv4 flows of the main routing table that lead to a next hop or to several, by prefix.
fn route_flows(bench: &Bench<'_>) -> Result<BTreeMap<Prefix, RouteFlow>> {
    let mut flows = BTreeMap::new();
    for line in bench.flows(&format!("{ROUTE},ip,{OF_ROUTERS}"))? {
        let Some((matching, actions)) = line.split_once(" actions=") else { continue };
        let is_main = matching.contains(&format!("{TABLE_REGISTER}=0,"));
        let Some(prefix) = matching.split("nw_dst=").nth(1).and_then(Prefix::parse).filter(|_| is_main)
        else {
            continue;
        };
        // Without its cookie, which would be another condition.
        let matching = matching.split_once(", ").map_or(matching, |(_, rest)| rest).to_owned();
        let flow = RouteFlow { matching, actions: actions.to_owned(), line: line.clone() };
        flows.insert(prefix, flow);
    }
    Ok(flows)
}

/// Breaks flows and groups on purpose; what the comparison then says comes back.
pub fn run(lab: &Lab, bench: &mut Bench<'_>, destinations: &Destinations, tally: &Tally) -> Result<Value> {
    let (misled, unused) = groups(lab, bench, &tally.shares)?;
    let mut flows = route_flows(bench)?;
    flows.retain(|_, flow| flow.actions.contains("goto_table:4"));
    let used = tally.used.iter().filter(|(table, _)| *table == TABLE_MAIN).map(|(_, prefix)| *prefix);
    let used: Vec<Prefix> = used.filter(|prefix| flows.contains_key(prefix)).collect();

    lab.step("control: a prefix with the next hop of another");
    let swap = |prefix: &Prefix| {
        let flow = flows.get(prefix)?;
        let other = flows.values().find(|other| other.actions != flow.actions)?;
        Some((*prefix, flow.clone(), other.actions.clone()))
    };
    let (prefix, flow, actions) = used.iter().find_map(swap).context("no two next hops to swap")?;
    add_flow(bench, &flow.line.replace(&flow.actions, &actions))?;
    let swapped = inside(bench, prefix)?;
    add_flow(bench, &flow.line)?;
    ensure!(swapped.wrong + swapped.unexplained > 0, "{prefix} has another next hop, and nothing is wrong");
    let after = inside(bench, prefix)?;
    ensure!(after.wrong + after.unexplained == 0, "{prefix} is whole again and wrong: {:?}", after.findings);

    lab.step("control: a prefix without its flow, so that a shorter one catches");
    let mut caught = 0;
    for prefix in &used {
        let Some(flow) = flows.get(prefix) else { continue };
        let first = prefix.family.address(prefix.first());
        let covering = flows.iter().filter(|(of, _)| of.len < prefix.len && of.contains(first));
        let parent = covering.max_by_key(|(of, _)| of.len);
        if parent.is_none_or(|(_, parent)| parent.actions == flow.actions) {
            continue;
        }
        delete_flow(bench, &flow.matching)?;
        caught = inside(bench, *prefix)?.wrong;
        add_flow(bench, &flow.line)?;
        if caught > 0 {
            break;
        }
    }
    ensure!(caught > 0, "flows are missing, and nothing is wrong");

    lab.step("control: everything routed leaves on one segment; everything routed is dropped");
    let hole = format!("{NEXT_HOP},priority=60000");
    add_flow(bench, &format!("{hole},actions=output:{}", bench.access[0]))?;
    let leak = bench.compare_any(200, destinations)?;
    ensure!(leak.leaked > 0, "everything leaves on one segment, and no leak is seen: {}", leak.figures());
    add_flow(bench, &format!("{hole},actions=drop"))?;
    let drop = bench.compare_any(200, destinations)?;
    ensure!(drop.wrong > 0 && drop.leaked == 0, "all is dropped, and that is right: {}", drop.figures());
    delete_flow(bench, &hole)?;

    lab.step("control: packets of the VRF are looked up in the main table");
    let mixed = mix(bench, &destinations.of(TABLE_RED))?;
    ensure!(mixed.leaked > 0, "the VRF is none, and no leak is seen: {}", mixed.figures());

    lab.step("control: closed gates, so that everything is punted");
    let gates = format!("{ROUTER},{OF_ROUTERS}");
    ofctl(bench, &["del-flows", BRIDGE, &gates])?;
    let closed = bench.compare_any(200, destinations)?;
    ensure!(
        closed.unexplained > 0 && closed.forwarded() == 0,
        "the gates are closed, and all is well: {}",
        closed.figures()
    );
    Ok(json!({
        "wrong_with_a_foreign_group": misled,
        "unused_with_a_short_group": unused,
        "wrong_with_a_foreign_next_hop": swapped.wrong + swapped.unexplained,
        "wrong_without_a_route": caught,
        "leaked_with_a_hole": leak.leaked,
        "wrong_with_all_dropped": drop.wrong,
        "leaked_without_the_vrf": mixed.leaked,
        "unexplained_with_closed_gates": closed.unexplained,
    }))
}

/// Gives a group the buckets of another, then leaves it one bucket alone: how much is wrong, how many neighbors get no
/// packet.
fn groups(
    lab: &Lab,
    bench: &mut Bench<'_>,
    shares: &BTreeMap<Shares, (Question, Opinion)>,
) -> Result<(usize, usize)> {
    lab.step("control: a group with the buckets of another; a group with one bucket");
    let flows = route_flows(bench)?;
    let groups: BTreeMap<String, String> = bench
        .node
        .host()
        .ofctl(&["dump-groups", BRIDGE])?
        .lines()
        .filter_map(|line| {
            let (id, rest) = line.trim().strip_prefix("group_id=")?.split_once(',')?;
            Some((id.to_owned(), rest.to_owned()))
        })
        .collect();
    // The group that a packet meets, by the route that it meets.
    let group = |opinion: &Opinion, question: &Question| {
        let super::kernel::Answer::Forward(forward) = &opinion.answer else { return None };
        let prefix = Prefix::new(Family::V4, super::bits(question.packet.dst), forward.prefix_len);
        let flow = flows.get(&prefix).filter(|_| opinion.table == Some(TABLE_MAIN))?;
        let id = flow.actions.split("group:").nth(1)?.split(|it: char| !it.is_ascii_digit()).next()?;
        groups.get_key_value(id)
    };
    let known = shares.iter().filter(|(shares, _)| {
        shares.family == Family::V4 && shares.known.len() > 1 && shares.unknown.is_empty()
    });
    let mut found = known.filter_map(|(shares, case)| Some((shares, case, group(&case.1, &case.0)?)));
    let (shares, case, (id, body)) = found.next().context("no group that is known in full")?;
    let (_, _, (_, foreign)) =
        found.find(|(other, ..)| other.known.is_disjoint(&shares.known)).context("no two groups")?;
    let only = BTreeMap::from([(shares.clone(), case.clone())]);

    let host = bench.node.host();
    let modify = |body: &str| host.ofctl(&["mod-group", BRIDGE, &format!("group_id={id},{body}")]);
    modify(foreign)?;
    let wrong = bench.exercise(&only)?.wrong;
    let first_bucket: Vec<&str> = body.splitn(3, "bucket=").collect();
    let [head, bucket, _] = first_bucket.as_slice() else { anyhow::bail!("a group of one bucket: {body}") };
    modify(&format!("{head}bucket={}", bucket.trim_end_matches(',')))?;
    let unused = bench.exercise(&only)?.unused;
    modify(body)?;
    let after = bench.exercise(&only)?;
    ensure!(wrong > 0, "a group has the buckets of another, and nothing is wrong: {shares:?}");
    ensure!(unused > 0, "a group has one bucket, and no neighbor is without packets: {shares:?}");
    ensure!(after.wrong + after.unused == 0, "a group is whole again and wrong: {:?}", after.findings);
    Ok((wrong, unused))
}

/// Takes the VRF out of the gates, and puts it in again.
fn mix(bench: &mut Bench<'_>, destinations: &Destinations) -> Result<Tally> {
    let gates = bench.flows(&format!("{ROUTER},{OF_ROUTERS}"))?;
    let of_vrf: Vec<&String> = gates.iter().filter(|line| line.contains(TABLE_REGISTER)).collect();
    ensure!(!of_vrf.is_empty(), "no gate of a VRF in {gates:?}");
    for line in &of_vrf {
        let (matching, actions) = line.split_once(" actions=").context("a flow without actions")?;
        let actions: Vec<&str> = actions.split(',').filter(|it| !it.contains(TABLE_REGISTER)).collect();
        add_flow(bench, &format!("{matching} actions={}", actions.join(",")))?;
    }
    let mixed = bench.compare_any(300, destinations)?;
    for line in of_vrf {
        add_flow(bench, line)?;
    }
    Ok(mixed)
}
