//! The guest starts anew: another boot id, and a table that is smaller. What of the old one is not told again goes at
//! end-of-RIB and not before; nothing else goes at all.
//!
//! The snapshot is cut in its middle, to have time to look: what the switch holds then it holds before end-of-RIB.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{H2, LIMIT, ROUTES, Site, prefix};
use crate::node::{BRIDGE, Node};
use crate::process::wait_for;
use crate::scenario::Lab;

/// One route in so many is not there after the reboot.
const LEFT_OUT: u32 = 15;
/// Two that are new: told among the first of all, and among the last.
const FIRST: &str = "10.99.0.0/24";
const LAST: &str = "10.250.0.0/24";
/// Another kernel's.
const BOOT_ID: &str = "8a1f4c52-7a3e-4d0b-9a1c-0123456789ab";
/// How long the cut lasts. The switch is to do nothing meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// At host a; the figures of it.
pub(super) fn reboot(lab: &Lab, site: &mut Site) -> Result<Value> {
    lab.step("the guest starts anew, with a smaller table");
    let before = lasting(&site.nodes[0])?;
    ensure!(routes(&before).count() > ROUTES as usize, "the switch lacks routes: {}", before.len());
    site.r1.client()?.kill()?;
    let stale: BTreeSet<String> = (0..ROUTES).step_by(LEFT_OUT as usize).map(prefix).collect();
    let mut lines: String = stale.iter().map(|prefix| format!("route del {prefix}\n")).collect();
    lines.push_str(&format!("route add {FIRST} via {H2}\nroute add {LAST} via {H2}\n"));
    site.writer.write(&lines)?;
    site.wire.slow(&site.r1, &site.nodes[0])?;
    site.r1.reboot(BOOT_ID)?;
    site.r1.start_client()?;
    let sessions = site.r1.watch()?.sessions()?;
    wait_for("the first of the snapshot in the switch", LIMIT, || {
        Ok(has_route(&site.nodes[0], FIRST)?.then_some(()))
    })?;

    lab.step("the snapshot is cut in its middle");
    site.wire.cut(&site.nodes[0])?;
    std::thread::sleep(LOOK);
    let middle = lasting(&site.nodes[0])?;
    let state = site.r1.client_state()?;
    ensure!(state.acked < state.seq, "the host has all there is to tell: {state:?}");
    ensure!(routed(&middle, FIRST) && !routed(&middle, LAST), "this is not the middle of the snapshot");
    let gone_before: Vec<_> = before.difference(&middle).collect();
    ensure!(gone_before.is_empty(), "{} flows go before end-of-RIB: {gone_before:#?}", gone_before.len());

    lab.step("end-of-RIB");
    site.wire.mend(&site.nodes[0])?;
    let (_, line) = sessions.session(true, LIMIT)?;
    ensure!(line.resumed == Some(false), "a session of another boot goes on from the last one: {line:?}");
    site.wait_told()?;
    let after = lasting(&site.nodes[0])?;
    let gone: BTreeSet<&String> = before.difference(&after).collect();
    let new: Vec<&String> = after.difference(&before).collect();
    let is_stale = |flow: &&String| destination(flow).is_some_and(|prefix| stale.contains(prefix));
    ensure!(gone.len() == stale.len() && gone.iter().all(is_stale), "others go: {gone:#?}");
    ensure!(new.len() == 2 && routed(&after, FIRST) && routed(&after, LAST), "others come: {new:#?}");
    Ok(json!({
        "stale": stale.len(),
        "gone_before_end": gone_before.len(),
        "gone_after_end": gone.len(),
        "flows_before": before.len(),
        "flows_in_the_middle": middle.len(),
        "flows_after": after.len(),
    }))
}

/// The flows that do not come and go with traffic: without learned ones, and without the link-local neighbors, which a
/// guest may give up and find again.
fn lasting(node: &Node) -> Result<BTreeSet<String>> {
    let text = node.flows()?;
    let passing = |line: &str| line.contains("table=6,") || line.contains("reg8=0xfe800000");
    let kept = text.lines().filter(|line| line.contains("table=") && !passing(line));
    Ok(kept.map(|line| line.trim().to_owned()).collect())
}

/// Those of routes.
fn routes(flows: &BTreeSet<String>) -> impl Iterator<Item = &String> {
    flows.iter().filter(|flow| flow.contains("table=3,"))
}

/// What the flow is for, if it is a route's.
fn destination(flow: &str) -> Option<&str> {
    flow.contains("table=3,").then(|| flow.split_once("nw_dst="))??.1.split([' ', ',']).next()
}

fn routed(flows: &BTreeSet<String>, prefix: &str) -> bool {
    flows.iter().any(|flow| destination(flow) == Some(prefix))
}

/// Whether the switch has the route's flow now; cheaper than all of them.
fn has_route(node: &Node, prefix: &str) -> Result<bool> {
    let wanted = format!("table=3,ip,nw_dst={prefix}");
    Ok(node.host().ofctl(&["--no-stats", "dump-flows", BRIDGE, &wanted])?.contains("nw_dst="))
}
