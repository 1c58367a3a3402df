//! `flood`: an end host that sends as much as it can, to whatever it can think of, beside others who want to be served
//! as before. Who is where is in `site`, what is flooded in `kinds`.
//!
//! Victims are one pair of end hosts behind the attacker's own router, and one in another network. Each has an
//! established flow, and sends first packets. The same is measured on a plain bridge with routers that forward
//! themselves. The lab has one processor: what it takes just to send a flood shows in the kind `refused`.

mod kinds;
mod site;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use self::kinds::Kind;
use self::site::{FRESH, Site, TARGET, Victim};
use super::{Options, percentile, round};
use crate::cpu::Meter;
use crate::drops::Datapath;
use crate::endhost::NIC;
use crate::flood::Flood;
use crate::fresh::{Fresh, FreshReport};
use crate::probe::{Probe, ProbeReport};
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const BENCH: Scenario = Scenario {
    name: "flood",
    about: "victims beside an end host that floods (--seconds, --rate, --only KINDS, --peer 0, --macs 1, --vsctl …)",
    memory_mib: 1536,
    limit: Duration::from_secs(900),
    needs_product: true,
    in_suite: false,
    targets: &[
        ("xenflow.quiet.red.established_lost", "0"),
        ("xenflow.quiet.blue.established_lost", "0"),
        ("xenflow.routed.flows_max", "little more than without a flood"),
        ("xenflow.routed6.flows_max", "little more than without a flood"),
    ],
    run,
};

/// Packets per second of each established flow, and first packets per second of each victim.
const ESTABLISHED: u32 = 500;
const FRESH_RATE: u32 = 20;
/// Flows that a flood may add and still be said to need few.
const FEW: u64 = 50;
/// Flows that a flood must add if the switch needs one for each frame: the control of the count.
const MANY: u64 = 1000;

/// What the arguments say.
struct Plan {
    time: Duration,
    rate: u32,
    only: Vec<String>,
    /// Commands of `ovs-vsctl` for XenFlow's switch; the attacker's port is `red-evil`.
    vsctl: String,
}

impl Plan {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == name)
    }
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let seconds: u64 = options.take("--seconds", 6)?;
    let rate = options.take("--rate", 10_000)?;
    let only = options.take("--only", String::new())?;
    let peer: u8 = options.take("--peer", 1)?;
    let macs = options.take("--macs", 0_u8)? > 0;
    let vsctl = options.take("--vsctl", String::new())?;
    options.end()?;
    ensure!((1..=60).contains(&seconds), "{seconds} seconds is not 1 to 60");
    let only: Vec<String> = only.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let kinds = kinds::all()?;
    for name in &only {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
        ensure!(names.contains(&name.as_str()), "{name:?} is no kind of flood; there are: {names:?}");
    }
    let plan = Plan { time: Duration::from_secs(seconds), rate, only, vsctl };
    kernel()?;

    lab.step("two networks on XenFlow: victims, an attacker, a sink");
    let mut site = Site::xenflow(lab, macs)?;
    lab.ready()?;
    let mut figures = Map::new();
    figures.insert("xenflow".into(), measure(lab, &mut site, &kinds, &plan, "xenflow")?);
    drop(site);
    if peer > 0 {
        lab.step("the same on a plain bridge with routers that forward themselves");
        let mut site = Site::plain(lab)?;
        figures.insert("plain".into(), measure(lab, &mut site, &kinds, &plan, "plain")?);
    }
    let figures = Value::Object(figures);
    check(&figures).with_context(|| figures.to_string())?;
    Ok(figures)
}

/// What belongs to one machine in the lab, and would belong to each guest and each processor outside of it.
fn kernel() -> Result<()> {
    // One neighbor table's limit for all namespaces: a guest that fills its own must not fill the others'.
    for (key, value) in [("gc_thresh1", 100_000), ("gc_thresh2", 200_000), ("gc_thresh3", 200_000)] {
        std::fs::write(format!("/proc/sys/net/ipv4/neigh/default/{key}"), value.to_string())?;
    }
    // One queue for all virtual interfaces: a burst of the sender would push out what others have in it.
    std::fs::write("/proc/sys/net/core/netdev_max_backlog", "20000")?;
    Ok(())
}

fn check(figures: &Value) -> Result<()> {
    let xenflow = &figures["xenflow"];
    for network in ["red", "blue"] {
        let lost = &xenflow["quiet"][network]["established_lost"];
        ensure!(*lost == 0, "{network} lost {lost} without a flood");
    }
    let flows = |name: &str| xenflow[name]["flows_max"].as_u64();
    let quiet = flows("quiet").context("no flows without a flood")?;
    for kind in kinds::all()?.iter().filter(|kind| kind.few_flows) {
        let Some(flows) = flows(kind.name) else { continue };
        ensure!(flows <= quiet + FEW, "{} makes {flows} flows, {quiet} without a flood", kind.name);
    }
    if let Some(flows) = flows("unknown-mac") {
        ensure!(flows > quiet + MANY, "random MAC addresses make only {flows} flows: are they counted?");
    }
    Ok(())
}

fn measure(lab: &Lab, site: &mut Site, kinds: &[Kind], plan: &Plan, name: &str) -> Result<Value> {
    if site.xenflow_bridge().is_some() && !plan.vsctl.is_empty() {
        site.host().vsctl(&plan.vsctl.split_whitespace().collect::<Vec<_>>())?;
    }
    let mut figures = Map::new();
    lab.step(format!("{name}: no flood"));
    figures.insert("quiet".into(), phase(lab, site, None, plan)?);
    for kind in kinds.iter().filter(|kind| plan.wants(kind.name)) {
        lab.step(format!("{name}: {} ({})", kind.name, kind.about));
        figures.insert(kind.name.into(), phase(lab, site, Some(kind), plan)?);
    }
    // What the switch does against it is taken away: its meters let everything pass.
    if open_meters(site)? {
        for kind in kinds.iter().filter(|kind| kind.is_punted && plan.wants(kind.name)) {
            lab.step(format!("{name}: {} with open meters", kind.name));
            figures.insert(format!("{}-unmetered", kind.name), phase(lab, site, Some(kind), plan)?);
        }
    }
    Ok(Value::Object(figures))
}

/// Sets the rates of all meters of the bridge out of reach; false if there is none.
fn open_meters(site: &Site) -> Result<bool> {
    let Some(bridge) = site.xenflow_bridge() else { return Ok(false) };
    let text = site.host().ofctl(&["dump-meters", bridge])?;
    let mut any = false;
    for meter in text.lines().filter_map(|line| line.trim().strip_prefix("meter=")?.split(' ').next()) {
        let open = format!("meter={meter},pktps,burst,band=type=drop,rate=10000000,burst_size=10000000");
        site.host().ofctl(&["mod-meter", bridge, &open])?;
        any = true;
    }
    Ok(any)
}

/// The victims' traffic, for as long as the plan says, beside a flood or none.
fn phase(lab: &Lab, site: &mut Site, kind: Option<&Kind>, plan: &Plan) -> Result<Value> {
    site.host().flush_datapath()?;
    let mut probes = Vec::new();
    for victim in &site.victims {
        let to = format!("{TARGET}:7000").parse()?;
        let (near, far) = (victim.near.netns(), victim.far.netns());
        let probe = Probe::start(lab, near, far, to, ESTABLISHED)?;
        probes.push(probe);
    }
    let flood = match kind {
        Some(kind) => {
            let ns = site.attacker.netns();
            Some(Flood::start(lab, ns, NIC, &kind.frame, &kind.vary, plan.rate)?)
        }
        None => None,
    };
    let mut fresh = Vec::new();
    for victim in &site.victims {
        fresh.push(Fresh::start(lab, victim.near.netns(), FRESH, FRESH_RATE)?);
    }
    let mut processes = site.processes()?;
    processes.extend(flood.as_ref().map(|flood| ("sender", flood.id())));
    let meter = Meter::start(&processes)?;
    let before = Datapath::of(site.host())?;
    let (vm_before, _) = site.router()?.packets("lan1")?;
    let start = Instant::now();
    let mut flows_max = before.flows;
    while start.elapsed() < plan.time {
        std::thread::sleep(Duration::from_millis(500));
        flows_max = flows_max.max(Datapath::of(site.host())?.flows);
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = Datapath::of(site.host())?;
    let (vm_after, _) = site.router()?.packets("lan1")?;
    let cpu = meter.percent()?;
    let fresh = fresh.into_iter().map(Fresh::stop).collect::<Result<Vec<_>>>()?;
    let flood = flood.map(Flood::stop).transpose()?;
    let probes = probes.into_iter().map(Probe::stop).collect::<Result<Vec<_>>>()?;
    let per_s = |count: u64| (count as f64 / seconds).round();
    let mut figures = json!({
        "flows_max": flows_max,
        "upcalls_per_s": per_s(after.missed - before.missed),
        "upcalls_lost": after.lost - before.lost,
        "vm_rx_per_s": per_s(vm_after - vm_before),
        "cpu_percent": cpu,
    });
    if let (Some(flood), Some(figures)) = (flood, figures.as_object_mut()) {
        figures.insert("frames_per_s".into(), (flood.frames as f64 / flood.seconds).round().into());
        figures.insert("send_errors".into(), flood.errors.into());
    }
    for ((victim, probe), fresh) in site.victims.iter().zip(&probes).zip(&fresh) {
        if let Some(figures) = figures.as_object_mut() {
            figures.insert(victim.network.into(), suffered(victim, probe, fresh)?);
        }
    }
    Ok(figures)
}

fn suffered(victim: &Victim, probe: &ProbeReport, fresh: &FreshReport) -> Result<Value> {
    ensure!(probe.sent > 0 && fresh.sent > 0, "{} sent nothing: {probe:?}, {fresh:?}", victim.network);
    let percent = |part: f64, of: f64| round(100.0 * part / of);
    Ok(json!({
        "established_sent": probe.sent,
        "established_lost": probe.lost,
        "established_loss_percent": percent(probe.lost as f64, probe.sent as f64),
        "established_gap_ms": probe.longest_gap_ms,
        "first_sent": fresh.sent,
        "first_lost": fresh.lost,
        "first_loss_percent": percent(fresh.lost as f64, fresh.sent as f64),
        "first_ms_p50": percentile(&fresh.rtt_ms, 50),
        "first_ms_p99": percentile(&fresh.rtt_ms, 99),
    }))
}
