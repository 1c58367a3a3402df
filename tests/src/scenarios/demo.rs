//! `demo`: the main job, end to end, in figures. Its topology and detectors are in `twin`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::twin::{FAR_PREFIXES, H2, Twin, leaks};
use crate::iperf;
use crate::probe::Probe;
use crate::process::Process;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "demo",
    about: "the main job: two hosts, two networks with the same addresses, OSPF, forwarding without the routers",
    memory_mib: 1536,
    limit: Duration::from_secs(600),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("ping_loss_red", "0"),
        ("ping_loss_blue", "0"),
        ("vm_transit_packets", "0"),
        ("leaked_packets", "0"),
        ("restart_loss", "0"),
    ],
    run,
};

const PACKETS: u32 = 100;
const ROUTES: u32 = 200;
const RESTART_RATE: u32 = 1000;
/// Of one of the six runs of TCP.
const SECONDS: u32 = 2;

fn run(lab: &mut Lab) -> Result<Value> {
    let mut twin = Twin::build(lab)?;
    let gleaned = twin.converge(lab)?;
    lab.ready()?;
    let before = twin.forwarded()?;

    lab.step(format!("{PACKETS} packets h1 → h2 in each network"));
    let red = twin.networks[0].ping(PACKETS, 20)?;
    let blue = twin.networks[1].ping(PACKETS, 20)?;

    let (first, steady) = first_packets(lab, &twin)?;
    let (tcp, normal) = throughput(lab, &twin)?;
    let latency = route_to_flow(lab, &mut twin)?;
    let restart = restart(lab, &mut twin)?;
    let transit = twin.forwarded()? - before;
    // Last: the attackers' routers forward some of these themselves, as they should.
    let leaked = leaks::attack(lab, &twin, 0)? + leaks::attack(lab, &twin, 1)?;
    ensure!(leaked.seen_at_home > 100, "the captures see nothing: {leaked:?}");

    let figures = json!({
        "ping_loss_red": red.lost(),
        "ping_loss_blue": blue.lost(),
        "first_rtt_over_steady": round(first / steady),
        "first_rtt_ms": round(first),
        "steady_rtt_ms": round(steady),
        "vm_transit_packets": transit,
        "gleaned_packets": gleaned,
        "leaked_packets": leaked.leaked,
        "attack_frames": leaked.sent,
        "tcp_gbit": round(tcp),
        "tcp_gbit_normal": round(normal),
        "tcp_ratio": round(tcp / normal),
        "route_to_flow_ms_p50": round(latency.0),
        "route_to_flow_ms_p99": round(latency.1),
        "restart_loss": restart.lost,
        "restart_sent": restart.sent,
        "restart_duplicated": restart.duplicated,
    });
    let zeros = ["ping_loss_red", "ping_loss_blue", "vm_transit_packets", "leaked_packets", "restart_loss"];
    let wrong: Vec<&str> = zeros.into_iter().filter(|key| figures[key] != 0).collect();
    if !wrong.is_empty() {
        bail!("{} must be 0: {figures}", wrong.join(", "));
    }
    Ok(figures)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("no values")
}

/// Round trips in ms: the first packet to a prefix nobody has sent to, and later ones; medians. Each prefix is a
/// route of its own on both hosts, with its next hop resolved: what the first packet meets is Open vSwitch's
/// upcall, twice each way.
fn first_packets(lab: &Lab, twin: &Twin) -> Result<(f64, f64)> {
    lab.step("first packets of fresh destinations");
    let red = &twin.networks[0];
    red.r[0].guest().wait_route(&format!("10.99.{FAR_PREFIXES}.0/24"), Duration::from_secs(20))?;
    let (mut first, mut steady) = (Vec::new(), Vec::new());
    for k in 1..=FAR_PREFIXES {
        let ping = red.h[0].ping(&format!("10.99.{k}.1"), 6, 20)?;
        ensure!(ping.lost() == 0, "packets to 10.99.{k}.1 were lost: {ping:?}");
        first.push(ping.first_ms.context("no first packet")?);
        steady.push(ping.steady_ms.context("no steady packets")?);
    }
    Ok((median(first)?, median(steady)?))
}

/// TCP in Gbit/s: through two routers' flows, and through plain `NORMAL` switching on the same bridges and the same
/// trunk; medians of interleaved runs.
fn throughput(lab: &Lab, twin: &Twin) -> Result<(f64, f64)> {
    lab.step("TCP through the flows and through plain switching, in turns");
    let red = &twin.networks[0];
    let (mut routed, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        routed.push(iperf::tcp(lab, red.h[0].netns(), red.h[1].netns(), H2, SECONDS)?.gbit_s);
        plain
            .push(iperf::tcp(lab, twin.plain[0].netns(), twin.plain[1].netns(), "10.3.0.2", SECONDS)?.gbit_s);
    }
    Ok((median(routed)?, median(plain)?))
}

/// Milliseconds from the moment before a route is given to r1's kernel to the moment after its client learned that
/// the switch has confirmed the flow: p50, p99.
fn route_to_flow(lab: &Lab, twin: &mut Twin) -> Result<(f64, f64)> {
    lab.step(format!("{ROUTES} routes added one by one in r1's kernel"));
    let router = &twin.networks[0].r[0];
    let mut watch = router.watch()?;
    // One process for all routes: starting one takes longer than what is measured.
    let mut command = router.guest().netns().command("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped());
    let log = lab.results().join("route-to-flow-ip.log");
    let mut ip = Process::spawn_with_stdin("ip -batch", &mut command, &log)?;
    let mut stdin = ip.child().stdin.take().context("no pipe to ip")?;
    let mut times = Vec::new();
    for i in 0..ROUTES {
        let line = format!("route add 10.200.{i}.0/24 via 10.0.0.2 metric 77\n");
        let start = Instant::now();
        std::io::Write::write_all(&mut stdin, line.as_bytes())?;
        watch.acked(Duration::from_secs(5)).with_context(|| format!("after {line}"))?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    drop(stdin);
    ip.wait(Duration::from_secs(5))?;
    let flows = twin.nodes[0].flows()?;
    let installed = flows.lines().filter(|line| line.contains("nw_dst=10.200.")).count();
    ensure!(installed == ROUTES as usize, "{installed} of {ROUTES} acknowledged routes are flows");
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().context("no times");
    Ok((at(50)?, at(99)?))
}

/// kill -9 of the daemon on a, and its restart, under a probe.
fn restart(lab: &Lab, twin: &mut Twin) -> Result<crate::probe::ProbeReport> {
    lab.step(format!("kill -9 and restart of xenflow-dom0 on a under {RESTART_RATE} packets/s"));
    let red = &twin.networks[0];
    let to = format!("{H2}:7000").parse()?;
    let probe = Probe::start(lab, red.h[0].netns(), red.h[1].netns(), to, RESTART_RATE)?;
    let mut watch = red.r[0].watch()?;
    twin.nodes[0].kill_daemon()?;
    std::thread::sleep(Duration::from_millis(500));
    twin.nodes[0].start_daemon()?;
    watch.acked(Duration::from_secs(30)).context("after the restart")?;
    for network in &twin.networks {
        twin.nodes[0].wait_session(network.r[0].name(), Duration::from_secs(30))?;
    }
    let report = probe.run_for(Duration::from_secs(2))?;
    ensure!(report.sent > 2000, "the probe sent only {} packets", report.sent);
    Ok(report)
}
