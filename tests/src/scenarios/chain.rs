//! `chain`: routers one behind the other, on one host, across hosts, and on a stick. What the pipeline forwards
//! must look as if every router had forwarded it (TTL, order), and what only a router can answer must come from
//! the right one. The topology is in `build`.

mod answer;
mod build;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use self::answer::{Answer, ask, trace};
use self::build::{Line, Topology};
use crate::capture::{self, Capture};
use crate::endhost::NIC;
use crate::frame::View;
use crate::node::{BRIDGE, Node};
use crate::probe::{self, Probe, ProbeReport};
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};
use crate::trunk::Trunk;

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "chain",
    about: "chains of 1 to 16 routers on one host, 4 across two hosts, one on a stick; traceroute, ICMP errors",
    memory_mib: 1536,
    limit: Duration::from_secs(600),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("lost", "0"),
        ("duplicated", "0"),
        ("reordered", "0"),
        ("vm_transit_packets", "0"),
        ("wrong_ttl", "0"),
        ("wrong_hops", "0"),
    ],
    run,
};

const RATE: u32 = 1000;
const PROBE_TIME: Duration = Duration::from_secs(2);
/// Where probes go; no other traffic uses it.
const PORT: u16 = 7000;
/// What every end host sends with.
const TTL: u8 = 64;
/// The bound for sessions and neighbors.
const CONVERGE: Duration = Duration::from_secs(60);
/// Table of the pipeline that a next hop is in.
const NEXT_HOP: u8 = 4;

fn run(lab: &mut Lab) -> Result<Value> {
    let topology = Topology::build(lab)?;
    lab.step("first packets: the routers resolve their neighbors");
    for line in [&topology.alone, &topology.cross, &topology.stick] {
        converge(line)?;
    }
    lab.ready()?;

    let mut runs = Vec::new();
    for segment in topology.alone.targets() {
        let run = measure(lab, &topology, &topology.alone, segment)?;
        ensure!(run.megaflows == [1, 0], "{segment} routers on one host are not one megaflow: {run:?}");
        runs.push(run);
    }
    let run = measure(lab, &topology, &topology.cross, 4)?;
    // One for each time the packet comes to a host.
    ensure!(run.megaflows == [2, 2], "the chain across hosts has other megaflows than its visits: {run:?}");
    runs.push(run);
    runs.push(stick(lab, &topology)?);

    let wrong_hops = traceroutes(lab, &topology)?;
    errors(lab, &topology)?;
    let transit_by_mtu = narrow(lab, &topology)?;
    let controls = controls(lab, &topology)?;

    let sum = |of: fn(&Run) -> u64| runs.iter().map(of).sum::<u64>();
    let paths: serde_json::Map<String, Value> =
        runs.iter().map(|run| (run.name.clone(), run.json())).collect();
    let figures = json!({
        "sent": sum(|run| run.report.sent),
        "lost": sum(|run| run.report.lost),
        "duplicated": sum(|run| run.report.duplicated),
        "reordered": sum(|run| run.report.reordered),
        "vm_transit_packets": sum(|run| run.transit),
        "wrong_ttl": sum(|run| run.wrong_ttl),
        "wrong_hops": wrong_hops,
        "vm_transit_toward_smaller_mtu": transit_by_mtu,
        "paths": paths,
        "controls": controls,
    });
    let wrong: Vec<&str> =
        SCENARIO.targets.iter().map(|(key, _)| *key).filter(|key| figures[key] != 0).collect();
    if !wrong.is_empty() {
        bail!("{} must be 0: {figures}", wrong.join(", "));
    }
    Ok(figures)
}

/// Waits until every end host is reached without any router's kernel.
fn converge(line: &Line) -> Result<()> {
    for segment in line.targets() {
        let what =
            format!("the routers of {} up to segment {segment} to forward no more themselves", line.name());
        wait_for(&what, CONVERGE, || {
            let before = line.forwarded()?;
            let ping = line.end(0)?.ping(&line.address(segment).to_string(), 3, 20)?;
            Ok((ping.lost() == 0 && line.forwarded()? == before).then_some(()))
        })?;
    }
    Ok(())
}

/// What a probe through a line found.
#[derive(Debug)]
struct Run {
    name: String,
    report: ProbeReport,
    /// Packets that the line's kernels forwarded meanwhile.
    transit: u64,
    /// Packets that did not arrive with one less for each router.
    wrong_ttl: u64,
    /// IPv4 flows of the kernel datapaths of a and b on the line's way, afterwards.
    megaflows: [usize; 2],
}

impl Run {
    fn json(&self) -> Value {
        json!({
            "sent": self.report.sent,
            "lost": self.report.lost,
            "transit": self.transit,
            "longest_gap_ms": self.report.longest_gap_ms,
            "megaflows_a": self.megaflows[0],
            "megaflows_b": self.megaflows[1],
        })
    }
}

/// A probe from segment 0 to another, beginning with empty caches.
fn measure(lab: &Lab, topology: &Topology, line: &Line, segment: u8) -> Result<Run> {
    let name = format!("{}-{segment}", line.name());
    lab.step(format!("{RATE} packets/s through {segment} routers of {}", line.name()));
    for node in &topology.nodes {
        node.host().flush_datapath()?;
    }
    let to = line.end(segment)?;
    let capture = Capture::start(lab, to.netns(), NIC, &format!("udp port {PORT}"))?;
    let before = line.forwarded()?;
    let report = probe(lab, line, segment)?.run_for(PROBE_TIME)?;
    let transit = line.forwarded()? - before;
    let [a, b] = &topology.nodes;
    let megaflows = [megaflows(a, &line.port(0))?, megaflows(b, &line.port(0))?];
    let frames = capture.stop()?;
    let arrived = capture::count(&frames, is_probe);
    let right = capture::count(&frames, |view| is_probe(view) && view.ttl() == Some(TTL - segment));
    ensure!(report.sent > 1500, "the probe sent only {} packets", report.sent);
    ensure!(arrived as u64 == report.received + report.duplicated, "{arrived} packets captured: {report:?}");
    Ok(Run { name, report, transit, wrong_ttl: (arrived - right) as u64, megaflows })
}

fn probe(lab: &Lab, line: &Line, segment: u8) -> Result<Probe> {
    let address = (line.address(segment), PORT).into();
    let probe = Probe::start(lab, line.end(0)?.netns(), line.end(segment)?.netns(), address, RATE)?;
    Ok(probe)
}

fn is_probe(view: View<'_>) -> bool {
    view.contains(&probe::MAGIC)
}

/// IPv4 flows of the kernel datapath for what comes in by a port or by the trunk.
fn megaflows(node: &Node, port: &str) -> Result<usize> {
    let text = node.host().appctl(&["dpctl/dump-flows", "--names"])?;
    let ports = [port, Trunk::PORT].map(|port| format!("in_port({port}),"));
    let on_the_way = |line: &&str| {
        line.contains("eth_type(0x0800)") && ports.iter().any(|port| line.contains(port.as_str()))
    };
    Ok(text.lines().filter(on_the_way).count())
}

/// Between end hosts on b, through a router on a: in by the trunk on one VLAN, out by it on another.
fn stick(lab: &Lab, topology: &Topology) -> Result<Run> {
    let line = &topology.stick;
    let trunk = Capture::start(lab, topology.nodes[0].host().netns(), Trunk::PORT, "")?;
    let run = measure(lab, topology, line, 1)?;
    let frames = trunk.stop()?;
    for (segment, ttl) in [(0, TTL), (1, TTL - 1)] {
        let seen = capture::count(&frames, |view| {
            is_probe(view) && view.vlans() == [line.vlan(segment)] && view.ttl() == Some(ttl)
        });
        ensure!(
            seen as u64 == run.report.sent,
            "{seen} of {} packets were on a's trunk in segment {segment}",
            run.report.sent
        );
    }
    ensure!(run.megaflows[0] == 1, "the router on a stick is not one megaflow: {run:?}");
    Ok(run)
}

/// Every router must name itself at its distance; how many do not.
fn traceroutes(lab: &Lab, topology: &Topology) -> Result<u64> {
    let mut wrong = 0;
    for (line, segment) in [(&topology.alone, 16), (&topology.cross, 4), (&topology.stick, 1)] {
        lab.step(format!("traceroute through {segment} routers of {}", line.name()));
        let found = trace(line.end(0)?, line.address(segment), segment)?;
        let exceeded = |i| Answer::Error(line.left(i), "Time to live exceeded".to_owned());
        let wanted: Vec<Answer> =
            (1..=segment).map(exceeded).chain([Answer::Reply(line.address(segment))]).collect();
        ensure!(
            found.iter().collect::<BTreeSet<_>>().len() == usize::from(segment) + 1,
            "two hops have one name: {found:?}"
        );
        wrong += found.iter().zip(&wanted).filter(|(found, wanted)| found != wanted).count() as u64;
        ensure!(wrong == 0, "hops are {found:?}, not {wanted:?}");
    }
    Ok(wrong)
}

/// Destinations that no packet reaches: the right router says why, or nobody where nobody may.
fn errors(lab: &Lab, topology: &Topology) -> Result<()> {
    lab.step("no route, unreachable, prohibit: the right router says so; blackhole: silence");
    let line = &topology.alone;
    let from = line.end(0)?;
    for (target, router, words) in [
        ("10.250.0.1", 16, "Destination Net Unreachable"),
        ("10.252.0.1", 8, "Destination Host Unreachable"),
        ("10.253.0.1", 8, "Packet filtered"),
    ] {
        let answer = ask(from, target, &[])?;
        let wanted = Answer::Error(line.left(router), words.to_owned());
        ensure!(answer == wanted, "{target}: {answer:?}, not {wanted:?}");
    }
    // Router 4 drops: it would also in its guest, so the guest must not see them.
    let ns = line.routers.get(3).context("no router 4")?.guest().netns();
    let (before, _) = ns.packets("left")?;
    let lost = from.ping("10.251.0.1", 50, 5)?;
    let (after, _) = ns.packets("left")?;
    ensure!(lost.received == 0, "a blackhole answered: {lost:?}");
    ensure!(after - before < 10, "{} packets for a blackhole came to the guest", after - before);
    let answer = ask(from, "10.251.0.1", &[])?;
    ensure!(answer == Answer::Silence, "a blackhole answered: {answer:?}");
    Ok(())
}

/// A router with a smaller MTU ahead: it says so, or fragments. Gives back what it forwarded itself.
fn narrow(lab: &Lab, topology: &Topology) -> Result<u64> {
    lab.step("an MTU of 1400 behind router 2: `fragmentation needed`, or fragments");
    let line = &topology.alone;
    let from = line.end(0)?;
    let target = line.address(2).to_string();
    let router = line.routers.get(1).context("no router 2")?;
    router.guest().netns().ip(&["link", "set", "right", "mtu", "1400"])?;
    let wanted = Answer::Error(line.left(2), "Frag needed and DF set (mtu = 1400)".to_owned());
    wait_for("the answer of the router with the smaller MTU", Duration::from_secs(10), || {
        Ok((ask(from, &target, &["-M", "do", "-s", "1450"])? == wanted).then_some(()))
    })?;

    // What h learned of the path would have it send what fits.
    from.netns().ip(&["route", "flush", "cache"])?;
    let before = router.guest().forwarded()?;
    // At the switch's end of h2's wire: what leaves h2 is not fragmented and has another destination.
    let port = line.port(2);
    let host = topology.nodes[0].host().netns();
    let capture = Capture::start(lab, host, &port, &format!("icmp and dst host {target}"))?;
    let answer = ask(from, &target, &["-M", "dont", "-s", "1450"])?;
    let frames = capture.stop()?;
    ensure!(answer == Answer::Reply(line.address(2)), "a packet that may be fragmented: {answer:?}");
    // RFC 791: more fragments (0x2000) or an offset (0x1fff).
    let is_fragment =
        |view: View<'_>| view.payload().get(6..8).is_some_and(|field| field[0] & 0x3f != 0 || field[1] != 0);
    let fragments = capture::count(&frames, is_fragment);
    ensure!((frames.len(), fragments) == (2, 2), "{fragments} fragments in {} frames", frames.len());
    let transit = router.guest().forwarded()? - before;
    ensure!(transit > 0, "fragments came, but not from the router's kernel");

    router.guest().netns().ip(&["link", "set", "right", "mtu", "1500"])?;
    converge(line)?;
    Ok(transit)
}

/// Each zero is made to fail.
fn controls(lab: &Lab, topology: &Topology) -> Result<Value> {
    lab.step("control: a cut trunk must lose packets");
    let cross = &topology.cross;
    let running = probe(lab, cross, 4)?;
    topology.trunk.set_link(topology.nodes[1].host(), false)?;
    let cut = running.run_for(Duration::from_secs(1))?;
    topology.trunk.set_link(topology.nodes[1].host(), true)?;
    ensure!(cut.lost > 0, "the trunk was cut and the probe lost nothing: {cut:?}");
    converge(cross)?;

    lab.step("control: a wire that doubles and delays must be seen to");
    let line = &topology.alone;
    let ns = line.end(0)?.netns();
    let netem =
        ["qdisc", "add", "dev", NIC, "root", "netem", "delay", "30ms", "reorder", "30%", "duplicate", "5%"];
    ns.run("tc", &netem)?;
    let mixed = probe(lab, line, 16)?.run_for(Duration::from_secs(1))?;
    ns.run("tc", &["qdisc", "del", "dev", NIC, "root"])?;
    ensure!(mixed.duplicated > 0, "the wire doubles and the probe saw none: {mixed:?}");
    ensure!(mixed.reordered > 0, "the wire reorders and the probe saw none: {mixed:?}");

    lab.step("control: without the next hops of router 4, its kernel must forward");
    let router = line.routers.get(3).context("no router 4")?;
    let host = topology.nodes[0].host();
    let source = format!("set_field:{}->eth_src", router.mac(1));
    let table = format!("table={NEXT_HOP},");
    let flows = topology.nodes[0].flows()?;
    let flow = flows.lines().find(|flow| flow.contains(&table) && flow.contains(&source));
    let cookie = flow.and_then(|flow| flow.trim().split(',').next()).context("router 4 has no next hop")?;
    host.ofctl(&["del-flows", BRIDGE, &format!("{cookie}/-1,table={NEXT_HOP}")])?;
    let before = router.guest().forwarded()?;
    let slow = probe(lab, line, 16)?.run_for(Duration::from_secs(1))?;
    let transit = router.guest().forwarded()? - before;
    ensure!(transit > 0, "router 4 has no next hops, and its kernel forwarded nothing: {slow:?}");
    Ok(json!({
        "lost_with_the_trunk_cut": cut.lost,
        "duplicated_by_the_wire": mixed.duplicated,
        "reordered_by_the_wire": mixed.reordered,
        "vm_transit_without_next_hops": transit,
        "lost_without_next_hops": slow.lost,
    }))
}
