//! `controls`: breaks on purpose what `demo` reports as 0, and looks with the same detectors. A detector that
//! still says 0 here proves nothing there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::twin::{H2, Twin, leaks};
use crate::node::BRIDGE;
use crate::probe::Probe;
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "controls",
    about: "negative controls of the demo: each of its zeros is made to fail, and is seen to",
    memory_mib: 1536,
    limit: Duration::from_secs(600),
    needs_product: true,
    in_suite: true,
    targets: &[],
    run,
};

/// All flows of routers and of the topology, by their cookies.
const OURS: &str = "cookie=0x5846000000000000/0xffff000000000000";
/// The flows that lead packets into routers.
const GATES: &str = "cookie=0x5846020000000000/0xffffff0000000000,table=1";

fn run(lab: &mut Lab) -> Result<Value> {
    let mut twin = Twin::build(lab)?;
    twin.converge(lab)?;
    lab.ready()?;
    let untouched = twin.nodes[0].flows()?;

    lab.step("a cut trunk: pings must be lost");
    twin.trunk.set_link(twin.nodes[1].host(), false)?;
    let cut = twin.networks[0].ping(20, 20)?;
    twin.trunk.set_link(twin.nodes[1].host(), true)?;
    ensure!(cut.lost() > 0, "the trunk was cut and no ping was lost: {cut:?}");
    recovered(&twin)?;

    lab.step("closed gates: the routers must forward themselves");
    twin.nodes[0].host().ofctl(&["del-flows", BRIDGE, GATES])?;
    let before = twin.forwarded()?;
    let slow = twin.networks[0].ping(20, 20)?;
    let transit = twin.forwarded()? - before;
    ensure!(slow.lost() == 0, "packets that the router forwards itself were lost: {slow:?}");
    ensure!(transit >= 20, "the gates are closed and the routers forwarded only {transit}");

    lab.step("a restarted daemon must find the gates closed, open them, and change nothing else");
    restart_daemon(&mut twin)?;
    same_flows(&twin, &untouched)?;
    let before = twin.forwarded()?;
    recovered(&twin)?;
    ensure!(twin.forwarded()? == before, "the routers still forward after the gates were opened");

    lab.step("a restart that clears the tables first: the probe must lose packets");
    let red = &twin.networks[0];
    let to = format!("{H2}:7000").parse()?;
    let probe = Probe::start(lab, red.h[0].netns(), red.h[1].netns(), to, 1000)?;
    twin.nodes[0].kill_daemon()?;
    twin.nodes[0].host().ofctl(&["del-flows", BRIDGE, OURS])?;
    twin.nodes[0].start_daemon()?;
    same_flows(&twin, &untouched)?;
    let cleared = probe.run_for(Duration::from_secs(1))?;
    ensure!(cleared.lost > 0, "the tables were cleared and the probe lost nothing: {cleared:?}");
    recovered(&twin)?;

    lab.step("a route that is withdrawn must not stay a flow");
    let router = &twin.networks[0].r[0];
    let count = |twin: &Twin| -> Result<usize> {
        Ok(twin.nodes[0].flows()?.lines().filter(|line| line.contains("nw_dst=10.201.0.0/16")).count())
    };
    let mut watch = router.watch()?;
    router.guest().netns().ip(&["route", "add", "10.201.0.0/16", "via", "10.0.0.2"])?;
    watch.acked(Duration::from_secs(5)).context("after a route was added")?;
    ensure!(count(&twin)? == 1, "an acknowledged route is no flow");
    router.guest().netns().ip(&["route", "del", "10.201.0.0/16"])?;
    watch.acked(Duration::from_secs(5)).context("after the route was deleted")?;
    ensure!(count(&twin)? == 0, "a deleted route is still a flow");

    deaths(lab, &mut twin, &untouched)?;

    // Last, because the attacker's addresses stay in its router's neighbor table.
    lab.step("no egress check: red must be seen in blue");
    let victim = twin.nodes[0].host().ofport("blue-h")?;
    let red_lan = twin.networks[0].vlans[0];
    // No ARP: red has blue's addresses, and a question of red's router would teach blue's end host the wrong gateway.
    let hole = format!("table=8,priority=500,ip,dl_vlan={red_lan},actions=strip_vlan,output:{victim}");
    twin.nodes[0].host().ofctl(&["add-flow", BRIDGE, &hole])?;
    let leaked = leaks::attack(lab, &twin, 0)?;
    ensure!(leaked.leaked > 0, "a hole in the egress table, and no leak is seen: {leaked:?}");

    Ok(json!({
        "ping_lost_with_the_trunk_cut": cut.lost(),
        "vm_transit_with_closed_gates": transit,
        "leaked_without_egress_check": leaked.leaked,
        "lost_with_cleared_tables": cleared.lost,
    }))
}

/// What the daemon needs dies and comes back; it must go on by itself.
fn deaths(lab: &Lab, twin: &mut Twin, untouched: &str) -> Result<()> {
    lab.step("kill -9 of ovs-vswitchd on a: its flows are gone and must come back");
    twin.nodes[0].host_mut().kill_vswitchd()?;
    twin.nodes[0].host_mut().start_vswitchd()?;
    same_flows(twin, untouched)?;
    recovered(twin)?;

    lab.step(
        "kill -9 of ovsdb-server on a: the flows must stay, and what is configured later must become flows",
    );
    twin.nodes[0].host_mut().kill_ovsdb()?;
    let away = twin.networks[0].ping(20, 50)?;
    ensure!(away.lost() == 0, "packets were lost while the database was away: {away:?}");
    twin.nodes[0].host_mut().start_ovsdb()?;
    twin.nodes[0].init()?;
    twin.nodes[0].configure("segment add red-late --network red --vlan 44")?;
    wait_for("the flows of a segment added later", Duration::from_secs(30), || {
        Ok(twin.nodes[0].flows()?.contains("dl_vlan=44").then_some(()))
    })?;
    twin.nodes[0].configure("segment remove red-late")?;
    same_flows(twin, untouched)
}

/// Pings until none is lost.
fn recovered(twin: &Twin) -> Result<()> {
    wait_for("pings without loss", Duration::from_secs(30), || {
        let ping = twin.networks[0].ping(5, 20)?;
        Ok((ping.lost() == 0).then_some(()))
    })
}

fn restart_daemon(twin: &mut Twin) -> Result<()> {
    twin.nodes[0].kill_daemon()?;
    twin.nodes[0].start_daemon()
}

/// Waits until host a has the same flows again, but for learned ones.
fn same_flows(twin: &Twin, wanted: &str) -> Result<()> {
    let wanted = lasting(wanted);
    wait_for("the same flows as before", Duration::from_secs(30), || {
        Ok((lasting(&twin.nodes[0].flows()?) == wanted).then_some(()))
    })
}

/// The flows that do not come and go with traffic, sorted.
fn lasting(flows: &str) -> Vec<String> {
    let learned = |line: &&str| line.contains("cookie=0x584603");
    let mut lines: Vec<String> =
        flows.lines().filter(|line| line.contains("table=") && !learned(line)).map(str::to_owned).collect();
    lines.sort();
    lines
}
